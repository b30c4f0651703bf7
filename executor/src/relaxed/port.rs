//! One replica's side of the world: its own network endpoint, its place in the input log, its clock.

mod back;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_abi::sync::{FLAG_TERMINATE, WAIT_FOREVER, WAIT_NONE};
use quorate_devices::{DiskReads, Entry, NoDisks, Output};
use quorate_voter::relaxed::EndOfStream;

use super::bell::Bell;
use super::disk::RelaxedDisks;
use super::hub::{Hub, Inner, Place};
use super::link::{ConnId, FromGuest, Link, LinkConfig, ToGuest};
use super::log::{Batch, Due, Event};
use crate::sync::lock;
pub use back::PortState;

/// Frames that a guest is given at once (R10): what its receive queue holds. More wait in the link.
pub const ENTRY_FRAMES: usize = 256;
/// How much later an answer of the link comes than what it answers, on the guest's clock. Not the host's time, which would differ from
/// replica to replica.
pub const STEP_NS: u64 = 1_000;
/// How far the clock of a guest that is busy or talks to its link alone may fall behind the host's.
pub const CLOCK_LAG_NS: u64 = 10_000_000;
/// Boundaries in a row at which a guest was busy, after which it gets input all the same: a guest that is never idle would get none.
pub const BUSY_BOUNDARIES: u32 = 16;

/// So many bytes a guest sends at a boundary without waiting for an acknowledgement: below any initial window of TCP.
const SHORT_ANSWER: usize = 8 << 10;
/// Where inputs are given one by one to a guest that cannot be seen to be idle: how long after it has acknowledged one it gets the next.
pub const SINGLY_NS: u64 = 20_000_000;
/// The same for a guest that does not acknowledge it.
pub const SINGLY_MOST_NS: u64 = 1_000_000_000;

/// Why a replica must go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was stopped, or the set or its program has ended.
    Left,
    /// It broke the rules of a disk: a report.
    Misbehaved(String),
}

/// The data of a replica's disk reads.
pub struct Reads {
    disks: Option<Arc<RelaxedDisks>>,
    me: usize,
}

impl DiskReads for Reads {
    fn take(&mut self, disk: u8, seq: u64) -> Result<Vec<u8>, String> {
        match &self.disks {
            Some(disks) => disks.reads(self.me).take(disk, seq),
            None => NoDisks.take(disk, seq),
        }
    }
}

/// What an embedded guest does next.
#[derive(Clone, Debug)]
pub enum Next {
    /// Takes this and runs on.
    Resume(Arc<Entry>),
    /// Looks at its mail and comes back.
    Look,
    /// Goes.
    Leave,
    /// Broke the rules of a disk: a report.
    Misbehaved(String),
}

/// Bytes of a stream that did not fit into its matcher. Bounded by the link's receive window.
#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    end: Option<EndOfStream>,
}

#[derive(Debug)]
struct State {
    link: Link,
    /// The guest's clock.
    clock_ns: u64,
    /// How far the clock of a free-running guest's link is behind the host's: it went on from a checkpoint as if no time had passed.
    late_ns: u64,
    waiting: HashMap<ConnId, Waiting>,
    /// Client bytes that the link had not got rid of when it was looked at last.
    unsent: BTreeMap<ConnId, u64>,
    /// Boundaries in a row at which the guest was busy.
    busy: u32,
    frames: Vec<Vec<u8>>,
    /// Typed at the console, for the next entry.
    typed: Vec<u8>,
    /// What may be the beginning of a token that is translated, by connection.
    tails: HashMap<ConnId, Vec<u8>>,
    /// Events are given one by one.
    singly: bool,
    /// Events of the next batch that were given already.
    within: usize,
    /// What was given last, one by one.
    in_flight: Option<Event>,
    /// When, on the clock of the link.
    given_ns: u64,
    /// Numbers of inputs that were fatal to this replica. Bounded by the ladder.
    without: BTreeSet<u64>,
    /// Connections on which an input was left out, until the next one comes: only then it is known where its answer has ended.
    jumps: BTreeSet<ConnId>,
    /// The guest had nothing left to do when it was given what it is given now.
    stands: bool,
    /// The next bytes that the guest says are changed: an injected fault.
    spoil: bool,
}

