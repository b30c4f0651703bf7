//! Sets under the relaxed discipline, as a user starts them.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use quorate_tests::load::Load;
use quorate_tests::set::Options;
use quorate_tests::{one_at_a_time, repository, shortened};

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
    for words in [&["add"][..], &["checkpoint", "/tmp/nowhere-at-all"][..]] {
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
