//! What parent and child have in common, and what not.

use crate::*;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::Ordering::SeqCst;

static mut GLOBAL: u32 = 1;

fn global() -> u32 {
    // SAFETY: only one thread uses the variable.
    unsafe { (&raw const GLOBAL).read_volatile() }
}

fn set_global(value: u32) {
    // SAFETY: only one thread uses the variable.
    unsafe { (&raw mut GLOBAL).write_volatile(value) };
}

pub fn memory() {
    check("private memory is copied", || {
        let mut heap = vec![5u8; 3 << 20];
        let mut stack = [6u8; 5000];
        in_child(|| {
            same!((global(), heap[2 << 20], stack[4000]), (1, 5, 6));
            set_global(2);
            heap[2 << 20] = 55;
            stack[4000] = 66;
            let more = vec![1u8; 1 << 20];
            same!(more[1000], 1);
            Ok(())
        })?;
        same!((global(), heap[2 << 20], stack[4000]), (1, 5, 6));
        let pid = child(|| i32::from(heap[2 << 20]))?;
        heap[2 << 20] = 7;
        stack[4000] = 8;
        same!(std::hint::black_box(stack)[4000], 8);
        same!(status_of(pid)?, 5 << 8);
        Ok(())
    });
    check("shared memory is shared, over generations", || {
        let words = shared_words()?;
        words[0].store(1, SeqCst);
        in_child(|| {
            same!(words[0].swap(2, SeqCst), 1);
            in_child(|| {
                same!(words[0].swap(3, SeqCst), 2);
                words[1023].store(4, SeqCst);
                Ok(())
            })
        })?;
        same!((words[0].load(SeqCst), words[1023].load(SeqCst)), (3, 4));
        // Pages that nobody has touched before the fork.
        // SAFETY: the mapping has 4 MiB, and the byte lies in it.
        unsafe {
            let at = mmap(
                null_mut(),
                4 << 20,
                PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS,
                -1,
                0,
            );
            let byte = at.cast::<u8>().add(3 << 20);
            in_child(|| {
                byte.write_volatile(9);
                Ok(())
            })?;
            same!(byte.read_volatile(), 9);
            must(munmap(at, 4 << 20))?;
        }
        Ok(())
    });
    // SAFETY: the mappings have 8192 bytes, and the bytes lie in them; `byte` takes a result.
    check("mapped files", || unsafe {
        let fd = anonymous_file("mapped")?;
        must(ftruncate(fd, 8192))?;
        let map = |flags| mmap(null_mut(), 8192, PROT_READ | PROT_WRITE, flags, fd, 0).cast::<u8>();
        let (shared, private) = (map(MAP_SHARED), map(MAP_PRIVATE));
        // Its own from here on.
        private.write_volatile(0);
        in_child(|| {
            shared.write_volatile(1);
            private.write_volatile(2);
            Ok(())
        })?;
        same!((shared.read_volatile(), private.read_volatile()), (1, 0));
        in_child(|| {
            must(ftruncate(fd, 4096))?;
            must(ftruncate(fd, 8192))?;
            Ok(())
        })?;
        shared.add(5000).write_volatile(3);
        let mut byte = 0u8;
        same!(must(pread(fd, (&raw mut byte).cast(), 1, 5000))?, 1);
        same!(byte, 3);
        close(fd);
        Ok(())
    });
    // SAFETY: the page is mapped anew; the byte beyond the break is the child's own.
    check("protection and the break are each one's own", || unsafe {
        let page = mmap(
            null_mut(),
            4096,
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS,
            -1,
            0,
        );
        let before = sbrk(0);
        in_child(|| {
            must(mprotect(page, 4096, PROT_NONE))?;
            let top = sbrk(1 << 16);
            top.cast::<u8>().write_volatile(1);
            Ok(())
        })?;
        page.cast::<u8>().write_volatile(1);
        same!(sbrk(0), before);
        must(munmap(page, 4096))?;
        Ok(())
    });
}

