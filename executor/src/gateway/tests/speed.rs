//! Rough speed of gateway, client and simulated guest together. Ignored by default: run with `--ignored --nocapture`
//! in release mode. `CONNECTIONS=50` picks one of the request measurements, for a profiler.

use std::io::{Read, Write};
use std::time::Instant;

use super::guest::*;

/// Closed loops over `connections` sockets in one thread, 64 bytes each way.
fn requests_per_second(connections: usize, rounds: usize) -> f64 {
    let world = World::new();
    let mut streams: Vec<_> = (0..connections).map(|_| world.connect(ECHO)).collect();
    let mut buffer = [7; 64];
    let start = Instant::now();
    for stream in &mut streams {
        stream.write_all(&buffer).unwrap();
    }
    for _ in 0..rounds {
        for stream in &mut streams {
            stream.read_exact(&mut buffer).unwrap();
            stream.write_all(&buffer).unwrap();
        }
    }
    let rate = (connections * rounds) as f64 / start.elapsed().as_secs_f64();
    println!("{:?}", world.gateway.stats());
    rate
}

#[test]
#[ignore = "a measurement"]
fn measure_requests() {
    let only = std::env::var("CONNECTIONS")
        .ok()
        .and_then(|text| text.parse().ok());
    for (connections, rounds) in [(1, 20_000), (50, 8000), (500, 800)] {
        if only.is_some_and(|only: usize| only != connections) {
            continue;
        }
        let rate = requests_per_second(connections, rounds);
        println!("{connections} connections, 64 B: {rate:.0} requests/s");
    }
}

#[test]
#[ignore = "a measurement"]
fn measure_bulk() {
    let world = World::new();
    let mut stream = world.connect(BLAST);
    let start = Instant::now();
    let mut total = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => break,
            n => total += n,
        }
    }
    println!(
        "guest to host: {:.0} MB/s",
        total as f64 / 1e6 / start.elapsed().as_secs_f64()
    );

    let mut stream = world.connect(COUNT);
    let start = Instant::now();
    for _ in 0..256 {
        stream.write_all(&buffer).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut count = Vec::new();
    stream.read_to_end(&mut count).unwrap();
    assert_eq!(count, (256_u64 << 20).to_be_bytes());
    println!(
        "host to guest: {:.0} MB/s",
        268.4 / start.elapsed().as_secs_f64()
    );
    println!("{:?}", world.gateway.stats());

    let stream = world.connect(ECHO);
    let start = Instant::now();
    let data = vec![1; 256 << 20];
    std::thread::scope(|scope| {
        let mut writer = &stream;
        scope.spawn(move || writer.write_all(&data).unwrap());
        let mut left = 256 << 20;
        while left > 0 {
            left -= (&stream).read(&mut buffer).unwrap();
        }
    });
    println!(
        "echo: {:.0} MB/s each way",
        268.4 / start.elapsed().as_secs_f64()
    );
}
