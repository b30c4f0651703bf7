//! The one run with a client of flesh and blood: the appliance alone, as `quorate run` runs it, and a client through the
//! recording proxy.

use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use quorate_executor::console::Console;
use quorate_executor::events::Event;
use quorate_executor::gateway::{Protocol, Publish};
use quorate_executor::launch::{Hooks, Plan, Running};
use quorate_executor::patience::patient;

use super::file::Recorded;
use super::golden::GoldenError;
use super::record::{RecordSettings, record};

/// How long the appliance may take until its program waits for input, and then until its ports accept.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// A connection that lasts for so long was accepted by the guest: a refusal comes at once.
const ACCEPTED_AFTER: Duration = Duration::from_millis(30);
/// Console lines that an error shows.
const LAST_LINES: usize = 10;

/// Published at ports of the loopback that the kernel chooses.
pub(super) fn ephemeral(publish: &[Publish]) -> Vec<Publish> {
    let one = |of: &Publish| Publish {
        host: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        ..of.clone()
    };
    publish.iter().map(one).collect()
}

/// Runs the appliance of `plan` with one replica, and each of the commands against it, one after the other.
pub(super) fn run(
    plan: Plan,
    commands: &[&[String]],
    settings: &RecordSettings,
    directory: &Path,
) -> Result<Vec<Recorded>, GoldenError> {
    let (ready, when_ready) = channel();
    let console = Console::start(io::sink())
        .map_err(|source| GoldenError::io("no thread for the console", directory, source))?;
    let console = Arc::new(console);
    let hooks = Hooks {
        events: Box::new(move |logged| {
            if matches!(logged.event, Event::Ready { .. } | Event::Stopped { .. }) {
                // Nobody listens any more once it is ready.
                let _ = ready.send(logged.event.clone());
            }
        }),
        console: Arc::clone(&console),
        tap: None,
        recorder: None,
    };
    let running = plan.start(hooks)?;
    let recorded = talk(&running, &when_ready, commands, settings);
    running.set.stop(true);
    let summary = running.wait();
    recorded.map_err(|error| match error {
        Trouble::Error(error) => error,
        Trouble::Gone(what) => {
            let lines = console.last_lines(LAST_LINES);
            let printed = lines
                .iter()
                .map(|line| format!("\n  | {line}"))
                .collect::<String>();
            GoldenError::Live(format!("{what}: {}{printed}", summary.end))
        }
    })
}

enum Trouble {
    Error(GoldenError),
    Gone(&'static str),
}

fn talk(
    running: &Running,
    ready: &Receiver<Event>,
    commands: &[&[String]],
    settings: &RecordSettings,
) -> Result<Vec<Recorded>, Trouble> {
    match ready.recv_timeout(patient(READY_TIMEOUT)) {
        Ok(Event::Ready { .. }) => {}
        Ok(_) | Err(RecvTimeoutError::Disconnected) => {
            return Err(Trouble::Gone("the appliance ended before any client came"));
        }
        Err(RecvTimeoutError::Timeout) => {
            return Err(Trouble::Gone("the appliance did not become ready"));
        }
    }
    let addresses = running.addresses();
    let tcp = addresses
        .iter()
        .filter(|(publish, _)| publish.protocol == Protocol::Tcp);
    let ports: Vec<(u16, SocketAddr)> =
        tcp.map(|(publish, at)| (publish.guest_port, *at)).collect();
    let deadline = Instant::now() + patient(READY_TIMEOUT);
    for (_, at) in &ports {
        accepts(*at, deadline)?;
    }
    let one = |command: &&[String]| {
        record(command, &ports, settings).map_err(|error| Trouble::Error(error.into()))
    };
    commands.iter().map(one).collect()
}

/// Waits until the guest accepts connections: the gateway does at once, and ends them when the guest refuses.
fn accepts(at: SocketAddr, deadline: Instant) -> Result<(), Trouble> {
    let failed = |source| {
        Trouble::Error(GoldenError::Live(format!(
            "{at} cannot be reached: {source}"
        )))
    };
    while Instant::now() < deadline {
        let mut stream = TcpStream::connect(at).map_err(failed)?;
        stream
            .set_read_timeout(Some(patient(ACCEPTED_AFTER)))
            .map_err(failed)?;
        match stream.read(&mut [0; 64]) {
            // It says something, or nothing.
            Ok(1..) => return Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                return Ok(());
            }
            Ok(0) | Err(_) => {}
        }
    }
    Err(Trouble::Gone(
        "the appliance's program does not accept connections at a published port",
    ))
}
