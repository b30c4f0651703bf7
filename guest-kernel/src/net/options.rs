//! Socket options. What is stored without an effect is only what a program cannot tell from Linux by its effects: hints
//! on batching and buffer sizes. Everything else either works or is refused.

use super::flow::{KeepAlive, TCP_RX_BUFFER, TCP_TX_BUFFER};
use super::msg::{IPPROTO_IP, IPPROTO_TCP, Linger, SOL_SOCKET, Timeval};
use crate::errno::{EDOM, EINVAL, ENOPROTOOPT, Errno, Result};
use crate::user;

const SECOND: u64 = 1_000_000_000;

mod so {
    pub const REUSEADDR: u32 = 2;
    pub const TYPE: u32 = 3;
    pub const ERROR: u32 = 4;
    pub const DONTROUTE: u32 = 5;
    pub const BROADCAST: u32 = 6;
    pub const SNDBUF: u32 = 7;
    pub const RCVBUF: u32 = 8;
    pub const KEEPALIVE: u32 = 9;
    pub const OOBINLINE: u32 = 10;
    pub const PRIORITY: u32 = 12;
    pub const LINGER: u32 = 13;
    pub const REUSEPORT: u32 = 15;
    pub const PASSCRED: u32 = 16;
    pub const PEERCRED: u32 = 17;
    pub const RCVLOWAT: u32 = 18;
    pub const SNDLOWAT: u32 = 19;
    pub const RCVTIMEO: u32 = 20;
    pub const SNDTIMEO: u32 = 21;
    pub const ACCEPTCONN: u32 = 30;
    pub const PROTOCOL: u32 = 38;
    pub const DOMAIN: u32 = 39;
}

mod tcp {
    pub const NODELAY: u32 = 1;
    pub const MAXSEG: u32 = 2;
    pub const CORK: u32 = 3;
    pub const KEEPIDLE: u32 = 4;
    pub const KEEPINTVL: u32 = 5;
    pub const KEEPCNT: u32 = 6;
    pub const SYNCNT: u32 = 7;
    pub const LINGER2: u32 = 8;
    pub const DEFER_ACCEPT: u32 = 9;
    pub const INFO: u32 = 11;
    pub const QUICKACK: u32 = 12;
    pub const USER_TIMEOUT: u32 = 18;
}

mod ip {
    pub const TOS: u32 = 1;
    pub const TTL: u32 = 2;
    pub const MTU_DISCOVER: u32 = 10;
    pub const RECVERR: u32 = 11;
}

/// Largest buffer size that can be set (`net.core.wmem_max`, `rmem_max`).
const BUFFER_MAX: u32 = 212_992;

/// What a program has set on a socket.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Options {
    pub reuse_addr: bool,
    pub reuse_port: bool,
    pub broadcast: bool,
    pub keep_alive_on: bool,
    pub pass_credentials: bool,
    pub oob_inline: bool,
    pub priority: u32,
    pub send_buffer: u32,
    pub receive_buffer: u32,
    /// Seconds, if switched on.
    pub linger: Option<u32>,
    pub receive_timeout_ns: Option<u64>,
    pub send_timeout_ns: Option<u64>,
    pub no_delay: bool,
    pub cork: bool,
    pub quick_ack: bool,
    pub keep_idle_s: u32,
    pub keep_interval_s: u32,
    pub keep_count: u32,
    pub user_timeout_ms: u32,
    pub defer_accept_s: u32,
    pub ttl: u8,
    pub tos: u8,
    pub mtu_discover: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reuse_addr: false,
            reuse_port: false,
            broadcast: false,
            keep_alive_on: false,
            pass_credentials: false,
            oob_inline: false,
            priority: 0,
            send_buffer: TCP_TX_BUFFER as u32,
            receive_buffer: TCP_RX_BUFFER as u32,
            linger: None,
            receive_timeout_ns: None,
            send_timeout_ns: None,
            no_delay: false,
            cork: false,
            quick_ack: true,
            keep_idle_s: 7200,
            keep_interval_s: 75,
            keep_count: 9,
            user_timeout_ms: 0,
            defer_accept_s: 0,
            ttl: 64,
            tos: 0,
            mtu_discover: 1,
        }
    }
}

