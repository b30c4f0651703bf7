//! What is seen of a trial from outside: events with their real times, the guest's clock, when the conversation was over.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quorate_executor::egress::{Item, Tap};
use quorate_executor::events::{Event, EventSink};
use quorate_executor::stage::{At, Cue, Stage};

use crate::inject::Hit;
use crate::model::{Detection, Recovered};
use crate::talk::how;

/// Events of a trial that are kept (R10): the first ones, which are those that say how a fault was found.
const EVENTS_KEPT: usize = 1 << 12;

/// See the module. A handle: its clones see the same.
#[derive(Clone, Default)]
pub(super) struct Watch(Arc<(Mutex<Seen>, Condvar)>);

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// In the order in which they happened.
    pub(super) events: Vec<(Instant, Event)>,
    /// The guest's monotonic clock in the entry of each boundary.
    shown: Vec<u64>,
    /// When the first entry was asked for.
    pub(super) began: Option<Instant>,
    /// When there was no further entry: the conversation was over.
    pub(super) ended: Option<Instant>,
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        // A panic leaves nothing half done here.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees entries.
    pub(super) fn tap(&self) -> Tap {
        let watch = self.clone();
        Box::new(move |item| {
            if let Item::Entry { entry, .. } = item {
                watch.lock().shown.push(entry.monotonic_ns);
            }
        })
    }

    /// Sees events.
    pub(super) fn events(&self) -> EventSink {
        let watch = self.clone();
        Box::new(move |logged| {
            let mut seen = watch.lock();
            if seen.events.len() < EVENTS_KEPT {
                seen.events.push((Instant::now(), logged.event.clone()));
            }
            drop(seen);
            watch.0.1.notify_all();
        })
    }

    /// A stage that is seen at work.
    pub(super) fn stage(&self, stage: Arc<dyn Stage>) -> Arc<dyn Stage> {
        Arc::new(Watched {
            watch: self.clone(),
            stage,
        })
    }

    /// Waits until every replica that was stopped is back, so long at most. Whether all are.
    pub(super) fn settles(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut seen = self.lock();
        while seen.away() > 0 && !seen.is_over() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.0.1.wait_timeout(seen, left);
            seen = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        seen.away() == 0 && !seen.is_over() && !seen.left_out()
    }

    /// Takes what was seen.
    pub(super) fn take(&self) -> Seen {
        std::mem::take(&mut self.lock())
    }
}

struct Watched {
    watch: Watch,
    stage: Arc<dyn Stage>,
}

impl Stage for Watched {
    fn cue(&self, at: &At) -> Cue {
        self.watch.lock().began.get_or_insert_with(Instant::now);
        let cue = self.stage.cue(at);
        if !matches!(cue, Cue::Entry(_)) {
            self.watch.lock().ended.get_or_insert_with(Instant::now);
        }
        cue
    }
}

/// A fault was found: a replica was stopped, or there was no majority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Where.
    pub(super) boundary: u64,
    /// Whose; none where nobody can say.
    pub(super) replica: Option<usize>,
    /// The reason's first word.
    pub(super) how: String,
    /// All of it.
    pub(super) reason: String,
    /// When.
    pub(super) at: Instant,
}

impl Seen {
    /// What the guest's clock showed when it came to a boundary.
    fn clock(&self, boundary: u64, began_ns: u64) -> u64 {
        let shown = boundary
            .checked_sub(1)
            .and_then(|before| self.shown.get(usize::try_from(before).ok()?));
        shown.copied().unwrap_or(began_ns)
    }

    /// The first fault that was found. Of several at one boundary, which threads find in any order, that of the first replica.
    pub(super) fn found(&self) -> Option<Found> {
        let events = self.events.iter().enumerate();
        let found = events.filter_map(|(index, (at, event))| match event {
            Event::ReplicaStopped {
                replica,
                boundary,
                reason,
            } if self.is_first_stop(index) => Some(Found {
                boundary: self.verdict(*replica, *at).unwrap_or(*boundary),
                replica: Some(*replica),
                how: word(reason).to_owned(),
                reason: reason.clone(),
                at: *at,
            }),
            Event::NoMajority {
                boundary, detail, ..
            } => Some(Found {
                boundary: *boundary,
                replica: None,
                how: "no-majority".to_owned(),
                reason: detail.clone(),
                at: *at,
            }),
            _ => None,
        });
        // What has no replica comes last: that there is no majority may only follow from what a replica was stopped for.
        found.min_by_key(|found| (found.boundary, found.replica.unwrap_or(usize::MAX)))
    }

    /// Whether the event is the first stop of its replica: what is stuck stops it again and again, at earlier boundaries of its replay.
    fn is_first_stop(&self, at: usize) -> bool {
        let of = |event: &Event| match event {
            Event::ReplicaStopped { replica, .. } => Some(*replica),
            _ => None,
        };
        let replica = self.events.get(at).and_then(|(_, event)| of(event));
        let before = self.events.iter().take(at);
        replica.is_some() && !before.into_iter().any(|(_, event)| of(event) == replica)
    }

