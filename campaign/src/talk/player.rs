//! Plays a conversation to a staged guest, in virtual time.
//!
//! Everything is a function of what the guest has released: the clock moves by a fixed step with each boundary, and when the
//! guest waits and there is nothing to say it jumps to where the guest wants to be woken up or to the client's next timer. A client
//! whose guest answers otherwise than in the golden run goes on as far as it can: an act whose condition is not met is not done.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_abi::sync::{WAIT_FOREVER, WAIT_NONE};
use quorate_executor::egress::Egress;
use quorate_executor::stage::{At, Cue, EPOCH_NS, Stage, Staged};

use super::conversation::{Act, Conversation, MAX_RECEIVED_BYTES, Received};
use super::heard::{Course, Heard, HeardConnection, MAX_CONSOLE_BYTES};
use super::wire::{Ending, Wire};

/// How far the clock moves with a boundary, ns.
pub const STEP_NS: u64 = 20_000;
/// How long the client waits for the guest, in virtual time, if nobody says otherwise: as long as TCP needs to send what was
/// lost three times.
pub const HANG_NS: u64 = 20_000_000_000;
/// Boundaries of a conversation at most, if nobody says otherwise (R10): then the guest is taken to hang.
pub const MAX_BOUNDARIES: u64 = 2_000_000;
/// First local port of a warm-up.
pub const WARM_FIRST_PORT: u16 = 20_000;
/// First local port of a trial: the guest may still know the connections of the warm-up.
pub const FIRST_PORT: u16 = 40_000;
/// How long a client whose last word is said waits for the guest to end its connections, in virtual time; then it resets them.
const DRAIN_NS: u64 = 1_000_000_000;
/// How long the warm-up waits before it connects again where it was refused.
const RETRY_NS: u64 = 5_000_000;

/// How a conversation is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlayerSettings {
    /// See [`STEP_NS`].
    pub step_ns: u64,
    /// See [`HANG_NS`].
    pub hang_ns: u64,
    /// See [`MAX_BOUNDARIES`].
    pub max_boundaries: u64,
    /// Local ports of the client begin with this one.
    pub first_port: u16,
    /// Where initial sequence numbers come from.
    pub seed: u64,
    /// It is a warm-up: the guest boots, and a connection that is refused is tried again.
    pub warm_up: bool,
    /// An answer is taken for complete when the guest has come to rest, however long the conversation says that it is. For golden
    /// runs whose answers have other lengths than the live ones: [`Player::adapted`] is the conversation with what really came.
    pub lenient: bool,
    /// The conversation is never complete: the guest's program ends the set. The guest need not come to rest.
    pub until_exit: bool,
    /// It is over at the first boundary behind the start: for a guest that nobody talks to.
    pub at_once: bool,
}

impl Default for PlayerSettings {
    fn default() -> Self {
        PlayerSettings {
            step_ns: STEP_NS,
            hang_ns: HANG_NS,
            max_boundaries: MAX_BOUNDARIES,
            first_port: FIRST_PORT,
            seed: 0,
            warm_up: false,
            lenient: false,
            until_exit: false,
            at_once: false,
        }
    }
}

impl PlayerSettings {
    /// For the warm-up.
    #[must_use]
    pub fn warm_up() -> Self {
        PlayerSettings {
            first_port: WARM_FIRST_PORT,
            warm_up: true,
            ..PlayerSettings::default()
        }
    }
}

/// See the module. A handle: its clones are the same player. It plays once.
#[derive(Clone)]
pub struct Player(Arc<Mutex<Inner>>);

struct Inner {
    conversation: Arc<Conversation>,
    settings: PlayerSettings,
    wire: Wire,
    /// Frames that the guest sent since the last cue.
    inbox: Vec<Vec<u8>>,
    /// By the number in the conversation.
    talks: Vec<Talk>,
    /// Which connection a line of the wire is of.
    of_line: Vec<usize>,
    next: usize,
    heard: Heard,
    received: usize,
    phase: Phase,
    began: Option<(u64, u64)>,
    last_boundary: Option<u64>,
    /// When anything last happened that brings the conversation on.
    progress_ns: u64,
    /// Boundaries in a row at which the guest waited and nobody had anything to say.
    idle: u32,
    /// Connections that are tried again, and when.
    retries: Vec<(u64, usize)>,
    adapted: Vec<(usize, Received)>,
}

