//! System calls as a reader wants them: the name, the arguments by what they are, and the buffers that they point to.

use quorate_abi::calls::name;
use quorate_abi::flight::{EXCEPTION, Record};

use super::hex::quoted;

/// Bytes of a buffer that are read at most (R10).
pub const BUFFER_MAX: usize = 64 << 10;
/// Bytes of a buffer that are shown in the line of a call.
const IN_LINE: usize = 48;
/// Longest path that is shown.
const PATH_MAX: usize = 256;
/// Most parts of a gathered buffer that are followed.
const PARTS_MAX: usize = 64;

/// What an argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A signed number.
    Number,
    /// A descriptor.
    Fd,
    /// Bits, or something else that is best shown in hex.
    Hex,
    /// An address.
    Pointer,
    /// A string that ends with NUL.
    Path,
    /// Bytes that the program gives; as many as that argument says.
    In(usize),
    /// Bytes that the program gets; as many as the result says.
    Out,
    /// `struct iovec`s that the program gives; as many as that argument says.
    GatherIn(usize),
    /// The same, filled by the call.
    GatherOut(usize),
    /// A `struct msghdr` that the program gives.
    MessageIn,
    /// The same, filled by the call.
    MessageOut,
}

use Kind::{Fd, GatherIn, GatherOut, Hex, In, MessageIn, MessageOut, Number, Out, Path, Pointer};

/// The arguments of a call by its name; six addresses-or-whatever if it is not in the list.
fn kinds(name: &str) -> &'static [Kind] {
    match name {
        "read" | "pread64" | "recvfrom" => match name {
            "read" => &[Fd, Out, Number],
            "pread64" => &[Fd, Out, Number, Number],
            _ => &[Fd, Out, Number, Hex, Pointer, Pointer],
        },
        "write" => &[Fd, In(2), Number],
        "pwrite64" => &[Fd, In(2), Number, Number],
        "sendto" => &[Fd, In(2), Number, Hex, Pointer, Number],
        "readv" => &[Fd, GatherOut(2), Number],
        "writev" => &[Fd, GatherIn(2), Number],
        "preadv" => &[Fd, GatherOut(2), Number, Number],
        "pwritev" => &[Fd, GatherIn(2), Number, Number],
        "sendmsg" => &[Fd, MessageIn, Hex],
        "recvmsg" => &[Fd, MessageOut, Hex],
        "open" | "creat" => &[Path, Hex, Hex],
        "openat" => &[Fd, Path, Hex, Hex],
        "close" | "fsync" | "fdatasync" | "dup" => &[Fd],
        "stat" | "lstat" => &[Path, Pointer],
        "access" | "unlink" | "rmdir" | "mkdir" | "chdir" | "chmod" | "statfs" | "truncate" => {
            &[Path, Hex]
        }
        "rename" | "link" | "symlink" => &[Path, Path],
        "readlink" => &[Path, Out, Number],
        "fstat" => &[Fd, Pointer],
        "newfstatat" | "unlinkat" | "mkdirat" | "faccessat" | "faccessat2" => {
            &[Fd, Path, Pointer, Hex]
        }
        "poll" => &[Pointer, Number, Number],
        "lseek" => &[Fd, Number, Number],
        "ftruncate" => &[Fd, Number],
        "mmap" => &[Pointer, Number, Hex, Hex, Fd, Hex],
        "mprotect" => &[Pointer, Number, Hex],
        "munmap" => &[Pointer, Number],
        "madvise" => &[Pointer, Number, Number],
        "brk" => &[Pointer],
        "rt_sigaction" | "rt_sigprocmask" => &[Number, Pointer, Pointer, Number],
        "ioctl" => &[Fd, Hex, Pointer],
        "fcntl" => &[Fd, Number, Hex],
        "socket" => &[Number, Hex, Number],
        "bind" | "connect" => &[Fd, Pointer, Number],
        "accept" | "getsockname" | "getpeername" => &[Fd, Pointer, Pointer],
        "accept4" => &[Fd, Pointer, Pointer, Hex],
        "listen" | "shutdown" => &[Fd, Number],
        "setsockopt" | "getsockopt" => &[Fd, Number, Number, Pointer, Pointer],
        "epoll_create1" | "eventfd2" | "pipe2" => &[Hex, Hex],
        "epoll_ctl" => &[Fd, Number, Fd, Pointer],
        "epoll_wait" => &[Fd, Pointer, Number, Number],
        "epoll_pwait" => &[Fd, Pointer, Number, Number, Pointer, Number],
        "futex" => &[Pointer, Hex, Number, Pointer, Pointer, Hex],
        "nanosleep" => &[Pointer, Pointer],
        "clock_gettime" | "clock_getres" => &[Number, Pointer],
        "clock_nanosleep" => &[Number, Hex, Pointer, Pointer],
        "gettimeofday" => &[Pointer, Pointer],
        "getrandom" => &[Out, Number, Hex],
        "exit" | "exit_group" => &[Number],
        "kill" => &[Number, Number],
        "tgkill" => &[Number, Number, Number],
        "execve" => &[Path, Pointer, Pointer],
        "wait4" => &[Number, Pointer, Hex, Pointer],
        "clone" => &[Hex, Pointer, Pointer, Pointer, Pointer],
        "getpid" | "getppid" | "gettid" | "getuid" | "getgid" | "geteuid" | "getegid"
        | "sched_yield" | "fork" | "vfork" | "rt_sigreturn" => &[],
        _ => &[Hex, Hex, Hex, Hex, Hex, Hex],
    }
}

