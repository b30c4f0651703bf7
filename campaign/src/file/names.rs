//! Names of registers, classes of memory and errors.

use super::reader::instead;

/// A register with the bits of it that are hit when nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// Its name.
    pub name: &'static str,
    /// Words of 64 bits.
    pub lanes: u8,
    /// Which bits of each word.
    pub bits: u64,
}

const fn whole(name: &'static str) -> Register {
    Register {
        name,
        lanes: 1,
        bits: u64::MAX,
    }
}

const fn vector(name: &'static str) -> Register {
    Register {
        name,
        lanes: 2,
        bits: u64::MAX,
    }
}

const GENERAL: &[Register] = &[
    whole("rax"),
    whole("rbx"),
    whole("rcx"),
    whole("rdx"),
    whole("rsi"),
    whole("rdi"),
    whole("rbp"),
    whole("rsp"),
    whole("r8"),
    whole("r9"),
    whole("r10"),
    whole("r11"),
    whole("r12"),
    whole("r13"),
    whole("r14"),
    whole("r15"),
];

/// Carry, parity, adjust, zero, sign, direction and overflow: what a program's own instructions set and read.
const STATUS_FLAGS: u64 = 0b1100_1101_0101;

const FLAGS: &[Register] = &[Register {
    name: "rflags",
    lanes: 1,
    bits: STATUS_FLAGS,
}];

const PC: &[Register] = &[whole("rip")];

const SEGMENT_BASE: &[Register] = &[whole("fs_base"), whole("gs_base")];

/// Bits 16 to 31 of MXCSR must be zero: to load anything else is an exception.
const MXCSR: u64 = 0xffff;

const VECTOR: &[Register] = &[
    vector("xmm0"),
    vector("xmm1"),
    vector("xmm2"),
    vector("xmm3"),
    vector("xmm4"),
    vector("xmm5"),
    vector("xmm6"),
    vector("xmm7"),
    vector("xmm8"),
    vector("xmm9"),
    vector("xmm10"),
    vector("xmm11"),
    vector("xmm12"),
    vector("xmm13"),
    vector("xmm14"),
    vector("xmm15"),
    Register {
        name: "mxcsr",
        lanes: 1,
        bits: MXCSR,
    },
];

/// Groups by their names.
const GROUPS: &[(&str, &[Register])] = &[
    ("general", GENERAL),
    ("flags", FLAGS),
    ("pc", PC),
    ("segment-base", SEGMENT_BASE),
    ("vector", VECTOR),
];

/// All of them.
const ALL: &str = "all";

/// Classes of memory, as `quorate_vmm::fault` names them.
pub const MEMORY_CLASSES: &[&str] = &[
    "text",
    "data",
    "heap",
    "stack",
    "libraries",
    "mmap",
    "kernel",
    "page-tables",
    "queues",
];

/// The registers that a word of `registers` means: a group, `all`, or one.
///
/// # Errors
/// What is possible.
pub fn register_words(word: &str) -> Result<Vec<Register>, String> {
    let groups = || GROUPS.iter().flat_map(|(_, group)| group.iter().copied());
    if word == ALL {
        return Ok(groups().collect());
    }
    if let Some((_, group)) = GROUPS.iter().find(|(name, _)| *name == word) {
        return Ok(group.to_vec());
    }
    if let Some(register) = groups().find(|register| register.name == word) {
        return Ok(vec![register]);
    }
    let mut known: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).collect();
    known.push(ALL);
    match super::reader::alike(
        word,
        known
            .iter()
            .copied()
            .chain(groups().map(|register| register.name)),
    ) {
        Some(other) => Err(format!(
            "unknown register \"{word}\"; did you mean \"{other}\"?"
        )),
        None => Err(format!(
            "unknown register \"{word}\"; possible: {}, or the name of a register, such as \"rax\" or \"xmm3\"",
            super::reader::listed(known, "and")
        )),
    }
}

/// The name of a class of memory, or what is possible.
pub(super) fn class(word: &str) -> Result<String, String> {
    if MEMORY_CLASSES.contains(&word) {
        return Ok(word.to_owned());
    }
    Err(format!(
        "unknown class \"{word}\"{}",
        instead(word, MEMORY_CLASSES)
    ))
}

/// Linux' errors that a system call may well return.
const ERRORS: &[(&str, u16)] = &[
    ("EPERM", 1),
    ("ENOENT", 2),
    ("EINTR", 4),
    ("EIO", 5),
    ("ENXIO", 6),
    ("EBADF", 9),
    ("EAGAIN", 11),
    ("ENOMEM", 12),
    ("EACCES", 13),
    ("EFAULT", 14),
    ("EBUSY", 16),
    ("EEXIST", 17),
    ("ENODEV", 19),
    ("ENOTDIR", 20),
    ("EISDIR", 21),
    ("EINVAL", 22),
    ("ENFILE", 23),
    ("EMFILE", 24),
    ("ENOTTY", 25),
    ("EFBIG", 27),
    ("ENOSPC", 28),
    ("ESPIPE", 29),
    ("EROFS", 30),
    ("EPIPE", 32),
    ("ERANGE", 34),
    ("ENAMETOOLONG", 36),
    ("ENOSYS", 38),
    ("ENOTEMPTY", 39),
    ("ELOOP", 40),
    ("EOVERFLOW", 75),
    ("ENOTSOCK", 88),
    ("EMSGSIZE", 90),
    ("EOPNOTSUPP", 95),
    ("EADDRINUSE", 98),
    ("ENETDOWN", 100),
    ("ENETUNREACH", 101),
    ("ECONNABORTED", 103),
    ("ECONNRESET", 104),
    ("ENOBUFS", 105),
    ("EISCONN", 106),
    ("ENOTCONN", 107),
    ("ETIMEDOUT", 110),
    ("ECONNREFUSED", 111),
    ("EHOSTUNREACH", 113),
];

/// Greatest error number of Linux.
pub(super) const MAX_ERRNO: u16 = 133;

/// The number of an error.
pub(super) fn errno(word: &str) -> Result<u16, String> {
    if let Some((_, number)) = ERRORS.iter().find(|(name, _)| *name == word) {
        return Ok(*number);
    }
    let names: Vec<&str> = ERRORS.iter().map(|(name, _)| *name).collect();
    match super::reader::alike(word, names) {
        Some(other) => Err(format!(
            "unknown error \"{word}\"; did you mean \"{other}\"?"
        )),
        None => Err(format!(
            "unknown error \"{word}\"; possible: names such as \"EIO\" and \"ENOSPC\", or a number from 1 to {MAX_ERRNO}"
        )),
    }
}

/// The name of an error, or its number.
#[must_use]
pub fn errno_name(number: u16) -> String {
    match ERRORS.iter().find(|(_, known)| *known == number) {
        Some((name, _)) => (*name).to_owned(),
        None => format!("error {number}"),
    }
}
