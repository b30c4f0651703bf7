//! What is tried next for a replica that was stopped. Pure: it is told what happened and when.
//!
//! 1. Its last checkpoint, and the inputs since then as fast as it takes them. That brings back who was killed, hung, or was
//!    spoiled by the host.
//! 2. If it crashes, hangs or differs on that way too, an input may be what does it: the same again, one input at a time, each only when the guest has
//!    nothing left to do. The input that is on its way when it fails then is the **fatal** one.
//! 3. The same again without the fatal input.
//! 4. If that is no help, a fresh machine and all inputs from the beginning, in the same way, if the log still has them and no disk has
//!    been written since.
//!
//! Whatever fails after the last of them is left out.

use std::collections::VecDeque;
use std::time::Duration;

use crate::recovery::Step;

/// Fatal inputs of a replica that are left out within a crash window (R10). With one more the replica is left out.
pub const FATAL_LIMIT: usize = 8;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// An input may have done it: its machine or program broke down, hung, or said something else; false if it was killed.
    pub crash: bool,
    /// The input that it was given last, if inputs were given one by one.
    pub in_flight: Option<u64>,
    /// Since it was brought back last it had caught up.
    pub caught_up: bool,
    /// It has a checkpoint.
    pub has_checkpoint: bool,
    /// It can begin afresh, with all inputs again.
    pub has_history: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Bring it back.
    Back {
        /// By [`Step::Checkpoint`] or [`Step::Replay`].
        step: Step,
        /// Give it inputs one by one until it has caught up.
        singly: bool,
        /// Leave out this input from now on, too.
        without: Option<u64>,
    },
    /// It does not come back by itself; why.
    LeaveOut(String),
}

/// See the module.
#[derive(Debug)]
pub struct Ladder {
    crash_limit: usize,
    window: Duration,
    /// When it failed while all was well, and when an input was found fatal.
    failures: VecDeque<Duration>,
    fatal: VecDeque<Duration>,
    /// What is being tried; `None` while all is well.
    trying: Option<(Step, bool)>,
}

impl Ladder {
    /// For a replica that runs. Who fails more than `crash_limit` times within `window` is left out.
    #[must_use]
    pub fn new(crash_limit: usize, window: Duration) -> Ladder {
        Ladder {
            crash_limit,
            window,
            failures: VecDeque::new(),
            fatal: VecDeque::new(),
            trying: None,
        }
    }

    /// The replica was stopped at `now`.
    pub fn failed(&mut self, failure: Failure, now: Duration) -> Move {
        if failure.caught_up {
            self.trying = None;
        }
        let Some((step, singly)) = self.trying else {
            if note(&mut self.failures, now, self.window) > self.crash_limit {
                return Move::LeaveOut(format!(
                    "it failed {} times within {} s",
                    self.crash_limit + 1,
                    self.window.as_secs()
                ));
            }
            return match (failure.has_checkpoint, failure.has_history) {
                (true, _) => self.back(Step::Checkpoint, false, None),
                (false, true) => self.back(Step::Replay, false, None),
                (false, false) => {
                    Move::LeaveOut("it has no checkpoint, and cannot begin afresh".to_owned())
                }
            };
        };
        match (failure.crash, singly, failure.in_flight) {
            (true, false, _) => self.back(step, true, None),
            (true, true, Some(input)) => {
                if note(&mut self.fatal, now, self.window) > FATAL_LIMIT {
                    return Move::LeaveOut(format!(
                        "more than {FATAL_LIMIT} requests within {} s were fatal to it",
                        self.window.as_secs()
                    ));
                }
                self.back(step, false, Some(input))
            }
            _ => self.next(failure.has_history),
        }
    }

    /// The operator wants it back, by this step or by the first that there is: what failed before is forgotten.
    pub fn ask_back(&mut self, step: Option<Step>, has_checkpoint: bool) -> Move {
        self.failures.clear();
        self.fatal.clear();
        let first = match has_checkpoint {
            true => Step::Checkpoint,
            false => Step::Replay,
        };
        self.back(step.unwrap_or(first), false, None)
    }

    /// What was tried cannot be done at all.
    pub fn impossible(&mut self, has_history: bool) -> Move {
        self.next(has_history)
    }

    fn next(&mut self, has_history: bool) -> Move {
        match self.trying {
            Some((Step::Checkpoint, _)) if has_history => self.back(Step::Replay, false, None),
            Some((Step::Checkpoint, _)) => Move::LeaveOut(
                "going on from its checkpoint failed, and it cannot begin afresh".to_owned(),
            ),
            _ => Move::LeaveOut("every step to bring it back failed".to_owned()),
        }
    }

