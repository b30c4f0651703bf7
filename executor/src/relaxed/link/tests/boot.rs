//! A guest whose server starts later than its network.

use super::guest::*;
use super::*;

const BOOT: u64 = 60_000 * MS;

fn config() -> LinkConfig {
    LinkConfig {
        listens: vec![PORT],
        boot_ns: BOOT,
        ..LinkConfig::default()
    }
}

fn booting() -> World {
    let mut world = World::new(config(), Guest::new(65536, Program::Echo));
    world.guest.listening = false;
    world
}

#[test]
fn connections_wait_until_the_guest_listens() {
    let mut world = booting();
    for conn in 0..3 {
        world.open(conn);
        world.data(conn, &[conn as u8; 100]);
    }
    world.run(40_000 * MS);
    assert!(world.seen.is_empty(), "longer than CONNECT_TIMEOUT_NS");
    assert!(world.listens.is_empty());
    let probes = world.frames.len();
    assert!((60..130).contains(&probes), "{probes} probes and refusals");
    world.guest.listening = true;
    world.run(2 * MAX_PROBE_NS);
    assert_eq!(world.listens, [PORT]);
    for conn in 0..3 {
        assert!(world.seen[&conn].opened);
        assert_eq!(world.seen[&conn].bytes, [conn as u8; 100]);
    }
    let order: Vec<u16> = world.guest.log.iter().map(|(port, _)| *port).collect();
    assert_eq!(order, [0, 1, 2].map(|conn| world.port(conn)));
    // From here on it is as ever.
    world.open(3);
    world.run(10 * MS);
    assert!(world.seen[&3].opened);
    world.guest.listening = false;
    world.open(4);
    world.run(10 * MS);
    assert!(world.seen[&4].refused, "it has listened before");
    assert_eq!(world.listens, [PORT], "told once");
}

/// A half-open connection is taken back: the guest's program never hears of it.
#[test]
fn a_probe_is_no_connection() {
    let mut world = World::new(config(), Guest::new(65536, Program::Echo));
    world.run(100 * MS);
    assert_eq!(world.listens, [PORT]);
    assert!(world.guest.log.is_empty() && world.seen.is_empty());
    let frames = &world.frames;
    let flags: Vec<u8> = frames
        .iter()
        .filter(|frame| frame[23] == 6)
        .map(|frame| frame[47] & 0x17)
        .collect();
    let (syn, ack, rst) = (0x02, 0x10, 0x04);
    assert_eq!(flags, [syn, syn | ack, rst | (flags[2] & ack)]);
    assert!(world.link.is_quiet() && world.link.deadline_ns().is_none());
}

#[test]
fn nobody_will_ever_listen() {
    let mut world = booting();
    world.open(0);
    world.data(0, b"hello");
    world.run(BOOT - MS);
    assert!(world.seen.is_empty());
    world.run(100 * MS);
    assert!(world.seen[&0].refused, "at once when the time is over");
    world.open(1);
    world.run(10 * MS);
    assert!(world.seen[&1].refused);
    assert!(world.listens.is_empty());
    assert_eq!(world.link.deadline_ns(), None, "nothing is probed any more");
}

/// The same if its network is not up either; but then only the connection's own timeout tells.
#[test]
fn a_guest_that_never_answers_is_given_up() {
    let mut link = Link::new(config());
    conn_open(&mut link, 0, PORT, 0);
    let mut now = 0;
    while link.connections() > 0 {
        frames(&mut link, now);
        now = link.deadline_ns().unwrap_or(now).max(now + 1);
    }
    assert_eq!(link.events(), [FromGuest::Refused { conn: 0 }]);
    assert!((BOOT + CONNECT_TIMEOUT_NS..BOOT + 2 * CONNECT_TIMEOUT_NS).contains(&now));
}

#[test]
fn ports_that_are_not_waited_for_are_refused_at_once() {
    let mut world = booting();
    world.input(ToGuest::Open {
        conn: 0,
        guest_port: NOBODY,
    });
    world.run(10 * MS);
    assert!(world.seen[&0].refused);
}

/// The clients that have gone in the meantime are not shown to the guest.
#[test]
fn who_leaves_before_the_guest_listens_was_never_there() {
    let mut world = booting();
    for conn in 0..2 {
        world.open(conn);
        world.data(conn, b"x");
    }
    world.run(1000 * MS);
    world.input(ToGuest::Reset { conn: 0 });
    world.input(ToGuest::Shut { conn: 1 });
    assert_eq!(world.link.connections(), 1);
    world.guest.listening = true;
    world.run(2 * MAX_PROBE_NS);
    assert!(world.seen[&0].refused && !world.guest.conns.contains_key(&world.port(0)));
    assert_eq!(world.guest.any(world.port(1)).received, b"x");
    assert!(world.seen[&1].shut);
}

/// It knows after a restore what it knew, and waits as long as it would have.
#[test]
fn what_is_known_is_saved() {
    let again = |link: &Link, now| {
        let text = serde_json::to_string(&link.save()).unwrap();
        Link::restore(serde_json::from_str(&text).unwrap(), now).unwrap()
    };
    let mut world = booting();
    world.open(0);
    world.data(0, b"x");
    world.run(BOOT / 2);
    let then = world.link.clone();
    let before = world.now;
    world.now += 10 * BOOT;
    world.link = again(&then, world.now);
    world.run(BOOT / 2 - MS);
    assert!(world.seen.is_empty());
    world.run(1000 * MS);
    assert!(world.seen[&0].refused);

    let mut world = booting();
    world.now = before;
    world.link = again(&then, before);
    world.guest.listening = true;
    world.run(2 * MAX_PROBE_NS);
    assert_eq!(world.seen[&0].bytes, b"x");
    world.link = again(&world.link, world.now);
    world.guest.listening = false;
    world.open(1);
    world.run(10 * MS);
    assert!(world.seen[&1].refused && world.listens == [PORT]);
}

/// R9: nothing that the guest says to a probe is more than that.
#[test]
fn forged_answers_to_probes_change_nothing() {
    let mut world = booting();
    world.open(0);
    let probe = frames(&mut world.link, world.now).remove(0);
    let forged = |flags: u8, ack: u32| {
        let mut frame = probe.clone();
        frame.swap(0, 6);
        for (at, byte) in probe[6..12].iter().enumerate() {
            frame[at] = *byte;
            frame[at + 6] = probe[at];
        }
        for at in 0..4 {
            frame.swap(26 + at, 30 + at);
        }
        for at in 0..2 {
            frame.swap(34 + at, 36 + at);
        }
        frame[42..46].copy_from_slice(&ack.to_be_bytes());
        frame[47] = flags;
        frame
    };
    let iss = u32::from_be_bytes(probe[38..42].try_into().unwrap());
    for (flags, ack) in [(0x12, iss), (0x02, iss + 1), (0x10, iss + 1), (0x14, 7)] {
        world.link.frame(&forged(flags, ack), world.now);
        assert!(world.link.events().is_empty(), "{flags:#x}");
    }
    world
        .link
        .frame(&forged(0x12, iss.wrapping_add(1)), world.now);
    assert_eq!(
        world.link.events(),
        [FromGuest::Listens { guest_port: PORT }]
    );
}
