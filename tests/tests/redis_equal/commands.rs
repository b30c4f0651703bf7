//! The data types: named cases with the replies that they must have, and thousands of random commands.

use quorate_tests::one_at_a_time;
use quorate_tests::random::Random;
use quorate_tests::resp::{bulk, command, elements};

use crate::rules::{Rule, rule};
use crate::{Both, generator};

#[test]
fn strings_hashes_lists_sets_and_sorted_sets() {
    let _turn =
        one_at_a_time("strings, hashes, lists, sets, sorted sets: cases with known replies");
    let both = Both::start();
    let mut pair = both.connect();
    for (line, reply) in [
        ("SET s hello", "+OK\r\n"),
        ("APPEND s -world", ":11\r\n"),
        ("GETRANGE s -5 -1", "$5\r\nworld\r\n"),
        ("INCRBY n 9223372036854775807", ":9223372036854775807\r\n"),
        ("INCR n", "-ERR increment or decrement would overflow\r\n"),
        ("INCRBYFLOAT f 10.5", "$4\r\n10.5\r\n"),
        ("INCRBYFLOAT f 0.1", "$4\r\n10.6\r\n"),
        (
            "LPUSH s x",
            "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
        ),
        ("HSET h a 1 b 2 c 3", ":3\r\n"),
        (
            "HGETALL h",
            "*6\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n$1\r\n2\r\n$1\r\nc\r\n$1\r\n3\r\n",
        ),
        ("HINCRBYFLOAT h a 2.5", "$3\r\n3.5\r\n"),
        ("OBJECT ENCODING h", "$8\r\nlistpack\r\n"),
        ("RPUSH l a b c d", ":4\r\n"),
        ("LRANGE l 1 -2", "*2\r\n$1\r\nb\r\n$1\r\nc\r\n"),
        ("LMOVE l l LEFT RIGHT", "$1\r\na\r\n"),
        ("LPOS l a", ":3\r\n"),
        ("SADD t 3 1 2", ":3\r\n"),
        ("SMEMBERS t", "*3\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n"),
        ("SMISMEMBER t 1 9", "*2\r\n:1\r\n:0\r\n"),
        ("ZADD z 1 one 2 two 2.5 three", ":3\r\n"),
        (
            "ZRANGE z 0 -1 REV WITHSCORES",
            "*6\r\n$5\r\nthree\r\n$3\r\n2.5\r\n$3\r\ntwo\r\n$1\r\n2\r\n$3\r\none\r\n$1\r\n1\r\n",
        ),
        ("ZINCRBY z 0.5 one", "$3\r\n1.5\r\n"),
        ("ZPOPMIN z", "*2\r\n$3\r\none\r\n$3\r\n1.5\r\n"),
        (
            "GEOADD g 13.361389 38.115556 Palermo 15.087269 37.502669 Catania",
            ":2\r\n",
        ),
        ("GEODIST g Palermo Catania km", "$8\r\n166.2742\r\n"),
        ("PFADD p a b c d e f g", ":1\r\n"),
        ("PFCOUNT p", ":7\r\n"),
        ("XADD x 1-1 k v", "$3\r\n1-1\r\n"),
        (
            "XADD x 1-1 k v",
            "-ERR The ID specified in XADD is equal or smaller than the target stream top item\r\n",
        ),
        ("TYPE x", "+stream\r\n"),
        ("DBSIZE", ":10\r\n"),
        ("RENAME x y", "+OK\r\n"),
        ("EXISTS x y y", ":2\r\n"),
        ("FLUSHALL", "+OK\r\n"),
        ("DBSIZE", ":0\r\n"),
    ] {
        pair.is(line, reply);
    }
    both.finish();
}

/// Elements that a table of 512 no longer holds in its compact form.
const MANY: usize = 2000;

