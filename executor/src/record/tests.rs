#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use quorate_devices::{BlockStatus, Completion, DiskConfig, Entry, Waiting};
use quorate_vmm::{LayoutKind, ProgramSpec, StartTime};

use super::codec::{self, JournalBlock};
use super::format::{BLOCK_HEAD, BlockHead, Fault, Kind, MAX_BLOCK_BYTES, SEGMENT_HEAD, seal};
use super::queue::QUEUE_BYTES;
use super::segment::{Segments, numbered};
use super::*;
use crate::channel as to;
use crate::egress::{Item, Tap};
use crate::events::Event;
use crate::fingerprint::ReleaseDigest;

fn header() -> Header {
    Header {
        quorate: "0".into(),
        name: "test".into(),
        appliance_path: "test.toml".into(),
        appliance: "version = 1".into(),
        image: ImageId {
            path: "image".into(),
            digest: [1; 32],
            length: 4096,
        },
        kernel: [2; 32],
        memory_bytes: 32 << 20,
        layout: LayoutKind::Random,
        input_seed: [3; 32],
        program: ProgramSpec::default(),
        start: StartTime::default(),
        disks: vec![DiskConfig {
            bytes: 1 << 20,
            read_only: false,
            id: "data".into(),
            sync: false,
        }],
        replicas: 3,
        layout_seeds: vec![LayoutSeed {
            replica: 0,
            generation: 0,
            seed: [4; 32],
        }],
        seed: "5".into(),
        resumed: false,
    }
}

/// Data of read `seq` of any disk; every fifth has none.
struct Reads;

impl ReadLog for Reads {
    fn logged(&self, disk: u8, seq: u64) -> Option<Arc<[u8]>> {
        (!seq.is_multiple_of(5)).then(|| vec![disk ^ seq as u8; 512].into())
    }
}

/// Nothing repeats, so nothing is compressed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new_keyed(&[7; 32])
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

fn entry(boundary: u64, frame: usize) -> Arc<Entry> {
    let completion = |seq, kind, status| Completion {
        disk: 1,
        seq,
        kind,
        status,
    };
    Arc::new(Entry {
        monotonic_ns: 1000 * boundary,
        realtime_ns: 1_800_000_000_000_000_000 + 999 * boundary,
        flags: boundary % 2,
        frames: vec![noise(boundary, frame), Vec::new()],
        console: vec![b'x'; (boundary % 3) as usize],
        completions: vec![
            completion(2 * boundary, Waiting::Read, BlockStatus::Ok),
            completion(2 * boundary + 1, Waiting::Flush, BlockStatus::IoError),
        ],
    })
}

fn release(tap: &mut Tap, boundary: u64) {
    for (channel, bytes) in [
        (to::NET, noise(boundary, 60)),
        (to::FINGERPRINT, boundary.to_le_bytes().to_vec()),
    ] {
        tap(&Item::Release {
            boundary,
            channel,
            bytes,
        });
    }
}

/// What a set does at a boundary, as the deliverer sees it.
fn boundary(tap: &mut Tap, boundary: u64, frame: usize) {
    release(tap, boundary);
    tap(&Item::Entry {
        boundary,
        entry: entry(boundary, frame),
    });
}

fn end(tap: &mut Tap) {
    let stopped = Event::Stopped {
        reason: "by request".into(),
        exit_code: 0,
        fingerprint: String::new(),
    };
    tap(&Item::Event(Duration::from_millis(9), stopped));
}

fn expected(of: u64, frame: usize) -> Step {
    let mut digest = ReleaseDigest::default();
    for boundary in 0..=of {
        digest.absorb(boundary, to::NET, &noise(boundary, 60));
        digest.absorb(boundary, to::FINGERPRINT, &boundary.to_le_bytes());
    }
    let reads = Reads.logged(1, 2 * of).map(|data| ReadData {
        disk: 1,
        seq: 2 * of,
        data,
    });
    Step {
        boundary: of,
        digest: Some(*digest.current().as_bytes()),
        entry: Some(entry(of, frame)),
        reads: reads.into_iter().collect(),
    }
}

fn meta(boundary: u64) -> BlobMeta {
    BlobMeta {
        replica: 1,
        boundary,
        generation: 2,
        layout_seed: [9; 32],
        reason: String::new(),
    }
}

