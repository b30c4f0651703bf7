//! One virtual machine: made from a [`MachineConfig`], run from boundary to boundary.

use crate::boot::{Boot, exception_frame, prepare};
use crate::checkpoint::{Identity, Image, Offers, Phase, Tracking, set_slot};
use crate::cpuid::guest_cpuid;
use crate::crash::{CrashKind, CrashReport, code_and_stack};
use crate::debug::Debugger;
use crate::error::MachineError;
use crate::kick::Kicker;
use crate::layout::LayoutKind;
use crate::memory::GuestMemory;
use crate::registers::Registers;
use crate::vcpu;
use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use quorate_abi::boot::Layout;
use quorate_abi::flight::STOP_PORT;
use quorate_abi::sync::{DEBUG_PORT, MONITOR_PANIC_PORT, SYNC_PORT};
use quorate_devices::{
    DeviceConfig, DeviceError, DeviceSet, DeviceSetState, DiskConfig, DiskReads, Entry,
    NetCounters, Output,
};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use vm_memory::GuestAddress;

/// Where KVM may put three pages of its own on Intel (KVM_SET_TSS_ADDR); in the hole between low and high RAM.
pub(crate) const KVM_TSS: usize = 0xfffb_d000;
/// As [`KVM_TSS`]: one page for real mode, which is never entered.
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// The only version of the KVM API that ever was.
const KVM_API_VERSION: i32 = 12;

/// The program that the appliance runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramSpec {
    /// Path and arguments.
    pub argv: Vec<String>,
    /// Environment, as `NAME=value`.
    pub envp: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Host name.
    pub hostname: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Other groups; what is beyond `quorate_abi::boot::MAX_GROUPS` is left out.
    pub groups: Vec<u32>,
    /// What the kernel mounts before the program starts, in this order; see `quorate_abi::mount`.
    pub mounts: Vec<Mount>,
}

/// One mount; the fields are the strings of `quorate_abi::mount`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Absolute path in the guest.
    pub target: String,
    /// One of `quorate_abi::mount::kind`.
    pub kind: String,
    /// `diskN`, or empty.
    pub source: String,
    /// Options, separated by commas.
    pub options: String,
}

/// The time at which the guest starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartTime {
    /// Monotonic time in nanoseconds.
    pub monotonic_ns: u64,
    /// Wall-clock time in nanoseconds since 1970.
    pub realtime_ns: u64,
}

/// What a machine is made from.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// The guest kernel's ELF file.
    pub kernel: Arc<[u8]>,
    /// The root image.
    pub image: Option<Arc<File>>,
    /// Guest memory in bytes; a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// How the layout is drawn.
    pub layout: LayoutKind,
    /// Differs from replica to replica: addresses come from it, and nothing that an output can show (R8).
    pub layout_seed: [u8; 32],
    /// The same for all replicas of a set: all randomness that the guest asks for comes from it (R1).
    pub input_seed: [u8; 32],
    /// The program to run.
    pub program: ProgramSpec,
    /// The time at the start.
    pub start: StartTime,
    /// The disks, in the order of their numbers; at most `quorate_abi::map::MAX_DISKS`.
    pub disks: Vec<DiskConfig>,
}

/// What a replica has at a boundary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// Number of this boundary; the first is 0.
    pub index: u64,
    /// Frames, console bytes, then the fingerprint, which is always there, then the exit if the program ended.
    pub outputs: Vec<Output>,
    /// Monotonic time up to which the guest wants to sleep; see `quorate_abi::sync`.
    pub wait_until_ns: u64,
}

/// Why [`Machine::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest is at a boundary: it goes on after [`Machine::resume`].
    Boundary(Boundary),
    /// A [`Kicker`] was used. The guest can go on with the next [`Machine::run`].
    Kicked,
    /// The system call that a replay asked the flight recorder to stop at is complete; see [`quorate_abi::flight`]. The guest
    /// goes on with the next [`Machine::run`].
    Stopped,
    /// The guest cannot go on. Final.
    Crash(CrashReport),
    /// The guest broke the rules of a device (R9). Final.
    Misbehaved(DeviceError),
}

