//! TCP sockets, as programs see them.

use super::demux::{FlowId, FlowKey};
use super::flow::{Flow, Owner};
use super::listener::{BACKLOG_MAX, Binding, Listener};
use super::msg::{AF_INET, IPPROTO_TCP, SOCK_STREAM, TcpInfo};
use super::options::{Identity, Options};
use super::sockaddr::{ANY, Address, BROADCAST, Ip, is_loopback, is_multicast};
use super::socket::{Incoming, Outgoing, Socket, SocketFile};
use super::stack::Stack;
use super::tcp_io::{self, readiness, receive_from, send_to};
use crate::errno::*;
use crate::file::ready;
use crate::wait::WaitQueue;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use smoltcp::socket::tcp::State as TcpState;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Neither connected nor listening.
    Fresh,
    Listening(usize),
    Connection(FlowId),
}

/// A TCP socket.
pub struct TcpSocket {
    state: Cell<State>,
    binding: Cell<Option<Binding>>,
    /// `connect` has been called and its result not been told.
    connecting: Cell<bool>,
    /// Both ends are in this guest.
    inside: Cell<bool>,
    wait: Rc<WaitQueue>,
    options: RefCell<Options>,
}

impl Default for TcpSocket {
    fn default() -> Self {
        Self::in_state(State::Fresh, Rc::new(WaitQueue::new()), Options::default())
    }
}

impl TcpSocket {
    fn in_state(state: State, wait: Rc<WaitQueue>, options: Options) -> Self {
        Self {
            state: Cell::new(state),
            binding: Cell::new(None),
            connecting: Cell::new(false),
            inside: Cell::new(false),
            wait,
            options: RefCell::new(options),
        }
    }

    fn flow<R>(&self, stack: &mut Stack, act: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        match self.state.get() {
            State::Connection(id) => stack.flows.get_mut(id).map(act),
            _ => None,
        }
    }

    fn bind_in(&self, stack: &mut Stack, ip: Ip, port: u16) -> Result<Binding> {
        let binding = stack.tcp_ports.bind(ip, port, &self.options.borrow())?;
        self.binding.set(Some(binding));
        Ok(binding)
    }

    /// Leaves a connection attempt that failed, so that another can be made.
    fn forget_failed(&self, stack: &mut Stack) {
        if let State::Connection(id) = self.state.get()
            && stack
                .flows
                .get(id)
                .is_some_and(|f| !f.was_open && f.state() == TcpState::Closed)
        {
            stack.abandon(id, true, u64::MAX);
            self.state.set(State::Fresh);
        }
    }

    fn start_connect(&self, stack: &mut Stack, ip: Ip, port: u16, now_ns: u64) -> Result<()> {
        let remote = if ip == ANY { super::LOOPBACK_IP } else { ip };
        if remote == BROADCAST || is_multicast(remote) {
            return Err(ENETUNREACH);
        }
        if port == 0 {
            return Err(ECONNREFUSED);
        }
        let loopback = stack.is_local(remote);
        let bound = self.binding.get();
        let local = match bound {
            Some(b) if b.ip != ANY => b.ip,
            _ => stack.source_for(remote),
        };
        if is_loopback(local) && !loopback {
            return Err(EINVAL);
        }
        if stack.flows.len() >= stack.connections_max {
            return Err(EADDRNOTAVAIL);
        }
        let key = |local_port| FlowKey {
            local,
            remote,
            local_port,
            remote_port: port,
        };
        let local_port = match bound {
            Some(b) => b.port,
            None => {
                let flows = &stack.flows;
                stack
                    .tcp_ports
                    .find_ephemeral(|port| flows.find(key(port)).is_none())
                    .ok_or(EADDRNOTAVAIL)?
            }
        };
        let key = key(local_port);
        if stack.flows.find(key).is_some() || (loopback && key == key.reversed()) {
            return Err(EADDRNOTAVAIL);
        }
        let owner = Owner::Socket(self.wait.clone());
        let id = stack
            .new_flow(key, loopback, owner, now_ns)
            .ok_or(ENOBUFS)?;
        if let Some(flow) = stack.flows.get_mut(id) {
            flow.apply(&self.options.borrow());
        }
        if !stack.open(id, loopback) {
            stack.recycle(id);
            return Err(EADDRNOTAVAIL);
        }
        self.state.set(State::Connection(id));
        self.connecting.set(true);
        self.inside.set(loopback);
        stack.mark(id);
        if loopback {
            stack.flush_loopback(now_ns);
        }
        Err(EINPROGRESS)
    }

