//! What the threads of a Linux machine share.

use super::fault::LinuxFault;
use super::ports::Ports;
use crate::crash::CrashKind;
use crate::error::MachineError;
use crate::kick::Kicker;
use crate::memory::Ram;
use quorate_devices::{DeviceError, VirtioSet};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bits of [`Signals::wishes`]: a pause, or the end.
const PAUSE: u8 = 1;
const KILL: u8 = 2;

/// How a machine ends, as the thread that sees it first says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Final {
    PoweredOff,
    Reset,
    Stopped(String),
    Misbehaved(DeviceError),
    Crash { cpu: u8, kind: CrashKind },
}

/// Reaches a machine's threads. Outlives the machine without harm.
#[derive(Debug)]
pub(crate) struct Signals {
    /// Wakes the device thread. KVM writes to it, too, when the guest notifies a queue.
    waker: EventFd,
    /// Pulses the power button's interrupt line.
    button: EventFd,
    /// One for each processor.
    kickers: Vec<Kicker>,
    /// The processors are to leave the guest.
    stopping: AtomicBool,
    /// Of [`PAUSE`] and [`KILL`].
    wishes: AtomicU8,
}

/// Shared by the threads of a machine while it runs.
#[derive(Debug)]
pub(crate) struct Shared {
    ram: Ram,
    devices: Mutex<VirtioSet>,
    ports: Mutex<Ports>,
    signals: Arc<Signals>,
    /// The first end counts.
    end: Mutex<Option<Final>>,
    /// Notifications that came through an exit to this process, past the event file.
    notify_exits: AtomicU64,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Devices and ports keep their own invariants; a panic of one thread ends the machine anyway.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For `map_err` after something that the host gives.
pub(crate) fn host(what: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |error| {
        let why = error.to_string();
        LinuxFault::Host { what, why }.into()
    }
}

/// An event file that never blocks.
pub(crate) fn event() -> Result<EventFd, MachineError> {
    EventFd::new(EFD_NONBLOCK).map_err(host("an event file"))
}

impl Signals {
    pub(crate) fn new(button: EventFd, kickers: Vec<Kicker>) -> Result<Self, MachineError> {
        Ok(Self {
            waker: event()?,
            button,
            kickers,
            stopping: AtomicBool::new(false),
            wishes: AtomicU8::new(0),
        })
    }

    pub(crate) fn waker(&self) -> &EventFd {
        &self.waker
    }

    /// Makes the device thread look around.
    pub(crate) fn wake(&self) {
        // It fails only if the counter is full, and then the thread is woken already.
        let _ = self.waker.write(1);
    }

    /// Waits for [`Signals::wake`] or a notification; at most this long.
    pub(crate) fn wait(&self, most: Option<Duration>) {
        let mut file = libc::pollfd {
            fd: self.waker.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let time = most.map(|most| libc::timespec {
            tv_sec: most.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: most.subsec_nanos().into(),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: One descriptor that is open as long as `self`, and a time that lives until the call returns.
        unsafe { libc::ppoll(&raw mut file, 1, time, std::ptr::null()) };
        // Whatever it returned: the caller looks around. Nothing to read means that nobody called.
        let _ = self.waker.read();
    }

    pub(crate) fn press_button(&self) {
        // As in `wake`.
        let _ = self.button.write(1);
    }

    pub(crate) fn wish_pause(&self) {
        self.wishes.fetch_or(PAUSE, Ordering::SeqCst);
        self.wake();
    }

    pub(crate) fn wish_kill(&self) {
        self.wishes.fetch_or(KILL, Ordering::SeqCst);
        self.wake();
    }

    pub(crate) fn killed(&self) -> bool {
        self.wishes.load(Ordering::SeqCst) & KILL != 0
    }

    /// Whether a pause was asked for since this was called last.
    pub(crate) fn take_pause(&self) -> bool {
        self.wishes.fetch_and(!PAUSE, Ordering::SeqCst) & PAUSE != 0
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Before the processors' threads start.
    pub(crate) fn start(&self) {
        self.stopping.store(false, Ordering::SeqCst);
    }

    /// Makes all processors leave the guest. First the word, then the kick: who is kicked finds it.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.kickers.iter().for_each(Kicker::kick);
    }
}

impl Shared {
    pub(crate) fn new(ram: Ram, devices: VirtioSet, ports: Ports, signals: Arc<Signals>) -> Self {
        Self {
            ram,
            devices: Mutex::new(devices),
            ports: Mutex::new(ports),
            signals,
            end: Mutex::new(None),
            notify_exits: AtomicU64::new(0),
        }
    }

    pub(crate) fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Held for moments only, and never while somebody outside is called.
    pub(crate) fn devices(&self) -> MutexGuard<'_, VirtioSet> {
        lock(&self.devices)
    }

    /// As [`Shared::devices`], and never both at once.
    pub(crate) fn ports(&self) -> MutexGuard<'_, Ports> {
        lock(&self.ports)
    }

    pub(crate) fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// A notification that KVM did not take care of.
    pub(crate) fn notified(&self) {
        self.notify_exits.fetch_add(1, Ordering::Relaxed);
        self.signals.wake();
    }

    pub(crate) fn notify_exits(&self) -> u64 {
        self.notify_exits.load(Ordering::Relaxed)
    }

    /// The machine has ended. The first who says so is heard.
    pub(crate) fn end(&self, end: Final) {
        lock(&self.end).get_or_insert(end);
        self.signals.wake();
    }

    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.end).is_some()
    }

    /// A checkpoint was put back: what was wished of the machine before was of another life.
    pub(crate) fn forget_end(&self) {
        *lock(&self.end) = None;
        self.signals.wishes.store(0, Ordering::SeqCst);
    }

    pub(crate) fn take_end(&self) -> Option<Final> {
        lock(&self.end).take()
    }
}
