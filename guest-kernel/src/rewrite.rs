//! Rewriting of the program's code.
//!
//! A `syscall` instruction traps once; then its site is rewritten to a jump to a trampoline, with the displaced
//! instructions relocated there (as Nx does). Instructions that would leak real time or randomness (`rdtsc`, `rdtscp`, `rdrand`,
//! `rdseed`, `rdpmc`) are found when code is mapped executable and replaced by `ud2`, whose trap the kernel answers.

use crate::arch::TrapFrame;
use crate::arch::entry::KIND_FAST;
use crate::cell::Global;
use crate::errno::*;
use crate::mm::space::{Backing, EXEC, READ, TRAMPOLINES};
use crate::mm::{self, Access};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use codescan::Leak;
use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Decoder, DecoderOptions, FlowControl, Instruction,
    InstructionBlock, Mnemonic, OpKind, Register,
};
use quorate_abi::image::ImageView;

/// Bytes of one arena for trampolines.
pub const ARENA: u64 = 256 << 10;
/// Length of a near jump.
const JUMP: usize = 5;
/// Bytes around a site that are searched for branches into it.
const NEIGHBOURHOOD: u64 = 384;
/// Most bytes of one trampoline.
const TRAMPOLINE_MAX: u64 = 96;
/// Bytes of a trampoline before the instruction at which the system call returns.
const HEAD: u64 = 13;

#[derive(Clone)]
struct Arena {
    next: u64,
    end: u64,
}

/// Traps of a site after which it is rewritten. Rewriting costs as much as some twenty of them (a page copied, the TLB flushed), so
/// that it does not pay for a program that soon ends or calls another.
const TRAPS: u8 = 16;

/// What has been rewritten in one address space.
#[derive(Clone, Default)]
pub struct Code {
    arenas: Vec<Arena>,
    refused: BTreeSet<u64>,
    /// How often the others have trapped.
    traps: BTreeMap<u64, u8>,
    leaks: BTreeMap<u64, Leak>,
    /// Where trampolines return to, and the sites that they belong to.
    sites: BTreeMap<u64, u64>,
}

impl Code {
    /// Forgets what is known about code that is unmapped.
    pub fn forget(&mut self, start: u64, end: u64) {
        if self.leaks.range(start..end).next().is_some() {
            self.leaks.retain(|at, _| *at < start || *at >= end);
        }
        if self.traps.range(start..end).next().is_some() {
            self.traps.retain(|at, _| *at < start || *at >= end);
        }
        if self.refused.range(start..end).next().is_some() {
            self.refused.retain(|at| *at < start || *at >= end);
        }
    }
}

/// Maps an arena for trampolines at `base`: sites within 2 GiB of it can use it. The caller flushes.
///
/// # Errors
/// `ENOMEM`.
pub fn add_arena(base: u64) -> Result<()> {
    mm::space().map(
        base,
        ARENA,
        READ | EXEC,
        Backing::Anonymous,
        TRAMPOLINES,
        false,
    )?;
    // The first slot holds the address that all trampolines jump to.
    write_code(
        base,
        &crate::arch::entry::fast_entry_address().to_le_bytes(),
    )?;
    mm::space().code.arenas.push(Arena {
        next: base + 16,
        end: base + ARENA,
    });
    Ok(())
}

static IMAGE: Global<Option<ImageView<'static>>> = Global::new(None);

/// Writes to the program's code, through the direct map.
fn write_code(at: u64, bytes: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let va = at + done as u64;
        let n = (4096 - (va & 4095) as usize).min(bytes.len() - done);
        let page = {
            let mut space = mm::space();
            space.populate(va, va + 1).map_err(|_| ENOMEM)?;
            space.private_code_page(va & !4095)?
        };
        // SAFETY: the page belongs to the program's mapping alone and is reached through the direct map.
        unsafe {
            core::ptr::copy_nonoverlapping(
                bytes[done..].as_ptr(),
                (page + (va & 4095)) as *mut u8,
                n,
            );
        }
        done += n;
    }
    Ok(())
}

fn code(at: u64, len: u64) -> Option<&'static [u8]> {
    mm::check_user(at, len as usize, Access::Execute).ok()?;
    // SAFETY: checked to be mapped and present; the kernel only reads it.
    Some(unsafe { core::slice::from_raw_parts(at as *const u8, len as usize) })
}

/// Called after a SYSCALL instruction has trapped: rewrites its site, if that is safe and it has often done so, and redirects `frame`
/// behind it. Returns whether the site was rewritten.
pub fn patch_site(frame: &mut TrapFrame) -> bool {
    let site = frame.rip - 2;
    {
        let code = &mut mm::space().code;
        if code.refused.contains(&site) {
            return false;
        }
        let traps = code.traps.entry(site).or_default();
        *traps += 1;
        if *traps < TRAPS {
            return false;
        }
        code.traps.remove(&site);
    }
    match try_patch(site) {
        Some(resume) => {
            frame.rip = resume;
            frame.kind = KIND_FAST;
            mm::space().code.sites.insert(resume, site);
            true
        }
        None => {
            mm::space().code.refused.insert(site);
            false
        }
    }
}

