//! A stream in which something may differ: replicas' streams are compared as their masks rewrite them, and what is
//! released has the speaker's values.
//!
//! Positions are those of the rewritten stream, which are the same for all who agree; only differences tell the
//! replica's own.

use std::collections::VecDeque;

use super::core::Core;
use super::{EndOfStream, Full, StreamLimits, Taken};
use crate::ids::ReplicaId;
use crate::relaxed::difference::{Reports, Undecided};
use crate::relaxed::mask::{Lane, MARKER, MarkerKey, MaskSet, TRANSLATIONS_KEPT, Translation};
use crate::relaxed::voters::Voters;

/// Checkpoints of one replica whose places are remembered, for each connection (R10). Who comes back at an older one is
/// left out of the connection.
pub const MARKS_OF_MASKS: usize = 8;

#[derive(Clone, Debug)]
pub(super) struct Masked {
    pub(super) core: Core,
    set: MaskSet,
    key: MarkerKey,
    unconfirmed: u64,
    lanes: Vec<Lane>,
    /// What came before each checkpoint, by bytes of the replica's own stream.
    marks: Vec<VecDeque<(u64, Lane)>>,
    /// Whose values are released, as long as it lives and agrees.
    speaker: Option<usize>,
    /// Values released.
    values: u64,
    /// Released values to translate to, with their numbers, for those who have not said theirs.
    released: VecDeque<(u64, Vec<u8>)>,
    translations: Vec<Translation>,
    pub(super) reports: Reports,
    rewritten: Vec<u8>,
}

