//! The tables that a campaign ends with, on standard output.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write;

use crate::model::{Outcome, Timing, TrialRecord};
use crate::stats::{Confidence, Counts, Interval, Method, OutcomeTable, upper_bound};

/// What is summed up over trials, for the closing tables.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Outcomes.
    pub table: OutcomeTable,
    /// Where the time went, per N: sums and trials.
    pub times: BTreeMap<u8, (Timing, u64)>,
    /// Trials after which not all replicas voted again, per N.
    pub weakened: BTreeMap<u8, u64>,
    /// The worst trials, worst first; at most [`WORST`] (R10).
    worst: BTreeMap<(Reverse<u8>, Reverse<u8>, u64), TrialRecord>,
}

/// Trials that are named at the end.
pub const WORST: usize = 5;

/// How bad an outcome is with so many replicas, from 0: the same is worse where replicas should have masked it.
fn badness(record: &TrialRecord) -> u8 {
    match record.outcome {
        Outcome::SilentCorruption => 5,
        Outcome::ClientError | Outcome::Hang | Outcome::Crash => 4,
        Outcome::Stopped => 3,
        Outcome::InjectorFailure => 2,
        Outcome::Masked | Outcome::Corrected => u8::from(!record.full_strength),
    }
}

impl Summary {
    /// One trial more.
    pub fn add(&mut self, record: &TrialRecord) {
        self.table.add(record);
        let (sum, trials) = self.times.entry(record.replicas).or_default();
        let one = record.timing;
        for (mine, theirs) in [
            (&mut sum.reset, one.reset),
            (&mut sum.pages, one.pages),
            (&mut sum.run, one.run),
            (&mut sum.inject, one.inject),
            (&mut sum.settle, one.settle),
            (&mut sum.judge, one.judge),
            (&mut sum.total, one.total),
        ] {
            *mine = mine.saturating_add(theirs);
        }
        *trials += 1;
        let bad = badness(record);
        if bad > 0 {
            let key = (Reverse(record.replicas), Reverse(bad), record.drawn.draw);
            self.worst.insert(key, record.clone());
            if self.worst.len() > WORST {
                self.worst.pop_last();
            }
        }
        *self.weakened.entry(record.replicas).or_default() += u64::from(!record.full_strength);
    }

    /// The worst trials, worst first: what more replicas did not mask, then what fewer did not. With draw and N.
    pub fn worst(&self) -> impl Iterator<Item = (u64, u8, &TrialRecord)> {
        self.worst
            .values()
            .map(|record| (record.drawn.draw, record.replicas, record))
    }

    /// The tables. `confidence` and `method` are those of the intervals.
    #[must_use]
    pub fn text(&self, method: Method, confidence: Confidence) -> String {
        let mut text = String::new();
        for &replicas in self.table.replicas.keys() {
            self.outcomes(&mut text, replicas, method, confidence);
        }
        for &replicas in self.table.replicas.keys() {
            self.strata(&mut text, replicas, method, confidence);
        }
        self.time(&mut text);
        text
    }

    fn outcomes(&self, text: &mut String, replicas: u8, method: Method, confidence: Confidence) {
        let counts = self.table.total(replicas);
        let name = match method {
            Method::Exact => "exact",
            Method::Wilson => "Wilson",
        };
        let mut rows = vec![cells([
            &format!("N={replicas}"),
            "trials",
            "rate",
            &format!("{confidence} interval ({name})"),
        ])];
        for outcome in Outcome::ALL {
            let rate = counts.rate(outcome, confidence);
            // Of the bad outcomes it is told, too, that there were none.
            let told = rate.events > 0
                || (outcome >= Outcome::ClientError && outcome != Outcome::InjectorFailure);
            if !told {
                continue;
            }
            let said = if rate.events == 0 && rate.trials > 0 {
                format!(
                    "below {} %",
                    short(100.0 * upper_bound(0, rate.trials, confidence))
                )
            } else {
                span(method.interval(rate.events, rate.trials, confidence))
            };
            rows.push(cells([
                &format!("  {outcome}"),
                &rate.events.to_string(),
                &percent(rate.rate),
                &said,
            ]));
        }
        text.push_str(&align(&rows));
        let weakened = self.weakened.get(&replicas).copied().unwrap_or(0);
        if replicas > 1 {
            let _ = writeln!(
                text,
                "  full strength at the end of {} of {} trials",
                counts.all() - weakened,
                counts.all()
            );
        }
        text.push('\n');
    }

    fn strata(&self, text: &mut String, replicas: u8, method: Method, confidence: Confidence) {
        let Some(strata) = self
            .table
            .replicas
            .get(&replicas)
            .filter(|strata| strata.len() > 1)
        else {
            return;
        };
        let total = self.table.total(replicas);
        let shown: Vec<Outcome> = Outcome::ALL
            .into_iter()
            .filter(|&outcome| total.of(outcome) > 0)
            .collect();
        let mut header = vec![format!("N={replicas}, by stratum"), "trials".to_owned()];
        header.extend(shown.iter().map(|outcome| outcome.to_string()));
        header.push(format!("harmed ({confidence})"));
        let mut rows = vec![header];
        for (stratum, counts) in strata {
            let mut row = vec![format!("  {stratum}"), counts.all().to_string()];
            row.extend(shown.iter().map(|&outcome| counts.of(outcome).to_string()));
            row.push(span(method.interval(
                harmed(counts),
                counts.valid(),
                confidence,
            )));
            rows.push(row);
        }
        text.push_str(&align(&rows));
        text.push('\n');
    }

    fn time(&self, text: &mut String) {
        if self.times.is_empty() {
            return;
        }
        let mut rows = vec![cells([
            "time per trial, ms",
            "all",
            "reset",
            "run",
            "of that inject",
            "settle",
            "judge",
            "pages put back",
        ])];
        for (replicas, (sum, trials)) in &self.times {
            let mean =
                |micros: u64| format!("{:.2}", micros as f64 / 1000.0 / (*trials).max(1) as f64);
            rows.push(cells([
                &format!("  N={replicas}"),
                &mean(sum.total),
                &mean(sum.reset),
                &mean(sum.run),
                &mean(sum.inject),
                &mean(sum.settle),
                &mean(sum.judge),
                &(sum.pages / (*trials).max(1)).to_string(),
            ]));
        }
        text.push_str(&align(&rows));
    }
}

/// Trials in which somebody outside was harmed: error, hang, crash or corruption.
#[must_use]
pub fn harmed(counts: &Counts) -> u64 {
    [
        Outcome::ClientError,
        Outcome::Hang,
        Outcome::Crash,
        Outcome::SilentCorruption,
    ]
    .into_iter()
    .map(|outcome| counts.of(outcome))
    .sum()
}

fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// A number of per cents with three significant digits.
fn short(percent: f64) -> String {
    let digits = if percent >= 99.95 || percent <= 0.0 {
        0
    } else {
        (2.0 - percent.log10().floor()).clamp(0.0, 8.0) as usize
    };
    format!("{percent:.digits$}")
}

pub(super) fn percent(fraction: f64) -> String {
    format!("{} %", short(100.0 * fraction))
}

fn span(interval: Interval) -> String {
    format!(
        "{} to {} %",
        short(100.0 * interval.low),
        short(100.0 * interval.high)
    )
}

/// Pads the cells of each column to the same width; all but the first column are set to the right.
#[must_use]
pub fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let width = |row: &Vec<String>| row.get(column).map_or(0, |cell| cell.chars().count());
            rows.iter().map(width).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column == 0 {
                write!(line, "{cell:<width$}")
            } else {
                write!(line, "  {cell:>width$}")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
