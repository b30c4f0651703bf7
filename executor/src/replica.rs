//! One replica: what the set needs of a virtual machine, and the loop that its thread runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_devices::{DiskReads, Entry, NoDisks, Output};
use quorate_voter::Output as Cast;

use crate::channel;
use crate::inject::{Fault, corrupt};
use crate::shared::{Ballot, Mail, Next, Shared};

/// How a run of the vCPU ended.
#[derive(Debug)]
pub enum Turn {
    /// At a boundary, with these outputs.
    Boundary {
        /// What the guest wants to make visible.
        outputs: Vec<Output>,
        /// Up to when the guest wants to sleep if no input arrives, as `SyncPage::wait_until_ns`.
        wait_until_ns: u64,
    },
    /// A kick ended it before a boundary; run again to go on.
    Kicked,
    /// The machine cannot go on; a report.
    Crash(String),
    /// The guest broke the rules of a device (R9), or found itself broken; a report.
    Misbehaved(String),
}

/// Makes the vCPU's thread come out of the guest. May be called from any thread, at any time.
pub type Kick = Arc<dyn Fn() + Send + Sync>;

/// What the set needs of a virtual machine. It is made, used and dropped by one thread.
pub trait Vcpu {
    /// Runs the guest to its next boundary, or until it is kicked or fails.
    fn run(&mut self) -> Turn;
    /// Delivers the entry of the boundary that the last run ended at; `reads` has the data of the disk reads that it completes.
    ///
    /// # Errors
    /// When the guest's queues are not fit for it; a report.
    fn resume(&mut self, entry: &Arc<Entry>, reads: &mut dyn DiskReads) -> Result<(), String>;
    /// Does something bad to the machine: `Crash`, `Hang`, `FlipRegister` or `FlipMemory`. What the fault leaves open
    /// is chosen by `random`. Answers with the exact place.
    ///
    /// # Errors
    /// When the fault cannot be applied; says why.
    fn inject(&mut self, fault: &Fault, random: u64) -> Result<String, String>;
    /// See [`Kick`].
    fn kicker(&self) -> Kick;
    /// Start address of each region of the layout.
    fn layout(&self) -> Vec<(&'static str, u64)>;
}

/// The thread of one replica: run the guest to its next boundary, cast the ballot, take the entry, run on (design §3).
/// Returns when the set has no more use for the replica; the machine is then dropped and its memory free.
pub fn drive(shared: &Shared, me: usize, mut vcpu: impl Vcpu) {
    let mut boundary = 0;
    let mut corrupt_next = None;
    let mut ran = Duration::ZERO;
    loop {
        let entered = Instant::now();
        let turn = vcpu.run();
        let left = Instant::now();
        ran += left - entered;
        match turn {
            Turn::Boundary {
                outputs,
                wait_until_ns,
            } => {
                let ballot = ballot(boundary, outputs, wait_until_ns, &mut corrupt_next);
                boundary += 1;
                let mut next = shared.cast(me, ballot, left, ran);
                loop {
                    match next {
                        Next::Resume(entry) => {
                            if let Err(report) = vcpu.resume(&entry, &mut NoDisks) {
                                return shared.misbehaved(me, report);
                            }
                            break;
                        }
                        Next::Mail(mail) => {
                            if !open(shared, me, &mut vcpu, mail, &mut corrupt_next) {
                                return;
                            }
                            next = shared.await_entry(me);
                        }
                        Next::Leave => return,
                    }
                }
            }
            Turn::Kicked => {
                while let Some(mail) = shared.mail(me) {
                    if !open(shared, me, &mut vcpu, mail, &mut corrupt_next) {
                        return;
                    }
                }
                if shared.must_leave(me) {
                    return;
                }
            }
            Turn::Crash(report) => return shared.crashed(me, report),
            Turn::Misbehaved(report) => return shared.misbehaved(me, report),
        }
    }
}

/// Applies an injected fault. False: the replica is to leave.
fn open(
    shared: &Shared,
    me: usize,
    vcpu: &mut impl Vcpu,
    mail: Mail,
    corrupt_next: &mut Option<usize>,
) -> bool {
    let result = match mail.fault {
        Fault::WrongOutput => {
            *corrupt_next = Some(me);
            Ok("its next frame or console output is changed".to_owned())
        }
        Fault::Freeze => Ok("its thread stalls".to_owned()),
        ref fault => vcpu.inject(fault, mail.random),
    };
    let applied = result.is_ok();
    let freeze = mail.fault == Fault::Freeze;
    shared.injected(me, mail, result);
    if applied && freeze {
        shared.freeze(me);
        return false;
    }
    true
}

/// Turns outputs into what the voter compares; `corrupt_next` is the replica that is to be wrong, once. Outside the set's lock:
/// this is where bytes are touched.
pub(crate) fn ballot(
    boundary: u64,
    outputs: Vec<Output>,
    wait_until_ns: u64,
    corrupt_next: &mut Option<usize>,
) -> Ballot {
    let mut exits = false;
    let mut bytes = 0;
    let outputs: Vec<Cast> = outputs
        .into_iter()
        .map(|output| {
            let (channel, mut content) = match output {
                Output::Frame(frame) => (channel::NET, frame),
                Output::Console(text) => (channel::CONSOLE, text),
                Output::Block(request) => (channel::disk(request.disk), request.into_bytes()),
                Output::Fingerprint { digest, syscalls } => {
                    let mut content = Vec::with_capacity(24);
                    for word in [digest[0], digest[1], syscalls] {
                        content.extend_from_slice(&word.to_le_bytes());
                    }
                    (channel::FINGERPRINT, content)
                }
                Output::Exit { status } => {
                    exits = true;
                    (channel::CONTROL, status.to_le_bytes().to_vec())
                }
            };
            if matches!(channel, channel::NET | channel::CONSOLE)
                && !content.is_empty()
                && let Some(replica) = corrupt_next.take()
            {
                corrupt(&mut content, replica);
            }
            bytes += content.len();
            (channel, content)
        })
        .collect();
    Ballot {
        boundary,
        outputs,
        bytes,
        wait_until_ns,
        exits,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_corrupted_output_is_one_that_the_world_would_see() {
        let mut corrupt_next = Some(1);
        let fingerprint = Output::Fingerprint {
            digest: [1, 2],
            syscalls: 3,
        };
        let first = ballot(0, vec![fingerprint.clone()], 0, &mut corrupt_next);
        assert!(corrupt_next.is_some(), "nothing visible yet");
        assert_eq!(first.outputs[0].1.len(), 24);
        let second = ballot(
            1,
            vec![
                fingerprint,
                Output::Frame(vec![0; 60]),
                Output::Frame(vec![0; 60]),
            ],
            0,
            &mut corrupt_next,
        );
        assert!(corrupt_next.is_none());
        assert_ne!(second.outputs[1].1, vec![0; 60]);
        assert_eq!(second.outputs[2].1, vec![0; 60]);
        assert_eq!(second.bytes, 24 + 120);
    }
}
