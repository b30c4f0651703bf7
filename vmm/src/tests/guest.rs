//! Guests in a few instructions, that stand in for the real kernel.

use crate::stub::{Stub, VECTOR_STRIDE};
use quorate_abi::boot::{BootInfo, Layout};
use quorate_abi::sync::{MONITOR_PANIC_PORT, SYNC_PORT, offset};
use std::mem::offset_of;

/// What the guest does. Each is an entry point in the code below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// Rings for ever; each request shows the reply before: wait = monotonic, fingerprint = realtime and flags,
    /// syscalls = boundary.
    Echo,
    /// Hangs.
    Spin,
    /// Rings with an unknown request.
    BadOp,
    /// Overwrites the sync page's magic number, and rings.
    BadMagic,
    /// Ends with status 42.
    Exit,
    /// Panics with a message of its own.
    Panic,
    /// Makes a system call; the handler rings: fingerprint = CS and RFLAGS, syscalls = 1 if RCX is right.
    Syscall,
    /// Writes to its own code.
    WriteCode,
    /// Executes its stack.
    ExecuteStack,
    /// Writes to its data (which is allowed), checks it, and rings with what was there.
    UseData,
    /// Writes to `BootInfo`.
    WriteInfo,
    /// Reads page 0.
    ReadNull,
    /// Writes through the image's mapping.
    WriteImage,
    /// Rings with the image's first 8 bytes.
    ReadImage,
    /// Runs off the boot stack.
    StackOverflow,
    /// `ud2`.
    Undefined,
    /// `hlt`, which CPL 3 may not.
    Halt,
    /// `int3`, whose handler returns; then rings.
    Breakpoint,
    /// Writes to an I/O port that does not exist.
    BadPort,
    /// Rings with a 16-bit `out`.
    NarrowRing,
    /// Rings with magic number and device id of the network device's registers.
    ReadDevice,
    /// Writes garbage to the network device's status.
    BadDevice,
    /// Rings with CPUID leaf 1, EDX in the high half, ECX in the low.
    Cpuid,
    /// Sets FS base with `wrfsbase`, and rings with what `rdfsbase` gives.
    FsBase,
    /// Uses SSE2, and rings with the result.
    Sse,
    /// Maps physical memory where nothing is, and reads it.
    Nowhere,
    /// Counts RCX to 5 in a loop, and rings with RCX and the flags that `pushfq` gives; then rings with 77 and 5 plus what R12 was
    /// changed to.
    Counts,
    /// Does what the entries say, see [`Command`], and rings with a digest of what it read and what is in an SSE register.
    Work,
}

/// What [`Does::Work`] does next: goes into the entry as `flags` and `realtime_ns`.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// Reads and writes `count` words anywhere in memory, drawn from the seed `argument`.
    Scribble = 1,
    /// Writes to `count` pages from the physical address `argument` on.
    Touch = 2,
    /// Maps the page at the physical address `argument` where the first device window was, and reads it.
    Map = 3,
    /// Reads what is mapped there.
    Read = 4,
    /// Makes the image writable, and writes `count` to its byte `argument`.
    WriteImage = 5,
}