pub fn descriptors() {
    check("a pipe ends with its last writer", || {
        let (read_end, write_end) = pipe_pair()?;
        let mut pids = Vec::new();
        for i in 0..3u8 {
            pids.push(child(|| {
                write_bytes(write_end, &[b'a' + i; 100]);
                0
            })?);
        }
        close(write_end);
        same!(read_all(read_end)?.len(), 300);
        for pid in pids {
            same!(status_of(pid)?, 0);
        }
        Ok(())
    });
    check("a megabyte through a pipe", || {
        let (read_end, write_end) = pipe_pair()?;
        let pid = child(|| {
            close(read_end);
            // SAFETY: the descriptor is given away: nobody else closes it in this process.
            let mut out = unsafe { std::fs::File::from_raw_fd(write_end) };
            let data: Vec<u8> = (0..1u32 << 20).map(|i| (i >> 8) as u8).collect();
            i32::from(out.write_all(&data).is_err())
        })?;
        close(write_end);
        let data = read_all(read_end)?;
        same!(data.len(), 1 << 20);
        holds!(data.iter().enumerate().all(|(i, b)| *b == (i >> 8) as u8));
        same!(status_of(pid)?, 0);
        Ok(())
    });
    check("nobody reads: SIGPIPE and EPIPE", || {
        let (read_end, write_end) = pipe_pair()?;
        close(read_end);
        let pid = child(|| {
            default_action(SIGPIPE);
            write_bytes(write_end, b"x");
            0
        })?;
        same!(status_of(pid)?, SIGPIPE);
        in_child(|| {
            ignore(SIGPIPE);
            same!(sys(write_bytes(write_end, b"x")), Err(EPIPE));
            Ok(())
        })?;
        // The last reader is a child that goes while the parent writes.
        let (read_end, write_two) = pipe_pair()?;
        let pid = child(|| {
            close(write_two);
            i32::from(await_byte(read_end).is_err())
        })?;
        close(read_end);
        in_child(|| {
            ignore(SIGPIPE);
            let block = [0u8; 4096];
            loop {
                match sys(write_bytes(write_two, &block)) {
                    Ok(_) => {}
                    other => {
                        same!(other, Err(EPIPE));
                        return Ok(());
                    }
                }
            }
        })?;
        same!(status_of(pid)?, 0);
        close(write_end);
        close(write_two);
        Ok(())
    });
    check(
        "an open file's position is common, a table's slots are not",
        || {
            let fd = anonymous_file("position")?;
            // SAFETY: the file owns the descriptor; the child that closes it by number does not use
            // the file again.
            let mut file = unsafe { std::fs::File::from_raw_fd(fd) };
            file.write_all(b"0123456789").map_err(|e| e.to_string())?;
            file.seek(SeekFrom::Start(2)).map_err(|e| e.to_string())?;
            in_child(|| {
                let mut part = [0u8; 3];
                file.read_exact(&mut part).map_err(|e| e.to_string())?;
                same!(&part, b"234");
                must(dup2(fd, 77))?;
                must(fcntl_number(fd, F_SETFL, O_APPEND))?;
                must(close(fd))?;
                Ok(())
            })?;
            same!(file.stream_position().map_err(|e| e.to_string())?, 5);
            holds!(must(fcntl_number(fd, F_GETFL, 0))? as i32 & O_APPEND != 0);
            same!(sys(fcntl_number(77, F_GETFD, 0)), Err(EBADF));
            Ok(())
        },
    );
    // SAFETY: every pointer is to a local that outlives its call; the children leave through
    // `_exit`, and share nothing that they change.
    check("socket pairs and eventfds", || unsafe {
        let mut pair = [0; 2];
        must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair.as_mut_ptr()))?;
        let event = must(eventfd(0, 0))? as i32;
        let pid = child(|| {
            let mut byte = 0u8;
            close(pair[0]);
            read(pair[1], (&raw mut byte).cast(), 1);
            byte += 1;
            write(pair[1], (&raw const byte).cast(), 1);
            let seven = 7u64;
            write(event, (&raw const seven).cast(), 8);
            0
        })?;
        close(pair[1]);
        must(write_bytes(pair[0], b"a"))?;
        let mut value = 0u64;
        must(read(event, (&raw mut value).cast(), 8))?;
        same!(value, 7);
        same!(read_all(pair[0])?, b"b");
        same!(status_of(pid)?, 0);
        close(event);
        Ok(())
    });
    check("a listening socket with workers", || {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
        let address = listener.local_addr().map_err(|e| e.to_string())?;
        let mut workers = Vec::new();
        for _ in 0..3 {
            workers.push(child(|| {
                for _ in 0..4 {
                    let Ok((mut stream, _)) = listener.accept() else {
                        return 1;
                    };
                    let mut byte = [0u8; 1];
                    if stream.read_exact(&mut byte).is_err() || stream.write_all(&byte).is_err() {
                        return 2;
                    }
                }
                0
            })?);
        }
        for i in 0..12u8 {
            let mut stream = TcpStream::connect(address).map_err(|e| e.to_string())?;
            stream.write_all(&[i]).map_err(|e| e.to_string())?;
            let mut reply = Vec::new();
            stream.read_to_end(&mut reply).map_err(|e| e.to_string())?;
            same!(reply, [i]);
        }
        for pid in workers {
            same!(status_of(pid)?, 0);
        }
        Ok(())
    });
    check("an epoll set for each worker", || {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
        let address = listener.local_addr().map_err(|e| e.to_string())?;
        listener.set_nonblocking(true).map_err(|e| e.to_string())?;
        let words = shared_words()?;
        let mut workers = Vec::new();
        for _ in 0..2 {
            // SAFETY: `event` outlives the calls.
            workers.push(child(|| unsafe {
                let set = epoll_create1(0);
                let mut event = epoll_event {
                    events: EPOLLIN as u32,
                    u64: 1,
                };
                epoll_ctl(set, EPOLL_CTL_ADD, listener.as_raw_fd(), &mut event);
                while words[0].load(SeqCst) < 10 {
                    if epoll_wait(set, &mut event, 1, 1) == 1
                        && let Ok((mut stream, _)) = listener.accept()
                    {
                        let _ = stream.set_nonblocking(false);
                        let _ = stream.write_all(b"hi");
                        words[0].fetch_add(1, SeqCst);
                    }
                }
                0
            })?);
        }
        for _ in 0..10 {
            let mut stream = TcpStream::connect(address).map_err(|e| e.to_string())?;
            let mut reply = Vec::new();
            stream.read_to_end(&mut reply).map_err(|e| e.to_string())?;
            same!(reply, b"hi");
        }
        for pid in workers {
            same!(status_of(pid)?, 0);
        }
        Ok(())
    });
    // SAFETY: `event` outlives the calls.
    check("a child that closes does not unregister", || unsafe {
        let (read_end, write_end) = pipe_pair()?;
        let set = must(epoll_create1(0))? as i32;
        let mut event = epoll_event {
            events: EPOLLIN as u32,
            u64: 5,
        };
        must(epoll_ctl(set, EPOLL_CTL_ADD, read_end, &mut event))?;
        in_child(|| {
            must(close(read_end))?;
            Ok(())
        })?;
        give_byte(write_end);
        event.u64 = 0;
        same!(must(epoll_wait(set, &mut event, 1, 1000))?, 1);
        same!({ event.u64 }, 5);
        close(set);
        close(read_end);
        close(write_end);
        Ok(())
    });
}

