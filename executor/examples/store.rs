//! What a disk costs against plain system calls on the same file: `store [DIRECTORY [MiB]]`.
//!
//! One thread plays all replicas and the voter; so these are the store's own costs, without any guest.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use quorate_devices::{BlockOp, BlockRequest};
use quorate_executor::store::{Backend, Bounds, Disk, DiskSpec, Notice, OnError, create};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    more: Condvar,
}

impl Bell {
    fn ring(&self) {
        if let Ok(mut rung) = self.rung.lock() {
            *rung = true;
            self.more.notify_all();
        }
    }

    fn wait(&self) {
        if let Ok(mut rung) = self.rung.lock() {
            while !*rung {
                match self.more.wait(rung) {
                    Ok(next) => rung = next,
                    Err(_) => return,
                }
            }
            *rung = false;
        }
    }
}

struct Bench {
    disk: Arc<Disk>,
    bell: Arc<Bell>,
    replicas: usize,
    seq: u64,
}

impl Bench {
    fn open(path: &Path, bytes: u64, replicas: usize, backend: Backend) -> Result<Self> {
        let bell = Arc::new(Bell::default());
        let theirs = bell.clone();
        let notify = Arc::new(move |notice: Notice| {
            if let Notice::Failed { cause, .. } = &notice {
                eprintln!("{cause}");
            }
            theirs.ring();
        });
        let spec = DiskSpec {
            name: "bench".to_owned(),
            path: path.to_owned(),
            bytes,
            read_only: false,
            on_error: OnError::Stop,
            replicas,
            recoverable: true,
            bounds: Bounds::default(),
        };
        Ok(Self {
            disk: Disk::open(0, spec, backend, notify)?,
            bell,
            replicas,
            seq: 0,
        })
    }

    /// One boundary: a quorum asks, that is released, and then the rest asks, as in a set that runs.
    fn pass<const N: usize>(&mut self, ops: [BlockOp; N]) -> Result<()> {
        let requests: Vec<BlockRequest> = (self.seq..)
            .zip(ops)
            .map(|(seq, op)| BlockRequest { disk: 0, seq, op })
            .collect();
        self.seq += N as u64;
        let quorum = self.replicas / 2 + 1;
        for replica in 0..quorum {
            for request in &requests {
                self.disk.submit(replica, request)?;
            }
        }
        for request in &requests {
            self.disk.release(request.clone());
        }
        for replica in quorum..self.replicas {
            for request in &requests {
                self.disk.submit(replica, request)?;
            }
        }
        Ok(())
    }

    fn wait(&self) {
        for replica in 0..self.replicas {
            while !self.disk.has_due(replica) {
                self.bell.wait();
            }
            let due = self.disk.due(replica);
            for done in &due {
                let _ = self.disk.take(replica, done.seq);
            }
            self.disk.delivered(replica, &due);
        }
    }
}