/// A recording of some boundaries, in one segment.
fn recorded(directory: &Path, boundaries: u64, dumped: usize) -> PathBuf {
    let path = directory.join("run.rec");
    let recorder = Recorder::create(&path, Limits::default(), &header()).unwrap();
    let mut tap = recorder.tap(Arc::new(Reads));
    for number in 0..boundaries {
        boundary(&mut tap, number, 100);
        if number == 1 {
            let text = "noted".to_owned();
            tap(&Item::Event(Duration::from_millis(5), Event::Note { text }));
            let reason = "outvoted".to_owned();
            let dump = BlobMeta { reason, ..meta(1) };
            assert!(recorder.dump(dump, Box::new(move |to| to.write_all(&noise(0, dumped)))));
        }
    }
    release(&mut tap, boundaries);
    end(&mut tap);
    let summary = recorder.finish();
    assert_eq!(
        (summary.failure, summary.boundaries),
        (None, boundaries + 1)
    );
    path
}

/// The steps of a recording, as far as it goes.
fn steps(recording: &Recording) -> Vec<Step> {
    recording
        .from(recording.boundaries().start)
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

#[test]
fn what_is_recorded_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = recorded(directory.path(), 20, 3 << 20);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
    assert_eq!(mode & 0o777, 0o600, "it holds secrets");
    let recording = Recording::open(&path).unwrap();
    assert_eq!(recording.header(), &header());
    assert_eq!(recording.boundaries(), 0..21);
    let steps = steps(&recording);
    for (number, step) in (0..20).zip(&steps) {
        assert_eq!(step, &expected(number, 100));
        assert_eq!(&recording.step(number).unwrap(), step);
    }
    // The last boundary was decided, and has no entry.
    let last = Step {
        entry: None,
        reads: Vec::new(),
        ..expected(20, 100)
    };
    assert_eq!(steps[20], last);
    let end = recording.end().unwrap();
    assert_eq!((end.decided, end.reason.as_str()), (21, "by request"));
    assert_eq!(Some(end.fingerprint), last.digest);
    let events = recording.events().unwrap();
    assert_eq!((events.len(), events[0].at_ms), (2, 5));
    assert_eq!(events[0].json, r#"{"event":"note","text":"noted"}"#);
    assert_eq!(events[0].text, "noted");
    let dump = &recording.dumps()[0];
    assert_eq!(
        (dump.meta.reason.as_str(), dump.meta.boundary),
        ("outvoted", 1)
    );
    let mut bytes = Vec::new();
    recording.blob(dump).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, noise(0, 3 << 20));
    assert!(recording.from(22).is_err());
    assert!(Recorder::create(&path, Limits::default(), &header()).is_err());
}

#[test]
fn any_byte_that_is_not_what_was_written_is_noticed_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.rec");
    let recorder = Recorder::create(&path, Limits::default(), &header()).unwrap();
    let mut tap = recorder.tap(Arc::new(Reads));
    for number in 0..4 {
        boundary(&mut tap, number, 20);
    }
    end(&mut tap);
    recorder.finish();
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&path, &damaged).unwrap();
        match Recording::open(&path).unwrap_err() {
            RecordError::Foreign { .. } if at < SEGMENT_HEAD => {}
            RecordError::Damaged { offset, .. } => {
                assert!(offset as usize <= at, "byte {at}: named at {offset}");
                let block =
                    BlockHead::decode(&whole[offset as usize..][..BLOCK_HEAD].try_into().unwrap());
                let len = BLOCK_HEAD + block.unwrap().stored as usize;
                assert!(at < offset as usize + len, "byte {at}: named at {offset}");
            }
            other => panic!("byte {at}: {other}"),
        }
        // What is before the damage can be had on request.
        if let Ok(part) = Recording::open_up_to_damage(&path) {
            assert!(part.torn().unwrap().damage.is_some());
            for (number, step) in (0..).zip(steps(&part)) {
                assert_eq!(step, expected_or_last(number));
            }
        }
    }
    fn expected_or_last(number: u64) -> Step {
        expected(number, 20)
    }
}

