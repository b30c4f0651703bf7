//! What a guest without faults does: a function of the entries so far, and of nothing else.

use std::rc::Rc;

use quorate_voter::{Channel, Output};

use crate::rng::{Rng, mix};

/// A journal entry: what the leader found.
#[derive(Debug, PartialEq, Eq)]
pub struct SimEntry {
    /// No two entries are the same, not even for the same boundary.
    pub content: u64,
}

/// What a guest in this state wants to show.
pub fn outputs(state: u64, output_bytes: u64) -> Vec<Output> {
    let mut own = Rng::new(state);
    let mut outputs = Vec::new();
    for _ in 0..own.below(4) {
        let len = own.below(output_bytes + 1);
        let bytes = (0..len).map(|_| own.next() as u8).collect();
        outputs.push((Channel(own.below(3) as u16), bytes));
    }
    outputs
}

/// The state that an entry leads to.
pub fn after(state: u64, entry: &SimEntry) -> u64 {
    mix(state ^ entry.content)
}

/// The states of a guest without faults, by the boundary towards which it computes.
pub struct Truth {
    states: Vec<u64>,
    output_bytes: u64,
}

impl Truth {
    pub fn new(first: u64, output_bytes: u64) -> Self {
        Self {
            states: vec![first],
            output_bytes,
        }
    }

    /// The next entry was written.
    pub fn push(&mut self, entry: &Rc<SimEntry>) {
        if let Some(last) = self.states.last() {
            self.states.push(after(*last, entry));
        }
    }

    pub fn state(&self, boundary: u64) -> Option<u64> {
        self.states.get(boundary as usize).copied()
    }

    pub fn ballot(&self, boundary: u64) -> Option<Vec<Output>> {
        Some(outputs(self.state(boundary)?, self.output_bytes))
    }
}
