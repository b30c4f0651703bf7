//! Whether the guest listens yet. A machine that boots has its network up before its servers: what comes in between is refused, although
//! it would be served a moment later, and replicas do not boot equally fast.
//!
//! So the ports in [`LinkConfig::listens`] are *probed* from the start of the endpoint on: a SYN, sent again until the guest accepts it,
//! and then taken back by a reset. No program sees such a half-open connection, for the kernel gives it to `accept` only with the third
//! segment of the handshake. Connections to a port wait (without a SYN) until its probe was accepted; then all of them begin, in their
//! order. After [`LinkConfig::boot_ns`] nothing is probed any more, and what is refused is refused.

use serde::{Deserialize, Serialize};
use smoltcp::wire::TcpControl;

use super::wire::{Header, Segment, build};
use super::*;

/// Ports that are probed, at most (R10); connections to further ones do not wait.
pub const MAX_PROBES: usize = 256;
/// Wait before the second probe of a port; it doubles.
pub const PROBE_NS: u64 = 100 * MS;
/// Longest wait between two probes of a port.
pub const MAX_PROBE_NS: u64 = 1_000 * MS;
/// Gateway port of the first probe. The connections' own begin at 1024.
const FIRST_PORT: u16 = 512;

/// One port of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Probe {
    guest_port: u16,
    iss: u32,
    /// When the next SYN is due; `None`: the guest listens, or is not waited for any more.
    due: Option<u64>,
    tries: u32,
}

/// All probes of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Boot {
    probes: Vec<Probe>,
    boot_ns: u64,
    /// When nothing is probed any more; known as soon as the endpoint is told the time.
    until: Option<u64>,
}

/// What a segment said to a probe.
pub(super) enum Answer {
    /// Nothing is to be done.
    Taken,
    /// The segment is to be answered with a reset.
    Refuse,
    /// The guest listens on this port; the segment is to be answered with a reset.
    Listens,
}

impl Boot {
    pub(super) fn new(config: &LinkConfig, iss: impl Fn(u16) -> u32) -> Boot {
        let ports = config.listens.iter().take(MAX_PROBES);
        let probe = |(&guest_port, port): (&u16, u16)| Probe {
            guest_port,
            iss: iss(port),
            due: Some(0),
            tries: 0,
        };
        Boot {
            probes: ports.zip(FIRST_PORT..).map(probe).collect(),
            boot_ns: config.boot_ns,
            until: None,
        }
    }

    /// Whether connections to this port of the guest wait.
    pub(super) fn waits(&self, guest_port: u16) -> bool {
        let mut probes = self.probes.iter();
        probes.any(|probe| probe.guest_port == guest_port && probe.due.is_some())
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        let due = self.probes.iter().filter_map(|probe| probe.due).min()?;
        Some(self.until.map_or(due, |until| due.min(until)))
    }

    /// Time goes on: the frames that are due. True: the time for booting is over, and ports that were waited for are not any more.
    pub(super) fn tick(&mut self, now: u64, checksums: bool, frames: &mut Vec<Vec<u8>>) -> bool {
        if self.probes.iter().all(|probe| probe.due.is_none()) {
            return false;
        }
        let until = *self.until.get_or_insert(now.saturating_add(self.boot_ns));
        if now >= until {
            self.probes.iter_mut().for_each(|probe| probe.due = None);
            return true;
        }
        for (probe, gateway_port) in self.probes.iter_mut().zip(FIRST_PORT..) {
            if probe.due.is_none_or(|due| due > now) {
                continue;
            }
            // As when nobody answers: a refusal comes at once, and the next attempt as late.
            probe.due = Some(now + (PROBE_NS << probe.tries.min(16)).min(MAX_PROBE_NS));
            probe.tries = probe.tries.saturating_add(1);
            let header = Header {
                gateway_port,
                guest_port: probe.guest_port,
                seq: probe.iss,
                ack: None,
                window: 0,
                syn: Some(0),
                fin: false,
                push: false,
                reset: false,
            };
            frames.push(build(&header, 0, checksums, |_| {}));
        }
        false
    }

    /// A segment of the guest (R9).
    pub(super) fn answer(
        &mut self,
        gateway_port: u16,
        guest_port: u16,
        segment: &Segment<'_>,
    ) -> Answer {
        let index = gateway_port.checked_sub(FIRST_PORT).map(usize::from);
        let probe = index.and_then(|index| self.probes.get_mut(index));
        let Some(probe) = probe.filter(|probe| probe.guest_port == guest_port) else {
            return Answer::Refuse;
        };
        match segment.control {
            TcpControl::Rst => Answer::Taken,
            TcpControl::Syn if segment.ack == Some(probe.iss.wrapping_add(1)) => {
                match probe.due.take() {
                    Some(_) => Answer::Listens,
                    None => Answer::Refuse,
                }
            }
            _ => Answer::Refuse,
        }
    }

    /// Moves its times, after what was saved was checked. False: it cannot be.
    pub(super) fn restored(&mut self, from: u64, to: u64) -> bool {
        let dues = self.probes.iter_mut().map(|probe| &mut probe.due);
        for at in dues.chain([&mut self.until]).flatten() {
            *at = to.saturating_add(at.saturating_sub(from));
        }
        self.probes.len() <= MAX_PROBES
    }
}
