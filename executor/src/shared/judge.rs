//! Acting on what the voter has to say (R5), under the lock.

use super::*;

impl Shared {
    /// Acts on what the voter has to say.
    pub(super) fn drain(&self, inner: &mut Inner, todo: &mut Todo) {
        while let Some(event) = inner.vote.poll_event() {
            match event {
                quorate_voter::Event::Release {
                    boundary,
                    channel,
                    bytes,
                } => {
                    if channel == channel::CONTROL && inner.end.is_none() {
                        let mut status = [0; 8];
                        let len = bytes.len().min(8);
                        status[..len].copy_from_slice(&bytes[..len]);
                        let wait_status = u64::from_le_bytes(status) as u32;
                        let requested = inner.stop_deadline.is_some();
                        inner.pending.push(Item::Release {
                            boundary,
                            channel,
                            bytes,
                        });
                        self.over(
                            inner,
                            todo,
                            End::Exited {
                                wait_status,
                                requested,
                            },
                        );
                    } else {
                        inner.pending.push(Item::Release {
                            boundary,
                            channel,
                            bytes,
                        });
                    }
                }
                other => self.judge(inner, todo, other),
            }
        }
    }

    pub(super) fn judge(&self, inner: &mut Inner, todo: &mut Todo, event: quorate_voter::Event) {
        let named = |channel| channel::name(channel).to_owned();
        match event {
            quorate_voter::Event::Release { .. } | quorate_voter::Event::Membership { .. } => {}
            quorate_voter::Event::Recovered { replica, boundary } => {
                self.recovered(inner, todo, replica.0.into(), boundary);
            }
            quorate_voter::Event::Majority { boundary } => self.majority(inner, todo, boundary),
            quorate_voter::Event::Verdict(verdict) => {
                let event = Event::Outvoted {
                    replica: verdict.replica.0.into(),
                    boundary: verdict.boundary,
                    channel: channel::name(verdict.channel),
                    detail: verdict.describe(named),
                };
                self.event(inner, event);
            }
            quorate_voter::Event::Stopped { replica, reason } => {
                let number = usize::from(replica.0);
                let cause = reason.clone();
                let reason = match reason {
                    // The verdict's own line has just said the rest.
                    StopReason::Outvoted(verdict) => {
                        format!("outvoted on the {} channel", channel::name(verdict.channel))
                    }
                    other => other.to_string(),
                };
                let slot = &mut inner.slots[number];
                slot.stopped = Some(reason.clone());
                slot.retiring = true;
                let boundary = slot.boundary;
                self.rouse(number, slot, todo);
                todo.retired |= 1 << number;
                self.event(
                    inner,
                    Event::ReplicaStopped {
                        replica: number,
                        boundary,
                        reason,
                    },
                );
                self.fallen(inner, number, &cause);
                self.note_ready(inner);
                self.wake_those_ahead(inner, todo);
                self.despair(inner, todo);
                self.poke(inner, todo);
            }
            quorate_voter::Event::Degraded { healthy, quorum } => {
                let event = Event::Degraded {
                    running: healthy.into(),
                    of: inner.members().count(),
                    masks_another: healthy > quorum,
                };
                self.event(inner, event);
            }
            quorate_voter::Event::NoMajority(lost) => {
                let detail = lost.describe(named);
                let event = Event::NoMajority {
                    boundary: lost.boundary,
                    policy: self.policy,
                    recovering: self.config.enabled,
                    detail: detail.clone(),
                };
                self.event(inner, event);
                inner.no_quorum = Some(detail.clone());
                if self.config.enabled {
                    // Held until a recovering replica's vote decides, or none can come back (R5).
                    self.despair(inner, todo);
                } else if self.policy == NoQuorum::Stop {
                    self.over(inner, todo, End::NoQuorum { detail });
                }
            }
        }
    }

    /// Notes the first moment at which all running replicas have waited for input.
    pub(super) fn note_ready(&self, inner: &mut Inner) {
        let all = inner
            .slots
            .iter()
            .all(|slot| slot.has_waited || slot.stopped.is_some());
        if all && inner.ready.is_none() && inner.end.is_none() {
            let after = self.started.elapsed();
            inner.ready = Some(after);
            let replicas = inner
                .slots
                .iter()
                .filter(|slot| slot.stopped.is_none())
                .count();
            self.event(
                inner,
                Event::Ready {
                    after_ms: after.as_millis() as u64,
                    replicas,
                },
            );
        }
    }

    pub(super) fn event(&self, inner: &mut Inner, event: Event) {
        inner
            .pending
            .push(Item::Event(self.started.elapsed(), event));
    }

    pub(super) fn over(&self, inner: &mut Inner, todo: &mut Todo, end: End) {
        if inner.end.is_some() {
            return;
        }
        inner.end = Some(end);
        todo.changed = true;
        for (number, slot) in inner.slots.iter_mut().enumerate() {
            self.rouse(number, slot, todo);
            // Whoever waits for a disk is to end as well. What was released goes to the base file nevertheless.
            todo.retired |= 1 << number;
        }
    }
}
