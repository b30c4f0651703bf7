//! The bench: machines of the golden set, and one trial after the other on them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_executor::events::End;
use quorate_executor::exit::{ExitCode, Failure};
use quorate_executor::record::{Header, Limits as Recording, Recorder};
use quorate_executor::stage::{EPOCH_NS, Interposer, Limits, Performed, Play, Rig, Untouched};

use crate::file::Campaign;
use crate::inject::metadata::Metadata;
use crate::inject::{DiskFacts, Hit, Injected, Injector, Report, Surroundings, Symbols};
use crate::model::{Drawn, Outcome, Timing, TrialRecord};
use crate::talk::{Golden, Heard, Judge, Judgement, Trial};

use super::watch::{Seen, Watch, micros};
use super::{BenchError, Trials};

/// A trial that takes longer than this in real time says nothing: the host or Quorate failed it.
const WALL: Duration = Duration::from_secs(120);
/// Bytes of a trial's recording.
const RECORDING: Recording = Recording {
    segment: 256 << 20,
    keep: 4 << 30,
};

/// See the module.
pub struct Bench {
    golden: Arc<Golden>,
    rig: Rig,
    surroundings: Surroundings,
    judge: Judge,
    limits: Limits,
    record: Option<PathBuf>,
}

/// One trial as it was played.
struct Played {
    heard: Heard,
    performed: Performed,
    seen: Seen,
    began: Instant,
}

impl Bench {
    /// Machines for the campaign's largest set. To be made in the thread that uses it: virtual CPUs run best on one.
    ///
    /// # Errors
    /// When the host cannot do it.
    pub fn new(campaign: &Campaign, golden: Arc<Golden>) -> Result<Bench, BenchError> {
        let most = campaign.replicas.iter().copied().max().unwrap_or(1);
        let plan = golden.plan.clone();
        let surroundings = surroundings(&golden);
        let judge =
            Judge::new(campaign, &golden).map_err(|error| BenchError::Broken(error.to_string()))?;
        Ok(Bench {
            rig: Rig::new(plan, most)?,
            golden,
            surroundings,
            judge,
            limits: Limits {
                spin: quorate_executor::patience::patient(Duration::from_millis(
                    campaign.limits.cpu_ms,
                )),
                stall: quorate_executor::patience::patient(Duration::from_millis(
                    campaign.limits.lag_ms,
                )),
                wall: quorate_executor::patience::patient(WALL),
            },
            record: None,
        })
    }

    /// The next trial is recorded to this file, which must not be there yet: `quorate explain FILE` tells of it.
    pub fn record(&mut self, file: &Path) {
        self.record = Some(file.to_owned());
    }

    /// Plays the golden run as a trial without a fault: whatever a trial shows later comes from its fault.
    ///
    /// # Errors
    /// When it is not the golden run byte for byte.
    pub fn check(&mut self, replicas: u8) -> Result<Timing, BenchError> {
        let played = self.play(replicas, Vec::new())?;
        let judging = Instant::now();
        let wrong = |what: String| {
            Err(BenchError::Broken(format!(
                "a trial without a fault with {replicas} replicas is not the golden run: {what}"
            )))
        };
        if let Some(found) = played.seen.found() {
            return wrong(found.reason);
        }
        if played.heard != self.golden.heard {
            return wrong(format!(
                "the client heard something else ({:?})",
                played.heard.course
            ));
        }
        if played.performed.disks != self.golden.disks {
            return wrong("the disks have other contents".to_owned());
        }
        let judged = self.judged(&played, replicas, None);
        if judged.outcome != Outcome::Masked {
            return wrong(format!(
                "it is judged to be {}: {}",
                judged.outcome, judged.evidence
            ));
        }
        Ok(timing(&played, None, judging))
    }

    fn play(
        &mut self,
        replicas: u8,
        interposers: Vec<Box<dyn Interposer>>,
    ) -> Result<Played, BenchError> {
        if replicas == 0 || replicas > self.rig.replicas() {
            return Err(BenchError::Replicas {
                wanted: replicas,
                most: self.rig.replicas(),
            });
        }
        let began = Instant::now();
        let player = self.golden.player();
        let watch = Watch::default();
        let recorder = match self.record.take() {
            Some(file) => Some(self.recorder(&file, replicas)?),
            None => None,
        };
        let play = Play {
            tap: Some(watch.tap()),
            events: watch.events(),
            interposers,
            recorder,
            limits: self.limits,
            // Two who disagree cannot know who is wrong: they stop, rather than try whether it was transient.
            recovery: replicas > 2,
            ..Play::new(replicas, watch.stage(player.stage()), player.egress())
        };
        let performed = self.rig.perform(play)?;
        if let End::Failed { code, detail } = &performed.summary.end
            && *code != ExitCode::Internal
        {
            return Err(Failure::new(*code, detail.clone()).into());
        }
        Ok(Played {
            heard: player.take_heard(),
            performed,
            seen: watch.take(),
            began,
        })
    }

