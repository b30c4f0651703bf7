//! What must hold, computed a second time from what went in and came out, and from nothing else.

use std::collections::VecDeque;
use std::rc::Rc;

use quorate_voter::{
    Channel, Lockstep, MAX_REPLICAS, NoMajorityCause, Output, ReplicaId, ReplicaState, Stats,
    StopReason, ballot_cost, ballot_digest,
};

use crate::coverage::Coverage;
use crate::plan::{LAG_TIMEOUT_NS, Plan};
use crate::rng::mix;
use crate::truth::{SimEntry, Truth};

pub type Check = Result<(), String>;

/// The secret of a simulated run.
pub const KEY: [u8; 32] = [0x51; 32];

pub type Ballot = Rc<Vec<Output>>;

/// One boundary as the oracle saw it.
#[derive(Clone, Default)]
pub struct Row {
    /// What each replica cast, in its present life where the boundary is not decided.
    pub casts: [Option<Ballot>; MAX_REPLICAS],
    first_ns: u64,
    entry: Option<Rc<SimEntry>>,
    entry_bytes: usize,
}

/// The second opinion.
pub struct Oracle {
    pub quorum: usize,
    pub tolerable: bool,
    pub recoverable: bool,
    /// Nothing that anybody outside could notice may happen.
    pub masked: bool,
    /// Who has no fault at all. Where replicas come back: who has none now.
    pub honest: Vec<bool>,
    pub truth: Truth,
    pub rows: Vec<Row>,
    /// Ballots that had a quorum, by boundary.
    pub decided: Vec<Ballot>,
    /// Outputs that must come out next.
    pub expected: VecDeque<(u64, Output)>,
    pub members: Vec<bool>,
    pub running: Vec<bool>,
    pub recovering: Vec<bool>,
    /// Who casts again what was decided, where, and whether it is right (R7).
    replaying: Option<(usize, u64, bool)>,
    pub ended: bool,
    pub ended_event: bool,
    /// Per replica: below this boundary its ballots were found to be the agreed ones.
    compared: Vec<u64>,
    pub stopped_event: Vec<bool>,
    /// Times that a replica stopped, and that this was said.
    pub stops: (u64, u64),
    /// Most replicas that the set had.
    most: u8,
    pub coverage: Coverage,
}

pub fn fail<T>(rule: &str, what: String) -> Result<T, String> {
    Err(format!("{rule}: {what}"))
}

impl Oracle {
    pub fn new(plan: &Plan, seed: u64) -> Self {
        let n = plan.faults.len();
        let first = |r| r < n;
        let mut honest: Vec<bool> = plan.faults.iter().map(Option::is_none).collect();
        honest.resize(MAX_REPLICAS, true);
        Self {
            quorum: n / 2 + 1,
            tolerable: plan.tolerable() && plan.recovery.is_none_or(|plan| plan.masked),
            recoverable: plan.recovery.is_some(),
            masked: plan.recovery.is_some_and(|plan| plan.masked),
            honest,
            truth: Truth::new(mix(seed), plan.output_bytes),
            rows: Vec::new(),
            decided: Vec::new(),
            expected: VecDeque::new(),
            members: (0..MAX_REPLICAS).map(first).collect(),
            running: (0..MAX_REPLICAS).map(first).collect(),
            recovering: vec![false; MAX_REPLICAS],
            replaying: None,
            ended: false,
            ended_event: false,
            compared: vec![0; MAX_REPLICAS],
            stopped_event: vec![false; MAX_REPLICAS],
            stops: (0, 0),
            most: plan.config.replicas,
            coverage: Coverage::default(),
        }
    }

    pub fn row(&mut self, boundary: u64) -> &mut Row {
        while self.rows.len() as u64 <= boundary {
            self.rows.push(Row::default());
        }
        &mut self.rows[boundary as usize]
    }

    pub fn is_running(&self, r: usize) -> bool {
        self.running[r]
    }

    pub fn is_active(&self, r: usize) -> bool {
        self.running[r] || self.recovering[r]
    }

    /// Without a majority, for good.
    pub fn over(&self) -> bool {
        self.ended && !self.recoverable
    }

