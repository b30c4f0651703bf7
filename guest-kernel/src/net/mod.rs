//! Sockets and the network: TCP and UDP on smoltcp, and AF_UNIX. See [`stack`] for how packets flow.
//!
//! The stack is one global. It is never borrowed while threads or watchers are woken ([`with`]), and a
//! boundary is never taken while it is borrowed.

pub mod demux;
pub mod flow;
pub mod link;
pub mod listener;
pub mod msg;
pub mod options;
pub mod sockaddr;
pub mod socket;
pub mod stack;
pub mod syscalls;
mod tcp_io;
pub mod tcp_socket;
pub mod transfer;
pub mod udp;
pub mod unix;
mod unix_end;

pub use syscalls::dispatch;

use crate::cell::Global;
use crate::errno::{EADDRNOTAVAIL, Result};
use crate::{drivers, time};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use quorate_abi::net::{ETHERNET_HEADER, GUEST_IP, GUEST_MAC};
use sockaddr::{ANY, Ip};
use stack::Stack;

/// 127.0.0.1
pub const LOOPBACK_IP: Ip = 0x7f00_0001;
/// This guest's address.
pub const OWN_IP: Ip = u32::from_be_bytes(GUEST_IP);
/// `st_dev` of sockets.
pub const SOCKFS_DEVICE: u64 = 8;
const MAC_BROADCAST: [u8; 6] = [0xff; 6];

static STACK: Global<Option<Stack>> = Global::new(None);
/// How often somebody was woken.
static WAKES: Global<u64> = Global::new(0);
static INODES: Global<u64> = Global::new(0);
/// Whether [`flush`] is running: the boundary that it takes flushes, too.
static FLUSHING: Global<bool> = Global::new(false);

/// Inode number of a new socket.
pub fn next_inode() -> u64 {
    let mut next = INODES.borrow_mut();
    *next += 1;
    *next + 4096
}

/// Starts the stack. The devices must have been started, since its random numbers come from them.
pub fn init() {
    let mut stack = Stack::new(OWN_IP, default_link(), drivers::entropy::next_u64);
    stack.limit_to_memory(crate::mm::memory_info().0);
    *STACK.borrow_mut() = Some(stack);
}

#[cfg(not(test))]
fn default_link() -> Box<dyn link::Link> {
    Box::new(link::Virtio)
}

#[cfg(test)]
fn default_link() -> Box<dyn link::Link> {
    Box::new(tests::Wire::default())
}

/// Runs `act` on the stack (with the time), then wakes whom it wants to wake.
pub fn with<R>(act: impl FnOnce(&mut Stack, u64) -> R) -> R {
    if STACK.borrow().is_none() {
        init();
    }
    let now_ns = time::now_ns();
    let (result, mut wakes) = {
        let mut guard = STACK.borrow_mut();
        let stack = guard.get_or_insert_with(|| Stack::new(OWN_IP, default_link(), || 0));
        let result = act(stack, now_ns);
        let wakes: Vec<Rc<crate::wait::WaitQueue>> = core::mem::take(&mut stack.wakes);
        (result, wakes)
    };
    if wakes.is_empty() {
        return result;
    }
    *WAKES.borrow_mut() += wakes.len() as u64;
    for queue in &wakes {
        queue.wake_all();
    }
    wakes.clear();
    // Keep the list's memory for the next time.
    if let Some(stack) = STACK.borrow_mut().as_mut()
        && stack.wakes.is_empty()
    {
        stack.wakes = wakes;
    }
    result
}

fn started() -> bool {
    STACK.borrow().is_some()
}

/// Takes an Ethernet frame (R9: hostile).
pub fn receive(frame: &[u8]) {
    if !started() {
        return;
    }
    with(|stack, now_ns| {
        let Some((header, packet)) = frame.split_at_checked(ETHERNET_HEADER) else {
            stack.counters.malformed += 1;
            return;
        };
        let destination = &header[..6];
        if destination != GUEST_MAC && destination != MAC_BROADCAST {
            stack.counters.malformed += 1;
            return;
        }
        match u16::from_be_bytes([header[12], header[13]]) {
            link::ETHERTYPE_IPV4 => stack.receive(packet, false, now_ns),
            link::ETHERTYPE_ARP => answer_arp(packet),
            _ => stack.counters.malformed += 1,
        }
    });
}

/// Answers an ARP request for our address. The gateway needs none, but what is on a link should answer.
fn answer_arp(packet: &[u8]) {
    const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    let Some((arp, _)) = packet.split_first_chunk::<28>() else {
        return;
    };
    if arp[..8] != REQUEST || arp[24..28] != GUEST_IP {
        return;
    }
    if let Some(frame) = drivers::net::reserve(ETHERNET_HEADER + 28) {
        link::ethernet_header(frame, link::ETHERTYPE_ARP);
        frame[..6].copy_from_slice(&arp[8..14]);
        let reply = &mut frame[ETHERNET_HEADER..];
        reply[..8].copy_from_slice(&REQUEST);
        reply[7] = 2;
        reply[8..14].copy_from_slice(&GUEST_MAC);
        reply[14..18].copy_from_slice(&GUEST_IP);
        reply[18..28].copy_from_slice(&arp[8..18]);
        drivers::net::commit();
    }
}

/// Builds all packets that are due and delivers those to ourselves. When the transmit ring is full, takes a boundary
/// and goes on. Called before each boundary; inside the one that it takes itself it does nothing.
pub fn flush() {
    if !started() || *FLUSHING.borrow() {
        return;
    }
    *FLUSHING.borrow_mut() = true;
    while !with(|stack, now_ns| stack.flush(now_ns)) {
        crate::boundary::sync_now();
        if cfg!(test) {
            break;
        }
    }
    *FLUSHING.borrow_mut() = false;
}

/// Marks the connections whose timers have expired; the next [`flush`] acts on them.
pub fn run_timers() {
    if started() {
        with(|stack, now_ns| stack.run_timers(now_ns));
    }
}

/// When [`run_timers`] has something to do. Flushes first, since that changes timers; if that has woken somebody, the
/// deadline is now: the caller must not sleep.
pub fn next_deadline_ns() -> Option<u64> {
    if !started() {
        return None;
    }
    let woken = *WAKES.borrow();
    flush();
    if *WAKES.borrow() != woken {
        return Some(time::now_ns());
    }
    with(|stack, now_ns| stack.next_deadline_ns(now_ns))
}

/// The program has ended: closes all sockets as its exit would, so that peers get to know. Their packets are built by the
/// next [`flush`].
pub fn close_all() {
    let files = {
        let mut table = crate::file::table();
        let fds = table.open_fds();
        fds.into_iter()
            .filter_map(|fd| table.remove(fd).ok())
            .collect::<Vec<_>>()
    };
    drop(files);
}

/// Whether a socket can be bound to an address.
///
/// # Errors
/// `EADDRNOTAVAIL`.
pub fn check_bindable(ip: Ip) -> Result<()> {
    if ip == ANY || ip == OWN_IP || sockaddr::is_loopback(ip) {
        Ok(())
    } else {
        Err(EADDRNOTAVAIL)
    }
}

#[cfg(test)]
mod tests;