    fn judged(&self, played: &Played, replicas: u8, not_injected: Option<&str>) -> Judgement {
        self.judge.judge(&Trial {
            replicas,
            not_injected,
            heard: &played.heard,
            disks: &played.performed.disks,
            end: &played.performed.summary.end,
            over: played.performed.over,
            spun: played.performed.spun,
            events: &played.seen.in_order(),
        })
    }

    fn recorder(&self, file: &Path, replicas: u8) -> Result<Arc<Recorder>, BenchError> {
        let mut plan = self.golden.plan.clone();
        plan.set.voter.replicas = replicas;
        let appliance = plan.appliance.0.clone();
        let recorder = Recorder::create(file, RECORDING, &Header::of(&plan, &appliance))?;
        Ok(Arc::new(recorder))
    }
}

impl Trials for Bench {
    fn trial(&mut self, drawn: &Drawn, replicas: u8) -> Result<TrialRecord, BenchError> {
        let (interposers, injected) = cast(drawn, replicas, &self.surroundings);
        let played = self.play(replicas, interposers)?;
        let judging = Instant::now();
        let report = together(&injected);
        let (hit, place) = report.placed();
        let failed = hit.is_none().then_some(place.as_str());
        let judged = self.judged(&played, replicas, failed);
        let began_ns = self.golden.heard.began_ns;
        let detected = hit.and_then(|hit| played.seen.detection(hit, began_ns));
        Ok(TrialRecord {
            drawn: drawn.clone(),
            replicas,
            outcome: judged.outcome,
            place,
            location: hit.and_then(|hit| hit.location.clone()),
            detected,
            recovered: played.seen.recovered(),
            full_strength: is_full(&played, replicas),
            evidence: judged.evidence,
            timing: timing(&played, hit, judging),
        })
    }
}

/// What injectors need to know of the golden set.
pub(super) fn surroundings(golden: &Golden) -> Surroundings {
    let plan = &golden.plan;
    let disks = plan.disks.iter().map(|disk| DiskFacts {
        bytes: disk.bytes,
        // A disk without a file system has none; a fault that needs them says so.
        metadata: Metadata::read(&disk.path).ok(),
    });
    let began = golden.heard.began_ns;
    let program = plan.machine.program.argv.first();
    Surroundings {
        disks: disks.collect(),
        symbols: Arc::new(Symbols::new(
            Arc::clone(&plan.machine.kernel),
            &plan.image.path,
            program.map_or("", String::as_str),
        )),
        trace: golden.trace.clone(),
        began: (began, EPOCH_NS.saturating_add(began)),
    }
}

/// The injectors of a draw's victims, and nothing for the other replicas; the reports are in the victims' order.
pub(super) fn cast(
    drawn: &Drawn,
    replicas: u8,
    surroundings: &Surroundings,
) -> (Vec<Box<dyn Interposer>>, Vec<Injected>) {
    let victims = drawn.victims(replicas);
    let mut interposers: Vec<Box<dyn Interposer>> = Vec::new();
    let mut reports = vec![None; victims.len()];
    for replica in 0..usize::from(replicas) {
        interposers.push(match victims.iter().position(|victim| *victim == replica) {
            Some(nth) => {
                let (injector, injected) = Injector::new(drawn, surroundings.clone());
                reports[nth] = Some(injected);
                Box::new(injector)
            }
            None => Box::new(Untouched),
        });
    }
    (interposers, reports.into_iter().flatten().collect())
}

/// What became of the injections together: the first that failed, else the first that hit; a victim that was not reached because the
/// set ended before is no failure where another was hit.
pub(super) fn together(injected: &[Injected]) -> Report {
    let reports: Vec<Report> = injected.iter().map(Injected::report).collect();
    let is = |wanted: fn(&Report) -> bool| reports.iter().find(|report| wanted(report)).cloned();
    is(|report| matches!(report, Report::Failed(_)))
        .or_else(|| is(|report| matches!(report, Report::Hit(_))))
        .or_else(|| is(|report| matches!(report, Report::Armed)))
        .unwrap_or_default()
}

/// Whether all members voted at the end.
fn is_full(played: &Played, replicas: u8) -> bool {
    let seen = &played.seen;
    let end = &played.performed.summary.end;
    if !played.performed.over && !matches!(end, End::Exited { .. } | End::Stopped) {
        return false;
    }
    // With the guest's program that of all replicas ends: nobody is counted then.
    let running = played.performed.summary.status.running == usize::from(replicas);
    seen.away() == 0 && !seen.left_out() && (running || !played.performed.over)
}

fn timing(played: &Played, hit: Option<&Hit>, judging: Instant) -> Timing {
    let now = Instant::now();
    let began = played.seen.began.unwrap_or(played.began);
    let stopped = played.began + played.performed.took;
    let ended = played.seen.ended.unwrap_or(stopped).min(stopped);
    Timing {
        reset: played.performed.reset.micros,
        pages: played.performed.reset.pages,
        run: micros(began, ended),
        inject: hit.map_or(0, |hit| micros(began, hit.at)),
        settle: micros(ended, stopped),
        judge: micros(judging, now),
        total: micros(played.began, now),
    }
}
