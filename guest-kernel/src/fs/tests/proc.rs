//! `/proc`, `/sys`, `/dev`.

use crate::errno::*;
use crate::file::flags::*;
use crate::fs::testing::*;
use crate::fs::{dev, open_std, proc};

fn link(path: &str) -> String {
    let mut buf = [0u8; 256];
    let n = sys(89, &[c(path), buf.as_mut_ptr() as u64, 256]).unwrap() as usize;
    String::from_utf8(buf[..n].to_vec()).unwrap()
}

#[test]
fn proc_shows_the_program() {
    let _guard = setup();
    let pid = crate::sched::pid();
    assert_eq!(link("/proc/self"), pid.to_string());
    assert_eq!(link("/proc/self/exe"), "/bin/sh");
    assert_eq!(slurp("/proc/self/exe").unwrap(), b"#!x");
    assert_eq!(slurp("/proc/self/cmdline").unwrap(), b"sh\0-c\0");
    assert_eq!(slurp(&format!("/proc/{pid}/environ")).unwrap(), b"A=b\0");
    assert_eq!(slurp("/proc/self/comm").unwrap(), b"sh\n");
    assert_eq!(error(open("/proc/54321/comm", O_RDONLY)), ENOENT);
    assert_eq!(error(open(&format!("/proc/0{pid}/comm"), O_RDONLY)), ENOENT);
    sys(80, &[c("/data/sub")]).unwrap();
    assert_eq!(link("/proc/self/cwd"), "/data/sub");
    assert_eq!(slurp("/proc/self/cwd/deep/leaf").unwrap(), b"leaf");
    assert_eq!(error(open("/proc/self/comm", O_WRONLY)), EACCES);
    // `..` inside /proc.
    assert_eq!(
        slurp(&format!("/proc/self/task/{pid}/../../comm")).unwrap(),
        b"sh\n"
    );
    assert_eq!(
        lstat("/proc/self/fd").unwrap().ino,
        lstat(&format!("/proc/{pid}/fd")).unwrap().ino
    );
}

#[test]
fn every_file_of_proc_and_sys_can_be_read() {
    let _guard = setup();
    fn visit(path: &str, count: &mut usize) {
        for name in names(path).unwrap() {
            let below = format!("{path}/{name}");
            if path.ends_with("/fd") || path.ends_with("/fdinfo") {
                // Only the listing's own descriptor, which is closed by now.
                continue;
            }
            match lstat(&below).unwrap().mode >> 12 {
                4 => visit(&below, count),
                8 => {
                    let text = slurp(&below).unwrap();
                    assert!(
                        !text.contains(&0)
                            || below.ends_with("cmdline")
                            || below.ends_with("environ"),
                        "{below}"
                    );
                    *count += 1;
                }
                _ => assert!(!link(&below).is_empty(), "{below}"),
            }
        }
    }
    let mut count = 0;
    visit("/proc", &mut count);
    visit("/sys", &mut count);
    assert!(count > 55, "{count}");
}

#[test]
fn texts_have_the_fields_that_programs_parse() {
    let _guard = setup();
    let text = |path: &str| String::from_utf8(slurp(path).unwrap()).unwrap();
    let stat = text("/proc/self/stat");
    assert!(
        stat.starts_with(&format!("{} (sh) R ", crate::sched::pid())),
        "{stat}"
    );
    assert_eq!(stat.split_whitespace().count(), 52);
    assert_eq!(text("/proc/self/statm").split_whitespace().count(), 7);
    let (total, _) = crate::mm::memory_info();
    let first = format!("MemTotal:       {:>8} kB", total / 1024);
    assert_eq!(text("/proc/meminfo").lines().next().unwrap(), first);
    assert_eq!(text("/proc/sys/vm/overcommit_memory"), "1\n");
    assert_eq!(
        text("/sys/kernel/mm/transparent_hugepage/enabled"),
        "always madvise [never]\n"
    );
    assert_eq!(text("/proc/sys/kernel/random/uuid").len(), 37);
    assert_eq!(
        text("/proc/sys/kernel/random/boot_id"),
        text("/proc/sys/kernel/random/boot_id")
    );
    assert!(text("/etc/mtab").contains("overlay / overlay "));
    assert!(text("/proc/self/status").contains("\nUid:\t0\t0\t0\t0\n"));
    assert!(text("/proc/self/limits").contains("Max open files            1024 "));
    assert_eq!(text("/proc/uptime").split_whitespace().count(), 2);
    assert!(text("/proc/self/mountinfo").lines().count() == 5);
}

