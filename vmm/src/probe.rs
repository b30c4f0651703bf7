//! What the host offers, measured: for `quorate doctor`. The measuring takes about 50 ms in a VM of its own.

use crate::LayoutKind;
use crate::error::MachineError;
use crate::machine::{Machine, MachineConfig, Outcome, ProgramSpec, StartTime, open_kvm};
use crate::stub::Stub;
use kvm_ioctls::{Kvm, VcpuExit};
use quorate_abi::boot::{BootInfo, selector};
use quorate_abi::map::MIN_RAM;
use quorate_abi::sync::{MONITOR_PANIC_PORT, SYNC_PORT, offset};
use quorate_devices::{Entry, NoDisks};
use serde::{Deserialize, Serialize};
use std::fs;
use std::mem::offset_of;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// What implements KVM on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Intel VMX (`kvm_intel`).
    Intel,
    /// AMD SVM (`kvm_amd`).
    Amd,
    /// Page tables, without the processor's help (`kvm_pvm`).
    PageTables,
    /// No module of a known name.
    Unknown,
}

impl Backend {
    /// By the modules that the kernel has.
    #[must_use]
    pub fn detect() -> Self {
        let modules = [
            ("kvm_intel", Self::Intel),
            ("kvm_amd", Self::Amd),
            ("kvm_pvm", Self::PageTables),
        ];
        let sys = Path::new("/sys/module");
        let found = modules.iter().find(|(name, _)| sys.join(name).exists());
        found.map_or(Self::Unknown, |&(_, backend)| backend)
    }
}

/// What this user may do with `/dev/kvm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvmAccess {
    /// It can be used.
    Usable,
    /// There is none.
    Missing,
    /// No right to it.
    NoPermission,
    /// It is there, and does not work: why.
    Broken(String),
}

/// What the host is, without measuring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// Rights on `/dev/kvm`.
    pub access: KvmAccess,
    /// What implements KVM.
    pub backend: Backend,
    /// Processors that this process may use.
    pub processors: usize,
    /// Memory of the host in bytes; 0 if unknown.
    pub memory_total: u64,
    /// Memory that is available without swapping, in bytes; 0 if unknown.
    pub memory_available: u64,
}

/// What was measured in a VM.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Million instructions per second at CPL 3, where the embedded guest runs.
    pub cpl3_mips: f64,
    /// Million instructions per second at CPL 0, where only the monitor runs (and a Linux guest's kernel).
    pub cpl0_mips: f64,
    /// A port access at CPL 3 to user space and back, nanoseconds.
    pub exit_ns: f64,
    /// SYSCALL and back, nanoseconds.
    pub syscall_ns: f64,
    /// The privilege level at which SYSCALL arrives: 0 as the processor's manual says, or 3.
    pub syscall_cpl: u8,
    /// Whether `wrfsbase` works at CPL 3. The embedded guest needs it.
    pub fsgsbase: bool,
    /// Whether KVM shows the guest the CPUID that it was given.
    pub cpuid_kept: bool,
    /// Whether `cpuid` can be made a fault.
    pub cpuid_trappable: bool,
    /// The time that all of this took, milliseconds.
    pub took_ms: f64,
}

impl ProbeReport {
    /// Whether guests with a kernel at CPL 0 (Linux) can be expected to run: it is not interpreted.
    #[must_use]
    pub fn native_ring0(&self) -> bool {
        self.cpl0_mips > self.cpl3_mips / 20.0
    }
}

/// Looks at the host.
#[must_use]
pub fn host() -> HostReport {
    let access = match open_kvm() {
        Ok(_) => KvmAccess::Usable,
        Err(MachineError::NoKvm) => KvmAccess::Missing,
        Err(MachineError::KvmPermission) => KvmAccess::NoPermission,
        Err(error) => KvmAccess::Broken(error.to_string()),
    };
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    HostReport {
        access,
        backend: Backend::detect(),
        processors: thread::available_parallelism().map_or(1, usize::from),
        memory_total: meminfo_bytes(&meminfo, "MemTotal:"),
        memory_available: meminfo_bytes(&meminfo, "MemAvailable:"),
    }
}

