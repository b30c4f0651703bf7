//! What was measured of recovery, as Markdown.

use super::latency::Latency;
use super::{Comeback, KEYS, LOADS, MEMORY, REPLICAS, Recovery, SETTINGS, Setting, VALUE};
use crate::load::{Sample, median, median_sample};
use crate::report::{table, thousands};

/// Share of the throughput without recovery that is to be left with a checkpoint each second.
const AIM_THROUGHPUT: f64 = 0.95;
/// What counts as no step of p99: what two measurements of the same thing differ by.
const AIM_P99: f64 = 1.15;
/// From a fault to full strength, milliseconds.
const AIM_STRENGTH_MS: f64 = 300.0;

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

impl Recovery {
    /// Throughput of a setting against that without recovery, round by round.
    fn ratio(&self, setting: usize, load: usize) -> Option<f64> {
        self.against(setting, load, |sample| sample.rps)
    }

    fn against(&self, setting: usize, load: usize, figure: fn(&Sample) -> f64) -> Option<f64> {
        let [these, base] = [setting, 0].map(|index| &self.samples[index][load]);
        let ratios: Vec<f64> = these
            .iter()
            .zip(base)
            .map(|(this, base)| figure(this) / figure(base))
            .collect();
        (!ratios.is_empty()).then(|| median(ratios))
    }

