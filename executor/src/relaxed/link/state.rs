//! Saving an endpoint and going on from what was saved.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::boot::Boot;
use super::conn::{Conn, Reaction};
use super::datagrams::Flows;
use super::endpoint::{Datagram, EVENT_OVERHEAD};
use super::*;

/// Version of [`LinkState`].
const VERSION: u32 = 2;

/// All that an endpoint knows, as plain data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkState {
    version: u32,
    config: LinkConfig,
    now: u64,
    next_number: u64,
    conns: Vec<Conn>,
    datagrams: BTreeMap<u64, Datagram>,
    flows: Flows,
    replies: Vec<Vec<u8>>,
    /// Ports of connections that owe an acknowledgement, in their order.
    acks: Vec<u16>,
    events: Vec<FromGuest>,
    may_hold: bool,
    boot: Boot,
    counters: LinkCounters,
}

impl LinkState {
    /// The time that the endpoint was told last.
    pub fn now_ns(&self) -> u64 {
        self.now
    }

    /// Bytes that it holds, roughly.
    pub fn size(&self) -> usize {
        let streams: usize = self.conns.iter().map(Conn::unsent).sum();
        let datagrams: usize = self.datagrams.values().map(|d| d.bytes.len()).sum();
        streams + datagrams + self.conns.len() * size_of::<Conn>()
    }
}

/// Why an endpoint cannot go on from a state.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RestoreLinkError {
    /// Another version wrote it.
    #[error(
        "the saved network endpoint has version {0}, this program knows {VERSION}; start the replica afresh"
    )]
    Version(u32),
    /// It contradicts itself.
    #[error("the saved network endpoint is damaged ({0}); start the replica afresh")]
    Damaged(&'static str),
}

impl Link {
    /// All that this endpoint knows.
    pub fn save(&self) -> LinkState {
        let mut conns: Vec<Conn> = self.conns.values().cloned().collect();
        conns.sort_unstable_by_key(|conn| conn.port);
        LinkState {
            version: VERSION,
            config: self.config.clone(),
            now: self.now,
            next_number: self.next_number,
            conns,
            datagrams: self.datagrams.clone(),
            flows: self.flows.clone(),
            replies: self.replies.iter().cloned().collect(),
            acks: self.acks.iter().copied().collect(),
            events: self.events.clone(),
            may_hold: self.may_hold,
            boot: self.boot.clone(),
            counters: self.counters,
        }
    }

    /// An endpoint that goes on from a state. Its time goes on from `now_ns`: timers have as long to go as they had.
    ///
    /// # Errors
    /// The state is of another version or contradicts itself.
    pub fn restore(state: LinkState, now_ns: u64) -> Result<Link, RestoreLinkError> {
        if state.version != VERSION {
            return Err(RestoreLinkError::Version(state.version));
        }
        let mut link = Link {
            config: state.config,
            now: now_ns,
            next_number: state.next_number,
            conns: HashMap::new(),
            ports: HashMap::new(),
            datagrams: state.datagrams,
            flows: state.flows,
            replies: state.replies.into(),
            events: state.events,
            may_hold: state.may_hold,
            boot: state.boot,
            counters: state.counters,
            event_bytes: 0,
            unsent_total: 0,
            unsettled: 0,
            ready: BTreeMap::new(),
            held: BTreeMap::new(),
            timers: BTreeSet::new(),
            acks: VecDeque::new(),
        };
        let damaged = |what| Err(RestoreLinkError::Damaged(what));
        if !link.boot.restored(state.now, now_ns) {
            return damaged("probes");
        }
        if !link.flows.index() {
            return damaged("UDP flows");
        }
        let late = |number: &u64| *number >= link.next_number;
        if link.datagrams.len() > MAX_DATAGRAMS || link.datagrams.keys().any(late) {
            return damaged("datagrams");
        }
        link.unsent_total = link.datagrams.values().map(|d| d.bytes.len()).sum();
        link.event_bytes = link.events.iter().map(FromGuest::room).sum();
        if state.conns.len() > MAX_CONNECTIONS {
            return damaged("too many connections");
        }
        for mut conn in state.conns {
            if !conn.rebuild() {
                return damaged("positions of a connection");
            }
            conn.shift(state.now, now_ns);
            let port = conn.port;
            let twice = link.ports.insert(conn.id, port).is_some();
            if twice || link.conns.insert(port, conn).is_some() {
                return damaged("two connections with one number or port");
            }
        }
        for port in state.acks {
            match link.conns.get_mut(&port) {
                Some(conn) if !conn.lists.ack => conn.lists.ack = true,
                _ => return damaged("acknowledgements"),
            }
            link.acks.push_back(port);
        }
        let ports: Vec<u16> = link.conns.keys().copied().collect();
        for port in ports {
            link.settle(port, Reaction::Nothing);
        }
        Ok(link)
    }
}

impl FromGuest {
    /// Bytes of its payload.
    pub fn payload(&self) -> usize {
        match self {
            FromGuest::Data { bytes, .. } | FromGuest::Datagram { bytes, .. } => bytes.len(),
            _ => 0,
        }
    }

    /// What it takes of [`MAX_EVENT_BYTES`].
    fn room(&self) -> usize {
        match self {
            FromGuest::Data { bytes, .. } | FromGuest::Datagram { bytes, .. } => {
                bytes.len() + EVENT_OVERHEAD
            }
            _ => 0,
        }
    }

    /// The connection that it is about.
    pub fn conn(&self) -> Option<ConnId> {
        match self {
            FromGuest::Opened { conn }
            | FromGuest::Refused { conn }
            | FromGuest::Data { conn, .. }
            | FromGuest::Shut { conn }
            | FromGuest::Reset { conn } => Some(*conn),
            FromGuest::Listens { .. } | FromGuest::Datagram { .. } => None,
        }
    }
}

impl ToGuest {
    /// Bytes of its payload.
    pub fn payload(&self) -> usize {
        match self {
            ToGuest::Data { bytes, .. }
            | ToGuest::Datagram { bytes, .. }
            | ToGuest::Typed { bytes } => bytes.len(),
            _ => 0,
        }
    }

    /// The connection that it is about.
    pub fn conn(&self) -> Option<ConnId> {
        match self {
            ToGuest::Open { conn, .. }
            | ToGuest::Data { conn, .. }
            | ToGuest::Shut { conn }
            | ToGuest::Reset { conn } => Some(*conn),
            ToGuest::Datagram { .. } | ToGuest::Typed { .. } => None,
        }
    }
}
