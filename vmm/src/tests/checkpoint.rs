//! Checkpoints: what was taken and put back goes on as if nothing had been.

use super::checkpoint_file::{file, take_apart};
use super::guest::{Command, Does};
use super::machine::{boundary, config, entry, kvm};
use crate::*;
use proptest::prelude::*;
use std::io::Write;
use std::sync::Arc;

/// The entry that tells [`Does::Work`] what to do.
pub fn order(command: Command, count: u64, argument: u64) -> Arc<Entry> {
    Arc::new(Entry {
        realtime_ns: argument,
        flags: command as u64 | count << 8,
        ..Entry::default()
    })
}

/// Gives an order and returns the digest.
pub fn work(machine: &mut Machine, command: Command, count: u64, argument: u64) -> [u64; 2] {
    machine
        .resume(&order(command, count, argument), &mut NoDisks)
        .unwrap();
    match boundary(machine.run()).outputs.as_slice() {
        [Output::Fingerprint { digest, .. }] => *digest,
        other => panic!("{other:?}"),
    }
}

/// A machine with its writes tracked, at its first boundary.
pub fn started(does: Does) -> Machine {
    let mut machine = Machine::new(&kvm(), &config(does)).unwrap();
    machine.track_dirty().unwrap();
    boundary(machine.run());
    machine
}

/// Runs a number of boundaries and returns what was seen at them.
pub fn go_on(machine: &mut Machine, from: u64, count: u64) -> Vec<Boundary> {
    (from..from + count)
        .map(|at| {
            machine.resume(&entry(1000 + at), &mut NoDisks).unwrap();
            boundary(machine.run())
        })
        .collect()
}

fn pages(checkpoint: &Checkpoint) -> Vec<(u64, Vec<u8>)> {
    let pages = checkpoint.pages();
    pages.map(|(at, page)| (at, page.to_vec())).collect()
}

/// Everything that is in a checkpoint, by name.
pub fn sections(checkpoint: &Checkpoint) -> Vec<(&'static str, Vec<u8>)> {
    let parts = take_apart(&file(checkpoint)).into_iter();
    parts
        .map(|(name, frames)| (name, frames.concat()))
        .collect()
}

/// Both are the same state.
pub fn assert_same(one: &Checkpoint, two: &Checkpoint) {
    assert_eq!(one.boundary(), two.boundary());
    assert_eq!(one.registers(), two.registers());
    assert_eq!(one.devices(), two.devices());
    assert_eq!(pages(one), pages(two));
}

#[test]
fn a_restored_machine_goes_on_as_before() {
    let mut machine = started(Does::Echo);
    go_on(&mut machine, 0, 5);
    let (first, _) = machine.checkpoint(None).unwrap();
    assert_eq!(first.boundary(), 5);
    let seen = go_on(&mut machine, 5, 10);
    let (last, _) = machine.checkpoint(Some(&first)).unwrap();
    for how in [Restore::Verified, Restore::Dirty, Restore::Verified] {
        machine.restore(&first, how).unwrap();
        assert_eq!(go_on(&mut machine, 5, 10), seen);
        let (again, _) = machine.checkpoint(None).unwrap();
        assert_same(&last, &again);
    }
}

#[test]
fn it_can_be_restored_on_a_fresh_machine() {
    let mut machine = started(Does::Echo);
    go_on(&mut machine, 0, 5);
    let (first, _) = machine.checkpoint(None).unwrap();
    let seen = go_on(&mut machine, 5, 10);
    let (last, _) = machine.checkpoint(Some(&first)).unwrap();
    drop(machine);
    for tracked in [true, false] {
        let mut other = Machine::new(&kvm(), &config(Does::Echo)).unwrap();
        if tracked {
            other.track_dirty().unwrap();
        }
        other.restore(&first, Restore::Verified).unwrap();
        assert_eq!(go_on(&mut other, 5, 10), seen);
        let (again, pause) = other.checkpoint(Some(&first)).unwrap();
        assert_eq!(pause.full, !tracked);
        assert_same(&last, &again);
    }
}

