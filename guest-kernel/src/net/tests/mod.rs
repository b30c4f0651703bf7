//! Tests of sockets through the system calls, against a second stack at the gateway's address.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod hostile;
mod loopback;

mod speed;
mod tcp;
mod tcp_limits;
mod udp;
mod unix;

use super::demux::{FlowId, FlowKey};
use super::flow::Owner;
use super::link::{self, Link};
use super::listener::Listener;
use super::msg::*;
use super::options::Options;
use super::sockaddr::{ANY, Address};
use super::stack::Stack;
use super::*;
use crate::errno::*;
use crate::file;
use crate::wait::{SubscriptionId, WaitQueue, Watcher};
use quorate_abi::net::{GATEWAY_IP, GATEWAY_MAC};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::MutexGuard;

pub const PEER_IP: Ip = u32::from_be_bytes(GATEWAY_IP);
pub const SECOND: u64 = 1_000_000_000;

/// One direction of a link, in memory.
#[derive(Clone, Default)]
pub struct Wire {
    pub packets: Rc<RefCell<VecDeque<Vec<u8>>>>,
    /// Most packets under way; 0 is no limit.
    pub most: Rc<Cell<usize>>,
    /// Packets lost from now on.
    pub lose: Rc<Cell<usize>>,
    pub sent: Rc<Cell<usize>>,
    scratch: Vec<u8>,
}

impl Link for Wire {
    fn room(&self) -> bool {
        self.most.get() == 0 || self.packets.borrow().len() < self.most.get()
    }
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        if !self.room() {
            return None;
        }
        self.scratch = vec![0; len];
        Some(&mut self.scratch)
    }
    fn commit(&mut self) {
        self.sent.set(self.sent.get() + 1);
        if self.lose.get() > 0 {
            self.lose.set(self.lose.get() - 1);
        } else {
            self.packets
                .borrow_mut()
                .push_back(std::mem::take(&mut self.scratch));
        }
    }
}

/// The guest's stack (the global one), the peer's, and what is between them.
pub struct World {
    pub peer: Stack,
    pub to_peer: Wire,
    pub to_guest: Wire,
    next_port: u16,
    _lock: MutexGuard<'static, ()>,
}

fn seeds(start: u64) -> impl FnMut() -> u64 {
    let mut state = start;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 7
    }
}

impl World {
    pub fn new() -> Self {
        let lock = crate::cell::test_lock();
        *STACK.borrow_mut() = None;
        close_all();
        let (to_peer, to_guest) = (Wire::default(), Wire::default());
        let guest = Stack::new(OWN_IP, Box::new(to_peer.clone()), seeds(1));
        *STACK.borrow_mut() = Some(guest);
        Self {
            peer: Stack::new(PEER_IP, Box::new(to_guest.clone()), seeds(2)),
            to_peer,
            to_guest,
            next_port: 40_000,
            _lock: lock,
        }
    }

    /// Lets packets flow until there are none.
    pub fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "packets never stop");
            flush();
            self.peer.flush(time::now_ns());
            let packet = self.to_peer.packets.borrow_mut().pop_front();
            let moved = packet.is_some();
            if let Some(packet) = packet {
                self.peer.receive(&packet, false, time::now_ns());
            }
            let packet = self.to_guest.packets.borrow_mut().pop_front();
            if let Some(packet) = &packet {
                receive(&frame(packet));
            }
            if !moved && packet.is_none() {
                return;
            }
        }
    }

    /// Lets time pass, timers included.
    pub fn advance(&mut self, ns: u64) {
        let end = time::now_ns() + ns;
        loop {
            let next = [
                next_deadline_ns(),
                self.peer.next_deadline_ns(time::now_ns()),
            ];
            let next = next
                .into_iter()
                .flatten()
                .min()
                .unwrap_or(end)
                .clamp(time::now_ns(), end);
            time::set(next, 0);
            run_timers();
            self.peer.run_timers(next);
            self.settle();
            if next == end {
                return;
            }
        }
    }

    /// Starts a connection from the peer to a port of the guest.
    pub fn peer_connect(&mut self, port: u16) -> FlowId {
        self.next_port += 1;
        let key = FlowKey {
            local: PEER_IP,
            remote: OWN_IP,
            local_port: self.next_port,
            remote_port: port,
        };
        let owner = Owner::Socket(Rc::new(WaitQueue::new()));
        let id = self
            .peer
            .new_flow(key, false, owner, time::now_ns())
            .unwrap();
        assert!(self.peer.open(id, false));
        self.peer.mark(id);
        id
    }

    /// Makes the peer listen.
    pub fn peer_listen(&mut self, port: u16) -> usize {
        let binding = self
            .peer
            .tcp_ports
            .bind(ANY, port, &Options::default())
            .unwrap();
        self.peer.listeners.insert(Listener {
            binding,
            backlog: 16,
            half_open: 0,
            ready: Default::default(),
            wait: Rc::new(WaitQueue::new()),
            options: Options::default(),
        })
    }

    pub fn peer_accept(&mut self, listener: usize) -> Option<FlowId> {
        let id = self.peer.listeners.get_mut(listener)?.ready.pop_front()?;
        self.peer.flows.get_mut(id)?.owner = Owner::Socket(Rc::new(WaitQueue::new()));
        Some(id)
    }

    pub fn peer_send(&mut self, id: FlowId, data: &[u8]) -> usize {
        let sent = self
            .peer
            .flows
            .get_mut(id)
            .unwrap()
            .socket_mut()
            .send_slice(data)
            .unwrap();
        self.peer.mark(id);
        sent
    }

    pub fn peer_receive(&mut self, id: FlowId) -> Vec<u8> {
        let mut data = vec![0; 1 << 20];
        let socket = self.peer.flows.get_mut(id).unwrap().socket_mut();
        let count = socket.recv_slice(&mut data).unwrap_or(0);
        data.truncate(count);
        self.peer.mark(id);
        data
    }

    pub fn peer_close(&mut self, id: FlowId) {
        self.peer.flows.get_mut(id).unwrap().socket_mut().close();
        self.peer.mark(id);
    }

    pub fn peer_abort(&mut self, id: FlowId) {
        self.peer.flows.get_mut(id).unwrap().socket_mut().abort();
        self.peer.mark(id);
    }

    pub fn peer_state(&self, id: FlowId) -> smoltcp::socket::tcp::State {
        self.peer.flows.get(id).unwrap().state()
    }

    /// A listening, nonblocking socket of the guest.
    pub fn server(&mut self, port: u16, backlog: u64) -> i32 {
        let fd = tcp();
        assert_eq!(bind(fd, ANY, port), Ok(0));
        assert_eq!(call(50, &[fd as u64, backlog]), Ok(0));
        fd
    }

    /// A connection from the peer that the guest has accepted.
    pub fn connection(&mut self, server: i32, port: u16) -> (FlowId, i32) {
        let peer = self.peer_connect(port);
        self.settle();
        let fd = call(288, &[server as u64, 0, 0, SOCK_NONBLOCK.into()]).unwrap() as i32;
        (peer, fd)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        close_all();
        *STACK.borrow_mut() = None;
    }
}