    /// Result of a connect that has been started.
    fn outcome(&self, stack: &mut Stack) -> Result<()> {
        let result = self.flow(stack, |flow| match flow.state() {
            TcpState::SynSent | TcpState::SynReceived => Err(EAGAIN),
            _ => match flow.error.take() {
                Some(error) => Err(error),
                None if flow.was_open => Ok(()),
                // Its error has been told by SO_ERROR already; Linux says this then.
                None => Err(ECONNABORTED),
            },
        });
        let result = result.unwrap_or(Err(EINVAL));
        if result != Err(EAGAIN) {
            self.connecting.set(false);
            if result.is_err() {
                self.forget_failed(stack);
            }
        }
        result
    }

    fn stop_listening(&self, stack: &mut Stack, id: usize) {
        let Some(listener) = stack.listeners.remove(id) else {
            return;
        };
        let half_open: Vec<FlowId> = stack
            .flows
            .ids()
            .filter(|flow| {
                stack
                    .flows
                    .get(*flow)
                    .is_some_and(|f| matches!(f.owner, Owner::HalfOpen(l) if l == id))
            })
            .collect();
        for flow in listener.ready.into_iter().chain(half_open) {
            stack.abandon(flow, true, u64::MAX);
        }
    }
}

impl Drop for TcpSocket {
    fn drop(&mut self) {
        let linger = self.options.borrow().linger;
        super::with(|stack, now_ns| {
            match self.state.get() {
                State::Fresh => {}
                State::Listening(id) => self.stop_listening(stack, id),
                State::Connection(id) => {
                    let until = match linger {
                        Some(seconds) => now_ns.saturating_add(u64::from(seconds) * 1_000_000_000),
                        None => u64::MAX,
                    };
                    let loopback = stack.flows.get(id).is_some_and(|f| f.loopback);
                    stack.abandon(id, linger == Some(0), until);
                    if loopback {
                        stack.flush_loopback(now_ns);
                    }
                }
            }
            if let Some(binding) = self.binding.take() {
                stack.tcp_ports.unbind(binding);
            }
        });
    }
}

impl Socket for TcpSocket {
    fn identity(&self) -> Identity {
        Identity {
            family: AF_INET,
            kind: SOCK_STREAM,
            protocol: IPPROTO_TCP,
            listening: matches!(self.state.get(), State::Listening(_)),
        }
    }

    fn options(&self) -> &RefCell<Options> {
        &self.options
    }

    fn options_changed(&self) {
        super::with(|stack, _| {
            let options = self.options.borrow();
            match self.state.get() {
                State::Listening(id) => {
                    if let Some(listener) = stack.listeners.get_mut(id) {
                        listener.options = options.clone();
                    }
                }
                State::Connection(id) => {
                    if let Some(flow) = stack.flows.get_mut(id) {
                        flow.apply(&options);
                    }
                    stack.mark(id); // Its timers may have changed.
                }
                State::Fresh => {}
            }
        });
    }

    fn bind(&self, address: &Address) -> Result<()> {
        let Address::Inet(ip, port) = *address else {
            return Err(EAFNOSUPPORT);
        };
        if self.binding.get().is_some() || self.state.get() != State::Fresh {
            return Err(EINVAL);
        }
        super::check_bindable(ip)?;
        super::with(|stack, _| self.bind_in(stack, ip, port).map(|_| ()))
    }

