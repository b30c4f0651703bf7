//! Ballots: what they cost, and where two of them differ.

use crate::ids::Channel;
use crate::verdict::{Difference, DifferenceKind, EXCERPT_BYTES, Said};

/// One output of a ballot: where to, and what.
pub type Output = (Channel, Vec<u8>);

/// Bytes that a stored ballot is charged beyond its outputs, so that empty ballots count too (R10).
pub const BALLOT_OVERHEAD: usize = 64;
/// Bytes that each output is charged beyond its payload, so that a million empty outputs count (R10).
pub const OUTPUT_OVERHEAD: usize = 64;

/// Bytes of an excerpt that lie before the first difference.
const EXCERPT_LEAD: usize = EXCERPT_BYTES / 4;

/// What a ballot is charged against [`crate::Config::window_bytes`] and [`crate::Config::max_ballot_bytes`].
#[must_use]
pub fn ballot_cost(outputs: &[Output]) -> usize {
    outputs.iter().fold(BALLOT_OVERHEAD, |sum, (_, bytes)| {
        sum.saturating_add(bytes.len())
            .saturating_add(OUTPUT_OVERHEAD)
    })
}

/// Payload bytes of a ballot.
pub(crate) fn payload(outputs: &[Output]) -> u64 {
    outputs.iter().map(|(_, bytes)| bytes.len() as u64).sum()
}

/// Outputs on one channel, in order.
fn on(outputs: &[Output], channel: Channel) -> impl Iterator<Item = &[u8]> {
    outputs
        .iter()
        .filter(move |(c, _)| *c == channel)
        .map(|(_, bytes)| bytes.as_slice())
}

/// Channels of a ballot in order of appearance. Executors have a handful of channels; a search is fine.
fn channels(ballots: [&[Output]; 2]) -> Vec<Channel> {
    let mut found = Vec::new();
    for (channel, _) in ballots.into_iter().flatten() {
        if !found.contains(channel) {
            found.push(*channel);
        }
    }
    found
}

/// Where `other` first departs from `reference`: channel by channel, in the reference's order, since one extra
/// frame should be reported as that and not as whatever stands after it. Only called when ballots differ.
pub(crate) fn first_difference(reference: &[Output], other: &[Output]) -> Option<Difference> {
    for channel in channels([reference, other]) {
        let (mut left, mut right) = (on(reference, channel), on(other, channel));
        for index in 0.. {
            let (kind, offset) = match (left.next(), right.next()) {
                (None, None) => break,
                (Some(_), None) => (DifferenceKind::Missing, 0),
                (None, Some(_)) => (DifferenceKind::Extra, 0),
                (Some(a), Some(b)) if a != b => {
                    let same = a.iter().zip(b).take_while(|(x, y)| x == y).count();
                    (DifferenceKind::Content, same)
                }
                _ => continue,
            };
            return Some(Difference {
                channel,
                kind,
                index,
                offset,
            });
        }
    }
    // Every channel agrees: then the order between channels may differ. Honest replicas agree on it
    // too, and it decides the order of releases, so a minority must not choose it.
    let at = reference
        .iter()
        .zip(other)
        .position(|((a, _), (b, _))| a != b)?;
    let channel = reference.get(at)?.0;
    let index = reference[..at]
        .iter()
        .filter(|(c, _)| *c == channel)
        .count();
    Some(Difference {
        channel,
        kind: DifferenceKind::Order,
        index,
        offset: 0,
    })
}

