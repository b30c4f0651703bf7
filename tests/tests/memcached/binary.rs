//! The binary protocol: every opcode, quiet ones, and packets that are not right.

use quorate_tests::one_at_a_time;
use quorate_tests::random::Random;

use crate::{Both, NO_HELPERS, Pair};

const GET: u8 = 0;
const SET: u8 = 1;
const DELETE: u8 = 4;
const INCREMENT: u8 = 5;
const DECREMENT: u8 = 6;
const QUIT: u8 = 7;
const FLUSH: u8 = 8;
const NOOP: u8 = 0x0a;
const VERSION: u8 = 0x0b;
const APPEND: u8 = 0x0e;
const PREPEND: u8 = 0x0f;
const TOUCH: u8 = 0x1c;
const GET_AND_TOUCH: u8 = 0x1d;

/// A request.
fn request(opcode: u8, key: &[u8], extras: &[u8], value: &[u8], cas: u64, opaque: u32) -> Vec<u8> {
    let body = (key.len() + extras.len() + value.len()) as u32;
    let mut bytes = vec![0x80, opcode];
    bytes.extend((key.len() as u16).to_be_bytes());
    bytes.extend([extras.len() as u8, 0, 0, 0]);
    bytes.extend(body.to_be_bytes());
    bytes.extend(opaque.to_be_bytes());
    bytes.extend(cas.to_be_bytes());
    bytes.extend([extras, key, value].concat());
    bytes
}

fn stored(flags: u32, expiry: u32) -> Vec<u8> {
    [flags.to_be_bytes(), expiry.to_be_bytes()].concat()
}

fn counted(delta: u64, initial: u64, expiry: u32) -> Vec<u8> {
    let mut extras = [delta.to_be_bytes(), initial.to_be_bytes()].concat();
    extras.extend(expiry.to_be_bytes());
    extras
}

fn status(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[6], packet[7]])
}

fn cas_of(packet: &[u8]) -> u64 {
    u64::from_be_bytes(packet[16..24].try_into().unwrap())
}

#[test]
fn every_opcode_has_its_known_status() {
    let _turn = one_at_a_time("memcached: every opcode of the binary protocol");
    let both = Both::start();
    let mut pair = both.connect();
    let none: &[u8] = b"";
    let kept = stored(7, 0);
    let forever = 0xffff_ffff;
    for (opcode, key, extras, value, cas, expected) in [
        (GET, "a", none, none, 0, 1),
        (SET, "a", &kept[..], &b"hello"[..], 0, 0),
        (GET, "a", none, none, 0, 0),
        (0x0c, "a", none, none, 0, 0),
        (2, "a", &kept, b"x", 0, 2),
        (2, "b", &kept, b"x", 0, 0),
        (3, "b", &kept, b"y", 0, 0),
        (3, "c", &kept, b"y", 0, 1),
        (SET, "a", &kept, b"z", 999, 2),
        (APPEND, "a", none, b"tail", 0, 0),
        (PREPEND, "a", none, b"head", 0, 0),
        (APPEND, "nope", none, b"tail", 0, 5),
        (GET, "a", none, none, 0, 0),
        (INCREMENT, "n", &counted(5, 10, 0), none, 0, 0),
        (INCREMENT, "n", &counted(5, 10, 0), none, 0, 0),
        (DECREMENT, "n", &counted(100, 0, 0), none, 0, 0),
        (INCREMENT, "m", &counted(5, 10, forever), none, 0, 1),
        (INCREMENT, "a", &counted(1, 1, 0), none, 0, 6),
        (TOUCH, "a", &100_u32.to_be_bytes(), none, 0, 0),
        (TOUCH, "nope", &100_u32.to_be_bytes(), none, 0, 1),
        (GET_AND_TOUCH, "a", &100_u32.to_be_bytes(), none, 0, 0),
        (0x23, "a", &100_u32.to_be_bytes(), none, 0, 0),
        (DELETE, "b", none, none, 999, 2),
        (DELETE, "b", none, none, 0, 0),
        (DELETE, "b", none, none, 0, 1),
        (NOOP, "", none, none, 0, 0),
        (VERSION, "", none, none, 0, 0),
        (FLUSH, "", none, none, 0, 0),
        (GET, "a", none, none, 0, 1),
        (0x50, "", none, none, 0, 0x81),
    ] {
        pair.send(&request(opcode, key.as_bytes(), extras, value, cas, 77));
        let packet = pair.packet(&format!("opcode {opcode:#x} of {key:?}"));
        let known = status(&packet);
        assert_eq!(packet[..2], [0x81, opcode]);
        assert_eq!(known, expected, "opcode {opcode:#x} of {key:?}");
        assert_eq!(packet[12..16], 77_u32.to_be_bytes());
    }
    // A number that fits, one that does not any more.
    pair.send(&request(SET, b"c", &kept, b"1", 0, 0));
    let first = cas_of(&pair.packet("set"));
    pair.send(&request(SET, b"c", &kept, b"2", first, 0));
    let second = pair.packet("set with cas");
    assert_eq!((status(&second), cas_of(&second) > first), (0, true));
    pair.send(&request(SET, b"c", &kept, b"3", first, 0));
    assert_eq!(status(&pair.packet("set with an old cas")), 2);
    pair.send(&request(QUIT, b"", b"", b"", 0, 0));
    pair.rest("quit");
    both.finish();
}

