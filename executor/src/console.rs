//! The guest's console: released bytes go to standard output by a thread of their own, because a reader that does not read
//! must not hold up the replicas.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Bytes that may wait for the reader (R10). Beyond it new bytes are dropped, and how many is said where they are missing.
pub const CONSOLE_QUEUE: usize = 1 << 20;
/// Bytes of the newest output that are remembered for the case that the guest program fails (R10).
pub const CONSOLE_TAIL: usize = 4096;
/// How long the end of a set waits for the reader.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Queue {
    waiting: Vec<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
    /// Dropped since something was last queued.
    gap: u64,
    writing: bool,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// See the module. Dropping the last handle does not end the thread; [`Console::finish`] does.
pub struct Console {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Console {
    /// Starts the thread that writes to `to`.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(to: impl Write + Send + 'static) -> std::io::Result<Console> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || write_out(&of_thread, to))?;
        Ok(Console {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Queues bytes. Never blocks on the reader.
    pub fn put(&self, bytes: &[u8]) {
        let mut queue = lock(&self.shared.queue);
        queue.tail.extend(bytes);
        let surplus = queue.tail.len().saturating_sub(CONSOLE_TAIL);
        queue.tail.drain(..surplus);
        if queue.waiting.len() + bytes.len() > CONSOLE_QUEUE {
            queue.gap += bytes.len() as u64;
            queue.dropped += bytes.len() as u64;
            return;
        }
        if queue.gap > 0 {
            let gap = std::mem::take(&mut queue.gap);
            queue.waiting.extend_from_slice(
                format!("\n[quorate: {gap} bytes of console output dropped]\n").as_bytes(),
            );
        }
        queue.waiting.extend_from_slice(bytes);
        self.shared.changed.notify_all();
    }

    /// Bytes dropped so far.
    pub fn dropped(&self) -> u64 {
        lock(&self.shared.queue).dropped
    }

    /// The last lines, at most `count`.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let mut queue = lock(&self.shared.queue);
        let text = String::from_utf8_lossy(queue.tail.make_contiguous()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..]
            .iter()
            .map(|line| (*line).to_owned())
            .collect()
    }

    /// Waits until everything has been written, as long as the reader reads, and ends the thread.
    pub fn finish(&self) {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        let mut queue = lock(&self.shared.queue);
        queue.closed = true;
        self.shared.changed.notify_all();
        while queue.writing || !queue.waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // The reader is stuck: the thread is left to the end of the process.
                return;
            }
            queue = self
                .shared
                .changed
                .wait_timeout(queue, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        drop(queue);
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

fn write_out(shared: &Shared, mut to: impl Write) {
    let mut queue = lock(&shared.queue);
    loop {
        while queue.waiting.is_empty() && !queue.closed {
            queue = shared
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if queue.waiting.is_empty() {
            return;
        }
        let bytes = std::mem::take(&mut queue.waiting);
        queue.writing = true;
        drop(queue);
        if let Err(error) = to.write_all(&bytes).and_then(|()| to.flush()) {
            // The reader has gone; the set serves on, its console is lost.
            tracing::debug!(%error, "console output is lost");
        }
        queue = lock(&shared.queue);
        queue.writing = false;
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::sync::mpsc;

    /// A reader that takes a write only when it is told to.
    struct Slow {
        go: mpsc::Receiver<()>,
        got: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.go.recv().map_err(std::io::Error::other)?;
            self.got.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_does_not_read_costs_bytes_and_is_told_so() {
        let (allow, go) = mpsc::channel();
        let got = Arc::new(Mutex::new(Vec::new()));
        let console = Console::start(Slow {
            go,
            got: Arc::clone(&got),
        })
        .unwrap();
        let chunk = vec![b'x'; CONSOLE_QUEUE / 2];
        console.put(b"first");
        while !lock(&console.shared.queue).writing {
            std::thread::yield_now();
        }
        // The writer is stuck with the first bytes: two chunks fill the queue, the rest is dropped, and nothing blocks.
        for _ in 0..6 {
            console.put(&chunk);
        }
        let dropped = console.dropped();
        assert_eq!(dropped, 4 * chunk.len() as u64);
        for _ in 0..4 {
            allow.send(()).unwrap();
        }
        while lock(&console.shared.queue).waiting.len() > chunk.len() {
            std::thread::yield_now();
        }
        console.put(b"last line\n");
        console.finish();
        let text = String::from_utf8(got.lock().unwrap().clone()).unwrap();
        assert!(text.ends_with(&format!(
            "[quorate: {dropped} bytes of console output dropped]\nlast line\n"
        )));
    }

    #[test]
    fn the_last_lines_are_remembered() {
        let console = Console::start(std::io::sink()).unwrap();
        console.put(&vec![b'y'; CONSOLE_TAIL]);
        console.put(b"\none\ntwo\nthree");
        assert_eq!(console.last_lines(2), ["two", "three"]);
        console.finish();
    }
}