/// See the module.
pub struct Port {
    hub: Arc<Hub>,
    me: usize,
    /// What a wall clock shows when the guests' monotonic clock shows 0, ns since 1970.
    realtime_ns: u64,
    bell: Arc<Bell>,
    config: LinkConfig,
    state: Mutex<State>,
}

impl Port {
    /// The port of replica `me`, at the beginning of the log.
    #[must_use]
    pub fn new(hub: &Arc<Hub>, me: usize, realtime_ns: u64, link: LinkConfig) -> Option<Port> {
        Some(Port {
            hub: Arc::clone(hub),
            me,
            realtime_ns,
            bell: Arc::clone(hub.bells.get(me)?),
            state: Mutex::new(State {
                link: Link::new(link.clone()),
                clock_ns: 0,
                late_ns: 0,
                waiting: HashMap::new(),
                unsent: BTreeMap::new(),
                busy: 0,
                frames: Vec::new(),
                typed: Vec::new(),
                tails: HashMap::new(),
                singly: false,
                within: 0,
                in_flight: None,
                given_ns: 0,
                without: BTreeSet::new(),
                jumps: BTreeSet::new(),
                stands: false,
                spoil: false,
            }),
            config: link,
        })
    }

    /// The replica.
    #[must_use]
    pub fn replica(&self) -> usize {
        self.me
    }

    /// What it belongs to.
    #[must_use]
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Where the data of disk reads come from.
    #[must_use]
    pub fn reads(&self) -> Reads {
        Reads {
            disks: self.hub.disks().cloned(),
            me: self.me,
        }
    }

    /// The guest was given this entry.
    pub fn delivered(&self, entry: &Entry) {
        if let Some(disks) = self.hub.disks() {
            disks.delivered(self.me, entry);
        }
    }

    /// Called whenever there may be something for the guest; must not block.
    pub fn on_input(&self, call: Box<dyn Fn() + Send + Sync>) {
        self.bell.also(call);
    }

    /// Gives the guest's outputs away. Never blocks on the vote. How many bytes they were.
    fn put(&self, state: &mut State, hub: &mut Inner, outputs: Vec<Output>) -> Result<usize, Stop> {
        if let Some(disks) = self.hub.disks() {
            disks.submit(self.me, &outputs).map_err(Stop::Misbehaved)?;
        }
        let now = state.clock_ns;
        if !outputs.is_empty()
            && let Some(member) = hub.members.get_mut(self.me)
        {
            member.spoke = true;
        }
        let mut exit = None;
        let mut bytes = 0;
        for output in outputs {
            match output {
                Output::Frame(frame) => {
                    bytes += frame.len();
                    state.link.frame(&frame, now);
                }
                Output::Console(mut text) => {
                    bytes += text.len();
                    self.spoil(state, &mut text);
                    self.hub.console_said(hub, self.me, &text);
                }
                Output::Exit { status } => exit = Some(status),
                // Free-running guests make system calls of their own.
                Output::Fingerprint { .. } => {}
                Output::Block(_) => {}
            }
        }
        let said = state.link.events();
        if let Some(member) = hub.members.get_mut(self.me) {
            member.exchanges += 1;
            member.output_bytes += bytes as u64;
        }
        for what in said {
            self.said(state, hub, what);
        }
        self.retry(state, hub);
        self.acknowledged(state, hub);
        if let Some(status) = exit {
            self.hub.exited(hub, self.me, status);
            return Err(Stop::Left);
        }
        Ok(bytes)
    }