#[test]
fn whatever_became_of_the_machine_it_is_good_again() {
    type Harm = fn(&mut Machine);
    let harms: [(&str, Harm); 5] = [
        ("crash", |machine| {
            machine.crash().unwrap();
            assert!(matches!(machine.run(), Outcome::Crash(_)));
        }),
        ("hang", |machine| {
            machine.set_rip_spin().unwrap();
            machine.kicker().kick();
            assert_eq!(machine.run(), Outcome::Kicked);
        }),
        ("registers", |machine| {
            for name in Register::names().filter(|&name| name != "rflags") {
                machine.flip_register(name.parse().unwrap(), 3).unwrap();
            }
            machine.run();
        }),
        ("memory", |machine| {
            for at in (0..machine.ram_end()).step_by(65536) {
                machine.flip_memory(at, 5).unwrap();
            }
            machine.run();
        }),
        ("half done", |machine| {
            boundary(machine.run());
        }),
    ];
    let mut machine = started(Does::Echo);
    go_on(&mut machine, 0, 5);
    let (first, _) = machine.checkpoint(None).unwrap();
    let seen = go_on(&mut machine, 5, 5);
    let (last, _) = machine.checkpoint(Some(&first)).unwrap();
    for (name, harm) in harms {
        machine.resume(&entry(7), &mut NoDisks).unwrap();
        harm(&mut machine);
        machine.dump().unwrap();
        machine.restore(&first, Restore::Verified).unwrap();
        assert_eq!(go_on(&mut machine, 5, 5), seen, "{name}");
        let (again, _) = machine.checkpoint(Some(&first)).unwrap();
        assert_same(&last, &again);
    }
}

#[test]
fn page_tables_that_changed_since_are_not_remembered() {
    let (one, two) = (3 << 20 | 1 << 12, 5 << 20);
    let mut config = config(Does::Work);
    config.layout_seed = [9; 32];
    for how in [Restore::Verified, Restore::Dirty] {
        let mut machine = Machine::new(&kvm(), &config).unwrap();
        machine.track_dirty().unwrap();
        boundary(machine.run());
        work(&mut machine, Command::Touch, 1, one);
        work(&mut machine, Command::Touch, 1, two);
        work(&mut machine, Command::Touch, 1, two);
        assert_eq!(work(&mut machine, Command::Map, 0, one)[0], 1);
        let (first, _) = machine.checkpoint(None).unwrap();
        assert_eq!(work(&mut machine, Command::Map, 0, two)[0], 2);
        machine.restore(&first, how).unwrap();
        assert_eq!(work(&mut machine, Command::Read, 0, 0)[0], 1, "{how:?}");
    }
}

#[test]
fn idle_pages_are_left_alone_until_they_are_written_again() {
    const PAGES: u64 = 300;
    let at = 8 << 20;
    let mut config = config(Does::Work);
    config.layout_seed = [9; 32];
    let mut machine = Machine::new(&kvm(), &config).unwrap();
    machine.track_dirty().unwrap();
    boundary(machine.run());
    work(&mut machine, Command::Touch, PAGES, at);
    let (mut last, first) = machine.checkpoint(None).unwrap();
    assert!(first.dirty_pages >= PAGES);
    let early = last.clone();
    let mut compared = Vec::new();
    for _ in 0..20 {
        work(&mut machine, Command::Touch, 1, at);
        let (next, pause) = machine.checkpoint(Some(&last)).unwrap();
        last = next;
        assert!(pause.dirty_pages < 20, "{pause:?}");
        compared.push(pause.compared_pages);
    }
    assert!(compared[0] > PAGES && compared[19] < 20, "{compared:?}");
    // One of the pages that nobody looks at any more; and a restore by the log that has to know of pages of long ago.
    work(&mut machine, Command::Touch, 2, at + 100 * 4096);
    let (after, pause) = machine.checkpoint(Some(&last)).unwrap();
    assert!(pause.dirty_pages >= 2);
    assert_same(&after, &machine.dump().unwrap());
    for _ in 0..20 {
        work(&mut machine, Command::Touch, 1, at);
        last = machine.checkpoint(Some(&after)).unwrap().0;
    }
    let (now, _) = machine.checkpoint(Some(&last)).unwrap();
    machine.restore(&early, Restore::Dirty).unwrap();
    assert_same(&early, &machine.dump().unwrap());
    // And forward again, to one that the machine has gone back from.
    machine.restore(&now, Restore::Dirty).unwrap();
    assert_same(&now, &machine.dump().unwrap());
}

#[test]
fn what_the_vmm_wrote_before_the_last_checkpoint_is_put_back_too() {
    let mut machine = started(Does::Work);
    let reserved = machine.boot.reserved;
    let at = if reserved.start > 4 << 20 {
        0x20_0000
    } else {
        reserved.start + reserved.len
    };
    let (first, _) = machine.checkpoint(None).unwrap();
    machine.flip_memory(at, 1).unwrap();
    machine.checkpoint(Some(&first)).unwrap();
    machine.restore(&first, Restore::Dirty).unwrap();
    assert_same(&first, &machine.dump().unwrap());
}

