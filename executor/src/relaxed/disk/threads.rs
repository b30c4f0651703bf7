//! The threads of a disk: one writes, syncs, judges and tells; two read what is not in memory.

use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use quorate_devices::BlockStatus;

use super::spec::RelaxedNotice;
use super::state::State;
use super::voted::Core;
use crate::sync::lock;

/// Threads that read, per disk.
const READERS: usize = 2;
/// Most writes to the base file before others get the lock.
const WRITES_AT_ONCE: usize = 8;

/// Starts them.
///
/// # Errors
/// When the operating system gives no thread.
pub fn start(core: &Arc<Core>) -> io::Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::new();
    for i in 0..=READERS {
        let core = core.clone();
        let made = std::thread::Builder::new()
            .name(format!("disk-{}", core.number))
            .spawn({
                let core = core.clone();
                move || if i == 0 { work(&core) } else { read(&core) }
            });
        match made {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                lock(&core.state).stop = true;
                core.work.notify_all();
                core.reads.notify_all();
                return Err(error);
            }
        }
    }
    Ok(threads)
}

fn work(core: &Core) {
    let mut state = lock(&core.state);
    loop {
        let now_ns = core.now_ns();
        let judge = state.matcher.as_ref().and_then(|m| m.next_judgement_ns());
        if judge.is_some_and(|at| at <= now_ns) {
            state.judge(now_ns);
        }
        starved(core, &mut state);
        let out = std::mem::take(&mut state.out);
        if out.due != 0 || !out.notices.is_empty() {
            drop(state);
            for notice in out.notices {
                (core.notify)(notice);
            }
            if out.due != 0 {
                (core.notify)(RelaxedNotice::Due(out.due));
            }
            state = lock(&core.state);
            continue;
        }
        let written = state.written;
        let syncs = state
            .syncs
            .front()
            .is_some_and(|(upto, ..)| *upto <= written);
        if syncs && state.failure.is_none() {
            state.stats.syncs += 1;
            drop(state);
            let result = core.base.sync();
            state = lock(&core.state);
            match result {
                Ok(()) => state.synced = state.synced.max(written),
                Err(error) => {
                    state.io_failed(&core.base, "putting writes on stable storage", &error)
                }
            }
            let now_ns = core.now_ns();
            while let Some((upto, replica, seq)) = state.syncs.front().copied()
                && upto <= state.synced
            {
                state.syncs.pop_front();
                state.flushed(replica, seq, BlockStatus::Ok, now_ns);
            }
        } else if !state.redo.is_empty() {
            drop(state);
            warm(core);
            let io = core.io.write().unwrap_or_else(PoisonError::into_inner);
            state = lock(&core.state);
            for _ in 0..WRITES_AT_ONCE {
                state.write_next(&core.base);
            }
            drop(io);
            if state.redo.is_empty() {
                core.quiet.notify_all();
            }
        } else if state.stop {
            core.quiet.notify_all();
            return;
        } else {
            // A little later than it says: a judgement is about what has not come.
            let wait = judge.map(|at| at.saturating_sub(core.now_ns()).max(1_000_000));
            state = match wait {
                None => core
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(ns) => {
                    let waited = core.work.wait_timeout(state, Duration::from_nanos(ns));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// Those who found no room look again when there may be some.
fn starved(core: &Core, state: &mut MutexGuard<'_, State>) {
    if state.starved == 0 || state.redo_bytes >= core.spec.bounds.unwritten_bytes {
        return;
    }
    for replica in 0..state.replicas.len() {
        let bit = 1 << replica;
        let room = state
            .matcher
            .as_ref()
            .is_none_or(|m| m.has_room(quorate_voter::ReplicaId(replica as u8)));
        if state.starved & bit != 0 && room {
            state.starved &= !bit;
            state.out.due |= bit;
        }
    }
}

/// What the next writes replace is read before the locks are taken, so that under them it comes from the host's memory.
fn warm(core: &Core) {
    let next = lock(&core.state)
        .redo
        .front()
        .map(|redo| redo.range.clone());
    if let Some(range) = next {
        let mut buffer = vec![0; (range.end - range.start) as usize];
        if !core.base.read_now(&mut buffer, range.start) {
            // Whoever needs it will meet the error again.
            let _ = core.base.read(&mut buffer, range.start);
        }
    }
}

fn read(core: &Core) {
    let mut state = lock(&core.state);
    loop {
        let Some((replica, seq, id, range)) = state.begin.pop_front() else {
            if state.stop {
                return;
            }
            state = core
                .reads
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(state);
        let mut buffer = vec![0; (range.end - range.start) as usize];
        let io = core.io.read().unwrap_or_else(PoisonError::into_inner);
        let mut result = core.base.read(&mut buffer, range.start);
        state = lock(&core.state);
        if let Some(r) = state.replicas.get_mut(replica)
            && r.reads.get(&seq).is_some_and(|read| read.id == id)
        {
            if result.is_ok() {
                result = r.view.patch(range.start, &mut buffer);
            }
            let error = result.is_err();
            if let Some(read) = r.reads.get_mut(&seq) {
                read.done = Some(match result {
                    Ok(()) => Ok(buffer),
                    Err(error) => Err(error.to_string()),
                });
            }
            state.stats.read_errors += u64::from(error);
            state.tell(replica);
            core.work.notify_one();
        }
        drop(io);
    }
}
