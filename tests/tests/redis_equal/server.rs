//! Commands about the server itself, expiry, and the SCAN family.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use quorate_tests::one_at_a_time;
use quorate_tests::resp::{Client, bulk, command, elements, shown, words};

use crate::rules::Rule;
use crate::{Both, LONG};

fn info(client: &mut Client, section: &str) -> BTreeMap<String, String> {
    let reply = client.call(&words(&format!("INFO {section}"))).unwrap();
    let text = String::from_utf8(bulk(&reply).unwrap().to_vec()).unwrap();
    assert!(text.starts_with("# "), "{text}");
    let fields = text.split("\r\n").filter_map(|line| line.split_once(':'));
    fields
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Fields of INFO whose values are equal too. All others count, measure or name something of the one server.
const EQUAL_FIELDS: &[&str] = &[
    "redis_version",
    "redis_git_sha1",
    "redis_git_dirty",
    "redis_build_id",
    "redis_mode",
    "arch_bits",
    "monotonic_clock",
    "multiplexing_api",
    "atomicvar_api",
    "gcc_version",
    "process_supervised",
    "hz",
    "configured_hz",
    "config_file",
    "io_threads_active",
    "connected_clients",
    "maxclients",
    "cluster_connections",
    "blocked_clients",
    "tracking_clients",
    "maxmemory",
    "maxmemory_human",
    "maxmemory_policy",
    "mem_allocator",
    "active_defrag_running",
    "number_of_cached_scripts",
    "number_of_functions",
    "loading",
    "rdb_changes_since_last_save",
    "rdb_bgsave_in_progress",
    "rdb_last_bgsave_status",
    "aof_enabled",
    "expired_keys",
    "evicted_keys",
    "keyspace_hits",
    "keyspace_misses",
    "pubsub_channels",
    "role",
    "connected_slaves",
    "master_failover_state",
    "second_repl_offset",
    "repl_backlog_active",
    "cluster_enabled",
    "total_error_replies",
    "errorstat_ERR",
    "db0",
    "db3",
];

#[test]
fn info_has_the_same_fields() {
    let _turn = one_at_a_time(
        "INFO: the same fields in all sections, equal values where they are not volatile",
    );
    let both = Both::start();
    let mut pair = both.connect();
    for line in [
        "SET a 1",
        "SET b 2",
        "GET a",
        "GET nothing",
        "NOSUCH",
        "SELECT 3",
        "SET c 3",
        "SELECT 0",
        "EVAL return 0",
        "CONFIG RESETSTAT",
    ] {
        pair.same(line);
    }
    for section in [
        "server",
        "clients",
        "memory",
        "persistence",
        "stats",
        "replication",
        "cpu",
        "modules",
        "errorstats",
        "cluster",
        "keyspace",
        "commandstats",
        "latencystats",
        "default",
        "everything",
    ] {
        let (native, set) = (
            info(&mut pair.native, section),
            info(&mut pair.set, section),
        );
        let names =
            |fields: &BTreeMap<String, String>| fields.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(&native), names(&set), "INFO {section}");
        for (name, value) in &native {
            let same_kind = value.parse::<f64>().is_ok() == set[name].parse::<f64>().is_ok();
            assert!(same_kind, "{name}: native {value:?}, set {:?}", set[name]);
            if EQUAL_FIELDS.contains(&name.as_str()) {
                assert_eq!(*value, set[name], "{name}");
            }
        }
    }
    both.finish();
}

/// What CONFIG GET * shows that differs because the two servers are started so, and no more.
const STARTED_DIFFERENTLY: [&str; 2] = ["port", "bind"];

fn config(client: &mut Client) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let reply = client.call(&words("CONFIG GET *")).unwrap();
    let all = elements(&reply);
    all.chunks(2)
        .map(|pair| {
            (
                bulk(pair[0]).unwrap().to_vec(),
                bulk(pair[1]).unwrap().to_vec(),
            )
        })
        .collect()
}

