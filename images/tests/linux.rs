//! Linux appliances: the schema's errors, the initial RAM disk, the root disk, and a boot.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use quorate_images::appliance::{Flavour, LinuxSpec};
use quorate_images::{
    Appliance, BuildOptions, BuiltImage, Console, CpioEntry, Initramfs, KernelSource, LinuxRoot,
    build, cached, disks, read_cpio,
};

const SHELL: &str = r#"version = 1
name = "shell"
[image]
packages = ["busybox-static"]
[machine]
memory = "256M"
[linux]
cpus = 2
"#;

fn parse(text: &str) -> Result<Appliance, String> {
    Appliance::parse(text, Path::new("shell.toml")).map_err(|error| error.to_string())
}

#[test]
fn the_defaults_are_debians_cloud_kernel_and_the_images_own_init() {
    let linux = parse(SHELL).unwrap().linux.unwrap();
    let expected = LinuxSpec {
        cpus: 2,
        ..LinuxSpec::default()
    };
    assert_eq!(linux, expected);
    let cloud = KernelSource::Debian {
        flavour: Flavour::Cloud,
        version: None,
    };
    assert_eq!(linux.kernel, cloud);
    assert_eq!(linux.initramfs, Initramfs::Auto);
    assert_eq!(linux.console, Console::TtyS0);
    assert_eq!(linux.init(), "/sbin/init");
    // Without [linux] an appliance is the embedded guest's, and needs a program.
    let embedded = SHELL.replace("[linux]\ncpus = 2\n", "");
    assert_eq!(
        parse(&embedded).unwrap_err(),
        "shell.toml:1: missing table [program]"
    );
}

#[test]
fn kernels_are_named_by_flavour_and_version_or_by_file() {
    let kernel = |text: &str| {
        let line = format!("kernel = \"{text}\"\n");
        parse(&[SHELL, &line].concat()).map(|appliance| appliance.linux.unwrap().kernel)
    };
    assert_eq!(
        kernel("debian:amd64@6.12"),
        Ok(KernelSource::Debian {
            flavour: Flavour::Amd64,
            version: Some("6.12".to_owned()),
        })
    );
    assert_eq!(
        kernel("boot/vmlinuz"),
        Ok(KernelSource::File("boot/vmlinuz".into()))
    );
    for (text, why) in [
        ("debian:rt", "rt is no flavour"),
        ("debian:cloud@", "after @ comes"),
        ("debian:cloud@-o", "after @ comes"),
        ("", "the path of a file is empty"),
    ] {
        let error = kernel(text).unwrap_err();
        let start = "shell.toml:9: key \"kernel\" in [linux]: ";
        assert!(error.starts_with(start) && error.contains(why), "{error}");
    }
}

#[test]
fn a_replica_has_its_own_kernel_and_more_words_for_it() {
    let own = "cmdline = \"quiet\"\n[[replica]]\n[[replica]]\nlinux = { kernel = \"debian:cloud@6.12\", cmdline = \"nokaslr\" }\n";
    let appliance = parse(&[SHELL, own].concat()).unwrap();
    assert_eq!(appliance.replica(0).linux, appliance.linux);
    let second = appliance.replica(1).linux.unwrap();
    assert_eq!(second.cmdline, "quiet nokaslr");
    assert_eq!(second.cpus, 2);
    assert_ne!(second.kernel, appliance.linux.unwrap().kernel);
    let embedded = SHELL.replace(
        "[linux]\ncpus = 2\n",
        "[program]\ncommand = [\"/bin/sh\"]\n[[replica]]\nlinux = {}\n",
    );
    let error = parse(&embedded).unwrap_err();
    assert!(
        error.starts_with("shell.toml:9: key \"linux\" in [replica]: only"),
        "{error}"
    );
}

#[test]
fn errors_name_line_and_key() {
    let cases = [
        (
            "",
            "cpus = 2",
            "cpus = 0",
            ":8: key \"cpus\" in [linux]: 0 CPUs",
        ),
        (
            "",
            "cpus = 2",
            "cpu = 2",
            ":8: unknown key \"cpu\" in [linux]",
        ),
        (
            "console = \"ttyS1\"\n",
            "",
            "",
            ":9: key \"console\" in [linux]: unknown variant ttyS1",
        ),
        (
            "cmdline = \"a\\nb\"\n",
            "",
            "",
            ":9: key \"cmdline\" in [linux]: the kernel's command line is of",
        ),
        (
            "init = \"init\"\n",
            "",
            "",
            ":9: key \"init\" in [linux]: init is not an absolute path",
        ),
        (
            "modules = [\"../x\"]\n",
            "",
            "",
            ":9: key \"modules\" in [linux]: ../x is not a name",
        ),
        (
            "free = \"1000G\"\n",
            "",
            "",
            ":9: key \"free\" in [linux]: 1000G free",
        ),
        (
            "",
            "256M",
            "64M",
            ":5: key \"memory\" in [machine]: 64M are too little for a Linux guest: at least 96M",
        ),
        (
            "initramfs = \"none\"\n",
            "",
            "",
            ":7: key \"initramfs\" in [linux]: without one there is no root = \"memory\"",
        ),
        (
            "init = \"/bin/x\"\n[program]\ncommand = [\"/bin/y\"]\n",
            "",
            "",
            ":7: key \"init\" in [linux]: [program] has a command",
        ),
        (
            "[[disk]]\nname = \"r\"\nsize = \"1G\"\nseed = \"x\"\n",
            "256M\"",
            "256M\"\nroot = \"disk:r\"",
            ":10: disk r is the root of a Linux guest: it has no `seed`",
        ),
    ];
    for (more, from, to, expected) in cases {
        let text = [&SHELL.replace(from, to), more].concat();
        let error = parse(&text).expect_err(&text);
        let expected = format!("shell.toml{expected}");
        assert!(error.starts_with(&expected), "{error}\nis not\n{expected}");
    }
}

