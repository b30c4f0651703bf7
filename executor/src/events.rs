//! What happens to a set, as one clear line each, and a bounded log of it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use serde::Serialize;

use crate::exit::ExitCode;
use crate::recovery::Step;
use crate::sync::lock;

/// Events that the log keeps; the oldest is dropped for a new one (R10).
pub const EVENTS_KEPT: usize = 256;

/// One event. Serialised, it is an object with the key `event`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Every replica has passed its boot and the guest program waits for input for the first time. Of replicas that boot Linux: as many as
    /// are needed listen on each published TCP port, or have taken too long for it.
    Ready {
        /// Milliseconds since the set was started.
        after_ms: u64,
        /// Replicas that run.
        replicas: usize,
    },
    /// A guest has booted for as long as it may, and nobody listens there.
    NobodyListens {
        /// The replica.
        replica: usize,
        /// The guest's TCP ports.
        ports: Vec<u16>,
        /// Milliseconds since its machine began to run.
        after_ms: u64,
    },
    /// The voter found a replica in the minority (R5).
    Outvoted {
        /// The replica.
        replica: usize,
        /// Where.
        boundary: u64,
        /// On which channel.
        channel: &'static str,
        /// What it said and what the majority said.
        detail: String,
    },
    /// The replicas have no majority at a boundary: nothing is released from here on, or until [`Event::Majority`].
    NoMajority {
        /// Where.
        boundary: u64,
        /// What is done about it: `stop` or `hold`.
        policy: NoQuorum,
        /// It is not final: outputs are held until the vote of a recovering replica decides.
        recovering: bool,
        /// Who said what, as the voter tells it.
        detail: String,
    },
    /// A replica was stopped. With recovery, [`Event::Recovering`] or [`Event::LeftOut`] follows.
    ReplicaStopped {
        /// The replica.
        replica: usize,
        /// Its boundary.
        boundary: u64,
        /// Why, in words.
        reason: String,
    },
    /// The set goes on with fewer replicas.
    Degraded {
        /// Replicas still running.
        running: usize,
        /// Replicas at the start.
        of: usize,
        /// True if one more fault can still be masked.
        masks_another: bool,
    },
    /// A replica begins to come back, by this step of the ladder.
    Recovering {
        /// The replica.
        replica: usize,
        /// The step.
        step: Step,
        /// From which boundary on.
        boundary: u64,
    },
    /// A step did not bring its replica back; the next one follows.
    StepFailed {
        /// The replica.
        replica: usize,
        /// The step.
        step: Step,
        /// Why, in words.
        reason: String,
    },
    /// A replica has caught up and votes again.
    Recovered {
        /// The replica.
        replica: usize,
        /// The step that helped.
        step: Step,
        /// The first boundary at which it votes.
        boundary: u64,
        /// Milliseconds since its fault.
        after_ms: u64,
        /// `kept`, `new` or `copied`: what became of its layout.
        layout: &'static str,
    },
    /// All members vote again.
    FullStrength {
        /// Milliseconds since the first of them did not.
        after_ms: u64,
    },
    /// There is a majority again: the set goes on.
    Majority {
        /// The first boundary that is not released.
        boundary: u64,
    },
    /// A replica does not come back by itself.
    LeftOut {
        /// The replica.
        replica: usize,
        /// Why, in words.
        reason: String,
    },
    /// An input was fatal to a replica, which goes on without it. Its state lacks the effect of that request; if the answer was an
    /// error, there is none.
    InputLeftOut {
        /// The replica.
        replica: usize,
        /// The input's number over all inputs of the set.
        input: u64,
        /// On which connection or flow.
        place: String,
        /// Bytes of output that had been released there when the client sent it.
        position: u64,
        /// Its beginning.
        excerpt: String,
    },
    /// A replica is a copy of another, layout included: one attack may hit both.
    DiversityReduced {
        /// The copy.
        replica: usize,
        /// Of whom.
        donor: usize,
    },
    /// A checkpoint could not be taken; those before it are kept.
    CheckpointFailed {
        /// Whose; absent if it was one of the whole set.
        replica: Option<usize>,
        /// Why, in words.
        reason: String,
    },
    /// A new replica is a member from here on.
    Added {
        /// The replica.
        replica: usize,
    },
    /// A replica is no member from here on.
    Removed {
        /// The replica.
        replica: usize,
    },
    /// A fault was injected on request.
    Injected {
        /// The replica.
        replica: usize,
        /// Where.
        boundary: u64,
        /// What, and where exactly.
        detail: String,
    },
    /// The operator asked the set to stop.
    StopRequested {
        /// At once, without asking the guest program.
        now: bool,
    },
    /// Something that the operator should know and that changes nothing in the set.
    Note {
        /// The text.
        text: String,
    },
    /// The set has ended.
    Stopped {
        /// Why, in words.
        reason: String,
        /// The command's exit code.
        exit_code: u8,
        /// Digest of all releases.
        fingerprint: String,
    },
}

