//! Page permissions, mappings and their system calls. `memory oom` takes memory until it is refused, `memory oom-sparse` until
//! it is killed.

use guest_programs::plain::{close, ftruncate, pipe_ends, write_bytes};
use guest_programs::probe::*;
use guest_programs::*;
use libc::*;

const PAGE: u64 = 4096;
const RW: i32 = PROT_READ | PROT_WRITE;
const ANON: i32 = MAP_PRIVATE | MAP_ANONYMOUS;

fn map(len: u64, prot: i32, flags: i32, fd: i32) -> Result<u64, i32> {
    map_at(0, len, prot, flags, fd, 0)
}

fn map_at(at: u64, len: u64, prot: i32, flags: i32, fd: i32, offset: i64) -> Result<u64, i32> {
    // SAFETY: callers name a place of their own mappings, or leave it to the kernel.
    let value = unsafe { mmap(at as *mut c_void, len as usize, prot, flags, fd, offset) };
    if value == MAP_FAILED {
        Err(errno())
    } else {
        Ok(value as u64)
    }
}

fn anon(len: u64) -> Result<u64, String> {
    map(len, RW, ANON, -1).map_err(|e| format!("mmap: errno {e}"))
}

fn protect(at: u64, len: u64, prot: i32) -> Result<i64, i32> {
    // SAFETY: callers protect their own mappings only.
    sys(unsafe { mprotect(at as *mut c_void, len as usize, prot) })
}

fn unmapped(at: u64, len: u64) -> Result<i64, i32> {
    // SAFETY: callers unmap their own mappings only.
    sys(unsafe { munmap(at as *mut c_void, len as usize) })
}

fn unmap(at: u64, len: u64) {
    let _ = unmapped(at, len);
}

fn advise(at: u64, len: u64, advice: i32) -> Result<i64, i32> {
    // SAFETY: callers name their own mappings only.
    sys(unsafe { madvise(at as *mut c_void, len as usize, advice) })
}

/// Where the break was before it was moved by so many bytes; all ones if it was not moved.
fn move_break(by: isize) -> u64 {
    // SAFETY: nothing else uses the break: callers take back only what they have added.
    unsafe { sbrk(by) as u64 }
}

fn put(at: u64, value: u8) {
    // SAFETY: callers give addresses in mappings that they have made writable.
    unsafe { (at as *mut u8).write_volatile(value) }
}

fn get(at: u64) -> u8 {
    // SAFETY: callers give addresses in mappings that they have made readable.
    unsafe { (at as *const u8).read_volatile() }
}

fn remap(old: u64, old_len: u64, new_len: u64, flags: i32, to: u64) -> Result<u64, i32> {
    // SAFETY: callers move their own mappings only.
    let value = unsafe {
        mremap(
            old as *mut c_void,
            old_len as usize,
            new_len as usize,
            flags,
            to as *mut c_void,
        )
    };
    if value == MAP_FAILED {
        Err(errno())
    } else {
        Ok(value as u64)
    }
}

static RODATA: [u8; 64] = [7; 64];

