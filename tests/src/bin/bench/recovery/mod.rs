//! Recovery: what checkpoints cost, and how soon a replica is back. Settings take turns, in one run.

mod latency;
mod pauses;
mod report;

use std::time::Duration;

use quorate_tests::native;
use quorate_tests::process::run;
use quorate_tests::set::{Options, Set};
use quorate_tests::watch::{Watch, wait_whole};
use serde_json::{Value, json};

use crate::load::{Load, Sample};
use crate::server::{Kind, Server};
use latency::{Latency, Probe};
use pauses::Pauses;

/// The guest that the aims speak of.
const MEMORY: &str = "256M";
const REPLICAS: u8 = 3;
/// How long one step may take.
const LONG: Duration = Duration::from_secs(120);
/// What is in the guest when a replica has to come back: keys and bytes of a value.
const KEYS: u32 = 100_000;
const VALUE: u32 = 256;
/// A replica is meant to fail again and again here.
const NO_LIMIT: &str = "crash_limit = 100000";

/// What a set does for its recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    Off,
    NoCheckpoints,
    Second,
    Usual,
    Tenth,
}

/// In the order of the tables; the first is what the others are held against.
const SETTINGS: [Setting; 5] = [
    Setting::Off,
    Setting::NoCheckpoints,
    Setting::Second,
    Setting::Usual,
    Setting::Tenth,
];

impl Setting {
    fn name(self) -> &'static str {
        match self {
            Setting::Off => "recovery off",
            Setting::NoCheckpoints => "checkpoints off",
            Setting::Second => "every 1 s",
            Setting::Usual => "every 250 ms",
            Setting::Tenth => "every 100 ms",
        }
    }

    fn arguments(self) -> [&'static str; 4] {
        let [option, value] = match self {
            Setting::Off => ["--recovery", "off"],
            Setting::NoCheckpoints => ["--checkpoint-interval", "off"],
            Setting::Second => ["--checkpoint-interval", "1000"],
            // What an appliance gets that does not say.
            Setting::Usual => ["--checkpoint-interval", "250"],
            Setting::Tenth => ["--checkpoint-interval", "100"],
        };
        ["--memory", MEMORY, option, value]
    }

    fn start(self) -> Result<Server, String> {
        Server::start_with(Kind::Replicas(REPLICAS), &self.arguments())
    }

    /// A set whose replicas may fail as often as they are made to.
    fn start_set(self) -> Result<Set, String> {
        let options = match self {
            Setting::Off => Options::redis(),
            _ => Options::redis_recovering(NO_LIMIT).map_err(text)?,
        };
        let options = options.replicas(REPLICAS.into());
        let set = options.arguments(&self.arguments()).start().map_err(text)?;
        fill(&set)?;
        Ok(set)
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// What is measured for the cost of checkpoints.
const LOADS: [Load; 2] = [
    Load {
        command: "set",
        pipeline: 16,
    },
    Load {
        command: "set",
        pipeline: 1,
    },
];

/// A replica that came back, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Comeback {
    /// From the fault until it was stopped.
    found: u64,
    /// From the fault to full strength.
    whole: u64,
}

/// Size of a recording.
#[derive(Clone, Debug)]
struct Journal {
    load: String,
    requests: u64,
    bytes: u64,
}

/// Everything that was measured.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    rounds: usize,
    /// By setting and load, one per round.
    samples: [[Vec<Sample>; LOADS.len()]; SETTINGS.len()],
    /// By setting.
    latency: [Latency; SETTINGS.len()],
    /// With a crash each second: between a crash and full strength, and otherwise.
    during: Latency,
    between: Latency,
    pauses: Vec<Pauses>,
    /// The bare cost of dirty logging, as the example of the VMM tells it.
    logging: Vec<String>,
    /// By kind of fault.
    comebacks: Vec<(&'static str, Vec<Comeback>)>,
    journals: Vec<Journal>,
    /// What went wrong.
    pub failures: Vec<String>,
}