fn meminfo_bytes(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

std::arch::global_asm!(
    r#"
    .section .rodata.quorate_probe, "a"
    .balign 16
quorate_probe:
    .skip 64
qp_entry:
    mov rax, [rdi + {info_sync}]
    mov dword ptr [rax + {op}], 1
    mov edx, {port}
    out dx, eax
    # r12 iterations of two instructions at CPL 3.
2:
    dec r12
    jnz 2b
    out dx, eax
    # r12 exits.
3:
    out dx, eax
    dec r12
    jnz 3b
    out dx, eax
    # r12 system calls. The handler leaves CS in r14.
4:
    syscall
    dec r12
    jnz 4b
    mov [rax + {print}], r14
    out dx, eax
    # r12 iterations of two instructions at CPL 0, four times: for the handler of #UD. r15 is the length to skip.
    mov r15d, 2
    ud2
    out dx, eax
    ud2
    out dx, eax
    ud2
    out dx, eax
    ud2
    out dx, eax
    # wrfsbase, with a #UD if it does not exist.
    mov r12d, 1
    mov r15d, 5
    xor r14d, r14d
    mov rcx, 0x123456789000
    xor r13d, r13d
    wrfsbase rcx
    mov [rax + {print}], r13
    out dx, eax
qp_spin:
    jmp qp_spin

qp_syscall_entry:
    mov r14d, cs
    test r14d, 3
    jz 5f
    jmp rcx
5:
    mov r13, rsp
    push {data3}
    push r13
    push r11
    push {code3}
    push rcx
    iretq

    .balign 16
qp_vectors:
    .set qp_vector, 0
    .rept 32
    .balign 16
    push qp_vector
    jmp qp_common
    .set qp_vector, qp_vector + 1
    .endr
    .balign 16
qp_common:
    cmp dword ptr [rsp], 6
    jne 7f
    add rsp, 8
6:
    dec r12
    jnz 6b
    mov r13d, 1
    add [rsp], r15
    iretq
7:
    pop rax
    mov edx, {panic}
    out dx, eax
    hlt
    .balign 8
quorate_probe_end:
    .global quorate_probe_offsets
quorate_probe_offsets:
    .quad quorate_probe - quorate_probe_offsets
    .quad quorate_probe_end - quorate_probe
    .quad qp_vectors - quorate_probe
    .quad qp_syscall_entry - quorate_probe
    .quad qp_entry - quorate_probe
    .quad qp_spin - quorate_probe
    .text
"#,
    info_sync = const offset_of!(BootInfo, sync_page),
    op = const offset::OP,
    print = const offset::FINGERPRINT,
    port = const SYNC_PORT,
    panic = const MONITOR_PANIC_PORT,
    data3 = const selector::DATA3,
    code3 = const selector::CODE3,
);

unsafe extern "C" {
    static quorate_probe_offsets: [i64; 6];
}

fn stub() -> Stub {
    // SAFETY: The assembly above defines the table as read-only data, and in front of it, at the distance that its first
    // entry says, as many bytes of code as its second entry says.
    let (code, offsets) = unsafe {
        let table = &raw const quorate_probe_offsets;
        let [to_code, len, ..] = *table;
        let start = table.cast::<u8>().offset(to_code as isize);
        (std::slice::from_raw_parts(start, len as usize), *table)
    };
    let [_, _, vectors, syscall_entry, entry, spin] = offsets.map(|offset| offset as u64);
    Stub {
        code: code.to_vec(),
        vectors,
        syscall_entry,
        entry,
        spin,
    }
}

/// What the bare port access costs is measured over this many.
const EXITS: u64 = 200;
/// As [`EXITS`], for system calls.
const SYSCALLS: u64 = 500;
const CPL3_LOOPS: u64 = 10_000_000;
/// Few at first: CPL 0 may be interpreted.
const CPL0_LOOPS: u64 = 4_000;
/// If those took less, this many are measured.
const CPL0_QUICK: Duration = Duration::from_micros(800);
const CPL0_MORE_LOOPS: u64 = 5_000_000;
/// A KVM on which the probe takes longer does not work.
const LIMIT: Duration = Duration::from_secs(5);

/// Measures in a small VM.
///
/// # Errors
///
/// If the machine cannot be made, or does not do what it should.
pub fn probe(kvm: &Kvm) -> Result<ProbeReport, MachineError> {
    let started = Instant::now();
    let mut machine = Machine::new(
        kvm,
        &MachineConfig {
            kernel: stub().elf().into(),
            image: None,
            memory_bytes: MIN_RAM,
            layout: LayoutKind::Same,
            layout_seed: [0; 32],
            input_seed: [0; 32],
            program: ProgramSpec {
                argv: vec!["probe".into()],
                ..ProgramSpec::default()
            },
            start: StartTime::default(),
            disks: Vec::new(),
        },
    )?;
    let kicker = machine.kicker();
    let (done, watch) = channel::<()>();
    let watchdog = thread::spawn(move || {
        if watch.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            kicker.kick();
        }
    });
    let report = measure(&mut machine, started);
    drop(done);
    // It only waits and kicks: it cannot panic.
    let _ = watchdog.join();
    report
}

