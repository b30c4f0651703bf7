//! Local ports, and the sockets that listen on them.

use super::demux::FlowId;
use super::options::Options;
use super::sockaddr::{ANY, Ip};
use crate::errno::{EADDRINUSE, EADDRNOTAVAIL, Result};
use crate::wait::WaitQueue;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// Largest backlog (Linux: `net.core.somaxconn`).
pub const BACKLOG_MAX: usize = 4096;
/// Least number of half-open connections of a listener, however small its backlog is. Linux answers more SYNs than the backlog
/// has room for, too (SYN cookies).
pub const HALF_OPEN_MIN: usize = 128;
/// Ports that are given out (Linux: `ip_local_port_range`).
pub const EPHEMERAL: core::ops::RangeInclusive<u16> = 32_768..=60_999;

/// A port that a socket holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binding {
    /// Address, or 0 for all.
    pub ip: Ip,
    /// Port.
    pub port: u16,
    serial: u64,
}

struct Held {
    ip: Ip,
    serial: u64,
    reuse_addr: bool,
    reuse_port: bool,
    listening: bool,
}

/// The ports in use, of one protocol.
#[derive(Default)]
pub struct Ports {
    held: BTreeMap<u16, Vec<Held>>,
    next_serial: u64,
    /// Where the search for a free port starts.
    pub next_ephemeral: u16,
}