/// Measures all of it.
pub fn measure(rounds: usize, seconds: f64, quick: bool) -> Recovery {
    let mut recovery = Recovery {
        rounds,
        ..Recovery::default()
    };
    for round in 1..=rounds {
        for (index, setting) in SETTINGS.into_iter().enumerate() {
            crate::say(&format!(
                "recovery, round {round} of {rounds}, {}",
                setting.name()
            ));
            let measured = throughput(setting, seconds)
                .and_then(|samples| Ok((samples, quiet(setting, seconds)?)));
            match measured {
                Ok((samples, latency)) => {
                    for (all, sample) in recovery.samples[index].iter_mut().zip(samples) {
                        all.push(sample);
                    }
                    recovery.latency[index].add(&latency);
                }
                Err(error) => recovery.fail(&format!("round {round}, {}", setting.name()), &error),
            }
        }
    }
    crate::say("recovery, pauses of checkpoints");
    match pauses::measure(seconds) {
        Ok(pauses) => recovery.pauses = pauses,
        Err(error) => recovery.fail("pauses", &error),
    }
    if !quick {
        crate::say("recovery, bare cost of dirty logging");
        match pauses::logging() {
            Ok(lines) => recovery.logging = lines,
            Err(error) => recovery.fail("dirty logging", &error),
        }
    }
    let faults = if quick { 5 } else { 30 };
    for kind in ["crash", "wrong-output"] {
        crate::say(&format!("recovery, {faults} times {kind}"));
        match comebacks(kind, faults) {
            Ok((all, during, between)) => {
                recovery.comebacks.push((kind, all));
                if kind == "crash" {
                    recovery.during = during;
                    recovery.between = between;
                }
            }
            Err(error) => recovery.fail(kind, &error),
        }
    }
    for load in LOADS {
        crate::say(&format!("recovery, journal of {}", load.name()));
        match journal(load, quick) {
            Ok(journal) => recovery.journals.push(journal),
            Err(error) => recovery.fail("journal", &error),
        }
    }
    recovery
}

impl Recovery {
    fn fail(&mut self, what: &str, error: &str) {
        crate::say(&format!("{what}: {error}"));
        self.failures.push(format!("{what}: {error}"));
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let settings: Vec<Value> = SETTINGS
            .into_iter()
            .zip(&self.samples)
            .zip(&self.latency)
            .map(|((setting, samples), latency)| {
                let loads: Vec<Value> = LOADS
                    .into_iter()
                    .zip(samples)
                    .map(|(load, samples)| {
                        let rounds: Vec<Value> = samples.iter().map(Sample::json).collect();
                        json!({ "load": load.name(), "rounds": rounds })
                    })
                    .collect();
                json!({ "setting": setting.name(), "loads": loads, "latency": latency.json() })
            })
            .collect();
        let comebacks: Vec<Value> = self
            .comebacks
            .iter()
            .map(|(kind, all)| {
                let found: Vec<u64> = all.iter().map(|one| one.found).collect();
                let whole: Vec<u64> = all.iter().map(|one| one.whole).collect();
                json!({ "fault": kind, "found_ms": found, "full_strength_ms": whole })
            })
            .collect();
        let journals: Vec<Value> = self
            .journals
            .iter()
            .map(|one| json!({ "load": one.load, "requests": one.requests, "bytes": one.bytes }))
            .collect();
        json!({
            "settings": settings,
            "pauses": self.pauses.iter().map(Pauses::json).collect::<Vec<_>>(),
            "dirty_logging": self.logging,
            "during_recovery": self.during.json(),
            "between_recoveries": self.between.json(),
            "comebacks": comebacks,
            "journals": journals,
        })
    }
}

/// Both loads of the real redis-benchmark.
fn throughput(setting: Setting, seconds: f64) -> Result<Vec<Sample>, String> {
    let server = setting.start()?;
    let samples = LOADS
        .into_iter()
        .map(|load| {
            let sample = crate::load::run(&server, load, seconds)?;
            crate::say(&format!(
                "  {:<9} {:>9.0}/s, p50 {:.2} ms, p99 {:.2} ms",
                load.name(),
                sample.rps,
                sample.p50_ms,
                sample.p99_ms
            ));
            Ok(sample)
        })
        .collect::<Result<Vec<Sample>, String>>()?;
    server.stop()?;
    Ok(samples)
}

/// Every request's latency, in a set with something in its memory and a load that leaves room.
fn quiet(setting: Setting, seconds: f64) -> Result<Latency, String> {
    let set = setting.start_set()?;
    let probe = Probe::start(set.address());
    // This is how long is measured, not a wait for something.
    std::thread::sleep(Duration::from_secs_f64(seconds.max(2.0)));
    let requests = probe.finish()?;
    stop(&set)?;
    Ok(Latency::of(requests.iter().map(|request| request.took)))
}

