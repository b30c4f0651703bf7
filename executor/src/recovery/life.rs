//! The life of a replica's thread: its machine is built, driven and stopped, restored or built anew and driven again, until the
//! set ends or the replica is removed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use quorate_devices::DiskPosition;
use quorate_voter::{Rejoin, StopReason};

use super::ladder::{Attempt, Kept};
use super::vault::Vaults;
use super::{Lineage, Observer, Step};
use crate::events::{End, Event};
use crate::exit::Failure;
use crate::replica::{From, Vcpu, drive};
use crate::shared::{Arrival, Order, Part, Shared, Taken, Task};

/// Makes the machine of a replica, with the layout of this lineage.
pub type Build<V> = dyn Fn(usize, Lineage) -> Result<V, Failure> + Send + Sync;

/// What the threads of all replicas share.
pub struct World<V: Vcpu> {
    /// Their checkpoints.
    pub vaults: Vaults<V::Checkpoint>,
    /// Makes machines.
    pub build: Box<Build<V>>,
    /// Sees what happens.
    pub observer: Arc<dyn Observer<V::Checkpoint>>,
}

/// One replica's thread.
struct Life<'w, V: Vcpu> {
    shared: &'w Shared,
    world: &'w World<V>,
    me: usize,
    vcpu: Option<V>,
    /// Of the machine there is.
    lineage: Lineage,
    /// The last checkpoint taken of, or restored into, this machine.
    base: Option<V::Checkpoint>,
}

/// Runs a replica's thread from its start to its end. One that is `joining` begins with the ladder.
pub fn live<V: Vcpu>(shared: &Shared, world: &World<V>, me: usize, joining: bool) {
    let mut life = Life {
        shared,
        world,
        me,
        vcpu: None,
        lineage: Lineage::first(me),
        base: None,
    };
    if !joining {
        life.guarded(|life| life.begin());
    }
    loop {
        match shared.next_task(me) {
            Task::Leave => break,
            Task::Rest => {
                life.discard();
                world.vaults.retain(me, &shared.ids(me));
            }
            Task::Try(attempt, lineage) => life.guarded(|life| life.come_back(&attempt, lineage)),
        }
    }
    life.discard();
    world.vaults.retain(me, &[]);
    shared.leave(me);
}

