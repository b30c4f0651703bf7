//! A clock that goes wrong: what a replica is shown instead of an entry's times.

use crate::model::ClockFault;

/// Monotonic and wall-clock time, nanoseconds.
pub(super) type Times = (u64, u64);

/// See the module.
#[derive(Debug)]
pub(super) struct Clock {
    how: ClockFault,
    /// What was shown last before it went wrong.
    since: Times,
}

impl Clock {
    /// From now on; `since` is what the replica was shown last.
    pub(super) fn new(how: ClockFault, since: Times) -> Self {
        Clock { how, since }
    }

    /// What is shown instead. The device lets no monotonic clock go back: after a step back it stands still until the time has caught
    /// up, and the wall clock goes back.
    pub(super) fn shows(&self, (monotonic, realtime): Times) -> Times {
        match self.how {
            ClockFault::Step { ns } => (
                monotonic.saturating_add_signed(ns),
                realtime.saturating_add_signed(ns),
            ),
            ClockFault::Skew { ppm } => {
                let passed = monotonic.saturating_sub(self.since.0);
                // Of 128 bits: years times millions.
                let wrong = i128::from(passed) * i128::from(ppm) / 1_000_000;
                let wrong =
                    i64::try_from(wrong).unwrap_or(if ppm < 0 { i64::MIN } else { i64::MAX });
                (
                    monotonic.saturating_add_signed(wrong),
                    realtime.saturating_add_signed(wrong),
                )
            }
            ClockFault::Stop => self.since,
        }
    }

    /// In words.
    pub(super) fn text(&self) -> String {
        match self.how {
            ClockFault::Step { ns } => format!("the clock is {ns} ns ahead"),
            ClockFault::Skew { ppm } => format!("the clock goes too fast by {ppm} ppm"),
            ClockFault::Stop => format!("the clock stands still at {} ns", self.since.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_goes_wrong_in_its_own_way() {
        let since = (1_000_000, 5_000_000);
        let shows = |how, at| Clock::new(how, since).shows(at);
        let at = (3_000_000, 7_000_000);
        assert_eq!(
            shows(ClockFault::Step { ns: -500 }, at),
            (2_999_500, 6_999_500)
        );
        assert_eq!(shows(ClockFault::Step { ns: i64::MIN }, at), (0, 0));
        assert_eq!(
            shows(ClockFault::Skew { ppm: 1000 }, at),
            (3_002_000, 7_002_000)
        );
        assert_eq!(shows(ClockFault::Skew { ppm: -1000 }, since), since);
        assert_eq!(shows(ClockFault::Stop, at), since);
        // Nothing overflows.
        shows(ClockFault::Skew { ppm: i64::MAX }, (u64::MAX, u64::MAX));
        shows(ClockFault::Skew { ppm: i64::MIN }, (u64::MAX, 0));
    }
}
