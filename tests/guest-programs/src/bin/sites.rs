//! System-call sites and what may stand around them, and instructions that would leak the host's time. `sites speed` compares the cost of
//! calls.

use guest_programs::plain::{close, getpid, getppid, pipe_ends, read_bytes, write_bytes};
use guest_programs::*;
use libc::*;
use std::arch::{asm, global_asm};
use std::time::Instant;

global_asm!(
    r#"
    .text
    // Functions called with C's convention; eax holds the call's number before.
    .p2align 4
    .global site_return_then_code
site_return_then_code:
    mov eax, 39
    syscall
    ret
    .global site_behind
site_behind:
    mov eax, 1234
    ret

    // A jump to the instruction behind the call: once with the call, once without.
    .p2align 4
    .global site_branch_behind
site_branch_behind:
    mov eax, 39
    test rdi, rdi
    jnz 2f
    syscall
2:  add eax, 1
    ret

    // Jumps to behind the call from further away than anybody looks, to each of the instructions that stand there.
    .p2align 4
    .global site_far_behind
site_far_behind:
    mov eax, 39
    syscall
1:  cmp rax, -4096
    ja 2f
    ret
2:  mov eax, 1
    ret
    .global site_short_behind
site_short_behind:
    mov eax, 39
    syscall
3:  test eax, eax
4:  js 2b
    nop
    nop
    ret
    .skip 5000, 0xcc
    .global site_far_jump
site_far_jump:
    mov eax, 77
    jmp 1b
    .global site_short_jump
site_short_jump:
    mov eax, 78
    jmp 3b
    .global site_shortest_jump
site_shortest_jump:
    mov eax, 79
    test eax, eax
    jmp 4b

    .p2align 4
    .global site_two_in_a_row
site_two_in_a_row:
    mov eax, 39
    syscall
    syscall
    ret

    .p2align 4
    .global site_read
site_read:
    xor eax, eax
    syscall
    cmp rax, -4096
    ja 2b
    ret

    .p2align 4
    .global site_red_zone
site_red_zone:
    mov qword ptr [rsp - 8], 11
    mov qword ptr [rsp - 64], 22
    mov qword ptr [rsp - 128], 33
    mov eax, 39
    syscall
    mov rax, [rsp - 8]
    imul rax, rax, 10000
    mov rcx, [rsp - 64]
    imul rcx, rcx, 100
    add rax, rcx
    add rax, [rsp - 128]
    ret

    // A call whose displaced neighbour is relative to rip.
    .p2align 4
    .global site_rip_relative
site_rip_relative:
    mov eax, 39
    syscall
    mov eax, [rip + site_constant]
    ret
site_constant: .long 4711

    // A conditional branch right behind.
    .p2align 4
    .global site_branch_right_behind
site_branch_right_behind:
    mov eax, 39
    cmp rdi, 5
    syscall
    je 3f
    mov eax, 1
    ret
3:  mov eax, 2
    ret

    // A call right behind, with its return address on the stack.
    .p2align 4
    .global site_call_right_behind
site_call_right_behind:
    mov eax, 39
    syscall
    call 4f
    ret
4:  lea rcx, [rip + site_call_right_behind]
    mov rax, [rsp]
    sub rax, rcx
    ret

    // A loop whose head is the call.
    .p2align 4
    .global site_loop
site_loop:
    push rbx
    mov rbx, rdi
5:  mov eax, 39
6:  syscall
    dec rbx
    jnz 5b
    mov eax, ebx
    pop rbx
    ret

    // Flags and registers across a call.
    .p2align 4
    .global site_flags
site_flags:
    mov eax, 39
    push rbx
    mov rbx, rdi
    push rbx
    popfq
    syscall
    pushfq
    pop rax
    cld
    pop rbx
    ret

    // rcx is where the call returns, as on Linux: behind the instruction.
    .p2align 4
    .global site_rcx
site_rcx:
    mov eax, 39
    syscall
    mov rax, rcx
    ret
"#
);

// SAFETY: each is assembly above that keeps to C's convention; those marked safe take numbers and touch their own stack only.
unsafe extern "C" {
    safe fn site_return_then_code() -> i64;
    safe fn site_far_behind() -> i64;
    safe fn site_far_jump() -> i64;
    safe fn site_short_behind() -> i64;
    safe fn site_short_jump() -> i64;
    safe fn site_shortest_jump() -> i64;
    fn site_read(fd: i32, to: *mut u8, len: usize) -> i64;
    safe fn site_behind() -> i64;
    safe fn site_branch_behind(skip: u64) -> i64;
    safe fn site_two_in_a_row() -> i64;
    safe fn site_red_zone() -> i64;
    safe fn site_rip_relative() -> i64;
    safe fn site_branch_right_behind(value: u64) -> i64;
    safe fn site_call_right_behind() -> i64;
    safe fn site_loop(times: u64) -> i64;
    safe fn site_flags(flags: u64) -> u64;
}

