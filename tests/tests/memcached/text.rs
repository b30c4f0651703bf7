//! The text protocol: named cases, values of all sizes, thousands of random commands, statistics, broken requests.

use std::collections::BTreeMap;

use quorate_tests::one_at_a_time;
use quorate_tests::random::Random;

use crate::{Both, NO_HELPERS, Pair, agree, reply, store};

#[test]
fn every_command_has_its_known_reply() {
    let _turn = one_at_a_time("memcached: every command of the text protocol");
    let both = Both::start();
    let mut pair = both.connect();
    for (request, expected) in [
        ("get a\r\n", "END\r\n"),
        ("set a 5 0 3\r\nabc\r\n", "STORED\r\n"),
        ("get a\r\n", "VALUE a 5 3\r\nabc\r\nEND\r\n"),
        ("gets a\r\n", "VALUE a 5 3 1\r\nabc\r\nEND\r\n"),
        ("add a 0 0 1\r\nx\r\n", "NOT_STORED\r\n"),
        ("add b 4294967295 0 1\r\nx\r\n", "STORED\r\n"),
        (
            "get a b c\r\n",
            "VALUE a 5 3\r\nabc\r\nVALUE b 4294967295 1\r\nx\r\nEND\r\n",
        ),
        ("replace c 0 0 1\r\ny\r\n", "NOT_STORED\r\n"),
        ("replace b 1 0 1\r\ny\r\n", "STORED\r\n"),
        ("append a 9 0 2\r\nde\r\n", "STORED\r\n"),
        ("prepend a 9 0 2\r\n--\r\n", "STORED\r\n"),
        ("append nope 0 0 1\r\nx\r\n", "NOT_STORED\r\n"),
        ("prepend nope 0 0 1\r\nx\r\n", "NOT_STORED\r\n"),
        ("get a\r\n", "VALUE a 5 7\r\n--abcde\r\nEND\r\n"),
        ("cas a 0 0 1 1\r\nz\r\n", "EXISTS\r\n"),
        ("cas nope 0 0 1 1\r\nz\r\n", "NOT_FOUND\r\n"),
        ("gets a\r\n", "VALUE a 5 7 5\r\n--abcde\r\nEND\r\n"),
        ("cas a 6 0 1 5\r\nz\r\n", "STORED\r\n"),
        ("cas a 6 0 1 5\r\nz\r\n", "EXISTS\r\n"),
        ("set n 0 0 2\r\n10\r\n", "STORED\r\n"),
        ("incr n 5\r\n", "15\r\n"),
        ("decr n 6\r\n", "9\r\n"),
        ("get n\r\n", "VALUE n 0 2\r\n9 \r\nEND\r\n"),
        ("decr n 100\r\n", "0\r\n"),
        (
            "incr n 18446744073709551615\r\n",
            "18446744073709551615\r\n",
        ),
        ("incr n 2\r\n", "1\r\n"),
        (
            "incr n x\r\n",
            "CLIENT_ERROR invalid numeric delta argument\r\n",
        ),
        (
            "incr a 1\r\n",
            "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
        ),
        ("incr nope 1\r\n", "NOT_FOUND\r\n"),
        ("touch n 100\r\n", "TOUCHED\r\n"),
        ("touch nope 100\r\n", "NOT_FOUND\r\n"),
        (
            "gat 100 n\r\n",
            "VALUE n 0 20\r\n1                   \r\nEND\r\n",
        ),
        ("delete b\r\n", "DELETED\r\n"),
        ("delete b\r\n", "NOT_FOUND\r\n"),
        ("delete a 0\r\n", "DELETED\r\n"),
        (
            "delete a 5\r\n",
            "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n",
        ),
        ("verbosity 0\r\n", "OK\r\n"),
        ("version\r\n", "VERSION 1.6.18\r\n"),
        ("flush_all\r\n", "OK\r\n"),
        ("get n\r\n", "END\r\n"),
        ("mn\r\n", "MN\r\n"),
        ("ms m 2 T0 F7\r\nhi\r\n", "HD\r\n"),
        ("mg m v f s t\r\n", "VA 2 f7 s2 t-1\r\nhi\r\n"),
        ("mg nope v\r\n", "EN\r\n"),
        (
            "ma m\r\n",
            "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
        ),
        ("md m q\r\nmn\r\n", "MN\r\n"),
        ("nonsense\r\n", "ERROR\r\n"),
        ("get\r\n", "ERROR\r\n"),
        ("GET a\r\n", "ERROR\r\n"),
        ("set a 0 0\r\n", "ERROR\r\n"),
        (
            "set a b 0 1\r\nx\r\n",
            "CLIENT_ERROR bad command line format\r\n",
        ),
        // The value that follows a refused line is taken as a line.
        ("version\r\n", "ERROR\r\n"),
    ] {
        pair.is(request, expected);
    }
    // Of the one above.
    pair.reply(b"version");
    // Without a reply, then something with one.
    for quiet in [
        "set q 0 0 1 noreply\r\n1\r\n",
        "add q 0 0 1 noreply\r\n2\r\n",
        "append q 0 0 1 noreply\r\n3\r\n",
        "incr q 1 noreply\r\n",
        "touch q 0 noreply\r\n",
        "delete nope noreply\r\n",
        "verbosity 0 noreply\r\n",
    ] {
        pair.send(quiet.as_bytes());
    }
    pair.is("get q\r\n", "VALUE q 0 2\r\n14\r\nEND\r\n");
    pair.send(b"flush_all noreply\r\nquit\r\n");
    pair.rest("quit");
    let mut pair = both.connect();
    pair.is("get q\r\n", "END\r\n");
    both.finish();
}

