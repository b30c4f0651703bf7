//! A program's first stack: strings, pointers to them, auxiliary vector.

use super::{Program, ProgramHeader};
use crate::errno::*;
use crate::{fs, sched, user};
use alloc::vec::Vec;
use quorate_abi::PAGE_SIZE;

/// Most bytes of arguments and environment, their pointers included (a quarter of the stack, as on Linux); `E2BIG` beyond.
pub const MAX_STRINGS: usize = (super::STACK_SIZE / 4) as usize;

/// Where the program was loaded.
pub struct Start {
    /// Address of its program headers.
    pub headers_at: u64,
    /// How many.
    pub header_count: u64,
    /// Its own entry point.
    pub entry: u64,
    /// Start of `ld-linux`, or 0.
    pub interpreter_base: u64,
}

/// Builds the stack below `top` and returns the stack pointer and the auxiliary vector.
///
/// # Errors
/// `E2BIG`, `ENOMEM`.
pub fn build(
    top: u64,
    program: &Program,
    envp: &[Vec<u8>],
    start: &Start,
) -> Result<(u64, Vec<u8>)> {
    let strings = program.argv.iter().chain(envp);
    if strings.map(|s| s.len() + 9).sum::<usize>() > MAX_STRINGS {
        return Err(E2BIG);
    }
    // From the top downwards: name, environment, arguments, platform, 16 random bytes.
    let mut sp = top - 16;
    let mut parts: Vec<(u64, &[u8])> = Vec::new();
    let mut push = |bytes| -> u64 {
        let bytes: &[u8] = bytes;
        sp -= bytes.len() as u64 + 1;
        parts.push((sp, bytes));
        sp
    };
    let exec_name = push(&program.path);
    let environment: Vec<u64> = envp.iter().map(|s| push(s)).collect();
    let arguments: Vec<u64> = program.argv.iter().map(|s| push(s)).collect();
    let platform = push(b"x86_64");
    let random_at = (sp & !15) - 16;
    let mut random = [0u8; 16];
    // Common to all replicas: programs seed visible things with it (R8).
    fs::random::fill(&mut random).map_err(|_| EIO)?;
    let (uid, gid) = sched::credentials();
    let auxv: [(u64, u64); 20] = [
        (3, start.headers_at),
        (4, size_of::<ProgramHeader>() as u64),
        (5, start.header_count),
        (6, PAGE_SIZE),
        (7, start.interpreter_base),
        (8, 0),
        (9, start.entry),
        (11, u64::from(uid)),
        (12, u64::from(uid)),
        (13, u64::from(gid)),
        (14, u64::from(gid)),
        (15, platform),
        (16, u64::from(crate::boot::cpuid(1, 0)[3])),
        (17, 100),
        (23, 0),
        (25, random_at),
        (26, 0),
        (31, exec_name),
        (51, 3376),
        (0, 0),
    ];
    let mut vector: Vec<u64> = Vec::new();
    vector.push(arguments.len() as u64);
    vector.extend(&arguments);
    vector.push(0);
    vector.extend(&environment);
    vector.push(0);
    let auxv_from = vector.len();
    vector.extend(auxv.iter().flat_map(|(key, value)| [key, value]));
    let rsp = (random_at - 8 * vector.len() as u64) & !15;
    let bottom = rsp;
    let mut image = alloc::vec![0u8; (top - bottom) as usize];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = (at - bottom) as usize;
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    for (at, bytes) in parts {
        put(at, bytes);
    }
    put(random_at, &random);
    for (i, word) in vector.iter().enumerate() {
        put(rsp + 8 * i as u64, &word.to_le_bytes());
    }
    user::copy_out(bottom, &image).map_err(|_| ENOMEM)?;
    let auxv = vector[auxv_from..].iter().flat_map(|w| w.to_le_bytes());
    Ok((rsp, auxv.collect()))
}
