//! Threads, and what they meet at. `threads exit-group` ends the process while others run; `threads main-exits` ends the first thread
//! before the others.

use guest_programs::*;
use libc::*;
use std::cell::Cell;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Condvar, Mutex, Once, RwLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const MANY: usize = 64;

static DROPPED: AtomicUsize = AtomicUsize::new(0);

struct Counted;
impl Drop for Counted {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, SeqCst);
    }
}

thread_local! {
    static LOCAL: Cell<usize> = const { Cell::new(7) };
    static DESTROYED: Counted = const { Counted };
}

fn joined<T>(handles: Vec<thread::JoinHandle<T>>) -> Result<Vec<T>, String> {
    handles
        .into_iter()
        .map(|h| h.join().map_err(|_| "a thread panicked".to_owned()))
        .collect()
}

fn threads() {
    check("64 threads: create, TLS, join, destructors", || {
        let handles = (0..MANY)
            .map(|i| {
                thread::spawn(move || {
                    DESTROYED.with(|_| ());
                    let before = LOCAL.get();
                    LOCAL.set(i);
                    thread::yield_now();
                    (before, LOCAL.get())
                })
            })
            .collect();
        let seen = joined(handles)?;
        same!(seen, (0..MANY).map(|i| (7, i)).collect::<Vec<_>>());
        same!(DROPPED.load(SeqCst), MANY);
        same!(LOCAL.get(), 7);
        Ok(())
    });
    check("1000 threads one after the other", || {
        for i in 0..1000 {
            same!(
                thread::spawn(move || i * 2)
                    .join()
                    .map_err(|_| "panicked")?,
                i * 2
            );
        }
        Ok(())
    });
    check("mutex", || {
        let counter = Arc::new(Mutex::new(0u64));
        let handles = (0..16)
            .map(|_| {
                let counter = counter.clone();
                thread::spawn(move || {
                    for i in 0..500 {
                        let mut guard = counter.lock().unwrap_or_else(|e| e.into_inner());
                        let value = *guard;
                        if i % 50 == 0 {
                            thread::yield_now();
                        }
                        *guard = value + 1;
                    }
                })
            })
            .collect();
        joined(handles)?;
        same!(*counter.lock().map_err(|e| e.to_string())?, 8000);
        Ok(())
    });
    check("condition variable: a bounded queue", || {
        let (queue, changed) = (Mutex::new(Vec::new()), Condvar::new());
        let (total, left) = (AtomicUsize::new(0), AtomicUsize::new(4 * 300));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..300usize {
                        let mut guard = queue.lock().unwrap_or_else(|e| e.into_inner());
                        while guard.len() >= 5 {
                            guard = changed.wait(guard).unwrap_or_else(|e| e.into_inner());
                        }
                        guard.push(i);
                        changed.notify_all();
                    }
                });
                scope.spawn(|| {
                    loop {
                        let mut guard = queue.lock().unwrap_or_else(|e| e.into_inner());
                        while guard.is_empty() && left.load(SeqCst) > 0 {
                            guard = changed.wait(guard).unwrap_or_else(|e| e.into_inner());
                        }
                        let Some(item) = guard.pop() else { return };
                        total.fetch_add(item, SeqCst);
                        left.fetch_sub(1, SeqCst);
                        changed.notify_all();
                    }
                });
            }
        });
        same!(total.load(SeqCst), 4 * (299 * 300 / 2));
        Ok(())
    });
    check("read-write lock, barrier, once, channel", || {
        let (lock, barrier, once) = (RwLock::new(0), Barrier::new(8), Once::new());
        let (leaders, initialized) = (AtomicU32::new(0), AtomicU32::new(0));
        let (send, receive) = mpsc::channel();
        thread::scope(|scope| {
            for i in 0..8 {
                let send = send.clone();
                let (lock, barrier, once, leaders, initialized) =
                    (&lock, &barrier, &once, &leaders, &initialized);
                scope.spawn(move || {
                    for _ in 0..50 {
                        if i % 2 == 0 {
                            *lock.write().unwrap_or_else(|e| e.into_inner()) += 1;
                        } else {
                            let _ = *lock.read().unwrap_or_else(|e| e.into_inner());
                        }
                        leaders.fetch_add(u32::from(barrier.wait().is_leader()), SeqCst);
                    }
                    once.call_once(|| {
                        initialized.fetch_add(1, SeqCst);
                    });
                    let _ = send.send(i);
                });
            }
        });
        drop(send);
        let mut got: Vec<i32> = receive.iter().collect();
        got.sort_unstable();
        same!(got, (0..8).collect::<Vec<_>>());
        same!((leaders.load(SeqCst), initialized.load(SeqCst)), (50, 1));
        same!(*lock.read().map_err(|e| e.to_string())?, 200);
        Ok(())
    });
    check("park and unpark", || {
        let worker = thread::spawn(|| {
            thread::park();
            1
        });
        thread::sleep(Duration::from_millis(5));
        worker.thread().unpark();
        same!(worker.join().map_err(|_| "panicked")?, 1);
        Ok(())
    });
    check("timed waits", || {
        let (lock, condition) = (Mutex::new(()), Condvar::new());
        let start = Instant::now();
        let guard = lock.lock().map_err(|e| e.to_string())?;
        let (_guard, result) = condition
            .wait_timeout(guard, Duration::from_millis(30))
            .map_err(|e| e.to_string())?;
        holds!(result.timed_out());
        let took = start.elapsed().as_millis();
        holds!((30..1000).contains(&took), "{took} ms");
        Ok(())
    });
    check("a panic in a thread is caught by join", || {
        std::panic::set_hook(Box::new(|_| ()));
        let result = thread::spawn(|| panic!("as intended")).join();
        let _ = std::panic::take_hook();
        let payload = result.err().ok_or("no panic")?;
        same!(payload.downcast_ref::<&str>(), Some(&"as intended"));
        Ok(())
    });
}

