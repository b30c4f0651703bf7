//! Checkpoints: what was taken and put back goes on as if nothing had been.

use super::guest::{Command, Does};
use super::machine::{boundary, config, entry, kvm};
use crate::*;
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
fn work(machine: &mut Machine, command: Command, count: u64, argument: u64) -> [u64; 2] {
    machine
        .resume(&order(command, count, argument), &mut NoDisks)
        .unwrap();
    match boundary(machine.run()).outputs.as_slice() {
        [Output::Fingerprint { digest, .. }] => *digest,
        other => panic!("{other:?}"),
    }
}

/// A machine with its writes tracked, at its first boundary.
fn started(does: Does) -> Machine {
    let mut machine = Machine::new(&kvm(), &config(does)).unwrap();
    machine.track_dirty().unwrap();
    boundary(machine.run());
    machine
}

/// Runs a number of boundaries and returns what was seen at them.
fn go_on(machine: &mut Machine, from: u64, count: u64) -> Vec<Boundary> {
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

/// Both are the same state.
fn assert_same(one: &Checkpoint, two: &Checkpoint) {
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
