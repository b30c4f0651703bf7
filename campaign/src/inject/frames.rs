//! What becomes of the next frame, on its way out of a replica or into it.

use crate::model::FrameFault;

use super::bits::{Hit, flip};

/// Takes the frames of one boundary after the other, from the trigger on.
#[derive(Debug)]
pub(super) struct Frames {
    how: FrameFault,
    pick: u64,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// No frame has come yet.
    Waiting,
    /// It is kept back until the next one has gone.
    Behind(Vec<u8>),
    /// It is kept back up to this boundary.
    Until(u64, Vec<u8>),
    /// It is over.
    Done,
}

impl Frames {
    pub(super) fn new(how: FrameFault, pick: u64) -> Self {
        Frames {
            how,
            pick,
            state: State::Waiting,
        }
    }

    /// Whether nothing more is done to any frame.
    pub(super) fn over(&self) -> bool {
        self.state == State::Done
    }

    /// The frames of a boundary pass by. Answers when the fault happens, which is once.
    pub(super) fn pass(&mut self, boundary: u64, frames: &mut Vec<Vec<u8>>) -> Option<Hit> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Waiting if frames.is_empty() => self.state = State::Waiting,
            State::Waiting => return Some(self.hit(boundary, frames)),
            State::Behind(frame) if frames.is_empty() => self.state = State::Behind(frame),
            State::Behind(frame) => frames.insert(1, frame),
            State::Until(then, frame) if boundary < then => {
                self.state = State::Until(then, frame);
            }
            State::Until(_, frame) => frames.insert(0, frame),
            State::Done => {}
        }
        None
    }

    /// There is at least one.
    fn hit(&mut self, boundary: u64, frames: &mut Vec<Vec<u8>>) -> Hit {
        let bytes = frames[0].len();
        let mut offset = 0;
        let what = match self.how {
            FrameFault::Drop => {
                frames.remove(0);
                "is lost".to_owned()
            }
            FrameFault::Corrupt => match flip(&mut frames[0], self.pick) {
                Some((at, text)) => {
                    offset = at;
                    text
                }
                None => "has no byte that could be changed".to_owned(),
            },
            FrameFault::Duplicate => {
                frames.insert(1, frames[0].clone());
                "comes twice".to_owned()
            }
            FrameFault::Reorder if frames.len() > 1 => {
                frames.swap(0, 1);
                "comes after the next one".to_owned()
            }
            FrameFault::Reorder => {
                self.state = State::Behind(frames.remove(0));
                "comes after the next one".to_owned()
            }
            FrameFault::Delay { boundaries: 0 } => "is not delayed".to_owned(),
            FrameFault::Delay { boundaries } => {
                let then = boundary.saturating_add(boundaries.into());
                self.state = State::Until(then, frames.remove(0));
                format!("comes {boundaries} boundaries later")
            }
        };
        Hit {
            text: format!("a frame of {bytes} bytes {what}"),
            offset,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    /// What came out, what was due when, and how many were hit.
    type Ran = (Vec<Vec<u8>>, Vec<(u64, Vec<u8>)>, usize);

    /// What comes out when frames that hold their number come in groups.
    fn run(how: FrameFault, groups: &[usize]) -> Ran {
        let mut fault = Frames::new(how, 13);
        let (mut all, mut out, mut hits, mut next) = (Vec::new(), Vec::new(), 0, 0u8);
        for (boundary, count) in (5..).zip(groups) {
            let mut frames: Vec<Vec<u8>> = (0..*count)
                .map(|_| {
                    next += 1;
                    vec![next; 9]
                })
                .collect();
            all.extend(frames.clone());
            hits += usize::from(fault.pass(boundary, &mut frames).is_some());
            out.extend(frames.into_iter().map(|frame| (boundary, frame)));
        }
        (all, out, hits)
    }

    fn bytes(out: &[(u64, Vec<u8>)]) -> Vec<Vec<u8>> {
        out.iter().map(|(_, frame)| frame.clone()).collect()
    }

    proptest! {
        /// Each fault does what its name says to the first frame, and nothing to any other.
        #[test]
        fn only_the_first_frame_is_hit(groups in prop::collection::vec(0usize..4, 1..12), delay in 1u32..4) {
            let (all, out, hits) = run(FrameFault::Drop, &groups);
            prop_assert_eq!(hits, usize::from(!all.is_empty()));
            prop_assert_eq!(bytes(&out), all.get(1..).unwrap_or_default());

            let (all, out, _) = run(FrameFault::Duplicate, &groups);
            let mut twice = all.clone();
            if let Some(first) = all.first() {
                twice.insert(0, first.clone());
            }
            prop_assert_eq!(bytes(&out), twice);

            let (all, out, _) = run(FrameFault::Reorder, &groups);
            let mut swapped = all.clone();
            if all.len() > 1 {
                swapped.swap(0, 1);
            } else {
                swapped.clear();
            }
            prop_assert_eq!(bytes(&out), swapped);

            let (all, out, _) = run(FrameFault::Corrupt, &groups);
            let differing: u32 = all.iter().flatten().zip(out.iter().flat_map(|(_, frame)| frame)).map(|(a, b)| (a ^ b).count_ones()).sum();
            prop_assert_eq!(differing, u32::from(!all.is_empty()));
            let out = bytes(&out);
            prop_assert_eq!(all.get(1..), out.get(1..));

            let (all, out, _) = run(FrameFault::Delay { boundaries: delay }, &groups);
            let first = groups.iter().position(|count| *count > 0);
            let due = first.map(|first| first + delay as usize).filter(|due| *due < groups.len());
            let mut sorted = bytes(&out);
            sorted.sort();
            prop_assert_eq!(&sorted[..], if due.is_some() { &all[..] } else { all.get(1..).unwrap_or_default() });
            if let Some(due) = due {
                prop_assert!(out.contains(&(5 + due as u64, all[0].clone())));
            }
        }
    }
}
