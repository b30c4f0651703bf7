//! The first process of a Linux appliance that runs one program: it starts the program as the right user and in the right
//! directory, takes in orphans, and when the program has ended tells the VMM how and powers the machine off.
//!
//!     task init UID GID GROUP,GROUP… DIRECTORY PROGRAM [ARGUMENT…]    process 1; "-" for no other groups
//!     task exit CODE                                                  the machine ends with this exit code
//!
//! Freestanding, so that it needs nothing of the image: compiled by images/build.rs, put into the initial RAM disk. busybox'
//! shell could do all but two things: supplementary groups by number, and the write to an I/O port.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};
use core::panic::PanicInfo;

/// `quorate_abi::linux::EXIT_PORT`.
const EXIT_PORT: u16 = 0xf4;
/// Most supplementary groups (`quorate_abi::boot::MAX_GROUPS` is less).
const MAX_GROUPS: usize = 64;
/// Exit code when the program cannot be started, as shells have it.
const CANNOT_START: u32 = 127;

/// System calls of x86-64.
mod call {
    pub const WRITE: usize = 1;
    pub const IOCTL: usize = 16;
    pub const GETPID: usize = 39;
    pub const FORK: usize = 57;
    pub const EXECVE: usize = 59;
    pub const EXIT: usize = 60;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const CHDIR: usize = 80;
    pub const SETUID: usize = 105;
    pub const SETGID: usize = 106;
    pub const SETSID: usize = 112;
    pub const SETGROUPS: usize = 116;
    pub const SYNC: usize = 162;
    pub const REBOOT: usize = 169;
    pub const IOPERM: usize = 173;
}

const EINTR: isize = -4;
const SIGKILL: usize = 9;
const TIOCSCTTY: usize = 0x540e;
/// With a number that is not 0: waits until all output has left.
const TCSBRK: usize = 0x5409;
const REBOOT_MAGIC: [usize; 2] = [0xfee1_dead, 0x2812_1969];
const REBOOT_POWER_OFF: usize = 0x4321_fedc;

// The kernel enters with the stack pointer at argc; a function wants it in a register, and the stack aligned.
global_asm!(
    ".globl _start",
    "_start:",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym main,
);

/// SAFETY: the caller keeps to what the system call of this number takes; pointers are valid for its length.
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    // SAFETY: the registers are those of the Linux system call interface; the caller answers for the arguments.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// The words of the command line, then null, then the environment.
struct Words {
    argc: usize,
    argv: *const *const c_char,
}

impl Words {
    fn get(&self, index: usize) -> Option<&CStr> {
        if index >= self.argc {
            return None;
        }
        // SAFETY: the kernel puts `argc` pointers to strings that end in a zero here, for the life of the process.
        unsafe { Some(CStr::from_ptr(*self.argv.add(index))) }
    }

    /// The pointers from word `index` on, as execve takes them.
    fn tail(&self, index: usize) -> usize {
        // SAFETY: `index` is not beyond `argc`, where the null is.
        unsafe { self.argv.add(index.min(self.argc)) as usize }
    }

    fn environment(&self) -> usize {
        // SAFETY: behind the null after the words.
        unsafe { self.argv.add(self.argc + 1) as usize }
    }
}

/// # Safety
/// `stack` is the stack as the kernel left it.
unsafe extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: argc, then the words.
    let words = unsafe {
        Words {
            argc: *stack,
            argv: stack.add(1).cast(),
        }
    };
    // What it does in the end would be a disaster for any machine that it is not the first process of.
    // SAFETY: takes nothing.
    if unsafe { syscall(call::GETPID, 0, 0, 0, 0) } != 1 {
        say(b"only process 1 of a machine may do this");
        quit(2);
    }
    match words.get(1).map(CStr::to_bytes) {
        Some(b"init") => supervise(&words),
        Some(b"exit") => end(number(words.get(2)).unwrap_or(CANNOT_START) << 8),
        _ => {
            say(b"usage: task init UID GID GROUPS DIRECTORY PROGRAM [ARGUMENT]... | task exit CODE");
            quit(2)
        }
    }
}

fn supervise(words: &Words) -> ! {
    // SAFETY: none takes a pointer.
    let child = unsafe { syscall(call::FORK, 0, 0, 0, 0) };
    if child == 0 {
        start(words);
    }
    if child < 0 {
        say(b"no process for the program");
        end(CANNOT_START << 8);
    }
    loop {
        let mut status: u32 = 0;
        // SAFETY: `status` is there for the answer.
        let who = unsafe { syscall(call::WAIT4, usize::MAX, &raw mut status as usize, 0, 0) };
        if who == child {
            end(status);
        }
        if who < 0 && who != EINTR {
            end(CANNOT_START << 8);
        }
    }
}

