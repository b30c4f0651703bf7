//! A whole Debian as a user starts it: systemd, a login prompt, a shell, power-off. Its root is a voted ext4 disk.
//!
//! This needs a KVM that runs ring 0 in hardware. Elsewhere the tests say so and are over: the SVM lane runs them.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::{Duration, Instant};

use quorate_tests::linux::{build, runs_here};
use quorate_tests::set::Options;
use quorate_tests::{one_at_a_time, repository};

/// From power-on to the login prompt.
const BOOT: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(20);

/// Debian's shell appliance with its root on a disk and this kernel.
fn appliance(kernel: &str) -> String {
    let path = repository().join("images/appliances/debian-shell.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let replaced = text
        .replacen("name = \"debian-shell\"", "name = \"debian-disk\"", 1)
        .replacen("[linux]\n", &format!("[linux]\nkernel = {kernel:?}\n"), 1)
        .replacen("[machine]\n", "[machine]\nroot = \"disk:root\"\n", 1);
    assert!(replaced.contains("disk:root") && replaced.contains(kernel));
    format!("{replaced}\n[[disk]]\nname = \"root\"\nsize = \"600M\"\nrelaxed = \"vote\"\n")
}

fn a_shell(kernel: &str, release: &str) {
    let text = appliance(kernel);
    let options = Options::text(&text).unwrap().console();
    build(&text, "debian-disk.toml").unwrap();
    if !runs_here() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let root = state.path().join("root");
    let disk = format!("root={}", root.display());
    let set = options.arguments(&["--disk", &disk]).start().unwrap();
    let console = set.process();
    let began = Instant::now();
    console.wait_for_output("login: ", BOOT).unwrap();
    eprintln!(
        "{kernel}: login prompt after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    console.type_in("root\n").unwrap();
    // The prompt of a root shell.
    console.wait_for_output("# ", ANSWER).unwrap();
    // The answers are put together so that the echo of the question is not one.
    console
        .type_in(
            "echo \"[$(findmnt -no SOURCE,FSTYPE / | tr -s ' ' ,)] [$(uname -r)] [$((40+2))]\"\n",
        )
        .unwrap();
    console.wait_for_output("[42]", ANSWER).unwrap();
    let said = String::from_utf8_lossy(&console.stdout()).into_owned();
    let answer = said
        .lines()
        .find(|line| line.contains("[42]"))
        .unwrap_or_default();
    assert!(answer.contains("[/dev/vda,ext4]"), "{answer}");
    assert!(answer.contains(&format!("[{release}")), "{answer}");
    console
        .type_in("echo written > /root/file; poweroff\n")
        .unwrap();
    let ended = console.wait(BOOT).unwrap();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    eprintln!(
        "{answer}; powered off after {:.1} s",
        began.elapsed().as_secs_f64()
    );
}

#[test]
fn debian_boots_to_a_shell_on_a_voted_disk_and_powers_off() {
    let _turn = one_at_a_time("Debian under its own kernel, typed at");
    a_shell("debian:cloud", "6.1.");
}
