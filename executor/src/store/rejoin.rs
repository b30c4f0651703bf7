//! Replicas that begin again: what they ask for that the vote has passed already, and the log that their reads are answered from
//! (R7).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use quorate_devices::{BlockStatus, DiskPosition};

use super::error::StoreError;
use super::flow::Released;
use super::log::{Basis, Logged};
use super::state::{Read, ReadState, Replica, State, Take};
use super::task::{Reader, View};

impl State {
    /// See [`super::Disk::begin_at`].
    pub fn begin_at(
        &mut self,
        position: &DiskPosition,
        reads: Vec<(u64, Range<u64>)>,
        flushes: BTreeSet<u64>,
    ) {
        self.start = position.clone();
        (self.released, self.flushed_to) = (position.next, position.next);
        self.forced = position.next;
        self.log.begin_at(position.next, &reads);
        for replica in 0..self.replicas.len() {
            if !self.replicas[replica].live {
                continue;
            }
            self.replicas[replica].next = position.next;
            self.replicas[replica].flushes.clone_from(&flushes);
            for (seq, range) in &reads {
                if self.read(replica, *seq, range.clone()) {
                    self.start_read(replica, *seq);
                }
            }
            self.mark(replica);
        }
    }

    /// See [`super::Disk::rejoin`].
    pub fn rejoin(
        &mut self,
        replica: usize,
        position: &DiskPosition,
        reads: Vec<(u64, Range<u64>)>,
        flushes: BTreeSet<u64>,
    ) -> Result<(), StoreError> {
        let (disk, from) = (self.number, self.log.from());
        if !self.log.is_on() {
            return Err(StoreError::NotRecoverable(disk));
        }
        match self.replicas.get(replica) {
            None => return Err(StoreError::Stopped { disk, replica }),
            Some(r) if r.live => return Err(StoreError::Live { disk, replica }),
            Some(_) => {}
        }
        let seq = position.first();
        if seq < from {
            return Err(StoreError::Forgotten { disk, seq, from });
        }
        if reads.len() + flushes.len() > self.bounds.outstanding {
            let why = "is one more than may be outstanding";
            return Err(StoreError::Position { disk, seq, why });
        }
        let wanted: Vec<u64> = reads.iter().map(|(seq, _)| *seq).collect();
        let first = self.next_read;
        self.next_read += reads.len() as u64;
        let reads: BTreeMap<u64, Read> = (first..)
            .zip(reads)
            .map(|(id, (seq, range))| {
                let read = Read {
                    id,
                    range,
                    basis: Basis::default(),
                    state: ReadState::Logged,
                };
                (seq, read)
            })
            .collect();
        if let Some(r) = self.replicas.get_mut(replica) {
            *r = Replica {
                live: true,
                next: position.next,
                own_from: u64::MAX,
                joined: position.next,
                reads,
                flushes,
                ..Replica::default()
            };
        }
        for seq in wanted {
            self.want(seq);
        }
        self.mark(replica);
        self.moved();
        Ok(())
    }

    /// See [`super::Disk::promote`].
    pub fn promote(&mut self, replica: usize) {
        let released = self.released;
        let Some(r) = self.replicas.get_mut(replica) else {
            return;
        };
        if !r.live || r.own_from != u64::MAX {
            return;
        }
        r.own_from = released;
        if self.mark(replica) {
            self.out.tell.due |= 1 << replica;
        }
    }

    /// The vote has passed a request: data that rest on it are known to be right, or to be wrong.
    pub fn log_released(&mut self, seq: u64, what: &Released) {
        if !self.log.is_on() {
            return;
        }
        let (write, read) = match what {
            Released::Write(write) => (Some(write), None),
            Released::Read(range) => (None, Some(range.clone())),
            Released::Nothing | Released::Flush => (None, None),
        };
        for read in self.replicas.iter_mut().flat_map(|r| r.reads.values_mut()) {
            read.basis.released(seq, write);
        }
        let is_read = read.is_some();
        self.log.released(seq, write, read);
        if is_read {
            self.bound_log();
            self.mark_logged(seq);
        }
    }

