//! The monitor: the only code at CPL 0. It forwards SYSCALL and exceptions to the kernel at CPL 3, and loads CR3 on
//! request (a TLB flush, or a change of address space). Some KVMs interpret CPL 0, so every instruction here counts.
//!
//! Its data are ordinary variables of the kernel (SMAP and SMEP are off): nothing here is secret from the kernel or the
//! program, and nothing here is trusted by the VMM.

use core::sync::atomic::AtomicU64;

/// CR2 of the last exception.
#[unsafe(no_mangle)]
pub static MONITOR_CR2: AtomicU64 = AtomicU64::new(0);
/// Top of the stack that the fault entry starts on.
#[unsafe(no_mangle)]
pub static MONITOR_FAULT_STACK: AtomicU64 = AtomicU64::new(0);
/// TSS.RSP0: exception frames lie just below it.
#[unsafe(no_mangle)]
pub static MONITOR_STACK_TOP: AtomicU64 = AtomicU64::new(0);

/// Physical address of the page tables that the monitor loads into CR3 when it is asked to.
#[unsafe(no_mangle)]
pub static MONITOR_ROOT: AtomicU64 = AtomicU64::new(0);

/// Bytes between vector stubs.
pub const VECTOR_STRIDE: usize = 32;

#[cfg(not(test))]
core::arch::global_asm!(
    r#"
    .section .header, "a"
    .global kernel_header
kernel_header:
    .quad {magic}
    .long {abi_version}
    .long {stride}
    .quad monitor_vectors - kernel_header
    .quad monitor_syscall - kernel_header
    .quad _start - kernel_header
    .quad monitor_spin - kernel_header
    .quad {flight_magic}
    .quad FLIGHT_RECORDER - kernel_header

    .section .data.monitor, "aw"
    .balign 16
monitor_scratch_rax: .quad 0
monitor_scratch_rsp: .quad 0
    .balign 16
    .skip 128
monitor_syscall_stack:

    .section .monitor, "ax"
    .balign 4096
    .global monitor_vectors
monitor_vectors:
    .set vector, 0
    .rept 32
    .balign {stride}
    // 8 DF, 10 TS, 11 NP, 12 SS, 13 GP, 14 PF, 17 AC, 21 CP, 29 VC, 30 SX bring an error code
    .if vector == 8 || vector == 10 || vector == 11 || vector == 12 || vector == 13 || vector == 14 || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
    push 0
    .endif
    push vector
    .if vector == 2 || vector == 8 || vector == 18
    jmp monitor_fatal
    .elseif vector == 6
    jmp monitor_ud
    .elseif vector == 14
    jmp monitor_pf
    .else
    jmp monitor_forward
    .endif
    // The last four bytes of a slot are the VMM's (`KernelHeader::vector_stride`). It is an error if they are taken.
    .org monitor_vectors + vector * {stride} + {stride} - 4, 0xcc
    .set vector, vector + 1
    .endr

    // Stack here: vector, error code, rip, cs, rflags, rsp, ss.
    .balign 32
monitor_pf:
    push rax
    mov rax, cr2
    mov [rip + MONITOR_CR2], rax
    pop rax
monitor_forward:
    test byte ptr [rsp + 24], 3
    jz monitor_fatal
    push {data3}
    push qword ptr [rip + MONITOR_FAULT_STACK]
    push 0x3002
    push {code3}
    push qword ptr [rip + monitor_fault_target]
    iretq

    // `ud2` at one known place of the kernel asks for a TLB flush, by loading the tables of the space that is to run.
monitor_ud:
    push rax
    lea rax, [rip + monitor_flush_site]
    cmp rax, [rsp + 24]
    pop rax
    jne monitor_forward
    push rax
    mov rax, [rip + MONITOR_ROOT]
    mov cr3, rax
    pop rax
    add rsp, 16
    add qword ptr [rsp], 2
    iretq

monitor_fatal:
    mov eax, [rsp]
    mov edx, {panic_port}
    out dx, eax
1:  jmp 1b

    .balign 64
    .global monitor_syscall
monitor_syscall:
    // Reached at CPL 0 on SVM and VMX, and still at CPL 3 on page-table based KVMs.
    mov [rip + monitor_scratch_rax], rax
    mov eax, cs
    test al, 3
    jz 1f
    mov rax, [rip + monitor_scratch_rax]
    jmp syscall_entry_trap
1:  mov [rip + monitor_scratch_rsp], rsp
    lea rsp, [rip + monitor_syscall_stack]
    push {data3}
    push qword ptr [rip + monitor_scratch_rsp]
    push 0x3002
    push {code3}
    lea rax, [rip + syscall_entry_trap]
    push rax
    mov rax, [rip + monitor_scratch_rax]
    iretq

    .balign 16
monitor_spin:
    .byte 0xeb, 0xfe

    .section .data.rel.ro.monitor, "aw"
monitor_fault_target: .quad fault_entry

    .section .text.monitor_flush, "ax"
    .global monitor_flush
monitor_flush:
monitor_flush_site:
    ud2
    ret
"#,
    magic = const quorate_abi::boot::KERNEL_MAGIC,
    flight_magic = const quorate_abi::flight::FLIGHT_MAGIC,
    abi_version = const quorate_abi::ABI_VERSION,
    stride = const VECTOR_STRIDE,
    data3 = const quorate_abi::boot::selector::DATA3,
    code3 = const quorate_abi::boot::selector::CODE3,
    panic_port = const quorate_abi::sync::MONITOR_PANIC_PORT,
);

#[cfg(not(test))]
unsafe extern "C" {
    fn monitor_flush();
}

/// Loads the page tables at [`MONITOR_ROOT`], which flushes the TLB: needed after an entry was removed, narrowed or pointed elsewhere
/// (not after not-present → present), and for a change of address space.
pub fn load_root() {
    #[cfg(not(test))]
    // SAFETY: traps to the monitor, which reloads CR3 and returns behind the `ud2`.
    unsafe {
        monitor_flush();
    }
}