std::arch::global_asm!(
    r#"
    .section .rodata.quorate_test_guest, "a"
    .balign 16
    .global quorate_test_guest, quorate_test_guest_end, quorate_test_guest_table
quorate_test_guest:
    .skip 64

    # rax = the sync page; everything else is kept.
.macro load_page
    mov rax, [rdi + {info_sync}]
.endm
.macro ring
    mov dword ptr [rax + {op}], 1
    mov edx, {port}
    out dx, eax
.endm

0:  # Echo
    load_page
2:
    ring
    mov rcx, [rax + {monotonic}]
    mov [rax + {wait}], rcx
    mov rcx, [rax + {realtime}]
    mov [rax + {print}], rcx
    mov rcx, [rax + {flags}]
    mov [rax + {print} + 8], rcx
    mov rcx, [rax + {boundary}]
    mov [rax + {syscalls}], rcx
    jmp 2b

qt_spin:
    jmp qt_spin

qt_bad_op:
    load_page
    mov dword ptr [rax + {op}], 99
    mov edx, {port}
    out dx, eax
    ud2
qt_bad_magic:
    load_page
    mov qword ptr [rax], 0
    ring
    ud2
qt_exit:
    load_page
    mov qword ptr [rax + {arg0}], 42
    mov dword ptr [rax + {op}], 2
    mov edx, {port}
    out dx, eax
    ud2
qt_panic:
    load_page
    mov dword ptr [rax + {message}], 0x1b736f6e # "nos", escape
    mov dword ptr [rax + {message_len}], 4
    mov dword ptr [rax + {op}], 3
    mov edx, {port}
    out dx, eax
    ud2
qt_syscall:
    load_page
    syscall
3:
    ud2
qt_syscall_entry:
    mov edx, cs
    mov [rax + {print}], rdx
    pushfq
    pop qword ptr [rax + {print} + 8]
    lea rdx, [rip + 3b]
    xor esi, esi
    cmp rdx, rcx
    sete sil
    mov [rax + {syscalls}], rsi
    ring
    ud2
qt_write_code:
    lea rcx, [rip + qt_write_code]
    mov byte ptr [rcx], 0
    ud2
qt_execute_stack:
    mov word ptr [rsp - 16], 0xfeeb
    lea rcx, [rsp - 16]
    jmp rcx
qt_use_data:
    load_page
    lea rcx, [rip + quorate_test_guest]
    lea rcx, [rcx + 4096]
    mov rdx, [rcx]
    mov [rax + {print}], rdx
    mov qword ptr [rcx + 4088], 77
    mov rdx, [rcx + 4088]
    mov [rax + {print} + 8], rdx
    ring
    ud2
qt_write_info:
    mov byte ptr [rdi], 0
    ud2
qt_read_null:
    xor ecx, ecx
    mov al, [rcx]
    ud2
qt_write_image:
    mov rcx, [rdi + {info_image}]
    mov byte ptr [rcx], 0
    ud2
qt_read_image:
    load_page
    mov rcx, [rdi + {info_image}]
    mov rdx, [rcx]
    mov [rax + {print}], rdx
    ring
    ud2
qt_stack_overflow:
    push rax
    jmp qt_stack_overflow
qt_undefined:
    ud2
qt_halt:
    hlt
qt_breakpoint:
    load_page
    mov rbx, rsp
    int3
    sub rbx, rsp
    mov [rax + {print}], rbx
    mov qword ptr [rax + {syscalls}], 33
    ring
    ud2
qt_bad_port:
    mov edx, 0x80
    out dx, al
    ud2
qt_narrow_ring:
    mov edx, {port}
    out dx, ax
    ud2
qt_read_device:
    load_page
    mov rcx, [rdi + {info_devices}]
    mov edx, [rcx + 0x2000]
    mov [rax + {print}], rdx
    mov edx, [rcx + 0x2008]
    mov [rax + {print} + 8], rdx
    ring
    ud2
qt_bad_device:
    mov rcx, [rdi + {info_devices}]
    mov dword ptr [rcx + 0x2070], 0xff
    ud2
qt_cpuid:
    load_page
    mov rsi, rax
    mov eax, 1
    xor ecx, ecx
    cpuid
    shl rdx, 32
    mov ecx, ecx
    or rdx, rcx
    mov rax, rsi
    mov [rax + {print}], rdx
    ring
    ud2
qt_fs_base:
    load_page
    mov rcx, 0x123456789000
    wrfsbase rcx
    rdfsbase rdx
    mov [rax + {print}], rdx
    ring
    ud2
qt_sse:
    load_page
    mov ecx, 7
    movq xmm0, rcx
    paddq xmm0, xmm0
    movq rdx, xmm0
    mov [rax + {print}], rdx
    ring
    ud2
qt_nowhere:
    # Walks the page tables through the direct map to the entry of the first device window (r9), and points it to
    # physical memory where nothing is.
    mov r8, [rdi + {info_direct}]
    mov r9, [rdi + {info_devices}]
    mov rax, [rdi + {info_root}]
    mov ecx, 39
4:
    mov rdx, r9
    shr rdx, cl
    and edx, 511
    lea rbx, [rax + rdx * 8]
    add rbx, r8
    mov rax, [rbx]
    mov rsi, 0x000ffffffffff000
    and rax, rsi
    sub ecx, 9
    cmp ecx, 3
    jne 4b
    mov rax, 0x80000000e0000067
    mov [rbx], rax
    mov eax, [r9 + 8]
    ud2

qt_counts:
    load_page
    xor ecx, ecx
    xor r12d, r12d
4:
    inc rcx
    nop
    cmp rcx, 5
    jne 4b
    pushfq
    pop rbx
    mov [rax + {print}], rcx
    mov [rax + {print} + 8], rbx
    ring
    add rcx, r12
    mov [rax + {print} + 8], rcx
    mov qword ptr [rax + {print}], 77
    ring
    jmp qt_counts

    # r14 = the sync page, r15 = BootInfo, r8 = direct map, r9 = end of low RAM, r13 = digest.
qt_work:
    load_page
    mov r14, rax
    mov r15, rdi
    mov r8, [r15 + {info_direct}]
    mov r9, [r15 + {info_ram} + 8]
    xor r13d, r13d
    pxor xmm0, xmm0
6:
    mov rax, r14
    mov [rax + {print}], r13
    movq rcx, xmm0
    mov [rax + {print} + 8], rcx
    ring
    mov rbx, [r14 + {realtime}]
    movq xmm1, rbx
    paddq xmm0, xmm1
    mov r10, [r14 + {flags}]
    movzx ecx, r10b
    shr r10, 8
    cmp ecx, 1
    je 7f
    cmp ecx, 2
    je 8f
    cmp ecx, 3
    je 9f
    cmp ecx, 4
    je 12f
    cmp ecx, 5
    je 13f
    jmp 6b
7:  # Scribble
    sub r10, 1
    jc 6b
    mov rcx, 6364136223846793005
    imul rbx, rcx
    mov rcx, 1442695040888963407
    add rbx, rcx
    mov rax, rbx
    shr rax, 24
    xor edx, edx
    div r9
    and rdx, -8
    cmp rdx, 0x200000
    jb 7b
    mov rcx, rdx
    sub rcx, [r15 + {info_reserved}]
    cmp rcx, [r15 + {info_reserved} + 8]
    jb 7b
    add r13, [r8 + rdx]
    rol r13, 7
    mov [r8 + rdx], rbx
    jmp 7b
8:  # Touch
    sub r10, 1
    jc 6b
    mov rdx, rbx
    add rbx, 4096
    mov rcx, rdx
    sub rcx, [r15 + {info_reserved}]
    cmp rcx, [r15 + {info_reserved} + 8]
    jb 8b
    add qword ptr [r8 + rdx], 1
    jmp 8b
9:  # Map
    mov r11, [r15 + {info_devices}]
    mov esi, 12
    call 14f
    mov rcx, 0x8000000000000067
    or rcx, rbx
    mov [rdx], rcx
    int3 # Reloads CR3.
12: # Read
    mov r11, [r15 + {info_devices}]
    mov r13, [r11]
    jmp 6b
13: # WriteImage
    mov r11, [r15 + {info_image}]
    mov esi, 21
    call 14f
    or qword ptr [rdx], 2
    int3
    mov [r11 + rbx], r10b
    mov r13, [r11 + rbx]
    jmp 6b

    # rdx = where the page table entry of the address r11 is that maps 2^esi bytes.
14:
    mov rax, [r15 + {info_root}]
    mov ecx, 39
15:
    mov rdx, r11
    shr rdx, cl
    and edx, 511
    lea rdx, [rax + rdx * 8]
    add rdx, r8
    cmp ecx, esi
    je 16f
    mov rax, [rdx]
    mov rdi, 0x000ffffffffff000
    and rax, rdi
    sub ecx, 9
    jmp 15b
16:
    ret

    .balign 16
qt_vectors:
    .set qt_vector, 0
    .rept 32
    .balign 16
    push qt_vector
    jmp qt_common
    .set qt_vector, qt_vector + 1
    .endr
    .balign 16
qt_common:
    cmp dword ptr [rsp], 3
    je 5f
    pop rax
    mov edx, {panic}
    out dx, eax
    hlt
5:
    mov [rsp], rax
    mov rax, cr3
    mov cr3, rax
    pop rax
    iretq
    .balign 8
quorate_test_guest_end:
quorate_test_guest_table:
    .quad 0b - quorate_test_guest
    .quad qt_spin - quorate_test_guest
    .quad qt_bad_op - quorate_test_guest
    .quad qt_bad_magic - quorate_test_guest
    .quad qt_exit - quorate_test_guest
    .quad qt_panic - quorate_test_guest
    .quad qt_syscall - quorate_test_guest
    .quad qt_write_code - quorate_test_guest
    .quad qt_execute_stack - quorate_test_guest
    .quad qt_use_data - quorate_test_guest
    .quad qt_write_info - quorate_test_guest
    .quad qt_read_null - quorate_test_guest
    .quad qt_write_image - quorate_test_guest
    .quad qt_read_image - quorate_test_guest
    .quad qt_stack_overflow - quorate_test_guest
    .quad qt_undefined - quorate_test_guest
    .quad qt_halt - quorate_test_guest
    .quad qt_breakpoint - quorate_test_guest
    .quad qt_bad_port - quorate_test_guest
    .quad qt_narrow_ring - quorate_test_guest
    .quad qt_read_device - quorate_test_guest
    .quad qt_bad_device - quorate_test_guest
    .quad qt_cpuid - quorate_test_guest
    .quad qt_fs_base - quorate_test_guest
    .quad qt_sse - quorate_test_guest
    .quad qt_nowhere - quorate_test_guest
    .quad qt_counts - quorate_test_guest
    .quad qt_work - quorate_test_guest
    .quad qt_vectors - quorate_test_guest
    .quad qt_syscall_entry - quorate_test_guest
    .text
"#,
    info_sync = const offset_of!(BootInfo, sync_page),
    info_image = const offset_of!(BootInfo, layout) + offset_of!(Layout, image),
    info_direct = const offset_of!(BootInfo, layout) + offset_of!(Layout, direct),
    info_devices = const offset_of!(BootInfo, layout) + offset_of!(Layout, devices),
    info_ram = const offset_of!(BootInfo, ram),
    info_reserved = const offset_of!(BootInfo, reserved),
    info_root = const offset_of!(BootInfo, page_table_root),
    op = const offset::OP,
    message_len = const offset::MESSAGE_LEN,
    arg0 = const offset::ARG0,
    wait = const offset::WAIT_UNTIL,
    print = const offset::FINGERPRINT,
    syscalls = const offset::SYSCALLS,
    boundary = const offset::BOUNDARY,
    monotonic = const offset::MONOTONIC,
    realtime = const offset::REALTIME,
    flags = const offset::FLAGS,
    message = const offset::MESSAGE,
    port = const SYNC_PORT,
    panic = const MONITOR_PANIC_PORT,
);

const ENTRIES: usize = Does::Work as usize + 1;

unsafe extern "C" {
    static quorate_test_guest: [u8; 0];
    static quorate_test_guest_end: [u8; 0];
    static quorate_test_guest_table: [u64; ENTRIES + 2];
}

/// The guest that does this.
pub fn stub(does: Does) -> Stub {
    // SAFETY: The assembly above defines these symbols as read-only data, and the table with that many entries.
    let (code, table) = unsafe {
        let start = (&raw const quorate_test_guest).cast::<u8>();
        let end = (&raw const quorate_test_guest_end).cast::<u8>();
        let len = end.offset_from(start) as usize;
        (
            std::slice::from_raw_parts(start, len),
            quorate_test_guest_table,
        )
    };
    let stub = Stub {
        code: code.to_vec(),
        vectors: table[ENTRIES],
        syscall_entry: table[ENTRIES + 1],
        entry: table[does as usize],
        spin: table[Does::Spin as usize],
    };
    assert_eq!(stub.vectors % u64::from(VECTOR_STRIDE), 0);
    stub
}
