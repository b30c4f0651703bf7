//! `[relaxed]`, `[[replica]]`, `[[mask]]`, and what `[[disk]]` says for them.

use super::{DISKS, REDIS, error, parse};
use crate::appliance::*;

const PUBLISH: &str = "[network]\npublish = [\"6379:6379\", \"127.0.0.1:5353:53/udp\"]\n";

fn with(added: &str) -> String {
    format!("{REDIS}{PUBLISH}{added}")
}

fn tcp(number: u16) -> GuestPort {
    GuestPort { number, udp: false }
}

#[test]
fn without_the_tables_it_is_lockstep() {
    let appliance = parse(REDIS).unwrap();
    assert!(!appliance.is_relaxed());
    assert_eq!(appliance.replica(1), appliance);
    assert_eq!(appliance.relaxed(), Relaxed::default());
    let empty = parse(&with("[relaxed]\n")).unwrap();
    assert!(empty.is_relaxed());
    assert_eq!(empty.relaxed.clone(), Some(Relaxed::default()));
    assert_eq!(empty.relaxed().patience_ms, 1000);
    assert_eq!(empty.relaxed().policy, VersionPolicy::Majority);
    assert_eq!(empty.relaxed().difference, OnDifference::Stop);
    assert!(
        parse(&with("[[replica]]\n[[replica]]\n"))
            .unwrap()
            .is_relaxed()
    );
}

#[test]
fn every_key_of_relaxed_is_read() {
    let appliance = parse(&with(
        r#"[relaxed]
policy = "primary-with-fallback"
difference = "report"
patience_ms = 5
console = "all"
sync = ["tcp:6379", "disk:other"]
[[replica]]
role = "primary"
[[replica]]
[[disk]]
name = "data"
size = "4K"
filesystem = "none"
relaxed = "private"
unconfirmed = "report"
[[disk]]
name = "other"
size = "4K"
filesystem = "none"
"#,
    ))
    .unwrap();
    assert_eq!(
        appliance.relaxed,
        Some(Relaxed {
            policy: VersionPolicy::PrimaryWithFallback,
            difference: OnDifference::Report,
            patience_ms: 5,
            console: ConsoleLines::All,
            sync: vec![
                SyncChannel::Port(tcp(6379)),
                SyncChannel::Disk("other".to_owned()),
            ],
        })
    );
    let [data, other] = &appliance.disks[..] else {
        panic!("{:?}", appliance.disks);
    };
    assert_eq!(
        (data.vote(), data.on_unconfirmed()),
        (DiskVote::Private, Unconfirmed::Report)
    );
    assert_eq!(
        (other.vote(), other.on_unconfirmed()),
        (DiskVote::Vote, Unconfirmed::Hold)
    );
}

#[test]
fn a_replica_has_what_is_its_own() {
    let mut appliance = Appliance::parse(
        &with(
            r#"[relaxed]
policy = "canary"
[[replica]]
[[replica]]
name = "new"
role = "canary"
image = { packages = ["valkey"], files = [{ path = "/a", content = "b" }] }
command = ["/usr/bin/valkey-server"]
env = { PATH = "/bin", LANG = "C" }
[[replica]]
image = { file = "a.qimg" }
"#,
        ),
        Path::new("/x/redis.toml"),
    )
    .unwrap();
    // As many as are listed.
    assert_eq!(appliance.machine.replicas, 3);
    appliance.machine.replicas = 3;
    let [old, new, third] = [0, 1, 2].map(|number| appliance.replica(number));
    assert_eq!(old, appliance);
    assert_eq!(
        new.image.source,
        ImageSource::Packages(vec!["valkey".to_owned()])
    );
    assert_eq!(new.image.files.len(), 1);
    assert_eq!(new.program.command, ["/usr/bin/valkey-server"]);
    assert_eq!(new.program.env["PATH"], "/bin");
    assert_eq!(new.program.env["LANG"], "C");
    assert_eq!(new.program.env["HOME"], "/");
    assert_eq!(third.program, appliance.program);
    let locks = [old, new, third].map(|one| one.lock_path().unwrap());
    let names = ["/x/redis.lock", "/x/redis.new.lock", "/x/redis.2.lock"];
    assert_eq!(locks, names.map(PathBuf::from));
    assert_eq!(appliance.replica_name(1), "new");
    assert_eq!(appliance.replica_name(2), "replica 2");
    assert_eq!(appliance.role(0), Role::Voter);
    assert_eq!(appliance.role(1), Role::Canary);
    // Whoever is not listed has nothing of its own.
    assert_eq!(appliance.replica(7), appliance);
    assert_eq!(appliance.role(7), Role::Voter);
}

