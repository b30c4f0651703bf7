//! The TCP/IP stack: packets in, packets out, timers. Programs' writes only fill buffers and mark flows; packets
//! are built in one go before a boundary ([`Stack::flush`]), so many small writes become one packet and
//! acknowledgements ride on replies.

use super::demux::{FlowId, FlowKey, FlowTable};
use super::flow::{Change, Flow, Owner, TCP_RX_BUFFER, TCP_TX_BUFFER, instant};
use super::link::{Link, Output, Port};
use super::listener::{Listeners, Ports};
use super::sockaddr::{ANY, Ip, is_loopback, is_multicast};
use super::udp::Datagrams;
use crate::wait::WaitQueue;
use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::tcp::State;
use smoltcp::wire::{
    HardwareAddress, IpAddress, IpCidr, IpListenEndpoint, IpProtocol, Ipv4Address, Ipv4Packet,
};

/// Most TCP connections at a time (R10). Beyond, SYNs are dropped and `connect` fails with `EADDRNOTAVAIL`.
pub const CONNECTIONS_MAX: usize = 4096;
/// Buffers of connections take at most this part of the guest's memory (R10), which lowers [`CONNECTIONS_MAX`] in small guests:
/// clients must not be able to use up the kernel's memory.
pub const BUFFERS_PART_OF_MEMORY: u64 = 3;
/// Most connections that the program has closed but that are not done yet (R10); beyond, a closed one is reset.
pub const ORPHANS_MAX: usize = 1024;
/// Most connections in TIME-WAIT (R10); beyond, the oldest ends early.
pub const TIME_WAIT_MAX: usize = 256;
/// Flows kept with their buffers for the next connection, so that no memory is touched for the first time.
const POOL_MAX: usize = 512;
/// Least connections, however small the guest is.
const CONNECTIONS_MIN: usize = 64;
/// Loopback packets processed in one flush; the rest waits for the next.
const LOOPBACK_PER_FLUSH: usize = 16_384;

/// What the stack counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// IP packets received.
    pub received: u64,
    /// Packets dropped because they are malformed or not for us (R9).
    pub malformed: u64,
    /// SYNs dropped because a backlog or the connection table was full (R10).
    pub syn_dropped: u64,
    /// Datagrams dropped because a socket's queue was full (R10).
    pub datagrams_dropped: u64,
}

/// All of TCP and UDP.
pub struct Stack {
    /// Our address on the link.
    pub address: Ip,
    /// Most connections in this guest; see [`CONNECTIONS_MAX`].
    pub connections_max: usize,
    /// Connections.
    pub flows: FlowTable,
    /// Listening sockets.
    pub listeners: Listeners,
    /// TCP ports.
    pub tcp_ports: Ports,
    /// UDP.
    pub datagrams: Datagrams,
    /// Where packets leave.
    pub output: Output,
    /// What happened.
    pub counters: Counters,
    /// Queues to wake when the stack is not borrowed any more.
    pub wakes: Vec<Rc<WaitQueue>>,
    interfaces: [Interface; 2],
    /// For packets that belong to no flow: smoltcp then answers with RST, or to a ping.
    nothing: SocketSet<'static>,
    dirty: VecDeque<FlowId>,
    timers: BTreeSet<(u64, FlowId)>,
    time_wait: VecDeque<FlowId>,
    orphans: usize,
    // Boxed as in the table, so that a flow never moves.
    #[expect(clippy::vec_box)]
    pool: Vec<Box<Flow>>,
}

fn interface(output: &mut Output, loopback: bool, address: Ip, seed: u64) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut port = Port {
        received: None,
        output,
        loopback,
    };
    let mut interface = Interface::new(config, &mut port, instant(0));
    interface.update_ip_addrs(|list| {
        // smoltcp's list has room for two; a prefix of 32 has no broadcast address.
        let _ = list.push(IpCidr::new(
            IpAddress::Ipv4(Ipv4Address::from_bits(address)),
            32,
        ));
    });
    // Any address in 127.0.0.0/8 is ours; what is not ours never gets as far as smoltcp.
    interface.set_any_ip(loopback);
    interface
}

