//! Linux machines, each alone: a stock Debian kernel boots from an ext4 root on virtio-blk, runs a program, and says how it ended; two
//! replicas have other addresses; a machine goes on in another one from a checkpoint.
//!
//! This needs a KVM that runs ring 0 in hardware. Elsewhere (the native lane of a page-table based KVM) each test says so and is over: the
//! suite of the SVM lane runs them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use quorate_devices::{
    BlockOp, BlockStatus, Completion, DiskConfig, DiskReads, Entry, Output, Waiting,
};
use quorate_executor::seeds::RunSeed;
use quorate_images::{Appliance, BuildOptions, BuiltImage, default_cache_dir};
use quorate_tests::linux::runs_here;
use quorate_vmm::linux::{
    Exchange, Exchanged, LinuxConfig, LinuxConsole, LinuxEnd, LinuxHandle, LinuxMachine,
};
use quorate_vmm::{CrashKind, open_kvm};

/// How long one boot may take in the emulator.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the guest shows, and what it is shown.
struct World {
    root: File,
    data: HashMap<u64, Vec<u8>>,
    done: Vec<Completion>,
    console: String,
    status: Option<u64>,
    until: Instant,
    handle: LinuxHandle,
    /// The machine is to pause as soon as the guest has said this.
    pause_at: Option<&'static str>,
    /// Typed as soon as the guest has said it.
    answer: Option<(&'static str, &'static str)>,
}

impl DiskReads for World {
    fn take(&mut self, _disk: u8, seq: u64) -> Result<Vec<u8>, String> {
        let data = self.data.remove(&seq);
        data.ok_or_else(|| format!("no data of read {seq}"))
    }
}

impl Exchange for World {
    fn exchange(&mut self, outputs: Vec<Output>) -> Result<Exchanged, String> {
        if Instant::now() > self.until {
            return Err(format!("nothing more within {PATIENCE:?}"));
        }
        let mut entry = Entry::default();
        for output in outputs {
            match output {
                Output::Console(text) => self.console.push_str(&String::from_utf8_lossy(&text)),
                Output::Exit { status } => self.status = Some(status),
                Output::Block(request) => match request.op {
                    BlockOp::Read { sector, bytes } => {
                        let mut data = vec![0; bytes as usize];
                        let read = self.root.read_exact_at(&mut data, sector * 512);
                        read.map_err(|error| error.to_string())?;
                        self.data.insert(request.seq, data);
                        self.done.push(Completion {
                            disk: request.disk,
                            seq: request.seq,
                            kind: Waiting::Read,
                            status: BlockStatus::Ok,
                        });
                    }
                    other => return Err(format!("{other:?} to a read-only disk")),
                },
                Output::Frame(_) | Output::Fingerprint { .. } => {}
            }
        }
        if let Some(said) = self.pause_at
            && self.console.contains(said)
        {
            self.pause_at = None;
            self.handle.pause();
        }
        if let Some((said, answer)) = self.answer
            && self.console.contains(said)
        {
            self.answer = None;
            entry.console.extend_from_slice(answer.as_bytes());
        }
        entry.completions.append(&mut self.done);
        Ok(Exchanged {
            entry,
            // So that patience ends even if the guest does nothing at all.
            again_in: Some(Duration::from_secs(1)),
        })
    }

    fn reads(&mut self) -> &mut dyn DiskReads {
        self
    }
}

/// An appliance of busybox that runs a script as its program.
fn image(script: &str) -> BuiltImage {
    let text = format!(
        "version = 1\nname = \"linux-boot\"\n[image]\npackages = [\"busybox-static\"]\n\
         files = [{{ path = \"/bin/sh\", link = \"busybox\" }}]\n\
         [program]\ncommand = [\"/bin/busybox\", \"sh\", \"-c\", {script:?}]\n\
         [machine]\nmemory = \"192M\"\nreplicas = 1\n[linux]\ncpus = 2\n"
    );
    let appliance = Appliance::parse(&text, Path::new("linux-boot.toml")).expect("the appliance");
    quorate_images::build(&appliance, &BuildOptions::new(default_cache_dir())).expect("the image")
}

fn config(image: &BuiltImage, layout_seed: [u8; 32]) -> LinuxConfig {
    let boot = image.linux.as_ref().expect("what Linux boots");
    let initramfs = boot.initramfs.as_ref();
    LinuxConfig {
        kernel: std::fs::read(&boot.kernel).unwrap().into(),
        initramfs: initramfs.map(|path| std::fs::read(path).unwrap().into()),
        cmdline: boot.cmdline.clone(),
        memory_bytes: 192 << 20,
        cpus: boot.cpus,
        console: LinuxConsole::Serial,
        layout_seed,
        input_seed: [9; 32],
        disks: vec![DiskConfig {
            bytes: std::fs::metadata(&image.path).unwrap().len(),
            read_only: true,
            id: "root".into(),
            sync: false,
        }],
    }
}

fn world(image: &BuiltImage, machine: &LinuxMachine) -> World {
    World {
        root: File::open(&image.path).unwrap(),
        data: HashMap::new(),
        done: Vec::new(),
        console: String::new(),
        status: None,
        until: Instant::now() + PATIENCE,
        handle: machine.handle(),
        pause_at: None,
        answer: None,
    }
}

fn boot(image: &BuiltImage, layout_seed: [u8; 32]) -> (LinuxMachine, World) {
    let kvm = open_kvm().unwrap();
    let machine = LinuxMachine::new(&kvm, &config(image, layout_seed)).expect("a machine");
    let world = world(image, &machine);
    (machine, world)
}