impl Options {
    /// Keep-alive parameters, if it is on.
    pub fn keep_alive(&self) -> Option<KeepAlive> {
        self.keep_alive_on.then_some(KeepAlive {
            idle_ns: u64::from(self.keep_idle_s) * SECOND,
            interval_ns: u64::from(self.keep_interval_s) * SECOND,
            count: u64::from(self.keep_count),
        })
    }

    /// `TCP_USER_TIMEOUT`, if set.
    pub fn user_timeout_ns(&self) -> Option<u64> {
        (self.user_timeout_ms != 0).then_some(u64::from(self.user_timeout_ms) * 1_000_000)
    }
}

/// What a socket is, for options that ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Identity {
    pub family: u16,
    pub kind: u32,
    pub protocol: u32,
    pub listening: bool,
}

impl Identity {
    fn is_tcp(&self) -> bool {
        self.protocol == IPPROTO_TCP
    }
    fn is_inet(&self) -> bool {
        self.family == super::msg::AF_INET
    }
}

fn int(addr: u64, len: usize) -> Result<i32> {
    if len < 4 {
        return Err(EINVAL);
    }
    user::read(addr)
}

fn in_range(value: i32, range: core::ops::RangeInclusive<i32>) -> Result<u32> {
    if range.contains(&value) {
        Ok(value as u32)
    } else {
        Err(EINVAL)
    }
}

fn timeout(addr: u64, len: usize) -> Result<Option<u64>> {
    if len < size_of::<Timeval>() {
        return Err(EINVAL);
    }
    let time: Timeval = user::read(addr)?;
    if !(0..1_000_000).contains(&time.usec) {
        return Err(EDOM);
    }
    if time.sec < 0 {
        return Ok(Some(0)); // Linux: a negative timeout does not wait.
    }
    let ns = (time.sec as u64)
        .saturating_mul(SECOND)
        .saturating_add(time.usec as u64 * 1000);
    Ok((ns != 0).then_some(ns))
}

