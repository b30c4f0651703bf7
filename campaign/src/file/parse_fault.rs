//! From a `[[fault]]` table to a [`FaultSpec`].

use super::fault::{Bits, ClockKind, FaultModel, FaultSpec, FrameKind, Place, Span};
use super::parse::{name, u8_of};
use super::parse_when::when;
use super::reader::{Problem, Table, listed};
use super::{MAX_REPLICAS, MAX_WEIGHT, names};
use crate::model::{BitChange, BlockFault, Direction, EntryFault, PageFault};

/// Keys that all models take.
pub(super) const COMMON: &[&str] = &["name", "model", "copies", "weight", "when"];
/// Keys that say when a fault comes.
pub(super) const TRIGGER: &[&str] = &[
    "at",
    "distribution",
    "from",
    "to",
    "mean",
    "deviation",
    "centres",
    "width",
    "symbol",
    "hit",
];

/// Words of `model`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Register,
    Memory,
    Queue,
    Page,
    Block,
    Frame,
    Clock,
    Stall,
    Slow,
    Hang,
    Crash,
    Syscall,
    Entry,
}

/// Each model with the keys that it alone takes.
pub(super) const MODELS: &[(&str, Kind, &[&str])] = &[
    (
        "register",
        Kind::Register,
        &["registers", "bits", "burst", "change", "split"],
    ),
    (
        "memory",
        Kind::Memory,
        &["class", "place", "bits", "burst", "change", "split"],
    ),
    ("queue", Kind::Queue, &["bits", "burst", "change"]),
    ("page", Kind::Page, &["class", "place", "how", "split"]),
    ("block", Kind::Block, &["how", "metadata", "split"]),
    (
        "frame",
        Kind::Frame,
        &["how", "direction", "delay", "split"],
    ),
    ("clock", Kind::Clock, &["how", "step_us", "ppm", "split"]),
    ("stall", Kind::Stall, &["millis"]),
    ("slow", Kind::Slow, &["millis", "boundaries"]),
    ("hang", Kind::Hang, &[]),
    ("crash", Kind::Crash, &[]),
    ("syscall", Kind::Syscall, &["errno", "split"]),
    ("entry", Kind::Entry, &["how", "split"]),
];

/// A second, in microseconds.
const SECOND_US: i64 = 1_000_000;
/// A million parts per million: the clock at double speed, or standing.
const MAX_PPM: i64 = 1_000_000;
/// Bits of a word.
const WORD: u8 = 64;

