//! Exceptions: demand paging, replaced instructions, and the signals that Linux would deliver.

use crate::arch::FxArea;
use crate::arch::TrapFrame;
use crate::arch::monitor::MONITOR_CR2;
use crate::mm::space::Fault;
use crate::mm::{self, Access};
use crate::signal::{self, Exception, SI_KERNEL, number};
use crate::{boot, flight, process, rewrite};
use core::sync::atomic::Ordering;
use quorate_abi::PAGE_SIZE;

const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;
const BUS_ADRERR: i32 = 2;
/// Bytes of the longest instruction, less one.
const LONGEST_INSTRUCTION: u64 = 14;

/// Entry from assembly: on the thread's kernel stack, or, where the kernel itself is at fault, on one of its own.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn handle_fault(frame: &mut TrapFrame, vector: u64, error: u64) {
    let address = MONITOR_CR2.load(Ordering::Relaxed);
    if boot::is_kernel_address(frame.rip) {
        if vector == 13 && emulate_kernel_cpuid(frame) {
            return;
        }
        panic!(
            "exception {vector} (error {error:#x}) in the kernel at +{:#x}, address {}, rbp {:#x}",
            boot::kernel_offset(frame.rip),
            boot::describe_address(address),
            frame.rbp
        );
    }
    let (signal, code, value) = match vector {
        14 => match page_fault(address, error, frame.rip) {
            Ok(()) => return,
            Err(Fault::Unmapped) => (number::SEGV, SEGV_MAPERR, address),
            Err(Fault::Protected) => (number::SEGV, SEGV_ACCERR, address),
            Err(Fault::Bus | Fault::NotLoaded) => (number::BUS, BUS_ADRERR, address),
            Err(Fault::NoMemory) => {
                crate::klog!("out of memory: program killed (give it more with [machine] memory)");
                process::end::process(number::KILL);
            }
        },
        6 if rewrite::emulate_leak(frame) || rewrite::land(frame) => return,
        13 if emulate_cpuid(frame) => return,
        0 => (number::FPE, 1, frame.rip),
        1 => (number::TRAP, 2, frame.rip),
        3 => (number::TRAP, SI_KERNEL, 0),
        6 => (number::ILL, 2, frame.rip),
        16 | 19 => (number::FPE, floating_point_code(vector), frame.rip),
        17 => (number::BUS, 1, 0),
        _ => (number::SEGV, SI_KERNEL, 0),
    };
    let exception = Exception {
        signal,
        code,
        address: value,
        vector,
        error,
    };
    flight::exception(frame, vector, error, address);
    signal::fault(frame, exception);
}

fn page_fault(address: u64, error: u64, rip: u64) -> Result<(), Fault> {
    let access = if error & 0x10 != 0 {
        Access::Execute
    } else if error & 2 != 0 {
        Access::Write
    } else {
        Access::Read
    };
    let (mut space, result) = loop {
        let mut space = mm::space();
        let result = space.access(address, access);
        if result != Err(Fault::NotLoaded) {
            break (space, result);
        }
        drop(space);
        if mm::load_wanted().is_err() {
            return Err(Fault::Bus);
        }
    };
    let page = |va: u64| va & !(PAGE_SIZE - 1);
    let own_page =
        page(address) == page(rip) || page(address) == page(rip.wrapping_add(LONGEST_INSTRUCTION));
    if access == Access::Write && own_page && result.is_ok() {
        // Code that writes to its own page would never get on with only one of the two.
        space.allow_both(address);
    }
    space.finish();
    drop(space);
    mm::search_fresh_code();
    if access == Access::Execute && result.is_ok() {
        // What has just become executable may have been written before (or read from a file anew).
        rewrite::scan(page(address), page(address) + PAGE_SIZE);
        mm::space().finish();
    }
    result
}

/// si_code of a floating-point exception, from the unmasked flags of the x87 (vector 16) or of SSE.
fn floating_point_code(vector: u64) -> i32 {
    let mut fx = FxArea::initial();
    fx.save();
    let word = |at: usize| u16::from_le_bytes([fx.0[at], fx.0[at + 1]]);
    let (control, status) = (word(0), word(2));
    let mxcsr = word(24);
    let raised = if vector == 16 {
        status & !control
    } else {
        mxcsr & !(mxcsr >> 7)
    };
    match raised {
        r if r & 1 != 0 => 7,
        r if r & 4 != 0 => 3,
        r if r & 8 != 0 => 4,
        r if r & 0x12 != 0 => 5,
        _ => 6,
    }
}

/// Answers a CPUID that trapped, since KVM would show what the guest is not to see; false if there is none at `frame.rip`.
fn emulate_cpuid(frame: &mut TrapFrame) -> bool {
    match crate::user::bytes(frame.rip, 2) {
        Ok([0x0f, 0xa2]) => {}
        _ => return false,
    }
    answer_cpuid(frame);
    true
}

/// The same for the kernel's own code: the file system's library asks which instructions there are.
fn emulate_kernel_cpuid(frame: &mut TrapFrame) -> bool {
    // SAFETY: the instruction at `rip` was just executed, so its code is mapped; no byte of the kernel's image is its last.
    let bytes = unsafe { core::ptr::read_unaligned(frame.rip as *const [u8; 2]) };
    if bytes != [0x0f, 0xa2] {
        return false;
    }
    answer_cpuid(frame);
    true
}

fn answer_cpuid(frame: &mut TrapFrame) {
    let [eax, ebx, ecx, edx] = boot::cpuid(frame.rax as u32, frame.rcx as u32);
    frame.rax = u64::from(eax);
    frame.rbx = u64::from(ebx);
    frame.rcx = u64::from(ecx);
    frame.rdx = u64::from(edx);
    frame.rip += 2;
}
