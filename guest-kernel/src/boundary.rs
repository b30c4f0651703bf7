//! Boundaries: the only place where the kernel meets the world (R1). Outputs are flushed into the queues, the sync device's port is
//! rung once, and only when that returns are used rings and time looked at.

use crate::arch;
use crate::{drivers, fingerprint, net, sched, time};
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use quorate_abi::sync::{
    FLAG_TERMINATE, MESSAGE_LEN, SYNC_PORT, SyncPage, WAIT_FOREVER, WAIT_NONE, op,
};

/// System calls after which outputs are flushed and inputs taken even if the program never waits.
pub const CALLS_PER_BOUNDARY: u32 = 1024;

static PAGE: AtomicU64 = AtomicU64::new(0);
static CALLS: AtomicU32 = AtomicU32::new(0);
static TERMINATING: AtomicBool = AtomicBool::new(false);
static IDLE_NS: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Remembers where the sync page is.
pub fn init(sync_page: u64) {
    PAGE.store(sync_page, Ordering::Relaxed);
}

fn page() -> *mut SyncPage {
    PAGE.load(Ordering::Relaxed) as *mut SyncPage
}

/// Nanoseconds of journal time that passed while the program had nothing to do.
pub fn idle_ns() -> u64 {
    IDLE_NS.load(Ordering::Relaxed)
}

/// Boundaries completed, which is the number of the next one.
#[inline]
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// One boundary. `wait_until_ns`: sleep until then unless an input comes.
fn cross(wait_until_ns: u64) {
    net::flush();
    drivers::before_boundary();
    let before = time::now_ns();
    let (digest, calls) = fingerprint::current();
    let page = page();
    // SAFETY: the page is mapped, shared with the VMM only, and the VMM reads and writes it only while the vCPU is stopped
    // in `out`. The asm block is a compiler barrier for memory.
    let (monotonic, realtime, flags) = unsafe {
        (&raw mut (*page).op).write_volatile(op::SYNC);
        (&raw mut (*page).wait_until_ns).write_volatile(wait_until_ns);
        (&raw mut (*page).fingerprint).write_volatile(digest);
        (&raw mut (*page).syscalls).write_volatile(calls);
        arch::outl(SYNC_PORT, 1);
        (
            (&raw const (*page).monotonic_ns).read_volatile(),
            (&raw const (*page).realtime_ns).read_volatile(),
            (&raw const (*page).flags).read_volatile(),
        )
    };
    COUNT.fetch_add(1, Ordering::Relaxed);
    CALLS.store(0, Ordering::Relaxed);
    time::set(monotonic, realtime);
    if wait_until_ns != WAIT_NONE {
        IDLE_NS.fetch_add(time::now_ns() - before, Ordering::Relaxed);
    }
    drivers::after_boundary();
    net::run_timers();
    time::fire_due();
    sched::wake_sleepers(time::now_ns());
    if flags & FLAG_TERMINATE != 0 && !TERMINATING.swap(true, Ordering::Relaxed) {
        crate::signal::terminate();
    }
}

/// One boundary that does not wait: flushes outputs, takes inputs and time. Call it when an output queue is full.
pub fn sync_now() {
    if cfg!(test) {
        return;
    }
    cross(WAIT_NONE);
}

/// Nothing can run: waits for the world.
pub fn idle() {
    let deadlines = [
        sched::next_deadline_ns(),
        time::next_deadline_ns(),
        net::next_deadline_ns(),
    ];
    let deadline = deadlines
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(WAIT_FOREVER);
    // A deadline that has passed already must not read as "no wait" by accident, nor as a wait.
    let now = time::now_ns();
    cross(if deadline <= now { WAIT_NONE } else { deadline });
}

/// Called at the end of each system call.
#[inline]
pub fn after_call() {
    let calls = CALLS.fetch_add(1, Ordering::Relaxed);
    if calls >= CALLS_PER_BOUNDARY || time::stale() {
        cross(WAIT_NONE);
    }
}

/// The program has ended: tells the VMM with the wait status that `wait4` would report. Never returns.
pub fn exit_program(status: u64) -> ! {
    crate::fs::disk::shut_down();
    // What it wrote last goes out first, with the same boundary.
    net::close_all();
    net::flush();
    drivers::before_boundary();
    let (digest, calls) = fingerprint::current();
    let page = page();
    loop {
        // SAFETY: as in `cross`.
        unsafe {
            (&raw mut (*page).op).write_volatile(op::EXIT);
            (&raw mut (*page).arg0).write_volatile(status);
            (&raw mut (*page).wait_until_ns).write_volatile(WAIT_FOREVER);
            (&raw mut (*page).fingerprint).write_volatile(digest);
            (&raw mut (*page).syscalls).write_volatile(calls);
            arch::outl(SYNC_PORT, 1);
        }
    }
}

struct Message {
    at: usize,
}

impl Write for Message {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        for byte in s.bytes() {
            if self.at < MESSAGE_LEN {
                // SAFETY: inside the message field of the sync page.
                unsafe {
                    (&raw mut (*page()).message)
                        .cast::<u8>()
                        .add(self.at)
                        .write_volatile(byte)
                };
                self.at += 1;
            }
        }
        Ok(())
    }
}

/// The kernel found itself broken: tells the VMM why. Concerns this replica only.
pub fn panic(message: core::fmt::Arguments<'_>) -> ! {
    if PAGE.load(Ordering::Relaxed) != 0 {
        let mut writer = Message { at: 0 };
        let _ = writer.write_fmt(message);
        // SAFETY: as in `cross`.
        unsafe {
            (&raw mut (*page()).op).write_volatile(op::PANIC);
            (&raw mut (*page()).message_len).write_volatile(writer.at as u32);
            arch::outl(SYNC_PORT, 1);
        }
    }
    loop {
        // SAFETY: a trap that the VMM sees as a crash if the port did not.
        unsafe { arch::outl(quorate_abi::sync::MONITOR_PANIC_PORT, 0xffff) };
    }
}
