//! Makes an access that may fault, and reports the signal.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The signal that an access raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Signal number.
    pub signal: i32,
    /// si_code.
    pub code: i32,
    /// si_addr.
    pub addr: u64,
    /// Instruction pointer in the ucontext.
    pub rip: u64,
    /// Error code of the page fault in the ucontext.
    pub err: u64,
    /// Vector of the exception in the ucontext.
    pub trapno: u64,
}

#[unsafe(no_mangle)]
static PROBE_RSP: AtomicU64 = AtomicU64::new(0);
static HIT: AtomicBool = AtomicBool::new(false);
static FIELDS: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];

std::arch::global_asm!(
    r#"
    .text
    .global probe_enter
probe_enter:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + PROBE_RSP], rsp
    mov rax, rdi
    mov rdi, rsi
    mov rsi, rdx
    sub rsp, 8
    call rax
    .global probe_leave
probe_leave:
    mov rsp, [rip + PROBE_RSP]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    .global op_load
op_load:
    movzx eax, byte ptr [rdi]
    ret
    .global op_store
op_store:
    mov byte ptr [rdi], sil
    ret
    .global op_call
op_call:
    sub rsp, 8
    call rdi
    add rsp, 8
    ret
    .global op_divide
op_divide:
    xor edx, edx
    mov eax, 1
    xor ecx, ecx
    div ecx
    ret
    .global op_ud2
op_ud2:
    ud2
    ret
    .global op_int3
op_int3:
    int3
    ret
    .global op_hlt
op_hlt:
    hlt
    ret
    .global op_sse_divide
op_sse_divide:
    sub rsp, 8
    stmxcsr [rsp]
    mov eax, [rsp]
    and dword ptr [rsp], 0xfffffdff
    and dword ptr [rsp], 0xffffffc0
    ldmxcsr [rsp]
    mov ecx, 1
    cvtsi2sd xmm0, ecx
    xorps xmm1, xmm1
    divsd xmm0, xmm1
    mov [rsp], eax
    ldmxcsr [rsp]
    add rsp, 8
    ret
    .global op_x87_divide
op_x87_divide:
    sub rsp, 8
    fninit
    fnstcw [rsp]
    and word ptr [rsp], 0xfffb
    fldcw [rsp]
    fld1
    fldz
    fdivp
    fwait
    fninit
    add rsp, 8
    ret
    .global op_overflow_stack
op_overflow_stack:
    sub rsp, 2048
    mov byte ptr [rsp], 1
    jmp op_overflow_stack
"#
);

/// An operation to try.
pub type Op = unsafe extern "C" fn(u64, u64) -> u64;

unsafe extern "C" {
    fn probe_enter(op: Op, a: u64, b: u64) -> u64;
    fn probe_leave();
    /// Reads a byte at `a`.
    pub fn op_load(a: u64, b: u64) -> u64;
    /// Writes the byte `b` to `a`.
    pub fn op_store(a: u64, b: u64) -> u64;
    /// Calls `a`.
    pub fn op_call(a: u64, b: u64) -> u64;
    /// Divides by zero.
    pub fn op_divide(a: u64, b: u64) -> u64;
    /// Runs an undefined instruction.
    pub fn op_ud2(a: u64, b: u64) -> u64;
    /// Runs a breakpoint.
    pub fn op_int3(a: u64, b: u64) -> u64;
    /// Runs a privileged instruction.
    pub fn op_hlt(a: u64, b: u64) -> u64;
    /// Divides 1.0 by 0.0 with the exception unmasked.
    pub fn op_sse_divide(a: u64, b: u64) -> u64;
    /// The same on the x87.
    pub fn op_x87_divide(a: u64, b: u64) -> u64;
    /// Walks down the stack until it ends.
    pub fn op_overflow_stack(a: u64, b: u64) -> u64;
}

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler a complete `siginfo_t` and the registers, to be changed at
    // will; it goes on in `probe_leave`, on the stack that `probe_enter` noted.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let registers = &mut context.uc_mcontext.gregs;
        let values = [
            signal as u64,
            (*info).si_code as u32 as u64,
            (*info).si_addr() as u64,
            registers[libc::REG_RIP as usize] as u64,
            registers[libc::REG_ERR as usize] as u64,
            registers[libc::REG_TRAPNO as usize] as u64,
        ];
        for (field, value) in FIELDS.iter().zip(values) {
            field.store(value, Ordering::Relaxed);
        }
        HIT.store(true, Ordering::Relaxed);
        registers[libc::REG_RIP as usize] = probe_leave as *const () as i64;
        registers[libc::REG_RSP as usize] = PROBE_RSP.load(Ordering::Relaxed) as i64;
    }
}

/// Runs `op` and returns what it returned, or the signal that it raised. Not for several threads at once.
pub fn probe(op: Op, a: u64, b: u64) -> Result<u64, Fault> {
    const SIGNALS: [i32; 5] = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGTRAP,
    ];
    // SAFETY: the structures are of numbers; the alternative stack outlives its use, and what was
    // set before is set again; `op` faults or returns, and either way `probe_enter` restores what
    // the caller must keep.
    unsafe {
        let mut alternative = vec![0u8; 64 << 10];
        let mut stack: libc::stack_t = std::mem::zeroed();
        let mut old_stack: libc::stack_t = std::mem::zeroed();
        stack.ss_sp = alternative.as_mut_ptr().cast();
        stack.ss_size = alternative.len();
        libc::sigaltstack(&stack, &mut old_stack);
        let mut old: [libc::sigaction; 5] = std::mem::zeroed();
        for (signal, old) in SIGNALS.iter().zip(&mut old) {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(*signal, &action, old);
        }
        HIT.store(false, Ordering::Relaxed);
        let value = probe_enter(op, a, b);
        for (signal, old) in SIGNALS.iter().zip(&old) {
            libc::sigaction(*signal, old, std::ptr::null_mut());
        }
        libc::sigaltstack(&old_stack, std::ptr::null_mut());
        if !HIT.load(Ordering::Relaxed) {
            return Ok(value);
        }
        let field = |i: usize| FIELDS[i].load(Ordering::Relaxed);
        Err(Fault {
            signal: field(0) as i32,
            code: field(1) as i32,
            addr: field(2),
            rip: field(3),
            err: field(4),
            trapno: field(5),
        })
    }
}

/// Signal and code of what `op` raised; (0, 0) if nothing.
pub fn raised(op: Op, a: u64, b: u64) -> (i32, i32) {
    probe(op, a, b).map_or_else(|fault| (fault.signal, fault.code), |_| (0, 0))
}

/// SIGSEGV, SEGV_MAPERR.
pub const UNMAPPED: (i32, i32) = (libc::SIGSEGV, 1);
/// SIGSEGV, SEGV_ACCERR.
pub const FORBIDDEN: (i32, i32) = (libc::SIGSEGV, 2);
/// SIGBUS, BUS_ADRERR.
pub const BEYOND_FILE: (i32, i32) = (libc::SIGBUS, 2);
/// No signal.
pub const FINE: (i32, i32) = (0, 0);
