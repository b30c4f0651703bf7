//! Disks: a load like fio's (`tests/guest-programs/src/bin/disk.rs`) and Redis with an append-only file, on a file of the host
//! natively, in a guest (N=1) and in three, side by side.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use quorate_tests::process::run;
use quorate_tests::server::NativeServer;
use quorate_tests::set::Options;
use quorate_tests::{Error, disk, native, programs};
use serde_json::{Value, json};

use crate::load::median;
use crate::server::Kind;
use crate::usage::Cpu;

/// Who is compared.
const KINDS: [Kind; 3] = [Kind::Native, Kind::Replicas(1), Kind::Replicas(3)];
/// The file is larger than this memory of the guest, so that the guest's cache cannot have it.
const MEMORY: &str = "128M";
const FILE_MIB: u32 = 192;
const DISK: &str = "512M";
/// Least ratio of N=3 to N=1 that the project aims at, for writes; and for reads, which voting must not slow down.
const AIM: f64 = 0.7;
/// How long one run may take.
const LONG: Duration = Duration::from_secs(600);
/// What the load does, in its order: its name there, in the table, and whether it writes.
const LOADS: [(&str, &str, bool); 7] = [
    ("seq-write", "1 MiB sequential writes, one fsync", true),
    ("seq-read", "1 MiB sequential reads", false),
    ("rand-read", "4 KiB random reads", false),
    ("rand-write", "4 KiB random writes, one fsync", true),
    (
        "rand-write-fsync",
        "4 KiB random writes, fdatasync each",
        true,
    ),
    (
        "seq-write-fsync",
        "1 MiB sequential writes, fdatasync each",
        true,
    ),
    ("append-fsync", "100 bytes appended, fdatasync each", true),
];
/// The load with Redis.
const REDIS: &str = "redis-aof";
const REDIS_NAME: &str = "Redis SET, appendfsync always, 50 connections";

/// One run of one load.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Bytes of an operation; 0 where they are requests.
    block: f64,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
    /// Processor time of an operation: all replicas' threads, and everything else of the process. 0 if it is not known.
    guests_us: f64,
    rest_us: f64,
}

impl Sample {
    /// With the processor time that all of its operations took.
    fn costing(self, cpu: Cpu, operations: f64) -> Sample {
        let each = cpu.times(1e6 / operations);
        Sample {
            guests_us: each.guests,
            rest_us: each.gateway + each.other,
            ..self
        }
    }
}

