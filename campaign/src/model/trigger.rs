//! When a fault comes.

use serde::{Deserialize, Serialize};

/// When a fault comes, counted from the checkpoint that the trial begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "when", rename_all = "kebab-case")]
pub enum Trigger {
    /// At this boundary: its ballot is cast, its entry not delivered.
    Boundary {
        /// From 1; 0 is the checkpoint itself.
        boundary: u64,
    },
    /// At the first boundary at which the guest's clock shows this or more.
    Time {
        /// Nanoseconds of the trial's virtual time.
        ns: u64,
    },
    /// When this system call is complete.
    Syscall {
        /// From 1.
        call: u64,
    },
    /// Before an instruction of a function is executed.
    Symbol {
        /// The function, of the program, a library or the kernel; `+0x12` may follow.
        symbol: String,
        /// The how manieth time, from 1.
        hit: u64,
    },
    /// Before this instruction of all that the healthy machine executes in the trial.
    Instruction {
        /// From 0.
        instruction: u64,
    },
}
