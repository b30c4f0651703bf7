//! What must hold, computed a second time from what went in and came out, and from nothing else.

use std::collections::VecDeque;
use std::rc::Rc;

use quorate_voter::{
    Channel, Event, Lockstep, NoMajorityCause, Output, ReplicaId, ReplicaState, Stats, StopReason,
    Verdict, ballot_cost,
};

use crate::plan::{LAG_TIMEOUT_NS, Plan};
use crate::world::SimEntry;

pub type Check = Result<(), String>;

/// How often the interesting things happened, over all seeds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coverage {
    pub releases: u64,
    pub outvoted: u64,
    pub lagging: u64,
    pub repeatedly: u64,
    pub crashed: u64,
    pub misbehaved: u64,
    pub degraded: u64,
    pub too_few: u64,
    pub split: u64,
    pub stalled: u64,
    pub window_full: u64,
    pub lost_races: u64,
    pub late_outvoted: u64,
}

impl Coverage {
    pub fn add(&mut self, o: &Self) {
        self.releases += o.releases;
        self.outvoted += o.outvoted;
        self.lagging += o.lagging;
        self.repeatedly += o.repeatedly;
        self.crashed += o.crashed;
        self.misbehaved += o.misbehaved;
        self.degraded += o.degraded;
        self.too_few += o.too_few;
        self.split += o.split;
        self.stalled += o.stalled;
        self.window_full += o.window_full;
        self.lost_races += o.lost_races;
        self.late_outvoted += o.late_outvoted;
    }
}

type Ballot = Rc<Vec<Output>>;

/// One boundary as the oracle saw it.
#[derive(Default)]
struct Row {
    casts: Vec<Option<Ballot>>,
    first_ns: u64,
    entry: Option<Rc<SimEntry>>,
    entry_bytes: usize,
}

/// The second opinion.
pub struct Oracle {
    quorum: usize,
    tolerable: bool,
    honest: Vec<bool>,
    rows: Vec<Row>,
    /// Ballots that had a quorum, by boundary.
    decided: Vec<Ballot>,
    /// Outputs that must come out next.
    expected: VecDeque<(u64, Output)>,
    running: Vec<bool>,
    ended: bool,
    ended_event: bool,
    /// Per replica: below this boundary its ballots were found to be the agreed ones.
    compared: Vec<u64>,
    stopped_event: Vec<bool>,
    pub coverage: Coverage,
}

fn fail<T>(rule: &str, what: String) -> Result<T, String> {
    Err(format!("{rule}: {what}"))
}

impl Oracle {
    pub fn new(plan: &Plan) -> Self {
        let n = plan.faults.len();
        Self {
            quorum: n / 2 + 1,
            tolerable: plan.tolerable(),
            honest: plan.faults.iter().map(Option::is_none).collect(),
            rows: Vec::new(),
            decided: Vec::new(),
            expected: VecDeque::new(),
            running: vec![true; n],
            ended: false,
            ended_event: false,
            compared: vec![0; n],
            stopped_event: vec![false; n],
            coverage: Coverage::default(),
        }
    }

    fn row(&mut self, boundary: u64) -> &mut Row {
        let n = self.running.len();
        while self.rows.len() as u64 <= boundary {
            self.rows.push(Row {
                casts: vec![None; n],
                ..Row::default()
            });
        }
        &mut self.rows[boundary as usize]
    }

    pub fn is_running(&self, r: usize) -> bool {
        self.running[r]
    }

    pub fn ended(&self) -> bool {
        self.ended
    }

