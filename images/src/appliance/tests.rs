#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

mod relaxed;

const REDIS: &str = r#"version = 1
name = "redis"

[image]
packages = ["redis-server"]

[program]
command = ["/usr/bin/redis-server", "--port", "6379"]
"#;

fn parse(text: &str) -> Result<Appliance, String> {
    Appliance::parse(text, Path::new("redis.toml")).map_err(|e| e.to_string())
}

fn error(text: &str) -> String {
    parse(text).expect_err("must be refused")
}

#[test]
fn defaults_are_the_documented_ones() {
    let appliance = parse(REDIS).unwrap();
    assert_eq!(appliance.hostname(), "redis");
    assert_eq!(appliance.program.cwd, "/");
    assert_eq!((appliance.program.uid, appliance.program.gid), (0, 0));
    assert_eq!(appliance.machine.memory, 256 << 20);
    assert_eq!(appliance.machine.replicas, 3);
    assert_eq!(appliance.machine.layout, LayoutPolicy::Random);
    assert!(appliance.network.publish.is_empty());
    assert_eq!(appliance.policy, Policy::default());
    assert_eq!(appliance.policy.no_quorum, NoQuorum::Stop);
    assert_eq!(appliance.recovery, Recovery::default());
    assert!(appliance.recovery.enabled);
    assert!(appliance.program.env.contains_key("PATH"));
}

#[test]
fn every_key_is_read() {
    let appliance = parse(
        r#"version = 1
name = "web"
[image]
directory = "rootfs"
epoch = 1000
files = [{ path = "/etc/a", content = "hello", mode = 0o600 }, { path = "/b", source = "b.txt", mode = "0755" }, { path = "/bin/sh", link = "busybox" }]
[program]
command = ["/bin/web"]
env = { A = "1" }
cwd = "/srv"
uid = 33
gid = 34
hostname = "front"
[machine]
memory = "1G"
replicas = 5
layout = "same"
[network]
publish = ["127.0.0.1:8080:80", "53:53/udp"]
[policy]
no_quorum = "hold"
lag_timeout_ms = 500
window_boundaries = 10
window_bytes = "1M"
[recovery]
enabled = false
checkpoint_interval_ms = 0
checkpoint_journal = "1M"
history = "0"
keep = 3
crash_limit = 4
crash_window_s = 5
"#,
    )
    .unwrap();
    assert_eq!(
        appliance.image.source,
        ImageSource::Directory("rootfs".into())
    );
    assert_eq!(appliance.image.epoch, Some(1000));
    assert_eq!(appliance.image.files.len(), 3);
    assert_eq!(
        appliance.image.files[2].content,
        FileContent::Link("busybox".to_owned())
    );
    assert_eq!(appliance.image.files[0].mode, Some(0o600));
    assert_eq!(
        appliance.image.files[1].content,
        FileContent::Source("b.txt".into())
    );
    assert_eq!(appliance.image.files[1].mode, Some(0o755));
    assert_eq!(appliance.program.env["A"], "1");
    assert_eq!((appliance.program.uid, appliance.program.gid), (33, 34));
    assert_eq!(appliance.hostname(), "front");
    assert_eq!(appliance.machine.memory, 1 << 30);
    assert_eq!(appliance.machine.replicas, 5);
    assert_eq!(appliance.machine.layout, LayoutPolicy::Same);
    assert_eq!(appliance.network.publish.len(), 2);
    assert_eq!(
        appliance.policy,
        Policy {
            no_quorum: NoQuorum::Hold,
            lag_timeout_ms: 500,
            window_boundaries: 10,
            window_bytes: 1 << 20,
        }
    );
    assert_eq!(
        appliance.recovery,
        Recovery {
            enabled: false,
            checkpoint_interval_ms: Some(0),
            checkpoint_journal: 1 << 20,
            history: 0,
            keep: 3,
            crash_limit: 4,
            crash_window_s: 5,
        }
    );
}