#[test]
fn a_torn_end_is_dropped_and_nothing_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = recorded(directory.path(), 3, 5000);
    let whole = std::fs::read(&path).unwrap();
    let all = steps(&Recording::open(&path).unwrap());
    // Where blocks end.
    let (mut ends, mut at) = (Vec::new(), SEGMENT_HEAD);
    while at < whole.len() {
        let head = BlockHead::decode(whole[at..][..BLOCK_HEAD].try_into().unwrap()).unwrap();
        at += BLOCK_HEAD + head.stored as usize;
        ends.push(at);
    }
    for len in (0..whole.len()).filter(|len| {
        // Every length near a border, and some between.
        ends.iter().any(|end| end.abs_diff(*len) < 90) || len % 9973 == 0
    }) {
        std::fs::write(&path, &whole[..len]).unwrap();
        let opened = Recording::open(&path);
        if len < ends[0] {
            assert!(opened.is_err(), "{len}: there is no header");
            continue;
        }
        let recording = opened.unwrap();
        let good = *ends.iter().rfind(|end| **end <= len).unwrap();
        let torn = recording
            .torn()
            .map(|torn| (torn.offset as usize, torn.bytes as usize));
        assert_eq!(torn, (good < len).then_some((good, len - good)));
        assert_eq!(recording.end(), None);
        assert_eq!(
            steps(&recording),
            all[..recording.boundaries().end as usize]
        );
        // Likewise if the file system has given it its length, but not its bytes.
        let mut zeroed = whole[..good].to_vec();
        zeroed.resize(len, 0);
        std::fs::write(&path, zeroed).unwrap();
        assert_eq!(
            Recording::open(&path).unwrap().boundaries(),
            recording.boundaries()
        );
    }
}

#[test]
fn blocks_cannot_be_taken_out_moved_or_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let path = recorded(directory.path(), 3, 5000);
    let whole = std::fs::read(&path).unwrap();
    let (mut blocks, mut at) = (Vec::new(), SEGMENT_HEAD);
    while at < whole.len() {
        let head = BlockHead::decode(whole[at..][..BLOCK_HEAD].try_into().unwrap()).unwrap();
        let len = BLOCK_HEAD + head.stored as usize;
        blocks.push(&whole[at..at + len]);
        at += len;
    }
    assert!(blocks.len() >= 6);
    let refused = |blocks: &[&[u8]]| {
        let bytes = [&whole[..SEGMENT_HEAD], &blocks.concat()].concat();
        std::fs::write(&path, bytes).unwrap();
        matches!(Recording::open(&path), Err(RecordError::Damaged { .. }))
    };
    assert!(!refused(&blocks));
    for index in 0..blocks.len() - 1 {
        let mut other = blocks.clone();
        other.remove(index);
        assert!(refused(&other), "block {index} is missing");
        let mut other = blocks.clone();
        other.swap(index, index + 1);
        assert!(refused(&other), "block {index} is moved");
        let mut other = blocks.clone();
        other.insert(index, blocks[index]);
        assert!(refused(&other), "block {index} is there twice");
        // A number that fits does not help: the hash hangs on the block before.
        let mut head =
            BlockHead::decode(blocks[index + 1][..BLOCK_HEAD].try_into().unwrap()).unwrap();
        head.number = index as u32;
        let renumbered = [&head.encode(), &blocks[index + 1][BLOCK_HEAD..]].concat();
        let mut other = blocks.clone();
        other[index] = &renumbered;
        assert!(refused(&other), "block {index} is another");
    }
    let mut other = blocks.clone();
    other.push(blocks[blocks.len() - 1]);
    assert!(refused(&other), "something follows the end");
}