/// The cache of tests that need the network once.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cache")
}

/// A program on a root that has files of all sorts.
const PROGRAM: &str = r#"version = 1
name = "linux-test"
[image]
packages = ["busybox-static"]
files = [
    { path = "/bin/sh", link = "busybox" },
    { path = "/etc/secret", content = "s3cret", mode = 0o600 },
    { path = "/usr/bin/setuid", content = "x", mode = 0o4755 },
    { path = "/srv/with space and 'quote'/a", content = "deep" },
]
[program]
command = ["/bin/sh", "-c", "echo \"$A\" $(id -u) $(id -g) $(id -G) $(pwd) $(hostname); cat /etc/secret; ip -o -4 addr show eth0; touch /new && echo writable; exit 7"]
env = { A = "it's $A", PATH = "/bin" }
cwd = "/srv"
uid = 33
gid = 34
groups = [4, 44]
[machine]
memory = "256M"
[linux]
"#;

fn built(text: &str) -> BuiltImage {
    let appliance = parse(text).unwrap();
    build(&appliance, &BuildOptions::new(cache())).unwrap()
}

fn initramfs(image: &BuiltImage) -> Vec<CpioEntry> {
    let path = image.linux.as_ref().unwrap().initramfs.as_ref().unwrap();
    read_cpio(&fs::read(path).unwrap()).unwrap()
}

/// What debugfs says to a request about the file system in `image`.
fn debugfs(image: &Path, request: &str) -> String {
    let output = Command::new("debugfs")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["-R", request])
        .arg(image)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn is_sound(image: &Path) -> bool {
    let status = Command::new("e2fsck")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .arg("-fn")
        .arg(image)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.unwrap().success()
}

#[test]
fn kernel_initial_ram_disk_and_root_are_made_and_found_again() {
    let image = built(PROGRAM);
    let linux = image.linux.clone().unwrap();
    assert_eq!(linux.root, LinuxRoot::Image);
    assert!(linux.runs_program && linux.cmdline.starts_with("console=ttyS0 root=/dev/vda "));
    // The boot protocol's signature, at its offset.
    assert_eq!(fs::read(&linux.kernel).unwrap()[0x202..0x206], *b"HdrS");
    let entries = initramfs(&image);
    let find = |path: &str| {
        let found = entries.iter().find(|entry| entry.path == path);
        found.unwrap_or_else(|| panic!("no {path}"))
    };
    assert_eq!(find("init").mode, 0o100_755);
    assert_eq!(find("bin/sh").content, b"busybox");
    assert!(find("bin/task").content.starts_with(b"\x7fELF"));
    let conf = String::from_utf8(find("quorate.conf").content.clone()).unwrap();
    assert!(
        conf.contains("hostname='linux-test'\naddress=10.0.2.15/24\n"),
        "{conf}"
    );
    let program = String::from_utf8(find("program").content.clone()).unwrap();
    assert!(
        program.contains("/task init 33 34 4,44 '/srv' '/bin/sh' '-c'"),
        "{program}"
    );
    // What a module needs is loaded before it.
    let modules: Vec<&str> = entries
        .iter()
        .filter_map(|entry| entry.path.strip_prefix("modules/"))
        .collect();
    let at = |name: &str| {
        let found = modules.iter().position(|path| path.get(3..) == Some(name));
        found.unwrap_or_else(|| panic!("no {name} in {modules:?}"))
    };
    for (first, then) in [
        ("virtio_ring.ko", "virtio_mmio.ko"),
        ("virtio_ring.ko", "virtio.ko"),
        ("virtio.ko", "virtio_blk.ko"),
        ("failover.ko", "net_failover.ko"),
        ("net_failover.ko", "virtio_net.ko"),
    ] {
        assert!(at(first) < at(then), "{modules:?}");
    }
    assert!(modules.is_sorted() && at("overlay.ko") > 0);
    // Again: the same files, nothing made.
    let again = built(PROGRAM);
    assert!(again.cached);
    assert_eq!(again.linux.as_ref().unwrap(), &linux);
    let found = cached(&parse(PROGRAM).unwrap(), &cache()).unwrap().unwrap();
    assert_eq!((found.path, found.digest), (again.path, again.digest));
}

