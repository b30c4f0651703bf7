//! Everything that was measured in one run, and its form as JSON.

use serde_json::{Map, Value, json};

use crate::boundary::Boundary;
use crate::host::Host;
use crate::limit::Limit;
use crate::load::{LOADS, Load, Sample, median, median_sample};
use crate::server::Kind;
use crate::usage::Memory;

/// The servers, in the order of the tables.
pub const KINDS: [Kind; 5] = [
    Kind::Native,
    Kind::Replicas(1),
    Kind::Replicas(2),
    Kind::Replicas(3),
    Kind::Replicas(5),
];

/// The servers of the part about the relaxed discipline.
pub const RELAXED_KINDS: [Kind; 6] = [
    Kind::Native,
    Kind::Replicas(1),
    Kind::Replicas(3),
    Kind::Relaxed(1),
    Kind::Relaxed(2),
    Kind::Relaxed(3),
];

/// Servers whose start is timed.
pub const BOOTED: [Kind; 4] = [
    Kind::Native,
    Kind::Replicas(1),
    Kind::Replicas(3),
    Kind::Replicas(5),
];

/// What was measured of one server.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Which one.
    pub kind: Kind,
    /// Samples of each of [`LOADS`], one per round.
    pub samples: [Vec<Sample>; LOADS.len()],
    /// Seconds from starting the process to the first PONG.
    pub boots: Vec<f64>,
    /// Resident memory after the loads, one per round.
    pub memory: Vec<Memory>,
    /// Share of one processor that it uses without any request.
    pub idle: Vec<f64>,
}

/// One run.
pub struct Results {
    /// The machine.
    pub host: Host,
    /// True for a short run.
    pub quick: bool,
    /// Rounds asked for.
    pub rounds: usize,
    /// Seconds of each load.
    pub seconds: f64,
    /// In the order of the tables.
    pub servers: Vec<Measured>,
    /// Cost of a boundary, if it was measured.
    pub boundary: Option<Boundary>,
    /// What went wrong. A figure beside a failure does not count.
    pub failures: Vec<String>,
}

impl Measured {
    /// Nothing yet.
    pub fn new(kind: Kind) -> Self {
        Measured {
            kind,
            samples: Default::default(),
            boots: Vec::new(),
            memory: Vec::new(),
            idle: Vec::new(),
        }
    }

    /// Medians for the load at `index` of [`LOADS`]; none if no round succeeded.
    pub fn at(&self, index: usize) -> Option<Sample> {
        let samples = &self.samples[index];
        (!samples.is_empty()).then(|| median_sample(samples))
    }

    /// Medians of resident memory; none if no round succeeded.
    pub fn memory(&self) -> Option<Memory> {
        let of = |part: fn(&Memory) -> u64| {
            median(self.memory.iter().map(|memory| part(memory) as f64)) as u64
        };
        (!self.memory.is_empty()).then(|| Memory {
            guest: of(|memory| memory.guest),
            image: of(|memory| memory.image),
            beyond: of(|memory| memory.beyond),
        })
    }

    /// Median boot in seconds.
    pub fn boot(&self) -> Option<f64> {
        (!self.boots.is_empty()).then(|| median(self.boots.iter().copied()))
    }
}

impl Results {
    /// Of `kinds`, nothing yet.
    pub fn new(host: Host, quick: bool, rounds: usize, seconds: f64, kinds: &[Kind]) -> Results {
        Results {
            host,
            quick,
            rounds,
            seconds,
            servers: kinds.iter().copied().map(Measured::new).collect(),
            boundary: None,
            failures: Vec::new(),
        }
    }

    /// What was measured of a server.
    pub fn of(&self, kind: Kind) -> Option<&Measured> {
        self.servers.iter().find(|measured| measured.kind == kind)
    }

    /// Medians of one load on one server.
    pub fn sample(&self, kind: Kind, load: usize) -> Option<Sample> {
        self.of(kind)?.at(load)
    }

    /// What the processors allow for one load.
    pub fn limit(&self, replicas: u8, load: usize) -> Option<Limit> {
        let native = self.sample(Kind::Native, load)?;
        let single = self.sample(Kind::Replicas(1), load)?;
        Some(Limit::new(self.host.cpus, replicas, &native, &single))
    }

    /// Ratio of a server's throughput to the native one's. Each round's ratio counts, so that load on the machine that
    /// changes from round to round does not.
    pub fn ratio(&self, kind: Kind, load: usize) -> Option<f64> {
        let (server, native) = (self.of(kind)?, self.of(Kind::Native)?);
        let ratios: Vec<f64> = server.samples[load]
            .iter()
            .zip(&native.samples[load])
            .map(|(server, native)| server.rps / native.rps)
            .collect();
        (!ratios.is_empty()).then(|| median(ratios))
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let mut servers = Map::new();
        for measured in &self.servers {
            let mut loads = Map::new();
            for (index, load) in LOADS.into_iter().enumerate() {
                loads.insert(load.name(), self.load_json(measured, index, load));
            }
            servers.insert(
                measured.kind.name(),
                json!({
                    "loads": loads,
                    "boot_to_pong_s": measured.boots,
                    "memory_bytes": measured.memory.iter().map(|memory| memory.json()).collect::<Vec<_>>(),
                    "idle_share_of_one_cpu": measured.idle,
                }),
            );
        }
        json!({
            "version": 1,
            "host": self.host.json(),
            "quick": self.quick,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "connections": crate::load::CONNECTIONS,
            "servers": servers,
            "boundary": self.boundary.as_ref().map(Boundary::json),
            "failures": self.failures,
        })
    }

    fn load_json(&self, measured: &Measured, index: usize, load: Load) -> Value {
        let limit = match measured.kind {
            Kind::Replicas(replicas) => self.limit(replicas, index).map(|limit| limit.json()),
            Kind::Native | Kind::Relaxed(_) => None,
        };
        json!({
            "command": load.command,
            "pipeline": load.pipeline,
            "median": measured.at(index).map(|sample| sample.json()),
            "ratio_to_native": self.ratio(measured.kind, index),
            "limit": limit,
            "rounds": measured.samples[index].iter().map(Sample::json).collect::<Vec<_>>(),
        })
    }
}