/// Drives a recording through several segments. Checkpoints are offered as a set does, of a boundary that is not decided yet.
fn rotated(
    directory: &Path,
    keep: u64,
    boundaries: u64,
    checkpoints: bool,
) -> (PathBuf, Summary, Vec<String>) {
    let path = directory.join("run.rec");
    let limits = Limits {
        segment: 1 << 20,
        keep,
    };
    let recorder = Recorder::create(&path, limits, &header()).unwrap();
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let teller = Arc::clone(&told);
    recorder.on_failure(Box::new(move |text| teller.lock().unwrap().push(text)));
    let mut tap = recorder.tap(Arc::new(Reads));
    for number in 0..boundaries {
        boundary(&mut tap, number, 64 << 10);
        if checkpoints {
            let data = noise(number, 10_000);
            let write = move |to: &mut dyn Write| to.write_all(&data);
            // Not too early, whatever the writer's thread does.
            assert!(
                recorder
                    .wants_checkpoint()
                    .is_none_or(|first| first <= number + 1)
            );
            recorder.checkpoint(meta(number), Box::new(write));
        }
        if number % 8 == 7 {
            // The writer keeps up, as it does with a set that takes longer for all this.
            while told.lock().unwrap().is_empty() {
                let (done, is_done) = channel();
                let barrier = move |_: &mut dyn Write| done.send(()).map_err(std::io::Error::other);
                if recorder.dump(meta(number), Box::new(barrier)) {
                    let _ = is_done.recv();
                    break;
                }
                // Too many checkpoints wait.
                std::thread::yield_now();
            }
        }
    }
    end(&mut tap);
    let summary = recorder.finish();
    let told = told.lock().unwrap().clone();
    (path, summary, told)
}

#[test]
fn a_recording_goes_on_in_new_files_within_its_bound_and_can_be_read_from_the_middle() {
    let directory = tempfile::tempdir().unwrap();
    let keep = 6 << 20;
    let (path, summary, told) = rotated(directory.path(), keep, 400, true);
    assert!(told.is_empty(), "{told:?}");
    assert!(
        summary.segments >= 3 && summary.bytes <= keep,
        "{summary:?}"
    );
    let recording = Recording::open(&path).unwrap();
    assert_eq!(recording.size(), (summary.segments, summary.bytes));
    let range = recording.boundaries();
    assert!(range.start > 100, "the oldest were deleted: {range:?}");
    assert_eq!(range.end, 400);
    assert!(!recording.starts().contains(&StartPoint::Beginning));
    let first = &recording.checkpoints()[0];
    assert!(first.meta.boundary >= range.start);
    let mut bytes = Vec::new();
    recording.blob(first).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, noise(first.meta.boundary, 10_000));
    let mut steps = recording.from(first.meta.boundary).unwrap();
    assert_eq!(
        steps.next().unwrap().unwrap(),
        expected(first.meta.boundary, 64 << 10)
    );
    assert_eq!(steps.count() as u64, 399 - first.meta.boundary);

    // Files that are missing, or of another recording.
    let files: Vec<_> = super::segment::finished(&path).unwrap();
    let (number, middle) = &files[files.len() / 2];
    let aside = directory.path().join("aside");
    std::fs::rename(middle, &aside).unwrap();
    let error = Recording::open(&path).unwrap_err();
    assert!(matches!(error, RecordError::Segment { .. }), "{error}");
    std::fs::copy(numbered(&path, number + 1), middle).unwrap();
    assert!(Recording::open(&path).is_err());
    std::fs::rename(&aside, middle).unwrap();
    Recording::open(&path).unwrap();
    // Only the newest can be torn: any other was written to its end.
    let bytes = std::fs::read(middle).unwrap();
    std::fs::write(middle, &bytes[..bytes.len() - 1]).unwrap();
    let error = Recording::open(&path).unwrap_err();
    assert!(
        matches!(&error, RecordError::Damaged { path, .. } if path == middle),
        "{error}"
    );
    std::fs::write(middle, &bytes).unwrap();
    // Killed while a new file was begun.
    std::fs::write(&path, b"QUOR").unwrap();
    let torn = Recording::open(&path).unwrap();
    assert_eq!(torn.torn().unwrap().bytes, 4);
    std::fs::remove_file(&path).unwrap();
    let gone = Recording::open(&path).unwrap();
    assert_eq!((gone.boundaries(), gone.torn()), (torn.boundaries(), None));
}

