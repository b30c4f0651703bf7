//! What the replicas of a relaxed set share, under one short lock: the input log, a matcher for each channel, and who is in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use quorate_voter::ReplicaId;
use quorate_voter::relaxed::{
    ConsoleMatcher, DatagramMatcher, MaskSet, PoolLimits, StreamLimits, StreamMatcher, Translator,
    Voters,
};

use super::bell::Bell;
use super::boot::Boot;
use super::disk::{RelaxedDisks, RelaxedNotice};
use super::link::{ConnId, FlowId};
use super::log::InputLog;
use super::recovery::Recovery;
use super::report::Differences;
use crate::console::Console;
use crate::events::{End, Event, EventLog, NoQuorum};
use crate::exit::ExitCode;
use crate::journal::{Clock, FairClock};
use crate::recovery::RecoveryConfig;
use crate::replica::Kick;
use crate::sync::lock;

/// Client bytes of one connection that a guest has not acknowledged yet, at most (R10). At the bound the client's socket is not read.
pub const CONNECTION_INPUT: u64 = 256 << 10;
/// Inputs that wait for the slowest replica, bytes (R10), unless the appliance's window says another number. At the bound no client's
/// socket is read; after the lag timeout the slowest replica is stopped.
pub const LOG_BYTES: usize = 64 << 20;

/// What a set is told at its start.
pub struct Settings {
    /// Roles and policy.
    pub voters: Voters,
    /// Names of the replicas' versions.
    pub names: Vec<String>,
    /// Bounds of a connection.
    pub limits: StreamLimits,
    /// What may differ, by the guest's TCP port.
    pub masks: HashMap<u16, MaskSet>,
    /// What may differ in datagrams, by the guest's UDP port.
    pub udp_masks: HashMap<u16, MaskSet>,
    /// Lines of the console that no quorum says are shown, too.
    pub console_all: bool,
    /// What may differ in the console's lines.
    pub console_mask: Option<MaskSet>,
    /// Guest's TCP ports on which a replica gets input only when it has said what had been released.
    pub sync: Vec<u16>,
    /// A voter that differs is stopped, not only left out of the connection.
    pub stop_who_differs: bool,
    /// How long an answer waits for the agreement of the others under [`Policy::Primary`].
    pub patience: Duration,
    /// A replica that others wait for so long is stopped.
    pub lag_timeout: Duration,
    /// TCP ports on which each guest listens when it has booted; empty for guests that need no boot.
    pub listens: Vec<u16>,
    /// How long that may take. So long nobody is a laggard who does not listen yet.
    pub boot_timeout: Duration,
    /// Bytes of [`LOG_BYTES`].
    pub log_bytes: usize,
    /// What to do without a majority.
    pub no_quorum: NoQuorum,
    /// How stopped replicas come back.
    pub recovery: RecoveryConfig,
    /// Why the guests are not expected to run on this host; they are tried all the same, for [`super::members::DOUBT_PATIENCE`].
    pub doubt: Option<String>,
}

/// One connection.
pub(super) struct Channel {
    pub(super) matcher: StreamMatcher,
    pub(super) guest_port: u16,
    pub(super) sync: bool,
    /// Client bytes so far.
    pub(super) input: u64,
    /// Number of its last input.
    pub(super) last_input: u64,
    /// Client bytes that each replica's guest has not acknowledged.
    pub(super) owed: Vec<u64>,
    /// The front waits for that to become less.
    pub(super) throttled: bool,
    /// Something may be hidden in it, so that what has no end may be held back.
    pub(super) masked: bool,
    /// It is on the front's list.
    pub(super) queued: bool,
    /// Replicas whose bytes did not fit.
    pub(super) full: Vec<usize>,
    /// Since when it waits, by the fair clock.
    pub(super) waits_since: Option<u64>,
    /// Since when each replica owes what others have said, and where it stands since then.
    pub(super) owed_since: Vec<Option<(u64, u64)>>,
    /// Nothing more can be released; said.
    pub(super) undecided: bool,
    /// The front has no socket for it any more: it is kept for those who have yet to say what was released.
    pub(super) over: bool,
    /// The guests broke it off.
    pub(super) broken: bool,
}

/// How a replica fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its machine is being made.
    Starting,
    /// Its guest runs.
    Running,
    /// Its guest waits for input.
    Idle,
    /// It was stopped.
    Stopped,
}

