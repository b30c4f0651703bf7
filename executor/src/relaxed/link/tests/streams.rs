//! What goes in on one side comes out on the other.

use proptest::prelude::*;

use super::guest::*;
use super::*;

#[test]
fn an_echo_goes_round() {
    let mut world = World::new(LinkConfig::default(), Guest::new(65536, Program::Echo));
    world.open(0);
    world.data(0, b"hello");
    world.run(10 * MS);
    assert_eq!(world.seen[&0].bytes, b"hello");
    world.input(ToGuest::Shut { conn: 0 });
    world.run(100 * MS);
    let seen = &world.seen[&0];
    assert!(seen.opened && seen.shut && !seen.reset);
    assert!(world.guest.any(1024).eof);
    assert_eq!(world.link.connections(), 0, "no TIME-WAIT");
    assert_eq!(world.link.unsent_total(), 0);
    assert_eq!(world.link.deadline_ns().filter(|&at| at <= world.now), None);
}

/// A request and its answer take one frame each once the connection is warm.
#[test]
fn a_request_takes_two_frames() {
    let mut world = World::new(LinkConfig::default(), Guest::new(65536, Program::Echo));
    world.open(0);
    world.data(0, b"warm");
    world.run(100 * MS);
    world.frames.clear();
    for _ in 0..10 {
        world.data(0, b"request");
        while world.seen[&0].bytes.len() % 7 != 4 || world.link.has_frames() {
            world.step();
        }
        world.step();
    }
    assert_eq!(world.frames.len(), 20);
}

#[test]
fn nobody_listens() {
    let mut world = World::new(LinkConfig::default(), Guest::new(65536, Program::Echo));
    world.input(ToGuest::Open {
        conn: 3,
        guest_port: NOBODY,
    });
    world.data(3, b"hello");
    world.run(10 * MS);
    assert!(world.seen[&3].refused);
    assert_eq!(world.link.connections(), 0);
    world.data(3, b"late");
    assert_eq!(world.link.counters().late_inputs, 1);
    assert_eq!(world.link.unsent_total(), 0);
}

#[test]
fn a_reset_of_the_guest_and_of_the_client() {
    let mut world = World::new(
        LinkConfig::default(),
        Guest::new(65536, Program::ResetAfter(3)),
    );
    world.open(0);
    world.data(0, b"abc");
    world.run(10 * MS);
    assert!(world.seen[&0].reset);
    world.open(1);
    world.data(1, b"ab");
    world.run(10 * MS);
    assert!(!world.seen[&1].reset);
    world.input(ToGuest::Reset { conn: 1 });
    world.run(10 * MS);
    assert_eq!(world.guest.gone[&1025].received, b"ab");
    assert_eq!((world.link.connections(), world.guest.conns.len()), (0, 0));
}

/// Whoever does not take what the guest says has at most a window of it.
#[test]
fn the_guest_waits_for_the_outside() {
    let config = LinkConfig {
        receive_window: 10_000,
        ..LinkConfig::default()
    };
    let talk = Program::Talk {
        read: 100,
        send: 100_000,
    };
    let mut world = World::new(config, Guest::new(65536, talk));
    world.takes = false;
    world.open(0);
    world.run(500 * MS);
    assert_eq!(world.seen[&0].bytes.len(), 10_000);
    assert_eq!(world.link.received(0), Some(10_000));
    let mut taken = 0;
    while !world.seen[&0].shut {
        let there = world.seen[&0].bytes.len() - taken;
        assert!(there <= 10_000);
        world.link.taken(0, there);
        taken += there;
        world.run(50 * MS);
    }
    let expected: Vec<u8> = (0..100_000).map(pattern).collect();
    assert!(world.seen[&0].bytes == expected);
}

