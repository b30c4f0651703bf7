//! One replica: what the set needs of a virtual machine, and the loop that its thread runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_devices::{BlockOp, BlockRequest, DiskPosition, DiskReads, Entry, Output};
use quorate_voter::Output as Cast;

use crate::channel;
use crate::inject::{Fault, corrupt};
use crate::shared::{Ballot, Mail, Next, Order, Shared};

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

/// What a checkpoint has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// Pages that had changed since the checkpoint before, or all if nobody knows.
    pub dirty_pages: u64,
    /// What was copied of them.
    pub copied_bytes: u64,
    /// How long the machine stood still for it.
    pub pause: Duration,
}

/// What the set needs of a virtual machine. It is made, used and dropped by one thread.
///
/// The lifecycle of checkpoints: [`Vcpu::checkpoint`] only between a [`Vcpu::run`] that ended at a boundary and the
/// [`Vcpu::resume`] of that boundary; after [`Vcpu::restore`] the machine stands there again, and `resume` comes next.
pub trait Vcpu {
    /// The whole state of a machine at a boundary. Cheap to clone.
    type Checkpoint: Clone + Send + Sync + 'static;

    /// From here on the machine knows which of its pages change, so that later checkpoints copy only those. Costs something.
    ///
    /// # Errors
    /// When the host cannot do it.
    fn track_dirty(&mut self) -> Result<(), String>;
    /// Takes the state at the boundary that the last run ended at. What has not changed since `base`, the last one that was taken
    /// of or restored into this machine, is shared with it.
    ///
    /// # Errors
    /// When it cannot be had, for lack of memory for example. The machine can go on.
    fn checkpoint(
        &mut self,
        base: Option<&Self::Checkpoint>,
    ) -> Result<(Self::Checkpoint, Pause), String>;
    /// Puts the machine, wherever it is, back to where the checkpoint was taken; of it or of another of the same layout.
    ///
    /// # Errors
    /// When the host does not take the state. The machine is of no use then.
    fn restore(&mut self, from: &Self::Checkpoint) -> Result<(), String>;
    /// Where the replica stood on its disks.
    fn positions(checkpoint: &Self::Checkpoint) -> Vec<DiskPosition>;
    /// Pages that it has. Counts them.
    fn pages(checkpoint: &Self::Checkpoint) -> u64;
    /// Writes it, so that another process can go on from there.
    ///
    /// # Errors
    /// When that is not possible.
    fn write(_checkpoint: &Self::Checkpoint, _to: &mut dyn std::io::Write) -> Result<(), String> {
        Err("such a machine cannot be saved".to_owned())
    }
    /// Where a machine that does not start from nothing begins, standing at boundary 0 of this set; and until when the guest wanted to
    /// sleep there.
    fn origin(&self) -> Option<(Self::Checkpoint, u64)> {
        None
    }
    /// How long the replica's thread is to be taken to have stalled before the boundary that the last run ended at.
    fn stall(&mut self) -> Option<Duration> {
        None
    }
    /// What was done to the machine since this was asked, if not at the set's request.
    fn told(&mut self) -> Option<String> {
        None
    }
    /// Takes the state wherever the machine is, for a look at it.
    ///
    /// # Errors
    /// When it cannot be had.
    fn dump(&mut self) -> Result<Self::Checkpoint, String>;
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

/// Where a machine that is to be driven is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// On its way to boundary 0.
    Start,
    /// At this boundary, which it need not cast.
    Boundary(u64),
}