type Call = extern "C" fn() -> i64;

/// Calls of each site: more than it takes until it is rewritten.
const ROUNDS: usize = 40;

/// Puts code into memory of its own: `at` bytes into two pages, so that it can end where the first ends.
fn place(code: &[u8], at: usize) -> Result<(u64, Call), String> {
    // SAFETY: the pages are mapped, the code is copied within their bounds and made executable; it
    // keeps to C's convention.
    unsafe {
        let base = mmap(
            std::ptr::null_mut(),
            8192,
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS,
            -1,
            0,
        );
        std::ptr::copy_nonoverlapping(code.as_ptr(), base.cast::<u8>().add(at), code.len());
        must(mprotect(base, 8192, PROT_READ | PROT_EXEC))?;
        Ok((
            base as u64,
            std::mem::transmute::<u64, Call>(base as u64 + at as u64),
        ))
    }
}

fn getpid_loop(call: impl Fn(), times: u64) -> f64 {
    let start = Instant::now();
    for _ in 0..times {
        call();
    }
    start.elapsed().as_nanos() as f64 / times as f64
}

/// Prints the cost of calls: through sites that can be rewritten, and through one that cannot.
fn speed() -> Outcome {
    let rewritten = getpid_loop(|| assert!(site_loop(1000) == 0), 1000) / 1000.0;
    // A jump into the site from close by, and no room: this one must trap each time.
    let (_, refused) = place(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3, 0xeb, 0xfd], 0)?;
    let trapped = getpid_loop(
        || {
            refused();
        },
        5000,
    );
    println!(
        "a call through a rewritten site: {rewritten:.0} ns; through a trap: {trapped:.0} ns; ratio {:.1}",
        trapped / rewritten
    );
    if std::env::args().nth(2).as_deref() == Some("guest") {
        holds!(trapped > rewritten * 3.0);
    }
    Ok(())
}

