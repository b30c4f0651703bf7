//! Requests over connections that stay open, each with one request at a time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use quorate_executor::patience::patient;
use serde_json::{Value, json};

use super::guest::{Guest, LONG};
use crate::load::median;

/// Connections.
pub const CONNECTIONS: usize = 20;
/// Pause between two attempts while a machine boots.
const RETRY: Duration = Duration::from_millis(100);

/// One round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Answers per second.
    pub per_second: f64,
    /// Half of the answers came within this time, milliseconds.
    pub p50_ms: f64,
    /// 99 % did.
    pub p99_ms: f64,
    /// Answers.
    pub answers: usize,
}

impl Sample {
    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "requests_per_second": self.per_second, "p50_ms": self.p50_ms, "p99_ms": self.p99_ms, "answers": self.answers,
        })
    }
}

/// The median of each figure by itself.
pub fn median_sample(samples: &[Sample]) -> Sample {
    let of = |figure: fn(&Sample) -> f64| median(samples.iter().map(figure));
    Sample {
        per_second: of(|sample| sample.per_second),
        p50_ms: of(|sample| sample.p50_ms),
        p99_ms: of(|sample| sample.p99_ms),
        answers: samples.iter().map(|sample| sample.answers).sum(),
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(patient(LONG)))?;
        stream.set_nodelay(true)?;
        Ok(Client(BufReader::new(stream)))
    }

    /// The body of a good answer.
    fn get(&mut self, path: &str, body: &mut Vec<u8>) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n");
        let stream = self.0.get_mut();
        stream.write_all(request.as_bytes()).map_err(text)?;
        let (mut line, mut length, mut first) = (String::new(), None, true);
        loop {
            line.clear();
            if self.0.read_line(&mut line).map_err(text)? == 0 {
                return Err("the connection has ended".to_owned());
            }
            if std::mem::take(&mut first) && !line.contains(" 200 ") {
                return Err(format!("{path} gave {line:?}"));
            }
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse::<usize>().ok();
            }
        }
        let length = length.ok_or("an answer without a length")?;
        body.resize(length, 0);
        self.0.read_exact(body).map_err(text)
    }
}

/// Seconds from the start of a guest until it has answered a request.
///
/// # Errors
/// When it ends, or takes too long.
pub fn first_answer(guest: &Guest, path: &str) -> Result<f64, String> {
    let address = guest.address()?;
    loop {
        let answer = Client::connect(address).map_err(|error| error.to_string());
        let answer = answer.and_then(|mut client| client.get(path, &mut Vec::new()));
        guest.is_running()?;
        match answer {
            Ok(()) => return Ok(guest.age().as_secs_f64()),
            Err(error) if guest.age() > patient(LONG) => return Err(error),
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

/// Requests for so long; every answer must be the same.
///
/// # Errors
/// When one fails, or differs.
pub fn load(guest: &Guest, path: &str, long: Duration) -> Result<Sample, String> {
    let address = guest.address()?;
    let mut wanted = Vec::new();
    Client::connect(address)
        .map_err(|error| error.to_string())?
        .get(path, &mut wanted)?;
    let wanted = &wanted;
    let (begun, until) = (Instant::now(), Instant::now() + long);
    let times: Result<Vec<Vec<f64>>, String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| scope.spawn(move || work(address, path, wanted, until)))
            .collect();
        let ends = clients.into_iter();
        ends.map(|client| {
            client
                .join()
                .unwrap_or_else(|_| Err("a client panicked".to_owned()))
        })
        .collect()
    });
    let elapsed = begun.elapsed().as_secs_f64();
    let mut times: Vec<f64> = times?.concat();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        times.get(index.min(times.len().saturating_sub(1))).copied()
    };
    Ok(Sample {
        per_second: times.len() as f64 / elapsed,
        p50_ms: at(0.5).unwrap_or(0.0),
        p99_ms: at(0.99).unwrap_or(0.0),
        answers: times.len(),
    })
}

/// Milliseconds of each request of one connection.
fn work(
    address: SocketAddr,
    path: &str,
    wanted: &[u8],
    until: Instant,
) -> Result<Vec<f64>, String> {
    let mut client = Client::connect(address).map_err(|error| error.to_string())?;
    let (mut times, mut body) = (Vec::new(), Vec::new());
    while Instant::now() < until {
        let begun = Instant::now();
        client.get(path, &mut body)?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        if body != wanted {
            return Err(format!("{path} has changed"));
        }
    }
    Ok(times)
}
