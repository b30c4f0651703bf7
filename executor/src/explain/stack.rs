//! Backtraces out of memory: from a frame to its caller by the unwind information of kernel and programs; where there is none, by the
//! base pointer, and where that leads nowhere, by looking for return addresses on the stack.

use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use serde::Serialize;

use super::atlas::Atlas;
use super::binary::{Caller, RBP, REGISTERS, RIP, RSP, Registers};
use super::memory::{Memory, virt_word};

/// Frames that are followed (R10).
const MAX_FRAMES: usize = 48;
/// Words of the stack that are looked at for a return address.
const SCAN_WORDS: u64 = 256;

/// A frame of a backtrace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// Where the code goes on.
    pub address: u64,
    /// Relative to its region, and by symbol.
    pub place: String,
    /// The functions there, inlined ones first, with lines where they are known.
    pub functions: Vec<String>,
    /// It was found by looking through the stack, and may be left over from an earlier call.
    pub guessed: bool,
}

/// The callers of the code at `registers[RIP]`, that first. `root`: the address space.
#[must_use]
pub fn backtrace(
    memory: &dyn Memory,
    atlas: &Atlas<'_>,
    root: u64,
    registers: &Registers,
) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut registers = *registers;
    let mut exact = true;
    let mut guessed = false;
    let read = |at: u64| virt_word(memory, root, at);
    while let (Some(at), Some(rsp), true) =
        (registers[RIP], registers[RSP], frames.len() < MAX_FRAMES)
    {
        let mut rip = at;
        let mut code = atlas.code(root, rip);
        // A call site that the guest kernel has rewritten goes on in a trampoline, which ends where the program does.
        if exact
            && code.is_none()
            && let Some(site) = behind_trampoline(memory, atlas, root, rip)
        {
            rip = site;
            code = atlas.code(root, rip);
        }
        let functions = code.as_ref().map_or_else(Vec::new, |(binary, linked)| {
            binary.functions(if exact {
                *linked
            } else {
                linked.saturating_sub(1)
            })
        });
        frames.push(Frame {
            address: rip,
            place: atlas.address(root, rip),
            functions,
            guessed,
        });
        let caller = code.as_ref().map_or(Caller::Unknown, |(binary, linked)| {
            binary.unwind(*linked, exact, &registers, &read)
        });
        let next = match caller {
            Caller::Registers(caller) => {
                guessed = false;
                Some(*caller)
            }
            Caller::None => None,
            // The kernel's assembly: before it is the program, whose registers are elsewhere.
            Caller::Unknown if atlas.is_kernel(rip) => None,
            Caller::Unknown => {
                let by_base = by_base_pointer(&registers, rsp, &read)
                    .filter(|next| next[RIP].is_some_and(|rip| atlas.executes(root, rip)));
                guessed = by_base.is_none();
                by_base.or_else(|| scan(rsp, &read, &|at| returns_to(memory, atlas, root, at)))
            }
        };
        let Some(next) = next else { break };
        // A stack only shrinks on the way to the callers.
        if next[RSP].is_none_or(|next| next <= rsp) || next[RIP].is_none_or(|rip| rip == 0) {
            break;
        }
        registers = next;
        exact = false;
    }
    frames
}

/// Where a trampoline leads to: its first jump that is not conditional, if that is to a file's code.
fn behind_trampoline(memory: &dyn Memory, atlas: &Atlas<'_>, root: u64, at: u64) -> Option<u64> {
    let mut code = [0; 64];
    let there = super::memory::read_virt(memory, root, at, &mut code);
    let mut decoder = Decoder::with_ip(64, &code[..there], at, DecoderOptions::NONE);
    for instruction in decoder.iter().take(16) {
        match instruction.mnemonic() {
            Mnemonic::Jmp => {
                let to = instruction.near_branch_target();
                return atlas.code(root, to).map(|_| to);
            }
            Mnemonic::INVALID | Mnemonic::Ret | Mnemonic::Call => return None,
            _ => {}
        }
    }
    None
}

fn by_base_pointer(
    registers: &Registers,
    rsp: u64,
    read: &dyn Fn(u64) -> Option<u64>,
) -> Option<Registers> {
    let base = registers[RBP].filter(|base| *base >= rsp && base - rsp < 1 << 20)?;
    let mut caller = [None; REGISTERS];
    caller[RBP] = Some(read(base)?);
    caller[RIP] = Some(read(base.checked_add(8)?)?);
    caller[RSP] = base.checked_add(16);
    Some(caller)
}

fn scan(
    rsp: u64,
    read: &dyn Fn(u64) -> Option<u64>,
    returns: &dyn Fn(u64) -> bool,
) -> Option<Registers> {
    for index in 0..SCAN_WORDS {
        let at = rsp.checked_add(index * 8)?;
        let word = read(at)?;
        if returns(word) {
            let mut caller = [None; REGISTERS];
            caller[RIP] = Some(word);
            caller[RSP] = at.checked_add(8);
            return Some(caller);
        }
    }
    None
}

/// Whether code may come back to this address: the bytes before it are a call.
fn returns_to(memory: &dyn Memory, atlas: &Atlas<'_>, root: u64, at: u64) -> bool {
    if at < 1 << 16 || !atlas.executes(root, at) || atlas.code(root, at).is_none() {
        return false;
    }
    let mut before = [0; 7];
    let from = at - before.len() as u64;
    if super::memory::read_virt(memory, root, from, &mut before) != before.len() {
        return false;
    }
    // call rel32; call r/m64 in its lengths.
    before[2] == 0xe8 || (0..6).any(|i| before[i] == 0xff && before[i + 1] & 0x38 == 0x10)
}
