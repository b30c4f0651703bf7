//! Finds instructions that leak real time or randomness into a program: `rdtsc`, `rdtscp`, `rdpmc`, `rdrand`, `rdseed`.
//!
//! The image builder searches the code of a root image once; the guest kernel searches what becomes executable otherwise. Both
//! use exactly this code.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::vec::Vec;
use iced_x86::{Decoder, DecoderOptions, Instruction};
pub use iced_x86::{Mnemonic, Register};

/// A leaking instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leak {
    /// Which one.
    pub mnemonic: Mnemonic,
    /// Its length in bytes, prefixes included.
    pub len: u8,
    /// The register that `rdrand` and `rdseed` write.
    pub destination: Register,
}

/// Finds the leaking instructions in the executable segments of a 64-bit ELF file: (file offset, length), ascending. Other
/// files have none.
pub fn find_in_elf(file: &[u8]) -> Vec<(u64, u8)> {
    let mut found = Vec::new();
    for (start, end) in executable_ranges(file) {
        if let Some(bytes) = file.get(start..end) {
            find_leaks(bytes, start as u64, &mut found);
        }
    }
    found.sort_unstable_by_key(|(at, _)| *at);
    found.dedup_by_key(|(at, _)| *at);
    found.into_iter().map(|(at, leak)| (at, leak.len)).collect()
}