/// What to do when there is no majority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum NoQuorum {
    /// End the set.
    #[default]
    Stop,
    /// Stay up for inspection, release nothing.
    Hold,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Ready { after_ms, replicas } => {
                write!(
                    f,
                    "ready after {:.3} s: {} running",
                    *after_ms as f64 / 1000.0,
                    count(*replicas)
                )
            }
            Event::NobodyListens {
                replica,
                ports,
                after_ms,
            } => {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                write!(
                    f,
                    "replica {replica}: after {} s nobody listens on TCP port {}: connections to it are refused from now on; if its program needs longer, give boot_timeout_ms in [linux]",
                    after_ms / 1000,
                    ports.join(", ")
                )
            }
            Event::Outvoted { detail, .. } => write!(f, "verdict: {detail}"),
            Event::NoMajority {
                recovering: true,
                detail,
                ..
            } => write!(
                f,
                "verdict: {detail}: outputs are held until a recovering replica votes"
            ),
            Event::NoMajority { policy, detail, .. } => {
                let then = match policy {
                    NoQuorum::Stop => "the set stops",
                    NoQuorum::Hold => "the set holds and releases nothing",
                };
                write!(f, "verdict: {detail}: {then}")
            }
            Event::ReplicaStopped {
                replica,
                boundary,
                reason,
            } => {
                write!(
                    f,
                    "replica {replica} stopped at boundary {boundary}: {reason}"
                )
            }
            Event::Degraded {
                running,
                of,
                masks_another,
            } => {
                let masks = if *masks_another {
                    "one more fault can be masked"
                } else {
                    "no further fault can be masked"
                };
                write!(
                    f,
                    "set degraded: {running} of {} running; {masks}",
                    count(*of)
                )
            }
            Event::Recovering {
                replica,
                step,
                boundary,
            } => {
                write!(
                    f,
                    "replica {replica} recovers from boundary {boundary} by step {step}"
                )
            }
            Event::StepFailed {
                replica,
                step,
                reason,
            } => write!(f, "replica {replica}: step {step} failed: {reason}"),
            Event::Recovered {
                replica,
                step,
                boundary,
                after_ms,
                layout,
            } => write!(
                f,
                "replica {replica} votes again at boundary {boundary}, {after_ms} ms after its fault, by step {step}; layout {layout}"
            ),
            Event::FullStrength { after_ms } => {
                write!(f, "set at full strength again after {after_ms} ms")
            }
            Event::Majority { boundary } => {
                write!(f, "there is a majority again at boundary {boundary}")
            }
            Event::LeftOut { replica, reason } => write!(
                f,
                "replica {replica} is left out: {reason}; `quorate recover {replica}` tries again"
            ),
            Event::InputLeftOut {
                replica,
                input,
                place,
                position,
                excerpt,
            } => write!(
                f,
                "replica {replica} goes on without input {input}, which was fatal to it: {place}, after {position} bytes of answers: \"{excerpt}\"; its state lacks the effect of that request, if it had any"
            ),
            Event::DiversityReduced { replica, donor } => write!(
                f,
                "diversity reduced: replica {replica} has the layout of replica {donor}"
            ),
            Event::CheckpointFailed {
                replica: Some(replica),
                reason,
            } => write!(f, "checkpoint of replica {replica} failed: {reason}"),
            Event::CheckpointFailed { reason, .. } => write!(f, "checkpoint failed: {reason}"),
            Event::Added { replica } => write!(f, "replica {replica} is a member of the set"),
            Event::Removed { replica } => {
                write!(f, "replica {replica} is no member of the set any more")
            }
            Event::Injected {
                replica,
                boundary,
                detail,
            } => {
                write!(
                    f,
                    "injected into replica {replica} at boundary {boundary}: {detail}"
                )
            }
            Event::StopRequested { now: false } => {
                f.write_str("stopping: the guest program is asked to end")
            }
            Event::StopRequested { now: true } => f.write_str("stopping at once"),
            Event::Note { text } => f.write_str(text),
            Event::Stopped {
                reason,
                exit_code,
                fingerprint,
            } => {
                write!(
                    f,
                    "stopped: {reason} (exit code {exit_code}); fingerprint {fingerprint}"
                )
            }
        }
    }
}