#[test]
fn threads_have_directories_of_their_own() {
    let _guard = setup();
    let pid = crate::sched::pid();
    assert_eq!(names("/proc/self/task").unwrap(), [pid.to_string()]);
    let of = |tid: u32, file: &str| format!("/proc/self/task/{tid}/{file}");
    let begins = format!("{pid} (sh) ");
    assert!(
        slurp(&of(pid, "stat"))
            .unwrap()
            .starts_with(begins.as_bytes())
    );
    let line = format!("Pid:\t{pid}\n");
    let status = String::from_utf8(slurp(&of(pid, "status")).unwrap()).unwrap();
    assert!(status.contains(&line));
    assert_eq!(error(open(&of(8, "stat"), O_RDONLY)), ENOENT);
}

#[test]
fn descriptors_are_links_that_can_be_opened_again() {
    let _guard = setup();
    let fd = open("/etc/motd", O_RDONLY).unwrap();
    assert_eq!(link(&format!("/proc/self/fd/{fd}")), "/etc/motd");
    read(fd, 3).unwrap();
    // A new description: its own position, its own mode.
    assert_eq!(slurp(&format!("/dev/fd/{fd}")).unwrap(), b"hello\n");
    let writable = open(&format!("/proc/self/fd/{fd}"), O_WRONLY | O_TRUNC).unwrap();
    write(writable, b"J").unwrap();
    assert_eq!(slurp("/etc/motd").unwrap(), b"J");
    sys(87, &[c("/etc/motd")]).unwrap();
    assert_eq!(link(&format!("/proc/self/fd/{fd}")), "/etc/motd (deleted)");
    assert_eq!(slurp(&format!("/proc/self/fd/{fd}")).unwrap(), b"J");
    let mut fds = [0i32; 2];
    sys(22, &[fds.as_mut_ptr() as u64]).unwrap();
    let through = format!("/proc/self/fd/{}", fds[1]);
    assert!(link(&through).starts_with("pipe:["));
    let again = open(&through, O_WRONLY).unwrap();
    write(again, b"via proc").unwrap();
    assert_eq!(read(fds[0] as u64, 20).unwrap(), b"via proc");
    let epoll = sys(291, &[0]).unwrap();
    assert_eq!(
        link(&format!("/proc/self/fd/{epoll}")),
        "anon_inode:[eventpoll]"
    );
    let dir = open("/data", O_RDONLY).unwrap();
    assert_eq!(
        slurp(&format!("/proc/self/fd/{dir}/sub/deep/leaf")).unwrap(),
        b"leaf"
    );
    let open_fds = names("/proc/self/fd").unwrap();
    assert!(open_fds.contains(&fd.to_string()) && !open_fds.contains(&"99".to_string()));
}

static CONSOLE: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());

#[test]
fn devices_do_what_their_names_say() {
    let _guard = setup();
    dev::set_console(|bytes| CONSOLE.lock().unwrap().extend_from_slice(bytes));
    open_std().unwrap();
    assert_eq!(read(0, 10).unwrap(), b"");
    write(1, b"out ").unwrap();
    write(2, b"err").unwrap();
    let stdout = open("/dev/stdout", O_WRONLY | O_APPEND).unwrap();
    write(stdout, b" again").unwrap();
    assert_eq!(*CONSOLE.lock().unwrap(), b"out err again");
    // TCGETS: not a terminal, so programs do not try to use it as one.
    assert_eq!(error(sys(16, &[1, 0x5401, 0])), ENOTTY);
    let device = |name: &str| open(&format!("/dev/{name}"), O_RDWR);
    assert_eq!(read(device("zero").unwrap(), 4).unwrap(), [0; 4]);
    assert_eq!(write(device("null").unwrap(), b"xyz").unwrap(), 3);
    assert_eq!(error(write(device("full").unwrap(), b"x")), ENOSPC);
    assert_eq!(read(device("urandom").unwrap(), 3).unwrap(), [0x5a; 3]);
    assert_eq!(error(device("tty")), ENXIO);
    assert_eq!(error(open("/dev/ptmx", O_RDWR)), ENOENT);
    spit("/dev/shm/sem", b"1").unwrap();
    assert_eq!(names("/dev/shm").unwrap(), ["sem"]);
    assert_eq!(link("/dev/stdin"), "/proc/self/fd/0");
    let mut random = [0u8; 8];
    assert_eq!(sys(318, &[random.as_mut_ptr() as u64, 8, 1]).unwrap(), 8);
    assert_eq!(random, [0x5a; 8]);
    assert_eq!(error(sys(318, &[random.as_mut_ptr() as u64, 8, 8])), EINVAL);
}
