//! Clocks, sleeping, interval timers, and what a program is told of the time it has used.

use crate::errno::*;
use crate::process::{self, Process};
use crate::time::{self, TimerId, Timespec};
use crate::user::{self, Plain};
use crate::wait::{Wake, Watcher};
use crate::{mm, sched, signal};
use alloc::rc::Rc;

const REALTIME: i32 = 0;
const MONOTONIC: i32 = 1;
const PROCESS_CPU: i32 = 2;
const THREAD_CPU: i32 = 3;
const MONOTONIC_RAW: i32 = 4;
const REALTIME_COARSE: i32 = 5;
const MONOTONIC_COARSE: i32 = 6;
const BOOTTIME: i32 = 7;
const REALTIME_ALARM: i32 = 8;
const BOOTTIME_ALARM: i32 = 9;
const TAI: i32 = 11;

const TIMER_ABSTIME: u64 = 1;
/// Ticks per second of `times`.
const TICKS: u64 = 100;

/// `struct timeval`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Timeval {
    sec: i64,
    usec: i64,
}
// SAFETY: repr(C), integers only.
unsafe impl Plain for Timeval {}

impl Timeval {
    fn from_ns(ns: u64) -> Self {
        Self {
            sec: (ns / 1_000_000_000) as i64,
            usec: (ns % 1_000_000_000 / 1000) as i64,
        }
    }

    fn to_ns(self) -> Result<u64> {
        if self.sec < 0 || !(0..1_000_000).contains(&self.usec) {
            return Err(EINVAL);
        }
        Ok((self.sec as u64)
            .saturating_mul(1_000_000_000)
            .saturating_add(self.usec as u64 * 1000))
    }
}

/// Processor time of the process, while time goes on by one read.
fn cpu_ns() -> u64 {
    time::read_monotonic_ns();
    sched::cpu_ns()
}

fn read(clock: i32) -> Result<u64> {
    match clock {
        REALTIME | REALTIME_COARSE | REALTIME_ALARM | TAI => Ok(time::read_realtime_ns()),
        MONOTONIC | MONOTONIC_RAW | MONOTONIC_COARSE | BOOTTIME | BOOTTIME_ALARM => {
            Ok(time::read_monotonic_ns())
        }
        PROCESS_CPU | THREAD_CPU => Ok(cpu_ns()),
        // A thread's or process's own clock (pthread_getcpuclockid).
        c if c < 0 => Ok(cpu_ns()),
        _ => Err(EINVAL),
    }
}

/// `clock_gettime`.
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn clock_gettime(clock: i32, at: u64) -> SysResult {
    user::write(at, Timespec::from_ns(read(clock)?))?;
    Ok(0)
}

/// `clock_getres`.
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn clock_getres(clock: i32, at: u64) -> SysResult {
    if !(0..=11).contains(&clock) || clock == 10 {
        return Err(EINVAL);
    }
    user::write_opt(at, Timespec { sec: 0, nsec: 1 })?;
    Ok(0)
}

/// `gettimeofday`.
///
/// # Errors
/// `EFAULT`.
pub fn gettimeofday(at: u64, zone: u64) -> SysResult {
    if at != 0 {
        user::write(at, Timeval::from_ns(time::read_realtime_ns()))?;
    }
    user::write_opt(zone, [0i32; 2])?;
    Ok(0)
}

/// `time`.
///
/// # Errors
/// `EFAULT`.
pub fn time(at: u64) -> SysResult {
    let seconds = time::read_realtime_ns() / 1_000_000_000;
    user::write_opt(at, seconds)?;
    Ok(seconds)
}

fn sleep_until(deadline_ns: u64, remainder_at: u64) -> SysResult {
    loop {
        if sched::signal_pending() {
            let left = deadline_ns.saturating_sub(time::now_ns());
            user::write_opt(remainder_at, Timespec::from_ns(left))?;
            return Err(EINTR);
        }
        if sched::block(Some(deadline_ns)) == Wake::Timeout {
            return Ok(0);
        }
    }
}

/// `nanosleep`.
///
/// # Errors
/// `EINVAL`, `EFAULT`, `EINTR`.
pub fn nanosleep(request: u64, remainder: u64) -> SysResult {
    let ns = user::read::<Timespec>(request)?.to_ns()?;
    sleep_until(time::now_ns().saturating_add(ns), remainder)
}

/// `clock_nanosleep`.
///
/// # Errors
/// `EINVAL`, `EFAULT`, `EINTR`.
pub fn clock_nanosleep(clock: i32, flags: u64, request: u64, remainder: u64) -> SysResult {
    let ns = user::read::<Timespec>(request)?.to_ns()?;
    let realtime = match clock {
        REALTIME | REALTIME_ALARM | TAI => true,
        MONOTONIC | BOOTTIME | BOOTTIME_ALARM => false,
        _ => return Err(EINVAL),
    };
    if flags & TIMER_ABSTIME != 0 {
        let deadline = if realtime {
            time::realtime_to_monotonic_ns(ns)
        } else {
            ns
        };
        return sleep_until(deadline, 0);
    }
    sleep_until(time::now_ns().saturating_add(ns), remainder)
}

