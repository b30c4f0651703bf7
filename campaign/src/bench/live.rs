//! Trials in real time: the set goes on from the warm checkpoint behind the ordinary gateway, and the client itself is run against it. For
//! workloads that cannot be played from a record. Two such trials are not the same: when a fault comes depends on the host.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_executor::egress::Egress;
use quorate_executor::events::End;
use quorate_executor::gateway::{Protocol, Publish};
use quorate_executor::patience::patient;
use quorate_executor::set::ReplicaSet;
use quorate_executor::stage::{Cast, Interposer, Performed, Rig};

use crate::file::Campaign;
use crate::inject::Surroundings;
use crate::model::{Drawn, Outcome, Timing, TrialRecord};
use crate::talk::Golden;

use super::client::{Program, Ran};
use super::staged::{cast, surroundings, together};
use super::watch::{Seen, Watch, micros};
use super::{BenchError, Trials};

/// How long a set may take to come to full strength after the client has ended.
const SETTLE: Duration = Duration::from_secs(20);

/// See the module.
pub struct LiveBench {
    rig: Rig,
    golden: Arc<Golden>,
    surroundings: Surroundings,
    publish: Vec<Publish>,
    program: Program,
    patience: Duration,
    /// What the client does when nothing is wrong.
    healthy: Ran,
}

struct Played {
    ran: Ran,
    performed: Performed,
    seen: Seen,
    began: Instant,
    /// The client ran from, to.
    client: (Instant, Instant),
    whole: bool,
}

impl LiveBench {
    /// Machines for the campaign's largest set; runs the client twice to see what it does when nothing is wrong.
    ///
    /// # Errors
    /// When there is no client, the host cannot do it, or the client does not do the same twice.
    pub fn new(campaign: &Campaign, golden: Arc<Golden>) -> Result<LiveBench, BenchError> {
        let command = campaign.workload.command.as_ref();
        let Some((program, arguments)) = command.and_then(|command| command.split_first()) else {
            return Err(BenchError::Broken(
                "mode = \"live\" runs a client: [workload] needs a command".to_owned(),
            ));
        };
        let most = campaign.replicas.iter().copied().max().unwrap_or(1);
        let plan = golden.plan.clone();
        let mut bench = LiveBench {
            surroundings: surroundings(&golden),
            publish: plan.publish.clone(),
            rig: Rig::new(plan, most)?,
            golden,
            program: Program {
                path: campaign.program(program),
                arguments: arguments.to_vec(),
            },
            patience: patient(Duration::from_millis(campaign.limits.hang_ms)),
            healthy: Ran {
                output: Vec::new(),
                bytes: 0,
                status: None,
            },
        };
        bench.healthy = bench.play(1, Vec::new())?.ran;
        if !bench.healthy.status.is_some_and(|status| status.success()) {
            return Err(BenchError::Broken(format!(
                "the client fails though nothing is wrong: {:?}",
                bench.healthy.status
            )));
        }
        if bench.play(1, Vec::new())?.ran != bench.healthy {
            return Err(BenchError::Broken(
                "the client prints something else the second time though nothing is wrong"
                    .to_owned(),
            ));
        }
        Ok(bench)
    }

    fn play(
        &mut self,
        replicas: u8,
        interposers: Vec<Box<dyn Interposer>>,
    ) -> Result<Played, BenchError> {
        let began = Instant::now();
        let watch = Watch::default();
        let cast = Cast {
            replicas,
            tap: Some(watch.tap()),
            events: watch.events(),
            interposers,
            recorder: None,
            // As in staged trials.
            recovery: replicas > 2,
        };
        let (program, patience) = (self.program.clone(), self.patience);
        let mut done = None;
        let mut client = |addresses: &[(Publish, std::net::SocketAddr)], _: &ReplicaSet| {
            let from = Instant::now();
            let ran = program.run(&environment(addresses), patience);
            let to = Instant::now();
            let whole = watch.settles(patient(SETTLE));
            done = Some((ran, (from, to), whole));
        };
        let performed =
            self.rig
                .perform_live(cast, self.publish.clone(), Box::new(Quiet), &mut client)?;
        let (ran, client, whole) =
            done.ok_or_else(|| BenchError::Broken("the client was not run".to_owned()))?;
        Ok(Played {
            ran: ran?,
            performed,
            seen: watch.take(),
            began,
            client,
            whole,
        })
    }

