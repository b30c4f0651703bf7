//! The machine: what it is made of, and its device thread.

use super::acpi;
use super::config::{LinuxConfig, LinuxConsole, MAX_LINUX_CPUS};
use super::cpuid;
use super::exchange::Exchange;
use super::fault::LinuxFault;
use super::loader;
use super::map::{POWER_BUTTON_GSI, SERIAL_GSI, gsi};
use super::ports::Ports;
use super::shared::{Final, Shared, Signals, event};
use super::state::Identity;
use super::vcpu::{self, Vcpu};
use crate::checkpoint::{Offers, Tracking, set_slot};
use crate::crash::{CrashKind, CrashReport};
use crate::error::MachineError;
use crate::kick::Kicker;
use crate::machine::{KVM_IDENTITY_MAP, KVM_TSS};
use crate::memory::GuestMemory;
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use quorate_devices::{DeviceError, Entry, NetCounters, Output, VirtioConfig, VirtioSet, Window};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

/// Why [`LinuxMachine::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinuxEnd {
    /// [`LinuxHandle::pause`] was called: all processors stand still, and the guest goes on with the next [`LinuxMachine::run`].
    Paused,
    /// The guest turned itself off. Final.
    PoweredOff,
    /// The guest wants to begin again. Final: whoever runs it makes a new machine.
    Reset,
    /// [`LinuxHandle::kill`] was called. Final.
    Killed,
    /// [`Exchange::exchange`] said so, and why. Final.
    Stopped(String),
    /// The guest cannot go on. Final.
    Crash(CrashReport),
    /// The guest broke the rules of a device (R9). Final.
    Misbehaved(DeviceError),
}

/// Reaches a machine from any thread. Nothing that is asked for is lost, whether the machine runs or not: it is found by the next
/// [`LinuxMachine::run`].
#[derive(Clone, Debug)]
pub struct LinuxHandle {
    signals: Arc<Signals>,
}

impl LinuxHandle {
    /// There is something for the guest: makes the device thread call [`Exchange::exchange`].
    pub fn wake(&self) {
        self.signals.wake();
    }

    /// Makes [`LinuxMachine::run`] return [`LinuxEnd::Paused`].
    pub fn pause(&self) {
        self.signals.wish_pause();
    }

    /// Makes [`LinuxMachine::run`] return [`LinuxEnd::Killed`].
    pub fn kill(&self) {
        self.signals.wish_kill();
    }

    /// Presses the power button: asks the guest to turn itself off. What comes of it is up to the guest.
    pub fn press_power_button(&self) {
        self.signals.press_button();
    }
}

/// What a machine counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinuxCounters {
    /// Calls of [`Exchange::exchange`].
    pub exchanges: u64,
    /// Interrupts raised for virtio devices.
    pub interrupts: u64,
    /// Notifications and status writes of drivers that came to this process as an exit.
    pub notify_exits: u64,
    /// Frames.
    pub net: NetCounters,
}

/// A virtio device's interrupt line.
#[derive(Debug)]
struct Line {
    slot: u64,
    file: EventFd,
}

/// One Linux machine.
#[derive(Debug)]
pub struct LinuxMachine {
    // In this order they are dropped: processors and VM before the memory that they use.
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) vm: VmFd,
    pub(super) shared: Shared,
    pub(super) memory: GuestMemory,
    lines: Vec<Line>,
    pub(super) console: LinuxConsole,
    pub(super) identity: Arc<Identity>,
    pub(super) offers: Offers,
    pub(super) tracking: Option<Tracking>,
    /// The guest has not run, and nothing was put back: memory holds what the loader put there.
    pub(super) pristine: bool,
    /// It cannot run any more, unless a checkpoint is put back.
    pub(super) ended: bool,
    /// The first thing to do is to look at everything and to interrupt everybody: what was on its way is not in a checkpoint.
    pub(super) restored: bool,
    counters: LinuxCounters,
}

const _: () = {
    const fn sendable<T: Send>() {}
    sendable::<LinuxMachine>();
    sendable::<LinuxHandle>();
};