    fn said(&self, state: &mut State, hub: &mut Inner, what: FromGuest) {
        match what {
            FromGuest::Opened { .. } => {}
            FromGuest::Listens { guest_port } => self.hub.listens(hub, self.me, guest_port),
            FromGuest::Data { conn, mut bytes } => {
                self.spoil(state, &mut bytes);
                if let Some(waiting) = state.waiting.get_mut(&conn) {
                    waiting.bytes.extend_from_slice(&bytes);
                    return;
                }
                let taken = self.hub.push(hub, self.me, conn, &bytes);
                state.link.taken(conn, taken);
                if taken < bytes.len() {
                    let bytes = bytes.get(taken..).unwrap_or_default().to_vec();
                    state.waiting.insert(conn, Waiting { bytes, end: None });
                }
            }
            FromGuest::Shut { conn } => self.ended(state, hub, conn, EndOfStream::Shut),
            FromGuest::Reset { conn } => self.ended(state, hub, conn, EndOfStream::Reset),
            FromGuest::Refused { conn } => self.ended(state, hub, conn, EndOfStream::Refused),
            FromGuest::Datagram { flow, mut bytes } => {
                self.spoil(state, &mut bytes);
                self.hub.datagram_said(hub, self.me, flow, &bytes);
            }
        }
    }

    /// The next bytes that the guest says, to a client or on the console, are to be changed. Behind the link: a changed frame would be
    /// dropped there for its checksum, and be sent again.
    pub(super) fn spoil_next(&self) {
        lock(&self.state).spoil = true;
    }

    fn spoil(&self, state: &mut State, bytes: &mut [u8]) {
        if state.spoil && !bytes.is_empty() {
            state.spoil = false;
            crate::inject::corrupt(bytes, self.me);
        }
    }

    fn ended(&self, state: &mut State, hub: &mut Inner, conn: ConnId, how: EndOfStream) {
        match state.waiting.get_mut(&conn) {
            Some(waiting) => {
                waiting.end.get_or_insert(how);
            }
            None => self.hub.push_end(hub, self.me, conn, how),
        }
    }

    /// Offers again what had no room.
    fn retry(&self, state: &mut State, hub: &mut Inner) {
        let again = match hub.members.get_mut(self.me) {
            Some(member) if !member.retry.is_empty() => std::mem::take(&mut member.retry),
            _ => return,
        };
        for conn in again {
            let Some(mut waiting) = state.waiting.remove(&conn) else {
                continue;
            };
            let taken = self.hub.push(hub, self.me, conn, &waiting.bytes);
            state.link.taken(conn, taken);
            if taken < waiting.bytes.len() {
                waiting.bytes.drain(..taken);
                state.waiting.insert(conn, waiting);
            } else if let Some(how) = waiting.end {
                self.hub.push_end(hub, self.me, conn, how);
            }
        }
    }

    /// Tells what the guest has acknowledged of what clients sent.
    fn acknowledged(&self, state: &mut State, hub: &mut Inner) {
        let link = &state.link;
        state.unsent.retain(|conn, before| {
            let now = link.unsent(*conn) as u64;
            if now < *before {
                self.hub.acknowledged(hub, self.me, *conn, *before - now);
                *before = now;
            }
            now > 0
        });
    }

    /// An input as this replica is to see it: with its own tokens in place of those that the client got.
    fn translated(&self, state: &mut State, hub: &Inner, what: &ToGuest) -> Option<ToGuest> {
        let me = super::hub::id(self.me);
        match what {
            ToGuest::Data { conn, bytes } if !hub.translator.is_empty() => {
                let tail = state.tails.entry(*conn).or_default();
                let bytes = hub.translator.inbound(me, tail, bytes);
                (!bytes.is_empty()).then(|| ToGuest::Data {
                    conn: *conn,
                    bytes: bytes.into(),
                })
            }
            ToGuest::Shut { conn } => {
                let rest = state.tails.remove(conn).filter(|rest| !rest.is_empty());
                if let Some(rest) = rest {
                    let bytes = rest.into();
                    let conn = *conn;
                    state
                        .link
                        .input(ToGuest::Data { conn, bytes }, state.clock_ns);
                }
                Some(what.clone())
            }
            ToGuest::Reset { conn } => {
                state.tails.remove(conn);
                Some(what.clone())
            }
            _ => Some(what.clone()),
        }
    }

    /// Gives a batch to the link, or its next event.
    fn give(&self, state: &mut State, hub: &mut Inner, batch: &Batch) {
        state.busy = 0;
        while let Some(event) = batch.events.get(state.within) {
            state.within += 1;
            if state.without.contains(&event.number) {
                self.pass_over(state, hub, event);
                continue;
            }
            self.give_event(state, hub, event);
            if state.singly {
                state.in_flight = Some(event.clone());
                state.given_ns = state.clock_ns;
                break;
            }
        }
        if state.within >= batch.events.len() {
            state.within = 0;
            hub.log.taken(self.me);
        }
        self.poll(state);
    }