const BATCH: usize = 40;

#[test]
fn random_packets_quiet_ones_too() {
    let _turn = one_at_a_time("memcached: random packets of the binary protocol, quiet ones too");
    let both = Both::start_with(&NO_HELPERS);
    let mut pair = both.connect();
    let mut random = Random::from_env(11);
    let mut replies = 0;
    let batches = quorate_tests::shortened(300, 10);
    for batch in 0..batches {
        let mut stream = Vec::new();
        for opaque in 0..BATCH {
            stream.extend(any(&mut random, opaque as u32));
        }
        stream.extend(request(NOOP, b"", b"", b"", 0, 0xffff));
        pair.send(&stream);
        replies += until_noop(&mut pair, &format!("batch {batch}"));
    }
    println!("  {} packets, {replies} replies equal", batches * BATCH);
    assert!(replies > batches * BATCH / 3);
    both.finish();
}

fn any(random: &mut Random, opaque: u32) -> Vec<u8> {
    let key = format!("key{}", random.below(20)).into_bytes();
    let value = match random.below(2) {
        0 => random.below(1000).to_string().into_bytes(),
        _ => {
            let length = random.below(5000);
            random.bytes(length)
        }
    };
    let expiry = [0, 0, 1000][random.below(3)];
    let cas = [0, 0, 0, 5][random.below(4)];
    let quiet = random.below(2) == 0;
    let stored = stored(random.below(1 << 20) as u32, expiry);
    let delta = random.below(50) as u64;
    let counted = counted(delta, 5, [0, 1000, 0xffff_ffff][random.below(3)]);
    let touched = expiry.to_be_bytes();
    let opcode = |loud: u8, silent: u8| if quiet { silent } else { loud };
    let none: &[u8] = b"";
    let (opcode, extras, value) = match random.below(12) {
        0..3 => (opcode(GET, 0x09), none, none),
        3 => (opcode(0x0c, 0x0d), none, none),
        4 => (opcode(SET, 0x11), &stored[..], &value[..]),
        5 => (opcode(2, 0x12), &stored[..], &value[..]),
        6 => (opcode(3, 0x13), &stored[..], &value[..]),
        7 => (opcode(DELETE, 0x14), none, none),
        8 => (opcode(INCREMENT, 0x15), &counted[..], none),
        9 => (opcode(DECREMENT, 0x16), &counted[..], none),
        10 => (opcode(APPEND, 0x19), none, &value[..]),
        _ => (opcode(GET_AND_TOUCH, 0x1e), &touched[..], none),
    };
    request(opcode, &key, extras, value, cas, opaque)
}

/// Replies until that of the request that is always answered.
fn until_noop(pair: &mut Pair, what: &str) -> usize {
    let mut replies = 0;
    while pair.packet(what)[1] != NOOP {
        replies += 1;
    }
    replies
}

#[test]
fn broken_packets() {
    let _turn = one_at_a_time("memcached: broken packets of the binary protocol");
    let both = Both::start();
    let with = |at: usize, byte: u8| {
        let mut bytes = request(SET, b"a", &stored(0, 0), b"value", 0, 1);
        bytes[at] = byte;
        bytes
    };
    let long_key = vec![b'k'; 300];
    let cases = [
        with(0, 0x81),
        with(0, 0x7f),
        with(3, 0),
        with(3, 200),
        with(4, 0),
        with(4, 4),
        with(4, 255),
        with(5, 1),
        with(8, 0x7f),
        with(11, 0),
        with(11, 5),
        request(GET, b"", b"", b"", 0, 1),
        request(GET, &long_key, b"", b"", 0, 1),
        request(GET, b"a", b"extra", b"", 0, 1),
        request(SET, b"a", &stored(0, 0), &vec![0; 2_000_000], 0, 1),
        request(INCREMENT, b"a", b"1234", b"", 0, 1),
        request(0x20, b"", b"", b"", 0, 1),
        request(0x21, b"PLAIN", b"", b"x", 0, 1),
        request(0x10, b"nonsense", b"", b"", 0, 1),
        request(0xff, b"", b"", b"", 0, 1),
        request(GET, b"a", b"", b"", 0, 1)[..10].to_vec(),
    ];
    for case in &cases {
        let mut pair = both.connect();
        // The first byte decides which protocol the connection speaks.
        pair.send(&request(NOOP, b"", b"", b"", 0, 1));
        pair.packet("noop");
        pair.send(case);
        for wire in [&mut pair.native, &mut pair.set] {
            // It may have ended the connection already.
            wire.finish().unwrap_or_default();
        }
        pair.rest(&format!("{:02x?}", &case[..case.len().min(40)]));
    }
    both.finish();
}