pub(super) fn fault(mut table: Table<'_>) -> Result<FaultSpec, Problem> {
    let mut known: Vec<&str> = COMMON.iter().chain(TRIGGER).copied().collect();
    for (_, _, keys) in MODELS {
        known.extend(
            keys.iter()
                .filter(|key| !known.contains(key))
                .copied()
                .collect::<Vec<_>>(),
        );
    }
    let own_name = match table.get("name") {
        Some(value) => Some(name(&value)?),
        None => None,
    };
    if let Some(name) = &own_name {
        table.place = format!("in [[fault]] \"{name}\"");
    }
    table.only(&known)?;
    let words: Vec<(&'static str, Kind)> = MODELS
        .iter()
        .map(|(word, kind, _)| (*word, *kind))
        .collect();
    let kind = table
        .need("model", "model = \"register\"")?
        .one_of(&words)?;
    let (word, own) = MODELS
        .iter()
        .find(|(_, candidate, _)| *candidate == kind)
        .map_or(("", &[][..]), |(word, _, own)| (*word, *own));
    for key in table.keys() {
        if !COMMON.contains(&key) && !TRIGGER.contains(&key) && !own.contains(&key) {
            let takes = match own {
                [] => "it has no keys of its own".to_owned(),
                own => format!("its own keys: {}", listed(own, "and")),
            };
            return Err(
                table.problem_at(key, format!("does not go with model \"{word}\"; {takes}"))
            );
        }
    }
    Ok(FaultSpec {
        fault: model(&table, kind)?,
        copies: match table.get("copies") {
            Some(value) => {
                let mut copies = Vec::new();
                for item in value.one_or_list()? {
                    let number = u8_of(&item, 1, MAX_REPLICAS)?;
                    if copies.contains(&number) {
                        return Err(item.problem(format!("{number} is there twice")));
                    }
                    copies.push(number);
                }
                copies
            }
            None => vec![1],
        },
        split: match table.get("split") {
            Some(value) => value.boolean()?,
            None => false,
        },
        weight: match table.get("weight") {
            Some(value) => {
                let weight = value.integer(1..=u64::from(MAX_WEIGHT))?;
                u32::try_from(weight).map_err(|_| value.problem("is too large"))?
            }
            None => 1,
        },
        when: when(&table, kind)?,
        name: own_name.unwrap_or_else(|| word.to_owned()),
    })
}

fn model(table: &Table<'_>, kind: Kind) -> Result<FaultModel, Problem> {
    Ok(match kind {
        Kind::Register => {
            let bits = bits(table)?;
            FaultModel::Register {
                registers: registers(table, &bits)?,
                bits,
            }
        }
        Kind::Memory => FaultModel::Memory {
            place: place(table)?,
            bits: bits(table)?,
        },
        Kind::Queue => FaultModel::Memory {
            place: Place::Classes(vec!["queues".to_owned()]),
            bits: bits(table)?,
        },
        Kind::Page => FaultModel::Page {
            place: place(table)?,
            how: kinds(
                table,
                "how",
                &[("drop", PageFault::Drop), ("zero", PageFault::Zero)],
            )?,
        },
        Kind::Block => FaultModel::Block {
            how: kinds(
                table,
                "how",
                &[
                    ("corrupt", BlockFault::Corrupt),
                    ("torn", BlockFault::Torn),
                    ("lost", BlockFault::Lost),
                    ("misdirected", BlockFault::Misdirected),
                    ("read-error", BlockFault::ReadError),
                    ("read-corrupt", BlockFault::ReadCorrupt),
                ],
            )?,
            metadata: match table.get("metadata") {
                Some(value) => value.boolean()?,
                None => false,
            },
        },
        Kind::Frame => frame(table)?,
        Kind::Clock => clock(table)?,
        Kind::Stall => FaultModel::Stall {
            millis: span(table, "millis", Span::only(0), 0, 60_000)?,
        },
        Kind::Slow => FaultModel::Slow {
            millis: span(table, "millis", Span::only(5), 1, 1000)?,
            boundaries: span(table, "boundaries", Span::only(100), 1, 1_000_000)?,
        },
        Kind::Hang => FaultModel::Hang,
        Kind::Crash => FaultModel::Crash,
        Kind::Syscall => FaultModel::Syscall {
            errno: errno(table)?,
        },
        Kind::Entry => FaultModel::Entry {
            how: kinds(
                table,
                "how",
                &[("lost", EntryFault::Lost), ("altered", EntryFault::Altered)],
            )?,
        },
    })
}

fn frame(table: &Table<'_>) -> Result<FaultModel, Problem> {
    let how = kinds(
        table,
        "how",
        &[
            ("drop", FrameKind::Drop),
            ("corrupt", FrameKind::Corrupt),
            ("duplicate", FrameKind::Duplicate),
            ("reorder", FrameKind::Reorder),
            ("delay", FrameKind::Delay),
        ],
    )?;
    if table.has("delay") && !how.contains(&FrameKind::Delay) {
        return Err(table.problem_at("delay", "goes with `how = \"delay\"` only"));
    }
    Ok(FaultModel::Frame {
        how,
        direction: kinds(
            table,
            "direction",
            &[("output", Direction::Output), ("input", Direction::Input)],
        )?,
        delay: span(table, "delay", Span { least: 1, most: 20 }, 1, 1_000_000)?,
    })
}

fn clock(table: &Table<'_>) -> Result<FaultModel, Problem> {
    let how = kinds(
        table,
        "how",
        &[
            ("step", ClockKind::Step),
            ("skew", ClockKind::Skew),
            ("stop", ClockKind::Stop),
        ],
    )?;
    for (key, kind, word) in [
        ("step_us", ClockKind::Step, "step"),
        ("ppm", ClockKind::Skew, "skew"),
    ] {
        if table.has(key) && !how.contains(&kind) {
            return Err(table.problem_at(key, format!("goes with `how = \"{word}\"` only")));
        }
    }
    let hour = 3600 * SECOND_US;
    let second = Span {
        least: -SECOND_US,
        most: SECOND_US,
    };
    let thousand = Span {
        least: -1000,
        most: 1000,
    };
    Ok(FaultModel::Clock {
        how,
        step_us: span(table, "step_us", second, -hour, hour)?,
        ppm: span(table, "ppm", thousand, -MAX_PPM, MAX_PPM)?,
    })
}

/// A list of kinds without repetitions; all of them if the key is absent.
fn kinds<T: Copy + PartialEq>(
    table: &Table<'_>,
    key: &str,
    known: &[(&'static str, T)],
) -> Result<Vec<T>, Problem> {
    let Some(value) = table.get(key) else {
        return Ok(known.iter().map(|(_, kind)| *kind).collect());
    };
    let mut kinds = Vec::new();
    for item in value.one_or_list()? {
        let kind = item.one_of(known)?;
        if kinds.contains(&kind) {
            return Err(item.problem(format!("\"{}\" is there twice", item.text()?)));
        }
        kinds.push(kind);
    }
    Ok(kinds)
}

pub(super) fn span(
    table: &Table<'_>,
    key: &str,
    default: Span,
    least: i64,
    most: i64,
) -> Result<Span, Problem> {
    let Some(value) = table.get(key) else {
        return Ok(default);
    };
    if !value.is_list() {
        return value.signed(least..=most).map(Span::only);
    }
    let items = value.list()?;
    let [from, to] = items.as_slice() else {
        return Err(value.problem("write a number, or a range as [least, most]"));
    };
    let span = Span {
        least: from.signed(least..=most)?,
        most: to.signed(least..=most)?,
    };
    if span.least > span.most {
        return Err(value.problem(format!(
            "the range [{}, {}] is empty: write the lesser number first",
            span.least, span.most
        )));
    }
    Ok(span)
}

fn bits(table: &Table<'_>) -> Result<Bits, Problem> {
    if table.has("bits") && table.has("burst") {
        return Err(table.problem_at(
            "burst",
            "says how many bits side by side, `bits` how many anywhere: give only one of the two",
        ));
    }
    let number = |key: &str| match table.get(key) {
        Some(value) => u8_of(&value, 1, WORD).map(Some),
        None => Ok(None),
    };
    let burst = number("burst")?;
    Ok(Bits {
        count: match burst {
            Some(burst) => burst,
            None => number("bits")?.unwrap_or(1),
        },
        burst: burst.is_some(),
        change: if table.has("change") {
            kinds(
                table,
                "change",
                &[
                    ("flip", BitChange::Flip),
                    ("stuck-at-0", BitChange::StuckAt0),
                    ("stuck-at-1", BitChange::StuckAt1),
                ],
            )?
        } else {
            vec![BitChange::Flip]
        },
    })
}

fn registers(table: &Table<'_>, bits: &Bits) -> Result<Vec<String>, Problem> {
    let Some(value) = table.get("registers") else {
        return Ok(vec!["general".to_owned()]);
    };
    let mut words: Vec<String> = Vec::new();
    for item in value.one_or_list()? {
        let word = item.text()?;
        let registers = names::register_words(word).map_err(|message| item.problem(message))?;
        for register in &registers {
            if register.bits().count_ones() < u32::from(bits.count) && registers.len() == 1 {
                return Err(item.problem(format!(
                    "{} has {} bits that can be hit, fewer than the {} asked for",
                    register.name(),
                    register.bits().count_ones(),
                    bits.count
                )));
            }
            let twice = words.iter().find(|other| {
                names::register_words(other).is_ok_and(|others| others.contains(register))
            });
            if let Some(other) = twice {
                return Err(item.problem(format!(
                    "{} is there twice: in \"{other}\" and \"{word}\"",
                    register.name()
                )));
            }
        }
        words.push(word.to_owned());
    }
    Ok(words)
}

fn place(table: &Table<'_>) -> Result<Place, Problem> {
    if table.has("class") && table.has("place") {
        return Err(table.problem_at(
            "place",
            "goes in place of `class`: give only one of the two",
        ));
    }
    if let Some(value) = table.get("place") {
        let mut places = Vec::new();
        for item in value.one_or_list()? {
            let text = item.text()?;
            let place = text.parse::<quorate_executor::place::Place>();
            place.map_err(|message| item.problem(message))?;
            places.push(text.to_owned());
        }
        return Ok(Place::Named(places));
    }
    let value = table.need("class", "class = \"heap\"")?;
    let items = value.one_or_list()?;
    let mut classes: Vec<String> = Vec::new();
    for item in &items {
        let word = item.text()?;
        if word == "ram" {
            if items.len() > 1 {
                return Err(item.problem("\"ram\" is all there is: it goes alone"));
            }
            return Ok(Place::Ram);
        }
        let meant = names::class_words(word).map_err(|message| item.problem(message))?;
        for class in meant {
            if let Some(other) = classes
                .iter()
                .find(|other| names::class_words(other).is_ok_and(|others| others.contains(&class)))
            {
                return Err(item.problem(format!(
                    "{class} is there twice: in \"{other}\" and \"{word}\""
                )));
            }
        }
        classes.push(word.to_owned());
    }
    Ok(Place::Classes(classes))
}

fn errno(table: &Table<'_>) -> Result<Vec<u16>, Problem> {
    let Some(value) = table.get("errno") else {
        return Ok(vec![5]);
    };
    let mut errors = Vec::new();
    for item in value.one_or_list()? {
        let number = if item.is_integer() {
            let number = item.integer(1..=u64::from(names::MAX_ERRNO))?;
            u16::try_from(number).map_err(|_| item.problem("is too large"))?
        } else {
            names::errno(item.text()?).map_err(|message| item.problem(message))?
        };
        if errors.contains(&number) {
            let name = names::errno_name(number);
            return Err(item.problem(format!("{name} is there twice")));
        }
        errors.push(number);
    }
    Ok(errors)
}