/// Address at which a system call that returns to `rip` from a rewritten site is made again.
pub fn restart_address(rip: u64, kind: u64) -> u64 {
    if kind == KIND_FAST {
        rip - HEAD
    } else {
        rip - 2
    }
}

/// Address behind the program's own SYSCALL instruction, for a system call that returns to `rip`.
pub fn origin(rip: u64) -> u64 {
    mm::space().code.sites.get(&rip).map_or(rip, |site| site + 2)
}

fn try_patch(site: u64) -> Option<u64> {
    let (start, end, prot) = mm::space().mapping_at(site)?;
    if prot & EXEC == 0 || site < start {
        return None;
    }
    let window = code(site, (end - site).min(40))?;
    if window.get(..2)? != [0x0f, 0x05] {
        return None;
    }
    let (displaced, len) = displaced_instructions(window, site)?;
    let from = site.saturating_sub(NEIGHBOURHOOD).max(start);
    let to = (site + NEIGHBOURHOOD).min(end);
    if branches_into(code(from, to - from)?, from, site, len) {
        return None;
    }
    let (tramp, slot) = {
        let space = mm::space();
        let arena = space.code.arenas.iter().find(|a| {
            a.next + TRAMPOLINE_MAX <= a.end && a.end.abs_diff(site) < (1 << 31) - (1 << 20)
        })?;
        (arena.next, arena.end - ARENA)
    };
    let bytes = trampoline(tramp, slot, site + len as u64, &displaced)?;
    write_code(tramp, &bytes).ok()?;
    let relative = i32::try_from(tramp as i64 - (site as i64 + JUMP as i64)).ok()?;
    let mut jump = [0x90u8; 32];
    jump[0] = 0xe9;
    jump[1..5].copy_from_slice(&relative.to_le_bytes());
    write_code(site, &jump[..len]).ok()?;
    let mut space = mm::space();
    space.finish();
    if let Some(arena) = space.code.arenas.iter_mut().find(|a| a.next == tramp) {
        arena.next = (tramp + bytes.len() as u64).next_multiple_of(16);
    }
    Some(tramp + HEAD)
}

/// The instructions behind the `syscall` that a jump would overwrite, and how many bytes it overwrites in all.
fn displaced_instructions(window: &[u8], site: u64) -> Option<(Vec<Instruction>, usize)> {
    let mut displaced = Vec::new();
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
            displaced.push(instruction);
        }
        len += instruction.len();
    }
    Some((displaced, len))
}