    fn give_event(&self, state: &mut State, hub: &mut Inner, event: &Event) {
        if let Some(conn) = event.what.conn()
            && state.jumps.remove(&conn)
            && let Some(channel) = hub.channels.get_mut(&conn)
        {
            // The answer to what was left out had ended when the client sent this.
            channel.matcher.enter(super::hub::id(self.me), event.after);
            self.hub.news(hub, conn);
        }
        // Who differed before is compared again from where an answer begins, with its own one to the same request.
        if event.answered
            && state.stands
            && let Some(conn) = event.what.conn()
            && !state.waiting.contains_key(&conn)
            && let Some(channel) = hub.channels.get_mut(&conn)
            && channel.matcher.rejoin(super::hub::id(self.me), event.after)
        {
            self.hub.news(hub, conn);
        }
        if let ToGuest::Typed { bytes } = &event.what {
            state.typed.extend_from_slice(bytes);
            return;
        }
        let input = self.translated(state, hub, &event.what);
        if let ToGuest::Data { conn, bytes } = &event.what {
            // What waits in a tail counts as acknowledged: it is bounded by the length of a token.
            let given = match &input {
                Some(ToGuest::Data { bytes, .. }) => bytes.len(),
                _ => 0,
            };
            *state.unsent.entry(*conn).or_default() += given as u64;
            let less = bytes.len().saturating_sub(given) as u64;
            self.hub.acknowledged(hub, self.me, *conn, less);
        }
        if let Some(input) = input {
            state.link.input(input, state.clock_ns);
        }
    }

    /// Leaves an input out. Until the client's next one the replica takes no part in the connection; with that its place in the output
    /// jumps over the answer.
    fn pass_over(&self, state: &mut State, hub: &mut Inner, event: &Event) {
        if let Some(conn) = event.what.conn()
            && let Some(channel) = hub.channels.get_mut(&conn)
        {
            state.jumps.insert(conn);
            channel.matcher.leave(super::hub::id(self.me));
            // What was held back for its word may go out now.
            self.hub.news(hub, conn);
            self.hub
                .acknowledged(hub, self.me, conn, event.what.payload() as u64);
        }
    }

    /// Whether this replica has said what had been released to the clients when they sent what is in the batch, where that is asked
    /// for (`sync`). Who takes no part in a connection has nothing to say there.
    fn may_have(&self, hub: &Inner, batch: &Batch) -> bool {
        batch.events.iter().all(|event| {
            let (ToGuest::Data { conn, .. } | ToGuest::Shut { conn }) = &event.what else {
                return true;
            };
            let channel = hub.channels.get(conn).filter(|channel| channel.sync);
            let me = super::hub::id(self.me);
            channel.is_none_or(|channel| {
                !channel.matcher.takes_part(me) || channel.matcher.position(me) >= event.after
            })
        })
    }

    fn entry(&self, hub: &Inner, state: &mut State) -> Entry {
        Entry {
            monotonic_ns: state.clock_ns,
            realtime_ns: self.realtime_ns.saturating_add(state.clock_ns),
            flags: match hub.terminate {
                true => FLAG_TERMINATE,
                false => 0,
            },
            frames: std::mem::take(&mut state.frames),
            console: std::mem::take(&mut state.typed),
            completions: self
                .hub
                .disks()
                .map_or_else(Vec::new, |disks| disks.due(self.me)),
        }
    }

    /// Brings the clock forward for a boundary that no batch and no timer belongs to.
    fn step(&self, state: &mut State, hub: &Inner, most: u64) {
        // Not past what comes next: that has a time already.
        let next = hub.log.peek(self.me).map_or(u64::MAX, |batch| batch.at_ns);
        let now = self.hub.clock.monotonic_ns();
        let lag = now.saturating_sub(state.clock_ns);
        let wanted = match lag > CLOCK_LAG_NS {
            true => now,
            false => state.clock_ns + STEP_NS,
        };
        state.clock_ns = wanted.min(next).min(most).max(state.clock_ns);
    }

