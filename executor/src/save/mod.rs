//! Saving a whole set to a directory, and starting one from it again: `quorate checkpoint DIR [--stop]`, `quorate run --from DIR`.
//!
//! All replicas come to a common boundary and are held there for a moment: every ballot up to it is decided, everything decided is
//! released, and no entry for it is written. So the state of the set is that of its replicas and disks alone, no journal has to go
//! with it, and nothing that anybody was told can be missing: what was acknowledged was released, and what was released is
//! in it. Each replica's own thread takes its checkpoint meanwhile, and the disks' files are brought up to date. Then the set goes
//! on; its disks' files stay as they are until they are copied (released writes wait in memory, bounded as always).
//!
//! The directory is written under another name, put on stable storage and exchanged for the old one at once.

mod files;
mod manifest;
mod resume;
mod write;

use std::io;
use std::path::{Path, PathBuf};

pub(crate) use files::copy as copy_file;
pub use manifest::{Manifest, SavedDisk, SavedReplica, SavedSet};
pub use resume::{Resume, Saved};
pub(crate) use write::save;
pub use write::{Context, Done, Original};

/// Why a set cannot be saved, or not be started from what was saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A file or directory.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The directory has something else in it.
    #[error("{} is there already and holds no saved set; name a directory that is not there yet", .0.display())]
    Occupied(PathBuf),
    /// A file is not as it was written.
    #[error("{} is damaged: its content is not what was saved", .0.display())]
    Damaged(PathBuf),
    /// Another version of the format.
    #[error("{} has format {format}, this program reads {}; use the program that saved it", path.display(), manifest::FORMAT)]
    Format {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// The set cannot be saved now.
    #[error("{0}")]
    NotNow(String),
    /// What is there does not fit what was saved.
    #[error("{0}")]
    Differs(String),
}

impl SaveError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        SaveError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}
