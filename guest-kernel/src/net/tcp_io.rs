//! What can be done with a connection, apart from the socket that holds it.

use super::flow::{Flow, TCP_RX_BUFFER};
use super::link::LOOPBACK_MTU;
use super::msg::TcpInfo;
use super::socket::parts_len;
use crate::errno::*;
use crate::file::ready;
use quorate_abi::net::MTU;
use smoltcp::socket::tcp::State as TcpState;

/// Readiness of a connection; the conditions are those of Linux's `tcp_poll`.
pub fn readiness(flow: &Flow) -> u32 {
    let state = flow.state();
    let mut mask = 0;
    let receive_shut =
        flow.read_shut || (flow.was_open || state == TcpState::Closed) && flow.peer_closed();
    let send_shut = flow.write_shut || state == TcpState::Closed;
    if (receive_shut && send_shut) || state == TcpState::Closed {
        mask |= ready::HUP;
    }
    if receive_shut {
        mask |= ready::IN | ready::RDNORM | ready::RDHUP;
    }
    if !matches!(state, TcpState::SynSent | TcpState::SynReceived) {
        if flow.socket().recv_queue() > 0 {
            mask |= ready::IN | ready::RDNORM;
        }
        if send_shut || flow.writable() {
            mask |= ready::OUT | ready::WRNORM;
        } else {
            flow.no_space.set(true);
        }
    }
    if flow.error.is_some() {
        mask |= ready::ERR;
    }
    mask
}

/// Takes received bytes out, or looks at them.
///
/// # Errors
/// As `recv(2)`.
pub fn receive_from(flow: &mut Flow, parts: &mut [&mut [u8]], peek: bool) -> Result<usize> {
    if flow.socket().recv_queue() > 0 {
        let socket = flow.socket_mut();
        if peek {
            return match parts.first_mut() {
                Some(part) => socket.peek_slice(part).map_err(|_| ENOTCONN),
                None => Ok(0),
            };
        }
        let mut done = 0;
        for part in parts {
            let count = socket.recv_slice(part).unwrap_or(0);
            done += count;
            if count < part.len() {
                break;
            }
        }
        return Ok(done);
    }
    let state = flow.state();
    if matches!(state, TcpState::SynSent | TcpState::SynReceived) {
        return Err(EAGAIN);
    }
    if matches!(
        state,
        TcpState::CloseWait | TcpState::LastAck | TcpState::Closing | TcpState::TimeWait
    ) {
        return Ok(0);
    }
    if let Some(error) = flow.error.take() {
        return Err(error);
    }
    if flow.read_shut || (state == TcpState::Closed && flow.was_open) {
        return Ok(0);
    }
    Err(if state == TcpState::Closed {
        ENOTCONN
    } else {
        EAGAIN
    })
}

/// Puts bytes into the send buffer.
///
/// # Errors
/// As `send(2)`.
pub fn send_to(flow: &mut Flow, parts: &[&[u8]]) -> Result<usize> {
    if let Some(error) = flow.error.take() {
        return Err(error);
    }
    if matches!(flow.state(), TcpState::SynSent | TcpState::SynReceived) && !flow.write_shut {
        return Err(EAGAIN);
    }
    if flow.write_shut || !flow.socket().may_send() {
        return Err(EPIPE);
    }
    if flow.socket().send_queue() == 0 {
        flow.progress_ns = crate::time::now_ns();
    }
    let mut done = 0;
    for part in parts {
        let count = flow.socket_mut().send_slice(part).unwrap_or(0);
        done += count;
        if count < part.len() {
            flow.no_space.set(true);
            break;
        }
    }
    if done == 0 && parts_len(parts) > 0 {
        return Err(EAGAIN);
    }
    Ok(done)
}

/// What `TCP_INFO` says of a connection.
pub fn info(flow: &Flow) -> TcpInfo {
    let mtu = if flow.loopback {
        LOOPBACK_MTU
    } else {
        MTU.into()
    } as u32;
    let mss = mtu - 40;
    let state = match flow.state() {
        TcpState::Established => 1,
        TcpState::SynSent => 2,
        TcpState::SynReceived => 3,
        TcpState::FinWait1 => 4,
        TcpState::FinWait2 => 5,
        TcpState::TimeWait => 6,
        TcpState::Closed => 7,
        TcpState::CloseWait => 8,
        TcpState::LastAck => 9,
        TcpState::Listen => 10,
        TcpState::Closing => 11,
    };
    TcpInfo {
        state,
        snd_mss: mss,
        rcv_mss: mss,
        advmss: mss,
        pmtu: mtu,
        unacked: (flow.socket().send_queue() as u32).div_ceil(mss),
        rcv_space: TCP_RX_BUFFER as u32,
        ..TcpInfo::default()
    }
}
