//! Replicas that departed from what was released.

use super::bytes::Bytes;
use super::core::{Core, Symbol};
use crate::ids::ReplicaId;
use crate::relaxed::difference::{DIFFERENCE_EXCERPT_BYTES, Departure, Difference, EXCERPT_LEAD};

/// How a stream that goes on with `said` departs from one that goes on with `released`.
fn kind(said: Symbol, released: Option<Symbol>) -> Departure {
    match (said, released) {
        (Symbol::Byte(_), Some(Symbol::End(_))) => Departure::GoesOn,
        (Symbol::Byte(_), _) => Departure::Bytes,
        (Symbol::End(_), Some(Symbol::End(_))) => Departure::OtherEnd,
        (Symbol::End(_), _) => Departure::EndedEarly,
    }
}

impl Core {
    /// The replica goes on with `symbol` and the bytes `rest` at a place that is released already.
    pub(super) fn depart(&mut self, index: usize, at: u64, symbol: Symbol, rest: &[u8]) {
        let trunk = &self.branches[0].bytes;
        let released = match at < self.agreed {
            true => trunk
                .slices(at, 1)
                .concat()
                .first()
                .copied()
                .map(Symbol::Byte),
            false => self.agreed_end.map(|how| Symbol::End(how.into())),
        };
        let excerpt_at = at.saturating_sub(EXCERPT_LEAD as u64).max(trunk.start());
        let lead = at.saturating_sub(excerpt_at);
        let mut said = trunk.copy(excerpt_at, lead as usize);
        let room = DIFFERENCE_EXCERPT_BYTES - said.len();
        said.extend(rest.iter().take(room));
        let end = self.agreed.saturating_sub(excerpt_at) as usize;
        let most = DIFFERENCE_EXCERPT_BYTES.min(end);
        let excerpts = (
            excerpt_at,
            self.branches[0].bytes.copy(excerpt_at, most),
            said,
        );
        self.lose(index, at, kind(symbol, released), 0, excerpts);
    }

    /// The replica is on another branch than the one that is about to be released, from `at` on.
    pub(super) fn depart_branch(&mut self, index: usize, at: u64, chosen: usize) {
        let own = &self.branches[self.replicas[index].branch];
        let Some(symbol) = own.symbol(at) else { return };
        let released = self.branches[chosen].symbol(at);
        // All branches are the first one up to what is released, and only that one holds it.
        let trunk = &self.branches[0].bytes;
        let excerpt_at = at.saturating_sub(EXCERPT_LEAD as u64).max(trunk.start());
        let excerpt = |bytes: &Bytes| {
            let start = bytes.start().max(excerpt_at);
            let mut excerpt = trunk.copy(excerpt_at, (start - excerpt_at) as usize);
            excerpt.extend(bytes.copy(start, DIFFERENCE_EXCERPT_BYTES - excerpt.len()));
            excerpt
        };
        let (said, other) = (excerpt(&own.bytes), excerpt(&self.branches[chosen].bytes));
        let excerpts = (excerpt_at, other, said);
        self.lose(index, at, kind(symbol, released), 0, excerpts);
    }

    /// Somewhere in `from..to`, by digest.
    pub(super) fn depart_within(&mut self, index: usize, from: u64, to: u64) {
        let none = (from, Vec::new(), Vec::new());
        self.lose(index, from, Departure::Bytes, to - from, none);
    }

    /// It ended at `at`, in the middle of a piece that is compared by digest from `from` on.
    pub(super) fn end_within(&mut self, index: usize, from: u64, at: u64) {
        let none = (from, Vec::new(), Vec::new());
        self.lose(index, from, Departure::EndedEarly, at - from, none);
    }

    fn lose(
        &mut self,
        index: usize,
        at: u64,
        kind: Departure,
        within: u64,
        (excerpt_at, released, said): (u64, Vec<u8>, Vec<u8>),
    ) {
        self.replicas[index].lost_at = Some(at);
        self.reports.push(Difference {
            replica: ReplicaId(index as u8),
            connection: self.connection,
            kind,
            position: at,
            within,
            request: self.requests.at(at),
            excerpt_at,
            released,
            said,
        });
    }

    /// Says of a replica that it is missing or has crashed, where it is.
    pub(super) fn report(&mut self, index: usize, kind: Departure) {
        let at = self.replicas[index].said;
        let bytes = &self.branches[0].bytes;
        let released = match at < bytes.start() {
            true => Vec::new(),
            false => bytes.copy(at, DIFFERENCE_EXCERPT_BYTES),
        };
        self.reports.push(Difference {
            replica: ReplicaId(index as u8),
            connection: self.connection,
            kind,
            position: at,
            within: 0,
            request: self.requests.at(at),
            excerpt_at: at,
            released,
            said: Vec::new(),
        });
    }
}
