//! Linux machines: how long they take to a shell, and how many requests three relaxed replicas answer, beside the same kernel, initial RAM
//! disk and root disk in one plain machine under QEMU. Everything in one run, requests in turns.
//!
//! Where ring 0 is interpreted no Linux machine runs: the measuring goes on in the SVM lane then, on the same binaries.

mod guest;
mod http;
mod report;

use std::process::{Command, Stdio};
use std::time::Duration;

use quorate_tests::repository;
use quorate_vmm::linux::refusal;
use quorate_vmm::{open_kvm, probe};
use serde_json::{Value, json};

use guest::{Guest, Kind};
use http::Sample;

/// Who answers requests.
const SERVERS: [Kind; 4] = [
    Kind::Plain,
    Kind::Replicas(1),
    Kind::Replicas(2),
    Kind::Replicas(3),
];
/// Who is started up to a shell.
const SHELLS: [Kind; 3] = [Kind::Plain, Kind::Replicas(1), Kind::Replicas(3)];
/// Requests for each of these, in turns.
const PATHS: [&str; 2] = ["/100", "/120k"];
/// Limit of the whole in the lane, seconds.
const LANE_SECONDS: u32 = 5400;

/// What is started up to a shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shell {
    /// busybox' shell, from the initial RAM disk's first process.
    Busybox,
    /// The login prompt of a small Debian with systemd.
    Login,
}

impl Shell {
    const ALL: [Shell; 2] = [Shell::Busybox, Shell::Login];

    fn name(self) -> &'static str {
        match self {
            Shell::Busybox => "busybox' shell",
            Shell::Login => "systemd's login prompt",
        }
    }

    fn marker(self) -> &'static str {
        match self {
            Shell::Busybox => "a shell of process 1",
            Shell::Login => "login:",
        }
    }

    fn appliance(self) -> Result<String, String> {
        match self {
            Shell::Busybox => Ok(BUSYBOX.to_owned()),
            Shell::Login => text_of("debian-shell"),
        }
    }

    fn starts(self, quick: bool) -> usize {
        match self {
            Shell::Busybox if quick => 1,
            Shell::Busybox => 3,
            Shell::Login if quick => 0,
            Shell::Login => 1,
        }
    }
}

const BUSYBOX: &str = r#"
version = 1
name = "bench-shell"
[image]
packages = ["busybox-static"]
[program]
command = ["/bin/busybox", "sh", "-c", "echo a shell of process 1; exec /bin/busybox sleep 100000"]
[linux]
[machine]
memory = "256M"
"#;

