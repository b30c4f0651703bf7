//! What the user sees while trials run: a bar on a terminal, a plain line every few seconds elsewhere. On standard error.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::Event;
use crate::model::Outcome;
use crate::stats::sequential::Found;
use crate::stats::{Confidence, Counts, Method};

/// Without a terminal, a line comes so often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// On a terminal, the line is written anew so often.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// The speed is that of the last trials, over about so long.
const SPEED_OVER: Duration = Duration::from_secs(20);

/// See the module.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    counts: BTreeMap<u8, Counts>,
    confidence: Confidence,
    method: Method,
    trials: u64,
    done: u64,
    /// Since when so many were done, for the speed: moves on.
    mark: (Instant, u64),
    before: Option<(Instant, u64)>,
    shown: Instant,
}

impl Progress {
    /// Starts with what is in the results already.
    #[must_use]
    pub fn new(counts: BTreeMap<u8, Counts>, confidence: Confidence, method: Method) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template("[{bar:30}] {pos}/{len} {wide_msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Progress {
            bar,
            quiet: false,
            counts,
            confidence,
            method,
            trials: 0,
            done: 0,
            mark: (Instant::now(), 0),
            before: None,
            shown: Instant::now(),
        }
    }

    /// Nothing is shown.
    pub fn quiet(&mut self) {
        self.bar = None;
        self.quiet = true;
    }

    /// Takes in what is going on, and shows it.
    pub fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Planned { trials, done, most } => {
                (self.trials, self.done) = (*trials, *done);
                self.mark = (Instant::now(), *done);
                self.before = None;
                if let Some(bar) = &self.bar {
                    bar.set_length(*trials);
                }
                self.say(&format!(
                    "{trials} trials, {done} of them done; at most {most} draws in all"
                ));
            }
            Event::Trial(record) => {
                self.done += 1;
                self.counts
                    .entry(record.replicas)
                    .or_default()
                    .add(record.outcome);
            }
            Event::Look(draws, found) => self.say(&look(*draws, *found)),
            Event::Tick => {}
        }
        let every = if self.bar.is_some() {
            DRAW_EVERY
        } else {
            LINE_EVERY
        };
        if self.shown.elapsed() >= every {
            self.shown = Instant::now();
            self.show();
        }
    }

    fn show(&mut self) {
        let text = self.text();
        if self.mark.0.elapsed() >= SPEED_OVER {
            self.before = Some(self.mark);
            self.mark = (Instant::now(), self.done);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
            bar.set_message(text);
        } else {
            self.say(&format!("{} of {}, {text}", self.done, self.trials));
        }
    }

    /// Trials per second, lately.
    fn speed(&self) -> f64 {
        let (since, done) = self.before.unwrap_or(self.mark);
        (self.done - done) as f64 / since.elapsed().as_secs_f64().max(1e-3)
    }

    fn text(&self) -> String {
        let speed = self.speed();
        let left = if speed > 0.0 {
            duration((self.trials.saturating_sub(self.done)) as f64 / speed)
        } else {
            "?".to_owned()
        };
        let mut text = format!("{speed:.1}/s, {left} left");
        let mut widest: f64 = 0.0;
        for (replicas, counts) in &self.counts {
            let parts: Vec<_> = Outcome::ALL
                .into_iter()
                .filter(|&outcome| counts.of(outcome) > 0)
                .map(|outcome| format!("{} {outcome}", counts.of(outcome)))
                .collect();
            text.push_str(&format!("; N={replicas}: {}", parts.join(", ")));
            for outcome in Outcome::ALL {
                if outcome != Outcome::InjectorFailure {
                    let (events, trials) = (counts.of(outcome), counts.valid());
                    let interval = self.method.interval(events, trials, self.confidence);
                    widest = widest.max(interval.half_width());
                }
            }
        }
        text.push_str(&format!("; +/- {:.2} %", 100.0 * widest));
        text
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            // Standard error may be closed; that must not end a campaign.
            None if !self.quiet => drop(writeln!(std::io::stderr(), "quorate: {text}")),
            None => {}
        }
    }

    /// Shows the last state, and takes the bar away.
    pub fn done(&mut self) {
        self.show();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn look(draws: u64, found: Found) -> String {
    let width = 100.0 * found.half_width;
    let verdict = if found.enough {
        "that is enough"
    } else {
        "going on"
    };
    format!("after {draws} draws the widest interval is +/- {width:.2} %: {verdict}")
}

/// Seconds for people.
#[must_use]
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}