/// The values of the lines `NAME=value`.
fn values<'a>(console: &'a str, name: &str) -> Vec<&'a str> {
    let lines = console.lines().map(str::trim);
    lines
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .collect()
}

#[test]
fn replicas_boot_from_ext4_run_their_program_and_have_other_addresses() {
    let image = image(
        "echo cpus=$(/bin/busybox nproc); echo root=$(/bin/busybox grep -c ' / ' /proc/mounts); \
         echo text=$(/bin/busybox grep ' _text$' /proc/kallsyms | /bin/busybox cut -d' ' -f1); \
         echo stack=$(/bin/busybox grep stack /proc/self/maps | /bin/busybox cut -d- -f1); \
         echo random=$(/bin/busybox head -c 8 /dev/urandom | /bin/busybox hexdump -e '8/1 \"%02x\"'); exit 7",
    );
    if !runs_here() {
        return;
    }
    // As the replicas of one run have them.
    let of_run = RunSeed::from_text("one run");
    let run = |replica| {
        let (mut machine, mut world) = boot(&image, of_run.layout(replica, 0));
        let end = machine.run(&mut world);
        assert_eq!(end, LinuxEnd::PoweredOff, "{}", world.console);
        assert_eq!(world.status, Some(7 << 8), "{}", world.console);
        assert_eq!(values(&world.console, "cpus"), ["2"], "{}", world.console);
        assert_ne!(machine.counters().interrupts, 0);
        let one = |name| match values(&world.console, name)[..] {
            [value] => value.to_owned(),
            _ => panic!("{name}: {}", world.console),
        };
        [one("text"), one("stack"), one("random")]
    };
    let replicas = [run(0), run(1), run(2)];
    eprintln!("_text, [stack], /dev/urandom of three replicas: {replicas:#?}");
    for what in 1..3 {
        let [a, b, c] = [0, 1, 2].map(|replica: usize| &replicas[replica][what]);
        assert!(a != b && b != c && a != c, "{replicas:?}");
    }
    // Two of three have the kernel's text at the same of some 500 places now and then, all three never.
    let [a, b, c] = [0, 1, 2].map(|replica: usize| &replicas[replica][0]);
    assert!(!(a == b && b == c), "{replicas:?}");
}

#[test]
fn a_checkpoint_goes_on_in_another_machine_as_often_as_wanted() {
    let image = image("n=41; echo ready; read word; echo got=$word$((n + 1)); exit 5");
    if !runs_here() {
        return;
    }
    let (mut machine, mut world) = boot(&image, [1; 32]);
    machine.track_dirty().unwrap();
    world.pause_at = Some("ready");
    assert_eq!(
        machine.run(&mut world),
        LinuxEnd::Paused,
        "{}",
        world.console
    );
    let (first, pause) = machine.checkpoint(None).unwrap();
    assert!(!pause.full && first.pages_kept() > 1000, "{pause:?}");
    // It goes on by itself, is stopped again, and only what changed is copied.
    world.pause_at = Some("ready");
    assert_eq!(machine.run(&mut world), LinuxEnd::Paused);
    let (second, pause) = machine.checkpoint(Some(&first)).unwrap();
    assert!(
        !pause.full && pause.dirty_pages < first.pages_kept() / 2,
        "{pause:?}"
    );
    eprintln!("the second checkpoint: {pause:?}");
    drop(machine);
    for (word, checkpoint) in [("one", &first), ("two", &second), ("three", &first)] {
        let (mut other, mut world) = boot(&image, [2; 32]);
        other.restore(checkpoint).unwrap();
        world.console.push_str("ready");
        world.answer = Some((
            "ready",
            match word {
                "one" => "one\n",
                "two" => "two\n",
                _ => "three\n",
            },
        ));
        let end = other.run(&mut world);
        assert_eq!(end, LinuxEnd::PoweredOff, "{}", world.console);
        assert_eq!(values(&world.console, "got"), [format!("{word}42")]);
        assert_eq!(world.status, Some(5 << 8));
    }
}

#[test]
fn a_machine_can_be_killed_crashed_hung_and_brought_back() {
    let image = image("echo ready; read word; echo got=$word; exit 5");
    if !runs_here() {
        return;
    }
    let (mut machine, mut world) = boot(&image, [1; 32]);
    world.pause_at = Some("ready");
    assert_eq!(
        machine.run(&mut world),
        LinuxEnd::Paused,
        "{}",
        world.console
    );
    let (checkpoint, _) = machine.checkpoint(None).unwrap();

    machine.crash().unwrap();
    match machine.run(&mut world) {
        LinuxEnd::Crash(report) => {
            assert_eq!(report.kind, CrashKind::TripleFault);
            assert!(report.registers.is_some() && report.text.contains("processor"));
        }
        other => panic!("{other:?}"),
    }
    assert!(machine.checkpoint(None).is_err(), "it has ended");
    assert!(matches!(machine.run(&mut world), LinuxEnd::Crash(_)));

    machine.restore(&checkpoint).unwrap();
    machine.hang().unwrap();
    let handle = machine.handle();
    let killer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(500));
        handle.kill();
    });
    world.answer = Some(("ready", "never\n"));
    assert_eq!(machine.run(&mut world), LinuxEnd::Killed);
    killer.join().unwrap();
    assert!(values(&world.console, "got").is_empty(), "it hung");

    machine.restore(&checkpoint).unwrap();
    world.answer = Some(("ready", "again\n"));
    let end = machine.run(&mut world);
    assert_eq!(end, LinuxEnd::PoweredOff, "{}", world.console);
    assert_eq!(values(&world.console, "got"), ["again"]);
}