#[test]
fn configuration() {
    let _turn = one_at_a_time("CONFIG GET, SET, RESETSTAT, REWRITE");
    let both = Both::start();
    let mut pair = both.connect();
    let (native, mut set) = (config(&mut pair.native), config(&mut pair.set));
    assert!(native.len() > 100);
    for (name, value) in &native {
        let other = set
            .remove(name)
            .unwrap_or_else(|| panic!("the set has no {}", shown(name)));
        if !STARTED_DIFFERENTLY.iter().any(|one| one.as_bytes() == name) {
            assert_eq!(shown(value), shown(&other), "{}", shown(name));
        }
    }
    assert!(set.is_empty(), "{set:?}");
    for line in [
        "CONFIG SET maxmemory 100mb maxmemory-policy allkeys-lru",
        "CONFIG GET maxmemory*",
        "CONFIG SET maxmemory 0",
        "CONFIG SET hash-max-listpack-entries 4",
        "CONFIG GET hash-max-listpack-entries",
        "HSET h a 1 b 2 c 3 d 4",
        "OBJECT ENCODING h",
        "HSET h e 5",
        "OBJECT ENCODING h",
        "CONFIG SET nosuch 1",
        "CONFIG SET maxmemory-policy wrong",
        "CONFIG SET port",
        "CONFIG GET",
        "CONFIG GET save",
        "CONFIG GET append*only",
        "CONFIG REWRITE",
        "CONFIG RESETSTAT",
        "CONFIG SET slowlog-log-slower-than 0",
        "SLOWLOG RESET",
        "CONFIG SET slowlog-log-slower-than 10000",
        "CONFIG SET requirepass secret",
        "PING",
        "CONFIG SET requirepass a",
        "AUTH wrong",
        "AUTH a",
        "CONFIG SET requirepass -",
        "ACL SETUSER alice on >pw ~k* +get",
        "ACL LIST",
        "ACL GETUSER alice",
        "AUTH alice pw",
        "GET k",
        "SET k 1",
        "GET x",
    ] {
        pair.same(line);
    }
    both.finish();
}

