//! Prints what programs print, and nothing that depends on where things lie: replicas in different layouts must agree on all of it (R8).
//! `agree address` prints an address, on which they cannot agree. `agree leaks` prints what the processor says of itself.

use guest_programs::plain::{getpid, getppid, gettid, getuid};
use libc::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::mem::zeroed;

fn leaks() {
    let leaf = |function| {
        let r = std::arch::x86_64::__cpuid_count(function, 0);
        (r.eax, r.ebx, r.ecx, r.edx)
    };
    for function in [
        0,
        1,
        2,
        4,
        7,
        0xb,
        0xd,
        0x15,
        0x16,
        0x4000_0000,
        0x8000_0000,
        0x8000_0001,
        0x8000_0007,
    ] {
        println!("cpuid {function:#x}: {:x?}", leaf(function));
    }
    println!("rdrand offered: {}", leaf(1).2 >> 30 & 1);
    for _ in 0..5 {
        let mut aux = 0;
        // SAFETY: instructions that read counters, and `aux` takes what one of them gives.
        let (a, b) = unsafe {
            (
                core::arch::x86_64::_rdtsc(),
                core::arch::x86_64::__rdtscp(&mut aux),
            )
        };
        println!("time stamps: {a} {b} {aux}");
    }
    // Offered or not, the instructions must not leak.
    let (mut value, mut carry): (u64, u8);
    for _ in 0..3 {
        // SAFETY: writes the two registers that it names.
        unsafe { std::arch::asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) carry) };
        println!("rdrand: {value:x} {carry}");
        // SAFETY: writes the two registers that it names.
        unsafe { std::arch::asm!("rdseed {}", "setc {}", out(reg) value, out(reg_byte) carry) };
        println!("rdseed: {value:x} {carry}");
    }
    // Code made at run time.
    for (name, bytes) in [
        ("rdtsc", &[0x0fu8, 0x31, 0xc3][..]),
        ("rdtscp", &[0x0f, 0x01, 0xf9, 0xc3]),
    ] {
        for prot in [PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC] {
            // SAFETY: the page is mapped, written within its bounds and made executable before it
            // is called; the code returns at once.
            unsafe {
                let at = mmap(
                    std::ptr::null_mut(),
                    4096,
                    PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS,
                    -1,
                    0,
                );
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.cast(), bytes.len());
                mprotect(at, 4096, prot);
                println!(
                    "{name} made at run time: {}",
                    std::mem::transmute::<*mut c_void, extern "C" fn() -> u32>(at)()
                );
                if prot & PROT_WRITE != 0 {
                    // Written when it is executable already.
                    at.cast::<u8>()
                        .add(100)
                        .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
                    let call = std::mem::transmute::<u64, extern "C" fn() -> u32>(at as u64 + 100);
                    println!("{name} written into executable memory: {}", call());
                }
            }
        }
    }
}

fn ordinary() {
    let map: HashMap<String, usize> = (0..50).map(|i| (format!("key-{i}"), i)).collect();
    println!("hash map order: {:?}", map.values().collect::<Vec<_>>());
    let set: HashSet<u64> = (0..50).map(|i| i * i).collect();
    println!("hash set order: {:?}", set.iter().collect::<Vec<_>>());
    let mut words: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for i in 0..2000usize {
        words.entry(i % 7).or_default().push("x".repeat(i % 300));
    }
    println!(
        "allocated: {}",
        words.values().flatten().map(String::len).sum::<usize>()
    );
    let threads: Vec<_> = (0..16)
        .map(|i| {
            std::thread::spawn(move || {
                std::thread::yield_now();
                let id = gettid();
                println!("thread {i} has id {id}, {:?}", std::thread::current().id());
                id
            })
        })
        .collect();
    println!(
        "ids: {:?}",
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or(-1))
            .collect::<Vec<_>>()
    );
    // SAFETY: the calls take numbers and give numbers.
    unsafe {
        println!(
            "{} {} {} {}",
            getpid(),
            getppid(),
            getuid(),
            sysconf(_SC_NPROCESSORS_ONLN)
        );
        let mut info: sysinfo = zeroed();
        sysinfo(&mut info);
        println!(
            "sysinfo: {} {} {} {} {}",
            info.totalram, info.freeram, info.procs, info.uptime, info.mem_unit
        );
        let mut usage: rusage = zeroed();
        getrusage(RUSAGE_SELF, &mut usage);
        println!(
            "rusage: {:?} {} {}",
            (usage.ru_utime.tv_sec, usage.ru_utime.tv_usec),
            usage.ru_maxrss,
            usage.ru_minflt
        );
        let mut name: utsname = zeroed();
        uname(&mut name);
        println!(
            "uname: {:?}",
            std::ffi::CStr::from_ptr(name.release.as_ptr())
        );
        let mut random = [0u8; 16];
        getrandom(random.as_mut_ptr().cast(), 16, 0);
        println!("random: {random:x?}");
        let auxiliary = std::slice::from_raw_parts(getauxval(AT_RANDOM) as *const u8, 16);
        println!(
            "AT_RANDOM: {auxiliary:x?} page {} clock {} hwcap {:x}",
            getauxval(AT_PAGESZ),
            getauxval(AT_CLKTCK),
            getauxval(AT_HWCAP)
        );
        let mut at: timespec = zeroed();
        for clock in [CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID] {
            clock_gettime(clock, &mut at);
            println!("clock {clock}: {}.{:09}", at.tv_sec, at.tv_nsec);
        }
    }
    println!("time: {:?}", std::time::SystemTime::now());
    for file in [
        "/proc/self/statm",
        "/proc/self/status",
        "/proc/meminfo",
        "/proc/cpuinfo",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/stat",
        "/proc/mounts",
    ] {
        println!(
            "{file}:\n{}",
            fs::read_to_string(file).unwrap_or_else(|e| e.to_string())
        );
    }
    // The fields of stat that Linux fills with addresses are left out: as it does for those who may not see them.
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    println!("stat: {stat}");
    println!(
        "maps has {} lines",
        fs::read_to_string("/proc/self/maps").map_or(0, |m| m.lines().count())
    );
    let mut names: Vec<_> = fs::read_dir("/proc/self")
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    names.sort();
    println!("/proc/self: {names:?}");
    println!(
        "/: {:?}",
        fs::read_dir("/")
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.file_name())
            .collect::<Vec<_>>()
    );
    fs::write("/tmp/inode", "x").unwrap_or_default();
    use std::os::unix::fs::MetadataExt;
    if let Ok(meta) = fs::metadata("/tmp/inode") {
        println!(
            "inode {} dev {} mtime {}.{}",
            meta.ino(),
            meta.dev(),
            meta.mtime(),
            meta.mtime_nsec()
        );
    }
    let socket = std::net::TcpListener::bind("127.0.0.1:0").and_then(|s| s.local_addr());
    println!("a free port: {socket:?}");
    // Memory given back and taken again.
    let before: usize = (0..200).map(|i| vec![1u8; i * 1000].len()).sum();
    println!("{before}");
    // SAFETY: the structure is of numbers, and the call fills it.
    unsafe {
        let mut info: sysinfo = zeroed();
        sysinfo(&mut info);
        println!("free after: {}", info.freeram);
    }
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("address") => println!("main is at {:p}", main as *const ()),
        Some("leaks") => leaks(),
        _ => ordinary(),
    }
    println!("done");
}