impl LinuxMachine {
    /// Makes a machine that is ready to run its kernel's first instruction.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the configuration, the kernel, or the host.
    pub fn new(kvm: &Kvm, config: &LinuxConfig) -> Result<Self, MachineError> {
        use MachineError as E;
        if config.cpus == 0 || config.cpus > MAX_LINUX_CPUS {
            return Err(LinuxFault::Cpus(config.cpus).into());
        }
        let devices = VirtioSet::new(&VirtioConfig {
            input_seed: config.input_seed,
            disks: config.disks.clone(),
            interrupts: true,
        })?;
        let windows = devices.windows();
        let memory = GuestMemory::new(config.memory_bytes, None)?;
        let tables = acpi::tables(config.cpus, &windows)
            .ok_or_else(|| LinuxFault::Damaged("the ACPI tables do not fit".into()))?;
        let entry = loader::load(config, &memory, &tables)?;

        let vm = kvm.create_vm().map_err(E::kvm("KVM_CREATE_VM"))?;
        vm.set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(E::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(KVM_TSS)
            .map_err(E::kvm("KVM_SET_TSS_ADDR"))?;
        // Before the processors: they get their local interrupt controllers from it.
        vm.create_irq_chip().map_err(E::kvm("KVM_CREATE_IRQCHIP"))?;
        vm.create_pit2(kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        })
        .map_err(E::kvm("KVM_CREATE_PIT2"))?;
        for (index, slot) in (0..).zip(&memory.slots) {
            set_slot(&vm, index, slot, false)?;
        }
        let supported = cpuid::supported(kvm)?;
        let mut vcpus = Vec::<Vcpu>::new();
        for number in 0..config.cpus {
            let fd = vm
                .create_vcpu(number.into())
                .map_err(E::kvm("KVM_CREATE_VCPU"))?;
            let cpuid = cpuid::of_cpu(&supported, number)?;
            vcpu::set_up(&fd, &cpuid, (number == 0).then_some(entry))?;
            let kicker = Kicker::new()?;
            vcpus.push(Vcpu { fd, number, kicker });
        }
        let kickers = vcpus.iter().map(|vcpu| vcpu.kicker.clone()).collect();
        let signals = Signals::new(line(&vm, POWER_BUTTON_GSI)?, kickers)?;
        notify_by_event(&vm, &windows, signals.waker())?;
        let lines = lines(&vm, &windows)?;
        let ports = Ports::new(line(&vm, SERIAL_GSI)?);
        let shared = Shared::new(memory.ram.clone(), devices, ports, Arc::new(signals));
        let offers = match vcpus.first() {
            Some(first) => Offers::find_for_linux(kvm, &first.fd)?,
            None => return Err(LinuxFault::Cpus(0).into()),
        };
        Ok(Self {
            identity: Arc::new(Identity::of(
                config,
                cpuid::of_cpu(&supported, 0)?.as_slice(),
            )),
            offers,
            tracking: None,
            pristine: true,
            vcpus,
            vm,
            shared,
            memory,
            lines,
            console: config.console,
            ended: false,
            restored: false,
            counters: LinuxCounters::default(),
        })
    }

    /// A handle to the machine.
    #[must_use]
    pub fn handle(&self) -> LinuxHandle {
        let signals = Arc::clone(self.shared.signals());
        LinuxHandle { signals }
    }

    /// What the machine counted.
    #[must_use]
    pub fn counters(&self) -> LinuxCounters {
        LinuxCounters {
            notify_exits: self.shared.notify_exits(),
            net: self.shared.devices().net_counters(),
            ..self.counters
        }
    }

    /// Has every notification be an exit to this process instead of something that KVM takes care of: to measure what that saves, and
    /// for whoever must see each of them.
    ///
    /// # Errors
    ///
    /// If KVM refuses.
    pub fn notify_by_exit(&mut self) -> Result<(), MachineError> {
        let windows = self.shared.devices().windows();
        let waker = self.shared.signals().waker();
        each_queue(&windows, |at, queue| {
            self.vm
                .unregister_ioevent(waker, at, queue)
                .map_err(MachineError::kvm("KVM_IOEVENTFD (to take it away)"))
        })
    }

