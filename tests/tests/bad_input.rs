//! What a user can get wrong, as a user meets it: the command says what is wrong and what to do, with an exit code of its own.
//! (Each message in detail: `executor/tests/cli.rs`. A layout that cannot fit is out of the command's reach, since memory and
//! image are limited before: `vmm/src/tests/layouts.rs`. Guests that go wrong: `hostile.rs`.)
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use quorate_executor::exit::ExitCode;
use quorate_tests::process::{Ended, run};
use quorate_tests::resp::{Client, command};
use quorate_tests::set::{Options, quorate};
use quorate_tests::{one_at_a_time, repository, shortened};

const LONG: Duration = Duration::from_secs(60);

/// A directory with an appliance that would work: `busybox echo`.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        std::fs::set_permissions(place.0.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let bin = place.path("root/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir(place.path("cache")).unwrap();
        std::fs::set_permissions(place.path("cache"), PermissionsExt::from_mode(0o777)).unwrap();
        compile(
            "#include <unistd.h>\nint main(int n, char **a) { if (n > 1) for (;;) pause(); write(1, \"hello\\n\", 6); return 0; }\n",
            &bin.join("hello"),
        );
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes an appliance that differs from the good one in that `from` is `to`.
    fn appliance(&self, from: &str, to: &str) -> PathBuf {
        const GOOD: &str = "version = 1\nname = \"hello\"\n[image]\ndirectory = \"root\"\n[program]\ncommand = [\"/bin/hello\"]\n[machine]\nmemory = \"32M\"\n";
        assert!(GOOD.contains(from));
        std::fs::write(self.path("appliance.toml"), GOOD.replacen(from, to, 1)).unwrap();
        self.path("appliance.toml")
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("QUORATE_CACHE", self.path("cache"))
            .env("XDG_RUNTIME_DIR", self.0.path())
            .env_remove("RUST_LOG");
        command
    }

    fn run(&self, appliance: &Path, arguments: &[&str]) -> Ended {
        let mut command = self.command(&quorate().unwrap());
        command.arg("run").arg(appliance).args(arguments);
        run(command, LONG).unwrap()
    }
}

fn compile(source: &str, to: &Path) {
    let file = to.with_extension("c");
    std::fs::write(&file, source).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-static", "-O1", "-o"]).arg(to).arg(&file);
    let ended = run(cc, LONG).unwrap();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    std::fs::remove_file(file).unwrap();
}

