//! One plain machine under QEMU, or a set of relaxed replicas, of the same appliance.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use quorate_images::{Appliance, BuildOptions, BuiltImage, default_cache_dir};
use quorate_tests::process::Process;
use quorate_tests::set::{START_TIMEOUT, quorate};

/// How long a start may take; longer in the lane.
pub const LONG: Duration = Duration::from_secs(60);

/// Who runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// QEMU with KVM, virtio by MMIO (`-M microvm`), its own user-mode network.
    Plain,
    /// So many relaxed replicas.
    Replicas(u8),
}

impl Kind {
    /// For tables.
    pub fn name(self) -> String {
        match self {
            Kind::Plain => "plain".to_owned(),
            Kind::Replicas(replicas) => format!("N={replicas}"),
        }
    }
}

/// One that was started. It is killed when this is dropped.
pub struct Guest {
    process: Process,
    started: Instant,
    kind: Kind,
    address: Option<SocketAddr>,
    directory: tempfile::TempDir,
}

impl Guest {
    /// Starts one, and publishes a port.
    ///
    /// # Errors
    /// When its image cannot be built or the program not be started.
    pub fn start(kind: Kind, appliance: &str, port: Option<u16>) -> Result<Guest, String> {
        let text = |error: std::io::Error| error.to_string();
        let directory = tempfile::tempdir().map_err(text)?;
        let host = match port {
            Some(_) => Some(free_port().map_err(text)?),
            None => None,
        };
        let published = host.zip(port);
        let command = match kind {
            Kind::Plain => plain(appliance, published)?,
            Kind::Replicas(replicas) => set(appliance, replicas, published, directory.path())?,
        };
        let started = Instant::now();
        Ok(Guest {
            process: Process::start(command).map_err(|error| error.to_string())?,
            started,
            kind,
            address: host.map(|port| (Ipv4Addr::LOCALHOST, port).into()),
            directory,
        })
    }

    /// Where its port is published.
    ///
    /// # Errors
    /// When none is.
    pub fn address(&self) -> Result<SocketAddr, String> {
        self.address
            .ok_or_else(|| "nothing is published".to_owned())
    }

    /// Since its start.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether it still runs; otherwise what it said.
    ///
    /// # Errors
    /// When it does not.
    pub fn is_running(&self) -> Result<(), String> {
        if self.process.is_running() {
            return Ok(());
        }
        Err(format!("{} has ended: {}", self.kind.name(), self.said()))
    }

    fn said(&self) -> String {
        let lines = self.process.lines();
        let lines: Vec<String> = lines.into_iter().map(|line| line.text).collect();
        format!(
            "{}\n{}",
            lines.join("\n"),
            String::from_utf8_lossy(&self.process.stdout())
        )
    }

    /// Seconds from its start until its console has shown `marker`.
    ///
    /// # Errors
    /// When it does not.
    pub fn shows(&self, marker: &str) -> Result<f64, String> {
        self.process
            .wait_for_output(marker, LONG)
            .map_err(|error| format!("{error}\n{}", self.said()))?;
        Ok(self.age().as_secs_f64())
    }

    /// Ends it.
    ///
    /// # Errors
    /// When a set does not end as it should, or has lost a replica before.
    pub fn stop(self) -> Result<(), String> {
        if self.kind == Kind::Plain {
            return Ok(());
        }
        let said = self.said();
        if said.contains("verdict:") {
            return Err(format!("somebody differed: {said}"));
        }
        let mut command = Command::new(quorate().map_err(|error| error.to_string())?);
        command
            .args(["stop", "--now", "--control"])
            .arg(self.directory.path().join("control.sock"))
            .stdin(Stdio::null());
        let status = command.status().map_err(|error| error.to_string())?;
        if !status.success() {
            return Err(format!("quorate stop ended with {status}"));
        }
        let ended = self.process.wait(START_TIMEOUT);
        ended.map(|_| ()).map_err(|error| error.to_string())
    }
}

/// A port that nobody has at the moment.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Builds the appliance of a text.
///
/// # Errors
/// When it is wrong, or its parts cannot be had.
pub fn build(text: &str) -> Result<(Appliance, BuiltImage), String> {
    let appliance =
        Appliance::parse(text, Path::new("bench.toml")).map_err(|error| error.to_string())?;
    let options = BuildOptions::new(default_cache_dir());
    let image = quorate_images::build(&appliance, &options).map_err(|error| error.to_string())?;
    Ok((appliance, image))
}

fn set(
    text: &str,
    replicas: u8,
    published: Option<(u16, u16)>,
    directory: &Path,
) -> Result<Command, String> {
    build(text)?;
    let file = directory.join("appliance.toml");
    std::fs::write(&file, text).map_err(|error| error.to_string())?;
    let mut command = Command::new(quorate().map_err(|error| error.to_string())?);
    command
        .arg("run")
        .arg(&file)
        .args(["--replicas", &replicas.to_string(), "--control"])
        .arg(directory.join("control.sock"));
    if let Some((host, guest)) = published {
        command.args(["--publish", &format!("127.0.0.1:{host}:{guest}")]);
    }
    Ok(command)
}

fn plain(text: &str, published: Option<(u16, u16)>) -> Result<Command, String> {
    let (appliance, image) = build(text)?;
    let linux = image.linux.as_ref().ok_or("not a Linux appliance")?;
    let mut network = "user,id=n".to_owned();
    if let Some((host, guest)) = published {
        network.push_str(&format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
    }
    let mut command = Command::new("qemu-system-x86_64");
    command
        // No XSAVE, as in Quorate's machines where KVM cannot give it to a guest: in the lane.
        .args([
            "-accel",
            "kvm",
            "-cpu",
            "host,-xsave",
            "-M",
            "microvm,acpi=on",
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-m", &format!("{}M", appliance.machine.memory >> 20)])
        .args([
            "-serial",
            "stdio",
            "-global",
            "virtio-mmio.force-legacy=false",
        ])
        .arg("-kernel")
        .arg(&linux.kernel)
        .args(["-append", &linux.cmdline])
        .arg("-drive")
        .arg(format!(
            "id=r,if=none,format=raw,readonly=on,file={}",
            image.path.display()
        ))
        .args(["-device", "virtio-blk-device,drive=r", "-netdev", &network])
        .args([
            "-device",
            "virtio-net-device,netdev=n",
            "-device",
            "virtio-rng-device",
        ]);
    if let Some(initramfs) = &linux.initramfs {
        command.arg("-initrd").arg(initramfs);
    }
    Ok(command)
}