/// Positions in a fixed random order.
fn scatter(i: u64, of: u64) -> u64 {
    (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % of
}

/// Time that passes, and processor time of the whole process, which a busy machine disturbs less.
struct Stopwatch(Instant, Duration);

impl Stopwatch {
    fn start() -> Self {
        Self(Instant::now(), Self::cpu())
    }

    fn cpu() -> Duration {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Duration::new(
            time.tv_sec.unsigned_abs(),
            time.tv_nsec.unsigned_abs() as u32,
        )
    }
}

fn report(name: &str, count: u64, bytes: u64, start: &Stopwatch) {
    let seconds = start.0.elapsed().as_secs_f64();
    let cpu = (Stopwatch::cpu() - start.1).as_secs_f64();
    println!(
        "  {name:34} {:9.0} /s {:9.1} MiB/s {:9.1} us each, of processor time {:7.1}",
        count as f64 / seconds,
        (count * bytes) as f64 / seconds / f64::from(1 << 20),
        seconds * 1e6 / count as f64,
        cpu * 1e6 / count as f64
    );
}

fn plain(path: &Path, bytes: u64) -> Result<()> {
    println!("plain system calls");
    let file = File::options().read(true).write(true).open(path)?;
    let (small, large) = (vec![7; 4096], vec![8; 1 << 20]);
    let blocks = bytes / 4096;
    let start = Stopwatch::start();
    for i in 0..bytes >> 20 {
        file.write_all_at(&large, i << 20)?;
    }
    file.sync_data()?;
    report(
        "1 MiB sequential writes, one sync",
        bytes >> 20,
        1 << 20,
        &start,
    );
    let count = (blocks / 2).min(20_000);
    let start = Stopwatch::start();
    for i in 0..count {
        file.write_all_at(&small, scatter(i, blocks) * 4096)?;
    }
    file.sync_data()?;
    report("4 KiB random writes, one sync", count, 4096, &start);
    let start = Stopwatch::start();
    for i in 0..200 {
        file.write_all_at(&small, scatter(i, blocks) * 4096)?;
        file.sync_data()?;
    }
    report("4 KiB write and sync", 200, 4096, &start);
    let mut buffer = vec![0; 1 << 20];
    let start = Stopwatch::start();
    for i in 0..bytes >> 20 {
        file.read_exact_at(&mut buffer, i << 20)?;
    }
    report(
        "1 MiB sequential reads (cached)",
        bytes >> 20,
        1 << 20,
        &start,
    );
    let start = Stopwatch::start();
    for i in 0..20_000 {
        file.read_exact_at(&mut buffer[..4096], scatter(i, blocks) * 4096)?;
    }
    report("4 KiB random reads (cached)", 20_000, 4096, &start);
    Ok(())
}

fn voted(path: &Path, bytes: u64, replicas: usize, backend: Backend) -> Result<()> {
    let mut bench = Bench::open(path, bytes, replicas, backend)?;
    println!("{} with N = {replicas}", bench.disk.stats().backend);
    let blocks = bytes / 4096;
    let write = |at: u64, len: usize| BlockOp::Write {
        sector: at / 512,
        data: vec![9; len],
    };
    let read = |at: u64, bytes: u32| BlockOp::Read {
        sector: at / 512,
        bytes,
    };
    let start = Stopwatch::start();
    for i in 0..bytes >> 20 {
        bench.pass([write(i << 20, 1 << 20)])?;
    }
    bench.pass([BlockOp::Flush])?;
    bench.wait();
    report(
        "1 MiB sequential writes, one sync",
        bytes >> 20,
        1 << 20,
        &start,
    );
    let count = (blocks / 2).min(20_000);
    let start = Stopwatch::start();
    for i in 0..count {
        bench.pass([write(scatter(i, blocks) * 4096, 4096)])?;
    }
    bench.pass([BlockOp::Flush])?;
    bench.wait();
    report("4 KiB random writes, one sync", count, 4096, &start);
    let start = Stopwatch::start();
    for i in 0..200 {
        bench.pass([write(scatter(i, blocks) * 4096, 4096), BlockOp::Flush])?;
        bench.wait();
    }
    report("4 KiB write and sync", 200, 4096, &start);
    let start = Stopwatch::start();
    for i in 0..bytes >> 20 {
        bench.pass([read(i << 20, 1 << 20)])?;
        bench.wait();
    }
    report(
        "1 MiB sequential reads (cached)",
        bytes >> 20,
        1 << 20,
        &start,
    );
    let start = Stopwatch::start();
    for i in 0..20_000 {
        bench.pass([read(scatter(i, blocks) * 4096, 4096)])?;
        bench.wait();
    }
    report("4 KiB random reads (cached)", 20_000, 4096, &start);
    bench.disk.close()?;
    let stats = bench.disk.stats();
    println!(
        "  {} syncs for {} flushes, {} old versions of 4 KiB, at most {} KiB of them, {} KiB unwritten; {} waits",
        stats.syncs,
        stats.flushes,
        stats.versions,
        stats.version_peak >> 10,
        stats.unwritten_peak >> 10,
        stats.waits
    );
    Ok(())
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| ".".to_owned()));
    let bytes = match arguments.next() {
        Some(mib) => mib.parse::<u64>()? << 20,
        None => 256 << 20,
    };
    let path = directory.join(format!("store-bench-{}", std::process::id()));
    create(&path, bytes)?;
    let all = || -> Result<()> {
        // Not part of what is measured: the file system finds room once.
        let file = File::options().write(true).open(&path)?;
        for i in 0..bytes >> 20 {
            file.write_all_at(&vec![1; 1 << 20], i << 20)?;
        }
        file.sync_all()?;
        plain(&path, bytes)?;
        for backend in [Backend::Threads, Backend::Uring] {
            for replicas in [1, 3] {
                voted(&path, bytes, replicas, backend)?;
            }
        }
        Ok(())
    };
    let result = all();
    std::fs::remove_file(&path)?;
    result
}
