//! `quorate replay --gdb`

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use super::progress::line;
use crate::exit::{ExitCode, Failure};
use crate::gdb::{
    Debugged, GdbError, Interrupt, OnRecording, Session, Symbols, Traveller, serve, values,
};
use crate::replay::Replayer;

/// Boundaries between checkpoints in memory, at first; the more a session goes through, the further apart they are.
pub const REMEMBER_EVERY: u64 = 64;
/// Boundaries after which a program is looked for that is not there yet, in the search for symbols.
const SCOUTS: [u64; 5] = [0, 16, 64, 256, 1024];

/// Serves gdb, from the boundary `at` on or from where the replay stands. True: gdb has let go, and the replay goes on.
pub fn session(
    replayer: &mut Replayer<'_>,
    recording: &Path,
    address: SocketAddr,
    at: Option<u64>,
) -> Result<bool, Failure> {
    let listener = TcpListener::bind(address)
        .and_then(|listener| Ok((listener.local_addr()?, listener)))
        .map_err(|error| Failure::new(ExitCode::Host, format!("--gdb {address}: {error}")));
    let (address, listener) = listener?;
    if !address.ip().is_loopback() {
        line(&format!(
            "warning: whoever can connect to {address} can read and change all of the guest's memory"
        ));
    }
    let kernel = Arc::clone(&replayer.config().kernel);
    let kernel_at = replayer.machine().layout().kernel;
    let mut symbols = Symbols::new(
        recording,
        replayer.config(),
        kernel_at,
        &address.to_string(),
    );
    scout(replayer, &mut symbols, at)?;
    let name = |value: Option<u64>| value.map(|value| kernel_at + value);
    let [begin, end] = values(
        &kernel,
        ["debug_code_reader_begin", "debug_code_reader_end"],
    )
    .map(name);
    let landmarks: BTreeSet<u64> = values(
        &kernel,
        ["syscall_entry_fast", "syscall_entry_trap", "fault_entry"],
    )
    .into_iter()
    .filter_map(name)
    .collect();
    let course = OnRecording::new(replayer)?;
    let traveller = Traveller::new(course, Interrupt::default(), begin.zip(end), landmarks)
        .map_err(|error| broken(&error.into()))?;
    for text in symbols.report().lines() {
        line(text);
    }
    line(&format!("gdb: gdb -x {}", symbols.script().display()));
    line(&format!("waiting for gdb at {address}"));
    let mut debugged = Debugged::new(traveller, symbols);
    loop {
        match serve(&mut debugged, &listener).map_err(|error| broken(&error))? {
            Session::Detached => {
                line("gdb has let go; the replay goes on");
                let done = debugged.finish();
                return done.map(|_| true).map_err(|error| broken(&error.into()));
            }
            Session::Killed => {
                line("gdb has ended the replay");
                return Ok(false);
            }
            Session::Lost(why) => line(&format!("gdb is gone ({why}); waiting for the next")),
        }
    }
}

/// Looks which programs are mapped where, and goes to where the session begins.
fn scout(
    replayer: &mut Replayer<'_>,
    symbols: &mut Symbols,
    at: Option<u64>,
) -> Result<(), Failure> {
    let last = replayer.recording().boundaries().end - 1;
    let began = replayer.at();
    if let Some(boundary) = at {
        replayer.seek(boundary)?;
        symbols.find(replayer.machine());
        return Ok(());
    }
    for boundary in SCOUTS {
        replayer.seek(began.unwrap_or(0).saturating_add(boundary).min(last))?;
        symbols.find(replayer.machine());
        if symbols.has_programs() {
            break;
        }
    }
    match began {
        Some(boundary) => replayer.seek(boundary).map(|_| ())?,
        None => replayer.restart()?,
    }
    Ok(())
}

fn broken(error: &GdbError) -> Failure {
    let code = match error {
        GdbError::Connection(_) => ExitCode::Host,
        GdbError::Travel(_) => ExitCode::Differs,
    };
    Failure::new(code, error)
}
