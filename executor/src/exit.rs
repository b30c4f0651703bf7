//! The command's exit codes: one table, shown by `quorate --help` and checked by the end-to-end tests.

use std::fmt;

/// Why the `quorate` command ended, as the number that the shell sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// The guest program ended with status 0, or the set was stopped by request.
    Success = 0,
    /// The guest program ended with another status or by a signal; the message names it.
    GuestFailed = 1,
    /// A bad command line: unknown option, a number out of range, a replica that does not exist.
    Usage = 2,
    /// The appliance file cannot be read or is wrong; the message names line and key.
    Appliance = 3,
    /// The image is missing, truncated, damaged, or could not be built.
    Image = 4,
    /// The host cannot do it: no `/dev/kvm`, no right to it, too little memory, a KVM error.
    Host = 5,
    /// A published port is taken or may not be bound.
    Port = 6,
    /// The replicas lost their majority; nothing was released from then on (R5).
    NoQuorum = 7,
    /// The control socket: no set is running, more than one is and none was named, or the command was refused.
    Control = 8,
    /// The regions of a layout do not fit into the address space.
    Layout = 9,
    /// A disk cannot be made, opened or locked, or its host file failed while the set ran.
    Disk = 10,
    /// A recording cannot be written or read: no such file, damaged, of another version.
    Recording = 11,
    /// A replay's outputs are not those of its recording; the message names the first boundary that differs.
    Differs = 12,
    /// A campaign was stopped before its last trial, or a merge misses some.
    Incomplete = 13,
    /// Results of a campaign cannot be written or read: damaged, of another campaign, or contradicting each other.
    Results = 14,
    /// A defect of Quorate itself.
    Internal = 70,
}

impl ExitCode {
    /// All codes, in the order of the table.
    pub const ALL: [ExitCode; 16] = [
        ExitCode::Success,
        ExitCode::GuestFailed,
        ExitCode::Usage,
        ExitCode::Appliance,
        ExitCode::Image,
        ExitCode::Host,
        ExitCode::Port,
        ExitCode::NoQuorum,
        ExitCode::Control,
        ExitCode::Layout,
        ExitCode::Disk,
        ExitCode::Recording,
        ExitCode::Differs,
        ExitCode::Incomplete,
        ExitCode::Results,
        ExitCode::Internal,
    ];

    /// One line for the table of `quorate --help`.
    pub fn meaning(self) -> &'static str {
        match self {
            ExitCode::Success => {
                "the guest program ended with status 0, or the set was stopped by request"
            }
            ExitCode::GuestFailed => "the guest program ended with another status or by a signal",
            ExitCode::Usage => "bad command line",
            ExitCode::Appliance => "the appliance file cannot be read or is wrong",
            ExitCode::Image => "the image is missing, truncated, damaged or cannot be built",
            ExitCode::Host => "the host cannot do it: /dev/kvm, rights, memory, a KVM error",
            ExitCode::Port => "a published port is taken or may not be bound",
            ExitCode::NoQuorum => "no majority among the replicas: nothing more was released",
            ExitCode::Control => "no set to talk to, or it refused the command",
            ExitCode::Layout => "the regions of a layout do not fit",
            ExitCode::Disk => "a disk cannot be made, opened or locked, or its file failed",
            ExitCode::Recording => "a recording cannot be written, or is damaged or missing",
            ExitCode::Differs => "a replay's outputs are not those that were recorded",
            ExitCode::Incomplete => {
                "a campaign was stopped before its last trial, or a merge misses some"
            }
            ExitCode::Results => {
                "a campaign's results cannot be written, are damaged or of another campaign"
            }
            ExitCode::Internal => "a defect of quorate itself",
        }
    }

    /// The table as text.
    pub fn table() -> String {
        let mut text = String::from("Exit codes:\n");
        for code in Self::ALL {
            text.push_str(&format!("  {:>2}  {}\n", code as u8, code.meaning()));
        }
        text
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        std::process::ExitCode::from(code as u8)
    }
}

/// An error that ends the command: what to tell the user, and the code to end with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code.
    pub code: ExitCode,
    /// What happened and what to do about it, in one or a few lines.
    pub message: String,
}

impl Failure {
    /// A failure with its code and message.
    pub fn new(code: ExitCode, message: impl fmt::Display) -> Self {
        Failure {
            code,
            message: message.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn codes_are_distinct_and_all_are_in_the_table() {
        let mut seen = std::collections::HashSet::new();
        let table = ExitCode::table();
        for code in ExitCode::ALL {
            assert!(seen.insert(code as u8), "{code:?} is not distinct");
            assert!(table.contains(&format!("  {:>2}  {}", code as u8, code.meaning())));
        }
    }
}
