//! Linux replicas that come back: three of nginx under Debian's own kernel, and a load that must not notice anything.
//!
//! This needs a KVM that runs ring 0 in hardware. Elsewhere the test says so and is over: the SVM lane runs it
//! (`make test-svm SUITES=linux_recovery`).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quorate_executor::patience::patient;
use quorate_tests::linux::runs_here;
use quorate_tests::set::{Options, Set};
use quorate_tests::watch::{Watch, shown, state, wait_whole};
use quorate_tests::{one_at_a_time, repository, shortened};

/// For an answer, a checkpoint, a return.
const PATIENCE: Duration = Duration::from_secs(60);
const CLIENTS: usize = 3;

/// One request on a connection of its own; the answer without its date.
fn get(address: SocketAddr, path: &str) -> Result<Vec<u8>, std::io::Error> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(patient(PATIENCE)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let mut kept = Vec::new();
    for line in answer.split_inclusive(|&byte| byte == b'\n') {
        if !line.starts_with(b"Date: ") {
            kept.extend_from_slice(line);
        }
    }
    Ok(kept)
}

/// Waits until so many answers more were checked.
fn more(done: &AtomicUsize, count: usize) {
    let (until, wanted) = (
        Instant::now() + patient(PATIENCE),
        done.load(Ordering::SeqCst) + count,
    );
    while done.load(Ordering::SeqCst) < wanted {
        assert!(Instant::now() < until, "the clients do not get on");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// Waits until a replica has a checkpoint younger than the load.
fn checkpointed(set: &Set, replica: usize, before: u64) {
    let until = Instant::now() + patient(PATIENCE);
    loop {
        let state = state(set).unwrap();
        let taken = state["replicas"][replica]["checkpoints"]["taken"].as_u64();
        if taken.unwrap_or(0) > before {
            println!("  {}", state["replicas"][replica]["checkpoints"]);
            return;
        }
        assert!(Instant::now() < until, "{}", shown(&state));
        std::thread::park_timeout(Duration::from_millis(200));
    }
}

/// Stops a replica again and again until it is left out; how often it came back.
fn stop_for_good(set: &Set, victim: usize) {
    let mut watch = Watch::new(set).unwrap();
    for _ in 0..3 {
        set.kill(victim).unwrap();
        let events = watch
            .next("recovered or left out", PATIENCE, |event| {
                event["replica"] == victim
                    && (event["event"] == "recovered" || event["event"] == "left-out")
            })
            .unwrap();
        println!("  {}", events.last().unwrap());
        if events.last().unwrap()["event"] == "left-out" {
            return;
        }
    }
    panic!("it came back each time");
}

#[test]
fn a_crashed_linux_replica_comes_back_and_its_word_counts() {
    let _turn =
        one_at_a_time("nginx under Debian's kernel: one crashes and comes back, another goes");
    if !runs_here() {
        return;
    }
    let path = repository().join("images/appliances/nginx-linux.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let lines = "[recovery]\ncrash_limit = 1\ncrash_window_s = 3600";
    let options = Options::text(&format!("{text}\n{lines}\n")).unwrap();
    let set = options.publish(80).replicas(3).start().unwrap();
    let address = set.address();
    let wanted: Vec<(&str, Vec<u8>)> = ["/100", "/5k", "/120k"]
        .into_iter()
        .map(|path| (path, get(address, path).unwrap()))
        .collect();
    for (path, answer) in &wanted {
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{path}");
    }
    wait_whole(&set, PATIENCE).unwrap();

    let (done, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (wanted, done, over) = (&wanted, &done, &over);
            scope.spawn(move || {
                let mut round = number;
                while !over.load(Ordering::SeqCst) {
                    let (path, answer) = &wanted[round % wanted.len()];
                    round += 1;
                    assert!(get(address, path).unwrap() == *answer, "{path} has changed");
                    done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        // Whatever fails below: the clients end.
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let _ends = Ends(&over);
        let each = shortened(100, 10);
        more(&done, each);
        checkpointed(&set, 1, 0);
        let mut watch = Watch::new(&set).unwrap();
        // A triple fault: its processors are what a new life begins with.
        set.inject(1, &["crash"]).unwrap();
        let back = watch.next_of("recovered", 1, PATIENCE).unwrap();
        println!("  {}", back.last().unwrap());
        let whole = wait_whole(&set, PATIENCE).unwrap();
        assert_eq!(whole["running"], 3, "{}", shown(&whole));
        more(&done, each);
        // Without another one its word is one of the two that are needed.
        checkpointed(&set, 0, 0);
        stop_for_good(&set, 0);
        more(&done, each);
        assert_eq!(state(&set).unwrap()["running"], 2);
        // And the operator gets that one back, too.
        set.must(&["recover", "0"]).unwrap();
        let whole = wait_whole(&set, PATIENCE).unwrap();
        assert_eq!(whole["running"], 3, "{}", shown(&whole));
        more(&done, each);
    });
    println!("  {} answers were checked", done.into_inner());
    assert!(set.lines_with("differs on").is_empty(), "somebody differed");
    set.stop().unwrap();
}