fn measure(machine: &mut Machine, started: Instant) -> Result<ProbeReport, MachineError> {
    step(machine, "start")?;

    machine.set_r12(CPL3_LOOPS)?;
    let (cpl3, _) = step(machine, "CPL 3")?;

    machine.set_r12(EXITS)?;
    let mut exits = Vec::new();
    for _ in 0..EXITS {
        let before = Instant::now();
        match machine.vcpu.run() {
            Ok(VcpuExit::IoOut(SYNC_PORT, _)) => exits.push(before.elapsed()),
            other => return Err(failed("exits", format!("{other:?}"))),
        }
    }
    step(machine, "exits")?;
    exits.sort_unstable(); // The median: other load on the host shall not count.
    let exit = exits.get(exits.len() / 2).copied().unwrap_or_default();

    machine.set_r12(SYSCALLS)?;
    let (syscalls, cs) = step(machine, "SYSCALL")?;

    // The first is only to touch everything; the second gives the cost of the exception itself.
    let mut at_cpl0 = |loops| {
        machine.set_r12(loops)?;
        Ok::<_, MachineError>(step(machine, "CPL 0")?.0)
    };
    at_cpl0(1)?;
    let exception = at_cpl0(1)?;
    let few = at_cpl0(CPL0_LOOPS)?.saturating_sub(exception);
    let loops = if few < CPL0_QUICK {
        CPL0_MORE_LOOPS
    } else {
        CPL0_LOOPS
    };
    let time = at_cpl0(loops)?.saturating_sub(exception);
    let cpl0_mips = mips(loops, time);
    let (_, undefined) = step(machine, "wrfsbase")?;
    Ok(ProbeReport {
        cpl3_mips: mips(CPL3_LOOPS, cpl3),
        cpl0_mips,
        exit_ns: exit.as_nanos() as f64,
        syscall_ns: syscalls.as_nanos() as f64 / SYSCALLS as f64,
        syscall_cpl: (cs & 3) as u8,
        fsgsbase: undefined == 0,
        cpuid_kept: machine.cpuid_kept()?,
        cpuid_trappable: machine.trap_cpuid().is_ok(),
        took_ms: started.elapsed().as_secs_f64() * 1e3,
    })
}

/// Two instructions per loop.
fn mips(loops: u64, time: Duration) -> f64 {
    2.0 * loops as f64 / time.as_secs_f64().max(1e-9) / 1e6
}

/// Runs to the next boundary and completes it. Returns the time to get there, and the guest's finding.
fn step(machine: &mut Machine, what: &'static str) -> Result<(Duration, u64), MachineError> {
    let before = Instant::now();
    let outcome = machine.run();
    let time = before.elapsed();
    let finding = match outcome {
        Outcome::Boundary(boundary) => match boundary.outputs.first() {
            Some(quorate_devices::Output::Fingerprint { digest, .. }) => digest[0],
            _ => 0,
        },
        Outcome::Kicked => return Err(failed(what, format!("nothing within {LIMIT:?}"))),
        Outcome::Crash(report) => return Err(failed(what, report.kind.to_string())),
        Outcome::Misbehaved(error) => return Err(error.into()),
        Outcome::Stopped => return Err(failed(what, "a port that it does not have".to_owned())),
    };
    machine.resume(&Arc::new(Entry::default()), &mut NoDisks)?;
    Ok((time, finding))
}

fn failed(what: &'static str, how: String) -> MachineError {
    MachineError::Probe { what, how }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_probe_measures_what_there_is() {
        let report = probe(&open_kvm().unwrap()).unwrap();
        eprintln!("{report:?}");
        assert!(report.cpl3_mips > 1.0);
        assert!(report.cpl0_mips > 0.01);
        assert!(report.exit_ns > 0.0 && report.syscall_ns > 0.0);
        assert!(matches!(report.syscall_cpl, 0 | 3));
        assert!(report.fsgsbase);
    }

    #[test]
    fn the_host_is_described() {
        let host = host();
        assert_eq!(host.access, KvmAccess::Usable);
        assert!(host.memory_total > host.memory_available && host.memory_available > 0);
        assert!(host.processors > 0);
    }

    #[test]
    fn meminfo_is_parsed_or_unknown() {
        assert_eq!(meminfo_bytes("MemTotal:  12 kB\n", "MemTotal:"), 12288);
        for bad in ["", "MemTotal: x kB", "MemTotal: 12", "MemTotal: -1 kB"] {
            assert_eq!(meminfo_bytes(bad, "MemTotal:"), 0, "{bad:?}");
        }
    }
}
