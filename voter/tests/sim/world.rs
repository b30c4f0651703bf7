//! Simulated replicas around a real [`Lockstep`]: their threads, their faults, the time and the scheduler.

use std::rc::Rc;

use quorate_voter::{
    CastError, Channel, LeadError, Lockstep, MAX_REPLICAS, Output, ReplicaId, ReplicaState, Step,
    StopReason,
};

use crate::coverage::Coverage;
use crate::oracle::{Check, KEY, Oracle};
use crate::plan::{Fault, LAG_TIMEOUT_NS, Plan, Point, Recovery, TARGET, Wrong};
use crate::rng::{Rng, mix};
use crate::truth::{SimEntry, after, outputs};

/// Steps after which a run counts as stuck.
const MAX_STEPS: u64 = 120_000;
/// How long all compute where the plan says so: far beyond the lag timeout, so that only relative slowness can tell;
/// but, with the jitter, below `STALL_FACTOR` of them: see the known limit at `Config::stall_allowance`.
const LONG_NS: u64 = 4 * LAG_TIMEOUT_NS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    Computing,
    /// At a boundary, has cast.
    Standing,
    /// Sleeps until something changes, because of a full window.
    Asleep,
    /// Was asked to lead and is about to.
    Leading,
    /// Does nothing any more, and nobody knows.
    Hung,
    /// Knows that its replica is stopped, and will bring it back.
    Down,
    Gone,
}

#[derive(Debug)]
pub struct Guest {
    pub thread: Thread,
    pub ready_ns: u64,
    /// All that a deterministic guest is: a function of the entries so far.
    pub state: u64,
    pub next: u64,
    pub fault: Option<(u64, Fault)>,
    /// Checkpoints: boundary and state, oldest first.
    pub vault: Vec<(u64, u64)>,
    /// Times that it has failed to recover in a row.
    pub attempts: usize,
}

pub struct World {
    pub plan: Plan,
    /// What is left of it.
    pub left: Option<Recovery>,
    pub rng: Rng,
    pub now_ns: u64,
    pub lockstep: Lockstep<Rc<SimEntry>>,
    pub guests: Vec<Guest>,
    pub oracle: Oracle,
    next_tick_ns: u64,
    /// Per boundary: when the wait condition is met.
    due_ns: Vec<Option<u64>>,
    entries: u64,
    steps: u64,
    /// What a sleeping thread watches.
    changed: (u64, u64, u8, u8, u64, usize, bool),
    trace: bool,
}

impl World {
    pub fn new(seed: u64, recovery: bool, trace: bool) -> Result<Self, String> {
        let mut rng = Rng::new(seed);
        let mut plan = match recovery {
            true => Plan::recovering(&mut rng),
            false => Plan::new(&mut rng),
        };
        if trace {
            println!("seed {seed}: {plan:#?}");
        }
        let lockstep = match recovery {
            true => Lockstep::recoverable(plan.config, KEY),
            false => Lockstep::new(plan.config),
        };
        let lockstep = lockstep.map_err(|e| e.to_string())?;
        let oracle = Oracle::new(&plan, seed);
        let guest = |fault: &Option<(u64, Fault)>| Guest {
            thread: Thread::Computing,
            ready_ns: 1 + rng.below(50),
            state: mix(seed),
            next: 0,
            fault: *fault,
            vault: Vec::new(),
            attempts: 0,
        };
        let mut guests: Vec<Guest> = plan.faults.iter().map(guest).collect();
        // Who may join later.
        while recovery && guests.len() < MAX_REPLICAS {
            guests.push(Guest {
                thread: Thread::Gone,
                ready_ns: 0,
                state: 0,
                next: 0,
                fault: None,
                vault: Vec::new(),
                attempts: 0,
            });
        }
        plan.speed.resize(MAX_REPLICAS, 10);
        Ok(Self {
            oracle,
            left: plan.recovery,
            plan,
            rng,
            now_ns: 1,
            lockstep,
            guests,
            next_tick_ns: 1,
            due_ns: Vec::new(),
            entries: 0,
            steps: 0,
            changed: (0, 0, 0, 0, 0, 0, false),
            trace,
        })
    }

