//! Ways into the kernel (system calls by trap and by rewritten site, faults), back to the program, and between threads.
//!
//! All of this runs at CPL 3, kernel and program alike. The kernel's Rust code uses XMM registers, so every entry saves
//! them; x87 and MXCSR it leaves alone, and they are switched with the thread.

use super::TrapFrame;
use core::sync::atomic::AtomicU64;

/// Entered by a SYSCALL instruction.
pub const KIND_TRAP: u64 = 1;
/// Entered from a rewritten call site.
pub const KIND_FAST: u64 = 2;
/// Entered by an exception.
pub const KIND_FAULT: u64 = 3;

/// Top of the running thread's kernel stack.
#[unsafe(no_mangle)]
pub static ENTRY_KERNEL_STACK: AtomicU64 = AtomicU64::new(0);
/// Code and stack selectors in force at CPL 3: read from the CPU, since a page-table based KVM runs the guest under its
/// own. Filled by [`init_selectors`].
#[unsafe(no_mangle)]
pub static ENTRY_CS: AtomicU64 = AtomicU64::new(0);
/// See [`ENTRY_CS`].
#[unsafe(no_mangle)]
pub static ENTRY_SS: AtomicU64 = AtomicU64::new(0);

/// Reads the selectors once at the start.
pub fn init_selectors() {
    let (cs, ss): (u64, u64);
    // SAFETY: reads two segment registers.
    unsafe {
        core::arch::asm!("mov {0:r}, cs", "mov {1:r}, ss", out(reg) cs, out(reg) ss, options(nomem, nostack));
    }
    ENTRY_CS.store(cs & 0xffff, core::sync::atomic::Ordering::Relaxed);
    ENTRY_SS.store(ss & 0xffff, core::sync::atomic::Ordering::Relaxed);
}