/// `1 replica`, `3 replicas`.
pub(crate) fn count(replicas: usize) -> String {
    if replicas == 1 {
        "1 replica".to_owned()
    } else {
        format!("{replicas} replicas")
    }
}

/// An event with its time.
#[derive(Clone, Debug, Serialize)]
pub struct Logged {
    /// Milliseconds since the set was started.
    pub at_ms: u64,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

/// Where events are shown as they happen. Must not block for long.
pub type EventSink = Box<dyn Fn(&Logged) + Send + Sync>;

/// The last [`EVENTS_KEPT`] events of a set, and who is told of them.
pub struct EventLog {
    kept: Mutex<VecDeque<Logged>>,
    sink: EventSink,
}

impl EventLog {
    /// An empty log that passes events on to `sink`.
    pub fn new(sink: EventSink) -> Self {
        EventLog {
            kept: Mutex::new(VecDeque::new()),
            sink,
        }
    }

    /// Records an event.
    pub fn record(&self, since_start: Duration, event: Event) {
        let logged = Logged {
            at_ms: since_start.as_millis() as u64,
            event,
        };
        {
            let mut kept = lock(&self.kept);
            if kept.len() == EVENTS_KEPT {
                kept.pop_front();
            }
            kept.push_back(logged.clone());
        }
        // Last: who sees its line finds it in the log.
        (self.sink)(&logged);
    }

    /// The events kept, oldest first.
    pub fn recent(&self) -> Vec<Logged> {
        lock(&self.kept).iter().cloned().collect()
    }
}

/// How a set ended, for the last line and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest program ended; this is its wait status, as `wait4` would report it.
    Exited {
        /// The wait status.
        wait_status: u32,
        /// The operator had asked for it.
        requested: bool,
    },
    /// The operator's stop, without waiting for the guest program.
    Stopped,
    /// No majority was left.
    NoQuorum {
        /// What led to it.
        detail: String,
    },
    /// The host failed the set: no thread, no memory, a machine that cannot be built.
    Failed {
        /// Exit code.
        code: ExitCode,
        /// What happened.
        detail: String,
    },
}

impl End {
    /// The command's exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            End::Exited { wait_status: 0, .. }
            | End::Exited {
                requested: true, ..
            }
            | End::Stopped => ExitCode::Success,
            End::Exited { .. } => ExitCode::GuestFailed,
            End::NoQuorum { .. } => ExitCode::NoQuorum,
            End::Failed { code, .. } => *code,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Exited {
                wait_status,
                requested,
            } => {
                let (low, high) = (wait_status & 0x7f, (wait_status >> 8) & 0xff);
                if low == 0 {
                    write!(f, "the guest program ended with status {high}")?;
                } else {
                    write!(f, "the guest program was ended by signal {low}")?;
                }
                if *requested {
                    f.write_str(", as requested")
                } else {
                    Ok(())
                }
            }
            End::Stopped => f.write_str("by request"),
            // The verdict's own line has said how.
            End::NoQuorum { .. } => f.write_str("no majority among the replicas"),
            End::Failed { detail, .. } => f.write_str(detail),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_log_is_bounded_and_keeps_the_newest() {
        let log = EventLog::new(Box::new(|_| {}));
        for number in 0..EVENTS_KEPT + 5 {
            log.record(
                Duration::ZERO,
                Event::Note {
                    text: number.to_string(),
                },
            );
        }
        let kept = log.recent();
        assert_eq!(kept.len(), EVENTS_KEPT);
        assert_eq!(kept[0].event, Event::Note { text: "5".into() });
    }

    #[test]
    fn exit_codes_tell_the_ends_apart() {
        let exited = |wait_status, requested| End::Exited {
            wait_status,
            requested,
        };
        assert_eq!(exited(0, false).exit_code(), ExitCode::Success);
        assert_eq!(exited(3 << 8, false).exit_code(), ExitCode::GuestFailed);
        assert_eq!(exited(15, true).exit_code(), ExitCode::Success);
        assert_eq!(
            exited(3 << 8, false).to_string(),
            "the guest program ended with status 3"
        );
        assert_eq!(
            exited(11, false).to_string(),
            "the guest program was ended by signal 11"
        );
    }
}
