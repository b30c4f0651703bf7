//! Draws faults: a pure function of the campaign's seed, the number of the draw and what is known of the golden run.
//!
//! Any draw can be made without the ones before it, so that a campaign can be split, resumed and have one trial repeated. Draws
//! are with replacement: a campaign that is long enough tries the same fault twice. Each draw belongs to a stratum by a fixed
//! order that respects the weights ([`Rota`]).

use crate::file::{Campaign, FaultModel, FaultSpec, Place};
use crate::model::{Drawn, GoldenFacts};

mod bits;
mod rota;
mod stream;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_when;
mod what;
mod when;
mod words;

pub use rota::{MAX_ROUND, Rota};
pub use stream::{DRAWING, Stream};

use what::Source;
use when::Moments;

/// Most strata of a campaign (R10).
pub const MAX_STRATA: usize = 4096;
/// The first victim is drawn below this: a multiple of every number of replicas from 1 to 9, so that each replica is exactly
/// alike in a set of any size.
pub const VICTIMS: u64 = 2520;

/// Why nothing can be drawn. [`DrawError::In`] says for which stratum.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrawError {
    /// Of a stratum.
    #[error("[[fault]] \"{stratum}\": {error}")]
    In {
        /// The stratum's name.
        stratum: String,
        /// What.
        error: Box<DrawError>,
    },
    /// Something is to come where the trial is over.
    #[error("{what} {number} is past the trial's end: the golden run's last is {last}")]
    PastTheEnd {
        /// Boundary, moment and so on.
        what: String,
        /// Which.
        number: String,
        /// The last that there is.
        last: String,
    },
    /// A range has nothing in it.
    #[error("there is no {what} from {first} to {last} in the golden run")]
    Empty {
        /// Boundary, moment and so on.
        what: String,
        /// The first.
        first: String,
        /// The last.
        last: String,
    },
    /// A distribution is hardly one any more.
    #[error(
        "a distribution with a width of {width} over a trial of {length} is nearly uniform: write distribution = \"uniform\""
    )]
    TooWide {
        /// Standard deviation or mean.
        width: String,
        /// Of the trial.
        length: String,
    },
    /// The golden run has none of it.
    #[error(
        "the golden run has no {what}, so no fault can come at one: does the client do anything?"
    )]
    Nothing {
        /// Boundary, moment and so on.
        what: String,
    },
    /// Triggers by instruction need their number.
    #[error("instructions were not counted in the golden run: prepare it again")]
    NotCounted,
    /// No bits can be drawn.
    #[error("none of the registers has {count} bits that can be hit")]
    TooManyBits {
        /// How many are to be changed.
        count: u8,
    },
    /// Too many strata or too large weights.
    #[error(
        "{strata} strata with weights of {round} in all are too many: at most {MAX_STRATA} strata and {MAX_ROUND} draws in a round"
    )]
    TooMany {
        /// How many.
        strata: usize,
        /// Sum of the weights.
        round: u64,
    },
}

/// One stratum, for reports.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stratum {
    /// Its name, as in [`Drawn::stratum`].
    pub name: String,
    /// Draws of it in a round.
    pub weight: u32,
    /// Fault model: `register`, `memory`, `queue` and so on.
    pub model: String,
    /// What is hit: groups of registers, classes of memory, or how a request or frame goes wrong.
    pub location: String,
    /// To how many replicas the same is done.
    pub copies: u8,
    /// What is drawn, and from which distributions, in words.
    pub description: String,
}

/// A stratum, ready to be drawn from.
struct Ready {
    stratum: Stratum,
    source: Source,
    moments: Moments,
}

/// Draws the faults of a campaign.
pub struct Drawer {
    seed: String,
    strata: Vec<Ready>,
    rota: Rota,
}

impl Drawer {
    /// Prepares to draw for a golden run.
    ///
    /// # Errors
    /// [`DrawError`], when a fault is to come where the golden run has nothing, or there are too many strata.
    pub fn new(campaign: &Campaign, facts: &GoldenFacts) -> Result<Self, DrawError> {
        let mut strata = Vec::new();
        for spec in &campaign.faults {
            for (name, part, copies) in parts(spec) {
                let within = |error| DrawError::In {
                    stratum: name.clone(),
                    error: Box::new(error),
                };
                let source = Source::new(&part).map_err(within)?;
                let moments = Moments::new(&spec.when, facts).map_err(within)?;
                let description = words::description(&part, copies, &source, &moments);
                let stratum = Stratum {
                    weight: spec.weight,
                    model: words::model(&part).to_owned(),
                    location: words::location(&part),
                    copies,
                    description,
                    name,
                };
                strata.push(Ready {
                    stratum,
                    source,
                    moments,
                });
            }
        }
        let weights: Vec<u32> = strata.iter().map(|ready| ready.stratum.weight).collect();
        let too_many = |round| DrawError::TooMany {
            strata: strata.len(),
            round,
        };
        let sum = weights.iter().map(|weight| u64::from(*weight)).sum();
        if strata.len() > MAX_STRATA || strata.is_empty() {
            return Err(too_many(sum));
        }
        Ok(Self {
            seed: campaign.seed.clone(),
            rota: Rota::new(&weights).map_err(too_many)?,
            strata,
        })
    }