fn futexes() {
    fn futex(
        word: &AtomicU32,
        operation: i32,
        value: u32,
        timeout: *const timespec,
        bits: u32,
    ) -> Result<i64, i32> {
        // SAFETY: the word outlives the call; `timeout` is null or a local of the caller's.
        sys(unsafe { syscall(SYS_futex, word.as_ptr(), operation, value, timeout, 0, bits) })
    }
    check("futex: values, timeouts, bitsets", || {
        let word = AtomicU32::new(5);
        let brief = timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        same!(futex(&word, FUTEX_WAIT, 4, &brief, 0), Err(EAGAIN));
        same!(
            futex(&word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 5, &brief, 0),
            Err(ETIMEDOUT)
        );
        for clock in [CLOCK_MONOTONIC, CLOCK_REALTIME] {
            // SAFETY: a C structure of numbers, for which zeroes are a value.
            let mut at: timespec = unsafe { zeroed() };
            // SAFETY: `at` takes the result.
            unsafe { clock_gettime(clock, &mut at) };
            let start = Instant::now();
            at.tv_nsec += 30_000_000;
            if at.tv_nsec >= 1_000_000_000 {
                at = timespec {
                    tv_sec: at.tv_sec + 1,
                    tv_nsec: at.tv_nsec - 1_000_000_000,
                };
            }
            let flag = if clock == CLOCK_REALTIME {
                FUTEX_CLOCK_REALTIME
            } else {
                0
            };
            same!(
                futex(&word, FUTEX_WAIT_BITSET | flag, 5, &at, u32::MAX),
                Err(ETIMEDOUT)
            );
            let took = start.elapsed().as_millis();
            holds!((25..1000).contains(&took), "{took} ms");
        }
        same!(
            futex(&word, FUTEX_WAIT_BITSET, 5, std::ptr::null(), 0),
            Err(EINVAL)
        );
        let bad = timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000_000,
        };
        same!(futex(&word, FUTEX_WAIT, 5, &bad, 0), Err(EINVAL));
        same!(futex(&word, FUTEX_WAKE, 1, std::ptr::null(), 0), Ok(0));
        same!(
            // SAFETY: the address is not aligned: the kernel must refuse it.
            sys(unsafe {
                syscall(
                    SYS_futex,
                    word.as_ptr().cast::<u8>().wrapping_add(1),
                    FUTEX_WAKE,
                    1,
                    0,
                    0,
                    0,
                )
            }),
            Err(EINVAL)
        );
        let words = Arc::new(AtomicU32::new(0));
        let handles: Vec<_> = (0..4u32)
            .map(|i| {
                let words = words.clone();
                thread::spawn(move || futex(&words, FUTEX_WAIT_BITSET, 0, std::ptr::null(), 1 << i))
            })
            .collect();
        // A wake finds those that wait already.
        let wake = |operation, most: u32, bits, wanted: i64| {
            let mut woken = 0;
            while woken < wanted {
                woken += futex(&words, operation, most, std::ptr::null(), bits).unwrap_or(100);
                thread::yield_now();
            }
            woken
        };
        same!(wake(FUTEX_WAKE_BITSET, 100, 0b0101, 2), 2);
        same!(wake(FUTEX_WAKE, 1, 0, 1), 1);
        same!(wake(FUTEX_WAKE, 100, 0, 1), 1);
        same!(joined(handles)?, [Ok(0); 4]);
        Ok(())
    });
    // SAFETY: the mutex is never freed, and is initialised before its use.
    check("robust mutex", || unsafe {
        let mutex = Box::leak(Box::new(zeroed::<pthread_mutex_t>()));
        let mut attributes: pthread_mutexattr_t = zeroed();
        pthread_mutexattr_init(&mut attributes);
        pthread_mutexattr_setrobust(&mut attributes, PTHREAD_MUTEX_ROBUST);
        pthread_mutex_init(mutex, &attributes);
        let at = mutex as *mut pthread_mutex_t as usize;
        let lock = move || pthread_mutex_lock(at as *mut pthread_mutex_t);
        same!(thread::spawn(lock).join().map_err(|_| "panicked")?, 0);
        same!(pthread_mutex_lock(mutex), EOWNERDEAD);
        same!(pthread_mutex_consistent(mutex), 0);
        same!(pthread_mutex_unlock(mutex), 0);
        // One that waits when the owner ends.
        let (locked, wait) = mpsc::channel();
        let owner = thread::spawn(move || {
            lock();
            let _ = locked.send(());
            thread::sleep(Duration::from_millis(40));
        });
        wait.recv().map_err(|e| e.to_string())?;
        same!(pthread_mutex_lock(mutex), EOWNERDEAD);
        owner.join().map_err(|_| "panicked")?;
        pthread_mutex_unlock(mutex);
        same!(pthread_mutex_lock(mutex), ENOTRECOVERABLE);
        Ok(())
    });
    // SAFETY: the semaphore and the lock are never freed, and are initialised before their use.
    check("semaphores and spin locks", || unsafe {
        let semaphore = Box::leak(Box::new(zeroed::<sem_t>()));
        sem_init(semaphore, 0, 0);
        let at = semaphore as *mut sem_t as usize;
        let poster = thread::spawn(move || {
            for _ in 0..3 {
                thread::sleep(Duration::from_millis(2));
                sem_post(at as *mut sem_t);
            }
        });
        for _ in 0..3 {
            same!(sem_wait(semaphore), 0);
        }
        same!(sys(sem_trywait(semaphore)), Err(EAGAIN));
        poster.join().map_err(|_| "panicked")?;
        Ok(())
    });
    // SAFETY: the thread that is cancelled holds nothing.
    check("cancellation runs the destructors", || unsafe {
        extern "C" fn sleeps(_: *mut c_void) -> *mut c_void {
            // SAFETY: sleeping is a point at which a thread may be cancelled; it holds nothing.
            unsafe { libc::sleep(100) };
            null_mut()
        }
        let mut thread: pthread_t = zeroed();
        same!(
            pthread_create(&mut thread, std::ptr::null(), sleeps, null_mut()),
            0
        );
        thread::sleep(Duration::from_millis(10));
        same!(pthread_cancel(thread), 0);
        let mut result = null_mut();
        same!(pthread_join(thread, &mut result), 0);
        // PTHREAD_CANCELED
        same!(result as isize, -1);
        Ok(())
    });
}

unsafe extern "C" {
    fn pthread_cancel(thread: pthread_t) -> i32;
}

fn spin_forever() -> ! {
    loop {
        thread::yield_now();
    }
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("exit-group") => {
            for i in 0..8 {
                thread::spawn(move || {
                    if i % 2 == 0 {
                        spin_forever()
                    } else {
                        thread::sleep(Duration::from_secs(1000))
                    }
                });
            }
            thread::sleep(Duration::from_millis(10));
            println!("leaving");
            std::process::exit(5);
        }
        Some("main-exits") => {
            thread::spawn(|| {
                thread::sleep(Duration::from_millis(50));
                println!("the other thread goes on");
                std::process::exit(6);
            });
            // SAFETY: ends the thread; the others need nothing on its stack.
            unsafe { syscall(SYS_exit, 1) };
        }
        _ => {}
    }
    threads();
    futexes();
    finish();
}