/// A frame from the gateway around a packet.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    let mut frame = [
        &GUEST_MAC[..],
        &GATEWAY_MAC,
        &link::ETHERTYPE_IPV4.to_be_bytes(),
    ]
    .concat();
    frame.extend_from_slice(packet);
    frame
}

/// A system call.
pub fn call(number: u64, args: &[u64]) -> SysResult {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    dispatch(number, all).unwrap()
}

pub fn tcp() -> i32 {
    call(
        41,
        &[AF_INET.into(), u64::from(SOCK_STREAM | SOCK_NONBLOCK), 0],
    )
    .unwrap() as i32
}

pub fn bind(fd: i32, ip: Ip, port: u16) -> SysResult {
    let address = Address::Inet(ip, port).bytes();
    call(
        49,
        &[fd as u64, address.as_ptr() as u64, address.len() as u64],
    )
}

pub fn connect(fd: i32, address: &Address) -> SysResult {
    let address = address.bytes();
    call(
        42,
        &[fd as u64, address.as_ptr() as u64, address.len() as u64],
    )
}

pub fn send(fd: i32, data: &[u8]) -> Result<usize> {
    call(
        44,
        &[
            fd as u64,
            data.as_ptr() as u64,
            data.len() as u64,
            MSG_NOSIGNAL.into(),
        ],
    )
    .map(|n| n as usize)
}

pub fn recv_flags(fd: i32, len: usize, flags: u32) -> Result<Vec<u8>> {
    let mut data = vec![0; len];
    let count = call(
        45,
        &[
            fd as u64,
            data.as_mut_ptr() as u64,
            len as u64,
            flags.into(),
        ],
    )?;
    data.truncate(count as usize);
    Ok(data)
}

pub fn recv(fd: i32) -> Result<Vec<u8>> {
    recv_flags(fd, 1 << 20, 0)
}

pub fn setsockopt(fd: i32, level: u32, name: u64, value: i32) -> SysResult {
    call(
        54,
        &[fd as u64, level.into(), name, (&raw const value) as u64, 4],
    )
}

pub fn getsockopt(fd: i32, level: u32, name: u64) -> Result<i32> {
    let (mut value, mut len) = (0i32, 4u32);
    call(
        55,
        &[
            fd as u64,
            level.into(),
            name,
            (&raw mut value) as u64,
            (&raw mut len) as u64,
        ],
    )?;
    assert_eq!(len, 4);
    Ok(value)
}

pub const SO_ERROR: u64 = 4;

pub fn name_of(fd: i32, number: u64) -> Result<Address> {
    let (mut bytes, mut len) = ([0u8; 128], 128u32);
    call(
        number,
        &[fd as u64, bytes.as_mut_ptr() as u64, (&raw mut len) as u64],
    )?;
    Address::parse(&bytes[..len as usize])
}

pub fn close(fd: i32) {
    let open = file::table().remove(fd).unwrap();
    drop(open);
}

pub fn poll(fd: i32) -> u32 {
    file::get(fd).unwrap().file.poll()
}

/// Counts how often a file's queue is woken.
pub struct Wakes(Rc<Counter>, Rc<file::OpenFile>, SubscriptionId);

#[derive(Default)]
struct Counter(Cell<usize>);

impl Watcher for Counter {
    fn notify(&self) {
        self.0.set(self.0.get() + 1);
    }
}

impl Wakes {
    pub fn of(fd: i32) -> Self {
        let open = file::get(fd).unwrap();
        let counter = Rc::new(Counter::default());
        let id = open.file.wait_queue().unwrap().subscribe(counter.clone());
        Self(counter, open, id)
    }

    /// Wakes since the last look.
    pub fn take(&self) -> usize {
        self.0.0.replace(0)
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        if let Some(queue) = self.1.file.wait_queue() {
            queue.unsubscribe(self.2);
        }
    }
}

/// Bytes that differ at every place.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

fn udp_queue_bytes() -> usize {
    super::udp::UDP_QUEUE_BYTES
}
