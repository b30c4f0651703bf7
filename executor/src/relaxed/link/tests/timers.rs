//! Silence, and what is done about it.

use super::guest::*;
use super::*;

#[test]
fn a_silent_guest_is_given_up() {
    let mut link = Link::new(LinkConfig::default());
    conn_open(&mut link, 0, PORT, MS);
    let mut syns = 0;
    let mut now = MS;
    while link.connections() > 0 {
        syns += frames(&mut link, now).len();
        now = link.deadline_ns().unwrap_or(now).max(now);
    }
    assert!((9..14).contains(&syns), "{syns} SYNs and a reset");
    assert_eq!(now, MS + CONNECT_TIMEOUT_NS);
    assert_eq!(link.events(), [FromGuest::Refused { conn: 0 }]);
    assert_eq!(link.deadline_ns(), None);
}

#[test]
fn a_guest_that_goes_silent_later_is_given_up_too() {
    let mut world = World::new(LinkConfig::default(), Guest::new(65536, Program::Echo));
    world.open(0);
    world.run(10 * MS);
    world.loss = 100;
    world.data(0, b"x");
    let start = world.now;
    world.run(300_000 * MS);
    assert!(world.seen[&0].reset);
    let sent = world.frames.len();
    assert!(sent < 40, "{sent}");
    assert!(world.now > start + 60_000 * MS);
}

/// A shut window is probed for as long as the guest answers.
#[test]
fn a_busy_guest_is_waited_for() {
    let talk = Program::Talk { read: 0, send: 1 };
    let mut world = World::new(LinkConfig::default(), Guest::new(1000, talk));
    world.open(0);
    world.data(0, &(0..3000).map(pattern).collect::<Vec<_>>());
    world.run(600_000 * MS);
    assert!(!world.seen[&0].reset);
    assert!(world.link.counters().retransmissions > 50);
    assert_eq!(world.guest.any(1024).received.len(), 0);
    world.guest.program = Program::Talk { read: 100, send: 1 };
    // The probe that was behind the window is not waited for: the timer has long been at its longest.
    let probes = world.link.counters().retransmissions;
    world.run(20_000 * MS);
    assert!(world.link.counters().retransmissions <= probes + 2);
    let received = &world.guest.any(1024).received;
    assert_eq!(received.len(), 3000);
    assert!(
        received
            .iter()
            .enumerate()
            .all(|(at, &byte)| byte == pattern(at))
    );
}

#[test]
fn acknowledgements_wait_for_data_to_travel_with() {
    let talk = Program::Talk { read: 0, send: 100 };
    let mut world = World::new(LinkConfig::default(), Guest::new(65536, talk));
    world.open(0);
    while !world.seen.get(&0).is_some_and(|seen| seen.shut) {
        world.step();
    }
    let mut world = World::new(LinkConfig::default(), Guest::new(65536, Program::Echo));
    world.open(0);
    world.data(0, b"x");
    world.run(100 * MS);
    world.data(0, b"y");
    assert_eq!(world.step(), 2);
    assert_eq!(world.step(), 0, "no acknowledgement yet");
    let at = world.link.deadline_ns().unwrap();
    assert!(at <= world.now + ACK_DELAY_NS);
    world.now += ACK_DELAY_NS;
    assert_eq!(frames(&mut world.link, world.now).len(), 1);
}

/// The guest does not acknowledge the end of a connection that everybody has left.
#[test]
fn an_orphan_is_forgotten() {
    let talk = Program::Talk {
        read: usize::MAX,
        send: 10,
    };
    let mut world = World::new(LinkConfig::default(), Guest::new(65536, talk));
    world.open(0);
    world.run(50 * MS);
    assert!(world.seen[&0].shut);
    world.loss = 100;
    world.input(ToGuest::Shut { conn: 0 });
    world.run(2 * ORPHAN_TIMEOUT_NS);
    assert_eq!(world.link.connections(), 0);
    assert!(!world.seen[&0].reset, "the client has all it was to have");
}