    fn listen(&self, backlog: usize) -> Result<()> {
        let backlog = backlog.min(BACKLOG_MAX);
        super::with(|stack, _| match self.state.get() {
            State::Listening(id) => {
                if let Some(listener) = stack.listeners.get_mut(id) {
                    listener.backlog = backlog;
                }
                Ok(())
            }
            State::Connection(_) => Err(EINVAL),
            State::Fresh => {
                let binding = match self.binding.get() {
                    Some(binding) => binding,
                    None => self.bind_in(stack, ANY, 0)?,
                };
                stack.tcp_ports.listen(binding)?;
                let id = stack.listeners.insert(Listener {
                    binding,
                    backlog,
                    half_open: 0,
                    ready: Default::default(),
                    wait: self.wait.clone(),
                    options: self.options.borrow().clone(),
                });
                self.state.set(State::Listening(id));
                Ok(())
            }
        })
    }

    fn accept(&self) -> Result<SocketFile> {
        let State::Listening(listener) = self.state.get() else {
            return Err(EINVAL);
        };
        let wait = Rc::new(WaitQueue::new());
        let (id, options, inside) = super::with(|stack, _| {
            let listener = stack.listeners.get_mut(listener).ok_or(EINVAL)?;
            let id = listener.ready.pop_front().ok_or(EAGAIN)?;
            let options = listener.options.clone();
            let flow = stack.flows.get_mut(id).ok_or(ECONNABORTED)?;
            flow.owner = Owner::Socket(wait.clone());
            Ok((id, options, flow.loopback))
        })?;
        let socket = Self::in_state(State::Connection(id), wait, options);
        socket.inside.set(inside);
        Ok(SocketFile::new(Rc::new(socket)))
    }

    fn connect(&self, address: &Address) -> Result<()> {
        super::with(|stack, now_ns| match (self.state.get(), address) {
            (State::Listening(_), _) => Err(EISCONN),
            (State::Connection(id), Address::Unspec) => {
                stack.abandon(id, true, u64::MAX);
                self.state.set(State::Fresh);
                self.connecting.set(false);
                Ok(())
            }
            (_, Address::Unspec) => Ok(()),
            (State::Connection(_), _) if self.connecting.get() => match self.outcome(stack) {
                Err(EAGAIN) => Err(EALREADY),
                other => other,
            },
            (State::Connection(_), _) => {
                self.forget_failed(stack);
                match (self.state.get(), address) {
                    (State::Fresh, Address::Inet(ip, port)) => {
                        self.start_connect(stack, *ip, *port, now_ns)
                    }
                    _ => Err(EISCONN),
                }
            }
            (State::Fresh, Address::Inet(ip, port)) => {
                self.start_connect(stack, *ip, *port, now_ns)
            }
            (State::Fresh, Address::Unix(_)) => Err(EAFNOSUPPORT),
        })
    }

    fn connect_result(&self) -> Result<()> {
        super::with(|stack, _| self.outcome(stack))
    }

    fn local(&self) -> Address {
        super::with(|stack, _| {
            if let Some(key) = self.flow(stack, |flow| flow.key) {
                return Address::Inet(key.local, key.local_port);
            }
            match self.binding.get() {
                Some(binding) => Address::Inet(binding.ip, binding.port),
                None => Address::Inet(ANY, 0),
            }
        })
    }

    fn peer(&self) -> Result<Address> {
        super::with(|stack, _| {
            self.flow(stack, |flow| match flow.state() {
                TcpState::Closed | TcpState::SynSent => Err(ENOTCONN),
                _ => Ok(Address::Inet(flow.key.remote, flow.key.remote_port)),
            })
            .unwrap_or(Err(ENOTCONN))
        })
    }

