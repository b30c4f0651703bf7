//! The read log: the data of reads that the vote has passed, for replicas that begin again (R7).
//!
//! A replica that begins again asks for everything once more that it asked for then. Its writes are in everybody's past, and its
//! reads must get what the others got, long after the disk has changed. So the data of each read are kept, once for all replicas. Whose
//! they are does not matter: they count only if every healthy replica's are the same. That is so when the vote has passed the
//! request itself, and all writes that the data contain beyond what was released then; until then they are a *candidate*.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::job::{Content, Write};

/// What a read is counted as beside its data, for its place in the tables.
const ENTRY_BYTES: u64 = 128;

/// What the data of a read rest on beside what was released when it began.
#[derive(Clone, Debug, Default)]
pub struct Basis {
    /// The replica's own writes in it that the vote has not decided yet, ascending.
    pending: Vec<Arc<Write>>,
    /// One of them turned out to be none that was released.
    wrong: bool,
}

impl Basis {
    /// These writes, ascending.
    pub fn new(pending: Vec<Arc<Write>>) -> Self {
        Self {
            pending,
            wrong: false,
        }
    }

    /// Request `seq` was released, as this write if it is one.
    pub fn released(&mut self, seq: u64, write: Option<&Arc<Write>>) {
        if self.pending.first().is_some_and(|own| own.seq == seq) {
            let own = self.pending.remove(0);
            self.wrong |= !write.is_some_and(|write| is_same(&own, write));
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        let pair = self.pending.iter().zip(&other.pending);
        self.pending.len() == other.pending.len() && pair.into_iter().all(|(a, b)| is_same(a, b))
    }
}

/// Whether two writes put the same to the same place.
fn is_same(a: &Arc<Write>, b: &Arc<Write>) -> bool {
    Arc::ptr_eq(a, b)
        || (a.range == b.range
            && match (&a.content, &b.content) {
                (Content::Data(a), Content::Data(b)) => a == b,
                // What becomes of the space makes no difference for who reads.
                (Content::Zero { .. }, Content::Zero { .. }) => true,
                _ => false,
            })
}

/// The data of a released read.
#[derive(Clone, Debug)]
pub enum Logged {
    /// Nobody had them yet.
    Missing,
    /// The disk reads them itself; the number of that read.
    Reading(u64),
    /// These.
    Here(Arc<[u8]>),
    /// The disk could not read them; why.
    Failed(String),
}

#[derive(Debug)]
struct Entry {
    range: Range<u64>,
    data: Logged,
    /// Some replica was told that it is complete. Until then any replica may still have to be, so that it is not forgotten: the
    /// guest bounds how many there are of these.
    told: bool,
}

#[derive(Debug)]
struct Candidate {
    range: Range<u64>,
    data: Arc<[u8]>,
    basis: Basis,
    told: bool,
}

/// See the module.
#[derive(Debug)]
pub struct ReadLog {
    /// Without recovery there is none.
    on: bool,
    bound: u64,
    /// Reads below it are forgotten.
    from: u64,
    bytes: u64,
    /// By number: released reads.
    entries: BTreeMap<u64, Entry>,
    /// By number: what replicas had of reads that are not released.
    candidates: BTreeMap<u64, Vec<Candidate>>,
}

impl ReadLog {
    /// An empty one, with room for so many bytes; or none at all.
    pub fn new(bound: Option<u64>) -> Self {
        Self {
            on: bound.is_some(),
            bound: bound.unwrap_or(0),
            from: 0,
            bytes: 0,
            entries: BTreeMap::new(),
            candidates: BTreeMap::new(),
        }
    }

    /// The set goes on from a saved state, with these reads outstanding.
    pub fn begin_at(&mut self, next: u64, reads: &[(u64, Range<u64>)]) {
        for (seq, range) in reads {
            self.released(*seq, None, Some(range.clone()));
        }
        self.from = reads.iter().map(|(seq, _)| *seq).fold(next, u64::min);
    }

    /// Whether there is one.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// The first request whose read is kept.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether more is kept than may be.
    pub fn is_over(&self) -> bool {
        self.bytes > self.bound
    }

    /// A replica has the data of its read `seq`.
    pub fn offer(
        &mut self,
        released: u64,
        seq: u64,
        range: &Range<u64>,
        data: &[u8],
        basis: &Basis,
    ) {
        if !self.on || seq < self.from || basis.wrong {
            return;
        }
        if seq < released {
            // If there is none, the vote has passed something else under this number.
            if let Some(entry) = self.entries.get_mut(&seq)
                && entry.range == *range
                && !matches!(entry.data, Logged::Here(_))
            {
                entry.data = Logged::Here(data.into());
                self.bytes += data.len() as u64;
            }
            return;
        }
        let candidates = self.candidates.entry(seq).or_default();
        let known = candidates
            .iter()
            .any(|c| c.range == *range && *c.data == *data && c.basis.is_same(basis));
        if !known {
            candidates.push(Candidate {
                range: range.clone(),
                data: data.into(),
                basis: basis.clone(),
                told: false,
            });
            self.bytes += data.len() as u64;
        }
    }