/// The fields of one line of CLIENT LIST.
fn fields(line: &str) -> BTreeMap<String, String> {
    line.split(' ')
        .filter_map(|field| field.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn clients_are_listed() {
    let _turn = one_at_a_time("CLIENT LIST, INFO, SETNAME, KILL, REPLY, NO-EVICT, PAUSE");
    let both = Both::start();
    let mut pair = both.connect();
    let mut second = both.connect();
    for line in [
        "CLIENT GETNAME",
        "CLIENT SETNAME first",
        "CLIENT GETNAME",
        "CLIENT SETNAME",
        "CLIENT NO-EVICT ON",
        "CLIENT HELP",
        "CLIENT TRACKINGINFO",
        "CLIENT GETREDIR",
    ] {
        pair.same(line);
    }
    second.same("CLIENT SETNAME second");
    second.same("SELECT 2");
    pair.alike("CLIENT ID", Rule::Shape);
    let list = |client: &mut Client| {
        let reply = client.call(&words("CLIENT LIST")).unwrap();
        let text = String::from_utf8(bulk(&reply).unwrap().to_vec()).unwrap();
        text.lines().map(fields).collect::<Vec<_>>()
    };
    let (native, set) = (list(&mut pair.native), list(&mut pair.set));
    assert_eq!((native.len(), set.len()), (2, 2), "{set:?}");
    for (native, set) in native.iter().zip(&set) {
        assert!(native.keys().eq(set.keys()), "{native:?} {set:?}");
        for name in [
            "name", "flags", "db", "sub", "psub", "multi", "events", "cmd", "user", "redir", "resp",
        ] {
            assert_eq!(native[name], set[name], "{name}");
        }
    }
    assert_eq!(
        (set[0]["name"].as_str(), set[1]["db"].as_str()),
        ("first", "2")
    );
    // Replies that are switched off do not come, and those after them are right.
    pair.send(
        &[
            words("CLIENT REPLY SKIP"),
            words("SET quiet 1"),
            words("GET quiet"),
        ]
        .concat(),
    );
    assert_eq!(pair.reply(), b"$1\r\n1\r\n");
    pair.send(
        &[
            words("CLIENT REPLY OFF"),
            words("SET quiet 2"),
            words("CLIENT REPLY ON"),
            words("GET quiet"),
        ]
        .concat(),
    );
    assert_eq!(pair.reply(), b"+OK\r\n");
    assert_eq!(pair.reply(), b"$1\r\n2\r\n");
    let started = Instant::now();
    pair.same("CLIENT PAUSE 300 WRITE");
    second.same("GET paused");
    second.same("SET paused 1");
    assert!(started.elapsed() >= Duration::from_millis(300));
    for client in [&mut pair.native, &mut pair.set] {
        let reply = client.call(&words("CLIENT LIST")).unwrap();
        let text = String::from_utf8_lossy(&reply).into_owned();
        let line = text
            .lines()
            .find(|line| line.contains("name=second"))
            .unwrap();
        let kill = format!(
            "CLIENT KILL ID {}",
            fields(line.trim_start_matches("txt:"))["id"]
        );
        assert_eq!(client.call(&words(&kill)).unwrap(), b":1\r\n");
    }
    assert_eq!(second.rest(), b"");
    pair.same("CLIENT UNPAUSE");
    pair.is("QUIT", "+OK\r\n");
    assert_eq!(pair.rest(), b"");
    both.finish();
}

#[test]
fn debug_sleep_stops_nobody() {
    let _turn = one_at_a_time("DEBUG SLEEP, also longer than a laggard is waited for");
    let both = Both::start();
    let mut sleeper = both.connect();
    let mut other = both.connect();
    for seconds in ["0.3", "3.5"] {
        let started = Instant::now();
        sleeper
            .set
            .send(&words(&format!("DEBUG SLEEP {seconds}")))
            .unwrap();
        other.set.send(&words("PING")).unwrap();
        assert_eq!(sleeper.set.reply().unwrap(), b"+OK\r\n");
        assert!(
            started.elapsed() >= Duration::from_secs_f64(seconds.parse().unwrap()),
            "{:?}",
            started.elapsed()
        );
        assert_eq!(other.set.reply().unwrap(), b"+PONG\r\n");
        println!(
            "  DEBUG SLEEP {seconds}: {:.3} s",
            started.elapsed().as_secs_f64()
        );
    }
    sleeper.is("DEBUG SLEEP 0.1", "+OK\r\n");
    for line in [
        "DEBUG NOSUCH",
        "DEBUG SET-ACTIVE-EXPIRE 1",
        "DEBUG STRINGMATCH-LEN 10 x",
        "DEBUG PROTOCOL bulk",
        "DEBUG DIGEST",
        "DEBUG LISTPACK nokey",
    ] {
        sleeper.same(line);
    }
    both.finish();
}

#[test]
fn keys_expire() {
    let _turn = one_at_a_time("PEXPIRE, TTL, EXPIRETIME, active expiry");
    let both = Both::start();
    let mut pair = both.connect();
    for line in [
        "SET k v EX 1000",
        "TTL k",
        "PERSIST k",
        "TTL k",
        "PTTL nokey",
        "EXPIREAT k 9000000000",
        "EXPIRETIME k",
        "PEXPIRETIME k",
        "EXPIRE k 100 NX",
        "EXPIRE k 9999999999 GT",
        "GETEX k PERSIST",
        "EXPIRE k 10 XX",
        "PEXPIREAT k 1",
        "EXISTS k",
        "SET k v PXAT 9000000000123",
        "PEXPIRETIME k",
        "SET k v KEEPTTL",
        "PEXPIRETIME k",
        "EXPIRE k 99999999999999999",
        "SETEX k 0 v",
        "PSETEX k 100000000 v",
        "RESTORE k 0 x",
        "COPY k c",
        "DEL k c",
    ] {
        pair.same(line);
    }
    pair.alike("SET k v PX 100000", Rule::Bytes);
    pair.alike("PTTL k", Rule::Shape);
    // Seen until it has expired, and neither earlier nor much later than it was to.
    const MS: u64 = 400;
    for client in [&mut pair.native, &mut pair.set] {
        let asked = Instant::now();
        client.call(&words(&format!("SET e v PX {MS}"))).unwrap();
        let set = Instant::now();
        while client.call(&words("GET e")).unwrap() == b"$1\r\nv\r\n" {
            assert!(asked.elapsed() < LONG);
        }
        assert!(
            set.elapsed() >= Duration::from_millis(MS / 2),
            "gone after {:?}",
            set.elapsed()
        );
        assert!(
            asked.elapsed() >= Duration::from_millis(MS),
            "gone after {:?}",
            asked.elapsed()
        );
        assert!(
            set.elapsed() < Duration::from_millis(4 * MS),
            "gone after {:?}",
            set.elapsed()
        );
        assert_eq!(client.call(&words("TTL e")).unwrap(), b":-2\r\n");
    }
    // Nobody asks for these: they go by themselves.
    pair.same("FLUSHALL");
    let many: Vec<_> = (0..500)
        .map(|number| {
            (
                words(&format!("SET e:{number} v PX {}", 100 + number)),
                Rule::Bytes,
            )
        })
        .collect();
    pair.stream(&many);
    for client in [&mut pair.native, &mut pair.set] {
        let deadline = Instant::now() + quorate_executor::patience::patient(LONG);
        while client.call(&words("DBSIZE")).unwrap() != b":0\r\n" {
            assert!(Instant::now() < deadline, "they never went");
        }
    }
    pair.same("SWAPDB 0 1");
    both.finish();
}

/// Everything that a command of the SCAN family returns until its cursor is 0 again.
fn scan(client: &mut Client, command: &str, key: Option<&str>, options: &str) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut cursor = "0".to_owned();
    for _ in 0..10_000 {
        let reply = client
            .call(&words(&format!(
                "{command} {} {cursor} {options}",
                key.unwrap_or("")
            )))
            .unwrap();
        let parts = elements(&reply);
        assert_eq!(parts.len(), 2, "{}", shown(&reply));
        found.extend(elements(parts[1]).into_iter().map(<[u8]>::to_vec));
        cursor = String::from_utf8(bulk(parts[0]).unwrap().to_vec()).unwrap();
        if cursor == "0" {
            return found;
        }
    }
    panic!("{command} does not end");
}

#[test]
fn scans_find_everything() {
    let _turn = one_at_a_time("SCAN, HSCAN, SSCAN, ZSCAN to their ends");
    let both = Both::start();
    let mut pair = both.connect();
    let mut requests = Vec::new();
    for number in 0..1500 {
        requests.push(words(&format!("SET key:{number} v")));
        requests.push(words(&format!("HSET h field:{number} {number}")));
        requests.push(words(&format!("SADD t member:{number}")));
        requests.push(words(&format!("ZADD z {number} member:{number}")));
    }
    requests.push(command(&["RPUSH", "l", "a"]));
    pair.stream(
        &requests
            .into_iter()
            .map(|request| (request, Rule::Bytes))
            .collect::<Vec<_>>(),
    );
    for (command, key, options, least) in [
        ("SCAN", None, "", 1504),
        ("SCAN", None, "COUNT 7", 1504),
        ("SCAN", None, "MATCH key:1* COUNT 100", 611),
        ("SCAN", None, "TYPE list", 1),
        ("HSCAN", Some("h"), "COUNT 50", 3000),
        ("SSCAN", Some("t"), "MATCH *7 COUNT 1000", 150),
        ("ZSCAN", Some("z"), "", 3000),
    ] {
        let collect = |client: &mut Client| scan(client, command, key, options);
        let (native, set) = (collect(&mut pair.native), collect(&mut pair.set));
        // An element may come twice while a table grows; which ones come at all is what counts.
        let (native, set): (BTreeSet<_>, BTreeSet<_>) =
            (native.into_iter().collect(), set.into_iter().collect());
        assert_eq!(native, set, "{command} {options}");
        assert!(
            set.len() >= least.min(1500),
            "{command} {options}: {}",
            set.len()
        );
    }
    // In their compact form they come in order, with cursor 0.
    for line in [
        "DEL h t z",
        "HSET h b 1 a 2",
        "SADD t 3 1 2",
        "ZADD z 2 b 1 a",
        "HSCAN h 0",
        "SSCAN t 0",
        "ZSCAN z 0",
        "SCAN x",
        "SCAN 0 COUNT 0",
        "HSCAN l 0",
        "SSCAN nokey 0",
    ] {
        pair.same(line);
    }
    both.finish();
}
