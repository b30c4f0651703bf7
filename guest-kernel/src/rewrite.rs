//! Rewriting of the program's code.
//!
//! A `syscall` instruction traps a few times; then its site is rewritten to a jump to a trampoline, with the displaced
//! instructions relocated there (as Nx does): see `trampoline`. Instructions that would leak real time or randomness (`rdtsc`, `rdtscp`, `rdrand`,
//! `rdseed`, `rdpmc`) are found when code is mapped executable and replaced by `ud2`, whose trap the kernel answers.

mod trampoline;

use crate::arch::TrapFrame;
use crate::arch::entry::KIND_FAST;
use crate::cell::Global;
use crate::errno::*;
use crate::mm::space::{Backing, EXEC, READ, TRAMPOLINES};
use crate::mm::{self, Access};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use codescan::Leak;
use iced_x86::{Mnemonic, Register};
use quorate_abi::image::ImageView;
use trampoline::{Arena, Displaced, HEAD, NEIGHBOURHOOD, SLACK, branches_into, jump};

/// Bytes of one arena for trampolines.
pub const ARENA: u64 = 256 << 10;
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
    /// Rewritten sites.
    patches: BTreeMap<u64, Patch>,
    /// Where trampolines return to, and the sites that they belong to.
    sites: BTreeMap<u64, u64>,
}

