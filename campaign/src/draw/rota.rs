//! Which draw belongs to which stratum.

/// Longest round, draws (R10).
pub const MAX_ROUND: u64 = 1 << 20;

/// A fixed order in which each stratum has exactly its weight in draws in each round, and in every beginning of the campaign as
/// near to its share as whole numbers allow: never a whole draw away from it.
pub struct Rota {
    round: Vec<u32>,
}

impl Rota {
    /// The order for these weights; the length of the round if that is beyond [`MAX_ROUND`].
    ///
    /// Draw j of a stratum of weight w must fall into the window from ⌊jW/w⌋ to before ⌈(j+1)W/w⌉ of a round of W draws. Of the
    /// windows that are open, the one that closes first is served; for tasks of length one that meets all of them (the windows
    /// of proportionate fairness: Baruah, Cohen, Plaxton, Varvel 1996).
    pub fn new(weights: &[u32]) -> Result<Self, u64> {
        let common = weights.iter().copied().fold(0, gcd).max(1);
        let weights: Vec<u64> = weights
            .iter()
            .map(|weight| u64::from(weight / common))
            .collect();
        let total: u64 = weights.iter().sum();
        if total > MAX_ROUND {
            return Err(total);
        }
        let mut served = vec![0u64; weights.len()];
        let mut round = Vec::new();
        for at in 0..total {
            let open = weights
                .iter()
                .zip(&served)
                .enumerate()
                .filter_map(|(stratum, (w, j))| {
                    let opens = (j * total).checked_div(*w)?;
                    (j < w && opens <= at).then(|| (((j + 1) * total).div_ceil(*w), stratum))
                });
            let Some((_, stratum)) = open.min() else {
                continue;
            };
            if let Some(count) = served.get_mut(stratum) {
                *count += 1;
            }
            round.push(u32::try_from(stratum).unwrap_or(u32::MAX));
        }
        Ok(Self { round })
    }

    /// Number of the stratum of a draw.
    pub fn stratum(&self, draw: u64) -> usize {
        let at = draw.checked_rem(self.draws()).unwrap_or_default();
        let at = usize::try_from(at).unwrap_or_default();
        self.round.get(at).map_or(0, |stratum| *stratum as usize)
    }

    /// Draws in a round.
    pub fn draws(&self) -> u64 {
        self.round.len() as u64
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn strata_alternate() {
        let rota = Rota::new(&[1, 1, 2]).unwrap();
        let order: Vec<usize> = (0..8).map(|draw| rota.stratum(draw)).collect();
        assert_eq!(order, [2, 0, 1, 2, 2, 0, 1, 2]);
        // A common factor makes the round no longer.
        assert_eq!(Rota::new(&[100, 200]).unwrap().draws(), 3);
        assert_eq!(Rota::new(&[1 << 20, 1]).err(), Some((1 << 20) + 1));
    }

    proptest! {
        #[test]
        fn weights_are_exact_in_each_round_and_near_in_each_beginning(
            weights in prop::collection::vec(1u32..40, 1..12),
        ) {
            let rota = Rota::new(&weights).unwrap();
            let total = f64::from(weights.iter().sum::<u32>());
            let mut counts = vec![0u32; weights.len()];
            for draw in 0..rota.draws() * 2 {
                counts[rota.stratum(draw)] += 1;
                for (count, weight) in counts.iter().zip(&weights) {
                    let share = (draw + 1) as f64 * f64::from(*weight) / total;
                    prop_assert!((f64::from(*count) - share).abs() < 1.0);
                }
            }
            let factor = f64::from(weights.iter().sum::<u32>()) / rota.draws() as f64;
            for (count, weight) in counts.iter().zip(&weights) {
                prop_assert_eq!(f64::from(*count) * factor, f64::from(2 * weight));
            }
        }
    }
}