/// Becomes the program; the child's part.
fn start(words: &Words) -> ! {
    // A session of its own with the console as its terminal, so that a shell has job control. Without a terminal it fails, which is
    // as well.
    // SAFETY: none takes a pointer.
    unsafe {
        syscall(call::SETSID, 0, 0, 0, 0);
        syscall(call::IOCTL, 0, TIOCSCTTY, 0, 0);
    }
    let (Some(uid), Some(gid)) = (number(words.get(2)), number(words.get(3))) else {
        fail(b"UID and GID are numbers");
    };
    let mut groups = [0u32; MAX_GROUPS];
    let Some(count) = numbers(words.get(4), &mut groups) else {
        fail(b"GROUPS are numbers with commas between them, or -");
    };
    let (Some(directory), Some(program)) = (words.get(5), words.get(6)) else {
        fail(b"no directory or no program");
    };
    // SAFETY: the array and the strings live; the kernel checks the rest.
    unsafe {
        if syscall(call::SETGROUPS, count, groups.as_ptr() as usize, 0, 0) < 0
            || syscall(call::SETGID, gid as usize, 0, 0, 0) < 0
            || syscall(call::SETUID, uid as usize, 0, 0, 0) < 0
        {
            fail(b"the user or a group cannot be had");
        }
        if syscall(call::CHDIR, directory.as_ptr() as usize, 0, 0, 0) < 0 {
            fail(b"the program's directory cannot be entered");
        }
        syscall(
            call::EXECVE,
            program.as_ptr() as usize,
            words.tail(6),
            words.environment(),
            0,
        );
    }
    fail(b"the program cannot be executed");
}

/// Ends the machine; `status` is a wait status.
fn end(status: u32) -> ! {
    let value = (status & 0x7f) << 8 | (status >> 8 & 0xff);
    // SAFETY: no pointers; `ioperm` allows the four ports that `out` writes to.
    unsafe {
        syscall(call::KILL, usize::MAX, SIGKILL, 0, 0);
        // The last lines may still be on their way, and a machine that is off sends nothing.
        syscall(call::IOCTL, 1, TCSBRK, 1, 0);
        syscall(call::SYNC, 0, 0, 0, 0);
        if syscall(call::IOPERM, EXIT_PORT as usize, 4, 1, 0) == 0 {
            asm!("out dx, eax", in("dx") EXIT_PORT, in("eax") value, options(nomem, nostack));
        }
        syscall(call::REBOOT, REBOOT_MAGIC[0], REBOOT_MAGIC[1], REBOOT_POWER_OFF, 0);
    }
    quit(1)
}

fn number(word: Option<&CStr>) -> Option<u32> {
    parse(word?.to_bytes())
}

fn parse(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u32, |value, digit| {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value.checked_mul(10)?.checked_add(u32::from(digit))
    })
}

fn numbers(word: Option<&CStr>, into: &mut [u32]) -> Option<usize> {
    let word = word?.to_bytes();
    if word == b"-" {
        return Some(0);
    }
    let mut count = 0;
    for part in word.split(|byte| *byte == b',') {
        *into.get_mut(count)? = parse(part)?;
        count += 1;
    }
    Some(count)
}

fn fail(text: &[u8]) -> ! {
    say(text);
    quit(CANNOT_START as usize)
}

fn say(text: &[u8]) {
    for part in [b"quorate: ", text, b"\n"] {
        // SAFETY: the slice is there.
        unsafe { syscall(call::WRITE, 2, part.as_ptr() as usize, part.len(), 0) };
    }
}

fn quit(code: usize) -> ! {
    loop {
        // SAFETY: ends the process.
        unsafe { syscall(call::EXIT, code, 0, 0, 0) };
    }
}

// What compiled code calls by name. Machine instructions, since a loop might be compiled to a call of itself.

/// # Safety
/// As C's: `to` has room for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's word for the room.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8, options(nostack));
    }
    to
}

/// # Safety
/// As C's: `of` ends in a zero.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(of: *const c_char) -> usize {
    let rest: usize;
    // SAFETY: the caller's word for the zero.
    unsafe {
        asm!("repne scasb", inout("rcx") usize::MAX => rest, inout("rdi") of => _, in("al") 0u8, options(nostack, readonly));
    }
    // One count for each byte, the zero included.
    usize::MAX - rest - 1
}

/// # Safety
/// As C's: both have `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for index in 0..len {
        // SAFETY: the caller's word for the lengths.
        let (a, b) = unsafe { (a.add(index).read_volatile(), b.add(index).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: as memcmp's.
    unsafe { memcmp(a, b, len) }
}

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    quit(CANNOT_START as usize)
}