    fn judge(&self, played: &Played, replicas: u8, failed: Option<&str>) -> (Outcome, String) {
        if let Some(why) = failed {
            return (Outcome::InjectorFailure, why.to_owned());
        }
        let (ran, healthy) = (&played.ran, &self.healthy);
        let success = ran.status.is_some_and(|status| status.success());
        let same = ran.output.iter().zip(&healthy.output);
        let at = same.take_while(|(one, other)| one == other).count();
        if success && ran.output != healthy.output {
            let text = format!("byte {at} of the client's standard output differs");
            return (Outcome::SilentCorruption, text);
        }
        let found = played.seen.found();
        let reason = found.as_ref().map_or("", |found| found.reason.as_str());
        match (&played.performed.summary.end, success) {
            (end @ End::Exited { .. }, false) => (Outcome::Crash, end.to_string()),
            (End::NoQuorum { .. }, false) if replicas == 1 => (Outcome::Crash, reason.to_owned()),
            (End::NoQuorum { detail }, false) => (Outcome::Stopped, detail.clone()),
            (_, false) if ran.status.is_none() => (
                Outcome::Hang,
                format!(
                    "the client did not end within {} ms",
                    self.patience.as_millis()
                ),
            ),
            (_, false) => (
                Outcome::ClientError,
                format!("the client ended with {:?}", ran.status),
            ),
            _ if found.is_some() => (Outcome::Corrected, reason.to_owned()),
            _ => (Outcome::Masked, "all as without a fault".to_owned()),
        }
    }
}

impl Trials for LiveBench {
    fn trial(&mut self, drawn: &Drawn, replicas: u8) -> Result<TrialRecord, BenchError> {
        let (interposers, injected) = cast(drawn, replicas, &self.surroundings);
        let played = self.play(replicas, interposers)?;
        let judging = Instant::now();
        let report = together(&injected);
        let (hit, place) = report.placed();
        let failed = hit.is_none().then_some(place.as_str());
        let (outcome, evidence) = self.judge(&played, replicas, failed);
        let began_ns = self.golden.heard.began_ns;
        let (from, to) = played.client;
        let now = Instant::now();
        Ok(TrialRecord {
            drawn: drawn.clone(),
            replicas,
            outcome,
            location: hit.and_then(|hit| hit.location.clone()),
            detected: hit.and_then(|hit| played.seen.detection(hit, began_ns)),
            recovered: played.seen.recovered(),
            full_strength: played.whole,
            evidence,
            timing: Timing {
                reset: played.performed.reset.micros,
                pages: played.performed.reset.pages,
                run: micros(from, to),
                inject: hit.map_or(0, |hit| micros(from, hit.at)),
                settle: micros(to, judging),
                judge: micros(judging, now),
                total: micros(played.began, now),
            },
            place,
        })
    }
}

fn environment(addresses: &[(Publish, std::net::SocketAddr)]) -> Vec<(OsString, OsString)> {
    let tcp = addresses
        .iter()
        .filter(|(of, _)| of.protocol == Protocol::Tcp);
    let mut all = vec![("QUORATE_HOST".into(), "127.0.0.1".into())];
    for (index, (publish, at)) in tcp.enumerate() {
        let port: OsString = at.port().to_string().into();
        if index == 0 {
            all.push(("QUORATE_PORT".into(), port.clone()));
        }
        all.push((format!("QUORATE_PORT_{}", publish.guest_port).into(), port));
    }
    all
}

/// The console is not compared.
struct Quiet;

impl Egress for Quiet {
    fn frames(&mut self, _: Vec<Vec<u8>>) {}

    fn console(&mut self, _: &[u8]) {}
}
