//! The command line of `quorate campaign`.

use std::process::ExitCode;

/// The command.
#[must_use]
pub fn main() -> ExitCode {
    eprintln!("quorate campaign: not there yet");
    ExitCode::from(2)
}
