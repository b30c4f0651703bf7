//! The golden run: everything that trials begin with and are compared with.
//!
//! It is made in steps, and each is kept in the directory, so that an interrupted one goes on where it was: the clients are run
//! live and their conversations written down; the appliance is started cold and warmed up; the conversation is played once for each
//! size of set, and all must be the same. `golden.json` says what is there, and is exchanged as a whole when a step is complete.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_executor::channel;
use quorate_executor::egress::{Item, Tap};
use quorate_executor::events::End;
use quorate_executor::exit::Failure;
use quorate_executor::launch::{Options, Plan};
use quorate_executor::save::Saved;
use quorate_executor::stage::{DiskContent, Interposer, Limits, Performed, Play, Rig, warm};
use quorate_images::{Appliance, Progress};
use quorate_vmm::LayoutKind;
use quorate_vmm::fault::{Trace, Tracer};
use quorate_vmm::{Machine, Outcome};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::cache::{private_dir, write_private};
use super::conversation::Conversation;
use super::file::{ConversationError, Recorded};
use super::heard::{Course, Heard};
use super::live;
use super::player::{Player, PlayerSettings};
use super::record::{RecordError, RecordSettings};
use crate::file::{Campaign, Layout};
use crate::model::GoldenFacts;

/// Version of what is kept: another one is made anew.
const VERSION: u32 = 1;
/// Releases of a run that are kept one by one, to say where two runs differ first (R10). What is beyond is compared by digest.
const RELEASES_KEPT: usize = 1 << 20;
/// Bytes of a release that are shown where two differ.
const SHOWN: usize = 40;
/// Instructions that are traced at most (R10): about a minute of single steps.
const MAX_TRACED: u64 = 100_000_000;
/// Processor time between two boundaries of a golden run: a healthy one gets on, even on a busy host and step by step.
const SPIN: Duration = Duration::from_secs(120);

/// See the module.
pub struct Golden {
    /// Where trials begin: for [`Rig::new`], with the largest set of the campaign.
    pub plan: Plan,
    /// What the client says.
    pub conversation: Arc<Conversation>,
    /// How it is played.
    pub settings: PlayerSettings,
    /// What the client hears when nothing is wrong.
    pub heard: Heard,
    /// What is on the disks then.
    pub disks: Vec<DiskContent>,
    /// How the set ends: over, or the guest's program ended.
    pub end: End,
    /// For draws.
    pub facts: GoldenFacts,
    /// All that a healthy machine executes, if some fault of the campaign comes at an instruction's number.
    pub trace: Option<Arc<Trace>>,
}

