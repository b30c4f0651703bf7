//! Finds the connection that a segment belongs to: a hash table with chains through the flows themselves. smoltcp
//! would search all sockets for each packet.

use super::flow::Flow;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Index of a flow.
pub type FlowId = u32;
const NONE: FlowId = u32::MAX;
const FIRST_BUCKETS: usize = 64;

/// What identifies a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowKey {
    /// Our address.
    pub local: u32,
    /// The peer's address.
    pub remote: u32,
    /// Our port.
    pub local_port: u16,
    /// The peer's port.
    pub remote_port: u16,
}

impl FlowKey {
    /// The key seen from the other end.
    pub fn reversed(self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            local_port: self.remote_port,
            remote_port: self.local_port,
        }
    }

    /// A number to spread keys by. `secret` keeps a peer from choosing ports that collide.
    pub fn hash(self, secret: u64) -> u64 {
        let addresses = u64::from(self.local) << 32 | u64::from(self.remote);
        let ports = u64::from(self.local_port) << 16 | u64::from(self.remote_port);
        let wide = u128::from(addresses ^ secret) * u128::from(ports ^ secret.rotate_left(32) | 1);
        (wide as u64) ^ (wide >> 64) as u64
    }
}

struct Slot {
    flow: Option<Box<Flow>>,
    /// Next flow in the same bucket.
    next: FlowId,
}

/// All flows by id and by key.
pub struct FlowTable {
    slots: Vec<Slot>,
    free: Vec<FlowId>,
    buckets: Vec<FlowId>,
    secret: u64,
    count: usize,
}

impl FlowTable {
    /// An empty table.
    pub fn new(secret: u64) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            buckets: Vec::new(),
            secret,
            count: 0,
        }
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The flow with this id.
    pub fn get(&self, id: FlowId) -> Option<&Flow> {
        self.slots.get(id as usize)?.flow.as_deref()
    }

    /// The flow with this id.
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.slots.get_mut(id as usize)?.flow.as_deref_mut()
    }

    /// All ids in use, ascending.
    pub fn ids(&self) -> impl Iterator<Item = FlowId> + '_ {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.flow.is_some())
            .map(|(id, _)| id as FlowId)
    }

    fn bucket(&self, key: FlowKey) -> Option<usize> {
        // The number of buckets is a power of two.
        let mask = self.buckets.len().checked_sub(1)?;
        Some(key.hash(self.secret) as usize & mask)
    }

    /// The flow with this key.
    pub fn find(&self, key: FlowKey) -> Option<FlowId> {
        let mut id = self.buckets[self.bucket(key)?];
        while let Some(slot) = self.slots.get(id as usize) {
            if slot.flow.as_ref().is_some_and(|flow| flow.key == key) {
                return Some(id);
            }
            id = slot.next;
        }
        None
    }

    /// Adds a flow; its key must not be in the table.
    pub fn insert(&mut self, flow: Box<Flow>) -> FlowId {
        if self.count >= self.buckets.len() {
            self.grow();
        }
        let key = flow.key;
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                flow: None,
                next: NONE,
            });
            (self.slots.len() - 1) as FlowId
        });
        self.slots[id as usize].flow = Some(flow);
        self.link(id, key);
        self.count += 1;
        id
    }

    fn link(&mut self, id: FlowId, key: FlowKey) {
        if let Some(bucket) = self.bucket(key) {
            self.slots[id as usize].next = self.buckets[bucket];
            self.buckets[bucket] = id;
        }
    }

    fn grow(&mut self) {
        let size = (self.buckets.len() * 2).max(FIRST_BUCKETS);
        self.buckets = alloc::vec![NONE; size];
        for id in 0..self.slots.len() {
            if let Some(key) = self.slots[id].flow.as_ref().map(|flow| flow.key) {
                self.link(id as FlowId, key);
            }
        }
    }

    /// Takes a flow out.
    pub fn remove(&mut self, id: FlowId) -> Option<Box<Flow>> {
        let flow = self.slots.get_mut(id as usize)?.flow.take()?;
        let next = self.slots[id as usize].next;
        if let Some(bucket) = self.bucket(flow.key) {
            let mut at = self.buckets[bucket];
            if at == id {
                self.buckets[bucket] = next;
            } else {
                while let Some(slot) = self.slots.get_mut(at as usize) {
                    if slot.next == id {
                        slot.next = next;
                        break;
                    }
                    at = slot.next;
                }
            }
        }
        self.slots[id as usize].next = NONE;
        self.free.push(id);
        self.count -= 1;
        Some(flow)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn behaves_like_a_map() {
        let mut table = FlowTable::new(7);
        let mut model: HashMap<(u16, u16), FlowId> = HashMap::new();
        let mut state = 1u64;
        for _ in 0..4000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let ports = ((state >> 40) as u16 % 40, (state >> 20) as u16 % 20);
            let key = FlowKey {
                local: 1,
                remote: 2,
                local_port: ports.0,
                remote_port: ports.1,
            };
            assert_eq!(table.find(key), model.get(&ports).copied());
            if let Some(id) = model.remove(&ports) {
                assert_eq!(table.remove(id).map(|f| f.key), Some(key));
            } else {
                let id = table.insert(Box::new(Flow::for_key(key).expect("memory")));
                model.insert(ports, id);
            }
            assert_eq!(table.len(), model.len());
        }
        assert!(table.len() > 100);
    }
}
