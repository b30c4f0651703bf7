//! Triggers: distributions over the trial's length.

use super::DrawError;
use super::stream::{Stream, joined};
use crate::file::{Distribution, Point, Span, When};
use crate::model::{GoldenFacts, Trigger};

/// A normal or exponential distribution may be so many times as wide as the trial: beyond that nearly all that is drawn would
/// have to be drawn again.
const WIDEST: f64 = 10.0;

/// [`Point::WHOLE`].
const WHOLE: f64 = 1e9;

/// What a trigger counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Boundary,
    Time,
    Syscall,
    Instruction,
}

impl Scale {
    /// The number of the first.
    fn base(self) -> u64 {
        match self {
            Scale::Boundary | Scale::Syscall => 1,
            Scale::Time | Scale::Instruction => 0,
        }
    }

    fn trigger(self, index: u64) -> Trigger {
        let number = index + self.base();
        match self {
            Scale::Boundary => Trigger::Boundary { boundary: number },
            Scale::Time => Trigger::Time { ns: number },
            Scale::Syscall => Trigger::Syscall { call: number },
            Scale::Instruction => Trigger::Instruction {
                instruction: number,
            },
        }
    }

    fn word(self) -> &'static str {
        match self {
            Scale::Boundary => "boundary",
            Scale::Time => "moment",
            Scale::Syscall => "system call",
            Scale::Instruction => "instruction",
        }
    }

    /// A number of it in words.
    fn number(self, index: u64) -> String {
        let number = index + self.base();
        match self {
            Scale::Time => millis(number as f64),
            _ => number.to_string(),
        }
    }

    /// A length of it in words.
    fn length(self, length: f64) -> String {
        match self {
            Scale::Time => millis(length),
            _ => format!("{length:.1}"),
        }
    }
}

fn millis(ns: f64) -> String {
    format!("{:.3} ms", ns / 1e6)
}

/// A distribution over indices from 0 to before the length.
#[derive(Clone, Debug, PartialEq)]
enum Spread {
    Ranges(Vec<(u64, u64)>),
    Normal { mean: f64, deviation: f64 },
    Exponential { mean: f64 },
}

/// When a stratum's faults come, for a certain golden run.
#[derive(Clone, Debug, PartialEq)]
pub enum Moments {
    #[allow(private_interfaces)]
    Scaled {
        scale: Scale,
        length: u64,
        spread: Spread,
    },
    Symbol {
        symbols: Vec<String>,
        hit: Span,
    },
}

impl Moments {
    pub fn new(when: &When, facts: &GoldenFacts) -> Result<Self, DrawError> {
        let (scale, length, distribution) = match when {
            When::Symbol { symbols, hit } => {
                return Ok(Moments::Symbol {
                    symbols: symbols.clone(),
                    hit: *hit,
                });
            }
            When::Boundary { distribution } => (Scale::Boundary, facts.boundaries, distribution),
            When::Time { distribution } => (Scale::Time, facts.virtual_ns, distribution),
            When::Syscall { distribution } => (Scale::Syscall, facts.calls, distribution),
            When::Instruction { distribution } => {
                let counted = facts.instructions.ok_or(DrawError::NotCounted)?;
                (Scale::Instruction, counted, distribution)
            }
        };
        if length == 0 {
            return Err(DrawError::Nothing {
                what: scale.word().to_owned(),
            });
        }
        Ok(Moments::Scaled {
            scale,
            length,
            spread: spread(distribution, scale, length)?,
        })
    }

    pub fn draw(&self, stream: &mut Stream) -> Trigger {
        match self {
            Moments::Symbol { symbols, hit } => Trigger::Symbol {
                symbol: stream.one(symbols).cloned().unwrap_or_default(),
                hit: stream.of(*hit).unsigned_abs(),
            },
            Moments::Scaled {
                scale,
                length,
                spread,
            } => scale.trigger(index(spread, *length, stream)),
        }
    }

    /// In words.
    pub fn words(&self) -> String {
        match self {
            Moments::Symbol { symbols, hit } => {
                let which = match symbols.as_slice() {
                    [only] => format!("`{only}`"),
                    several => format!("one of `{}`, each alike,", several.join("`, `")),
                };
                if hit.least == hit.most {
                    format!(
                        "before the first instruction of {which}, time {}",
                        hit.least
                    )
                } else {
                    format!(
                        "before the first instruction of {which}, a time drawn uniformly from {} to {}",
                        hit.least, hit.most
                    )
                }
            }
            Moments::Scaled {
                scale,
                length,
                spread,
            } => spread_words(*scale, *length, spread),
        }
    }
}

