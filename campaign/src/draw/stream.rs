//! Random numbers for one purpose of one draw, and exact samples of distributions from them.
//!
//! Nothing here uses a logarithm, an exponential or any other function that two machines' mathematical libraries compute
//! differently: two machines with one seed draw the same.

use crate::file::Span;

/// Changes when anything changes that is drawn from a given seed. It is part of every digest of a campaign.
pub const DRAWING: u32 = 1;

/// Random bits: the output of BLAKE3 for seed, number of the draw and purpose, as long as it is asked for.
pub struct Stream(blake3::OutputReader);

impl Stream {
    /// The stream for one purpose of one draw. Streams of different purposes have nothing to do with each other, so that what is
    /// drawn for one does not depend on how many numbers another took.
    #[must_use]
    pub fn new(seed: &str, draw: u64, purpose: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("quorate campaign draw 1");
        for text in [seed, purpose] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.update(&draw.to_le_bytes());
        Self(hasher.finalize_xof())
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A number below `bound`, each exactly alike: numbers of the incomplete last run of `bound` are drawn again. 0 for 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        // 2^64 mod bound: so many numbers are too many.
        let excess = bound.wrapping_neg() % bound;
        loop {
            let bits = self.bits();
            if bits >= excess {
                return bits % bound;
            }
        }
    }

    /// A number from `first` to `last`, both included.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        match last.saturating_sub(first).checked_add(1) {
            Some(bound) => first + self.below(bound),
            None => self.bits(),
        }
    }

    /// A number of a span.
    pub fn of(&mut self, span: Span) -> i64 {
        let width = span.most.saturating_sub(span.least).max(0).unsigned_abs();
        span.least.wrapping_add_unsigned(self.between(0, width))
    }

    /// One of `items`; none if there is none.
    pub fn one<'i, T>(&mut self, items: &'i [T]) -> Option<&'i T> {
        let number = self.below(items.len() as u64);
        items.get(usize::try_from(number).unwrap_or_default())
    }

    /// A set of `count` different numbers below `bound` (at most 64) as bits, each set alike (Floyd's algorithm).
    pub fn subset(&mut self, count: u8, bound: u8) -> u64 {
        let mut chosen = 0u64;
        for last in u64::from(bound.saturating_sub(count))..u64::from(bound.min(64)) {
            let bit = 1u64 << self.below(last + 1);
            chosen |= if chosen & bit == 0 { bit } else { 1 << last };
        }
        chosen
    }

    /// True with probability exp(-x / 2^64): the length of a falling run of random numbers below x is even (von Neumann 1951).
    fn exp_of_minus(&mut self, x: u64) -> bool {
        let mut bound = x;
        let mut even = true;
        loop {
            let next = self.bits();
            if next >= bound {
                return even;
            }
            bound = next;
            even = !even;
        }
    }

    /// An exponentially distributed number of mean 1, as whole part and fraction of 2^64 (von Neumann 1951).
    pub fn exponential(&mut self) -> (u64, u64) {
        let mut whole = 0;
        loop {
            let fraction = self.bits();
            if self.exp_of_minus(fraction) {
                return (whole, fraction);
            }
            whole += 1;
        }
    }

    /// A normally distributed number's size, as whole part and fraction of 2^64, and whether it is negative (Karney, "Sampling
    /// exactly from the normal distribution", 2016, algorithm N; its last test by exp(-x(2k+x)/2) in one piece).
    pub fn normal(&mut self) -> (u64, u64, bool) {
        /// exp(-1/2).
        const HALF: u64 = 1 << 63;
        loop {
            let mut whole = 0u64;
            while self.exp_of_minus(HALF) {
                whole += 1;
            }
            // Accepted with exp(-k(k-1)/2).
            if !(0..whole * whole.saturating_sub(1)).all(|_| self.exp_of_minus(HALF)) {
                continue;
            }
            let fraction = self.bits();
            // x(2k+x)/2 = kx + x²/2, where x is fraction/2^64: whole part and the rest of it, to 2^-64.
            let square = (u128::from(fraction) * u128::from(fraction)) >> 65;
            let exponent = u128::from(whole) * u128::from(fraction) + square;
            #[allow(clippy::cast_possible_truncation)]
            let (steps, rest) = ((exponent >> 64) as u64, exponent as u64);
            let accepted = (0..steps).all(|_| self.exp_of_minus(HALF) && self.exp_of_minus(HALF))
                && self.exp_of_minus(rest);
            if accepted {
                return (whole, fraction, self.bits() >> 63 == 1);
            }
        }
    }
}

/// Whole part and fraction of 2^64 as one number.
#[must_use]
pub fn joined(whole: u64, fraction: u64) -> f64 {
    // What is drawn is far below 2^53; the fraction loses its last bits.
    #[allow(clippy::cast_precision_loss)]
    let (whole, fraction) = (whole as f64, (fraction >> 11) as f64);
    whole + fraction / 9_007_199_254_740_992.0
}
