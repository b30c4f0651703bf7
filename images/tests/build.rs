//! Building images from directories, files and Debian packages. The last needs the Debian mirror the first time; then
//! `images/cache` has the packages.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::cell::{Cell, RefCell};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use quorate_abi::image::ImageView;
use quorate_images::{
    Appliance, BuildError, BuildOptions, BuiltImage, Progress, build, cached, verify,
};
use support::resolve;
use tempfile::TempDir;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/bin")).unwrap();
        Self { dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn program(&self, path: &str, mode: u32) {
        fs::write(self.path(path), b"\x7fELF and so on").unwrap();
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn appliance(&self, image: &str) -> Appliance {
        let text = format!(
            "version = 1\nname = \"t\"\n[image]\n{image}\n[program]\ncommand = [\"/bin/t\"]\nuid = 1234\n"
        );
        Appliance::parse(&text, &self.path("t.toml")).unwrap()
    }

    fn build(&self, image: &str) -> Result<BuiltImage, BuildError> {
        build(
            &self.appliance(image),
            &BuildOptions::new(self.path("cache")),
        )
    }
}

fn text(view: &ImageView<'_>, path: &str) -> String {
    let ino = resolve(view, path).expect(path);
    String::from_utf8(view.data(ino).unwrap().to_vec()).unwrap()
}

#[test]
fn a_directory_with_one_static_program() {
    let bench = Bench::new();
    bench.program("root/bin/t", 0o755);
    fs::hard_link(bench.path("root/bin/t"), bench.path("root/bin/u")).unwrap();
    symlink("bin/t", bench.path("root/init")).unwrap();
    fs::write(bench.path("extra.txt"), "from the host").unwrap();
    let image = "directory = \"root\"\nfiles = [{ path = \"/etc/a/b\", content = \"hello\", mode = 0o600 }, { path = \"/x\", source = \"extra.txt\" }, { path = \"/y\", link = \"x\" }]";
    let built = bench.build(image).unwrap();
    assert!(!built.cached && built.packages.is_empty());
    assert_eq!(verify(&built.path).unwrap().digest, built.digest);

    let bytes = fs::read(&built.path).unwrap();
    let view = ImageView::parse(&bytes).unwrap();
    let program = resolve(&view, "/init").unwrap();
    assert_eq!(view.data(program).unwrap(), b"\x7fELF and so on");
    let inode = view.inode(program).unwrap();
    assert_eq!((inode.mode & 0o7777, inode.uid, inode.nlink), (0o755, 0, 2));
    assert_eq!(text(&view, "/etc/a/b"), "hello");
    let mode = view
        .inode(resolve(&view, "/etc/a/b").unwrap())
        .unwrap()
        .mode;
    assert_eq!(mode & 0o7777, 0o600);
    assert_eq!(text(&view, "/y"), "from the host");
    assert!(text(&view, "/etc/passwd").contains("app:x:1234:0:"));
    assert!(text(&view, "/etc/hosts").contains("127.0.0.1 localhost\n"));
    for mount_point in ["/dev", "/proc", "/sys", "/tmp", "/run"] {
        assert!(
            view.inode(resolve(&view, mount_point).unwrap())
                .unwrap()
                .is_dir()
        );
    }
    let tmp = view.inode(resolve(&view, "/tmp").unwrap()).unwrap();
    assert_eq!(tmp.mode & 0o7777, 0o1777);
}

#[test]
fn the_same_inputs_give_the_same_image_and_others_another() {
    let (one, two) = (Bench::new(), Bench::new());
    for bench in [&one, &two] {
        bench.program("root/bin/t", 0o755);
    }
    let source = "directory = \"root\"";
    let first = one.build(source).unwrap();
    // Another time of modification, another place: the same bytes.
    fs::File::options()
        .write(true)
        .open(two.path("root/bin/t"))
        .and_then(|file| file.set_modified(std::time::UNIX_EPOCH))
        .unwrap();
    let second = two.build(source).unwrap();
    assert_eq!(first.digest, second.digest);
    assert_eq!(first.path.file_name(), second.path.file_name());
    assert_eq!(
        fs::read(&first.path).unwrap(),
        fs::read(&second.path).unwrap()
    );
    assert!(one.build(source).unwrap().cached);
    let found = cached(&one.appliance(source), &one.path("cache")).unwrap();
    assert_eq!(found.unwrap().digest, first.digest);

    let later = one.build("directory = \"root\"\nepoch = 5").unwrap();
    assert_ne!(later.digest, first.digest);
    fs::write(one.path("root/new"), "").unwrap();
    assert_ne!(one.build(source).unwrap().digest, first.digest);
}

/// Links of a directory are links of the image: what they would lead to on the host does not get in.
#[test]
fn links_of_a_directory_are_not_followed() {
    let bench = Bench::new();
    bench.program("root/bin/t", 0o755);
    fs::create_dir(bench.path("root/etc")).unwrap();
    fs::create_dir(bench.path("outside")).unwrap();
    fs::write(bench.path("outside/secret"), "of the host").unwrap();
    symlink(bench.path("outside"), bench.path("root/absolute")).unwrap();
    symlink("../outside/secret", bench.path("root/up")).unwrap();
    symlink("../../etc", bench.path("root/etcetera")).unwrap();
    let image = "directory = \"root\"\nfiles = [{ path = \"/etcetera/x\", content = \"inside\" }]";
    let built = bench.build(image).unwrap();
    let bytes = fs::read(&built.path).unwrap();
    let view = ImageView::parse(&bytes).unwrap();
    assert_eq!(resolve(&view, "/absolute/secret"), None);
    assert_eq!(resolve(&view, "/up"), None);
    assert_eq!(text(&view, "/etc/x"), "inside");
    assert!(!bytes.windows(11).any(|window| window == b"of the host"));
}

/// The image is mapped, not copied: it may be larger than the machine's memory, up to a bound of its own.
#[test]
fn an_image_may_be_larger_than_the_memory() {
    let bench = Bench::new();
    bench.program("root/bin/t", 0o755);
    let large: Vec<u8> = (0..40u32 << 20).map(|i| (i >> 12) as u8).collect();
    fs::write(bench.path("root/large"), large).unwrap();
    let text = "version = 1\nname = \"t\"\n[image]\ndirectory = \"root\"\n[program]\ncommand = [\"/bin/t\"]\n[machine]\nmemory = \"32M\"\n";
    let appliance = Appliance::parse(text, &bench.path("t.toml")).unwrap();
    let built = build(&appliance, &BuildOptions::new(bench.path("cache"))).unwrap();
    assert!(built.length > appliance.machine.memory);
}

#[test]
fn a_damaged_image_in_the_cache_is_built_again() {
    let bench = Bench::new();
    bench.program("root/bin/t", 0o755);
    let first = bench.build("directory = \"root\"").unwrap();
    fs::write(&first.path, "damaged").unwrap();
    let again = bench.build("directory = \"root\"").unwrap();
    assert!(!again.cached);
    assert_eq!(verify(&again.path).unwrap().digest, first.digest);
}

#[test]
fn the_cache_of_images_is_bounded() {
    let bench = Bench::new();
    bench.program("root/bin/t", 0o755);
    fs::create_dir_all(bench.path("cache/images")).unwrap();
    // Another appliance's image, whose name starts alike, is not touched.
    let other = bench.path("cache/images/t-2-0123456789abcdef.qimg");
    fs::write(&other, "").unwrap();
    for epoch in 0..16 {
        let built = bench
            .build(&format!("directory = \"root\"\nepoch = {epoch}"))
            .unwrap();
        assert!(built.path.exists());
    }
    assert!(other.exists());
    // R10: `KEPT_IMAGES` of this appliance and the other one's.
    assert_eq!(
        fs::read_dir(bench.path("cache/images")).unwrap().count(),
        12 + 1
    );
}

#[test]
fn a_ready_made_image() {
    let bench = Bench::new();
    bench.program("root/bin/t", 0o755);
    let built = bench.build("directory = \"root\"").unwrap();
    fs::copy(&built.path, bench.path("ready.qimg")).unwrap();
    let ready = bench.build("file = \"ready.qimg\"").unwrap();
    assert_eq!(
        (ready.digest, ready.path),
        (built.digest, bench.path("ready.qimg"))
    );
    let missing = bench
        .build("file = \"missing.qimg\"")
        .unwrap_err()
        .to_string();
    assert!(missing.contains("missing.qimg: no such image"), "{missing}");
}

#[test]
fn inputs_that_cannot_become_an_image() {
    let bench = Bench::new();
    let source = "directory = \"root\"";
    let refusal = |image: &str| bench.build(image).unwrap_err().to_string();
    assert!(refusal(source).starts_with("/bin/t: the program"));
    bench.program("root/bin/t", 0o644);
    assert!(
        refusal(source).starts_with("/bin/t: the program"),
        "not executable"
    );
    bench.program("root/bin/t", 0o755);
    bench.build(source).unwrap();
    assert!(refusal("directory = \"nothing\"").contains("nothing: cannot read"));
    let extra = "directory = \"root\"\nfiles = [{ path = \"/a\", source = \"nothing.txt\" }]";
    assert!(refusal(extra).contains("nothing.txt: cannot read"));
    let through = "directory = \"root\"\nfiles = [{ path = \"/bin/t/x\", content = \"\" }]";
    assert!(refusal(through).contains("/bin/t: not a directory"));
    let socket = std::os::unix::net::UnixListener::bind(bench.path("root/socket")).unwrap();
    assert!(refusal(source).contains("socket: neither file"));
    drop(socket);
    fs::remove_file(bench.path("root/socket")).unwrap();
    // Sparse, so that it costs nothing here.
    let large = fs::File::create(bench.path("root/large")).unwrap();
    large.set_len(quorate_images::MAX_IMAGE_LEN + 1).unwrap();
    assert!(refusal(source).contains("are the most"));
}

/// Shared objects that the ELF file at `path` needs (its DT_NEEDED), by the host's own tool.
fn libraries(view: &ImageView<'_>, path: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("program");
    fs::write(&file, view.data(resolve(view, path).unwrap()).unwrap()).unwrap();
    let output = std::process::Command::new("readelf")
        .arg("-dW")
        .arg(&file)
        .output()
        .unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned()))
        .collect()
}