/// Sets an option.
///
/// # Errors
/// `ENOPROTOOPT` for what does not exist here, `EINVAL`, `EDOM`, `EFAULT`.
pub fn set(
    options: &mut Options,
    what: Identity,
    level: u32,
    name: u32,
    addr: u64,
    len: usize,
) -> Result<()> {
    match (level, name) {
        (SOL_SOCKET, so::LINGER) => {
            if len < size_of::<Linger>() {
                return Err(EINVAL);
            }
            let linger: Linger = user::read(addr)?;
            options.linger = (linger.on != 0).then_some(linger.seconds.max(0) as u32);
            return Ok(());
        }
        (SOL_SOCKET, so::RCVTIMEO) => {
            options.receive_timeout_ns = timeout(addr, len)?;
            return Ok(());
        }
        (SOL_SOCKET, so::SNDTIMEO) => {
            options.send_timeout_ns = timeout(addr, len)?;
            return Ok(());
        }
        (SOL_SOCKET, _) => {}
        (IPPROTO_IP, _) if what.is_inet() => {}
        (IPPROTO_TCP, _) if what.is_tcp() => {}
        _ => return Err(ENOPROTOOPT),
    }
    let known = match level {
        SOL_SOCKET => !matches!(
            name,
            so::TYPE
                | so::ERROR
                | so::ACCEPTCONN
                | so::PROTOCOL
                | so::DOMAIN
                | so::PEERCRED
                | so::SNDLOWAT
        ),
        IPPROTO_TCP => name != tcp::INFO,
        _ => true,
    };
    if !known {
        return Err(ENOPROTOOPT);
    }
    // IP options may be given as a single byte.
    let value = if level == IPPROTO_IP && (1..4).contains(&len) {
        i32::from(user::read::<u8>(addr)?)
    } else {
        int(addr, len)?
    };
    let on = value != 0;
    match (level, name) {
        (SOL_SOCKET, so::REUSEADDR) => options.reuse_addr = on,
        (SOL_SOCKET, so::REUSEPORT) => options.reuse_port = on,
        (SOL_SOCKET, so::BROADCAST) => options.broadcast = on,
        (SOL_SOCKET, so::KEEPALIVE) => options.keep_alive_on = on,
        (SOL_SOCKET, so::OOBINLINE) => options.oob_inline = on,
        (SOL_SOCKET, so::PASSCRED) => options.pass_credentials = on,
        (SOL_SOCKET, so::PRIORITY) => options.priority = in_range(value, 0..=6)?,
        // There is one link and no route to choose.
        (SOL_SOCKET, so::DONTROUTE) => {}
        (SOL_SOCKET, so::RCVLOWAT) => {
            if value > 1 {
                return Err(ENOPROTOOPT);
            }
        }
        // Linux doubles what is asked for, within limits, and reports that.
        (SOL_SOCKET, so::SNDBUF) => {
            options.send_buffer = ((value as u32).min(BUFFER_MAX) * 2).max(4608)
        }
        (SOL_SOCKET, so::RCVBUF) => {
            options.receive_buffer = ((value as u32).min(BUFFER_MAX) * 2).max(2304)
        }
        (IPPROTO_TCP, tcp::NODELAY) => options.no_delay = on,
        (IPPROTO_TCP, tcp::CORK) => options.cork = on,
        (IPPROTO_TCP, tcp::QUICKACK) => options.quick_ack = on,
        (IPPROTO_TCP, tcp::KEEPIDLE) => options.keep_idle_s = in_range(value, 1..=32767)?,
        (IPPROTO_TCP, tcp::KEEPINTVL) => options.keep_interval_s = in_range(value, 1..=32767)?,
        (IPPROTO_TCP, tcp::KEEPCNT) => options.keep_count = in_range(value, 1..=127)?,
        (IPPROTO_TCP, tcp::USER_TIMEOUT) => {
            options.user_timeout_ms = in_range(value, 0..=i32::MAX)?
        }
        (IPPROTO_TCP, tcp::DEFER_ACCEPT) => options.defer_accept_s = value.max(0) as u32,
        (IPPROTO_IP, ip::TOS) => options.tos = value as u8,
        (IPPROTO_IP, ip::TTL) => {
            options.ttl = if value == -1 {
                64
            } else {
                in_range(value, 1..=255)? as u8
            };
        }
        (IPPROTO_IP, ip::MTU_DISCOVER) => options.mtu_discover = in_range(value, 0..=5)?,
        _ => return Err(ENOPROTOOPT),
    }
    Ok(())
}

/// Values that only the socket itself knows.
pub struct Live<'a> {
    /// Takes the pending error (`SO_ERROR`).
    pub take_error: &'a dyn Fn() -> Option<Errno>,
    /// `TCP_INFO` and `TCP_MAXSEG`.
    pub tcp_info: &'a dyn Fn() -> super::msg::TcpInfo,
    /// `SO_PEERCRED`.
    pub peer_credentials: &'a dyn Fn() -> super::msg::Ucred,
}

