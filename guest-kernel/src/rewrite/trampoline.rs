//! What a rewritten site looks like, and where its trampoline goes.
//!
//! The site begins with a near jump (five bytes) to the trampoline, which lies such that the jump's third byte is no instruction: whoever
//! arrives behind the `syscall` (a branch from afar, a thread that was in the call, a signal handler that returns) traps there and is sent
//! on to where the instruction is now. Bytes of the site behind the jump are no instruction either.

use super::ARENA;
use alloc::vec::Vec;
use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Decoder, DecoderOptions, FlowControl, Instruction,
    InstructionBlock, Mnemonic, OpKind,
};

/// Length of a near jump.
pub(super) const JUMP: usize = 5;
/// Bytes around a site that are searched for branches into it.
pub(super) const NEIGHBOURHOOD: u64 = 384;
/// Most bytes of one trampoline.
const TRAMPOLINE_MAX: usize = 96;
/// Bytes that relocated instructions may need more in one place than in another.
pub(super) const SLACK: usize = 16;
/// Bytes of a trampoline before the instruction at which the system call returns.
pub(super) const HEAD: u64 = 13;
/// Trampolines begin at multiples of this.
const GRAIN: u64 = 16;
const GRAINS: usize = (ARENA / GRAIN) as usize;

/// One-byte opcodes that are invalid in 64-bit mode.
const INVALID: [u8; 15] = [
    0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0xce, 0xd4,
];

/// Where trampolines lie; its first grain holds the address that they jump to.
#[derive(Clone)]
pub(super) struct Arena {
    base: u64,
    /// A bit for each grain that is taken.
    taken: Vec<u64>,
}

impl Arena {
    /// An empty one.
    pub(super) fn new(base: u64) -> Self {
        let mut taken = alloc::vec![0; GRAINS / 64];
        taken[0] = 1;
        Self { base, taken }
    }

    /// Its first address.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    fn grains(&self, at: u64, len: usize) -> core::ops::Range<usize> {
        let first = ((at - self.base) / GRAIN) as usize;
        first..first + len.div_ceil(GRAIN as usize)
    }

    /// A place for `len` bytes that the site can jump to, so that the third byte of its jump is no instruction.
    pub(super) fn find(&self, site: u64, len: usize) -> Option<u64> {
        let free = |i: usize| i < GRAINS && self.taken[i / 64] & 1 << (i % 64) == 0;
        (0..GRAINS as u64)
            .map(|i| self.base + i * GRAIN)
            .filter(|at| distance(site, *at).is_some_and(|d| INVALID.contains(&d.to_le_bytes()[1])))
            .find(|at| self.grains(*at, len).all(free))
    }

    /// Takes `len` bytes at `at`.
    pub(super) fn take(&mut self, at: u64, len: usize) {
        for i in self.grains(at, len) {
            self.taken[i / 64] |= 1 << (i % 64);
        }
    }

    /// Gives `len` bytes at `at` back; nothing if they are not its own.
    pub(super) fn give_back(&mut self, at: u64, len: usize) {
        if (self.base..self.base + ARENA).contains(&at) {
            for i in self.grains(at, len) {
                self.taken[i / 64] &= !(1 << (i % 64));
            }
        }
    }
}

fn distance(site: u64, to: u64) -> Option<i32> {
    i32::try_from(to as i64 - (site as i64 + JUMP as i64)).ok()
}

/// The bytes of a rewritten site of length `len`.
pub(super) fn jump(site: u64, to: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = alloc::vec![INVALID[0]; len];
    *bytes.first_mut()? = 0xe9;
    let distance = distance(site, to)?.to_le_bytes();
    bytes.get_mut(1..JUMP)?.copy_from_slice(&distance);
    Some(bytes)
}

/// The instructions behind a `syscall` that a jump overwrites.
pub(super) struct Displaced {
    instructions: Vec<Instruction>,
    /// Bytes that are overwritten, the `syscall` included.
    pub(super) len: usize,
}

/// A trampoline.
pub(super) struct Trampoline {
    pub(super) bytes: Vec<u8>,
    /// Offsets of the displaced instructions at the site and here.
    pub(super) moved: Vec<(u64, u64)>,
}

