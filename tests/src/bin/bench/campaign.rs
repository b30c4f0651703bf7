//! Trials of fault-injection campaigns: how many per second, where the time of one goes, and what it costs to put back the pages that
//! it has written.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use quorate_tests::campaign::{Trial, ready, trials_of};
use quorate_tests::repository;
use serde_json::{Value, json};

use super::say;

/// Trials at a time: the cores that the aim is about.
const JOBS: usize = 2;
/// Ready campaigns that are measured.
const CAMPAIGNS: [&str; 3] = ["compute", "redis", "lighttpd"];
/// Their sets.
const SETS: [u8; 2] = [1, 3];
/// Aim: trials per second with one replica.
const AIM: f64 = 100.0;
/// Kilobytes that the client has Redis write in a trial.
const WRITTEN: [u32; 5] = [0, 256, 512, 1024, 2048];
/// Parts of a trial, as `timing` has them.
const PARTS: [&str; 5] = ["reset", "run", "inject", "settle", "judge"];

/// What was measured of one campaign with one size of set.
#[derive(Clone, Debug)]
struct Speed {
    campaign: String,
    replicas: u8,
    trials: usize,
    per_second: f64,
    /// Medians, microseconds, of [`PARTS`] and of the whole.
    parts: Vec<f64>,
    total: f64,
    pages: f64,
}

/// What trials cost that write so much.
#[derive(Clone, Debug)]
struct Dirtied {
    kilobytes: u32,
    pages: f64,
    reset: f64,
    total: f64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Campaigns {
    speeds: Vec<Speed>,
    dirtied: Vec<Dirtied>,
    /// What went wrong.
    pub failures: Vec<String>,
}

/// Measures all.
pub fn measure(quick: bool) -> Campaigns {
    let mut campaigns = Campaigns::default();
    let draws = if quick { 40 } else { 400 };
    for name in CAMPAIGNS {
        for replicas in SETS {
            say(&format!("campaign {name}, N={replicas}, {draws} trials"));
            match speed(name, replicas, draws) {
                Ok(speed) => campaigns.speeds.push(speed),
                Err(error) => campaigns
                    .failures
                    .push(format!("campaign {name}, N={replicas}: {error}")),
            }
        }
    }
    for kilobytes in WRITTEN {
        say(&format!("trials that write {kilobytes} KiB"));
        match dirtied(kilobytes, if quick { 10 } else { 40 }) {
            Ok(dirtied) => campaigns.dirtied.push(dirtied),
            Err(error) => campaigns
                .failures
                .push(format!("trials that write {kilobytes} KiB: {error}")),
        }
    }
    campaigns
}

/// The text of a ready campaign for sets of `replicas` only, with paths that do not depend on where it stands.
fn alone(name: &str, replicas: u8) -> Result<String, String> {
    let path = ready(name);
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(&path).map_err(|error| failed(&error))?;
    let mut table: toml::Table = text.parse().map_err(|error| failed(&error))?;
    let directory = repository()
        .join("campaigns")
        .canonicalize()
        .map_err(|error| failed(&error))?;
    let absolute = |value: &mut toml::Value| {
        if let toml::Value::String(path) = value {
            *path = directory.join(&*path).display().to_string();
        }
    };
    if let Some(appliance) = table.get_mut("appliance") {
        absolute(appliance);
    }
    let workload = table
        .get_mut("workload")
        .and_then(toml::Value::as_table_mut);
    if let Some(workload) = workload {
        for key in ["warmup", "command"] {
            let words = workload.get_mut(key).and_then(toml::Value::as_array_mut);
            if let Some(program) = words.and_then(|words| words.first_mut()) {
                absolute(program);
            }
        }
    }
    table.insert(
        "replicas".to_owned(),
        toml::Value::Array(vec![i64::from(replicas).into()]),
    );
    Ok(table.to_string())
}

/// Runs the campaign whose text is `text`.
fn played(text: &str, draws: u64, jobs: usize) -> Result<(Vec<Trial>, f64), String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let file = directory.path().join("bench.toml");
    std::fs::write(&file, text).map_err(|error| error.to_string())?;
    let out = directory.path().join("out");
    let (draws, jobs) = (draws.to_string(), jobs.to_string());
    let words = ["--trials", &draws, "--jobs", &jobs, "--quiet"];
    let trials = trials_of(&file, &out, &words).map_err(|error| error.to_string())?;
    let seconds = wall_seconds(&out)?;
    Ok((trials, seconds))
}

/// Seconds that the trials took, with making their machines and without the golden run.
fn wall_seconds(out: &Path) -> Result<f64, String> {
    let path: PathBuf = out.join("campaign.json");
    let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
    let json: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    json["wall_seconds"]
        .as_f64()
        .ok_or_else(|| format!("{}: no wall_seconds", path.display()))
}

