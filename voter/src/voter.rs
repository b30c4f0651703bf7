//! Votes: ballots by boundary, and when one of them has a quorum.
//!
//! A ballot counts as a whole: its supporters are the replicas that agree with all of it, on every channel and in
//! the order between channels. Then every channel position has at least those supporters (R2), and no release
//! can be put together from pieces that were each backed by a different majority, which would stop more than
//! a minority (R5).

use std::collections::VecDeque;

use crate::ballot::{Output, ballot_cost, first_difference, said};
use crate::ids::{Channel, ReplicaId, ReplicaSet};
use crate::pace::{Marks, Reached};
use crate::verdict::{Difference, DifferenceKind, NoMajorityCause, Party, Verdict};

/// Equal ballots: the bytes once, and who cast them.
#[derive(Debug)]
struct Group {
    outputs: Vec<Output>,
    cost: usize,
    votes: ReplicaSet,
}

/// One boundary. Once decided, only the agreed group is left, for those who come later to be compared with.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    groups: Vec<Group>,
    cast: ReplicaSet,
    pub(crate) marks: Marks,
    /// When the quorum that decided was there.
    pub(crate) decided: Option<Reached>,
}

impl Slot {
    /// Who has cast. Where the boundary is decided, those who were stopped since are included.
    pub(crate) fn cast(&self) -> ReplicaSet {
        self.cast
    }
}

/// What became of a ballot.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Its boundary is not decided. If the ballot equals one that is stored at the oldest undecided boundary, its
    /// bytes come back, so that a decision can release them by move and keep the stored ones.
    Open(Option<Vec<Output>>),
    /// Its boundary was decided before, and it agrees.
    Agrees,
    /// Its boundary was decided before, and it does not.
    Differs(Verdict),
}

/// What can be said about the oldest undecided boundary.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Nothing yet.
    Open,
    /// A quorum agrees.
    Agreed {
        boundary: u64,
        /// The longest that one of the first quorum needed.
        need_ns: u64,
        /// The outputs to release, in order.
        release: Vec<Output>,
        /// Who cast something else.
        outvoted: Vec<Verdict>,
    },
    /// Of those who run, no quorum can agree any more.
    Split {
        cause: NoMajorityCause,
        /// Votes that a ballot can still have, of those who run.
        within_reach: u8,
    },
}

/// All boundaries that are undecided, or that somebody who counts for the window has not cast yet.
#[derive(Debug)]
pub(crate) struct Voter {
    quorum: u8,
    /// Boundary of the first slot.
    base: u64,
    /// Oldest undecided boundary; all below are released.
    frontier: u64,
    slots: VecDeque<Slot>,
    bytes: usize,
}

impl Voter {
    /// All below `frontier` is decided.
    pub(crate) fn new(quorum: u8, frontier: u64) -> Self {
        Self {
            quorum,
            base: frontier,
            frontier,
            slots: VecDeque::new(),
            bytes: 0,
        }
    }

    /// The set has other members.
    pub(crate) fn set_quorum(&mut self, quorum: u8) {
        self.quorum = quorum;
    }

    /// Oldest undecided boundary: all below it are released.
    pub(crate) fn frontier(&self) -> u64 {
        self.frontier
    }