#[test]
fn redis_from_debian() {
    let appliance = Appliance::load(repository("appliances/redis.toml")).unwrap();
    let cache = repository("cache");
    let built = build(&appliance, &BuildOptions::new(&cache)).unwrap();
    let names: Vec<&str> = built.packages.iter().map(|p| p.name.as_str()).collect();
    assert!(
        names.contains(&"redis-server") && names.contains(&"libc6"),
        "{names:?}"
    );
    for unwanted in [
        "dpkg",
        "debconf",
        "perl-base",
        "adduser",
        "libpam0g",
        "usrmerge",
    ] {
        assert!(
            !names.contains(&unwanted),
            "{unwanted} is only for installing"
        );
    }

    // The second time nothing is downloaded, unpacked or written.
    let steps = RefCell::new(Vec::new());
    let again = build(
        &appliance,
        &BuildOptions {
            progress: &|step| steps.borrow_mut().push(format!("{step:?}")),
            ..BuildOptions::new(&cache)
        },
    )
    .unwrap();
    assert!(again.cached && again.digest == built.digest);
    assert_eq!(steps.into_inner(), Vec::<String>::new());

    // Every library that the program and its libraries need is there, where ld.so looks without a cache.
    let bytes = fs::read(&built.path).unwrap();
    let view = ImageView::parse(&bytes).unwrap();
    let mut todo = vec!["/usr/bin/redis-server".to_owned()];
    let mut known = Vec::new();
    while let Some(path) = todo.pop() {
        for library in libraries(&view, &path) {
            let full = format!("/lib/x86_64-linux-gnu/{library}");
            if !known.contains(&library) && !library.starts_with("ld-linux") {
                assert!(resolve(&view, &full).is_some(), "{path} needs {library}");
                known.push(library);
                todo.push(full);
            }
        }
    }
    assert!(
        known.iter().any(|library| library == "libjemalloc.so.2"),
        "{known:?}"
    );
    assert!(resolve(&view, "/lib64/ld-linux-x86-64.so.2").is_some());
    assert_eq!(resolve(&view, "/usr/share/doc"), None);
    assert_eq!(text(&view, "/etc/hostname"), "redis\n");
}

/// The same packages unpacked and written anew give the same bytes: only the image is deleted in between.
#[test]
fn an_image_from_packages_is_reproducible() {
    let appliance = Appliance::load(repository("appliances/busybox.toml")).unwrap();
    let cache = repository("cache/test-busybox");
    let first = build(&appliance, &BuildOptions::new(&cache)).unwrap();
    fs::remove_file(&first.path).unwrap();
    let unpacked = Cell::new(0);
    let downloads = Cell::new(0);
    let second = build(
        &appliance,
        &BuildOptions {
            progress: &|step| match step {
                Progress::Unpacking { .. } => unpacked.set(unpacked.get() + 1),
                Progress::Downloading { .. } | Progress::UpdatingLists => {
                    downloads.set(downloads.get() + 1);
                }
                _ => {}
            },
            ..BuildOptions::new(&cache)
        },
    )
    .unwrap();
    assert!(!second.cached);
    assert_eq!(
        (first.digest, first.path),
        (second.digest, second.path.clone())
    );
    assert_eq!((unpacked.get(), downloads.get()), (1, 0));
}
