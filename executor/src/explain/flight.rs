//! The flight recorders of two machines, read from their memory and compared.

use std::mem::offset_of;

use quorate_abi::boot::KernelHeader;
use quorate_abi::flight::{
    CONTENT_LEN, EXCEPTION, FLIGHT_MAGIC, FLIGHT_VERSION, FRAME_BYTES, Record, Recorder,
};
use serde::Serialize;

use super::binary::{REGISTERS, RIP, RSP, Registers};
use super::memory::{Memory, read_virt, virt_word};

/// Most records that are believed to be in a recorder (R9).
const MAX_CAPACITY: u64 = 1 << 16;
/// General registers that an entry to the kernel saves.
const SAVED: usize = 18;

/// What a machine's recorder holds.
#[derive(Clone, Debug)]
pub struct Log {
    /// Where the recorder lies.
    pub at: u64,
    /// The recorder itself.
    pub recorder: Recorder,
    /// Number of the first record that is still there, since the start.
    pub first: u64,
    /// The records.
    pub records: Vec<Record>,
}

/// Why there is no log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The kernel has none.
    #[error("the guest kernel has no flight recorder of this program's version")]
    None,
    /// It is broken.
    #[error("the flight recorder in this memory is damaged: {0}")]
    Damaged(&'static str),
}

/// Reads the recorder of the kernel that lies at `kernel`.
///
/// # Errors
/// When there is none, or it cannot be.
pub fn read(memory: &dyn Memory, kernel: u64) -> Result<Log, LogError> {
    let root = memory.root();
    let at = |offset: usize| virt_word(memory, root, kernel.wrapping_add(offset as u64));
    let pointer = size_of::<KernelHeader>();
    if at(pointer) != Some(FLIGHT_MAGIC) {
        return Err(LogError::None);
    }
    let place = at(pointer + 8).ok_or(LogError::None)?;
    let place = kernel.wrapping_add(place);
    let field = |offset: usize| {
        virt_word(memory, root, place.wrapping_add(offset as u64))
            .ok_or(LogError::Damaged("it is not all mapped"))
    };
    let versions = field(offset_of!(Recorder, version))?;
    let recorder = Recorder {
        magic: field(offset_of!(Recorder, magic))?,
        version: versions as u32,
        record_bytes: (versions >> 32) as u32,
        capacity: field(offset_of!(Recorder, capacity))?,
        written: field(offset_of!(Recorder, written))?,
        records: field(offset_of!(Recorder, records))?,
        stop_at: field(offset_of!(Recorder, stop_at))?,
        kernel_stack: field(offset_of!(Recorder, kernel_stack))?,
        thread: field(offset_of!(Recorder, thread))?,
        free_pages: field(offset_of!(Recorder, free_pages))?,
        roots: field(offset_of!(Recorder, roots))?,
        root_count: field(offset_of!(Recorder, root_count))?,
        fail_at: field(offset_of!(Recorder, fail_at))?,
        fail_errno: field(offset_of!(Recorder, fail_errno))?,
        failed: field(offset_of!(Recorder, failed))?,
        tables: field(offset_of!(Recorder, tables))?,
    };
    if recorder.magic != FLIGHT_MAGIC || recorder.version != FLIGHT_VERSION {
        return Err(LogError::None);
    }
    if recorder.record_bytes as usize != size_of::<Record>() {
        return Err(LogError::Damaged("its records have another size"));
    }
    if !(1..=MAX_CAPACITY).contains(&recorder.capacity) {
        return Err(LogError::Damaged("its capacity cannot be"));
    }
    let mut bytes = vec![0; recorder.capacity as usize * size_of::<Record>()];
    if read_virt(memory, root, recorder.records, &mut bytes) != bytes.len() {
        return Err(LogError::Damaged("its records are not mapped"));
    }
    let first = recorder.written.saturating_sub(recorder.capacity);
    let records = (first..recorder.written).map(|number| {
        let at = (number % recorder.capacity) as usize * size_of::<Record>();
        decode(&bytes[at..at + size_of::<Record>()])
    });
    Ok(Log {
        at: place,
        records: records.collect(),
        recorder,
        first,
    })
}

