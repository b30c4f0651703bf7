//! The frame that a handler gets on the program's stack, and the way back from it.

use super::{
    Action, AltStack, Exception, Info, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTORER, SIG_DFL,
    SS_DISABLE, SS_ONSTACK, SigInfo, UNBLOCKABLE, bit, number,
};
use crate::arch::entry::KIND_FAULT;
use crate::arch::frame::USER_RFLAGS;
use crate::arch::{FxArea, TrapFrame};
use crate::mm::{self, Access};
use crate::user::{self, Plain};
use crate::{process, sched};

/// `ucontext` plus what precedes it on the stack: Linux's `struct rt_sigframe` of x86-64.
#[repr(C)]
#[derive(Clone, Copy)]
struct RtFrame {
    restorer: u64,
    uc_flags: u64,
    uc_link: u64,
    stack: AltStack,
    /// r8 r9 r10 r11 r12 r13 r14 r15 rdi rsi rbp rbx rdx rax rcx rsp rip eflags
    registers: [u64; 18],
    /// cs, gs, fs, ss as 16-bit values
    segments: u64,
    err: u64,
    trapno: u64,
    oldmask: u64,
    cr2: u64,
    fpstate: u64,
    reserved: [u64; 8],
    sigmask: u64,
    info: SigInfo,
}
// SAFETY: repr(C), integers only.
unsafe impl Plain for RtFrame {}

const SEGMENTS: u64 = 0x33 | 0x2b << 48;

pub(super) fn push_frame(
    frame: &mut TrapFrame,
    signal: u32,
    info: Info,
    action: &Action,
    exception: Option<Exception>,
) {
    if crate::sys::process::rseq_abort(frame).is_err() {
        process::end::process(number::SEGV);
    }
    let (mask, alt) = sched::with_current(|t| {
        let mask = t.signals.saved_mask.take().unwrap_or(t.signals.mask);
        t.signals.mask |= action.mask & !UNBLOCKABLE;
        if action.flags & SA_NODEFER == 0 {
            t.signals.mask |= bit(signal);
        }
        (mask, t.signals.altstack)
    });
    if action.flags & SA_RESETHAND != 0 {
        process::current().signals.borrow_mut().actions[signal as usize].handler = SIG_DFL;
    }
    let on_alt = on_altstack(frame.rsp, &alt);
    let mut sp = frame.rsp - 128;
    if action.flags & SA_ONSTACK != 0 && alt.flags & SS_DISABLE == 0 && !on_alt {
        sp = alt.sp + alt.size;
    }
    let fp_at = (sp - 512) & !63;
    // rsp + 8 is 16-byte aligned at the handler's first instruction.
    let at = ((fp_at - size_of::<RtFrame>() as u64) & !15) - 8;
    let total = (sp - at) as usize;
    if action.flags & SA_RESTORER == 0 || mm::check_user(at, total, Access::Write).is_err() {
        crate::klog!("no room for the frame of signal {signal}: program killed");
        process::end::process(number::SEGV);
    }
    let mut fx = FxArea::initial();
    fx.save();
    for (i, value) in frame.xmm.iter().enumerate() {
        fx.0[160 + 16 * i..176 + 16 * i].copy_from_slice(&value.to_le_bytes());
    }
    // The kernel that a program knows marks the absence of extended state by zeroes here.
    fx.0[464..512].fill(0);
    let image = RtFrame {
        restorer: action.restorer,
        uc_flags: 4, // UC_SIGCONTEXT_SS
        uc_link: 0,
        stack: AltStack {
            flags: if alt.flags & SS_DISABLE != 0 {
                SS_DISABLE
            } else {
                i32::from(on_alt)
            },
            ..alt
        },
        registers: [
            frame.r8,
            frame.r9,
            frame.r10,
            frame.r11,
            frame.r12,
            frame.r13,
            frame.r14,
            frame.r15,
            frame.rdi,
            frame.rsi,
            frame.rbp,
            frame.rbx,
            frame.rdx,
            frame.rax,
            frame.rcx,
            frame.rsp,
            frame.rip,
            frame.rflags,
        ],
        segments: SEGMENTS,
        err: exception.map_or(0, |e| e.error),
        trapno: exception.map_or(0, |e| e.vector),
        oldmask: mask,
        cr2: exception
            .filter(|e| e.vector == 14)
            .map_or(0, |e| e.address),
        fpstate: fp_at,
        reserved: [0; 8],
        sigmask: mask,
        info: info.image(signal),
    };
    let written = user::copy_out(fp_at, &fx.0).and_then(|()| user::write(at, image));
    if written.is_err() {
        process::end::process(number::SEGV);
    }
    frame.rdi = u64::from(signal);
    frame.rsi = at + core::mem::offset_of!(RtFrame, info) as u64;
    frame.rdx = at + core::mem::offset_of!(RtFrame, uc_flags) as u64;
    frame.rax = 0;
    frame.rsp = at;
    frame.rip = action.handler;
    frame.rflags &= !0x500; // TF, DF
}

pub(super) fn on_altstack(sp: u64, alt: &AltStack) -> bool {
    alt.flags & SS_DISABLE == 0 && sp > alt.sp && sp - alt.sp <= alt.size
}

/// `rt_sigreturn`: takes the frame off the stack again. What it contains is the program's own business, within what a
/// program can do to its registers anyway.
pub fn sigreturn(frame: &mut TrapFrame) {
    let image: RtFrame = match user::read(frame.rsp - 8) {
        Ok(image) => image,
        Err(_) => process::end::process(number::SEGV),
    };
    let r = &image.registers;
    frame.r8 = r[0];
    frame.r9 = r[1];
    frame.r10 = r[2];
    frame.r11 = r[3];
    frame.r12 = r[4];
    frame.r13 = r[5];
    frame.r14 = r[6];
    frame.r15 = r[7];
    frame.rdi = r[8];
    frame.rsi = r[9];
    frame.rbp = r[10];
    frame.rbx = r[11];
    frame.rdx = r[12];
    frame.rax = r[13];
    frame.rcx = r[14];
    frame.rsp = r[15];
    frame.rip = r[16];
    frame.rflags = r[17] & USER_RFLAGS | 0x3202;
    frame.kind = KIND_FAULT;
    if image.fpstate != 0
        && let Ok(bytes) = user::bytes(image.fpstate, 512)
    {
        let mut fx = FxArea::initial();
        fx.0.copy_from_slice(bytes);
        // Reserved MXCSR bits would fault.
        fx.0[26] = 0;
        fx.0[27] = 0;
        for i in 0..16 {
            let mut value = [0u8; 16];
            value.copy_from_slice(&fx.0[160 + 16 * i..176 + 16 * i]);
            frame.xmm[i] = u128::from_le_bytes(value);
        }
        fx.load();
    }
    sched::with_current(|t| {
        t.signals.mask = image.sigmask & !UNBLOCKABLE;
        if image.stack.flags & !(SS_ONSTACK | SS_DISABLE) == 0
            && !on_altstack(frame.rsp, &t.signals.altstack)
        {
            t.signals.altstack = AltStack {
                flags: image.stack.flags & SS_DISABLE,
                ..image.stack
            };
        }
    });
}
