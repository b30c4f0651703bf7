//! What is said of a machine that cannot go on.

use crate::memory::Ram;
use crate::paging::translate;
use crate::registers::Registers;
use std::fmt;
use vm_memory::{Bytes, GuestAddress};

/// Why a machine cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CrashKind {
    /// The guest met an exception while it was delivering one, twice.
    TripleFault,
    /// KVM reports a shutdown of another kind.
    Shutdown(u32),
    /// KVM met an instruction that it cannot emulate.
    EmulationFailure,
    /// KVM failed.
    KvmError(String),
    /// The guest kernel found itself broken and says how.
    GuestPanic(String),
    /// The monitor met this exception at CPL 0.
    MonitorPanic(u32),
    /// The guest accessed physical memory where nothing is.
    UnexpectedMmio {
        /// Guest-physical address.
        addr: u64,
        /// Bytes.
        len: usize,
        /// Whether it was a write.
        write: bool,
    },
    /// The guest used an I/O port that does not exist, or with a wrong width.
    UnexpectedPio {
        /// The port.
        port: u16,
        /// Bytes.
        len: usize,
        /// Whether it was an `out`.
        write: bool,
    },
    /// The guest halted, which it has no reason to.
    Hlt,
    /// KVM returned for a reason that this VMM never asks for.
    UnexpectedExit(String),
    /// `run` was called on a machine that has ended, or that waits for its entry (R1). Not the guest's doing.
    NotRunnable,
}

impl fmt::Display for CrashKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = |write: &bool| if *write { "write" } else { "read" };
        match self {
            Self::TripleFault => f.write_str("triple fault"),
            Self::Shutdown(kind) => write!(f, "shutdown (system event {kind})"),
            Self::EmulationFailure => f.write_str("KVM cannot emulate an instruction"),
            Self::KvmError(error) => write!(f, "KVM error: {error}"),
            Self::GuestPanic(message) => write!(f, "guest kernel panic: {message}"),
            Self::MonitorPanic(vector) => write!(f, "exception {vector} in the monitor"),
            Self::UnexpectedMmio { addr, len, write } => {
                let access = access(write);
                write!(
                    f,
                    "{access} of {len} bytes at physical address {addr:#x}, where nothing is"
                )
            }
            Self::UnexpectedPio { port, len, write } => {
                let access = access(write);
                write!(
                    f,
                    "{access} of {len} bytes at I/O port {port:#x}, where nothing is"
                )
            }
            Self::Hlt => f.write_str("the processor was halted"),
            Self::UnexpectedExit(exit) => write!(f, "unexpected exit from KVM: {exit}"),
            Self::NotRunnable => {
                f.write_str("the machine was run though it had ended or waits for an entry")
            }
        }
    }
}

/// A machine that cannot go on, and where it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashReport {
    /// Why.
    pub kind: CrashKind,
    /// The registers, if KVM still gives them.
    pub registers: Option<Box<Registers>>,
    /// More for a reader, in lines: code and stack near the crash, what was left in the console. Not
    /// comparable between replicas.
    pub text: String,
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(registers) = &self.registers {
            write!(f, "\n{registers}")?;
        }
        if !self.text.is_empty() {
            write!(f, "\n{}", self.text)?;
        }
        Ok(())
    }
}

/// Code and stack where a processor stands, a line each, as far as they are mapped. Nothing that is read here is trusted (R9).
pub(crate) fn code_and_stack(ram: &Ram, at: &Registers) -> String {
    let mut text = String::new();
    let mut code = [0_u8; 16];
    if let Some(addr) = translate(ram, at.cr3, at.rip)
        && ram.read_slice(&mut code, GuestAddress(addr)).is_ok()
    {
        text.push_str(&format!("code: {code:02x?}\n"));
    }
    let words: Vec<String> = (0..16_u64)
        .map_while(|index| {
            let virt = at.rsp.checked_add(index * 8)?;
            let addr = translate(ram, at.cr3, virt)?;
            ram.read_obj::<u64>(GuestAddress(addr)).ok()
        })
        .map(|word| format!("{word:x}"))
        .collect();
    text + &format!("stack: {}\n", words.join(" "))
}