/// A connection of the conversation.
#[derive(Default)]
struct Talk {
    line: Option<usize>,
    /// Sends that are not all in the socket yet: event and offset.
    queue: std::collections::VecDeque<(usize, usize)>,
    shut: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest has not come to rest yet.
    Waiting,
    Talking,
    /// The last word is said; since when.
    Closing(u64),
    /// It is over, however.
    Over,
}

impl Player {
    /// A player of a conversation.
    #[must_use]
    pub fn new(conversation: Arc<Conversation>, settings: PlayerSettings) -> Player {
        let talks = conversation
            .connections
            .iter()
            .map(|_| Talk::default())
            .collect();
        let heard = Heard {
            connections: conversation
                .connections
                .iter()
                .map(|port| HeardConnection {
                    port: *port,
                    ..HeardConnection::default()
                })
                .collect(),
            ..Heard::default()
        };
        Player(Arc::new(Mutex::new(Inner {
            conversation,
            settings,
            wire: Wire::new(settings.seed, settings.first_port, 0),
            inbox: Vec::new(),
            talks,
            of_line: Vec::new(),
            next: 0,
            heard,
            received: 0,
            phase: Phase::Waiting,
            began: None,
            last_boundary: None,
            progress_ns: 0,
            idle: 0,
            retries: Vec::new(),
            adapted: Vec::new(),
        })))
    }

    /// The stage of a set that hears this player.
    #[must_use]
    pub fn stage(&self) -> Arc<dyn Stage> {
        Arc::new(self.clone())
    }

    /// The egress of that set.
    #[must_use]
    pub fn egress(&self) -> Box<dyn Egress> {
        Box::new(self.clone())
    }

    /// What was heard so far.
    #[must_use]
    pub fn heard(&self) -> Heard {
        self.lock().heard.clone()
    }

    /// Takes what was heard; nothing is left in the player.
    #[must_use]
    pub fn take_heard(&self) -> Heard {
        std::mem::take(&mut self.lock().heard)
    }