impl Displaced {
    /// Those behind the `syscall` at `site`, with which `window` begins. None if they cannot be moved.
    pub(super) fn behind(window: &[u8], site: u64) -> Option<Self> {
        let mut instructions = Vec::new();
        let mut len = 2;
        let mut decoder = Decoder::with_ip(64, &window[2..], site + 2, DecoderOptions::NONE);
        let mut ended = false;
        while len < JUMP {
            if !decoder.can_decode() {
                return None;
            }
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                return None;
            }
            if ended {
                // Behind a return only padding may be overwritten.
                if !matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3) {
                    return None;
                }
            } else {
                if instruction.mnemonic() == Mnemonic::Syscall {
                    return None;
                }
                ended = matches!(
                    instruction.flow_control(),
                    FlowControl::Return
                        | FlowControl::UnconditionalBranch
                        | FlowControl::IndirectBranch
                );
                if matches!(
                    instruction.flow_control(),
                    FlowControl::Call | FlowControl::IndirectCall
                ) {
                    // Its return address would lie in the trampoline, where an unwinder finds nothing.
                    return None;
                }
                instructions.push(instruction);
            }
            len += instruction.len();
        }
        Some(Self { instructions, len })
    }

    /// Address of a displaced instruction whose place is taken by the jump's last two bytes, which may be any instruction.
    pub(super) fn unguarded(&self, site: u64) -> Option<u64> {
        let mut addresses = self.instructions.iter().map(Instruction::ip);
        addresses.find(|at| (3..JUMP as u64).contains(&(at - site)))
    }

    /// `lea rcx, [after]; jmp [slot]; after: displaced…; jmp back`, for address `at`.
    pub(super) fn trampoline(&self, at: u64, slot: u64, site: u64) -> Option<Trampoline> {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&[0x48, 0x8d, 0x0d, 6, 0, 0, 0]);
        let relative = i32::try_from(slot as i64 - (at as i64 + HEAD as i64)).ok()?;
        bytes.extend_from_slice(&[0xff, 0x25]);
        bytes.extend_from_slice(&relative.to_le_bytes());
        let mut moved = Vec::new();
        if !self.instructions.is_empty() {
            let block = InstructionBlock::new(&self.instructions, at + HEAD);
            let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
            let encoded = BlockEncoder::encode(64, block, options).ok()?;
            bytes.extend_from_slice(&encoded.code_buffer);
            let offsets = &encoded.new_instruction_offsets;
            for (instruction, offset) in self.instructions.iter().zip(offsets) {
                // An instruction that had to be replaced by several has no offset of its own (and there is only one such here: a branch,
                // which is the last).
                let to = match *offset {
                    u32::MAX => return None,
                    offset => HEAD + u64::from(offset),
                };
                moved.push((instruction.ip() - site, to));
            }
        }
        let back = site + self.len as u64;
        let behind = at as i64 + bytes.len() as i64 + JUMP as i64;
        let relative = i32::try_from(back as i64 - behind).ok()?;
        bytes.push(0xe9);
        bytes.extend_from_slice(&relative.to_le_bytes());
        (bytes.len() + SLACK <= TRAMPOLINE_MAX).then_some(Trampoline { bytes, moved })
    }
}