    /// What happened, but the first stops of replicas by boundary and replica before everything else: threads find things at one
    /// boundary in any order.
    pub(super) fn in_order(&self) -> Vec<Event> {
        let mut events: Vec<((u64, usize), Event)> = Vec::new();
        for (index, (_, event)) in self.events.iter().enumerate() {
            let key = match event {
                Event::ReplicaStopped {
                    replica, boundary, ..
                } if self.is_first_stop(index) => (*boundary, *replica),
                _ => (u64::MAX, usize::MAX),
            };
            events.push((key, event.clone()));
        }
        events.sort_by_key(|(key, _)| *key);
        events.into_iter().map(|(_, event)| event).collect()
    }

    /// Where the vote went against a replica that was stopped then.
    fn verdict(&self, of: usize, stopped: Instant) -> Option<u64> {
        let before = self.events.iter().filter(|(at, _)| *at <= stopped);
        before.rev().find_map(|(_, event)| match event {
            Event::Outvoted {
                replica, boundary, ..
            } if *replica == of => Some(*boundary),
            _ => None,
        })
    }

    /// How long it took to find the fault of that boundary, virtual time and moment.
    pub(super) fn detection(&self, hit: &Hit, began_ns: u64) -> Option<Detection> {
        let found = self.found()?;
        let there = self
            .clock(found.boundary, began_ns)
            .saturating_sub(began_ns);
        Some(Detection {
            how: found.how,
            boundaries: found.boundary.saturating_sub(hit.boundary),
            virtual_ns: there.saturating_sub(hit.virtual_ns),
            micros: micros(hit.at, found.at),
        })
    }

    /// Replicas that were stopped and have neither come back nor been given up.
    pub(super) fn away(&self) -> usize {
        let mut away = Vec::new();
        for (_, event) in &self.events {
            match event {
                Event::ReplicaStopped { replica, .. } => away.push(*replica),
                Event::Recovered { replica, .. } | Event::LeftOut { replica, .. } => {
                    away.retain(|other| other != replica);
                }
                _ => {}
            }
        }
        away.len()
    }

    fn is_over(&self) -> bool {
        let ends =
            |event: &Event| matches!(event, Event::Stopped { .. } | Event::NoMajority { .. });
        self.events.iter().any(|(_, event)| ends(event))
    }

    /// Whether some replica does not come back.
    pub(super) fn left_out(&self) -> bool {
        let given_up = |event: &Event| matches!(event, Event::LeftOut { .. });
        self.events.iter().any(|(_, event)| given_up(event))
    }

    /// How the replica that was found first came back.
    pub(super) fn recovered(&self) -> Option<Recovered> {
        let found = self.found()?;
        let of = found.replica?;
        self.events.iter().find_map(|(at, event)| match event {
            Event::Recovered { replica, step, .. } if *replica == of => Some(Recovered {
                step: step.name().to_owned(),
                micros: micros(found.at, *at),
            }),
            _ => None,
        })
    }
}

/// Microseconds from one moment to another; 0 if they are the other way round.
pub(super) fn micros(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
}

/// One word for a reason.
fn word(reason: &str) -> &'static str {
    match reason.starts_with("no majority") {
        true => "no-majority",
        false => how(reason),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use quorate_executor::events::Logged;
    use quorate_executor::recovery::Step;

    fn stopped(replica: usize, boundary: u64, reason: &str) -> Event {
        Event::ReplicaStopped {
            replica,
            boundary,
            reason: reason.to_owned(),
        }
    }

    #[test]
    fn the_first_fault_is_the_one_of_the_first_boundary_whatever_came_first() {
        let watch = Watch::default();
        let sink = watch.events();
        for event in [
            stopped(2, 9, "crashed: triple fault"),
            Event::Outvoted {
                replica: 1,
                boundary: 7,
                channel: "network",
                detail: String::new(),
            },
            stopped(1, 8, "outvoted on the network channel"),
            stopped(0, 7, "did not keep up: 5 ms late"),
            // Again, in its replay.
            stopped(0, 2, "relapsed: x"),
            Event::Recovered {
                replica: 0,
                step: Step::Checkpoint,
                boundary: 12,
                after_ms: 1,
                layout: "kept",
            },
        ] {
            sink(&Logged { at_ms: 0, event });
        }
        let seen = watch.take();
        let found = seen.found().unwrap();
        assert_eq!((found.boundary, found.replica), (7, Some(0)));
        assert_eq!(found.how, "lagging");
        assert_eq!(seen.recovered().unwrap().step, "checkpoint");
        let early = found.at - Duration::from_secs(1);
        let hit = Hit {
            place: String::new(),
            location: None,
            boundary: 4,
            virtual_ns: 0,
            at: early,
        };
        let detection = seen.detection(&hit, 0).unwrap();
        assert_eq!(detection.boundaries, 3);
        assert!(detection.micros >= 1_000_000);
    }
}
