//! Clients that check every answer, in plain RESP over a socket: what a user of the set would notice, they notice.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an answer may take before it counts as an error.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Keys that each client uses in turn.
const KEYS: u64 = 64;

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    errors: AtomicU64,
    longest_us: AtomicU64,
    stop: AtomicBool,
}

/// What the clients have seen so far.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Answers received and checked.
    pub requests: u64,
    /// Answers that were wrong, or connections that failed.
    pub errors: u64,
    /// The longest time that a client waited for an answer.
    pub longest: Duration,
}

/// Clients at work. Each has one connection and one thread.
pub struct Load {
    counts: Arc<Counts>,
    clients: Vec<JoinHandle<Result<(), String>>>,
}

impl Load {
    /// Starts `clients` clients of the Redis server at `port`.
    pub fn start(port: u16, clients: usize) -> Load {
        let counts = Arc::<Counts>::default();
        let clients = (0..clients)
            .map(|number| {
                let counts = Arc::clone(&counts);
                std::thread::spawn(move || {
                    let result = client(port, number, &counts);
                    if result.is_err() {
                        counts.errors.fetch_add(1, Ordering::Relaxed);
                    }
                    result
                })
            })
            .collect();
        Load { counts, clients }
    }

    /// What the clients have seen so far.
    pub fn seen(&self) -> Seen {
        Seen {
            requests: self.counts.requests.load(Ordering::Relaxed),
            errors: self.counts.errors.load(Ordering::Relaxed),
            longest: Duration::from_micros(self.counts.longest_us.load(Ordering::Relaxed)),
        }
    }

    /// Lets every client finish its request, and says what was seen in all and what went wrong.
    pub fn finish(mut self) -> (Seen, Vec<String>) {
        self.counts.stop.store(true, Ordering::Relaxed);
        let wrong = self
            .clients
            .drain(..)
            .filter_map(|client| match client.join() {
                Ok(result) => result.err(),
                Err(_) => Some("a client panicked".to_owned()),
            })
            .collect();
        (self.seen(), wrong)
    }
}

/// Writes, reads back and counts until it is told to stop. The counter shows a request that was lost or done twice.
fn client(port: u16, number: usize, counts: &Counts) -> Result<(), String> {
    let mut connection = Connection::open(port).map_err(|error| format!("connecting: {error}"))?;
    let counter = format!("demo:counter:{number}");
    connection.ask(counts, &["DEL", &counter])?;
    let mut round = 0_u64;
    while !counts.stop.load(Ordering::Relaxed) {
        round += 1;
        let key = format!("demo:{number}:{}", round % KEYS);
        let value = format!("value {round} of client {number}");
        connection.expect(counts, &["SET", &key, &value], "OK")?;
        connection.expect(counts, &["GET", &key], &value)?;
        connection.expect(counts, &["INCR", &counter], &round.to_string())?;
    }
    Ok(())
}

struct Connection {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Connection {
    fn open(port: u16) -> io::Result<Connection> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let reader = BufReader::new(stream.try_clone()?);
        Ok(Connection { stream, reader })
    }

    fn expect(&mut self, counts: &Counts, words: &[&str], expected: &str) -> Result<(), String> {
        let answer = self.ask(counts, words)?;
        if answer == expected.as_bytes() {
            return Ok(());
        }
        let answer = String::from_utf8_lossy(&answer);
        Err(format!(
            "{} was answered with {answer:?} instead of {expected:?}",
            words.join(" ")
        ))
    }

    /// Sends a command and waits for its answer.
    fn ask(&mut self, counts: &Counts, words: &[&str]) -> Result<Vec<u8>, String> {
        let failed = |error: io::Error| format!("{}: {error}", words.join(" "));
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        let asked = Instant::now();
        self.stream.write_all(command.as_bytes()).map_err(failed)?;
        let answer = self.answer().map_err(failed)?;
        let waited = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        counts.longest_us.fetch_max(waited, Ordering::Relaxed);
        counts.requests.fetch_add(1, Ordering::Relaxed);
        Ok(answer)
    }

    /// One answer that is no array, without its type and length.
    fn answer(&mut self) -> io::Result<Vec<u8>> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let text = line
            .strip_suffix("\r\n")
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        match text.split_at_checked(1) {
            Some(("+" | ":", rest)) => Ok(rest.as_bytes().to_vec()),
            Some(("$", length)) => {
                let length: usize = length.parse().map_err(|_| bad(text))?;
                let mut value = vec![0; length.saturating_add(2)];
                self.reader.read_exact(&mut value)?;
                value.truncate(length);
                Ok(value)
            }
            _ => Err(bad(text)),
        }
    }
}