fn permissions() {
    check("text is not writable", || {
        let at = raised as *const () as u64;
        // Whether the page is there already depends on where the linker has put it.
        same!(raised(op_load, at, 0), FINE);
        let fault = probe(op_store, at, 0x90).err().ok_or("no fault")?;
        same!((fault.signal, fault.code), FORBIDDEN);
        same!(fault.addr, at);
        same!(fault.rip, op_store as *const () as u64);
        // Vector 14; the error code says: page present, a write, in user mode.
        same!((fault.trapno, fault.err), (14, 7));
        Ok(())
    });
    check("read-only data is not writable", || {
        same!(raised(op_store, RODATA.as_ptr() as u64 + 5, 1), FORBIDDEN);
        Ok(())
    });
    check("the stack is not executable", || {
        let code = [0xc3u8; 16];
        let at = std::hint::black_box(&code).as_ptr() as u64;
        let fault = probe(op_call, at, 0).err().ok_or("no fault")?;
        same!((fault.signal, fault.code), FORBIDDEN);
        same!((fault.addr, fault.rip), (at, at));
        same!((fault.trapno, fault.err), (14, 0x15));
        Ok(())
    });
    check("the heap is not executable", || {
        let code = std::hint::black_box(vec![0xc3u8; 64]);
        same!(raised(op_call, code.as_ptr() as u64, 0), FORBIDDEN);
        let at = anon(PAGE)?;
        put(at, 0xc3);
        same!(raised(op_call, at, 0), FORBIDDEN);
        unmap(at, PAGE);
        let brk_at = move_break(4096);
        put(brk_at, 0xc3);
        same!(raised(op_call, brk_at, 0), FORBIDDEN);
        Ok(())
    });
    check("page 0 is not mapped", || {
        for (op, at) in [
            (op_load as Op, 0u64),
            (op_load, 8),
            (op_store, 4095),
            (op_call, 0),
        ] {
            let fault = probe(op, at, 1).err().ok_or("no fault")?;
            same!((fault.signal, fault.code, fault.addr), (SIGSEGV, 1, at));
        }
        Ok(())
    });
    check("wild addresses", || {
        same!(raised(op_load, 0x10, 0), UNMAPPED);
        // Not canonical: a general protection fault, which carries no address.
        let fault = probe(op_load, 0x8000_0000_0000_0000, 0)
            .err()
            .ok_or("no fault")?;
        same!((fault.signal, fault.code, fault.addr), (SIGSEGV, 0x80, 0));
        Ok(())
    });
    check("the kernel is out of reach of system calls", || {
        let mut maps = String::new();
        std::io::Read::read_to_string(
            &mut std::fs::File::open("/proc/self/maps").map_err(|e| e.to_string())?,
            &mut maps,
        )
        .map_err(|e| e.to_string())?;
        let mut ends = Vec::new();
        for line in maps.lines() {
            let (start, rest) = line.split_once('-').ok_or("no range")?;
            let end = rest.split(' ').next().ok_or("no end")?;
            ends.push((
                u64::from_str_radix(start, 16).map_err(|e| e.to_string())?,
                u64::from_str_radix(end, 16).map_err(|e| e.to_string())?,
            ));
        }
        let text = main as *const () as u64;
        holds!(
            ends.iter()
                .any(|(start, end)| (*start..*end).contains(&text))
        );
        Ok(())
    });
}

fn protection() {
    check("mprotect", || {
        let at = anon(4 * PAGE)?;
        for i in 0..4 {
            put(at + i * PAGE, i as u8 + 1);
        }
        same!(protect(at + PAGE, PAGE, PROT_READ), Ok(0));
        same!(protect(at + 2 * PAGE, PAGE, PROT_NONE), Ok(0));
        same!(raised(op_store, at, 1), FINE);
        same!(raised(op_store, at + PAGE, 1), FORBIDDEN);
        same!(probe(op_load, at + PAGE, 0), Ok(2));
        same!(raised(op_load, at + 2 * PAGE + 9, 0), FORBIDDEN);
        same!(raised(op_store, at + 2 * PAGE, 0), FORBIDDEN);
        same!(raised(op_store, at + 3 * PAGE, 4), FINE);
        same!(protect(at, 4 * PAGE, RW), Ok(0));
        same!(
            (get(at + PAGE), get(at + 2 * PAGE), get(at + 3 * PAGE)),
            (2, 3, 4)
        );
        same!(raised(op_store, at + 2 * PAGE, 1), FINE);
        unmap(at + PAGE, PAGE);
        same!(raised(op_load, at + PAGE, 0), UNMAPPED);
        same!((get(at), get(at + 2 * PAGE)), (1, 1));
        same!(protect(at, 4 * PAGE, PROT_READ), Err(ENOMEM));
        same!(protect(at + 1, PAGE, PROT_READ), Err(EINVAL));
        unmap(at, 4 * PAGE);
        same!(raised(op_load, at + 3 * PAGE, 0), UNMAPPED);
        Ok(())
    });
    check("a guard of PROT_NONE", || {
        let at = map(64 * PAGE, PROT_NONE, ANON, -1).map_err(|e| e.to_string())?;
        same!(protect(at + PAGE, 62 * PAGE, RW), Ok(0));
        same!(raised(op_store, at + PAGE, 1), FINE);
        same!(raised(op_store, at + 63 * PAGE - 1, 1), FINE);
        let fault = probe(op_store, at + PAGE - 1, 1).err().ok_or("no fault")?;
        same!(
            (fault.signal, fault.code, fault.addr),
            (SIGSEGV, 2, at + PAGE - 1)
        );
        same!(raised(op_load, at + 63 * PAGE, 1), FORBIDDEN);
        unmap(at, 64 * PAGE);
        Ok(())
    });
    check(
        "stack overflow reaches a handler on the alternative stack",
        || {
            let worker = std::thread::Builder::new()
                .stack_size(128 << 10)
                .spawn(|| raised(op_overflow_stack, 0, 0));
            let seen = worker
                .map_err(|e| e.to_string())?
                .join()
                .map_err(|_| "panicked")?;
            same!(seen, FORBIDDEN);
            Ok(())
        },
    );
    check("code written at run time", || {
        let at = anon(2 * PAGE)?;
        // mov eax, 41; ret
        for (i, byte) in [0xb8, 41, 0, 0, 0, 0xc3].into_iter().enumerate() {
            put(at + i as u64, byte);
        }
        same!(protect(at, PAGE, PROT_READ | PROT_EXEC), Ok(0));
        same!(probe(op_call, at, 0).is_ok(), true);
        // SAFETY: the page holds a function that takes nothing and returns a number, and is
        // executable when this runs.
        let call = || unsafe { std::mem::transmute::<u64, extern "C" fn() -> i32>(at)() };
        same!(call(), 41);
        same!(raised(op_store, at + 1, 42), FORBIDDEN);
        same!(protect(at, PAGE, RW), Ok(0));
        put(at + 1, 42);
        same!(raised(op_call, at, 0), FORBIDDEN);
        same!(protect(at, PAGE, PROT_READ | PROT_EXEC), Ok(0));
        same!(call(), 42);
        same!(protect(at, PAGE, RW | PROT_EXEC), Ok(0));
        put(at + 1, 43);
        same!(call(), 43);
        put(at + 1, 44);
        same!(call(), 44);
        unmap(at, 2 * PAGE);
        Ok(())
    });
}