/// The command ended with this code and said all of these, and nobody's panic.
fn says(ended: &Ended, code: ExitCode, words: &[&str]) {
    print!("  exit code {}: {}", ended.code, ended.stderr);
    assert_eq!(ended.code, code as i32, "{}", ended.stderr);
    for words in words {
        assert!(
            ended.stderr.contains(words),
            "not said: {words:?}: {}",
            ended.stderr
        );
    }
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

#[test]
fn what_is_not_wrong_works() {
    let _turn = one_at_a_time("the appliance that the other cases change");
    let place = Place::new();
    let ended = place.run(&place.appliance("", ""), &[]);
    assert_eq!(
        (ended.code, ended.stdout.as_slice()),
        (0, &b"hello\n"[..]),
        "{}",
        ended.stderr
    );
}

/// Runs a shell script in a mount namespace of its own, where it can change what is at /dev.
fn with_other_devices(place: &Place, script: &str) -> Option<Ended> {
    let allowed = |flags: &str| {
        let mut probe = Command::new("unshare");
        probe.args([flags, "true"]);
        run(probe, LONG).is_ok_and(|ended| ended.code == 0)
    };
    let flags = ["-m", "-rm"].into_iter().find(|flags| allowed(flags));
    let Some(flags) = flags else {
        // The host forbids namespaces: the case cannot be made here, and is not.
        println!("  SKIPPED: this host allows no mount namespace (unshare -m)");
        return None;
    };
    let mut command = place.command(Path::new("unshare"));
    command
        .args([flags, "sh", "-ec", script])
        .current_dir(place.0.path());
    Some(run(command, LONG).unwrap())
}

#[test]
fn no_kvm() {
    let _turn = one_at_a_time("no /dev/kvm");
    let place = Place::new();
    let appliance = place.appliance("", "");
    std::fs::create_dir(place.path("empty")).unwrap();
    let script = format!(
        "mount --bind empty /dev; exec {:?} run {appliance:?}",
        quorate().unwrap()
    );
    if let Some(ended) = with_other_devices(&place, &script) {
        says(&ended, ExitCode::Host, &["/dev/kvm does not exist"]);
    }
    // Something else in its place is not mistaken for it.
    let script = format!(
        "mount --bind /dev/null /dev/kvm; exec {:?} run {appliance:?}",
        quorate().unwrap()
    );
    if let Some(ended) = with_other_devices(&place, &script) {
        says(&ended, ExitCode::Host, &["/dev/kvm"]);
    }
}

#[test]
fn no_right_to_kvm() {
    let _turn = one_at_a_time("no right to /dev/kvm");
    if !rustix::process::geteuid().is_root() {
        println!("  SKIPPED: only root can run the command as somebody else");
        return;
    }
    let place = Place::new();
    let appliance = place.appliance("", "");
    // The command may lie where only its owner gets.
    std::fs::copy(quorate().unwrap(), place.path("quorate")).unwrap();
    std::fs::write(place.path("forbidden"), "").unwrap();
    std::fs::set_permissions(place.path("forbidden"), PermissionsExt::from_mode(0o0)).unwrap();
    let script = format!(
        "mount --bind forbidden /dev/kvm; exec setpriv --reuid 65534 --regid 65534 --clear-groups ./quorate run {appliance:?} --control cache/control.sock"
    );
    if let Some(ended) = with_other_devices(&place, &script) {
        says(&ended, ExitCode::Host, &["/dev/kvm", "group"]);
    }
}

#[test]
fn malformed_and_unknown_keys() {
    let _turn =
        one_at_a_time("malformed TOML, unknown keys, wrong values: file, line and key are named");
    let place = Place::new();
    for (from, to, words) in [
        ("memory = ", "memroy = ", ["appliance.toml:8", "memroy"]),
        ("\"hello\"", "\"hello", ["appliance.toml:2", "string"]),
        ("[machine]", "[machines]", ["appliance.toml:7", "machines"]),
        ("\"32M\"", "\"32Q\"", ["appliance.toml:8", "memory"]),
        ("\"32M\"", "\"1M\"", ["memory", "32M"]),
        (
            "version = 1",
            "version = 2",
            ["appliance.toml:1", "version"],
        ),
        (
            "memory",
            "replicas = 10\nmemory",
            ["appliance.toml:8", "replicas"],
        ),
        (
            "directory = \"root\"",
            "",
            ["appliance.toml:3", "directory"],
        ),
    ] {
        says(
            &place.run(&place.appliance(from, to), &[]),
            ExitCode::Appliance,
            &words,
        );
    }
    says(
        &place.run(&place.path("nosuch.toml"), &[]),
        ExitCode::Appliance,
        &["nosuch.toml"],
    );
}

#[test]
fn missing_and_truncated_images() {
    let _turn = one_at_a_time("missing, truncated, damaged images");
    let place = Place::new();
    let appliance = place.appliance("directory = \"root\"", "file = \"image.qimg\"");
    says(
        &place.run(&appliance, &[]),
        ExitCode::Image,
        &["image.qimg", "no such image", "quorate build"],
    );
    // A whole one works, each broken one is told from it.
    let mut build = place.command(&quorate().unwrap());
    build.arg("build").arg(place.appliance("", ""));
    assert_eq!(run(build, LONG).unwrap().code, 0);
    let images = std::fs::read_dir(place.path("cache/images")).unwrap();
    let image = images
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|end| end == "qimg"));
    let whole = std::fs::read(image.unwrap()).unwrap();
    let appliance = place.appliance("directory = \"root\"", "file = \"image.qimg\"");
    let with = |bytes: &[u8]| {
        std::fs::write(place.path("image.qimg"), bytes).unwrap();
        place.run(&appliance, &[])
    };
    assert_eq!(with(&whole).code, 0);
    says(
        &with(&whole[..whole.len() / 2]),
        ExitCode::Image,
        &["truncated"],
    );
    says(&with(&whole[..50]), ExitCode::Image, &["truncated"]);
    says(&with(b""), ExitCode::Image, &["image.qimg"]);
    says(
        &with(&vec![b'x'; 8192]),
        ExitCode::Image,
        &["not a Quorate image"],
    );
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    says(&with(&damaged), ExitCode::Image, &["image.qimg"]);
    says(
        &place.run(&place.appliance("\"root\"", "\"nosuch\""), &[]),
        ExitCode::Image,
        &["nosuch"],
    );
    says(
        &place.run(&place.appliance("/bin/hello", "/bin/nosuch"), &[]),
        ExitCode::Image,
        &["/bin/nosuch"],
    );
}