    fn back(&mut self, step: Step, singly: bool, without: Option<u64>) -> Move {
        self.trying = Some((step, singly));
        Move::Back {
            step,
            singly,
            without,
        }
    }
}

/// Adds a time, forgets those before the window, and counts. R10: no more is kept than the limits that are compared with, and one.
fn note(times: &mut VecDeque<Duration>, now: Duration, window: Duration) -> usize {
    times.retain(|&at| at + window > now);
    times.push_back(now);
    times.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const CRASH: Failure = Failure {
        crash: true,
        in_flight: None,
        caught_up: false,
        has_checkpoint: true,
        has_history: false,
    };
    const WINDOW: Duration = Duration::from_secs(30);

    fn back(step: Step, singly: bool, without: Option<u64>) -> Move {
        Move::Back {
            step,
            singly,
            without,
        }
    }

    #[test]
    fn the_fatal_input_is_found_and_left_out() {
        let mut ladder = Ladder::new(10, WINDOW);
        let now = Duration::from_secs(1);
        let checkpoint = |singly, without| back(Step::Checkpoint, singly, without);
        assert_eq!(ladder.failed(CRASH, now), checkpoint(false, None));
        assert_eq!(ladder.failed(CRASH, now), checkpoint(true, None));
        let found = Failure {
            in_flight: Some(7),
            ..CRASH
        };
        assert_eq!(ladder.failed(found, now), checkpoint(false, Some(7)));
        // Another one behind it.
        assert_eq!(ladder.failed(CRASH, now), checkpoint(true, None));
        let later = Failure {
            caught_up: true,
            ..CRASH
        };
        assert_eq!(
            ladder.failed(later, now),
            checkpoint(false, None),
            "a new story"
        );
    }

    #[test]
    fn what_a_checkpoint_does_not_mend_begins_from_the_beginning() {
        let mut ladder = Ladder::new(10, WINDOW);
        let hung = Failure {
            crash: false,
            has_history: true,
            ..CRASH
        };
        let now = Duration::ZERO;
        assert_eq!(
            ladder.failed(hung, now),
            back(Step::Checkpoint, false, None)
        );
        assert_eq!(ladder.failed(hung, now), back(Step::Replay, false, None));
        assert!(matches!(ladder.failed(hung, now), Move::LeaveOut(_)));
        let mut ladder = Ladder::new(10, WINDOW);
        let lost = Failure {
            has_checkpoint: false,
            ..CRASH
        };
        assert!(matches!(ladder.failed(lost, now), Move::LeaveOut(_)));
        let mut ladder = Ladder::new(10, WINDOW);
        ladder.failed(CRASH, now);
        assert!(matches!(ladder.impossible(false), Move::LeaveOut(_)));
    }

    #[test]
    fn who_fails_too_often_is_left_out() {
        let mut ladder = Ladder::new(2, WINDOW);
        let well = Failure {
            caught_up: true,
            ..CRASH
        };
        for second in [0, 1, 40, 41] {
            let next = ladder.failed(well, Duration::from_secs(second));
            assert!(matches!(next, Move::Back { .. }), "{second}");
        }
        let next = ladder.failed(well, Duration::from_secs(42));
        assert!(matches!(next, Move::LeaveOut(_)));
    }

    #[test]
    fn who_is_asked_back_begins_with_a_clean_record() {
        let mut ladder = Ladder::new(1, WINDOW);
        let well = Failure {
            caught_up: true,
            ..CRASH
        };
        ladder.failed(well, Duration::ZERO);
        let out = ladder.failed(well, Duration::ZERO);
        assert!(matches!(out, Move::LeaveOut(_)));
        let checkpoint = back(Step::Checkpoint, false, None);
        assert_eq!(ladder.ask_back(None, true), checkpoint);
        assert_eq!(ladder.failed(well, Duration::ZERO), checkpoint);
        let replay = back(Step::Replay, false, None);
        assert_eq!(ladder.ask_back(None, false), replay);
        assert_eq!(ladder.ask_back(Some(Step::Replay), true), replay);
    }

    #[test]
    fn fatal_inputs_are_bounded() {
        let mut ladder = Ladder::new(1000, WINDOW);
        let found = Failure {
            in_flight: Some(7),
            ..CRASH
        };
        ladder.failed(CRASH, WINDOW);
        for _ in 0..FATAL_LIMIT {
            ladder.failed(CRASH, WINDOW);
            let next = ladder.failed(found, WINDOW);
            assert!(matches!(
                next,
                Move::Back {
                    without: Some(7),
                    ..
                }
            ));
        }
        ladder.failed(CRASH, WINDOW);
        assert!(matches!(ladder.failed(found, WINDOW), Move::LeaveOut(_)));
    }
}