fn mappings() {
    check(
        "anonymous memory is zero, and zero again after munmap and mmap",
        || {
            for len in [PAGE, 16 * PAGE, 1 << 20, 8 << 20] {
                for _ in 0..3 {
                    let at = anon(len)?;
                    for offset in (0..len).step_by(PAGE as usize) {
                        same!(get(at + offset + 77), 0);
                        put(at + offset + 77, 1);
                    }
                    unmap(at, len);
                }
            }
            Ok(())
        },
    );
    check("MAP_FIXED replaces, MAP_FIXED_NOREPLACE does not", || {
        let at = anon(8 * PAGE)?;
        for i in 0..8 {
            put(at + i * PAGE, 9);
        }
        same!(
            map_at(at + 2 * PAGE, 2 * PAGE, RW, ANON | MAP_FIXED, -1, 0),
            Ok(at + 2 * PAGE)
        );
        let seen: Vec<u8> = (0..8).map(|i| get(at + i * PAGE)).collect();
        same!(seen, [9, 9, 0, 0, 9, 9, 9, 9]);
        same!(
            map_at(at + PAGE, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0),
            Err(EEXIST)
        );
        unmap(at + 5 * PAGE, PAGE);
        same!(
            map_at(at + 5 * PAGE, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0),
            Ok(at + 5 * PAGE)
        );
        same!(
            map_at(at + 1, PAGE, RW, ANON | MAP_FIXED, -1, 0),
            Err(EINVAL)
        );
        unmap(at, 8 * PAGE);
        // A hint that is free is taken.
        same!(map_at(at, PAGE, RW, ANON, -1, 0), Ok(at));
        unmap(at, PAGE);
        Ok(())
    });
    check("arguments that mmap refuses", || {
        same!(map(0, RW, ANON, -1), Err(EINVAL));
        same!(map(PAGE, RW, MAP_ANONYMOUS, -1), Err(EINVAL));
        same!(map(PAGE, RW, MAP_PRIVATE, -1), Err(EBADF));
        same!(map(PAGE, RW, MAP_PRIVATE, 9999), Err(EBADF));
        same!(map(1 << 47, RW, ANON, -1), Err(ENOMEM));
        same!(map(u64::MAX - 5, RW, ANON, -1), Err(ENOMEM));
        let fd = anonymous_file("mmap-arguments")?;
        same!(map_at(0, PAGE, RW, MAP_PRIVATE, fd, 100), Err(EINVAL));
        // SAFETY: the path is a literal.
        let read_only = must(unsafe { open(c"/proc/self/exe".as_ptr(), O_RDONLY) })? as i32;
        same!(map(PAGE, RW, MAP_SHARED, read_only), Err(EACCES));
        holds!(map(PAGE, RW, MAP_PRIVATE, read_only).is_ok());
        close(fd);
        close(read_only);
        same!(unmapped(8, 4096), Err(EINVAL));
        same!(unmapped(PAGE, 0), Err(EINVAL));
        Ok(())
    });
    check("mremap", || {
        let at = anon(4 * PAGE)?;
        for i in 0..4 {
            put(at + i * PAGE, 10 + i as u8);
        }
        // Shrink, and grow into the hole.
        same!(remap(at, 4 * PAGE, 2 * PAGE, 0, 0), Ok(at));
        same!(raised(op_load, at + 2 * PAGE, 0), UNMAPPED);
        same!(
            map_at(at + 2 * PAGE, PAGE, RW, ANON | MAP_FIXED, -1, 0),
            Ok(at + 2 * PAGE)
        );
        same!(remap(at, 2 * PAGE, 600 * PAGE, 0, 0), Err(ENOMEM));
        let new = remap(at, 2 * PAGE, 600 * PAGE, MREMAP_MAYMOVE, 0).map_err(|e| e.to_string())?;
        same!(
            (
                get(new),
                get(new + PAGE),
                get(new + 2 * PAGE),
                get(new + 599 * PAGE)
            ),
            (10, 11, 0, 0)
        );
        same!(raised(op_load, at, 0), UNMAPPED);
        put(new + 300 * PAGE, 5);
        let to = anon(1000 * PAGE)?;
        same!(
            remap(
                new,
                600 * PAGE,
                500 * PAGE,
                MREMAP_MAYMOVE | MREMAP_FIXED,
                to
            ),
            Ok(to)
        );
        same!((get(to), get(to + 300 * PAGE)), (10, 5));
        same!(raised(op_load, new + 599 * PAGE, 0), UNMAPPED);
        same!(
            remap(to, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to),
            Err(EINVAL)
        );
        same!(remap(to + 1, PAGE, PAGE, 0, 0), Err(EINVAL));
        unmap(to, 1000 * PAGE);
        same!(remap(to, PAGE, 2 * PAGE, MREMAP_MAYMOVE, 0), Err(EFAULT));
        unmap(at, 4 * PAGE);
        Ok(())
    });
    check(
        "madvise DONTNEED gives zeroes, and the file's content again",
        || {
            for len in [4 * PAGE, 4 << 20] {
                let at = anon(len)?;
                for offset in (0..len).step_by(PAGE as usize) {
                    put(at + offset, 3);
                }
                same!(advise(at + PAGE, len - 2 * PAGE, MADV_DONTNEED), Ok(0));
                same!(
                    (
                        get(at),
                        get(at + PAGE),
                        get(at + len - 2 * PAGE),
                        get(at + len - PAGE)
                    ),
                    (3, 0, 0, 3)
                );
                put(at + PAGE, 4);
                same!(get(at + PAGE), 4);
                unmap(at + 2 * PAGE, PAGE);
                same!(advise(at, len, MADV_DONTNEED), Err(ENOMEM));
                unmap(at, len);
            }
            let fd = anonymous_file("dontneed")?;
            must(write_bytes(fd, b"content"))?;
            let at = map(PAGE, RW, MAP_PRIVATE, fd).map_err(|e| e.to_string())?;
            put(at, b'X');
            same!(get(at), b'X');
            same!(advise(at, PAGE, MADV_DONTNEED), Ok(0));
            same!(get(at), b'c');
            same!(advise(at, PAGE, 9999), Err(EINVAL));
            same!(advise(at + 1, PAGE, MADV_DONTNEED), Err(EINVAL));
            unmap(at, PAGE);
            close(fd);
            Ok(())
        },
    );
    check("brk", || {
        let start = move_break(0);
        same!(move_break(10 << 20), start);
        put(start + 5 * PAGE, 1);
        put(start + (10 << 20) - 1, 1);
        same!(move_break(-(10 << 20)), start + (10 << 20));
        let page_up = start.next_multiple_of(PAGE);
        same!(raised(op_load, page_up + 5 * PAGE, 0), UNMAPPED);
        same!(move_break(10 << 20), start);
        same!(get(start + 5 * PAGE), 0);
        same!(move_break(1 << 50) as i64, -1);
        same!(move_break(-(10 << 20)), start + (10 << 20));
        Ok(())
    });
    check("a big sparse mapping", || {
        let len = 64u64 << 30;
        let at = map(len, RW, ANON | MAP_NORESERVE, -1).map_err(|e| e.to_string())?;
        let mut offset = 12_345u64;
        for i in 0..1000u64 {
            put(at + offset % len, i as u8 | 1);
            offset = offset
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
        }
        let mut offset = 12_345u64;
        for i in 0..1000u64 {
            same!(get(at + offset % len), i as u8 | 1);
            offset = offset
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
        }
        same!(get(at + len - 1), 0);
        unmap(at, len);
        same!(raised(op_load, at + len - 1, 0), UNMAPPED);
        Ok(())
    });
    check("many small mappings", || {
        let at = map(2000 * PAGE, PROT_NONE, ANON, -1).map_err(|e| e.to_string())?;
        for i in (0..2000).step_by(2) {
            same!(protect(at + i * PAGE, PAGE, RW), Ok(0));
            put(at + i * PAGE, 1);
        }
        same!(raised(op_load, at + 1001 * PAGE, 0), FORBIDDEN);
        same!(get(at + 1000 * PAGE), 1);
        same!(protect(at, 2000 * PAGE, RW), Ok(0));
        same!((get(at + 1001 * PAGE), get(at + 1000 * PAGE)), (0, 1));
        unmap(at, 2000 * PAGE);
        Ok(())
    });
}

