//! The life of one replica on its own thread: run the guest, and when it is stopped climb the ladder.

use std::sync::Arc;

use super::ladder::{Failure, Ladder, Move};
use crate::events::Event;
use crate::exit::Failure as Ending;
use crate::recovery::Step;
use crate::relaxed::guest::{End, Guest};
use crate::relaxed::hub::Hub;
use crate::relaxed::port::Port;

/// Runs a guest until the set has no more use for it. `rebuild` makes a fresh one.
pub(in crate::relaxed) fn live(
    hub: &Arc<Hub>,
    port: &Arc<Port>,
    mut guest: Box<dyn Guest>,
    rebuild: &dyn Fn() -> Result<Box<dyn Guest>, Ending>,
) {
    let me = port.replica();
    let config = &hub.settings.recovery;
    let mut ladder = Ladder::new(config.crash_limit, config.crash_window);
    loop {
        match guest.run(port) {
            End::Left => hub.left(me),
            End::Crash(report) => hub.fell(me, format!("its machine crashed: {report}"), true),
            End::Misbehaved(report) => {
                hub.fell(
                    me,
                    format!("it broke the rules of a device: {report}"),
                    true,
                );
            }
        }
        let Some(failure) = failure(hub, port) else {
            return;
        };
        let mut next = match hub.take_asked(me) {
            // It ran, and was stopped for this.
            Some(asked) => ladder.ask_back(asked.step, asked.has_checkpoint),
            None => ladder.failed(failure, hub.clock.elapsed()),
        };
        loop {
            let (step, singly, without) = match next {
                Move::LeaveOut(reason) => {
                    let why = hub.begins_afresh(&hub.lock()).err();
                    let reason = match why.filter(|_| reason.ends_with("afresh")) {
                        Some(why) => format!("{reason}: {why}"),
                        None => reason,
                    };
                    hub.leave_out(me, reason);
                    let Some(asked) = hub.asked_back(me) else {
                        return;
                    };
                    next = ladder.ask_back(asked.step, asked.has_checkpoint);
                    continue;
                }
                Move::Back {
                    step,
                    singly,
                    without,
                } => (step, singly, without),
            };
            if without.is_some() {
                port.leave_out_input();
            }
            hub.tell(Event::Recovering {
                replica: me,
                step,
                boundary: port.place(step),
            });
            match come_back(hub, port, &mut guest, step, singly, rebuild) {
                Ok(true) => break,
                Ok(false) => return,
                Err(reason) => {
                    hub.tell(Event::StepFailed {
                        replica: me,
                        step,
                        reason,
                    });
                    let history = hub.begins_afresh(&hub.lock()).is_ok();
                    next = ladder.impossible(history);
                }
            }
        }
    }
}

/// What happened to a replica whose guest's run has ended; `None` if it is not to come back.
fn failure(hub: &Hub, port: &Port) -> Option<Failure> {
    let me = port.replica();
    let in_flight = port.in_flight();
    let inner = hub.lock();
    let member = inner.members.get(me)?;
    if inner.end.is_some() || member.alive || !member.recovery.returns {
        return None;
    }
    Some(Failure {
        crash: member.recovery.crashed,
        in_flight,
        caught_up: member.recovery.caught_up,
        has_checkpoint: member.recovery.point.is_some(),
        has_history: hub.begins_afresh(&inner).is_ok(),
    })
}

/// Puts machine and port back, and lets the replica in. False: the set has ended.
fn come_back(
    hub: &Arc<Hub>,
    port: &Port,
    guest: &mut Box<dyn Guest>,
    step: Step,
    singly: bool,
    rebuild: &dyn Fn() -> Result<Box<dyn Guest>, Ending>,
) -> Result<bool, String> {
    let me = port.replica();
    if step == Step::Checkpoint {
        let point = hub
            .lock()
            .members
            .get(me)
            .and_then(|member| member.recovery.point.clone());
        let point = point.ok_or("its checkpoint is gone")?;
        guest.restore()?;
        // It may be another machine in the same state.
        hub.restored(me, guest.kicker(), guest.layout());
        port.restore(point.port)
            .map_err(|error| error.to_string())?;
    } else {
        *guest = rebuild().map_err(|failure| failure.message)?;
        hub.remade(me, guest.kicker(), guest.layout());
        port.begin();
    }
    port.singly(singly);
    hub.readmit(me, step)
}