/// Why there is no golden run.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// The appliance, the host, or a staged set.
    #[error("{0}")]
    Failure(#[from] Failure),
    /// The client.
    #[error("{0}")]
    Record(#[from] RecordError),
    /// A conversation's file.
    #[error("{0}")]
    Conversation(#[from] ConversationError),
    /// The live run.
    #[error("the live run: {0}")]
    Live(String),
    /// A file.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The conversation cannot be played to its end though nothing is wrong.
    #[error("{run}: {why}. The appliance does not answer in virtual time as it answered the client: look at the conversation in {}", file.display())]
    Course {
        /// Which run.
        run: &'static str,
        /// How it went.
        why: String,
        /// The conversation.
        file: PathBuf,
    },
    /// Two golden runs differ.
    #[error("the appliance is not deterministic: {first} and {second} differ: {what}")]
    Differs {
        /// One run.
        first: String,
        /// The other.
        second: String,
        /// The first difference.
        what: String,
    },
    /// The trace.
    #[error("the instructions of the golden run cannot be traced: {0}")]
    Trace(String),
}

impl GoldenError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        GoldenError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// `golden.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    version: u32,
    /// Digest of all that goes into it: another one makes everything anew.
    inputs: String,
    /// Digests of the conversations: warm-up, workload.
    conversations: Option<(String, String)>,
    /// Replicas that were saved warm.
    warm: u8,
    /// Releases and facts of the golden run.
    golden: Option<(String, GoldenFacts)>,
}

impl State {
    fn read(dir: &Path) -> State {
        // What cannot be read is made anew.
        let text = fs::read(dir.join("golden.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn write(&self, dir: &Path) -> Result<(), GoldenError> {
        let path = dir.join("golden.json");
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| GoldenError::io("cannot be written", &path, error.into()))?;
        write_private(&path, &text)
            .map_err(|source| GoldenError::io("cannot be written", &path, source))
    }
}

/// One run to compare others with.
struct Run {
    name: String,
    heard: Heard,
    releases: Releases,
    performed: Performed,
    calls: u64,
    adapted: Option<Conversation>,
}

#[derive(Clone, Debug, Default)]
struct Releases {
    kept: Vec<Release>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Release {
    boundary: u64,
    channel: u16,
    digest: blake3::Hash,
    begin: Vec<u8>,
}

struct Maker<'a> {
    campaign: &'a Campaign,
    dir: &'a Path,
    progress: &'a dyn Fn(&str),
    appliance: Appliance,
    state: State,
    replicas: u8,
}

impl Golden {
    /// Makes what is missing in `dir` (the campaign's `golden` directory, which only one process may make at a time) and plays the
    /// conversation at least once: a host on which it goes otherwise than where it was made is found out.
    ///
    /// # Errors
    /// When the appliance cannot be built or run, a client fails, or two runs differ.
    pub fn prepare(
        campaign: &Campaign,
        dir: &Path,
        progress: &dyn Fn(&str),
    ) -> Result<Golden, GoldenError> {
        let dir = &std::path::absolute(dir)
            .map_err(|source| GoldenError::io("no such path", dir, source))?;
        private_dir(dir).map_err(|source| GoldenError::io("cannot be made", dir, source))?;
        let path = dir.join("lock");
        let lock = File::create(&path)
            .map_err(|source| GoldenError::io("cannot be made", &path, source))?;
        // Whoever comes second finds everything made.
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| GoldenError::io("cannot be locked", &path, error.into()))?;
        let path = campaign.appliance_path();
        let appliance = Appliance::load(&path)
            .map_err(|error| Failure::new(quorate_executor::exit::ExitCode::Appliance, error))?;
        let maker = Maker {
            campaign,
            dir,
            progress,
            appliance,
            state: State::read(dir),
            replicas: campaign.replicas.iter().copied().max().unwrap_or(1),
        };
        maker.make()
    }

    /// A player of the golden conversation, for one trial.
    #[must_use]
    pub fn player(&self) -> Player {
        Player::new(Arc::clone(&self.conversation), self.settings)
    }
}

impl Maker<'_> {
    fn make(mut self) -> Result<Golden, GoldenError> {
        (self.progress)("building the image");
        let options = self.options("disks")?;
        let cold = self.plan(&options)?;
        let inputs = self.inputs(&cold);
        if self.state.version != VERSION || self.state.inputs != inputs {
            self.state = State {
                version: VERSION,
                inputs,
                ..State::default()
            };
        }
        let (warm_up, mut conversation) = self.conversations()?;
        let mut plan = self.warm(cold, &warm_up)?;

        let mut rig = self.rig(&plan, 1)?;
        (self.progress)("playing the golden run");
        let mut first = self.perform(&mut rig, 1, "the golden run", &conversation, false, None)?;
        if !is_as_recorded(&first, &conversation) {
            // Some answers have another length than they had when the client was there: a time, a number of processes.
            let lenient = self.perform(&mut rig, 1, "the golden run", &conversation, true, None)?;
            if let Some(adapted) = &lenient.adapted {
                (self.progress)("answers have other lengths in virtual time: playing it again");
                conversation = Arc::new(adapted.clone());
                first = self.perform(&mut rig, 1, "the golden run", &conversation, false, None)?;
            }
        }
        self.check_course(&first)?;
        let known = self.state.golden.take();
        let releases = &first.performed.summary.status.fingerprint;
        if let Some((known, _)) = &known
            && known != releases
        {
            return Err(GoldenError::Differs {
                first: "the golden run of before".to_owned(),
                second: "that of now".to_owned(),
                what: format!(
                    "releases {known} and {releases}; make it anew in an empty directory"
                ),
            });
        }
        let mut facts = GoldenFacts {
            // At the last one the stage is over: nothing is delivered there any more, and no fault comes.
            boundaries: first.heard.boundaries.saturating_sub(1),
            calls: first.calls,
            virtual_ns: first.heard.virtual_ns,
            instructions: None,
            digest: self.digest(&first, &conversation, &warm_up),
        };
        let trace = self.trace(&mut rig, &conversation, &first)?;
        facts.instructions = trace.as_ref().map(Trace::instructions);
        let fresh = known
            .as_ref()
            .is_none_or(|(_, known)| known.digest != facts.digest);
        if fresh {
            let again = self.perform(
                &mut rig,
                1,
                "the golden run again",
                &conversation,
                false,
                None,
            )?;
            compare(&first, &again)?;
        }
        drop(rig);
        if fresh {
            self.all_sizes(&plan, &conversation, &first)?;
        }
        self.state.golden = Some((releases.clone(), facts.clone()));
        self.state.write(self.dir)?;
        plan.set.voter.replicas = self.replicas;
        Ok(Golden {
            plan,
            conversation,
            settings: self.settings(),
            heard: first.heard,
            disks: first.performed.disks,
            end: first.performed.summary.end,
            facts,
            trace: trace.map(Arc::new),
        })
    }

    fn all_sizes(
        &self,
        plan: &Plan,
        conversation: &Arc<Conversation>,
        first: &Run,
    ) -> Result<(), GoldenError> {
        let mut rig = self.rig(plan, self.replicas)?;
        for replicas in self.campaign.replicas.iter().filter(|of| **of != 1) {
            (self.progress)(&format!("playing it to {replicas} replicas"));
            let run = self.perform(
                &mut rig,
                *replicas,
                "the golden run",
                conversation,
                false,
                None,
            )?;
            compare(first, &run)?;
        }
        Ok(())
    }

    fn settings(&self) -> PlayerSettings {
        PlayerSettings {
            hang_ns: self.campaign.limits.hang_ms.saturating_mul(1_000_000),
            max_boundaries: self.campaign.limits.boundaries,
            until_exit: self.is_batch(),
            ..PlayerSettings::default()
        }
    }

    /// Nobody talks to the guest: its program does its work and ends.
    fn is_batch(&self) -> bool {
        let workload = &self.campaign.workload;
        workload.command.is_none() && workload.conversation.is_none()
    }

    /// What a set is started with. Its disks are copies in the directory.
    fn options(&self, disks: &str) -> Result<Options, GoldenError> {
        let state_dir = self.dir.join(disks);
        private_dir(&state_dir)
            .map_err(|source| GoldenError::io("cannot be made", &state_dir, source))?;
        let mut files = Vec::new();
        for disk in &self.appliance.disks {
            files.push((
                disk.name.clone(),
                state_dir.join(format!("{}.img", disk.name)),
            ));
        }
        let seed = blake3::Hash::from_bytes(self.campaign.derived_seed("set"));
        let publish: Result<Vec<_>, _> = self
            .appliance
            .network
            .publish
            .iter()
            .map(|text| text.parse())
            .collect();
        let publish = publish
            .map_err(|error| Failure::new(quorate_executor::exit::ExitCode::Appliance, error))?;
        Ok(Options {
            replicas: Some(self.replicas),
            layout: self.campaign.layout.map(|layout| match layout {
                Layout::Same => LayoutKind::Same,
                Layout::Random => LayoutKind::Random,
            }),
            seed: Some(seed.to_hex().to_string()),
            publish: live::ephemeral(&publish),
            recovery: Some(true),
            disks: files,
            ..Options::default()
        })
    }

    /// Plans a cold start, from disks as the appliance has them at first: those of before are taken away.
    fn plan(&self, options: &Options) -> Result<Plan, GoldenError> {
        for ((_, to), disk) in options.disks.iter().zip(&self.appliance.disks) {
            // A disk that was warmed up belongs to the warm set.
            if to.exists() {
                continue;
            }
            if let Some(from) = disk.path.as_ref().filter(|path| path.exists()) {
                // Sparse where the file system can do that.
                fs::copy(from, to)
                    .map_err(|source| GoldenError::io("the disk cannot be copied", from, source))?;
            }
        }
        let progress = self.progress;
        Ok(Plan::new(&self.appliance, options, &|step| {
            built(progress, &step)
        })?)
    }

    fn inputs(&self, plan: &Plan) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("quorate campaign golden inputs 1");
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(&plan.image.digest);
        field(blake3::hash(&plan.machine.kernel).as_bytes());
        field(plan.appliance.1.as_bytes());
        field(plan.set.seed.to_string().as_bytes());
        field(plan.set.layout_mode.as_bytes());
        let workload = &self.campaign.workload;
        for command in [&workload.warmup, &workload.command].into_iter() {
            field(&[u8::from(command.is_some())]);
            for (index, word) in command.iter().flatten().enumerate() {
                field(word.as_bytes());
                if index == 0 {
                    // A script that was changed says other things. What it calls, nobody knows.
                    field(&fs::read(self.campaign.program(word)).unwrap_or_default());
                }
            }
        }
        if let Some(path) = &workload.conversation {
            field(&fs::read(self.campaign.resolve(path)).unwrap_or_default());
        }
        hasher.finalize().to_hex().to_string()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.conversation"))
    }

    /// The conversations of warm-up and workload: from files, or from a live run.
    fn conversations(&mut self) -> Result<(Arc<Conversation>, Arc<Conversation>), GoldenError> {
        let workload = &self.campaign.workload;
        let files = [self.file("warmup"), self.file("workload")];
        if let Some((warm, work)) = &self.state.conversations {
            let read = |path: &Path, digest: &str| {
                let recorded = Recorded::read(path).ok()?;
                let fits = recorded.conversation.digest().to_hex().as_str() == digest;
                fits.then(|| Arc::new(recorded.conversation))
            };
            if let (Some(warm), Some(work)) = (read(&files[0], warm), read(&files[1], work)) {
                return Ok((warm, work));
            }
        }
        let given = workload
            .conversation
            .as_ref()
            .map(|path| Recorded::read(&self.campaign.resolve(path)));
        let given = given.transpose()?;
        let warm_up = workload
            .warmup
            .as_ref()
            .map(|command| self.command(command));
        let command = workload.command.as_ref().filter(|_| given.is_none());
        let command = command.map(|command| self.command(command));
        let commands: Vec<&[String]> = [&warm_up, &command]
            .into_iter()
            .flatten()
            .map(Vec::as_slice)
            .collect();
        let mut recorded = match commands.is_empty() {
            true => Vec::new(),
            false => self.live(&commands)?,
        }
        .into_iter();
        let mut next =
            |command: &Option<Vec<String>>| command.as_ref().and_then(|_| recorded.next());
        let warm_up = next(&warm_up);
        let work = given.or_else(|| next(&command)).unwrap_or_default();
        // Without a warm-up, the ports must accept at least: each is connected to once.
        let warm_up = warm_up.unwrap_or_else(|| Recorded {
            conversation: knocks(&work.conversation),
            ..Recorded::default()
        });
        let digest = |of: &Recorded| of.conversation.digest().to_hex().to_string();
        warm_up.write(&files[0])?;
        work.write(&files[1])?;
        self.state.conversations = Some((digest(&warm_up), digest(&work)));
        self.state.warm = 0;
        self.state.golden = None;
        self.state.write(self.dir)?;
        Ok((Arc::new(warm_up.conversation), Arc::new(work.conversation)))
    }

    fn command(&self, command: &[String]) -> Vec<String> {
        let mut words = command.to_vec();
        if let Some(program) = words.first_mut() {
            *program = self
                .campaign
                .program(program)
                .to_string_lossy()
                .into_owned();
        }
        words
    }

    fn live(&self, commands: &[&[String]]) -> Result<Vec<Recorded>, GoldenError> {
        (self.progress)("running the client once, live");
        let directory = self.dir.join("live");
        remove(&directory)?;
        let options = Options {
            replicas: Some(1),
            ..self.options("live")?
        };
        let plan = self.plan(&options)?;
        let settings = RecordSettings {
            timeout: Duration::from_secs(self.campaign.workload.timeout_s),
            ..RecordSettings::default()
        };
        let recorded = live::run(plan, commands, &settings, self.dir);
        remove(&directory)?;
        recorded
    }

    /// The warm set: the one that is there, or a new one.
    fn warm(&mut self, cold: Plan, conversation: &Arc<Conversation>) -> Result<Plan, GoldenError> {
        let directory = self.dir.join("warm");
        if self.state.warm >= self.replicas
            && let Ok(plan) = self.warmed(Saved::open(&directory).ok().as_ref())
        {
            return Ok(plan);
        }
        (self.progress)("starting the appliance cold and warming it up");
        remove(&directory)?;
        remove(&self.dir.join("disks"))?;
        drop(cold);
        let options = self.options("disks")?;
        let plan = self.plan(&options)?;
        let settings = PlayerSettings {
            at_once: self.is_batch(),
            ..PlayerSettings::warm_up()
        };
        let player = Player::new(Arc::clone(conversation), settings);
        let saved = warm(plan, player.stage(), player.egress(), &directory)?;
        let heard = player.take_heard();
        if heard.course != Course::Complete {
            return Err(GoldenError::Course {
                run: "the warm-up",
                why: course(&heard),
                file: self.file("warmup"),
            });
        }
        self.state.warm = self.replicas;
        self.state.write(self.dir)?;
        self.warmed(Some(&saved))
    }

    fn warmed(&self, saved: Option<&Saved>) -> Result<Plan, GoldenError> {
        let missing = || {
            Failure::new(
                quorate_executor::exit::ExitCode::Disk,
                "there is no warm set",
            )
        };
        let saved = saved.ok_or_else(missing)?;
        let progress = self.progress;
        Ok(saved.plan(|_| {}, true, &|step| built(progress, &step))?)
    }

    fn rig(&self, plan: &Plan, replicas: u8) -> Result<Rig, GoldenError> {
        Ok(Rig::new(plan.clone(), replicas)?)
    }

    fn perform(
        &self,
        rig: &mut Rig,
        replicas: u8,
        name: &str,
        conversation: &Arc<Conversation>,
        lenient: bool,
        tracer: Option<Arc<Mutex<Tracer>>>,
    ) -> Result<Run, GoldenError> {
        let settings = PlayerSettings {
            lenient,
            ..self.settings()
        };
        let player = Player::new(Arc::clone(conversation), settings);
        let releases: Arc<Mutex<Releases>> = Arc::default();
        let calls: Arc<Mutex<Option<(u64, u64)>>> = Arc::default();
        let play = Play {
            tap: Some(keep(&releases)),
            interposers: vec![Box::new(Watch {
                calls: Arc::clone(&calls),
                tracer,
            })],
            limits: Limits {
                spin: SPIN,
                stall: SPIN,
                wall: Duration::from_secs(3600),
            },
            ..Play::new(replicas, player.stage(), player.egress())
        };
        let performed = rig.perform(play)?;
        if let End::Failed { code, detail } = &performed.summary.end {
            return Err(Failure::new(*code, format!("{name}: {detail}")).into());
        }
        let adapted = player.adapted();
        let releases =
            std::mem::take(&mut *releases.lock().unwrap_or_else(PoisonError::into_inner));
        let calls = calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .map_or(0, |(first, last)| last - first);
        Ok(Run {
            name: match replicas {
                1 => format!("{name} with 1 replica"),
                n => format!("{name} with {n} replicas"),
            },
            heard: player.take_heard(),
            releases,
            performed,
            calls,
            adapted,
        })
    }

    fn check_course(&self, run: &Run) -> Result<(), GoldenError> {
        let end = &run.performed.summary.end;
        let good = match self.is_batch() {
            true => matches!(end, End::Exited { wait_status: 0, .. }),
            false => run.heard.course == Course::Complete && run.performed.over,
        };
        if good {
            return Ok(());
        }
        let why = match run.performed.over {
            true => course(&run.heard),
            false => format!("the set ended: {end}"),
        };
        Err(GoldenError::Course {
            run: "the golden run",
            why,
            file: self.file("workload"),
        })
    }

    /// The trace, if the campaign needs one: kept under the digest of the run that it is of.
    fn trace(
        &self,
        rig: &mut Rig,
        conversation: &Arc<Conversation>,
        first: &Run,
    ) -> Result<Option<Trace>, GoldenError> {
        if !self.campaign.counts_instructions() {
            return Ok(None);
        }
        let path = self.dir.join("trace");
        let releases = first.performed.summary.status.fingerprint.as_bytes();
        if let Ok(bytes) = fs::read(&path)
            && let Some(encoded) = bytes.strip_prefix(releases)
            && let Ok(trace) = Trace::decode(encoded)
        {
            return Ok(Some(trace));
        }
        (self.progress)("tracing the instructions of the golden run");
        let tracer = Arc::new(Mutex::new(Tracer::new(MAX_TRACED)));
        let run = self.perform(
            rig,
            1,
            "the traced run",
            conversation,
            false,
            Some(Arc::clone(&tracer)),
        )?;
        compare(first, &run)?;
        let tracer = std::mem::replace(
            &mut *tracer.lock().unwrap_or_else(PoisonError::into_inner),
            Tracer::new(0),
        );
        let (trace, whole) = tracer
            .finish()
            .map_err(|error| GoldenError::Trace(error.to_string()))?;
        if !whole {
            let text = format!(
                "there are more than {MAX_TRACED}: take a shorter workload, or triggers that count boundaries or calls"
            );
            return Err(GoldenError::Trace(text));
        }
        let mut bytes = releases.to_vec();
        bytes.extend_from_slice(&trace.encode());
        write_private(&path, &bytes)
            .map_err(|source| GoldenError::io("cannot be written", &path, source))?;
        Ok(Some(trace))
    }

    fn digest(&self, run: &Run, conversation: &Conversation, warm_up: &Conversation) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("quorate campaign golden facts 1");
        hasher.update(self.state.inputs.as_bytes());
        hasher.update(conversation.digest().as_bytes());
        hasher.update(warm_up.digest().as_bytes());
        hasher.update(run.performed.summary.status.fingerprint.as_bytes());
        hasher.update(run.heard.digest().as_bytes());
        hasher.finalize().to_hex().to_string()
    }
}