fn files() {
    let read_at = |fd: i32, offset: i64| -> u8 {
        let mut byte = [0u8; 1];
        // SAFETY: the array has one byte.
        unsafe { pread(fd, byte.as_mut_ptr().cast(), 1, offset) };
        byte[0]
    };
    let write_at =
        // SAFETY: the array has one byte.
        |fd: i32, offset: i64, byte: u8| unsafe { pwrite(fd, [byte].as_ptr().cast(), 1, offset) };
    check("private file mappings", || {
        let fd = anonymous_file("private")?;
        must(ftruncate(fd, 3 * PAGE as i64))?;
        write_at(fd, 0, b'a');
        write_at(fd, PAGE as i64, b'b');
        let at = map(3 * PAGE, RW, MAP_PRIVATE, fd).map_err(|e| e.to_string())?;
        same!(
            (get(at), get(at + PAGE), get(at + 2 * PAGE)),
            (b'a', b'b', 0)
        );
        put(at, b'X');
        same!((get(at), read_at(fd, 0)), (b'X', b'a'));
        let second =
            map_at(0, PAGE, PROT_READ, MAP_PRIVATE, fd, PAGE as i64).map_err(|e| e.to_string())?;
        same!(get(second), b'b');
        same!(raised(op_store, second, 1), FORBIDDEN);
        close(fd);
        same!(get(at + PAGE), b'b');
        unmap(at, 3 * PAGE);
        unmap(second, PAGE);
        Ok(())
    });
    check("shared file mappings", || {
        let fd = anonymous_file("shared")?;
        must(ftruncate(fd, 4 * PAGE as i64))?;
        let at = map(4 * PAGE, RW, MAP_SHARED, fd).map_err(|e| e.to_string())?;
        let view = map(4 * PAGE, PROT_READ, MAP_SHARED, fd).map_err(|e| e.to_string())?;
        same!((get(view), get(view + 3 * PAGE)), (0, 0));
        put(at + 1, b's');
        same!((read_at(fd, 1), get(view + 1)), (b's', b's'));
        write_at(fd, 2, b'w');
        same!((get(at + 2), get(view + 2)), (b'w', b'w'));
        write_at(fd, 3 * PAGE as i64, b'z');
        same!((get(view + 3 * PAGE), get(at + 3 * PAGE)), (b'z', b'z'));
        same!(
            // SAFETY: the mapping has more pages than this one.
            sys(unsafe { msync(at as *mut c_void, 4096, MS_SYNC) }),
            Ok(0)
        );
        same!(protect(view, PAGE, RW), Ok(0));
        put(view + 5, 5);
        same!((get(at + 5), read_at(fd, 5)), (5, 5));
        let moved = remap(
            at,
            PAGE,
            PAGE,
            MREMAP_MAYMOVE | MREMAP_FIXED,
            view + 2 * PAGE,
        )
        .map_err(|e| e.to_string())?;
        same!(get(moved + 5), 5);
        put(moved + 6, 6);
        same!(read_at(fd, 6), 6);
        same!(advise(view, PAGE, MADV_DONTNEED), Ok(0));
        same!(get(view + 5), 5);
        unmap(at, 4 * PAGE);
        unmap(view, 4 * PAGE);
        same!(read_at(fd, 1), b's');
        close(fd);
        Ok(())
    });
    check("read-only shared mapping sees later writes", || {
        let fd = anonymous_file("shared-ro")?;
        must(ftruncate(fd, 2 * PAGE as i64))?;
        let view = map(2 * PAGE, PROT_READ, MAP_SHARED, fd).map_err(|e| e.to_string())?;
        same!(get(view), 0);
        write_at(fd, 0, 1);
        same!(get(view), 1);
        write_at(fd, PAGE as i64, 2);
        same!(get(view + PAGE), 2);
        must(ftruncate(fd, 0))?;
        same!(raised(op_load, view, 0), BEYOND_FILE);
        must(ftruncate(fd, PAGE as i64))?;
        same!(probe(op_load, view, 0), Ok(0));
        write_at(fd, 0, 3);
        same!(get(view), 3);
        unmap(view, 2 * PAGE);
        close(fd);
        Ok(())
    });
    check("SIGBUS beyond the end of a file", || {
        let fd = anonymous_file("bus")?;
        must(write_bytes(fd, &[1u8; 100]))?;
        for flags in [MAP_SHARED, MAP_PRIVATE] {
            let at = map(3 * PAGE, RW, flags, fd).map_err(|e| e.to_string())?;
            same!((get(at + 99), get(at + 100), get(at + 4095)), (1, 0, 0));
            let fault = probe(op_load, at + PAGE + 7, 0).err().ok_or("no fault")?;
            same!(
                (fault.signal, fault.code, fault.addr),
                (SIGBUS, 2, at + PAGE + 7)
            );
            same!(raised(op_store, at + 2 * PAGE, 0), BEYOND_FILE);
            let mut result = 0;
            // SAFETY: the pointer is one that the kernel must refuse: it reads nothing.
            unsafe {
                // A system call reports it as EFAULT.
                let (mut ends, zero) = ([0i32; 2], at + PAGE);
                pipe(ends.as_mut_ptr());
                result = sys(write(ends[1], zero as *const c_void, 10))
                    .err()
                    .unwrap_or(result);
                close(ends[0]);
                close(ends[1]);
            }
            same!(result, EFAULT);
            unmap(at, 3 * PAGE);
        }
        close(fd);
        Ok(())
    });
    check("truncation takes pages away", || {
        let fd = anonymous_file("truncate")?;
        must(ftruncate(fd, 3 * PAGE as i64))?;
        let at = map(3 * PAGE, RW, MAP_SHARED, fd).map_err(|e| e.to_string())?;
        put(at + PAGE, 1);
        put(at + 2 * PAGE, 2);
        must(ftruncate(fd, PAGE as i64 + 1))?;
        same!(get(at + PAGE), 1);
        same!(raised(op_load, at + 2 * PAGE, 0), BEYOND_FILE);
        must(ftruncate(fd, 3 * PAGE as i64))?;
        same!(get(at + 2 * PAGE), 0);
        unmap(at, 3 * PAGE);
        close(fd);
        Ok(())
    });
    check("memfd", || {
        // SAFETY: the name is a literal.
        let fd = must(unsafe { memfd_create(c"quorate".as_ptr(), MFD_CLOEXEC) })? as i32;
        must(ftruncate(fd, PAGE as i64))?;
        let (a, b) = (map(PAGE, RW, MAP_SHARED, fd), map(PAGE, RW, MAP_SHARED, fd));
        let (a, b) = (a.map_err(|e| e.to_string())?, b.map_err(|e| e.to_string())?);
        holds!(a != b);
        put(a, 77);
        same!(get(b), 77);
        unmap(a, PAGE);
        unmap(b, PAGE);
        close(fd);
        Ok(())
    });
}

