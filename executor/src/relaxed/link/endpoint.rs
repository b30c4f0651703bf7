//! All connections and flows of one guest, and the order in which their frames leave.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::boot::{Answer, Boot};
use super::conn::{Conn, Context, Phase, Reaction};
use super::datagrams::{FIRST_PORT, Flows, next_port, wanted_port};
use super::wire::parse;
use super::*;
use crate::gateway::link::{
    self as ethernet, Dropped, Incoming, MAX_UDP_PAYLOAD, classify, udp_frame,
};
use crate::relaxed::log::{BATCH_BYTES, BATCH_EVENTS};

/// The endpoint. See the module's description.
#[derive(Clone, Debug)]
pub struct Link {
    pub(super) config: LinkConfig,
    pub(super) now: u64,
    /// The place of the next input in the order.
    pub(super) next_number: u64,
    pub(super) conns: HashMap<u16, Conn>,
    pub(super) ports: HashMap<ConnId, u16>,
    pub(super) datagrams: BTreeMap<u64, Datagram>,
    pub(super) flows: Flows,
    pub(super) replies: VecDeque<Vec<u8>>,
    pub(super) events: Vec<FromGuest>,
    /// Connections that the guest has not accepted yet may delay what came after their first bytes.
    pub(super) may_hold: bool,
    pub(super) boot: Boot,
    pub(super) counters: LinkCounters,
    // Rebuilt, not saved.
    pub(super) event_bytes: usize,
    pub(super) unsent_total: usize,
    /// Connections that are not [`Conn::settled`].
    pub(super) unsettled: usize,
    /// Connections that can send, by the place of what they can send.
    pub(super) ready: BTreeMap<u64, u16>,
    pub(super) held: BTreeMap<u64, u16>,
    pub(super) timers: BTreeSet<(u64, u16)>,
    pub(super) acks: VecDeque<u16>,
}

/// What an event with a payload takes beside it, roughly: many small ones, or empty datagrams, take room, too.
pub(super) const EVENT_OVERHEAD: usize = 64;

/// A datagram that waits for its turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Datagram {
    pub(super) gateway_port: u16,
    pub(super) guest_port: u16,
    pub(super) bytes: Arc<[u8]>,
}

impl Link {
    /// An endpoint without connections.
    pub fn new(config: LinkConfig) -> Link {
        Link {
            boot: Boot::new(&config, |port| mix(config.seed, port)),
            config,
            now: 0,
            next_number: 0,
            conns: HashMap::new(),
            ports: HashMap::new(),
            datagrams: BTreeMap::new(),
            flows: Flows::default(),
            replies: VecDeque::new(),
            events: Vec::new(),
            may_hold: true,
            counters: LinkCounters::default(),
            event_bytes: 0,
            unsent_total: 0,
            unsettled: 0,
            ready: BTreeMap::new(),
            held: BTreeMap::new(),
            timers: BTreeSet::new(),
            acks: VecDeque::new(),
        }
    }

    /// Takes an input event. `now_ns` never goes back, here and everywhere.
    ///
    /// Inputs for connections that are gone (the guest has reset them meanwhile) are dropped. At [`MAX_UNSENT`],
    /// [`MAX_UNSENT_TOTAL`] or [`MAX_CONNECTIONS`] the connection is reset or refused; at [`MAX_DATAGRAMS`] the datagram is
    /// dropped (R10).
    pub fn input(&mut self, input: ToGuest, now_ns: u64) {
        self.now = self.now.max(now_ns);
        let number = self.next_number;
        self.next_number += 1;
        match input {
            ToGuest::Open { conn, guest_port } => self.open(conn, guest_port, number),
            ToGuest::Data { conn, bytes } => self.data(conn, bytes, number),
            ToGuest::Shut { conn } => self.finish(conn, number, false),
            ToGuest::Reset { conn } => self.finish(conn, number, true),
            ToGuest::Typed { .. } => {}
            ToGuest::Datagram {
                flow,
                guest_port,
                bytes,
            } => self.datagram(flow, guest_port, bytes, number),
        }
    }

    /// Takes a frame of the guest (R9). What it says is found by [`Link::events`].
    pub fn frame(&mut self, frame: &[u8], now_ns: u64) {
        self.now = self.now.max(now_ns);
        self.counters.frames_from_guest += 1;
        let dropped = match classify(frame) {
            Ok(incoming) => self.incoming(incoming, frame).err(),
            Err(dropped) => Some(dropped),
        };
        match dropped {
            Some(Dropped::Malformed) => self.counters.frames_malformed += 1,
            Some(Dropped::Ignored) => self.counters.frames_ignored += 1,
            None => {}
        }
    }