#[test]
fn the_root_disk_is_sound_with_owners_and_modes_and_two_builds_are_equal() {
    // A name of its own: other tests must not find the file missing.
    let text = PROGRAM.replace("linux-test", "linux-equal");
    let image = built(&text);
    assert!(is_sound(&image.path));
    let stat = |path: &str| debugfs(&image.path, &format!("stat \"{path}\""));
    assert!(stat("/etc/secret").contains("Mode:  0600"));
    let setuid = stat("/usr/bin/setuid");
    assert!(
        setuid.contains("Mode:  04755") && setuid.contains("User:     0"),
        "{setuid}"
    );
    // 2026-01-01, what the appliance's epoch is by default.
    assert!(setuid.contains("mtime: 0x6955b900"), "{setuid}");
    assert!(stat("/tmp").contains("Mode:  01777"));
    assert!(stat("/bin").contains("Fast link dest: \"usr/bin\""));
    assert_eq!(
        debugfs(&image.path, "cat \"/srv/with space and 'quote'/a\""),
        "deep"
    );
    // Made again, from the same packages.
    let first = fs::read(&image.path).unwrap();
    fs::remove_file(&image.path).unwrap();
    let again = built(&text);
    assert!(!again.cached && again.path == image.path);
    assert_eq!(again.digest, image.digest);
    assert!(fs::read(&again.path).unwrap() == first, "another root disk");
    // A disk that was changed since is made again.
    let mut bytes = first.clone();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&image.path, &bytes).unwrap();
    let mended = built(&text);
    assert!(!mended.cached);
    assert!(fs::read(&mended.path).unwrap() == first);
}

#[test]
fn a_root_on_a_disk_is_a_copy_of_the_image_of_the_disks_size() {
    let text = PROGRAM.replace("linux-test", "linux-disk").replace(
        "[linux]",
        "root = \"disk:os\"\n[[disk]]\nname = \"os\"\nsize = \"64M\"\n[linux]",
    );
    let appliance = parse(&text).unwrap();
    let state = tempfile::tempdir().unwrap();
    let error = disks::prepare(&appliance, state.path()).unwrap_err();
    assert!(matches!(error, disks::DiskError::NoImage { .. }), "{error}");
    let image = built(&text);
    let boot = image.linux.as_ref().unwrap();
    assert_eq!(boot.root, LinuxRoot::Disk("os".to_owned()));
    assert!(boot.cmdline.contains("rootfstype=ext4 rw "));
    let made = disks::prepare(&image.settle(&appliance), state.path()).unwrap();
    assert!(made[0].created);
    assert!(fs::read(&made[0].path).unwrap() == fs::read(&image.path).unwrap());
    assert_eq!(image.length, 64 << 20);
    // It is the appliance's from then on.
    assert!(!disks::prepare(&appliance, state.path()).unwrap()[0].created);
    let small = text
        .replace("64M", "17M")
        .replace("linux-disk", "linux-small");
    let files = "files = [";
    let full = format!(
        "{files} {{ path = \"/big\", source = \"{}\" }},",
        boot.kernel.display()
    );
    let error = build(
        &parse(&small.replace(files, &full)).unwrap(),
        &BuildOptions::new(cache()),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("does not fit into the root disk"),
        "{error}"
    );
}

/// Boots it in QEMU's emulator, where that is installed.
#[test]
fn it_boots_runs_the_program_as_its_user_and_says_how_it_ended() {
    let image = built(PROGRAM);
    let linux = image.linux.unwrap();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-M",
        "q35",
        "-m",
        "256",
        "-nodefaults",
    ])
    .args([
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        "stdio",
    ])
    .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
    .arg("-kernel")
    .arg(&linux.kernel)
    .arg("-initrd")
    .arg(linux.initramfs.unwrap())
    .args(["-append", &linux.cmdline])
    .arg("-drive")
    .arg(format!(
        "id=r,if=none,format=raw,readonly=on,file={}",
        image.path.display()
    ))
    .args(["-device", "virtio-blk-pci,drive=r"])
    .args([
        "-netdev",
        "user,id=n,restrict=on",
        "-device",
        "virtio-net-pci,netdev=n,romfile=",
    ])
    .stdin(Stdio::null())
    .stdout(Stdio::piped());
    let mut child = match qemu.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("SKIPPED: qemu-system-x86_64 cannot be started: {error}");
            return;
        }
    };
    let mut said = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said).replace('\r', "");
    // The device's exit status is twice the value that was written, plus one.
    assert_eq!(child.wait().unwrap().code(), Some(2 * 7 + 1), "{said}");
    assert!(
        said.contains("it's $A 33 34 34 4 44 /srv linux-test\n"),
        "{said}"
    );
    assert!(said.contains("inet 10.0.2.15/24"), "{said}");
    // As any user but root: neither the secret nor the root directory are for it.
    assert!(
        !said.contains("s3cret") && !said.contains("writable"),
        "{said}"
    );
}