#[test]
fn a_port_that_is_taken() {
    let _turn = one_at_a_time("a published port that somebody else has");
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = place.run(
        &place.appliance("", ""),
        &["--publish", &format!("{port}:80")],
    );
    says(&ended, ExitCode::Port, &[&port]);
    drop(taken);
    assert_eq!(
        place
            .run(
                &place.appliance("", ""),
                &["--publish", &format!("{port}:80")]
            )
            .code,
        0
    );
}

#[test]
fn too_little_memory() {
    let _turn = one_at_a_time("too little memory for a guest, and for what a guest is asked to do");
    let place = Place::new();
    says(
        &place.run(&place.appliance("", ""), &["--memory", "8M"]),
        ExitCode::Usage,
        &["8M", "32M"],
    );
    says(
        &place.run(&place.appliance("32M", "31M"), &[]),
        ExitCode::Appliance,
        &["31M", "32M"],
    );
}

/// Enough to start with, too little for what it is asked to do: the client is told, and all replicas do the same at the same point,
/// wherever their page tables are (R8). The first seed is one with which they once did not.
#[test]
fn memory_that_runs_out() {
    let _turn = one_at_a_time("a value of 100 MiB for guests of 64 MiB");
    let seeds = [
        "35ec91ebc82f32794dc8b7611c4b9158fb422ada68dea5de10712c0926ad60d5",
        "short",
        "of",
        "memory",
    ];
    for seed in &seeds[..shortened(seeds.len(), 1)] {
        ask_too_much(seed);
    }
}

fn ask_too_much(seed: &str) {
    let set = Options::redis()
        .replicas(3)
        .arguments(&["--memory", "64M", "--seed", seed])
        .start()
        .unwrap();
    let mut client = Client::connect(set.address()).unwrap();
    let request = command(&[b"SET", &b"k"[..], &vec![b'x'; 100 << 20]]);
    let refused = client.exchange(&request, 1);
    println!("  100 MiB for a guest of 64 MiB: {refused:?}");
    assert!(refused.is_err());
    if set.process().is_running() {
        let status = set.status().unwrap();
        assert_eq!(status["running"], 3, "{status:#}");
        let mut another = Client::connect(set.address()).unwrap();
        assert_eq!(another.call(&command(&["PING"])).unwrap(), b"+PONG\r\n");
        assert_eq!(set.stop().unwrap().code, 0);
    } else {
        says(
            &set.wait().unwrap(),
            ExitCode::GuestFailed,
            &["the guest program"],
        );
    }
    assert!(set.lines_with("verdict").is_empty());
}

#[test]
fn numbers_of_replicas_out_of_range() {
    let _turn = one_at_a_time("0 and 10 replicas");
    let place = Place::new();
    let appliance = place.appliance("", "");
    for number in ["0", "10", "three"] {
        says(
            &place.run(&appliance, &["--replicas", number]),
            ExitCode::Usage,
            &["--replicas"],
        );
    }
    for number in 1..=9 {
        let ended = place.run(&appliance, &["--replicas", &number.to_string()]);
        assert_eq!(
            (ended.code, ended.stdout.as_slice()),
            (0, &b"hello\n"[..]),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn programs_that_end_at_once() {
    let _turn = one_at_a_time("guest programs that end at once, by status and by signal");
    let busybox = |script: &str| {
        let text =
            std::fs::read_to_string(repository().join("images/appliances/busybox.toml")).unwrap();
        let changed = text.replace("echo hello from busybox", script);
        assert_ne!(text, changed);
        Options::text(&changed)
            .unwrap()
            .spawn()
            .unwrap()
            .wait()
            .unwrap()
    };
    let ended = busybox("true");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    says(
        &busybox("echo so long; exit 3"),
        ExitCode::GuestFailed,
        &["ended with status 3", "so long"],
    );
    says(
        &busybox("kill -SEGV $$"),
        ExitCode::GuestFailed,
        &["ended by signal 11"],
    );
    let place = Place::new();
    std::fs::write(place.path("root/bin/text"), "no program").unwrap();
    std::fs::set_permissions(
        place.path("root/bin/text"),
        PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let ended = place.run(&place.appliance("/bin/hello", "/bin/text"), &[]);
    assert!(
        ended.code != 0 && ended.code != ExitCode::Internal as i32,
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("/bin/text"), "{}", ended.stderr);
}
