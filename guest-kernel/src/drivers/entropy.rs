//! Randomness: a ChaCha20 stream (RFC 8439) keyed from virtio-rng (virtio 1.3, 5.4), which serves the set's input
//! seed, so it is the same in every replica. The key is replaced in each refill of the pool (fast key erasure), and
//! mixed with new bytes of the device now and then.

use super::mmio::{self, Window};
use super::virtqueue::Virtqueue;
use super::{AllocDma, InitError};
use crate::cell::Global;

const DEVICE_ID: u32 = 4;
const SEED: usize = 32;
/// Bytes given out between two requests for new key material.
const REKEY_BYTES: u64 = 1 << 20;
/// Boundaries that the first use waits for the device, before the guest gives up.
const SEED_BOUNDARIES: u32 = 8;
const BLOCK: usize = 64;
const POOL_BLOCKS: usize = 8;

struct Device {
    queue: Virtqueue,
    buffer: *mut u8,
    requested: bool,
}

struct Generator {
    key: [u32; 8],
    seeded: bool,
    pool: [u8; POOL_BLOCKS * BLOCK],
    used: usize,
    since_rekey: u64,
}

static DEVICE: Global<Option<Device>> = Global::new(None);
static GENERATOR: Global<Generator> = Global::new(Generator::new());

/// Starts the device and asks it for a seed, which arrives at the next boundary.
///
/// # Errors
/// See [`InitError`].
pub fn init(window: &impl Window, alloc: AllocDma) -> Result<(), InitError> {
    mmio::negotiate(window, DEVICE_ID, 0)?;
    let mut queue = mmio::queue(window, 0, 1, alloc)?;
    let (buffer, physical) = alloc(1).map_err(|_| InitError::Memory)?;
    queue.describe(0, physical, SEED as u32, true);
    mmio::start(window);
    let mut device = Device {
        queue,
        buffer,
        requested: false,
    };
    device.request();
    *DEVICE.borrow_mut() = Some(device);
    Ok(())
}

impl Device {
    fn request(&mut self) {
        if !self.requested {
            self.requested = true;
            self.queue.push(0);
        }
    }
}

/// Lets the device see the request for a seed, if there is one.
pub fn publish() {
    if let Some(device) = DEVICE.borrow_mut().as_mut() {
        device.queue.publish();
    }
}

/// Takes over a seed that has arrived.
pub fn reclaim() {
    let mut guard = DEVICE.borrow_mut();
    let Some(device) = guard.as_mut() else { return };
    let Some((_, len)) = device.queue.pop_used() else {
        return;
    };
    device.requested = false;
    let len = (len as usize).min(SEED);
    // SAFETY: the buffer is a page, and the device is done with it.
    let seed = unsafe { core::slice::from_raw_parts(device.buffer, len) };
    GENERATOR.borrow_mut().absorb(seed);
    if len < SEED && !GENERATOR.borrow().seeded {
        device.request();
    }
}

/// Fills `bytes` with random bytes, the same in every replica. Takes boundaries if the device has not delivered a seed
/// yet, so the network stack must not be borrowed at the first call.
pub fn fill(bytes: &mut [u8]) {
    let mut patience = SEED_BOUNDARIES;
    while !GENERATOR.borrow().seeded && patience > 0 && DEVICE.borrow().is_some() {
        crate::boundary::sync_now();
        patience -= 1;
    }
    let mut generator = GENERATOR.borrow_mut();
    // Without a seed, random bytes would be the same in every set: not random at all.
    #[cfg(not(test))]
    assert!(generator.seeded, "the entropy device delivers no seed");
    generator.fill(bytes);
    let rekey = generator.since_rekey >= REKEY_BYTES;
    drop(generator);
    if rekey && let Some(device) = DEVICE.borrow_mut().as_mut() {
        device.request();
    }
}

/// A random number.
pub fn next_u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

impl Generator {
    const fn new() -> Self {
        Self {
            key: [0; 8],
            seeded: false,
            pool: [0; POOL_BLOCKS * BLOCK],
            used: POOL_BLOCKS * BLOCK,
            since_rekey: 0,
        }
    }