    /// A replica is about to cast.
    pub fn casting(&mut self, r: usize, boundary: u64, outputs: &[Output], now_ns: u64) -> Check {
        if !self.running[r] || self.ended {
            return Ok(());
        }
        // The simulator's own soundness, and R1: same entries, same outputs.
        if self.honest[r] {
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

    /// `lead` succeeded.
    pub fn led(&mut self, boundary: u64, entry: &Rc<SimEntry>, bytes: usize) -> Check {
        let row = self.row(boundary);
        if row.entry.is_some() {
            return fail("R1", format!("the entry of {boundary} was written twice"));
        }
        row.entry = Some(entry.clone());
        row.entry_bytes = bytes;
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
        self.check_decisions(lockstep, &stats)?;
        let was_ended = self.ended;
        for replica in &stats.per_replica {
            self.running[usize::from(replica.replica.0)] =
                matches!(replica.state, ReplicaState::Running { .. });
        }
        if let Some(outcome) = lockstep.outcome() {
            if !was_ended {
                self.ended = true;
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
        if drain {
            while let Some(event) = lockstep.poll_event() {
                self.event(event)?;
            }
        }
        self.check_bounds(lockstep, &stats, thorough)
    }

    fn check_decisions(&mut self, lockstep: &Lockstep<Rc<SimEntry>>, stats: &Stats) -> Check {
        if self.ended && stats.boundaries != self.decided.len() as u64 {
            return fail("R5", "released without a majority".into());
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
            if self.tolerable {
                let honest = (0..voters.len()).find(|r| self.honest[*r]).unwrap_or(0);
                let cast = &self.rows[boundary as usize].casts[honest];
                if cast.as_ref().is_some_and(|cast| *cast != value) {
                    return fail("R2", format!("a faulty value is released at {boundary}"));
                }
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

    fn check_outcome(&mut self, cause: &NoMajorityCause, now_ns: u64) -> Check {
        if self.tolerable {
            return fail(
                "R5",
                format!("no majority, but a quorum is honest: {cause:?}"),
            );
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
        match cause {
            NoMajorityCause::TooFew => self.coverage.too_few += 1,
            NoMajorityCause::Split { .. } => self.coverage.split += 1,
            NoMajorityCause::Stalled { .. } => self.coverage.stalled += 1,
        }
        if !justified {
            return fail("R5", format!("no reason for this outcome: {cause:?}"));
        }
        Ok(())
    }

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
                if healthy < quorum || usize::from(quorum) != self.quorum {
                    return fail("R5", format!("degraded to {healthy} of {quorum}"));
                }
                Ok(())
            }
            Event::Recovered { .. } | Event::Majority { .. } | Event::Membership { .. } => Ok(()),
            Event::NoMajority(_) => {
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
        if std::mem::replace(&mut self.stopped_event[r], true) {
            return fail("R5", format!("{replica} was stopped twice"));
        }
        if self.tolerable && self.honest[r] {
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
            && verdict.agreed.len() >= self.quorum
            && !verdict.agreed.contains(&verdict.replica);
        if !true_words {
            return fail("R5", format!("verdict is not true: {verdict}"));
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
        if stats.window_bytes_peak > config.max_stored_bytes() {
            return fail("R10", format!("{} bytes stored", stats.window_bytes_peak));
        }
        let next = |running: bool| {
            let of = stats.per_replica.iter().zip(&self.running);
            of.filter(move |(_, r)| **r || !running)
                .map(|(r, _)| r.next_boundary)
        };
        let Some(slowest) = next(true).min() else {
            return Ok(());
        };
        let fastest = next(true).max().unwrap_or(slowest);
        if fastest - slowest > config.window_boundaries
            || stats.window_boundaries_used != fastest - slowest
        {
            return fail(
                "R10",
                format!("{slowest} to {fastest} is beyond the window"),
            );
        }
        if stats.undrained_bytes > config.window_bytes + config.max_stored_bytes() {
            return fail("R10", format!("{} bytes wait", stats.undrained_bytes));
        }
        if !thorough || self.ended {
            return Ok(());
        }
        // Exactly what must be stored is stored: each distinct ballot once, entries that someone may want.
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
        bytes += self
            .rows
            .iter()
            .skip(first)
            .map(|row| row.entry_bytes)
            .sum::<usize>();
        if bytes != stats.window_bytes_used {
            let used = stats.window_bytes_used;
            return fail("R10", format!("{used} bytes stored, {bytes} are needed"));
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
        for (r, running) in self.running.iter().enumerate() {
            if *running == self.stopped_event[r] {
                return fail("R5", format!("{r} was stopped without an event"));
            }
        }
        if self.ended != self.ended_event {
            return fail("R5", "the end came without an event".into());
        }
        Ok(())
    }
}

fn sequence(outputs: &[Output], channel: Channel) -> Vec<&Vec<u8>> {
    let on = outputs.iter().filter(|(c, _)| *c == channel);
    on.map(|(_, bytes)| bytes).collect()
}

/// Equality as R2 words it: on every channel, position by position. And in the order between channels.
fn same_everywhere(a: &[Output], b: &[Output]) -> bool {
    let on = |c| sequence(a, Channel(c)) == sequence(b, Channel(c));
    let order = |outputs: &[Output]| outputs.iter().map(|(c, _)| *c).collect::<Vec<_>>();
    a.len() == b.len() && (0..8).all(on) && order(a) == order(b)
}
