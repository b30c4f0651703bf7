//! What was saved goes on as if it had not been, and a guest that is put back goes on with an endpoint that is put back.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::guest::*;
use super::*;

#[derive(Clone, Debug)]
enum Act {
    Open,
    Data(u64, usize),
    Shut(u64),
    Reset(u64),
    Datagram(u64),
    Step,
    Pass(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => Just(Act::Open),
        5 => (0u64..6, 1usize..20_000).prop_map(|(conn, length)| Act::Data(conn, length)),
        1 => (0u64..6).prop_map(Act::Shut),
        1 => (0u64..6).prop_map(Act::Reset),
        1 => (0u64..6).prop_map(Act::Datagram),
        6 => Just(Act::Step),
        3 => (1u64..300).prop_map(Act::Pass),
    ]
}

/// Saved, put into words and restored; its time goes on from `now`, or where it was.
fn again(link: &Link, now: Option<u64>) -> Link {
    let text = serde_json::to_string(&link.save()).unwrap();
    let state: LinkState = serde_json::from_str(&text).unwrap();
    let now = now.unwrap_or(state.now_ns());
    Link::restore(state, now).unwrap()
}

/// Plays acts; saves and restores before those in `saves`. All frames and events.
fn play(acts: &[Act], saves: &[usize], loss: usize, buffer: usize) -> (Vec<Vec<u8>>, String) {
    let mut world = World::new(LinkConfig::default(), Guest::new(buffer, Program::Echo));
    world.loss = loss;
    world.room = 7;
    let mut opened = 0;
    for (index, act) in acts.iter().enumerate() {
        if saves.contains(&index) {
            world.link = again(&world.link, None);
        }
        match *act {
            Act::Open => {
                world.open(opened);
                opened += 1;
            }
            Act::Data(conn, length) => {
                if world.link.unsent(conn) < MAX_UNSENT / 2 {
                    world.data(conn, &vec![index as u8; length]);
                }
            }
            Act::Shut(conn) => world.input(ToGuest::Shut { conn }),
            Act::Reset(conn) => world.input(ToGuest::Reset { conn }),
            Act::Datagram(flow) => world.input(ToGuest::Datagram {
                flow,
                guest_port: 53,
                bytes: vec![index as u8; 9].into(),
            }),
            Act::Step => {
                world.step();
            }
            Act::Pass(ms) => world.now += ms * MS,
        }
    }
    world.loss = 0;
    for _ in 0..50 {
        world.step();
        world.now += 50 * MS;
    }
    let end = format!("{:?} {:?}", world.seen, world.link.counters());
    (world.frames, end)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn saving_changes_nothing(
        acts in prop::collection::vec(act(), 1..60),
        saves in prop::collection::vec(0usize..60, 1..6),
        loss in prop_oneof![Just(0usize), Just(20)],
        buffer in prop_oneof![Just(500usize), Just(65536)],
    ) {
        let plain = play(&acts, &[], loss, buffer);
        let saved = play(&acts, &saves, loss, buffer);
        prop_assert_eq!(plain.1, saved.1);
        prop_assert!(plain.0 == saved.0);
    }
}

/// The guest of a world as it was after its first `received` frames: smoltcp's sockets cannot be copied, but they are
/// deterministic.
struct Script {
    steps: Vec<(u64, Vec<Vec<u8>>)>,
}

impl Script {
    fn guest(&self) -> Guest {
        let mut guest = Guest::new(65536, Program::Echo);
        for (now, frames) in &self.steps {
            for frame in frames {
                guest.receive(frame.clone(), *now);
            }
            guest.step(*now);
        }
        guest
    }
}

/// A guest put back to an older state, with its endpoint put back to the same moment, goes on: the inputs since then are
/// fed again, later and all at once, and every stream is whole.
#[test]
fn both_put_back_go_on() {
    for saved_at in [1, 2, 3, 5, 9, 14, 20, 33] {
        let mut world = World::new(LinkConfig::default(), Guest::new(65536, Program::Echo));
        let mut script = Script { steps: Vec::new() };
        let mut checkpoint = None;
        let mut since = Vec::new();
        let mut sent: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for step in 0..40_u64 {
            if step == saved_at {
                checkpoint = Some((world.link.save(), world.seen.clone(), script.steps.len()));
            }
            let mut inputs = Vec::new();
            if step % 8 == 0 {
                inputs.push(ToGuest::Open {
                    conn: step / 8,
                    guest_port: PORT,
                });
            }
            let conn = step % (step / 8 + 1);
            let bytes: Vec<u8> = (0..1 + 700 * step)
                .map(|at| pattern((at + step) as usize))
                .collect();
            sent.entry(conn).or_default().extend(&bytes);
            inputs.push(ToGuest::Data {
                conn,
                bytes: bytes.into(),
            });
            for input in inputs {
                if checkpoint.is_some() {
                    since.push(input.clone());
                }
                world.input(input);
            }
            let down = frames(&mut world.link, world.now);
            for frame in &down {
                world.guest.receive(frame.clone(), world.now);
            }
            for frame in world.guest.step(world.now) {
                world.link.frame(&frame, world.now);
            }
            script.steps.push((world.now, down));
            world.look();
            world.now += MS;
        }
        let (state, seen, steps) = checkpoint.unwrap();
        script.steps.truncate(steps);
        let later = world.now + 100_000 * MS;
        // The guest's clock goes on with the world's: its timers may fire at once.
        world.guest = script.guest();
        world.link = Link::restore(state, later).unwrap();
        world.now = later;
        world.seen = seen;
        for input in since {
            world.input(input);
        }
        world.run(1000 * MS);
        for (conn, sent) in sent {
            assert!(
                world.seen[&conn].bytes == sent,
                "saved at {saved_at}, connection {conn}"
            );
        }
    }
}

#[test]
fn timers_have_as_long_to_go_as_they_had() {
    let mut link = Link::new(LinkConfig::default());
    conn_open(&mut link, 0, PORT, MS);
    frames(&mut link, 2 * MS);
    let left = link.deadline_ns().unwrap() - 2 * MS;
    let link = again(&link, Some(1_000_000 * MS));
    assert_eq!(link.deadline_ns(), Some(1_000_000 * MS + left));
}

#[test]
fn what_is_damaged_is_refused() {
    let mut world = World::new(
        LinkConfig::default(),
        Guest::new(1000, Program::Talk { read: 0, send: 5 }),
    );
    world.open(0);
    world.data(0, &[7; 5000]);
    world.run(10 * MS);
    let good = serde_json::to_value(world.link.save()).unwrap();
    let restore = |value: &serde_json::Value| {
        let state = serde_json::from_value(value.clone()).unwrap();
        Link::restore(state, 0).map(drop)
    };
    assert_eq!(restore(&good), Ok(()));
    let mut bad = good.clone();
    bad["version"] = 99.into();
    assert_eq!(restore(&bad), Err(RestoreLinkError::Version(99)));
    for (field, value) in [
        ("acked", 6000),
        ("base", 1),
        ("end", 10),
        ("taken", 50_000),
        ("mss", 1),
    ] {
        let mut bad = good.clone();
        bad["conns"][0][field] = value.into();
        assert!(restore(&bad).is_err(), "{field}");
    }
    let mut bad = good.clone();
    let conn = bad["conns"][0].clone();
    bad["conns"].as_array_mut().unwrap().push(conn);
    assert!(restore(&bad).is_err());
}
