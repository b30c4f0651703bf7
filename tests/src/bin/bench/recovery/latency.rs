//! The latency of every single request, with its time, so that it can be said what was going on meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quorate_tests::resp::{Client, command, shown};
use serde_json::{Value, json};

/// Connections, each with one request at a time.
const CONNECTIONS: usize = 8;
/// Most requests that a connection remembers (R10); what comes later is not counted.
const REMEMBERED: usize = 4_000_000;

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// When it was sent.
    pub sent: Instant,
    /// How long its answer took.
    pub took: Duration,
}

/// Connections at work.
pub struct Probe {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Result<Vec<Request>, String>>>,
}

impl Probe {
    /// Starts them.
    pub fn start(address: SocketAddr) -> Probe {
        let stop = Arc::<AtomicBool>::default();
        let clients = (0..CONNECTIONS)
            .map(|number| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || work(address, number, &stop))
            })
            .collect();
        Probe { stop, clients }
    }

    /// Ends them; all requests.
    ///
    /// # Errors
    /// When one of them was answered wrongly or not at all.
    pub fn finish(self) -> Result<Vec<Request>, String> {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Vec::new();
        for client in self.clients {
            let requests = client.join().map_err(|_| "a client panicked".to_owned())?;
            all.extend(requests?);
        }
        Ok(all)
    }
}

fn work(address: SocketAddr, number: usize, stop: &AtomicBool) -> Result<Vec<Request>, String> {
    let text = |error: quorate_tests::Error| error.to_string();
    let mut client = Client::connect(address).map_err(text)?;
    let mut requests = Vec::new();
    let mut count = 0u64;
    while !stop.load(Ordering::SeqCst) {
        count += 1;
        let key = format!("probe:{number}");
        let value = format!("{count:060}");
        let (request, expected) = if count % 2 == 1 {
            (command(&["SET", &key, &value]), "+OK\r\n".to_owned())
        } else {
            let before = format!("{:060}", count - 1);
            (command(&["GET", &key]), format!("$60\r\n{before}\r\n"))
        };
        let sent = Instant::now();
        let reply = client.call(&request).map_err(text)?;
        let took = sent.elapsed();
        if reply != expected.as_bytes() {
            return Err(format!("{} gave {}", shown(&request), shown(&reply)));
        }
        if requests.len() < REMEMBERED {
            requests.push(Request { sent, took });
        }
    }
    Ok(requests)
}

/// A distribution of latencies.
#[derive(Clone, Debug, Default)]
pub struct Latency {
    /// In order, milliseconds.
    sorted: Vec<f64>,
}

impl Latency {
    /// Of these.
    pub fn of(times: impl IntoIterator<Item = Duration>) -> Latency {
        let mut sorted: Vec<f64> = times
            .into_iter()
            .map(|took| took.as_secs_f64() * 1e3)
            .collect();
        sorted.sort_by(f64::total_cmp);
        Latency { sorted }
    }

    /// Takes over those of another.
    pub fn add(&mut self, other: &Latency) {
        self.sorted.extend_from_slice(&other.sorted);
        self.sorted.sort_by(f64::total_cmp);
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The time within which this share of them was answered, milliseconds; 0 if there are none.
    pub fn within(&self, share: f64) -> f64 {
        let last = self.sorted.len().saturating_sub(1);
        let at = (self.sorted.len() as f64 * share).ceil() as usize;
        let at = at.saturating_sub(1).min(last);
        self.sorted.get(at).copied().unwrap_or(0.0)
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "requests": self.count(),
            "p50_ms": self.within(0.5),
            "p99_ms": self.within(0.99),
            "p999_ms": self.within(0.999),
            "max_ms": self.within(1.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_requests_are_found() {
        let mut latency = Latency::of((1..=50).map(Duration::from_millis));
        latency.add(&Latency::of((51..=100).map(Duration::from_millis)));
        assert_eq!(latency.count(), 100);
        let found = [0.5, 0.99, 1.0].map(|share| latency.within(share).round());
        assert_eq!(found, [50.0, 99.0, 100.0]);
        assert_eq!(Latency::default().within(0.99), 0.0);
    }
}