impl<V: Vcpu> Life<'_, V> {
    /// A panic is a defect of ours; it costs this replica, as a crash of its machine would, and nobody else.
    fn guarded(&mut self, body: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| body(self))).is_err() {
            // Nobody knows what state the machine is in, not even whether it can be dropped.
            self.discard();
            let text = "its thread panicked; this is a defect of quorate".to_owned();
            self.shared.step_failed(self.me, text.clone());
            self.shared.fail(self.me, StopReason::Failed(text));
        }
    }

    fn discard(&mut self) {
        let vcpu = self.vcpu.take();
        let base = self.base.take();
        if catch_unwind(AssertUnwindSafe(|| drop((vcpu, base)))).is_err() {
            tracing::error!(replica = self.me, "dropping a machine panicked");
        }
    }

    /// The first start, together with all others.
    fn begin(&mut self) {
        let (shared, me) = (self.shared, self.me);
        if let Err(Failure { code, message }) = self.make(Lineage::first(me)) {
            let detail = format!("replica {me}: {message}");
            return shared.end(End::Failed { code, detail });
        }
        let Some(vcpu) = &self.vcpu else { return };
        if let Some((checkpoint, wait_until_ns)) = vcpu.origin() {
            self.world.observer.began(me, self.lineage, &checkpoint);
            if shared.config().enabled {
                // It is as good as any that it takes later: the set agreed on it before it was saved.
                let positions = V::positions(&checkpoint);
                let id = shared.begins_at(me, wait_until_ns, positions);
                self.world.vaults.put(me, id, checkpoint.clone());
                self.base = Some(checkpoint);
            }
        }
        let Some(vcpu) = &self.vcpu else { return };
        if shared.enter(me, vcpu.kicker(), vcpu.layout()) {
            self.drive(From::Start);
        }
    }

    /// A fresh machine. The old one goes first, since there may not be memory for both.
    fn make(&mut self, lineage: Lineage) -> Result<(), Failure> {
        self.discard();
        let mut vcpu = (self.world.build)(self.me, lineage)?;
        let config = self.shared.config();
        if config.enabled
            && config.checkpoint_interval.is_some()
            && let Err(reason) = vcpu.track_dirty()
        {
            // Checkpoints are whole ones then.
            self.shared.tell(Event::CheckpointFailed {
                replica: Some(self.me),
                reason: format!("changed pages cannot be tracked: {reason}"),
            });
        }
        self.vcpu = Some(vcpu);
        self.lineage = lineage;
        Ok(())
    }

    fn drive(&mut self, from: From) {
        let (shared, world, me, lineage) = (self.shared, self.world, self.me, self.lineage);
        let base = &mut self.base;
        let Some(vcpu) = &mut self.vcpu else { return };
        let mut keep = |vcpu: &mut V, order: Order| {
            take(shared, world, me, lineage, vcpu, base, order);
        };
        drive(shared, me, vcpu, from, &mut keep);
        if let Some((boundary, reason)) = shared.stopped(me) {
            let mut dump = || vcpu.dump();
            world.observer.stopped(me, boundary, &reason, &mut dump);
        }
        if !shared.config().enabled {
            // It does not come back: its memory is free from here on.
            self.discard();
        }
    }

    /// One step of the ladder, and if it helps the life that follows.
    fn come_back(&mut self, attempt: &Attempt, lineage: Lineage) {
        let prepared = match attempt.step {
            Step::Checkpoint | Step::Older => self.resume_kept(attempt, lineage),
            Step::Replay => self.afresh(lineage),
            Step::Clone => self.as_copy(attempt),
        };
        let (shared, me) = (self.shared, self.me);
        let arrived = prepared.and_then(|arrival| {
            let from = match arrival.how {
                Rejoin::Start => From::Start,
                Rejoin::At(boundary) => From::Boundary(boundary),
            };
            // First the disks: what the replica asks of them from its first boundary on must be numbered.
            let disks = shared.disks();
            disks
                .rejoin(me, &arrival.positions)
                .map_err(|error| error.to_string())?;
            match shared.rejoin(me, arrival) {
                Ok(true) => Ok(Some(from)),
                Ok(false) => {
                    disks.retire(me);
                    Ok(None)
                }
                Err(error) => {
                    disks.retire(me);
                    Err(error)
                }
            }
        });
        match arrived {
            Ok(Some(from)) => self.drive(from),
            Ok(None) => {}
            Err(reason) => shared.step_failed(me, reason),
        }
        // What the next attempt does not use any more.
        self.world.vaults.retain(me, &shared.ids(me));
    }

    /// Steps 1 and 2.
    fn resume_kept(&mut self, attempt: &Attempt, lineage: Lineage) -> Result<Arrival, String> {
        let found = attempt.checkpoint.and_then(|id| {
            let kept = self.shared.kept(self.me, id)?;
            Some((kept, self.world.vaults.get(self.me, id)?))
        });
        let (kept, checkpoint) = found.ok_or("its checkpoint is gone")?;
        self.restore(&checkpoint, lineage)?;
        self.arrival(
            Rejoin::At(kept.boundary),
            kept.wait_until_ns,
            kept.positions,
        )
    }

    /// Step 3.
    fn afresh(&mut self, lineage: Lineage) -> Result<Arrival, String> {
        self.world.vaults.retain(self.me, &[]);
        self.make(lineage).map_err(|failure| failure.message)?;
        // No positions: the start of every disk.
        self.arrival(Rejoin::Start, quorate_abi::sync::WAIT_NONE, Vec::new())
    }

    /// Step 4.
    fn as_copy(&mut self, attempt: &Attempt) -> Result<Arrival, String> {
        let donor = attempt.donor.ok_or("there is no donor")?;
        self.discard();
        self.world.vaults.retain(self.me, &[]);
        let gift = self.shared.ask_donor(self.me, donor)?;
        let checkpoint = self.world.vaults.get(donor, gift.id);
        if self.shared.give_back(donor, gift.id) {
            self.world.vaults.remove(donor, gift.id);
        }
        let checkpoint = checkpoint.ok_or("the donor's checkpoint is gone")?;
        self.restore(&checkpoint, gift.lineage)?;
        let positions = V::positions(&checkpoint);
        if self.shared.config().checkpoint_interval.is_some() {
            self.world.vaults.put(self.me, gift.id, checkpoint);
            self.shared.adopt(
                self.me,
                Kept {
                    id: gift.id,
                    boundary: gift.boundary,
                    wait_until_ns: gift.wait_until_ns,
                    at: Instant::now(),
                    confirmed: true,
                    loan: false,
                    positions: positions.clone(),
                },
            );
        }
        self.arrival(Rejoin::At(gift.boundary), gift.wait_until_ns, positions)
    }

    /// Into the machine there is, if it is of this layout; into a fresh one if that fails.
    fn restore(&mut self, checkpoint: &V::Checkpoint, lineage: Lineage) -> Result<(), String> {
        self.base = None;
        if self.lineage == lineage
            && let Some(vcpu) = &mut self.vcpu
        {
            match vcpu.restore(checkpoint) {
                Ok(()) => {
                    self.base = Some(checkpoint.clone());
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(replica = self.me, %error, "restoring into its old machine failed");
                }
            }
        }
        self.make(lineage).map_err(|failure| failure.message)?;
        let vcpu = self.vcpu.as_mut().ok_or("there is no machine")?;
        if let Err(error) = vcpu.restore(checkpoint) {
            self.discard();
            return Err(error);
        }
        self.base = Some(checkpoint.clone());
        Ok(())
    }

    fn arrival(
        &self,
        how: Rejoin,
        wait_until_ns: u64,
        positions: Vec<DiskPosition>,
    ) -> Result<Arrival, String> {
        let vcpu = self.vcpu.as_ref().ok_or("there is no machine")?;
        Ok(Arrival {
            how,
            wait_until_ns,
            kick: vcpu.kicker(),
            layout: vcpu.layout(),
            lineage: self.lineage,
            positions,
        })
    }
}