/// A replica is made to fail again and again, once a second.
fn comebacks(kind: &str, faults: usize) -> Result<(Vec<Comeback>, Latency, Latency), String> {
    let set = Setting::Usual.start_set()?;
    let probe = Probe::start(set.address());
    let mut watch = Watch::new(&set).map_err(text)?;
    let mut all = Vec::new();
    let mut windows = Vec::new();
    for number in 0..faults {
        let victim = number % usize::from(REPLICAS);
        let begun = std::time::Instant::now();
        set.inject(victim, &[kind]).map_err(text)?;
        let back = |event: &Value| event["event"] == "full-strength";
        let events = watch.next("full strength", LONG, back).map_err(text)?;
        windows.push((begun, std::time::Instant::now()));
        let at = |name: &str| {
            let event = events.iter().find(|event| event["event"] == name);
            event
                .and_then(|event| event["at_ms"].as_u64())
                .ok_or_else(|| format!("no event {name}: {events:?}"))
        };
        let (injected, stopped, whole) = (
            at("injected")?,
            at("replica-stopped")?,
            at("full-strength")?,
        );
        all.push(Comeback {
            found: stopped.saturating_sub(injected),
            whole: whole.saturating_sub(injected),
        });
        wait_whole(&set, LONG).map_err(text)?;
        // The rest of the second, which is the rate at which faults come.
        std::thread::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()));
    }
    let requests = probe.finish()?;
    stop(&set)?;
    let (during, between): (Vec<_>, Vec<_>) = requests.iter().partition(|request| {
        let touches =
            |(from, to): &(_, _)| request.sent < *to && request.sent + request.took > *from;
        windows.iter().any(touches)
    });
    let latency = |requests: Vec<&latency::Request>| {
        Latency::of(requests.into_iter().map(|request| request.took))
    };
    Ok((all, latency(during), latency(between)))
}

/// What a recording of a load takes.
fn journal(load: Load, quick: bool) -> Result<Journal, String> {
    let requests = match (quick, load.pipeline) {
        (true, _) => 50_000,
        (false, 1) => 250_000,
        (false, _) => 1_000_000,
    };
    let directory = tempfile::tempdir().map_err(text)?;
    let file = directory.path().join("journal");
    let options = Options::redis().replicas(REPLICAS.into());
    let set = options
        .arguments(&["--memory", MEMORY, "--record", &file.display().to_string()])
        .start()
        .map_err(text)?;
    benchmark(
        &set,
        &[
            "-n",
            &requests.to_string(),
            "-P",
            &load.pipeline.to_string(),
        ],
    )?;
    stop(&set)?;
    let files = std::fs::read_dir(directory.path()).map_err(text)?;
    let sizes = files.map(|file| Ok(file?.metadata()?.len()));
    let bytes = sizes.sum::<std::io::Result<u64>>().map_err(text)?;
    Ok(Journal {
        load: load.name(),
        requests,
        bytes,
    })
}

/// So that there is something to save and to compare.
fn fill(set: &Set) -> Result<(), String> {
    let (keys, value) = (KEYS.to_string(), VALUE.to_string());
    let requests = (KEYS * 2).to_string();
    benchmark(
        set,
        &["-n", &requests, "-r", &keys, "-d", &value, "-P", "16"],
    )
}

/// The real redis-benchmark, SET.
fn benchmark(set: &Set, arguments: &[&str]) -> Result<(), String> {
    let mut command = native::command("redis-benchmark").map_err(text)?;
    command
        .args(["-h", "127.0.0.1", "-p", &set.address().port().to_string()])
        .args(["-c", "50", "-t", "set", "--csv"])
        .args(arguments);
    let ended = run(command, LONG).map_err(text)?;
    if ended.code == 0 && !ended.stderr.contains("Error") {
        Ok(())
    } else {
        Err(format!("redis-benchmark: {} {}", ended.code, ended.stderr))
    }
}

fn stop(set: &Set) -> Result<(), String> {
    let ended = set.stop().map_err(text)?;
    if ended.code == 0 {
        Ok(())
    } else {
        Err(format!("ended with {}: {}", ended.code, ended.stderr))
    }
}
