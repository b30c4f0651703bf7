//! One machine that goes through a recording, boundary by boundary, forwards and back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use kvm_ioctls::Kvm;
use quorate_devices::{DiskReads, Entry};
use quorate_vmm::{
    Boundary, Checkpoint, CrashReport, LayoutKind, Machine, MachineConfig, Outcome, Restore,
    open_kvm,
};

use crate::exit::{ExitCode, Failure};
use crate::fingerprint::ReleaseDigest;
use crate::machine::failure;
use crate::record::{Boundaries, ReadData, RecordError, Recording, StartPoint, Step};
use crate::replica::ballot;
use crate::seeds::Seed;

/// How a replay is to be done.
#[derive(Clone, Debug, Default)]
pub struct ReplayOptions {
    /// The machine's layout; else that of replica 0, or of the checkpoint with which the replay begins. Another than the
    /// checkpoint's means that the replay begins at the beginning.
    pub layout_seed: Option<Seed>,
    /// Where to begin.
    pub start: Start,
    /// The image, if it is not where the recording says.
    pub image: Option<PathBuf>,
    /// Keep a checkpoint in memory about every so many boundaries, so that [`Replayer::seek`] can go back fast.
    pub remember_every: Option<u64>,
}

/// Checkpoints kept in memory for going back (R10). Beyond it every second one is dropped, and they are taken half as often.
const KEPT: usize = 64;

/// Where a replay begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// As early as the recording allows.
    #[default]
    Earliest,
    /// With a fresh machine, at boundary 0.
    Beginning,
    /// At the last place before this boundary, or there, at which a replay can begin.
    Before(u64),
    /// With this checkpoint; index into [`Recording::checkpoints`].
    Checkpoint(usize),
}

/// Why a replay cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplayFailed {
    /// The recording.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The machine cannot be made, or not from this recording.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The beginning is wanted and not there.
    #[error("the recording begins with boundary {first}, {before}; {why}")]
    NoBeginning {
        /// The first boundary that is there.
        first: u64,
        /// What was before it.
        before: &'static str,
        /// Why the beginning is needed, and what to do.
        why: &'static str,
    },
    /// There is nowhere to begin.
    #[error(
        "no checkpoint in the recording at boundary {0} or before, and its beginning has been deleted"
    )]
    NoStart(u64),
    /// The machine crashed.
    #[error("the machine crashed on its way to boundary {boundary}: {report}")]
    Crashed {
        /// The boundary that it did not reach.
        boundary: u64,
        /// The report.
        report: Box<CrashReport>,
    },
    /// The machine did what no healthy one does.
    #[error("at boundary {boundary}: {why}")]
    Misbehaved {
        /// Where.
        boundary: u64,
        /// What.
        why: String,
    },
}

impl From<ReplayFailed> for Failure {
    fn from(error: ReplayFailed) -> Failure {
        match error {
            ReplayFailed::Record(error) => error.into(),
            ReplayFailed::Failure(failure) => failure,
            ReplayFailed::NoBeginning { .. } | ReplayFailed::NoStart(_) => {
                Failure::new(ExitCode::Recording, error)
            }
            ReplayFailed::Crashed { .. } | ReplayFailed::Misbehaved { .. } => {
                Failure::new(ExitCode::Differs, error)
            }
        }
    }
}

/// What was before the first boundary of a recording that does not have the beginning.
fn before(recording: &Recording) -> &'static str {
    match recording.header().resumed {
        true => "where its set went on from one that was saved",
        false => "what was before it has been deleted to stay within --record-keep",
    }
}

/// What the machine did at a boundary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// The boundary.
    pub boundary: u64,
    /// Its outputs, as they would be voted on.
    pub outputs: Vec<quorate_voter::Output>,
    /// Monotonic time up to which the guest wants to sleep.
    pub wait_until_ns: u64,
    /// The program has ended.
    pub exits: bool,
    /// Whether all outputs so far are those that were released; none if the set had not decided this boundary.
    pub agrees: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// On the way to this boundary.
    Towards(u64),
    /// At this boundary: its outputs are out, its entry not delivered.
    At(u64),
}