/// Connects to each of the ports once, and ends that.
fn knocks(conversation: &Conversation) -> Conversation {
    let mut ports = conversation.connections.clone();
    ports.sort_unstable();
    ports.dedup();
    let mut log = super::conversation::Log::default();
    for port in ports {
        let connection = log.open(port);
        log.act(connection, super::conversation::Act::Shut);
    }
    log.canonical()
}

/// Whether the client heard as many bytes as it did live.
fn is_as_recorded(run: &Run, conversation: &Conversation) -> bool {
    let same = |of: &super::conversation::Received| {
        let heard = run.heard.connections.get(of.connection);
        heard.is_some_and(|heard| heard.bytes.len() as u64 == of.bytes)
    };
    run.heard.course == Course::Complete && conversation.end.iter().all(same)
}

fn course(heard: &Heard) -> String {
    match &heard.course {
        Course::Unfinished => "it did not come to its end".to_owned(),
        Course::Complete => "it came to its end".to_owned(),
        Course::Broken { why, .. } | Course::Stuck { why } => why.clone(),
    }
}

/// Building an image takes a while the first time.
fn built(progress: &dyn Fn(&str), step: &Progress<'_>) {
    match step {
        Progress::UpdatingLists => progress("building the image: fetching package lists"),
        Progress::Resolving => progress("building the image: working out packages"),
        Progress::Downloading { percent, .. } => {
            progress(&format!("building the image: downloading, {percent} %"));
        }
        Progress::Unpacking { index, total, .. } => {
            progress(&format!("building the image: package {index} of {total}"));
        }
        Progress::Writing => progress("building the image: writing it"),
        _ => progress("building the image"),
    }
}

