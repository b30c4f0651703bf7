//! Makes the golden run, step by step: conversations, the warm set, the runs and the trace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_executor::events::End;
use quorate_executor::exit::Failure;
use quorate_executor::launch::{Options, Plan};
use quorate_executor::save::Saved;
use quorate_executor::stage::{Rig, warm};
use quorate_images::{Appliance, Progress};
use quorate_vmm::LayoutKind;
use quorate_vmm::fault::{Trace, Tracer};

use super::run::{self, Run, compare, course, is_as_recorded};
use super::{Golden, GoldenError, State, VERSION};
use crate::file::{Campaign, Layout};
use crate::model::GoldenFacts;
use crate::talk::cache::{private_dir, write_private};
use crate::talk::conversation::{Act, Conversation, Log};
use crate::talk::file::Recorded;
use crate::talk::heard::Course;
use crate::talk::live;
use crate::talk::player::{Player, PlayerSettings};
use crate::talk::record::RecordSettings;

/// Instructions that are traced at most (R10): about a minute of single steps.
const MAX_TRACED: u64 = 100_000_000;

/// What the steps need, and how far they are.
pub(super) struct Maker<'a> {
    pub campaign: &'a Campaign,
    pub dir: &'a Path,
    pub progress: &'a dyn Fn(&str),
    pub appliance: Appliance,
    pub state: State,
    pub replicas: u8,
}

impl Maker<'_> {
    /// Makes what is missing, and plays the conversation at least once.
    ///
    /// # Errors
    /// See [`Golden::prepare`].
    pub fn make(mut self) -> Result<Golden, GoldenError> {
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
        run::perform(rig, replicas, name, conversation, settings, tracer)
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
    let mut log = Log::default();
    for port in ports {
        let connection = log.open(port);
        log.act(connection, Act::Shut);
    }
    log.canonical()
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
