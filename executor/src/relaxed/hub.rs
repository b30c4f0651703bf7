//! What the replicas of a relaxed set share, under one short lock: the input log, a matcher for each channel, and who is in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use quorate_voter::ReplicaId;
use quorate_voter::relaxed::{
    ConsoleMatcher, DatagramMatcher, Difference, EndOfStream, MaskSet, Policy, PoolLimits, Role,
    StreamLimits, StreamMatcher, Translator, Undecided, Voters,
};

use super::bell::Bell;
use super::boot::Boot;
use super::disk::{RelaxedDisks, RelaxedNotice};
use super::link::{ConnId, FlowId, ToGuest};
use super::log::InputLog;
use super::recovery::Recovery;
use super::report::Differences;
use crate::console::{CONSOLE_TAIL, Console};
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
}

/// One connection.
pub(super) struct Channel {
    pub(super) matcher: StreamMatcher,
    pub(super) guest_port: u16,
    pub(super) sync: bool,
    /// Client bytes so far.
    pub(super) input: u64,
    /// Client bytes that each replica's guest has not acknowledged.
    pub(super) owed: Vec<u64>,
    /// The front waits for that to become less.
    pub(super) throttled: bool,
    /// Something may be hidden in it, so that what has no end may be held back.
    masked: bool,
    /// It is on the front's list.
    queued: bool,
    /// Replicas whose bytes did not fit.
    full: Vec<usize>,
    /// Since when it waits, by the fair clock.
    pub(super) waits_since: Option<u64>,
    /// Since when each replica owes what others have said, and where it stands since then.
    pub(super) owed_since: Vec<Option<(u64, u64)>>,
    /// Nothing more can be released; said.
    pub(super) undecided: bool,
    /// The front has no socket for it any more: it is kept for those who have yet to say what was released.
    pub(super) over: bool,
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
    pub(super) ran: Duration,
    /// Since when the others wait for it, by the fair clock, and what it has done until then.
    pub(super) lags_since: Option<(u64, u64)>,
    pub(super) layout: Vec<(&'static str, u64)>,
    pub(super) faults: u64,
    pub(super) injected: Vec<(crate::inject::Fault, crate::inject::Applied, u64)>,
    pub(super) restarts: u64,
    pub(super) exited: Option<u64>,
    pub(super) was_idle: bool,
    pub(super) recovery: Recovery,
    pub(super) boot: Boot,
    /// The newest of its console, whether or not others say it.
    console: Vec<u8>,
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
    fn pool(&self) -> PoolLimits {
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
            ran: Duration::ZERO,
            lags_since: None,
            layout: Vec::new(),
            faults: 0,
            injected: Vec::new(),
            restarts: 0,
            exited: None,
            was_idle: false,
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
            RelaxedNotice::Stopped { replica, cause, .. } => {
                self.stop_replica(&mut self.lock(), replica, cause, false);
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

    // What the front says.

    /// A client has connected: the event of it goes to all.
    pub(super) fn open(&self, inner: &mut Inner, conn: ConnId, guest_port: u16) {
        let settings = &self.settings;
        let mask = settings.masks.get(&guest_port);
        let matcher = StreamMatcher::new(&settings.voters, settings.limits, mask);
        let mut matcher = matcher.for_connection(conn);
        for (me, member) in inner.members.iter().enumerate() {
            if !member.alive {
                matcher.leave(id(me));
            }
        }
        let channel = Channel {
            masked: mask.is_some(),
            matcher,
            guest_port,
            sync: settings.sync.contains(&guest_port),
            input: 0,
            owed: vec![0; inner.members.len()],
            throttled: false,
            queued: false,
            full: Vec::new(),
            waits_since: None,
            owed_since: vec![None; inner.members.len()],
            undecided: false,
            over: false,
        };
        inner.channels.insert(conn, channel);
        inner.log.push(ToGuest::Open { conn, guest_port }, 0);
    }

    /// The client sent bytes.
    pub(super) fn data(&self, inner: &mut Inner, conn: ConnId, bytes: &[u8]) {
        let Some(channel) = inner.channels.get_mut(&conn) else {
            return;
        };
        channel.matcher.note_input(channel.input, bytes);
        channel.input += bytes.len() as u64;
        for (owed, member) in channel.owed.iter_mut().zip(&inner.members) {
            if member.alive {
                *owed += bytes.len() as u64;
            }
        }
        let after = channel.matcher.released();
        let bytes = bytes.into();
        inner.log.push(ToGuest::Data { conn, bytes }, after);
    }

    /// A client sent a datagram.
    pub(super) fn datagram(&self, inner: &mut Inner, flow: FlowId, guest_port: u16, bytes: &[u8]) {
        inner.flows.insert(flow, guest_port);
        if !inner.datagrams.contains_key(&guest_port) {
            let settings = &self.settings;
            let mask = settings.udp_masks.get(&guest_port);
            let mut matcher = DatagramMatcher::new(&settings.voters, settings.pool(), mask);
            for (me, member) in inner.members.iter().enumerate() {
                if !member.alive {
                    matcher.leave(id(me));
                }
            }
            inner.datagrams.insert(guest_port, matcher);
        }
        inner.log.push(
            ToGuest::Datagram {
                flow,
                guest_port,
                bytes: bytes.into(),
            },
            0,
        );
    }

    /// The front has forgotten a client.
    pub(super) fn forget_flow(&self, inner: &mut Inner, flow: FlowId) {
        inner.flows.remove(&flow);
    }

    /// Takes released datagrams.
    pub(super) fn take_datagrams(&self, inner: &mut Inner, into: &mut Vec<(FlowId, Arc<[u8]>)>) {
        if !std::mem::take(&mut inner.datagrams_wait) {
            return;
        }
        for matcher in inner.datagrams.values_mut() {
            while let Some(datagram) = matcher.take_released() {
                inner.released_bytes += datagram.bytes.len() as u64;
                inner.releases += 1;
                into.push((datagram.flow, datagram.bytes));
            }
        }
    }

    /// A replica says a datagram.
    pub(super) fn datagram_said(&self, inner: &mut Inner, me: usize, flow: FlowId, bytes: &[u8]) {
        let Some(port) = inner.flows.get(&flow).copied() else {
            return;
        };
        let now = inner.fair.at(Instant::now());
        let Some(matcher) = inner.datagrams.get_mut(&port) else {
            return;
        };
        // Datagrams may get lost: one that has no room is.
        if matcher
            .push(id(me), flow, bytes, now)
            .is_ok_and(|pushed| pushed.news)
        {
            self.datagram_news(inner, port);
        }
    }

    pub(super) fn datagram_news(&self, inner: &mut Inner, port: u16) {
        let Some(matcher) = inner.datagrams.get_mut(&port) else {
            return;
        };
        let differences = matcher.differences();
        inner.datagrams_wait = true;
        for difference in differences {
            let who = inner.members.get(usize::from(difference.replica.0));
            // A network that is not up yet loses datagrams, as any network may.
            if !who.is_some_and(|member| self.boots(member)) {
                self.differs(inner, port, &difference);
            }
        }
        self.wake_front();
    }

    /// A replica's console goes on.
    pub(super) fn console_said(&self, inner: &mut Inner, me: usize, text: &[u8]) {
        if let Some(member) = inner.members.get_mut(me) {
            member.console.extend_from_slice(text);
            let over = member.console.len().saturating_sub(CONSOLE_TAIL);
            member.console.drain(..over);
        }
        let now = inner.fair.at(Instant::now());
        let taken = inner.lines.push(id(me), text, now).unwrap_or(0);
        inner.console_lost += (text.len() - taken) as u64;
        self.console_news(inner);
    }

    pub(super) fn console_news(&self, inner: &mut Inner) {
        let mut lines = Vec::new();
        inner.lines.take_released(&mut lines);
        if !lines.is_empty() {
            self.console.put(&lines);
        }
        // Lines with a time or a process number differ all the time: they are counted (status), and a mask names them.
        inner.lines.differences().clear();
    }

    /// Somebody types at the consoles. False: there is no room for it now.
    pub(super) fn type_in(&self, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return true;
        }
        let mut inner = self.lock();
        if !self.log_has_room(&inner) {
            return false;
        }
        let bytes = bytes.into();
        inner.log.push(ToGuest::Typed { bytes }, 0);
        drop(inner);
        self.ring_all();
        true
    }

    /// The client sends no more.
    pub(super) fn shut(&self, inner: &mut Inner, conn: ConnId) {
        if let Some(channel) = inner.channels.get(&conn) {
            let after = channel.matcher.released();
            inner.log.push(ToGuest::Shut { conn }, after);
        }
    }

    /// The client has gone: nothing that a guest says there matters any more.
    pub(super) fn reset(&self, inner: &mut Inner, conn: ConnId) {
        if inner.channels.remove(&conn).is_some() {
            inner.log.push(ToGuest::Reset { conn }, 0);
        }
    }

    /// The guests broke the connection off, and the client was told.
    pub(super) fn broken_by_guest(&self, inner: &mut Inner, conn: ConnId) {
        inner.log.push(ToGuest::Reset { conn }, 0);
        self.close(inner, conn);
    }

    /// Both sides have ended and the client has everything.
    pub(super) fn close(&self, inner: &mut Inner, conn: ConnId) {
        if let Some(channel) = inner.channels.get_mut(&conn) {
            channel.over = true;
        }
        self.forget_if_done(inner, conn);
    }

    /// Whether a client's socket may be read. If not, the connection comes to the front's list when it may.
    pub(super) fn may_read(&self, inner: &mut Inner, conn: ConnId) -> bool {
        let Some(channel) = inner.channels.get_mut(&conn) else {
            return true;
        };
        let owed = channel.owed.iter().max().copied().unwrap_or(0);
        channel.throttled = owed >= CONNECTION_INPUT;
        !channel.throttled
    }

    /// Whether the log has room for more input.
    pub(super) fn log_has_room(&self, inner: &Inner) -> bool {
        inner.log.unread_cost() < self.settings.log_bytes
    }

    /// Takes what was released; replicas that had no room have it now.
    pub(super) fn take(
        &self,
        inner: &mut Inner,
        conn: ConnId,
        into: &mut Vec<u8>,
    ) -> Option<EndOfStream> {
        let channel = inner.channels.get_mut(&conn)?;
        let before = into.len();
        let end = channel.matcher.take_released(into);
        let took = into.len() - before;
        inner.released_bytes += took as u64;
        inner.releases += u64::from(took > 0);
        if took > 0 {
            for me in std::mem::take(&mut channel.full) {
                if let Some(member) = inner.members.get_mut(me) {
                    member.retry.push(conn);
                }
                if let Some(bell) = self.bells.get(me) {
                    bell.ring();
                }
            }
        }
        end
    }

    /// Takes the front's list.
    pub(super) fn take_dirty(&self, inner: &mut Inner, into: &mut Vec<ConnId>) {
        into.append(&mut inner.dirty);
        for conn in into.iter() {
            if let Some(channel) = inner.channels.get_mut(conn) {
                channel.queued = false;
            }
        }
    }

    // What replicas say.

    /// A replica's stream goes on. How many bytes were taken; the rest is to be offered again when its connection is among
    /// [`Member::retry`].
    pub(super) fn push(&self, inner: &mut Inner, me: usize, conn: ConnId, bytes: &[u8]) -> usize {
        let Some(channel) = inner.channels.get_mut(&conn) else {
            // Nobody is there to hear it.
            return bytes.len();
        };
        let (taken, news) = match channel.matcher.push(id(me), bytes) {
            Ok(taken) => (taken.bytes, taken.news),
            Err(_) => (0, false),
        };
        if taken < bytes.len() && !channel.full.contains(&me) {
            channel.full.push(me);
        }
        if channel.masked
            && channel.matcher.held_back(id(me)) > 0
            && let Some(member) = inner.members.get_mut(me)
        {
            member.held.insert(conn, member.exchanges);
        }
        if news {
            self.news(inner, conn);
        } else {
            // Nothing new to anybody, but it may be the last that was waited for.
            self.forget_if_done(inner, conn);
        }
        taken
    }

    /// The replica has said nothing for a while: what masks hold back, because it has no end, passes as it is.
    pub(super) fn flush_held(&self, inner: &mut Inner, me: usize) {
        let held = match inner.members.get_mut(me) {
            Some(member) if !member.held.is_empty() => std::mem::take(&mut member.held),
            _ => return,
        };
        for conn in held.into_keys() {
            let channel = inner.channels.get_mut(&conn);
            if channel.is_some_and(|channel| channel.matcher.flush(id(me))) {
                self.news(inner, conn);
            }
        }
    }

    /// A replica's stream ends.
    pub(super) fn push_end(&self, inner: &mut Inner, me: usize, conn: ConnId, how: EndOfStream) {
        let Some(channel) = inner.channels.get_mut(&conn) else {
            return;
        };
        if channel.matcher.end(id(me), how) {
            self.news(inner, conn);
        } else {
            self.forget_if_done(inner, conn);
        }
    }

    /// A replica's guest has acknowledged so many client bytes.
    pub(super) fn acknowledged(&self, inner: &mut Inner, me: usize, conn: ConnId, bytes: u64) {
        let Some(channel) = inner.channels.get_mut(&conn) else {
            return;
        };
        if let Some(owed) = channel.owed.get_mut(me) {
            *owed = owed.saturating_sub(bytes);
        }
        if channel.throttled
            && channel
                .owed
                .iter()
                .all(|owed| *owed <= CONNECTION_INPUT / 2)
        {
            channel.throttled = false;
            self.queue(inner, conn);
        }
    }

    fn queue(&self, inner: &mut Inner, conn: ConnId) {
        if let Some(channel) = inner.channels.get_mut(&conn)
            && !std::mem::replace(&mut channel.queued, true)
        {
            if inner.dirty.is_empty() {
                self.wake_front();
            }
            inner.dirty.push(conn);
        }
    }

    /// A matcher has something new: for the front, and for the report.
    pub(super) fn news(&self, inner: &mut Inner, conn: ConnId) {
        self.queue(inner, conn);
        let Some(channel) = inner.channels.get_mut(&conn) else {
            return;
        };
        let differences = channel.matcher.differences();
        for translation in channel.matcher.translations() {
            inner.translator.learn(translation);
        }
        let port = channel.guest_port;
        for difference in differences {
            self.differs(inner, port, &difference);
        }
        self.forget_if_done(inner, conn);
    }

    fn differs(&self, inner: &mut Inner, port: u16, difference: &Difference) {
        let settings = &self.settings;
        let me = usize::from(difference.replica.0);
        let name = settings.names.get(me).map_or("", String::as_str);
        let first = inner
            .report
            .add(self.clock.elapsed(), port, name, difference);
        let role = settings.voters.role(difference.replica);
        let stops = settings.stop_who_differs
            && role != Some(Role::Canary)
            && settings.voters.len() > 1
            && inner.members.get(me).is_some_and(|member| member.alive);
        if first || stops {
            self.tell(Event::Outvoted {
                replica: me,
                boundary: inner.members.get(me).map_or(0, |m| m.exchanges),
                channel: "network",
                detail: difference.to_string(),
            });
        }
        if stops {
            self.stop_replica(
                inner,
                me,
                "its output differs from what was released".to_owned(),
                false,
            );
            if let Some(member) = inner.members.get_mut(me) {
                // A dying program's connections are closed before anybody hears of its end, and a newer version may answer
                // otherwise each time: an input may be what did it, so that one is looked for if replaying is no help.
                member.recovery.crashed = true;
            }
        }
    }

    /// Forgets a connection that is over when everybody has said what there was to say.
    fn forget_if_done(&self, inner: &mut Inner, conn: ConnId) {
        let Some(channel) = inner.channels.get(&conn).filter(|channel| channel.over) else {
            return;
        };
        let matcher = &channel.matcher;
        let done = (0..inner.members.len())
            .all(|me| !matcher.takes_part(id(me)) || matcher.behind(id(me)) == 0);
        if done {
            inner.channels.remove(&conn);
        }
    }

    // Who is in.

    /// Stops a replica: from here on nothing that it says counts (R5), and nobody waits for it.
    pub(super) fn stop_replica(&self, inner: &mut Inner, me: usize, reason: String, crashed: bool) {
        let Some(member) = inner.members.get_mut(me).filter(|member| member.alive) else {
            return;
        };
        member.alive = false;
        member.stopped = Some(reason.clone());
        member.place = Place::Stopped;
        member.lags_since = None;
        member.mail.clear();
        member.recovery.returns = self.settings.recovery.enabled && member.recovery.able;
        member.recovery.crashed = crashed;
        if member.recovery.returning.take().is_none() {
            member.recovery.stopped_at = Some(Instant::now());
        }
        if inner.checkpointing == Some(me) {
            inner.checkpointing = None;
        }
        let boundary = member.exchanges;
        let said = std::mem::take(&mut member.console);
        if let Some(kick) = &member.kick {
            kick();
        }
        if let Some(bell) = self.bells.get(me) {
            bell.ring();
        }
        self.tell(Event::ReplicaStopped {
            replica: me,
            boundary,
            reason,
        });
        if !said.is_empty() && inner.members.len() > 1 {
            // What nobody else says is shown nowhere, and it may say why.
            let said = String::from_utf8_lossy(&said);
            self.note(format!("replica {me}: its console ended with {said:?}"));
        }
        inner.log.leave(me);
        self.keep_log(inner, me);
        inner.lines.leave(id(me));
        if let Some(disks) = self.disks() {
            disks.leave(me);
        }
        for matcher in inner.datagrams.values_mut() {
            matcher.leave(id(me));
        }
        let conns: Vec<ConnId> = inner.channels.keys().copied().collect();
        for conn in conns {
            if let Some(channel) = inner.channels.get_mut(&conn) {
                if let Some(owed) = channel.owed.get_mut(me) {
                    *owed = 0;
                }
                let news = match crashed {
                    true => channel.matcher.crashed(id(me)),
                    false => channel.matcher.leave(id(me)),
                };
                if news || channel.throttled {
                    channel.throttled = false;
                    self.news(inner, conn);
                }
                self.forget_if_done(inner, conn);
            }
        }
        self.count_votes(inner);
        self.wake_front();
    }

    /// Voters that run.
    pub(super) fn votes(&self, inner: &Inner) -> usize {
        let members = inner.members.iter().enumerate();
        members
            .filter(|(me, member)| {
                member.alive && self.settings.voters.role(id(*me)) != Some(Role::Canary)
            })
            .count()
    }

    /// Votes without which nothing can be released.
    pub(super) fn votes_needed(&self, inner: &Inner) -> usize {
        match self.settings.voters.policy() {
            Policy::Primary { replica }
                if inner
                    .members
                    .get(usize::from(replica.0))
                    .is_some_and(|primary| primary.alive) =>
            {
                1
            }
            _ => self.settings.voters.quorum(),
        }
    }

    pub(super) fn count_votes(&self, inner: &mut Inner) {
        let (votes, needed) = (self.votes(inner), self.votes_needed(inner));
        let of = inner.members.len();
        let running = inner.members.iter().filter(|member| member.alive).count();
        if votes >= needed {
            self.tell(Event::Degraded {
                running,
                of,
                masks_another: votes > needed,
            });
            return;
        }
        self.no_majority(
            inner,
            format!("{votes} of {needed} replicas that are needed still run"),
        );
    }

    /// Nothing more can be released on a connection.
    pub(super) fn undecided(&self, inner: &mut Inner, undecided: &Undecided) {
        self.no_majority(inner, undecided.to_string());
    }

    fn no_majority(&self, inner: &mut Inner, detail: String) {
        if inner.no_quorum.is_some() || inner.end.is_some() {
            return;
        }
        inner.no_quorum = Some(detail.clone());
        inner.held_for_recovery = self.somebody_returns(inner);
        self.tell(Event::NoMajority {
            boundary: 0,
            policy: self.settings.no_quorum,
            recovering: inner.held_for_recovery,
            detail: detail.clone(),
        });
        if self.settings.no_quorum == NoQuorum::Stop && !inner.held_for_recovery {
            self.end(inner, End::NoQuorum { detail });
        }
    }

    /// A guest's program has ended: as soon as those whose word counts say the same, the set ends.
    pub(super) fn exited(&self, inner: &mut Inner, me: usize, status: u64) {
        if let Some(member) = inner.members.get_mut(me) {
            member.exited = Some(status);
        }
        let voters = &self.settings.voters;
        let said = |who: usize| inner.members.get(who).and_then(|member| member.exited);
        let agreed = match voters.policy() {
            Policy::Primary { replica }
                if inner
                    .members
                    .get(usize::from(replica.0))
                    .is_some_and(|member| member.alive) =>
            {
                said(usize::from(replica.0)) == Some(status)
            }
            _ => {
                let same = (0..voters.len())
                    .filter(|who| voters.role(id(*who)) != Some(Role::Canary))
                    .filter(|who| said(*who) == Some(status));
                same.count() >= voters.quorum()
            }
        };
        if agreed {
            let requested = inner.stop_deadline.is_some();
            let wait_status = status as u32;
            self.end(
                inner,
                End::Exited {
                    wait_status,
                    requested,
                },
            );
        }
    }
}
