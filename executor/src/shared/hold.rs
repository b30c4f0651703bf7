//! Holding the whole set at one boundary, to save it.
//!
//! While it is to be held nobody writes an entry, so that all replicas come to the boundary behind the last one that was
//! written and stay there: their ballots of it are decided, and all that was decided goes out. Then each replica's own thread
//! takes a checkpoint.

use std::io::Write;

use super::*;

/// How long replicas have to come to the common boundary. A guest that computes for longer cannot be saved then.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long replicas that are coming back are waited for; then the set is saved without them.
const PATIENCE_RECOVERING: Duration = Duration::from_secs(5);
/// How often it is looked whether all are there, beyond being told.
const POLL: Duration = Duration::from_millis(50);

/// Writes a replica's checkpoint.
pub type WriteState = Box<dyn FnOnce(&mut dyn Write) -> Result<(), String> + Send>;

/// What a replica has saved.
pub struct Part {
    /// Where it stands on its disks.
    pub positions: Vec<DiskPosition>,
    /// The rest.
    pub write: WriteState,
}

/// A hold that is wanted.
pub struct Hold {
    since: Instant,
    /// Replicas that were told to take their checkpoint.
    asked: u32,
    parts: Vec<(usize, Part)>,
    failed: Option<String>,
}

/// A set at rest.
pub struct Held {
    /// Where.
    pub boundary: u64,
    /// Time of the last entry.
    pub monotonic_ns: u64,
    /// Until when the guest wants to sleep.
    pub wait_until_ns: u64,
    /// Where all stand on the disks.
    pub positions: Vec<DiskPosition>,
    /// By replica.
    pub parts: Vec<(usize, WriteState)>,
}

impl Shared {
    /// Holds the set and has a checkpoint taken of every replica that votes. It stays held until [`Shared::let_go`].
    ///
    /// # Errors
    /// Why that cannot be; it is not held then.
    pub fn hold(&self) -> Result<Held, String> {
        let mut todo = Todo::default();
        let mut inner = self.inner();
        if inner.hold.is_some() {
            return Err("the set is being saved already".to_owned());
        }
        inner.hold = Some(Hold {
            since: Instant::now(),
            asked: 0,
            parts: Vec::new(),
            failed: None,
        });
        self.rouse_all(&mut inner, &mut todo);
        self.finish(inner, todo);
        let result = self.await_parts();
        if result.is_err() {
            self.let_go();
        }
        result
    }

    fn await_parts(&self) -> Result<Held, String> {
        loop {
            let mut inner = self.inner();
            if inner.end.is_some() {
                return Err("the set has ended".to_owned());
            }
            if let Some(why) = &inner.no_quorum {
                return Err(format!("there is no majority to save: {why}"));
            }
            if inner.has_deliverable() {
                self.finish(inner, Todo::default());
                continue;
            }
            let resting = inner.at_rest();
            let (boundary, last_ns) = (inner.boundaries, inner.writer.last_ns());
            let voting: Vec<usize> = inner.voting().collect();
            let wait_until_ns = voting.first().map(|r| inner.slots[*r].wait_until_ns);
            let outgoing = inner.delivering;
            let Some(hold) = &mut inner.hold else {
                return Err("the set was let go".to_owned());
            };
            if let Some(why) = hold.failed.take() {
                return Err(why);
            }
            let has = |hold: &Hold, replica: &usize| hold.parts.iter().any(|(r, _)| r == replica);
            if resting.is_ok() && !outgoing && voting.iter().all(|r| has(hold, r)) {
                let mut parts = std::mem::take(&mut hold.parts);
                parts.retain(|(replica, _)| voting.contains(replica));
                parts.sort_by_key(|(replica, _)| *replica);
                let positions = parts.first().map(|(_, part)| part.positions.clone());
                let positions = positions.unwrap_or_default();
                if parts.iter().any(|(_, part)| part.positions != positions) {
                    return Err("the replicas do not stand at the same requests of their disks; this is a defect of quorate".to_owned());
                }
                return Ok(Held {
                    boundary,
                    monotonic_ns: last_ns,
                    wait_until_ns: wait_until_ns.unwrap_or(WAIT_NONE),
                    positions,
                    parts: parts.into_iter().map(|(r, part)| (r, part.write)).collect(),
                });
            }
            if hold.since.elapsed() > crate::patience::patient(PATIENCE) {
                let why = resting
                    .err()
                    .unwrap_or_else(|| "a checkpoint takes too long".to_owned());
                return Err(format!(
                    "the set did not come to rest within {} s: {why}",
                    crate::patience::patient(PATIENCE).as_secs()
                ));
            }
            drop(self.wait_changed(inner, POLL));
            let (mut inner, mut todo) = (self.inner(), Todo::default());
            self.rouse_all(&mut inner, &mut todo);
            self.finish(inner, todo);
        }
    }

