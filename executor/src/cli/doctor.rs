//! `quorate doctor`: what the host offers, and in plain words what will work on it.

use quorate_vmm::{Backend, HostReport, KvmAccess, ProbeReport, host, open_kvm, probe};
use serde::Serialize;

use super::DoctorArgs;
use super::progress::answer;
use crate::exit::{ExitCode, Failure};

const MIB: u64 = 1 << 20;
/// Memory of a small set: three replicas with 256 MiB each.
const SMALL_SET: u64 = 3 * 256 * MIB;

/// Everything that was found out.
#[derive(Debug, Serialize)]
struct Findings {
    host: HostReport,
    /// What was measured; absent if it could not be.
    probe: Option<ProbeReport>,
    /// Why it could not be measured.
    problem: Option<String>,
    /// Whether `quorate run` works here.
    embedded_guest: bool,
    /// Whether guests with a Linux kernel can be expected to run here.
    linux_guests: bool,
}

pub fn doctor(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let host = host();
    let probed = match host.access {
        KvmAccess::Usable => open_kvm()
            .and_then(|kvm| probe(&kvm))
            .map_err(|error| error.to_string()),
        _ => Err("nothing could be measured without KVM".to_owned()),
    };
    let findings = judge(host, probed);
    if args.json {
        let json = serde_json::to_string_pretty(&findings).map_err(|error| {
            Failure::new(
                ExitCode::Internal,
                format!("the findings are no JSON: {error}"),
            )
        })?;
        answer(&json);
    } else {
        answer(&describe(&findings));
    }
    Ok(if findings.embedded_guest {
        ExitCode::Success
    } else {
        ExitCode::Host
    })
}

fn judge(host: HostReport, probed: Result<ProbeReport, String>) -> Findings {
    let (probe, problem) = match probed {
        Ok(report) => (Some(report), None),
        Err(problem) => (None, Some(problem)),
    };
    let embedded_guest = probe.is_some_and(|report| report.fsgsbase);
    let linux_guests = probe.is_some_and(|report| report.native_ring0());
    Findings {
        host,
        probe,
        problem,
        embedded_guest,
        linux_guests,
    }
}

fn describe(findings: &Findings) -> String {
    let Findings {
        host,
        probe,
        problem,
        ..
    } = findings;
    let mut lines = Vec::new();
    lines.push(match &host.access {
        KvmAccess::Usable => format!("KVM: usable, {}", backend(host.backend)),
        KvmAccess::Missing => {
            "KVM: there is no /dev/kvm. Load kvm_intel or kvm_amd, or turn on nested \
            virtualisation if this is a virtual machine."
                .to_owned()
        }
        KvmAccess::NoPermission => {
            "KVM: no permission to open /dev/kvm. Add this user to the group that owns it \
            (often `kvm`), then log in again."
                .to_owned()
        }
        KvmAccess::Broken(why) => format!("KVM: /dev/kvm does not work: {why}"),
    });
    lines.push(format!(
        "Host: {} processors, {} MiB of memory, {} MiB of it available",
        host.processors,
        host.memory_total / MIB,
        host.memory_available / MIB
    ));
    if let Some(report) = probe {
        lines.push(format!(
            "Speed: {:.0} million instructions/s at CPL 3 (programs and the embedded kernel), {} at CPL 0",
            report.cpl3_mips,
            if report.cpl0_mips < 10.0 { format!("{:.2}", report.cpl0_mips) } else { format!("{:.0}", report.cpl0_mips) },
        ));
        lines.push(format!(
            "Cost: a boundary's exit {:.1} us, a system call through the monitor {:.1} us (SYSCALL arrives at CPL {})",
            report.exit_ns / 1000.0,
            report.syscall_ns / 1000.0,
            report.syscall_cpl
        ));
        let cpuid = match (report.cpuid_kept, report.cpuid_trappable) {
            (true, _) => "guests see the CPUID that Quorate gives them",
            (false, true) => "guests see the host's CPUID, so Quorate traps it",
            (false, false) => "guests see the host's CPUID, and it cannot be trapped",
        };
        lines.push(format!("CPUID: {cpuid}"));
    }
    if let Some(problem) = problem {
        lines.push(format!("Measured: {problem}"));
    }
    lines.push(match (findings.embedded_guest, probe) {
        (true, _) => "Embedded guest (Linux programs on Quorate's own kernel): works here.".to_owned(),
        (false, Some(_)) => {
            "Embedded guest: does not work here, the processor does not offer `wrfsbase` to programs.".to_owned()
        }
        (false, None) => "Embedded guest: does not work here.".to_owned(),
    });
    lines.push(
        match (findings.linux_guests, probe) {
            (true, _) => "Linux guests (a kernel at CPL 0): their code runs at full speed here.",
            (false, Some(_)) => {
                "Linux guests: do not work here, this KVM interprets a kernel at CPL 0 instruction by instruction."
            }
            (false, None) => "Linux guests: do not work here.",
        }
        .to_owned(),
    );
    if host.memory_available != 0 && host.memory_available < SMALL_SET {
        lines.push(
            "Memory: too little for three replicas of 256 MiB; use fewer or smaller ones."
                .to_owned(),
        );
    }
    if host.processors < 2 {
        lines.push("Processors: replicas take turns on the only one.".to_owned());
    }
    lines.join("\n") + "\n"
}

fn backend(backend: Backend) -> &'static str {
    match backend {
        Backend::Intel => "by Intel VMX",
        Backend::Amd => "by AMD SVM",
        Backend::PageTables => "by page tables (kvm_pvm), without the processor's help",
        Backend::Unknown => "by a module of unknown name",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(access: KvmAccess) -> HostReport {
        HostReport {
            access,
            backend: Backend::PageTables,
            processors: 2,
            memory_total: 8 << 30,
            memory_available: 4 << 30,
        }
    }

    fn measured(cpl0_mips: f64) -> ProbeReport {
        ProbeReport {
            cpl3_mips: 6000.0,
            cpl0_mips,
            exit_ns: 18_000.0,
            syscall_ns: 2_600.0,
            syscall_cpl: 3,
            fsgsbase: true,
            cpuid_kept: true,
            cpuid_trappable: true,
            took_ms: 50.0,
        }
    }

    #[test]
    fn an_interpreted_kernel_rules_out_linux_guests_only() {
        let findings = judge(host(KvmAccess::Usable), Ok(measured(1.35)));
        assert!(findings.embedded_guest && !findings.linux_guests);
        let text = describe(&findings);
        assert!(
            text.contains("Embedded guest (Linux programs on Quorate's own kernel): works here."),
            "{text}"
        );
        assert!(text.contains("Linux guests: do not work here"), "{text}");
        assert!(text.contains("1.35"), "{text}");
        assert!(judge(host(KvmAccess::Usable), Ok(measured(5000.0))).linux_guests);
    }

    #[test]
    fn without_rights_it_says_what_to_do() {
        let findings = judge(host(KvmAccess::NoPermission), Err("nothing".to_owned()));
        assert!(!findings.embedded_guest);
        let text = describe(&findings);
        assert!(text.contains("group that owns it"), "{text}");
        assert!(
            text.contains("Embedded guest: does not work here."),
            "{text}"
        );
    }
}
