//! What is on a disk and what is not, for status and for the end of a run.

use quorate_devices::SECTOR;

use super::ext4::Map;
use super::spec::{Held, RelaxedReport, UnconfirmedRange};
use super::voted::RelaxedDisk;
use crate::sync::lock;

/// Most ranges in a report; what is more is counted.
pub const MAX_RANGES: usize = 256;

impl RelaxedDisk {
    /// What is on the disk and what is not. `ended`: the guests write no more, so what waits for others counts as unconfirmed too.
    #[must_use]
    pub fn report(&self, ended: bool) -> RelaxedReport {
        let core = &*self.core;
        let state = lock(&core.state);
        let found = state
            .matcher
            .as_ref()
            .map_or_else(Vec::new, |m| m.unconfirmed(ended));
        let mut report = RelaxedReport {
            name: core.spec.name.clone(),
            policy: core.spec.mode.name().to_owned(),
            released_bytes: state.stats.released_bytes,
            held_bytes: core.pool.memory() + core.pool.spilled(),
            spilled_bytes: core.pool.spilled(),
            unconfirmed_sectors: found.len() as u64,
            unconfirmed: Vec::new(),
            stats: state.stats.clone(),
            failure: state.failure.clone(),
        };
        drop(state);
        if found.is_empty() {
            return report;
        }
        let map = Map::of(&core.base);
        for unconfirmed in found {
            let sector = unconfirmed.sector;
            let what = map.as_ref().map(|map| map.what(sector * SECTOR));
            let who = |range: &UnconfirmedRange| {
                range.said.len() == unconfirmed.said.len()
                    && range
                        .said
                        .iter()
                        .zip(&unconfirmed.said)
                        .all(|(a, b)| a.replica == b.replica.0)
            };
            if let Some(range) = report.unconfirmed.last_mut()
                && range.last + 1 == sector
                && range.what == what
                && range.decided == unconfirmed.decided
                && who(range)
            {
                range.last = sector;
                continue;
            }
            if report.unconfirmed.len() == MAX_RANGES {
                break;
            }
            let said = unconfirmed.said.iter().map(|by| Held {
                replica: by.replica.0,
                content: by.digest.to_string(),
                epoch: by.epoch,
            });
            report.unconfirmed.push(UnconfirmedRange {
                first: sector,
                last: sector,
                what,
                decided: unconfirmed.decided,
                said: said.collect(),
            });
        }
        report
    }
}
