//! The freestanding binary: entry point, self-relocation, heap, panic handler, and the few C functions that compiled code
//! calls. Everything else is in the library.
#![no_std]
#![no_main]

use core::alloc::Layout;
use guest_kernel::mm::kheap;
use talc::base::{Talc, binning::Binning};
use talc::cell::TalcSyncCell;
use talc::source::Source;

core::arch::global_asm!(
    r#"
    .section .text.start, "ax"
    .global _start
    .hidden __image_start
    .hidden __rela_start
    .hidden __rela_end
_start:
    lea r8, [rip + __image_start]
    lea rsi, [rip + __rela_start]
    lea rcx, [rip + __rela_end]
1:  cmp rsi, rcx
    jae 2f
    cmp dword ptr [rsi + 8], 8
    jne 3f
    mov rax, [rsi + 16]
    add rax, r8
    mov rdx, [rsi]
    mov [rdx + r8], rax
    add rsi, 24
    jmp 1b
2:  mov rsi, r8
    xor ebp, ebp
    // Compiled code counts on the stack's alignment.
    and rsp, -16
    call kernel_main
3:  ud2
"#
);

/// Grows the heap at its end.
#[derive(Debug)]
struct Heap {
    end: Option<core::ptr::NonNull<u8>>,
}

// SAFETY: the heap's pointer is only used by the one vCPU.
unsafe impl Send for Heap {}

// SAFETY: `grow_heap` does not allocate from this heap.
unsafe impl Source for Heap {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        let (start, end) =
            kheap::grow_heap((layout.size() + layout.align() + 4096) as u64).map_err(|_| ())?;
        // SAFETY: the memory was mapped for this heap, directly behind what it has.
        unsafe {
            talc.source.end = match talc.source.end {
                Some(old) => Some(talc.extend(old, end as *mut u8)),
                None => talc.claim(start as *mut u8, (end - start) as usize),
            };
        }
        talc.source.end.map(|_| ()).ok_or(())
    }
}

#[global_allocator]
// SAFETY: one vCPU, no interrupts; the fault handler does not allocate while the kernel itself does (a fault inside the
// kernel is a panic).
static HEAP: TalcSyncCell<Heap, talc::base::binning::DefaultBinning> =
    unsafe { TalcSyncCell::new(talc::TalcCell::new(Heap { end: None })) };

#[unsafe(no_mangle)]
extern "C" fn kernel_main(boot: *const quorate_abi::boot::BootInfo, image_start: u64) -> ! {
    // SAFETY: the VMM passes the address of the boot information, which nobody changes.
    let boot = unsafe { &*boot };
    guest_kernel::boot::start(boot, image_start)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    guest_kernel::boundary::panic(format_args!("{info}"))
}

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() -> ! {
    guest_kernel::boundary::panic(format_args!("unwinding"))
}

#[unsafe(no_mangle)]
#[allow(non_snake_case)]
extern "C" fn _Unwind_Resume() -> ! {
    guest_kernel::boundary::panic(format_args!("unwinding"))
}

// The compiler calls these. `rep movsb` and `rep stosb` are native and fast at CPL 3.
core::arch::global_asm!(
    r#"
    .section .text.memory, "ax"
    .global memcpy
    .global memmove
    .global memset
    .global memcmp
    .global bcmp
    .global strlen
memcpy:
    mov rax, rdi
    cmp rdx, 32
    jae 2f
    cmp rdx, 16
    jae 4f
    cmp rdx, 8
    jae 5f
    test rdx, rdx
    jz 3f
1:  mov cl, [rsi + rdx - 1]
    mov [rdi + rdx - 1], cl
    dec rdx
    jnz 1b
3:  ret
5:  mov rcx, [rsi]
    mov r8, [rsi + rdx - 8]
    mov [rdi], rcx
    mov [rdi + rdx - 8], r8
    ret
4:  movups xmm0, [rsi]
    movups xmm1, [rsi + rdx - 16]
    movups [rdi], xmm0
    movups [rdi + rdx - 16], xmm1
    ret
2:  cmp rdx, 512
    jae 7f
    // 32 to 511 bytes: the tail is loaded first.
    movups xmm2, [rsi + rdx - 32]
    movups xmm3, [rsi + rdx - 16]
    lea r8, [rdi + rdx - 32]
6:  movups xmm0, [rsi]
    movups xmm1, [rsi + 16]
    movups [rdi], xmm0
    movups [rdi + 16], xmm1
    add rsi, 32
    add rdi, 32
    cmp rdi, r8
    jb 6b
    movups [r8], xmm2
    movups [r8 + 16], xmm3
    ret
7:  mov rcx, rdx
    rep movsb
    ret
memmove:
    mov rax, rdi
    mov rcx, rdi
    sub rcx, rsi
    cmp rcx, rdx
    jae memcpy
    // Overlapping, destination above: from the end.
    mov rcx, rdx
    cmp rcx, 16
    jb 2f
1:  movups xmm0, [rsi + rcx - 16]
    movups [rdi + rcx - 16], xmm0
    sub rcx, 16
    cmp rcx, 16
    jae 1b
2:  test rcx, rcx
    jz 4f
3:  mov dl, [rsi + rcx - 1]
    mov [rdi + rcx - 1], dl
    dec rcx
    jnz 3b
4:  ret
memset:
    mov r8, rdi
    movzx eax, sil
    cmp rdx, 64
    jae 2f
    test rdx, rdx
    jz 3f
1:  mov [rdi + rdx - 1], al
    dec rdx
    jnz 1b
3:  mov rax, r8
    ret
2:  mov rcx, rdx
    rep stosb
    mov rax, r8
    ret
bcmp:
memcmp:
    xor eax, eax
    xor ecx, ecx
4:  lea r9, [rcx + 8]
    cmp r9, rdx
    ja 1f
    mov r8, [rdi + rcx]
    cmp r8, [rsi + rcx]
    jne 1f
    mov rcx, r9
    jmp 4b
1:  cmp rcx, rdx
    je 2f
    movzx eax, byte ptr [rdi + rcx]
    movzx r8d, byte ptr [rsi + rcx]
    inc rcx
    sub eax, r8d
    je 1b
2:  ret
strlen:
    xor eax, eax
1:  cmp byte ptr [rdi + rax], 0
    je 2f
    inc rax
    jmp 1b
2:  ret
"#
);
