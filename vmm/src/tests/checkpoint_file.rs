//! Checkpoints as files: what was written is read, and whatever is not what was written is refused by name.

use super::checkpoint::{assert_same, go_on, order, started, work};
use super::guest::{Command, Does};
use super::machine::{boundary, config, entry, kvm};
use crate::checkpoint::file::{FRAME, MAGIC, NAME, Reader, VERSION, Writer};
use crate::checkpoint::persist::SECTIONS;
use crate::*;
use proptest::prelude::*;
use std::io::Write;
use std::sync::{Arc, OnceLock};

pub fn file(checkpoint: &Checkpoint) -> Vec<u8> {
    let mut bytes = Vec::new();
    checkpoint.write_to(&mut bytes).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::read_from(&mut &*bytes)
}

fn refusal(bytes: &[u8]) -> CheckpointError {
    read(bytes).expect_err("it must be refused")
}

/// A checkpoint's file, made once.
fn sample() -> &'static [u8] {
    static SAMPLE: OnceLock<Vec<u8>> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let mut machine = started(Does::Work);
        work(&mut machine, Command::Scribble, 20, 5);
        file(&machine.checkpoint(None).unwrap().0)
    })
}

/// The sections of a file, each with its frames.
pub type Parts = Vec<(&'static str, Vec<Vec<u8>>)>;

pub fn take_apart(bytes: &[u8]) -> Parts {
    let mut from = bytes;
    let mut reader = Reader::new(&mut from).unwrap();
    let mut parts = Parts::new();
    while let Some(name) = reader.next(&SECTIONS).unwrap() {
        let frames = std::iter::from_fn(|| reader.frame().unwrap()).collect();
        parts.push((name, frames));
    }
    parts
}

fn put_together(parts: &Parts) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes).unwrap();
    for (name, frames) in parts {
        writer.begin(name).unwrap();
        for frame in frames {
            writer.frame(frame).unwrap();
        }
        writer.end_section().unwrap();
    }
    writer.finish().unwrap();
    bytes
}

#[test]
fn a_file_is_as_good_as_the_checkpoint() {
    let mut image = tempfile::tempfile().unwrap();
    image.write_all(&[0x5a; 9000]).unwrap();
    let image = Arc::new(image);
    let mut config = config(Does::Work);
    config.image = Some(Arc::clone(&image));
    let mut machine = Machine::new(&kvm(), &config).unwrap();
    machine.track_dirty().unwrap();
    boundary(machine.run());
    work(&mut machine, Command::WriteImage, 3, 4097);
    work(&mut machine, Command::Scribble, 2_000, 5);
    let (first, _) = machine.checkpoint(None).unwrap();
    let seen = work(&mut machine, Command::Scribble, 30, 6);
    let (last, _) = machine.checkpoint(Some(&first)).unwrap();
    drop(machine);

    let bytes = file(&first);
    let mut from = [bytes.as_slice(), b"something behind it"].concat();
    let mut from = &mut from[..] as &[u8];
    let again = Checkpoint::read_from(&mut from).unwrap();
    assert_eq!(from, b"something behind it");
    assert_same(&first, &again);
    assert_eq!(again.layout_seed(), config.layout_seed);
    assert!(again.at_boundary());
    assert_eq!(file(&again), bytes, "writing it again changes nothing");
    let mut other = Machine::new(&kvm(), &config).unwrap();
    other.restore(&again, Restore::Verified).unwrap();
    assert_eq!(work(&mut other, Command::Scribble, 30, 6), seen);
    assert_same(&last, &other.checkpoint(None).unwrap().0);

    // The image is read from its own file, but for the page that the guest changed.
    let at = quorate_abi::map::IMAGE_BASE;
    let mut two = [0; 2];
    again.read_phys(at + 4096, &mut two).unwrap();
    assert_eq!(two, [0x5a, 3]);
    assert!(again.read_phys(at, &mut two).is_err());
    let again = again.with_image(image).unwrap();
    again.read_phys(at + 8999, &mut two).unwrap();
    assert_eq!(two, [0x5a, 0]);
    let mut foreign = tempfile::tempfile().unwrap();
    foreign.write_all(&[0x5b; 9000]).unwrap();
    let foreign = Arc::new(foreign);
    assert!(again.with_image(Arc::clone(&foreign)).is_err());
    config.image = Some(foreign);
    let error = Machine::new(&kvm(), &config)
        .unwrap()
        .restore(&again, Restore::Verified)
        .unwrap_err();
    assert!(error.to_string().contains("root image"), "{error}");
}

#[test]
fn a_dump_of_a_lost_machine_can_be_written_and_read() {
    let mut machine = started(Does::Echo);
    go_on(&mut machine, 0, 3);
    machine.resume(&entry(1), &mut NoDisks).unwrap();
    machine.crash().unwrap();
    assert!(matches!(machine.run(), Outcome::Crash(_)));
    let dump = machine.dump().unwrap();
    let again = read(&file(&dump)).unwrap();
    assert_same(&dump, &again);
    assert!(!again.at_boundary());
    assert_eq!(again.boundary(), 4);
}