    fn send(&self, parts: &[&[u8]], message: &mut Outgoing) -> Result<usize> {
        if !message.files.is_empty() {
            return Err(EINVAL);
        }
        let State::Connection(id) = self.state.get() else {
            return Err(EPIPE);
        };
        super::with(|stack, now_ns| {
            let flow = stack.flows.get_mut(id).ok_or(EPIPE)?;
            let result = send_to(flow, parts);
            let (full, loopback) = (flow.no_space.get(), flow.loopback);
            stack.mark(id);
            if loopback {
                stack.flush_loopback(now_ns);
            } else if full {
                // Nothing more can gather.
                stack.flush_flow(id, now_ns);
            }
            result
        })
    }

    fn receive(&self, parts: &mut [&mut [u8]], peek: bool, _: &mut Incoming) -> Result<usize> {
        let State::Connection(id) = self.state.get() else {
            return Err(ENOTCONN);
        };
        super::with(|stack, now_ns| {
            let flow = stack.flows.get_mut(id).ok_or(ENOTCONN)?;
            let result = receive_from(flow, parts, peek);
            let loopback = flow.loopback;
            if result.is_ok_and(|count| count > 0) && !peek {
                // The window has grown.
                stack.mark(id);
                if loopback {
                    stack.flush_loopback(now_ns);
                }
            }
            result
        })
    }

    fn shutdown(&self, read: bool, write: bool) -> Result<()> {
        let result = super::with(|stack, now_ns| match self.state.get() {
            State::Fresh => Err(ENOTCONN),
            State::Listening(id) => {
                if read {
                    self.stop_listening(stack, id);
                    self.state.set(State::Fresh);
                }
                Ok(())
            }
            State::Connection(id) => {
                let flow = stack.flows.get_mut(id).ok_or(ENOTCONN)?;
                if flow.state() == TcpState::Closed {
                    return Err(ENOTCONN);
                }
                flow.read_shut |= read;
                if write && !flow.write_shut {
                    flow.write_shut = true;
                    flow.progress_ns = now_ns;
                    flow.socket_mut().close();
                    flow.seen = flow.state();
                }
                let loopback = flow.loopback;
                stack.mark(id);
                if loopback {
                    stack.flush_loopback(now_ns);
                }
                Ok(())
            }
        });
        self.wait.wake_all();
        result
    }

    fn take_error(&self) -> Option<Errno> {
        super::with(|stack, _| self.flow(stack, |flow| flow.error.take()).flatten())
    }

    fn readable_bytes(&self) -> usize {
        super::with(|stack, _| {
            self.flow(stack, |flow| flow.socket().recv_queue())
                .unwrap_or(0)
        })
    }

    fn unsent_bytes(&self) -> usize {
        super::with(|stack, _| {
            self.flow(stack, |flow| flow.socket().send_queue())
                .unwrap_or(0)
        })
    }

    fn poll(&self) -> u32 {
        super::with(|stack, _| match self.state.get() {
            State::Fresh => ready::OUT | ready::WRNORM | ready::HUP,
            State::Listening(id) => match stack.listeners.get(id) {
                Some(listener) if !listener.ready.is_empty() => ready::IN | ready::RDNORM,
                _ => 0,
            },
            State::Connection(id) => stack.flows.get(id).map_or(ready::HUP, readiness),
        })
    }

    fn inside(&self) -> bool {
        self.inside.get()
    }

    fn wait_queue(&self) -> &WaitQueue {
        &self.wait
    }

    fn tcp_info(&self) -> TcpInfo {
        super::with(|stack, _| match self.state.get() {
            State::Fresh => TcpInfo {
                state: 7,
                snd_mss: 536,
                ..TcpInfo::default()
            },
            State::Listening(id) => TcpInfo {
                state: 10,
                // Linux reports the accept queue here.
                unacked: stack.listeners.get(id).map_or(0, |l| l.ready.len() as u32),
                sacked: stack.listeners.get(id).map_or(0, |l| l.backlog as u32),
                ..TcpInfo::default()
            },
            State::Connection(_) => self
                .flow(stack, |flow| tcp_io::info(flow))
                .unwrap_or_default(),
        })
    }
}