/// What KVM returned with, as far as it is acted upon.
pub(crate) enum Exit {
    Boundary,
    /// The debugger's handler of an exception.
    Trap,
    Stopped,
    /// It was handled: back into the guest.
    Handled,
    Misbehaved(DeviceError),
    Crash(CrashKind),
}

/// One virtual machine with one vCPU.
///
/// The lifecycle: [`Machine::run`] until it returns a boundary, [`Machine::resume`] with the journal's entry, and so on.
/// A machine may be moved between threads, but a vCPU runs best on one.
#[derive(Debug)]
pub struct Machine {
    // In this order they are dropped: the vCPU and the VM before the memory that they use.
    pub(crate) vcpu: VcpuFd,
    pub(crate) vm: VmFd,
    pub(crate) memory: GuestMemory,
    pub(crate) boot: Boot,
    pub(crate) devices: DeviceSet,
    kicker: Kicker,
    pub(crate) phase: Phase,
    vcpu_bytes: u64,
    pub(crate) identity: Arc<Identity>,
    pub(crate) image: Option<Arc<Image>>,
    pub(crate) offers: Offers,
    pub(crate) tracking: Option<Tracking>,
    /// The vCPU has not run and no checkpoint was restored: KVM has cached nothing, and memory holds what was put there by
    /// [`Machine::new`].
    pub(crate) pristine: bool,
    /// The guest crashed or broke a device's rules since the last restore: nothing that its kernel says is believed.
    pub(crate) lost: bool,
    /// While a debugger is attached.
    pub(crate) debugger: Option<Box<Debugger>>,
}

const _: () = {
    const fn sendable<T: Send>() {}
    sendable::<Machine>();
    sendable::<Kicker>();
};

/// Opens `/dev/kvm`.
///
/// # Errors
///
/// If there is none, or no right to it, or it is not KVM: three different errors.
pub fn open_kvm() -> Result<Kvm, MachineError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => MachineError::NoKvm,
        libc::EACCES | libc::EPERM => MachineError::KvmPermission,
        errno => MachineError::KvmUnusable(io::Error::from_raw_os_error(errno)),
    })?;
    match kvm.get_api_version() {
        KVM_API_VERSION => Ok(kvm),
        -1 => Err(MachineError::KvmUnusable(io::Error::last_os_error())),
        other => Err(MachineError::KvmApi(other)),
    }
}

