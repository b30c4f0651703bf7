//! One pass over the records: everything the report needs, in memory that does not grow with their number.

use std::collections::BTreeMap;
use std::ops::Add;

use crate::model::{Outcome, TrialRecord};

use super::label;
use super::sketch::Sketch;
use super::strip::Strip;

/// Different names of one sort (fault models, locations, rows, regions, strata …) that are kept apart (R10); further ones are
/// counted together as [`OTHERS`].
pub const NAMES: usize = 160;
/// What names beyond [`NAMES`] are counted as.
pub const OTHERS: &str = "(others)";
/// Trials that are listed for one outcome at one number of replicas (R10).
pub const LISTED: usize = 30;

/// Trials by outcome, in the order of [`Outcome::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub [u64; 8]);

impl Counts {
    /// Those with one outcome.
    #[must_use]
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize]
    }

    /// All trials.
    #[must_use]
    pub fn trials(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Those that say something: all but the injector's failures.
    #[must_use]
    pub fn valid(&self) -> u64 {
        self.trials() - self.of(Outcome::InjectorFailure)
    }

    /// Those that a client or operator could notice: all that are valid but masked and corrected ones.
    #[must_use]
    pub fn visible(&self) -> u64 {
        self.valid() - self.of(Outcome::Masked) - self.of(Outcome::Corrected)
    }

    /// Counts one.
    pub fn add(&mut self, outcome: Outcome) {
        self.0[outcome as usize] += 1;
    }
}

/// Valid trials of a place, those whose fault had any consequence, and those in which one could be noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Valid trials.
    pub trials: u64,
    /// Those that were not masked.
    pub unmasked: u64,
    /// Those that were neither masked nor corrected.
    pub visible: u64,
}

impl Add for Hits {
    type Output = Hits;

    fn add(self, other: Hits) -> Hits {
        Hits {
            trials: self.trials + other.trials,
            unmasked: self.unmasked + other.unmasked,
            visible: self.visible + other.visible,
        }
    }
}

impl Hits {
    fn one(outcome: Outcome) -> Hits {
        if outcome == Outcome::InjectorFailure {
            return Hits::default();
        }
        Hits {
            trials: 1,
            unmasked: u64::from(outcome != Outcome::Masked),
            visible: u64::from(!matches!(outcome, Outcome::Masked | Outcome::Corrected)),
        }
    }
}

/// Where the time of the trials went, microseconds, summed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Trials.
    pub trials: u64,
    /// Putting machines back.
    pub reset: u64,
    /// Pages put back.
    pub pages: u64,
    /// Running, without injecting.
    pub run: u64,
    /// Reaching the trigger and injecting.
    pub inject: u64,
    /// To full strength.
    pub settle: u64,
    /// Judging.
    pub judge: u64,
    /// All.
    pub total: u64,
}

/// What is known of the trials with one number of replicas.
#[derive(Clone, Debug, Default)]
pub struct OfReplicas {
    /// All trials.
    pub all: Counts,
    /// Trials whose fault hit one replica only.
    pub single: Counts,
    /// Valid trials after which all replicas voted.
    pub full_strength: u64,
    /// Those of them whose fault hit one replica only.
    pub single_full: u64,
    /// By what was done.
    pub models: BTreeMap<String, Counts>,
    /// By where.
    pub locations: BTreeMap<String, Counts>,
    /// By stratum.
    pub strata: BTreeMap<String, Counts>,
    /// By how many replicas took the same fault.
    pub copies: BTreeMap<u8, Counts>,
    /// By row and bit.
    pub bits: BTreeMap<String, Vec<Hits>>,
    /// By region and offset.
    pub strips: BTreeMap<String, Strip>,
    /// How faults were found.
    pub found: BTreeMap<String, u64>,
    /// From injection to stop, virtual nanoseconds.
    pub latency_ns: Sketch,
    /// From injection to stop, boundaries.
    pub latency_boundaries: Sketch,
    /// From stop to vote, microseconds, by step of the ladder.
    pub recovery: BTreeMap<String, Sketch>,
    /// Where the time went.
    pub times: Times,
}

/// All that is kept of the records.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By number of replicas.
    pub by: BTreeMap<u8, OfReplicas>,
    /// The worst trials: the first few of each outcome and number of replicas.
    pub worst: BTreeMap<(Outcome, u8), Vec<TrialRecord>>,
}