fn main() {
    let pid = i64::from(getpid());
    if std::env::args().nth(1).as_deref() == Some("speed") {
        check("speed", speed);
        finish();
    }
    // Every check runs many times: the first calls trap, later ones go through what the site was rewritten to.
    check("code behind the return", || {
        for _ in 0..ROUNDS {
            same!((site_return_then_code(), site_behind()), (pid, 1234));
        }
        Ok(())
    });
    check("a branch to the instruction behind", || {
        for _ in 0..ROUNDS {
            same!(
                (site_branch_behind(0), site_branch_behind(1)),
                (pid + 1, 40)
            );
        }
        Ok(())
    });
    check("jumps to behind the call from far away", || {
        for _ in 0..ROUNDS {
            same!((site_far_behind(), site_far_jump()), (pid, 77));
            same!(
                (site_short_behind(), site_short_jump(), site_shortest_jump()),
                (pid, 78, 79)
            );
        }
        Ok(())
    });
    // SAFETY: the byte outlives the call that fills it.
    check("a thread in the call while others make it", || unsafe {
        let ends = pipe_ends()?;
        let reader = ends[0];
        let mut waiting = Vec::new();
        for _ in 0..ROUNDS {
            waiting.push(std::thread::spawn(move || {
                let mut byte = [0u8; 1];
                site_read(reader, byte.as_mut_ptr(), 1)
            }));
            std::thread::yield_now();
        }
        for _ in 0..ROUNDS {
            must(write_bytes(ends[1], b"x"))?;
        }
        for each in waiting {
            same!(each.join().map_err(|_| "panicked")?, 1);
        }
        close(ends[0]);
        close(ends[1]);
        Ok(())
    });
    check("two calls in a row", || {
        for _ in 0..ROUNDS {
            // The second call's number is the first one's result.
            // SAFETY: the call of this number touches no memory.
            let expected = unsafe { syscall(pid, 0, 0, 0) };
            let _ = expected;
            same!(site_two_in_a_row().signum() <= 1, true);
        }
        Ok(())
    });
    check("the red zone", || {
        for _ in 0..ROUNDS {
            same!(site_red_zone(), 112_233);
        }
        Ok(())
    });
    check("neighbours that depend on where they stand", || {
        for _ in 0..ROUNDS {
            same!(site_rip_relative(), 4711);
            same!(
                (site_branch_right_behind(5), site_branch_right_behind(6)),
                (2, 1)
            );
            same!(site_call_right_behind(), 12);
        }
        Ok(())
    });
    check("flags and registers", || {
        // CF, PF, AF, ZF, SF, OF, DF.
        let status = 0x8d5u64 | 0x400;
        for _ in 0..ROUNDS {
            for flags in [0u64, 1, 0x40, 0x80, 0x800, 0x400, 0x8d5, 0xcd5] {
                same!(site_flags(flags | 0x202) & status, flags);
            }
            let (mut a, mut b, mut c, mut d) = (1u64, 2u64, 3u64, 4u64);
            let (r9, r10): (u64, u64);
            // SAFETY: `getpid` changes the registers named only.
            unsafe {
                asm!("mov eax, 39", "syscall", inout("rdi") a, inout("rsi") b, inout("rdx") c, inout("r8") d,
                    inout("r9") 5u64 => r9, inout("r10") 6u64 => r10, out("rax") _, out("rcx") _, out("r11") _);
            }
            same!((a, b, c, d, r9, r10), (1, 2, 3, 4, 5, 6));
        }
        Ok(())
    });
    check("a call at the end of a page, and across two", || {
        let code = [
            0xb8u8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3, 0xcc, 0xcc, 0xcc, 0xcc,
        ];
        for back in [5usize, 6, 7, 8, 9, 10] {
            let (_, call) = place(&code, 4096 - back)?;
            for _ in 0..ROUNDS {
                same!(call(), pid);
            }
        }
        // The last instruction of the last mapped page.
        let (base, call) = place(&code[..8], 8192 - 8)?;
        for _ in 0..ROUNDS {
            same!(call(), pid);
        }
        // SAFETY: nothing calls the code any more.
        unsafe { munmap(base as *mut c_void, 8192) };
        Ok(())
    });
    check("code that replaces itself", || {
        // SAFETY: the kernel chooses where.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                4096,
                PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        for (number, expected) in [(39u8, pid), (110, i64::from(getppid())), (39, pid)] {
            // SAFETY: the page is mapped, and written only while nobody runs it; the code returns
            // at once.
            unsafe {
                must(mprotect(base, 4096, PROT_READ | PROT_WRITE))?;
                let code = [0xb8u8, number, 0, 0, 0, 0x0f, 0x05, 0x90, 0x90, 0x90, 0xc3];
                std::ptr::copy_nonoverlapping(code.as_ptr(), base.cast(), code.len());
                must(mprotect(base, 4096, PROT_READ | PROT_EXEC))?;
                let call = std::mem::transmute::<*mut c_void, Call>(base);
                for _ in 0..ROUNDS {
                    same!(call(), expected);
                }
            }
        }
        // Unmapped and mapped anew, at the same place.
        // SAFETY: the page is replaced by one of its own, written before it is called.
        unsafe {
            munmap(base, 4096);
            let again = mmap(
                base,
                4096,
                PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                -1,
                0,
            );
            // mov eax, 7; nop …; ret: no call at all.
            let code = [0xb8u8, 7, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3];
            std::ptr::copy_nonoverlapping(code.as_ptr(), again.cast(), code.len());
            must(mprotect(again, 4096, PROT_READ | PROT_EXEC))?;
            same!(std::mem::transmute::<*mut c_void, Call>(again)(), 7);
        }
        Ok(())
    });
    check("a million calls", || {
        for _ in 0..10 {
            same!(site_loop(100_000), 0);
        }
        Ok(())
    });
    // SAFETY: the handler does nothing, and may run at any time; structures are locals.
    check("a signal restarts a rewritten call", || unsafe {
        extern "C" fn nothing(_: i32) {}
        let mut action: sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        action.sa_flags = SA_RESTART;
        sigaction(SIGALRM, &action, std::ptr::null_mut());
        let ends = pipe_ends()?;
        for _ in 0..ROUNDS {
            let timer = itimerval {
                it_interval: std::mem::zeroed(),
                it_value: timeval {
                    tv_sec: 0,
                    tv_usec: 1000,
                },
            };
            syscall(SYS_setitimer, ITIMER_REAL, &timer, 0);
            let writer = std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(3));
                write_bytes(ends[1], b"x")
            });
            let mut byte = [0u8; 1];
            same!(sys(read_bytes(ends[0], &mut byte)), Ok(1));
            writer.join().map_err(|_| "panicked")?;
        }
        close(ends[0]);
        close(ends[1]);
        Ok(())
    });
    // SAFETY: calls that do not exist do nothing.
    check("system calls that do not exist", || unsafe {
        for number in [174i64, 178, 180, 999, -5].repeat(3) {
            same!(sys(syscall(number, 0, 0, 0)), Err(ENOSYS));
        }
        Ok(())
    });
    finish();
}