#[test]
fn the_recording_of_a_set_that_went_on_begins_with_the_checkpoints_of_all_replicas() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.rec");
    let resumed = Header {
        resumed: true,
        ..header()
    };
    let recorder = Recorder::create(&path, Limits::default(), &resumed).unwrap();
    // More than may wait of others.
    let replicas = 2 * queue::BLOBS_WAITING;
    for replica in 0..replicas {
        let data = noise(replica as u64, 10_000);
        let write = move |to: &mut dyn Write| to.write_all(&data);
        let meta = BlobMeta {
            replica,
            layout_seed: [replica as u8; 32],
            ..meta(0)
        };
        recorder.base(meta, Box::new(write));
    }
    let mut tap = recorder.tap(Arc::new(Reads));
    for number in 0..5 {
        boundary(&mut tap, number, 100);
    }
    end(&mut tap);
    recorder.finish();

    let recording = Recording::open(&path).unwrap();
    assert_eq!(recording.boundaries(), 0..5);
    let checkpoints: Vec<_> = (0..replicas).map(StartPoint::Checkpoint).collect();
    assert_eq!(
        recording.starts(),
        checkpoints,
        "no fresh machine gets to boundary 0"
    );
    for (replica, info) in recording.checkpoints().iter().enumerate() {
        assert_eq!((info.meta.replica, info.meta.boundary), (replica, 0));
        let mut bytes = Vec::new();
        recording.blob(info).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, noise(replica as u64, 10_000));
    }
    assert_eq!(recording.step(0).unwrap(), expected(0, 100));
}

#[test]
fn without_checkpoints_the_beginning_is_not_deleted_but_the_recording_ends() {
    let directory = tempfile::tempdir().unwrap();
    let (path, summary, told) = rotated(directory.path(), 4 << 20, 400, false);
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("no checkpoint"), "{told:?}");
    assert!(summary.failure.is_some() && summary.boundaries < 400);
    let recording = Recording::open(&path).unwrap();
    assert_eq!(recording.starts(), [StartPoint::Beginning]);
    assert_eq!(recording.boundaries(), 0..summary.boundaries);
}

#[test]
fn a_full_disk_ends_the_recording_and_not_the_set() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.rec");
    let limits = Limits::default();
    let header = serde_json::to_vec(&header()).unwrap();
    let mut segments = Segments::create(&path, limits, header).unwrap();
    segments.full_after(8 << 20);
    let recorder = Recorder::over(segments).unwrap();
    let (tell, told) = channel();
    recorder.on_failure(Box::new(move |text| tell.send(text).unwrap()));
    let mut tap = recorder.tap(Arc::new(Reads));
    // Far more than the queue holds: nobody waits for a writer that has ended.
    for number in 0..2000 {
        boundary(&mut tap, number, 64 << 10);
    }
    let text = told.recv().unwrap();
    assert!(
        text.contains("No space left on device") && text.contains("the set goes on"),
        "{text}"
    );
    end(&mut tap);
    let summary = recorder.finish();
    assert!(summary.failure.is_some());
    let recording = Recording::open(&path).unwrap();
    assert!(recording.boundaries().end > 0);
    assert_eq!(recording.boundaries(), 0..summary.boundaries);
    for (number, step) in (0..).zip(steps(&recording)) {
        assert_eq!(step, expected(number, 64 << 10));
    }
}

#[test]
fn at_the_queues_bound_the_deliverer_waits_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.rec");
    let recorder = Recorder::create(&path, Limits::default(), &header()).unwrap();
    let (go, gate) = channel::<()>();
    let slow = move |_: &mut dyn Write| {
        let _ = gate.recv();
        Ok(())
    };
    assert!(recorder.dump(meta(0), Box::new(slow)));
    let count = (QUEUE_BYTES >> 20) as u64 + 8;
    let mut tap = recorder.tap(Arc::new(Reads));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..count {
                boundary(&mut tap, number, 1 << 20);
            }
            end(&mut tap);
        });
        while recorder.waits() == 0 {
            std::thread::yield_now();
        }
        go.send(()).unwrap();
    });
    assert_eq!(recorder.finish().boundaries, count);
    let recording = Recording::open(&path).unwrap();
    assert_eq!(
        steps(&recording)[count as usize - 1],
        expected(count - 1, 1 << 20)
    );
}