/// One record; `bytes` has its size.
fn decode(bytes: &[u8]) -> Record {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let half = |at: usize| {
        let mut half = [0; 4];
        half.copy_from_slice(&bytes[at..at + 4]);
        u32::from_le_bytes(half)
    };
    let mut content = [0; CONTENT_LEN];
    let from = offset_of!(Record, content);
    content.copy_from_slice(&bytes[from..from + CONTENT_LEN]);
    Record {
        call: word(offset_of!(Record, call)),
        digest: word(offset_of!(Record, digest)),
        number: half(offset_of!(Record, number)),
        tid: half(offset_of!(Record, tid)),
        pid: half(offset_of!(Record, pid)),
        root: half(offset_of!(Record, root)),
        boundary: half(offset_of!(Record, boundary)),
        content_len: half(offset_of!(Record, content_len)),
        args: std::array::from_fn(|i| word(offset_of!(Record, args) + i * 8)),
        result: word(offset_of!(Record, result)),
        rip: word(offset_of!(Record, rip)),
        rsp: word(offset_of!(Record, rsp)),
        content,
    }
}

impl Log {
    /// The record with this number, if it is still there.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<&Record> {
        let index = number.checked_sub(self.first)?;
        self.records.get(usize::try_from(index).ok()?)
    }

    /// The running thread's id.
    #[must_use]
    pub fn thread(&self, memory: &dyn Memory) -> Option<u32> {
        virt_word(memory, memory.root(), self.recorder.thread).map(|word| word as u32)
    }

    /// The registers with which the running thread entered the kernel last, in the order of [`quorate_abi::flight::frame`], and the
    /// number of the system call. They are those of the call that is being served, if one is.
    #[must_use]
    pub fn entered_with(&self, memory: &dyn Memory) -> Option<([u64; SAVED], u64)> {
        let root = memory.root();
        let top = virt_word(memory, root, self.recorder.kernel_stack)?;
        let at = top.checked_sub(FRAME_BYTES)?;
        let mut bytes = [0; SAVED * 8];
        if read_virt(memory, root, at, &mut bytes) != bytes.len() {
            return None;
        }
        let registers = std::array::from_fn(|i| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
            u64::from_le_bytes(word)
        });
        let number = virt_word(memory, root, at + quorate_abi::flight::frame::NUMBER)?;
        Some((registers, number))
    }

    /// Physical addresses of all roots but the VMM's.
    #[must_use]
    pub fn roots(&self, memory: &dyn Memory) -> Vec<u64> {
        let root = memory.root();
        let count = virt_word(memory, root, self.recorder.root_count).unwrap_or(0);
        (0..count.min(4096))
            .map_while(|i| virt_word(memory, root, self.recorder.roots + i * 8))
            .collect()
    }
}

/// DWARF numbers of r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi: the order of saved registers.
const ORDER: [usize; 15] = [15, 14, 13, 12, 6, 3, 11, 10, 9, 8, 0, 2, 1, 4, 5];

/// Saved registers by their DWARF numbers.
#[must_use]
pub fn saved(registers: &[u64; SAVED]) -> Registers {
    let mut by_number: Registers = [None; REGISTERS];
    for (dwarf, value) in ORDER.iter().zip(registers) {
        by_number[*dwarf] = Some(*value);
    }
    by_number[RIP] = Some(registers[15]);
    by_number[RSP] = Some(registers[17]);
    by_number
}

/// What is different in two records of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Field {
    /// Another call, or an exception in one of them.
    Call,
    /// Another thread.
    Thread,
    /// An argument, from 0.
    Argument(usize),
    /// The result.
    Result,
    /// What was read or written.
    Content,
    /// Where it was called from.
    Caller,
    /// The caller's stack.
    Stack,
    /// The digest of all calls so far, in which nothing else differs: it is in what was carried beyond the first bytes.
    Digest,
    /// At which boundary.
    Boundary,
}

