//! Several connections at once: four threads work, and what they share stays right.

use quorate_tests::one_at_a_time;
use quorate_tests::random::Random;
use quorate_tests::wire::Wire;

use crate::{Both, agree, reply, store};

const CONNECTIONS: usize = 50;
const TIMES: usize = 100;

/// Runs `client` with the numbers 0 to 49 at once.
fn at_once(client: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for number in 0..CONNECTIONS {
            let client = &client;
            scope.spawn(move || client(number));
        }
    });
}

#[test]
fn connections_of_their_own_keys() {
    let _turn = one_at_a_time("memcached: 50 connections at once, each with keys of its own");
    let both = Both::start();
    at_once(|number| {
        let mut pair = both.connect();
        let mut random = Random::new(number as u64);
        for _ in 0..TIMES {
            let key = format!("c{number}-{}", random.below(10));
            let length = random.below(20_000);
            let value = random.bytes(length);
            let stored = store(&format!("set {key} 0 0"), &value);
            let stream = [
                stored,
                format!("get {key}\r\nincr {key} 1\r\n").into_bytes(),
            ]
            .concat();
            pair.send(&stream);
            assert_eq!(pair.reply(b"set"), b"STORED\r\n");
            let got = pair.reply(b"get");
            assert!(length == 0 || got.windows(length).any(|window| window == value));
            pair.reply(b"incr");
        }
    });
    both.finish();
}

fn number(wire: &mut Wire, request: &str) -> u64 {
    wire.send(request.as_bytes()).unwrap();
    let text = String::from_utf8(reply(wire)).unwrap();
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{request:?}: {text:?}"))
}

#[test]
fn one_counter_for_all() {
    let _turn = one_at_a_time(
        "memcached: 50 connections add to one counter, by incr and by cas with conflicts",
    );
    let both = Both::start();
    let total = (CONNECTIONS * TIMES) as u64;
    for address in both.addresses() {
        let mut wire = Wire::connect(address).unwrap();
        for key in ["sum", "cas"] {
            wire.send(&store(&format!("set {key} 0 0"), b"0")).unwrap();
            assert_eq!(reply(&mut wire), b"STORED\r\n");
        }
        let conflicts = std::sync::atomic::AtomicUsize::new(0);
        at_once(|_| {
            let mut wire = Wire::connect(address).unwrap();
            let mut last = 0;
            for _ in 0..TIMES {
                let now = number(&mut wire, "incr sum 1\r\n");
                assert!(now > last, "{now} after {last}");
                last = now;
            }
            for _ in 0..TIMES / 10 {
                while !add_by_cas(&mut wire) {
                    conflicts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            }
        });
        assert_eq!(number(&mut wire, "incr sum 0\r\n"), total);
        assert_eq!(number(&mut wire, "incr cas 0\r\n"), total / 10);
        println!("  {address}: {conflicts:?} conflicts");
    }
    both.finish();
}

/// Reads the number with its mark and writes the next one; false if somebody else was faster.
fn add_by_cas(wire: &mut Wire) -> bool {
    wire.send(b"gets cas\r\n").unwrap();
    let text = String::from_utf8(reply(wire)).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let (mark, value) = (words[4], words[5].parse::<u64>().unwrap() + 1);
    let value = value.to_string();
    let length = value.len();
    wire.send(format!("cas cas 0 0 {length} {mark}\r\n{value}\r\n").as_bytes())
        .unwrap();
    match reply(wire).as_slice() {
        b"STORED\r\n" => true,
        b"EXISTS\r\n" => false,
        other => panic!("{}", String::from_utf8_lossy(other)),
    }
}

/// More than fits into the 64 MiB that the appliance has.
const FILL: usize = 1500;
const VALUE: usize = 80_000;

#[test]
fn more_than_fits() {
    let _turn = one_at_a_time("memcached: more than fits; what is still there is right");
    let both = Both::start();
    for address in both.addresses() {
        let mut wire = Wire::connect(address).unwrap();
        for number in 0..FILL {
            let value = Random::new(number as u64).bytes(VALUE);
            wire.send(&store(&format!("set fill{number} 0 0"), &value))
                .unwrap();
            assert_eq!(reply(&mut wire), b"STORED\r\n");
        }
        let mut there = 0;
        for number in 0..FILL {
            wire.send(format!("get fill{number}\r\n").as_bytes())
                .unwrap();
            let got = reply(&mut wire);
            if got != b"END\r\n" {
                there += 1;
                let value = Random::new(number as u64).bytes(VALUE);
                let mut expected = format!("VALUE fill{number} 0 {VALUE}\r\n").into_bytes();
                expected.extend(value);
                expected.extend(b"\r\nEND\r\n");
                agree("a value among many", &expected, &got);
            }
        }
        println!("  {address}: {there} of {FILL} values are still there");
        assert!(there > 100 && there < FILL);
    }
    both.finish();
}
