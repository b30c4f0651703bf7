//! Seeds. One run seed; from it the input seed of the set and a layout seed per replica, by BLAKE3's key derivation.
//!
//! A context string is never reused for another purpose, so knowing one derived seed says nothing of the others.

use rustix::rand::{GetRandomFlags, getrandom};

/// A 256-bit seed.
pub type Seed = [u8; 32];

const CONTEXT_TEXT: &str = "quorate 2026-11 run seed from text";
const CONTEXT_INPUT: &str = "quorate 2026-11 input seed";
const CONTEXT_LAYOUT: &str = "quorate 2026-11 layout seed";
const CONTEXT_FAULT: &str = "quorate 2026-11 fault injection";

/// The seed from which everything random in one run follows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RunSeed(Seed);

/// A secret of this run that is never shown, for keyed digests.
///
/// # Errors
/// When `getrandom` fails.
pub fn secret() -> Result<Seed, NoRandomness> {
    random_bytes()
}

/// Getting random bytes from the host failed.
#[derive(Debug, thiserror::Error)]
#[error("the host gives no random bytes: {0}")]
pub struct NoRandomness(#[from] rustix::io::Errno);

impl RunSeed {
    /// A fresh seed from the host's random source.
    ///
    /// # Errors
    /// When `getrandom` fails.
    pub fn random() -> Result<Self, NoRandomness> {
        Ok(RunSeed(random_bytes()?))
    }

    /// The seed that `--seed TEXT` names: 64 hexadecimal digits are taken as they are, any other text is hashed.
    pub fn from_text(text: &str) -> Self {
        if let Ok(hash) = blake3::Hash::from_hex(text.trim()) {
            return RunSeed(*hash.as_bytes());
        }
        RunSeed(blake3::derive_key(CONTEXT_TEXT, text.as_bytes()))
    }

    /// The seed shared by the set: all randomness that a guest asks for comes from it (R1).
    pub fn input(&self) -> Seed {
        blake3::derive_key(CONTEXT_INPUT, &self.0)
    }

    /// The layout seed of a replica. `generation` counts its fresh starts, so that a new start gets a new layout.
    pub fn layout(&self, replica: usize, generation: u64) -> Seed {
        self.derive(CONTEXT_LAYOUT, replica as u64, generation)
    }

    /// 64 bits for the `number`-th injected fault of a replica (the place of a random flip).
    pub fn fault(&self, replica: usize, number: u64) -> u64 {
        let seed = self.derive(CONTEXT_FAULT, replica as u64, number);
        let mut word = [0; 8];
        word.copy_from_slice(&seed[..8]);
        u64::from_le_bytes(word)
    }

    fn derive(&self, context: &'static str, first: u64, second: u64) -> Seed {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.0);
        hasher.update(&first.to_le_bytes());
        hasher.update(&second.to_le_bytes());
        *hasher.finalize().as_bytes()
    }
}

impl std::fmt::Display for RunSeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for RunSeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RunSeed({self})")
    }
}

fn random_bytes() -> Result<Seed, NoRandomness> {
    let mut seed = [0u8; 32];
    let mut filled = 0;
    while filled < seed.len() {
        match getrandom(&mut seed[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(seed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn everything_derived_is_distinct_and_repeatable() {
        let run = RunSeed::from_text("42");
        let mut seen = HashSet::new();
        assert!(seen.insert(run.input()));
        for replica in 0..9 {
            for generation in 0..3 {
                assert!(seen.insert(run.layout(replica, generation)));
            }
        }
        assert_eq!(run.layout(3, 1), RunSeed::from_text("42").layout(3, 1));
        assert_ne!(run.input(), RunSeed::from_text("43").input());
    }

    #[test]
    fn a_printed_seed_can_be_given_again() {
        let run = RunSeed::random().unwrap();
        assert_eq!(RunSeed::from_text(&run.to_string()), run);
        assert_ne!(RunSeed::random().unwrap(), run);
    }
}
