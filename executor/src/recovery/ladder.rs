//! What the set knows of how one replica comes back, and which step it tries next. No threads, no clock of its own.

use std::collections::VecDeque;
use std::mem::{Discriminant, discriminant};
use std::time::{Duration, Instant};

use quorate_devices::DiskPosition;
use quorate_voter::StopReason;

use super::{Lineage, RecoveryConfig, Step};

/// How often a replica tries to copy another, whose donor may be stopped meanwhile, before it is left out.
const CLONE_ATTEMPTS: u32 = 3;
/// Failures remembered of one fall: the first and one per step (R10).
const FAILURES_KEPT: usize = 8;

/// A checkpoint that a replica has in its vault.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its name in the vault.
    pub id: u64,
    /// Where the replica stood, its ballot cast and the entry not delivered.
    pub boundary: u64,
    /// Until when the guest wanted to sleep there.
    pub wait_until_ns: u64,
    /// When it was taken.
    pub at: Instant,
    /// The ballot of its boundary was decided, and agreed with.
    pub confirmed: bool,
    /// Taken for another replica to copy; the owner does not count on it.
    pub loan: bool,
    /// Where the replica stood on its disks.
    pub positions: Vec<DiskPosition>,
}

/// An attempt at coming back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// By which step.
    pub step: Step,
    /// From where: the checkpoint's boundary, 0 for a replay, and for a clone where the set stood when it was asked for.
    pub boundary: u64,
    /// The checkpoint, for the first two steps.
    pub checkpoint: Option<u64>,
    /// Who is copied, for the last.
    pub donor: Option<usize>,
}

/// How a replica is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It votes, or starts for the first time with all others.
    #[default]
    Voting,
    /// It was stopped; its thread has not chosen a step yet.
    Fallen,
    /// Its thread restores a machine, or replays.
    Trying(Attempt),
    /// It waits until there is a majority with someone whom it can copy.
    Waiting,
    /// It does not come back by itself; why.
    LeftOut(String),
    /// The operator took it out of the set.
    Removed,
}

/// What a choice depends on beyond the replica itself.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// First boundary whose entry is still there.
    pub history_from: u64,
    /// First boundary that is not decided.
    pub frontier: u64,
    /// A replica that can be copied, and a majority runs.
    pub donor: Option<usize>,
    /// Enough others may come back for a majority.
    pub majority_possible: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This.
    Try(Attempt),
    /// Ask again when something has changed.
    Wait,
    /// Nothing is left; says why.
    GiveUp(String),
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// How it is doing.
    pub standing: Standing,
    /// How often it has come back.
    pub restarts: u64,
    /// The layout of its machine.
    pub lineage: Lineage,
    /// Layouts drawn for it so far.
    generations: u64,
    /// Its checkpoints, oldest first.
    pub kept: Vec<Kept>,
    /// Since when it has not voted.
    pub since: Option<Instant>,
    /// It is not a member until it votes for the first time.
    pub joining: bool,
    /// Times of its last faults, at most as many as the limit (R10).
    faults: VecDeque<Instant>,
    /// Boundary and kind of what stopped it, and then its attempts, in this fall.
    failures: Vec<(u64, Discriminant<StopReason>)>,
    /// The step to begin with.
    rung: Step,
    /// An operator asked for an older checkpoint although nothing is known against the last.
    pass_over_newest: bool,
    /// The step that brought it back last.
    last_step: Option<Step>,
    clones: u32,
    last_reason: String,
}

impl Recovery {
    /// Of a replica that starts.
    pub fn new(replica: usize) -> Self {
        Recovery {
            standing: Standing::Voting,
            restarts: 0,
            lineage: Lineage::first(replica),
            generations: 1,
            kept: Vec::new(),
            since: None,
            joining: false,
            faults: VecDeque::new(),
            failures: Vec::new(),
            rung: Step::Checkpoint,
            pass_over_newest: false,
            last_step: None,
            clones: 0,
            last_reason: String::new(),
        }
    }