fn bad_pointers() {
    // SAFETY: the pointers are to locals, or ones that the kernel must refuse: it touches nothing
    // behind them.
    check("EFAULT from bad pointers", || unsafe {
        let none = map(PAGE, PROT_NONE, ANON, -1).map_err(|e| e.to_string())?;
        let text = main as *const () as u64;
        let ends = pipe_ends()?;
        must(write_bytes(ends[1], b"abc"))?;
        for bad in [
            8u64,
            none,
            0x8000_0000_0000_0000,
            u64::MAX - 3,
            0x7fff_ffff_f000,
        ] {
            let p = bad as *mut c_void;
            same!(sys(write(ends[1], p, 4)), Err(EFAULT));
            same!(sys(read(ends[0], p, 4)), Err(EFAULT));
            same!(sys(open(p.cast(), O_RDONLY)), Err(EFAULT));
            same!(sys(libc::stat(p.cast(), std::mem::zeroed())), Err(EFAULT));
            same!(sys(libc::stat(c"/".as_ptr(), p.cast())), Err(EFAULT));
            same!(sys(pipe(p.cast())), Err(EFAULT));
            same!(sys(syscall(SYS_clock_gettime, 1, p)), Err(EFAULT));
            same!(sys(syscall(SYS_nanosleep, p, 0)), Err(EFAULT));
            same!(sys(syscall(SYS_poll, p, 1, 0)), Err(EFAULT));
            same!(sys(syscall(SYS_uname, p)), Err(EFAULT));
            same!(sys(syscall(SYS_getcwd, p, 100)), Err(EFAULT));
            same!(sys(syscall(SYS_getrandom, p, 8, 0)), Err(EFAULT));
            same!(sys(syscall(SYS_rt_sigaction, 10, p, 0, 8)), Err(EFAULT));
            same!(
                sys(syscall(SYS_futex, p.wrapping_add(0) as u64 & !3, 0, 0, 0)),
                Err(EFAULT)
            );
            same!(sys(syscall(SYS_writev, ends[1], p, 1)), Err(EFAULT));
        }
        // Read-only memory is no place for results.
        same!(sys(read(ends[0], text as *mut c_void, 2)), Err(EFAULT));
        same!(sys(syscall(SYS_clock_gettime, 1, text)), Err(EFAULT));
        let mut kept = [0u8; 3];
        same!(sys(read(ends[0], kept.as_mut_ptr().cast(), 3)), Ok(3));
        same!(&kept, b"abc");
        close(ends[0]);
        close(ends[1]);
        unmap(none, PAGE);
        Ok(())
    });
    // SAFETY: the path is in a page of its own, and ends in it or must be refused; `stat` takes the
    // result.
    check("a path that ends where the mapping ends", || unsafe {
        let at = anon(2 * PAGE)?;
        unmap(at + PAGE, PAGE);
        let path = at + PAGE - 5;
        for (i, byte) in b"/tmp\0".iter().enumerate() {
            put(path + i as u64, *byte);
        }
        let mut stat: libc::stat = std::mem::zeroed();
        same!(sys(libc::stat(path as *const c_char, &mut stat)), Ok(0));
        put(at + PAGE - 1, b'x');
        same!(
            sys(libc::stat(path as *const c_char, &mut stat)),
            Err(EFAULT)
        );
        unmap(at, PAGE);
        Ok(())
    });
}

fn take_everything() -> ! {
    let mut taken = 0u64;
    loop {
        let Ok(at) = map(1 << 20, RW, ANON, -1) else {
            println!("mmap refused");
            std::process::exit(3);
        };
        for offset in (0..1 << 20).step_by(PAGE as usize) {
            put(at + offset, 1);
        }
        taken += 1;
        if taken == 8 {
            println!("8 MiB taken");
        }
    }
}

/// Touches a mapping that is larger than all of memory until it is killed.
fn touch_everything() -> ! {
    if let Ok(at) = map(64 << 30, RW, ANON | MAP_NORESERVE, -1) {
        for offset in (0..64u64 << 30).step_by(PAGE as usize) {
            put(at + offset, 1);
            if offset == 8 << 20 {
                println!("8 MiB touched");
            }
        }
    }
    std::process::exit(4)
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("oom") => take_everything(),
        Some("oom-sparse") => touch_everything(),
        _ => {
            permissions();
            protection();
            mappings();
            files();
            bad_pointers();
            finish();
        }
    }
}
