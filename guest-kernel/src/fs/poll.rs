//! `poll` and `select`.

use super::epoll::set_mask;
use super::wait_for::Deadline;
use crate::errno::*;
use crate::file::{self, OpenFile, ready};
use crate::time::Timespec;
use crate::wait::WaitQueue;
use crate::{fingerprint, user};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// Bytes of a `struct pollfd`.
const POLLFD: usize = 8;

/// Waits on the queues of all `files`; see [`Deadline::wait`].
fn wait(files: &[Rc<OpenFile>], deadline: &mut Deadline) -> Result<bool> {
    let queues: Vec<&WaitQueue> = files
        .iter()
        .filter_map(|open| open.file.wait_queue())
        .collect();
    deadline.wait(&queues)
}

fn poll_until(fds: u64, count: usize, deadline: &mut Deadline) -> SysResult {
    if count > file::table().limit {
        return Err(EINVAL);
    }
    loop {
        let entries = user::bytes_mut(fds, count * POLLFD)?;
        let mut found = 0;
        for entry in entries.chunks_exact_mut(POLLFD) {
            let fd = i32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
            let wanted = u32::from(u16::from_le_bytes([entry[4], entry[5]]));
            let happened = match fd {
                ..0 => 0,
                _ => match file::get(fd) {
                    Ok(open) => open.file.poll() & (wanted | ready::ERR | ready::HUP | ready::NVAL),
                    Err(_) => ready::NVAL,
                },
            };
            entry[6..8].copy_from_slice(&(happened as u16).to_le_bytes());
            if happened != 0 {
                found += 1;
                fingerprint::number(u64::from(fd as u32) << 32 | u64::from(happened));
            }
        }
        if found > 0 {
            return Ok(found);
        }
        let files: Vec<_> = entries
            .chunks_exact(POLLFD)
            .filter_map(|e| file::get(i32::from_le_bytes([e[0], e[1], e[2], e[3]])).ok())
            .collect();
        if !wait(&files, deadline)? {
            return Ok(0);
        }
    }
}

/// `poll(2)`.
pub fn poll(fds: u64, count: usize, timeout_ms: i32) -> SysResult {
    poll_until(fds, count, &mut Deadline::from_ms(timeout_ms))
}

/// `ppoll(2)`. As Linux does, the time left is written back.
pub fn ppoll(fds: u64, count: usize, timeout: u64, mask: u64, mask_size: u64) -> SysResult {
    let mut deadline = Deadline::from_timespec(timeout)?;
    set_mask(mask, mask_size)?;
    let result = poll_until(fds, count, &mut deadline);
    user::write_opt(timeout, Timespec::from_ns(deadline.left_ns()))?;
    result
}

/// One of the three sets of `select`, in the program's memory.
struct Set {
    address: u64,
    wanted: Vec<u8>,
    /// Readiness that it asks about.
    events: u32,
}

impl Set {
    fn read(address: u64, bytes: usize, events: u32) -> Result<Self> {
        let wanted = match address {
            0 => alloc::vec![0; bytes],
            _ => user::bytes(address, bytes)?.to_vec(),
        };
        Ok(Self {
            address,
            wanted,
            events,
        })
    }

    fn has(&self, fd: usize) -> bool {
        self.wanted[fd / 8] & 1 << (fd % 8) != 0
    }
}

fn select_until(count: i32, sets: [u64; 3], deadline: &mut Deadline) -> SysResult {
    let count = usize::try_from(count).map_err(|_| EINVAL)?;
    // Descriptors beyond the table cannot be open; Linux looks at no more than that either.
    let count = count.min(file::table().limit);
    // Sets are words of 64 bits.
    let bytes = count.div_ceil(64) * 8;
    let readable = ready::IN | ready::RDNORM | ready::RDBAND | ready::HUP | ready::ERR;
    let writable = ready::OUT | ready::WRNORM | ready::WRBAND | ready::ERR;
    let sets = [
        Set::read(sets[0], bytes, readable)?,
        Set::read(sets[1], bytes, writable)?,
        Set::read(sets[2], bytes, ready::PRI)?,
    ];
    let mut files = Vec::new();
    for fd in (0..count).filter(|fd| sets.iter().any(|set| set.has(*fd))) {
        files.push((fd, file::get(fd as i32)?));
    }
    let opens: Vec<_> = files.iter().map(|(_, open)| open.clone()).collect();
    loop {
        let mut results = sets.each_ref().map(|_| alloc::vec![0u8; bytes]);
        let mut found = 0;
        for (fd, open) in &files {
            let happened = open.file.poll();
            for (set, result) in sets.iter().zip(&mut results) {
                if set.has(*fd) && happened & set.events != 0 {
                    result[fd / 8] |= 1 << (fd % 8);
                    found += 1;
                }
            }
        }
        if found > 0 || !wait(&opens, deadline)? {
            for (set, result) in sets.iter().zip(&results) {
                if set.address != 0 {
                    user::copy_out(set.address, result)?;
                    fingerprint::content(result);
                }
            }
            return Ok(found);
        }
    }
}

/// `select(2)`; the timeout is a `struct timeval`, and what is left of it is written back.
pub fn select(count: i32, sets: [u64; 3], timeout: u64) -> SysResult {
    let mut deadline = if timeout == 0 {
        Deadline::never()
    } else {
        let [sec, usec]: [i64; 2] = user::read(timeout)?;
        if sec < 0 || usec < 0 {
            return Err(EINVAL);
        }
        let ns = (sec as u64)
            .saturating_mul(1_000_000_000)
            .saturating_add((usec as u64).saturating_mul(1000));
        Deadline::after_ns(ns)
    };
    let result = select_until(count, sets, &mut deadline);
    let left = deadline.left_ns();
    let left = [
        (left / 1_000_000_000) as i64,
        (left % 1_000_000_000 / 1000) as i64,
    ];
    user::write_opt(timeout, left)?;
    result
}

/// `pselect6(2)`.
pub fn pselect6(count: i32, sets: [u64; 3], timeout: u64, sigmask: u64) -> SysResult {
    let mut deadline = Deadline::from_timespec(timeout)?;
    if sigmask != 0 {
        let [mask, size]: [u64; 2] = user::read(sigmask)?;
        set_mask(mask, size)?;
    }
    let result = select_until(count, sets, &mut deadline);
    user::write_opt(timeout, Timespec::from_ns(deadline.left_ns()))?;
    result
}