/// The entry of a name, as long as there is room for names.
fn named<'a, T: Default>(map: &'a mut BTreeMap<String, T>, name: &str) -> &'a mut T {
    let name = if map.len() >= NAMES && !map.contains_key(name) {
        OTHERS
    } else {
        name
    };
    map.entry(name.to_owned()).or_default()
}

impl Tally {
    /// Counts a record.
    pub fn add(&mut self, record: &TrialRecord) {
        let outcome = record.outcome;
        let of = self.by.entry(record.replicas).or_default();
        of.all.add(outcome);
        if record.drawn.copies <= 1 {
            of.single.add(outcome);
        }
        let whole = record.full_strength && outcome != Outcome::InjectorFailure;
        of.full_strength += u64::from(whole);
        of.single_full += u64::from(whole && record.drawn.copies <= 1);
        named(&mut of.models, label::model(&record.drawn.fault)).add(outcome);
        named(&mut of.locations, &label::location(record)).add(outcome);
        named(&mut of.strata, &record.drawn.stratum).add(outcome);
        of.copies
            .entry(record.drawn.copies)
            .or_default()
            .add(outcome);
        of.add_place(record);
        of.add_times(record);
        self.keep(record);
    }

    fn keep(&mut self, record: &TrialRecord) {
        let weak = record.replicas > 1 && !record.full_strength;
        if matches!(record.outcome, Outcome::Masked | Outcome::Corrected) && !weak {
            return;
        }
        let list = self
            .worst
            .entry((record.outcome, record.replicas))
            .or_default();
        // Records come in no particular order: which trials are listed must not depend on it.
        let at = list.partition_point(|kept| kept.drawn.draw < record.drawn.draw);
        if at < LISTED {
            list.insert(at, record.clone());
            list.truncate(LISTED);
        }
    }
}

impl OfReplicas {
    fn add_place(&mut self, record: &TrialRecord) {
        let hits = Hits::one(record.outcome);
        if hits.trials == 0 {
            return;
        }
        if let Some((row, mask)) = label::bit_row(record) {
            let bits = named(&mut self.bits, &row);
            bits.resize(64, Hits::default());
            for (bit, sum) in bits.iter_mut().enumerate() {
                if mask >> bit & 1 == 1 {
                    *sum = *sum + hits;
                }
            }
        }
        if let Some((region, offset)) = label::address(record) {
            named(&mut self.strips, region).add(offset, hits);
        }
        if let Some(found) = &record.detected {
            *named(&mut self.found, &found.how) += 1;
            self.latency_ns.add(found.virtual_ns);
            self.latency_boundaries.add(found.boundaries);
        }
        if let Some(back) = &record.recovered {
            named(&mut self.recovery, &back.step).add(back.micros);
        }
    }

    fn add_times(&mut self, record: &TrialRecord) {
        let (sum, one) = (&mut self.times, &record.timing);
        sum.trials += 1;
        sum.reset += one.reset;
        sum.pages += one.pages;
        sum.inject += one.inject;
        sum.run += one.run.saturating_sub(one.inject);
        sum.settle += one.settle;
        sum.judge += one.judge;
        sum.total += one.total;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::report::synthetic;

    #[test]
    fn the_order_of_records_changes_nothing() {
        let records: Vec<TrialRecord> = synthetic::records(400, &[1, 3], 7).collect();
        let (mut forwards, mut backwards) = (Tally::default(), Tally::default());
        records.iter().for_each(|r| forwards.add(r));
        records.iter().rev().for_each(|r| backwards.add(r));
        assert_eq!(forwards.worst, backwards.worst);
        assert_eq!(forwards.by[&1].all, backwards.by[&1].all);
        assert_eq!(forwards.by[&3].strata, backwards.by[&3].strata);
        assert_eq!(forwards.by[&1].all.trials(), 400);
        assert!(forwards.worst.values().all(|list| list.len() <= LISTED));
        assert!(forwards.by[&1].all.visible() > 0);
    }

    #[test]
    fn names_are_bounded() {
        let mut tally = Tally::default();
        let mut record = synthetic::records(1, &[1], 1).next().unwrap();
        for n in 0..5000 {
            record.drawn.stratum = format!("s{n}");
            tally.add(&record);
        }
        let strata = &tally.by[&1].strata;
        assert_eq!(strata.len(), NAMES + 1);
        assert_eq!(strata[OTHERS].trials(), 5000 - NAMES as u64);
    }
}