    /// Bytes of guest RAM that the host has backed with pages.
    #[must_use]
    pub fn resident_ram(&self) -> u64 {
        self.memory.resident_ram()
    }

    /// Runs the guest until something ends it or [`LinuxHandle::pause`] is called. This thread is the device thread; each processor
    /// has one of its own meanwhile.
    pub fn run(&mut self, exchange: &mut dyn Exchange) -> LinuxEnd {
        if self.ended {
            return LinuxEnd::Crash(CrashReport {
                kind: CrashKind::NotRunnable,
                registers: None,
                text: String::new(),
            });
        }
        self.pristine = false;
        let Self {
            vcpus,
            shared,
            lines,
            console,
            restored,
            counters,
            ..
        } = self;
        let (shared, lines) = (&*shared, &**lines);
        let signals = shared.signals();
        signals.start();
        thread::scope(|scope| {
            let mut threads = Vec::new();
            for vcpu in vcpus {
                let number = vcpu.number;
                let thread = thread::Builder::new()
                    .name(format!("cpu{number}"))
                    .spawn_scoped(scope, move || vcpu::run(vcpu, shared));
                match thread {
                    Ok(thread) => threads.push((number, thread)),
                    Err(error) => {
                        let why = format!("the host refused a thread for a processor: {error}");
                        shared.end(Final::Stopped(why));
                        break;
                    }
                }
            }
            let mut devices = DeviceThread {
                shared,
                lines,
                console: *console,
                counters,
            };
            {
                // A panic of the other side would otherwise wait for processors that nobody stops.
                let _stop = StopProcessors(signals);
                devices.run(exchange, std::mem::take(restored));
            }
            for (cpu, thread) in threads {
                if thread.join().is_err() {
                    // It has told so itself: see `vcpu::run`.
                    debug_assert!(shared.has_ended(), "processor {cpu}");
                }
            }
        });
        self.ended_how()
    }

    /// All threads are gone.
    fn ended_how(&mut self) -> LinuxEnd {
        let killed = self.shared.signals().killed();
        let Some(end) = self.shared.take_end() else {
            self.ended = killed;
            return match killed {
                true => LinuxEnd::Killed,
                false => LinuxEnd::Paused,
            };
        };
        self.ended = true;
        match end {
            Final::PoweredOff => LinuxEnd::PoweredOff,
            Final::Reset => LinuxEnd::Reset,
            Final::Stopped(why) => LinuxEnd::Stopped(why),
            Final::Misbehaved(error) => LinuxEnd::Misbehaved(error),
            Final::Crash { cpu, kind } => LinuxEnd::Crash(self.report(cpu, kind)),
        }
    }
}

/// Makes all processors leave the guest when it goes, whatever it goes by.
struct StopProcessors<'a>(&'a Signals);

impl Drop for StopProcessors<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// The part of [`LinuxMachine::run`] that is the world's side.
struct DeviceThread<'a> {
    shared: &'a Shared,
    lines: &'a [Line],
    console: LinuxConsole,
    counters: &'a mut LinuxCounters,
}