#[test]
fn values_of_all_sizes_and_bytes() {
    let _turn = one_at_a_time("memcached: values of 0 B to 1 MiB and beyond, keys of up to 250 B");
    let both = Both::start();
    let mut pair = both.connect();
    let mut random = Random::from_env(4);
    for length in [
        0, 1, 2, 100, 1023, 1024, 1447, 1448, 1449, 2048, 4096, 8191, 16_384, 65_535, 65_536,
        100_000, 262_144, 500_000, 524_288, 1_000_000, 1_048_000, 1_048_575, 1_048_576, 1_048_577,
        5_000_000,
    ] {
        let value = random.bytes(length);
        let stored = pair.same(&store("set v 0 0", &value));
        let reply = pair.same(b"get v\r\n");
        if stored == b"STORED\r\n" {
            assert!(length == 0 || reply.windows(length).any(|window| window == value));
        } else {
            assert!(length > 1_000_000, "{length}");
        }
        pair.same(&store("append v 0 0", b"tail"));
        pair.same(b"gets v\r\n");
        pair.same(b"delete v\r\n");
    }
    for length in [1, 249, 250, 251, 1000, 3000] {
        let key = "k".repeat(length);
        pair.send(format!("set {key} 0 0 1\r\nx\r\n").as_bytes());
        pair.reply(b"set");
        if length > 250 {
            // The value was taken as a line.
            pair.same(b"version\r\n");
            pair.reply(b"version");
        }
        pair.same(format!("get {key}\r\n").as_bytes());
    }
    // More keys in one command than anything has room for, and values that look like the protocol.
    let keys: Vec<String> = (0..500).map(|number| format!("key{number}")).collect();
    for key in &keys {
        let value = format!("END\r\nVALUE {key} 0 5\r\n");
        pair.same(&store(&format!("set {key} 0 0"), value.as_bytes()));
    }
    let all = pair.same(format!("get {}\r\n", keys.join(" ")).as_bytes());
    assert!(all.len() > 500 * 20);
    both.finish();
}

const KEYS: usize = 40;
/// Commands that are sent before their replies are read.
const BATCH: usize = 50;

#[test]
fn random_commands_in_batches() {
    let _turn = one_at_a_time("memcached: random commands of the text protocol, many at once");
    let both = Both::start_with(&NO_HELPERS);
    let mut pair = both.connect();
    let mut random = Random::from_env(2026);
    // What cas needs: the last number seen of a key.
    let mut unique = BTreeMap::<String, String>::new();
    let commands = quorate_tests::shortened(20_000, 500);
    for _ in 0..commands / BATCH {
        let (mut stream, mut replies) = (Vec::new(), Vec::new());
        for _ in 0..BATCH {
            let (request, replied) = any(&mut random, &unique);
            stream.extend(&request);
            if replied {
                replies.push(request);
            }
        }
        pair.send(&stream);
        for request in &replies {
            remember(&pair.reply(request), &mut unique);
        }
    }
    assert!(!unique.is_empty());
    statistics(&mut pair);
    println!("  {commands} commands, replies and statistics equal");
    both.finish();
}

fn any(random: &mut Random, unique: &BTreeMap<String, String>) -> (Vec<u8>, bool) {
    let key = format!("k{}", random.below(KEYS));
    let quiet = if random.below(10) == 0 {
        " noreply"
    } else {
        ""
    };
    let expiry = random.pick(&["0", "0", "0", "1000", "-1", "2000000000"]);
    let value = match random.below(3) {
        0 => random.below(1_000_000).to_string().into_bytes(),
        1 => {
            let length = random.below(3000);
            random.bytes(length)
        }
        _ => b"\r\nEND\r\n".to_vec(),
    };
    let flags = random.below(70_000);
    let length = value.len();
    let request = match random.below(14) {
        0..4 => return (format!("gets {key} k1 k2\r\n").into_bytes(), true),
        4 => return (format!("gat {expiry} {key}\r\n").into_bytes(), true),
        5..9 => {
            let command = random.pick(&["set", "set", "add", "replace", "append", "prepend"]);
            format!("{command} {key} {flags} {expiry} {length}{quiet}\r\n")
        }
        9 => {
            let number = unique.get(&key).map_or("1", String::as_str);
            format!("cas {key} {flags} {expiry} {length} {number}{quiet}\r\n")
        }
        10 => {
            let command = random.pick(&["incr", "decr"]);
            let request = format!("{command} {key} {}{quiet}\r\n", random.below(100));
            return (request.into_bytes(), quiet.is_empty());
        }
        11 => {
            let request = format!("delete {key}{quiet}\r\n");
            return (request.into_bytes(), quiet.is_empty());
        }
        12 => {
            let request = format!("touch {key} {expiry}{quiet}\r\n");
            return (request.into_bytes(), quiet.is_empty());
        }
        _ => return (format!("mg {key} v f s k c\r\n").into_bytes(), true),
    };
    let mut request = request.into_bytes();
    request.extend(value);
    request.extend(b"\r\n");
    (request, quiet.is_empty())
}

