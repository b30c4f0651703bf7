//! Names of registers, classes of memory and errors.

use quorate_vmm::fault::{FaultRegister, Group, MemoryClass};

use super::reader::{alike, instead, listed};

/// All registers.
const ALL: &str = "all";

/// Groups of memory classes that one word means.
const CLASS_GROUPS: &[(&str, &[MemoryClass])] = &[
    (
        "program",
        &[
            MemoryClass::Text,
            MemoryClass::Data,
            MemoryClass::Heap,
            MemoryClass::Stack,
            MemoryClass::Libraries,
            MemoryClass::Mmap,
            MemoryClass::Threads,
        ],
    ),
    (
        "kernel",
        &[
            MemoryClass::KernelText,
            MemoryClass::KernelData,
            MemoryClass::KernelHeap,
            MemoryClass::KernelStacks,
        ],
    ),
];

/// The registers that a word of `registers` means: a group, `all`, or one.
///
/// # Errors
/// What is possible.
pub fn register_words(word: &str) -> Result<Vec<FaultRegister>, String> {
    if word == ALL {
        return Ok(FaultRegister::all().collect());
    }
    if let Some(group) = Group::ALL.into_iter().find(|group| group.name() == word) {
        return Ok(FaultRegister::of(group).collect());
    }
    if let Ok(register) = word.parse::<FaultRegister>() {
        return Ok(vec![register]);
    }
    let mut known: Vec<&str> = Group::ALL.into_iter().map(Group::name).collect();
    known.push(ALL);
    let names = FaultRegister::all().map(FaultRegister::name);
    match alike(word, known.iter().copied().chain(names)) {
        Some(other) => Err(format!(
            "unknown register \"{word}\"; did you mean \"{other}\"?"
        )),
        None => Err(format!(
            "unknown register \"{word}\"; possible: {}, or the name of a register, such as \"rax\" or \"xmm3\"",
            listed(known, "and")
        )),
    }
}

/// The classes of memory that a word of `class` means: a group, or one.
///
/// # Errors
/// What is possible.
pub fn class_words(word: &str) -> Result<Vec<&'static str>, String> {
    if let Some((_, classes)) = CLASS_GROUPS.iter().find(|(name, _)| *name == word) {
        return Ok(classes.iter().map(|class| class.name()).collect());
    }
    if let Some(name) = MemoryClass::names().find(|name| *name == word) {
        return Ok(vec![name]);
    }
    let groups = CLASS_GROUPS.iter().map(|(name, _)| *name);
    let known: Vec<&str> = groups.chain(MemoryClass::names()).collect();
    Err(format!("unknown class \"{word}\"{}", instead(word, &known)))
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
    match alike(word, names) {
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
