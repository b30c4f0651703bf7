//! The healthy twin and what is done to it: one machine with the layout of the replica that went astray, which goes through the
//! recording as far as is wanted, is spoiled on purpose, looked at, and put back.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use quorate_abi::flight::{NEVER, Recorder};
use quorate_abi::map::IMAGE_BASE;
use quorate_devices::{DiskReads, Output};
use quorate_vmm::fault::{Change, FaultError, FaultRegister, Whose};
use quorate_vmm::{Checkpoint, CrashReport, Machine, MachineError, Outcome, Register, Restore};

use crate::record::{ReadData, RecordError, Recording, StartPoint, Step};
use crate::replay::{ReplayFailed, ReplayOptions, Replayer, Start};
use crate::seeds::Seed;

use super::flight::{Log, LogError};
use super::live::{Live, reached_at};

/// How long a spoiled machine may take to its next boundary.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why an explanation cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The recording.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The replay.
    #[error(transparent)]
    Replay(#[from] ReplayFailed),
    /// The machine.
    #[error("the healthy machine: {0}")]
    Machine(#[from] MachineError),
    /// A register could not be spoiled.
    #[error("the healthy machine: {0}")]
    Fault(#[from] FaultError),
    /// The flight recorder.
    #[error("{whose}: {error}")]
    Log {
        /// Whose memory.
        whose: &'static str,
        /// What is wrong.
        error: LogError,
    },
    /// The replay is not what was released.
    #[error(
        "the replay does not give what was released (boundary {0}): the guest is not deterministic there, or the recording is not of this image"
    )]
    NotHealthy(u64),
    /// The recording is too short.
    #[error("the recording does not go to boundary {0}")]
    TooShort(u64),
}

/// How a run in the lab ended.
#[derive(Debug)]
pub enum Ended {
    /// At a boundary, with these outputs.
    At(u64, Vec<Output>),
    /// After the call that was asked for.
    Stopped,
    /// Lost.
    Crashed(Box<CrashReport>),
    /// It broke the rules of a device, or could not take an entry.
    Misbehaved(String),
    /// The recording has no more entries.
    NoEntry,
}

/// A bit to spoil.
#[derive(Clone, Copy, Debug)]
pub enum Spoil {
    /// Nothing.
    Nothing,
    /// Of a byte of guest-physical memory.
    Memory {
        /// The address.
        at: u64,
        /// The bit, 0 to 7.
        bit: u8,
    },
    /// Of a register.
    Register {
        /// The register.
        register: Register,
        /// The bit, 0 to 63.
        bit: u8,
    },
    /// Of a register that the program will have when its kernel goes back to it.
    Program {
        /// The register.
        register: FaultRegister,
        /// The bit, 0 to 63.
        bit: u8,
    },
}

/// See the module.
pub struct Lab<'r> {
    recording: &'r Recording,
    replayer: Replayer<'r>,
    /// Entries from the first that a run needed on.
    steps: Vec<Step>,
    /// Where the replayer believes its machine to stand; put back before it goes on.
    home: Option<Checkpoint>,
    /// How long a run from one boundary to the next may take; none for a machine that is not spoiled.
    limit: Option<Duration>,
    /// The root image was written to, which no log of changed pages has.
    untracked: bool,
}

