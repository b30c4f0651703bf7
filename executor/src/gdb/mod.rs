//! `quorate replay --gdb`: a stock gdb at a replay, forwards and back.
//!
//! Whoever can connect can read and change all of the guest's memory, secrets included: the address is to be one of this host's own.

mod course;
mod position;
mod symbols;
mod target;
mod travel;
mod watch;

use std::collections::BTreeSet;
use std::io;
use std::net::{TcpListener, TcpStream};

use gdbstub::common::Signal;
use gdbstub::conn::ConnectionExt;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, SingleThreadStopReason};
use gdbstub::target::ext::base::reverse_exec::ReplayLogPosition;

pub use course::{Course, OnRecording};
pub use position::{Breakpoints, Leg, Place, Position};
pub use symbols::{Symbols, values};
pub use target::{Action, Debugged};
pub use travel::{Stop, TravelError, Traveller};
pub use watch::Interrupt;

use watch::Watch;

/// How a session with gdb ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Session {
    /// gdb has let go of the guest: the replay is to go on by itself.
    Detached,
    /// gdb wants the guest to end.
    Killed,
    /// The connection ended, or what came was no gdb.
    Lost(String),
}

/// Why there can be no session.
#[derive(Debug, thiserror::Error)]
pub enum GdbError {
    /// The replay.
    #[error(transparent)]
    Travel(#[from] TravelError),
    /// The connection.
    #[error("gdb cannot be waited for: {0}")]
    Connection(#[from] io::Error),
}

/// Waits for gdb, and serves it until it goes.
///
/// # Errors
/// When the replay breaks. What gdb itself does wrong ends the session only.
pub fn serve<C: Course>(
    debugged: &mut Debugged<C>,
    listener: &TcpListener,
) -> Result<Session, GdbError> {
    let (connection, _) = listener.accept()?;
    connection.set_nodelay(true)?;
    let interrupt = debugged.traveller.interrupt.clone();
    let _watch = Watch::start(&interrupt, &connection)?;
    let ended = GdbStub::new(connection).run_blocking::<Loop<C>>(debugged);
    // Whoever comes next sets their own.
    debugged
        .traveller
        .set_breakpoints(BTreeSet::new())
        .map_err(TravelError::from)?;
    match ended {
        Ok(DisconnectReason::Disconnect) => Ok(Session::Detached),
        Ok(DisconnectReason::Kill) => Ok(Session::Killed),
        Ok(reason) => Ok(Session::Lost(format!("{reason:?}"))),
        Err(error) if error.is_target_error() => match error.into_target_error() {
            Some(error) => Err(error.into()),
            None => Ok(Session::Lost("the debugger failed".to_owned())),
        },
        Err(error) => Ok(Session::Lost(error.to_string())),
    }
}

impl<C: Course> Debugged<C> {
    /// A session's other side.
    pub fn new(traveller: Traveller<C>, symbols: Symbols) -> Self {
        Debugged {
            traveller,
            action: Action::Step,
            symbols,
        }
    }

    /// Ends the debugging and gives the replay back, to be run on.
    ///
    /// # Errors
    /// See [`TravelError`].
    pub fn finish(self) -> Result<C, TravelError> {
        self.traveller.finish()
    }
}

struct Loop<C>(std::marker::PhantomData<C>);

impl<C: Course> BlockingEventLoop for Loop<C> {
    type Target = Debugged<C>;
    type Connection = TcpStream;
    type StopReason = SingleThreadStopReason<u64>;

    fn wait_for_stop_reason(
        debugged: &mut Debugged<C>,
        connection: &mut TcpStream,
    ) -> Result<Event<Self::StopReason>, WaitForStopReasonError<TravelError, io::Error>> {
        let interrupt = debugged.traveller.interrupt.clone();
        interrupt.start(debugged.traveller.machine());
        let stop = debugged.act();
        interrupt.stop();
        let reason = match stop.map_err(WaitForStopReasonError::Target)? {
            Stop::Interrupted => {
                let byte = ConnectionExt::read(connection);
                return Ok(Event::IncomingData(
                    byte.map_err(WaitForStopReasonError::Connection)?,
                ));
            }
            Stop::Breakpoint => SingleThreadStopReason::SwBreak(()),
            Stop::Stepped => SingleThreadStopReason::DoneStep,
            Stop::Beginning => at_an_end(ReplayLogPosition::Begin),
            Stop::End(why) => {
                tracing::info!("{why}");
                at_an_end(ReplayLogPosition::End)
            }
        };
        Ok(Event::TargetStopped(reason))
    }

    fn on_interrupt(_: &mut Debugged<C>) -> Result<Option<Self::StopReason>, TravelError> {
        Ok(Some(SingleThreadStopReason::Signal(Signal::SIGINT)))
    }
}

fn at_an_end(pos: ReplayLogPosition) -> SingleThreadStopReason<u64> {
    SingleThreadStopReason::ReplayLog { tid: None, pos }
}
