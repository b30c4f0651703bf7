//! Boots a Linux kernel with the console on standard input and output, without a replica set: the machine alone.
//!
//! ```text
//! linux --kernel vmlinuz [--initramfs cpio] [--append "console=ttyS0 …"] [--memory MiB] [--cpus N] [--disk FILE[:ro]]…
//!       [--console serial|virtio] [--seed N] [--type TEXT]… [--pause MS] [--restore] [--button TEXT]
//! ```
//! `--type` types TEXT (with a line end) as soon as the guest has shown a prompt `# `. `--pause` stops and goes on every so many
//! milliseconds, with a checkpoint each time; with `--restore` in a new machine that the checkpoint is put back into.
//! `--notify-by-exit` has each notification be an exit to this process. `--button` presses the power button when TEXT has been shown.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use quorate_devices::{BlockOp, BlockStatus, Completion};
use quorate_vmm::linux::{
    Exchange, Exchanged, LinuxCheckpoint, LinuxConfig, LinuxConsole, LinuxEnd, LinuxHandle,
    LinuxMachine,
};
use quorate_vmm::{CrashKind, DiskConfig, DiskReads, Output, host, open_kvm, probe};
use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

struct World {
    disks: Vec<File>,
    data: HashMap<(u8, u64), Vec<u8>>,
    done: VecDeque<Completion>,
    typed: Receiver<Vec<u8>>,
    lines: VecDeque<String>,
    seen: Vec<u8>,
    button: Option<String>,
    handle: LinuxHandle,
    started: Instant,
    prompts: Vec<Duration>,
    exit: Option<u64>,
    /// Echo on standard output.
    frames: u64,
}

impl DiskReads for World {
    fn take(&mut self, disk: u8, seq: u64) -> Result<Vec<u8>, String> {
        let data = self.data.remove(&(disk, seq));
        data.ok_or_else(|| format!("no data of read {seq} of disk {disk}"))
    }
}

impl World {
    fn block(&mut self, disk: u8, seq: u64, op: BlockOp) {
        let waits = op.waits();
        let file = &self.disks[usize::from(disk)];
        let result = match op {
            BlockOp::Read { sector, bytes } => {
                let mut data = vec![0; bytes as usize];
                file.read_exact_at(&mut data, sector * 512)
                    .map(|()| drop(self.data.insert((disk, seq), data)))
            }
            BlockOp::Write { sector, data } => file.write_all_at(&data, sector * 512),
            BlockOp::Flush => file.sync_data(),
            BlockOp::Discard { sector, sectors }
            | BlockOp::WriteZeroes {
                sector, sectors, ..
            } => file.write_all_at(&vec![0; sectors as usize * 512], sector * 512),
        };
        if let Some(kind) = waits {
            self.done.push_back(Completion {
                disk,
                seq,
                kind,
                status: match result {
                    Ok(()) => BlockStatus::Ok,
                    Err(_) => BlockStatus::IoError,
                },
            });
        }
    }

    fn console(&mut self, text: &[u8]) -> Vec<u8> {
        let mut out = std::io::stdout().lock();
        out.write_all(text).unwrap();
        out.flush().unwrap();
        self.seen.extend_from_slice(text);
        // busybox's shell asks the terminal where the cursor is.
        if let Some(shown) = self.seen.strip_suffix(b"\x1b[6n") {
            self.seen.truncate(shown.len());
        }
        if let Some(wanted) = &self.button
            && self
                .seen
                .windows(wanted.len())
                .any(|part| part == wanted.as_bytes())
        {
            self.handle.press_power_button();
            self.button = None;
        }
        let mut typed = Vec::new();
        if self.seen.ends_with(b"# ") {
            self.prompts.push(self.started.elapsed());
            self.seen.clear();
            if let Some(line) = self.lines.pop_front() {
                typed.extend_from_slice(line.as_bytes());
                typed.push(b'\n');
            }
        }
        let keep = self.seen.len().min(256);
        self.seen.drain(..self.seen.len() - keep);
        typed
    }
}

impl Exchange for World {
    fn exchange(&mut self, outputs: Vec<Output>) -> Result<Exchanged, String> {
        let mut exchanged = Exchanged::default();
        for output in outputs {
            match output {
                Output::Console(text) => {
                    let typed = self.console(&text);
                    exchanged.entry.console.extend(typed);
                }
                Output::Block(request) => self.block(request.disk, request.seq, request.op),
                Output::Frame(_) => self.frames += 1,
                Output::Exit { status } => self.exit = Some(status),
                Output::Fingerprint { .. } => {}
            }
        }
        exchanged.entry.completions.extend(self.done.drain(..));
        while let Ok(bytes) = self.typed.try_recv() {
            exchanged.entry.console.extend(bytes);
        }
        Ok(exchanged)
    }

    fn reads(&mut self) -> &mut dyn DiskReads {
        self
    }
}

struct Options {
    config: LinuxConfig,
    disks: Vec<File>,
    lines: VecDeque<String>,
    pause: Option<Duration>,
    restore: bool,
    exits: bool,
    button: Option<String>,
}