#[test]
fn masks_are_read() {
    let appliance = parse(&with(
        r#"[relaxed]
[[mask]]
name = "date"
ports = ["6379"]
http-header = "Date"
[[mask]]
pattern = 'sid=([0-9a-f]{32})'
translate = true
[[mask]]
console = true
pattern = "pid [0-9]+"
[[mask]]
ports = ["53/udp"]
pattern = '^..'
"#,
    ))
    .unwrap();
    let [date, sid, pid, id] = &appliance.masks[..] else {
        panic!("{:?}", appliance.masks);
    };
    assert_eq!(date.name.as_deref(), Some("date"));
    assert_eq!(date.rule, MaskRule::HttpHeader("Date".to_owned()));
    assert!(date.covers(tcp(6379)) && !date.covers(tcp(80)) && !date.console);
    assert!(sid.translate && sid.covers(tcp(6379)) && !date.translate);
    let dns = GuestPort {
        number: 53,
        udp: true,
    };
    // By default: TCP, not UDP.
    assert!(!sid.covers(dns) && id.covers(dns) && !id.covers(tcp(53)));
    assert!(pid.console && !pid.covers(tcp(6379)));
    assert_eq!(pid.rule, MaskRule::Pattern("pid [0-9]+".to_owned()));
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let two = "[[replica]]\nname = \"a\"\n[[replica]]\n";
    let primary = "[relaxed]\npolicy = \"primary-with-fallback\"\n";
    let canary = "[relaxed]\npolicy = \"canary\"\n";
    let cases: &[(&str, &str)] = &[
        (
            "[relaxed]\npolicies = 1",
            "redis.toml:12: unknown key \"policies\" in [relaxed]; expected one of policy",
        ),
        (
            "[relaxed]\npolicy = \"all\"",
            "redis.toml:12: key \"policy\" in [relaxed]: unknown variant all, expected one of majority, primary-with-fallback, canary",
        ),
        (
            "[relaxed]\ndifference = \"halt\"",
            "redis.toml:12: key \"difference\" in [relaxed]: unknown variant",
        ),
        (
            "[relaxed]\npatience_ms = 0",
            "redis.toml:12: key \"patience_ms\" in [relaxed]: 0 is not possible",
        ),
        (
            "[relaxed]\nsync = [\"6379\"]",
            "redis.toml:12: key \"sync\" in [relaxed]: 6379 is not a channel: write tcp:PORT",
        ),
        (
            "[relaxed]\nsync = [\"tcp:+1\"]",
            "redis.toml:12: key \"sync\" in [relaxed]: tcp:+1 names no port",
        ),
        (
            "[relaxed]\nsync = [\"tcp:0\"]",
            "redis.toml:12: key \"sync\" in [relaxed]: tcp:0 names no port",
        ),
        (
            "[relaxed]\nsync = [\"tcp:80\"]",
            "redis.toml:11: sync: port 80 of the guest is not in publish",
        ),
        (
            "[relaxed]\nsync = [\"tcp:53\"]",
            "redis.toml:11: sync: port 53 of the guest",
        ),
        (
            "[relaxed]\nsync = [\"disk:data\"]",
            "redis.toml:11: sync: there is no [[disk]] of the name data",
        ),
        (
            "[relaxed]\nsync = [\"udp:53\"]",
            "redis.toml:11: sync: udp:53 cannot wait: datagrams have no order",
        ),
        (
            "[relaxed]\nsync = [\"disk:own\"]\n[[disk]]\nname = \"own\"\nsize = \"4K\"\nfilesystem = \"none\"\nrelaxed = \"private\"",
            "redis.toml:11: sync: disk own is private: none of its writes is ever released",
        ),
        (
            "[[replica]]\nrol = \"voter\"",
            "redis.toml:12: unknown key \"rol\" in [replica]; expected one of name, role, image",
        ),
        (
            "[[replica]]\nrole = \"boss\"",
            "redis.toml:12: key \"role\" in [replica]: unknown variant boss",
        ),
        (
            "[[replica]]\ncommand = []",
            "redis.toml:12: key \"command\" in [replica]: the command is empty",
        ),
        (
            "[[replica]]\nimage = {}",
            "redis.toml:12: key \"image\" in [replica]: give exactly one of packages",
        ),
        (
            "[[replica]]\nenv = { \"A=B\" = \"1\" }",
            "redis.toml:12: key \"env\" in [replica]: A=B is not a name",
        ),
        (
            "[[replica]]\nname = \"a\"\n[[replica]]\nname = \"a\"",
            "redis.toml:13: there is another replica of the name a",
        ),
        (
            "[machine]\nreplicas = 3\n[[replica]]\n[[replica]]",
            "redis.toml:14: 2 [[replica]] are listed, replicas of [machine] is 3",
        ),
        (
            "[[replica]]\nrole = \"primary\"",
            "redis.toml:11: role = \"primary\" goes with policy",
        ),
        (
            "[[replica]]\n[[replica]]\nrole = \"canary\"",
            "redis.toml:12: role = \"canary\" goes with policy",
        ),
        (
            &format!("{primary}{two}"),
            "redis.toml:11: policy = \"primary-with-fallback\" needs a [[replica]] with role",
        ),
        (
            primary,
            "redis.toml:11: policy = \"primary-with-fallback\" needs a [[replica]]",
        ),
        (
            &format!("{primary}{two}role = \"primary\"\n[[replica]]\nrole = \"primary\""),
            "redis.toml:11: policy = \"primary-with-fallback\": 2 replicas are primary",
        ),
        (
            &format!("{canary}{two}"),
            "redis.toml:11: policy = \"canary\" needs a [[replica]] with role = \"canary\"",
        ),
        (canary, "redis.toml:11: policy = \"canary\" needs"),
        (
            &format!("{canary}[[replica]]\nrole = \"canary\""),
            "redis.toml:11: all replicas are canaries",
        ),
        (
            "[[mask]]\nhttp-header = \"Date\"",
            "redis.toml:11: masks are for the relaxed discipline",
        ),
        (
            "[relaxed]\n[[mask]]\nname = \"a\"",
            "redis.toml:12: in [mask]: give exactly one of http-header and pattern",
        ),
        (
            "[relaxed]\n[[mask]]\nhttp-header = \"Date\"\npattern = \"a\"",
            "redis.toml:12: in [mask]: give exactly one of",
        ),
        (
            "[relaxed]\n[[mask]]\nhttp_header = \"Date\"",
            "redis.toml:13: unknown key \"http_header\" in [mask]; expected one of name, ports, console, http-header",
        ),
        (
            "[relaxed]\n[[mask]]\nhttp-header = \"Date:\"",
            "redis.toml:13: key \"http-header\" in [mask]: Date: is not a name of a header",
        ),
        (
            "[relaxed]\n[[mask]]\nhttp-header = \"Date\"\nconsole = true",
            "redis.toml:12: in [mask]: http-header goes with TCP",
        ),
        (
            "[relaxed]\n[[mask]]\nhttp-header = \"Date\"\nports = [\"53/udp\"]",
            "redis.toml:12: in [mask]: http-header goes with TCP",
        ),
        (
            "[relaxed]\n[[mask]]\npattern = 'a('",
            "redis.toml:13: key \"pattern\" in [mask]: not a regular expression that can be used: unclosed group",
        ),
        (
            "[relaxed]\n[[mask]]\npattern = '((a{99}){99}){99}'",
            "redis.toml:13: key \"pattern\" in [mask]: not a regular expression that can be used: ",
        ),
        (
            "[relaxed]\n[[mask]]\npattern = 'a*'",
            "redis.toml:13: key \"pattern\" in [mask]: it matches the empty text",
        ),
        (
            "[relaxed]\n[[mask]]\npattern = 'a'\nports = [\"80\"]",
            "redis.toml:12: ports: 80 of the guest is not in publish",
        ),
        (
            "[relaxed]\n[[mask]]\npattern = 'a'\nports = [\"http\"]",
            "redis.toml:14: key \"ports\" in [mask]: http is not a port",
        ),
        (
            "[relaxed]\n[[mask]]\npattern = 'a'\nports = [\"6379\"]\nconsole = true",
            "redis.toml:12: in [mask]: give ports or console",
        ),
        (
            "[relaxed]\n[[mask]]\npattern = 'a'\ntranslate = true",
            "redis.toml:12: in [mask]: translate needs a pattern with exactly one group",
        ),
        (
            "[relaxed]\n[[mask]]\npattern = '(a)(b)'\ntranslate = true",
            "redis.toml:12: in [mask]: translate needs",
        ),
        (
            "[relaxed]\n[[mask]]\npattern = '(a)'\ntranslate = true\nconsole = true",
            "redis.toml:12: in [mask]: translate goes with ports only",
        ),
    ];
    for (added, start) in cases {
        let message = error(&with(&format!("{added}\n")));
        assert!(
            message.starts_with(start),
            "{message}\n    instead of\n{start}"
        );
    }
    let nothing = error(&format!("{REDIS}[relaxed]\n[[mask]]\npattern = 'a'\n"));
    assert_eq!(
        nothing,
        "redis.toml:10: there is no published TCP port that it could be about"
    );
    let disk = DISKS.replace("name = \"raw\"", "name = \"raw\"\nrelaxed = \"vote\"");
    assert_eq!(
        error(&disk),
        "redis.toml:24: disk raw: relaxed and unconfirmed are for the relaxed discipline: write [relaxed] too"
    );
    assert!(parse(&format!("{disk}[relaxed]\n")).is_ok());
    let long = "x".repeat(quorate_abi::boot::MAX_STRINGS);
    let message = error(&with(&format!("[[replica]]\nenv = {{ A = \"{long}\" }}\n")));
    assert!(
        message.starts_with("redis.toml:11: command, env"),
        "{message}"
    );
    let many = |table: &str, count| error(&with(&format!("[relaxed]\n{}", table.repeat(count))));
    assert_eq!(
        many("[[replica]]\n", 10),
        "redis.toml:21: 10 replicas: 9 are the most"
    );
    assert_eq!(
        many("[[mask]]\npattern = 'a'\n", 65),
        "redis.toml:140: 65 masks: 64 are the most"
    );
}

