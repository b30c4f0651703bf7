//! UDP: every flow gets a gateway port of its own, so that the guest's answer finds its way back.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::{FlowId, MAX_FLOWS};

/// Lowest gateway port, for UDP and TCP alike.
pub(super) const FIRST_PORT: u16 = 1024;
/// How many there are.
pub(super) const PORTS: u64 = (u16::MAX - FIRST_PORT) as u64 + 1;

/// The port that a number would like to have. The same in every replica, because guests show their clients' ports (in logs,
/// in answers).
pub(super) fn wanted_port(number: u64) -> u16 {
    FIRST_PORT + (number % PORTS) as u16
}

/// The next port after one, round and round.
pub(super) fn next_port(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(FIRST_PORT)
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Flow {
    pub(super) id: FlowId,
    pub(super) guest_port: u16,
    /// Counts uses of any flow; the smallest has been silent longest.
    last_used: u64,
}

/// All flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Flows {
    by_port: BTreeMap<u16, Flow>,
    #[serde(skip)]
    ports: HashMap<FlowId, u16>,
    uses: u64,
}

impl Flows {
    /// Rebuilds what is not saved. False: two ports have the same flow, or there are too many.
    pub(super) fn index(&mut self) -> bool {
        self.ports = self
            .by_port
            .iter()
            .map(|(&port, flow)| (flow.id, port))
            .collect();
        self.ports.len() == self.by_port.len() && self.ports.len() <= MAX_FLOWS
    }

    /// The gateway port of a flow, and whether another was forgotten for it.
    pub(super) fn port_of(&mut self, id: FlowId, guest_port: u16) -> (u16, bool) {
        self.uses += 1;
        if let Some(&port) = self.ports.get(&id)
            && let Some(flow) = self.by_port.get_mut(&port)
        {
            flow.last_used = self.uses;
            flow.guest_port = guest_port;
            return (port, false);
        }
        let mut evicted = false;
        if self.by_port.len() >= MAX_FLOWS {
            let oldest = self.by_port.iter().min_by_key(|(_, flow)| flow.last_used);
            if let Some((&port, _)) = oldest
                && let Some(flow) = self.by_port.remove(&port)
            {
                self.ports.remove(&flow.id);
                evicted = true;
            }
        }
        let mut port = wanted_port(id);
        // There are far more ports than flows, so this ends soon.
        while self.by_port.contains_key(&port) {
            port = next_port(port);
        }
        self.by_port.insert(
            port,
            Flow {
                id,
                guest_port,
                last_used: self.uses,
            },
        );
        self.ports.insert(id, port);
        (port, evicted)
    }

    /// Whose datagrams of the guest to this port are.
    pub(super) fn flow_at(&mut self, gateway_port: u16, guest_port: u16) -> Option<FlowId> {
        let flow = self.by_port.get_mut(&gateway_port)?;
        if flow.guest_port != guest_port {
            return None;
        }
        self.uses += 1;
        flow.last_used = self.uses;
        Some(flow.id)
    }
}