/// Reads the caller's memory at an address: as many bytes as are there, at most the given number.
pub type Read<'a> = &'a dyn Fn(u64, usize) -> Vec<u8>;

/// The name of the call of a record.
#[must_use]
pub fn title(record: &Record) -> String {
    match record.number {
        EXCEPTION => "exception".to_owned(),
        number => match name(u64::from(number)) {
            "?" => format!("call {number}"),
            name => name.to_owned(),
        },
    }
}

/// A call in one line, as `strace` shows it: `write(8, "+OK\r\n", 5) = 5`. Addresses are as they are in that replica.
#[must_use]
pub fn line(record: &Record, read: Read<'_>) -> String {
    if record.number == EXCEPTION {
        let [vector, error, address, ..] = record.args;
        let what = match vector {
            0 => "division error",
            6 => "invalid instruction",
            13 => "general protection fault",
            14 => "page fault",
            _ => "exception",
        };
        return format!("{what} (vector {vector}, error {error:#x}, address {address:#x})");
    }
    let title = title(record);
    let mut shown = Vec::new();
    for (index, kind) in kinds(&title).iter().enumerate() {
        let value = record.args[index];
        shown.push(match kind {
            Number => (value as i64).to_string(),
            Fd => (value as i32).to_string(),
            Hex => format!("{value:#x}"),
            Pointer if value == 0 => "NULL".to_owned(),
            Pointer => format!("{value:#x}"),
            Path => path(value, read),
            _ => match buffer(record, read) {
                Some(buffer) if buffer.argument == index && !buffer.bytes.is_empty() => {
                    quoted(&buffer.bytes, IN_LINE)
                }
                _ => format!("{value:#x}"),
            },
        });
    }
    format!("{title}({}) = {}", shown.join(", "), result(record.result))
}

fn path(at: u64, read: Read<'_>) -> String {
    let bytes = read(at, PATH_MAX);
    match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => quoted(&bytes[..end], PATH_MAX),
        None => format!("{at:#x}"),
    }
}

fn result(value: u64) -> String {
    match value as i64 {
        error @ -4095..=-1 => {
            let error = std::io::Error::from_raw_os_error(-error as i32);
            let text = error.to_string();
            let text = text.split(" (os error").next().unwrap_or_default();
            format!("{} ({text})", value as i64)
        }
        small if small.unsigned_abs() < 1 << 32 => small.to_string(),
        _ => format!("{value:#x}"),
    }
}

/// The bytes that a call carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Which argument points to them, from 0.
    pub argument: usize,
    /// Where they lie; of several parts, the first.
    pub address: u64,
    /// How many the call is about.
    pub len: usize,
    /// What is there: at most [`BUFFER_MAX`] bytes.
    pub bytes: Vec<u8>,
}

/// The bytes that the call of a record carries, as they are in the memory that `read` reads.
#[must_use]
pub fn buffer(record: &Record, read: Read<'_>) -> Option<Buffer> {
    let title = title(record);
    let (argument, kind) = kinds(&title)
        .iter()
        .enumerate()
        .find(|(_, kind)| !matches!(kind, Number | Fd | Hex | Pointer | Path))?;
    let address = record.args[argument];
    let done = usize::try_from(record.result as i64).unwrap_or(0);
    let (address, len, bytes) = match *kind {
        In(count) => {
            let len = usize::try_from(record.args[count]).unwrap_or(usize::MAX);
            (address, len, read(address, len.min(BUFFER_MAX)))
        }
        Out => (address, done, read(address, done.min(BUFFER_MAX))),
        GatherIn(count) => gathered(address, record.args[count], usize::MAX, read),
        GatherOut(count) => gathered(address, record.args[count], done, read),
        MessageIn | MessageOut => {
            let header = read(address, 32);
            let word = |at: usize| {
                header
                    .get(at..at + 8)
                    .and_then(|bytes| bytes.try_into().ok())
                    .map_or(0, u64::from_le_bytes)
            };
            let most = if *kind == MessageOut {
                done
            } else {
                usize::MAX
            };
            gathered(word(16), word(24), most, read)
        }
        _ => return None,
    };
    Some(Buffer {
        argument,
        address,
        len,
        bytes,
    })
}