    /// Of one that is added to a running set.
    pub fn joining(replica: usize, now: Instant) -> Self {
        Recovery {
            standing: Standing::Fallen,
            joining: true,
            since: Some(now),
            ..Self::new(replica)
        }
    }

    /// Notes which checkpoints can be relied upon, now that all boundaries below `frontier` are decided and the replica agreed
    /// with all of them; and drops those beyond the bound of `keep` (R10).
    pub fn confirm(&mut self, frontier: u64, keep: usize) {
        for kept in &mut self.kept {
            kept.confirmed |= kept.boundary < frontier;
        }
        let confirmed = self.kept.iter().filter(|kept| kept.confirmed && !kept.loan);
        let mut excess = confirmed.count().saturating_sub(keep);
        self.kept.retain(|kept| {
            let drop = excess > 0 && kept.confirmed && !kept.loan;
            excess -= usize::from(drop);
            !drop
        });
    }

    /// The replica was stopped. `frontier` and `boundary` are as at that moment. Says which step has failed by that, if it is no
    /// new fault.
    pub fn fell(
        &mut self,
        reason: &StopReason,
        boundary: u64,
        frontier: u64,
        now: Instant,
        config: &RecoveryConfig,
    ) -> Option<Step> {
        // What it cast and nobody agreed with may be wrong, and so may be any state that comes after it.
        let wrong = match reason {
            StopReason::Outvoted(verdict) => verdict.boundary,
            StopReason::Relapsed { boundary } | StopReason::Disputed { boundary } => *boundary,
            _ => u64::MAX,
        };
        self.kept
            .retain(|kept| kept.boundary < frontier && kept.boundary < wrong);
        self.confirm(frontier, config.keep);
        self.last_reason = reason.to_string();
        let failure = (boundary, discriminant(reason));
        let killed = matches!(reason, StopReason::Killed);
        let failed_step = match &self.standing {
            Standing::Trying(attempt) if !killed => Some(attempt.step),
            // It came back and fell again in the same way at the same place: that step did not help.
            _ if self.failures.last() == Some(&failure) && !killed => self.last_step,
            _ => None,
        };
        let is_new = !matches!(self.standing, Standing::Trying(_)) || killed;
        match failed_step {
            Some(step) => self.failed(step),
            None => {
                self.failures.clear();
                self.rung = Step::Checkpoint;
                self.clones = 0;
            }
        }
        if self.failures.len() < FAILURES_KEPT {
            self.failures.push(failure);
        }
        if is_new {
            self.since.get_or_insert(now);
            self.faults.push_back(now);
            while self.faults.len() > config.crash_limit {
                self.faults.pop_front();
            }
        }
        if self.standing != Standing::Removed {
            self.standing = Standing::Fallen;
        }
        failed_step
    }

    /// An attempt did not come as far as running: a machine could not be built or restored.
    pub fn could_not(&mut self, reason: String) {
        if let Standing::Trying(attempt) = &self.standing {
            let step = attempt.step;
            self.standing = Standing::Fallen;
            self.last_reason = reason;
            self.failed(step);
        }
    }

    fn failed(&mut self, step: Step) {
        match step {
            Step::Checkpoint | Step::Older => {
                // The one that was used is the newest that was left.
                self.kept.pop();
                self.rung = Step::Older;
            }
            Step::Replay => self.rung = Step::Clone,
            Step::Clone => self.clones += 1,
        }
    }

    /// Whether it has failed too often within too short a time.
    fn fails_too_often(&self, now: Instant, config: &RecoveryConfig) -> bool {
        self.faults.len() >= config.crash_limit
            && self
                .faults
                .front()
                .is_some_and(|first| now.saturating_duration_since(*first) <= config.crash_window)
    }

