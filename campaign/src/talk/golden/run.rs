//! One run of the golden conversation: what is written down of it, and how two runs are compared.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_executor::channel;
use quorate_executor::egress::{Item, Tap};
use quorate_executor::events::End;
use quorate_executor::exit::Failure;
use quorate_executor::stage::{Interposer, Limits, Performed, Play, Rig};
use quorate_vmm::fault::Tracer;
use quorate_vmm::{Machine, Outcome};

use super::GoldenError;
use crate::talk::conversation::{Conversation, Received};
use crate::talk::heard::{Course, Heard};
use crate::talk::judge::show;
use crate::talk::player::{Player, PlayerSettings};

/// Releases of a run that are kept one by one, to say where two runs differ first (R10). What is beyond is compared by digest.
const RELEASES_KEPT: usize = 1 << 20;
/// Bytes of a release that are shown where two differ.
const SHOWN: usize = 40;
/// Processor time between two boundaries of a golden run: a healthy one gets on, even on a busy host and step by step.
const SPIN: Duration = Duration::from_secs(120);

/// One run to compare others with.
pub(super) struct Run {
    name: String,
    /// What the client heard.
    pub heard: Heard,
    releases: Releases,
    /// What the set did.
    pub performed: Performed,
    /// System calls from the first boundary on.
    pub calls: u64,
    /// The conversation with the lengths that answers had, if it was played leniently.
    pub adapted: Option<Conversation>,
}

#[derive(Clone, Debug, Default)]
struct Releases {
    kept: Vec<Release>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Release {
    boundary: u64,
    channel: u16,
    digest: blake3::Hash,
    begin: Vec<u8>,
}

/// Plays the conversation once to `replicas` machines of the rig. A `lenient` player takes answers of other lengths, and adapts the
/// conversation to them; a `tracer` runs the machine instead.
///
/// # Errors
/// When the host fails the run.
pub(super) fn perform(
    rig: &mut Rig,
    replicas: u8,
    name: &str,
    conversation: &Arc<Conversation>,
    settings: PlayerSettings,
    tracer: Option<Arc<Mutex<Tracer>>>,
) -> Result<Run, GoldenError> {
    let player = Player::new(Arc::clone(conversation), settings);
    let releases: Arc<Mutex<Releases>> = Arc::default();
    let calls: Arc<Mutex<Option<(u64, u64)>>> = Arc::default();
    let play = Play {
        tap: Some(keep(&releases)),
        interposers: vec![Box::new(Watch {
            calls: Arc::clone(&calls),
            tracer,
        })],
        limits: Limits {
            spin: SPIN,
            stall: SPIN,
            wall: Duration::from_secs(3600),
        },
        ..Play::new(replicas, player.stage(), player.egress())
    };
    let performed = rig.perform(play)?;
    if let End::Failed { code, detail } = &performed.summary.end {
        return Err(Failure::new(*code, format!("{name}: {detail}")).into());
    }
    let adapted = player.adapted();
    let releases = std::mem::take(&mut *releases.lock().unwrap_or_else(PoisonError::into_inner));
    let calls = calls
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .map_or(0, |(first, last)| last - first);
    Ok(Run {
        name: match replicas {
            1 => format!("{name} with 1 replica"),
            n => format!("{name} with {n} replicas"),
        },
        heard: player.take_heard(),
        releases,
        performed,
        calls,
        adapted,
    })
}

/// Whether the client heard as many bytes as it did live.
pub(super) fn is_as_recorded(run: &Run, conversation: &Conversation) -> bool {
    let same = |of: &Received| {
        let heard = run.heard.connections.get(of.connection);
        heard.is_some_and(|heard| heard.bytes.len() as u64 == of.bytes)
    };
    run.heard.course == Course::Complete && conversation.end.iter().all(same)
}

/// How the conversation went, in words.
pub(super) fn course(heard: &Heard) -> String {
    match &heard.course {
        Course::Unfinished => "it did not come to its end".to_owned(),
        Course::Complete => "it came to its end".to_owned(),
        Course::Broken { why, .. } | Course::Stuck { why } => why.clone(),
    }
}

fn keep(releases: &Arc<Mutex<Releases>>) -> Tap {
    let releases = Arc::clone(releases);
    Box::new(move |item| {
        if let Item::Release {
            boundary,
            channel,
            bytes,
        } = item
        {
            let mut releases = releases.lock().unwrap_or_else(PoisonError::into_inner);
            if releases.kept.len() < RELEASES_KEPT {
                releases.kept.push(Release {
                    boundary: *boundary,
                    channel: channel.0,
                    digest: blake3::hash(bytes),
                    begin: bytes[..bytes.len().min(SHOWN)].to_vec(),
                });
            }
        }
    })
}

/// Whether two runs are the same; else the first difference.
pub(super) fn compare(first: &Run, second: &Run) -> Result<(), GoldenError> {
    let prints = |run: &Run| run.performed.summary.status.fingerprint.clone();
    let differs = |what: String| GoldenError::Differs {
        first: first.name.clone(),
        second: second.name.clone(),
        what,
    };
    if prints(first) != prints(second) {
        let pairs = first.releases.kept.iter().zip(&second.releases.kept);
        let what = match pairs.into_iter().find(|(a, b)| a != b) {
            Some((a, b)) => {
                let name = channel::name(quorate_voter::Channel(a.channel));
                format!(
                    "at boundary {} on channel {name}: {} and (boundary {}) {}",
                    a.boundary,
                    show(&a.begin),
                    b.boundary,
                    show(&b.begin)
                )
            }
            None => format!(
                "one released {} outputs, the other {}",
                first.releases.kept.len(),
                second.releases.kept.len()
            ),
        };
        return Err(differs(what));
    }
    if first.heard != second.heard {
        return Err(differs("the client heard something else".to_owned()));
    }
    if first.performed.disks != second.performed.disks {
        return Err(differs("the disks have other contents".to_owned()));
    }
    Ok(())
}

/// Counts system calls, and lets a tracer run the machine.
struct Watch {
    calls: Arc<Mutex<Option<(u64, u64)>>>,
    tracer: Option<Arc<Mutex<Tracer>>>,
}

impl Interposer for Watch {
    fn run(&mut self, machine: &mut Machine, _next_boundary: u64) -> Outcome {
        match &self.tracer {
            Some(tracer) => tracer
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .run(machine),
            None => machine.run(),
        }
    }

    fn at_boundary(&mut self, machine: &mut Machine, _boundary: u64) -> Result<(), String> {
        // A kernel without the recorder has no calls to count, and no faults that are triggered by them.
        if let Ok(made) = machine.calls_made() {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let (first, _) = calls.unwrap_or((made, made));
            *calls = Some((first, made));
        }
        Ok(())
    }
}
