//! Measures the web servers and memcached: requests a second and bytes a second, natively, with one replica and with three, in turns.
//! Prints a table for `docs/numbers.md`; the ratios are what carries over to another machine.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use quorate_tests::Error;
use quorate_tests::app::{App, Native};
use quorate_tests::documents::Documents;
use quorate_tests::set::Set;
use quorate_tests::web::Server;
use quorate_tests::wire::Wire;

/// Connections at once.
const CONNECTIONS: usize = 50;
/// How long one measurement takes.
const LASTS: Duration = Duration::from_secs(3);
/// Measurements of each, in turns; the best one counts, since what disturbs makes slower only.
const ROUNDS: usize = 3;
/// Requests after which a client connects anew, before a server would end the connection.
const REQUESTS_PER_CONNECTION: usize = 500;
/// Length of the small document, bytes.
const SMALL: usize = 1449;
/// Length of memcached's values, bytes.
const VALUE: usize = 100;

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-apps: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is measured, and how it is asked for.
struct Candidate {
    name: &'static str,
    native: Native,
    sets: [Set; 2],
    /// What one client does to find out how many requests a second there are.
    request: Vec<u8>,
    set_up: Vec<u8>,
    memcached: bool,
    large: Option<(String, usize)>,
}

fn measure() -> Result<(), Error> {
    let documents = Documents::make()?;
    println!(
        "| appliance | what | native | N=1 | N=3 | N=3 to N=1 |\n| --- | --- | --- | --- | --- | --- |"
    );
    for server in [Server::Nginx, Server::Lighttpd] {
        row(&web(server, &documents)?)?;
    }
    row(&memcached()?)
}

fn web(server: Server, documents: &Documents) -> Result<Candidate, Error> {
    let app = server.app(documents)?;
    let small = &documents.at_least(SMALL)?.name;
    let large = documents.at_least(100_000_000)?;
    Ok(Candidate {
        name: match server {
            Server::Nginx => "nginx",
            _ => "lighttpd",
        },
        native: server.native(&app, documents)?,
        sets: sets(&app, 80)?,
        request: format!("GET /{small} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes(),
        set_up: Vec::new(),
        memcached: false,
        large: Some((large.name.clone(), large.length)),
    })
}

fn memcached() -> Result<Candidate, Error> {
    let app = App::load("memcached")?;
    let native = app.native(|app, address, _| app.listening_at(address))?;
    let value = "v".repeat(VALUE);
    Ok(Candidate {
        name: "memcached",
        native,
        sets: sets(&app, 11211)?,
        request: b"get key\r\n".to_vec(),
        set_up: format!("set key 0 0 {VALUE}\r\n{value}\r\n").into_bytes(),
        memcached: true,
        large: None,
    })
}

fn sets(app: &App, port: u16) -> Result<[Set; 2], Error> {
    let start = |replicas| app.options(port)?.replicas(replicas).start();
    Ok([start(1)?, start(3)?])
}

fn row(candidate: &Candidate) -> Result<(), Error> {
    let addresses = [
        candidate.native.address(),
        candidate.sets[0].address(),
        candidate.sets[1].address(),
    ];
    let mut rates = [0.0_f64; 3];
    let mut speeds = [0.0_f64; 3];
    for _ in 0..ROUNDS {
        for (number, &address) in addresses.iter().enumerate() {
            rates[number] = rates[number].max(requests(candidate, address)?);
            if let Some((name, length)) = &candidate.large {
                speeds[number] = speeds[number].max(download(address, name, *length)?);
            }
        }
    }
    line(candidate.name, "requests/s, 50 connections", rates);
    if candidate.large.is_some() {
        line(candidate.name, "MB/s, a file of 100 MB", speeds);
    }
    Ok(())
}

fn line(name: &str, what: &str, [native, one, three]: [f64; 3]) {
    let ratio = 100.0 * three / one;
    println!("| {name} | {what} | {native:.0} | {one:.0} | {three:.0} | {ratio:.0} % |");
}

/// Requests a second over all connections.
fn requests(candidate: &Candidate, address: SocketAddr) -> Result<f64, Error> {
    let started = Instant::now();
    let counts = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| scope.spawn(move || client(candidate, address, started + LASTS)))
            .collect();
        clients
            .into_iter()
            .map(|client| {
                client
                    .join()
                    .unwrap_or_else(|_| Err(Error::Unexpected("a client failed".to_owned())))
            })
            .collect::<Result<Vec<usize>, Error>>()
    })?;
    Ok(counts.iter().sum::<usize>() as f64 / started.elapsed().as_secs_f64())
}

fn client(candidate: &Candidate, address: SocketAddr, until: Instant) -> Result<usize, Error> {
    let mut count = 0;
    while Instant::now() < until {
        let mut wire = Wire::connect(address)?;
        if !candidate.set_up.is_empty() {
            wire.send(&candidate.set_up)?;
            wire.take_until(b"\r\n")?;
        }
        for _ in 0..REQUESTS_PER_CONNECTION {
            wire.send(&candidate.request)?;
            if candidate.memcached {
                wire.take_until(b"END\r\n")?;
            } else {
                let length = length(&wire.take_until(b"\r\n\r\n")?)?;
                wire.take(length)?;
            }
            count += 1;
            if Instant::now() >= until {
                break;
            }
        }
    }
    Ok(count)
}

/// `Content-Length` of a head.
fn length(head: &[u8]) -> Result<usize, Error> {
    let head = String::from_utf8_lossy(head);
    head.lines()
        .find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok())
        .ok_or_else(|| Error::Unexpected(format!("no length in {head}")))
}

/// Megabytes (10^6 bytes) a second.
fn download(address: SocketAddr, name: &str, length: usize) -> Result<f64, Error> {
    const PART: usize = 1 << 20;
    let mut wire = Wire::connect(address)?;
    let started = Instant::now();
    wire.send(format!("GET /{name} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())?;
    wire.take_until(b"\r\n\r\n")?;
    let mut left = length;
    while left > 0 {
        left -= wire.take(left.min(PART))?.len();
    }
    Ok(length as f64 / 1e6 / started.elapsed().as_secs_f64())
}