    /// The conversation with those conditions that a lenient player has taken for met ([`PlayerSettings::lenient`]), if there were any.
    #[must_use]
    pub fn adapted(&self) -> Option<Conversation> {
        let inner = self.lock();
        if inner.adapted.is_empty() {
            return None;
        }
        let mut conversation = Conversation::clone(&inner.conversation);
        let end = conversation.events.len();
        for (event, received) in &inner.adapted {
            let conditions = match *event == end {
                true => &mut conversation.end,
                false => &mut conversation.events[*event].after,
            };
            let of = conditions
                .iter_mut()
                .find(|of| of.connection == received.connection);
            if let Some(of) = of {
                *of = *received;
            }
        }
        Some(conversation)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under this lock leaves it half done when it panics, but a count.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Egress for Player {
    fn frames(&mut self, mut frames: Vec<Vec<u8>>) {
        self.lock().inbox.append(&mut frames);
    }

    fn console(&mut self, bytes: &[u8]) {
        let mut inner = self.lock();
        // What comes after the end is no part of the conversation.
        if inner.phase == Phase::Over {
            return;
        }
        let room = MAX_CONSOLE_BYTES - inner.heard.console.len();
        let (kept, dropped) = bytes.split_at(bytes.len().min(room));
        inner.heard.console.extend_from_slice(kept);
        inner.heard.console_dropped += dropped.len() as u64;
    }
}

impl Stage for Player {
    fn cue(&self, at: &At) -> Cue {
        self.lock().cue(at)
    }
}

impl Inner {
    fn cue(&mut self, at: &At) -> Cue {
        if self.phase == Phase::Over {
            return settled(at);
        }
        let now = at.now_ns.saturating_add(self.settings.step_ns);
        let (began, began_ns) = *self.began.get_or_insert((at.boundary, at.now_ns));
        if self.last_boundary.is_none() {
            self.progress_ns = at.now_ns;
            self.heard.began_ns = at.now_ns;
        }
        self.last_boundary = Some(at.boundary);
        self.heard.boundaries = at.boundary.saturating_sub(began);
        self.heard.virtual_ns = at.now_ns.saturating_sub(began_ns);

        if self.settings.at_once && at.boundary > began {
            self.finish(Course::Complete);
            return settled(at);
        }
        self.listen(now);
        let waits = at.wait_until_ns != WAIT_NONE && at.wait_until_ns > now;
        if waits && !self.wire.has_frames() {
            self.idle = self.idle.saturating_add(1);
        } else {
            self.idle = 0;
        }
        self.talk(now);
        self.wire.run(now);
        self.notice(now);
        if self.phase == Phase::Over {
            return settled(at);
        }
        if self.wire.has_frames() {
            self.idle = 0;
            return self.entry(now);
        }
        if !waits {
            return self.entry(now);
        }
        self.jump(at, now)
    }

    fn entry(&mut self, now: u64) -> Cue {
        Cue::Entry(Staged {
            frames: self.wire.take_frames(),
            monotonic_ns: now,
            realtime_ns: EPOCH_NS.saturating_add(now),
            terminate: false,
        })
    }

    /// The guest waits and nobody has anything to say: to the next thing that happens by itself.
    fn jump(&mut self, at: &At, now: u64) -> Cue {
        let timer = self.wire.next_timer(now);
        let retry = self.retries.iter().map(|(at, _)| *at).min();
        let hang = self.progress_ns.saturating_add(self.settings.hang_ns);
        let drain = match self.phase {
            Phase::Closing(since) if !self.wire.is_quiet() => Some(since.saturating_add(DRAIN_NS)),
            _ => None,
        }
        .filter(|at| *at > now);
        let mine = [timer, retry, drain].into_iter().flatten().min();
        if at.wait_until_ns == WAIT_FOREVER && mine.is_none() {
            self.finish_stuck("the guest waits for ever and so does the client");
            return settled(at);
        }
        let to = at
            .wait_until_ns
            .min(mine.unwrap_or(u64::MAX))
            .min(hang)
            .max(now);
        self.talk(to);
        self.wire.run(to);
        self.notice(to);
        match self.phase {
            Phase::Over => settled(at),
            _ => self.entry(to),
        }
    }

    /// Takes what the guest has sent.
    fn listen(&mut self, now: u64) {
        let mut heard = |line: usize, bytes: &[u8]| {
            let Some(connection) = self.of_line.get(line) else {
                return;
            };
            let to = &mut self.heard.connections[*connection];
            // More than that ends the conversation below.
            if self.received <= MAX_RECEIVED_BYTES {
                to.bytes.extend_from_slice(bytes);
            }
            self.received += bytes.len();
            to.last_ns = now.saturating_sub(self.heard.began_ns);
            self.progress_ns = now;
        };
        for frame in std::mem::take(&mut self.inbox) {
            self.wire.receive(frame, now, &mut heard);
        }
    }

    /// Does what can be done.
    fn talk(&mut self, now: u64) {
        if self.phase == Phase::Waiting {
            if self.idle == 0 {
                return;
            }
            self.phase = Phase::Talking;
            self.progress_ns = now;
        }
        self.retry(now);
        self.end_refused(now);
        while self.phase == Phase::Talking && self.next < self.conversation.events.len() {
            let conversation = Arc::clone(&self.conversation);
            let event = &conversation.events[self.next];
            if !self.is_met(self.next, &event.after) {
                break;
            }
            self.act(self.next, event.connection, &event.act, now);
            if self.settings.lenient {
                // It has come to rest before it was told this.
                self.idle = 0;
            }
            self.next += 1;
            self.heard.acts = self.next;
            self.progress_ns = now;
        }
        self.pump(now);
        let end = self.conversation.events.len();
        if self.phase == Phase::Talking && self.next == end {
            let conversation = Arc::clone(&self.conversation);
            let unsent = self.talks.iter().any(|talk| !talk.queue.is_empty());
            if !unsent && self.is_met(end, &conversation.end) {
                self.phase = Phase::Closing(now);
                // Who has not ended a connection by now is gone, and so the system ends it.
                for talk in &self.talks {
                    if let Some(line) = talk.line {
                        self.wire.shut(line);
                    }
                }
            }
        }
        if let Phase::Closing(since) = self.phase
            && now >= since.saturating_add(DRAIN_NS)
        {
            for talk in &self.talks {
                if let Some(line) = talk.line {
                    self.wire.reset(line);
                }
            }
        }
    }

    fn act(&mut self, number: usize, connection: usize, act: &Act, now: u64) {
        let talk = &mut self.talks[connection];
        match act {
            Act::Open => self.open(connection, now),
            Act::Send(_) => {
                talk.queue.push_back((number, 0));
                let heard = &mut self.heard.connections[connection];
                heard.sends.push(heard.bytes.len());
            }
            Act::Shut => talk.shut = true,
            Act::Reset => {
                talk.queue.clear();
                if let Some(line) = talk.line {
                    self.wire.reset(line);
                }
            }
        }
    }

    fn open(&mut self, connection: usize, now: u64) {
        let line = self.wire.connect(self.conversation.connections[connection]);
        if line.is_some() {
            self.of_line.push(connection);
            self.heard.connections[connection].opened_ns = now.saturating_sub(self.heard.began_ns);
        }
        self.talks[connection].line = line;
    }

    /// Queued sends go into the sockets as far as there is room, then ends of streams.
    fn pump(&mut self, now: u64) {
        for talk in &mut self.talks {
            let Some(line) = talk.line else { continue };
            let Some(state) = self.wire.line(line).map(|line| line.ending) else {
                continue;
            };
            if !matches!(state, Ending::Unanswered | Ending::Open | Ending::ByGuest) {
                // Whoever sends to a connection that is gone gets an error; what that means to the client, nobody knows.
                talk.queue.clear();
                continue;
            }
            while let Some((event, offset)) = talk.queue.front_mut() {
                let Act::Send(bytes) = &self.conversation.events[*event].act else {
                    talk.queue.pop_front();
                    continue;
                };
                let taken = self.wire.send(line, &bytes[*offset..]);
                if taken == 0 {
                    break;
                }
                self.progress_ns = now;
                *offset += taken;
                if *offset == bytes.len() {
                    talk.queue.pop_front();
                }
            }
            if talk.shut && talk.queue.is_empty() && state != Ending::Unanswered {
                self.wire.shut(line);
            }
        }
    }

    fn retry(&mut self, now: u64) {
        let (due, later) = std::mem::take(&mut self.retries)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.retries = later;
        let due: Vec<(u64, usize)> = due;
        for (_, connection) in due {
            self.open(connection, now);
        }
    }

    /// A warm-up that was refused comes again later.
    fn end_refused(&mut self, now: u64) {
        if !self.settings.warm_up {
            return;
        }
        for (connection, talk) in self.talks.iter_mut().enumerate() {
            let refused = |line: &usize| {
                self.wire
                    .line(*line)
                    .is_some_and(|line| line.ending == Ending::Refused)
            };
            if talk.line.as_ref().is_some_and(refused) {
                talk.line = None;
                self.retries
                    .push((now.saturating_add(RETRY_NS), connection));
            }
        }
    }

    /// Whether the client has received what an act (or the end) waits for.
    fn is_met(&mut self, event: usize, conditions: &[Received]) -> bool {
        for of in conditions {
            let heard = &self.heard.connections[of.connection];
            let line = self.talks[of.connection]
                .line
                .and_then(|line| self.wire.line(line));
            let closed =
                line.is_some_and(|line| line.guest_eof || line.ending == Ending::ResetByGuest);
            let so_far = heard.bytes.len() as u64;
            let ended = closed || !of.closed;
            if self.settings.lenient {
                let answered = so_far > 0 || of.bytes == 0;
                if self.idle == 0 || !answered || !ended {
                    return false;
                }
                if so_far != of.bytes {
                    let really = Received {
                        bytes: so_far,
                        ..*of
                    };
                    self.adapted.push((event, really));
                }
            } else if so_far < of.bytes || !ended {
                return false;
            }
        }
        true
    }

    /// Whether the conversation is over, well or badly.
    fn notice(&mut self, now: u64) {
        for (talk, heard) in self.talks.iter().zip(&mut self.heard.connections) {
            if let Some(line) = talk.line.and_then(|line| self.wire.line(line)) {
                heard.ending = line.ending;
            }
        }
        if self.received > MAX_RECEIVED_BYTES {
            self.finish_stuck(&format!(
                "the guest has sent more than {MAX_RECEIVED_BYTES} bytes"
            ));
            return;
        }
        if self.heard.boundaries > self.settings.max_boundaries {
            self.finish_stuck(&format!(
                "it took more than {} boundaries",
                self.settings.max_boundaries
            ));
            return;
        }
        match self.phase {
            // The last acknowledgement is to be sent, too.
            Phase::Closing(_)
                if self.wire.is_quiet() && !self.wire.has_frames() && self.idle >= 1 =>
            {
                self.finish(Course::Complete);
            }
            Phase::Talking => {
                if let Some((connection, why)) = self.broken() {
                    self.finish(Course::Broken { connection, why });
                }
            }
            _ => {}
        }
        if self.phase != Phase::Over
            && now >= self.progress_ns.saturating_add(self.settings.hang_ns)
        {
            let seconds = self.settings.hang_ns as f64 / 1e9;
            self.finish_stuck(&format!("nothing came for {seconds} s of virtual time"));
        }
    }

    /// A connection of which something is still waited for, and that is gone.
    fn broken(&self) -> Option<(usize, String)> {
        let event = self.conversation.events.get(self.next);
        let awaited = event.map_or(&self.conversation.end, |event| &event.after);
        awaited.iter().find_map(|of| {
            let heard = &self.heard.connections[of.connection];
            let so_far = heard.bytes.len() as u64;
            let gone = match heard.ending {
                Ending::Refused if !self.settings.warm_up => "refused it",
                Ending::ResetByGuest => "reset it",
                Ending::ByGuest | Ending::ByClient => "ended it",
                _ => return None,
            };
            // A lenient player does not know how much is to come.
            let ended = matches!(heard.ending, Ending::ByGuest | Ending::ByClient);
            let short = so_far < of.bytes && !(self.settings.lenient && ended);
            short.then(|| {
                let why = format!(
                    "connection {}: the guest {gone} after {so_far} bytes, the client waits for {}",
                    of.connection, of.bytes
                );
                (of.connection, why)
            })
        })
    }

    fn finish_stuck(&mut self, why: &str) {
        let waits = match (self.phase, self.conversation.events.get(self.next)) {
            (Phase::Waiting, _) => "the guest has not come to rest".to_owned(),
            (Phase::Closing(_), _) => {
                "all was said, but the guest does not come to rest".to_owned()
            }
            (_, event) => {
                let awaited = event.map_or(&self.conversation.end, |event| &event.after);
                let missing = awaited.iter().find_map(|of| {
                    let so_far = self.heard.connections[of.connection].bytes.len() as u64;
                    let what = match so_far < of.bytes {
                        true => format!("{so_far} of {} bytes came", of.bytes),
                        false if of.closed => "the guest does not end it".to_owned(),
                        false => return None,
                    };
                    Some(format!("connection {}: {what}", of.connection))
                });
                missing.unwrap_or_else(|| "the guest does not take what is sent".to_owned())
            }
        };
        self.finish(Course::Stuck {
            why: format!("{waits}; {why}"),
        });
    }

    fn finish(&mut self, course: Course) {
        self.phase = Phase::Over;
        self.heard.course = course;
        let unanswered = |heard: &&HeardConnection| {
            heard
                .sends
                .last()
                .is_some_and(|at| *at == heard.bytes.len())
        };
        // A send that is not answered in the golden run either is not counted by the judge, who compares.
        self.heard.outstanding = self.heard.connections.iter().filter(unanswered).count();
    }
}

/// The conversation is over: the set may still have to come to full strength.
fn settled(at: &At) -> Cue {
    let strength = &at.strength;
    if strength.voting + strength.left_out >= strength.members {
        Cue::Over
    } else {
        Cue::Wait
    }
}