fn remember(reply: &[u8], unique: &mut BTreeMap<String, String>) {
    let line = reply
        .split(|&byte| byte == b'\r')
        .next()
        .unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    if let ["VALUE", key, _, _, number] = line.split(' ').collect::<Vec<_>>()[..] {
        unique.insert(key.to_owned(), number.to_owned());
    }
}

/// Statistics that depend on nothing but the commands: no time, process, size of a thread's buffers or host.
fn statistics(pair: &mut Pair) {
    const COUNTED: &[&str] = &[
        "curr_items",
        "total_items",
        "cmd_get",
        "cmd_set",
        "cmd_flush",
        "cmd_touch",
        "cmd_meta",
        "get_hits",
        "get_misses",
        "get_expired",
        "get_flushed",
        "delete_misses",
        "delete_hits",
        "incr_misses",
        "incr_hits",
        "decr_misses",
        "decr_hits",
        "cas_misses",
        "cas_hits",
        "cas_badval",
        "touch_hits",
        "touch_misses",
        "bytes",
        "bytes_read",
        "bytes_written",
        "limit_maxbytes",
        "threads",
        "version",
        "pointer_size",
        "evictions",
        "max_connections",
        "curr_connections",
        "hash_power_level",
        "hash_bytes",
    ];
    pair.send(b"stats\r\n");
    let [native, set] = [&mut pair.native, &mut pair.set].map(|wire| {
        let text = String::from_utf8(reply(wire)).unwrap();
        let mut values = BTreeMap::new();
        for line in text.lines() {
            if let ["STAT", name, value] = line.split(' ').collect::<Vec<_>>()[..] {
                values.insert(name.to_owned(), value.to_owned());
            }
        }
        values
    });
    assert_eq!(
        native.keys().collect::<Vec<_>>(),
        set.keys().collect::<Vec<_>>()
    );
    for name in COUNTED {
        assert_eq!(native.get(*name), set.get(*name), "{name}");
        assert!(set.contains_key(*name), "{name}");
    }
    assert_eq!(set["threads"], "4");
    for what in ["stats settings\r\n", "stats slabs\r\n", "stats sizes\r\n"] {
        pair.send(what.as_bytes());
        let [native, set] = [&mut pair.native, &mut pair.set].map(|wire| {
            let text = String::from_utf8(reply(wire)).unwrap();
            let kept = |line: &&str| !line.contains("tcpport") && !line.contains("inter ");
            text.lines().filter(kept).collect::<Vec<_>>().join("\n")
        });
        agree(what, native.as_bytes(), set.as_bytes());
    }
}

#[test]
fn broken_requests() {
    let _turn = one_at_a_time("memcached: broken requests");
    let both = Both::start();
    let long_line = [b"get ".to_vec(), vec![b'x'; 100_000]].concat();
    let many = [b"get".to_vec(), b" k".repeat(5000), b"\r\n".to_vec()].concat();
    let broken: &[&[u8]] = &[
        b"",
        b"\r\n",
        b"\n\n\n",
        b"get a\n",
        b"set a 0 0 5\r\nabc",
        b"set a 0 0 3\r\nabcdef\r\n",
        b"set a 0 0 -1\r\n",
        b"set a 0 0 99999999999999999999\r\n",
        b"set a 0 0 2147483647\r\n",
        b"set a 0 0 x\r\n",
        b"set  a  0  0  1\r\nx\r\n",
        b"cas a 0 0 1\r\nx\r\n",
        b"get \x00\x01\xff\r\n",
        b"\x00\x00\x00\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"stats nonsense\r\n",
        b"verbosity\r\n",
        b"flush_all x\r\n",
        b"incr\r\nincr a\r\ndecr a b c\r\n",
        b"mg\r\nms a\r\nms a x\r\nms a 2 X\r\nhi\r\nmd\r\nme a\r\n",
        b"shutdown\r\nget a\r\n",
        b"cache_memlimit 0\r\nslabs reassign 1 2\r\nslabs automove 9\r\nlru mode x\r\n",
        b"watch nonsense\r\n",
        &long_line,
        &many,
    ];
    for request in broken {
        let mut pair = both.connect();
        pair.send(request);
        // So that the end of the answers is known, whatever they are.
        pair.send(b"\r\nquit\r\n");
        for wire in [&mut pair.native, &mut pair.set] {
            wire.finish().unwrap_or_default();
        }
        pair.rest(&String::from_utf8_lossy(&request[..request.len().min(80)]));
    }
    both.finish();
}