    /// An embedded guest is at a boundary, and sleeps until then: gives its outputs away.
    ///
    /// # Errors
    /// When the replica is to go.
    pub fn give_away(&self, outputs: Vec<Output>, wait_until_ns: u64) -> Result<(), Stop> {
        let mut state = lock(&self.state);
        let mut hub = self.hub.lock();
        let bytes = self.put(&mut state, &mut hub, outputs)?;
        // Before anybody can send the next request. Its link's acknowledgements may be on their way to it, but nothing of a client's; and
        // so little does not wait for them.
        let disks = self.hub.disks();
        if wait_until_ns != WAIT_NONE
            && bytes <= SHORT_ANSWER
            && state.unsent.is_empty()
            && state.frames.is_empty()
            && !disks.is_some_and(|disks| disks.waits(self.me))
        {
            self.answered(&state, &mut hub);
        }
        Ok(())
    }

    /// Waits for what there is for an embedded guest that stands at a boundary.
    pub fn await_entry(&self, wait_until_ns: u64) -> Next {
        loop {
            self.bell.hush();
            let mut state = lock(&self.state);
            let wait = match self.look(&mut state, wait_until_ns) {
                Ok(next) => return next,
                Err(wait) => wait,
            };
            drop(state);
            self.bell.wait(wait);
        }
    }

    /// What there is for an embedded guest now; else how long to wait.
    fn look(&self, state: &mut State, wait_until_ns: u64) -> Result<Next, Option<Duration>> {
        let mut guard = self.hub.lock();
        let hub = &mut *guard;
        self.retry(state, hub);
        let asked = match hub.members.get(self.me) {
            _ if hub.end.is_some() => return Ok(Next::Leave),
            Some(member) if !member.alive => return Ok(Next::Leave),
            Some(member) if !member.mail.is_empty() => return Ok(Next::Look),
            member => hub.terminate && member.is_some_and(|member| member.place == Place::Idle),
        };
        let (due, waits, room) = match self.hub.disks() {
            Some(disks) => (
                disks.has_due(self.me),
                disks.waits(self.me),
                disks.has_room(self.me),
            ),
            None => (false, false, true),
        };
        if !room && !due {
            // The others have to come nearer first, or the file.
            return Err(None);
        }
        self.poll(state);
        if wait_until_ns == WAIT_NONE {
            return Ok(self.busy(state, hub));
        }
        state.busy = 0;
        loop {
            let timer = state.link.deadline_ns().unwrap_or(WAIT_FOREVER);
            let timer = timer.min(wait_until_ns).max(state.clock_ns);
            if asked || due || !state.frames.is_empty() {
                self.step(state, hub, timer);
                return Ok(self.resume(state, hub));
            }
            let now = self.hub.clock.monotonic_ns();
            // A batch only when the guest has all that it was to be given: see `super::log`.
            let due = match state.link.has_frames() || waits {
                false => match hub.log.due(self.me, now, timer) {
                    // What it has yet to say before it may have the batch may wait for a timer of its own.
                    Due::Batch(batch) if !self.may_have(hub, &batch) => match timer <= now {
                        true => Due::Timer,
                        false => Due::Nothing,
                    },
                    due => due,
                },
                true if timer <= now => Due::Timer,
                true => Due::Nothing,
            };
            match due {
                Due::Batch(batch) => {
                    self.answered(state, hub);
                    state.stands = true;
                    state.clock_ns = state.clock_ns.max(batch.at_ns);
                    self.give(state, hub, &batch);
                    state.stands = false;
                    return Ok(self.resume(state, hub));
                }
                Due::Timer => {
                    state.clock_ns = timer;
                    self.poll(state);
                    if timer >= wait_until_ns {
                        return Ok(self.resume(state, hub));
                    }
                    // It was the link's: if it has nothing to send, the guest sleeps on.
                }
                Due::Nothing => {
                    self.answered(state, hub);
                    self.went_idle(state, hub);
                    if self.hub.flush_held(hub, self.me) {
                        // That may have been what it had yet to say.
                        continue;
                    }
                    let left = Duration::from_nanos(timer.saturating_sub(now));
                    return Err((timer != WAIT_FOREVER).then_some(left));
                }
            }
        }
    }