    /// The set goes on.
    pub fn let_go(&self) {
        let mut todo = Todo::default();
        let mut inner = self.inner();
        inner.hold = None;
        self.rouse_all(&mut inner, &mut todo);
        self.finish(inner, todo);
    }

    /// Gets all who sleep to look again.
    fn rouse_all(&self, inner: &mut Inner, todo: &mut Todo) {
        for (number, slot) in inner.slots.iter_mut().enumerate() {
            if matches!(slot.place, Place::Idle | Place::Ahead | Place::Held) {
                self.mark(number, slot, todo);
            }
        }
    }

    /// Whether the replica is to take its checkpoint now, because the set is to be saved and all stand at its boundary.
    pub(super) fn save_order(
        &self,
        inner: &mut Inner,
        todo: &mut Todo,
        me: usize,
    ) -> Option<Order> {
        let asked = inner.hold.as_ref()?.asked;
        if asked >> me & 1 == 1 || !inner.slots[me].is_voting() || inner.at_rest().is_err() {
            return None;
        }
        if asked == 0 {
            self.rouse_all(inner, todo);
        }
        if let Some(hold) = &mut inner.hold {
            hold.asked |= 1 << me;
        }
        Some(Order {
            id: 0,
            boundary: inner.boundaries,
            wait_until_ns: inner.slots[me].wait_until_ns,
            loan: false,
            save: true,
        })
    }

    /// A replica has saved its state, or cannot.
    pub fn saved(&self, me: usize, result: Result<Part, String>) {
        let mut inner = self.inner();
        if let Some(hold) = &mut inner.hold {
            match result {
                Ok(part) => hold.parts.push((me, part)),
                Err(why) => {
                    hold.failed = Some(format!("replica {me} gives no checkpoint: {why}"));
                }
            }
        }
        let todo = Todo {
            changed: true,
            ..Todo::default()
        };
        self.finish(inner, todo);
    }
}

impl Inner {
    fn voting(&self) -> impl Iterator<Item = usize> {
        let slots = self.slots.iter().enumerate();
        slots.filter(|(_, slot)| slot.is_voting()).map(|(r, _)| r)
    }

    /// Whether everybody who votes stands at the boundary behind the last entry, and it is decided; else why not.
    fn at_rest(&self) -> Result<(), String> {
        let boundary = self.boundaries;
        for replica in self.voting() {
            let slot = &self.slots[replica];
            if slot.exited {
                return Err("its program has ended".to_owned());
            }
            if slot.boundary != boundary + 1 {
                return Err(format!(
                    "replica {replica} is not at boundary {boundary} yet"
                ));
            }
        }
        if self.vote.frontier() != boundary + 1 {
            return Err(format!("boundary {boundary} is not decided yet"));
        }
        let waiting = self.hold.as_ref().map(|hold| hold.since.elapsed());
        if waiting.is_none_or(|waiting| waiting < crate::patience::patient(PATIENCE_RECOVERING)) {
            let coming = |slot: &Slot| {
                slot.is_member() && !slot.is_voting() && slot.recovery.may_come_back()
            };
            if let Some(replica) = self.slots.iter().position(coming) {
                return Err(format!("replica {replica} is not back yet"));
            }
        }
        Ok(())
    }
}
