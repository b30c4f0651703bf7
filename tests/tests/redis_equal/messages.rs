//! What involves more than one connection or more than one command: publish and subscribe, scripts, transactions, waiting.

use quorate_tests::one_at_a_time;
use quorate_tests::resp::{bulk, command, elements, words};

use crate::Both;
use crate::rules::Rule;

#[test]
fn publish_and_subscribe() {
    let _turn = one_at_a_time("SUBSCRIBE, PSUBSCRIBE, SSUBSCRIBE, PUBLISH, keyspace notifications");
    let both = Both::start();
    let mut publisher = both.connect();
    let mut one = both.connect();
    let mut pattern = both.connect();
    one.send(&words("SUBSCRIBE news weather"));
    one.reply();
    assert_eq!(
        one.reply(),
        b"*3\r\n$9\r\nsubscribe\r\n$7\r\nweather\r\n:2\r\n"
    );
    pattern.same("PSUBSCRIBE n?ws*");
    publisher.is("PUBLISH news hello", ":2\r\n");
    publisher.is("PUBLISH weather rain", ":1\r\n");
    publisher.is("PUBLISH nobody listens", ":0\r\n");
    publisher.is(
        "PUBSUB NUMSUB news weather",
        "*4\r\n$4\r\nnews\r\n:1\r\n$7\r\nweather\r\n:1\r\n",
    );
    publisher.is("PUBSUB NUMPAT", ":1\r\n");
    publisher.alike("PUBSUB CHANNELS", Rule::Unordered);
    assert_eq!(
        one.reply(),
        b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$5\r\nhello\r\n"
    );
    assert_eq!(
        one.reply(),
        b"*3\r\n$7\r\nmessage\r\n$7\r\nweather\r\n$4\r\nrain\r\n"
    );
    assert_eq!(
        pattern.reply(),
        b"*4\r\n$8\r\npmessage\r\n$5\r\nn?ws*\r\n$4\r\nnews\r\n$5\r\nhello\r\n"
    );
    one.same("GET s");
    one.same("PING");
    one.same("UNSUBSCRIBE news");
    one.same("UNSUBSCRIBE");
    one.same("GET s");

    let mut shard = both.connect();
    shard.same("SSUBSCRIBE shard");
    publisher.is("SPUBLISH shard deep", ":1\r\n");
    assert_eq!(
        shard.reply(),
        b"*3\r\n$8\r\nsmessage\r\n$5\r\nshard\r\n$4\r\ndeep\r\n"
    );

    // Many messages at once, larger than one segment.
    let text = "m".repeat(5000);
    let burst: Vec<_> = (0..300)
        .map(|n| {
            (
                command(&["PUBLISH", "news", &format!("{n}{text}")]),
                Rule::Bytes,
            )
        })
        .collect();
    publisher.stream(&burst);
    for _ in 0..300 {
        pattern.reply();
    }

    publisher.same("CONFIG SET notify-keyspace-events KEA");
    let mut events = both.connect();
    events.same("PSUBSCRIBE __key*__:*");
    for line in ["SET k v PX 200", "LPUSH l a", "DEL l", "RENAME k k2"] {
        publisher.same(line);
    }
    for _ in 0..12 {
        events.reply();
    }
    // The last one comes by itself, when the key has expired.
    let expired = events.reply();
    assert!(
        String::from_utf8_lossy(&expired).contains("expired"),
        "{expired:?}"
    );
    both.finish();
}

const SCRIPTS: &[&str] = &[
    "return 1",
    "return {1,2,{'a',{}}, false, 3.99, 'x'}",
    "return redis.call('SET', KEYS[1], ARGV[1])",
    "return redis.call('GET', KEYS[1])",
    "return {KEYS[1], KEYS[2], ARGV[1]}",
    "local t = {} for i = 1, 500 do t[i] = i * i end return t",
    "return redis.call('NOSUCH')",
    "return redis.pcall('LPUSH', KEYS[1], 'x')",
    "return {err = 'MY failure'}",
    "return redis.error_reply('Other failure')",
    "return redis.status_reply('FINE')",
    "error('thrown')",
    "return nil + 1",
    "this is no Lua",
    "return cjson.encode({1, 2, {a = 'b'}})",
    "return cjson.decode('{\"a\": [1, 2.5, \"x\"]}').a",
    "return cmsgpack.pack({1, 'two', 3.5})",
    "return struct.pack('>I4 s', 258, 'abc')",
    "return bit.tohex(bit.bxor(0xff00, 0x0ff0))",
    "return redis.sha1hex('quorate')",
    "return tostring(math.sin(1)) .. ' ' .. tostring(math.sqrt(2)) .. ' ' .. tostring(2 ^ 0.5)",
    "math.randomseed(42) return {math.random(1000), math.random(1000), math.random(1000)}",
    "return string.format('%10.3f|%5d|%-8s|%x', 3.14159, 42, 'ab', 255)",
    "local s = 0 for i = 1, 200000 do s = s + i % 7 end return s",
    "redis.call('DEL', 'list') for i = 1, 1000 do redis.call('RPUSH', 'list', i) end return redis.call('LRANGE', 'list', 0, -1)",
    "redis.setresp(3) return redis.call('HGETALL', KEYS[1])",
    "return undefined_global",
    "return redis.call('ZADD', 'z', 1.5, 'a')",
    "redis.call('SET', 'a', 1) redis.call('SET', 'b', 2) return redis.call('MGET', 'a', 'b', 'c')",
];