#[test]
fn relative_paths_count_from_the_file() {
    let text = REDIS.replace("packages = [\"redis-server\"]", "file = \"a.qimg\"");
    let appliance = Appliance::parse(&text, Path::new("/x/y/redis.toml")).unwrap();
    assert_eq!(
        appliance.resolve(Path::new("a.qimg")),
        Path::new("/x/y/a.qimg")
    );
    assert_eq!(
        appliance.resolve(Path::new("/a.qimg")),
        Path::new("/a.qimg")
    );
}

#[test]
fn errors_name_file_line_and_key() {
    let comand = REDIS.replace("command", "comand");
    assert_eq!(
        error(&comand),
        "redis.toml:8: unknown key \"comand\" in [program]; expected one of command, env, cwd, uid, gid, user, groups, hostname"
    );
    let cases: &[(&str, &str, &str)] = &[
        (
            "version = 1",
            "version = 2",
            "redis.toml:1: key \"version\": this program reads version 1",
        ),
        ("version = 1\n", "", "redis.toml:1: missing key \"version\""),
        (
            "version = 1",
            "version = \"1\"",
            "redis.toml:1: key \"version\"",
        ),
        (
            "name = \"redis\"",
            "name = \"a b\"",
            "redis.toml:2: key \"name\" at the top level: a b is not a name",
        ),
        (
            "name = \"redis\"\n",
            "",
            "redis.toml:1: missing key \"name\" at the top level",
        ),
        ("name = ", "name ", "redis.toml:2: not TOML: "),
        (
            "[program]",
            "[programm]",
            "redis.toml:7: unknown key \"programm\" at the top level; expected one of version, name",
        ),
        (
            "packages = [\"redis-server\"]",
            "packages = [\"-o\"]",
            "redis.toml:5: key \"packages\" in [image]",
        ),
        (
            "packages = [\"redis-server\"]",
            "packages = []",
            "redis.toml:5: key \"packages\" in [image]: name at least one",
        ),
        (
            "packages = [\"redis-server\"]",
            "",
            "redis.toml:4: in [image]: give exactly one of packages, directory, oci and file",
        ),
        (
            "packages = [\"redis-server\"]",
            "packages = [\"aa\"]\nfile = \"b\"",
            "redis.toml:4: in [image]: give exactly one of",
        ),
        (
            "packages = [\"redis-server\"]",
            "pakages = [\"aa\"]",
            "redis.toml:5: unknown key \"pakages\" in [image]",
        ),
        (
            "packages = [\"redis-server\"]",
            "packages = \"redis\"",
            "redis.toml:5: key \"packages\" in [image]: invalid type: string",
        ),
        (
            "[\"/usr/bin/redis-server\"",
            "[\"redis-server\"",
            "redis.toml:8: key \"command\" in [program]: redis-server is not an absolute path",
        ),
        (
            "[\"/usr/bin/redis-server\", \"--port\", \"6379\"]",
            "[]",
            "redis.toml:8: key \"command\" in [program]: the command is empty",
        ),
        (
            "[\"/usr/bin/redis-server\", \"--port\", \"6379\"]",
            "[\n\"/a\",\n6379]",
            "redis.toml:10: key \"command\" in [program]: invalid type: integer",
        ),
    ];
    for (from, to, start) in cases {
        let text = REDIS.replacen(from, to, 1);
        let message = error(&text);
        assert!(
            message.starts_with(start),
            "{message}\n    instead of\n{start}"
        );
    }
    assert_eq!(
        error("version = 1\nname = \"a\"\n[image]\nfile = \"a\"\n"),
        "redis.toml:1: missing table [program]"
    );
}