    /// Appends the frames for the guest that are due, at most `room`. More stay for the next call.
    pub fn poll(&mut self, now_ns: u64, room: usize, frames: &mut Vec<Vec<u8>>) {
        self.now = self.now.max(now_ns);
        self.expire();
        self.probe();
        let full = frames.len().saturating_add(room);
        let before = frames.len();
        while frames.len() < full {
            // A reset takes the place of the input that led to it.
            if let Some(reply) = self.replies.pop_front() {
                frames.push(reply);
                continue;
            }
            // Not past the first bytes of a connection that the guest has not accepted yet.
            let barrier = self.held.keys().next().filter(|_| self.may_hold);
            let barrier = barrier.copied().unwrap_or(u64::MAX);
            let mut ready = self.ready.iter().map(|(&number, &port)| (number, port));
            let stream = ready.next().filter(|&(number, _)| number < barrier);
            let next_stream = ready.next().map_or(barrier, |(number, _)| number);
            let datagram = self.datagrams.keys().next().copied();
            let datagram = datagram.filter(|&number| number < barrier);
            match (stream, datagram) {
                (Some((number, _)), Some(datagram)) if datagram < number => {
                    self.send_datagram(datagram, frames);
                }
                (None, Some(datagram)) => self.send_datagram(datagram, frames),
                (Some((_, port)), datagram) => {
                    let before = barrier.min(next_stream).min(datagram.unwrap_or(u64::MAX));
                    let frame = self.with(port, |conn, cx| conn.transmit(before, cx));
                    frames.extend(frame.flatten());
                }
                (None, None) => break,
            }
        }
        while frames.len() < full
            && let Some(port) = self.acks.pop_front()
        {
            let frame = self.with(port, |conn, cx| {
                conn.lists.ack = false;
                if conn.ack_now {
                    let (frame, reaction) = conn.pure_ack(cx);
                    (Some(frame), reaction)
                } else {
                    (None, Reaction::Nothing)
                }
            });
            frames.extend(frame.flatten());
        }
        self.counters.frames_to_guest += (frames.len() - before) as u64;
    }

    /// What the guest has said since the last call, in its order.
    pub fn events(&mut self) -> Vec<FromGuest> {
        self.event_bytes = 0;
        std::mem::take(&mut self.events)
    }

    /// Whether [`Link::poll`] would have something to send at once.
    pub fn has_frames(&self) -> bool {
        !(self.replies.is_empty()
            && self.ready.is_empty()
            && self.datagrams.is_empty()
            && self.acks.is_empty())
    }

    /// By when [`Link::poll`] wants to be called, if nothing happens before. Not later than the next timer, and sometimes
    /// earlier.
    pub fn deadline_ns(&self) -> Option<u64> {
        let timer = self.timers.first().map(|&(at, _)| at);
        timer.into_iter().chain(self.boot.deadline()).min()
    }

    /// The outside has taken so much of a connection's stream: opens the guest's window again.
    pub fn taken(&mut self, conn: ConnId, bytes: usize) {
        if let Some(&port) = self.ports.get(&conn) {
            self.with(port, |conn, cx| {
                conn.take(bytes, cx.config);
                ((), Reaction::Nothing)
            });
        }
    }

    /// Bytes for the guest on a connection that it has not acknowledged. 0 for unknown ones.
    pub fn unsent(&self, conn: ConnId) -> usize {
        self.conn(conn).map_or(0, Conn::unsent)
    }

    /// The same over all connections and datagrams.
    pub fn unsent_total(&self) -> usize {
        self.unsent_total
    }

    /// Bytes of the guest's stream that a connection has given out so far.
    pub fn received(&self, conn: ConnId) -> Option<u64> {
        self.conn(conn).map(|conn| conn.received)
    }

    /// Nothing is on its way to the guest: it has acknowledged all there is.
    pub fn is_quiet(&self) -> bool {
        !self.has_frames() && self.conns.values().all(Conn::is_quiet)
    }