fn gathered(at: u64, count: u64, most: usize, read: Read<'_>) -> (u64, usize, Vec<u8>) {
    let count = usize::try_from(count).unwrap_or(usize::MAX).min(PARTS_MAX);
    let parts = read(at, count * 16);
    let mut first = 0;
    let (mut len, mut bytes) = (0_usize, Vec::new());
    for part in parts.chunks_exact(16) {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&part[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let (base, part_len) = (word(0), usize::try_from(word(8)).unwrap_or(usize::MAX));
        if first == 0 {
            first = base;
        }
        let wanted = part_len.min(most.saturating_sub(len));
        len = len.saturating_add(wanted);
        let room = BUFFER_MAX.saturating_sub(bytes.len());
        bytes.extend(read(base, wanted.min(room)));
    }
    (first, len, bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn memory(parts: &[(u64, &[u8])]) -> impl Fn(u64, usize) -> Vec<u8> + use<> {
        let parts: Vec<(u64, Vec<u8>)> = parts.iter().map(|(at, b)| (*at, b.to_vec())).collect();
        move |at, len| {
            let part = parts
                .iter()
                .find(|(from, b)| (*from..*from + b.len() as u64).contains(&at));
            part.map_or(Vec::new(), |(from, bytes)| {
                let from = (at - from) as usize;
                bytes[from..(from + len).min(bytes.len())].to_vec()
            })
        }
    }

    fn record(number: u32, args: [u64; 6], result: i64) -> Record {
        Record {
            number,
            args,
            result: result as u64,
            ..Record::default()
        }
    }

    #[test]
    fn calls_are_shown_with_what_they_carry() {
        let memory = memory(&[(0x1000, b"+OK\r\n"), (0x2000, b"/etc/passwd\0")]);
        let write = record(1, [8, 0x1000, 5, 0, 0, 0], 5);
        assert_eq!(line(&write, &memory), r#"write(8, "+OK\r\n", 5) = 5"#);
        assert_eq!(buffer(&write, &memory).unwrap().bytes, b"+OK\r\n");
        let open = record(257, [-100_i64 as u64, 0x2000, 0, 0, 0, 0], -2);
        let shown = line(&open, &memory);
        assert!(
            shown.starts_with(r#"openat(-100, "/etc/passwd", 0x0, 0x0) = -2 (No such"#),
            "{shown}"
        );
        // What cannot be read is an address.
        let write = record(1, [8, 0x9000, 5, 0, 0, 0], -14);
        assert!(line(&write, &memory).starts_with("write(8, 0x9000, 5) = -14 (Bad address)"));
        assert!(line(&record(5000, [1; 6], 0), &memory).starts_with("call 5000(0x1,"));
    }

    #[test]
    fn gathered_buffers_are_put_together() {
        let mut iov = Vec::new();
        for (base, len) in [(0x1000_u64, 3_u64), (0x2000, 2)] {
            iov.extend(base.to_le_bytes());
            iov.extend(len.to_le_bytes());
        }
        let mut header = vec![0; 16];
        header.extend(0x3000_u64.to_le_bytes());
        header.extend(2_u64.to_le_bytes());
        let memory = memory(&[
            (0x1000, b"abc"),
            (0x2000, b"de"),
            (0x3000, &iov),
            (0x4000, &header),
        ]);
        let writev = record(20, [5, 0x3000, 2, 0, 0, 0], 5);
        assert_eq!(line(&writev, &memory), r#"writev(5, "abcde", 2) = 5"#);
        let sendmsg = record(46, [5, 0x4000, 0, 0, 0, 0], 5);
        assert_eq!(buffer(&sendmsg, &memory).unwrap().bytes, b"abcde");
        let recvmsg = record(47, [5, 0x4000, 0, 0, 0, 0], 4);
        assert_eq!(buffer(&recvmsg, &memory).unwrap().bytes, b"abcd");
        // Lengths that cannot be do not matter.
        let nonsense = record(20, [5, 0x3000, u64::MAX, 0, 0, 0], 5);
        assert_eq!(buffer(&nonsense, &memory).unwrap().bytes, b"abcde");
    }

    #[test]
    fn an_exception_is_shown_as_one() {
        let fault = record(EXCEPTION, [14, 4, 0xdead, 0, 0, 0], 0);
        assert!(
            line(&fault, &|_, _| Vec::new())
                .contains("page fault (vector 14, error 0x4, address 0xdead)")
        );
    }
}