#[cfg(not(test))]
core::arch::global_asm!(
    r#"
    .section .data.entry, "aw"
    .balign 16
entry_user_rsp: .quad 0

    .macro SAVE_XMM
    movaps [rsp + 160], xmm0
    movaps [rsp + 176], xmm1
    movaps [rsp + 192], xmm2
    movaps [rsp + 208], xmm3
    movaps [rsp + 224], xmm4
    movaps [rsp + 240], xmm5
    movaps [rsp + 256], xmm6
    movaps [rsp + 272], xmm7
    movaps [rsp + 288], xmm8
    movaps [rsp + 304], xmm9
    movaps [rsp + 320], xmm10
    movaps [rsp + 336], xmm11
    movaps [rsp + 352], xmm12
    movaps [rsp + 368], xmm13
    movaps [rsp + 384], xmm14
    movaps [rsp + 400], xmm15
    .endm
    .macro LOAD_XMM
    movaps xmm0, [rsp + 160]
    movaps xmm1, [rsp + 176]
    movaps xmm2, [rsp + 192]
    movaps xmm3, [rsp + 208]
    movaps xmm4, [rsp + 224]
    movaps xmm5, [rsp + 240]
    movaps xmm6, [rsp + 256]
    movaps xmm7, [rsp + 272]
    movaps xmm8, [rsp + 288]
    movaps xmm9, [rsp + 304]
    movaps xmm10, [rsp + 320]
    movaps xmm11, [rsp + 336]
    movaps xmm12, [rsp + 352]
    movaps xmm13, [rsp + 368]
    movaps xmm14, [rsp + 384]
    movaps xmm15, [rsp + 400]
    .endm
    .macro SAVE_GPRS
    mov [rsp], r15
    mov [rsp + 8], r14
    mov [rsp + 16], r13
    mov [rsp + 24], r12
    mov [rsp + 32], rbp
    mov [rsp + 40], rbx
    mov [rsp + 48], r11
    mov [rsp + 56], r10
    mov [rsp + 64], r9
    mov [rsp + 72], r8
    mov [rsp + 80], rax
    mov [rsp + 88], rcx
    mov [rsp + 96], rdx
    mov [rsp + 104], rsi
    mov [rsp + 112], rdi
    .endm

    .section .text.entry, "ax"
    .balign 64
    .global syscall_entry_trap
syscall_entry_trap:
    mov [rip + entry_user_rsp], rsp
    mov rsp, [rip + ENTRY_KERNEL_STACK]
    sub rsp, 416
    mov qword ptr [rsp + 144], {kind_trap}
    jmp 1f

    .balign 64
    .global syscall_entry_fast
syscall_entry_fast:
    // From a rewritten site: rcx is where to go on, nothing is pushed (the program's red zone is live).
    mov [rip + entry_user_rsp], rsp
    mov rsp, [rip + ENTRY_KERNEL_STACK]
    // As SYSCALL does: r11 is the program's flags, which the way back restores.
    pushfq
    pop r11
    sub rsp, 416
    mov qword ptr [rsp + 144], {kind_fast}
1:  cld
    SAVE_GPRS
    mov [rsp + 120], rcx
    mov [rsp + 128], r11
    mov [rsp + 152], rax
    mov rax, [rip + entry_user_rsp]
    mov [rsp + 136], rax
    SAVE_XMM
    mov rdi, rsp
    xor ebp, ebp
    call handle_syscall
    test al, al
    jnz return_full

    // The quick way back: SYSCALL's own contract lets rcx and r11 change.
    LOAD_XMM
    mov r15, [rsp]
    mov r14, [rsp + 8]
    mov r13, [rsp + 16]
    mov r12, [rsp + 24]
    mov rbp, [rsp + 32]
    mov rbx, [rsp + 40]
    mov r11, [rsp + 128]
    push r11
    popfq
    mov r10, [rsp + 56]
    mov r9, [rsp + 64]
    mov r8, [rsp + 72]
    mov rax, [rsp + 80]
    mov rcx, [rsp + 120]
    mov rdx, [rsp + 96]
    mov rsi, [rsp + 104]
    mov rdi, [rsp + 112]
    mov rsp, [rsp + 136]
    jmp rcx

    // The way that restores everything. rsp points to a TrapFrame.
    .balign 64
    .global return_full
return_full:
    LOAD_XMM
    mov r15, [rsp]
    mov r14, [rsp + 8]
    mov r13, [rsp + 16]
    mov r12, [rsp + 24]
    mov rbp, [rsp + 32]
    mov rbx, [rsp + 40]
    mov r11, [rsp + 48]
    mov r10, [rsp + 56]
    mov r9, [rsp + 64]
    mov r8, [rsp + 72]
    mov rcx, [rsp + 88]
    mov rdx, [rsp + 96]
    mov rsi, [rsp + 104]
    mov rdi, [rsp + 112]
    // Build IRETQ's frame in place of `xmm0` and above, which have been loaded.
    mov rax, [rsp + 120]
    mov [rsp + 160], rax
    mov rax, [rip + ENTRY_CS]
    mov [rsp + 168], rax
    mov rax, [rsp + 128]
    mov [rsp + 176], rax
    mov rax, [rsp + 136]
    mov [rsp + 184], rax
    mov rax, [rip + ENTRY_SS]
    mov [rsp + 192], rax
    mov rax, [rsp + 80]
    lea rsp, [rsp + 160]
    iretq

    // From the monitor, on the fault stack; the exception's frame is below MONITOR_STACK_TOP. A program's fault is handled on its
    // thread's kernel stack, which is empty then, so that the thread may wait or end there; the kernel's own is only reported.
    .balign 64
    .global fault_entry
fault_entry:
    push rax
    push rcx
    mov rax, [rip + MONITOR_STACK_TOP]
    mov rax, [rax - 40]
    lea rcx, [rip + __image_start]
    sub rax, rcx
    cmp rax, {kernel_span}
    pop rcx
    pop rax
    jb 3f
    mov rsp, [rip + ENTRY_KERNEL_STACK]
3:  sub rsp, 416
    mov qword ptr [rsp + 144], {kind_fault}
    SAVE_GPRS
    mov rax, [rip + MONITOR_STACK_TOP]
    mov rcx, [rax - 40]
    mov [rsp + 120], rcx
    mov rcx, [rax - 24]
    mov [rsp + 128], rcx
    mov rcx, [rax - 16]
    mov [rsp + 136], rcx
    mov rsi, [rax - 56]
    mov rdx, [rax - 48]
    SAVE_XMM
    mov rdi, rsp
    xor ebp, ebp
    cld
    call handle_fault
    jmp return_full

    // switch_stacks(rdi: *mut u64 where to keep the old stack pointer, rsi: the new one)
    .balign 64
    .global switch_stacks
switch_stacks:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rdi], rsp
    mov rsp, rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    // A new thread's first way out: its stack holds a TrapFrame at rsp.
    .global thread_start