    /// Which step is next. Called while it is fallen or waits.
    pub fn choose(&mut self, facts: &Facts, now: Instant, config: &RecoveryConfig) -> Choice {
        if self.fails_too_often(now, config) {
            return Choice::GiveUp(format!(
                "it failed {} times within {} s, at last: {}",
                config.crash_limit,
                config.crash_window.as_secs(),
                self.last_reason
            ));
        }
        self.kept.retain(|kept| kept.boundary >= facts.history_from);
        if self.rung <= Step::Older {
            // The one on loan is not its own to count on.
            self.kept.retain(|kept| !kept.loan);
            if std::mem::take(&mut self.pass_over_newest) {
                self.kept.pop();
            }
            if let Some(kept) = self.kept.last() {
                return Choice::Try(Attempt {
                    step: self.rung,
                    boundary: kept.boundary,
                    checkpoint: Some(kept.id),
                    donor: None,
                });
            }
            self.rung = Step::Replay;
        }
        if self.rung == Step::Replay {
            if facts.history_from == 0 {
                return Choice::Try(Attempt {
                    step: Step::Replay,
                    boundary: 0,
                    checkpoint: None,
                    donor: None,
                });
            }
            self.rung = Step::Clone;
        }
        if self.clones >= CLONE_ATTEMPTS {
            return Choice::GiveUp(self.exhausted());
        }
        match facts.donor {
            Some(donor) => Choice::Try(Attempt {
                step: Step::Clone,
                // Where the set stands, if it sleeps.
                boundary: facts.frontier.saturating_sub(1),
                checkpoint: None,
                donor: Some(donor),
            }),
            None if facts.majority_possible => Choice::Wait,
            // A copy of a minority's state would make a majority of what nobody agreed on (R2).
            None => Choice::GiveUp(format!(
                "{}; and there is no majority of which one could be copied",
                self.exhausted()
            )),
        }
    }

    fn exhausted(&self) -> String {
        format!(
            "no step of the ladder brought it back, the last reason: {}",
            self.last_reason
        )
    }

    /// The lineage of the machine that an attempt needs; a clone's is its donor's, which the caller knows.
    pub fn lineage_for(&mut self, step: Step, replica: usize) -> Lineage {
        if step == Step::Replay {
            let generation = self.generations;
            self.generations += 1;
            return Lineage {
                replica,
                generation,
            };
        }
        self.lineage
    }

    /// Generation of the layouts drawn for it so far.
    pub fn generation(&self) -> u64 {
        self.lineage.generation
    }

    /// It votes again. Says by which attempt, and how long it has been away.
    pub fn recovered(&mut self, now: Instant) -> Option<(Attempt, Duration)> {
        let Standing::Trying(attempt) = &self.standing else {
            return None;
        };
        let attempt = attempt.clone();
        self.standing = Standing::Voting;
        self.last_step = Some(attempt.step);
        self.restarts += u64::from(!self.joining);
        self.joining = false;
        let since = self.since.take().unwrap_or(now);
        Some((attempt, now.saturating_duration_since(since)))
    }

    /// An operator wants it back, by this step or from the top.
    pub fn ask_back(&mut self, step: Option<Step>, now: Instant) {
        self.faults.clear();
        self.failures.clear();
        self.clones = 0;
        self.rung = step.unwrap_or(Step::Checkpoint);
        self.pass_over_newest = step == Some(Step::Older);
        self.last_step = None;
        self.since.get_or_insert(now);
        self.standing = Standing::Fallen;
    }

    /// Where it failed, if it did so in the same way there before and after two steps: then the fault lies not in its state but
    /// in the program.
    pub fn is_incurable(&self) -> Option<u64> {
        if self.standing == Standing::Voting {
            return None;
        }
        let [.., first, second, third] = &self.failures[..] else {
            return None;
        };
        // Of a dispute nobody knows whose fault it is: another layout may end it.
        let disputed = discriminant(&StopReason::Disputed { boundary: 0 });
        (first == second && second == third && third.1 != disputed).then_some(third.0)
    }

    /// Whether it may vote some day without help.
    pub fn may_come_back(&self) -> bool {
        matches!(
            self.standing,
            Standing::Voting | Standing::Fallen | Standing::Trying(_)
        )
    }

    /// The names of its checkpoints.
    pub fn ids(&self) -> Vec<u64> {
        self.kept.iter().map(|kept| kept.id).collect()
    }
}
