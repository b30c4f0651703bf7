//! The golden run: everything that trials begin with and are compared with.
//!
//! It is made in steps, and each is kept in the directory, so that an interrupted one goes on where it was: the clients are run
//! live and their conversations written down; the appliance is started cold and warmed up; the conversation is played once for each
//! size of set, and all must be the same. `golden.json` says what is there, and is exchanged as a whole when a step is complete.

mod make;
mod run;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_executor::events::End;
use quorate_executor::exit::Failure;
use quorate_executor::launch::Plan;
use quorate_executor::stage::DiskContent;
use quorate_images::Appliance;
use quorate_vmm::fault::Trace;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::cache::{private_dir, write_private};
use super::conversation::Conversation;
use super::file::ConversationError;
use super::heard::Heard;
use super::player::{Player, PlayerSettings};
use super::record::RecordError;
use crate::file::Campaign;
use crate::model::GoldenFacts;
use make::Maker;

/// Version of what is kept: another one is made anew.
const VERSION: u32 = 1;

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
