//! What is told must be true.

use std::rc::Rc;

use quorate_voter::{
    Event, Lockstep, MAX_REPLICAS, NoMajorityCause, Output, ReplicaId, ReplicaState, StopReason,
    Verdict,
};

use crate::oracle::{Ballot, Check, Oracle, Row, fail, sequence};
use crate::truth::SimEntry;

impl Oracle {
    pub fn event(&mut self, event: Event) -> Check {
        match event {
            Event::Release {
                boundary,
                channel,
                bytes,
            } => {
                self.coverage.releases += 1;
                if self.ended_event {
                    return fail("R5", format!("{boundary} was released after the end"));
                }
                // R2 and R3: exactly the agreed stream, in its order.
                let got = (boundary, (channel, bytes));
                match self.expected.pop_front() {
                    Some(expected) if expected == got => Ok(()),
                    expected => fail("R3", format!("released {got:?}, expected {expected:?}")),
                }
            }
            Event::Verdict(verdict) => self.verdict(&verdict),
            Event::Stopped { replica, reason } => self.stopped(replica, &reason),
            Event::Degraded { healthy, quorum } => {
                self.coverage.degraded += 1;
                if healthy < quorum || (usize::from(quorum) != self.quorum && !self.recoverable) {
                    return fail("R5", format!("degraded to {healthy} of {quorum}"));
                }
                Ok(())
            }
            Event::Recovered { replica, boundary } => {
                // Bounded by what is decided; when exactly is checked where it counts.
                if boundary > self.decided.len() as u64 {
                    return fail("R7", format!("{replica} votes at {boundary}"));
                }
                Ok(())
            }
            Event::Membership { replicas, quorum } => {
                self.coverage.membership += 1;
                if usize::from(quorum) != usize::from(replicas) / 2 + 1 {
                    return fail("R2", format!("{quorum} of {replicas}"));
                }
                Ok(())
            }
            Event::Majority { .. } => {
                self.coverage.majority += 1;
                if !std::mem::take(&mut self.ended_event) {
                    return fail("R5", "a majority came back that was not lost".into());
                }
                Ok(())
            }
            Event::NoMajority(end) => {
                match end.cause {
                    NoMajorityCause::TooFew => self.coverage.too_few += 1,
                    NoMajorityCause::Split { .. } => self.coverage.split += 1,
                    NoMajorityCause::Stalled { .. } => self.coverage.stalled += 1,
                }
                if self.recoverable {
                    self.ended_event = true;
                    return Ok(());
                }
                if self.ended_event || !self.expected.is_empty() {
                    return fail("R5", "the end came twice or before agreed outputs".into());
                }
                self.ended_event = true;
                Ok(())
            }
        }
    }

    fn stopped(&mut self, replica: ReplicaId, reason: &StopReason) -> Check {
        let r = usize::from(replica.0);
        self.stops.1 += 1;
        if std::mem::replace(&mut self.stopped_event[r], true) && !self.recoverable {
            return fail("R5", format!("{replica} was stopped twice"));
        }
        if self.tolerable && self.honest[r] && !self.recoverable {
            return fail(
                "R5",
                format!("{replica} is honest and was stopped: {reason}"),
            );
        }
        match reason {
            StopReason::Outvoted(_) => self.coverage.outvoted += 1,
            StopReason::Lagging { repeatedly, .. } => {
                self.coverage.lagging += 1;
                self.coverage.repeatedly += u64::from(*repeatedly);
            }
            StopReason::Misbehaved(_) => self.coverage.misbehaved += 1,
            StopReason::Relapsed { .. } => self.coverage.relapsed += 1,
            StopReason::Disputed { .. } => self.coverage.disputed += 1,
            StopReason::Removed => self.coverage.removed += 1,
            _ => self.coverage.crashed += 1,
        }
        Ok(())
    }

    fn verdict(&mut self, verdict: &Verdict) -> Check {
        let r = usize::from(verdict.replica.0);
        let at = verdict.boundary as usize;
        let (Some(agreed), Some(cast)) = (self.decided.get(at), &self.rows[at].casts[r]) else {
            return fail("R5", format!("verdict without ballots: {verdict}"));
        };
        if self.decided.len() > at + 1 {
            self.coverage.late_outvoted += 1;
        }
        let len = |outputs: &[Output]| {
            sequence(outputs, verdict.channel)
                .get(verdict.index)
                .map(|bytes| bytes.len())
        };
        let true_words = cast != agreed
            && verdict.majority.len == len(agreed)
            && verdict.minority.len == len(cast)
            && (verdict.agreed.len() >= self.quorum || self.recoverable)
            && !verdict.agreed.contains(&verdict.replica);
        if !true_words {
            return fail("R5", format!("verdict is not true: {verdict}"));
        }
        Ok(())
    }

    /// A replica has just been stopped; `row` are the casts at the frontier before that.
    pub fn stops(&mut self, r: usize, reason: &StopReason, row: &Row) -> Check {
        if self.masked && self.honest[r] && !matches!(reason, StopReason::Removed) {
            return fail("R5", format!("{r} is honest and was stopped: {reason}"));
        }
        // R5: nobody is sent back for a boundary that is decided, or where it has not voted.
        if let StopReason::Disputed { boundary } = reason
            && (*boundary != self.decided.len() as u64 || row.casts[r].is_none())
        {
            return fail("R5", format!("{r} was stopped for a dispute at {boundary}"));
        }
        Ok(())
    }

    /// R5: nobody is sent back for a dispute that a recovering member's vote could decide; but for a boundary to which
    /// others came too late, again.
    pub fn check_dispute(&self, lockstep: &Lockstep<Rc<SimEntry>>, row: &Row) -> Check {
        let stops = |r: usize| match lockstep.state(ReplicaId(r as u8)) {
            ReplicaState::Stopped { reason, .. } if self.is_active(r) => Some(reason),
            _ => None,
        };
        let disputes = |r: &usize| matches!(stops(*r), Some(StopReason::Disputed { .. }));
        let late = |r| matches!(stops(r), Some(StopReason::Lagging { .. }));
        if !(0..MAX_REPLICAS).any(|r| disputes(&r)) || (0..MAX_REPLICAS).any(late) {
            return Ok(());
        }
        let cast = (0..MAX_REPLICAS)
            .filter(disputes)
            .filter_map(|r| row.casts[r].as_ref());
        let cast: Vec<&Ballot> = cast.collect();
        let best = cast
            .iter()
            .map(|v| cast.iter().filter(|o| *o == v).count())
            .max();
        let others = (0..MAX_REPLICAS).filter(|r| self.members[*r] && self.is_active(*r));
        let others = others.filter(|r| stops(*r).is_none()).count();
        if best.unwrap_or(0) + others >= self.quorum {
            return fail(
                "R5",
                format!("a dispute of {} with {others} votes to come", cast.len()),
            );
        }
        Ok(())
    }
}
