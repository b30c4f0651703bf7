//! How many trials ended how.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Confidence, Rate};
use crate::model::{Outcome, TrialRecord};

/// Trials by outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<Outcome, u64>", into = "BTreeMap<Outcome, u64>")]
pub struct Counts([u64; Outcome::ALL.len()]);

impl Counts {
    fn index(outcome: Outcome) -> usize {
        Outcome::ALL
            .iter()
            .position(|&other| other == outcome)
            .unwrap_or(0)
    }

    /// One more.
    pub fn add(&mut self, outcome: Outcome) {
        self.0[Self::index(outcome)] += 1;
    }

    /// Those of another, too.
    pub fn merge(&mut self, other: &Counts) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// Trials with this outcome.
    #[must_use]
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.0[Self::index(outcome)]
    }

    /// All trials.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Trials that say something: all but those in which the injector failed. Rates are shares of these.
    #[must_use]
    pub fn valid(&self) -> u64 {
        self.all() - self.of(Outcome::InjectorFailure)
    }

    /// The rate of an outcome among the valid trials (of injector failures: among all).
    #[must_use]
    pub fn rate(&self, outcome: Outcome, confidence: Confidence) -> Rate {
        let trials = match outcome {
            Outcome::InjectorFailure => self.all(),
            _ => self.valid(),
        };
        Rate::new(self.of(outcome), trials, confidence)
    }
}

impl From<BTreeMap<Outcome, u64>> for Counts {
    fn from(map: BTreeMap<Outcome, u64>) -> Self {
        let mut counts = Counts::default();
        for (outcome, count) in map {
            counts.0[Self::index(outcome)] = count;
        }
        counts
    }
}

impl From<Counts> for BTreeMap<Outcome, u64> {
    fn from(counts: Counts) -> Self {
        Outcome::ALL.into_iter().zip(counts.0).collect()
    }
}

/// Counts per number of replicas and stratum. The same trials give the same table and the same JSON, in whatever order they came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeTable {
    /// By N, then by the stratum's name.
    pub replicas: BTreeMap<u8, BTreeMap<String, Counts>>,
}

/// A line of the table: an N, and a stratum or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// N.
    pub replicas: u8,
    /// The stratum; `None` is all together.
    pub stratum: Option<String>,
    /// What became of its trials.
    pub counts: Counts,
}

impl OutcomeTable {
    /// The table of these trials.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a TrialRecord>) -> Self {
        let mut table = OutcomeTable::default();
        for record in records {
            table.add(record);
        }
        table
    }

    /// One trial more.
    pub fn add(&mut self, record: &TrialRecord) {
        self.count(record.replicas, &record.drawn.stratum, record.outcome);
    }

    /// One trial more.
    pub fn count(&mut self, replicas: u8, stratum: &str, outcome: Outcome) {
        let strata = self.replicas.entry(replicas).or_default();
        match strata.get_mut(stratum) {
            Some(counts) => counts.add(outcome),
            None => strata.entry(stratum.to_owned()).or_default().add(outcome),
        }
    }

    /// All strata together, of one N.
    #[must_use]
    pub fn total(&self, replicas: u8) -> Counts {
        let mut total = Counts::default();
        for counts in self.replicas.get(&replicas).into_iter().flatten() {
            total.merge(counts.1);
        }
        total
    }

    /// Of each N first all strata together, then each.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (&replicas, strata) in &self.replicas {
            rows.push(Row {
                replicas,
                stratum: None,
                counts: self.total(replicas),
            });
            rows.extend(strata.iter().map(|(stratum, counts)| Row {
                replicas,
                stratum: Some(stratum.clone()),
                counts: counts.clone(),
            }));
        }
        rows
    }

    /// As JSON, the same bytes for the same table.
    #[must_use]
    pub fn json(&self) -> String {
        // Maps with string and number keys and counts: nothing that can fail.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn counts_and_json() {
        let mut table = OutcomeTable::default();
        table.count(3, "registers", Outcome::Masked);
        table.count(1, "registers", Outcome::Crash);
        table.count(1, "memory", Outcome::InjectorFailure);
        table.count(1, "registers", Outcome::Masked);
        let one = table.total(1);
        assert_eq!((one.all(), one.valid(), one.of(Outcome::Crash)), (3, 2, 1));
        assert_eq!(one.rate(Outcome::Crash, Confidence::P95).trials, 2);
        assert_eq!(
            one.rate(Outcome::InjectorFailure, Confidence::P95).trials,
            3
        );
        let rows = table.rows();
        let names: Vec<_> = rows
            .iter()
            .map(|row| (row.replicas, row.stratum.as_deref()))
            .collect();
        assert_eq!(
            names,
            [
                (1, None),
                (1, Some("memory")),
                (1, Some("registers")),
                (3, None),
                (3, Some("registers"))
            ]
        );
        let back: OutcomeTable = serde_json::from_str(&table.json()).unwrap();
        assert_eq!(back, table);
        assert_eq!(back.json(), table.json());
    }
}