#[test]
fn many_reads_of_one_boundary_have_blocks_of_their_own() {
    struct Large;
    impl ReadLog for Large {
        fn logged(&self, disk: u8, seq: u64) -> Option<Arc<[u8]>> {
            Some(vec![disk ^ seq as u8; 1 << 20].into())
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.rec");
    let recorder = Recorder::create(&path, Limits::default(), &header()).unwrap();
    let mut tap = recorder.tap(Arc::new(Large));
    let read = |seq| Completion {
        disk: 2,
        seq,
        kind: Waiting::Read,
        status: BlockStatus::Ok,
    };
    for boundary in 0..4 {
        release(&mut tap, boundary);
        let completions = if boundary == 2 {
            (0..40).map(read).collect()
        } else {
            Vec::new()
        };
        let entry = Arc::new(Entry {
            completions,
            ..Entry::default()
        });
        tap(&Item::Entry { boundary, entry });
    }
    end(&mut tap);
    recorder.finish();
    let recording = Recording::open(&path).unwrap();
    let counts: Vec<usize> = steps(&recording)
        .iter()
        .map(|step| step.reads.len())
        .collect();
    assert_eq!(counts, [0, 0, 40, 0]);
    let reads = recording.step(2).unwrap().reads;
    assert!(
        (0..40)
            .zip(&reads)
            .all(|(seq, read)| read.seq == seq && read.data[0] == 2 ^ seq as u8)
    );
}

#[test]
fn lengths_beyond_the_bound_are_refused_before_anything_is_allocated() {
    let mut chain = [0; 32];
    let block = seal(Kind::Journal, 0, 0, 0, &[1, 2, 3], &mut chain).unwrap();
    let good = BlockHead::decode(block[..BLOCK_HEAD].try_into().unwrap()).unwrap();
    let too_much = MAX_BLOCK_BYTES as u32 + 1;
    for head in [
        BlockHead {
            stored: too_much,
            ..good
        },
        BlockHead {
            raw: u32::MAX,
            ..good
        },
    ] {
        let fault = BlockHead::decode(&head.encode()).unwrap_err();
        assert_eq!(fault, Fault::Nonsense("a length"));
    }
    // Compressed bytes that unpack to more than their head says, or to less.
    let packed = zstd::bulk::compress(&[0; 100_000], 1).unwrap();
    for raw in [99_999, 100_001] {
        let head = BlockHead {
            raw,
            packed: true,
            stored: packed.len() as u32,
            ..good
        };
        assert_eq!(head.unpack(packed.clone()), Err(Fault::Unpack));
    }
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let completion = (any::<u8>(), any::<u64>(), any::<bool>(), any::<bool>()).prop_map(
        |(disk, seq, flush, failed)| Completion {
            disk,
            seq,
            kind: if flush { Waiting::Flush } else { Waiting::Read },
            status: if failed {
                BlockStatus::IoError
            } else {
                BlockStatus::Ok
            },
        },
    );
    (
        any::<[u64; 3]>(),
        prop::collection::vec(bytes(), 0..5),
        bytes(),
        prop::collection::vec(completion, 0..5),
    )
        .prop_map(|(words, frames, console, completions)| Entry {
            monotonic_ns: words[0],
            realtime_ns: words[1],
            flags: words[2],
            frames,
            console,
            completions,
        })
}

fn any_step() -> impl Strategy<Value = Step> {
    let read = (
        any::<u8>(),
        any::<u64>(),
        prop::collection::vec(any::<u8>(), 0..40),
    )
        .prop_map(|(disk, seq, data)| ReadData {
            disk,
            seq,
            data: data.into(),
        });
    (
        any::<Option<[u8; 32]>>(),
        prop::option::of(any_entry()),
        prop::collection::vec(read, 0..3),
    )
        .prop_map(|(digest, entry, reads)| Step {
            boundary: 0,
            digest,
            entry: entry.map(Arc::new),
            reads,
        })
}

proptest! {
    #[test]
    fn any_boundary_survives_the_way_through_bytes(first in 0..u64::MAX / 2, steps in prop::collection::vec(any_step(), 0..6)) {
        let mut block = JournalBlock::default();
        let steps: Vec<Step> = (first..).zip(steps).map(|(boundary, step)| Step { boundary, ..step }).collect();
        for step in &steps {
            block.push(step);
        }
        let first = if steps.is_empty() { 0 } else { first };
        let read = codec::journal(&block.bytes, first, block.boundaries);
        prop_assert_eq!(read.as_deref(), Ok(steps.as_slice()));
        // Cut off anywhere, it is not taken for whole.
        for len in 0..block.bytes.len() {
            prop_assert!(codec::journal(&block.bytes[..len], first, block.boundaries).is_err());
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), boundaries in 0..4u32) {
        let _ = codec::journal(&bytes, u64::MAX, boundaries);
        let _ = codec::events(&bytes);
        let _ = codec::reads(&bytes);
    }
}