#[test]
fn sections_that_should_not_be_there_or_should_are_named() {
    let parts = take_apart(sample());
    assert_eq!(
        put_together(&parts),
        sample(),
        "the tools of this test are sound"
    );
    for (at, (name, _)) in parts.iter().enumerate() {
        let mut less = parts.clone();
        less.remove(at);
        let done = read(&put_together(&less));
        match (done, *name) {
            (Ok(_), "xcrs") => {}
            (Err(CheckpointError::Missing(missing)), name) if missing == name => {}
            other => panic!("without {name}: {other:?}"),
        }
        let mut more = parts.clone();
        more.insert(at + 1, parts[at].clone());
        let error = refusal(&put_together(&more));
        assert!(
            matches!(error, CheckpointError::Repeated(twice) if twice == *name),
            "twice {name}: {error}"
        );
        let mut other = parts.clone();
        other.insert(at, ("something new", vec![vec![1]]));
        let error = refusal(&put_together(&other));
        assert!(
            matches!(&error, CheckpointError::Unknown(name) if name == "something new"),
            "{error}"
        );
    }
}

#[test]
fn every_section_is_checked_and_named() {
    // Each byte of each section's first frame, one after the other would take long: the first, the last, one between.
    let mut at = MAGIC.len() + 4;
    for (name, frames) in take_apart(sample()) {
        let frame_at = at + NAME;
        let stored = u32::from_le_bytes(sample()[frame_at..frame_at + 4].try_into().unwrap());
        let body = frame_at + 40;
        for flipped in [body, body + stored as usize / 2, body + stored as usize - 1] {
            let mut bytes = sample().to_vec();
            bytes[flipped] ^= 0x10;
            let error = refusal(&bytes);
            assert!(
                matches!(error, CheckpointError::Damaged { section, .. } if section == name),
                "{name}: {error}"
            );
            assert!(error.to_string().contains(name));
        }
        let cut = &sample()[..body + stored as usize - 1];
        let error = refusal(cut);
        assert!(
            matches!(&error, CheckpointError::Truncated(section) if section == name),
            "{name}: {error}"
        );
        // Over all frames, and the empty one.
        at = frame_at;
        for _ in 0..=frames.len() {
            let stored = u32::from_le_bytes(sample()[at..at + 4].try_into().unwrap());
            at += 40 + stored as usize;
        }
    }
}

#[test]
fn other_files_and_other_versions_are_refused() {
    assert!(matches!(refusal(b"hello, world"), CheckpointError::Magic));
    assert!(matches!(refusal(b""), CheckpointError::Truncated(_)));
    let mut newer = sample().to_vec();
    newer[8..12].copy_from_slice(&(VERSION + 1).to_le_bytes());
    let error = refusal(&newer).to_string();
    let (found, known) = (VERSION + 1, VERSION);
    assert!(
        error.contains(&format!("version {found}")) && error.contains(&format!("version {known}")),
        "{error}"
    );
}

#[test]
fn lengths_are_not_believed() {
    for field in [0, 4] {
        let mut bytes = sample().to_vec();
        let at = MAGIC.len() + 4 + NAME + field;
        bytes[at..at + 4].fill(0xff);
        let error = refusal(&bytes);
        assert!(error.to_string().contains("beyond the limit"), "{error}");
    }
    // One kind of damage that has a right checksum: a section that is longer than it can be.
    let mut parts = take_apart(sample());
    parts[1].1 = vec![vec![0; FRAME]; 150];
    assert!(
        refusal(&put_together(&parts))
            .to_string()
            .contains("longer")
    );
}

#[test]
fn pages_where_none_can_be_are_refused() {
    let page = |range: u32, at: u64| {
        [
            &range.to_le_bytes()[..],
            &1_u32.to_le_bytes(),
            &at.to_le_bytes(),
            &[7; 4096],
        ]
        .concat()
    };
    for frames in [
        vec![page(1, 0)],
        vec![page(0, 32 << 8)],
        vec![page(0, u64::MAX)],
        vec![page(0, 5), page(0, 5)],
        vec![page(0, 5), page(0, 4)],
        vec![page(0, 5)[..4000].to_vec()],
        vec![vec![0; 3]],
    ] {
        let mut parts = take_apart(sample());
        parts.last_mut().unwrap().1 = frames;
        let error = refusal(&put_together(&parts));
        assert!(
            matches!(
                error,
                CheckpointError::Damaged {
                    section: "memory",
                    ..
                }
            ),
            "{error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_flipped_byte_goes_unnoticed(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = sample().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(read(&bytes).is_err(), "byte {at}");
    }

    #[test]
    fn no_cut_goes_unnoticed(at in any::<prop::sample::Index>()) {
        let bytes = sample();
        prop_assert!(read(&bytes[..at.index(bytes.len())]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Contents that nobody wrote, with right checksums: refused when read, or when restored, or harmless; never a panic.
    #[test]
    fn forged_contents_do_no_harm(
        section in 0..SECTIONS.len() - 1,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut parts = take_apart(sample());
        let name = parts[section % parts.len()].0;
        let frame = &mut parts.iter_mut().find(|(known, _)| *known == name).unwrap().1[0];
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        if let Ok(checkpoint) = read(&put_together(&parts)) {
            let mut machine = Machine::new(&kvm(), &config(Does::Work)).unwrap();
            if machine.restore(&checkpoint, Restore::Verified).is_ok() {
                machine.kicker().kick();
                if machine.resume(&order(Command::Touch, 1, 0x20_0000), &mut NoDisks).is_ok() {
                    machine.run();
                }
            }
        }
    }
}