    /// The report.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "Redis, N={REPLICAS}, a guest of {MEMORY}iB; medians of {} rounds, settings in turns.\n\n\
             Throughput with 50 connections in requests per second, its ratio to that without recovery, and p50 / p99 in \
             milliseconds:\n\n",
            self.rounds
        );
        let mut rows = vec![row(&["checkpoints"])];
        for load in LOADS {
            rows[0].extend([load.name(), "ratio".to_owned(), "p50 / p99".to_owned()]);
        }
        for (index, setting) in SETTINGS.into_iter().enumerate() {
            let mut cells = row(&[setting.name()]);
            for load in 0..LOADS.len() {
                let samples = &self.samples[index][load];
                let sample = median_sample(samples);
                cells.extend([
                    thousands(sample.rps),
                    self.ratio(index, load)
                        .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}")),
                    format!("{:.2} / {:.2}", sample.p50_ms, sample.p99_ms),
                ]);
            }
            rows.push(cells);
        }
        table(&mut text, &rows);
        self.latencies(&mut text);
        self.pauses(&mut text);
        self.comebacks(&mut text);
        self.journals(&mut text);
        self.aims(&mut text);
        for failure in &self.failures {
            text.push_str(&format!(
                "- **failed**: {}\n",
                failure.replace('\n', "\n  ")
            ));
        }
        text
    }

    fn latencies(&self, text: &mut String) {
        text.push_str(&format!(
            "\nLatency of every single request of 8 connections, milliseconds, with {} keys of {VALUE} bytes in the guest:\n\n",
            thousands(KEYS.into())
        ));
        let mut rows = vec![row(&[
            "meanwhile",
            "requests",
            "p50",
            "p99",
            "p99.9",
            "longest",
        ])];
        let mut add = |what: String, latency: &Latency| {
            let mut cells = vec![what, thousands(latency.count() as f64)];
            cells.extend(
                [0.5, 0.99, 0.999, 1.0].map(|share| format!("{:.2}", latency.within(share))),
            );
            rows.push(cells);
        };
        for (setting, latency) in SETTINGS.into_iter().zip(&self.latency) {
            add(format!("checkpoints: {}", setting.name()), latency);
        }
        add(
            "a crash each second: from it to full strength".to_owned(),
            &self.during,
        );
        add("a crash each second: otherwise".to_owned(), &self.between);
        table(text, &rows);
    }

    fn pauses(&self, text: &mut String) {
        text.push_str("\nPause of a replica for a checkpoint, against the pages written since the one before:\n\n");
        let mut rows = vec![row(&[
            "load",
            "checkpoints",
            "seen",
            "dirty pages",
            "pause us",
            "longest us",
            "us per page",
        ])];
        for pauses in &self.pauses {
            let (pages, micros, most) = pauses.figures();
            rows.push(vec![
                pauses.load.to_owned(),
                pauses.setting.to_owned(),
                pauses.each.len().to_string(),
                thousands(pages),
                thousands(micros),
                thousands(most),
                format!("{:.2}", pauses.per_page()),
            ]);
        }
        table(text, &rows);
        if !self.logging.is_empty() {
            text.push_str("\nWhat the VMM's part of it costs by itself (`cargo test --release -p quorate-vmm checkpoint_cost -- --ignored --nocapture`):\n\n");
            for line in &self.logging {
                text.push_str(&format!("    {line}\n"));
            }
        }
    }

    fn comebacks(&self, text: &mut String) {
        text.push_str(
            "\nFrom a fault to full strength, milliseconds, under the load of 8 connections, with checkpoints every 250 ms (the default):\n\n",
        );
        let mut rows = vec![row(&[
            "fault",
            "faults",
            "found: median",
            "full strength: median",
            "90 %",
            "longest",
            "within 300 ms",
        ])];
        for (kind, all) in &self.comebacks {
            let found = median(all.iter().map(|one| one.found as f64));
            let whole = whole(all);
            let within = all.iter().filter(|one| one.whole as f64 <= AIM_STRENGTH_MS);
            rows.push(vec![
                (*kind).to_owned(),
                all.len().to_string(),
                format!("{found:.0}"),
                format!("{:.0}", whole.within(0.5)),
                format!("{:.0}", whole.within(0.9)),
                format!("{:.0}", whole.within(1.0)),
                within.count().to_string(),
            ]);
        }
        table(text, &rows);
    }

    fn journals(&self, text: &mut String) {
        text.push_str("\nSize of a recording (`--record`, with its checkpoints):\n\n");
        let mut rows = vec![row(&[
            "load",
            "requests",
            "MiB",
            "MiB per million requests",
        ])];
        for journal in &self.journals {
            let mib = journal.bytes as f64 / f64::from(1 << 20);
            rows.push(vec![
                journal.load.clone(),
                thousands(journal.requests as f64),
                format!("{mib:.1}"),
                format!("{:.1}", mib * 1e6 / journal.requests as f64),
            ]);
        }
        table(text, &rows);
    }

    fn aims(&self, text: &mut String) {
        text.push_str("\nAims:\n\n");
        let mut rows = vec![row(&["aim", "at least / most", "measured", ""])];
        let mut add = |aim: String, bound: f64, measured: Option<f64>, least: bool| {
            let good = measured.map(|value| {
                if least {
                    value >= bound
                } else {
                    value <= bound
                }
            });
            rows.push(vec![
                aim,
                format!("{bound:.2}"),
                measured.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}")),
                match good {
                    None => "not measured",
                    Some(true) => "met",
                    Some(false) => "missed",
                }
                .to_owned(),
            ]);
        };
        let second = SETTINGS
            .iter()
            .position(|one| *one == Setting::Second)
            .unwrap_or(0);
        for (index, load) in LOADS.into_iter().enumerate() {
            let name = load.name();
            add(
                format!("{name}, every 1 s: throughput against no recovery"),
                AIM_THROUGHPUT,
                self.ratio(second, index),
                true,
            );
            add(
                format!("{name}, every 1 s: p99 against no recovery"),
                AIM_P99,
                self.against(second, index, |sample| sample.p99_ms),
                false,
            );
        }
        let [with, without] = [second, 0].map(|index| self.latency[index].within(0.99));
        add(
            "8 connections, every 1 s: p99 against no recovery".to_owned(),
            AIM_P99,
            (without > 0.0).then(|| with / without),
            false,
        );
        for (kind, all) in &self.comebacks {
            add(
                format!("{kind}: full strength after, ms (90 % of {})", all.len()),
                AIM_STRENGTH_MS,
                (!all.is_empty()).then(|| whole(all).within(0.9)),
                false,
            );
        }
        table(text, &rows);
    }
}

fn whole(all: &[Comeback]) -> Latency {
    Latency::of(
        all.iter()
            .map(|one| std::time::Duration::from_millis(one.whole)),
    )
}