/// Everything that was measured: load and server, then its runs.
#[derive(Clone, Debug, Default)]
pub struct Disks {
    samples: BTreeMap<(&'static str, String), Vec<Sample>>,
    /// What went wrong.
    pub failures: Vec<String>,
}

/// Measures all of it in turns.
pub fn measure(rounds: usize, quick: bool) -> Disks {
    let mut disks = Disks::default();
    for round in 1..=rounds {
        for kind in KINDS {
            crate::say(&format!(
                "disks, round {round} of {rounds}, {}",
                kind.name()
            ));
            let samples = files(kind, quick).and_then(|mut samples| {
                samples.push((REDIS, redis(kind, quick)?));
                Ok(samples)
            });
            match samples {
                Ok(samples) => {
                    for (load, sample) in samples {
                        disks
                            .samples
                            .entry((load, kind.name()))
                            .or_default()
                            .push(sample);
                    }
                }
                Err(error) => {
                    let text = format!("disks, round {round}, {}: {error}", kind.name());
                    crate::say(&text);
                    disks.failures.push(text);
                }
            }
        }
    }
    disks
}

/// The load of files.
fn files(kind: Kind, quick: bool) -> Result<Vec<(&'static str, Sample)>, Error> {
    let directory = disk::directory()?;
    let operations = if quick { "2000" } else { "8000" };
    let mib = FILE_MIB.to_string();
    let mut costs = Vec::new();
    let ended = match kind {
        Kind::Native => {
            let mut command = Command::new(programs::path("disk")?);
            let file = directory.path().join("file");
            command.arg("bench").arg(file).args([&mib, operations]);
            run(command, LONG)?
        }
        Kind::Replicas(replicas) | Kind::Relaxed(replicas) => {
            let path = directory.path().join("disk.img");
            let words = ["disk", "bench", "/data/file", &mib, operations];
            let tables = format!(
                "[[disk]]\nname = \"data\"\nsize = \"{DISK}\"\nmount = \"/data\"\npath = {:?}\n",
                path.display().to_string()
            );
            let root = directory.path().join("root");
            let text = programs::appliance(&words, MEMORY, &root, &tables)?;
            let set = Options::text(&text)?.replicas(replicas.into()).start()?;
            let process = set.process();
            let mut before = usage(process.pid())?;
            for (load, ..) in LOADS {
                process.wait_for_output(&format!("bench op={load} "), LONG)?;
                // After the last one the process may have ended.
                let now = usage(process.pid()).unwrap_or(before);
                costs.push(now.since(before));
                before = now;
            }
            process.wait(LONG)?
        }
    };
    let text = String::from_utf8_lossy(&ended.stdout);
    let mut samples: Vec<_> = text.lines().filter_map(parse).collect();
    for ((_, operations, sample), cost) in samples.iter_mut().zip(costs) {
        *sample = sample.costing(cost, *operations);
    }
    if ended.code == 0 && samples.len() == LOADS.len() {
        Ok(samples
            .into_iter()
            .map(|(load, _, sample)| (load, sample))
            .collect())
    } else {
        let code = ended.code;
        Err(Error::Unexpected(format!(
            "the load ended with {code}: {text}{}",
            ended.stderr
        )))
    }
}

fn usage(pid: u32) -> Result<Cpu, Error> {
    Cpu::of(pid).map_err(Error::Unexpected)
}

/// `bench op=seq-read block=1048576 ops=64 elapsed_ns=17569084 p50_ns=144325 p99_ns=8077851 max_ns=8077851`
/// The load, how many operations there were, and what they took.
fn parse(line: &str) -> Option<(&'static str, f64, Sample)> {
    let fields: BTreeMap<&str, &str> = line
        .strip_prefix("bench ")?
        .split(' ')
        .filter_map(|field| field.split_once('='))
        .collect();
    let number = |key: &str| fields.get(key)?.parse::<f64>().ok();
    let name = LOADS.iter().find(|load| load.0 == fields["op"])?.0;
    let sample = Sample {
        block: number("block")?,
        per_second: number("ops")? * 1e9 / number("elapsed_ns")?.max(1.0),
        p50_us: number("p50_ns")? / 1e3,
        p99_us: number("p99_ns")? / 1e3,
        max_us: number("max_ns")? / 1e3,
        ..Sample::default()
    };
    Some((name, number("ops")?, sample))
}

/// redis-benchmark's SET on a Redis that syncs its append-only file before each answer.
fn redis(kind: Kind, quick: bool) -> Result<Sample, Error> {
    let directory = disk::directory()?;
    let path = |name: &str| directory.path().join(name).display().to_string();
    let requests = if quick { "5000" } else { "30000" };
    let benchmark = |port: u16| -> Result<Sample, Error> {
        let mut command = native::command("redis-benchmark")?;
        let port = port.to_string();
        command.args([
            "-p", &port, "-t", "set", "-n", requests, "-c", "50", "--csv",
        ]);
        let ended = run(command, LONG)?;
        let text = String::from_utf8_lossy(&ended.stdout).into_owned();
        parse_csv(&text).ok_or_else(|| {
            Error::Unexpected(format!("redis-benchmark said: {text}{}", ended.stderr))
        })
    };
    match kind {
        Kind::Native => {
            let directory = path("");
            let aof = [
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--dir",
                &directory,
            ];
            let server = NativeServer::start(&aof)?;
            benchmark(server.address().port())
        }
        Kind::Replicas(replicas) | Kind::Relaxed(replicas) => {
            let file = path("data.img");
            let text = disk::appliance(REDIS, &[("path", file.clone().into())])?;
            let options = Options::text(&text)?.publish(6379);
            let set = options.replicas(replicas.into()).start()?;
            let before = usage(set.process().pid())?;
            let sample = benchmark(set.address().port())?;
            let cost = usage(set.process().pid())?.since(before);
            let sample = sample.costing(cost, requests.parse().unwrap_or(1.0));
            let ended = set.stop()?;
            if ended.code != 0 {
                return Err(Error::Unexpected(ended.stderr));
            }
            disk::check_clean(Path::new(&file))?;
            Ok(sample)
        }
    }
}

/// `"SET","84247.00","0.31","0.10","0.28","0.50","0.56","0.90"`: requests per second; average, least, p50, p95, p99, most in ms.
fn parse_csv(text: &str) -> Option<Sample> {
    let line = text.lines().find(|line| line.starts_with("\"SET\""))?;
    let number = |index: usize| -> Option<f64> {
        line.split(',').nth(index)?.trim_matches('"').parse().ok()
    };
    Some(Sample {
        block: 0.0,
        per_second: number(1)?,
        p50_us: number(4)? * 1e3,
        p99_us: number(6)? * 1e3,
        max_us: number(7)? * 1e3,
        ..Sample::default()
    })
}

impl Disks {
    fn runs(&self, load: &'static str, kind: Kind) -> &[Sample] {
        self.samples
            .get(&(load, kind.name()))
            .map_or(&[], Vec::as_slice)
    }