fn remove(directory: &Path) -> Result<(), GoldenError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(GoldenError::io("cannot be removed", directory, error))
        }
        _ => Ok(()),
    }
}

fn keep(releases: &Arc<Mutex<Releases>>) -> Tap {
    let releases = Arc::clone(releases);
    Box::new(move |item| {
        if let Item::Release {
            boundary,
            channel,
            bytes,
        } = item
        {
            let mut releases = releases.lock().unwrap_or_else(PoisonError::into_inner);
            if releases.kept.len() < RELEASES_KEPT {
                releases.kept.push(Release {
                    boundary: *boundary,
                    channel: channel.0,
                    digest: blake3::hash(bytes),
                    begin: bytes[..bytes.len().min(SHOWN)].to_vec(),
                });
            }
        }
    })
}

/// Whether two runs are the same; else the first difference.
fn compare(first: &Run, second: &Run) -> Result<(), GoldenError> {
    let prints = |run: &Run| run.performed.summary.status.fingerprint.clone();
    let differs = |what: String| GoldenError::Differs {
        first: first.name.clone(),
        second: second.name.clone(),
        what,
    };
    if prints(first) != prints(second) {
        let pairs = first.releases.kept.iter().zip(&second.releases.kept);
        let what = match pairs.into_iter().find(|(a, b)| a != b) {
            Some((a, b)) => {
                let name = channel::name(quorate_voter::Channel(a.channel));
                format!(
                    "at boundary {} on channel {name}: {} and (boundary {}) {}",
                    a.boundary,
                    super::judge::show(&a.begin),
                    b.boundary,
                    super::judge::show(&b.begin)
                )
            }
            None => format!(
                "one released {} outputs, the other {}",
                first.releases.kept.len(),
                second.releases.kept.len()
            ),
        };
        return Err(differs(what));
    }
    if first.heard != second.heard {
        return Err(differs("the client heard something else".to_owned()));
    }
    if first.performed.disks != second.performed.disks {
        return Err(differs("the disks have other contents".to_owned()));
    }
    Ok(())
}

/// Counts system calls, and lets a tracer run the machine.
struct Watch {
    calls: Arc<Mutex<Option<(u64, u64)>>>,
    tracer: Option<Arc<Mutex<Tracer>>>,
}

impl Interposer for Watch {
    fn run(&mut self, machine: &mut Machine, _next_boundary: u64) -> Outcome {
        match &self.tracer {
            Some(tracer) => tracer
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .run(machine),
            None => machine.run(),
        }
    }

    fn at_boundary(&mut self, machine: &mut Machine, _boundary: u64) -> Result<(), String> {
        // A kernel without the recorder has no calls to count, and no faults that are triggered by them.
        if let Ok(made) = machine.calls_made() {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let (first, _) = calls.unwrap_or((made, made));
            *calls = Some((first, made));
        }
        Ok(())
    }
}
