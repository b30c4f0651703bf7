//! The gateway's thread: one epoll loop over listeners, client sockets and a wake-up, and one pass ("turn") over
//! everything that became ready. All frames of a turn reach the ingress under one lock, with one notification.

use std::collections::VecDeque;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_manager::EventSet;
use smoltcp::time::{Duration, Instant};

use super::flow::{Flow, Next, Tick};
use super::link::{self, Dropped, Incoming};
use super::stack::Stack;
use super::udp::{SWEEP_INTERVAL, Udp};
use super::watch::{Accepted, Listener, Ready, Watch};
use super::{GatewayConfig, GatewayError, GatewayStats, Notify, Shared};

/// Connections accepted from one listener in one turn (R10), so that a flood does not starve those that exist.
const ACCEPT_BURST: usize = 64;
/// How often the timers of connections with something in flight are looked at. smoltcp's shortest is 1 s.
const TICK: Duration = Duration::from_millis(100);
/// Wait before the next attempt when the process has no descriptor left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Gateway ports for connections are handed out round robin from here to 65535.
pub(super) const FIRST_PORT: u16 = 1024;

/// State of the gateway's thread.
pub(super) struct EventLoop {
    watch: Watch,
    shared: Arc<Shared>,
    notify: Notify,
    max_connections: usize,
    start: std::time::Instant,
    stack: Stack,
    listeners: Vec<Listener<Instant>>,
    udp: Udp,
    flows: Vec<Option<Box<Flow>>>,
    free: Vec<u32>,
    live: usize,
    /// Slot + 1 of the connection at each gateway port, 0 for none: finds a frame's connection in one step.
    by_port: Vec<u32>,
    next_port: u16,
    /// Connections that need a turn.
    dirty: Vec<u32>,
    /// Connections that need a turn as soon as the ingress has room.
    starved: Vec<u32>,
    /// Connections with a timer running.
    armed: Vec<u32>,
    /// Delayed acknowledgements in the order of their time; at most one entry per connection.
    acks: VecDeque<(Instant, u32)>,
    next_tick: Option<Instant>,
    next_sweep: Option<Instant>,
    inbox: Vec<Vec<u8>>,
    stats: GatewayStats,
}

/// Counts a panic in the handling of one connection. smoltcp asserts its invariants, and the guest is hostile (R9):
/// a panic ends that connection and nothing else.
fn contained<R>(faults: &mut u64, work: impl FnOnce() -> R) -> Option<R> {
    // What the closure borrows is either dropped after a panic (the connection) or has no invariant that a panic
    // could break (counters, the list of frames, the interface).
    let result = catch_unwind(AssertUnwindSafe(work));
    if result.is_err() {
        *faults += 1;
    }
    result.ok()
}

impl EventLoop {
    pub(super) fn new(
        shared: Arc<Shared>,
        notify: Notify,
        listeners: Vec<(TcpListener, u16)>,
        udp: Udp,
        config: &GatewayConfig,
        seed: u64,
    ) -> Result<EventLoop, GatewayError> {
        let listeners: Vec<_> = listeners.into_iter().map(Listener::new).collect();
        let watch = Watch::new(&shared.waker, &listeners, udp.sockets())?;
        Ok(EventLoop {
            watch,
            shared,
            notify,
            max_connections: config.max_connections,
            start: std::time::Instant::now(),
            stack: Stack::gateway(config.checksums, seed, Instant::ZERO),
            listeners,
            udp,
            flows: Vec::new(),
            free: Vec::new(),
            live: 0,
            by_port: vec![0; 1 << 16],
            next_port: config.first_port.max(FIRST_PORT),
            dirty: Vec::new(),
            starved: Vec::new(),
            armed: Vec::new(),
            acks: VecDeque::new(),
            next_tick: None,
            next_sweep: None,
            inbox: Vec::new(),
            stats: GatewayStats {
                next_port: config.first_port.max(FIRST_PORT),
                ..GatewayStats::default()
            },
        })
    }