    /// A replica is about to cast.
    pub fn casting(&mut self, r: usize, boundary: u64, outputs: &[Output], now_ns: u64) -> Check {
        if self.recovering[r]
            && let Some(decided) = self.decided.get(boundary as usize)
        {
            self.replaying = Some((r, boundary, **decided == outputs));
            return Ok(());
        }
        if !(self.running[r] || self.recovering[r]) || self.over() {
            return Ok(());
        }
        // The simulator's own soundness, and R1: same entries, same outputs.
        if self.honest[r] && !self.recoverable {
            for (other, honest) in self.honest.clone().into_iter().enumerate() {
                let cast = self.row(boundary).casts[other].clone();
                if honest && cast.is_some_and(|cast| *cast != outputs) {
                    return fail("R1", format!("honest {r} and {other} differ at {boundary}"));
                }
            }
        }
        let row = self.row(boundary);
        if row.casts.iter().all(Option::is_none) {
            row.first_ns = now_ns;
        }
        row.casts[r] = Some(Rc::new(outputs.to_vec()));
        Ok(())
    }

    /// A replica was removed: it has no vote in what that call decides.
    pub fn taken_out(&mut self, r: usize) {
        self.stops.0 += u64::from(self.is_active(r));
        self.running[r] = false;
        self.recovering[r] = false;
        self.forget(r);
        self.members[r] = false;
        self.quorum = self.members.iter().filter(|m| **m).count() / 2 + 1;
    }

    /// A replica was told to begin again.
    pub fn rejoined(&mut self, r: usize) {
        self.recovering[r] = true;
    }

    fn forget(&mut self, r: usize) {
        let decided = self.decided.len();
        for row in self.rows.iter_mut().skip(decided) {
            row.casts[r] = None;
        }
    }

    /// `lead` succeeded.
    pub fn led(&mut self, boundary: u64, entry: &Rc<SimEntry>, bytes: usize) -> Check {
        let row = self.row(boundary);
        if row.entry.is_some() {
            return fail("R1", format!("the entry of {boundary} was written twice"));
        }
        row.entry = Some(entry.clone());
        row.entry_bytes = bytes;
        self.truth.push(entry);
        Ok(())
    }

    /// A replica was given an entry.
    pub fn delivered(&mut self, r: usize, boundary: u64, entry: &Rc<SimEntry>) -> Check {
        match &self.row(boundary).entry {
            None => fail(
                "R1",
                format!("{r} got an entry for {boundary} that nobody wrote"),
            ),
            Some(written) if !Rc::ptr_eq(written, entry) => {
                fail("R1", format!("{r} got another entry for {boundary}"))
            }
            _ => Ok(()),
        }
    }

    /// Most votes that one value has at the frontier, and replicas that have not voted there.
    fn best(&self) -> (usize, usize) {
        let row = self.rows.get(self.decided.len());
        let casts: Vec<Option<&Ballot>> = (0..MAX_REPLICAS)
            .filter(|r| self.running[*r])
            .map(|r| row.and_then(|row| row.casts[r].as_ref()))
            .collect();
        let votes = |value: &Ballot| casts.iter().flatten().filter(|c| **c == value).count();
        let best = casts.iter().flatten().map(|value| votes(value)).max();
        let missing = casts.iter().filter(|cast| cast.is_none()).count();
        (best.unwrap_or(0), missing)
    }

    /// The value that `quorum` of `voters` cast at `boundary`.
    fn agreed(&self, boundary: u64, voters: &[bool]) -> Option<Ballot> {
        let row = self.rows.get(boundary as usize)?;
        let votes = |value: &Ballot| {
            let same = |r: &usize| {
                voters[*r]
                    && row.casts[*r]
                        .as_ref()
                        .is_some_and(|c| same_everywhere(c, value))
            };
            (0..voters.len()).filter(same).count()
        };
        row.casts
            .iter()
            .flatten()
            .find(|value| votes(value) >= self.quorum)
            .cloned()
    }