    /// The guest does not want to wait: it gets the time, and answers of the link.
    fn busy(&self, state: &mut State, hub: &mut Inner) -> Next {
        let now = self.hub.clock.monotonic_ns();
        state.busy = state.busy.saturating_add(1);
        if state.busy > BUSY_BOUNDARIES
            && let Some(batch) = hub.log.next(self.me, now)
            && self.may_have(hub, &batch)
        {
            state.clock_ns = state.clock_ns.max(batch.at_ns);
            self.give(state, hub, &batch);
        }
        let next = hub.log.peek(self.me).map_or(u64::MAX, |batch| batch.at_ns);
        state.clock_ns = now.min(next).max(state.clock_ns);
        self.resume(state, hub)
    }

    fn poll(&self, state: &mut State) {
        let State {
            link,
            frames,
            clock_ns,
            ..
        } = state;
        let room = ENTRY_FRAMES.saturating_sub(frames.len());
        link.poll(*clock_ns, room, frames);
    }

    fn resume(&self, state: &mut State, hub: &mut Inner) -> Next {
        if let Some(member) = hub.members.get_mut(self.me) {
            member.place = Place::Running;
        }
        Next::Resume(Arc::new(self.entry(hub, state)))
    }

    /// The guest has nothing left to do: it has answered all that it was given.
    fn answered(&self, state: &State, hub: &mut Inner) {
        let given = hub.log.given(self.me);
        if state.waiting.is_empty()
            && let Some(member) = hub.members.get_mut(self.me)
        {
            member.answered = given;
        }
    }

    fn went_idle(&self, state: &mut State, hub: &mut Inner) {
        if let Some(member) = hub.members.get_mut(self.me) {
            member.place = Place::Idle;
            member.was_idle = true;
        }
        self.hub.ready_if_all_were_idle(hub);
        if state.within == 0 && self.hub.has_caught_up(hub, self.me) {
            state.singly = false;
            state.in_flight = None;
        }
    }

    /// Gives a free-running guest's outputs away and takes what there is for it. `now_ns` is its device thread's clock. Never blocks on
    /// the vote.
    ///
    /// # Errors
    /// [`Stop`]: the replica is to go.
    pub fn exchange(&self, outputs: Vec<Output>, now_ns: u64) -> Result<Entry, Stop> {
        let mut state = lock(&self.state);
        let mut guard = self.hub.lock();
        let hub = &mut *guard;
        state.clock_ns = state.clock_ns.max(now_ns.saturating_sub(state.late_ns));
        self.put(&mut state, hub, outputs)?;
        let alive = hub.members.get(self.me).is_some_and(|member| member.alive);
        if hub.end.is_some() || !alive {
            return Err(Stop::Left);
        }
        self.poll(&mut state);
        while state.frames.len() < ENTRY_FRAMES
            && !state.link.has_frames()
            && state.link.has_room()
            && next_at(&state).is_none_or(|at| at <= state.clock_ns)
        {
            match hub.log.next(self.me, now_ns) {
                Some(batch) if self.may_have(hub, &batch) => self.give(&mut state, hub, &batch),
                _ => break,
            }
        }
        self.went_idle(&mut state, hub);
        Ok(self.entry(hub, &mut state))
    }

    /// When a free-running guest's device thread is to come again though nothing happens, on its own clock.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        let state = lock(&self.state);
        let next = next_at(&state).filter(|_| self.hub.lock().log.waits_for(self.me));
        let at = state.link.deadline_ns().into_iter().chain(next).min()?;
        Some(at.saturating_add(state.late_ns))
    }
}

/// When a free-running guest that gets inputs one by one may get another, by the clock of its link; `None`: at once.
fn next_at(state: &State) -> Option<u64> {
    state.in_flight.as_ref().filter(|_| state.singly)?;
    let after = match state.link.is_quiet() {
        true => SINGLY_NS,
        false => SINGLY_MOST_NS,
    };
    Some(state.given_ns.saturating_add(after))
}
