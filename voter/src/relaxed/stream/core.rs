//! The state of one stream, and what moves it: bytes, ends, replicas that leave and come back.
//!
//! Positions are counted in *symbols*: bytes, and after the last of them the end, so that an end needs a quorum like
//! any byte.

use super::bytes::Bytes;
use super::history::{Digested, Digesting, History};
use super::{EndOfStream, Full, StreamLimits, StreamStats, Taken};
use crate::ids::ReplicaId;
use crate::relaxed::difference::{Departure, Reports, Requests};
use crate::relaxed::voters::Voters;

/// Ends that are the same. Whether a guest that closes says goodbye or breaks the connection depends on whether the
/// client's last bytes came a moment before or after, so healthy replicas may differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Closed,
    Refused,
}

impl From<EndOfStream> for End {
    fn from(how: EndOfStream) -> Self {
        match how {
            EndOfStream::Shut | EndOfStream::Reset => Self::Closed,
            EndOfStream::Refused => Self::Refused,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Symbol {
    Byte(u8),
    End(End),
}

/// Where a replica is.
#[derive(Clone, Debug)]
pub(super) struct Replica {
    /// It is running.
    pub(super) live: bool,
    /// Bytes it has said, on this branch.
    pub(super) said: u64,
    pub(super) end: Option<EndOfStream>,
    pub(super) branch: usize,
    /// Where it departed from what was released: since then it is left out.
    pub(super) lost_at: Option<u64>,
    /// Nobody waits for it here.
    pub(super) given_up: bool,
    /// Its word counts from this position on: what lies before, it has not said itself.
    pub(super) counts_from: u64,
    digesting: Option<Digesting>,
}

impl Replica {
    fn new() -> Self {
        Self {
            live: true,
            said: 0,
            end: None,
            branch: 0,
            lost_at: None,
            given_up: false,
            counts_from: 0,
            digesting: None,
        }
    }

    /// How far it has come, the end included.
    pub(super) fn symbols(&self) -> u64 {
        self.said + u64::from(self.end.is_some())
    }

    /// It has not differed.
    pub(super) fn agrees(&self) -> bool {
        self.lost_at.is_none()
    }
}

/// One version of the stream. All versions are equal up to what is released.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    pub(super) bytes: Bytes,
    pub(super) end: Option<End>,
    /// Up to where it equals each branch.
    pub(super) common: Vec<u64>,
}

impl Branch {
    pub(super) fn symbol(&self, at: u64) -> Option<Symbol> {
        if at == self.bytes.end() {
            return self.end.map(Symbol::End);
        }
        let [a, b] = self.bytes.slices(at, 1);
        a.first().or(b.first()).copied().map(Symbol::Byte)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Core {
    pub(super) voters: Voters,
    limits: StreamLimits,
    pub(crate) connection: u64,
    pub(super) replicas: Vec<Replica>,
    /// At least one; the first also holds what is retained of the released bytes.
    pub(super) branches: Vec<Branch>,
    history: History,
    /// Bytes released.
    pub(super) agreed: u64,
    pub(super) agreed_end: Option<EndOfStream>,
    /// Nobody can serve this connection any more: it was ended for that.
    pub(super) abandoned: bool,
    pub(super) taken: u64,
    end_told: bool,
    pub(super) requests: Requests,
    pub(crate) reports: Reports,
    unchecked: u64,
    ignored: u64,
}

impl Core {
    pub(crate) fn new(voters: &Voters, limits: StreamLimits) -> Self {
        Self {
            voters: *voters,
            limits,
            connection: 0,
            replicas: vec![Replica::new(); voters.len()],
            branches: vec![Branch {
                bytes: Bytes::new(0),
                end: None,
                common: vec![u64::MAX],
            }],
            history: History::new(*voters.key(), limits.retained),
            agreed: 0,
            agreed_end: None,
            abandoned: false,
            taken: 0,
            end_told: false,
            requests: Requests::default(),
            reports: Reports::default(),
            unchecked: 0,
            ignored: 0,
        }
    }

    /// Released, the end included.
    pub(super) fn agreed_symbols(&self) -> u64 {
        self.agreed + u64::from(self.agreed_end.is_some())
    }

    /// Index of a replica that may speak; what it says is counted as ignored otherwise.
    fn speaker(&mut self, replica: ReplicaId, symbols: usize) -> Option<usize> {
        let abandoned = self.abandoned;
        let index = usize::from(replica.0);
        let r = self.replicas.get_mut(index)?;
        if r.live && r.agrees() && r.end.is_none() && !abandoned {
            return Some(index);
        }
        if r.live && r.end.is_none() {
            r.said += symbols as u64;
        }
        self.ignored += symbols as u64;
        None
    }

    pub(crate) fn push(&mut self, replica: ReplicaId, bytes: &[u8]) -> Result<Taken, Full> {
        let taken = |bytes, news| Ok(Taken { bytes, news });
        let Some(index) = self.speaker(replica, bytes.len()) else {
            return taken(bytes.len(), false);
        };
        if bytes.is_empty() {
            return taken(0, false);
        }
        // R10: nobody is further ahead of the client than this.
        let most = self.taken + self.limits.unconfirmed as u64;
        let room = most.saturating_sub(self.replicas[index].said);
        let count = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if count == 0 {
            return Err(Full);
        }
        self.follow(index, &bytes[..count]);
        taken(count, self.settle())
    }

    /// Compares or appends.
    fn follow(&mut self, index: usize, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let Replica {
                said: at, branch, ..
            } = self.replicas[index];
            let retained = self.branches[0].bytes.start();
            if at < retained {
                let r = &mut self.replicas[index];
                let (state, unchecked) = (&mut r.digesting, &mut self.unchecked);
                match self.history.compare(state, at, retained, rest, unchecked) {
                    Digested::Took(n) => {
                        r.said += n as u64;
                        rest = &rest[n..];
                        continue;
                    }
                    Digested::Differs { from, to } => {
                        r.said += rest.len() as u64;
                        self.depart_within(index, from, to);
                        return;
                    }
                }
            }
            let same = self.branches[branch].bytes.same(at, rest);
            let at = at + same as u64;
            self.replicas[index].said = at;
            rest = &rest[same..];
            let Some(next) = rest.first() else { return };
            if at < self.agreed_symbols() {
                self.depart(index, at, Symbol::Byte(*next), rest);
                self.replicas[index].said += rest.len() as u64;
                return;
            }
            if let Some(other) = self.turn(branch, at, Symbol::Byte(*next)) {
                self.replicas[index].branch = other;
                continue;
            }
            let here = &mut self.branches[branch];
            if at == here.bytes.end() && here.end.is_none() {
                here.bytes.push(rest);
                self.replicas[index].said += rest.len() as u64;
                return;
            }
            self.replicas[index].branch = self.fork(branch, at);
        }
    }

    /// Another branch that is the same up to `at` and goes on with `symbol` there.
    fn turn(&self, branch: usize, at: u64, symbol: Symbol) -> Option<usize> {
        let common = &self.branches[branch].common;
        (0..self.branches.len()).find(|other| {
            *other != branch
                && common[*other] >= at
                && self.branches[*other].symbol(at) == Some(symbol)
        })
    }

    /// A new branch that is the same as `branch` up to `at`, with storage of its own for what is not released. There are
    /// never more branches than replicas, since each is said by one (R10).
    fn fork(&mut self, branch: usize, at: u64) -> usize {
        let from = &self.branches[branch];
        let mut bytes = Bytes::new(self.agreed);
        for slice in from.bytes.slices(self.agreed, (at - self.agreed) as usize) {
            bytes.push(slice);
        }
        let mut common: Vec<u64> = from.common.iter().map(|c| at.min(*c)).collect();
        for (other, common) in self.branches.iter_mut().zip(&common) {
            other.common.push(*common);
        }
        common.push(u64::MAX);
        self.branches.push(Branch {
            bytes,
            end: None,
            common,
        });
        self.branches.len() - 1
    }

    pub(crate) fn end(&mut self, replica: ReplicaId, how: EndOfStream) -> bool {
        let Some(index) = self.speaker(replica, 0) else {
            return false;
        };
        self.replicas[index].end = Some(how);
        let (at, symbol) = (self.replicas[index].said, Symbol::End(how.into()));
        if at < self.agreed_symbols() {
            let released = match at < self.agreed {
                true => None,
                false => self.agreed_end.map(|how| Symbol::End(how.into())),
            };
            let digesting = self.replicas[index].digesting.as_ref();
            match digesting.map(Digesting::from).filter(|from| *from < at) {
                // What it said of this piece was not compared yet.
                Some(from) => self.end_within(index, from, at),
                None if released != Some(symbol) => self.depart(index, at, symbol, &[]),
                None => {}
            }
            return self.settle();
        }
        let branch = self.replicas[index].branch;
        if self.branches[branch].symbol(at) != Some(symbol) {
            let to = match self.turn(branch, at, symbol) {
                Some(other) => other,
                None if self.branches[branch].symbol(at).is_none() => branch,
                None => self.fork(branch, at),
            };
            self.branches[to].end = Some(how.into());
            self.replicas[index].branch = to;
        }
        self.settle()
    }

    pub(crate) fn take_released(&mut self, into: &mut Vec<u8>) -> Option<EndOfStream> {
        let count = self.agreed - self.taken;
        for slice in self.branches[0].bytes.slices(self.taken, count as usize) {
            into.extend_from_slice(slice);
        }
        self.taken = self.agreed;
        self.forget();
        let end = self.agreed_end.filter(|_| !self.end_told);
        self.end_told |= end.is_some();
        end
    }

    /// Turns what is retained beyond the bound into digests (R10), a few pieces at a time.
    fn forget(&mut self) {
        let (start, step) = (self.branches[0].bytes.start(), self.history.step());
        let spare = (self.taken - start).saturating_sub(self.limits.retained as u64);
        if spare < step {
            return;
        }
        let to = (start + spare) / step * step;
        let mut places = [0; crate::ids::MAX_REPLICAS];
        for (place, r) in places.iter_mut().zip(&self.replicas) {
            *place = if r.live && r.agrees() { r.said } else { 0 };
        }
        self.history.digest(&self.branches[0].bytes, to, &places);
        self.branches[0].bytes.forget(to);
    }

    pub(crate) fn leave(&mut self, replica: ReplicaId, crashed: bool) -> bool {
        let index = usize::from(replica.0);
        match self.replicas.get_mut(index) {
            Some(r) if r.live => r.live = false,
            _ => return false,
        }
        if crashed && self.replicas[index].agrees() && !self.is_over(index) {
            self.report(index, Departure::Crashed);
        }
        self.settle()
    }

    /// The replica has said all there is.
    fn is_over(&self, index: usize) -> bool {
        self.agreed_end.is_some() && self.replicas[index].end.is_some()
    }

    pub(crate) fn enter(&mut self, replica: ReplicaId, position: u64) {
        let agreed = self.agreed;
        let Some(r) = self.replicas.get_mut(usize::from(replica.0)) else {
            return;
        };
        let fresh = Replica::new();
        let before = std::mem::replace(r, fresh);
        r.said = position;
        r.counts_from = before.counts_from.min(position);
        match before.lost_at {
            // It departed before: what it says from here on is not what was released.
            Some(at) if position > at.min(agreed) => r.lost_at = Some(at),
            Some(_) => {}
            // What is released, only the first branch holds.
            None if position < agreed => {}
            None if position <= before.said => r.branch = before.branch,
            None if position > agreed => r.lost_at = Some(position),
            None => {}
        }
        self.prune();
        self.settle();
    }

    pub(crate) fn enter_like(&mut self, replica: ReplicaId, source: ReplicaId) {
        let index = usize::from(replica.0);
        let Some(like) = self.replicas.get(usize::from(source.0)).cloned() else {
            return;
        };
        if let Some(r) = self.replicas.get_mut(index) {
            *r = Replica {
                live: true,
                given_up: false,
                counts_from: like.symbols().max(like.counts_from),
                ..like
            };
        }
        self.prune();
        self.settle();
    }

    /// A replica that departed here is taken to stand at `position` of what was released, from where it is compared again, and counts
    /// again. False if it has not departed, or cannot stand there.
    pub(super) fn rejoin(&mut self, replica: ReplicaId, position: u64) -> bool {
        let over = self.agreed_end.is_some() || self.abandoned || position > self.agreed;
        let Some(r) = self.replicas.get_mut(usize::from(replica.0)) else {
            return false;
        };
        if over || !r.live || r.agrees() || r.end.is_some() {
            return false;
        }
        *r = Replica {
            said: position,
            counts_from: position,
            ..Replica::new()
        };
        true
    }

    /// A replica takes part in this connection no longer, without having differed.
    pub(super) fn leave_out(&mut self, index: usize) {
        if let Some(r) = self.replicas.get_mut(index) {
            r.lost_at.get_or_insert(r.said);
        }
        self.prune();
        self.settle();
    }

    /// Drops what nobody says any more, after a replica took words back.
    fn prune(&mut self) {
        for b in 0..self.branches.len() {
            let said = |r: &&Replica| r.branch == b && r.agrees();
            let most = self.replicas.iter().filter(said).map(Replica::symbols);
            let most = most.max().unwrap_or(0).max(self.agreed_symbols());
            let branch = &mut self.branches[b];
            if branch.bytes.end() + 1 > most {
                branch.end = None;
            }
            branch.bytes.truncate(most);
            let end = branch.bytes.end() + u64::from(branch.end.is_some());
            for other in 0..self.branches.len() {
                if other != b {
                    let common = &mut self.branches[b].common[other];
                    *common = end.min(*common);
                    self.branches[other].common[b] = *common;
                }
            }
        }
        self.drop_empty();
    }

    pub(crate) fn mark(&mut self, replica: ReplicaId) {
        if let Some(r) = self.replicas.get(usize::from(replica.0)) {
            self.history.mark(r.said);
        }
    }

    pub(crate) fn position(&self, replica: ReplicaId) -> u64 {
        let r = self.replicas.get(usize::from(replica.0));
        r.map_or(0, |r| r.said)
    }

    pub(crate) fn released(&self) -> u64 {
        self.agreed
    }

    pub(crate) fn takes_part(&self, replica: ReplicaId) -> bool {
        let r = self.replicas.get(usize::from(replica.0));
        r.is_some_and(|r| r.live && r.agrees()) && !self.abandoned
    }

    pub(crate) fn give_up_on(&mut self, replica: ReplicaId) -> bool {
        let index = usize::from(replica.0);
        let owes = self.owes(index);
        match self.replicas.get_mut(index) {
            // It is the primary's word that the others are waited for with: without it there is nothing to give.
            Some(r) if r.live && !r.given_up && self.voters.primary() != Some(index) => {
                r.given_up = true;
            }
            _ => return false,
        }
        if owes {
            self.report(index, Departure::Missing);
        }
        self.settle()
    }

    pub(crate) fn note_input(&mut self, position: u64, bytes: &[u8]) {
        self.requests.note(self.agreed, position, bytes);
    }

    pub(crate) fn stats(&self) -> StreamStats {
        StreamStats {
            released: self.agreed,
            unchecked: self.unchecked,
            ignored: self.ignored,
            differences_dropped: self.reports.dropped,
            held: self.branches.iter().map(|b| b.bytes.held()).sum(),
        }
    }
}