/// The median of what the trials say of themselves under a key of `timing`.
fn median(trials: &[Trial], key: &str) -> f64 {
    let mut values: Vec<f64> = trials
        .iter()
        .filter_map(|trial| trial.0["timing"][key].as_f64())
        .collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

fn speed(name: &str, replicas: u8, draws: u64) -> Result<Speed, String> {
    let (trials, seconds) = played(&alone(name, replicas)?, draws, JOBS)?;
    Ok(Speed {
        campaign: name.to_owned(),
        replicas,
        trials: trials.len(),
        per_second: trials.len() as f64 / seconds.max(1e-9),
        parts: PARTS.iter().map(|part| median(&trials, part)).collect(),
        total: median(&trials, "total"),
        pages: median(&trials, "pages"),
    })
}

/// Trials in which Redis writes so much.
fn dirtied(kilobytes: u32, draws: u64) -> Result<Dirtied, String> {
    let mut table: toml::Table = alone("redis", 1)?
        .parse()
        .map_err(|error: toml::de::Error| error.to_string())?;
    let cli = repository().join("target/native/clients/redis-cli");
    let cli = std::path::absolute(cli).map_err(|error| error.to_string())?;
    let script = format!("return redis.call('SET', 'big', string.rep('x', {kilobytes} * 1024))");
    let line = format!(
        "exec {} -h $QUORATE_HOST -p $QUORATE_PORT_6379 EVAL \"{script}\" 0",
        cli.display()
    );
    let command = ["/bin/sh", "-c", line.as_str()].map(toml::Value::from);
    if let Some(workload) = table
        .get_mut("workload")
        .and_then(toml::Value::as_table_mut)
    {
        workload.insert("command".to_owned(), toml::Value::Array(command.to_vec()));
    }
    // A fault that changes nothing: what is measured is the trial.
    let fault: toml::Table = "model = \"slow\"\nmillis = 1\nboundaries = 1"
        .parse()
        .map_err(|error: toml::de::Error| error.to_string())?;
    table.insert(
        "fault".to_owned(),
        toml::Value::Array(vec![toml::Value::Table(fault)]),
    );
    let (trials, _) = played(&table.to_string(), draws, 1)?;
    Ok(Dirtied {
        kilobytes,
        pages: median(&trials, "pages"),
        reset: median(&trials, "reset"),
        total: median(&trials, "total"),
    })
}

impl Campaigns {
    /// For programs.
    pub fn json(&self) -> Value {
        let speeds: Vec<Value> = self.speeds.iter().map(Speed::json).collect();
        let dirtied: Vec<Value> = self
            .dirtied
            .iter()
            .map(|of| {
                json!({
                    "kilobytes": of.kilobytes,
                    "pages": of.pages,
                    "reset_us": of.reset,
                    "total_us": of.total,
                })
            })
            .collect();
        json!({ "jobs": JOBS, "speeds": speeds, "dirtied": dirtied, "failures": self.failures })
    }

    /// For people.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "### Trials per second\n\nReady campaigns, {JOBS} trials at a time, sets of one size alone; medians of a trial. `settle` is from the end of the client's\n\
             conversation to full strength; `inject` is a part of `run`.\n\n\
             | campaign | N | trials/s | a trial, ms | reset | run | of it inject | settle | judge | pages put back |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
        );
        for of in &self.speeds {
            let parts: Vec<String> = of.parts.iter().map(|us| millis(*us)).collect();
            let _ = writeln!(
                text,
                "| {} | {} | {:.1} | {} | {} | {:.0} |",
                of.campaign,
                of.replicas,
                of.per_second,
                millis(of.total),
                parts.join(" | "),
                of.pages
            );
        }
        let best = self
            .speeds
            .iter()
            .filter(|of| of.replicas == 1)
            .map(|of| of.per_second)
            .fold(0.0, f64::max);
        let verdict = if best >= AIM { "met" } else { "missed" };
        let _ = writeln!(
            text,
            "\nAim: {AIM:.0} trials per second with N=1 for a short workload: {best:.0}, {verdict}."
        );
        let _ = writeln!(
            text,
            "\n### Cost of the pages that a trial writes\n\nRedis, N=1, one trial at a time; a client has it write a value of so many KiB; medians.\n\n\
             | KiB written | pages put back | reset, ms | us per page | a trial, ms |\n| --- | --- | --- | --- | --- |"
        );
        for of in &self.dirtied {
            let _ = writeln!(
                text,
                "| {} | {:.0} | {} | {:.2} | {} |",
                of.kilobytes,
                of.pages,
                millis(of.reset),
                of.reset / of.pages.max(1.0),
                millis(of.total)
            );
        }
        for failure in &self.failures {
            let _ = writeln!(text, "\nFailed: {failure}");
        }
        text
    }
}

impl Speed {
    fn json(&self) -> Value {
        let parts: serde_json::Map<String, Value> = PARTS
            .iter()
            .zip(&self.parts)
            .map(|(part, us)| (format!("{part}_us"), json!(us)))
            .collect();
        json!({
            "campaign": self.campaign,
            "replicas": self.replicas,
            "trials": self.trials,
            "per_second": self.per_second,
            "total_us": self.total,
            "pages": self.pages,
            "parts": parts,
        })
    }
}

fn millis(micros: f64) -> String {
    format!("{:.2}", micros / 1000.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_ready_campaign_is_made_to_stand_anywhere() {
        for name in CAMPAIGNS {
            let table: toml::Table = alone(name, 3).unwrap().parse().unwrap();
            let appliance = table["appliance"].as_str().unwrap();
            assert!(Path::new(appliance).is_file(), "{appliance}");
            let client = table["workload"]["command"][0].as_str().unwrap();
            assert!(Path::new(client).is_file(), "{client}");
            assert_eq!(table["replicas"].as_array().unwrap().len(), 1);
        }
    }

    #[test]
    fn the_report_says_whether_the_aim_is_met() {
        let trial = |us: u64| Trial(json!({ "timing": { "total": us } }));
        let trials = [trial(30), trial(10), trial(20), trial(40)];
        assert!((median(&trials, "total") - 25.0).abs() < 1e-9);
        let speed = |per_second| Speed {
            campaign: "x".to_owned(),
            replicas: 1,
            trials: 4,
            per_second,
            parts: vec![1000.0; PARTS.len()],
            total: 5000.0,
            pages: 3.0,
        };
        for (per_second, says) in [(120.0, "120, met"), (80.0, "80, missed")] {
            let campaigns = Campaigns {
                speeds: vec![speed(per_second)],
                ..Campaigns::default()
            };
            assert!(campaigns.markdown().contains(says));
        }
    }
}