impl Ports {
    /// Holds a port; 0 asks for any free one.
    ///
    /// # Errors
    /// `EADDRINUSE`.
    pub fn bind(&mut self, ip: Ip, port: u16, options: &Options) -> Result<Binding> {
        let port = if port == 0 {
            self.find_ephemeral(|_| true).ok_or(EADDRINUSE)?
        } else {
            port
        };
        let held = self.held.entry(port).or_default();
        let clash = held.iter().any(|other| {
            let overlap = ip == ANY || other.ip == ANY || ip == other.ip;
            let shared = (options.reuse_addr && other.reuse_addr && !other.listening)
                || (options.reuse_port && other.reuse_port);
            overlap && !shared
        });
        if clash {
            return Err(EADDRINUSE);
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        held.push(Held {
            ip,
            serial,
            reuse_addr: options.reuse_addr,
            reuse_port: options.reuse_port,
            listening: false,
        });
        Ok(Binding { ip, port, serial })
    }

    /// The next free port for which `suits` holds. Nobody holds it yet.
    pub fn find_ephemeral(&mut self, mut suits: impl FnMut(u16) -> bool) -> Option<u16> {
        let count = EPHEMERAL.end() - EPHEMERAL.start() + 1;
        for step in 0..count {
            let port = EPHEMERAL.start() + (self.next_ephemeral % count + step) % count;
            if !self.held.contains_key(&port) && suits(port) {
                self.next_ephemeral = port - EPHEMERAL.start() + 1;
                return Some(port);
            }
        }
        None
    }

    /// Gives a port back.
    pub fn unbind(&mut self, binding: Binding) {
        if let Some(held) = self.held.get_mut(&binding.port) {
            held.retain(|h| h.serial != binding.serial);
            if held.is_empty() {
                self.held.remove(&binding.port);
            }
        }
    }

    /// Marks a port as listened on: no other socket may listen there then, `SO_REUSEADDR` or not.
    ///
    /// # Errors
    /// `EADDRINUSE`.
    pub fn listen(&mut self, binding: Binding) -> Result<()> {
        let held = self.held.get_mut(&binding.port).ok_or(EADDRNOTAVAIL)?;
        let me = held
            .iter()
            .position(|h| h.serial == binding.serial)
            .ok_or(EADDRNOTAVAIL)?;
        let clash = held.iter().any(|other| {
            other.listening
                && (binding.ip == ANY || other.ip == ANY || binding.ip == other.ip)
                && !(other.reuse_port && held[me].reuse_port)
        });
        if clash {
            return Err(EADDRINUSE);
        }
        held[me].listening = true;
        Ok(())
    }
}

/// A listening socket.
pub struct Listener {
    /// Where it listens.
    pub binding: Binding,
    /// Connections that wait for `accept`, beyond which SYNs are dropped.
    pub backlog: usize,
    /// Half-open connections.
    pub half_open: usize,
    /// Established ones, in the order in which they completed.
    pub ready: VecDeque<FlowId>,
    /// Woken when `ready` grows.
    pub wait: Rc<WaitQueue>,
    /// Options that new connections inherit.
    pub options: Options,
}

impl Listener {
    /// Whether another SYN may be answered (R10).
    pub fn has_room(&self) -> bool {
        self.ready.len() <= self.backlog && self.half_open < self.backlog.max(HALF_OPEN_MIN)
    }
}

/// All listening sockets.
#[derive(Default)]
pub struct Listeners {
    slots: Vec<Option<Listener>>,
    by_port: BTreeMap<u16, Vec<usize>>,
}

impl Listeners {
    /// Adds a listener.
    pub fn insert(&mut self, listener: Listener) -> usize {
        let port = listener.binding.port;
        let id = match self.slots.iter().position(Option::is_none) {
            Some(id) => id,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        self.slots[id] = Some(listener);
        self.by_port.entry(port).or_default().push(id);
        id
    }

    /// A listener.
    pub fn get_mut(&mut self, id: usize) -> Option<&mut Listener> {
        self.slots.get_mut(id)?.as_mut()
    }

    /// A listener.
    pub fn get(&self, id: usize) -> Option<&Listener> {
        self.slots.get(id)?.as_ref()
    }

    /// Takes a listener out.
    pub fn remove(&mut self, id: usize) -> Option<Listener> {
        let listener = self.slots.get_mut(id)?.take()?;
        if let Some(ids) = self.by_port.get_mut(&listener.binding.port) {
            ids.retain(|i| *i != id);
            if ids.is_empty() {
                self.by_port.remove(&listener.binding.port);
            }
        }
        Some(listener)
    }

    /// The listener for a connection to this address. Of several (`SO_REUSEPORT`), `hash` chooses.
    pub fn find(&self, ip: Ip, port: u16, hash: u64) -> Option<usize> {
        let ids = self.by_port.get(&port)?;
        let matching = |wanted: Ip| {
            ids.iter()
                .copied()
                .filter(move |id| self.get(*id).is_some_and(|l| l.binding.ip == wanted))
        };
        let exact = matching(ip).count();
        let wanted = if exact > 0 { ip } else { ANY };
        let count = matching(wanted).count();
        if count == 0 {
            return None;
        }
        matching(wanted).nth((hash % count as u64) as usize)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn options(reuse_addr: bool, reuse_port: bool) -> Options {
        Options {
            reuse_addr,
            reuse_port,
            ..Options::default()
        }
    }

    #[test]
    fn ports_clash_as_on_linux() {
        let mut ports = Ports::default();
        let first = ports.bind(1, 80, &options(false, false)).unwrap();
        assert_eq!(ports.bind(1, 80, &options(false, false)), Err(EADDRINUSE));
        assert_eq!(ports.bind(ANY, 80, &options(true, false)), Err(EADDRINUSE));
        assert!(ports.bind(2, 80, &options(false, false)).is_ok());
        ports.unbind(first);
        assert!(ports.bind(1, 80, &options(false, false)).is_ok());
        // Both with SO_REUSEADDR may bind, but only one may listen.
        let a = ports.bind(ANY, 81, &options(true, false)).unwrap();
        let b = ports.bind(ANY, 81, &options(true, false)).unwrap();
        assert_eq!(ports.listen(a), Ok(()));
        assert_eq!(ports.listen(b), Err(EADDRINUSE));
        assert_eq!(ports.bind(ANY, 81, &options(true, false)), Err(EADDRINUSE));
        let a = ports.bind(ANY, 82, &options(false, true)).unwrap();
        let b = ports.bind(ANY, 82, &options(false, true)).unwrap();
        assert_eq!((ports.listen(a), ports.listen(b)), (Ok(()), Ok(())));
    }

    #[test]
    fn free_ports_run_out() {
        let mut ports = Ports::default();
        let count = EPHEMERAL.end() - EPHEMERAL.start() + 1;
        let first = ports.bind(ANY, 0, &options(false, false)).unwrap();
        for _ in 1..count {
            let port = ports.bind(ANY, 0, &options(false, false)).unwrap().port;
            assert!(EPHEMERAL.contains(&port));
        }
        assert_eq!(ports.bind(ANY, 0, &options(false, false)), Err(EADDRINUSE));
        ports.unbind(first);
        assert_eq!(
            ports.bind(ANY, 0, &options(false, false)).unwrap().port,
            first.port
        );
    }
}
