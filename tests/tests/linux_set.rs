//! A set of Linux machines, as a user starts it: three replicas of nginx under Debian's own kernel.
//!
//! This needs a KVM that runs ring 0 in hardware. Elsewhere the test says so and is over: the SVM lane runs it
//! (`make svm CMD="target/release/deps/linux_set-… --nocapture"`).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quorate_executor::patience::patient;
use quorate_tests::linux::runs_here;
use quorate_tests::set::Options;
use quorate_tests::{one_at_a_time, repository, shortened};

/// For one answer; the first waits for three boots.
const PATIENCE: Duration = Duration::from_secs(60);
const CONNECTIONS: usize = 20;
const PATHS: [&str; 4] = ["/100", "/5k", "/120k", "/index.html"];

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(patient(PATIENCE))).unwrap();
        Client(BufReader::new(stream))
    }

    /// Status line, headers but `Date`, and body.
    fn get(&mut self, path: &str) -> (Vec<String>, Vec<u8>) {
        write!(
            self.0.get_mut(),
            "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"
        )
        .unwrap();
        let (mut head, mut length) = (Vec::new(), 0);
        loop {
            let mut line = String::new();
            assert_ne!(
                self.0.read_line(&mut line).unwrap(),
                0,
                "the connection ended"
            );
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().unwrap();
            }
            if !line.starts_with("Date: ") {
                head.push(line);
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        (head, body)
    }
}

#[test]
fn three_linux_replicas_serve_on_while_one_is_killed() {
    let _turn = one_at_a_time("nginx under Debian's kernel, three replicas, one killed under load");
    if !runs_here() {
        return;
    }
    let path = repository().join("images/appliances/nginx-linux.toml");
    // How one comes back is the matter of linux_recovery.rs.
    let options = Options::new(&path).publish(80).replicas(3);
    let set = options.without_recovery().start().unwrap();
    let mut first = Client::connect(set.address());
    let wanted: HashMap<_, _> = PATHS.iter().map(|path| (*path, first.get(path))).collect();
    assert!(
        wanted.values().all(|(head, _)| head[0].contains(" 200 ")),
        "{wanted:?}"
    );
    assert_eq!(wanted["/100"].1.len(), 100);

    let each = shortened(50, 10);
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for number in 0..CONNECTIONS {
            let (set, wanted, done, address) = (&set, &wanted, &done, set.address());
            scope.spawn(move || {
                let mut client = Client::connect(address);
                for round in 0..each {
                    let path = PATHS[(number + round) % PATHS.len()];
                    assert!(client.get(path) == wanted[path], "{path} has changed");
                    if done.fetch_add(1, Ordering::Relaxed) == CONNECTIONS * each / 3 {
                        set.kill(1).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(done.into_inner(), CONNECTIONS * each);
    assert!(set.lines_with("verdict:").is_empty(), "somebody differed");
    let status = set.status().unwrap();
    assert_eq!(status["running"], 2, "{status:#}");
    set.stop().unwrap();
}