/// See the module.
pub struct Replayer<'r> {
    recording: &'r Recording,
    kvm: Kvm,
    config: MachineConfig,
    machine: Machine,
    place: Place,
    digest: ReleaseDigest,
    steps: Boundaries<'r>,
    /// The boundary at which the machine stands, as recorded.
    here: Option<Step>,
    exited: bool,
    differs: Option<u64>,
    /// Where this replay began: a checkpoint, or none for the beginning.
    began: Option<usize>,
    /// For going back: checkpoints with the fingerprint there.
    kept: BTreeMap<u64, (Checkpoint, ReleaseDigest)>,
    /// The last that was taken or restored: what the next one is told apart from.
    base: Option<Checkpoint>,
    remember_every: Option<u64>,
}

impl<'r> Replayer<'r> {
    /// Makes a machine for `recording` and puts it where the replay begins: before boundary 0, or at the boundary of a checkpoint.
    ///
    /// # Errors
    /// When the recording cannot be replayed from there or with this layout, kernel or image are not those of the run, or this host cannot
    /// make the machine.
    pub fn open(
        recording: &'r Recording,
        options: &ReplayOptions,
    ) -> Result<Replayer<'r>, ReplayFailed> {
        let header = recording.header();
        let own = header.layout_seed(0, 0);
        let layout_seed = match header.layout {
            // Nothing of it may differ.
            LayoutKind::Same => own,
            LayoutKind::Random => options.layout_seed.unwrap_or(own),
        };
        let began = choose(recording, options)?;
        let layout_seed = match began {
            None => layout_seed,
            Some(index) => recording.checkpoints()[index].meta.layout_seed,
        };
        let config = header
            .machine(options.image.as_deref(), layout_seed)
            .map_err(Failure::from)?;
        let kvm = open_kvm().map_err(|error| failure(&error))?;
        let machine = make(&kvm, &config, options.remember_every.is_some())?;
        let mut replayer = Replayer {
            recording,
            kvm,
            config,
            machine,
            place: Place::Towards(0),
            digest: ReleaseDigest::default(),
            steps: recording.from(recording.boundaries().start)?,
            here: None,
            exited: false,
            differs: None,
            began,
            kept: BTreeMap::new(),
            base: None,
            remember_every: options.remember_every,
        };
        if let Some(index) = began {
            replayer.load(index)?;
        }
        Ok(replayer)
    }

    /// Puts the machine where a checkpoint of the recording was taken.
    fn load(&mut self, index: usize) -> Result<(), ReplayFailed> {
        let recording = self.recording;
        let info = &recording.checkpoints()[index];
        let boundary = info.meta.boundary;
        let unusable = |why: String| {
            let text = format!("the checkpoint at boundary {boundary} cannot be used: {why}");
            ReplayFailed::from(Failure::new(ExitCode::Recording, text))
        };
        let mut bytes = std::io::BufReader::new(recording.blob(info));
        let checkpoint =
            Checkpoint::read_from(&mut bytes).map_err(|error| unusable(error.to_string()))?;
        let digest = recording.step(boundary)?.digest;
        let digest = digest.ok_or_else(|| unusable("the set had not decided it".to_owned()))?;
        if checkpoint.boundary() != boundary || !checkpoint.at_boundary() {
            return Err(unusable("it is of another place".to_owned()));
        }
        self.restore(checkpoint, ReleaseDigest::from_state(digest))
    }

    /// Puts the machine where a checkpoint was taken; `digest` is the fingerprint there.
    fn restore(
        &mut self,
        checkpoint: Checkpoint,
        digest: ReleaseDigest,
    ) -> Result<(), ReplayFailed> {
        let boundary = checkpoint.boundary();
        // By the log, if there is one: nobody else has written to this machine's memory.
        self.machine
            .restore(&checkpoint, Restore::Dirty)
            .map_err(|error| failure(&error))?;
        self.steps = self.recording.from(boundary)?;
        self.here = self.steps.next().transpose()?;
        self.digest = digest;
        self.place = Place::At(boundary);
        self.exited = false;
        self.differs = self.differs.filter(|differs| *differs <= boundary);
        self.base = Some(checkpoint);
        Ok(())
    }

    /// Goes back to the beginning: a fresh machine, before boundary 0.
    ///
    /// # Errors
    /// When the recording has no beginning any more, or no machine can be made.
    pub fn restart(&mut self) -> Result<(), ReplayFailed> {
        if !self.recording.starts().contains(&StartPoint::Beginning) {
            return Err(ReplayFailed::NoBeginning {
                first: self.recording.boundaries().start,
                before: before(self.recording),
                why: "there is no checkpoint before the place to go back to",
            });
        }
        self.machine = make(&self.kvm, &self.config, self.remember_every.is_some())?;
        self.base = None;
        self.place = Place::Towards(0);
        self.digest = ReleaseDigest::default();
        self.steps = self.recording.from(0)?;
        self.here = None;
        self.exited = false;
        self.differs = None;
        Ok(())
    }

    /// Keeps a checkpoint of where the machine stands, for [`Replayer::seek`]. Does nothing if it stands at no boundary, or at the last.
    ///
    /// # Errors
    /// When it cannot be taken.
    pub fn remember(&mut self) -> Result<(), ReplayFailed> {
        let Place::At(boundary) = self.place else {
            return Ok(());
        };
        if self.exited || self.kept.contains_key(&boundary) {
            return Ok(());
        }
        let (checkpoint, _) = self
            .machine
            .checkpoint(self.base.as_ref())
            .map_err(|error| failure(&error))?;
        self.base = Some(checkpoint.clone());
        self.kept
            .insert(boundary, (checkpoint, self.digest.clone()));
        if self.kept.len() > KEPT {
            let mut odd = false;
            self.kept.retain(|_, _| {
                odd = !odd;
                odd
            });
            self.remember_every = self.remember_every.map(|every| every.saturating_mul(2));
        }
        Ok(())
    }

    /// Boundaries of the checkpoints kept in memory.
    pub fn remembered(&self) -> impl Iterator<Item = u64> + '_ {
        self.kept.keys().copied()
    }

    /// The recording.
    #[must_use]
    pub fn recording(&self) -> &'r Recording {
        self.recording
    }

    /// What the machine was made from.
    #[must_use]
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The machine, to look at it or to run it ([`Replayer::deliver`], [`Replayer::arrive`]). Whoever changes it changes what follows.
    pub fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// The boundary at which the machine stands, its outputs out and its entry not delivered; none if it is on its way.
    #[must_use]
    pub fn at(&self) -> Option<u64> {
        match self.place {
            Place::At(boundary) => Some(boundary),
            Place::Towards(_) => None,
        }
    }

    /// The boundary at which the machine stands, or which it will reach next.
    #[must_use]
    pub fn boundary(&self) -> u64 {
        match self.place {
            Place::At(boundary) | Place::Towards(boundary) => boundary,
        }
    }

    /// The checkpoint with which this replay began; none if with a fresh machine.
    #[must_use]
    pub fn began(&self) -> Option<usize> {
        self.began
    }

    /// Where the machine stands, as recorded: the entry that comes next.
    #[must_use]
    pub fn here(&self) -> Option<&Step> {
        self.here.as_ref()
    }

    /// Fingerprint of all outputs so far, comparable with the set's.
    #[must_use]
    pub fn fingerprint(&self) -> blake3::Hash {
        self.digest.current()
    }

    /// The first boundary whose outputs were not those that were released.
    #[must_use]
    pub fn differs(&self) -> Option<u64> {
        self.differs
    }

    /// Whether the recording ends where the machine stands: there is no entry to go on with, or the program has ended.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        let no_entry = self.here.as_ref().is_none_or(|step| step.entry.is_none());
        self.at().is_some() && (self.exited || no_entry)
    }

    /// Delivers the entry of the boundary at which the machine stands, so that it can run on. False: there is none, the recording
    /// ends here. Does nothing if the machine is on its way already.
    ///
    /// # Errors
    /// When the machine cannot take it.
    pub fn deliver(&mut self) -> Result<bool, ReplayFailed> {
        let Place::At(boundary) = self.place else {
            return Ok(true);
        };
        if self.is_at_end() {
            return Ok(false);
        }
        let Some(Step {
            entry: Some(entry),
            reads,
            ..
        }) = &mut self.here
        else {
            return Ok(false);
        };
        let entry: Arc<Entry> = Arc::clone(entry);
        let resumed = self.machine.resume(&entry, &mut Recorded(reads));
        resumed.map_err(|error| ReplayFailed::Misbehaved {
            boundary,
            why: error.to_string(),
        })?;
        self.place = Place::Towards(boundary + 1);
        Ok(true)
    }

    /// Takes note of a boundary to which [`Machine::run`] has brought the machine, and compares its outputs.
    ///
    /// # Errors
    /// When the recording cannot be read, or has no such boundary.
    pub fn arrive(&mut self, reached: Boundary) -> Result<Arrived, ReplayFailed> {
        let boundary = self.boundary();
        let cast = ballot(boundary, reached.outputs, reached.wait_until_ns);
        for (channel, bytes) in &cast.outputs {
            self.digest.absorb(boundary, *channel, bytes);
        }
        self.here = self.steps.next().transpose()?;
        let agrees = self
            .here
            .as_ref()
            .and_then(|step| step.digest)
            .map(|digest| digest == *self.digest.current().as_bytes());
        if agrees == Some(false) {
            self.differs.get_or_insert(boundary);
        }
        self.exited = cast.exits;
        self.place = Place::At(boundary);
        if self
            .remember_every
            .is_some_and(|every| boundary.is_multiple_of(every.max(1)))
        {
            self.remember()?;
        }
        Ok(Arrived {
            boundary,
            outputs: cast.outputs,
            wait_until_ns: cast.wait_until_ns,
            exits: cast.exits,
            agrees,
        })
    }

    /// Runs the machine to its next boundary. None: the recording ends where it stands.
    ///
    /// # Errors
    /// When the machine crashes or misbehaves, or the recording cannot be read.
    pub fn step(&mut self) -> Result<Option<Arrived>, ReplayFailed> {
        if !self.deliver()? {
            return Ok(None);
        }
        let boundary = self.boundary();
        loop {
            match self.machine.run() {
                Outcome::Boundary(reached) => return self.arrive(reached).map(Some),
                // A kick, or a stop that somebody asked the machine for and did not see: on.
                Outcome::Kicked | Outcome::Stopped => {}
                Outcome::Crash(report) => {
                    let report = Box::new(report);
                    return Err(ReplayFailed::Crashed { boundary, report });
                }
                Outcome::Misbehaved(error) => {
                    let why = error.to_string();
                    return Err(ReplayFailed::Misbehaved { boundary, why });
                }
            }
        }
    }

    /// Runs the machine on until it stands at this boundary; less far if the recording ends or outputs differ before. Says whether it is there.
    ///
    /// # Errors
    /// As [`Replayer::step`].
    pub fn run_to(&mut self, boundary: u64) -> Result<bool, ReplayFailed> {
        while self.at() != Some(boundary) {
            if self.boundary() > boundary {
                return Ok(false);
            }
            match self.step()? {
                Some(arrived) if arrived.agrees != Some(false) => {}
                Some(arrived) => return Ok(arrived.boundary == boundary),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Goes to this boundary, forwards or back: from the nearest checkpoint before it, or there, in memory or in the recording.
    /// Says whether the machine is there, as [`Replayer::run_to`].
    ///
    /// # Errors
    /// As [`Replayer::open`] and [`Replayer::step`].
    pub fn seek(&mut self, boundary: u64) -> Result<bool, ReplayFailed> {
        // Whoever stands between two boundaries may have changed the machine, so that is no place to go on from.
        let here = self.at().filter(|at| *at <= boundary);
        let kept = self.kept.range(..=boundary).next_back();
        let (recorded, stored) = match self.last_checkpoint(boundary) {
            Some(index) => (
                Some(self.recording.checkpoints()[index].meta.boundary),
                index,
            ),
            None => (None, 0),
        };
        let nearest = here.max(kept.map(|(at, _)| *at)).max(recorded);
        if nearest.is_none() {
            self.restart()?;
        } else if nearest == here {
            // On from here.
        } else if let Some((_, (checkpoint, digest))) = kept.filter(|(at, _)| Some(**at) == nearest)
        {
            let (checkpoint, digest) = (checkpoint.clone(), digest.clone());
            self.restore(checkpoint, digest)?;
        } else {
            self.load(stored)?;
        }
        self.run_to(boundary)
    }

    /// The last checkpoint of the recording at this boundary or before, with the machine's layout.
    fn last_checkpoint(&self, boundary: u64) -> Option<usize> {
        self.recording.checkpoints().iter().rposition(|checkpoint| {
            checkpoint.meta.boundary <= boundary
                && checkpoint.meta.layout_seed == self.config.layout_seed
        })
    }
}

fn make(kvm: &Kvm, config: &MachineConfig, tracked: bool) -> Result<Machine, Failure> {
    let mut machine = Machine::new(kvm, config).map_err(|error| failure(&error))?;
    if tracked {
        machine.track_dirty().map_err(|error| failure(&error))?;
    }
    Ok(machine)
}

/// With which checkpoint to begin; none for the beginning.
fn choose(recording: &Recording, options: &ReplayOptions) -> Result<Option<usize>, ReplayFailed> {
    let first = recording.boundaries().start;
    let checkpoints = recording.checkpoints();
    let no_beginning = |why| ReplayFailed::NoBeginning {
        first,
        before: before(recording),
        why,
    };
    let fits = |index: &usize| {
        options
            .layout_seed
            .is_none_or(|seed| seed == checkpoints[*index].meta.layout_seed)
    };
    let last_before = |boundary| {
        (0..checkpoints.len())
            .filter(fits)
            .rfind(|index| checkpoints[*index].meta.boundary <= boundary)
    };
    let beginning = recording.starts().contains(&StartPoint::Beginning);
    let chosen = match options.start {
        Start::Beginning => None,
        Start::Checkpoint(index) if index >= checkpoints.len() => {
            let text = format!(
                "there is no checkpoint {index} in the recording, it has {}",
                checkpoints.len()
            );
            return Err(Failure::new(ExitCode::Usage, text).into());
        }
        Start::Checkpoint(index) if !fits(&index) => {
            let text = "a checkpoint can only be gone on from with the layout that it has: leave out --layout-seed, or begin at the beginning";
            return Err(Failure::new(ExitCode::Usage, text).into());
        }
        Start::Checkpoint(index) => Some(index),
        Start::Before(boundary) => last_before(boundary),
        Start::Earliest if beginning => None,
        Start::Earliest => (0..checkpoints.len()).find(fits),
    };
    match (chosen, options.start) {
        (None, _) if beginning => Ok(None),
        (None, Start::Beginning) => Err(no_beginning(
            "begin with a checkpoint (--from), or record with a larger bound",
        )),
        (None, _) if options.layout_seed.is_some() => Err(no_beginning(
            "another layout needs the beginning, since a checkpoint has the layout of its replica: replay without --layout-seed",
        )),
        (None, Start::Before(boundary)) => Err(ReplayFailed::NoStart(boundary)),
        (None, _) => Err(ReplayFailed::NoStart(first)),
        (chosen, _) => Ok(chosen),
    }
}

/// Reads answered with what was recorded.
struct Recorded<'a>(&'a [ReadData]);

impl DiskReads for Recorded<'_> {
    fn take(&mut self, disk: u8, seq: u64) -> Result<Vec<u8>, String> {
        self.0
            .iter()
            .find(|read| (read.disk, read.seq) == (disk, seq))
            .map(|read| read.data.to_vec())
            .ok_or_else(|| format!("the recording has no data for read {seq} of disk {disk}"))
    }
}