#[test]
fn scripts() {
    let _turn = one_at_a_time("EVAL, EVALSHA, EVAL_RO, SCRIPT, FUNCTION");
    let both = Both::start();
    let mut pair = both.connect();
    for script in SCRIPTS {
        pair.same_words(&["EVAL", script, "2", "key", "other", "argument"]);
        pair.same_words(&["EVAL_RO", script, "1", "key", "argument"]);
        let loaded = pair.same_words(&["SCRIPT", "LOAD", script]);
        if let Some(digest) = bulk(&loaded) {
            pair.same_words(&[b"SCRIPT", &b"EXISTS"[..], digest, b"0"]);
            pair.same_words(&[b"EVALSHA", digest, b"2", b"key", b"other", b"again"]);
        }
    }
    pair.same("EVALSHA 0123456789012345678901234567890123456789 0");
    pair.same("SCRIPT FLUSH");
    pair.same("EVAL return 1");
    // One script holds the server; others are told so, and it can be killed.
    let mut other = both.connect();
    pair.same("CONFIG SET lua-time-limit 50");
    pair.send(&command(&["EVAL", "while true do end", "0"]));
    other.until("PING", b"+PONG\r\n", b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n");
    other.is("SCRIPT KILL", "+OK\r\n");
    let killed = String::from_utf8(pair.reply()).unwrap();
    assert!(killed.contains("Script killed by user"), "{killed}");
    let library = "#!lua name=lib\nredis.register_function('twice', function(keys, args) return args[1] * 2 end)";
    pair.same_words(&["FUNCTION", "LOAD", library]);
    pair.is("FCALL twice 0 21", ":42\r\n");
    pair.same("FUNCTION LIST");
    pair.same("FUNCTION DUMP");
    pair.same("FUNCTION DELETE lib");
    both.finish();
}

#[test]
fn transactions() {
    let _turn = one_at_a_time("MULTI, EXEC, DISCARD, WATCH");
    let both = Both::start();
    let mut pair = both.connect();
    let mut other = both.connect();
    for line in [
        "MULTI",
        "SET a 1",
        "INCR a",
        "LPUSH a x",
        "GET a",
        "EXEC",
        "GET a",
        "MULTI",
        "NOSUCH",
        "SET a 2",
        "EXEC",
        "MULTI",
        "SET a 3",
        "DISCARD",
        "GET a",
        "EXEC",
        "DISCARD",
        "MULTI",
        "MULTI",
        "WATCH a",
        "EXEC",
        "MULTI",
        "EXEC",
    ] {
        pair.same(line);
    }
    pair.same("WATCH a b");
    other.same("SET b changed");
    for line in ["MULTI", "SET a lost"] {
        pair.same(line);
    }
    pair.is("EXEC", "*-1\r\n");
    pair.is("GET a", "$1\r\n2\r\n");
    pair.same("WATCH a");
    other.same("GET a");
    for line in ["MULTI", "SET a kept"] {
        pair.same(line);
    }
    pair.is("EXEC", "*1\r\n+OK\r\n");
    pair.same("WATCH a");
    other.same("SET a again");
    pair.same("UNWATCH");
    for line in ["MULTI", "GET a"] {
        pair.same(line);
    }
    pair.is("EXEC", "*1\r\n$5\r\nagain\r\n");
    both.finish();
}

#[test]
fn waiting_commands() {
    let _turn = one_at_a_time("BLPOP, BLMOVE, BZPOPMIN, XREAD BLOCK, their timeouts");
    let both = Both::start();
    let mut pusher = both.connect();
    let mut waiting: Vec<_> = (0..4).map(|_| both.connect()).collect();
    waiting[0].send(&words("BLPOP l 0"));
    waiting[1].send(&words("BLMOVE l2 l3 LEFT RIGHT 0"));
    waiting[2].send(&words("BZPOPMIN z 0"));
    waiting[3].send(&words("XREAD BLOCK 0 STREAMS x $"));
    // They must be waiting before something is pushed.
    for client in [&mut pusher.native, &mut pusher.set] {
        let deadline = std::time::Instant::now() + quorate_executor::patience::patient(crate::LONG);
        while !String::from_utf8_lossy(&client.call(&words("INFO clients")).unwrap())
            .contains("blocked_clients:4\r")
        {
            assert!(
                std::time::Instant::now() < deadline,
                "four clients never waited"
            );
        }
    }
    for line in ["RPUSH l a b", "RPUSH l2 c", "ZADD z 1 m", "XADD x 5-5 f v"] {
        pusher.same(line);
    }
    assert_eq!(waiting[0].reply(), b"*2\r\n$1\r\nl\r\n$1\r\na\r\n");
    assert_eq!(waiting[1].reply(), b"$1\r\nc\r\n");
    assert_eq!(
        waiting[2].reply(),
        b"*3\r\n$1\r\nz\r\n$1\r\nm\r\n$1\r\n1\r\n"
    );
    assert_eq!(elements(&waiting[3].reply()).len(), 1);
    pusher.is("LRANGE l3 0 -1", "*1\r\n$1\r\nc\r\n");
    let started = std::time::Instant::now();
    pusher.is("BLPOP nothing 0.3", "*-1\r\n");
    assert!(started.elapsed().as_millis() >= 300);
    both.finish();
}

#[test]
fn client_side_caching() {
    let _turn = one_at_a_time("CLIENT TRACKING with RESP3 push messages");
    let both = Both::start();
    let mut pair = both.connect();
    let mut writer = both.connect();
    pair.alike("HELLO 3", Rule::Shape);
    pair.same("CLIENT TRACKING ON");
    pair.same("GET tracked");
    writer.same("SET tracked 1");
    assert_eq!(
        pair.reply(),
        b">2\r\n$10\r\ninvalidate\r\n*1\r\n$7\r\ntracked\r\n"
    );
    pair.is("GET tracked", "$1\r\n1\r\n");
    pair.same("CLIENT TRACKING OFF");
    both.finish();
}
