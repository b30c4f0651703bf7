//! An entry that a replica is given otherwise than the others.

use std::sync::Arc;

use quorate_devices::Entry;

use crate::model::EntryFault;

use super::bits::{Hit, flip};

/// What the replica is given instead, if it is this entry that is hit: an entry without frames and completions cannot lose them.
pub(super) fn spoil(how: EntryFault, pick: u64, entry: &Entry) -> Option<(Arc<Entry>, Hit)> {
    let mut other = entry.clone();
    let (text, offset) = match how {
        EntryFault::Lost if entry.frames.is_empty() && entry.completions.is_empty() => return None,
        EntryFault::Lost => {
            other.frames.clear();
            other.completions.clear();
            let (frames, completions) = (entry.frames.len(), entry.completions.len());
            let text =
                format!("{frames} frames and {completions} completions of an entry are lost");
            (text, 0)
        }
        EntryFault::Altered => {
            // One of the frames, or the time; the rest of the number chooses byte and bit.
            let objects = entry.frames.len() as u64 + 1;
            let (object, pick) = ((pick % objects) as usize, pick / objects);
            match other.frames.get_mut(object) {
                Some(frame) => {
                    let (at, text) = flip(frame, pick)?;
                    (format!("frame {object} of an entry {text}"), at)
                }
                None => {
                    let mut time = other.monotonic_ns.to_le_bytes();
                    let (at, text) = flip(&mut time, pick)?;
                    other.monotonic_ns = u64::from_le_bytes(time);
                    (format!("the time of an entry {text}"), at)
                }
            }
        }
    };
    Some((Arc::new(other), Hit { text, offset }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn bits(entry: &Entry) -> Vec<u8> {
        let mut all = entry.monotonic_ns.to_le_bytes().to_vec();
        all.extend(entry.frames.iter().flatten());
        all
    }

    proptest! {
        #[test]
        fn an_altered_entry_differs_in_one_bit(pick: u64, time: u64, frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..90), 0..4)) {
            let entry = Entry { monotonic_ns: time, frames, ..Entry::default() };
            let (other, _) = spoil(EntryFault::Altered, pick, &entry).unwrap();
            let differing: u32 = bits(&entry).iter().zip(bits(&other)).map(|(a, b)| (a ^ b).count_ones()).sum();
            prop_assert_eq!(differing, 1);
            let lost = spoil(EntryFault::Lost, pick, &entry);
            prop_assert_eq!(lost.is_none(), entry.frames.is_empty());
            if let Some((lost, _)) = lost {
                prop_assert!(lost.frames.is_empty());
                prop_assert_eq!(lost.monotonic_ns, time);
            }
        }
    }
}