/// Takes a checkpoint, puts it into the vault and says so.
fn take<V: Vcpu>(
    shared: &Shared,
    world: &World<V>,
    me: usize,
    lineage: Lineage,
    vcpu: &mut V,
    base: &mut Option<V::Checkpoint>,
    order: Order,
) {
    if order.save {
        let part = vcpu.checkpoint(base.as_ref()).map(|(checkpoint, _)| {
            if shared.config().enabled && shared.config().checkpoint_interval.is_some() {
                *base = Some(checkpoint.clone());
            }
            Part {
                positions: V::positions(&checkpoint),
                write: Box::new(move |to| V::write(&checkpoint, to)),
            }
        });
        return shared.saved(me, part);
    }
    let result = vcpu.checkpoint(base.as_ref()).map(|(checkpoint, pause)| {
        let positions = V::positions(&checkpoint);
        world.vaults.put(me, order.id, checkpoint.clone());
        world
            .observer
            .taken(me, order.boundary, lineage, &checkpoint);
        let taken = Taken {
            positions,
            dirty_pages: pause.dirty_pages,
            pages: V::pages(&checkpoint),
            pause: pause.pause,
        };
        if !order.loan {
            *base = Some(checkpoint);
        }
        taken
    });
    let ids = shared.checkpointed(me, order, result);
    world.vaults.retain(me, &ids);
}
