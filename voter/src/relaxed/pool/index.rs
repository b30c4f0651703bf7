//! From content to what was said of it, by a keyed hash.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Hash of an output under the run's secret: guests cannot aim at a place in the index, nor at a collision (R2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContentHash(u128);

/// The hash of an output of a channel.
#[must_use]
pub fn content_hash(key: &[u8; 32], tag: [u64; 2], bytes: &[u8]) -> ContentHash {
    // The tag comes last: in front it would shift the bytes across the hash's blocks.
    let mut both = [0; 48];
    both[..32].copy_from_slice(blake3::keyed_hash(key, bytes).as_bytes());
    both[32..40].copy_from_slice(&tag[0].to_le_bytes());
    both[40..].copy_from_slice(&tag[1].to_le_bytes());
    let hash = blake3::keyed_hash(key, &both);
    let mut first = [0; 16];
    first.copy_from_slice(&hash.as_bytes()[..16]);
    ContentHash(u128::from_le_bytes(first))
}

/// Takes eight bytes of what is a keyed hash already.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, i: u128) {
        self.0 = i as u64;
    }
}

/// A map from hashes of contents.
pub type ContentMap<V> = HashMap<ContentHash, V, BuildHasherDefault<AsIs>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_of_key_tag_and_bytes() {
        let hash = content_hash(&[1; 32], [2, 3], b"x");
        assert_eq!(hash, content_hash(&[1; 32], [2, 3], b"x"));
        for other in [
            content_hash(&[0; 32], [2, 3], b"x"),
            content_hash(&[1; 32], [3, 2], b"x"),
            content_hash(&[1; 32], [2, 3], b"y"),
        ] {
            assert_ne!(hash, other);
        }
        let mut map = ContentMap::default();
        map.insert(hash, 7);
        assert_eq!(map.get(&hash), Some(&7));
    }
}
