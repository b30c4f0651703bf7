//! R9: whatever the guest sends, the endpoint stands, keeps its bounds, and serves others.

use proptest::prelude::*;
use quorate_abi::net::{GATEWAY_MAC, GUEST_MAC};

use super::guest::*;
use super::*;

/// Copies of a real frame with damage, mostly in TCP's header.
fn damaged(random: &mut Random, frame: &[u8]) -> Vec<u8> {
    let mut copy = frame.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = match random.below(4) {
            0 => random.below(copy.len()),
            _ => 38 + random.below(24),
        };
        if let Some(byte) = copy.get_mut(at) {
            *byte = match random.below(3) {
                0 => random.next() as u8,
                1 => *byte ^ (1 << random.below(8)),
                _ => byte.wrapping_add(1),
            };
        }
    }
    if random.below(8) == 0 {
        copy.truncate(random.below(copy.len() + 1));
    }
    copy
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Damaged frames harm the connection that they name, at most.
    #[test]
    fn damaged_frames_do_no_harm(seed in 1u64.., window in prop_oneof![Just(4096u32), Just(1 << 20)]) {
        let config = LinkConfig { receive_window: window, ..LinkConfig::default() };
        let mut world = World::new(config, Guest::new(3000, Program::Echo));
        let mut random = Random(seed);
        for conn in 0..4 {
            world.open(conn);
        }
        for round in 0..60_u64 {
            let conn = round % 4;
            if world.link.unsent(conn) < 100_000 {
                world.data(conn, &vec![round as u8; 1 + random.below(5000)]);
            }
            if round == 50 {
                world.input(ToGuest::Shut { conn });
            }
            for frame in frames(&mut world.link, world.now) {
                world.guest.receive(frame, world.now);
            }
            for frame in world.guest.step(world.now) {
                for _ in 0..random.below(4) {
                    world.link.frame(&damaged(&mut random, &frame), world.now);
                }
                world.link.frame(&frame, world.now);
            }
            world.look();
            world.now += MS * random.below(300) as u64;
            // Whatever happened, it can be saved and go on.
            world.link = Link::restore(world.link.save(), world.now).unwrap();
        }
        // A connection that nobody has spoiled works.
        world.guest = Guest::new(3000, Program::Echo);
        world.open(1000);
        world.data(1000, b"still there");
        world.run(50 * MS);
        prop_assert_eq!(&world.seen[&1000].bytes, b"still there");
    }

    #[test]
    fn noise_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200), start in 0usize..4) {
        let mut link = Link::new(LinkConfig::default());
        conn_open(&mut link, 0, PORT, MS);
        frames(&mut link, MS);
        let mut frame = Vec::new();
        if start > 0 {
            frame.extend(GATEWAY_MAC);
            frame.extend(GUEST_MAC);
            frame.extend(if start == 1 { [8, 6] } else { [8, 0] });
        }
        if start == 3 {
            let length = (20 + bytes.len()) as u16;
            frame.extend([0x45, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
            // To and from the ports of the connection, often enough.
            frame.extend([0, 80, 4, 0]);
        }
        frame.extend(bytes);
        link.frame(&frame, 2 * MS);
        link.poll(3 * MS, 10, &mut Vec::new());
        prop_assert!(link.connections() <= 1);
    }
}

#[test]
fn what_the_guest_opens_is_refused() {
    // The endpoint's own SYN, turned round, is one of the guest's.
    let mut link = Link::new(LinkConfig::default());
    conn_open(&mut link, 0, PORT, MS);
    let mut syn = frames(&mut link, MS).remove(0);
    syn[..6].copy_from_slice(&GATEWAY_MAC);
    syn[6..12].copy_from_slice(&GUEST_MAC);
    let (left, right) = syn.split_at_mut(30);
    left[26..30].swap_with_slice(&mut right[..4]);
    link.frame(&syn, MS);
    let answer = frames(&mut link, MS);
    assert_eq!(answer.len(), 1);
    assert_eq!(answer[0][47] & 4, 4, "a reset");
    assert_eq!(link.counters().outgoing_refused, 1);
    assert_eq!(link.events(), []);
    for _ in 0..2 * MAX_REPLIES {
        link.frame(&syn, MS);
    }
    assert_eq!(frames(&mut link, MS).len(), MAX_REPLIES);
    assert_eq!(link.counters().replies_dropped, MAX_REPLIES as u64);
}

/// A guest that sends more than it was allowed to.
#[test]
fn the_window_is_kept() {
    let config = LinkConfig {
        receive_window: 4096,
        ..LinkConfig::default()
    };
    let mut world = World::new(config, Guest::new(65536, Program::Echo));
    world.takes = false;
    world.open(0);
    world.data(0, &[7; 100]);
    world.run(10 * MS);
    let template = world
        .frames
        .iter()
        .find(|frame| frame[..6] == GATEWAY_MAC && frame.len() > 100)
        .unwrap()
        .clone();
    let payload = template.len() - 100;
    for round in 0..500_u32 {
        let mut frame = template.clone();
        let seq = u32::from_be_bytes(frame[38..42].try_into().unwrap());
        frame[38..42].copy_from_slice(&(seq + 100 * round).to_be_bytes());
        frame[47] &= !1;
        frame.truncate(payload + 100);
        world.link.frame(&frame, world.now);
    }
    let received = world.link.received(0).unwrap();
    assert_eq!(received, 4096);
}