    /// Without another input, and whatever the guest answers, there is nothing more for it: no handshake is under way, nothing
    /// waits to be sent. What waits for a shut window does not count, nor what the guest has not acknowledged yet.
    pub fn settled(&self) -> bool {
        self.ready.is_empty()
            && self.datagrams.is_empty()
            && self.replies.is_empty()
            && self.unsettled == 0
    }

    /// Whether it takes another batch of inputs without coming to [`MAX_CONNECTIONS`], [`MAX_UNSENT_TOTAL`] or [`MAX_DATAGRAMS`], at
    /// which inputs are lost: whoever can wait does.
    pub fn has_room(&self) -> bool {
        self.conns.len() + BATCH_EVENTS <= MAX_CONNECTIONS
            && self.unsent_total + 2 * BATCH_BYTES <= MAX_UNSENT_TOTAL
            && self.datagrams.len() + BATCH_EVENTS <= MAX_DATAGRAMS
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// What was done so far.
    pub fn counters(&self) -> LinkCounters {
        self.counters
    }

    fn conn(&self, conn: ConnId) -> Option<&Conn> {
        self.conns.get(self.ports.get(&conn)?)
    }

    // Inputs.

    fn open(&mut self, id: ConnId, guest_port: u16, number: u64) {
        if self.conns.len() >= MAX_CONNECTIONS || self.ports.contains_key(&id) || guest_port == 0 {
            self.events.push(FromGuest::Refused { conn: id });
            return;
        }
        let mut port = wanted_port(id);
        // There are more ports than connections, so this ends.
        while self.conns.contains_key(&port) {
            port = next_port(port);
        }
        // RFC 9293, 3.4.1: a clock of 4 us, so that a connection that reuses a port begins beyond its predecessor.
        let ticks = (self.now / 4000) as u32;
        let iss = ticks.wrapping_add(mix(self.config.seed, port));
        self.counters.opened += 1;
        let cx = context(&self.config, self.now, &mut self.events, &mut self.counters);
        let mut conn = Conn::new(id, guest_port, port, number, iss, &cx);
        if self.boot.waits(guest_port) {
            conn.wait();
        }
        self.conns.insert(port, conn);
        self.ports.insert(id, port);
        self.settle(port, Reaction::Nothing);
    }

    fn data(&mut self, id: ConnId, bytes: Arc<[u8]>, number: u64) {
        if bytes.is_empty() {
            return;
        }
        let Some(&port) = self.ports.get(&id) else {
            self.counters.late_inputs += 1;
            return;
        };
        let fits = self.unsent_total + bytes.len() <= MAX_UNSENT_TOTAL;
        self.with(port, |conn, cx| {
            if conn.has_ended() {
                cx.counters.late_inputs += 1;
                return ((), Reaction::Nothing);
            }
            if fits && conn.push(number, bytes, cx.now) {
                return ((), Reaction::Nothing);
            }
            cx.counters.overruns += 1;
            cx.events.push(conn.lost());
            ((), Reaction::Abort)
        });
    }

    fn finish(&mut self, id: ConnId, number: u64, reset: bool) {
        let Some(&port) = self.ports.get(&id) else {
            self.counters.late_inputs += 1;
            return;
        };
        self.with(port, |conn, cx| {
            conn.finish(number, reset, cx.now);
            if reset && conn.phase == Phase::Waiting {
                // It never was.
                cx.events.push(conn.lost());
                return ((), Reaction::Gone);
            }
            ((), Reaction::Nothing)
        });
    }

    fn datagram(&mut self, flow: FlowId, guest_port: u16, bytes: Arc<[u8]>, number: u64) {
        if self.datagrams.len() >= MAX_DATAGRAMS
            || self.unsent_total + bytes.len() > MAX_UNSENT_TOTAL
            || bytes.len() > MAX_UDP_PAYLOAD
            || guest_port == 0
        {
            self.counters.datagrams_dropped += 1;
            return;
        }
        let (gateway_port, evicted) = self.flows.port_of(flow, guest_port);
        self.counters.flows_evicted += u64::from(evicted);
        self.unsent_total += bytes.len();
        self.datagrams.insert(
            number,
            Datagram {
                gateway_port,
                guest_port,
                bytes,
            },
        );
    }

    fn send_datagram(&mut self, number: u64, frames: &mut Vec<Vec<u8>>) {
        if let Some(datagram) = self.datagrams.remove(&number) {
            self.unsent_total -= datagram.bytes.len();
            self.counters.bytes_to_guest += datagram.bytes.len() as u64;
            frames.push(udp_frame(
                datagram.gateway_port,
                datagram.guest_port,
                &datagram.bytes,
            ));
        }
    }

    // Frames.

    fn incoming(&mut self, incoming: Incoming<'_>, frame: &[u8]) -> Result<(), Dropped> {
        let reply = match incoming {
            Incoming::Arp(packet) => ethernet::arp_reply(packet)?,
            Incoming::Icmp => ethernet::icmp_reply(frame)?,
            Incoming::Foreign => {
                self.counters.outgoing_refused += 1;
                ethernet::refusal(frame)?
            }
            Incoming::Udp {
                guest_port,
                gateway_port,
                payload,
            } => {
                if let Some(flow) = self.flows.flow_at(gateway_port, guest_port) {
                    self.datagram_of_guest(flow, payload);
                    None
                } else {
                    self.counters.outgoing_refused += 1;
                    ethernet::refusal(frame)?
                }
            }
            Incoming::Tcp { opens: true, .. } => {
                self.counters.outgoing_refused += 1;
                ethernet::refusal(frame)?
            }
            Incoming::Tcp {
                guest_port,
                gateway_port,
                ..
            } => self.segment(guest_port, gateway_port, frame)?,
        };
        if let Some(reply) = reply {
            if self.replies.len() < MAX_REPLIES {
                self.replies.push_back(reply);
            } else {
                self.counters.replies_dropped += 1;
            }
        }
        Ok(())
    }

    fn datagram_of_guest(&mut self, flow: FlowId, payload: &[u8]) {
        if self.event_bytes + payload.len() > MAX_EVENT_BYTES {
            self.counters.datagrams_dropped += 1;
            return;
        }
        self.event_bytes += payload.len() + EVENT_OVERHEAD;
        self.counters.bytes_from_guest += payload.len() as u64;
        self.events.push(FromGuest::Datagram {
            flow,
            bytes: payload.to_vec(),
        });
    }

    fn segment(
        &mut self,
        guest_port: u16,
        gateway_port: u16,
        frame: &[u8],
    ) -> Result<Option<Vec<u8>>, Dropped> {
        if gateway_port < FIRST_PORT {
            return self.answer(gateway_port, guest_port, frame);
        }
        let known = self
            .conns
            .get(&gateway_port)
            .is_some_and(|conn| conn.guest_port == guest_port);
        if !known {
            return ethernet::refusal(frame);
        }
        let segment = parse(frame).ok_or(Dropped::Malformed)?;
        if !segment.payload.is_empty() {
            if self.event_bytes + segment.payload.len() > MAX_EVENT_BYTES {
                self.counters.segments_dropped += 1;
                return Ok(None);
            }
            self.event_bytes += segment.payload.len() + EVENT_OVERHEAD;
        }
        let mut opened = false;
        let refuse = self.with(gateway_port, |conn, cx| {
            let phase = conn.phase;
            let reaction = conn.receive(&segment, cx);
            opened = phase != Phase::Open && conn.phase == Phase::Open;
            (reaction == Reaction::Refuse, reaction)
        });
        self.may_hold |= opened;
        if refuse == Some(true) {
            return ethernet::refusal(frame);
        }
        Ok(None)
    }

    // Booting.

    fn probe(&mut self) {
        let mut frames = Vec::new();
        if self.boot.tick(self.now, self.config.checksums, &mut frames) {
            self.begin(|_| true);
        }
        for frame in frames {
            if self.replies.len() < MAX_REPLIES {
                self.replies.push_back(frame);
            } else {
                self.counters.replies_dropped += 1;
            }
        }
    }

    /// What the guest says to a probe.
    fn answer(
        &mut self,
        gateway_port: u16,
        guest_port: u16,
        frame: &[u8],
    ) -> Result<Option<Vec<u8>>, Dropped> {
        let segment = parse(frame).ok_or(Dropped::Malformed)?;
        match self.boot.answer(gateway_port, guest_port, &segment) {
            Answer::Taken => return Ok(None),
            Answer::Refuse => {}
            Answer::Listens => {
                self.events.push(FromGuest::Listens { guest_port });
                self.begin(|port| port == guest_port);
            }
        }
        ethernet::refusal(frame)
    }

    /// Connections to these ports do not wait any more.
    fn begin(&mut self, to: impl Fn(u16) -> bool) {
        let waits = |conn: &Conn| conn.phase == Phase::Waiting && to(conn.guest_port);
        let ports = self.conns.iter().filter(|(_, conn)| waits(conn));
        let ports: Vec<u16> = ports.map(|(&port, _)| port).collect();
        for port in ports {
            self.with(port, |conn, cx| {
                conn.begin(cx.now);
                ((), Reaction::Nothing)
            });
        }
    }

    // Keeping the lists.

    fn expire(&mut self) {
        loop {
            let mut due = Vec::new();
            while let Some(&(at, port)) = self.timers.first()
                && at <= self.now
            {
                self.timers.pop_first();
                if let Some(conn) = self.conns.get_mut(&port) {
                    conn.lists.armed = None;
                    due.push((conn.deadline(), port));
                }
            }
            if due.is_empty() {
                return;
            }
            // By their true times: some of the timers were there before their connection put off its deadline.
            due.sort_unstable();
            for (_, port) in due {
                self.with(port, |conn, cx| ((), conn.tick(cx)));
            }
        }
    }

    /// Lets a connection do something and puts it where it then belongs.
    fn with<T>(
        &mut self,
        port: u16,
        act: impl FnOnce(&mut Conn, &mut Context<'_>) -> (T, Reaction),
    ) -> Option<T> {
        let conn = self.conns.get_mut(&port)?;
        let mut cx = context(&self.config, self.now, &mut self.events, &mut self.counters);
        let (result, reaction) = act(conn, &mut cx);
        self.settle(port, reaction);
        Some(result)
    }

    pub(super) fn settle(&mut self, port: u16, reaction: Reaction) {
        let Some(conn) = self.conns.get_mut(&port) else {
            return;
        };
        if reaction == Reaction::HeldForNothing {
            self.may_hold = false;
        }
        let over = matches!(reaction, Reaction::Gone | Reaction::Abort);
        let (ready, held, deadline, unsent) = if over {
            (None, None, None, 0)
        } else {
            (conn.ready(), conn.held(), conn.deadline(), conn.unsent())
        };
        let lists = &mut conn.lists;
        for (list, place, wanted) in [
            (&mut self.ready, &mut lists.ready, ready),
            (&mut self.held, &mut lists.held, held),
        ] {
            if *place != wanted {
                if let Some(number) = place.take() {
                    list.remove(&number);
                }
                if let Some(number) = wanted {
                    list.insert(number, port);
                }
                *place = wanted;
            }
        }
        // A timer that fires too early is left: it looks again then. Most are put off for ever.
        let earlier = deadline.filter(|&at| lists.armed.is_none_or(|armed| at < armed));
        if let Some(armed) = lists.armed.filter(|_| over || earlier.is_some()) {
            self.timers.remove(&(armed, port));
            lists.armed = None;
        }
        if let Some(at) = earlier {
            self.timers.insert((at, port));
            lists.armed = Some(at);
        }
        if conn.ack_now && !lists.ack && !over {
            lists.ack = true;
            self.acks.push_back(port);
        }
        let unsettled = !over && !conn.settled();
        let lists = &mut conn.lists;
        self.unsettled = self.unsettled - usize::from(lists.unsettled) + usize::from(unsettled);
        lists.unsettled = unsettled;
        self.unsent_total = self.unsent_total - lists.counted + unsent;
        lists.counted = unsent;
        if over && let Some(conn) = self.conns.remove(&port) {
            self.ports.remove(&conn.id);
            // Not counted against MAX_REPLIES: the guest must not miss it. There is one for a connection whose SYN the guest
            // has taken, and these are bounded.
            if reaction == Reaction::Abort && !matches!(conn.phase, Phase::Waiting | Phase::New) {
                self.replies.push_back(conn.reset_frame(&self.config));
            }
            if conn.lists.ack {
                self.acks.retain(|&listed| listed != port);
            }
        }
    }
}

fn context<'a>(
    config: &'a LinkConfig,
    now: u64,
    events: &'a mut Vec<FromGuest>,
    counters: &'a mut LinkCounters,
) -> Context<'a> {
    Context {
        now,
        config,
        events,
        counters,
    }
}

/// Spreads the initial sequence numbers of different ports. No secret: who is on this link sees them anyway.
fn mix(seed: u64, port: u16) -> u32 {
    let mixed = (seed ^ u64::from(port)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)) as u32
}
