//! Signals that have been sent and not been delivered yet.

use super::{Info, bit};
use alloc::collections::VecDeque;

/// Most real-time signals that wait in one queue (RLIMIT_SIGPENDING); `EAGAIN` for more.
pub(super) const QUEUED_MAX: usize = 4096;
/// First of the signals that queue.
const REAL_TIME: u32 = 32;

/// Signals that wait to be delivered: of the others one each, real-time signals as often as they were sent.
pub(super) struct Pending {
    /// Bit `n - 1` for signal `n`.
    pub(super) set: u64,
    info: [Info; REAL_TIME as usize],
    queue: VecDeque<(u32, Info)>,
}

impl Default for Pending {
    fn default() -> Self {
        Self::new()
    }
}

impl Pending {
    /// None.
    pub(super) const fn new() -> Self {
        Self {
            set: 0,
            info: [Info {
                code: 0,
                first: 0,
                value: 0,
            }; REAL_TIME as usize],
            queue: VecDeque::new(),
        }
    }

    /// False if the queue is full.
    pub(super) fn add(&mut self, signal: u32, info: Info) -> bool {
        match self.info.get_mut(signal as usize) {
            // The first one's information is kept, as on Linux.
            Some(_) if self.set & bit(signal) != 0 => return true,
            Some(slot) => *slot = info,
            None if self.queue.len() >= QUEUED_MAX => return false,
            None => self.queue.push_back((signal, info)),
        }
        self.set |= bit(signal);
        true
    }

    /// Takes out the first `signal`.
    pub(super) fn take(&mut self, signal: u32) -> Info {
        if let Some(info) = self.info.get(signal as usize) {
            self.set &= !bit(signal);
            return *info;
        }
        let mut of_it = self
            .queue
            .iter()
            .enumerate()
            .filter(|(_, (s, _))| *s == signal)
            .map(|(i, _)| i);
        let (first, more) = (of_it.next(), of_it.next().is_some());
        if !more {
            self.set &= !bit(signal);
        }
        first
            .and_then(|i| self.queue.remove(i))
            .map(|(_, info)| info)
            .unwrap_or_default()
    }

    /// Forgets all of `signal`.
    pub(super) fn discard(&mut self, signal: u32) {
        self.set &= !bit(signal);
        self.queue.retain(|(s, _)| *s != signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(value: u64) -> Info {
        Info {
            value,
            ..Info::default()
        }
    }

    #[test]
    fn ordinary_signals_wait_once_and_keep_the_first_information() {
        let mut pending = Pending::new();
        assert!(pending.add(10, info(1)) && pending.add(10, info(2)));
        assert_eq!(pending.set, bit(10));
        assert_eq!(pending.take(10).value, 1);
        assert_eq!(pending.set, 0);
    }

    #[test]
    fn real_time_signals_wait_in_order_up_to_the_bound() {
        let mut pending = Pending::new();
        for value in 0..QUEUED_MAX as u64 {
            assert!(pending.add(34 + (value % 2) as u32, info(value)));
        }
        assert!(!pending.add(34, info(0)));
        assert_eq!(
            (
                pending.take(35).value,
                pending.take(34).value,
                pending.take(35).value
            ),
            (1, 0, 3)
        );
        pending.discard(34);
        assert_eq!(pending.set, bit(35));
        for value in (5..QUEUED_MAX as u64).step_by(2) {
            assert_eq!(pending.take(35).value, value);
        }
        assert_eq!(pending.set, 0);
    }
}