impl Masked {
    pub(super) fn new(voters: &Voters, limits: StreamLimits, set: &MaskSet) -> Self {
        // The bound is on what replicas say. A marker can be so much longer than what it hides.
        let inner = StreamLimits {
            unconfirmed: (limits.unconfirmed + (16 << 10)).saturating_mul(MARKER + 1),
            ..limits
        };
        Self {
            core: Core::new(voters, inner),
            set: set.clone(),
            key: MarkerKey::new(voters.key()),
            unconfirmed: limits.unconfirmed as u64,
            lanes: vec![Lane::new(); voters.len()],
            marks: vec![VecDeque::new(); voters.len()],
            speaker: None,
            values: 0,
            released: VecDeque::new(),
            translations: Vec::new(),
            reports: Reports::default(),
            rewritten: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, replica: ReplicaId, bytes: &[u8]) -> Result<Taken, Full> {
        let index = usize::from(replica.0);
        let Some(lane) = self.lanes.get_mut(index) else {
            return self.core.push(replica, bytes);
        };
        if !self.core.takes_part(replica) || self.core.replicas[index].end.is_some() {
            lane.own = lane.own.saturating_add(bytes.len() as u64);
            return self.core.push(replica, bytes);
        }
        let taken = self.core.taken.min(lane.rewritten);
        let ahead = lane.position(lane.rewritten) - lane.position(taken);
        let room = self.unconfirmed.saturating_sub(ahead);
        let count = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if count == 0 && !bytes.is_empty() {
            return Err(Full);
        }
        let news = self.rewrite(index, |lane, set, key, out| {
            lane.push(set, key, &bytes[..count], out);
        });
        Ok(Taken { bytes: count, news })
    }

    /// Moves a replica's lane, and compares what came of it.
    fn rewrite(
        &mut self,
        index: usize,
        with: impl FnOnce(&mut Lane, &MaskSet, &MarkerKey, &mut Vec<u8>),
    ) -> bool {
        let mut out = std::mem::take(&mut self.rewritten);
        out.clear();
        with(&mut self.lanes[index], &self.set, &self.key, &mut out);
        let replica = ReplicaId(index as u8);
        // There is always room: what may be said is bounded before it is rewritten.
        let taken = self.core.push(replica, &out);
        debug_assert!(out.is_empty() || taken.is_ok_and(|t| t.bytes == out.len()));
        self.rewritten = out;
        self.report();
        self.learn_late(index);
        taken.is_ok_and(|t| t.news) || self.has_news()
    }

    fn has_news(&self) -> bool {
        !self.reports.is_empty() || !self.translations.is_empty()
    }

    /// Tells differences in the replica's own positions, with the names of masks for what they hide.
    fn report(&mut self) {
        if self.core.reports.is_empty() {
            return;
        }
        for mut d in self.core.reports.take() {
            let index = usize::from(d.replica.0);
            let lane = &self.lanes[index];
            d.position = lane.position(d.position);
            d.excerpt_at = lane.position(d.excerpt_at);
            d.said = self.set.show(&self.key, &d.said);
            d.released = self.set.show(&self.key, &d.released);
            self.reports.push(d);
        }
        for (lane, r) in self.lanes.iter_mut().zip(&self.core.replicas) {
            if !r.agrees() {
                lane.values.clear();
            }
        }
    }

    /// Values that a replica has said after they were released are good for translation only.
    fn learn_late(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        while lane.first < self.values {
            if let Some(value) = lane.values.front()
                && self.set.translates(value.rule)
                && let Some((_, released)) = self.released.iter().find(|(n, _)| *n == lane.first)
                && *released != value.bytes
                && self.translations.len() < TRANSLATIONS_KEPT
            {
                self.translations.push(Translation {
                    replica: ReplicaId(index as u8),
                    own: value.bytes.clone(),
                    released: released.clone(),
                });
            }
            if lane.values.is_empty() {
                break;
            }
            lane.drop_first();
        }
    }

    pub(super) fn flush(&mut self, replica: ReplicaId) -> bool {
        let index = usize::from(replica.0);
        if self.held(replica) == 0 || !self.core.takes_part(replica) {
            return false;
        }
        self.rewrite(index, Lane::flush)
    }

    pub(super) fn held(&self, replica: ReplicaId) -> usize {
        let lane = self.lanes.get(usize::from(replica.0));
        lane.map_or(0, Lane::held)
    }

    pub(super) fn end(&mut self, replica: ReplicaId, how: EndOfStream) -> bool {
        let index = usize::from(replica.0);
        let mut news = false;
        if self.core.takes_part(replica) && self.core.replicas[index].end.is_none() {
            news = self.rewrite(index, Lane::end);
        }
        let ended = self.core.end(replica, how);
        self.report();
        news || ended || self.has_news()
    }

    pub(super) fn settled(&mut self, news: bool) -> bool {
        self.report();
        news || self.has_news()
    }

    pub(super) fn take_released(&mut self, into: &mut Vec<u8>) -> Option<EndOfStream> {
        let mut out = std::mem::take(&mut self.rewritten);
        out.clear();
        let start = self.core.taken;
        let end = self.core.take_released(&mut out);
        let to = self.core.taken;
        let mut at = start;
        while let Some((marker, speaker)) = self.next_value(to) {
            into.extend_from_slice(&out[(at - start) as usize..(marker - start) as usize]);
            at = marker + MARKER as u64;
            self.speaker = Some(speaker);
            self.speak(speaker, into);
        }
        into.extend_from_slice(&out[(at - start) as usize..]);
        self.rewritten = out;
        end
    }

    /// Where the next released value stands, and whose is released: the speaker's, as long as it is running and has said it;
    /// else the lowest's who counts.
    fn next_value(&self, to: u64) -> Option<(u64, usize)> {
        let voters = &self.core.voters;
        let rank = |(index, r): &(usize, &super::core::Replica)| {
            let primary = voters.primary() == Some(*index);
            let counts = voters.counts(*index) || primary;
            let sticky = self.speaker == Some(*index);
            (!(r.live && counts), !primary, !sticky, *index)
        };
        let at = |index: usize| {
            let lane = &self.lanes[index];
            let value = self.values.checked_sub(lane.first)?;
            let value = lane.values.get(value as usize)?;
            (value.at + MARKER as u64 <= to).then_some(value.at)
        };
        let all = self.core.replicas.iter().enumerate();
        let said = all.filter(|(index, r)| r.agrees() && at(*index).is_some());
        let (speaker, _) = said.min_by_key(rank)?;
        at(speaker).map(|at| (at, speaker))
    }

    /// Releases the next value, as the speaker has said it.
    fn speak(&mut self, speaker: usize, into: &mut Vec<u8>) {
        let lane = &self.lanes[speaker];
        let number = (self.values - lane.first) as usize;
        let Some(value) = lane.values.get(number).cloned() else {
            return;
        };
        into.extend_from_slice(&value.bytes);
        self.values += 1;
        if self.set.translates(value.rule) {
            if self.released.len() == TRANSLATIONS_KEPT {
                self.released.pop_front();
            }
            self.released.push_back((self.values - 1, value.bytes));
        }
        for index in 0..self.lanes.len() {
            if self.core.replicas[index].agrees() {
                self.learn_late(index);
            }
        }
    }

    pub(super) fn undecided(&self) -> Option<Undecided> {
        let mut end = self.core.undecided()?;
        for side in &mut end.sides {
            side.said = self.set.show(&self.key, &side.said);
        }
        Some(end)
    }

    pub(super) fn translations(&mut self) -> Vec<Translation> {
        std::mem::take(&mut self.translations)
    }

    pub(super) fn own_position(&self, replica: ReplicaId) -> u64 {
        let lane = self.lanes.get(usize::from(replica.0));
        lane.map_or(0, |lane| lane.own)
    }

    pub(super) fn mark(&mut self, replica: ReplicaId) {
        self.core.mark(replica);
        let index = usize::from(replica.0);
        if let (Some(marks), Some(lane)) = (self.marks.get_mut(index), self.lanes.get(index)) {
            if marks.len() == MARKS_OF_MASKS {
                marks.pop_front();
            }
            marks.push_back((lane.own, lane.clone()));
        }
    }

    pub(super) fn enter(&mut self, replica: ReplicaId, position: u64) {
        let index = usize::from(replica.0);
        let Some(marks) = self.marks.get_mut(index) else {
            return;
        };
        let found = marks.iter().rposition(|(at, _)| *at == position);
        let lane = match found.and_then(|at| marks.get(at)) {
            Some((_, lane)) => Some(lane.clone()),
            None if position == 0 => Some(Lane::new()),
            None => None,
        };
        let place = lane.as_ref().map_or(0, |lane| lane.rewritten);
        self.core.enter(replica, place);
        match lane {
            Some(lane) => {
                self.lanes[index] = lane;
                self.learn_late(index);
            }
            // Nobody knows what its masks were in the middle of.
            None => self.core.leave_out(index),
        }
        self.report();
    }

    /// As in the core; only at the very end of what was released and fetched: how many values were hidden before is known there.
    pub(super) fn rejoin(&mut self, replica: ReplicaId, position: u64) -> bool {
        let here = position == self.core.agreed && position == self.core.taken;
        if !here || !self.core.rejoin(replica, position) {
            return false;
        }
        let index = usize::from(replica.0);
        self.lanes[index] = Lane::at(self.lanes[index].own, position, self.values);
        true
    }

    /// Takes part no longer, as it did when its checkpoint was taken.
    pub(super) fn enter_apart(&mut self, replica: ReplicaId, position: u64) {
        let index = usize::from(replica.0);
        if let Some(lane) = self.lanes.get_mut(index) {
            lane.own = position;
            lane.values.clear();
        }
        self.core.enter(replica, 0);
        self.core.leave_out(index);
        self.report();
    }

    pub(super) fn enter_like(&mut self, replica: ReplicaId, source: ReplicaId) {
        self.core.enter_like(replica, source);
        let like = self.lanes.get(usize::from(source.0)).cloned();
        if let (Some(lane), Some(like)) = (self.lanes.get_mut(usize::from(replica.0)), like) {
            *lane = like;
        }
        // Its own checkpoints are of another life.
        if let Some(marks) = self.marks.get_mut(usize::from(replica.0)) {
            marks.clear();
        }
        self.report();
    }
}
