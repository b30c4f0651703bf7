//! Clocks, sleeping, and timeouts.

use guest_programs::plain::{close, epoll_create1, pipe_ends, timerfd_create, write_bytes};
use guest_programs::*;
use libc::*;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::time::{Duration, Instant, SystemTime};

fn now(clock: i32) -> i64 {
    // SAFETY: a C structure of numbers, for which zeroes are a value.
    let mut at: timespec = unsafe { zeroed() };
    // The call itself: natively the C library would not make one.
    // SAFETY: `at` takes the result.
    unsafe { syscall(SYS_clock_gettime, clock, &mut at) };
    at.tv_sec * 1_000_000_000 + at.tv_nsec
}

fn spec(ns: i64) -> timespec {
    timespec {
        tv_sec: ns / 1_000_000_000,
        tv_nsec: ns % 1_000_000_000,
    }
}

fn sleep_for(tv_sec: i64, tv_nsec: i64) -> i32 {
    // SAFETY: the structure outlives the call, and no rest of the time is asked for.
    unsafe { nanosleep(&timespec { tv_sec, tv_nsec }, null_mut()) }
}

fn sleep_until(clock: i32, ns: i64) {
    // SAFETY: the structure outlives the call.
    unsafe { syscall(SYS_clock_nanosleep, clock, TIMER_ABSTIME, &spec(ns), 0) };
}

fn stamp() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// What `body` takes must be at least `least_ms`, and not much more (the host may be busy).
fn takes(least_ms: u64, body: impl FnOnce()) -> Outcome {
    let start = Instant::now();
    body();
    let took = start.elapsed();
    holds!(
        took >= Duration::from_millis(least_ms),
        "took {took:?}, not {least_ms} ms"
    );
    holds!(
        took < Duration::from_millis(least_ms + 1500),
        "took {took:?}, not {least_ms} ms"
    );
    Ok(())
}

