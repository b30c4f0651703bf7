//! Names that the report groups trials by: what was done, where, and to which bits.

use crate::model::{
    BitChange, BlockFault, ClockFault, Direction, Drawn, EntryFault, Fault, FrameFault,
    MemoryPlace, PageFault, TrialRecord, Trigger,
};

/// What was done, without where: `one bit flipped`, `stuck bit`, `torn write` …
#[must_use]
pub fn model(fault: &Fault) -> &'static str {
    match fault {
        Fault::Register { mask, change, .. } => bits(*mask, *change, true),
        Fault::Memory { mask, change, .. } => bits(*mask, *change, false),
        Fault::Page { how, .. } => match how {
            PageFault::Drop => "page: dropped",
            PageFault::Zero => "page: zeroed",
        },
        Fault::Block { how, metadata, .. } => match (how, metadata) {
            (BlockFault::Corrupt, false) => "block: corrupt write",
            (BlockFault::Corrupt, true) => "metadata: corrupt write",
            (BlockFault::Torn, false) => "block: torn write",
            (BlockFault::Torn, true) => "metadata: torn write",
            (BlockFault::Lost, false) => "block: lost write",
            (BlockFault::Lost, true) => "metadata: lost write",
            (BlockFault::Misdirected, false) => "block: misdirected write",
            (BlockFault::Misdirected, true) => "metadata: misdirected write",
            (BlockFault::ReadError, false) => "block: read error",
            (BlockFault::ReadError, true) => "metadata: read error",
            (BlockFault::ReadCorrupt, false) => "block: corrupt read",
            (BlockFault::ReadCorrupt, true) => "metadata: corrupt read",
        },
        Fault::Frame { how, direction, .. } => match (how, direction) {
            (FrameFault::Drop, Direction::Output) => "frame sent: dropped",
            (FrameFault::Drop, Direction::Input) => "frame received: dropped",
            (FrameFault::Corrupt, Direction::Output) => "frame sent: corrupt",
            (FrameFault::Corrupt, Direction::Input) => "frame received: corrupt",
            (FrameFault::Duplicate, Direction::Output) => "frame sent: twice",
            (FrameFault::Duplicate, Direction::Input) => "frame received: twice",
            (FrameFault::Reorder, Direction::Output) => "frame sent: reordered",
            (FrameFault::Reorder, Direction::Input) => "frame received: reordered",
            (FrameFault::Delay { .. }, Direction::Output) => "frame sent: delayed",
            (FrameFault::Delay { .. }, Direction::Input) => "frame received: delayed",
        },
        Fault::Clock { how } => match how {
            ClockFault::Step { .. } => "clock: steps",
            ClockFault::Skew { .. } => "clock: skewed",
            ClockFault::Stop => "clock: stops",
        },
        Fault::Stall { .. } => "vCPU: stalls",
        Fault::Slow { .. } => "vCPU: slow",
        Fault::Hang => "guest: hangs",
        Fault::Crash => "guest: crashes",
        Fault::Syscall { .. } => "system call fails",
        Fault::Entry { how, .. } => match how {
            EntryFault::Lost => "entry: lost",
            EntryFault::Altered => "entry: altered",
        },
    }
}

fn bits(mask: u64, change: BitChange, register: bool) -> &'static str {
    let one = mask.count_ones() <= 1;
    match (change, one, burst(mask), register) {
        (BitChange::Flip, true, _, true) => "register: one bit flipped",
        (BitChange::Flip, true, _, false) => "memory: one bit flipped",
        (BitChange::Flip, false, true, true) => "register: burst flipped",
        (BitChange::Flip, false, true, false) => "memory: burst flipped",
        (BitChange::Flip, false, false, true) => "register: several bits flipped",
        (BitChange::Flip, false, false, false) => "memory: several bits flipped",
        (BitChange::StuckAt0, _, _, true) => "register: stuck at 0",
        (BitChange::StuckAt1, _, _, true) => "register: stuck at 1",
        (BitChange::StuckAt0, _, _, false) => "memory: stuck at 0",
        (BitChange::StuckAt1, _, _, false) => "memory: stuck at 1",
    }
}

/// Whether the bits are neighbours.
fn burst(mask: u64) -> bool {
    let low = mask >> mask.trailing_zeros().min(63);
    low & low.wrapping_add(1) == 0
}

/// Where it was done: a sort of register, a class of memory, a device.
#[must_use]
pub fn location(record: &TrialRecord) -> String {
    match &record.drawn.fault {
        Fault::Register { register, .. } => register_sort(register).to_owned(),
        Fault::Memory { place, .. } | Fault::Page { place, .. } => memory_class(place, record),
        Fault::Block { .. } => "disk".to_owned(),
        Fault::Frame { .. } => "network".to_owned(),
        Fault::Clock { .. } => "clock".to_owned(),
        Fault::Stall { .. } | Fault::Slow { .. } | Fault::Hang | Fault::Crash => "vCPU".to_owned(),
        Fault::Syscall { .. } => "system calls".to_owned(),
        Fault::Entry { .. } => "entries".to_owned(),
    }
}

fn memory_class(place: &MemoryPlace, record: &TrialRecord) -> String {
    match (place, &record.location) {
        (MemoryPlace::Class { class, .. }, _) => class.clone(),
        (_, Some((region, _))) => region.clone(),
        (MemoryPlace::Ram { .. }, None) => "RAM".to_owned(),
        (MemoryPlace::Named { place }, None) => place
            .split(['+', ':'])
            .next()
            .unwrap_or_default()
            .to_owned(),
    }
}