    /// After every call.
    pub fn check(
        &mut self,
        lockstep: &mut Lockstep<Rc<SimEntry>>,
        drain: bool,
        thorough: bool,
        now_ns: u64,
    ) -> Check {
        let stats = lockstep.stats();
        let state = |r: usize| lockstep.state(ReplicaId(r as u8));
        // Who has recovered, or joined, votes in this call already.
        for r in 0..MAX_REPLICAS {
            // Or has done so, and was stopped for that vote.
            let voted = match state(r) {
                ReplicaState::Running { .. } => true,
                ReplicaState::Stopped { reason, .. } => {
                    matches!(
                        reason,
                        StopReason::Disputed { .. } | StopReason::Outvoted(_)
                    )
                }
                ReplicaState::Recovering { .. } => false,
            };
            if self.recovering[r] && voted {
                self.recovering[r] = false;
                self.running[r] = true;
                self.members[r] = true;
                self.compared[r] = self.decided.len() as u64;
                self.coverage.recovered += 1;
            }
        }
        self.quorum = self.members.iter().filter(|m| **m).count() / 2 + 1;
        if usize::from(stats.quorum) != self.quorum
            || usize::from(stats.replicas) != self.members.iter().filter(|m| **m).count()
        {
            return fail("R2", format!("a quorum of {}", stats.quorum));
        }
        self.most = self.most.max(stats.replicas);
        self.check_decisions(lockstep, &stats)?;
        self.check_replay(lockstep)?;
        let was_ended = self.ended;
        let frontier = self.decided.len() as u64;
        let row = self.row(frontier).clone();
        self.check_dispute(lockstep, &row)?;
        for r in 0..MAX_REPLICAS {
            let state = state(r);
            let was = self.is_active(r);
            if let ReplicaState::Stopped { reason, .. } = &state
                && was
            {
                self.stops.0 += 1;
                self.stops(r, reason, &row)?;
            }
            self.running[r] = matches!(state, ReplicaState::Running { .. });
            self.recovering[r] = matches!(state, ReplicaState::Recovering { .. });
            if was && !self.is_active(r) && self.recoverable {
                self.forget(r);
            }
        }
        self.ended = lockstep.outcome().is_some();
        if let Some(outcome) = lockstep.outcome() {
            if !was_ended {
                self.check_outcome(&outcome.cause, now_ns)?;
            }
        } else if self
            .agreed(self.decided.len() as u64, &self.running)
            .is_some()
        {
            return fail(
                "liveness",
                "a boundary with a quorum is not released".into(),
            );
        }
        if self.recoverable {
            // Held exactly while no quorum runs that can agree.
            let running = self.running.iter().filter(|r| **r).count();
            let (best, missing) = self.best();
            let can = running >= self.quorum && best + missing >= self.quorum;
            if can == self.ended {
                let what = format!("{running} run, {best} agree, {missing} are to come");
                return fail("R5", format!("held: {}, but {what}", self.ended));
            }
            if self.ended && self.masked {
                return fail("R5", "held, though a quorum is honest".into());
            }
        }
        if drain {
            while let Some(event) = lockstep.poll_event() {
                self.event(event)?;
            }
        }
        self.check_bounds(lockstep, &stats, thorough)
    }

    fn check_decisions(&mut self, lockstep: &Lockstep<Rc<SimEntry>>, stats: &Stats) -> Check {
        if self.over() && stats.boundaries != self.decided.len() as u64 {
            return fail("R5", "released without a majority".into());
        }
        if stats.boundaries < self.decided.len() as u64 {
            return fail("R3", "the frontier went back".into());
        }
        let mut voters = self.running.clone();
        while (self.decided.len() as u64) < stats.boundaries {
            let boundary = self.decided.len() as u64;
            let Some(value) = self.agreed(boundary, &voters) else {
                return fail("R2", format!("{boundary} is released without a quorum"));
            };
            for (r, votes) in voters.iter_mut().enumerate() {
                let cast = &self.rows[boundary as usize].casts[r];
                if cast.as_ref().is_some_and(|cast| *cast != value) {
                    *votes = false;
                }
            }
            if (self.tolerable || self.recoverable)
                && self
                    .truth
                    .ballot(boundary)
                    .is_none_or(|truth| truth != *value)
            {
                return fail("R2", format!("a faulty value is released at {boundary}"));
            }
            let outputs = value.iter().map(|output| (boundary, output.clone()));
            self.expected.extend(outputs);
            self.decided.push(value);
        }
        // R5: who has cast something else at a decided boundary is stopped, in the same call.
        for replica in &stats.per_replica {
            let r = usize::from(replica.replica.0);
            let running = matches!(
                lockstep.state(replica.replica),
                ReplicaState::Running { .. }
            );
            let both = replica.next_boundary.min(stats.boundaries);
            while running && self.compared[r] < both {
                let boundary = self.compared[r] as usize;
                let cast = self.rows[boundary].casts[r].as_ref();
                if cast.is_some_and(|cast| *cast != self.decided[boundary]) {
                    return fail("R5", format!("{r} was wrong at {boundary} and still runs"));
                }
                self.compared[r] += 1;
            }
        }
        Ok(())
    }