    /// Draw number `draw`. The same whenever, wherever and in whatever order it is asked for.
    #[must_use]
    pub fn draw(&self, draw: u64) -> Drawn {
        let ready = &self.strata[self.rota.stratum(draw)];
        let stream = |purpose| Stream::new(&self.seed, draw, purpose);
        Drawn {
            draw,
            stratum: ready.stratum.name.clone(),
            fault: ready.source.draw(&mut stream("fault")),
            trigger: ready.moments.draw(&mut stream("trigger")),
            copies: ready.stratum.copies,
            victim: stream("victim").below(VICTIMS),
        }
    }

    /// The strata, in the order of the file.
    #[must_use]
    pub fn strata(&self) -> Vec<Stratum> {
        self.strata
            .iter()
            .map(|ready| ready.stratum.clone())
            .collect()
    }

    /// Draws after which each stratum has had exactly its weight (divided by what all weights have in common).
    #[must_use]
    pub fn round(&self) -> u64 {
        self.rota.draws()
    }
}

/// The strata of a `[[fault]]`: name, what is drawn, number of replicas.
fn parts(spec: &FaultSpec) -> Vec<(String, FaultModel, u8)> {
    let mut parts = Vec::new();
    for (item, model) in items(spec) {
        for copies in &spec.copies {
            let mut name = spec.name.clone();
            if let Some(item) = &item {
                name = format!("{name}/{item}");
            }
            if spec.copies.len() > 1 {
                name = format!("{name}/x{copies}");
            }
            parts.push((name, model.clone(), *copies));
        }
    }
    parts
}

/// The models of a `[[fault]]`: one, or one for each item of the list that says what is hit.
fn items(spec: &FaultSpec) -> Vec<(Option<String>, FaultModel)> {
    fn each<T: Clone>(
        list: &[T],
        name: impl Fn(&T) -> String,
        model: impl Fn(Vec<T>) -> FaultModel,
    ) -> Vec<(Option<String>, FaultModel)> {
        list.iter()
            .map(|item| (Some(name(item)), model(vec![item.clone()])))
            .collect()
    }
    if !spec.split {
        return vec![(None, spec.fault.clone())];
    }
    let places = |place: &Place, model: &dyn Fn(Place) -> FaultModel| match place {
        Place::Ram => vec![(None, model(Place::Ram))],
        Place::Classes(classes) => each(classes, String::clone, |one| model(Place::Classes(one))),
        Place::Named(names) => names
            .iter()
            .enumerate()
            .map(|(number, name)| {
                (
                    Some(format!("place{}", number + 1)),
                    model(Place::Named(vec![name.clone()])),
                )
            })
            .collect(),
    };
    match &spec.fault {
        FaultModel::Register { registers, bits } => {
            each(registers, String::clone, |registers| FaultModel::Register {
                registers,
                bits: bits.clone(),
            })
        }
        FaultModel::Memory { place, bits } => places(place, &|place| FaultModel::Memory {
            place,
            bits: bits.clone(),
        }),
        FaultModel::Page { place, how } => places(place, &|place| FaultModel::Page {
            place,
            how: how.clone(),
        }),
        FaultModel::Block { how, metadata } => each(how, words::word, |how| FaultModel::Block {
            how,
            metadata: *metadata,
        }),
        FaultModel::Frame {
            how,
            direction,
            delay,
        } => each(how, words::word, |how| FaultModel::Frame {
            how,
            direction: direction.clone(),
            delay: *delay,
        }),
        FaultModel::Clock { how, step_us, ppm } => {
            each(how, words::word, |how| FaultModel::Clock {
                how,
                step_us: *step_us,
                ppm: *ppm,
            })
        }
        FaultModel::Syscall { errno } => each(
            errno,
            |number| crate::file::errno_name(*number),
            |errno| FaultModel::Syscall { errno },
        ),
        FaultModel::Entry { how } => each(how, words::word, |how| FaultModel::Entry { how }),
        FaultModel::Stall { .. }
        | FaultModel::Slow { .. }
        | FaultModel::Hang
        | FaultModel::Crash => vec![(None, spec.fault.clone())],
    }
}