    /// A replica that begins again may have asked for read `seq`. If nobody has its data, they are read: as of the read, if that past
    /// is still there, as it is whenever a healthy replica may still read it itself. If it is not, no replica is left that has been
    /// given the data, and of a read that nobody saw complete, what is released by now is as good as what was then.
    /// It is the same for all who ask.
    pub fn want(&mut self, seq: u64) {
        let wanted = |r: &Replica| matches!(r.reads.get(&seq), Some(read) if matches!(read.state, ReadState::Logged));
        if !self.replicas.iter().any(wanted) {
            return;
        }
        let Some((range, Logged::Missing | Logged::Failed(_))) = self.log.get(seq) else {
            return;
        };
        let range = range.clone();
        let at = match self.bounds.versions && self.oldest() <= seq {
            true => seq,
            false => self.released,
        };
        let touching = self.redo_index.touching(&range).into_iter();
        let redo = touching.filter(|redo| *redo < at);
        let over = redo.filter_map(|redo| self.redo.get(&redo).map(|r| r.write.clone()));
        let over = over.collect();
        let id = self.next_read;
        self.next_read += 1;
        self.log_reads.insert(id, at);
        self.log.reading(seq, id);
        self.stats.log_reads += 1;
        self.read_base(View {
            reader: Reader::Log,
            seq,
            id,
            at,
            range,
            over,
        });
    }

    /// A read of the log's own has ended.
    pub fn logged(&mut self, view: &View, result: Result<Vec<u8>, String>) {
        self.log_reads.remove(&view.id);
        if result.is_err() {
            self.stats.read_errors += 1;
        }
        if self.log.read_done(view.seq, view.id, result) {
            self.mark_logged(view.seq);
            self.bound_log();
        }
        self.moved();
    }

    /// Something is known of read `seq`: those who begin again and have asked for it are told.
    pub fn mark_logged(&mut self, seq: u64) {
        for replica in 0..self.replicas.len() {
            let read = self.replicas[replica].reads.get(&seq);
            if read.is_some_and(|read| matches!(read.state, ReadState::Logged)) {
                self.out.wake = true;
                if self.mark(replica) {
                    self.out.tell.due |= 1 << replica;
                }
            }
        }
    }

    /// How a read of one that begins again ended, as far as that is known.
    pub fn logged_status(&self, seq: u64) -> Option<BlockStatus> {
        match self.log.get(seq)? {
            (_, Logged::Here(_)) => Some(BlockStatus::Ok),
            (_, Logged::Failed(_)) => Some(BlockStatus::IoError),
            (_, Logged::Missing | Logged::Reading(_)) => None,
        }
    }

    /// The data of a read of one that begins again.
    pub fn take_logged(&mut self, replica: usize, seq: u64, range: &Range<u64>) -> Take {
        let disk = self.number;
        match self.log.get(seq) {
            Some((logged, _)) if logged != range => Take::Never(format!(
                "disk {disk}: replica {replica} asked for read {seq} elsewhere than the others (R7)"
            )),
            Some((_, Logged::Here(data))) => {
                let data = data.to_vec();
                if let Some(read) = self.replicas[replica].reads.get_mut(&seq) {
                    read.state = ReadState::Taken;
                }
                self.mark(replica);
                Take::Data(data)
            }
            Some((_, Logged::Failed(why))) => Take::Never(why.clone()),
            Some((_, Logged::Missing | Logged::Reading(_))) => Take::Wait,
            None if seq >= self.released => Take::Wait,
            None if seq < self.log.from() => Take::Never(
                StoreError::Forgotten {
                    disk,
                    seq,
                    from: self.log.from(),
                }
                .to_string(),
            ),
            None => Take::Never(format!(
                "disk {disk}: replica {replica} asked for read {seq}, where the others did not (R7)"
            )),
        }
    }

    /// Whether the replica's read may still become complete.
    pub fn must_wait(&self, replica: usize, seq: u64) -> bool {
        let read = self.replicas.get(replica).and_then(|r| r.reads.get(&seq));
        read.is_some_and(|read| match read.state {
            ReadState::Running => true,
            ReadState::Logged => match self.log.get(seq) {
                Some((_, data)) => matches!(data, Logged::Missing | Logged::Reading(_)),
                None => seq >= self.released,
            },
            _ => false,
        })
    }

    /// See [`super::Disk::forget_reads`].
    pub fn forget_reads(&mut self, below: u64) {
        // Where a replica is now its next checkpoint may be.
        let live = self.replicas.iter().filter(|r| r.live);
        let oldest = |r: &Replica| r.reads.keys().next().map_or(r.next, |seq| r.next.min(*seq));
        let below = live.map(oldest).fold(below, u64::min);
        self.log.forget(below);
    }

    /// Forgets the oldest reads if there are too many (R10).
    pub fn bound_log(&mut self) {
        let replicas = &self.replicas;
        if self.log.is_over() && self.log.shrink(|seq| is_wanted(replicas, seq)) {
            self.stats.log_overflows += 1;
            // One that waits for what will not come.
            self.out.wake = true;
        }
    }
}

/// Whether a replica that begins again waits for the read.
fn is_wanted(replicas: &[Replica], seq: u64) -> bool {
    let read = |r: &Replica| {
        r.reads
            .get(&seq)
            .map(|read| matches!(read.state, ReadState::Logged))
    };
    replicas.iter().any(|r| read(r) == Some(true))
}