impl Machine {
    /// Makes a machine that is ready to run its kernel's first instruction.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the configuration, the kernel, or the host.
    pub fn new(kvm: &Kvm, config: &MachineConfig) -> Result<Self, MachineError> {
        let memory = GuestMemory::new(config.memory_bytes, config.image.as_deref())?;
        let (cpuid, fsgsbase) = guest_cpuid(kvm)?;
        let boot = prepare(config, &memory, &cpuid)?;
        let devices = DeviceSet::new(
            &DeviceConfig {
                input_seed: config.input_seed,
                sync_page: GuestAddress(boot.sync_page),
                disks: config.disks.clone(),
            },
            &memory.ram,
        )?;
        let kicker = Kicker::new()?;
        let vm = kvm
            .create_vm()
            .map_err(MachineError::kvm("KVM_CREATE_VM"))?;
        // Needed before the vCPU on Intel without "unrestricted guest"; harmless elsewhere.
        vm.set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(MachineError::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(KVM_TSS)
            .map_err(MachineError::kvm("KVM_SET_TSS_ADDR"))?;
        for (index, slot) in (0..).zip(&memory.slots) {
            set_slot(&vm, index, slot, false)?;
        }
        // No interrupt controller: the embedded guest takes no interrupts and never halts.
        let vcpu = vm
            .create_vcpu(0)
            .map_err(MachineError::kvm("KVM_CREATE_VCPU"))?;
        vcpu::set_up(&vcpu, &boot, &cpuid, fsgsbase)?;
        if !vcpu::cpuid_kept(&vcpu)? {
            // The kernel answers from its boot information then.
            vcpu::trap_cpuid(&vcpu)?;
        }
        let vcpu_bytes = kvm
            .get_vcpu_mmap_size()
            .map_err(MachineError::kvm("KVM_GET_VCPU_MMAP_SIZE"))? as u64;
        let offers = Offers::find(kvm, &vcpu)?;
        let image = config.image.clone().map(Image::new).transpose();
        let image = image.map_err(MachineError::Image)?.map(Arc::new);
        Ok(Self {
            identity: Arc::new(Identity::of(config, &cpuid, memory.image.len)),
            image,
            offers,
            tracking: None,
            pristine: true,
            vcpu,
            vm,
            memory,
            boot,
            devices,
            kicker,
            phase: Phase::Runnable,
            vcpu_bytes,
            lost: false,
            debugger: None,
        })
    }

    /// Runs the vCPU to the next boundary.
    pub fn run(&mut self) -> Outcome {
        if self.phase != Phase::Runnable {
            return self.crashed(CrashKind::NotRunnable);
        }
        let exit = self.run_vcpu();
        self.outcome(exit)
    }

    /// What an end of [`Machine::run_vcpu`] means.
    pub(crate) fn outcome(&mut self, exit: Option<Exit>) -> Outcome {
        match exit {
            None => Outcome::Kicked,
            Some(Exit::Misbehaved(error)) => {
                self.lost = true;
                self.phase = Phase::Ended;
                Outcome::Misbehaved(error)
            }
            Some(Exit::Crash(kind)) => self.crashed(kind),
            Some(Exit::Trap) => self.crashed(unexpected_pio(DEBUG_PORT.into(), 4, true)),
            Some(Exit::Stopped) => Outcome::Stopped,
            Some(Exit::Boundary | Exit::Handled) => self.at_boundary(),
        }
    }

    /// Runs the vCPU until something happens that ends [`Machine::run`]; `None` for a kick.
    pub(crate) fn run_vcpu(&mut self) -> Option<Exit> {
        let immediate_exit: *mut u8 = &raw mut self.vcpu.get_kvm_run().immediate_exit;
        // SAFETY: The byte is in the shared `kvm_run` page, which stays mapped as long as `self.vcpu`. From
        // here to the end of this function it is accessed as an atomic only; the kernel reads it.
        let immediate_exit = unsafe { AtomicU8::from_ptr(immediate_exit) };
        // SAFETY: As above; `_entered` is dropped at the end of this function.
        let _entered = unsafe { self.kicker.enter(immediate_exit) };
        self.pristine = false;
        loop {
            if self.kicker.take(immediate_exit) {
                return None;
            }
            match self.run_once() {
                Exit::Handled => {}
                exit => return Some(exit),
            }
        }
    }

    fn run_once(&mut self) -> Exit {
        // An `out` or an MMIO write is half done when KVM_RUN returns with it: the instruction completes when KVM_RUN is
        // called next. Nothing here depends on that, but whoever saves or changes registers calls `settle` first.
        let exit = match self.vcpu.run() {
            Ok(exit) => exit,
            // A signal: the caller looks whether it was a kick.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                return Exit::Handled;
            }
            Err(error) => return Exit::Crash(CrashKind::KvmError(error.to_string())),
        };
        match exit {
            VcpuExit::IoOut(SYNC_PORT, data) if data.len() == 4 => Exit::Boundary,
            VcpuExit::IoOut(STOP_PORT, data) if data.len() == 4 => Exit::Stopped,
            VcpuExit::IoOut(MONITOR_PANIC_PORT, data) => match <[u8; 4]>::try_from(data) {
                Ok(vector) => Exit::Crash(CrashKind::MonitorPanic(u32::from_le_bytes(vector))),
                Err(_) => Exit::Crash(unexpected_pio(MONITOR_PANIC_PORT, data.len(), true)),
            },
            VcpuExit::IoOut(port, data)
                if self.debugger.is_some() && port == u16::from(DEBUG_PORT) && data.len() == 4 =>
            {
                Exit::Trap
            }
            VcpuExit::IoOut(port, data) => Exit::Crash(unexpected_pio(port, data.len(), true)),
            VcpuExit::IoIn(port, data) => Exit::Crash(unexpected_pio(port, data.len(), false)),
            VcpuExit::MmioRead(addr, data) if DeviceSet::is_mmio(addr) => {
                self.devices.mmio_read(addr, data);
                Exit::Handled
            }
            VcpuExit::MmioWrite(addr, data) if DeviceSet::is_mmio(addr) => {
                match self.devices.mmio_write(&self.memory.ram, addr, data) {
                    Ok(()) => Exit::Handled,
                    Err(error) => Exit::Misbehaved(error),
                }
            }
            VcpuExit::MmioRead(addr, data) => Exit::Crash(unexpected_mmio(addr, data.len(), false)),
            VcpuExit::MmioWrite(addr, data) => Exit::Crash(unexpected_mmio(addr, data.len(), true)),
            VcpuExit::Shutdown => Exit::Crash(CrashKind::TripleFault),
            VcpuExit::SystemEvent(kind, _) => Exit::Crash(match kind {
                KVM_SYSTEM_EVENT_CRASH | KVM_SYSTEM_EVENT_RESET | KVM_SYSTEM_EVENT_SHUTDOWN => {
                    CrashKind::Shutdown(kind)
                }
                other => CrashKind::UnexpectedExit(format!("system event {other}")),
            }),
            VcpuExit::Hlt => Exit::Crash(CrashKind::Hlt),
            VcpuExit::InternalError => Exit::Crash(CrashKind::EmulationFailure),
            VcpuExit::FailEntry(reason, _) => Exit::Crash(CrashKind::KvmError(format!(
                "the processor refused to enter the guest (reason {reason:#x})"
            ))),
            VcpuExit::MemoryFault { gpa, .. } => Exit::Crash(CrashKind::KvmError(format!(
                "no host memory behind physical address {gpa:#x}"
            ))),
            VcpuExit::Intr => Exit::Handled,
            other => Exit::Crash(CrashKind::UnexpectedExit(format!("{other:?}"))),
        }
    }