#[test]
fn bad_values_in_optional_tables() {
    let cases: &[(&str, &str)] = &[
        (
            "[machine]\nmemory = \"12Q\"",
            "redis.toml:10: key \"memory\" in [machine]: 12Q is not a size",
        ),
        (
            "[machine]\nmemory = \"1M\"",
            "redis.toml:10: key \"memory\" in [machine]: 1M of memory is not possible: from 32M to 64G",
        ),
        (
            "[machine]\nmemory = \"65G\"",
            "redis.toml:10: key \"memory\" in [machine]: 65G",
        ),
        (
            "[machine]\nmemory = \"33554433\"",
            "redis.toml:10: key \"memory\" in [machine]: 33554433 bytes are not whole pages",
        ),
        (
            "[machine]\nreplicas = 0",
            "redis.toml:10: key \"replicas\" in [machine]: 0 replicas are not possible: 1 to 9",
        ),
        (
            "[machine]\nreplicas = 10",
            "redis.toml:10: key \"replicas\" in [machine]: 10 replicas",
        ),
        (
            "[machine]\nreplicas = 257",
            "redis.toml:10: key \"replicas\" in [machine]: 257 replicas",
        ),
        (
            "[machine]\nlayout = \"disjoint\"",
            "redis.toml:10: key \"layout\" in [machine]: unknown variant disjoint",
        ),
        (
            "[policy]\n\nno_quorum = \"wait\"",
            "redis.toml:11: key \"no_quorum\" in [policy]: unknown variant wait",
        ),
        (
            "[policy]\nlag_timeout_ms = 0",
            "redis.toml:10: key \"lag_timeout_ms\" in [policy]: 0 is not possible",
        ),
        (
            "[policy]\nlag_timeout_ms = -5",
            "redis.toml:10: key \"lag_timeout_ms\" in [policy]: ",
        ),
        (
            "[policy]\nwindow = 1",
            "redis.toml:10: unknown key \"window\" in [policy]; expected one of no_quorum",
        ),
        (
            "[recovery]\nkeep = 17",
            "redis.toml:10: key \"keep\" in [recovery]: 17 checkpoints are not possible: 1 to 16",
        ),
        (
            "[recovery]\ncrash_limit = 0",
            "redis.toml:10: key \"crash_limit\" in [recovery]: 0 is not possible",
        ),
        (
            "env = { \"A=B\" = \"1\" }",
            "redis.toml:9: key \"env\" in [program]: A=B is not a name",
        ),
        (
            "cwd = \"srv\"",
            "redis.toml:9: key \"cwd\" in [program]: srv is not an absolute path",
        ),
        (
            "cwd = \"/srv/../etc\"",
            "redis.toml:9: key \"cwd\" in [program]: ",
        ),
        (
            "hostname = \"-a\"",
            "redis.toml:9: key \"hostname\" in [program]: -a is not a name",
        ),
        (
            "[[image.files]]\npath = \"etc/a\"\ncontent = \"\"",
            "redis.toml:10: ",
        ),
        ("[[image.files]]\npath = \"/etc/a\"", "redis.toml:9: "),
        (
            "[[image.files]]\npath = \"/etc/a\"\ncontent = \"\"\nmode = 0o17777",
            "redis.toml:12: key \"mode\" in [image.files]: not permissions",
        ),
    ];
    for (added, start) in cases {
        let message = error(&format!("{REDIS}{added}\n"));
        assert!(
            message.starts_with(start),
            "{message}\n    instead of\n{start}"
        );
    }
}

#[test]
fn strings_that_do_not_fit_the_boot_block_are_refused() {
    let long = "x".repeat(quorate_abi::boot::MAX_STRINGS);
    let message = error(&format!("{REDIS}env = {{ A = \"{long}\" }}\n"));
    assert!(
        message.starts_with("redis.toml:7: command, env, cwd"),
        "{message}"
    );
}

#[test]
fn a_missing_file_is_named() {
    let message = Appliance::load("/nowhere/a.toml").unwrap_err().to_string();
    assert!(
        message.starts_with("/nowhere/a.toml: cannot read"),
        "{message}"
    );
}