fn options() -> Options {
    let mut options = Options {
        config: LinuxConfig {
            kernel: Vec::new().into(),
            initramfs: None,
            cmdline: "console=ttyS0 panic=-1".into(),
            memory_bytes: 256 << 20,
            cpus: 1,
            console: LinuxConsole::Serial,
            layout_seed: [0; 32],
            input_seed: [0; 32],
            disks: Vec::new(),
        },
        disks: Vec::new(),
        lines: VecDeque::new(),
        pause: None,
        restore: false,
        exits: false,
        button: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let mut value = || args.next().expect("a value");
        let config = &mut options.config;
        match name.as_str() {
            "--kernel" => config.kernel = std::fs::read(value()).unwrap().into(),
            "--initramfs" => config.initramfs = Some(std::fs::read(value()).unwrap().into()),
            "--append" => config.cmdline = value(),
            "--memory" => config.memory_bytes = value().parse::<u64>().unwrap() << 20,
            "--cpus" => config.cpus = value().parse().unwrap(),
            "--seed" => config.layout_seed = [value().parse().unwrap(); 32],
            "--console" if value() == "virtio" => config.console = LinuxConsole::Virtio,
            "--console" => {}
            "--type" => options.lines.push_back(value()),
            "--pause" => {
                options.pause = Some(Duration::from_millis(value().parse().unwrap()));
            }
            "--restore" => options.restore = true,
            "--notify-by-exit" => options.exits = true,
            "--button" => options.button = Some(value()),
            "--disk" => {
                let value = value();
                let (path, read_only) = match value.strip_suffix(":ro") {
                    Some(path) => (path, true),
                    None => (value.as_str(), false),
                };
                let file = OpenOptions::new()
                    .read(true)
                    .write(!read_only)
                    .open(path)
                    .unwrap();
                config.disks.push(DiskConfig {
                    bytes: file.metadata().unwrap().len() & !511,
                    read_only,
                    id: format!("disk{}", options.disks.len()),
                    sync: false,
                });
                options.disks.push(file);
            }
            other => panic!("unknown option {other}"),
        }
    }
    options
}

fn main() {
    let Options {
        config,
        disks,
        lines,
        pause,
        restore,
        exits,
        button,
    } = options();
    let kvm = open_kvm().unwrap();
    if let Some(why) = quorate_vmm::linux::refusal(&probe(&kvm).unwrap()) {
        eprintln!("{why}");
        std::process::exit(3);
    }
    let started = Instant::now();
    let mut machine = LinuxMachine::new(&kvm, &config).unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2);
    });
    if exits {
        machine.notify_by_exit().unwrap();
    }
    let made = started.elapsed();
    let (typing, typed) = channel();
    let handle = machine.handle();
    let woken = handle.clone();
    // Ends with the process.
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = std::io::stdin().read(&mut buffer) {
            if typing.send(buffer[..len].to_vec()).is_err() {
                break;
            }
            woken.wake();
        }
    });
    let mut world = World {
        disks,
        data: HashMap::new(),
        done: VecDeque::new(),
        typed,
        lines,
        seen: Vec::new(),
        button,
        handle: handle.clone(),
        started,
        prompts: Vec::new(),
        exit: None,
        frames: 0,
    };
    let mut last: Option<LinuxCheckpoint> = None;
    let mut pauses = Vec::new();
    let end = loop {
        let timer = pause.map(|time| {
            let handle = machine.handle();
            let (stop, stopped) = channel::<()>();
            let thread = thread::spawn(move || {
                if stopped.recv_timeout(time).is_err() {
                    handle.pause();
                }
            });
            (stop, thread)
        });
        let end = machine.run(&mut world);
        if let Some((stop, thread)) = timer {
            let _ = stop.send(());
            thread.join().unwrap();
        }
        if end != LinuxEnd::Paused {
            break end;
        }
        let (checkpoint, took) = machine.checkpoint(last.as_ref()).unwrap();
        pauses.push(took.micros);
        if restore {
            let before = Instant::now();
            let mut other = LinuxMachine::new(&kvm, &config).unwrap();
            let made = before.elapsed();
            let restored = other.restore(&checkpoint).unwrap();
            eprintln!("[{took:?}, another machine in {made:?}, {restored:?}]");
            machine = other;
            world.handle = machine.handle();
        }
        last = Some(checkpoint);
    };
    let time = started.elapsed();
    let counters = machine.counters();
    eprintln!("\n[made in {made:?}, ended after {time:?}: {}]", name(&end));
    eprintln!(
        "[{counters:?}, frames {}, exit {:?}]",
        world.frames, world.exit
    );
    eprintln!("[prompts after {:?}]", world.prompts);
    if !pauses.is_empty() {
        eprintln!("[{} pauses, microseconds: {pauses:?}]", pauses.len());
    }
    let _ = host();
    std::process::exit(match end {
        LinuxEnd::PoweredOff | LinuxEnd::Reset => 0,
        LinuxEnd::Crash(report) if report.kind == CrashKind::TripleFault => 5,
        _ => 1,
    });
}

fn name(end: &LinuxEnd) -> String {
    match end {
        LinuxEnd::Crash(report) => report.to_string(),
        other => format!("{other:?}"),
    }
}