thread_start:
    mov rdi, rsp
    call handle_thread_start
    jmp return_full
"#,
    kind_trap = const KIND_TRAP,
    kind_fast = const KIND_FAST,
    kind_fault = const KIND_FAULT,
    kernel_span = const crate::boot::KERNEL_SPAN,
);

#[cfg(not(test))]
unsafe extern "C" {
    fn switch_stacks(keep: *mut u64, to: u64);
    fn thread_start();
    fn return_full();
    fn syscall_entry_fast();
}

/// Switches kernel stacks; returns when somebody switches back.
///
/// # Safety
/// `to` was kept by an earlier switch or made by [`prepare_stack`].
#[cfg(not(test))]
pub unsafe fn switch(keep: &mut u64, to: u64) {
    // SAFETY: the caller's promise.
    unsafe { switch_stacks(keep, to) };
}

/// Lays out a new kernel stack so that the first switch to it starts the program with `frame`.
///
/// # Safety
/// `[top - 4096, top)` is mapped writable and unused.
#[cfg(not(test))]
pub unsafe fn prepare_stack(top: u64, frame: &TrapFrame) -> u64 {
    let at = (top - size_of::<TrapFrame>() as u64) & !15;
    // SAFETY: within the new stack (the caller's promise).
    unsafe {
        *(at as *mut TrapFrame) = *frame;
        let slots = (at - 7 * 8) as *mut u64;
        for i in 0..6 {
            slots.add(i).write(0);
        }
        slots.add(6).write(thread_start as *const () as u64);
    }
    at - 7 * 8
}

/// Lays out a new kernel stack so that the first switch to it calls `body`.
///
/// # Safety
/// `[top - 4096, top)` is mapped writable and unused; `top` is 16-aligned.
#[cfg(not(test))]
pub unsafe fn prepare_kernel_stack(top: u64, body: extern "C" fn() -> !) -> u64 {
    // As after a call: the stack is 16-aligned but for the return address.
    let at = top - 8 * 8;
    let slots = at as *mut u64;
    // SAFETY: within the new stack (the caller's promise).
    unsafe {
        for i in 0..6 {
            slots.add(i).write(0);
        }
        slots.add(6).write(body as *const () as u64);
        slots.add(7).write(0);
    }
    at
}

/// Address that rewritten call sites jump to.
#[cfg(not(test))]
pub fn fast_entry_address() -> u64 {
    syscall_entry_fast as *const () as u64
}

/// Host unit tests never enter a program.
#[cfg(test)]
pub fn fast_entry_address() -> u64 {
    0
}

/// Leaves the kernel for the program, for good.
///
/// # Safety
/// `frame` describes a program that is loaded.
#[cfg(not(test))]
pub unsafe fn enter_program(frame: &TrapFrame) -> ! {
    // SAFETY: return_full takes a frame at rsp and never comes back; the frame is copied below the current stack top first.
    unsafe {
        core::arch::asm!(
            "mov rsp, {0}",
            "jmp {1}",
            in(reg) frame as *const TrapFrame,
            sym return_full,
            options(noreturn)
        );
    }
}
