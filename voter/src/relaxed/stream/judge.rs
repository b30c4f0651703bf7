//! What may be released, whose word it is, and whether anything still can be.

use super::EndOfStream;
use super::core::{Core, Replica};
use crate::ids::{MAX_REPLICAS, ReplicaId};
use crate::relaxed::difference::{DIFFERENCE_EXCERPT_BYTES, Side, Undecided};

impl Core {
    /// How far the replica's words go along `branch`.
    fn reach(&self, r: &Replica, branch: usize) -> u64 {
        match r.branch == branch {
            true => r.symbols(),
            false => r.symbols().min(self.branches[r.branch].common[branch]),
        }
    }

    /// The replica's vote counts at what is to be released next.
    fn votes(&self, index: usize, r: &Replica) -> bool {
        r.agrees() && self.voters.counts(index) && r.counts_from <= self.agreed_symbols()
    }

    /// The primary, if its word is what counts now: it is running and has not fallen behind what the others released
    /// while it was away.
    fn primary(&self) -> Option<usize> {
        let index = self.voters.primary()?;
        let r = self.replicas.get(index)?;
        let here = r.symbols() >= self.agreed_symbols() && r.counts_from <= self.agreed_symbols();
        (r.live && r.agrees() && here).then_some(index)
    }

    /// How far `branch` has a quorum (R2).
    fn quorum_on(&self, branch: usize) -> u64 {
        let mut reached = [0; MAX_REPLICAS];
        let mut votes = 0;
        for (index, r) in self.replicas.iter().enumerate() {
            if self.votes(index, r) {
                reached[votes] = self.reach(r, branch);
                votes += 1;
            }
        }
        let quorum = self.voters.quorum();
        if votes < quorum {
            return 0;
        }
        let reached = &mut reached[..votes];
        reached.sort_unstable_by(|a, b| b.cmp(a));
        reached[quorum - 1]
    }

    /// How far the primary's word is confirmed: by every other live voter, unless that one has said something else or was
    /// given up on.
    fn confirmed(&self, primary: usize) -> u64 {
        let p = &self.replicas[primary];
        let mut most = p.symbols();
        for (index, r) in self.replicas.iter().enumerate() {
            if index == primary || !self.voters.counts(index) {
                continue;
            }
            let reach = self.reach(r, p.branch);
            let differs = r.symbols() > reach && p.symbols() > reach;
            if r.live && r.agrees() && !r.given_up && !differs {
                most = most.min(reach);
            }
        }
        most
    }

    /// Releases what can be. True if there is something new to fetch.
    pub(super) fn settle(&mut self) -> bool {
        let before = self.agreed_symbols();
        loop {
            let (to, branch) = match self.primary() {
                Some(p) => (self.confirmed(p), self.replicas[p].branch),
                None if self.branches.len() == 1 => (self.quorum_on(0), 0),
                None => (0..self.branches.len())
                    .map(|b| (self.quorum_on(b), b))
                    .max()
                    .unwrap_or((0, 0)),
            };
            if to <= self.agreed_symbols() || self.agreed_end.is_some() {
                break;
            }
            let so_far = self.agreed_symbols();
            self.advance(to, branch);
            if self.agreed_symbols() == so_far {
                break;
            }
        }
        self.abandon();
        self.agreed_symbols() != before || !self.reports.is_empty()
    }

    /// Releases `branch` up to `to`: who said something else there has lost (R5).
    fn advance(&mut self, to: u64, branch: usize) {
        if self.branches.len() > 1 {
            self.choose(to, branch);
        }
        let end = self.branches[0].bytes.end();
        self.agreed = to.min(end);
        if to > end {
            self.agreed_end = Some(self.kind_of_end());
        }
        if self.branches.len() > 1 {
            for r in &mut self.replicas {
                let common = self.branches[r.branch].common[0];
                if r.symbols() <= common {
                    r.branch = 0;
                }
            }
            let agreed = self.agreed;
            self.branches
                .iter_mut()
                .skip(1)
                .for_each(|b| b.bytes.forget(agreed));
            self.drop_empty();
        }
    }

    /// Makes the first branch one that is `branch` up to `to`.
    fn choose(&mut self, to: u64, branch: usize) {
        for index in 0..self.replicas.len() {
            let r = &self.replicas[index];
            let common = self.branches[r.branch].common[branch];
            if !r.agrees() || r.branch == branch || common >= to {
                continue;
            }
            match r.symbols() > common {
                true => self.depart_branch(index, common, branch),
                false => self.replicas[index].branch = branch,
            }
        }
        let common = self.branches[0].common[branch];
        if branch == 0 || common >= to {
            return;
        }
        // Nobody is on the first branch any more, but what is retained stays there.
        let mut chosen = self.branches[branch].clone();
        std::mem::swap(&mut chosen.bytes, &mut self.branches[0].bytes);
        let (first, rest) = (&mut chosen.bytes, &self.branches[0].bytes);
        first.truncate(common);
        for slice in rest.slices(common, usize::MAX) {
            first.push(slice);
        }
        chosen.common[0] = u64::MAX;
        self.branches[0] = chosen;
        for b in 1..self.branches.len() {
            self.branches[b].common[0] = self.branches[0].common[b];
        }
        for r in self.replicas.iter_mut().filter(|r| r.branch == branch) {
            r.branch = 0;
        }
        self.branches[branch].common[branch] = u64::MAX;
        self.drop_branch(branch);
    }