    /// Runs until [`Shared::stop`] is set. What was delivered before is still passed on to the host sockets,
    /// as far as they take it at once.
    pub(super) fn run(mut self) {
        loop {
            let timeout = self.timeout_ms();
            let timeout = if timeout != 0 && self.shared.waker.prepare_sleep() {
                timeout
            } else {
                0
            };
            let waited = self.watch.wait(timeout);
            self.shared.waker.awake();
            if let Err(error) = waited {
                // Only a programming error gets here (a bad descriptor or argument): without epoll there is no gateway.
                tracing::error!(%error, "the gateway stops: epoll failed");
                return;
            }
            let stop = self.shared.stop.load(Ordering::Acquire);
            self.turn();
            if stop {
                return;
            }
        }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.start.elapsed().as_micros() as i64)
    }

    fn turn(&mut self) {
        let now = self.now();
        self.stack.set_room(self.shared.ingress.room());
        self.take_delivered(now);
        self.take_events();
        self.timers(now);
        self.accept(now);
        self.udp.turn(&mut self.stack, now, &mut self.stats);
        if self.next_sweep.is_none() && self.udp.has_clients() {
            self.next_sweep = Some(now + SWEEP_INTERVAL);
        }
        if self.stack.has_room() {
            let starved = std::mem::take(&mut self.starved);
            for slot in starved {
                if let Some(flow) = self.flows[slot as usize].as_mut() {
                    flow.starved = false;
                }
                self.mark(slot);
            }
        }
        self.run_flows(now);
        self.publish_frames();
    }

    fn take_delivered(&mut self, now: Instant) {
        let mut inbox = std::mem::take(&mut self.inbox);
        self.shared.mailbox.swap(&mut inbox);
        self.stats.frames_from_guest += inbox.len() as u64;
        for frame in inbox.drain(..) {
            if let Err(dropped) = self.guest_frame(frame, now) {
                match dropped {
                    Dropped::Malformed => self.stats.frames_malformed += 1,
                    Dropped::Ignored => self.stats.frames_ignored += 1,
                }
            }
        }
        self.inbox = inbox;
    }

    fn guest_frame(&mut self, frame: Vec<u8>, now: Instant) -> Result<(), Dropped> {
        let answer = match link::classify(&frame)? {
            Incoming::Tcp {
                guest_port,
                gateway_port,
                opens,
            } => {
                let slot = self.by_port[usize::from(gateway_port)].wrapping_sub(1);
                let flow = self.flows.get_mut(slot as usize).and_then(Option::as_mut);
                match flow.filter(|flow| flow.guest_port == guest_port) {
                    Some(flow) => {
                        let stack = &mut self.stack;
                        let faults = &mut self.stats.faults;
                        match contained(faults, || flow.receive(stack, frame, now)) {
                            Some(()) => self.mark(slot),
                            None => self.remove(slot, true),
                        }
                        return Ok(());
                    }
                    None => {
                        self.stats.outgoing_refused += u64::from(opens);
                        link::refusal(&frame)?
                    }
                }
            }
            Incoming::Udp {
                guest_port,
                gateway_port,
                payload,
            } => {
                let stats = &mut self.stats;
                if self
                    .udp
                    .guest_datagram(guest_port, gateway_port, payload, now, stats)
                {
                    return Ok(());
                }
                self.stats.outgoing_refused += 1;
                link::refusal(&frame)?
            }
            Incoming::Foreign => {
                self.stats.outgoing_refused += 1;
                link::refusal(&frame)?
            }
            Incoming::Arp(request) => link::arp_reply(request)?,
            Incoming::Icmp => link::icmp_reply(&frame)?,
        };
        if let Some(answer) = answer {
            self.stack.send_raw(answer);
        }
        Ok(())
    }

    fn take_events(&mut self) {
        let events = self.watch.take();
        for (ready, set) in &events {
            match *ready {
                Ready::Listener(index) => {
                    if let Some(listener) = self.listeners.get_mut(index) {
                        listener.set_ready();
                    }
                }
                Ready::Udp(index) => self.udp.set_readable(index),
                Ready::Woken => {}
                Ready::Client(slot) => {
                    // A slot that has been given to another connection meanwhile: that one gets a hint too many.
                    if let Some(flow) = self.flows.get_mut(slot as usize).and_then(Option::as_mut) {
                        flow.host_event(
                            set.contains(EventSet::IN),
                            set.contains(EventSet::OUT),
                            set.intersects(EventSet::READ_HANG_UP | EventSet::HANG_UP),
                            set.contains(EventSet::ERROR),
                        );
                        self.mark(slot);
                    }
                }
            }
        }
        self.watch.give_back(events);
    }

    fn timers(&mut self, now: Instant) {
        while let Some(&(at, slot)) = self.acks.front().filter(|(at, _)| *at <= now) {
            debug_assert!(at <= now);
            self.acks.pop_front();
            let Some(flow) = self.flows[slot as usize].as_mut() else {
                continue;
            };
            flow.ack_queued = false;
            match flow.ack_at {
                Some(at) if at <= now => {
                    flow.ack_now();
                    self.mark(slot);
                }
                Some(at) => {
                    // The acknowledgement that this entry was for went with data; there is a later one.
                    flow.ack_queued = true;
                    self.acks.push_back((at, slot));
                }
                None => {}
            }
        }
        if self.next_tick.is_some_and(|at| at <= now) {
            self.tick(now);
        }
        if self.next_sweep.is_some_and(|at| at <= now) {
            self.udp.sweep(now, &mut self.stats);
            self.next_sweep = self.udp.has_clients().then(|| now + SWEEP_INTERVAL);
        }
    }

    fn tick(&mut self, now: Instant) {
        let mut index = 0;
        while let Some(&slot) = self.armed.get(index) {
            let Some(flow) = self.flows[slot as usize].as_mut() else {
                self.armed.swap_remove(index);
                continue;
            };
            let stack = &mut self.stack;
            let mut faults = 0;
            let stats = &mut self.stats;
            let tick = contained(&mut faults, || flow.tick(stack, now, stats));
            self.stats.faults += faults;
            match tick {
                Some(Tick::Disarm) => {
                    flow.armed = false;
                    self.armed.swap_remove(index);
                }
                Some(Tick::Wait) => index += 1,
                Some(Tick::Due) => {
                    self.mark(slot);
                    index += 1;
                }
                None => {
                    self.armed.swap_remove(index);
                    self.remove(slot, true);
                }
            }
        }
        self.next_tick = (!self.armed.is_empty()).then(|| now + TICK);
    }

    fn accept(&mut self, now: Instant) {
        for index in 0..self.listeners.len() {
            self.listeners[index].tick(now);
            for _ in 0..ACCEPT_BURST {
                if self.live >= self.max_connections {
                    // The listener's backlog waits until a connection ends (R10).
                    break;
                }
                let listener = &mut self.listeners[index];
                let guest_port = listener.guest_port;
                match listener.accept(now + ACCEPT_RETRY) {
                    Accepted::Client(socket) => self.open(socket, guest_port, now),
                    Accepted::Aborted => {}
                    Accepted::Nobody => break,
                    Accepted::Failed => self.stats.accept_failures += 1,
                }
            }
        }
    }

    fn open(&mut self, host: TcpStream, guest_port: u16, now: Instant) {
        // There are more ports than connections, so this ends.
        while self.by_port[usize::from(self.next_port)] != 0 {
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
        }
        let gateway_port = self.next_port;
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
        self.stats.next_port = self.next_port;
        let Some(flow) = Flow::connect(&mut self.stack, host, gateway_port, guest_port, now) else {
            return;
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.flows.push(None);
            self.flows.len() as u32 - 1
        });
        if !self.watch.add(raw(&flow), slot) {
            self.stats.accept_failures += 1;
            self.free.push(slot);
            return;
        }
        self.flows[slot as usize] = Some(Box::new(flow));
        self.by_port[usize::from(gateway_port)] = slot + 1;
        self.live += 1;
        self.stats.connections_total += 1;
        self.mark(slot);
    }

    /// Gives the connection a turn in this pass.
    fn mark(&mut self, slot: u32) {
        if let Some(flow) = self.flows[slot as usize]
            .as_mut()
            .filter(|flow| !flow.queued)
        {
            flow.queued = true;
            self.dirty.push(slot);
        }
    }

    fn run_flows(&mut self, now: Instant) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for slot in dirty.drain(..) {
            let Some(flow) = self.flows[slot as usize].as_mut() else {
                continue;
            };
            flow.queued = false;
            let stack = &mut self.stack;
            let mut faults = 0;
            let stats = &mut self.stats;
            let next = contained(&mut faults, || flow.turn(stack, now, stats));
            self.stats.faults += faults;
            match next {
                Some(Next::Idle) => {}
                Some(Next::Sent) if flow.armed => {}
                Some(Next::Sent) => {
                    flow.armed = true;
                    self.armed.push(slot);
                    self.next_tick.get_or_insert(now + TICK);
                }
                Some(Next::AckAt(_)) if flow.ack_queued => {}
                Some(Next::AckAt(at)) => {
                    flow.ack_queued = true;
                    self.acks.push_back((at, slot));
                }
                Some(Next::Starved) if flow.starved => {}
                Some(Next::Starved) => {
                    flow.starved = true;
                    self.starved.push(slot);
                }
                Some(Next::Remove) => self.remove(slot, false),
                None => self.remove(slot, true),
            }
        }
        self.dirty = dirty;
    }

    fn remove(&mut self, slot: u32, reset: bool) {
        let Some(flow) = self.flows[slot as usize].take() else {
            return;
        };
        if reset {
            flow.reset_host();
        }
        self.by_port[usize::from(flow.gateway_port)] = 0;
        self.free.push(slot);
        self.live -= 1;
        self.watch.remove(raw(&flow));
    }

    /// Hands the frames of this turn to the ingress and the counters to whoever asks for them.
    fn publish_frames(&mut self) {
        let (out, bytes, dropped) = self.stack.take_out();
        self.stats.ingress_dropped += dropped;
        self.stats.frames_to_guest += out.len() as u64;
        self.stats.connections = self.live as u64;
        self.stats.turns += 1;
        let was_empty = !out.is_empty() && self.shared.ingress.push(out, bytes);
        self.shared.store_stats(&self.stats);
        if was_empty {
            (self.notify)();
        }
    }

    /// How long there is nothing to do; 0 if there is, -1 for ever.
    fn timeout_ms(&mut self) -> i32 {
        let may_accept = self.live < self.max_connections;
        if !self.dirty.is_empty() || may_accept && self.listeners.iter().any(Listener::may_accept) {
            return 0;
        }
        let held_back = !self.starved.is_empty() || self.udp.is_readable();
        if held_back && !self.shared.ingress.throttle() {
            return 0;
        }
        let retries = self.listeners.iter().filter_map(Listener::retry_at);
        let ack = self.acks.front().map(|&(at, _)| at);
        let next = [ack, self.next_tick, self.next_sweep]
            .into_iter()
            .flatten()
            .chain(retries)
            .min();
        let Some(at) = next else { return -1 };
        let now = self.now();
        if at <= now {
            return 0;
        }
        i32::try_from((at - now).total_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    }
}

fn raw(flow: &Flow) -> RawFd {
    flow.host().as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_contained_and_counted() {
        let mut faults = 0;
        assert_eq!(contained(&mut faults, || 7), Some(7));
        assert_eq!(
            contained(&mut faults, || -> u8 { panic!("expected in this test") }),
            None
        );
        assert_eq!(faults, 1);
    }
}