#[test]
fn large_collections_change_their_form_alike() {
    let _turn = one_at_a_time("collections that outgrow their compact form");
    let both = Both::start();
    let mut pair = both.connect();
    for start in (0..MANY).step_by(100) {
        let mut hash = vec!["HSET".to_owned(), "h".to_owned()];
        let mut set = vec!["SADD".to_owned(), "t".to_owned()];
        let mut sorted = vec!["ZADD".to_owned(), "z".to_owned()];
        let mut list = vec!["RPUSH".to_owned(), "l".to_owned()];
        for number in start..start + 100 {
            hash.extend([format!("field{number}"), format!("value{number}")]);
            set.push(format!("member{number}"));
            sorted.extend([
                format!("{}", (number * 7919) % MANY),
                format!("member{number}"),
            ]);
            list.push("x".repeat(number % 300));
        }
        for words in [hash, set, sorted, list] {
            pair.same_words(&words);
        }
        for key in ["h", "t", "z", "l"] {
            pair.same(&format!("OBJECT ENCODING {key}"));
        }
    }
    pair.is("HLEN h", ":2000\r\n");
    pair.same("ZRANGE z 0 -1 WITHSCORES");
    pair.same("LRANGE l 0 -1");
    // Of the types whose order is not that of a hash table.
    for key in ["l", "z"] {
        let reply = pair.same(&format!("DUMP {key}"));
        let dump = bulk(&reply).unwrap();
        pair.same_words(&[b"RESTORE", &b"copy"[..], b"0", dump, b"REPLACE"]);
        pair.same("OBJECT ENCODING copy");
    }
    pair.same("SORT t ALPHA LIMIT 100 50");
    assert_eq!(
        elements(&pair.alike("HGETALL h", Rule::Pairs)).len(),
        2 * MANY
    );
    assert_eq!(
        elements(&pair.alike("SMEMBERS t", Rule::Unordered)).len(),
        MANY
    );
    // Random by nature: each answer must be right, not the same.
    for line in [
        "SRANDMEMBER t 20",
        "HRANDFIELD h 20",
        "ZRANDMEMBER z 20",
        "SRANDMEMBER t -50",
    ] {
        for client in [&mut pair.native, &mut pair.set] {
            let reply = client.call(&quorate_tests::resp::words(line)).unwrap();
            let some = elements(&reply);
            assert_eq!(some.len(), if line.ends_with("-50") { 50 } else { 20 });
            let prefix = if line.starts_with('H') {
                "field"
            } else {
                "member"
            };
            assert!(
                some.iter()
                    .all(|one| String::from_utf8_lossy(one).contains(prefix)),
                "{line}"
            );
        }
    }
    for number in 0..MANY {
        let reply = pair.set.call(&command(&["SPOP", "t"])).unwrap();
        assert!(reply.starts_with(b"$"), "{number}");
    }
    assert_eq!(pair.set.call(&command(&["SPOP", "t"])).unwrap(), b"$-1\r\n");
    both.finish();
}

/// Random commands, one by one and as streams.
const STREAM: usize = 250;

#[test]
fn thousands_of_random_commands() {
    let _turn = one_at_a_time("random commands over all types, one by one and in streams");
    let mut random = Random::from_env(20261122);
    let both = Both::start();
    let mut pair = both.connect();
    let mut by_rule = [0usize; 2];
    for _ in 0..quorate_tests::shortened(3000, 100) {
        let line = generator::line(&mut random);
        let rule = rule(&line);
        by_rule[usize::from(rule != Rule::Bytes)] += 1;
        pair.alike_bytes(&command(&line), rule);
    }
    for _ in 0..quorate_tests::shortened(60, 4) {
        let mut stream = Vec::new();
        while stream.len() < STREAM {
            if random.below(20) == 0 {
                transaction(&mut random, &mut stream);
                continue;
            }
            let line = generator::line(&mut random);
            let rule = rule(&line);
            by_rule[usize::from(rule != Rule::Bytes)] += 1;
            stream.push((command(&line), rule));
        }
        pair.stream(&stream);
    }
    println!(
        "  {} commands compared byte for byte, {} by another rule",
        by_rule[0], by_rule[1]
    );
    assert!(by_rule[0] > 10 * by_rule[1]);
    // What all of them left behind is the same, in both databases.
    for database in 0..2 {
        pair.same(&format!("SELECT {database}"));
        pair.same("DBSIZE");
        pair.alike("KEYS *", Rule::Unordered);
    }
    both.finish();
}

/// A transaction of commands whose replies are compared byte for byte.
fn transaction(random: &mut Random, stream: &mut Vec<(Vec<u8>, Rule)>) {
    stream.push((command(&["MULTI"]), Rule::Bytes));
    let mut len = random.below(8);
    while len > 0 {
        let line = generator::line(random);
        let name = line[0].to_ascii_uppercase();
        if rule(&line) == Rule::Bytes && name != b"EXEC" && name != b"DISCARD" {
            stream.push((command(&line), Rule::Bytes));
            len -= 1;
        }
    }
    let end = random.pick(&["EXEC", "EXEC", "EXEC", "DISCARD"]);
    stream.push((command(&[end]), Rule::Bytes));
}