/// The thread of one replica while it has a machine: run the guest to its next boundary, cast the ballot, take the entry, run on
/// (design §3). `keep` takes a checkpoint. Returns when the set has no more use for the replica, or has stopped it.
pub fn drive<V: Vcpu>(
    shared: &Shared,
    me: usize,
    vcpu: &mut V,
    from: From,
    keep: &mut dyn FnMut(&mut V, Order),
) {
    let mut tamper = Tamper::default();
    let mut ran = Duration::ZERO;
    let mut boundary = 0;
    if let From::Boundary(at) = from {
        boundary = at + 1;
        let next = shared.await_entry(me);
        if !act(shared, me, vcpu, next, &mut tamper, keep) {
            return;
        }
    }
    loop {
        let entered = Instant::now();
        let turn = vcpu.run();
        let left = Instant::now();
        ran += left - entered;
        if let Some(detail) = vcpu.told() {
            shared.interposed(me, detail);
        }
        match turn {
            Turn::Boundary {
                mut outputs,
                wait_until_ns,
            } => {
                tamper.outputs(me, &mut outputs);
                if let Some(wait) = tamper.wait() {
                    shared.pause(me, wait);
                }
                if vcpu.stall().is_some_and(|wait| shared.stalled(me, wait)) {
                    return;
                }
                if let Err(report) = shared.disks().submit(me, &outputs) {
                    return shared.misbehaved(me, report);
                }
                let ballot = ballot(boundary, outputs, wait_until_ns);
                boundary += 1;
                let next = shared.cast(me, ballot, left, std::mem::take(&mut ran));
                if !act(shared, me, vcpu, next, &mut tamper, keep) {
                    return;
                }
            }
            Turn::Kicked => {
                while let Some(mail) = shared.mail(me) {
                    if !open(shared, me, vcpu, mail, &mut tamper) {
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

/// At a boundary: does what is to be done there until the entry is delivered. False: the replica is to leave.
fn act<V: Vcpu>(
    shared: &Shared,
    me: usize,
    vcpu: &mut V,
    mut next: Next,
    tamper: &mut Tamper,
    keep: &mut dyn FnMut(&mut V, Order),
) -> bool {
    loop {
        match next {
            Next::Resume(entry) => {
                let disks = shared.disks();
                let resumed = vcpu.resume(&entry, &mut disks.reads(me));
                if let Some(detail) = vcpu.told() {
                    shared.interposed(me, detail);
                }
                if let Err(report) = resumed {
                    shared.misbehaved(me, report);
                    return false;
                }
                disks.delivered(me, &entry);
                return true;
            }
            Next::Mail(mail) => {
                if !open(shared, me, vcpu, mail, tamper) {
                    return false;
                }
            }
            Next::Checkpoint(order) => keep(vcpu, order),
            Next::Leave => return false,
        }
        next = shared.await_entry(me);
    }
}

/// Applies an injected fault. False: the replica is to leave.
fn open(shared: &Shared, me: usize, vcpu: &mut impl Vcpu, mail: Mail, tamper: &mut Tamper) -> bool {
    let result = match tamper.prepare(&mail.fault) {
        Some(done) => Ok(done),
        None => vcpu.inject(&mail.fault, mail.random),
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

/// Injected faults that wait for an occasion.
#[derive(Debug, Default)]
pub(crate) struct Tamper {
    output: bool,
    write: bool,
    /// How long, and at how many boundaries more.
    slow: (Duration, u64),
}

impl Tamper {
    /// Takes a fault that is not one of the machine, and says what will come of it; `None` for one of the machine.
    pub(crate) fn prepare(&mut self, fault: &Fault) -> Option<String> {
        Some(match *fault {
            Fault::WrongOutput => {
                self.output = true;
                "its next frame or console output is changed".to_owned()
            }
            Fault::WrongWrite => {
                self.write = true;
                "its next block write is changed".to_owned()
            }
            Fault::Slow { millis, boundaries } => {
                self.slow = (Duration::from_millis(millis), boundaries);
                format!("it waits {millis} ms before each of its next {boundaries} boundaries")
            }
            Fault::Freeze => "its thread stalls".to_owned(),
            _ => return None,
        })
    }

    /// Whether its next output is to be changed; who asks sees to it.
    pub(crate) fn takes_wrong_output(&mut self) -> bool {
        std::mem::take(&mut self.output)
    }

    /// Changes the outputs of replica `me` where that is due.
    pub(crate) fn outputs(&mut self, me: usize, outputs: &mut [Output]) {
        if !self.output && !self.write {
            return;
        }
        for output in outputs {
            let (due, bytes) = match output {
                Output::Frame(bytes) | Output::Console(bytes) => (&mut self.output, bytes),
                Output::Block(BlockRequest {
                    op: BlockOp::Write { data, .. },
                    ..
                }) => (&mut self.write, data),
                _ => continue,
            };
            if *due && !bytes.is_empty() {
                *due = false;
                corrupt(bytes, me);
            }
        }
    }

    /// How long to wait at this boundary.
    pub(crate) fn wait(&mut self) -> Option<Duration> {
        let (wait, left) = &mut self.slow;
        *left = left.checked_sub(1)?;
        Some(*wait)
    }
}

/// Turns outputs into what the voter compares. Outside the set's lock: this is where bytes are touched.
pub(crate) fn ballot(boundary: u64, outputs: Vec<Output>, wait_until_ns: u64) -> Ballot {
    let mut exits = false;
    let mut bytes = 0;
    let outputs: Vec<Cast> = outputs
        .into_iter()
        .map(|output| {
            let (channel, content) = match output {
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

    fn seen(output: &Output) -> &[u8] {
        match output {
            Output::Frame(bytes) | Output::Console(bytes) => bytes,
            Output::Block(BlockRequest {
                op: BlockOp::Write { data, .. },
                ..
            }) => data,
            _ => &[],
        }
    }

    #[test]
    fn a_changed_output_is_one_that_the_world_would_see_and_only_one() {
        let block = |op| {
            Output::Block(BlockRequest {
                disk: 0,
                seq: 0,
                op,
            })
        };
        let mut tamper = Tamper {
            output: true,
            write: true,
            ..Tamper::default()
        };
        let mut quiet = [
            Output::Fingerprint {
                digest: [1, 2],
                syscalls: 3,
            },
            block(BlockOp::Flush),
        ];
        let before = quiet.clone();
        tamper.outputs(1, &mut quiet);
        assert_eq!(quiet, before, "nothing visible yet");
        let mut outputs = [
            Output::Frame(vec![0; 60]),
            Output::Frame(vec![0; 60]),
            block(BlockOp::Write {
                sector: 0,
                data: vec![0; 512],
            }),
            block(BlockOp::Write {
                sector: 1,
                data: vec![0; 512],
            }),
        ];
        tamper.outputs(1, &mut outputs);
        let wrong = |output: &Output| seen(output).iter().any(|byte| *byte != 0);
        assert_eq!(outputs.each_ref().map(wrong), [true, false, true, false]);
        let cast = ballot(4, outputs.to_vec(), 0);
        assert_eq!((cast.boundary, cast.outputs.len()), (4, 4));
        assert_eq!(cast.outputs[2].0, channel::disk(0));
    }

    #[test]
    fn a_slow_replica_is_slow_for_as_long_as_was_asked() {
        let mut tamper = Tamper {
            slow: (Duration::from_millis(5), 2),
            ..Tamper::default()
        };
        let waits: Vec<_> = (0..3).map(|_| tamper.wait().is_some()).collect();
        assert_eq!(waits, [true, true, false]);
    }
}
