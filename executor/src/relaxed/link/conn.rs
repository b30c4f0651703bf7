//! One TCP connection, opened from here. RFC 9293, less what a link in memory does not need.
//!
//! Positions in both streams are 64-bit offsets from their beginning; sequence numbers are computed from them. A FIN takes
//! the number after the last byte.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smoltcp::wire::TcpControl;

use super::wire::{DEFAULT_MSS, Header, MSS, Segment, build};
use super::*;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// The guest does not listen yet: nothing is sent.
    Waiting,
    /// SYN is due for the first time.
    New,
    /// SYN was sent.
    SynSent,
    /// The guest has accepted.
    Open,
}

/// One input of the client's stream, and its place in the order of all inputs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chunk {
    number: u64,
    bytes: Arc<[u8]>,
}

/// How the client's stream ends, and the place of that in the order of all inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Finish {
    number: u64,
    reset: bool,
}

/// In which of the endpoint's lists the connection is; rebuilt, not saved.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lists {
    pub(super) ready: Option<u64>,
    pub(super) held: Option<u64>,
    /// A timer that fires no later than the connection's next deadline.
    pub(super) armed: Option<u64>,
    pub(super) ack: bool,
    /// Bytes counted in the endpoint's total.
    pub(super) counted: usize,
    /// It is counted as unsettled there.
    pub(super) unsettled: bool,
}

/// What a connection works with that is not its own.
pub(super) struct Context<'a> {
    pub(super) now: u64,
    pub(super) config: &'a LinkConfig,
    pub(super) events: &'a mut Vec<FromGuest>,
    pub(super) counters: &'a mut LinkCounters,
}

/// What the endpoint has to do after a connection's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Only to look where it belongs now.
    Nothing,
    /// To answer the frame with a reset.
    Refuse,
    /// To forget it.
    Gone,
    /// To send a reset and forget it.
    Abort,
    /// The guest did not accept it while others waited for that.
    HeldForNothing,
}

/// A connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Conn {
    pub(super) id: ConnId,
    pub(super) guest_port: u16,
    pub(super) port: u16,
    pub(super) phase: Phase,
    opened: u64,
    // To the guest.
    iss: u32,
    syn_due: bool,
    chunks: VecDeque<Chunk>,
    /// Where the first chunk begins; acked is within it.
    base: u64,
    acked: u64,
    sent: u64,
    max_sent: u64,
    end: u64,
    finish: Option<Finish>,
    fin_sent: bool,
    fin_ever_sent: bool,
    fin_acked: bool,
    /// Up to where the guest's window lets us send.
    edge: u64,
    mss: u16,
    guest_scale: u8,
    own_scale: u8,
    /// After a timeout one segment at a time, until there is progress.
    recovering: bool,
    /// Chunk of `sent`, and how far into it.
    #[serde(skip)]
    cursor: (usize, usize),
    // From the guest.
    irs: u32,
    pub(super) received: u64,
    taken: u64,
    /// Up to where the guest knows that it may send.
    advertised: u64,
    fin_received: bool,
    unacked: u32,
    pub(super) ack_now: bool,
    // Times.
    retransmit_at: Option<u64>,
    tries: u32,
    ack_at: Option<u64>,
    connect_by: Option<u64>,
    hold_until: Option<u64>,
    hold_over: bool,
    orphan_at: Option<u64>,
    #[serde(skip)]
    pub(super) lists: Lists,
}

impl Conn {
    pub(super) fn new(
        id: ConnId,
        guest_port: u16,
        port: u16,
        number: u64,
        iss: u32,
        cx: &Context<'_>,
    ) -> Conn {
        Conn {
            id,
            guest_port,
            port,
            phase: Phase::New,
            opened: number,
            iss,
            syn_due: true,
            chunks: VecDeque::new(),
            base: 0,
            acked: 0,
            sent: 0,
            max_sent: 0,
            end: 0,
            finish: None,
            fin_sent: false,
            fin_ever_sent: false,
            fin_acked: false,
            edge: 0,
            mss: DEFAULT_MSS,
            guest_scale: 0,
            own_scale: 0,
            recovering: false,
            cursor: (0, 0),
            irs: 0,
            received: 0,
            taken: 0,
            advertised: 0,
            fin_received: false,
            unacked: 0,
            ack_now: false,
            retransmit_at: None,
            tries: 0,
            ack_at: None,
            connect_by: Some(cx.now + CONNECT_TIMEOUT_NS),
            hold_until: None,
            hold_over: false,
            orphan_at: None,
            lists: Lists::default(),
        }
    }