    /// Medians of one load on one server.
    fn sample(&self, load: &'static str, kind: Kind) -> Option<Sample> {
        let runs = self.runs(load, kind);
        let of = |part: fn(&Sample) -> f64| median(runs.iter().map(part));
        (!runs.is_empty()).then(|| Sample {
            block: runs[0].block,
            per_second: of(|run| run.per_second),
            p50_us: of(|run| run.p50_us),
            p99_us: of(|run| run.p99_us),
            max_us: of(|run| run.max_us),
            guests_us: of(|run| run.guests_us),
            rest_us: of(|run| run.rest_us),
        })
    }

    /// Ratio of two servers, round by round.
    fn ratio(&self, load: &'static str, kind: Kind, to: Kind) -> Option<f64> {
        let pairs = self.runs(load, kind).iter().zip(self.runs(load, to));
        let ratios: Vec<f64> = pairs
            .map(|(one, other)| one.per_second / other.per_second)
            .collect();
        (!ratios.is_empty()).then(|| median(ratios))
    }

    /// Operations per second that the processors allow for N=3: three times what a replica costs at N=1, and everything else
    /// once; but not more than N=1 reached.
    fn limit(&self, load: &'static str, cores: usize) -> Option<f64> {
        let single = self.sample(load, Kind::Replicas(1))?;
        let cost = 3.0 * single.guests_us + single.rest_us;
        (cost > 0.0).then(|| single.per_second.min(1e6 * cores as f64 / cost))
    }

    fn rows() -> impl Iterator<Item = (&'static str, &'static str, bool)> {
        LOADS.into_iter().chain([(REDIS, REDIS_NAME, true)])
    }

