//! 1,000 files of 0 B to 100 MB by curl: one after the other, then over 200 connections at once.

use std::path::Path;
use std::time::Instant;

use quorate_tests::curl::{Transfer, body, fetch_all, masked};
use quorate_tests::one_at_a_time;

use crate::{Both, Server, agree};

/// How many connections at once: for BusyBox no more than the queue of nine that it listens with, natively too.
fn at_once(server: Server) -> usize {
    match server {
        Server::Busybox => 8,
        _ => 200,
    }
}

#[test]
fn nginx_serves_1000_files() {
    thousand(Server::Nginx);
}

#[test]
fn lighttpd_serves_1000_files() {
    thousand(Server::Lighttpd);
}

#[test]
fn nginx_with_workers_serves_1000_files() {
    thousand(Server::Workers);
}

#[test]
fn busybox_serves_1000_files() {
    thousand(Server::Busybox);
}

fn thousand(server: Server) {
    let _turn = one_at_a_time(&format!(
        "{server:?}: 1,000 files by curl, one after the other, then on {} connections",
        at_once(server)
    ));
    let both = Both::start(server);
    let one = compare(&both, &[]);
    // Both servers may end a connection after so many requests; they do it alike.
    assert_eq!(one[0], one[1], "connections of native and set");
    match server {
        // It ends every one.
        Server::Busybox => assert_eq!(one[0], both.documents.all.len()),
        _ => assert!(one[0] < 20, "keep-alive: {} connections", one[0]),
    }
    let most = at_once(server);
    let parallel = most.to_string();
    let parallel = [
        "--parallel",
        "--parallel-immediate",
        "--parallel-max",
        &parallel,
    ];
    let many = compare(&both, &parallel);
    assert!(
        many.iter().all(|&count| count >= most),
        "{many:?} connections"
    );
    both.finish();
}

/// All documents from both servers; how many connections each got.
fn compare(both: &Both, arguments: &[&str]) -> [usize; 2] {
    let directory = tempfile::tempdir().unwrap();
    let mut connections = [0; 2];
    let mut bytes = 0;
    for (number, address) in both.addresses().into_iter().enumerate() {
        let to = directory.path().join(number.to_string());
        std::fs::create_dir_all(&to).unwrap();
        let fetches: Vec<_> = both
            .documents
            .all
            .iter()
            .map(|document| {
                let path = to.join(document.name.replace('/', "-"));
                (format!("http://{address}/{}", document.name), path)
            })
            .collect();
        let started = Instant::now();
        let transfers = fetch_all(&fetches, directory.path(), arguments).unwrap();
        println!(
            "  {} {arguments:?}: {:?}",
            ["native", "set"][number],
            started.elapsed()
        );
        assert_eq!(transfers.len(), fetches.len());
        assert!(transfers.iter().all(|transfer| transfer.status == 200));
        bytes = transfers.iter().map(|transfer| transfer.length).sum();
        connections[number] = transfers.iter().map(|t: &Transfer| t.connects).sum();
    }
    for document in &both.documents.all {
        let [native, set] = ["0", "1"].map(|number| {
            let path = directory.path().join(number);
            read(&path.join(document.name.replace('/', "-")))
        });
        // Two that are wrong alike would be found here.
        let right = read(&document.path);
        assert_eq!(right.len(), document.length);
        assert!(
            body(&set) == right,
            "{}: the body is not the file",
            document.name
        );
        agree(&document.name, &masked(&native), &masked(&set));
    }
    println!("  {connections:?} connections, {bytes} bytes, heads and bodies equal");
    connections
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}
