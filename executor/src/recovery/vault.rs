//! Where checkpoints wait. What the set's lock guards is only their list ([`super::ladder::Kept`]); the checkpoints
//! themselves, of whatever type the machine has, lie here.

use std::sync::Mutex;

use quorate_voter::MAX_REPLICAS;

use crate::sync::lock;

/// The checkpoints of all replicas. How many there are is bounded by the lists that they are named in: those kept, one that is
/// not decided yet, and one on loan (R10).
#[derive(Debug)]
pub struct Vaults<C> {
    of: Vec<Mutex<Vec<(u64, C)>>>,
}

impl<C> Default for Vaults<C> {
    fn default() -> Self {
        Vaults {
            of: (0..MAX_REPLICAS).map(|_| Mutex::default()).collect(),
        }
    }
}

impl<C: Clone> Vaults<C> {
    /// Puts one in.
    pub fn put(&self, replica: usize, id: u64, checkpoint: C) {
        if let Some(vault) = self.of.get(replica) {
            lock(vault).push((id, checkpoint));
        }
    }

    /// One of a replica's.
    pub fn get(&self, replica: usize, id: u64) -> Option<C> {
        let vault = lock(self.of.get(replica)?);
        let found = vault.iter().find(|(number, _)| *number == id);
        found.map(|(_, checkpoint)| checkpoint.clone())
    }

    /// Drops one of a replica's.
    pub fn remove(&self, replica: usize, id: u64) {
        if let Some(vault) = self.of.get(replica) {
            let mut vault = lock(vault);
            let found = vault.iter().position(|(number, _)| *number == id);
            let dropped = found.map(|index| vault.swap_remove(index));
            drop(vault);
            drop(dropped);
        }
    }

    /// Drops all of a replica's but these.
    pub fn retain(&self, replica: usize, ids: &[u64]) {
        let Some(vault) = self.of.get(replica) else {
            return;
        };
        let mut vault = lock(vault);
        let (kept, dropped) = std::mem::take(&mut *vault)
            .into_iter()
            .partition(|(id, _)| ids.contains(id));
        *vault = kept;
        // Freeing many pages takes a while; nobody need wait for it.
        drop(vault);
        let _: Vec<(u64, C)> = dropped;
    }

    /// How many a replica has.
    pub fn count(&self, replica: usize) -> usize {
        self.of.get(replica).map_or(0, |vault| lock(vault).len())
    }
}
