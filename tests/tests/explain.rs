//! `quorate explain` on planted faults: it names the call and the place that was hit.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use quorate_executor::explain::files::Files;
use quorate_executor::record::Recording;
use quorate_tests::one_at_a_time;
use quorate_tests::process::run;
use quorate_tests::resp::{Client, command};
use quorate_tests::set::{Options, Set, quorate};
use serde_json::Value;

/// Upper bound for things whose time is not what is tested.
const LONG: Duration = Duration::from_secs(60);
/// The same for an explanation: it replays and tries.
const EXPLAIN: Duration = Duration::from_secs(300);
/// The replica that is hit.
const VICTIM: usize = 1;

struct Run {
    set: Set,
    client: Client,
    directory: tempfile::TempDir,
}

impl Run {
    fn start() -> Run {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("run");
        let set = Options::redis()
            .replicas(3)
            .arguments(&["--record", file.to_str().unwrap()])
            .start()
            .unwrap();
        let client = Client::connect(set.address()).unwrap();
        Run {
            set,
            client,
            directory,
        }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    fn call<W: AsRef<[u8]>>(&mut self, words: &[W]) -> Vec<u8> {
        self.client.call(&command(words)).unwrap()
    }

    /// Injects, where a replay can do the same: at a boundary. Gives the physical address, as the command tells it.
    fn flip(&self, place: &str, bit: u8) -> Option<u64> {
        let bit = bit.to_string();
        let words = ["flip-memory", place, &bit, "--at-boundary"];
        let said = self.set.inject(VICTIM, &words).ok()?.1;
        let event = self
            .set
            .wait_for("the injection", LONG, |line| {
                line.contains("physical address") && line.contains(place)
            })
            .unwrap_or_else(|error| panic!("{error}: {said}"));
        let (_, address) = event.text.split_once("physical address 0x").unwrap();
        let address = address.split(' ').next().unwrap();
        Some(u64::from_str_radix(address, 16).unwrap())
    }

    fn stopped(&self) {
        let wanted = format!("replica {VICTIM} stopped at boundary ");
        self.set
            .wait_for(&wanted, LONG, |line| line.contains(&wanted))
            .unwrap();
    }

    /// Stops the set and explains what happened.
    fn explain(self, more: &[&str]) -> Value {
        self.set.stop().unwrap();
        let mut arguments = vec!["explain", "--json"];
        arguments.extend(more);
        let mut text = Command::new(quorate().unwrap());
        text.args(&arguments).arg(self.file());
        let ended = run(text, EXPLAIN).unwrap();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
        let all = report["explanations"].as_array().unwrap();
        for (number, found) in all.iter().enumerate() {
            let divergence = &found["divergence"];
            assert_eq!(divergence["replica"], VICTIM, "{report:#}");
            // On a busy machine a checkpoint comes between the fault and its discovery: it is found out by replay (R7).
            let reason = divergence["reason"].as_str().unwrap_or_default();
            let again = reason.starts_with("relapsed");
            assert_eq!(again, number > 0, "{report:#}");
        }
        all[0].clone()
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The places of a backtrace.
fn backtrace(side: &Value) -> Vec<&str> {
    let frames = side["backtrace"].as_array().unwrap();
    frames.iter().map(|frame| text(&frame["place"])).collect()
}

#[test]
fn a_byte_of_a_value_is_found_and_the_reply_that_carried_it() {
    let _guard = one_at_a_time("explain");
    let mut run = Run::start();
    let value = "the value that is to be hit, long enough for a place of its own";
    run.call(&["SET", "victim", value]);
    // The client's buffer in redis-server must not hold it as well.
    run.call(&["ECHO", &"x".repeat(400)]);
    let place = "mmap:the value that is to be hit";
    let address = run.flip(place, 1).expect("the value is in memory");
    let reply = run.call(&["GET", "victim"]);
    assert!(
        reply.windows(value.len()).any(|w| w == value.as_bytes()),
        "R2"
    );
    run.stopped();
    let found = run.explain(&["--blind"]);
    let cause = &found["cause"];
    assert_eq!(cause["cause"], "memory", "{found:#}");
    assert_eq!(cause["place"]["physical"], address, "{cause:#}");
    assert_eq!(
        (&cause["bit"], &cause["proof"]),
        (&1.into(), &"exact".into()),
        "{cause:#}"
    );
    assert_eq!(
        (cause["healthy"].as_u64(), cause["replica"].as_u64()),
        (Some(0x74), Some(0x76))
    );
    assert_eq!(cause["place"]["kind"], "mmap");
    assert_eq!(found["agrees_with_injected"], true);
    let call = &found["call"];
    assert_eq!(
        (&call["calls"], &call["healthy"]["name"]),
        (&"differs".into(), &"write".into()),
        "{call:#}"
    );
    assert!(
        text(&call["healthy"]["line"]).contains("the value"),
        "{call:#}"
    );
    assert!(
        text(&call["replica"]["line"]).contains("vhe value"),
        "{call:#}"
    );
    assert!(text(&call["buffers"]).contains("^^"), "{call:#}");
    for side in ["healthy", "replica"] {
        let places = backtrace(&call[side]);
        assert!(
            places.contains(&"libc.so.6: write+0x55") || places[0].contains("write"),
            "{places:?}"
        );
        assert!(
            places.iter().any(|place| place.contains("writeToClient")),
            "{places:?}"
        );
        assert!(
            places.iter().any(|place| place.contains("main+")),
            "{places:?}"
        );
    }
    let elsewhere = text(&found["other_layout"]);
    assert!(
        elsewhere.contains("the value"),
        "modulo layout: {elsewhere}"
    );
}

#[test]
fn a_bit_of_a_programs_code_is_found_by_function() {
    let _guard = one_at_a_time("explain");
    let mut run = Run::start();
    run.call(&["SET", "key", "something"]);
    // Code comes into memory when it is first used.
    run.call(&["GET", "key"]);
    let recording = run.file();
    let header = Recording::open(&recording)
        .map(|r| r.header().clone())
        .unwrap();
    let files = Files::open(&header.image.path, &header.program.argv[0]).unwrap();
    let offset = files
        .program()
        .unwrap()
        .find("getGenericCommand")
        .expect("Debian's redis-server names its functions");
    // Position-independent programs lie 1 MiB behind the start of their region.
    let place = format!("program+{:#x}", offset + (1 << 20));
    let address = run.flip(&place, 6).unwrap();
    let _ = run.call(&["GET", "key"]);
    run.stopped();
    let found = run.explain(&["--blind", "--one-layout"]);
    let cause = &found["cause"];
    assert_eq!(cause["cause"], "memory", "{found:#}");
    assert_eq!(cause["place"]["physical"], address, "{cause:#}");
    assert_eq!(cause["place"]["kind"], "text");
    assert!(
        text(&cause["place"]["object"]).contains(".text: getGenericCommand"),
        "{cause:#}"
    );
    assert_ne!(cause["proof"], "none", "{cause:#}");
    let call = &found["call"];
    assert_ne!(call["calls"], "same", "{call:#}");
}

#[test]
fn a_bit_of_a_register_is_found_by_trial() {
    let _guard = one_at_a_time("explain");
    let mut run = Run::start();
    run.call(&["SET", "key", "something"]);
    // In the middle of a run it would be a register of whatever runs just then: the server has a timer of its own.
    run.set
        .inject(VICTIM, &["flip-register", "rsp", "4", "--at-boundary"])
        .unwrap();
    let _ = run.call(&["GET", "key"]);
    run.stopped();
    let found = run.explain(&["--blind", "--one-layout"]);
    let cause = &found["cause"];
    assert_eq!(
        (&cause["cause"], &cause["register"]),
        (&"register".into(), &"rsp".into()),
        "{found:#}"
    );
    assert_eq!(cause["bit"], 4, "{cause:#}");
    assert_ne!(cause["proof"], "none", "{cause:#}");
    assert!(
        text(&cause["place"]).contains("boundary::cross"),
        "{cause:#}"
    );
    assert_eq!(found["agrees_with_injected"], true);
}

/// Numbers in one reply of [`NUMBERS`], each with seven digits and a blank.
const PER_REPLY: u64 = 4000;
/// Says numbers that nobody has told the server, so that they are nowhere in the guest's kernel but on their way out.
const NUMBERS: &str = "local t = {} for i = 1, tonumber(ARGV[2]) do t[i] = string.format('%07d ', ARGV[1] + i) end return table.concat(t)";

/// Bytes that redis-server still has to give its kernel for the client that has most of them.
fn bytes_left(list: &[u8]) -> u64 {
    let list = String::from_utf8_lossy(list);
    let memory = list.split_whitespace().filter_map(|word| {
        let (key, value) = word.split_once('=')?;
        (key == "omem").then(|| value.parse().unwrap())
    });
    memory.max().unwrap()
}

#[test]
fn a_bit_of_a_socket_buffer_is_found_though_no_call_differs() {
    let _guard = one_at_a_time("explain");
    let mut run = Run::start();
    let mut stalled = Client::connect(run.set.address()).unwrap();
    // More than the host's sockets between guest and client take, so that some of it has to stay in the guest's.
    let requests = 600;
    for request in 0..requests {
        let (first, count) = (request * PER_REPLY, PER_REPLY);
        let words = ["EVAL", NUMBERS, "0", &first.to_string(), &count.to_string()];
        stalled.send(&command(&words)).unwrap();
    }
    // Until all of them are carried out, and answered as far as there is room: with each request of another client redis-server
    // gives its kernel what that takes.
    let done = format!("cmdstat_eval:calls={requests},");
    while !String::from_utf8_lossy(&run.call(&["INFO", "commandstats"])).contains(&done) {}
    let (mut left, mut unchanged) = (u64::MAX, 0);
    while unchanged < 50 {
        let now = bytes_left(&run.call(&["CLIENT", "LIST"]));
        unchanged = if now == left { unchanged + 1 } else { 0 };
        left = now;
    }
    let total = requests * PER_REPLY * 8;
    assert!(left > 0 && left < total, "{left} of {total} bytes are left");
    // What was given to the kernel last has not been sent yet. `left` counts some memory around the replies as well, so the last
    // number that the kernel has is a little further on than it says.
    let given = (total - left) / 8;
    let newest = (0..200).find_map(|step| {
        let number = (given + 20_000).checked_sub(step * 500)?;
        run.flip(&format!("kernel_dynamic:{number:07} "), 2)
    });
    let address = newest.expect("part of a reply is in the guest's socket");
    for request in 0..requests {
        let reply = stalled.reply().unwrap();
        let first: String = (1..=100)
            .map(|number| format!("{:07} ", request * PER_REPLY + number))
            .collect();
        assert!(
            reply.windows(first.len()).any(|w| w == first.as_bytes()),
            "R2"
        );
    }
    run.stopped();
    let found = run.explain(&["--blind", "--one-layout"]);
    let cause = &found["cause"];
    assert_eq!(cause["cause"], "memory", "{found:#}");
    assert_eq!(cause["place"]["physical"], address, "{cause:#}");
    assert_eq!(cause["place"]["kind"], "kernel-heap", "{cause:#}");
    assert_eq!(found["call"]["calls"], "same", "{found:#}");
    assert_eq!(
        found["divergence"]["verdict"]["channel"], "network",
        "{found:#}"
    );
}

#[test]
fn a_byte_that_was_changed_outside_the_guest_is_not_looked_for_inside() {
    let _guard = one_at_a_time("explain");
    let mut run = Run::start();
    run.set.inject(VICTIM, &["wrong-output"]).unwrap();
    run.call(&["PING"]);
    run.stopped();
    let found = run.explain(&["--blind", "--one-layout"]);
    assert_eq!(found["cause"]["cause"], "outside", "{found:#}");
    assert_eq!(found["call"]["calls"], "same", "{found:#}");
    assert!(found["pages"].as_array().unwrap().is_empty(), "{found:#}");
}
