//! Sets under the relaxed discipline, as a user starts them.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use quorate_executor::exit::ExitCode;
use quorate_tests::load::Load;
use quorate_tests::set::{Options, Set};
use quorate_tests::watch::{Watch, state, wait_whole};
use quorate_tests::{one_at_a_time, repository, shortened};
use quorate_vmm::linux::refusal;
use quorate_vmm::{open_kvm, probe};

const PATIENCE: Duration = Duration::from_secs(60);

/// An appliance of the repository with these lines behind it.
fn appliance(name: &str, lines: &str, port: u16) -> Options {
    let path = repository().join(format!("images/appliances/{name}.toml"));
    let text = std::fs::read_to_string(path).unwrap();
    Options::text(&format!("{text}\n{lines}\n"))
        .unwrap()
        .publish(port)
        .replicas(3)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

#[test]
fn redis_serves_on_while_a_replica_is_killed() {
    let _turn = one_at_a_time("Redis, relaxed, three replicas, one killed under load");
    let set = appliance("redis", "[relaxed]", 6379).start().unwrap();
    let load = Load::start(set.address(), 8, 7);
    assert!(load.wait_for_progress(shortened(2000, 100) as u64, PATIENCE));
    set.kill(1).unwrap();
    assert!(load.wait_for_progress(shortened(2000, 100) as u64, PATIENCE));
    let seen = load.finish();
    assert!(seen.wrong.is_empty() && seen.ended.is_empty(), "{seen:?}");
    let lines = set.process().lines();
    assert!(
        !lines.iter().any(|line| line.text.contains("verdict:")),
        "somebody differed: {lines:?}"
    );
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn a_wrong_answer_under_load_is_outvoted_and_no_client_notices() {
    let _turn = one_at_a_time("Redis, relaxed, one byte of an answer changed under load");
    let set = appliance("redis", "[relaxed]", 6379).start().unwrap();
    let load = Load::start(set.address(), 8, 7);
    assert!(load.wait_for_progress(shortened(1000, 100) as u64, PATIENCE));
    set.inject(1, &["wrong-output"]).unwrap();
    let verdict = set
        .wait_for("the verdict", PATIENCE, |line| line.contains("verdict:"))
        .unwrap();
    for word in ["replica 1 differs on connection", "byte", "in answer to"] {
        assert!(verdict.text.contains(word), "{word}: {}", verdict.text);
    }
    set.wait_for("its return", PATIENCE, |line| {
        line.contains("set at full strength again")
    })
    .unwrap();
    assert!(load.wait_for_progress(shortened(1000, 100) as u64, PATIENCE));
    let seen = load.finish();
    assert!(seen.wrong.is_empty() && seen.ended.is_empty(), "{seen:?}");
    let status = set.status().unwrap();
    assert_eq!(status["running"], 3, "{status:#}");
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn replicas_count_requests_of_fifty_connections_alike() {
    let _turn = one_at_a_time("INCR from 50 connections to relaxed Redis");
    let set = appliance("redis", "[relaxed]", 6379).start().unwrap();
    let (address, each) = (set.address(), shortened(200, 10));
    let clients: Vec<_> = (0..50)
        .map(|number| {
            std::thread::spawn(move || {
                let mut stream = connect(address);
                let mut seen = Vec::new();
                let depth = 1 + number % 4;
                for _ in 0..each {
                    stream
                        .write_all("INCR n\r\n".repeat(depth).as_bytes())
                        .unwrap();
                    let mut text = String::new();
                    while text.matches("\r\n").count() < depth {
                        let mut piece = [0; 256];
                        let count = stream.read(&mut piece).unwrap();
                        assert_ne!(count, 0, "the connection ended");
                        text.push_str(std::str::from_utf8(&piece[..count]).unwrap());
                    }
                    let numbers = text.lines().map(|line| line[1..].parse::<u64>().unwrap());
                    seen.extend(numbers);
                }
                seen
            })
        })
        .collect();
    let mut all = BTreeSet::new();
    let mut count = 0;
    for client in clients {
        for number in client.join().unwrap() {
            assert!(all.insert(number), "{number} came twice");
            count += 1;
        }
    }
    assert_eq!(all.last(), Some(&count));
    let lines = set.process().lines();
    assert!(
        !lines.iter().any(|line| line.text.contains("verdict:")),
        "somebody differed: {lines:?}"
    );
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn memcached_answers_datagrams() {
    let _turn = one_at_a_time("memcached over UDP, relaxed");
    let path = repository().join("images/appliances/memcached.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let set = Options::text(&format!("{text}\n[relaxed]\n"))
        .unwrap()
        .publish(11211)
        .replicas(3)
        .start()
        .unwrap();
    let mut stream = connect(set.address());
    stream
        .write_all(b"set k 0 0 5\r\nhello\r\nget k\r\n")
        .unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"END\r\n") {
        let mut piece = [0; 256];
        let count = stream.read(&mut piece).unwrap();
        assert_ne!(count, 0, "the connection ended");
        answer.extend_from_slice(&piece[..count]);
    }
    assert_eq!(answer, b"STORED\r\nVALUE k 0 5\r\nhello\r\nEND\r\n");
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn a_web_server_answers_alike_behind_a_mask() {
    let _turn = one_at_a_time("lighttpd, relaxed, Date masked, one replica killed");
    let mask = "[relaxed]\n[[mask]]\nhttp-header = \"Date\"\nports = [\"80\"]";
    let set = appliance("lighttpd", mask, 80).start().unwrap();
    let get = |address| {
        let mut stream = connect(address);
        let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let lines = answer.lines().filter(|line| !line.starts_with("Date:"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let first = get(set.address());
    assert!(first.contains("agreed on by a majority"), "{first}");
    for number in 0..shortened(100, 10) {
        if number == 5 {
            set.kill(2).unwrap();
        }
        assert_eq!(get(set.address()), first, "request {number}");
    }
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn what_is_not_there_is_refused_in_one_line() {
    let _turn = one_at_a_time("commands that a relaxed set does not know");
    let set = appliance("redis", "[relaxed]", 6379).start().unwrap();
    for words in [
        &["add"][..],
        &["remove", "1"],
        &["checkpoint", "/tmp/nowhere-at-all"],
    ] {
        let ended = set.command(words).unwrap();
        assert_ne!(ended.code, 0, "{words:?}");
        assert!(
            ended.stderr.contains("relaxed set"),
            "{words:?}: {}",
            ended.stderr
        );
    }
    assert_eq!(set.stop().unwrap().code, 0);
    let recorded = appliance("redis", "[relaxed]", 6379)
        .arguments(&["--record", "/tmp/nowhere-at-all"])
        .spawn()
        .unwrap();
    let ended = recorded.wait().unwrap();
    assert!(
        ended.code != 0 && ended.stderr.contains("--record"),
        "{ended:?}"
    );
}

/// The command is refused, and says this.
fn refused(set: &Set, words: &[&str], why: &str) {
    let ended = set.command(words).unwrap();
    assert_eq!(ended.code, ExitCode::Control as i32, "{words:?}");
    assert!(ended.stderr.contains(why), "{words:?}: {}", ended.stderr);
}

/// Crashes a replica until it is left out.
fn crash_until_left_out(set: &Set, load: &Load, victim: usize) {
    let mut watch = Watch::new(set).unwrap();
    for crash in 1..=4 {
        let more = shortened(200, 20) as u64;
        assert!(load.wait_for_progress(more, PATIENCE));
        set.inject(victim, &["crash"]).unwrap();
        let events = watch
            .next("recovered or left out", PATIENCE, |event| {
                event["replica"] == victim
                    && (event["event"] == "recovered" || event["event"] == "left-out")
            })
            .unwrap();
        if events.last().unwrap()["event"] == "left-out" {
            println!("  after {crash} crashes: {}", events.last().unwrap());
            assert_eq!(state(set).unwrap()["replicas"][victim]["state"], "left-out");
            return;
        }
    }
    panic!("it came back each time");
}

#[test]
fn a_replica_that_was_left_out_is_asked_back_and_its_word_counts() {
    let _turn = one_at_a_time("relaxed Redis: the crash limit, and quorate recover R");
    let lines = "[relaxed]\n[recovery]\ncrash_limit = 1\ncrash_window_s = 600\nhistory = \"1G\"";
    let set = appliance("redis", lines, 6379).start().unwrap();
    let load = Load::start(set.address(), 4, 8);
    refused(&set, &["recover", "1"], "replica 1 runs; name a step");
    refused(&set, &["recover", "9"], "there is no replica 9");
    refused(
        &set,
        &["recover", "1", "--step", "clone"],
        "the steps are checkpoint and replay",
    );
    crash_until_left_out(&set, &load, 1);
    let mut watch = Watch::new(&set).unwrap();
    set.must(&["recover", "1"]).unwrap();
    let back = watch.next_of("recovered", 1, PATIENCE).unwrap();
    println!("  {}", back.last().unwrap());
    assert_eq!(wait_whole(&set, PATIENCE).unwrap()["running"], 3);
    // One that runs begins again, here from the very beginning.
    set.must(&["recover", "2", "--step", "replay"]).unwrap();
    let back = watch.next_of("recovered", 2, PATIENCE).unwrap();
    assert_eq!(back.last().unwrap()["step"], "replay");
    wait_whole(&set, PATIENCE).unwrap();
    // Its record is clean, and its word is one of the two that are needed now.
    crash_until_left_out(&set, &load, 0);
    assert!(load.wait_for_progress(shortened(500, 50) as u64, PATIENCE));
    assert_eq!(state(&set).unwrap()["running"], 2);
    let seen = load.finish();
    assert!(seen.wrong.is_empty() && seen.ended.is_empty(), "{seen:?}");
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn what_cannot_be_brought_back_is_refused_with_the_reason() {
    let _turn =
        one_at_a_time("relaxed Redis: quorate recover R where nothing is left to recover from");
    let lines = "[relaxed]\n[recovery]\ncheckpoint_interval_ms = 0\nhistory = \"4K\"";
    let set = appliance("redis", lines, 6379).start().unwrap();
    let load = Load::start(set.address(), 4, 9);
    assert!(load.wait_for_progress(shortened(1000, 100) as u64, PATIENCE));
    let mut watch = Watch::new(&set).unwrap();
    set.kill(1).unwrap();
    watch.next_of("left-out", 1, PATIENCE).unwrap();
    refused(
        &set,
        &["recover", "1"],
        "there is no checkpoint of replica 1, and the inputs since the beginning are no longer all there",
    );
    let seen = load.finish();
    assert!(seen.wrong.is_empty() && seen.ended.is_empty(), "{seen:?}");
    assert_eq!(set.stop().unwrap().code, 0);

    let set = appliance("redis", "[relaxed]", 6379).without_recovery();
    let set = set.start().unwrap();
    set.kill(1).unwrap();
    refused(&set, &["recover", "1"], "--recovery off");
    assert_eq!(set.stop().unwrap().code, 0);
}

/// Where ring 0 is interpreted (elsewhere there is nothing to refuse).
#[test]
fn linux_is_refused_where_it_cannot_run_and_ends_within_a_bound_if_forced() {
    let _turn = one_at_a_time("a Linux appliance where ring 0 is interpreted, refused and forced");
    if refusal(&probe(&open_kvm().unwrap()).unwrap()).is_none() {
        return eprintln!("skipped: this host runs ring 0 in hardware");
    }
    let path = repository().join("images/appliances/nginx-linux.toml");
    let options = Options::new(&path).publish(80).replicas(2);
    let ended = options.spawn().unwrap().wait().unwrap();
    assert_eq!(ended.code, ExitCode::Host as i32, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("interprets ring 0") && ended.stderr.contains("--force tries"),
        "{}",
        ended.stderr
    );
    let set = options.arguments(&["--force"]).spawn().unwrap();
    let wanted = "the guests did not get through their start";
    let said = set.wait_for(wanted, 2 * PATIENCE, |line| line.contains(wanted));
    println!("  {}", said.unwrap().text);
    let ended = set.wait().unwrap();
    assert_eq!(ended.code, ExitCode::Host as i32, "{}", ended.stderr);
}
