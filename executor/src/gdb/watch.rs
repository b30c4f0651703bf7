//! While the guest runs, gdb may want to interrupt it: a thread waits for bytes from gdb and makes the guest stop.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quorate_vmm::Machine;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a guest may take to its next boundary once it was interrupted, before it is stopped where it is: from a boundary one
/// can go back, from just anywhere one cannot.
const GRACE: Duration = Duration::from_millis(250);
/// Between two looks whether the guest still runs.
const LOOK: Duration = Duration::from_millis(20);

/// Makes a machine stop.
type Kick = Box<dyn Fn() + Send>;

#[derive(Default)]
struct State {
    running: Option<Kick>,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    wanted: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether gdb has said something while the guest ran.
#[derive(Clone, Default)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

impl Interrupt {
    /// It has.
    pub fn wanted(&self) -> bool {
        self.shared.wanted.load(Ordering::SeqCst)
    }

    /// The machine is about to run for gdb.
    pub fn start(&self, machine: &Machine) {
        let kicker = machine.kicker();
        self.shared.wanted.store(false, Ordering::SeqCst);
        self.shared.lock().running = Some(Box::new(move || kicker.kick()));
        self.shared.changed.notify_all();
    }

    /// The machine has been replaced while it ran.
    pub fn machine_is(&self, machine: &Machine) {
        let kicker = machine.kicker();
        let mut state = self.shared.lock();
        if state.running.is_some() {
            state.running = Some(Box::new(move || kicker.kick()));
        }
    }

    /// It has stopped.
    pub fn stop(&self) {
        self.shared.lock().running = None;
    }
}

/// The thread. Ends when it is dropped.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches the connection of gdb.
    ///
    /// # Errors
    /// When there can be no thread, or the connection cannot be shared.
    pub fn start(interrupt: &Interrupt, connection: &TcpStream) -> io::Result<Watch> {
        let connection = connection.try_clone()?;
        let shared = Arc::clone(&interrupt.shared);
        shared.lock().ended = false;
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("gdb".to_owned())
            .spawn(move || watch(&of_thread, &connection))?;
        Ok(Watch {
            shared,
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It cannot panic.
            let _ = thread.join();
        }
    }
}

fn watch(shared: &Shared, connection: &TcpStream) {
    let mut since: Option<Instant> = None;
    loop {
        {
            let mut state = shared.lock();
            while state.running.is_none() && !state.ended {
                since = None;
                state = shared
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if state.ended {
                return;
            }
            if let (Some(since), Some(kick)) = (since, &state.running)
                && since.elapsed() >= GRACE
            {
                kick();
            }
        }
        if since.is_some() {
            // It is on its way to a boundary, or to where it can be held.
            std::thread::sleep(LOOK);
        } else if readable(connection) {
            since = Some(Instant::now());
            shared.wanted.store(true, Ordering::SeqCst);
        }
    }
}

/// Waits a little for bytes, or for the end of the connection.
fn readable(connection: &TcpStream) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN)];
    let wait = Timespec {
        tv_sec: 0,
        tv_nsec: LOOK.as_nanos() as i64,
    };
    matches!(poll(&mut fds, Some(&wait)), Ok(ready) if ready > 0)
}