    /// Runs to the end and says what was seen.
    pub fn run(mut self) -> Result<Coverage, String> {
        loop {
            self.steps += 1;
            if self.done() {
                break;
            }
            // Catching up takes its time.
            let patience = if self.left.is_some() { 5 } else { 1 };
            if self.steps > patience * MAX_STEPS {
                self.stuck()?;
                break;
            }
            self.one()
                .map_err(|e| format!("{e} (step {}, t={})", self.steps, self.now_ns))?;
        }
        self.oracle
            .check(&mut self.lockstep, true, true, self.now_ns)?;
        if self.plan.recovery.is_some() {
            self.oracle.check_history(&self.lockstep)?;
        }
        self.oracle.finish()?;
        Ok(self.oracle.coverage)
    }

    /// Every honest replica is there, and every hang that holds somebody up was found; or the set has ended and all
    /// threads have heard of it.
    fn done(&self) -> bool {
        if self.plan.recovery.is_some() {
            return self.full_strength();
        }
        if self.oracle.ended {
            let heard = |g: &Guest| matches!(g.thread, Thread::Gone | Thread::Hung);
            return self.guests.iter().all(heard);
        }
        self.guests.iter().enumerate().all(|(r, guest)| {
            let found = guest.thread != Thread::Hung || !self.oracle.is_running(r);
            found && (guest.fault.is_some() || guest.next >= TARGET || guest.thread == Thread::Gone)
        }) && (self.plan.tolerable()
            || self.steps > 10_000
            || self.guests.iter().all(|g| g.thread == Thread::Gone))
    }

    /// Out of steps: a failure if a quorum is honest.
    fn stuck(&self) -> Check {
        if self.plan.recovery.is_some() {
            let states = self.lockstep.stats().per_replica;
            let outcome = self.lockstep.outcome();
            let threads: Vec<_> = self.guests.iter().map(|g| (g.thread, g.next)).collect();
            return Err(format!(
                "liveness: stuck, {outcome:?} {states:?} {threads:?}"
            ));
        }
        let drips = |g: &Guest| matches!(g.fault, Some((_, Fault::Drip | Fault::NeverLeads)));
        let honest = self.guests.iter().any(|g| g.fault.is_none());
        if self.plan.tolerable() || (honest && !self.guests.iter().any(drips)) {
            let threads: Vec<_> = self.guests.iter().map(|g| (g.thread, g.next)).collect();
            return Err(format!("liveness: stuck, {threads:?}"));
        }
        Ok(())
    }

    fn one(&mut self) -> Check {
        let soonest = self
            .guests
            .iter()
            .filter(|g| !matches!(g.thread, Thread::Hung | Thread::Gone))
            .map(|g| g.ready_ns)
            .min()
            .unwrap_or(u64::MAX);
        if self.next_tick_ns <= soonest {
            self.now_ns = self.now_ns.max(self.next_tick_ns);
            self.next_tick_ns = self.now_ns + self.rng.between(1, LAG_TIMEOUT_NS / 8);
            self.say(|| "tick".into());
            self.lockstep.tick(self.now_ns);
            return self.check();
        }
        if self.rng.one_in(50) {
            self.nonsense()?;
        }
        if self.plan.recovery.is_some() {
            self.disturb()?;
        }
        // Anyone who could be next within a moment: arbitrary interleavings, but nobody starves.
        let horizon = soonest.max(self.now_ns) + self.rng.below(40);
        let able: Vec<usize> = (0..self.guests.len())
            .filter(|r| !matches!(self.guests[*r].thread, Thread::Hung | Thread::Gone))
            .filter(|r| self.guests[*r].ready_ns <= horizon)
            .collect();
        if able.is_empty() {
            return Ok(());
        }
        let r = self.rng.pick(&able);
        self.now_ns = self.now_ns.max(self.guests[r].ready_ns);
        self.act(r)?;
        self.check()
    }