impl Stack {
    /// A stack with this address; `random` gives seeds.
    pub fn new(address: Ip, link: Box<dyn Link>, mut random: impl FnMut() -> u64) -> Self {
        let mut output = Output::new(link);
        let interfaces = [
            interface(&mut output, false, address, random()),
            interface(&mut output, true, address, random()),
        ];
        let mut tcp_ports = Ports::default();
        tcp_ports.next_ephemeral = random() as u16;
        let mut datagrams = Datagrams::default();
        datagrams.ports.next_ephemeral = random() as u16;
        Self {
            address,
            connections_max: CONNECTIONS_MAX,
            flows: FlowTable::new(random()),
            listeners: Listeners::default(),
            tcp_ports,
            datagrams,
            output,
            counters: Counters::default(),
            wakes: Vec::new(),
            interfaces,
            nothing: SocketSet::new(Vec::new()),
            dirty: VecDeque::new(),
            timers: BTreeSet::new(),
            time_wait: VecDeque::new(),
            orphans: 0,
            pool: Vec::new(),
        }
    }

    /// Lowers the bound on connections for a guest with this much memory.
    pub fn limit_to_memory(&mut self, bytes: u64) {
        let each = (TCP_RX_BUFFER + TCP_TX_BUFFER) as u64;
        let most = (bytes / BUFFERS_PART_OF_MEMORY / each) as usize;
        self.connections_max = most.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX);
    }

    /// Whether an address is this guest's own.
    pub fn is_local(&self, ip: Ip) -> bool {
        ip == self.address || is_loopback(ip)
    }

    /// Address that packets to `remote` come from.
    pub fn source_for(&self, remote: Ip) -> Ip {
        if is_loopback(remote) {
            super::LOOPBACK_IP
        } else {
            self.address
        }
    }

    // --- packets in ---

    /// Processes an IPv4 packet (R9: hostile).
    pub fn receive(&mut self, packet: &[u8], loopback: bool, now_ns: u64) {
        self.counters.received += 1;
        let Ok(header) = Ipv4Packet::new_checked(packet) else {
            self.counters.malformed += 1;
            return;
        };
        let (source, destination) = (header.src_addr().to_bits(), header.dst_addr().to_bits());
        // From outside come only packets to our address, from somebody else's. Fragments do not fit a link with one MTU.
        let acceptable = header.version() == 4
            && !header.more_frags()
            && header.frag_offset() == 0
            && source != ANY
            && !is_multicast(source)
            && (loopback || (destination == self.address && !self.is_local(source)));
        if !acceptable {
            self.counters.malformed += 1;
            return;
        }
        let packet = &packet[..usize::from(header.total_len())];
        let payload = header.payload();
        match header.next_header() {
            IpProtocol::Tcp => {
                self.receive_tcp(packet, payload, source, destination, loopback, now_ns)
            }
            IpProtocol::Udp => {
                let delivered = self
                    .datagrams
                    .receive(payload, source, destination, loopback);
                match delivered {
                    super::udp::Delivery::Queued(wait) => self.wakes.push(wait),
                    super::udp::Delivery::Full => self.counters.datagrams_dropped += 1,
                    super::udp::Delivery::Malformed => self.counters.malformed += 1,
                    super::udp::Delivery::NoSocket => self.refuse_datagram(packet, loopback),
                }
            }
            IpProtocol::Icmp => {
                if let Some(wait) = self.datagrams.receive_icmp(payload, loopback) {
                    self.wakes.push(wait);
                }
                self.stray(packet, loopback, now_ns);
            }
            _ => self.stray(packet, loopback, now_ns),
        }
    }

    /// Sends an ICMP "port unreachable".
    fn refuse_datagram(&mut self, packet: &[u8], loopback: bool) {
        super::udp::refuse(packet, &mut self.output, loopback);
    }

    fn stray(&mut self, packet: &[u8], loopback: bool, now_ns: u64) {
        let mut port = Port {
            received: Some(packet),
            output: &mut self.output,
            loopback,
        };
        let interface = &mut self.interfaces[usize::from(loopback)];
        interface.poll_ingress_single(instant(now_ns), &mut port, &mut self.nothing);
    }

    fn receive_tcp(
        &mut self,
        packet: &[u8],
        segment: &[u8],
        source: Ip,
        destination: Ip,
        loopback: bool,
        now_ns: u64,
    ) {
        let &[s0, s1, d0, d1, _, _, _, _, _, _, _, _, _, flags, ..] = segment else {
            self.counters.malformed += 1;
            return;
        };
        let key = FlowKey {
            local: destination,
            remote: source,
            local_port: u16::from_be_bytes([d0, d1]),
            remote_port: u16::from_be_bytes([s0, s1]),
        };
        // SYN without FIN, RST and ACK.
        let opening = flags & 0x17 == 0x02;
        let mut id = self.flows.find(key);
        if opening
            && let Some(old) = id
            && self
                .flows
                .get(old)
                .is_some_and(|f| f.state() == State::TimeWait && matches!(f.owner, Owner::Orphan))
        {
            // A new connection from the same port ends TIME-WAIT early, as in Linux.
            self.recycle(old);
            id = None;
        }
        if id.is_none() && opening {
            match self.admit(key, loopback, now_ns) {
                Ok(new) => id = new,
                Err(()) => {
                    self.counters.syn_dropped += 1;
                    return;
                }
            }
        }
        let Some(id) = id else {
            self.stray(packet, loopback, now_ns);
            return;
        };
        let Self {
            flows,
            interfaces,
            output,
            ..
        } = self;
        let Some(flow) = flows.get_mut(id) else {
            return;
        };
        let mut port = Port {
            received: Some(packet),
            output,
            loopback,
        };
        let change = flow.input(&mut interfaces[usize::from(loopback)], &mut port, now_ns);
        self.mark(id);
        self.react(id, change);
    }

    /// A half-open flow for a SYN; none if nobody listens there. `Err` if it is to be dropped silently.
    fn admit(&mut self, key: FlowKey, loopback: bool, now_ns: u64) -> Result<Option<FlowId>, ()> {
        let Some(id) = self.listeners.find(key.local, key.local_port, key.hash(0)) else {
            return Ok(None);
        };
        if key.remote_port == 0 || is_multicast(key.local) {
            return Err(());
        }
        if self.flows.len() >= self.connections_max {
            return Err(());
        }
        let listener = self.listeners.get_mut(id).ok_or(())?;
        if !listener.has_room() {
            return Err(());
        }
        let options = listener.options.clone();
        let flow = self
            .new_flow(key, loopback, Owner::HalfOpen(id), now_ns)
            .ok_or(())?;
        if let Some(listener) = self.listeners.get_mut(id) {
            listener.half_open += 1;
        }
        let Some(new) = self.flows.get_mut(flow) else {
            return Err(());
        };
        new.apply(&options);
        let endpoint = IpListenEndpoint {
            addr: Some(IpAddress::Ipv4(Ipv4Address::from_bits(key.local))),
            port: key.local_port,
        };
        // The port is not 0 (somebody listens on it), and the socket was just closed.
        let _ = new.socket_mut().listen(endpoint);
        new.seen = State::Listen;
        Ok(Some(flow))
    }

    /// Adds a flow, unless there is no memory for it; the caller has checked [`Stack::connections_max`].
    pub fn new_flow(
        &mut self,
        key: FlowKey,
        loopback: bool,
        owner: Owner,
        now_ns: u64,
    ) -> Option<FlowId> {
        let mut flow = match self.pool.pop() {
            Some(flow) => flow,
            None => Box::new(Flow::for_key(key)?),
        };
        flow.reuse(key, loopback, owner, now_ns);
        Some(self.flows.insert(flow))
    }

    /// A smoltcp context, for `connect`.
    pub fn open(&mut self, id: FlowId, loopback: bool) -> bool {
        let Some(flow) = self.flows.get_mut(id) else {
            return false;
        };
        let key = flow.key;
        let at = |ip, port| (IpAddress::Ipv4(Ipv4Address::from_bits(ip)), port);
        let context = self.interfaces[usize::from(loopback)].context();
        let done = flow
            .socket_mut()
            .connect(
                context,
                at(key.remote, key.remote_port),
                at(key.local, key.local_port),
            )
            .is_ok();
        flow.seen = flow.state();
        done
    }

    // --- consequences ---

    /// Notes that a flow may have something to send.
    pub fn mark(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id)
            && !flow.dirty
        {
            flow.dirty = true;
            self.dirty.push_back(id);
        }
    }

    fn react(&mut self, id: FlowId, change: Change) {
        if change == Change::default() {
            return;
        }
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        if change.opened
            && let Owner::HalfOpen(listener) = flow.owner
        {
            flow.owner = Owner::Accept(listener);
            if let Some(listener) = self.listeners.get_mut(listener) {
                listener.half_open -= 1;
                listener.ready.push_back(id);
                self.wakes.push(listener.wait.clone());
            }
        }
        let orphan = match &flow.owner {
            Owner::Socket(wait) => {
                if change.wake {
                    self.wakes.push(wait.clone());
                }
                false
            }
            Owner::Orphan => true,
            Owner::HalfOpen(listener) => {
                let listener = *listener;
                if change.closed {
                    if let Some(listener) = self.listeners.get_mut(listener) {
                        listener.half_open -= 1;
                    }
                    self.recycle(id);
                }
                return;
            }
            Owner::Accept(_) => false,
        };
        if orphan && change.closed {
            self.recycle(id);
        } else if orphan && change.time_wait {
            self.enter_time_wait(id);
        }
    }

    fn enter_time_wait(&mut self, id: FlowId) {
        self.time_wait.push_back(id);
        while self.time_wait.len() > TIME_WAIT_MAX {
            if let Some(oldest) = self.time_wait.pop_front() {
                self.recycle(oldest);
            }
        }
    }

    /// Forgets a flow and keeps its memory for the next.
    pub fn recycle(&mut self, id: FlowId) {
        let Some(mut flow) = self.flows.remove(id) else {
            return;
        };
        if let Some(at) = flow.armed_ns.take() {
            self.timers.remove(&(at, id));
        }
        if matches!(flow.owner, Owner::Orphan) {
            self.orphans -= 1;
        }
        if flow.time_wait_ns.is_some() {
            self.time_wait.retain(|i| *i != id);
        }
        if let Owner::Socket(wait) = core::mem::replace(&mut flow.owner, Owner::Orphan) {
            // Dropped by the caller, when the stack is not borrowed: watchers may hold files.
            self.wakes.push(wait);
        }
        if self.pool.len() < POOL_MAX {
            self.pool.push(flow);
        }
    }

    /// The program is done with a flow: `reset` at once, or let it finish in the background until `until_ns`.
    pub fn abandon(&mut self, id: FlowId, reset: bool, until_ns: u64) {
        let crowded = self.orphans >= ORPHANS_MAX;
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let old = core::mem::replace(&mut flow.owner, Owner::Orphan);
        if let Owner::Socket(wait) = old {
            self.wakes.push(wait);
        }
        self.orphans += 1;
        flow.orphan_until_ns = until_ns;
        let unread = flow.socket().recv_queue() > 0;
        if reset || unread || crowded {
            flow.socket_mut().abort();
        } else {
            flow.socket_mut().close();
        }
        let gone = flow.state() == State::Closed && flow.socket().remote_endpoint().is_none();
        let waits = flow.state() == State::TimeWait;
        flow.seen = flow.state();
        if gone {
            self.recycle(id);
        } else {
            if waits {
                self.enter_time_wait(id);
            }
            self.mark(id);
        }
    }

    // --- packets out ---

    /// Builds all packets that are due, and delivers those on the loopback. False if the transmit ring is full: then
    /// a boundary makes room, and flushing goes on.
    pub fn flush(&mut self, now_ns: u64) -> bool {
        let mut budget = LOOPBACK_PER_FLUSH;
        loop {
            if !self.output.unspill() || !self.flush_dirty(now_ns) {
                return false;
            }
            while budget > 0 {
                let Some(packet) = self.output.pop_loopback() else {
                    break;
                };
                self.receive(&packet, true, now_ns);
                self.output.recycle(packet);
                budget -= 1;
            }
            if self.dirty.is_empty() || budget == 0 {
                return true;
            }
        }
    }

    /// Builds and delivers what is due on the loopback only: what a program sends to itself arrives at once, while packets
    /// to the outside still gather.
    pub fn flush_loopback(&mut self, now_ns: u64) {
        let mut budget = LOOPBACK_PER_FLUSH;
        loop {
            for _ in 0..self.dirty.len() {
                let Some(id) = self.dirty.pop_front() else {
                    break;
                };
                match self.flows.get(id) {
                    Some(flow) if flow.dirty && flow.loopback => {
                        self.flush_flow(id, now_ns);
                    }
                    Some(flow) if flow.dirty => self.dirty.push_back(id),
                    _ => {}
                }
            }
            if !self.output.has_loopback() || budget == 0 {
                return;
            }
            while budget > 0 {
                let Some(packet) = self.output.pop_loopback() else {
                    break;
                };
                self.receive(&packet, true, now_ns);
                self.output.recycle(packet);
                budget -= 1;
            }
        }
    }

    fn flush_dirty(&mut self, now_ns: u64) -> bool {
        for _ in 0..self.dirty.len() {
            let Some(id) = self.dirty.pop_front() else {
                break;
            };
            if self.flows.get(id).is_some_and(|flow| flow.dirty) && !self.flush_flow(id, now_ns) {
                return false;
            }
        }
        true
    }

    /// Builds one flow's packets. False if there was no room outside.
    pub fn flush_flow(&mut self, id: FlowId, now_ns: u64) -> bool {
        let Self {
            flows,
            interfaces,
            output,
            timers,
            ..
        } = self;
        let Some(flow) = flows.get_mut(id) else {
            return true;
        };
        flow.dirty = false;
        let loopback = flow.loopback;
        let interface = &mut interfaces[usize::from(loopback)];
        let mut port = Port {
            received: None,
            output,
            loopback,
        };
        let (change, complete) = flow.output(interface, &mut port, now_ns);
        if complete {
            // Lazily: a timer that is armed for earlier stays, and looks again when it fires.
            if let Some(at) = flow.deadline(interface, now_ns)
                && flow.armed_ns.is_none_or(|armed| armed > at)
            {
                if let Some(armed) = flow.armed_ns.replace(at) {
                    timers.remove(&(armed, id));
                }
                timers.insert((at, id));
            }
        } else {
            self.mark(id);
        }
        self.react(id, change);
        complete || loopback
    }

    /// Looks at the flows whose time has come.
    pub fn run_timers(&mut self, now_ns: u64) {
        while let Some(&(at, id)) = self.timers.first()
            && at <= now_ns
        {
            self.timers.pop_first();
            if let Some(flow) = self.flows.get_mut(id) {
                flow.armed_ns = None;
            }
            self.mark(id);
        }
    }

    /// When [`Stack::run_timers`] has something to do; `now_ns` if there is something to flush.
    pub fn next_deadline_ns(&self, now_ns: u64) -> Option<u64> {
        if !self.dirty.is_empty() || self.output.has_loopback() {
            return Some(now_ns);
        }
        self.timers.first().map(|(at, _)| *at)
    }

    /// (connections, of these closed by the program, in TIME-WAIT)
    pub fn connections(&self) -> (usize, usize, usize) {
        (self.flows.len(), self.orphans, self.time_wait.len())
    }
}