    /// The vote has passed request `seq`: as this write, or as a read of this range.
    pub fn released(&mut self, seq: u64, write: Option<&Arc<Write>>, read: Option<Range<u64>>) {
        for candidate in self.candidates.values_mut().flatten() {
            candidate.basis.released(seq, write);
        }
        let candidates = self.candidates.remove(&seq).unwrap_or_default();
        for candidate in &candidates {
            self.bytes -= candidate.data.len() as u64;
        }
        let Some(range) = read else { return };
        if !self.on || seq < self.from {
            return;
        }
        // All writes below it are decided.
        let told = candidates.iter().any(|candidate| candidate.told);
        let sound = |c: &Candidate| c.range == range && !c.basis.wrong;
        let data = match candidates.into_iter().find(sound) {
            None => Logged::Missing,
            Some(candidate) => {
                self.bytes += candidate.data.len() as u64;
                Logged::Here(candidate.data)
            }
        };
        self.bytes += ENTRY_BYTES;
        self.entries.insert(seq, Entry { range, data, told });
    }

    /// A replica was told that read `seq` is complete.
    pub fn told(&mut self, seq: u64) {
        if let Some(entry) = self.entries.get_mut(&seq) {
            entry.told = true;
        }
        let candidates = self.candidates.get_mut(&seq);
        for candidate in candidates.into_iter().flatten() {
            candidate.told = true;
        }
    }

    /// What is known of a released read; nothing if it is forgotten, or none.
    pub fn get(&self, seq: u64) -> Option<(&Range<u64>, &Logged)> {
        self.entries.get(&seq).map(|e| (&e.range, &e.data))
    }

    /// The disk reads it itself.
    pub fn reading(&mut self, seq: u64, id: u64) {
        if let Some(entry) = self.entries.get_mut(&seq) {
            entry.data = Logged::Reading(id);
        }
    }

    /// The disk's own read has ended. False: nobody wants it any more.
    pub fn read_done(&mut self, seq: u64, id: u64, result: Result<Vec<u8>, String>) -> bool {
        let Some(entry) = self.entries.get_mut(&seq) else {
            return false;
        };
        if !matches!(entry.data, Logged::Reading(reads) if reads == id) {
            return false;
        }
        entry.data = match result {
            Ok(data) => {
                self.bytes += data.len() as u64;
                Logged::Here(data.into())
            }
            Err(why) => Logged::Failed(why),
        };
        true
    }

    /// Forgets the reads below `below`.
    pub fn forget(&mut self, below: u64) {
        self.from = self.from.max(below);
        while let Some((&seq, _)) = self.entries.first_key_value()
            && seq < below
        {
            self.remove(seq);
        }
    }

    /// Forgets the oldest until there is room again; whether any.
    pub fn shrink(&mut self, wanted: impl Fn(u64) -> bool) -> bool {
        let (mut some, mut at) = (false, self.from);
        while self.is_over()
            && let Some((&seq, entry)) = self.entries.range(at..).next()
        {
            at = seq + 1;
            if entry.told && !wanted(seq) {
                self.remove(seq);
                // Not before: what was passed over is still there, and with it the positions that need it.
                self.from = at;
                some = true;
            }
        }
        some
    }

    fn remove(&mut self, seq: u64) {
        if let Some(entry) = self.entries.remove(&seq) {
            self.bytes -= ENTRY_BYTES;
            if let Logged::Here(data) = entry.data {
                self.bytes -= data.len() as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write(seq: u64, byte: u8) -> Arc<Write> {
        Arc::new(Write {
            seq,
            range: 0..512,
            content: Content::Data(vec![byte; 512]),
        })
    }

    fn data(log: &ReadLog, seq: u64) -> Option<u8> {
        match log.get(seq)? {
            (_, Logged::Here(data)) => Some(data[0]),
            _ => None,
        }
    }

    #[test]
    fn data_count_only_once_the_vote_has_passed_all_that_they_rest_on() {
        let mut log = ReadLog::new(Some(1 << 20));
        // Two replicas wrote different things before the same read; the vote passes the second's.
        for (byte, range) in [(1, 0..512), (2, 0..512), (3, 512..1024)] {
            let basis = Basis::new(vec![write(0, byte)]);
            log.offer(0, 1, &range, &[byte; 512], &basis);
        }
        assert_eq!(data(&log, 1), None);
        log.released(0, Some(&write(0, 2)), None);
        assert_eq!(data(&log, 1), None, "the read itself is not passed");
        log.released(1, None, Some(0..512));
        assert_eq!(data(&log, 1), Some(2));
        assert_eq!(log.bytes(), ENTRY_BYTES + 512);
        // A number under which the vote has passed something else.
        log.offer(1, 2, &(0..512), &[9; 512], &Basis::default());
        log.released(2, None, None);
        assert!(log.get(2).is_none());
        // And one who reads another place, afterwards.
        log.released(3, None, Some(0..512));
        log.offer(4, 3, &(512..1024), &[9; 512], &Basis::default());
        assert_eq!(data(&log, 3), None);
        log.offer(4, 3, &(0..512), &[4; 512], &Basis::default());
        assert_eq!(data(&log, 3), Some(4));
        log.forget(3);
        assert!(log.get(1).is_none());
        assert_eq!((log.bytes(), log.from()), (ENTRY_BYTES + 512, 3));
    }

    #[test]
    fn the_bound_holds_and_spares_what_somebody_waits_for() {
        let mut log = ReadLog::new(Some(4 * (ENTRY_BYTES + 512)));
        for seq in 0..10 {
            log.released(seq, None, Some(0..512));
            log.offer(seq + 1, seq, &(0..512), &[1; 512], &Basis::default());
            log.told(seq);
            if log.is_over() {
                assert!(log.shrink(|seq| seq == 2));
            }
        }
        assert!(log.bytes() <= log.bound);
        assert_eq!((data(&log, 2), data(&log, 3)), (Some(1), None));
        assert_eq!(log.from(), 7);
    }
}