impl DeviceThread<'_> {
    /// Until the machine ends or is to pause. `anyway`: interrupt all drivers at first.
    fn run(&mut self, exchange: &mut dyn Exchange, anyway: bool) {
        let signals = self.shared.signals();
        if anyway {
            let due = self.shared.devices().interrupt_all();
            self.raise(due);
        }
        loop {
            let wait = match self.pass(exchange) {
                Ok(wait) => wait,
                Err(end) => return self.shared.end(end),
            };
            // The last words of a guest that has turned itself off were taken by the pass that comes after its end.
            if self.shared.has_ended() {
                let _ = self.pass(exchange);
                return;
            }
            if signals.killed() || signals.take_pause() {
                return;
            }
            match wait {
                Wait::Nothing => {}
                Wait::For(time) => signals.wait(time),
            }
        }
    }

    /// Takes what the guest made visible, gives it away, and delivers what there is (R1).
    fn pass(&mut self, exchange: &mut dyn Exchange) -> Result<Wait, Final> {
        let ram = self.shared.ram();
        let mut outputs = Vec::new();
        let (text, status) = {
            let mut ports = self.shared.ports();
            (ports.take_output(), ports.take_status())
        };
        if !text.is_empty() {
            outputs.push(Output::Console(text));
        }
        let (mut more, due) = {
            let mut devices = self.shared.devices();
            let more = devices.collect(ram, &mut outputs);
            let more = more.map_err(Final::Misbehaved)?;
            (more, devices.interrupts(ram).map_err(Final::Misbehaved)?)
        };
        self.raise(due);
        outputs.extend(status.map(|status| Output::Exit { status }));
        self.counters.exchanges += 1;
        let exchanged = exchange.exchange(outputs).map_err(Final::Stopped)?;
        let mut entry = exchanged.entry;
        if self.console == LinuxConsole::Serial && !entry.console.is_empty() {
            let typed = std::mem::take(&mut entry.console);
            self.shared.ports().input(&typed);
        }
        more |= self.deliver(entry, exchange)?;
        Ok(match (more, exchanged.again_in) {
            (true, _) => Wait::Nothing,
            (false, time) => Wait::For(time),
        })
    }

    /// Delivers an entry. True if there is something in a queue again.
    fn deliver(&mut self, entry: Entry, exchange: &mut dyn Exchange) -> Result<bool, Final> {
        let ram = self.shared.ram();
        let entry = Arc::new(entry);
        let (more, due) = {
            let mut devices = self.shared.devices();
            let delivered = devices.deliver(ram, &entry, exchange.reads());
            delivered.map_err(Final::Misbehaved)?;
            let more = devices.listen(ram).map_err(Final::Misbehaved)?;
            (more, devices.interrupts(ram).map_err(Final::Misbehaved)?)
        };
        self.raise(due);
        Ok(more)
    }

    /// Pulses the lines of these devices.
    fn raise(&mut self, due: u64) {
        if due == 0 {
            return;
        }
        for line in self.lines {
            if due >> line.slot & 1 != 0 {
                // It fails only if the counter is full, and KVM takes it down at once.
                let _ = line.file.write(1);
                self.counters.interrupts += 1;
            }
        }
    }
}

/// What the device thread waits for.
enum Wait {
    Nothing,
    For(Option<Duration>),
}

/// An event file that pulses an interrupt line.
fn line(vm: &VmFd, gsi: u32) -> Result<EventFd, MachineError> {
    let file = event()?;
    vm.register_irqfd(&file, gsi)
        .map_err(MachineError::kvm("KVM_IRQFD"))?;
    Ok(file)
}

fn lines(vm: &VmFd, windows: &[Window]) -> Result<Vec<Line>, MachineError> {
    let with_line = windows
        .iter()
        .filter_map(|window| Some((window.slot, gsi(window.slot)?)));
    with_line
        .map(|(slot, gsi)| line(vm, gsi).map(|file| Line { slot, file }))
        .collect()
}

/// Has KVM turn a notification into a write to the waker, without an exit to this process. All queues have the same: a pass looks at
/// every one of them, which costs less than a list of those that were notified would.
fn notify_by_event(vm: &VmFd, windows: &[Window], waker: &EventFd) -> Result<(), MachineError> {
    each_queue(windows, |at, queue| {
        vm.register_ioevent(waker, at, queue)
            .map_err(MachineError::kvm("KVM_IOEVENTFD"))
    })
}

/// For each queue: where its driver notifies, and the number that it writes there.
fn each_queue(
    windows: &[Window],
    mut each: impl FnMut(&IoEventAddress, u32) -> Result<(), MachineError>,
) -> Result<(), MachineError> {
    for window in windows {
        let at = IoEventAddress::Mmio(window.notify());
        for queue in 0..window.queues as u32 {
            each(&at, queue)?;
        }
    }
    Ok(())
}