#[test]
fn packages_can_be_of_another_suite() {
    let packages = "packages = [\"redis-server\"]";
    let with = |to: &str| REDIS.replacen(packages, to, 1);
    let appliance = parse(&with(&format!("{packages}\nsuite = \"trixie\""))).unwrap();
    assert_eq!(appliance.image.suite.as_deref(), Some("trixie"));
    assert_eq!(
        error(&with(&format!("{packages}\nsuite = \"../a\""))),
        "redis.toml:6: key \"suite\" in [image]: ../a is not a name of a suite, as bookworm is"
    );
    assert_eq!(
        error(&with("file = \"a\"\nsuite = \"trixie\"")),
        "redis.toml:4: in [image]: suite goes with packages only"
    );
}

#[test]
fn programs_can_be_compiled_from_source_packages() {
    let packages = "packages = [\"redis-server\"]";
    let with = |keys: &str| {
        let sources = format!("{packages}\nsources = [{{ {keys} }}]");
        REDIS.replacen(packages, &sources, 1)
    };
    let all = "package = \"redis\", version = \"5:7.0-1~deb12u7\", patches = [\"a\"], script = \"b\", needs = [\"libc6\"]";
    let appliance = parse(&with(all)).unwrap();
    let [source] = &appliance.image.sources[..] else {
        panic!("{:?}", appliance.image.sources);
    };
    assert_eq!(source.package, "redis");
    assert_eq!(source.version.as_deref(), Some("5:7.0-1~deb12u7"));
    assert_eq!((source.patches.len(), source.needs.len()), (1, 1));
    for (keys, message) in [
        (
            "package = \"-o\", script = \"b\"",
            "redis.toml:6: key \"sources\" in [image]: -o is not a name of a Debian package",
        ),
        (
            "package = \"redis\"",
            "redis.toml:6: missing key \"script\" in [image]",
        ),
        (
            "package = \"redis\", script = \"b\", version = \"a\"",
            "redis.toml:6: key \"sources\" in [image]: a is not a version",
        ),
        (
            "package = \"redis\", script = \"b\", patch = \"a\"",
            "redis.toml:6: unknown key \"patch\" in [image]; expected one of package, version, patches",
        ),
    ] {
        let found = error(&with(keys));
        assert!(
            found.starts_with(message),
            "{found}\n    instead of\n{message}"
        );
    }
    let file = with(all).replacen(packages, "file = \"a\"", 1);
    assert_eq!(
        error(&file),
        "redis.toml:4: in [image]: sources goes with packages only"
    );
}

proptest::proptest! {
    #[test]
    fn any_pattern_is_safe(pattern in "[^']{0,40}") {
        let _ = parse(&with(&format!("[relaxed]\n[[mask]]\npattern = '{pattern}'\n")));
    }
}
