//! The embedded guest kernel behaves as Linux does: programs that check it (tests/guest-programs) say the same in three replicas of
//! random layouts as natively on the host (R8), and end as they do there.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use quorate_tests::process::{Ended, run};
use quorate_tests::set::quorate;
use quorate_tests::{one_at_a_time, repository};

/// For one run of a program; each takes a few seconds.
const LONG: Duration = Duration::from_secs(120);
/// For building the programs.
const BUILD: Duration = Duration::from_secs(600);

/// Directory of the programs, which are built when first asked for.
fn programs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| repository().join("target"), PathBuf::from);
        let target = target.join("guest-programs");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .current_dir(repository().join("tests/guest-programs"))
            .args(["build", "--release", "--locked", "--target-dir"])
            .arg(&target)
            // They would replace the crate's own, which make the binaries static.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        let ended = run(cargo, BUILD).unwrap();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        target.join("x86_64-unknown-linux-gnu/release")
    })
}

fn natively(program: &str) -> Ended {
    run(Command::new(programs().join(program)), LONG).unwrap()
}

/// Runs `words` (a program and its arguments) in a set.
fn in_guest(words: &[&str], memory: &str, replicas: usize, more: &[&str]) -> Ended {
    let directory = tempfile::tempdir().unwrap();
    let bin = directory.path().join("root/bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir_all(directory.path().join("root/tmp")).unwrap();
    std::fs::copy(programs().join(words[0]), bin.join(words[0])).unwrap();
    let path = format!("/bin/{}", words[0]);
    let command: Vec<&str> = std::iter::once(path.as_str())
        .chain(words[1..].iter().copied())
        .collect();
    let text = format!(
        "version = 1\nname = \"guest-{}\"\n[image]\ndirectory = \"root\"\n[program]\ncommand = {command:?}\n\
         [machine]\nmemory = \"{memory}\"\nreplicas = {replicas}\nlayout = \"random\"\n",
        words[0],
    );
    let appliance = directory.path().join("appliance.toml");
    std::fs::write(&appliance, text).unwrap();
    let mut command = Command::new(quorate().unwrap());
    command
        .arg("run")
        .arg(&appliance)
        .arg("--control")
        .arg(directory.path().join("control.sock"))
        .args(more);
    run(command, LONG).unwrap()
}

/// What a program printed, without the kernel's own lines.
fn said(ended: &Ended) -> Vec<String> {
    let text = String::from_utf8_lossy(&ended.stdout);
    text.lines()
        .filter(|line| !line.starts_with("[kernel]"))
        .map(str::to_owned)
        .collect()
}

/// The program passes natively, and three replicas say the same.
fn behaves_as_on_linux(program: &str) -> Ended {
    let _alone = one_at_a_time(&format!("{program}, natively and in three replicas"));
    let native = natively(program);
    let lines = said(&native);
    assert_eq!(native.code, 0, "natively: {lines:#?}");
    assert!(lines.len() > 3 && lines.last().unwrap() == "done");
    let guest = in_guest(&[program], "256M", 3, &[]);
    assert_eq!(said(&guest), lines, "{}", guest.stderr);
    assert_eq!(guest.code, 0, "{}", guest.stderr);
    assert!(!guest.stderr.contains("verdict"), "{}", guest.stderr);
    guest
}

#[test]
fn memory() {
    behaves_as_on_linux("memory");
}

#[test]
fn signals() {
    behaves_as_on_linux("signals");
}

#[test]
fn threads() {
    behaves_as_on_linux("threads");
}

#[test]
fn processes() {
    behaves_as_on_linux("processes");
}

#[test]
fn clocks() {
    behaves_as_on_linux("clocks");
}

#[test]
fn files() {
    behaves_as_on_linux("files");
}

#[test]
fn mappings_of_files() {
    behaves_as_on_linux("mapped");
}

#[test]
fn sockets() {
    behaves_as_on_linux("sockets");
}

#[test]
fn system_call_sites_and_calls_that_do_not_exist() {
    let guest = behaves_as_on_linux("sites");
    let text = String::from_utf8_lossy(&guest.stdout).into_owned();
    for name in ["create_module (174)", "nfsservctl (180)", "? (999)"] {
        let line = format!("[kernel] system call {name} is not implemented: ENOSYS");
        assert_eq!(text.matches(&line).count(), 1, "{line} in {text}");
    }
}

#[test]
fn a_rewritten_site_costs_a_fraction_of_a_trap() {
    let _alone = one_at_a_time("a rewritten site costs a fraction of a trap");
    let guest = in_guest(&["sites", "speed", "guest"], "64M", 1, &[]);
    println!("{}", said(&guest).join("\n"));
    assert_eq!(guest.code, 0, "{:?}", said(&guest));
}

#[test]
fn programs_end_as_on_linux() {
    let _alone = one_at_a_time("programs end as on linux");
    for (words, event) in [
        (&["signals", "abort"][..], "ended by signal 6"),
        (&["signals", "term"], "ended by signal 15"),
        (&["signals", "segv"], "ended by signal 11"),
        (&["signals", "blocked-segv"], "ended by signal 11"),
        (&["signals", "pipe"], "ended by signal 13"),
        (&["signals", "alarm"], "ended by signal 14"),
        (&["signals", "status"], "ended with status 51"),
        (&["threads", "exit-group"], "ended with status 5"),
        (&["threads", "main-exits"], "ended with status 6"),
    ] {
        let guest = in_guest(words, "64M", 3, &[]);
        assert_eq!(guest.code, 1, "{words:?}: {}", guest.stderr);
        assert!(guest.stderr.contains(event), "{words:?}: {}", guest.stderr);
    }
}

#[test]
fn a_program_that_takes_all_memory_is_refused_at_the_same_call_everywhere() {
    let _alone = one_at_a_time("a program that takes all memory is refused");
    let guest = in_guest(&["memory", "oom"], "64M", 3, &[]);
    assert_eq!(guest.code, 1, "{}", guest.stderr);
    assert!(
        guest.stderr.contains("ended with status 3"),
        "{}",
        guest.stderr
    );
    assert!(!guest.stderr.contains("verdict"), "{}", guest.stderr);
    assert_eq!(said(&guest), ["8 MiB taken", "mmap refused"]);
}

#[test]
fn a_program_that_touches_more_than_there_is_is_killed_with_a_message() {
    let _alone = one_at_a_time("a program that touches more than there is is killed");
    let guest = in_guest(&["memory", "oom-sparse"], "64M", 3, &[]);
    assert_eq!(guest.code, 1, "{}", guest.stderr);
    assert!(
        guest.stderr.contains("ended by signal 9"),
        "{}",
        guest.stderr
    );
    assert!(!guest.stderr.contains("verdict"), "{}", guest.stderr);
    let text = String::from_utf8_lossy(&guest.stdout).into_owned();
    assert!(
        text.contains("8 MiB touched") && text.contains("[kernel] out of memory"),
        "{text}"
    );
}

#[test]
fn what_programs_print_is_the_same_in_every_layout() {
    let _alone = one_at_a_time("what programs print is the same in every layout");
    let guest = in_guest(&["agree"], "256M", 3, &[]);
    assert_eq!(guest.code, 0, "{}", guest.stderr);
    let lines = said(&guest);
    assert!(
        lines.len() > 100 && lines.last().unwrap() == "done",
        "{lines:#?}"
    );
}

#[test]
fn instructions_that_leak_time_or_randomness_do_not() {
    let _alone = one_at_a_time("instructions that leak time or randomness do not");
    let guest = in_guest(&["agree", "leaks"], "256M", 3, &[]);
    assert_eq!(guest.code, 0, "{}", guest.stderr);
    let lines = said(&guest);
    let stamps: Vec<u64> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("time stamps: "))
        .flat_map(|line| line.split(' ').take(2))
        .chain(
            lines
                .iter()
                .filter_map(|line| line.split_once("run time: ").map(|(_, value)| value)),
        )
        .map(|value| value.parse().unwrap())
        .collect();
    assert_eq!(stamps.len(), 14, "{lines:#?}");
    // Journal time, a fixed step further at each read: the processor's own counter would never do that.
    assert!(
        stamps[..10].windows(2).all(|pair| pair[1] - pair[0] == 50),
        "{stamps:?}"
    );
    assert!(
        stamps.iter().all(|stamp| *stamp < 1_000_000_000_000),
        "{stamps:?}"
    );
    assert!(
        lines.iter().any(|line| line == "rdrand offered: 0"),
        "{lines:#?}"
    );
}

#[test]
fn a_program_that_prints_an_address_has_no_majority() {
    let _alone = one_at_a_time("a program that prints an address has no majority");
    let guest = in_guest(&["agree", "address"], "64M", 3, &[]);
    assert_eq!(guest.code, 7, "{}", guest.stderr);
    assert!(guest.stderr.contains("no majority"), "{}", guest.stderr);
    assert!(!String::from_utf8_lossy(&guest.stdout).contains("0x"));
    // The same addresses everywhere: nothing to disagree on.
    let guest = in_guest(&["agree", "address"], "64M", 3, &["--layout", "same"]);
    assert_eq!(guest.code, 0, "{}", guest.stderr);
}