/// Everything that was measured.
#[derive(Default)]
pub struct Linux {
    /// Seconds to a shell, of each start.
    shells: Vec<(Shell, Kind, Vec<f64>)>,
    /// Seconds from the start of a server to its first answer. They start one after the other.
    first_answer: Vec<(Kind, f64)>,
    /// A sample of each round.
    requests: Vec<(&'static str, Kind, Vec<Sample>)>,
    lane: bool,
    /// What went wrong. A figure beside a failure does not count.
    pub failures: Vec<String>,
}

/// Whether this machine's KVM runs Linux machines.
pub fn runs_here() -> bool {
    let report = open_kvm().and_then(|kvm| probe(&kvm));
    report.is_ok_and(|report| refusal(&report).is_none())
}

/// Measures in the SVM lane; false if anything went wrong there.
pub fn in_the_lane(quick: bool, docs: bool) -> bool {
    let attempt = || -> Result<bool, String> {
        // The lane has no network: images are built before.
        for shell in Shell::ALL {
            guest::build(&shell.appliance()?)?;
        }
        guest::build(&text_of("nginx-linux")?)?;
        super::say("Linux machines do not run on this machine's KVM: on to the SVM lane");
        let me = std::env::current_exe().map_err(|error| error.to_string())?;
        let kept = repository().join("target/bench");
        std::fs::create_dir_all(&kept).map_err(|error| format!("{}: {error}", kept.display()))?;
        let mut command = Command::new(repository().join("scripts/svm"));
        command.arg("--out").arg(&kept).arg(me).arg("--only-linux");
        if quick {
            command.arg("--quick");
        }
        command
            .env("SVM_SECONDS", LANE_SECONDS.to_string())
            .current_dir(repository())
            .stdin(Stdio::null());
        let status = command
            .status()
            .map_err(|error| format!("scripts/svm: {error}"))?;
        if status.success() && docs {
            let path = kept.join("linux.md");
            let report = std::fs::read_to_string(&path)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            super::put_into_docs(&report, &super::marks(Some(super::Part::Linux)))?;
        }
        Ok(status.success())
    };
    attempt().unwrap_or_else(|error| {
        super::say(&error);
        false
    })
}

/// The text of a ready-made appliance.
fn text_of(name: &str) -> Result<String, String> {
    let path = repository().join(format!("images/appliances/{name}.toml"));
    std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Measures.
pub fn measure(quick: bool) -> Linux {
    let mut linux = Linux {
        lane: std::env::var_os("QUORATE_LANE").is_some(),
        ..Linux::default()
    };
    for shell in Shell::ALL {
        linux.shells(shell, shell.starts(quick));
    }
    let (rounds, seconds) = if quick { (1, 3) } else { (3, 12) };
    if let Err(error) = linux.servers(rounds, Duration::from_secs(seconds)) {
        super::say(&error);
        linux.failures.push(error);
    }
    linux
}

impl Linux {
    fn shells(&mut self, shell: Shell, starts: usize) {
        let mut measured = SHELLS.map(|kind| (shell, kind, Vec::new()));
        for start in 1..=starts {
            for (_, kind, times) in &mut measured {
                let attempt = || -> Result<f64, String> {
                    let guest = Guest::start(*kind, &shell.appliance()?, None)?;
                    let after = guest.shows(shell.marker())?;
                    guest.stop()?;
                    Ok(after)
                };
                let what = format!("{}, {}, start {start}", shell.name(), kind.name());
                match attempt() {
                    Ok(after) => {
                        super::say(&format!("{what}: {after:.1} s"));
                        times.push(after);
                    }
                    Err(error) => {
                        super::say(&format!("{what}: {error}"));
                        self.failures.push(format!("{what}: {error}"));
                    }
                }
            }
        }
        self.shells.extend(measured);
    }

    fn servers(&mut self, rounds: usize, long: Duration) -> Result<(), String> {
        let appliance = text_of("nginx-linux")?;
        let mut guests = Vec::new();
        for kind in SERVERS {
            let guest = Guest::start(kind, &appliance, Some(80))?;
            let after = http::first_answer(&guest, PATHS[0])
                .map_err(|error| format!("{}: {error}", kind.name()))?;
            super::say(&format!(
                "nginx, {}: first answer after {after:.1} s",
                kind.name()
            ));
            self.first_answer.push((kind, after));
            guests.push(guest);
        }
        for path in PATHS {
            let mut samples = SERVERS.map(|kind| (path, kind, Vec::new()));
            for round in 1..=rounds {
                for (guest, (_, kind, samples)) in guests.iter().zip(&mut samples) {
                    let sample = http::load(guest, path, long)
                        .map_err(|error| format!("{}, {path}: {error}", kind.name()))?;
                    super::say(&format!(
                        "nginx, {}, {path}, round {round}: {:.1} requests/s",
                        kind.name(),
                        sample.per_second
                    ));
                    samples.push(sample);
                }
            }
            self.requests.extend(samples);
        }
        for guest in guests {
            guest.stop()?;
        }
        Ok(())
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let shells = self.shells.iter().map(|(shell, kind, times)| {
            json!({ "shell": shell.name(), "server": kind.name(), "seconds": times })
        });
        let answers = self.first_answer.iter();
        let answers =
            answers.map(|(kind, after)| json!({ "server": kind.name(), "seconds": after }));
        let requests = self.requests.iter().map(|(path, kind, samples)| {
            let samples = samples.iter().map(Sample::json).collect::<Vec<_>>();
            json!({ "path": path, "server": kind.name(), "rounds": samples })
        });
        json!({
            "lane": self.lane,
            "connections": http::CONNECTIONS,
            "shells": shells.collect::<Vec<_>>(),
            "first_answer": answers.collect::<Vec<_>>(),
            "requests": requests.collect::<Vec<_>>(),
            "failures": self.failures,
        })
    }
}