    fn drop_branch(&mut self, branch: usize) {
        self.branches.remove(branch);
        for b in &mut self.branches {
            b.common.remove(branch);
        }
        for r in self.replicas.iter_mut().filter(|r| r.branch >= branch) {
            // Only one that has lost can still point at the branch itself.
            r.branch = if r.branch == branch { 0 } else { r.branch - 1 };
        }
    }

    /// Drops branches on which nobody is.
    pub(super) fn drop_empty(&mut self) {
        for b in (1..self.branches.len()).rev() {
            if !self.replicas.iter().any(|r| r.agrees() && r.branch == b) {
                self.drop_branch(b);
            }
        }
    }

    /// The primary's kind of end, or the one that most voters said; a break if that is a tie.
    fn kind_of_end(&self) -> EndOfStream {
        let said = |index: usize| self.replicas.get(index).and_then(|r| r.end);
        if let Some(how) = self.primary().and_then(said) {
            return how;
        }
        let count = |how| {
            let same = |(index, r): &(usize, &Replica)| {
                self.votes(*index, r) && r.branch == 0 && r.end == Some(how)
            };
            self.replicas.iter().enumerate().filter(same).count()
        };
        let kinds = [EndOfStream::Shut, EndOfStream::Reset, EndOfStream::Refused];
        kinds
            .into_iter()
            .max_by_key(|how| count(*how))
            .unwrap_or(EndOfStream::Reset)
    }

    /// The primary is gone, and so many of the others had differed on this connection that they cannot serve it: it ends.
    fn abandon(&mut self) {
        let Some(primary) = self.voters.primary() else {
            return;
        };
        let gone = self.replicas.get(primary).is_some_and(|r| !r.live);
        let able = |(index, r): &(usize, &Replica)| self.voters.counts(*index) && r.agrees();
        let able = self.replicas.iter().enumerate().filter(able).count();
        let others = (0..self.replicas.len())
            .filter(|i| self.voters.counts(*i))
            .count();
        if gone && able < others && able < self.voters.quorum() && self.agreed_end.is_none() {
            self.agreed_end = Some(EndOfStream::Reset);
            self.abandoned = true;
        }
    }

    /// The replica can still say what others have said beyond the released.
    pub(super) fn owes(&self, index: usize) -> bool {
        let agreed = self.agreed_symbols();
        let waits = |r: &Replica| r.live && r.agrees() && r.symbols() <= agreed;
        let ahead = |(other, r): (usize, &Replica)| {
            other != index
                && (self.voters.counts(other) || self.voters.primary() == Some(other))
                && r.agrees()
                && r.symbols() > agreed
        };
        self.agreed_end.is_none()
            && self.replicas.get(index).is_some_and(waits)
            && self.replicas.iter().enumerate().any(ahead)
    }

    pub(crate) fn waits_for(&self, replica: ReplicaId) -> bool {
        let index = usize::from(replica.0);
        let counts = self.voters.counts(index) || self.voters.primary() == Some(index);
        // Without a primary every voter may be needed, also one that it would not wait for.
        let given_up = |r: &Replica| r.given_up && self.primary().is_some();
        counts && !self.replicas.get(index).is_some_and(given_up) && self.owes(index)
    }

    /// Most votes that the next symbol can still get: of those who have said it, and of those who run and have not come so
    /// far.
    fn possible(&self) -> usize {
        let at = self.agreed_symbols();
        let on = |branch: usize| {
            let could = |(index, r): &(usize, &Replica)| {
                let reach = self.reach(r, branch);
                self.votes(*index, r) && (reach > at || (r.live && r.symbols() == reach.min(at)))
            };
            self.replicas.iter().enumerate().filter(could).count()
        };
        (0..self.branches.len()).map(on).max().unwrap_or(0)
    }

    pub(crate) fn undecided(&self) -> Option<Undecided> {
        if self.primary().is_some() || (self.agreed_end.is_some() && !self.abandoned) {
            return None;
        }
        let (quorum, possible) = (self.voters.quorum(), self.possible());
        if possible >= quorum && !self.abandoned {
            return None;
        }
        let mut sides: Vec<(usize, Side)> = Vec::new();
        for (index, r) in self.replicas.iter().enumerate() {
            if !r.agrees() || !self.voters.counts(index) || r.symbols() <= self.agreed_symbols() {
                continue;
            }
            let id = ReplicaId(index as u8);
            match sides.iter_mut().find(|(branch, _)| *branch == r.branch) {
                Some((_, side)) => side.replicas.push(id),
                None => {
                    let said = self.branches[r.branch]
                        .bytes
                        .copy(self.agreed, DIFFERENCE_EXCERPT_BYTES);
                    let side = Side {
                        replicas: vec![id],
                        ended: said.is_empty(),
                        said,
                    };
                    sides.push((r.branch, side));
                }
            }
        }
        Some(Undecided {
            connection: self.connection,
            position: self.agreed,
            quorum,
            possible,
            sides: sides.into_iter().map(|(_, side)| side).collect(),
        })
    }
}