pub(super) struct Member {
    pub(super) place: Place,
    /// Its outputs count; false when it was stopped.
    pub(super) alive: bool,
    pub(super) stopped: Option<String>,
    pub(super) kick: Option<Kick>,
    /// Connections whose bytes may fit now.
    pub(super) retry: Vec<ConnId>,
    /// Connections of which masks hold something back, and the exchange at which it was said.
    pub(super) held: std::collections::BTreeMap<ConnId, u64>,
    pub(super) mail: std::collections::VecDeque<super::guest::Mail>,
    /// Boundaries or exchanges so far.
    pub(super) exchanges: u64,
    /// The same at the last tick.
    pub(super) ticked: u64,
    pub(super) output_bytes: u64,
    /// Its guest has said something, or asked something of a disk.
    pub(super) spoke: bool,
    pub(super) ran: Duration,
    /// Since when the others wait for it, by the fair clock, and what it has done until then.
    pub(super) lags_since: Option<(u64, u64)>,
    pub(super) layout: Vec<(&'static str, u64)>,
    pub(super) faults: u64,
    pub(super) injected: Vec<(crate::inject::Fault, crate::inject::Applied, u64)>,
    pub(super) restarts: u64,
    /// Lines of its console that no quorum has said.
    pub(super) own_lines: u64,
    pub(super) exited: Option<u64>,
    pub(super) was_idle: bool,
    /// To inputs with lower numbers it has said all that it will say.
    pub(super) answered: u64,
    pub(super) recovery: Recovery,
    pub(super) boot: Boot,
    /// The newest of its console, whether or not others say it.
    pub(super) console: Vec<u8>,
}

impl Member {
    /// It runs, and is not on its way back.
    pub(super) fn votes(&self) -> bool {
        self.alive && self.recovery.returning.is_none()
    }
}

pub(super) struct Inner {
    pub(super) log: InputLog,
    pub(super) channels: HashMap<ConnId, Channel>,
    pub(super) members: Vec<Member>,
    /// Connections with something new for the front.
    pub(super) dirty: Vec<ConnId>,
    /// A matcher for each of the guest's UDP ports.
    pub(super) datagrams: HashMap<u16, DatagramMatcher>,
    /// The guest's port of each flow that the front knows.
    pub(super) flows: HashMap<FlowId, u16>,
    /// There are released datagrams that the front has not fetched.
    pub(super) datagrams_wait: bool,
    pub(super) lines: ConsoleMatcher,
    /// Console bytes that no matcher had room for (R10).
    pub(super) console_lost: u64,
    pub(super) translator: Translator,
    pub(super) report: Differences,
    pub(super) end: Option<End>,
    pub(super) no_quorum: Option<String>,
    /// There is no majority, and somebody is on its way back: the set waits.
    pub(super) held_for_recovery: bool,
    /// The replica that takes a checkpoint.
    pub(super) checkpointing: Option<usize>,
    /// When the guests are no longer waited for; set when the operator asked for a stop.
    pub(super) stop_deadline: Option<Instant>,
    pub(super) terminate: bool,
    pub(super) ready: Option<Duration>,
    pub(super) fair: FairClock,
    /// Since when the log is full, by the fair clock.
    pub(super) full_since: Option<u64>,
    pub(super) released_bytes: u64,
    pub(super) releases: u64,
}

/// See the module.
pub struct Hub {
    inner: Mutex<Inner>,
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    pub(super) bells: Vec<Arc<Bell>>,
    pub(super) events: Arc<EventLog>,
    pub(super) console: Arc<Console>,
    disks: OnceLock<Arc<RelaxedDisks>>,
    wake_front: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Rung when the set has ended.
    pub(super) over: Bell,
}

impl Settings {
    /// Bounds of a channel whose outputs come in any order.
    pub(super) fn pool(&self) -> PoolLimits {
        PoolLimits {
            age_ns: (self.lag_timeout.as_nanos() as u64).saturating_mul(2),
            patience_ns: self.patience.as_nanos() as u64,
            ..PoolLimits::default()
        }
    }
}

pub(super) fn id(replica: usize) -> ReplicaId {
    // A set has at most nine.
    ReplicaId(replica as u8)
}

impl Hub {
    /// The shared state of a set that has not begun.
    #[must_use]
    pub fn new(settings: Settings, events: Arc<EventLog>, console: Arc<Console>) -> Arc<Hub> {
        let replicas = settings.voters.len();
        let member = || Member {
            place: Place::Starting,
            alive: true,
            stopped: None,
            kick: None,
            retry: Vec::new(),
            held: Default::default(),
            mail: Default::default(),
            exchanges: 0,
            ticked: 0,
            output_bytes: 0,
            spoke: false,
            ran: Duration::ZERO,
            lags_since: None,
            layout: Vec::new(),
            faults: 0,
            injected: Vec::new(),
            restarts: 0,
            own_lines: 0,
            exited: None,
            was_idle: false,
            answered: 0,
            recovery: Recovery::default(),
            boot: Boot::default(),
            console: Vec::new(),
        };
        let inner = Inner {
            log: InputLog::new(replicas),
            channels: HashMap::new(),
            members: (0..replicas).map(|_| member()).collect(),
            dirty: Vec::new(),
            datagrams: HashMap::new(),
            flows: HashMap::new(),
            datagrams_wait: false,
            lines: ConsoleMatcher::new(
                &settings.voters,
                settings.pool(),
                settings.console_mask.as_ref(),
            ),
            console_lost: 0,
            translator: Translator::new(),
            report: Differences::default(),
            end: None,
            no_quorum: None,
            held_for_recovery: false,
            checkpointing: None,
            stop_deadline: None,
            terminate: false,
            ready: None,
            fair: FairClock::start(),
            full_since: None,
            released_bytes: 0,
            releases: 0,
        };
        let mut inner = inner;
        if settings.recovery.enabled {
            // From the very beginning, until there is a checkpoint or too much of it.
            (0..replicas).for_each(|me| inner.log.keep(me, Some(0)));
        }
        Arc::new(Hub {
            inner: Mutex::new(inner),
            settings,
            clock: Clock::start(),
            bells: (0..replicas).map(|_| Arc::default()).collect(),
            events,
            console,
            disks: OnceLock::new(),
            wake_front: OnceLock::new(),
            over: Bell::default(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// What wakes the front's thread.
    pub fn on_release(&self, wake: Box<dyn Fn() + Send + Sync>) {
        let _ = self.wake_front.set(wake);
    }

    /// The set's disks, if it has any; only the first time counts.
    pub fn attach(&self, disks: Arc<RelaxedDisks>) {
        let _ = self.disks.set(disks);
    }

    pub(super) fn disks(&self) -> Option<&Arc<RelaxedDisks>> {
        self.disks.get()
    }

    /// A disk has something to say.
    pub fn disk_notice(&self, notice: RelaxedNotice) {
        match notice {
            RelaxedNotice::Due(replicas) => {
                for (me, bell) in self.bells.iter().enumerate() {
                    if replicas & 1 << me != 0 {
                        bell.ring();
                    }
                }
            }
            RelaxedNotice::Failed {
                cause, stop: true, ..
            } => {
                let end = End::Failed {
                    code: ExitCode::Disk,
                    detail: cause,
                };
                self.end(&mut self.lock(), end);
            }
            RelaxedNotice::Failed { cause, .. } => self.note(cause),
            RelaxedNotice::Stopped {
                replica,
                outvoted,
                cause,
                ..
            } => {
                let mut inner = self.lock();
                let alive = inner.members.get(replica).filter(|member| member.alive);
                if let Some(boundary) = alive.map(|member| member.exchanges).filter(|_| outvoted) {
                    self.tell(Event::Outvoted {
                        replica,
                        boundary,
                        channel: "disk",
                        detail: cause.clone(),
                    });
                }
                self.stop_replica(&mut inner, replica, cause, false);
            }
            RelaxedNotice::Told { text, .. } => self.note(text),
        }
    }

    pub(super) fn wake_front(&self) {
        if let Some(wake) = self.wake_front.get() {
            wake();
        }
    }

    pub(super) fn ring_all(&self) {
        for bell in &self.bells {
            bell.ring();
        }
    }

    pub(super) fn tell(&self, event: Event) {
        self.events.record(self.clock.elapsed(), event);
    }

    /// Ends the set; only the first end counts.
    pub(super) fn end(&self, inner: &mut Inner, end: End) {
        if inner.end.is_some() {
            return;
        }
        inner.end = Some(end);
        for member in &inner.members {
            if let Some(kick) = &member.kick {
                kick();
            }
        }
        self.ring_all();
        self.wake_front();
        self.over.ring();
    }

    /// Writes differences to this file.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn write_differences(&self, path: &std::path::Path) -> std::io::Result<()> {
        self.lock().report.write_to(path)
    }

    /// Records an event.
    pub fn note(&self, text: String) {
        self.tell(Event::Note { text });
    }
}
