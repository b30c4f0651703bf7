//! Facts about the machine, without which no figure means anything.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

/// What the figures were measured on.
#[derive(Clone)]
pub struct Host {
    /// Model name of the processor.
    pub cpu: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Release of the host's kernel.
    pub kernel: String,
    /// Findings of `quorate doctor --json`: the KVM backend, and what was measured in a probe VM.
    pub doctor: Value,
    /// The commit that is checked out.
    pub commit: String,
    /// Today's date.
    pub date: String,
    /// Load average over a minute, before the measuring.
    pub load: String,
}

impl Host {
    /// Looks.
    pub fn look() -> Host {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| line.split_once(':'))
            .map_or("unknown", |(_, model)| model.trim());
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory_kib = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|kib| kib.parse::<u64>().ok())
            .unwrap_or(0);
        let doctor = match quorate_tests::set::quorate() {
            Ok(quorate) => output(Command::new(quorate).args(["doctor", "--json"])),
            Err(_) => String::new(),
        };
        let commit = output(
            Command::new("git")
                .args(["rev-parse", "--short=12", "HEAD"])
                .current_dir(quorate_tests::repository()),
        );
        Host {
            cpu: cpu.to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_kib / 1024,
            kernel: read("/proc/sys/kernel/osrelease"),
            doctor: serde_json::from_str(&doctor).unwrap_or(Value::Null),
            commit,
            date: output(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
        }
    }

    /// The KVM backend in words.
    pub fn backend(&self) -> String {
        let backend = &self.doctor["host"]["backend"];
        match backend.as_str() {
            Some("page-tables") => "KVM by page tables (kvm_pvm)".to_owned(),
            Some("intel") => "KVM by Intel VMX".to_owned(),
            Some("amd") => "KVM by AMD SVM".to_owned(),
            _ => "KVM of an unknown kind".to_owned(),
        }
    }

    /// One figure of the probe VM.
    pub fn probed(&self, key: &str) -> Option<f64> {
        self.doctor["probe"][key].as_f64()
    }

    /// One line.
    pub fn line(&self) -> String {
        let mut text = format!(
            "{} x {}, {} MiB, Linux {}, {}",
            self.cpus,
            self.cpu,
            self.memory_mib,
            self.kernel,
            self.backend()
        );
        if let Some(exit) = self.probed("exit_ns") {
            text.push_str(&format!(
                " with an exit of {:.1} us to user space and back",
                exit / 1000.0
            ));
        }
        text
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "cpu": self.cpu, "cpus": self.cpus, "memory_mib": self.memory_mib, "kernel": self.kernel,
            "doctor": self.doctor, "commit": self.commit, "date": self.date, "load_average": self.load,
        })
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// What a command prints; nothing if it cannot be run.
fn output(command: &mut Command) -> String {
    match command.output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(_) => String::new(),
    }
}