const DISKS: &str = r#"version = 1
name = "redis"
[image]
packages = ["redis-server"]
[program]
command = ["/bin/redis"]
[machine]
root = "disk:top"
[[disk]]
name = "data"
size = "256M"
mount = "/data"
[[disk]]
name = "top"
size = "1G"
path = "top.img"
on_error = "report"
[[disk]]
name = "old"
size = "16M"
mount = "/data/old"
read_only = true
seed = "old"
[[disk]]
name = "raw"
size = "4K"
filesystem = "none"
[[tmpfs]]
path = "/data.tmp"
size = "1M"
"#;

#[test]
fn disks_and_mounts() {
    let appliance = parse(DISKS).unwrap();
    assert_eq!(appliance.machine.root, Root::Disk("top".to_owned()));
    let [data, top, old, raw] = &appliance.disks[..] else {
        panic!("{:?}", appliance.disks);
    };
    assert_eq!((data.bytes, data.filesystem), (256 << 20, Filesystem::Ext4));
    assert_eq!((data.read_only, data.on_error), (false, OnError::Stop));
    assert_eq!(top.path.as_deref(), Some(Path::new("top.img")));
    assert_eq!(top.on_error, OnError::Report);
    assert_eq!(old.seed.as_deref(), Some(Path::new("old")));
    assert_eq!((raw.bytes, raw.filesystem), (4096, Filesystem::None));
    // The root first, then each after the one that it lies in.
    let mounts: Vec<String> = appliance
        .mounts()
        .into_iter()
        .map(|m| format!("{} {} {} {}", m.target, m.kind, m.source, m.options))
        .collect();
    assert_eq!(
        mounts,
        [
            "/ overlay disk1 rw",
            "/data ext4 disk0 rw",
            "/data.tmp tmpfs  size=1048576",
            "/data/old ext4 disk2 ro",
        ]
    );
    let read_only = parse(&format!("{REDIS}[machine]\nroot = \"read-only\"\n")).unwrap();
    let [root] = &read_only.mounts()[..] else {
        panic!("{:?}", read_only.mounts());
    };
    assert_eq!(
        (root.target.as_str(), root.kind, root.options.as_str()),
        ("/", "image", "ro")
    );
    assert!(parse(REDIS).unwrap().mounts().is_empty());
}