#[test]
fn the_guest_may_write_while_pages_are_copied_in_the_background() {
    let mut machine = started(Does::Work);
    work(&mut machine, Command::Scribble, 5_000, 1);
    for round in 0..5 {
        let job = machine.precopy().unwrap().unwrap();
        assert!(job.pages() > 100);
        let copying = std::thread::spawn(|| job.run());
        work(&mut machine, Command::Scribble, 5_000, 2 + round);
        if round % 2 == 0 {
            copying.join().unwrap();
        }
        let (now, pause) = machine.checkpoint(None).unwrap();
        assert!(!pause.full || round > 0);
        assert_same(&now, &machine.dump().unwrap());
        // Without a checkpoint between them there is one background copy at a time.
        assert!(machine.precopy().unwrap().is_some());
        assert!(machine.precopy().unwrap().is_none());
        work(&mut machine, Command::Scribble, 10, 2 + round);
        let (now, _) = machine.checkpoint(Some(&now)).unwrap();
        assert_same(&now, &machine.dump().unwrap());
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// The guest writes and reads this many words of memory, drawn from a seed.
    Scribble(u64, u64),
    /// The guest writes a byte of the image.
    Image(u64, u8),
    /// The VMM writes, as devices do.
    Vmm(u64, u8),
    /// A checkpoint, with the pages copied in the background before, or not, or not in time.
    Checkpoint(Option<bool>),
    /// Back to the checkpoint that is that many before the last.
    Restore(usize, Restore),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u64..40, any::<u64>()).prop_map(|(count, seed)| Step::Scribble(count, seed)),
        1 => (0u64..9000, any::<u8>()).prop_map(|(at, value)| Step::Image(at, value)),
        1 => (0x20_0000u64 / 4096..(32 << 20) / 4096, 0u8..8)
            .prop_map(|(page, bit)| Step::Vmm(page * 4096, bit)),
        3 => prop::option::of(any::<bool>()).prop_map(Step::Checkpoint),
        1 => (0usize..3, any::<bool>()).prop_map(|(back, verified)| {
            Step::Restore(back, if verified { Restore::Verified } else { Restore::Dirty })
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// By the logs or by looking at everything, with background copies or without, after restores of both kinds: a
    /// checkpoint always has all of memory, and a restore always brings it all back.
    #[test]
    fn incremental_equals_full(
        steps in prop::collection::vec(step(), 1..25),
        late in any::<bool>(),
        manual in any::<bool>(),
    ) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0x5a; 9000]).unwrap();
        let mut config = config(Does::Work);
        config.image = Some(Arc::new(file));
        let mut machine = Machine::new(&kvm(), &config).unwrap();
        let track = |machine: &mut Machine| match manual {
            true => machine.track_dirty().unwrap(),
            // As an older Linux does it.
            false => machine.track_dirty_with(false).unwrap(),
        };
        if late {
            boundary(machine.run());
            track(&mut machine);
        } else {
            track(&mut machine);
            boundary(machine.run());
        }
        // What the VMM writes must not hit what the guest runs on.
        let reserved = machine.boot.reserved;
        let mut taken: Vec<Checkpoint> = Vec::new();
        for step in steps.into_iter().chain([Step::Checkpoint(None)]) {
            match step {
                Step::Scribble(count, seed) => {
                    work(&mut machine, Command::Scribble, count, seed);
                }
                Step::Image(at, value) => {
                    let seen = work(&mut machine, Command::WriteImage, value.into(), at);
                    prop_assert_eq!(seen[0] as u8, value);
                }
                Step::Vmm(at, bit) => {
                    if !(reserved.start..reserved.start + reserved.len).contains(&at) {
                        machine.flip_memory(at, bit.into()).unwrap();
                    }
                }
                Step::Checkpoint(precopy) => {
                    if let Some(in_time) = precopy {
                        let job = machine.precopy().unwrap();
                        work(&mut machine, Command::Scribble, 10, 77);
                        if in_time {
                            job.into_iter().for_each(Precopy::run);
                        }
                        work(&mut machine, Command::Scribble, 10, 78);
                    }
                    let (now, _) = machine.checkpoint(taken.last()).unwrap();
                    let full = machine.dump().unwrap();
                    assert_same(&now, &full);
                    taken.push(now);
                }
                Step::Restore(back, how) => {
                    let Some(at) = taken.len().checked_sub(back + 1) else { continue };
                    machine.restore(&taken[at], how).unwrap();
                    assert_same(&taken[at], &machine.dump().unwrap());
                    taken.truncate(at + 1);
                }
            }
        }
    }
}