    /// R7: who repeats what was released goes on, and who does not is stopped for that.
    fn check_replay(&mut self, lockstep: &Lockstep<Rc<SimEntry>>) -> Check {
        let Some((r, boundary, right)) = self.replaying.take() else {
            return Ok(());
        };
        let state = lockstep.state(ReplicaId(r as u8));
        let fine = match &state {
            ReplicaState::Recovering { boundary: next, .. }
            | ReplicaState::Running { boundary: next } => right && *next == boundary + 1,
            ReplicaState::Stopped { reason, .. } => match reason {
                StopReason::Relapsed { boundary: at } => !right && *at == boundary,
                StopReason::Misbehaved(_) => true,
                _ => false,
            },
        };
        if !fine {
            return fail(
                "R7",
                format!("{r} replayed {boundary}, right: {right}: {state:?}"),
            );
        }
        self.coverage.replayed += u64::from(right);
        Ok(())
    }

    fn check_outcome(&mut self, cause: &NoMajorityCause, now_ns: u64) -> Check {
        if self.tolerable {
            return fail(
                "R5",
                format!("no majority, but a quorum is honest: {cause:?}"),
            );
        }
        if self.recoverable {
            // Whether it is held rightly is checked after every call.
            return Ok(());
        }
        let running = self.running.iter().filter(|r| **r).count();
        let boundary = self.decided.len() as u64;
        let quorum = self.quorum;
        let voters = self.running.clone();
        let row = self.row(boundary);
        let casts: Vec<&Ballot> = row
            .casts
            .iter()
            .zip(&voters)
            .filter_map(|(cast, votes)| cast.as_ref().filter(|_| *votes))
            .collect();
        let best = casts
            .iter()
            .map(|value| casts.iter().filter(|other| other == &value).count())
            .max()
            .unwrap_or(0);
        let justified = match cause {
            NoMajorityCause::TooFew => running < quorum,
            NoMajorityCause::Split { parties, .. } => {
                let voices: usize = parties.iter().map(|party| party.replicas.len()).sum();
                best + (running - casts.len()) < quorum && voices == casts.len()
            }
            NoMajorityCause::Stalled { cast, laggards, .. } => {
                cast.len() == casts.len()
                    && running - laggards.len() < quorum
                    && now_ns - row.first_ns > LAG_TIMEOUT_NS
                    && laggards
                        .iter()
                        .all(|r| row.casts[usize::from(r.0)].is_none())
            }
        };
        if !justified {
            return fail("R5", format!("no reason for this outcome: {cause:?}"));
        }
        Ok(())
    }