    fn at_boundary(&mut self) -> Outcome {
        use quorate_devices::Request;
        let collected = match self.devices.collect(&self.memory.ram) {
            Ok(collected) => collected,
            Err(error) => {
                self.phase = Phase::Ended;
                return Outcome::Misbehaved(error);
            }
        };
        self.phase = match collected.request.request {
            Request::Sync => Phase::AtBoundary,
            Request::Exit { .. } => Phase::Ended,
            Request::Panic { message } => return self.panicked(message, &collected.outputs),
        };
        Outcome::Boundary(Boundary {
            index: self.devices.boundary(),
            outputs: collected.outputs,
            wait_until_ns: collected.request.wait_until_ns,
        })
    }

    /// Delivers the entry for the boundary that the guest is at, and lets it go on with the next [`Machine::run`]. `reads` has
    /// the data of the disk reads that the entry completes.
    ///
    /// # Errors
    ///
    /// If the machine is not at a boundary, or if the guest has broken a queue that the entry is to be put into: the
    /// replica is then to be stopped (R9).
    pub fn resume(
        &mut self,
        entry: &Arc<Entry>,
        reads: &mut dyn DiskReads,
    ) -> Result<(), MachineError> {
        if self.phase != Phase::AtBoundary {
            return Err(MachineError::NotAtBoundary);
        }
        self.phase = Phase::Ended;
        self.devices.deliver(&self.memory.ram, entry, reads)?;
        self.phase = Phase::Runnable;
        Ok(())
    }

    /// A handle that makes [`Machine::run`] return, from any thread.
    #[must_use]
    pub fn kicker(&self) -> Kicker {
        self.kicker.clone()
    }

    /// The vCPU's registers. At a boundary the instruction that rang the sync device may not be completed yet.
    ///
    /// # Errors
    ///
    /// If KVM does not give them.
    pub fn registers(&self) -> Result<Registers, MachineError> {
        vcpu::registers(&self.vcpu)
    }

    /// Makes `cpuid` a general protection fault (#GP) at CPL 3 ("CPUID faulting"), so that the kernel answers it. This is
    /// the only way to keep the host's features from the guest where [`Machine::cpuid_kept`] is false. To be called before
    /// the first [`Machine::run`], and only for a kernel that handles it.
    ///
    /// # Errors
    ///
    /// If KVM does not offer it.
    pub fn trap_cpuid(&mut self) -> Result<(), MachineError> {
        vcpu::trap_cpuid(&self.vcpu)
    }