    /// Mixes new key material in: the next key is a block of the cipher under (old key XOR seed).
    fn absorb(&mut self, seed: &[u8]) {
        let mut padded = [0; SEED];
        padded[..seed.len()].copy_from_slice(seed);
        for (word, bytes) in self.key.iter_mut().zip(padded.chunks_exact(4)) {
            *word ^= u32::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        self.seeded |= seed.len() == SEED;
        self.since_rekey = 0;
        self.refill();
    }

    fn refill(&mut self) {
        for (counter, block) in self.pool.chunks_exact_mut(BLOCK).enumerate() {
            block.copy_from_slice(&chacha20_block(&self.key, counter as u32, [0; 3]));
        }
        // Fast key erasure: the first half block is the next key, and is never given out.
        for (word, bytes) in self.key.iter_mut().zip(self.pool.chunks_exact(4)) {
            *word = u32::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        self.used = SEED;
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        self.since_rekey += bytes.len() as u64;
        let mut done = 0;
        while done < bytes.len() {
            if self.used == self.pool.len() {
                self.refill();
            }
            let take = (self.pool.len() - self.used).min(bytes.len() - done);
            let from = &mut self.pool[self.used..self.used + take];
            bytes[done..done + take].copy_from_slice(from);
            from.fill(0);
            self.used += take;
            done += take;
        }
    }
}

/// One block of the ChaCha20 key stream (RFC 8439, 2.3).
fn chacha20_block(key: &[u32; 8], counter: u32, nonce: [u32; 3]) -> [u8; BLOCK] {
    let mut state = [
        0x6170_7865,
        0x3320_646e,
        0x7962_2d32,
        0x6b20_6574,
        key[0],
        key[1],
        key[2],
        key[3],
        key[4],
        key[5],
        key[6],
        key[7],
        counter,
        nonce[0],
        nonce[1],
        nonce[2],
    ];
    let start = state;
    let mut quarter = |a: usize, b: usize, c: usize, d: usize| {
        for (x, y, z, by) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
            state[x] = state[x].wrapping_add(state[y]);
            state[z] = (state[z] ^ state[x]).rotate_left(by);
        }
    };
    for _ in 0..10 {
        for (a, b, c, d) in [
            (0, 4, 8, 12),
            (1, 5, 9, 13),
            (2, 6, 10, 14),
            (3, 7, 11, 15),
            (0, 5, 10, 15),
            (1, 6, 11, 12),
            (2, 7, 8, 13),
            (3, 4, 9, 14),
        ] {
            quarter(a, b, c, d);
        }
    }
    let mut out = [0; BLOCK];
    for ((bytes, word), first) in out.chunks_exact_mut(4).zip(state).zip(start) {
        bytes.copy_from_slice(&word.wrapping_add(first).to_le_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8439, 2.3.2.
    #[test]
    fn cipher_matches_the_rfc() {
        let key: Vec<u32> = (0..8u32)
            .map(|i| u32::from_le_bytes([0, 1, 2, 3].map(|b| (4 * i) as u8 + b)))
            .collect();
        let nonce = [0x0900_0000, 0x4a00_0000, 0];
        let block = chacha20_block(key.as_slice().try_into().unwrap_or(&[0; 8]), 1, nonce);
        assert_eq!(block[..8], [0x10, 0xf1, 0xe7, 0xe4, 0xd1, 0x3b, 0x59, 0x15]);
        assert_eq!(
            block[56..],
            [0xcb, 0xd0, 0x83, 0xe8, 0xa2, 0x50, 0x3c, 0x4e]
        );
    }

    #[test]
    fn the_stream_depends_on_seed_only_and_not_on_portions() {
        let stream = |seed: u8, portions: &[usize]| {
            let mut generator = Generator::new();
            generator.absorb(&[seed; SEED]);
            let mut out = Vec::new();
            for len in portions {
                let mut part = vec![0; *len];
                generator.fill(&mut part);
                out.extend(part);
            }
            out
        };
        let whole = stream(1, &[5000]);
        assert_eq!(whole, stream(1, &[1, 4095, 500, 404]));
        assert_ne!(whole, stream(2, &[5000]));
        assert!(whole.chunks(32).all(|c| c.iter().any(|b| *b != 0)));
    }

    #[test]
    fn a_short_seed_does_not_count() {
        let mut generator = Generator::new();
        generator.absorb(&[1; 8]);
        assert!(!generator.seeded);
        generator.absorb(&[2; SEED]);
        assert!(generator.seeded);
    }
}