    /// It waits until the guest listens.
    pub(super) fn wait(&mut self) {
        self.phase = Phase::Waiting;
        self.connect_by = None;
    }

    /// The guest listens, or is not waited for any more.
    pub(super) fn begin(&mut self, now: u64) {
        self.phase = Phase::New;
        self.connect_by = Some(now + CONNECT_TIMEOUT_NS);
    }

    // What the outside does.

    /// The client's stream has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.finish.is_some()
    }

    /// The event that tells that it is over before its time.
    pub(super) fn lost(&self) -> FromGuest {
        let conn = self.id;
        match self.phase {
            Phase::Waiting | Phase::New | Phase::SynSent => FromGuest::Refused { conn },
            Phase::Open => FromGuest::Reset { conn },
        }
    }

    /// The client's stream goes on. False: there is no room.
    pub(super) fn push(&mut self, number: u64, bytes: Arc<[u8]>, now: u64) -> bool {
        if self.unsent() + bytes.len() > MAX_UNSENT {
            return false;
        }
        self.end += bytes.len() as u64;
        if self.cursor.0 == self.chunks.len() {
            self.cursor.1 = 0;
        }
        self.chunks.push_back(Chunk { number, bytes });
        self.retime(now, false);
        true
    }

    /// The client's stream ends.
    pub(super) fn finish(&mut self, number: u64, reset: bool, now: u64) {
        if reset || self.finish.is_none() {
            self.finish = Some(Finish { number, reset });
            self.watch_orphan(now);
        }
    }

    /// The outside has taken so much of the guest's stream.
    pub(super) fn take(&mut self, bytes: usize, config: &LinkConfig) {
        self.taken = (self.taken + bytes as u64).min(self.received);
        let window = u64::from(window_of(config));
        if self.phase == Phase::Open
            && !self.fin_received
            && self.taken + window >= self.advertised + window / 4
        {
            self.ack_now = true;
        }
    }

    /// Bytes for the guest that it has not acknowledged.
    pub(super) fn unsent(&self) -> usize {
        (self.end - self.acked) as usize
    }

    /// The guest has accepted it, and nothing of the client's stream waits for anything but a shut window.
    pub(super) fn settled(&self) -> bool {
        if self.phase != Phase::Open {
            return false;
        }
        if self.sent == self.end {
            return self
                .finish
                .is_none_or(|finish| !finish.reset && self.fin_sent);
        }
        // Acknowledgements that are under way may open the window further.
        self.edge <= self.sent && self.sent == self.acked
    }

    /// Nothing is on its way to the guest, and it owes no acknowledgement.
    pub(super) fn is_quiet(&self) -> bool {
        self.phase == Phase::Open
            && self.acked == self.end
            && self.finish.is_none_or(|_| self.fin_acked)
    }

    // Where it belongs.

    /// The place in the order of inputs of what can be sent now.
    pub(super) fn ready(&self) -> Option<u64> {
        match self.phase {
            Phase::Waiting => None,
            Phase::New => Some(self.opened),
            Phase::SynSent if self.syn_due => Some(self.opened),
            Phase::SynSent => self
                .finish
                .filter(|finish| finish.reset && self.hold_over)
                .map(|finish| finish.number),
            Phase::Open => {
                if self.usable() > 0 {
                    return self.chunks.get(self.cursor.0).map(|chunk| chunk.number);
                }
                let finish = self.finish?;
                // A reset does not wait for a window: nobody will see what is behind it.
                let due = finish.reset || (self.sent == self.end && !self.fin_sent);
                due.then_some(finish.number)
            }
        }
    }

    /// The place in the order of inputs behind which others wait until the guest has accepted this connection.
    pub(super) fn held(&self) -> Option<u64> {
        if matches!(self.phase, Phase::Waiting | Phase::Open) || self.hold_over {
            return None;
        }
        let chunk = self.chunks.front().map(|chunk| chunk.number);
        chunk.or(self.finish.map(|finish| finish.number))
    }

    /// When its next timer fires.
    pub(super) fn deadline(&self) -> Option<u64> {
        [
            self.retransmit_at,
            self.ack_at,
            self.connect_by,
            self.hold_until,
            self.orphan_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    // Sending.

    /// Bytes that may be sent now.
    fn usable(&self) -> usize {
        let limit = if self.recovering {
            // At least one byte: the probe of a shut window.
            self.edge
                .min(self.acked + u64::from(self.mss))
                .max(self.acked + 1)
        } else {
            self.edge
        };
        let left = (self.end - self.sent) as usize;
        let usable = (limit.saturating_sub(self.sent) as usize).min(left);
        let waits = usable < SMALL_SEGMENT && usable < left && self.sent > self.acked;
        if waits && !self.recovering { 0 } else { usable }
    }

    /// Sends one segment: of what came before input `before`, but at least the first of it.
    pub(super) fn transmit(
        &mut self,
        before: u64,
        cx: &mut Context<'_>,
    ) -> (Option<Vec<u8>>, Reaction) {
        match self.phase {
            Phase::New | Phase::SynSent if self.syn_due => {
                self.phase = Phase::SynSent;
                self.syn_due = false;
                if self.hold_until.is_none() && !self.hold_over {
                    self.hold_until = Some(cx.now + HANDSHAKE_HOLD_NS);
                }
                self.retransmit_at = Some(cx.now + self.timeout());
                let header = Header {
                    seq: self.iss,
                    ack: None,
                    window: window_of(cx.config).min(0xffff) as u16,
                    syn: Some(scale_of(cx.config)),
                    ..self.header(cx.config)
                };
                (
                    Some(build(&header, 0, cx.config.checksums, |_| {})),
                    Reaction::Nothing,
                )
            }
            Phase::Waiting => (None, Reaction::Nothing),
            Phase::New | Phase::SynSent => (None, Reaction::Abort),
            Phase::Open => self.transmit_open(before, cx),
        }
    }

    fn transmit_open(&mut self, before: u64, cx: &mut Context<'_>) -> (Option<Vec<u8>>, Reaction) {
        let most = self.usable().min(usize::from(self.mss));
        let mut length = 0;
        let (mut index, mut skip) = self.cursor;
        while length < most
            && let Some(chunk) = self.chunks.get(index)
            && (length == 0 || chunk.number < before)
        {
            length += (chunk.bytes.len() - skip).min(most - length);
            index += 1;
            skip = 0;
        }
        let last = self.sent + length as u64 == self.end;
        let fin = match self.finish {
            Some(finish) if finish.reset && length == 0 => return (None, Reaction::Abort),
            Some(finish) => {
                !finish.reset && last && !self.fin_sent && (length == 0 || finish.number < before)
            }
            None => false,
        };
        if length == 0 && !fin {
            return (None, Reaction::Nothing);
        }
        let header = Header {
            fin,
            push: last,
            ..self.header(cx.config)
        };
        let frame = build(&header, length, cx.config.checksums, |mut space| {
            let (mut index, mut skip) = self.cursor;
            while !space.is_empty()
                && let Some(chunk) = self.chunks.get(index)
            {
                let bytes = &chunk.bytes[skip..];
                let n = bytes.len().min(space.len());
                let (now, rest) = space.split_at_mut(n);
                now.copy_from_slice(&bytes[..n]);
                space = rest;
                index += 1;
                skip = 0;
            }
        });
        self.advance_cursor(length);
        self.sent += length as u64;
        self.max_sent = self.max_sent.max(self.sent);
        if fin {
            self.fin_sent = true;
            self.fin_ever_sent = true;
        }
        cx.counters.bytes_to_guest += length as u64;
        self.acknowledged(cx.config);
        self.retime(cx.now, false);
        (Some(frame), self.fate())
    }

    /// A segment that holds nothing but the acknowledgement.
    pub(super) fn pure_ack(&mut self, cx: &mut Context<'_>) -> (Vec<u8>, Reaction) {
        let frame = build(&self.header(cx.config), 0, cx.config.checksums, |_| {});
        self.acknowledged(cx.config);
        (frame, self.fate())
    }

    /// The reset that ends it.
    pub(super) fn reset_frame(&self, config: &LinkConfig) -> Vec<u8> {
        let header = Header {
            seq: self
                .seq(self.max_sent)
                .wrapping_add(u32::from(self.fin_ever_sent)),
            reset: true,
            ..self.header(config)
        };
        build(&header, 0, config.checksums, |_| {})
    }

    fn header(&self, config: &LinkConfig) -> Header {
        Header {
            gateway_port: self.port,
            guest_port: self.guest_port,
            seq: self.seq(self.sent).wrapping_add(u32::from(self.fin_sent)),
            ack: (self.phase == Phase::Open).then(|| self.next_from_guest()),
            window: self.window_field(config),
            syn: None,
            fin: false,
            push: false,
            reset: false,
        }
    }

    fn seq(&self, offset: u64) -> u32 {
        self.iss.wrapping_add(1).wrapping_add(offset as u32)
    }

    /// The guest's next sequence number.
    fn next_from_guest(&self) -> u32 {
        self.irs
            .wrapping_add(1)
            .wrapping_add(self.received as u32)
            .wrapping_add(u32::from(self.fin_received))
    }

    /// Room for the guest's stream.
    fn window(&self, config: &LinkConfig) -> u64 {
        (self.taken + u64::from(window_of(config))).saturating_sub(self.received)
    }

    fn window_field(&self, config: &LinkConfig) -> u16 {
        (self.window(config) >> self.own_scale).min(0xffff) as u16
    }

    /// A segment with an acknowledgement was sent.
    fn acknowledged(&mut self, config: &LinkConfig) {
        let shown = u64::from(self.window_field(config)) << self.own_scale;
        self.advertised = self.received + shown;
        self.unacked = 0;
        self.ack_now = false;
        self.ack_at = None;
    }

    fn advance_cursor(&mut self, mut bytes: usize) {
        let (mut index, mut skip) = self.cursor;
        while let Some(chunk) = self.chunks.get(index) {
            let left = chunk.bytes.len() - skip;
            if bytes < left {
                skip += bytes;
                break;
            }
            bytes -= left;
            index += 1;
            skip = 0;
        }
        self.cursor = (index, skip);
    }

    /// Goes back to what is not acknowledged.
    fn rewind(&mut self) {
        self.sent = self.acked;
        self.fin_sent = self.fin_acked;
        self.cursor = (0, 0);
        self.advance_cursor((self.acked - self.base) as usize);
    }

    // Receiving.

    /// A segment of the guest (R9).
    pub(super) fn receive(&mut self, segment: &Segment<'_>, cx: &mut Context<'_>) -> Reaction {
        match self.phase {
            Phase::Waiting | Phase::New => Reaction::Refuse,
            Phase::SynSent => self.receive_answer(segment, cx),
            Phase::Open => self.receive_open(segment, cx),
        }
    }

    fn receive_answer(&mut self, segment: &Segment<'_>, cx: &mut Context<'_>) -> Reaction {
        let acknowledges = segment.ack == Some(self.seq(0));
        match segment.control {
            TcpControl::Rst if acknowledges => {
                cx.counters.resets_by_guest += 1;
                cx.events.push(FromGuest::Refused { conn: self.id });
                Reaction::Gone
            }
            // Of a connection before this one.
            TcpControl::Rst => Reaction::Nothing,
            TcpControl::Syn if acknowledges => {
                self.phase = Phase::Open;
                self.irs = segment.seq;
                // A window in a SYN is not scaled; scaling takes both sides (RFC 7323, 2.2).
                self.edge = u64::from(segment.window);
                if let Some(scale) = segment.scale {
                    self.guest_scale = scale.min(14);
                    self.own_scale = scale_of(cx.config);
                }
                self.mss = segment.mss.unwrap_or(DEFAULT_MSS).clamp(64, MSS);
                self.connect_by = None;
                self.hold_until = None;
                self.retransmit_at = None;
                self.tries = 0;
                self.ack_now = true;
                cx.events.push(FromGuest::Opened { conn: self.id });
                self.retime(cx.now, true);
                Reaction::Nothing
            }
            // RFC 9293, 3.10.7.3: not the answer to this SYN.
            _ => Reaction::Refuse,
        }
    }

    fn receive_open(&mut self, segment: &Segment<'_>, cx: &mut Context<'_>) -> Reaction {
        let ahead = segment.seq.wrapping_sub(self.next_from_guest()) as i32;
        match segment.control {
            TcpControl::Rst => {
                if ahead < 0 || ahead as u64 > self.window(cx.config) {
                    cx.counters.segments_dropped += 1;
                    return Reaction::Nothing;
                }
                cx.counters.resets_by_guest += 1;
                // Who has ended both ways does not care any more.
                if !(self.fin_received && self.finish.is_some()) {
                    cx.events.push(self.lost());
                }
                return Reaction::Gone;
            }
            TcpControl::Syn => return self.unwanted(cx),
            _ => {}
        }
        let Some(ack) = segment.ack else {
            cx.counters.segments_dropped += 1;
            return Reaction::Nothing;
        };
        let acked = i64::from(ack.wrapping_sub(self.seq(self.acked)) as i32);
        let sent = (self.max_sent - self.acked) as i64;
        if acked > sent + i64::from(self.fin_ever_sent) {
            return self.unwanted(cx);
        }
        if acked >= 0 {
            self.take_ack(acked as u64, sent as u64, segment.window, cx);
        }
        self.take_payload(ahead, segment, cx);
        self.fate()
    }

    /// Something that does not fit: the guest is told where we are.
    fn unwanted(&mut self, cx: &mut Context<'_>) -> Reaction {
        cx.counters.segments_dropped += 1;
        self.ack_now = true;
        Reaction::Nothing
    }

    fn take_ack(&mut self, acked: u64, sent: u64, window: u16, cx: &mut Context<'_>) {
        let bytes = acked.min(sent);
        let mut progress = bytes > 0;
        self.acked += bytes;
        while let Some(chunk) = self.chunks.front()
            && self.base + chunk.bytes.len() as u64 <= self.acked
        {
            self.base += chunk.bytes.len() as u64;
            self.chunks.pop_front();
            self.cursor.0 = self.cursor.0.saturating_sub(1);
        }
        if acked > sent && !self.fin_acked {
            self.fin_acked = true;
            self.fin_sent = true;
            progress = true;
        }
        if self.sent < self.acked {
            // It had got what was sent before we went back.
            self.rewind();
        }
        let old_edge = self.edge;
        self.edge = self.acked + (u64::from(window) << self.guest_scale);
        if progress {
            self.tries = 0;
            self.recovering = false;
        } else if self.edge > old_edge && self.sent > old_edge {
            // The window opens after a probe that was behind it, and that the guest has therefore dropped.
            self.recovering = false;
            self.rewind();
        } else if window == 0 {
            // Alive, and busy.
            self.tries = 0;
        }
        self.retime(cx.now, progress);
    }

    fn take_payload(&mut self, ahead: i32, segment: &Segment<'_>, cx: &mut Context<'_>) {
        let fin = segment.control == TcpControl::Fin;
        let length = segment.payload.len();
        if length == 0 && !fin && ahead == 0 {
            return;
        }
        let old = usize::try_from(-i64::from(ahead)).unwrap_or(usize::MAX);
        // `old` is huge for what comes too early. What is there already, or behind the end of the stream, is not taken.
        if self.fin_received || old > length || (old == length && !fin) {
            self.unwanted(cx);
            return;
        }
        let fresh = &segment.payload[old..];
        let fits = fresh.len().min(self.window(cx.config) as usize);
        if fits > 0 {
            self.received += fits as u64;
            cx.counters.bytes_from_guest += fits as u64;
            cx.events.push(FromGuest::Data {
                conn: self.id,
                bytes: fresh[..fits].to_vec(),
            });
            self.unacked = self.unacked.saturating_add(fits as u32);
            if self.unacked >= ACK_NOW_BYTES {
                self.ack_now = true;
            } else {
                self.ack_at.get_or_insert(cx.now + ACK_DELAY_NS);
            }
        }
        if fits < fresh.len() {
            self.unwanted(cx);
        } else if fin {
            self.fin_received = true;
            self.ack_now = true;
            cx.events.push(FromGuest::Shut { conn: self.id });
            self.watch_orphan(cx.now);
        }
    }

    // Time.

    /// A timer may have fired.
    pub(super) fn tick(&mut self, cx: &mut Context<'_>) -> Reaction {
        let due = |at: Option<u64>| at.is_some_and(|at| at <= cx.now);
        if due(self.connect_by) {
            cx.counters.timeouts += 1;
            cx.events.push(FromGuest::Refused { conn: self.id });
            return Reaction::Abort;
        }
        if due(self.orphan_at) {
            cx.counters.timeouts += 1;
            return Reaction::Abort;
        }
        if due(self.ack_at) {
            self.ack_at = None;
            self.ack_now = true;
        }
        if due(self.retransmit_at) {
            self.tries += 1;
            cx.counters.retransmissions += 1;
            if self.tries > MAX_TRIES {
                cx.counters.timeouts += 1;
                if !(self.fin_received && self.finish.is_some()) {
                    cx.events.push(self.lost());
                }
                return Reaction::Abort;
            }
            self.retransmit_at = Some(cx.now + self.timeout());
            if self.phase == Phase::Open {
                self.recovering = true;
                self.rewind();
            } else {
                self.syn_due = true;
            }
        }
        if due(self.hold_until) {
            self.hold_until = None;
            let waited = self.held().is_some();
            self.hold_over = true;
            if waited {
                return Reaction::HeldForNothing;
            }
        }
        Reaction::Nothing
    }

    fn timeout(&self) -> u64 {
        (RETRANSMIT_NS << self.tries.min(16)).min(MAX_RETRANSMIT_NS)
    }

    /// The timer runs while something is unacknowledged, or waits for the window.
    fn retime(&mut self, now: u64, restart: bool) {
        if self.phase != Phase::Open {
            return;
        }
        let flying = self.sent > self.acked || (self.fin_sent && !self.fin_acked);
        if !flying && self.sent == self.end {
            self.retransmit_at = None;
        } else if restart || self.retransmit_at.is_none() {
            self.retransmit_at = Some(now + self.timeout());
        }
    }

    fn watch_orphan(&mut self, now: u64) {
        if self.fin_received && self.finish.is_some() {
            self.orphan_at.get_or_insert(now + ORPHAN_TIMEOUT_NS);
        }
    }

    fn fate(&self) -> Reaction {
        // Both ends are acknowledged. TIME-WAIT is not kept: nothing of this connection is still on its way.
        if self.fin_acked && self.fin_received && !self.ack_now && self.unacked == 0 {
            Reaction::Gone
        } else {
            Reaction::Nothing
        }
    }

    // Saving.

    /// Moves its times.
    pub(super) fn shift(&mut self, from: u64, to: u64) {
        for at in [
            &mut self.retransmit_at,
            &mut self.ack_at,
            &mut self.connect_by,
            &mut self.hold_until,
            &mut self.orphan_at,
        ]
        .into_iter()
        .flatten()
        {
            *at = to.saturating_add(at.saturating_sub(from));
        }
    }

    /// Rebuilds what is not saved. False: what was saved cannot be.
    pub(super) fn rebuild(&mut self) -> bool {
        let mut length = 0_u64;
        let mut number = self.opened;
        for chunk in &self.chunks {
            let ordered = chunk.number > number;
            number = chunk.number;
            length += chunk.bytes.len() as u64;
            if !ordered || chunk.bytes.is_empty() {
                return false;
            }
        }
        let first = self
            .chunks
            .front()
            .map_or(0, |chunk| chunk.bytes.len() as u64);
        let consistent = self.base <= self.acked
            && (self.acked == self.base || self.acked - self.base < first)
            && self.acked <= self.sent
            && self.sent <= self.max_sent
            && self.max_sent <= self.end
            && self.base.checked_add(length) == Some(self.end)
            && self.end - self.acked <= MAX_UNSENT as u64
            && self.finish.is_none_or(|finish| finish.number > number)
            && self.taken <= self.received
            && self.guest_scale <= 14
            && self.own_scale <= 14
            && self.mss >= 64
            && self.mss <= MSS;
        if consistent {
            self.lists = Lists::default();
            self.cursor = (0, 0);
            self.advance_cursor((self.sent - self.base) as usize);
        }
        consistent
    }
}

/// The receive window, within its bounds.
fn window_of(config: &LinkConfig) -> u32 {
    config.receive_window.clamp(4096, MAX_RECEIVE_WINDOW)
}

/// The smallest window scale with which the whole window can be told.
fn scale_of(config: &LinkConfig) -> u8 {
    (0..14)
        .find(|scale| window_of(config) >> scale <= 0xffff)
        .unwrap_or(14)
}
