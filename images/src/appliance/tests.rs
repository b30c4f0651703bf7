#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

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
        "redis.toml:8: unknown key \"comand\" in [program]; expected one of command, env, cwd, uid, gid, hostname"
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
            "redis.toml:4: in [image]: give exactly one of packages, directory and file",
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
