//! A guest that has been taken over, in one replica of three: whatever it does with the devices, the port, the memory that it
//! can reach or its output, it stops its own replica and nobody else (R5, R9).
//!
//! The program is the same in all replicas and is told the addresses of one. It knows by its stack that it is that one, as
//! an exploit that was made for one layout would work in one replica only.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::process::Command;
use std::time::Duration;

use quorate_tests::one_at_a_time;
use quorate_tests::process::run;
use quorate_tests::set::{Options, Set};

const LONG: Duration = Duration::from_secs(60);
/// All runs have this seed, so that the addresses of the first are those of the others.
const SEED: &str = "hostile";
/// Lines that the program writes; the attack comes in the middle.
const LINES: usize = 400;

const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static unsigned long seed = 88172645463325252ul;
static unsigned long noise(void) {
    seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17;
    return seed;
}
static void out(unsigned short port, unsigned value) {
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
static void attack(const char *how, volatile unsigned *at, unsigned long length) {
    if (!strcmp(how, "print")) { puts("a line that the others do not write"); fflush(stdout); }
    if (!strcmp(how, "call")) getppid();
    if (!strcmp(how, "die")) *(volatile int *)0 = 1;
    if (!strcmp(how, "end")) _exit(0);
    if (!strcmp(how, "spin")) for (;;) ;
    if (!strcmp(how, "port")) for (int i = 0; i < 1000; i++) out(0x510, (unsigned)noise());
    if (!strcmp(how, "panic port")) out(0x514, 13);
    if (!strcmp(how, "ports")) for (int i = 0; i < 65536; i++) out((unsigned short)i, (unsigned)noise());
    /* Registers of devices, or all memory: queues, the sync page, page tables, the kernel. */
    if (!strcmp(how, "write")) {
        for (unsigned long i = 0; i < length / 4; i++) at[i] = (unsigned)noise();
        for (int i = 0; i < 1000; i++) out(0x510, 1);
    }
    if (!strcmp(how, "sprinkle")) {
        for (int i = 0; i < 100000; i++) at[noise() % (length / 4)] = (unsigned)noise();
        out(0x510, 1);
    }
}
int main(int count, char **words) {
    const char *how = count > 4 ? words[1] : "nothing";
    unsigned long top = count > 4 ? strtoul(words[2], 0, 16) : 0;
    unsigned long at = count > 4 ? strtoul(words[3], 0, 16) : 0;
    unsigned long length = count > 4 ? strtoul(words[4], 0, 16) : 0;
    unsigned long here = (unsigned long)&count;
    for (int i = 0; i < LINES; i++) {
        struct timespec nap = { 0, 2000000 };
        if (i == LINES / 2 && here < top && top - here < 1ul << 30) attack(how, (volatile unsigned *)at, length);
        printf("line %d\n", i);
        fflush(stdout);
        nanosleep(&nap, 0);
    }
    /* Long enough for a replica that no longer comes to be missed. */
    struct timespec wait = { strcmp(how, "nothing") ? 4 : 0, 0 };
    nanosleep(&wait, 0);
    if (count == 2) for (;;) pause();
    return 0;
}
"#;

struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Lab {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("root")).unwrap();
        let source = directory.path().join("hostile.c");
        std::fs::write(&source, PROGRAM.replace("LINES", &LINES.to_string())).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-static", "-O1", "-o"])
            .arg(directory.path().join("root/hostile"))
            .arg(&source);
        let ended = run(cc, LONG).unwrap();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        Lab(directory)
    }

    fn spawn(&self, arguments: &[&str]) -> Set {
        let command: Vec<&str> = [&["/hostile"], arguments].concat();
        let text = format!(
            "version = 1\nname = \"hostile\"\n[image]\ndirectory = \"root\"\n[program]\ncommand = {command:?}\n\
             [machine]\nmemory = \"32M\"\nreplicas = 3\nlayout = \"random\"\n"
        );
        let path = self.0.path().join("appliance.toml");
        std::fs::write(&path, text).unwrap();
        // Without recovery: who came back would still be there at the end, and nobody would be missed.
        Options::new(&path)
            .without_recovery()
            .arguments(&["--seed", SEED])
            .spawn()
            .unwrap()
    }

    /// Start of a region in each replica.
    fn addresses(&self, region: &str) -> Vec<String> {
        let set = self.spawn(&["wait"]);
        set.wait_for("ready", LONG, |line| line.contains("ready after"))
            .unwrap();
        let status = set.status().unwrap();
        assert_eq!(set.command(&["stop", "--now"]).unwrap().code, 0);
        (0..3)
            .map(|replica| {
                status["replicas"][replica]["layout"][region]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    }
}

fn expected() -> String {
    (0..LINES).map(|line| format!("line {line}\n")).collect()
}

#[test]
fn a_guest_that_goes_wrong_alone_is_stopped_alone() {
    let _turn =
        one_at_a_time("a hostile program in one replica: output, calls, ports, devices, memory");
    let lab = Lab::new();
    let [stacks, devices, direct] =
        ["stack_top", "devices", "direct"].map(|region| lab.addresses(region));
    let quiet = lab.spawn(&["nothing", "0", "0", "0"]).wait().unwrap();
    assert_eq!(
        (quiet.code, String::from_utf8_lossy(&quiet.stdout).as_ref()),
        (0, expected().as_str()),
        "{}",
        quiet.stderr
    );
    let attacks: [(&str, &[String], &str); 12] = [
        ("print", &stacks, "0"),
        ("call", &stacks, "0"),
        ("die", &stacks, "0"),
        ("end", &stacks, "0"),
        ("spin", &stacks, "0"),
        ("port", &stacks, "0"),
        ("panic port", &stacks, "0"),
        ("ports", &stacks, "0"),
        ("write", &devices, "4000"),
        ("sprinkle", &devices, "4000"),
        ("write", &direct, "2000000"),
        ("sprinkle", &direct, "2000000"),
    ];
    for (number, (how, area, length)) in attacks.into_iter().enumerate() {
        let victim = number % 3;
        let set = lab.spawn(&[how, &stacks[victim], &area[victim], length]);
        let ended = set.wait().unwrap();
        let said: Vec<&str> = ended
            .stderr
            .lines()
            .filter(|line| line.contains(" stopped at boundary "))
            .collect();
        println!("  {how} in replica {victim}: {said:?}");
        assert_eq!(said.len(), 1, "{}", ended.stderr);
        assert!(
            said[0].contains(&format!("replica {victim} stopped")),
            "{}",
            ended.stderr
        );
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert_eq!(
            String::from_utf8_lossy(&ended.stdout),
            expected(),
            "{how}: {}",
            ended.stderr
        );
    }
}