    pub fn check(&mut self) -> Check {
        // Who sleeps is woken by whatever may have changed, as by an executor.
        let stats = self.lockstep.stats();
        let seen = (
            stats.ballots + stats.replayed,
            stats.entries,
            stats.healthy,
            stats.recovering,
            stats.recoveries,
            stats.undrained_bytes,
            self.lockstep.outcome().is_some(),
        );
        if self.changed != seen || self.oracle.over() {
            self.changed = seen;
            for r in 0..self.guests.len() {
                if self.guests[r].thread == Thread::Asleep {
                    self.guests[r].thread = Thread::Standing;
                    self.again(r, 30);
                }
            }
        }
        self.find_stopped();
        let drain = !self.plan.lazy || self.rng.one_in(12);
        let thorough = self.rng.one_in(4);
        self.oracle
            .check(&mut self.lockstep, drain, thorough, self.now_ns)
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>8} {:>7} {}", self.steps, self.now_ns, what());
        }
    }

    /// Whether a fault of replica `r` is active at its present boundary (the last one it cast, when it stands).
    fn fault(&self, r: usize) -> Option<Fault> {
        let guest = &self.guests[r];
        let here = match guest.thread {
            Thread::Computing => guest.next,
            _ => guest.next.saturating_sub(1),
        };
        guest.fault.filter(|(at, _)| here >= *at).map(|(_, f)| f)
    }

    /// Crashes, kills and hangs at this point of the loop. True if the thread is no more.
    fn struck(&mut self, r: usize, point: Point) -> bool {
        let id = ReplicaId(r as u8);
        let reason = match self.fault(r) {
            Some(Fault::Crash(p)) if p == point => StopReason::Crashed("triple fault".into()),
            Some(Fault::Killed(p)) if p == point => StopReason::Killed,
            Some(Fault::Hang(p)) if p == point => {
                self.say(|| format!("{id} hangs"));
                self.guests[r].thread = Thread::Hung;
                return true;
            }
            Some(Fault::Pause(p)) if p == point => {
                // Once; and when it comes back it does not know how long it was away.
                self.guests[r].fault = self.guests[r].fault.map(|(_, f)| (u64::MAX, f));
                self.guests[r].ready_ns = self.now_ns + self.rng.between(4, 40) * LAG_TIMEOUT_NS;
                self.say(|| format!("{id} is away"));
                return true;
            }
            _ => return false,
        };
        self.say(|| format!("{id} stops: {reason}"));
        self.lockstep.fail(id, reason, self.now_ns);
        self.down(r);
        true
    }

    fn act(&mut self, r: usize) -> Check {
        let id = ReplicaId(r as u8);
        match self.guests[r].thread {
            Thread::Computing => {
                self.expire(r);
                if self.struck(r, Point::BeforeCast) {
                    return Ok(());
                }
                let boundary = self.guests[r].next;
                let outputs = self.ballot(r);
                self.say(|| format!("{id} casts {boundary}: {:?}", lengths(&outputs)));
                self.oracle.casting(r, boundary, &outputs, self.now_ns)?;
                self.lockstep
                    .cast(id, boundary, outputs, self.now_ns)
                    .map_err(|e| format!("cast: {e}"))?;
                self.guests[r].next += 1;
                self.guests[r].thread = Thread::Standing;
                self.again(r, 3);
            }
            Thread::Standing => {
                if !self.struck(r, Point::AfterCast) {
                    self.stand(r)?;
                }
            }
            Thread::Leading => {
                if !self.struck(r, Point::AskedToLead) {
                    self.lead(r)?;
                }
            }
            Thread::Down => self.revive(r)?,
            Thread::Asleep | Thread::Hung | Thread::Gone => {}
        }
        Ok(())
    }

    pub fn again(&mut self, r: usize, within_ns: u64) {
        self.guests[r].ready_ns = self.now_ns + self.rng.below(within_ns);
    }

    fn stand(&mut self, r: usize) -> Check {
        let id = ReplicaId(r as u8);
        let boundary = self.guests[r].next - 1;
        self.checkpoint(r);
        let step = self.lockstep.step(id, self.now_ns);
        self.say(|| format!("{id} at {boundary}: {step:?}"));
        match step {
            Step::Deliver(entry) => {
                self.deliver(r, boundary, &entry)?;
                // Asking twice changes nothing.
                if self.rng.one_in(4) && self.lockstep.step(id, self.now_ns) != Step::Deliver(entry)
                {
                    return Err("R1: asked again, got another answer".into());
                }
            }
            Step::Lead => {
                let busy = self.left.is_some_and(|left| left.busy);
                let wait_ns = if busy { 0 } else { self.guests[r].state % 300 };
                let due_ns = self.due(boundary, wait_ns);
                let may = match self.fault(r) {
                    Some(Fault::LeadsAtOnce) => true,
                    Some(Fault::NeverLeads) => false,
                    _ => self.now_ns >= due_ns,
                };
                if may {
                    self.guests[r].thread = Thread::Leading;
                    self.again(r, 30);
                } else {
                    self.again(r, 60);
                }
            }
            Step::WindowFull => {
                self.guests[r].thread = Thread::Asleep;
                self.guests[r].ready_ns = u64::MAX;
            }
            Step::Stopped(_) => {
                if !matches!(self.lockstep.state(id), ReplicaState::Stopped { .. }) {
                    return Err(format!("R5: {id} runs, but was told to stop"));
                }
                self.down(r);
            }
            Step::Held => {
                let decided = boundary < self.oracle.decided.len() as u64;
                if self.lockstep.outcome().is_none() || (decided && self.oracle.recoverable) {
                    return Err(format!("liveness: {id} is held, but there is a majority"));
                }
                self.guests[r].ready_ns = u64::MAX;
                self.guests[r].thread = match self.oracle.recoverable {
                    true => Thread::Asleep,
                    false => Thread::Gone,
                };
            }
        }
        Ok(())
    }

    fn due(&mut self, boundary: u64, wait_ns: u64) -> u64 {
        let at = boundary as usize;
        if self.due_ns.len() <= at {
            self.due_ns.resize(at + 1, None);
        }
        *self.due_ns[at].get_or_insert(self.now_ns + wait_ns)
    }

    fn lead(&mut self, r: usize) -> Check {
        let id = ReplicaId(r as u8);
        let boundary = self.guests[r].next - 1;
        self.entries += 1;
        let entry = Rc::new(SimEntry {
            content: mix(self.entries),
        });
        let limit = self.plan.config.max_entry_bytes() as u64;
        let bytes = match self.rng.below(12) {
            0 => self.rng.below(limit + 1),
            1 => limit + 1,
            _ => self.rng.below(limit / 16),
        } as usize;
        let led = self.lockstep.lead(id, entry.clone(), bytes, self.now_ns);
        self.say(|| format!("{id} leads {boundary}: {led:?}"));
        self.guests[r].thread = Thread::Standing;
        match led {
            Ok(()) if bytes as u64 > limit => {
                return Err(format!("R10: an entry of {bytes} bytes"));
            }
            Ok(()) => {
                self.oracle.led(boundary, &entry, bytes)?;
                // An executor may deliver what it wrote, or ask for it.
                if self.rng.one_in(2) {
                    return self.deliver(r, boundary, &entry);
                }
            }
            Err(LeadError::AlreadyWritten(at)) if at == boundary => {
                self.oracle.coverage.lost_races += 1;
            }
            Err(LeadError::TooLarge { .. }) if bytes as u64 > limit => {}
            Err(LeadError::Stopped(_)) if !self.oracle.is_running(r) => {}
            Err(LeadError::Held) if self.oracle.ended => {}
            // It was stopped and began again since, or a majority was lost and found.
            Err(LeadError::NotAsked(_)) if self.oracle.recoverable => {}
            Err(e) => return Err(format!("lead: {e}")),
        }
        self.again(r, 10);
        Ok(())
    }

    fn deliver(&mut self, r: usize, boundary: u64, entry: &Rc<SimEntry>) -> Check {
        self.oracle.delivered(r, boundary, entry)?;
        let fault = self.fault(r);
        let guest = &mut self.guests[r];
        guest.state = after(guest.state, entry);
        if fault == Some(Fault::Diverge) {
            guest.state = mix(guest.state ^ r as u64 ^ 0xbad);
        }
        let long = self.plan.long > 0 && guest.state.is_multiple_of(self.plan.long);
        let need_ns = if long { LONG_NS } else { 5 + guest.state % 60 };
        let need_ns = match fault {
            Some(Fault::Early) => 0,
            // No faster than those without a fault, or it would make them late.
            Some(Fault::Drip) => need_ns.max(LAG_TIMEOUT_NS * 9 / 10),
            // A long stretch differs less between replicas than its length: a host is not that unfair for that long.
            _ if long => need_ns + self.rng.below(LONG_NS * 3 / 4),
            _ => need_ns * self.plan.speed[r] / 10,
        };
        let guest = &mut self.guests[r];
        guest.thread = Thread::Computing;
        guest.ready_ns = self.now_ns + need_ns;
        Ok(())
    }

    /// What the guest wants to show at its next boundary.
    fn ballot(&mut self, r: usize) -> Vec<Output> {
        let guest = &self.guests[r];
        let mut outputs = outputs(guest.state, self.plan.output_bytes);
        // Two that are wrong, each in its own way, must not say the same by chance, such as nothing.
        let truth = self.oracle.truth.ballot(guest.next);
        if self.left.is_some_and(|left| !left.masked) && truth.is_some_and(|truth| truth != outputs)
        {
            outputs.push((Channel(2), vec![r as u8 + 1]));
        }
        let now = guest.fault.filter(|(at, _)| guest.next >= *at);
        let Some((at, fault)) = now else {
            return outputs;
        };
        let salt = r as u8 + 1;
        match fault {
            Fault::Wrong { wrong, once } if !once || at == guest.next => {
                spoil(&mut outputs, wrong, salt);
            }
            Fault::Early => outputs = vec![(Channel(0), vec![salt; 9])],
            Fault::Oversized => {
                outputs.push((Channel(0), vec![0; self.plan.config.max_ballot_bytes()]));
            }
            _ => {}
        }
        outputs
    }

    /// Calls that a correct executor never makes: refused, and nothing has changed.
    fn nonsense(&mut self) -> Check {
        let before = self.lockstep.stats();
        let r = self.rng.below(self.guests.len() as u64) as usize;
        let id = ReplicaId(r as u8);
        let nobody = ReplicaId(self.rng.between(self.guests.len() as u64, 255) as u8);
        let now_ns = self.rng.below(self.now_ns + 1);
        let entry = Rc::new(SimEntry { content: 0 });
        let active = self.oracle.is_active(r) && !self.oracle.over();
        let guest = &self.guests[r];
        let refused = match self.rng.below(6) {
            0 => {
                let boundary = guest.next + 1 + self.rng.below(3);
                let cast = self.lockstep.cast(id, boundary, vec![], now_ns);
                matches!(cast, Err(CastError::WrongBoundary { .. })) || !active
            }
            1 if guest.thread == Thread::Standing && guest.next > 0 => {
                let cast = self.lockstep.cast(id, guest.next - 1, vec![], now_ns);
                matches!(cast, Err(CastError::WrongBoundary { .. })) || !active
            }
            2 => {
                let cast = self.lockstep.cast(nobody, 0, vec![], now_ns);
                cast == Err(CastError::UnknownReplica(nobody))
            }
            3 => {
                let lead = self.lockstep.lead(nobody, entry, 0, now_ns);
                self.lockstep.fail(nobody, StopReason::Killed, now_ns);
                let state = self.lockstep.state(nobody);
                lead == Err(LeadError::UnknownReplica(nobody))
                    && matches!(state, ReplicaState::Stopped { .. })
                    && matches!(self.lockstep.step(nobody, now_ns), Step::Stopped(_))
            }
            4 if guest.thread == Thread::Computing => {
                let lead = self.lockstep.lead(id, entry, 0, now_ns);
                lead == Err(LeadError::NotAsked(id)) || !active
            }
            5 if guest.thread == Thread::Computing && guest.next == 0 => {
                matches!(self.lockstep.step(id, now_ns), Step::Held) || !active
            }
            _ => true,
        };
        if !refused || self.lockstep.stats() != before {
            return Err("a call that makes no sense was not refused, or had an effect".into());
        }
        Ok(())
    }
}

fn lengths(outputs: &[Output]) -> Vec<(u16, usize)> {
    let length = |(channel, bytes): &Output| (channel.0, bytes.len());
    outputs.iter().map(length).collect()
}

fn spoil(outputs: &mut Vec<Output>, wrong: Wrong, salt: u8) {
    let extra = (Channel(2), vec![salt]);
    match (wrong, outputs.len()) {
        (Wrong::Collude, _) => outputs.push((Channel(1), vec![0xee])),
        (Wrong::FlipByte, 1..) => {
            if let Some(byte) = outputs.iter_mut().rev().find_map(|(_, b)| b.last_mut()) {
                *byte ^= 1;
            }
        }
        (Wrong::Equivocate, 1..) => {
            let channel = outputs[0].0;
            for (_, bytes) in outputs.iter_mut().filter(|(c, _)| *c == channel) {
                bytes.push(salt);
            }
        }
        (Wrong::DropOutput, 1..) => {
            outputs.pop();
        }
        (Wrong::SwapOrder, 2..) => outputs.rotate_left(1),
        (Wrong::OtherChannel, 1..) => outputs[0].0 = Channel(outputs[0].0.0 + 1),
        // Nothing there to spoil.
        _ => outputs.push(extra),
    }
}
