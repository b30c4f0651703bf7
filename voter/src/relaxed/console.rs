//! The console of guests with several processes, whose lines come in any order. (A guest of one process has a console
//! like any stream: [`crate::relaxed::StreamMatcher`].)

use crate::ids::{MAX_REPLICAS, ReplicaId};
use crate::relaxed::datagram;
use crate::relaxed::difference::Difference;
use crate::relaxed::mask::{MarkerKey, MaskSet};
use crate::relaxed::pool::{Pool, PoolFull, PoolLimits, PoolStats};
use crate::relaxed::voters::Voters;

/// Longest line in bytes (R10): a longer one is cut there.
pub const CONSOLE_LINE: usize = 4096;

/// Agrees on console output line by line, in any order.
#[derive(Clone, Debug)]
pub struct ConsoleMatcher {
    pool: Pool,
    mask: Option<(MaskSet, MarkerKey)>,
    lines: [Vec<u8>; MAX_REPLICAS],
    /// Bytes that each replica has said.
    said: [u64; MAX_REPLICAS],
}

impl ConsoleMatcher {
    /// A console on which nobody has said anything. Masks' patterns apply to each line.
    #[must_use]
    pub fn new(voters: &Voters, limits: PoolLimits, mask: Option<&MaskSet>) -> Self {
        let mask = mask.filter(|mask| !mask.is_empty());
        Self {
            pool: Pool::new(voters, limits),
            mask: mask.map(|mask| (mask.clone(), MarkerKey::new(voters.key()))),
            lines: Default::default(),
            said: Default::default(),
        }
    }

    /// A replica goes on with `bytes`, at `now_ns`. Returns how many were taken: fewer than all when it must wait.
    ///
    /// # Errors
    /// [`PoolFull`] if none could be taken.
    pub fn push(
        &mut self,
        replica: ReplicaId,
        bytes: &[u8],
        now_ns: u64,
    ) -> Result<usize, PoolFull> {
        let r = usize::from(replica.0);
        let Some(line) = self.lines.get_mut(r) else {
            return Ok(bytes.len());
        };
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &bytes[taken..];
            let had = line.len();
            let most = rest.len().min(CONSOLE_LINE - had);
            let end = rest[..most].iter().position(|b| *b == b'\n');
            let took = end.map_or(most, |end| end + 1);
            line.extend_from_slice(&rest[..took]);
            if end.is_some() || line.len() == CONSOLE_LINE {
                let (pool, mask) = (&mut self.pool, &self.mask);
                if datagram::push(pool, mask, replica, [0, 0], line, now_ns).is_err() {
                    line.truncate(had);
                    break;
                }
                line.clear();
            }
            taken += took;
            self.said[r] += took as u64;
        }
        match taken == 0 && !bytes.is_empty() {
            true => Err(PoolFull),
            false => Ok(taken),
        }
    }

    /// Takes a line without an end, such as a prompt, for a line, when the replica has been quiet for a while.
    ///
    /// # Errors
    /// [`PoolFull`] if it must wait; it is kept then.
    pub fn flush(&mut self, replica: ReplicaId, now_ns: u64) -> Result<(), PoolFull> {
        let Some(line) = self.lines.get_mut(usize::from(replica.0)) else {
            return Ok(());
        };
        if !line.is_empty() {
            let (pool, mask) = (&mut self.pool, &self.mask);
            datagram::push(pool, mask, replica, [0, 0], line, now_ns)?;
            line.clear();
        }
        Ok(())
    }

    /// Bytes of a line without an end.
    #[must_use]
    pub fn held_back(&self, replica: ReplicaId) -> usize {
        let line = self.lines.get(usize::from(replica.0));
        line.map_or(0, Vec::len)
    }

    /// Appends the lines that were confirmed since the last call, in the order of confirmation.
    pub fn take_released(&mut self, into: &mut Vec<u8>) {
        while let Some(line) = self.pool.take_confirmed() {
            into.extend_from_slice(&line.bytes);
        }
    }

    /// Bytes that a replica has said.
    #[must_use]
    pub fn position(&self, replica: ReplicaId) -> u64 {
        self.said.get(usize::from(replica.0)).copied().unwrap_or(0)
    }

    /// Lines that a replica has said: what [`ConsoleMatcher::enter`] wants to be told again.
    #[must_use]
    pub fn lines(&self, replica: ReplicaId) -> u64 {
        self.pool.position(replica)
    }

    /// A replica was stopped; the quorum does not shrink (R2). The line it had begun is forgotten.
    pub fn leave(&mut self, replica: ReplicaId) {
        if let Some(line) = self.lines.get_mut(usize::from(replica.0)) {
            line.clear();
        }
        self.pool.leave(replica);
    }

    /// A replica is back, at a place where it had said `lines` whole lines and `begun` of the next one: see [`Pool::enter`].
    pub fn enter(&mut self, replica: ReplicaId, lines: u64, begun: &[u8]) {
        if let Some(line) = self.lines.get_mut(usize::from(replica.0)) {
            *line = begun[..begun.len().min(CONSOLE_LINE - 1)].to_vec();
        }
        self.pool.enter(replica, lines);
    }

    /// The line that a replica has begun, for a checkpoint.
    #[must_use]
    pub fn begun(&self, replica: ReplicaId) -> &[u8] {
        let line = self.lines.get(usize::from(replica.0));
        line.map_or(&[], Vec::as_slice)
    }

    /// See [`Pool::give_up_on`].
    pub fn give_up_on(&mut self, replica: ReplicaId) {
        self.pool.give_up_on(replica);
    }

    /// Time passes: what is too old is given up. True if there is something new to fetch.
    pub fn tick(&mut self, now_ns: u64) -> bool {
        self.pool.tick(now_ns)
    }

    /// Spurious and missing lines, each once; `position` is the line's number.
    pub fn differences(&mut self) -> Vec<Difference> {
        datagram::differences(&mut self.pool, &self.mask)
    }

    /// Numbers, in lines.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.pool.stats()
    }
}