/// Reads an option into the program's memory.
///
/// # Errors
/// `ENOPROTOOPT` for what does not exist here, `EINVAL`, `EFAULT`.
pub fn get(
    options: &Options,
    what: Identity,
    live: &Live<'_>,
    level: u32,
    name: u32,
    addr: u64,
    len_addr: u64,
) -> Result<()> {
    let room: i32 = user::read(len_addr)?;
    let room = usize::try_from(room).map_err(|_| EINVAL)?;
    if (level == IPPROTO_IP && !what.is_inet()) || (level == IPPROTO_TCP && !what.is_tcp()) {
        return Err(ENOPROTOOPT);
    }
    let time = |ns: Option<u64>| {
        let ns = ns.unwrap_or(0);
        Timeval {
            sec: (ns / SECOND) as i64,
            usec: (ns % SECOND / 1000) as i64,
        }
    };
    let value = match (level, name) {
        (SOL_SOCKET, so::LINGER) => {
            let linger = Linger {
                on: options.linger.is_some().into(),
                seconds: options.linger.unwrap_or(0) as i32,
            };
            return put(linger, room, addr, len_addr);
        }
        (SOL_SOCKET, so::RCVTIMEO) => {
            return put(time(options.receive_timeout_ns), room, addr, len_addr);
        }
        (SOL_SOCKET, so::SNDTIMEO) => {
            return put(time(options.send_timeout_ns), room, addr, len_addr);
        }
        (SOL_SOCKET, so::PEERCRED) => return put((live.peer_credentials)(), room, addr, len_addr),
        (IPPROTO_TCP, tcp::INFO) => return put((live.tcp_info)(), room, addr, len_addr),
        (SOL_SOCKET, so::TYPE) => what.kind,
        (SOL_SOCKET, so::DOMAIN) => what.family.into(),
        (SOL_SOCKET, so::PROTOCOL) => what.protocol,
        (SOL_SOCKET, so::ACCEPTCONN) => what.listening.into(),
        (SOL_SOCKET, so::ERROR) => (live.take_error)().map_or(0, |e| e.0 as u32),
        (SOL_SOCKET, so::REUSEADDR) => options.reuse_addr.into(),
        (SOL_SOCKET, so::REUSEPORT) => options.reuse_port.into(),
        (SOL_SOCKET, so::BROADCAST) => options.broadcast.into(),
        (SOL_SOCKET, so::KEEPALIVE) => options.keep_alive_on.into(),
        (SOL_SOCKET, so::OOBINLINE) => options.oob_inline.into(),
        (SOL_SOCKET, so::PASSCRED) => options.pass_credentials.into(),
        (SOL_SOCKET, so::PRIORITY) => options.priority,
        (SOL_SOCKET, so::DONTROUTE) => 0,
        (SOL_SOCKET, so::RCVLOWAT | so::SNDLOWAT) => 1,
        (SOL_SOCKET, so::SNDBUF) => options.send_buffer,
        (SOL_SOCKET, so::RCVBUF) => options.receive_buffer,
        (IPPROTO_TCP, tcp::NODELAY) => options.no_delay.into(),
        (IPPROTO_TCP, tcp::CORK) => options.cork.into(),
        (IPPROTO_TCP, tcp::QUICKACK) => options.quick_ack.into(),
        (IPPROTO_TCP, tcp::KEEPIDLE) => options.keep_idle_s,
        (IPPROTO_TCP, tcp::KEEPINTVL) => options.keep_interval_s,
        (IPPROTO_TCP, tcp::KEEPCNT) => options.keep_count,
        (IPPROTO_TCP, tcp::USER_TIMEOUT) => options.user_timeout_ms,
        (IPPROTO_TCP, tcp::DEFER_ACCEPT) => options.defer_accept_s,
        (IPPROTO_TCP, tcp::MAXSEG) => (live.tcp_info)().snd_mss,
        (IPPROTO_TCP, tcp::SYNCNT) => 6,
        (IPPROTO_TCP, tcp::LINGER2) => (super::flow::FIN_TIMEOUT_NS / SECOND) as u32,
        (IPPROTO_IP, ip::TOS) => options.tos.into(),
        (IPPROTO_IP, ip::TTL) => options.ttl.into(),
        (IPPROTO_IP, ip::MTU_DISCOVER) => options.mtu_discover,
        (IPPROTO_IP, ip::RECVERR) => 0,
        _ => return Err(ENOPROTOOPT),
    };
    put(value, room, addr, len_addr)
}

fn put<T: user::Plain>(value: T, room: usize, addr: u64, len_addr: u64) -> Result<()> {
    let len = size_of::<T>().min(room);
    // SAFETY: `T` is plain data without padding (all types used here), so it can be read as bytes.
    let bytes = unsafe { core::slice::from_raw_parts((&raw const value).cast::<u8>(), len) };
    user::copy_out(addr, bytes)?;
    user::write(len_addr, len as u32)
}
