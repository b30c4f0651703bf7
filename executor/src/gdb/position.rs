//! Where in a replay the guest is, so that one can come back there.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_vmm::Motion;

/// Addresses of breakpoints.
pub type Breakpoints = Arc<BTreeSet<u64>>;

/// One kind of motion, so and so many times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The motion.
    pub motion: Motion,
    /// The breakpoints that were there. (A step can meet one, too, in the guest's kernel.)
    pub breakpoints: Breakpoints,
    /// How often.
    pub count: u64,
}

/// A place that is found again by doing the same again: the beginning of a stretch, and how one went on from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The stretch.
    pub stretch: u64,
    /// The way.
    pub trail: Vec<Leg>,
}

impl Position {
    /// The beginning of a stretch.
    pub fn start(stretch: u64) -> Self {
        Position {
            stretch,
            trail: Vec::new(),
        }
    }

    /// One more motion.
    pub fn note(&mut self, motion: Motion, breakpoints: &Breakpoints) {
        match self.trail.last_mut() {
            Some(leg) if leg.motion == motion && leg.breakpoints == *breakpoints => leg.count += 1,
            _ => self.trail.push(Leg {
                motion,
                breakpoints: Arc::clone(breakpoints),
                count: 1,
            }),
        }
    }

    /// The position before the last motion.
    pub fn before(&self) -> Self {
        let mut before = self.clone();
        if let Some(leg) = before.trail.last_mut() {
            leg.count -= 1;
            if leg.count == 0 {
                before.trail.pop();
            }
        }
        before
    }

    /// Stops and single steps since the beginning of the stretch.
    pub fn motions(&self) -> (u64, u64) {
        let count = |motion| {
            let legs = self.trail.iter().filter(|leg| leg.motion == motion);
            legs.map(|leg| leg.count).sum()
        };
        (count(Motion::Continue), count(Motion::Step))
    }
}

/// Where the guest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Here.
    At(Position),
    /// Interrupted somewhere after this position, before the end of its stretch.
    After(Position),
    /// Where the recording ends, or the guest: at the end of this stretch.
    End(u64),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn motions_add_up_and_can_be_taken_back() {
        let one = Breakpoints::new([1].into());
        let two = Breakpoints::new([1, 2].into());
        let start = Position::start(7);
        let mut here = start.clone();
        let mut all = vec![here.clone()];
        for (motion, breakpoints) in [
            (Motion::Continue, &one),
            (Motion::Continue, &one),
            (Motion::Continue, &two),
            (Motion::Step, &two),
            (Motion::Step, &two),
        ] {
            here.note(motion, breakpoints);
            all.push(here.clone());
        }
        assert_eq!(here.trail.len(), 3);
        assert_eq!(here.motions(), (3, 2));
        while let Some(before) = all.pop() {
            assert_eq!(here, before);
            here = here.before();
        }
        assert_eq!(here, start);
    }
}