#[test]
fn disks_that_contradict_each_other_or_the_machine() {
    let cases: &[(&str, &str, &str)] = &[
        (
            "name = \"old\"",
            "name = \"data\"",
            "redis.toml:18: disk data: there is another one",
        ),
        (
            "mount = \"/data/old\"",
            "mount = \"/data\"",
            "redis.toml:18: disk old: something else",
        ),
        (
            "path = \"/data.tmp\"",
            "path = \"/data\"",
            "redis.toml:28: tmpfs /data: something else",
        ),
        (
            "mount = \"/data\"\n",
            "",
            "redis.toml:9: disk data: an ext4 disk needs `mount`",
        ),
        (
            "\"disk:top\"",
            "\"disk:to\"",
            "redis.toml:7: root = \"disk:to\": there is no [[disk]]",
        ),
        (
            "\"disk:top\"",
            "\"disk:old\"",
            "redis.toml:13: disk top: an ext4 disk needs",
        ),
        (
            "\"disk:top\"",
            "\"disk:raw\"",
            "redis.toml:13: disk top: an ext4",
        ),
        (
            "\"disk:top\"",
            "\"disk:\"",
            "redis.toml:8: key \"root\" in [machine]: disk: is not one of",
        ),
        (
            "\"disk:top\"",
            "\"disk\"",
            "redis.toml:8: key \"root\" in [machine]: disk is not one of",
        ),
        (
            "path = \"top.img\"",
            "mount = \"/top\"",
            "redis.toml:13: disk top: it is the root",
        ),
        (
            "path = \"top.img\"",
            "read_only = true",
            "redis.toml:13: disk top: the root's disk cannot",
        ),
        (
            "path = \"top.img\"",
            "path = \"\"",
            "redis.toml:13: disk top: path is empty",
        ),
        (
            "filesystem = \"none\"",
            "filesystem = \"xfs\"",
            "redis.toml:27: key \"filesystem\" in [disk]",
        ),
        (
            "filesystem = \"none\"",
            "",
            "redis.toml:24: disk raw: 4K are too little",
        ),
        (
            "filesystem = \"none\"",
            "filesystem = \"none\"\nmount = \"/x\"",
            "redis.toml:24: disk raw: mount and seed need",
        ),
        (
            "\"4K\"",
            "\"6K\"",
            "redis.toml:26: key \"size\" in [disk]: 6144 bytes are no multiple",
        ),
        (
            "\"4K\"",
            "\"0\"",
            "redis.toml:26: key \"size\" in [disk]: a disk of 0 is not possible",
        ),
        (
            "\"4K\"",
            "\"1025G\"",
            "redis.toml:26: key \"size\" in [disk]: a disk of 1025G is not",
        ),
        (
            "\"raw\"",
            "\"../raw\"",
            "redis.toml:25: key \"name\" in [disk]: ../raw is not a name",
        ),
        (
            "\"raw\"",
            "\"a-name-that-is-too-long\"",
            "redis.toml:25: key \"name\" in [disk]: ",
        ),
        (
            "mount = \"/data\"",
            "mount = \"/\"",
            "redis.toml:12: key \"mount\" in [disk]: for / write root",
        ),
        (
            "mount = \"/data\"",
            "mount = \"/data/\"",
            "redis.toml:12: key \"mount\" in [disk]: write /data/ without",
        ),
        (
            "mount = \"/data\"",
            "mount = \"/a/../b\"",
            "redis.toml:12: key \"mount\" in [disk]: ",
        ),
        (
            "mount = \"/data\"",
            "mount = \"data\"",
            "redis.toml:12: key \"mount\" in [disk]: data is not",
        ),
        (
            "mount = \"/data\"",
            "mount = \"/proc/x\"",
            "redis.toml:12: key \"mount\" in [disk]: nothing can",
        ),
        (
            "size = \"1M\"",
            "size = \"1G\"",
            "redis.toml:28: tmpfs /data.tmp: 1G are more than the machine's",
        ),
        (
            "size = \"1M\"",
            "size = \"1000\"",
            "redis.toml:28: tmpfs /data.tmp: size is not",
        ),
        (
            "size = \"1M\"",
            "bytes = \"1M\"",
            "redis.toml:30: unknown key \"bytes\" in [tmpfs]; expected",
        ),
        (
            "on_error = \"report\"",
            "on_error = \"halt\"",
            "redis.toml:17: key \"on_error\" in [disk]",
        ),
    ];
    for (from, to, start) in cases {
        let text = DISKS.replacen(from, to, 1);
        assert_ne!(text, DISKS, "{from}");
        let message = error(&text);
        assert!(
            message.starts_with(start),
            "{message}\n    instead of\n{start}"
        );
    }
    let many = |table: &str, keys: &str, count: usize| {
        let one = |i| format!("[[{table}]]\n{}", keys.replace('#', &format!("{i}")));
        error(&format!(
            "{REDIS}{}",
            (0..count).map(one).collect::<String>()
        ))
    };
    let disk = "name = \"d#\"\nsize = \"4K\"\nfilesystem = \"none\"\n";
    assert_eq!(
        many("disk", disk, 9),
        "redis.toml:41: 9 disks: 8 are the most"
    );
    let tmpfs = "path = \"/t#\"\nsize = \"4K\"\n";
    assert_eq!(
        many("tmpfs", tmpfs, 17),
        "redis.toml:57: 17 mounts: 16 are the most"
    );
}

proptest::proptest! {
    #[test]
    fn any_text_is_safe(text in "(version = 1\n)?[\\PC\n]{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn a_changed_byte_is_safe(at in 0usize..REDIS.len(), byte in 0u8..128) {
        let mut bytes = REDIS.as_bytes().to_vec();
        bytes[at] = byte;
        let _ = parse(&String::from_utf8(bytes).unwrap());
    }
}