fn spread_words(scale: Scale, length: u64, spread: &Spread) -> String {
    let word = scale.word();
    let all = format!(
        "the trial has {}",
        match scale {
            Scale::Time => millis(length as f64),
            _ => length.to_string(),
        }
    );
    match spread {
        Spread::Ranges(ranges) => match ranges.as_slice() {
            [(only, last)] if only == last => {
                format!("at {word} {} ({all})", scale.number(*only))
            }
            [(first, last)] => format!(
                "at a {word} drawn uniformly from {} to {} ({all})",
                scale.number(*first),
                scale.number(*last)
            ),
            several => {
                let parts: Vec<String> = several
                    .iter()
                    .map(|(first, last)| {
                        format!("{} to {}", scale.number(*first), scale.number(*last))
                    })
                    .collect();
                format!(
                    "at a {word} drawn uniformly from one of the bursts {}, each alike ({all})",
                    parts.join(", ")
                )
            }
        },
        Spread::Normal { mean, deviation } => format!(
            "at a {word} drawn from a normal distribution with mean {} and standard deviation {}, cut to the trial ({all})",
            scale.length(mean + scale.base() as f64),
            scale.length(*deviation)
        ),
        Spread::Exponential { mean } => format!(
            "at a {word} drawn from an exponential distribution with mean {} from the beginning, cut to the trial ({all})",
            scale.length(*mean)
        ),
    }
}

fn index(spread: &Spread, length: u64, stream: &mut Stream) -> u64 {
    // Lengths are far below 2^53, and all arithmetic here is of the sort that is the same everywhere.
    #[allow(clippy::cast_precision_loss)]
    let end = length as f64;
    // The value is checked to be in the trial.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let inside =
        |value: f64| (value >= 0.0 && value < end).then(|| (value.floor() as u64).min(length - 1));
    match spread {
        Spread::Ranges(ranges) => match stream.one(ranges) {
            Some((first, last)) => stream.between(*first, *last),
            None => 0,
        },
        Spread::Normal { mean, deviation } => loop {
            let (whole, fraction, negative) = stream.normal();
            let size = deviation * joined(whole, fraction);
            let value = if negative { mean - size } else { mean + size };
            if let Some(index) = inside(value) {
                return index;
            }
        },
        Spread::Exponential { mean } => loop {
            let (whole, fraction) = stream.exponential();
            if let Some(index) = inside(mean * joined(whole, fraction)) {
                return index;
            }
        },
    }
}

/// A share of a length, rounded down and up.
#[allow(clippy::cast_possible_truncation)]
fn of(share: u32, length: u64) -> (u64, u64) {
    let whole = u128::from(Point::WHOLE);
    let product = u128::from(share) * u128::from(length);
    ((product / whole) as u64, product.div_ceil(whole) as u64)
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]
fn spread(distribution: &Distribution, scale: Scale, length: u64) -> Result<Spread, DrawError> {
    let end = length as f64;
    let index = |point: Point| match point {
        Point::Number(number) => match number.checked_sub(scale.base()) {
            Some(index) if index < length => Ok(index),
            _ => Err(DrawError::PastTheEnd {
                what: scale.word().to_owned(),
                number: scale.number(number.saturating_sub(scale.base())),
                last: scale.number(length - 1),
            }),
        },
        Point::Share(share) => Ok(of(share, length).0.min(length - 1)),
    };
    let place = |point: Point| match point {
        Point::Number(_) => Ok(index(point)? as f64 + 0.5),
        Point::Share(share) => Ok(f64::from(share) * end / WHOLE),
    };
    let width = |point: Point| {
        let width = match point {
            Point::Number(number) => number as f64,
            Point::Share(share) => f64::from(share) * end / WHOLE,
        };
        if width > end * WIDEST {
            return Err(DrawError::TooWide {
                width: scale.length(width),
                length: scale.length(end),
            });
        }
        Ok(width)
    };
    Ok(match distribution {
        Distribution::Fixed { at } => {
            let at = index(*at)?;
            Spread::Ranges(vec![(at, at)])
        }
        Distribution::Uniform { from, to } => {
            let first = index(*from)?;
            let last = match to {
                Point::Number(_) => index(*to)?,
                Point::Share(share) => of(*share, length).1.saturating_sub(1).min(length - 1),
            };
            if last < first {
                return Err(DrawError::Empty {
                    what: scale.word().to_owned(),
                    first: scale.number(first),
                    last: scale.number(last),
                });
            }
            Spread::Ranges(vec![(first, last)])
        }
        Distribution::Normal { mean, deviation } => Spread::Normal {
            mean: place(*mean)?,
            deviation: width(*deviation)?,
        },
        Distribution::Exponential { mean } => Spread::Exponential {
            mean: width(*mean)?,
        },
        Distribution::Burst { centres, width: w } => {
            let half = width(*w)? / 2.0;
            let mut ranges = Vec::new();
            for centre in centres {
                let centre = place(*centre)?;
                let first = (centre - half).max(0.0).floor() as u64;
                let last = ((centre + half).ceil() as u64).saturating_sub(1);
                let first = first.min(length - 1);
                ranges.push((first, last.clamp(first, length - 1)));
            }
            Spread::Ranges(ranges)
        }
    })
}
