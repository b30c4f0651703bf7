//! Strata in words, so that "random" is never all that a report says.

use std::collections::BTreeSet;

use serde::Serialize;

use super::what::Source;
use super::when::Moments;
use crate::file::{Bits, FaultModel, Place, errno_name};
use crate::model::BitChange;

/// The word that a value is written as in files.
pub fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        other => other.map(|value| value.to_string()).unwrap_or_default(),
    }
}

fn list<T: Serialize>(values: &[T]) -> String {
    values.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// ` (each alike)` if there are several.
fn alike<T>(values: &[T]) -> &'static str {
    if values.len() > 1 { ", each alike" } else { "" }
}

/// Fault model as in the campaign file.
pub fn model(model: &FaultModel) -> &'static str {
    match model {
        FaultModel::Memory { place, .. } if *place == Place::Classes(vec!["queues".to_owned()]) => {
            "queue"
        }
        other => other.name(),
    }
}

/// What is hit.
pub fn location(model: &FaultModel) -> String {
    match model {
        FaultModel::Register { registers, .. } => list(registers),
        FaultModel::Memory { place, .. } | FaultModel::Page { place, .. } => match place {
            Place::Ram => "ram".to_owned(),
            Place::Classes(words) | Place::Named(words) => list(words),
        },
        FaultModel::Block { how, metadata } => {
            format!(
                "{}{}",
                list(how),
                if *metadata { " (metadata)" } else { "" }
            )
        }
        FaultModel::Frame { how, direction, .. } => {
            format!("{} ({})", list(how), list(direction))
        }
        FaultModel::Clock { how, .. } => list(how),
        FaultModel::Entry { how } => list(how),
        FaultModel::Syscall { errno } => {
            let names: Vec<String> = errno.iter().map(|number| errno_name(*number)).collect();
            names.join(", ")
        }
        FaultModel::Stall { .. }
        | FaultModel::Slow { .. }
        | FaultModel::Hang
        | FaultModel::Crash => "vCPU".to_owned(),
    }
}

/// All of it: what, when, to whom.
pub fn description(model: &FaultModel, copies: u8, source: &Source, moments: &Moments) -> String {
    let whom = match copies {
        1 => "in one replica, each alike".to_owned(),
        n => format!("the same in {n} replicas next to each other, the first of them each alike"),
    };
    format!("{}; {}; {whom}", what(model, source), moments.words())
}

fn bits(bits: &Bits) -> String {
    let how_many = match (bits.count, bits.burst) {
        (1, _) => "one bit".to_owned(),
        (n, true) => format!("a burst of {n} neighbouring bits"),
        (n, false) => format!("{n} different bits"),
    };
    let verb = match (bits.count, bits.burst) {
        (1, _) | (_, true) => ("is", "stays"),
        _ => ("are", "stay"),
    };
    let changes: Vec<String> = bits
        .change
        .iter()
        .map(|change| match change {
            BitChange::Flip => format!("{} flipped once", verb.0),
            BitChange::StuckAt0 => format!("{} 0 from then on", verb.1),
            BitChange::StuckAt1 => format!("{} 1 from then on", verb.1),
        })
        .collect();
    format!("{how_many} {}{}", changes.join(" or "), alike(&bits.change))
}

fn places(place: &Place, source: &Source, of: &str) -> String {
    match place {
        Place::Ram => format!("of any {of} of the guest's RAM, each alike"),
        Place::Named(names) => format!("at {}{}", names.join(" or "), alike(names)),
        Place::Classes(_) => match source.classes.as_slice() {
            [only] => format!("of any {of} of the memory class {only}, each alike"),
            several => format!(
                "of any {of}, each alike, of one of the memory classes {}, each alike",
                several.join(", ")
            ),
        },
    }
}

fn what(model: &FaultModel, source: &Source) -> String {
    match model {
        FaultModel::Register { registers, bits: b } => {
            let names: BTreeSet<&str> = source.words.iter().map(|word| word.register).collect();
            let total: u32 = source.words.iter().map(|word| word.bits.count_ones()).sum();
            let each = if b.count == 1 {
                "each bit alike"
            } else {
                "each word by the number of its bits, each choice of bits in it alike"
            };
            format!(
                "{} in {} ({} {}, {total} bits, {each})",
                bits(b),
                list(registers),
                names.len(),
                if names.len() == 1 {
                    "register"
                } else {
                    "registers"
                }
            )
        }
        FaultModel::Memory { place, bits: b } => {
            format!(
                "{} {}",
                bits(b),
                places(place, source, "aligned 64-bit word")
            )
        }
        FaultModel::Page { place, how } => format!(
            "the page {} is hit by: {}{}",
            places(place, source, "byte"),
            list(how),
            alike(how)
        ),
        FaultModel::Block { how, metadata } => format!(
            "the next block request{} of the sort is hit by: {}{}; sector, byte and bit each alike",
            if *metadata {
                " for the file system's own blocks"
            } else {
                ""
            },
            list(how),
            alike(how)
        ),
        FaultModel::Frame {
            how,
            direction,
            delay,
        } => {
            let delay = if how.contains(&crate::file::FrameKind::Delay) {
                format!("; a delay of {delay} boundaries, each alike")
            } else {
                String::new()
            };
            format!(
                "the next frame ({}{}) is hit by: {}{}{delay}; byte and bit each alike",
                list(direction),
                alike(direction),
                list(how),
                alike(how)
            )
        }
        FaultModel::Clock { how, step_us, ppm } => {
            let kinds: Vec<String> = how
                .iter()
                .map(|kind| match kind {
                    crate::file::ClockKind::Step => {
                        format!("jumps by {step_us} µs (uniformly)")
                    }
                    crate::file::ClockKind::Skew => {
                        format!("goes wrong by {ppm} parts per million (uniformly)")
                    }
                    crate::file::ClockKind::Stop => "stands still".to_owned(),
                })
                .collect();
            format!("the clock {}{}", kinds.join(" or "), alike(how))
        }
        FaultModel::Stall { millis } if millis.least == 0 && millis.most == 0 => {
            "the vCPU stalls for ever".to_owned()
        }
        FaultModel::Stall { millis } => format!("the vCPU stalls for {millis} ms (uniformly)"),
        FaultModel::Slow { millis, boundaries } => format!(
            "the vCPU waits {millis} ms (uniformly) at each of its next {boundaries} boundaries (uniformly)"
        ),
        FaultModel::Hang => "the guest spins for ever".to_owned(),
        FaultModel::Crash => "a triple fault".to_owned(),
        FaultModel::Syscall { errno } => format!(
            "a system call fails with {}{}",
            location(model),
            alike(errno)
        ),
        FaultModel::Entry { how } => format!(
            "the entry of a boundary is hit by: {}{}; frame, byte and bit each alike",
            list(how),
            alike(how)
        ),
    }
}