/// ITIMER_REAL of a process. The profiling timers would need interrupts, and are refused.
#[derive(Default)]
pub struct RealTimer {
    armed: Option<(TimerId, u64)>,
    interval_ns: u64,
}

impl RealTimer {
    /// Not armed.
    pub const fn new() -> Self {
        Self {
            armed: None,
            interval_ns: 0,
        }
    }

    /// Stops it.
    pub fn disarm(&mut self) {
        if let Some((id, _)) = self.armed.take() {
            time::cancel(id);
        }
    }
}

/// Rings for the process with this id; it is disarmed when that ends.
struct Alarm(u32);

impl Watcher for Alarm {
    fn notify(&self) {
        let Some(process) = process::find(self.0) else {
            return;
        };
        let interval = {
            let mut timer = process.alarm.borrow_mut();
            timer.armed = None;
            timer.interval_ns
        };
        if interval > 0 {
            arm(process, interval, interval);
        }
        signal::send_from_kernel(process, signal::number::ALRM);
    }
}

fn arm(process: &Process, after_ns: u64, interval_ns: u64) {
    let mut timer = process.alarm.borrow_mut();
    timer.disarm();
    timer.interval_ns = interval_ns;
    if after_ns > 0 {
        let deadline = time::now_ns().saturating_add(after_ns);
        let alarm = Rc::new(Alarm(process.pid.get()));
        timer.armed = Some((time::arm(deadline, alarm), deadline));
    }
}

fn remaining() -> (u64, u64) {
    let timer = process::current().alarm.borrow();
    let left = timer.armed.map_or(0, |(_, deadline)| {
        deadline.saturating_sub(time::now_ns()).max(1)
    });
    (left, timer.interval_ns)
}

fn write_itimer(at: u64, (left, interval): (u64, u64)) -> Result<()> {
    if at == 0 {
        return Ok(());
    }
    user::write(at, Timeval::from_ns(interval))?;
    user::write(at + 16, Timeval::from_ns(left))
}

/// `getitimer`.
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn getitimer(which: u64, at: u64) -> SysResult {
    match which {
        0 => write_itimer(at, remaining())?,
        1 | 2 => write_itimer(at, (0, 0))?,
        _ => return Err(EINVAL),
    }
    Ok(0)
}

/// `setitimer`.
///
/// # Errors
/// `EINVAL`, `EFAULT`; `ENOSYS` for arming a profiling timer.
pub fn setitimer(which: u64, new: u64, old: u64) -> SysResult {
    if which > 2 {
        return Err(EINVAL);
    }
    let (interval, first): (Timeval, Timeval) = if new == 0 {
        Default::default()
    } else {
        (user::read(new)?, user::read(new + 16)?)
    };
    let (interval, first) = (interval.to_ns()?, first.to_ns()?);
    if which != 0 {
        if first != 0 {
            return Err(ENOSYS);
        }
        write_itimer(old, (0, 0))?;
        return Ok(0);
    }
    write_itimer(old, remaining())?;
    arm(process::current(), first, interval);
    Ok(0)
}

/// `alarm`.
///
/// # Errors
/// None.
pub fn alarm(seconds: u64) -> SysResult {
    let (left, _) = remaining();
    arm(
        process::current(),
        (seconds & 0xffff_ffff) * 1_000_000_000,
        0,
    );
    Ok(left.div_ceil(1_000_000_000))
}

/// Writes a `struct rusage`: processor time and memory; the rest is zero, as for a process that never faulted or switched.
///
/// # Errors
/// `EFAULT`.
pub fn write_usage(at: u64, cpu_ns: u64, resident: u64) -> Result<()> {
    let mut usage = [0u64; 18];
    let time = Timeval::from_ns(cpu_ns);
    usage[0] = time.sec as u64;
    usage[1] = time.usec as u64;
    usage[4] = resident / 1024;
    user::write(at, usage)
}

/// `getrusage`.
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn getrusage(who: i32, at: u64) -> SysResult {
    match who {
        0 | 1 => {
            let (_, resident) = mm::size_of(mm::current_space());
            write_usage(at, cpu_ns(), resident)?;
        }
        -1 => write_usage(at, process::current().children_cpu_ns.get(), 0)?,
        _ => return Err(EINVAL),
    }
    Ok(0)
}

/// `times`.
///
/// # Errors
/// `EFAULT`.
pub fn times(at: u64) -> SysResult {
    let ticks = |ns: u64| ns / (1_000_000_000 / TICKS);
    let children = process::current().children_cpu_ns.get();
    user::write_opt(at, [ticks(cpu_ns()), 0, ticks(children), 0])?;
    Ok(time::read_monotonic_ns() / (1_000_000_000 / TICKS))
}
