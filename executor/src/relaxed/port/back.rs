//! A port's part in checkpoints and in coming back.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use quorate_abi::sync::WAIT_NONE;

use super::{Port, State};
use crate::events::Event as Told;
use crate::recovery::Step;
use crate::relaxed::hub::Inner;
use crate::relaxed::link::{ConnId, Link, LinkState, RestoreLinkError, ToGuest};
use crate::relaxed::recovery::Taken;
use crate::sync::lock;

/// All that a port knows, for a checkpoint of its guest; its place in the log is beside it.
#[derive(Clone, Debug)]
pub struct PortState {
    /// The endpoint.
    pub link: LinkState,
    /// The guest's clock, ns.
    pub clock_ns: u64,
    /// The batch that comes next.
    pub next: u64,
    tails: HashMap<ConnId, Vec<u8>>,
    pub(in crate::relaxed) jumps: BTreeSet<ConnId>,
    unsent: BTreeMap<ConnId, u64>,
}

/// What the guest of before has left behind.
fn forget(state: &mut State) {
    state.spoil = false;
    state.waiting.clear();
    state.frames.clear();
    state.typed.clear();
    state.busy = 0;
    state.within = 0;
    state.in_flight = None;
    state.given_ns = 0;
}

/// The beginning of an input, for a person.
fn excerpt(bytes: &[u8]) -> String {
    const MOST: usize = 80;
    let shown = bytes.get(..MOST).unwrap_or(bytes);
    let more = if bytes.len() > MOST { " ..." } else { "" };
    format!("{}{more}", shown.escape_ascii())
}

impl Port {
    /// All that there is to save: the guest stands still, and its outputs were given away.
    fn save(&self, state: &State, hub: &Inner) -> PortState {
        PortState {
            link: state.link.save(),
            clock_ns: state.clock_ns,
            next: hub.log.position(self.me),
            tails: state.tails.clone(),
            jumps: state.jumps.clone(),
            unsent: state.unsent.clone(),
        }
    }

    /// Goes on from what was saved; the hub lets the replica in after that.
    ///
    /// # Errors
    /// When the state is none.
    pub(in crate::relaxed) fn restore(&self, saved: PortState) -> Result<(), RestoreLinkError> {
        let mut state = lock(&self.state);
        state.link = Link::restore(saved.link, saved.clock_ns)?;
        state.clock_ns = saved.clock_ns;
        state.late_ns = self.hub.clock.monotonic_ns().saturating_sub(saved.clock_ns);
        state.unsent = saved.unsent;
        state.tails = saved.tails;
        state.jumps = saved.jumps;
        forget(&mut state);
        Ok(())
    }

    /// Begins again.
    pub(in crate::relaxed) fn begin(&self) {
        let mut state = lock(&self.state);
        state.link = Link::new(self.config.clone());
        state.clock_ns = 0;
        state.late_ns = self.hub.clock.monotonic_ns();
        state.unsent.clear();
        state.tails.clear();
        state.jumps.clear();
        forget(&mut state);
    }

    /// From here on events are given one by one, each when the guest has nothing left to do, or batch by batch.
    pub(in crate::relaxed) fn singly(&self, singly: bool) {
        lock(&self.state).singly = singly;
    }

    /// The number of the event that was given last, if they are given one by one.
    pub(in crate::relaxed) fn in_flight(&self) -> Option<u64> {
        let state = lock(&self.state);
        state.in_flight.as_ref().map(|event| event.number)
    }

    /// Where a replica begins again.
    pub(in crate::relaxed) fn place(&self, step: Step) -> u64 {
        let hub = self.hub.lock();
        let point = hub
            .members
            .get(self.me)
            .and_then(|member| member.recovery.point.as_ref());
        match step {
            Step::Checkpoint => point.map_or(0, |point| point.port.next),
            _ => 0,
        }
    }

    /// The event that was on its way was fatal: this replica does not get it any more.
    pub(in crate::relaxed) fn leave_out_input(&self) {
        let mut state = lock(&self.state);
        let Some(event) = state.in_flight.take() else {
            return;
        };
        state.without.insert(event.number);
        let (what, excerpt) = match &event.what {
            ToGuest::Data { conn, bytes } => (format!("connection {conn}"), excerpt(bytes)),
            ToGuest::Datagram { flow, bytes, .. } => (format!("flow {flow}"), excerpt(bytes)),
            ToGuest::Typed { bytes } => ("the console".to_owned(), excerpt(bytes)),
            other => ("a connection".to_owned(), format!("{other:?}")),
        };
        self.hub.tell(Told::InputLeftOut {
            replica: self.me,
            input: event.number,
            place: what,
            position: event.after,
            excerpt,
        });
    }

    /// Whether the guest takes a checkpoint at the boundary at which it stands; then [`Port::checkpointed`] must follow. At a quiet
    /// moment only: nothing is on its way to the guest, and all that it has said was taken.
    #[must_use]
    pub fn checkpoint_due(&self, wait_until_ns: u64) -> bool {
        let state = lock(&self.state);
        let quiet = wait_until_ns != WAIT_NONE
            && state.frames.is_empty()
            && state.waiting.is_empty()
            && state.within == 0
            && !state.singly
            && !state.link.has_frames();
        quiet && self.hub.checkpoint_due(&mut self.hub.lock(), self.me)
    }

    /// Whether the guest has been given any input. Before that a machine that boots has nothing that a fresh one would not have soon.
    #[must_use]
    pub fn was_given_input(&self) -> bool {
        self.hub.lock().log.position(self.me) > 0
    }

    /// The machine's part of a checkpoint was taken, or not.
    pub fn checkpointed(&self, taken: Result<Taken, String>) {
        let mut state = lock(&self.state);
        let mut hub = self.hub.lock();
        if taken.is_ok() {
            // They are behind.
            state.without.clear();
        }
        let taken = taken.map(|taken| (self.save(&state, &hub), taken));
        self.hub.checkpointed(&mut hub, self.me, taken);
    }
}
