//! Two campaigns beside each other, or two N of one.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::RunError;
use super::results::{self, Reader};
use super::summary::{align, percent};
use crate::model::{Drawn, Outcome};
use crate::stats::compare::{Pairs, difference, fisher, holm};
use crate::stats::{Confidence, Counts, Interval};

/// What is compared: the trials of a directory with one N.
#[derive(Clone, Debug)]
pub struct Side {
    /// What it is called.
    pub name: String,
    /// Draws with what became of them.
    pub trials: BTreeMap<u64, (Drawn, Outcome)>,
}

impl Side {
    /// Reads a directory: a side for each N in it.
    ///
    /// # Errors
    /// If the results are damaged.
    pub fn read(directory: &Path) -> Result<BTreeMap<u8, Side>, RunError> {
        let mut sides: BTreeMap<u8, Side> = BTreeMap::new();
        for record in Reader::open(&directory.join(results::FILE))? {
            let record = record?;
            let side = sides.entry(record.replicas).or_insert_with(|| Side {
                name: format!("{} N={}", directory.display(), record.replicas),
                trials: BTreeMap::new(),
            });
            side.trials
                .insert(record.drawn.draw, (record.drawn, record.outcome));
        }
        Ok(sides)
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.trials
            .values()
            .for_each(|(_, outcome)| counts.add(*outcome));
        counts
    }
}

/// How an outcome's rates compare.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The outcome.
    pub outcome: Outcome,
    /// Events and valid trials of the first.
    pub first: (u64, u64),
    /// Of the second.
    pub second: (u64, u64),
    /// First rate less second.
    pub difference: f64,
    /// Newcombe's interval for it.
    pub interval: Interval,
    /// p-value of the two-sided exact test.
    pub p: f64,
    /// The same, adjusted for all lines (Holm).
    pub adjusted: f64,
}

/// How two sides compare.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The first.
    pub first: String,
    /// The second.
    pub second: String,
    /// So many draws are the same in both, and were compared one by one (McNemar's test); `None`: they are independent (Fisher's).
    pub pairs: Option<u64>,
    /// For each outcome that there is.
    pub lines: Vec<Line>,
}

/// Compares two sides. Draws that are the same in both are compared in pairs, if all that both have are; injector failures
/// are left out (of both, in pairs).
#[must_use]
pub fn compare(first: &Side, second: &Side, confidence: Confidence) -> Comparison {
    let common = || {
        first
            .trials
            .iter()
            .filter_map(|(draw, one)| second.trials.get(draw).map(|two| (one, two)))
    };
    let valid = |outcome: Outcome| outcome != Outcome::InjectorFailure;
    let paired = common().next().is_some() && common().all(|(one, two)| one.0 == two.0);
    let pairs: Vec<(Outcome, Outcome)> = common()
        .map(|(one, two)| (one.1, two.1))
        .filter(|&(one, two)| paired && valid(one) && valid(two))
        .collect();
    let (counts1, counts2) = (first.counts(), second.counts());
    let mut lines = Vec::new();
    for outcome in Outcome::ALL.into_iter().filter(|&outcome| valid(outcome)) {
        let line = if paired {
            let mut table = Pairs::default();
            pairs
                .iter()
                .for_each(|&(one, two)| table.add(one == outcome, two == outcome));
            let n = table.all();
            Line {
                outcome,
                first: (table.both + table.only_first, n),
                second: (table.both + table.only_second, n),
                difference: 0.0,
                interval: table.difference(confidence),
                p: table.test(),
                adjusted: 1.0,
            }
        } else {
            let (k1, n1) = (counts1.of(outcome), counts1.valid());
            let (k2, n2) = (counts2.of(outcome), counts2.valid());
            Line {
                outcome,
                first: (k1, n1),
                second: (k2, n2),
                difference: 0.0,
                interval: difference(k1, n1, k2, n2, confidence),
                p: fisher(k1, n1, k2, n2),
                adjusted: 1.0,
            }
        };
        if line.first.0 + line.second.0 > 0 {
            let difference = rate(line.first) - rate(line.second);
            lines.push(Line { difference, ..line });
        }
    }
    let adjusted = holm(&lines.iter().map(|line| line.p).collect::<Vec<_>>());
    for (line, adjusted) in lines.iter_mut().zip(adjusted) {
        line.adjusted = adjusted;
    }
    Comparison {
        first: first.name.clone(),
        second: second.name.clone(),
        pairs: paired.then_some(pairs.len() as u64),
        lines,
    }
}

fn rate((events, trials): (u64, u64)) -> f64 {
    if trials == 0 {
        0.0
    } else {
        events as f64 / trials as f64
    }
}

impl Comparison {
    /// For people.
    #[must_use]
    pub fn text(&self, confidence: Confidence) -> String {
        let test = match self.pairs {
            Some(pairs) => format!(
                "{pairs} draws that are the same in both, compared in pairs: McNemar's exact test"
            ),
            None => "independent draws: Fisher's exact test".to_owned(),
        };
        let mut rows = vec![
            [
                "  outcome",
                "first",
                "second",
                "difference",
                &format!("{confidence} interval (Newcombe)"),
                "p",
                "p adjusted (Holm)",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        let count =
            |side: (u64, u64)| format!("{} of {} ({})", side.0, side.1, percent(rate(side)));
        for line in &self.lines {
            rows.push(vec![
                format!("  {}", line.outcome),
                count(line.first),
                count(line.second),
                format!("{:+.2} %", 100.0 * line.difference),
                format!(
                    "{:+.2} to {:+.2} %",
                    100.0 * line.interval.low,
                    100.0 * line.interval.high
                ),
                probability(line.p),
                probability(line.adjusted),
            ]);
        }
        format!(
            "{} against {}\n{test}\n{}",
            self.first,
            self.second,
            align(&rows)
        )
    }
}

fn probability(p: f64) -> String {
    if p < 1e-4 {
        format!("{p:.1e}")
    } else {
        format!("{p:.4}")
    }
}