#[test]
fn an_overrun_resets_the_connection() {
    let mut world = World::new(
        LinkConfig::default(),
        Guest::new(
            1000,
            Program::Talk {
                read: 0,
                send: 1 << 20,
            },
        ),
    );
    world.open(0);
    world.run(5 * MS);
    let piece = vec![1; MAX_UNSENT / 4];
    for _ in 0..4 {
        world.data(0, &piece);
    }
    world.step();
    assert!(!world.seen[&0].reset);
    world.data(0, &[1; 2000]);
    world.step();
    assert!(world.seen[&0].reset, "one too many");
    assert_eq!(world.link.unsent_total(), 0);
    assert_eq!(world.link.counters().overruns, 1);
}

#[derive(Clone, Debug)]
enum Act {
    Data(usize),
    Steps(usize),
    Wait(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (1usize..60_000).prop_map(Act::Data),
        1 => (1usize..100).prop_map(Act::Data),
        2 => (1usize..6).prop_map(Act::Steps),
        1 => (1u64..400).prop_map(Act::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Both streams arrive whole and in order, whatever the windows, the pieces, the room, and what is lost.
    #[test]
    fn streams_arrive(
        acts in prop::collection::vec((0u64..3, act()), 1..25),
        buffer in prop_oneof![Just(200usize), Just(3000), Just(65536), Just(300_000)],
        window in prop_oneof![Just(4096u32), Just(20_000), Just(256 * 1024)],
        read in prop_oneof![Just(50usize), Just(5000), Just(usize::MAX)],
        send in 0usize..40_000,
        loss in prop_oneof![Just(0usize), Just(0), Just(15)],
        room in prop_oneof![Just(1usize), Just(3), Just(usize::MAX)],
        seed in 1u64..u64::MAX,
        client_ends in any::<bool>(),
    ) {
        let config = LinkConfig { receive_window: window, seed, ..LinkConfig::default() };
        let mut world = World::new(config, Guest::new(buffer, Program::Talk { read, send }));
        world.loss = loss;
        world.room = room;
        world.random = Random(seed);
        let mut sent: [Vec<u8>; 3] = Default::default();
        for conn in 0..3 {
            world.open(conn);
        }
        for (conn, act) in acts {
            match act {
                Act::Data(length) => {
                    let stream = &mut sent[conn as usize];
                    let fits = world.link.unsent(conn) + length <= MAX_UNSENT;
                    // A guest that reads 50 bytes at a time is not to take all day.
                    if !fits || (read == 50 && stream.len() + length > 20_000) {
                        continue;
                    }
                    let bytes: Vec<u8> = (stream.len()..stream.len() + length).map(|at| pattern(at + conn as usize)).collect();
                    world.data(conn, &bytes);
                    stream.extend(bytes);
                }
                Act::Steps(steps) => (0..steps).for_each(|_| { world.step(); }),
                Act::Wait(ms) => world.run(ms * MS),
            }
        }
        if client_ends {
            for conn in 0..3 {
                world.input(ToGuest::Shut { conn });
            }
        }
        world.loss = 0;
        for _ in 0..100 {
            let done = |conn: u64| {
                let guest = &world.guest;
                let port = world.port(conn);
                let Some(guest) = guest.conns.get(&port).or_else(|| guest.gone.get(&port)) else {
                    return false;
                };
                world.seen.get(&conn).is_some_and(|seen| seen.shut)
                    && guest.received.len() == sent[conn as usize].len()
                    && (guest.eof || !client_ends)
            };
            if (0..3).all(done) {
                break;
            }
            world.run(1000 * MS);
        }
        // What was lost last is acknowledged after a timeout or two.
        world.run(20_000 * MS);
        for conn in 0..3 {
            let seen = &world.seen[&conn];
            let guest = world.guest.any(world.port(conn));
            prop_assert!(guest.received == sent[conn as usize], "{} of {}", guest.received.len(), sent[conn as usize].len());
            prop_assert!(seen.bytes.iter().enumerate().all(|(at, &byte)| byte == pattern(at)));
            prop_assert_eq!(seen.bytes.len(), send);
            prop_assert!(seen.shut && !seen.reset);
            prop_assert!(guest.eof || !client_ends);
        }
        prop_assert_eq!(world.link.unsent_total(), 0);
        if client_ends {
            prop_assert_eq!(world.link.connections(), 0);
        }
    }
}