pub fn locks() {
    // SAFETY: the locks outlive the calls.
    check("record locks are a process's, and go with it", || unsafe {
        let fd = anonymous_file("locks")?;
        let lock = |kind: i32| flock {
            l_type: kind as i16,
            l_whence: 0,
            l_start: 10,
            l_len: 5,
            l_pid: 0,
        };
        must(fcntl(fd, F_SETLK, &lock(F_WRLCK)))?;
        let me = getpid();
        in_child(|| {
            let mut probe = lock(F_WRLCK);
            must(fcntl(fd, F_GETLK, &mut probe))?;
            same!((probe.l_type, probe.l_pid), (F_WRLCK as i16, me));
            same!(sys(fcntl(fd, F_SETLK, &lock(F_RDLCK))), Err(EAGAIN));
            // Closing it here takes nothing from the parent.
            close(fd);
            Ok(())
        })?;
        let (read_end, write_end) = pipe_pair()?;
        let pid = child(|| {
            fcntl(fd, F_SETLKW, &lock(F_WRLCK));
            give_byte(write_end);
            0
        })?;
        let mut status = 0;
        same!(waitpid(pid, &mut status, WNOHANG), 0);
        must(fcntl(fd, F_SETLK, &lock(F_UNLCK)))?;
        await_byte(read_end)?;
        same!(status_of(pid)?, 0);
        // The child's lock has gone with it.
        must(fcntl(fd, F_SETLK, &lock(F_WRLCK)))?;
        close(fd);
        close(read_end);
        close(write_end);
        Ok(())
    });
    // SAFETY: the semaphore and the mutex lie in shared memory that is never unmapped, apart from
    // each other, and are initialised before their use.
    check("semaphores and mutexes between processes", || unsafe {
        let words = shared_words()?;
        let semaphore = (&raw const words[0]).cast::<sem_t>().cast_mut();
        let mutex = (&raw const words[64]).cast::<pthread_mutex_t>().cast_mut();
        must(sem_init(semaphore, 1, 0))?;
        let mut attributes: pthread_mutexattr_t = std::mem::zeroed();
        pthread_mutexattr_init(&mut attributes);
        pthread_mutexattr_setpshared(&mut attributes, PTHREAD_PROCESS_SHARED);
        pthread_mutex_init(mutex, &attributes);
        let mut pids = Vec::new();
        for _ in 0..4 {
            pids.push(child(|| {
                sem_wait(semaphore);
                for i in 0..200 {
                    pthread_mutex_lock(mutex);
                    let value = words[200].load(SeqCst);
                    if i % 20 == 0 {
                        sched_yield();
                    }
                    words[200].store(value + 1, SeqCst);
                    pthread_mutex_unlock(mutex);
                }
                0
            })?);
        }
        for _ in 0..4 {
            must(sem_post(semaphore))?;
        }
        for pid in pids {
            same!(status_of(pid)?, 0);
        }
        same!(words[200].load(SeqCst), 800);
        Ok(())
    });
    // SAFETY: the mutex lies in shared memory that is never unmapped, and is initialised before its
    // use.
    check("a robust mutex whose owner's process died", || unsafe {
        let words = shared_words()?;
        let mutex = (&raw const words[0]).cast::<pthread_mutex_t>().cast_mut();
        let mut attributes: pthread_mutexattr_t = std::mem::zeroed();
        pthread_mutexattr_init(&mut attributes);
        pthread_mutexattr_setpshared(&mut attributes, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setrobust(&mut attributes, PTHREAD_MUTEX_ROBUST);
        pthread_mutex_init(mutex, &attributes);
        let (read_end, write_end) = pipe_pair()?;
        let pid = child(|| {
            pthread_mutex_lock(mutex);
            give_byte(write_end);
            pause();
            0
        })?;
        await_byte(read_end)?;
        let killer = child(|| {
            usleep(5000);
            kill(pid, SIGKILL)
        })?;
        same!(pthread_mutex_lock(mutex), EOWNERDEAD);
        pthread_mutex_consistent(mutex);
        pthread_mutex_unlock(mutex);
        same!(status_of(pid)?, SIGKILL);
        same!(status_of(killer)?, 0);
        close(read_end);
        close(write_end);
        Ok(())
    });
    // SAFETY: the word is a static.
    check("private futexes of two processes are two", || unsafe {
        static WORD: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let word = (&raw const WORD).cast::<u32>();
        let pid = child(|| {
            let patience = timespec {
                tv_sec: 0,
                tv_nsec: 20_000_000,
            };
            // Nobody wakes it: the parent's futex at this address is another.
            let result = syscall(
                SYS_futex,
                word,
                FUTEX_WAIT | FUTEX_PRIVATE_FLAG,
                0,
                &patience,
            );
            i32::from(!(result == -1 && errno() == ETIMEDOUT))
        })?;
        sched_yield();
        same!(
            must(syscall(
                SYS_futex,
                word,
                FUTEX_WAKE | FUTEX_PRIVATE_FLAG,
                10
            ))?,
            0
        );
        same!(status_of(pid)?, 0);
        Ok(())
    });
}