fn register_sort(name: &str) -> &'static str {
    match name {
        "rip" => "instruction pointer",
        "rflags" => "flags",
        "fs_base" | "gs_base" | "kernel_gs_base" => "segment bases",
        "mxcsr" => "vector registers",
        _ if name.starts_with("xmm") || name.starts_with("ymm") => "vector registers",
        _ if name.starts_with("cr") => "control registers",
        _ => "general registers",
    }
}

/// The row of the map of bits, with the mask of its bits; none for faults that are not of bits.
#[must_use]
pub fn bit_row(record: &TrialRecord) -> Option<(String, u64)> {
    match &record.drawn.fault {
        Fault::Register { register, mask, .. } => Some((register.clone(), *mask)),
        Fault::Memory { place, mask, .. } => Some((memory_class(place, record), *mask)),
        _ => None,
    }
}

/// Region and offset of a fault of memory, for the map of the address space.
#[must_use]
pub fn address(record: &TrialRecord) -> Option<(&str, u64)> {
    match (&record.drawn.fault, &record.location) {
        (Fault::Memory { .. } | Fault::Page { .. }, Some((region, offset))) => {
            Some((region, *offset))
        }
        _ => None,
    }
}

/// Rank of a row of the map of bits: registers as a debugger lists them, then memory.
#[must_use]
pub fn row_rank(name: &str) -> (usize, u64, String) {
    const ORDER: [&str; 21] = [
        "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15", "rip", "rflags", "fs_base", "gs_base", "mxcsr",
    ];
    let number = || name.get(3..).and_then(|n| n.parse().ok());
    match ORDER.iter().position(|known| *known == name) {
        Some(at) => (at, 0, String::new()),
        None if name.starts_with("xmm") => (ORDER.len(), number().unwrap_or(0), name.to_owned()),
        None => (ORDER.len() + 1, 0, name.to_owned()),
    }
}

/// The fault in a few words, with its place as drawn.
#[must_use]
pub fn fault(drawn: &Drawn) -> String {
    let what = model(&drawn.fault);
    let detail = match &drawn.fault {
        Fault::Register {
            register,
            mask,
            lane,
            ..
        } if register.starts_with("xmm") => format!(" ({register}[{lane}] {})", mask_text(*mask)),
        Fault::Register { register, mask, .. } => format!(" ({register} {})", mask_text(*mask)),
        Fault::Memory { place, mask, .. } => {
            format!(" ({} {})", place_text(place), mask_text(*mask))
        }
        Fault::Page { place, .. } => format!(" ({})", place_text(place)),
        Fault::Clock {
            how: ClockFault::Step { ns },
        } => format!(" ({ns} ns)"),
        Fault::Clock {
            how: ClockFault::Skew { ppm },
        } => format!(" ({ppm} ppm)"),
        Fault::Stall { millis: 0 } => " (for ever)".to_owned(),
        Fault::Stall { millis } => format!(" ({millis} ms)"),
        Fault::Slow { millis, boundaries } => format!(" ({millis} ms × {boundaries})"),
        Fault::Syscall { errno } => format!(" (errno {errno})"),
        Fault::Frame {
            how: FrameFault::Delay { boundaries },
            ..
        } => format!(" ({boundaries} boundaries)"),
        _ => String::new(),
    };
    match drawn.copies {
        0 | 1 => format!("{what}{detail}"),
        copies => format!("{what}{detail} in {copies} replicas"),
    }
}

fn mask_text(mask: u64) -> String {
    match mask.count_ones() {
        1 => format!("bit {}", mask.trailing_zeros()),
        _ => format!("mask {mask:#x}"),
    }
}

fn place_text(place: &MemoryPlace) -> String {
    match place {
        MemoryPlace::Ram { .. } => "RAM".to_owned(),
        MemoryPlace::Class { class, .. } => class.clone(),
        MemoryPlace::Named { place } => place.clone(),
    }
}

/// The trigger in a few words.
#[must_use]
pub fn trigger(trigger: &Trigger) -> String {
    match trigger {
        Trigger::Boundary { boundary } => format!("at boundary {boundary}"),
        Trigger::Time { ns } => format!("at {ns} ns"),
        Trigger::Syscall { call } => format!("after system call {call}"),
        Trigger::Symbol { symbol, hit } => format!("at {symbol}, hit {hit}"),
        Trigger::Instruction { instruction } => format!("at instruction {instruction}"),
    }
}

/// Kind and number of a trigger, for tables.
#[must_use]
pub fn trigger_parts(trigger: &Trigger) -> (&'static str, String) {
    match trigger {
        Trigger::Boundary { boundary } => ("boundary", boundary.to_string()),
        Trigger::Time { ns } => ("time", ns.to_string()),
        Trigger::Syscall { call } => ("syscall", call.to_string()),
        Trigger::Symbol { symbol, hit } => ("symbol", format!("{symbol}#{hit}")),
        Trigger::Instruction { instruction } => ("instruction", instruction.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_bits_are_a_burst() {
        assert!(burst(0b111 << 60 >> 1));
        assert!(burst(u64::MAX));
        assert!(burst(3 << 62));
        assert!(!burst(0b101));
        assert_eq!(
            bits(0b1100, BitChange::Flip, true),
            "register: burst flipped"
        );
        assert_eq!(
            bits(1 << 63, BitChange::Flip, false),
            "memory: one bit flipped"
        );
    }

    #[test]
    fn registers_come_in_a_debuggers_order() {
        let mut rows = ["heap", "xmm10", "xmm2", "rip", "rax", "r8"];
        rows.sort_by_key(|row| row_rank(row));
        assert_eq!(rows, ["rax", "r8", "rip", "xmm2", "xmm10", "heap"]);
    }
}