/// Whether a branch nearby goes into the middle of `[site, site + len)`. Decodes from a place that is in step with `site`.
fn branches_into(bytes: &[u8], base: u64, site: u64, len: usize) -> bool {
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

/// `lea rcx, [after]; jmp [slot]; after: displaced…; jmp back`.
fn trampoline(at: u64, slot: u64, back: u64, displaced: &[Instruction]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(64);
    bytes.extend_from_slice(&[0x48, 0x8d, 0x0d, 6, 0, 0, 0]);
    let relative = i32::try_from(slot as i64 - (at as i64 + HEAD as i64)).ok()?;
    bytes.extend_from_slice(&[0xff, 0x25]);
    bytes.extend_from_slice(&relative.to_le_bytes());
    if !displaced.is_empty() {
        let block = InstructionBlock::new(displaced, at + HEAD);
        let encoded = BlockEncoder::encode(64, block, BlockEncoderOptions::NONE).ok()?;
        bytes.extend_from_slice(&encoded.code_buffer);
    }
    let relative =
        i32::try_from(back as i64 - (at as i64 + bytes.len() as i64 + JUMP as i64)).ok()?;
    bytes.push(0xe9);
    bytes.extend_from_slice(&relative.to_le_bytes());
    (bytes.len() as u64 <= TRAMPOLINE_MAX).then_some(bytes)
}

/// Searches code that has become executable for instructions that leak, and replaces them. The caller flushes ([`Space::finish`]) before
/// the code runs.
///
/// [`Space::finish`]: mm::space::Space::finish
pub fn scan(start: u64, end: u64) {
    let mut va = start;
    let mut found: Vec<(u64, Leak)> = Vec::new();
    while va < end {
        // Only pages that are there: the rest of an anonymous mapping is zero, which is no such instruction.
        let stretch_end = present_until(va, end);
        if stretch_end == va {
            va += 4096;
            continue;
        }
        let (run, offset) = uniform_run(va, stretch_end);
        match offset {
            // The image's builder has looked already, and touching every page of a program costs more than looking.
            Some(offset) => {
                let known = IMAGE
                    .borrow()
                    .map(|image| image.leaks(offset, offset + run));
                for (at, len) in known.into_iter().flatten() {
                    let site = va + (at - offset);
                    if let Some(leak) =
                        code(site, u64::from(len)).and_then(|b| codescan::decode_leak(b, site))
                    {
                        found.push((site, leak));
                    }
                }
            }
            None => {
                if let Some(bytes) = code(va, run) {
                    codescan::find_leaks(bytes, va, &mut found);
                }
            }
        }
        va += run;
    }
    for (at, leak) in found {
        let mut bytes = [0x90u8; 16];
        bytes[0] = 0x0f;
        bytes[1] = 0x0b;
        if write_code(at, &bytes[..leak.len as usize]).is_ok() {
            mm::space().code.leaks.insert(at, leak);
        }
    }
}

/// The longest run of present pages from `start` on that lie in a row in the root image (with their offset there), or that
/// do not lie in it.
fn uniform_run(start: u64, end: u64) -> (u64, Option<u64>) {
    let offset_of = |va: u64| {
        let physical = mm::paging::entry(mm::paging::current(), va).map_or(0, |e| *e & mm::paging::ADDRESS);
        physical.checked_sub(quorate_abi::map::IMAGE_BASE)
    };
    let first = offset_of(start);
    let mut va = start + 4096;
    while va < end && offset_of(va) == first.map(|offset| offset + (va - start)) {
        va += 4096;
    }
    (va - start, first)
}

/// Takes over the root image, whose builder has searched its programs.
pub fn set_image(image: ImageView<'static>) {
    *IMAGE.borrow_mut() = Some(image);
}

fn present_until(start: u64, end: u64) -> u64 {
    let mut va = start;
    while va < end {
        match mm::paging::entry(mm::paging::current(), va) {
            Some(e) if *e & mm::paging::PRESENT != 0 => va += 4096,
            _ => break,
        }
    }
    va.min(end)
}

/// Answers the trap of a replaced instruction; false if there is none at `frame.rip`.
pub fn emulate_leak(frame: &mut TrapFrame) -> bool {
    let (mnemonic, len, destination) = match mm::space().code.leaks.get(&frame.rip) {
        Some(leak) => (leak.mnemonic, leak.len, leak.destination),
        None => return false,
    };
    match mnemonic {
        Mnemonic::Rdrand | Mnemonic::Rdseed => {
            let mut bytes = [0u8; 8];
            // Success: CF set, the other status flags clear.
            let done = crate::fs::random::fill(&mut bytes).is_ok();
            set_register(frame, destination, u64::from_le_bytes(bytes));
            frame.rflags = frame.rflags & !0x8d5 | u64::from(done);
        }
        _ => {
            let value = crate::time::read_monotonic_ns();
            frame.rax = value & 0xffff_ffff;
            frame.rdx = value >> 32;
            if mnemonic == Mnemonic::Rdtscp {
                frame.rcx = 0;
            }
        }
    }
    frame.rip += u64::from(len);
    true
}

fn set_register(frame: &mut TrapFrame, register: Register, value: u64) {
    let slot = match register.full_register() {
        Register::RAX => &mut frame.rax,
        Register::RBX => &mut frame.rbx,
        Register::RCX => &mut frame.rcx,
        Register::RDX => &mut frame.rdx,
        Register::RSI => &mut frame.rsi,
        Register::RDI => &mut frame.rdi,
        Register::RBP => &mut frame.rbp,
        Register::RSP => &mut frame.rsp,
        Register::R8 => &mut frame.r8,
        Register::R9 => &mut frame.r9,
        Register::R10 => &mut frame.r10,
        Register::R11 => &mut frame.r11,
        Register::R12 => &mut frame.r12,
        Register::R13 => &mut frame.r13,
        Register::R14 => &mut frame.r14,
        Register::R15 => &mut frame.r15,
        _ => return,
    };
    match register.size() {
        2 => *slot = *slot & !0xffff | value & 0xffff,
        4 => *slot = value & 0xffff_ffff,
        _ => *slot = value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glibc_site_is_displaced_and_relocated() {
        // syscall; cmp rax, -4096; ja +0x20; ret
        let code = [
            0x0f, 0x05, 0x48, 0x3d, 0x00, 0xf0, 0xff, 0xff, 0x77, 0x20, 0xc3,
        ];
        let (displaced, len) = displaced_instructions(&code, 0x1000).unwrap();
        assert_eq!((displaced.len(), len), (1, 8));
        let tramp = trampoline(0x8000, 0x7000, 0x1008, &displaced).unwrap();
        assert_eq!(
            &tramp[..13],
            &[
                0x48, 0x8d, 0x0d, 6, 0, 0, 0, 0xff, 0x25, 0xf3, 0xef, 0xff, 0xff
            ]
        );
        assert_eq!(&tramp[13..19], &code[2..8]);
        assert_eq!(tramp[19], 0xe9);
    }

    #[test]
    fn a_return_may_be_followed_by_padding_only() {
        let padded = [0x0f, 0x05, 0xc3, 0x66, 0x90, 0x90];
        assert_eq!(displaced_instructions(&padded, 0x1000).unwrap().1, 5);
        let next_function = [0x0f, 0x05, 0xc3, 0x55, 0x48, 0x89, 0xe5];
        assert!(displaced_instructions(&next_function, 0x1000).is_none());
    }

    #[test]
    fn a_branch_to_the_return_point_forbids_rewriting() {
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