    /// Cost of the ballots that are stored.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn index(&self, boundary: u64) -> Option<usize> {
        usize::try_from(boundary.checked_sub(self.base)?).ok()
    }

    /// The slot of a boundary that somebody has cast and that is still kept.
    pub(crate) fn slot(&self, boundary: u64) -> Option<&Slot> {
        self.slots.get(self.index(boundary)?)
    }

    /// Takes a ballot. The caller has checked that it is the replica's next one: so its slot, or the
    /// place right after the last slot, exists.
    pub(crate) fn cast(
        &mut self,
        r: ReplicaId,
        boundary: u64,
        outputs: Vec<Output>,
        now_ns: u64,
        need_ns: u64,
    ) -> Taken {
        let Some(index) = self.index(boundary) else {
            return Taken::Agrees;
        };
        while self.slots.len() <= index {
            self.slots.push_back(Slot::default());
        }
        let slot = &mut self.slots[index];
        slot.cast = slot.cast.with(r);
        slot.marks.add(r, now_ns, need_ns);

        // R2: bytes against bytes. Honest ballots hit the first group.
        if let Some(group) = slot.groups.iter_mut().find(|g| g.outputs == outputs) {
            group.votes = group.votes.with(r);
            return match boundary {
                b if b < self.frontier => Taken::Agrees,
                b if b == self.frontier => Taken::Open(Some(outputs)),
                _ => Taken::Open(None),
            };
        }
        if boundary < self.frontier {
            return match slot.groups.first() {
                Some(agreed) => Taken::Differs(verdict(r, boundary, agreed, &outputs)),
                None => Taken::Agrees,
            };
        }
        let cost = ballot_cost(&outputs);
        self.bytes += cost;
        slot.groups.push(Group {
            outputs,
            cost,
            votes: ReplicaSet::default().with(r),
        });
        Taken::Open(None)
    }

    /// Whether this is what was released at a decided boundary; `None` if its bytes are no longer kept.
    pub(crate) fn agrees(&self, boundary: u64, outputs: &[Output]) -> Option<bool> {
        let slot = self.slot(boundary).filter(|_| boundary < self.frontier)?;
        Some(slot.groups.first()?.outputs == outputs)
    }

    /// Looks at the oldest undecided boundary, and only at it: so releases are in order (R3), and who is outvoted
    /// at one boundary has no vote at the next. Only votes of `running` replicas count. What is decided is kept for
    /// those of `paced` who have not come yet. `spare` are bytes equal to those of the group that may win,
    /// see [`Taken::Open`].
    pub(crate) fn decide(
        &mut self,
        running: ReplicaSet,
        paced: ReplicaSet,
        spare: Option<Vec<Output>>,
    ) -> Decision {
        let boundary = self.frontier;
        let Some(slot) = self
            .index(boundary)
            .and_then(|index| self.slots.get_mut(index))
        else {
            return Decision::Open;
        };
        let votes = |group: &Group| group.votes.and(running).len();
        let best = slot.groups.iter().map(votes).max().unwrap_or(0);
        let missing = running.minus(slot.cast);
        if best < self.quorum {
            if best + missing.len() < self.quorum {
                return Decision::Split {
                    cause: split(slot, running),
                    within_reach: best + missing.len(),
                };
            }
            return Decision::Open;
        }

        // Two groups cannot both have a majority of the configured replicas.
        let mut agreed = None;
        let mut others = Vec::new();
        for group in slot.groups.drain(..) {
            if group.votes.and(running).len() >= self.quorum {
                agreed = Some(group);
            } else {
                self.bytes -= group.cost;
                others.push(group);
            }
        }
        let Some(agreed) = agreed else {
            return Decision::Open;
        };
        slot.decided = slot.marks.reached(self.quorum, running);
        let need_ns = slot.decided.map_or(0, |reached| reached.need_ns);
        let mut outvoted = Vec::new();
        for group in &others {
            for r in group.votes.and(running).iter() {
                outvoted.push(verdict(r, boundary, &agreed, &group.outputs));
            }
        }
        outvoted.sort_by_key(|verdict| verdict.replica);
        // The frontier's bytes leave by move wherever that is possible: the deciding ballot brought a second copy,
        // or nobody is left to be compared. Otherwise (a boundary that was only waiting for an
        // older one) they are copied.
        let later = paced.minus(slot.cast);
        let release = match spare {
            Some(spare) => spare,
            None if later.is_empty() => {
                self.bytes -= agreed.cost;
                self.frontier += 1;
                return Decision::Agreed {
                    boundary,
                    need_ns,
                    release: agreed.outputs,
                    outvoted,
                };
            }
            None => agreed.outputs.clone(),
        };
        slot.groups.push(agreed);
        self.frontier += 1;
        Decision::Agreed {
            boundary,
            need_ns,
            release,
            outvoted,
        }
    }

    /// A replica is stopped: at undecided boundaries its ballots are forgotten, so that it has one vote there when it
    /// comes back, and none meanwhile. What is decided stands, and who was seen to agree with it.
    pub(crate) fn forget(&mut self, r: ReplicaId) {
        let decided = usize::try_from(self.frontier - self.base).unwrap_or(usize::MAX);
        for slot in self.slots.iter_mut().skip(decided) {
            slot.cast = slot.cast.without(r);
            slot.marks.remove(r);
            slot.groups.retain_mut(|group| {
                group.votes = group.votes.without(r);
                let keep = !group.votes.is_empty();
                if !keep {
                    self.bytes -= group.cost;
                }
                keep
            });
        }
    }

    /// Drops what is decided and lies below `slowest`: everybody who counts for the window has cast it.
    pub(crate) fn trim(&mut self, slowest: u64) {
        while self.base < slowest.min(self.frontier) {
            let Some(slot) = self.slots.pop_front() else {
                break;
            };
            self.bytes -= slot.groups.iter().map(|group| group.cost).sum::<usize>();
            self.base += 1;
        }
    }
}

fn verdict(r: ReplicaId, boundary: u64, agreed: &Group, outputs: &[Output]) -> Verdict {
    let place = first_difference(&agreed.outputs, outputs).unwrap_or(NOWHERE);
    Verdict {
        replica: r,
        boundary,
        channel: place.channel,
        kind: place.kind,
        index: place.index,
        offset: place.offset,
        majority: said(&agreed.outputs, &place),
        minority: said(outputs, &place),
        agreed: agreed.votes.to_vec(),
    }
}

/// Stands in for the difference of two ballots that do not differ; never shown, since such ballots are one group.
const NOWHERE: Difference = Difference {
    channel: Channel(0),
    kind: DifferenceKind::Order,
    index: 0,
    offset: 0,
};

fn split(slot: &Slot, running: ReplicaSet) -> NoMajorityCause {
    let mut groups: Vec<&Group> = slot
        .groups
        .iter()
        .filter(|group| !group.votes.and(running).is_empty())
        .collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.votes.and(running).len()));
    let place = match groups.as_slice() {
        [a, b, ..] => first_difference(&a.outputs, &b.outputs).unwrap_or(NOWHERE),
        _ => NOWHERE,
    };
    NoMajorityCause::Split {
        channel: place.channel,
        kind: place.kind,
        index: place.index,
        offset: place.offset,
        parties: groups
            .iter()
            .map(|group| Party {
                replicas: group.votes.and(running).to_vec(),
                said: said(&group.outputs, &place),
            })
            .collect(),
        missing: running.minus(slot.cast).to_vec(),
    }
}