impl<'r> Lab<'r> {
    /// A healthy machine of this layout, somewhere before `boundary`.
    ///
    /// # Errors
    /// As [`Replayer::open`].
    pub fn open(
        recording: &'r Recording,
        image: Option<&Path>,
        layout_seed: Seed,
        boundary: u64,
    ) -> Result<Lab<'r>, LabError> {
        let beginning = recording.starts().contains(&StartPoint::Beginning);
        let options = ReplayOptions {
            layout_seed: Some(layout_seed),
            start: if beginning {
                Start::Earliest
            } else {
                Start::Before(boundary)
            },
            image: image.map(Path::to_owned),
            remember_every: None,
        };
        let mut replayer = Replayer::open(recording, &options)?;
        replayer.machine_mut().track_dirty()?;
        Ok(Lab {
            recording,
            replayer,
            steps: Vec::new(),
            home: None,
            limit: None,
            untracked: false,
        })
    }

    /// The machine as it stands.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        self.replayer.machine()
    }

    /// Brings the healthy machine to a boundary, and takes its state there.
    ///
    /// # Errors
    /// When the recording does not go there, or the machine does not do what was released.
    pub fn healthy_at(&mut self, boundary: u64) -> Result<Checkpoint, LabError> {
        if let Some(home) = self.home.take() {
            self.put_back(&home)?;
        }
        let there = self.replayer.seek(boundary)?;
        if let Some(differs) = self.replayer.differs().filter(|at| *at <= boundary) {
            return Err(LabError::NotHealthy(differs));
        }
        if !there {
            return Err(LabError::TooShort(boundary));
        }
        self.machine_mut().track_dirty()?;
        let here = self.machine_mut().checkpoint(None)?.0;
        self.home = Some(here.clone());
        Ok(here)
    }

    /// Runs a machine in the state `from`, which stands at a boundary, spoiled before its entry is delivered, up to `until`; or up
    /// to the call with the number `stop_at`, by the recorder of `log`.
    ///
    /// # Errors
    /// When the machine cannot be put into that state, or the recording cannot be read.
    pub fn run(
        &mut self,
        from: &Checkpoint,
        spoil: Spoil,
        until: u64,
        stop_at: Option<(u64, &Log)>,
    ) -> Result<Ended, LabError> {
        let first = from.boundary();
        self.put_back(from)?;
        match spoil {
            Spoil::Nothing => {}
            Spoil::Memory { at, bit } => self.flip(at, bit)?,
            Spoil::Register { register, bit } => {
                self.machine_mut().flip_register(register, bit.into())?;
            }
            Spoil::Program { register, bit } => {
                let machine = self.machine_mut();
                machine.fault_register(
                    register,
                    Whose::Program,
                    0,
                    1 << (bit & 63),
                    Change::Flip,
                )?;
            }
        }
        if let Some((number, log)) = stop_at {
            self.stop_at(log, number)?;
        }
        self.on(first, until)
    }

    /// Runs the machine, which stands at boundary `first`, up to `until`.
    fn on(&mut self, first: u64, until: u64) -> Result<Ended, LabError> {
        for boundary in first..until {
            let step = self.entry(boundary)?;
            let Some(entry) = &step.entry else {
                return Ok(Ended::NoEntry);
            };
            let (entry, reads) = (Arc::clone(entry), step.reads.clone());
            if let Err(error) = self.machine_mut().resume(&entry, &mut Recorded(reads)) {
                return Ok(Ended::Misbehaved(error.to_string()));
            }
            match self.run_machine() {
                Outcome::Boundary(reached) if boundary + 1 == until => {
                    return Ok(Ended::At(until, reached.outputs));
                }
                Outcome::Boundary(_) => {}
                Outcome::Kicked => return Ok(Ended::Misbehaved("it spins".to_owned())),
                Outcome::Stopped => return Ok(Ended::Stopped),
                Outcome::Crash(report) => return Ok(Ended::Crashed(Box::new(report))),
                Outcome::Misbehaved(error) => return Ok(Ended::Misbehaved(error.to_string())),
            }
        }
        Ok(Ended::NoEntry)
    }

    /// As [`Lab::run`], but a machine that spins is given up.
    ///
    /// # Errors
    /// As [`Lab::run`].
    pub fn trial(
        &mut self,
        from: &Checkpoint,
        spoil: Spoil,
        until: u64,
    ) -> Result<Ended, LabError> {
        self.limit = Some(crate::patience::patient(PATIENCE));
        let ended = self.run(from, spoil, until, None);
        self.limit = None;
        ended
    }

    /// Goes on from a stop, to the next stop or boundary.
    ///
    /// # Errors
    /// When the recording cannot be read.
    pub fn go_on(&mut self) -> Result<Ended, LabError> {
        Ok(match self.run_machine() {
            Outcome::Boundary(reached) => Ended::At(reached.index, reached.outputs),
            Outcome::Stopped => Ended::Stopped,
            Outcome::Crash(report) => Ended::Crashed(Box::new(report)),
            Outcome::Misbehaved(error) => Ended::Misbehaved(error.to_string()),
            Outcome::Kicked => Ended::Misbehaved("it spins".to_owned()),
        })
    }

    fn run_machine(&mut self) -> Outcome {
        let Some(limit) = self.limit else {
            loop {
                match self.machine_mut().run() {
                    Outcome::Kicked => {}
                    other => return other,
                }
            }
        };
        let kicker = self.machine().kicker();
        let (done, waits) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if waits.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                    kicker.kick();
                }
            });
            let outcome = self.machine_mut().run();
            drop(done);
            outcome
        })
    }

    /// Runs on from `from` for at most `count` boundaries, and gives what the machine did at each; less if it is lost.
    ///
    /// # Errors
    /// As [`Lab::run`].
    pub fn outputs(
        &mut self,
        from: &Checkpoint,
        spoil: Spoil,
        count: u64,
    ) -> Result<Vec<Vec<Output>>, LabError> {
        self.limit = (!matches!(spoil, Spoil::Nothing)).then(|| crate::patience::patient(PATIENCE));
        let all = self.outputs_of(from, spoil, count);
        self.limit = None;
        all
    }

    fn outputs_of(
        &mut self,
        from: &Checkpoint,
        spoil: Spoil,
        count: u64,
    ) -> Result<Vec<Vec<Output>>, LabError> {
        let mut all = Vec::new();
        let mut ended = self.run(from, spoil, from.boundary() + 1, None)?;
        while let Ended::At(boundary, outputs) = ended {
            all.push(outputs);
            if boundary >= from.boundary() + count {
                break;
            }
            ended = self.on(boundary, boundary + 1)?;
        }
        Ok(all)
    }

    /// The memory of the machine where a run has left it.
    #[must_use]
    pub fn live(&self) -> Live<'_> {
        Live::new(self.machine())
    }

    /// The whole state of the machine where a run has left it.
    ///
    /// # Errors
    /// When KVM does not give it.
    pub fn dump(&mut self) -> Result<Checkpoint, LabError> {
        Ok(self.machine_mut().dump()?)
    }

    fn machine_mut(&mut self) -> &mut Machine {
        self.replayer.machine_mut()
    }

    fn put_back(&mut self, to: &Checkpoint) -> Result<(), LabError> {
        let how = match self.untracked {
            true => Restore::Verified,
            false => Restore::Dirty,
        };
        self.machine_mut().restore(to, how)?;
        self.untracked = false;
        Ok(())
    }

    fn flip(&mut self, phys: u64, bit: u8) -> Result<(), LabError> {
        self.untracked |= phys >= IMAGE_BASE;
        let at = reached_at(self.machine().layout(), phys).ok_or(MachineError::Access(phys))?;
        let mut byte = [0];
        if self.machine().read_virtual(at, &mut byte) != 1 {
            return Err(MachineError::Access(phys).into());
        }
        byte[0] ^= 1 << (bit & 7);
        self.machine_mut().spoil_virtual(at, &byte)?;
        Ok(())
    }

    fn stop_at(&mut self, log: &Log, number: u64) -> Result<(), LabError> {
        let at = log.at + std::mem::offset_of!(Recorder, stop_at) as u64;
        debug_assert_ne!(number, NEVER);
        self.machine_mut()
            .write_virtual(at, &number.to_le_bytes())?;
        Ok(())
    }

    fn entry(&mut self, boundary: u64) -> Result<&Step, LabError> {
        let known = |steps: &[Step]| {
            let first = steps.first()?.boundary;
            usize::try_from(boundary.checked_sub(first)?)
                .ok()
                .filter(|at| *at < steps.len())
        };
        if known(&self.steps).is_none() {
            let first = self
                .steps
                .first()
                .map_or(boundary, |step| step.boundary.min(boundary));
            // A few more than are needed: runs go over the same stretch again and again.
            let count = boundary - first + 16;
            self.steps.clear();
            for step in self.recording.from(first)?.take(count as usize) {
                self.steps.push(step?);
            }
        }
        match known(&self.steps).and_then(|at| self.steps.get(at)) {
            Some(step) => Ok(step),
            None => Err(LabError::TooShort(boundary)),
        }
    }
}

/// Reads answered with what was recorded.
struct Recorded(Vec<ReadData>);

impl DiskReads for Recorded {
    fn take(&mut self, disk: u8, seq: u64) -> Result<Vec<u8>, String> {
        let read = self
            .0
            .iter()
            .find(|read| (read.disk, read.seq) == (disk, seq));
        read.map(|read| read.data.to_vec())
            .ok_or_else(|| format!("the recording has no data of read {seq} of disk {disk}"))
    }
}