fn main() {
    check("monotonic clocks do not go back", || {
        for clock in [CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME] {
            let mut last = now(clock);
            for _ in 0..20_000 {
                let next = now(clock);
                holds!(next >= last);
                last = next;
            }
        }
        let mut last = Instant::now();
        for _ in 0..20_000 {
            let next = Instant::now();
            holds!(next >= last);
            last = next;
        }
        Ok(())
    });
    check("the wall clock is of this age", || {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_err(|e| e.to_string())?;
        holds!(since.as_secs() > 1_750_000_000);
        // SAFETY: no place for the result is given.
        let seconds = unsafe { time(null_mut()) };
        holds!((seconds - since.as_secs() as i64).abs() <= 1);
        // SAFETY: a C structure of numbers, for which zeroes are a value.
        let mut value: timeval = unsafe { zeroed() };
        // SAFETY: `value` takes the result.
        unsafe { gettimeofday(&mut value, null_mut()) };
        holds!((value.tv_sec - seconds).abs() <= 1);
        holds!((now(CLOCK_REALTIME_COARSE) / 1_000_000_000 - seconds).abs() <= 1);
        Ok(())
    });
    check("unknown clocks", || {
        // SAFETY: a C structure of numbers, for which zeroes are a value.
        let mut at: timespec = unsafe { zeroed() };
        same!(
            // SAFETY: `at` would take a result.
            sys(unsafe { syscall(SYS_clock_gettime, 77, &mut at) }),
            Err(EINVAL)
        );
        same!(
            // SAFETY: `at` takes the result.
            sys(unsafe { syscall(SYS_clock_getres, CLOCK_MONOTONIC, &mut at) }),
            Ok(0)
        );
        same!(sys(sleep_for(0, 1_000_000_000)), Err(EINVAL));
        same!(sys(sleep_for(-1, 0)), Err(EINVAL));
        Ok(())
    });
    check("nanosleep", || {
        for ms in [1, 10, 50, 120] {
            takes(ms, || std::thread::sleep(Duration::from_millis(ms)))?;
        }
        takes(0, || std::thread::sleep(Duration::ZERO))
    });
    check("clock_nanosleep until a time", || {
        for clock in [CLOCK_MONOTONIC, CLOCK_REALTIME] {
            takes(40, || sleep_until(clock, now(clock) + 40_000_000))?;
            let past = now(clock) - 1_000_000_000;
            takes(0, || sleep_until(clock, past))?;
        }
        Ok(())
    });
    check("threads sleep side by side", || {
        let order = std::sync::Mutex::new(Vec::new());
        takes(500, || {
            std::thread::scope(|scope| {
                for i in [3u64, 1, 2, 5, 4] {
                    let order = &order;
                    scope.spawn(move || {
                        std::thread::sleep(Duration::from_millis(100 * i));
                        order.lock().unwrap_or_else(|e| e.into_inner()).push(i);
                    });
                }
            });
        })?;
        let mut woken = order.into_inner().map_err(|e| e.to_string())?;
        // On a busy host those that woke close together may overtake each other.
        woken.sort_unstable();
        same!(woken, [1, 2, 3, 4, 5]);
        Ok(())
    });
    check("waiting busily for the clock makes progress", || {
        takes(100, || {
            let end = now(CLOCK_MONOTONIC) + 100_000_000;
            while now(CLOCK_MONOTONIC) < end {}
        })?;
        takes(50, || {
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(50) {
                std::hint::spin_loop();
            }
        })?;
        // The time stamp counter too.
        takes(0, || {
            let first = stamp();
            for _ in 0..1000 {
                std::hint::black_box(stamp());
            }
            assert!(stamp() > first);
        })
    });
    check("a thread that waits busily lets others run", || {
        let flag = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(30));
                flag.store(true, std::sync::atomic::Ordering::SeqCst);
            });
            while !flag.load(std::sync::atomic::Ordering::SeqCst) {
                now(CLOCK_MONOTONIC);
            }
        });
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives the call.
    check("timerfd", || unsafe {
        let fd = must(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK))? as i32;
        let mut count = 0u64;
        let mut get = || sys(read(fd, (&raw mut count).cast(), 8)).map(|_| count);
        same!(get(), Err(EAGAIN));
        let every = itimerspec {
            it_interval: spec(10_000_000),
            it_value: spec(20_000_000),
        };
        must(timerfd_settime(fd, 0, &every, null_mut()))?;
        let mut wait = pollfd {
            fd,
            events: POLLIN,
            revents: 0,
        };
        takes(15, || assert_eq!(poll(&mut wait, 1, 5000), 1))?;
        holds!(get().is_ok_and(|n| n >= 1));
        std::thread::sleep(Duration::from_millis(45));
        let seen = get();
        holds!(seen.is_ok_and(|n| n >= 3), "{seen:?}");
        let mut left: itimerspec = zeroed();
        must(timerfd_gettime(fd, &mut left))?;
        same!(left.it_interval.tv_nsec, 10_000_000);
        holds!(left.it_value.tv_nsec <= 10_000_000 && left.it_value.tv_nsec > 0);
        must(timerfd_settime(fd, 0, &zeroed(), null_mut()))?;
        std::thread::sleep(Duration::from_millis(20));
        same!(get(), Err(EAGAIN));
        let at = itimerspec {
            it_interval: spec(0),
            it_value: spec(now(CLOCK_MONOTONIC) + 30_000_000),
        };
        must(timerfd_settime(fd, TFD_TIMER_ABSTIME, &at, null_mut()))?;
        takes(25, || assert_eq!(poll(&mut wait, 1, 5000), 1))?;
        close(fd);
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives the call.
    check("timeouts of poll, select, epoll_wait", || unsafe {
        let ends = pipe_ends()?;
        let mut wait = pollfd {
            fd: ends[0],
            events: POLLIN,
            revents: 0,
        };
        takes(40, || assert_eq!(poll(&mut wait, 1, 40), 0))?;
        takes(0, || assert_eq!(poll(&mut wait, 1, 0), 0))?;
        takes(30, || assert_eq!(poll(null_mut(), 0, 30), 0))?;
        takes(40, || {
            let mut set: fd_set = zeroed();
            FD_SET(ends[0], &mut set);
            let mut limit = timeval {
                tv_sec: 0,
                tv_usec: 40_000,
            };
            assert_eq!(
                select(ends[0] + 1, &mut set, null_mut(), null_mut(), &mut limit),
                0
            );
            assert_eq!((limit.tv_sec, limit.tv_usec), (0, 0));
            assert!(!FD_ISSET(ends[0], &set));
        })?;
        let epoll = epoll_create1(0);
        let mut event = epoll_event {
            events: EPOLLIN as u32,
            u64: 7,
        };
        epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &mut event);
        takes(40, || assert_eq!(epoll_wait(epoll, &mut event, 1, 40), 0))?;
        write_bytes(ends[1], b"x");
        takes(0, || assert_eq!(epoll_wait(epoll, &mut event, 1, 4000), 1))?;
        for fd in [ends[0], ends[1], epoll] {
            close(fd);
        }
        Ok(())
    });
    check("processor time", || {
        let before = now(CLOCK_PROCESS_CPUTIME_ID);
        std::thread::sleep(Duration::from_millis(100));
        let slept = now(CLOCK_PROCESS_CPUTIME_ID) - before;
        holds!(
            slept < 80_000_000,
            "{slept} ns of processor time while asleep"
        );
        // SAFETY: a C structure of numbers, for which zeroes are a value.
        let mut usage: rusage = unsafe { zeroed() };
        // SAFETY: `usage` takes the result.
        must(unsafe { getrusage(RUSAGE_SELF, &mut usage) })?;
        Ok(())
    });
    finish();
}
