//! Frames leave in the order of inputs, over all connections.

use super::guest::*;
use super::*;

fn warm(connections: u64, buffer: usize) -> World {
    let talk = Program::Talk {
        read: usize::MAX,
        send: 1,
    };
    let mut world = World::new(LinkConfig::default(), Guest::new(buffer, talk));
    for conn in 0..connections {
        world.open(conn);
    }
    world.run(20 * MS);
    world
}

/// The gateway ports and payloads of segments with data.
fn payloads(frames: &[Vec<u8>]) -> Vec<(u64, Vec<u8>)> {
    frames
        .iter()
        .filter(|frame| frame[23] == 6 && frame[47] & 2 == 0 && frame.len() > 54)
        .map(|frame| {
            let port = u16::from_be_bytes([frame[34], frame[35]]);
            (u64::from(port) - 1024, frame[54..].to_vec())
        })
        .collect()
}

#[test]
fn inputs_keep_their_order_over_all_connections() {
    let mut world = warm(3, 65536);
    let order = [
        (0, "a"),
        (1, "b"),
        (1, "c"),
        (0, "d"),
        (2, "e"),
        (0, "f"),
        (0, "g"),
    ];
    for (conn, text) in order {
        world.data(conn, text.as_bytes());
    }
    let sent = payloads(&frames(&mut world.link, world.now));
    let expected = [(0, "a"), (1, "bc"), (0, "d"), (2, "e"), (0, "fg")];
    let expected: Vec<_> = expected
        .map(|(conn, text)| (conn, text.as_bytes().to_vec()))
        .into();
    assert_eq!(sent, expected, "together only what was together");
}

#[test]
fn room_puts_off_and_does_not_reorder() {
    let mut world = warm(3, 65536);
    for round in 0..5_u8 {
        for conn in [2, 0, 1] {
            world.data(conn, &[round]);
        }
    }
    let mut sent = Vec::new();
    for _ in 0..15 {
        let mut frames = Vec::new();
        world.link.poll(world.now, 1, &mut frames);
        assert_eq!(frames.len(), 1);
        sent.extend(payloads(&frames));
    }
    let expected: Vec<_> = (0..5)
        .flat_map(|round| [2, 0, 1].map(|conn| (conn, vec![round])))
        .collect();
    assert_eq!(sent, expected);
}

#[test]
fn a_shut_window_delays_only_itself() {
    let talk = Program::Talk { read: 0, send: 1 };
    let mut world = World::new(LinkConfig::default(), Guest::new(100, talk));
    for conn in 0..2 {
        world.open(conn);
    }
    world.run(20 * MS);
    world.data(0, &[0; 150]);
    world.data(1, b"x");
    let sent = payloads(&frames(&mut world.link, world.now));
    assert_eq!(sent, [(0, vec![0; 100]), (1, b"x".to_vec())]);
}

#[test]
fn a_new_connection_holds_what_came_after_its_first_bytes() {
    let mut world = warm(1, 65536);
    world.data(0, b"a");
    world.open(1);
    world.data(1, b"b");
    world.data(0, b"c");
    world.input(ToGuest::Datagram {
        flow: 0,
        guest_port: 53,
        bytes: b"d"[..].into(),
    });
    let first = frames(&mut world.link, world.now);
    assert_eq!(payloads(&first)[0], (0, b"a".to_vec()));
    assert_eq!(first.len(), 2, "and a SYN");
    for frame in first {
        world.guest.receive(frame, world.now);
    }
    for frame in world.guest.step(world.now) {
        world.link.frame(&frame, world.now);
    }
    let second = frames(&mut world.link, world.now);
    let sent = payloads(&second);
    assert_eq!(sent[..2], [(1, b"b".to_vec()), (0, b"c".to_vec())]);
    assert_eq!(second[2][23], 17, "the datagram last");
}

/// The delay is bounded, and does not come again before a connection was accepted.
#[test]
fn a_connection_that_is_not_accepted_delays_others_once() {
    let mut world = warm(1, 65536);
    world.open(1);
    world.data(1, b"b");
    world.data(0, b"c");
    assert!(payloads(&frames(&mut world.link, world.now)).is_empty());
    let now = world.now + HANDSHAKE_HOLD_NS;
    assert!(world.link.deadline_ns().unwrap() <= now);
    assert_eq!(
        payloads(&frames(&mut world.link, now)),
        [(0, b"c".to_vec())]
    );
    conn_open(&mut world.link, 2, PORT, now);
    data(&mut world.link, 2, b"d", now);
    data(&mut world.link, 0, b"e", now);
    assert_eq!(
        payloads(&frames(&mut world.link, now)),
        [(0, b"e".to_vec())]
    );
}

#[test]
fn a_reset_comes_after_what_came_before_it() {
    let mut world = warm(2, 65536);
    world.data(0, b"a");
    world.input(ToGuest::Reset { conn: 0 });
    world.data(1, b"b");
    let sent = frames(&mut world.link, world.now);
    let resets: Vec<bool> = sent.iter().map(|frame| frame[47] & 4 != 0).collect();
    assert_eq!(resets, [false, true, false]);
}

#[test]
fn datagrams_find_their_flow() {
    let mut link = Link::new(LinkConfig::default());
    for flow in [70_000, 70_001] {
        let bytes = b"question"[..].into();
        link.input(
            ToGuest::Datagram {
                flow,
                guest_port: 53,
                bytes,
            },
            MS,
        );
    }
    let sent = frames(&mut link, MS);
    assert_eq!(sent.len(), 2);
    let ports = |frame: &[u8]| u16::from_be_bytes([frame[34], frame[35]]);
    for (frame, flow) in sent.iter().zip([70_000, 70_001]) {
        let mut answer = frame.clone();
        for (a, b) in [(0, 6), (26, 30)] {
            let (left, right) = answer.split_at_mut(b);
            left[a..a + (b - a)].swap_with_slice(&mut right[..b - a]);
        }
        answer.swap(34, 36);
        answer.swap(35, 37);
        assert_eq!(u64::from(ports(frame)), 1024 + flow % 64_512);
        link.frame(&answer, MS);
        let bytes = b"question".to_vec();
        assert_eq!(link.events(), [FromGuest::Datagram { flow, bytes }]);
    }
}