/// The fields in which two records differ, the telling ones first.
#[must_use]
pub fn differences(healthy: &Record, other: &Record) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut note = |differs: bool, field| {
        if differs {
            fields.push(field);
        }
    };
    note(
        healthy.number != other.number || healthy.call != other.call,
        Field::Call,
    );
    note(
        (healthy.tid, healthy.pid) != (other.tid, other.pid),
        Field::Thread,
    );
    for (index, (one, two)) in healthy.args.iter().zip(&other.args).enumerate() {
        note(one != two, Field::Argument(index));
    }
    note(healthy.result != other.result, Field::Result);
    note(
        (healthy.content_len, healthy.content) != (other.content_len, other.content),
        Field::Content,
    );
    note(healthy.rip != other.rip, Field::Caller);
    note(healthy.rsp != other.rsp, Field::Stack);
    note(healthy.boundary != other.boundary, Field::Boundary);
    if fields.is_empty() && healthy.digest != other.digest {
        fields.push(Field::Digest);
    }
    fields
}

/// What the comparison of two logs gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compared {
    /// The first record that differs.
    Differs {
        /// Number of the record.
        number: u64,
        /// In which fields.
        fields: Vec<Field>,
        /// True if records before it are gone from either log, and the one before it differs as well: the first difference may
        /// lie before.
        maybe_earlier: bool,
    },
    /// All that both have is the same, and the healthy one has made more: the other did not complete this one.
    Unfinished {
        /// Number of the record that only the healthy one has.
        number: u64,
    },
    /// All that both have is the same, and the other has made more than the healthy one.
    Further {
        /// Number of the record that only the other has.
        number: u64,
    },
    /// Both have made the same calls.
    Same,
    /// They have no record in common: nothing can be said.
    Nothing,
}

/// Compares a log with that of a healthy machine of the same layout.
#[must_use]
pub fn compare(healthy: &Log, other: &Log) -> Compared {
    let from = healthy.first.max(other.first);
    let (healthy_end, other_end) = (healthy.recorder.written, other.recorder.written);
    let to = healthy_end.min(other_end);
    if from >= to && from > 0 {
        return Compared::Nothing;
    }
    for number in from..to {
        let (Some(one), Some(two)) = (healthy.get(number), other.get(number)) else {
            break;
        };
        let fields = differences(one, two);
        if !fields.is_empty() {
            let maybe_earlier = number == from && from > 0;
            return Compared::Differs {
                number,
                fields,
                maybe_earlier,
            };
        }
        if one.digest != two.digest {
            break;
        }
    }
    match healthy_end.cmp(&other_end) {
        std::cmp::Ordering::Equal => Compared::Same,
        std::cmp::Ordering::Greater => Compared::Unfinished { number: to },
        std::cmp::Ordering::Less => Compared::Further { number: to },
    }
}

