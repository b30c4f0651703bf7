//! Values of 1 byte to 64 MiB, and many commands at once.

use quorate_tests::one_at_a_time;
use quorate_tests::random::Random;
use quorate_tests::resp::{command, words};

use crate::Both;
use crate::rules::Rule;

#[test]
fn values_of_one_byte_to_64_mib() {
    let _turn = one_at_a_time(
        "values of 1 byte, 1 KiB, 1 MiB, 64 MiB, and around the edges of segments and windows",
    );
    let both = Both::start();
    let mut pair = both.connect();
    let mut random = Random::from_env(64);
    for len in [
        0,
        1,
        44,
        45,
        1 << 10,
        1448,
        1460,
        1461,
        16 << 10,
        65_535,
        65_536,
        (1 << 20) - 1,
        1 << 20,
        quorate_tests::shortened(5_000_000, 1_500_000),
        quorate_tests::shortened(64 << 20, 2 << 20),
    ] {
        let value = random.bytes(len);
        pair.same_words(&[b"SET", &b"v"[..], &value]);
        let reply = pair.same("GET v");
        assert!(reply.windows(len.max(1)).any(|window| window == value) || len == 0);
        pair.is("STRLEN v", &format!(":{len}\r\n"));
        pair.same("GETRANGE v -20 -1");
        pair.same("BITCOUNT v");
        pair.same_words(&[b"APPEND", &b"v"[..], b"tail"]);
        pair.same("EXISTS v");
        println!("  {len} bytes there and back");
    }
    pair.same("DEL v");
    // The largest again as one of many elements, and there and back at once.
    let value = random.bytes(quorate_tests::shortened(8 << 20, 1 << 20));
    pair.stream(&[
        (
            command(&[b"RPUSH", &b"l"[..], &value, b"small", &value]),
            Rule::Bytes,
        ),
        (words("LRANGE l 0 -1"), Rule::Bytes),
        (command(&[b"ECHO", &value[..]]), Rule::Bytes),
        (words("LLEN l"), Rule::Bytes),
    ]);
    both.finish();
}

#[test]
fn a_long_pipeline() {
    let _turn =
        one_at_a_time("20,000 commands in one stream, and 1,000 that each want a large reply");
    let both = Both::start();
    let mut pair = both.connect();
    let mut requests = Vec::new();
    for number in 0..5000 {
        requests.push(words(&format!(
            "SET k:{} {}",
            number % 100,
            "x".repeat(number % 700)
        )));
        requests.push(words(&format!("GET k:{}", (number * 7) % 100)));
        requests.push(words("INCR counter"));
        requests.push(words("PING"));
    }
    pair.stream(
        &requests
            .into_iter()
            .map(|request| (request, Rule::Bytes))
            .collect::<Vec<_>>(),
    );
    pair.same_words(&["SET", "large", &"y".repeat(20_000)]);
    let all: Vec<_> = (0..1000)
        .map(|_| (words("GET large"), Rule::Bytes))
        .collect();
    pair.stream(&all);
    both.finish();
}
