//! Where a machine was when it was lost: registers, the instruction, the callers.

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use quorate_abi::flight::FRAME_BYTES;
use quorate_vmm::{Checkpoint, Registers as Cpu};

use super::atlas::Atlas;
use super::binary::{REGISTERS, RIP, RSP, Registers};
use super::find::Divergence;
use super::flight::Log;
use super::memory::{Memory, read_virt, virt_word};
use super::report::CrashSide;
use super::stack::{Frame, backtrace};

/// Longest instruction.
const INSTRUCTION: usize = 15;

/// Where the replica's processor was, if it was not at a boundary.
#[must_use]
pub fn side(
    dump: &Checkpoint,
    log: &Log,
    healthy: &dyn Memory,
    atlas: &Atlas<'_>,
    divergence: &Divergence,
) -> Option<CrashSide> {
    if dump.at_boundary() {
        return None;
    }
    let cpu = dump.registers();
    let root = dump.root();
    let mut text = instruction(dump, healthy, atlas, root, cpu.rip);
    let fault = kernel_fault(dump, atlas, root);
    let mut program = Vec::new();
    if atlas.is_kernel(cpu.rip)
        && let Some((saved, number)) = log.entered_with(dump)
    {
        text.push_str(&format!(
            "the program had entered the kernel from {} (system call {} or an exception)\n",
            atlas.address(root, saved[15]),
            quorate_abi::calls::name(number)
        ));
        program = backtrace(dump, atlas, root, &super::flight::saved(&saved));
    }
    Some(CrashSide {
        what: format!(
            "at {}: {}",
            atlas.address(root, cpu.rip),
            divergence.reason.lines().next().unwrap_or_default()
        ),
        instruction: text,
        registers: cpu.to_string(),
        backtrace: backtrace(dump, atlas, root, &unwindable(&cpu)),
        fault,
        program,
    })
}

/// Where the guest kernel met an exception that it could not go on from: the registers are at the top of the stack on which it
/// handles its own.
fn kernel_fault(dump: &dyn Memory, atlas: &Atlas<'_>, root: u64) -> Vec<Frame> {
    const STACK: u64 = 32 << 10;
    let Some(top) = atlas
        .kernel_symbol("guest_kernel::boot::FAULT")
        .map(|start| start + STACK)
    else {
        return Vec::new();
    };
    let mut registers = [0; 18];
    for (place, register) in (top - FRAME_BYTES..).step_by(8).zip(&mut registers) {
        *register = virt_word(dump, root, place).unwrap_or(0);
    }
    if !atlas.is_kernel(registers[15]) {
        return Vec::new();
    }
    backtrace(dump, atlas, root, &super::flight::saved(&registers))
}

fn unwindable(cpu: &Cpu) -> Registers {
    let mut registers: Registers = [None; REGISTERS];
    let general = [
        cpu.rax, cpu.rdx, cpu.rcx, cpu.rbx, cpu.rsi, cpu.rdi, cpu.rbp, cpu.rsp, cpu.r8, cpu.r9,
        cpu.r10, cpu.r11, cpu.r12, cpu.r13, cpu.r14, cpu.r15,
    ];
    for (register, value) in registers.iter_mut().zip(general) {
        *register = Some(value);
    }
    registers[RIP] = Some(cpu.rip);
    registers[RSP] = Some(cpu.rsp);
    registers
}

/// The instruction at an address, in both machines if they differ there.
fn instruction(
    dump: &dyn Memory,
    healthy: &dyn Memory,
    atlas: &Atlas<'_>,
    root: u64,
    at: u64,
) -> String {
    let code = |memory: &dyn Memory| {
        let mut bytes = [0; INSTRUCTION];
        let done = read_virt(memory, root, at, &mut bytes);
        bytes[..done].to_vec()
    };
    let (one, two) = (code(healthy), code(dump));
    let place = atlas.address(root, at);
    if two.is_empty() {
        return format!("{place}: nothing is mapped there\n");
    }
    let replica = disassembled(&two, at);
    match disassembled(&one, at) {
        healthy if healthy != replica => {
            format!("{place}: {replica}\nin the healthy machine: {healthy}\n")
        }
        _ => format!("{place}: {replica}\n"),
    }
}

fn disassembled(code: &[u8], at: u64) -> String {
    let mut decoder = Decoder::with_ip(64, code, at, DecoderOptions::NONE);
    let mut text = String::new();
    IntelFormatter::new().format(&decoder.decode(), &mut text);
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn instructions_are_shown_as_text() {
        assert_eq!(disassembled(&[0x48, 0x8b, 0x07], 0x1000), "mov rax,[rdi]");
        assert_eq!(disassembled(&[0x0f, 0x0b], 0), "ud2");
    }
}