    /// Whether KVM kept the CPUID that it was given. A page-table based KVM was seen to replace the feature bits by the
    /// host's.
    ///
    /// # Errors
    ///
    /// If KVM does not say.
    pub fn cpuid_kept(&self) -> Result<bool, MachineError> {
        vcpu::cpuid_kept(&self.vcpu)
    }

    /// Where this replica's regions lie.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.boot.layout
    }

    /// Counters of the network device.
    #[must_use]
    pub fn net_counters(&self) -> NetCounters {
        self.devices.net_counters()
    }

    /// The devices as plain data.
    #[must_use]
    pub fn save_devices(&self) -> DeviceSetState {
        self.devices.save()
    }

    /// Bytes of guest RAM that the host has backed with pages.
    #[must_use]
    pub fn resident_ram(&self) -> u64 {
        self.memory.resident_ram()
    }

    /// Bytes beyond the program's own use of guest RAM that this machine takes in this process: the kernel with its boot block
    /// (which lie in guest RAM), the vCPU's shared pages, and frames that wait for the guest. KVM's own
    /// memory is the host kernel's and not counted.
    #[must_use]
    pub fn memory_overhead(&self) -> u64 {
        let waiting = self.devices.waiting_bytes() as u64;
        self.boot.reserved.len + self.vcpu_bytes + size_of::<Self>() as u64 + waiting
    }

    fn panicked(&mut self, message: String, outputs: &[Output]) -> Outcome {
        let console = outputs.iter().filter_map(|output| match output {
            Output::Console(text) => Some(text.as_slice()),
            _ => None,
        });
        let console: Vec<u8> = console.flatten().copied().collect();
        self.crash_with(CrashKind::GuestPanic(message), &console)
    }

    fn crashed(&mut self, kind: CrashKind) -> Outcome {
        let console = self.devices.last_words(&self.memory.ram);
        self.crash_with(kind, &console)
    }

    fn crash_with(&mut self, kind: CrashKind, console: &[u8]) -> Outcome {
        self.lost = true;
        self.phase = Phase::Ended;
        let registers = self.registers().ok();
        let text = registers.map_or_else(String::new, |at| self.describe(&at, console));
        let registers = registers.map(Box::new);
        Outcome::Crash(CrashReport {
            kind,
            registers,
            text,
        })
    }

    /// For a reader of a report. Nothing that is read here is trusted (R9).
    fn describe(&self, at: &Registers, console: &[u8]) -> String {
        let ram = &self.memory.ram;
        let mut text = String::new();
        // Writing to a string does not fail.
        let layout = &self.boot.layout;
        if let Some(offset) = at
            .rip
            .checked_sub(layout.kernel)
            .filter(|&offset| offset < 1 << 28)
        {
            let _ = writeln!(text, "rip is at kernel + {offset:#x}");
        }
        text.push_str(&code_and_stack(ram, at));
        if let Some([rip, cs, rflags, rsp, ss]) = exception_frame(ram, &self.boot)
            && cs != 0
        {
            let _ = writeln!(
                text,
                "last exception from CPL 3: rip={rip:x} cs={cs:x} rflags={rflags:x} rsp={rsp:x} ss={ss:x} (kernel + {:#x})",
                rip.wrapping_sub(layout.kernel)
            );
        }
        if !console.is_empty() {
            let _ = writeln!(text, "console: {}", String::from_utf8_lossy(console));
        }
        text
    }

    /// Completes an I/O instruction that is half done, so that the registers can be changed or saved: KVM does that when it is
    /// entered, and leaves at once since it is told to.
    pub(crate) fn settle(&mut self) -> Result<(), MachineError> {
        vcpu::settle(&mut self.vcpu)
    }
}

fn unexpected_pio(port: u16, len: usize, write: bool) -> CrashKind {
    CrashKind::UnexpectedPio { port, len, write }
}

fn unexpected_mmio(addr: u64, len: usize, write: bool) -> CrashKind {
    CrashKind::UnexpectedMmio { addr, len, write }
}