/// A rewritten site.
#[derive(Clone)]
struct Patch {
    /// Address of its trampoline.
    trampoline: u64,
    /// Bytes of that.
    trampoline_len: usize,
    /// Bytes of the site.
    len: usize,
    /// Offsets of the displaced instructions at the site and in the trampoline.
    moved: Vec<(u64, u64)>,
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
        while let Some((&site, _)) = self.patches.range(start..end).next() {
            if let Some(patch) = self.patches.remove(&site) {
                self.give_back(&patch);
            }
        }
    }

    /// The site that had an instruction at `rip`, and where that is now.
    fn moved_to(&self, rip: u64) -> Option<(u64, &Patch, u64)> {
        let (site, patch) = self.patches.range(..rip).next_back()?;
        let offset = rip - site;
        let moved = patch.moved.iter().find(|(from, _)| *from == offset)?;
        Some((*site, patch, patch.trampoline + moved.1))
    }

    fn remember(&mut self, site: u64, patch: Patch) {
        self.sites.insert(patch.trampoline + HEAD, site);
        if let Some(before) = self.patches.insert(site, patch) {
            // The program has put other code there meanwhile.
            self.give_back(&before);
        }
    }

    fn give_back(&mut self, patch: &Patch) {
        self.sites.remove(&(patch.trampoline + HEAD));
        for arena in &mut self.arenas {
            arena.give_back(patch.trampoline, patch.trampoline_len);
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
    mm::space().code.arenas.push(Arena::new(base));
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
    mm::space()
        .code
        .sites
        .get(&rip)
        .map_or(rip, |site| site + 2)
}

/// While this lives, the kernel reads programs' code. A debugger in the VMM takes its breakpoints out of it meanwhile: it finds the two
/// functions by their names, which nothing else depends on. Not to be nested.
struct CodeReading;

#[cfg(not(test))]
core::arch::global_asm!(
    r#"
    .section .text.debug_code_reader, "ax"
    .balign 16
    .global debug_code_reader_begin
    // The `nop`s are where the debugger's breakpoints lie.
debug_code_reader_begin:
    nop
    ret
    .balign 16
    .global debug_code_reader_end
debug_code_reader_end:
    nop
    ret
"#
);

#[cfg(not(test))]
unsafe extern "C" {
    safe fn debug_code_reader_begin();
    safe fn debug_code_reader_end();
}

impl CodeReading {
    fn begin() -> Self {
        #[cfg(not(test))]
        debug_code_reader_begin();
        Self
    }
}

impl Drop for CodeReading {
    fn drop(&mut self) {
        #[cfg(not(test))]
        debug_code_reader_end();
    }
}

fn try_patch(site: u64) -> Option<u64> {
    let _reading = CodeReading::begin();
    let (start, end, prot) = mm::space().mapping_at(site)?;
    if prot & EXEC == 0 || site < start {
        return None;
    }
    let window = code(site, (end - site).min(40))?;
    if window.get(..2)? != [0x0f, 0x05] {
        return None;
    }
    let displaced = Displaced::behind(window, site)?;
    let from = site.saturating_sub(NEIGHBOURHOOD).max(start);
    let to = (site + NEIGHBOURHOOD).min(end);
    if branches_into(code(from, to - from)?, from, site, displaced.len) {
        return None;
    }
    // Whoever goes there would run the jump's own bytes.
    if let Some(target) = displaced.unguarded(site)
        && called_from_afar(start, end, target)
    {
        return None;
    }
    let (slot, at, built) = {
        let space = mm::space();
        space.code.arenas.iter().find_map(|arena| {
            let longest = displaced.trampoline(arena.base(), arena.base(), site)?;
            let at = arena.find(site, longest.bytes.len() + SLACK)?;
            let built = displaced.trampoline(at, arena.base(), site)?;
            Some((arena.base(), at, built))
        })?
    };
    write_code(at, &built.bytes).ok()?;
    write_code(site, &jump(site, at, displaced.len)?).ok()?;
    let mut space = mm::space();
    space.finish();
    let code = &mut space.code;
    if let Some(arena) = code.arenas.iter_mut().find(|a| a.base() == slot) {
        arena.take(at, built.bytes.len());
    }
    let patch = Patch {
        trampoline: at,
        trampoline_len: built.bytes.len(),
        len: displaced.len,
        moved: built.moved,
    };
    debug_assert!(patch.moved.iter().all(|(from, _)| *from < patch.len as u64));
    code.remember(site, patch);
    Some(at + HEAD)
}

/// Whether some four bytes of a mapping could be the distance of a call or jump to `target`. What is not present was never run and
/// cannot be on its way there; it is searched no more once the site has been rewritten, but lands at an invalid instruction at worst.
fn called_from_afar(start: u64, end: u64, target: u64) -> bool {
    // The last three bytes of the page before, which may begin a distance.
    let mut bytes = Vec::with_capacity(4096 + 3);
    let mut va = start & !4095;
    while va < end {
        let physical = match mm::paging::entry(mm::paging::current(), va) {
            Some(e) if *e & mm::paging::PRESENT != 0 => *e & mm::paging::ADDRESS,
            _ => {
                bytes.clear();
                va += 4096;
                continue;
            }
        };
        let kept = bytes.len().min(3);
        bytes.drain(..bytes.len() - kept);
        // SAFETY: a whole page that the kernel can read; nothing writes to it meanwhile.
        bytes.extend_from_slice(unsafe {
            core::slice::from_raw_parts(mm::readable(physical) as *const u8, 4096)
        });
        let first = va - kept as u64;
        let hit = bytes.windows(4).enumerate().any(|(i, window)| {
            let distance = i32::from_le_bytes([window[0], window[1], window[2], window[3]]);
            let behind = first + i as u64 + 4;
            behind.wrapping_add_signed(i64::from(distance)) == target
        });
        if hit {
            return true;
        }
        va += 4096;
    }
    false
}

/// An invalid instruction inside a rewritten site: somebody came from afar (or a thread was in this very system call when the site was
/// rewritten), and goes on where the instruction is now. False if `frame` is at no such place.
pub fn land(frame: &mut TrapFrame) -> bool {
    let Some((jump, site, at)) = ({
        let space = mm::space();
        let moved = space.code.moved_to(frame.rip);
        moved.and_then(|(site, patch, at)| {
            Some((jump(site, patch.trampoline, patch.len)?, site, at))
        })
    }) else {
        return false;
    };
    // Unless the program has put something else there.
    let _reading = CodeReading::begin();
    if code(site, jump.len() as u64) != Some(&jump[..]) {
        return false;
    }
    frame.rip = at;
    true
}

/// Searches code that has become executable for instructions that leak, and replaces them. The caller flushes ([`Space::finish`]) before
/// the code runs.
///
/// [`Space::finish`]: mm::space::Space::finish
pub fn scan(start: u64, end: u64) {
    let _reading = CodeReading::begin();
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
    mm::space().searched(start, end);
}

/// The longest run of present pages from `start` on that lie in a row in the root image (with their offset there), or that
/// do not lie in it.
fn uniform_run(start: u64, end: u64) -> (u64, Option<u64>) {
    let offset_of = |va: u64| {
        let physical =
            mm::paging::entry(mm::paging::current(), va).map_or(0, |e| *e & mm::paging::ADDRESS);
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
