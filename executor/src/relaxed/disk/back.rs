//! Replicas that leave a disk and come back to it, with the view of a checkpoint or without.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, Weak};

use quorate_devices::{DiskPosition, SECTOR, Waiting};
use quorate_voter::ReplicaId;
use quorate_voter::relaxed::Digest;

use super::state::{Content, Read, Snapshot, read_block};
use super::view::{Bytes, View};
use super::voted::{Core, RelaxedDisk};
use crate::store::StoreError;
use crate::sync::lock;

/// A replica's view as it was at a checkpoint. Costs what has changed since, and is given up when there is no room for that.
pub struct ViewSnapshot {
    id: u64,
    core: Weak<Core>,
}

impl Drop for ViewSnapshot {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            lock(&core.state).snapshots.remove(&self.id);
        }
    }
}

impl RelaxedDisk {
    /// The replica was stopped: what it wrote alone counts no more, and what it kept is forgotten.
    pub fn leave(&self, replica: usize) {
        let now_ns = self.core.now_ns();
        let mut state = lock(&self.core.state);
        state.retire(replica, String::new());
        state.settle(now_ns);
        self.core.work.notify_one();
    }

    /// The replica's view as it is now, for a checkpoint: to be taken with the guest at rest.
    #[must_use]
    pub fn snapshot(&self, replica: usize) -> ViewSnapshot {
        let mut state = lock(&self.core.state);
        let id = state.next_id;
        state.next_id += 1;
        let view = state.replicas.get(replica).filter(|r| r.live);
        let view = view.map(|r| r.view.clone());
        let matcher = state.matcher.as_ref();
        let standing = matcher.map(|m| m.standing(ReplicaId(replica as u8)));
        let snapshot = Snapshot {
            view,
            touched: BTreeMap::new(),
            standing: standing.unwrap_or_default(),
        };
        state.snapshots.insert(id, snapshot);
        ViewSnapshot {
            id,
            core: Arc::downgrade(&self.core),
        }
    }

    /// A replica that has left is back with this view (its own of earlier, or another replica's) and this position; without a
    /// view it sees the disk as it is now, as after a reboot. What it writes again of its past is compared with what is on the disk
    /// (R7), and waited for by none of its flushes.
    ///
    /// # Errors
    /// When the view was given up, or is none of this disk; or the base file cannot be read.
    pub fn enter(
        &self,
        replica: usize,
        snapshot: Option<&ViewSnapshot>,
        position: &DiskPosition,
    ) -> Result<(), StoreError> {
        let core = &*self.core;
        let disk = core.number;
        let _io = core.io.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = lock(&core.state);
        while !state.redo.is_empty() {
            state.write_next(&core.base);
        }
        let (mut past, mut pending) = (BTreeMap::new(), Vec::new());
        let view = match snapshot {
            None => View::new(&core.pool),
            Some(snapshot) => {
                let kept = state.snapshots.get(&snapshot.id);
                let kept = kept.and_then(|s| Some((s, s.view.clone()?)));
                let (kept, view) = kept.ok_or(StoreError::Forgotten {
                    disk,
                    seq: position.next,
                    from: 0,
                })?;
                // How often it has to write what the others have written already.
                past.clone_from(&kept.standing.behind);
                for (sector, times) in &kept.touched {
                    // What it had written already when it was saved it will not write again.
                    let waited = kept.standing.waiting.get(sector).copied();
                    let again = times.saturating_sub(waited.unwrap_or_default());
                    if again > 0 {
                        *past.entry(*sector).or_default() += again;
                    }
                }
                // Its last words that nobody has written since.
                let touched = |sector| kept.touched.get(sector).copied().unwrap_or_default();
                let waits = kept.standing.waiting.iter();
                let waits = waits.filter(|(sector, times)| touched(*sector) < **times);
                pending.extend(waits.map(|(sector, _)| *sector));
                view
            }
        };
        pending.retain(|sector| !past.contains_key(sector));
        if state.replicas.get(replica).is_none_or(|r| r.live) {
            return Err(StoreError::Live { disk, replica });
        }
        let failed = |source| StoreError::File {
            path: core.base.path().to_owned(),
            action: "cannot be read",
            source,
        };
        if let Some(digester) = &core.digester {
            let mut differs = Vec::new();
            let mut last: Option<(u64, Bytes)> = None;
            for sector in view.sectors() {
                if pending.binary_search(&sector).is_err() {
                    past.entry(sector).or_insert(0);
                }
            }
            for (sector, times) in past {
                let block = sector / 8;
                if last.as_ref().is_none_or(|(at, _)| *at != block) {
                    last = Some((block, read_block(&core.base, block).map_err(failed)?));
                }
                if let Some((_, bytes)) = &last {
                    let from = (sector % 8 * SECTOR) as usize;
                    let content = &bytes[from..from + SECTOR as usize];
                    differs.push((sector, digester.of(content), times));
                }
            }
            if let Some(matcher) = &mut state.matcher {
                matcher.enter(ReplicaId(replica as u8), differs);
            }
        } else if let Some(matcher) = &mut state.matcher {
            matcher.enter(ReplicaId(replica as u8), []);
        }
        let now_ns = core.now_ns();
        let last_words = pending.iter().map(|sector| {
            let mut content = vec![0; SECTOR as usize];
            view.patch(sector * SECTOR, &mut content)
                .map(|()| (*sector, content))
        });
        let last_words: Result<Vec<_>, _> = last_words.collect();
        let r = &mut state.replicas[replica];
        r.live = true;
        r.why.clear();
        r.next = position.next;
        r.view = view;
        r.reads.clear();
        r.flushes.clear();
        let mut waits = Vec::new();
        for outstanding in &position.outstanding {
            let seq = outstanding.seq;
            match outstanding.kind {
                Waiting::Read => {
                    let id = state.next_id;
                    state.next_id += 1;
                    let start = outstanding.sector * SECTOR;
                    let range = start..start + u64::from(outstanding.bytes);
                    let read = Read { done: None, id };
                    state.replicas[replica].reads.insert(seq, read);
                    state.begin.push_back((replica, seq, id, range));
                }
                Waiting::Flush | Waiting::Write => waits.push((seq, outstanding.kind)),
            }
        }
        // What had been waiting for others at the checkpoint waits again; there may be somebody by now who wrote the same.
        for (sector, content) in last_words.map_err(failed)? {
            let digest = core
                .digester
                .as_ref()
                .map_or(Digest::NONE, |d| d.of(&content));
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            let content = Content::Data(content);
            // Less than it had waiting then, so there is room.
            let _ = state.vote(replica, &range, &content, &[digest], now_ns);
        }
        // After its last words: those are what it waits for.
        for (seq, kind) in waits {
            state.begin_wait(replica, seq, kind, now_ns);
        }
        state.settle(now_ns);
        state.mark(replica);
        core.reads.notify_all();
        core.work.notify_one();
        Ok(())
    }
}