    fn check_bounds(
        &mut self,
        lockstep: &Lockstep<Rc<SimEntry>>,
        stats: &Stats,
        thorough: bool,
    ) -> Check {
        let config = lockstep.config();
        self.coverage.window_full = stats.window_full;
        let mut most = *config;
        most.replicas = self.most;
        if stats.window_bytes_peak > most.max_stored_bytes() {
            return fail("R10", format!("{} bytes stored", stats.window_bytes_peak));
        }
        if stats.undrained_bytes > config.window_bytes + most.max_stored_bytes() {
            return fail("R10", format!("{} bytes wait", stats.undrained_bytes));
        }
        let nexts = stats.per_replica.iter();
        let nexts: Vec<u64> = nexts
            .filter(|r| self.running[usize::from(r.replica.0)])
            .map(|r| r.next_boundary)
            .collect();
        let (Some(slowest), Some(fastest)) = (nexts.iter().min(), nexts.iter().max()) else {
            return Ok(());
        };
        // Whoever has just caught up may be half a window behind those who are a window ahead of the slowest.
        let slack = match self.recoverable {
            true => 1 + config.window_boundaries / 2,
            false => 0,
        };
        if fastest - slowest > config.window_boundaries + slack
            || stats.window_boundaries_used < fastest - slowest
        {
            return fail(
                "R10",
                format!("{slowest} to {fastest} is beyond the window"),
            );
        }
        if !thorough || self.over() {
            return Ok(());
        }
        if self.recoverable {
            if stats.ballots % 64 == 1 {
                self.check_history(lockstep)?;
            }
            if self.recovering.contains(&true) {
                return Ok(());
            }
        }
        // Exactly what must be stored is stored: each distinct ballot once, entries that someone may want.
        let slowest = (*slowest).min(self.decided.len() as u64);
        let mut bytes = 0;
        for (boundary, row) in self.rows.iter().enumerate().skip(slowest as usize) {
            match self.decided.get(boundary) {
                Some(agreed) => bytes += ballot_cost(agreed),
                None => {
                    let mut seen: Vec<&Ballot> = Vec::new();
                    for (cast, running) in row.casts.iter().zip(&self.running) {
                        if let Some(cast) = cast.as_ref().filter(|_| *running)
                            && !seen.contains(&cast)
                        {
                            seen.push(cast);
                            bytes += ballot_cost(cast);
                        }
                    }
                }
            }
        }
        let first = slowest.saturating_sub(1) as usize;
        let mut entries = self.rows.iter().skip(first).map(|row| row.entry_bytes);
        // The first entry may be history for one who has just recovered.
        let may = entries.next().unwrap_or(0);
        bytes += entries.sum::<usize>();
        let used = stats.window_bytes_used;
        if used != bytes + may && !(self.recoverable && used == bytes) {
            let needed = bytes + may;
            return fail("R10", format!("{used} bytes stored, {needed} are needed"));
        }
        Ok(())
    }

    /// What is kept is what was written and released, without a gap.
    pub fn check_history(&mut self, lockstep: &Lockstep<Rc<SimEntry>>) -> Check {
        let stats = lockstep.history();
        let mut next = stats.from;
        for (boundary, entry, digest) in lockstep.history_entries(0) {
            let row = &self.rows[boundary as usize];
            let same = boundary == next
                && row.entry.as_ref().is_some_and(|e| Rc::ptr_eq(e, entry))
                && self
                    .decided
                    .get(boundary as usize)
                    .is_some_and(|agreed| ballot_digest(&KEY, boundary, agreed) == digest);
            if !same {
                return fail("R7", format!("history is wrong at {boundary}"));
            }
            next += 1;
        }
        let written = self.rows.iter().filter(|row| row.entry.is_some()).count() as u64;
        if next < written.min(self.decided.len() as u64) || stats.from + stats.entries != written {
            return fail("R7", format!("history ends at {next}"));
        }
        Ok(())
    }

    /// At the end, after all events are fetched.
    pub fn finish(&self) -> Check {
        if !self.expected.is_empty() {
            return fail(
                "R3",
                format!("{} outputs never came out", self.expected.len()),
            );
        }
        if self.stops.0 != self.stops.1 {
            return fail("R5", format!("stops and events: {:?}", self.stops));
        }
        for r in (0..MAX_REPLICAS).filter(|r| self.members[*r] && !self.recoverable) {
            if self.running[r] == self.stopped_event[r] {
                return fail("R5", format!("{r} was stopped without an event"));
            }
        }
        if self.ended != self.ended_event {
            return fail("R5", "the end came without an event".into());
        }
        Ok(())
    }
}

pub fn sequence(outputs: &[Output], channel: Channel) -> Vec<&Vec<u8>> {
    let on = outputs.iter().filter(|(c, _)| *c == channel);
    on.map(|(_, bytes)| bytes).collect()
}

/// Equality as R2 words it: on every channel, position by position. And in the order between channels.
fn same_everywhere(a: &[Output], b: &[Output]) -> bool {
    let on = |c| sequence(a, Channel(c)) == sequence(b, Channel(c));
    let order = |outputs: &[Output]| outputs.iter().map(|(c, _)| *c).collect::<Vec<_>>();
    a.len() == b.len() && (0..8).all(on) && order(a) == order(b)
}
