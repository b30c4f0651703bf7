//! Files and everything else that a descriptor can be, but sockets.

use guest_programs::plain::{
    close, dup2, epoll_create1, eventfd, fallocate, fcntl_number, isatty, pipe_ends, read_bytes,
    write_bytes,
};
use guest_programs::*;
use libc::*;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::mem::zeroed;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::ptr::null_mut;

fn text(error: std::io::Error) -> String {
    error.to_string()
}

fn code<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

fn regular(dir: &str) {
    let path = |name: &str| format!("{dir}/{name}");
    check("read, write, seek, append", || {
        let mut file = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path("a"))
            .map_err(text)?;
        same!(
            code(
                fs::File::options()
                    .write(true)
                    .create_new(true)
                    .open(path("a"))
            ),
            Some(EEXIST)
        );
        file.write_all(b"hello world").map_err(text)?;
        same!(file.seek(SeekFrom::Start(6)).map_err(text)?, 6);
        file.write_all(b"there").map_err(text)?;
        same!(file.seek(SeekFrom::End(-5)).map_err(text)?, 6);
        let mut rest = String::new();
        file.read_to_string(&mut rest).map_err(text)?;
        same!(rest, "there");
        same!(code(file.seek(SeekFrom::Current(-100))), Some(EINVAL));
        let mut appender = fs::File::options()
            .append(true)
            .open(path("a"))
            .map_err(text)?;
        appender.write_all(b"!").map_err(text)?;
        file.write_all_at(b"H", 0).map_err(text)?;
        appender.write_all(b"?").map_err(text)?;
        same!(fs::read(path("a")).map_err(text)?, b"Hello there!?");
        file.write_all_at(b"far", 100_000).map_err(text)?;
        same!(file.metadata().map_err(text)?.len(), 100_003);
        let mut hole = [1u8; 10];
        file.read_exact_at(&mut hole, 50_000).map_err(text)?;
        same!(hole, [0; 10]);
        file.set_len(5).map_err(text)?;
        file.set_len(8).map_err(text)?;
        same!(fs::read(path("a")).map_err(text)?, b"Hello\0\0\0");
        same!(
            code(fs::File::open(path("a")).map_err(text)?.write(b"x")),
            Some(EBADF)
        );
        Ok(())
    });
    check("stat, chmod, times", || {
        fs::write(path("s"), [0u8; 5000]).map_err(text)?;
        let stat = fs::metadata(path("s")).map_err(text)?;
        same!((stat.len(), stat.is_file(), stat.nlink()), (5000, true, 1));
        fs::set_permissions(path("s"), fs::Permissions::from_mode(0o640)).map_err(text)?;
        same!(fs::metadata(path("s")).map_err(text)?.mode(), 0o100_640);
        let file = fs::File::options()
            .write(true)
            .open(path("s"))
            .map_err(text)?;
        let when = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        file.set_modified(when).map_err(text)?;
        same!(fs::metadata(path("s")).map_err(text)?.mtime(), 1_000_000);
        same!(code(fs::metadata(path("missing"))), Some(ENOENT));
        same!(code(fs::metadata(path("s/below"))), Some(ENOTDIR));
        same!(
            code(fs::File::options().write(true).open(dir)),
            Some(EISDIR)
        );
        same!(
            code(fs::metadata("/".to_owned() + &"x".repeat(256))),
            Some(ENAMETOOLONG)
        );
        same!(code(fs::metadata("/x".repeat(2100))), Some(ENAMETOOLONG));
        Ok(())
    });
    check("rename, unlink while open", || {
        fs::write(path("one"), "1").map_err(text)?;
        fs::write(path("two"), "2").map_err(text)?;
        let two = fs::File::open(path("two")).map_err(text)?;
        fs::rename(path("one"), path("two")).map_err(text)?;
        same!(code(fs::metadata(path("one"))), Some(ENOENT));
        same!(fs::read_to_string(path("two")).map_err(text)?, "1");
        let mut byte = [0u8; 1];
        two.read_exact_at(&mut byte, 0).map_err(text)?;
        same!((byte, two.metadata().map_err(text)?.nlink()), (*b"2", 0));
        let open = fs::File::open(path("two")).map_err(text)?;
        fs::remove_file(path("two")).map_err(text)?;
        open.read_exact_at(&mut byte, 0).map_err(text)?;
        same!(byte, *b"1");
        same!(code(fs::remove_file(path("two"))), Some(ENOENT));
        same!(
            code(fs::rename(path("nothing"), path("else"))),
            Some(ENOENT)
        );
        fs::create_dir(path("d1")).map_err(text)?;
        fs::create_dir(path("d1/d2")).map_err(text)?;
        same!(code(fs::rename(path("d1"), path("d1/d2/d3"))), Some(EINVAL));
        same!(code(fs::remove_dir(path("d1"))), Some(ENOTEMPTY));
        same!(code(fs::remove_file(path("d1"))), Some(EISDIR));
        fs::rename(path("d1"), path("d9")).map_err(text)?;
        same!(fs::metadata(path("d9/d2")).map_err(text)?.is_dir(), true);
        Ok(())
    });
    check("links", || {
        fs::write(path("target"), "content").map_err(text)?;
        fs::hard_link(path("target"), path("hard")).map_err(text)?;
        same!(fs::metadata(path("hard")).map_err(text)?.nlink(), 2);
        same!(
            fs::metadata(path("hard")).map_err(text)?.ino(),
            fs::metadata(path("target")).map_err(text)?.ino()
        );
        symlink("target", path("soft")).map_err(text)?;
        same!(fs::read_to_string(path("soft")).map_err(text)?, "content");
        same!(
            fs::read_link(path("soft")).map_err(text)?,
            std::path::Path::new("target")
        );
        same!(
            fs::symlink_metadata(path("soft"))
                .map_err(text)?
                .file_type()
                .is_symlink(),
            true
        );
        symlink("loop", path("loop")).map_err(text)?;
        same!(code(fs::read(path("loop"))), Some(ELOOP));
        symlink("gone", path("dangling")).map_err(text)?;
        same!(code(fs::read(path("dangling"))), Some(ENOENT));
        fs::remove_file(path("target")).map_err(text)?;
        same!(fs::read_to_string(path("hard")).map_err(text)?, "content");
        same!(code(fs::read(path("soft"))), Some(ENOENT));
        same!(
            fs::canonicalize(path("hard"))
                .map_err(text)?
                .to_string_lossy(),
            path("hard")
        );
        Ok(())
    });
    check("directories", || {
        fs::create_dir_all(path("many/a/b/c")).map_err(text)?;
        for i in 0..300 {
            fs::write(path(&format!("many/file-{i:03}")), [0u8; 3]).map_err(text)?;
        }
        let mut names: Vec<String> = Vec::new();
        for entry in fs::read_dir(path("many")).map_err(text)? {
            names.push(
                entry
                    .map_err(text)?
                    .file_name()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
        names.sort();
        same!(
            (names.len(), names[0].as_str(), names[300].as_str()),
            (301, "a", "file-299")
        );
        // Removing while listing, as `rm -r` does.
        for entry in fs::read_dir(path("many")).map_err(text)? {
            let entry = entry.map_err(text)?;
            if entry.file_type().map_err(text)?.is_file() {
                fs::remove_file(entry.path()).map_err(text)?;
            }
        }
        fs::remove_dir_all(path("many")).map_err(text)?;
        same!(code(fs::read_dir(path("many"))), Some(ENOENT));
        let before = std::env::current_dir().map_err(text)?;
        std::env::set_current_dir(dir).map_err(text)?;
        fs::write("relative", "r").map_err(text)?;
        same!(fs::read_to_string(path("relative")).map_err(text)?, "r");
        same!(
            std::env::current_dir().map_err(text)?.to_string_lossy(),
            dir
        );
        std::env::set_current_dir(before).map_err(text)?;
        Ok(())
    });
    check("dup shares the offset, open does not", || {
        fs::write(path("dup"), "0123456789").map_err(text)?;
        let mut first = fs::File::open(path("dup")).map_err(text)?;
        let mut second = first.try_clone().map_err(text)?;
        let mut third = fs::File::open(path("dup")).map_err(text)?;
        let mut two = [0u8; 2];
        first.read_exact(&mut two).map_err(text)?;
        second.read_exact(&mut two).map_err(text)?;
        same!(two, *b"23");
        third.read_exact(&mut two).map_err(text)?;
        same!(two, *b"01");
        Ok(())
    });
    check("locks, fallocate, sync, copy", || {
        let path = path("lock");
        let file = fs::File::create(&path).map_err(text)?;
        let other = fs::File::open(&path).map_err(text)?;
        file.lock().map_err(text)?;
        same!(other.try_lock().is_err(), true);
        file.unlock().map_err(text)?;
        same!(other.try_lock().is_ok(), true);
        use std::os::fd::AsRawFd;
        same!(sys(fallocate(file.as_raw_fd(), 0, 0, 10_000)), Ok(0));
        same!(file.metadata().map_err(text)?.len(), 10_000);
        file.sync_all().map_err(text)?;
        file.sync_data().map_err(text)?;
        fs::write(&path, vec![7u8; 100_000]).map_err(text)?;
        same!(fs::copy(&path, format!("{path}2")).map_err(text)?, 100_000);
        same!(
            fs::read(format!("{path}2")).map_err(text)?,
            vec![7u8; 100_000]
        );
        Ok(())
    });
}

fn descriptors() {
    // SAFETY: the calls take numbers, an empty buffer, or a local that outlives them.
    check("fcntl, dup2, close", || unsafe {
        let fd = anonymous_file("fcntl")?;
        same!(fcntl_number(fd, F_GETFD, 0), 0);
        fcntl_number(fd, F_SETFD, FD_CLOEXEC);
        same!(fcntl_number(fd, F_GETFD, 0), FD_CLOEXEC);
        same!(
            fcntl_number(fd, F_GETFL, 0) & (O_ACCMODE | O_APPEND),
            O_RDWR
        );
        fcntl_number(fd, F_SETFL, O_APPEND | O_NONBLOCK);
        same!(
            fcntl_number(fd, F_GETFL, 0) & (O_APPEND | O_NONBLOCK),
            O_APPEND | O_NONBLOCK
        );
        same!(dup2(fd, 77), 77);
        same!(fcntl_number(77, F_GETFD, 0), 0);
        same!(fcntl_number(fd, F_DUPFD, 100), 100);
        same!(sys(dup3(fd, fd, 0)), Err(EINVAL));
        same!(dup2(fd, fd), fd);
        for fd in [fd, 77, 100] {
            same!(sys(close(fd)), Ok(0));
            same!(sys(close(fd)), Err(EBADF));
        }
        same!(sys(read(77, null_mut(), 0)), Err(EBADF));
        let lowest = dup(0);
        close(lowest);
        same!(dup(0), lowest);
        close(lowest);
        let (mut limit, mut many): (rlimit, Vec<i32>) = (zeroed(), Vec::new());
        getrlimit(RLIMIT_NOFILE, &mut limit);
        let old = limit.rlim_cur;
        limit.rlim_cur = 64;
        setrlimit(RLIMIT_NOFILE, &limit);
        let error = loop {
            match sys(dup(0)) {
                Ok(fd) => many.push(fd as i32),
                Err(error) => break error,
            }
        };
        same!((error, many.last().copied()), (EMFILE, Some(63)));
        many.iter().for_each(|fd| {
            close(*fd);
        });
        limit.rlim_cur = old;
        setrlimit(RLIMIT_NOFILE, &limit);
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives the call.
    check("pipes", || unsafe {
        let mut ends = [0i32; 2];
        must(pipe2(ends.as_mut_ptr(), O_NONBLOCK))?;
        let mut buffer = vec![0u8; 200_000];
        same!(
            sys(read(ends[0], buffer.as_mut_ptr().cast(), 1)),
            Err(EAGAIN)
        );
        same!(
            sys(write(ends[1], buffer.as_ptr().cast(), 200_000)),
            Ok(65_536)
        );
        same!(sys(write(ends[1], buffer.as_ptr().cast(), 1)), Err(EAGAIN));
        same!(
            sys(read(ends[0], buffer.as_mut_ptr().cast(), 200_000)),
            Ok(65_536)
        );
        same!(sys(lseek(ends[0], 0, SEEK_SET)), Err(ESPIPE));
        let reader = <fs::File as std::os::fd::FromRawFd>::from_raw_fd(ends[0]);
        fcntl_number(ends[0], F_SETFL, 0);
        fcntl_number(ends[1], F_SETFL, 0);
        let writer = std::thread::spawn(move || {
            let block: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
            for _ in 0..10 {
                let mut done = 0;
                while done < block.len() {
                    done +=
                        write(ends[1], block[done..].as_ptr().cast(), block.len() - done) as usize;
                }
            }
            close(ends[1]);
        });
        let mut all = Vec::new();
        { &reader }.read_to_end(&mut all).map_err(text)?;
        writer.join().map_err(|_| "panicked")?;
        same!(all.len(), 1_000_000);
        holds!(
            all.chunks(100_000)
                .all(|block| block.iter().enumerate().all(|(i, b)| *b == i as u8))
        );
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives the call.
    check("eventfd", || unsafe {
        let fd = must(eventfd(3, EFD_NONBLOCK))? as i32;
        let mut value = 0u64;
        same!(sys(read(fd, (&raw mut value).cast(), 8)), Ok(8));
        same!(value, 3);
        same!(sys(read(fd, (&raw mut value).cast(), 8)), Err(EAGAIN));
        same!(sys(read(fd, (&raw mut value).cast(), 4)), Err(EINVAL));
        for add in [1u64, 10] {
            write(fd, (&raw const add).cast(), 8);
        }
        read(fd, (&raw mut value).cast(), 8);
        same!(value, 11);
        let most = u64::MAX - 1;
        same!(sys(write(fd, (&raw const most).cast(), 8)), Ok(8));
        same!(sys(write(fd, (&raw const value).cast(), 8)), Err(EAGAIN));
        close(fd);
        let semaphore = eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK);
        for expected in [Ok(8), Ok(8), Err(EAGAIN)] {
            same!(sys(read(semaphore, (&raw mut value).cast(), 8)), expected);
        }
        close(semaphore);
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives the call.
    check("epoll: level, edge, one-shot", || unsafe {
        let epoll = must(epoll_create1(EPOLL_CLOEXEC))? as i32;
        let mut ends = [0i32; 2];
        must(pipe2(ends.as_mut_ptr(), O_NONBLOCK))?;
        let mut events = [epoll_event { events: 0, u64: 0 }; 8];
        let mut wait = || epoll_wait(epoll, events.as_mut_ptr(), 8, 0);
        let control = |op, flags: i32| {
            let mut event = epoll_event {
                events: flags as u32,
                u64: 42,
            };
            sys(epoll_ctl(epoll, op, ends[0], &mut event))
        };
        let put = || write_bytes(ends[1], b"x");
        let take = || {
            let mut byte = [0u8; 1];
            read_bytes(ends[0], &mut byte)
        };
        same!(control(EPOLL_CTL_MOD, EPOLLIN), Err(ENOENT));
        same!(control(EPOLL_CTL_ADD, EPOLLIN), Ok(0));
        same!(control(EPOLL_CTL_ADD, EPOLLIN), Err(EEXIST));
        same!(wait(), 0);
        put();
        same!((wait(), wait()), (1, 1));
        take();
        same!(wait(), 0);
        same!(control(EPOLL_CTL_MOD, EPOLLIN | EPOLLET), Ok(0));
        put();
        same!((wait(), wait()), (1, 0));
        put();
        same!((wait(), wait()), (1, 0));
        take();
        take();
        same!(control(EPOLL_CTL_MOD, EPOLLIN | EPOLLONESHOT), Ok(0));
        put();
        same!((wait(), wait()), (1, 0));
        same!(control(EPOLL_CTL_MOD, EPOLLIN | EPOLLONESHOT), Ok(0));
        same!(wait(), 1);
        same!(control(EPOLL_CTL_DEL, 0), Ok(0));
        same!(control(EPOLL_CTL_DEL, 0), Err(ENOENT));
        same!(wait(), 0);
        same!(control(EPOLL_CTL_ADD, EPOLLIN), Ok(0));
        take();
        close(ends[1]);
        same!(wait(), 1);
        let flags = events[0].events;
        same!((flags, { events[0].u64 }), (EPOLLHUP as u32, 42));
        let mut event = epoll_event { events: 1, u64: 0 };
        let file = anonymous_file("epoll")?;
        same!(
            sys(epoll_ctl(epoll, EPOLL_CTL_ADD, file, &mut event)),
            Err(EPERM)
        );
        same!(
            sys(epoll_ctl(epoll, EPOLL_CTL_ADD, epoll, &mut event)),
            Err(EINVAL)
        );
        // Closing the last descriptor takes it out.
        close(ends[0]);
        same!(epoll_wait(epoll, events.as_mut_ptr(), 8, 0), 0);
        close(file);
        close(epoll);
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives the call.
    check("poll and select", || unsafe {
        let ends = pipe_ends()?;
        let mut set = [
            pollfd {
                fd: ends[0],
                events: POLLIN,
                revents: 0,
            },
            pollfd {
                fd: ends[1],
                events: POLLOUT,
                revents: 0,
            },
        ];
        same!(
            (poll(set.as_mut_ptr(), 2, 0), set[0].revents, set[1].revents),
            (1, 0, POLLOUT)
        );
        write_bytes(ends[1], b"x");
        same!((poll(set.as_mut_ptr(), 2, -1), set[0].revents), (2, POLLIN));
        let mut bad = [
            pollfd {
                fd: 4000,
                events: POLLIN,
                revents: 0,
            },
            pollfd {
                fd: -1,
                events: POLLIN,
                revents: 9,
            },
        ];
        same!(
            (poll(bad.as_mut_ptr(), 2, 0), bad[0].revents, bad[1].revents),
            (1, POLLNVAL, 0)
        );
        let (mut readable, mut writable): (fd_set, fd_set) = (zeroed(), zeroed());
        FD_SET(ends[0], &mut readable);
        FD_SET(ends[1], &mut writable);
        same!(
            select(
                ends[1] + 1,
                &mut readable,
                &mut writable,
                null_mut(),
                null_mut()
            ),
            2
        );
        close(ends[0]);
        same!(
            (poll(&mut set[1], 1, 0), set[1].revents & POLLERR),
            (1, POLLERR)
        );
        close(ends[1]);
        Ok(())
    });
}

fn special() {
    check("/dev/null, zero, full, urandom", || {
        fs::write("/dev/null", "x").map_err(text)?;
        same!(fs::read("/dev/null").map_err(text)?.len(), 0);
        let mut buffer = [1u8; 100];
        fs::File::open("/dev/zero")
            .and_then(|mut f| f.read_exact(&mut buffer))
            .map_err(text)?;
        same!(buffer, [0u8; 100]);
        let mut full = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/full")
            .map_err(text)?;
        same!(code(full.write(b"x")), Some(ENOSPC));
        for device in ["/dev/urandom", "/dev/random"] {
            fs::File::open(device)
                .and_then(|mut f| f.read_exact(&mut buffer))
                .map_err(text)?;
            holds!(buffer != [0u8; 100]);
        }
        let mut other = [0u8; 100];
        // SAFETY: the array has 100 bytes.
        same!(unsafe { getrandom(other.as_mut_ptr().cast(), 100, 0) }, 100);
        holds!(buffer != other);
        Ok(())
    });
    check("/proc/self", || {
        let status = fs::read_to_string("/proc/self/status").map_err(text)?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|l| l.strip_prefix(name))
                .map(|v| v.trim().to_owned())
        };
        same!(field("Pid:"), Some(std::process::id().to_string()));
        same!(field("Name:").as_deref(), Some("files"));
        same!(field("Threads:").as_deref(), Some("1"));
        holds!(field("VmRSS:").is_some_and(|v| v.ends_with(" kB")));
        let exe = fs::read_link("/proc/self/exe").map_err(text)?;
        same!(exe.file_name().and_then(|n| n.to_str()), Some("files"));
        same!(fs::read("/proc/self/exe").map_err(text)?[..4], *b"\x7fELF");
        let command = fs::read("/proc/self/cmdline").map_err(text)?;
        let first = command.split(|b| *b == 0).next().unwrap_or_default();
        holds!(first.ends_with(b"files"));
        same!(
            fs::read_to_string("/proc/self/comm").map_err(text)?,
            "files\n"
        );
        let fds = fs::read_dir("/proc/self/fd").map_err(text)?.count();
        holds!(fds >= 4, "{fds}");
        let file = fs::File::open("/proc/self/maps").map_err(text)?;
        use std::os::fd::AsRawFd;
        let link = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(text)?;
        holds!(link.ends_with("maps"));
        let maps = fs::read_to_string("/proc/self/maps").map_err(text)?;
        for name in ["[heap]", "[stack]", "files"] {
            holds!(maps.lines().any(|l| l.ends_with(name)), "{name} in\n{maps}");
        }
        holds!(maps.lines().all(|l| !l.contains("rwxp")));
        let stat = fs::read_to_string("/proc/self/stat").map_err(text)?;
        holds!(stat.starts_with(&format!("{} (files) R ", std::process::id())));
        same!(stat.split_whitespace().count(), 52);
        holds!(
            fs::read_to_string("/proc/meminfo")
                .map_err(text)?
                .starts_with("MemTotal:")
        );
        holds!(
            fs::read_to_string("/proc/cpuinfo")
                .map_err(text)?
                .contains("processor")
        );
        same!(code(fs::metadata("/proc/999999")), Some(ENOENT));
        same!(code(fs::write("/proc/self/status", "x")).is_some(), true);
        Ok(())
    });
    check("console", || {
        same!(
            code(fs::File::open("/dev/tty")).is_none_or(|e| e == ENXIO),
            true
        );
        same!(isatty(0), 0);
        Ok(())
    });
}

fn main() {
    let base = std::env::args().nth(1).unwrap_or("/tmp".into());
    let dir = format!("{base}/files-{}", std::process::id());
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir(&dir).unwrap_or_else(|e| println!("FAIL setup: {e}"));
    regular(&dir);
    descriptors();
    special();
    check("clean-up", || fs::remove_dir_all(&dir).map_err(text));
    finish();
}
