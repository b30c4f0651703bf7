//! Contents of sectors by a hash that is keyed with the run's secret (R2): nobody inside a guest can aim at a collision.

use std::hash::{BuildHasher, Hasher};

/// What a sector holds, as far as comparing goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(u128);

impl Digest {
    /// For sets of one replica, where nothing is compared.
    pub const NONE: Digest = Digest(0);
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Digest {
    /// Enough of it to tell contents apart in a report.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", (self.0 >> 64) as u64)
    }
}

/// Makes [`Digest`]s. To be used without any lock: this is where the time goes.
#[derive(Clone)]
pub struct Digester {
    key: [u8; 32],
}

impl std::fmt::Debug for Digester {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digester")
    }
}

impl Digester {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        // Of its own, so that what another matcher of the run computes says nothing about this.
        let mut of_disks = blake3::Hasher::new_keyed(key);
        of_disks.update(b"quorate disk contents");
        Self {
            key: *of_disks.finalize().as_bytes(),
        }
    }

    /// The digest of a sector's content.
    #[must_use]
    pub fn of(&self, content: &[u8]) -> Digest {
        let hash = blake3::keyed_hash(&self.key, content);
        let mut half = [0; 16];
        half.copy_from_slice(&hash.as_bytes()[..16]);
        Digest(u128::from_le_bytes(half))
    }
}

/// Hashes sector numbers, which a guest chooses, with a secret: no guest can fill one bucket.
#[derive(Clone, Copy)]
pub(super) struct SectorHash {
    add: u64,
    multiply: u64,
}

impl SectorHash {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&key[at..at + 8]);
            u64::from_le_bytes(word)
        };
        Self {
            add: word(0),
            multiply: word(8) | 1,
        }
    }
}

impl BuildHasher for SectorHash {
    type Hasher = SectorHasher;

    fn build_hasher(&self) -> SectorHasher {
        SectorHasher {
            keys: *self,
            state: 0,
        }
    }
}

/// See [`SectorHash`].
pub(super) struct SectorHasher {
    keys: SectorHash,
    state: u64,
}

impl Hasher for SectorHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u64(&mut self, number: u64) {
        // Both halves of the product: the upper one depends on all bits of the number, the table takes its places from both ends.
        let mixed = u128::from(number ^ self.keys.add ^ self.state.rotate_left(32))
            * u128::from(self.keys.multiply);
        self.state = (mixed as u64) ^ ((mixed >> 64) as u64);
    }

    fn finish(&self) -> u64 {
        self.state
    }
}