/// What a ballot says at the place of a difference.
pub(crate) fn said(outputs: &[Output], place: &Difference) -> Said {
    let here = on(outputs, place.channel).nth(place.index);
    let start = place.offset.saturating_sub(EXCERPT_LEAD);
    let excerpt = here.map_or_else(Vec::new, |bytes| {
        let start = start.min(bytes.len());
        let end = start.saturating_add(EXCERPT_BYTES).min(bytes.len());
        bytes[start..end].to_vec()
    });
    Said {
        outputs: on(outputs, place.channel).count(),
        bytes: on(outputs, place.channel).map(<[u8]>::len).sum(),
        len: here.map(<[u8]>::len),
        excerpt_offset: start,
        excerpt,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NET: Channel = Channel(1);
    const PRINT: Channel = Channel(2);

    fn place(a: &[Output], b: &[Output]) -> (Channel, DifferenceKind, usize, usize) {
        let d = first_difference(a, b).unwrap();
        (d.channel, d.kind, d.index, d.offset)
    }

    #[test]
    fn equal_ballots_have_no_difference() {
        let a = vec![(NET, vec![1]), (PRINT, vec![])];
        assert_eq!(first_difference(&a, &a.clone()), None);
        assert_eq!(first_difference(&[], &[]), None);
    }

    #[test]
    fn content_names_the_byte() {
        let a = [(NET, vec![9]), (PRINT, vec![0]), (NET, b"abcdef".to_vec())];
        let b = [(NET, vec![9]), (PRINT, vec![0]), (NET, b"abcxef".to_vec())];
        assert_eq!(place(&a, &b), (NET, DifferenceKind::Content, 1, 3));
        // A prefix differs where the shorter one ends.
        let c = [(NET, vec![9]), (PRINT, vec![0]), (NET, b"ab".to_vec())];
        assert_eq!(place(&a, &c), (NET, DifferenceKind::Content, 1, 2));
    }

    #[test]
    fn one_frame_more_or_less_is_named_as_that() {
        let a = [(NET, vec![1]), (PRINT, vec![5])];
        let b = [(NET, vec![1]), (NET, vec![2, 3]), (PRINT, vec![5])];
        assert_eq!(place(&a, &b), (NET, DifferenceKind::Extra, 1, 0));
        assert_eq!(place(&b, &a), (NET, DifferenceKind::Missing, 1, 0));
        let d = first_difference(&a, &b).unwrap();
        assert_eq!(said(&a, &d).len, None);
        assert_eq!(said(&b, &d).len, Some(2));
        assert_eq!(said(&b, &d).outputs, 2);
        assert_eq!(said(&b, &d).bytes, 3);
    }

    #[test]
    fn an_output_on_another_channel_is_a_difference_of_both() {
        let a = [(NET, vec![1])];
        let b = [(PRINT, vec![1])];
        assert_eq!(place(&a, &b), (NET, DifferenceKind::Missing, 0, 0));
        assert_eq!(place(&[], &b), (PRINT, DifferenceKind::Extra, 0, 0));
    }

    #[test]
    fn order_between_channels_counts() {
        let a = [(NET, vec![1]), (NET, vec![2]), (PRINT, vec![5])];
        let b = [(NET, vec![1]), (PRINT, vec![5]), (NET, vec![2])];
        assert_eq!(place(&a, &b), (NET, DifferenceKind::Order, 1, 0));
    }

    #[test]
    fn excerpts_are_short_and_around_the_place() {
        let mut wrong: Vec<u8> = (0..200).collect();
        wrong[100] = 0;
        let a = [(NET, (0..200).collect::<Vec<u8>>())];
        let b = [(NET, wrong)];
        let d = first_difference(&a, &b).unwrap();
        let says = said(&a, &d);
        assert_eq!(says.excerpt_offset, 92);
        assert_eq!(says.excerpt, (92..124).collect::<Vec<u8>>());
        assert_eq!(said(&b, &d).excerpt[8], 0);
        // The end of a short output cuts the excerpt.
        let c = [(NET, (0..101).collect::<Vec<u8>>())];
        let d = first_difference(&a, &c).unwrap();
        assert_eq!(said(&c, &d).excerpt, (93..101).collect::<Vec<u8>>());
    }

    #[test]
    fn empty_outputs_cost_something() {
        assert_eq!(ballot_cost(&[]), BALLOT_OVERHEAD);
        let many = vec![(NET, vec![]); 1000];
        assert_eq!(ballot_cost(&many), BALLOT_OVERHEAD + 1000 * OUTPUT_OVERHEAD);
        assert_eq!(payload(&[(NET, vec![0; 7]), (PRINT, vec![0; 3])]), 10);
    }
}
