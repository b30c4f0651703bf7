//! Requests that curl would not send: pipelined, in pieces, broken; and clients that go away.

use quorate_tests::curl::masked;
use quorate_tests::one_at_a_time;
use quorate_tests::wire::Wire;

use crate::{Both, Server, agree};

/// Each is sent on a connection of its own, whose sending side is closed then.
const REQUESTS: &[&[u8]] = &[
    b"",
    b"\r\n",
    b"\r\n\r\nGET /index.html HTTP/1.0\r\n\r\n",
    b"GET /index.html\r\n",
    b"GET /index.html HTTP/1.0\r\n\r\n",
    b"GET /index.html HTTP/1.1\r\n\r\n",
    b"GET /index.html HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
    b"GET /index.html HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
    b"GET /index.html HTTP/1.1\nHost: a\nConnection: close\n\n",
    b"GET /index.html HTTP/1.2\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /index.html HTTP/2.0\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /index.html HTTP/9\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /index.html FTP/1.1\r\nHost: a\r\n\r\n",
    b"GET  /index.html  HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET index.html HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET http://b/index.html HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /index.html HTTP/1.1\r\nHost: a\r\nX : y\r\nConnection: close\r\n\r\n",
    b"GET /index.html HTTP/1.1\r\nHost: a\r\n folded\r\nConnection: close\r\n\r\n",
    b"GET /index.html HTTP/1.1\r\nHost: a\r\nX: \x01\r\nConnection: close\r\n\r\n",
    b"GET /index.html HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\nConnection: close\r\n\r\n",
    b"GET /index.html HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\nConnection: close\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\nConnection: close\r\n\r\nabcdef",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: nonsense\r\nConnection: close\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00\x00\x00\x00",
    b"NONSENSE",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
];

#[test]
fn nginx_takes_hand_made_requests() {
    hand_made(Server::Nginx);
}

#[test]
fn lighttpd_takes_hand_made_requests() {
    hand_made(Server::Lighttpd);
}

fn hand_made(server: Server) {
    let _turn = one_at_a_time(&format!(
        "{server:?}: requests pipelined, in pieces, broken; clients that go away"
    ));
    let both = Both::start(server);
    for request in REQUESTS {
        let [native, set] = both.addresses().map(|address| {
            let mut wire = Wire::connect(address).unwrap();
            wire.send(request).unwrap();
            wire.finish().unwrap();
            dates_masked(&wire.take_all().unwrap())
        });
        agree(&String::from_utf8_lossy(request), &native, &set);
    }
    pipelined(&both);
    in_pieces(&both);
    going_away(&both);
    both.finish();
}

/// All answers of a connection masked.
fn dates_masked(answers: &[u8]) -> Vec<u8> {
    let mut masked_answers = Vec::new();
    let mut rest = answers;
    while let Some(next) = rest
        .windows(5)
        .skip(1)
        .position(|window| window == b"HTTP/")
    {
        masked_answers.extend(masked(&rest[..=next]));
        rest = &rest[next + 1..];
    }
    masked_answers.extend(masked(rest));
    masked_answers
}

/// Many requests before the first answer is read; the last one ends the connection.
fn pipelined(both: &Both) {
    let mut stream = Vec::new();
    let mut expected = 0;
    for document in both
        .documents
        .all
        .iter()
        .filter(|d| d.length < 20_000)
        .take(60)
    {
        let name = &document.name;
        stream.extend(format!("GET /{name} HTTP/1.1\r\nHost: a\r\n\r\n").bytes());
        stream.extend(format!("HEAD /{name} HTTP/1.1\r\nHost: a\r\n\r\n").bytes());
        stream
            .extend(format!("GET /{name} HTTP/1.1\r\nHost: a\r\nRange: bytes=0-9\r\n\r\n").bytes());
        expected += document.length;
    }
    stream.extend(b"GET /nope HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let [native, set] = both.addresses().map(|address| {
        let mut wire = Wire::connect(address).unwrap();
        wire.send(&stream).unwrap();
        dates_masked(&wire.take_all().unwrap())
    });
    assert!(set.len() > expected, "{} bytes", set.len());
    agree("pipelined requests", &native, &set);
    println!("  180 pipelined requests: {} bytes", set.len());
}

/// A request byte by byte, with an answer awaited after each line that has one.
fn in_pieces(both: &Both) {
    let request =
        b"GET /index.html HTTP/1.1\r\nHost: a\r\nX-Pieces: yes\r\nConnection: close\r\n\r\n";
    let [native, set] = both.addresses().map(|address| {
        let mut wire = Wire::connect(address).unwrap();
        for byte in request {
            wire.send(&[*byte]).unwrap();
        }
        masked(&wire.take_all().unwrap())
    });
    agree("a request in pieces", &native, &set);
}

/// Clients that ask for a large file and go away at once, or after a part: the next one is served.
fn going_away(both: &Both) {
    let document = both.documents.at_least(10_000_000).unwrap();
    let request = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", document.name);
    let address = both.set.address();
    for part in [0, 1, 1000, 100_000, 1_000_000].repeat(8) {
        let mut wire = Wire::connect(address).unwrap();
        wire.send(request.as_bytes()).unwrap();
        wire.take(part).unwrap();
    }
    let mut wire = Wire::connect(address).unwrap();
    wire.send(request.as_bytes()).unwrap();
    wire.take_until(b"\r\n\r\n").unwrap();
    let right = std::fs::read(&document.path).unwrap();
    assert!(wire.take(document.length).unwrap() == right);
    println!("  40 clients went away in the middle, the next was served");
}