/// File ranges of the executable PT_LOAD segments.
fn executable_ranges(file: &[u8]) -> Vec<(usize, usize)> {
    let word = |at: usize| -> Option<usize> {
        let bytes = file.get(at..at.checked_add(8)?)?;
        usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let half = |at: usize| -> Option<usize> {
        let bytes = file.get(at..at.checked_add(2)?)?;
        Some(usize::from(u16::from_le_bytes(bytes.try_into().ok()?)))
    };
    let mut ranges = Vec::new();
    if file.get(..6) != Some(b"\x7fELF\x02\x01") || half(18) != Some(62) {
        return ranges;
    }
    let (Some(table), Some(56), Some(count)) = (word(32), half(54), half(56)) else {
        return ranges;
    };
    for i in 0..count {
        let Some(at) = table.checked_add(i * 56) else {
            break;
        };
        let flags = half(at.saturating_add(4)).unwrap_or(0);
        if half(at) != Some(1) || half(at.saturating_add(2)) != Some(0) || flags & 1 == 0 {
            continue;
        }
        if let (Some(offset), Some(len)) = (word(at + 8), word(at + 32))
            && let Some(end) = offset.checked_add(len)
        {
            ranges.push((offset, end.min(file.len())));
        }
    }
    ranges
}

/// Finds the leaking instructions in `bytes`. A byte pattern counts only if decoding from most places before it arrives there.
pub fn find_leaks(bytes: &[u8], base: u64, found: &mut Vec<(u64, Leak)>) {
    let mut from = 0;
    while let Some(offset) = bytes[from..].iter().position(|b| *b == 0x0f) {
        let at = from + offset;
        from = at + 1;
        let candidate = match bytes.get(at + 1) {
            Some(0x31 | 0x33) => true,
            Some(0x01) => bytes.get(at + 2) == Some(&0xf9),
            Some(0xc7) => bytes.get(at + 2).is_some_and(|modrm| *modrm >= 0xf0),
            _ => false,
        };
        if !candidate {
            continue;
        }
        // The instruction may begin with prefixes (REX, operand size) before the 0x0f.
        let prefixes = bytes[..at]
            .iter()
            .rev()
            .take(2)
            .take_while(|b| matches!(**b, 0x40..=0x4f | 0x66))
            .count();
        for begin in (at - prefixes..=at).rev() {
            if let Some(leak) = decode_leak(&bytes[begin..], base + begin as u64)
                && reached(bytes, begin)
            {
                found.push((base + begin as u64, leak));
                break;
            }
        }
    }
}

/// The leaking instruction that `bytes` begin with, if they do.
pub fn decode_leak(bytes: &[u8], ip: u64) -> Option<Leak> {
    let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    match instruction.mnemonic() {
        m @ (Mnemonic::Rdtsc
        | Mnemonic::Rdtscp
        | Mnemonic::Rdpmc
        | Mnemonic::Rdrand
        | Mnemonic::Rdseed) => Some(Leak {
            mnemonic: m,
            len: instruction.len() as u8,
            destination: instruction.op0_register(),
        }),
        _ => None,
    }
}

/// Whether decoding from places before `at` mostly arrives at `at`: x86 code falls into step quickly, data does not.
fn reached(bytes: &[u8], at: usize) -> bool {
    const STARTS: usize = 16;
    const DISTANCE: usize = 96;
    /// More zeroes than an instruction can hold: padding before code that a program has made. Decoding steps through them by two,
    /// and half of the time arrives one byte off.
    const PADDING: usize = 16;
    if at >= PADDING && bytes[at - PADDING..at].iter().all(|byte| *byte == 0) {
        return true;
    }
    let mut instruction = Instruction::default();
    let (mut tried, mut arrived) = (0, 0);
    for i in 0..STARTS {
        let Some(start) = at.checked_sub(DISTANCE - i) else {
            continue;
        };
        tried += 1;
        let mut decoder = Decoder::with_ip(64, &bytes[start..], start as u64, DecoderOptions::NONE);
        while decoder.can_decode() && decoder.position() + start < at {
            decoder.decode_out(&mut instruction);
        }
        if decoder.position() + start == at {
            arrived += 1;
        }
    }
    arrived * 4 >= tried * 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn leaks_are_found_behind_zeroes() {
        for padding in 16..120 {
            let mut code = vec![0xc3u8; 3];
            code.resize(3 + padding, 0);
            code.extend([0x0f, 0x31, 0xc3]);
            let mut found = Vec::new();
            find_leaks(&code, 0, &mut found);
            assert_eq!(
                found.iter().map(|(at, _)| *at).collect::<Vec<_>>(),
                [3 + padding as u64]
            );
        }
    }

    #[test]
    fn leaks_are_found_in_code_and_not_in_operands() {
        let mut code = vec![0x90u8; 128];
        code.extend([0x0f, 0x31]); // rdtsc
        code.extend([0x48, 0xb8, 0x0f, 0x31, 1, 2, 3, 4, 5, 6]); // mov rax, imm64 with the same bytes
        code.extend([0x48, 0x0f, 0xc7, 0xf3]); // rdrand rbx
        code.extend([0x0f, 0x01, 0xf9]); // rdtscp
        code.extend([0x90; 8]);
        let mut found = Vec::new();
        find_leaks(&code, 0, &mut found);
        let at: Vec<u64> = found.iter().map(|(at, _)| *at).collect();
        assert_eq!(at, [128, 140, 144]);
    }

    #[test]
    fn only_executable_segments_of_an_elf_are_searched() {
        let mut file = vec![0u8; 0x400];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18] = 62;
        file[32] = 64; // e_phoff
        file[54] = 56;
        file[56] = 2;
        let mut header = |index: usize, flags: u8, offset: u64, len: u64| {
            let at = 64 + 56 * index;
            file[at] = 1;
            file[at + 4] = flags;
            file[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
            file[at + 32..at + 40].copy_from_slice(&len.to_le_bytes());
        };
        header(0, 4, 0x200, 0x100);
        header(1, 5, 0x300, 0x100);
        file[0x200..].fill(0x90);
        for at in [0x280, 0x380] {
            file[at..at + 2].copy_from_slice(&[0x0f, 0x31]);
        }
        assert_eq!(find_in_elf(&file), [(0x380, 2)]);
        for cut in 0..file.len() {
            find_in_elf(&file[..cut]); // never panics
        }
    }
}