/// Whether a branch nearby goes into the middle of `[site, site + len)`. Decodes from a place that is in step with `site`.
pub(super) fn branches_into(bytes: &[u8], base: u64, site: u64, len: usize) -> bool {
    for skip in 0..24u64.min(site - base) {
        let mut decoder = Decoder::with_ip(
            64,
            &bytes[skip as usize..],
            base + skip,
            DecoderOptions::NONE,
        );
        let mut in_step = false;
        let mut hit = false;
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            in_step |= instruction.ip() == site;
            let target = match instruction.op0_kind() {
                OpKind::NearBranch64 => instruction.near_branch64(),
                _ => continue,
            };
            hit |= target > site && target < site + len as u64;
        }
        if in_step {
            return hit;
        }
    }
    // Never in step: nothing is known, so nothing is rewritten.
    site != base
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// syscall; cmp rax, -4096; ja +0x20; ret
    const GLIBC: [u8; 11] = [
        0x0f, 0x05, 0x48, 0x3d, 0x00, 0xf0, 0xff, 0xff, 0x77, 0x20, 0xc3,
    ];

    #[test]
    fn glibc_site_is_displaced_and_relocated() {
        let displaced = Displaced::behind(&GLIBC, 0x1000).unwrap();
        assert_eq!((displaced.instructions.len(), displaced.len), (1, 8));
        assert_eq!(displaced.unguarded(0x1000), None);
        let tramp = displaced.trampoline(0x8000, 0x7000, 0x1000).unwrap();
        assert_eq!(
            &tramp.bytes[..13],
            &[
                0x48, 0x8d, 0x0d, 6, 0, 0, 0, 0xff, 0x25, 0xf3, 0xef, 0xff, 0xff
            ]
        );
        assert_eq!(&tramp.bytes[13..19], &GLIBC[2..8]);
        assert_eq!(tramp.bytes[19], 0xe9);
        assert_eq!(tramp.moved, [(2, 13)]);
    }

    #[test]
    fn whoever_arrives_behind_the_call_finds_no_instruction() {
        let mut arena = Arena::new(0x40_0000);
        for i in 0..300u64 {
            let site = 0x12_3456 + i * 77;
            let at = arena.find(site, 40).unwrap();
            arena.take(at, 40);
            let bytes = jump(site, at, 8).unwrap();
            for from in [2, 5, 6, 7] {
                let decoded =
                    Decoder::with_ip(64, &bytes[from..], 0, DecoderOptions::NONE).decode();
                assert!(decoded.is_invalid(), "{bytes:x?} from {from}");
            }
            let decoded = Decoder::with_ip(64, &bytes, site, DecoderOptions::NONE).decode();
            assert_eq!(decoded.near_branch64(), at);
        }
    }

    #[test]
    fn an_arena_gives_no_byte_twice_and_takes_it_back() {
        let mut arena = Arena::new(0x40_0000);
        let mut all: Vec<u64> = Vec::new();
        while let Some(at) = arena.find(0x1234, 33) {
            assert!(all.iter().all(|other| other.abs_diff(at) >= 33));
            assert!(at >= 0x40_0010 && at + 33 <= 0x40_0000 + ARENA);
            arena.take(at, 33);
            all.push(at);
        }
        assert!(all.len() > 100);
        arena.give_back(all[7], 33);
        assert_eq!(arena.find(0x1234, 33), Some(all[7]));
    }

    #[test]
    fn a_return_may_be_followed_by_padding_only() {
        let padded = [0x0f, 0x05, 0xc3, 0x66, 0x90, 0x90];
        let displaced = Displaced::behind(&padded, 0x1000).unwrap();
        assert_eq!(displaced.len, 5);
        assert_eq!(displaced.unguarded(0x1000), None);
        let next_function = [0x0f, 0x05, 0xc3, 0x55, 0x48, 0x89, 0xe5];
        assert!(Displaced::behind(&next_function, 0x1000).is_none());
    }

    #[test]
    fn short_instructions_are_not_all_guarded() {
        // syscall; test eax, eax; js +2
        let code = [0x0f, 0x05, 0x85, 0xc0, 0x78, 0x02, 0x90, 0x90];
        let displaced = Displaced::behind(&code, 0x1000).unwrap();
        assert_eq!(displaced.unguarded(0x1000), Some(0x1004));
    }

    #[test]
    fn a_branch_to_the_return_point_nearby_forbids_rewriting() {
        // nop ×8; syscall; cmp rax,-4096; jmp to site+2
        let mut code = vec![0x90u8; 32];
        code.extend([
            0x0f, 0x05, 0x48, 0x3d, 0, 0xf0, 0xff, 0xff, 0xeb, 0xf8, 0xc3,
        ]);
        assert!(branches_into(&code, 0x1000, 0x1020, 8));
        code[41] = 0xf6; // to the site itself: fine
        assert!(!branches_into(&code, 0x1000, 0x1020, 8));
    }
}
