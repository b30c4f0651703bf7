//! What processes use, read from `/proc`: processor time per thread, and memory.

use std::fs;
use std::path::Path;
use std::process::{Child, ExitStatus};

use serde_json::{Value, json};

/// Clock ticks per second in `/proc/PID/stat`. Linux shows 100 to programs on x86-64.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time of a server, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// Threads that run guest code (native: the server itself).
    pub guests: f64,
    /// The gateway; the front of a relaxed set.
    pub gateway: f64,
    /// Everything else: console, control socket, ticker, waiting for children.
    pub other: f64,
}

impl Cpu {
    /// Processor time that process `pid` has used so far.
    ///
    /// # Errors
    /// When it is gone.
    pub fn of(pid: u32) -> Result<Cpu, String> {
        let mut cpu = Cpu::default();
        let tasks = format!("/proc/{pid}/task");
        let entries = fs::read_dir(&tasks).map_err(|error| format!("{tasks}: {error}"))?;
        for entry in entries.flatten() {
            // A thread may end between listing and reading.
            let Ok(name) = fs::read_to_string(entry.path().join("comm")) else {
                continue;
            };
            let Some(seconds) = scheduled(&entry.path()) else {
                continue;
            };
            let name = name.trim();
            if name.starts_with("replica-") || !is_quorate(pid) {
                cpu.guests += seconds;
            } else if matches!(name, "gateway" | "front") {
                cpu.gateway += seconds;
            } else {
                cpu.other += seconds;
            }
        }
        Ok(cpu)
    }

    /// The time between `earlier` and this. A thread that has ended in between takes its time with it; such threads
    /// answer the control socket and are short.
    pub fn since(self, earlier: Cpu) -> Cpu {
        Cpu {
            guests: (self.guests - earlier.guests).max(0.0),
            gateway: (self.gateway - earlier.gateway).max(0.0),
            other: (self.other - earlier.other).max(0.0),
        }
    }

    /// All of it.
    pub fn total(self) -> f64 {
        self.guests + self.gateway + self.other
    }

    /// Each part multiplied.
    pub fn times(self, factor: f64) -> Cpu {
        Cpu {
            guests: self.guests * factor,
            gateway: self.gateway * factor,
            other: self.other * factor,
        }
    }

    /// As JSON, in seconds.
    pub fn json(self) -> Value {
        json!({ "guests": self.guests, "gateway": self.gateway, "other": self.other })
    }
}

fn is_quorate(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "quorate")
}

/// Seconds that the scheduler has given to the task of a directory in `/proc`, exact to the nanosecond.
fn scheduled(task: &Path) -> Option<f64> {
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    let nanoseconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Some(nanoseconds / 1e9)
}

/// User and system time of a process with all its threads, past ones included; exact to a tick.
fn user_and_system(process: &Path) -> Option<f64> {
    let text = fs::read_to_string(process.join("stat")).ok()?;
    // The name, in parentheses, may contain anything; the fields after it do not.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

/// Waits for a child, and says how it ended and how much processor time it took.
///
/// # Errors
/// When it cannot be waited for.
pub fn wait(child: &mut Child) -> Result<(ExitStatus, f64), String> {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or("a child without a number")?;
    // Left in place when it has ended, so that its times can be read; only then it is reaped.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    loop {
        match waitid(WaitId::Pid(pid), options) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("waiting for a child: {error}")),
        }
    }
    let directory = format!("/proc/{}", child.id());
    let directory = Path::new(&directory);
    // `schedstat` is exact and has the first thread only, `stat` has all threads and counts ticks.
    let exact = scheduled(directory).unwrap_or(0.0);
    let all = user_and_system(directory).unwrap_or(0.0);
    let status = child.wait().map_err(|error| error.to_string())?;
    Ok((status, exact.max(all)))
}

/// Seconds that all processors of the host have been busy since it was started, for whatever process; exact to a tick.
pub fn busy() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<f64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guest time is in user and nice already.
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    (ticks.iter().take(8).sum::<f64>() - idle) / TICKS_PER_SECOND
}

/// Resident memory of a `quorate run` process, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Guest RAM: the mappings that ask for huge pages, which the VMM does for guest RAM and nothing else.
    pub guest: u64,
    /// The appliance's image, mapped by every replica; its pages are those of the page cache, once for all.
    pub image: u64,
    /// Everything else: code, heaps, stacks, windows and queues.
    pub beyond: u64,
}

impl Memory {
    /// Resident memory of process `pid`.
    ///
    /// # Errors
    /// When it is gone.
    pub fn of(pid: u32) -> Result<Memory, String> {
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        Ok(Memory::parse(&text))
    }

    fn parse(smaps: &str) -> Memory {
        let mut memory = Memory::default();
        let (mut resident, mut is_image) = (0, false);
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap_or_default();
            if first == "Rss:" {
                resident = words
                    .next()
                    .and_then(|kib| kib.parse::<u64>().ok())
                    .unwrap_or(0)
                    * 1024;
            } else if first == "VmFlags:" {
                if is_image {
                    memory.image += resident;
                } else if words.any(|flag| flag == "hg") {
                    memory.guest += resident;
                } else {
                    memory.beyond += resident;
                }
                resident = 0;
            } else if !first.ends_with(':') {
                is_image = line.ends_with(".qimg");
            }
        }
        memory
    }

    /// As JSON, in bytes.
    pub fn json(self) -> Value {
        json!({ "guest": self.guest, "image": self.image, "beyond": self.beyond })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn mappings_are_told_apart() {
        let smaps = "\
7f0000000000-7f0020000000 rw-p 00000000 00:00 0 \n\
Rss:                2048 kB\nVmFlags: rd wr mr mw me nr hg \n\
7f0020000000-7f0020100000 rw-p 00000000 00:21 99 /x/redis-1.qimg\n\
Rss:                 512 kB\nVmFlags: rd wr mr mw me nr \n\
7f0020100000-7f0020200000 rw-p 00000000 00:00 0 [heap]\n\
Rss:                 100 kB\nVmFlags: rd wr mr mw me ac \n\
7f0020200000-7f0020300000 r-xp 00000000 00:21 98 /x/quorate\n\
Rss:                  28 kB\nVmFlags: rd ex mr mw me \n";
        let memory = Memory::parse(smaps);
        assert_eq!(memory.guest, 2048 << 10);
        assert_eq!(memory.image, 512 << 10);
        assert_eq!(memory.beyond, 128 << 10);
    }

    #[test]
    fn time_of_a_child_is_that_of_the_child() {
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let mut child = Command::new("sh").args(["-c", busy]).spawn().unwrap();
        let (status, seconds) = wait(&mut child).unwrap();
        assert!(status.success());
        assert!(seconds > 0.0, "{seconds}");
        let mut child = Command::new("sleep")
            .arg("0.2")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let (_, idle) = wait(&mut child).unwrap();
        assert!(idle < seconds, "{idle} of {seconds}");
    }
}
