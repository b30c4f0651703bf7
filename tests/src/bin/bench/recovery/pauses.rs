//! How long a replica pauses for a checkpoint, against the pages that had been written since the one before.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_tests::set::Set;
use quorate_tests::watch::state;
use serde_json::{Value, json};

use super::{Setting, benchmark, stop, text};
use crate::load::median;

/// Time between two looks at the status: each checkpoint must be seen before the replica's next one.
const LOOK: Duration = Duration::from_millis(25);

/// What is going on meanwhile, and the arguments of redis-benchmark.
const LOADS: [(&str, &[&str]); 4] = [
    ("idle", &[]),
    ("SET -P 1, one key", &["-P", "1"]),
    ("SET -P 16, one key", &["-P", "16"]),
    (
        "SET -P 16, 100,000 keys of 256 bytes",
        &["-P", "16", "-r", "100000", "-d", "256"],
    ),
];

/// Checkpoints under one load.
#[derive(Clone, Debug)]
pub struct Pauses {
    /// The load.
    pub load: &'static str,
    /// Interval of checkpoints.
    pub setting: &'static str,
    /// Dirty pages and microseconds of each.
    pub each: Vec<(f64, f64)>,
}

impl Pauses {
    /// Median of dirty pages and of microseconds; the longest pause.
    pub fn figures(&self) -> (f64, f64, f64) {
        (
            median(self.each.iter().map(|one| one.0)),
            median(self.each.iter().map(|one| one.1)),
            self.each.iter().map(|one| one.1).fold(0.0, f64::max),
        )
    }

    /// Microseconds per page, of those with enough pages to tell.
    pub fn per_page(&self) -> f64 {
        let many = self.each.iter().filter(|(pages, _)| *pages >= 100.0);
        median(many.map(|(pages, micros)| micros / pages))
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({ "load": self.load, "setting": self.setting, "dirty_pages_and_us": self.each })
    }
}

/// Looks at every checkpoint under each load.
///
/// # Errors
/// When a set does not run as it should.
pub fn measure(seconds: f64) -> Result<Vec<Pauses>, String> {
    let mut all = Vec::new();
    for setting in [Setting::Second, Setting::Tenth] {
        let set = setting.start_set()?;
        for (load, arguments) in LOADS {
            let each = under(&set, arguments, seconds.max(4.0))?;
            all.push(Pauses {
                load,
                setting: setting.name(),
                each,
            });
        }
        stop(&set)?;
    }
    Ok(all)
}

fn under(set: &Set, arguments: &[&str], seconds: f64) -> Result<Vec<(f64, f64)>, String> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let begun = std::time::Instant::now();
            let mut result = Ok(());
            while result.is_ok() && begun.elapsed().as_secs_f64() < seconds {
                if arguments.is_empty() {
                    std::thread::sleep(Duration::from_secs_f64(seconds));
                } else {
                    let requests = ["-n", "50000"];
                    result = benchmark(set, &[arguments, &requests].concat());
                }
            }
            done.store(true, Ordering::SeqCst);
            result
        });
        // What the checkpoint before the load had is not of this load.
        let mut known = BTreeMap::new();
        let mut each = Vec::new();
        let mut first = true;
        while !done.load(Ordering::SeqCst) {
            let state = state(set).map_err(text)?;
            for (number, replica) in state["replicas"]
                .as_array()
                .into_iter()
                .flatten()
                .enumerate()
            {
                let figure = |key: &str| {
                    let figure = replica["checkpoints"][key].as_f64();
                    figure.ok_or_else(|| format!("checkpoints have no {key}"))
                };
                let taken = figure("taken")?;
                let before = known.insert(number, taken);
                // The first one seen may have been begun before the load.
                if !first && before.is_some_and(|before| taken > before) {
                    each.push((figure("dirty_pages")?, figure("pause_us")?));
                }
            }
            first = false;
            std::thread::sleep(LOOK);
        }
        worker
            .join()
            .map_err(|_| "a worker panicked".to_owned())??;
        Ok(each)
    })
}

/// The lines of the VMM's own measurement of dirty logging and checkpoints.
///
/// # Errors
/// When it cannot be built or run.
pub fn logging() -> Result<Vec<String>, String> {
    let said = crate::boundary::cargo(&[
        "test",
        "--package=quorate-vmm",
        "checkpoint_cost",
        "--",
        "--ignored",
        "--nocapture",
    ])?;
    // Its head and one line for each number of pages.
    let is_figure = |line: &&str| {
        let first = line.split_whitespace().next().unwrap_or_default();
        first == "pages" || first.parse::<u32>().is_ok()
    };
    let lines: Vec<String> = said.lines().filter(is_figure).map(str::to_owned).collect();
    if lines.len() < 2 {
        return Err(format!("checkpoint_cost said: {said}"));
    }
    Ok(lines)
}
