//! One run of `redis-benchmark` against one server, with everything that it cost.

use std::process::Stdio;
use std::time::Instant;

use quorate_tests::native;
use serde_json::{Value, json};

use crate::server::Server;
use crate::usage::{self, Cpu};

/// Connections, as the issue asks.
pub const CONNECTIONS: u32 = 50;
/// Requests of the run that warms up and says how fast the server is.
const FIRST_REQUESTS: u64 = 5_000;
/// Most requests of one measured run.
const MAX_REQUESTS: u64 = 4_000_000;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// `set` or `get`.
    pub command: &'static str,
    /// Requests that a client sends before it waits for answers.
    pub pipeline: u32,
}

/// All loads, in the order of the tables.
pub const LOADS: [Load; 4] = [
    Load {
        command: "set",
        pipeline: 1,
    },
    Load {
        command: "get",
        pipeline: 1,
    },
    Load {
        command: "set",
        pipeline: 16,
    },
    Load {
        command: "get",
        pipeline: 16,
    },
];

impl Load {
    /// For tables.
    pub fn name(self) -> String {
        format!("{} -P {}", self.command.to_uppercase(), self.pipeline)
    }
}

/// What one run gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Requests per second.
    pub rps: f64,
    /// Half of the answers came within this time, milliseconds.
    pub p50_ms: f64,
    /// 99 % of the answers came within this time, milliseconds.
    pub p99_ms: f64,
    /// Processor time of the client per request, microseconds.
    pub client_us: f64,
    /// Processor time of the server per request, microseconds.
    pub server_us: Cpu,
    /// Voted while it ran; zero for the native server.
    pub voted: Voted,
    /// Share of all processors that other processes had meanwhile: what disturbed the measuring.
    pub foreign: f64,
}

/// What a set voted, per request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Voted {
    /// Boundaries.
    pub boundaries: f64,
    /// Ballots, of all replicas.
    pub ballots: f64,
    /// Bytes in these ballots.
    pub bytes: f64,
}

impl Sample {
    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "requests_per_second": self.rps,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "client_us_per_request": self.client_us,
            "server_us_per_request": self.server_us.json(),
            "boundaries_per_request": self.voted.boundaries,
            "ballots_per_request": self.voted.ballots,
            "bytes_voted_per_request": self.voted.bytes,
            "share_of_other_processes": self.foreign,
        })
    }
}

/// Puts a load on a server: a short run to warm up, then one that takes about `seconds`.
///
/// # Errors
/// When a request fails, or the set does not stay whole.
pub fn run(server: &Server, load: Load, seconds: f64) -> Result<Sample, String> {
    let first = benchmark(server, load, FIRST_REQUESTS * u64::from(load.pipeline))?;
    let requests = ((first.rps * seconds) as u64).clamp(FIRST_REQUESTS, MAX_REQUESTS);
    let sample = benchmark(server, load, requests)?;
    server.check()?;
    Ok(sample)
}

fn benchmark(server: &Server, load: Load, requests: u64) -> Result<Sample, String> {
    let voted = server.voted()?;
    let (begun, busy) = (Instant::now(), usage::busy());
    let cpu = server.cpu()?;
    let mut child = native::command("redis-benchmark")
        .map_err(|error| error.to_string())?
        .args(["-h", "127.0.0.1", "-p", &server.port().to_string()])
        .args(["-c", &CONNECTIONS.to_string()])
        .args(["-n", &requests.to_string()])
        .args(["-P", &load.pipeline.to_string()])
        .args(["-t", load.command, "--csv"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("redis-benchmark: {error}"))?;
    // Its output is a few hundred bytes: a pipe holds them until it has ended.
    let (status, client_s) = usage::wait(&mut child)?;
    let server_s = server.cpu()?.since(cpu);
    let busy = usage::busy() - busy - client_s - server_s.total();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let available = begun.elapsed().as_secs_f64() * cores as f64;
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    if !status.success() || err.contains("Error") {
        return Err(format!(
            "{}: redis-benchmark ended with {status}: {err}{out}",
            server.name()
        ));
    }
    let (rps, p50_ms, p99_ms) = parse(&out).ok_or_else(|| format!("redis-benchmark said {out}"))?;
    let per_request = 1.0 / requests as f64;
    Ok(Sample {
        rps,
        p50_ms,
        p99_ms,
        client_us: client_s * 1e6 * per_request,
        server_us: server_s.times(1e6 * per_request),
        voted: server.voted()?.since(voted).times(per_request),
        foreign: (busy / available).max(0.0),
    })
}

/// Requests per second, p50 and p99 of the last line of `redis-benchmark --csv`.
fn parse(out: &str) -> Option<(f64, f64, f64)> {
    let line = out.lines().rfind(|line| line.contains(','))?;
    let fields: Vec<f64> = line
        .split(',')
        .skip(1)
        .map(|field| field.trim_matches('"').parse().ok())
        .collect::<Option<_>>()?;
    match fields[..] {
        [rps, _average, _min, p50, _p95, p99, _max] => Some((rps, p50, p99)),
        _ => None,
    }
}

impl Voted {
    /// The difference to `earlier`.
    pub fn since(self, earlier: Voted) -> Voted {
        Voted {
            boundaries: self.boundaries - earlier.boundaries,
            ballots: self.ballots - earlier.ballots,
            bytes: self.bytes - earlier.bytes,
        }
    }

    /// Each part multiplied.
    pub fn times(self, factor: f64) -> Voted {
        Voted {
            boundaries: self.boundaries * factor,
            ballots: self.ballots * factor,
            bytes: self.bytes * factor,
        }
    }
}

/// The middle of `values`; 0 if there is none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// The median of each figure by itself.
pub fn median_sample(samples: &[Sample]) -> Sample {
    let of = |figure: fn(&Sample) -> f64| median(samples.iter().map(figure));
    Sample {
        rps: of(|s| s.rps),
        p50_ms: of(|s| s.p50_ms),
        p99_ms: of(|s| s.p99_ms),
        client_us: of(|s| s.client_us),
        server_us: Cpu {
            guests: of(|s| s.server_us.guests),
            gateway: of(|s| s.server_us.gateway),
            other: of(|s| s.server_us.other),
        },
        voted: Voted {
            boundaries: of(|s| s.voted.boundaries),
            ballots: of(|s| s.voted.ballots),
            bytes: of(|s| s.voted.bytes),
        },
        foreign: of(|s| s.foreign),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_last_line_counts() {
        let out = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\
            \"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
            \"SET\",\"6211.18\",\"7.901\",\"0.440\",\"2.335\",\"11.631\",\"102.015\",\"102.015\"\n";
        assert_eq!(parse(out), Some((6211.18, 2.335, 102.015)));
        assert_eq!(parse("nothing"), None);
        assert_eq!(parse("\"test\",\"rps\"\n"), None);
    }

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median([]), 0.0);
    }
}