/// Whether a record is an exception.
#[must_use]
pub fn is_exception(record: &Record) -> bool {
    record.number == EXCEPTION
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::memory::fake::Fake;
    use super::*;

    pub const KERNEL: u64 = 0x1000_0000_0000;
    const RECORDS: u64 = KERNEL + 0x4000;

    fn encode(record: &Record) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [record.call, record.digest] {
            bytes.extend(word.to_le_bytes());
        }
        for half in [
            record.number,
            record.tid,
            record.pid,
            record.root,
            record.boundary,
            record.content_len,
        ] {
            bytes.extend(half.to_le_bytes());
        }
        for word in record
            .args
            .iter()
            .chain([&record.result, &record.rip, &record.rsp])
        {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(record.content);
        bytes
    }

    /// Memory with a kernel whose recorder has room for four records.
    pub fn kernel(records: &[Record]) -> Fake {
        let mut memory = Fake::new();
        for page in 0..16 {
            memory.map(KERNEL + page * 0x1000, 0x20_0000 + page * 0x1000);
        }
        memory.write_virt(KERNEL + 48, &FLIGHT_MAGIC.to_le_bytes());
        memory.write_virt(KERNEL + 56, &0x1000_u64.to_le_bytes());
        let words = [
            FLIGHT_MAGIC,
            u64::from(FLIGHT_VERSION) | (size_of::<Record>() as u64) << 32,
            4,
            records.len() as u64,
            RECORDS,
            u64::MAX,
            KERNEL + 0x2000,
            KERNEL + 0x2008,
            KERNEL + 0x2010,
            KERNEL + 0x2018,
            KERNEL + 0x2020,
        ];
        for (at, word) in (KERNEL + 0x1000..).step_by(8).zip(words) {
            memory.write_virt(at, &word.to_le_bytes());
        }
        for (number, record) in records.iter().enumerate() {
            memory.write_virt(RECORDS + number as u64 % 4 * 128, &encode(record));
        }
        memory
    }

    pub fn calls(count: u64) -> Vec<Record> {
        let calls = (1..=count).map(|call| Record {
            call,
            digest: call * 1000,
            number: 1,
            args: [call, 2, 3, 4, 5, 6],
            ..Record::default()
        });
        calls.collect()
    }

    fn log(records: &[Record]) -> Log {
        read(&kernel(records), KERNEL).unwrap()
    }

    #[test]
    fn the_last_calls_are_read_in_order() {
        let all = calls(6);
        let log = log(&all);
        assert_eq!((log.first, log.records.len()), (2, 4));
        assert_eq!(log.records, all[2..]);
        assert!(log.get(1).is_none());
        assert_eq!(log.get(2).unwrap().call, 3);
    }

    #[test]
    fn the_first_call_that_differs_is_found_with_what_differs() {
        let healthy = calls(4);
        let mut other = healthy.clone();
        other[2].result = 9;
        other[2].digest = 1;
        other[3].digest = 2;
        let expected = Compared::Differs {
            number: 2,
            fields: vec![Field::Result],
            maybe_earlier: false,
        };
        assert_eq!(compare(&log(&healthy), &log(&other)), expected);
        other[2].result = 0;
        let found = compare(&log(&healthy), &log(&other));
        assert!(
            matches!(found, Compared::Differs { number: 2, ref fields, .. } if fields == &[Field::Digest])
        );
        other[0].args[5] = 0;
        let found = compare(&log(&healthy), &log(&other));
        assert!(
            matches!(found, Compared::Differs { number: 0, ref fields, .. } if fields == &[Field::Argument(5)])
        );
    }

    #[test]
    fn a_call_that_was_not_completed_is_named() {
        let all = calls(4);
        assert_eq!(
            compare(&log(&all), &log(&all[..3])),
            Compared::Unfinished { number: 3 }
        );
        assert_eq!(
            compare(&log(&all[..3]), &log(&all)),
            Compared::Further { number: 3 }
        );
        assert_eq!(compare(&log(&all), &log(&all)), Compared::Same);
        assert_eq!(compare(&log(&calls(4)), &log(&calls(9))), Compared::Nothing);
    }

    #[test]
    fn what_may_lie_before_the_recorders_memory_is_said_to() {
        let healthy = calls(6);
        let mut other = healthy.clone();
        other[2].digest = 5;
        let found = compare(&log(&healthy), &log(&other));
        assert!(matches!(
            found,
            Compared::Differs {
                number: 2,
                maybe_earlier: true,
                ..
            }
        ));
    }

    #[test]
    fn a_damaged_recorder_is_an_error() {
        let good = kernel(&calls(2));
        let spoil = |offset: u64, value: u64| {
            let mut memory = good.clone();
            memory.write_virt(KERNEL + offset, &value.to_le_bytes());
            read(&memory, KERNEL).unwrap_err()
        };
        assert_eq!(spoil(48, 0), LogError::None);
        assert_eq!(
            spoil(0x1008, FLIGHT_VERSION.into()),
            LogError::Damaged("its records have another size")
        );
        assert!(matches!(spoil(0x1010, u64::MAX), LogError::Damaged(_)));
        assert!(matches!(spoil(0x1020, u64::MAX - 5), LogError::Damaged(_)));
        assert!(read(&good, KERNEL + 0x10_0000).is_err());
    }
}