    /// The report.
    pub fn markdown(&self, cores: usize) -> String {
        let names = KINDS.map(Kind::name).to_vec();
        let head = |first: &str, more: &[&str]| -> Vec<String> {
            let more = more.iter().map(|&word| word.to_owned());
            std::iter::once(first.to_owned())
                .chain(names.clone())
                .chain(more)
                .collect()
        };
        let mut speed = vec![head(
            "MB/s (4 KiB and 1 MiB), else operations per second",
            &["N=1 to native", "N=3 to N=1"],
        )];
        let mut latency = vec![head("each operation, us: p50 / p99 / most", &[])];
        let texts = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let mut aims: Vec<Vec<String>> =
            vec![texts(&["aim: N=3 to N=1", "at least", "measured", ""])];
        let allow = format!("what {cores} cores allow N=3, to N=1");
        let mut costs: Vec<Vec<String>> = vec![texts(&[
            "processor time of an operation, us",
            "N=1: guest + other",
            "N=3: guests + other",
            &allow,
            "share of that reached",
        ])];
        for (load, name, writes) in Self::rows() {
            let ratio = |kind, to| {
                let ratio = self.ratio(load, kind, to);
                ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
            };
            let cells = KINDS.map(|kind| match self.sample(load, kind) {
                None => ["-".to_owned(), "-".to_owned()],
                Some(sample) => [
                    rate(&sample),
                    format!(
                        "{:.0} / {:.0} / {:.0}",
                        sample.p50_us, sample.p99_us, sample.max_us
                    ),
                ],
            });
            let row = |index: usize| -> Vec<String> {
                let cells = cells.iter().map(|cell| cell[index].clone());
                std::iter::once(name.to_owned()).chain(cells).collect()
            };
            let (single, three) = (Kind::Replicas(1), Kind::Replicas(3));
            speed.push(
                [
                    row(0),
                    vec![ratio(single, Kind::Native), ratio(three, single)],
                ]
                .concat(),
            );
            latency.push(row(1));
            let limit = self.limit(load, cores);
            if let (Some(one), Some(all), Some(limit)) =
                (self.sample(load, single), self.sample(load, three), limit)
            {
                let cost = |s: Sample| format!("{:.0} + {:.0}", s.guests_us, s.rest_us);
                costs.push(vec![
                    name.to_owned(),
                    cost(one),
                    cost(all),
                    format!("{:.2}", limit / one.per_second),
                    format!("{:.2}", all.per_second / limit),
                ]);
            }
            if let Some(ratio) = self.ratio(load, three, single) {
                let what = if writes { "writes" } else { "reads" };
                aims.push(vec![
                    format!("{what}: {name}"),
                    format!("{AIM:.2}"),
                    format!("{ratio:.2}"),
                    if ratio >= AIM { "met" } else { "missed" }.to_owned(),
                ]);
            }
        }
        let runs = KINDS.map(|kind| self.runs(LOADS[0].0, kind).len());
        let mut text = format!(
            "Disks: medians of {} runs in turns; a file of {FILE_MIB} MiB on the same file system of the host, natively and as a disk \
             of guests with {MEMORY} of memory and ext4. The host has the file in its cache.\n\n",
            runs.into_iter().min().unwrap_or(0)
        );
        for rows in [speed, latency, costs, aims] {
            crate::report::table(&mut text, &rows);
            text.push('\n');
        }
        for failure in &self.failures {
            text.push_str(&format!(
                "- **failed**: {}\n",
                failure.replace('\n', "\n  ")
            ));
        }
        text
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let loads: Vec<Value> = Self::rows()
            .flat_map(|(load, ..)| KINDS.map(|kind| (load, kind)))
            .map(|(load, kind)| {
                let runs: Vec<Value> = self
                    .runs(load, kind)
                    .iter()
                    .map(|run| {
                        json!({ "per_second": run.per_second, "p50_us": run.p50_us, "p99_us": run.p99_us, "max_us": run.max_us })
                    })
                    .collect();
                json!({ "load": load, "server": kind.name(), "runs": runs })
            })
            .collect();
        json!(loads)
    }
}

fn rate(sample: &Sample) -> String {
    let rate = crate::report::thousands(sample.per_second);
    if sample.block >= 4096.0 {
        let mb = sample.per_second * sample.block / 1e6;
        let mb = if mb < 100.0 {
            format!("{mb:.1}")
        } else {
            format!("{mb:.0}")
        };
        format!("{mb} ({rate}/s)")
    } else {
        format!("{rate}/s")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn outputs_are_understood_and_reported() {
        let line = "bench op=rand-read block=4096 ops=4000 elapsed_ns=2000000000 p50_ns=873 p99_ns=1580 max_ns=150308";
        let (name, operations, sample) = parse(line).unwrap();
        assert_eq!((name, operations), ("rand-read", 4000.0));
        assert!((sample.per_second - 2000.0).abs() < 0.01 && sample.max_us > 150.0);
        assert!(parse("done").is_none() && parse("bench op=other").is_none());
        assert_eq!(rate(&sample), "8.2 (2,000/s)");
        let csv = "\"test\",\"rps\"\n\"SET\",\"84247.00\",\"0.310\",\"0.100\",\"0.280\",\"0.500\",\"0.560\",\"0.900\"\n";
        let redis = parse_csv(csv).unwrap();
        assert!((redis.p99_us - 560.0).abs() < 0.01 && redis.per_second > 84_000.0);
        let mut disks = Disks::default();
        for (kind, factor) in [(Kind::Replicas(1), 1.0), (Kind::Replicas(3), 0.5)] {
            let per_second = sample.per_second * factor;
            // A replica that keeps one processor busy: three of them have two thirds of one each.
            let sample = Sample {
                per_second,
                guests_us: 500.0,
                ..sample
            };
            disks
                .samples
                .insert(("rand-write", kind.name()), vec![sample]);
        }
        assert!((disks.limit("rand-write", 2).unwrap() - 2e6 / 1500.0).abs() < 0.01);
        assert!(disks.limit("rand-write", 8).unwrap() <= 2000.0);
        let text = disks.markdown(2);
        assert!(
            text.contains("writes: 4 KiB random writes") && text.contains("missed"),
            "{text}"
        );
    }
}
