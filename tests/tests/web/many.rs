//! 200 connections that are all there at once, each of which keeps asking.

use std::sync::Barrier;

use quorate_tests::curl::masked;
use quorate_tests::one_at_a_time;
use quorate_tests::random::Random;
use quorate_tests::wire::Wire;

use crate::{Both, Server, agree};

fn connections() -> usize {
    quorate_tests::shortened(200, 16)
}

fn rounds() -> usize {
    quorate_tests::shortened(5, 1)
}
/// Larger files would only show that reading files takes time.
const LARGEST: usize = 300_000;

#[test]
fn nginx_serves_200_connections_at_once() {
    at_once(Server::Nginx);
}

#[test]
fn lighttpd_serves_200_connections_at_once() {
    at_once(Server::Lighttpd);
}

#[test]
fn nginx_with_workers_serves_200_connections_at_once() {
    at_once(Server::Workers);
}

fn at_once(server: Server) {
    let _turn = one_at_a_time(&format!(
        "{server:?}: {} keep-alive connections at once",
        connections()
    ));
    let both = Both::start(server);
    let [native, set] = both.addresses().map(|address| {
        let all_connected = Barrier::new(connections());
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..connections())
                .map(|number| {
                    let (all_connected, both) = (&all_connected, &both);
                    scope.spawn(move || client(both, address, number, all_connected))
                })
                .collect();
            clients
                .into_iter()
                .map(|client| client.join().unwrap())
                .collect::<Vec<_>>()
        })
    });
    for (number, (native, set)) in native.iter().zip(&set).enumerate() {
        for (native, set) in native.iter().zip(set) {
            agree(&format!("client {number}"), native, set);
        }
    }
    both.finish();
}

/// The heads that one client got; the bodies are compared with the files here.
fn client(
    both: &Both,
    address: std::net::SocketAddr,
    number: usize,
    all_connected: &Barrier,
) -> Vec<Vec<u8>> {
    let mut random = Random::new(number as u64);
    let mut wire = Wire::connect(address).unwrap();
    // One answer first: a connection may be accepted by the host's kernel long before the server knows of it.
    wire.send(b"HEAD /index.html HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut heads = vec![masked(&wire.take_until(b"\r\n\r\n").unwrap())];
    all_connected.wait();
    let served: Vec<_> = both
        .documents
        .all
        .iter()
        .filter(|document| document.length <= LARGEST)
        .collect();
    for _ in 0..rounds() {
        let document = served[random.below(served.len())];
        let request = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", document.name);
        wire.send(request.as_bytes()).unwrap();
        heads.push(masked(&wire.take_until(b"\r\n\r\n").unwrap()));
        let right = std::fs::read(&document.path).unwrap();
        assert!(
            wire.take(document.length).unwrap() == right,
            "{}",
            document.name
        );
    }
    heads
}
