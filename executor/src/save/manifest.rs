//! What a saved set is: the one file that names all others, and says what they must be.

use std::path::{Path, PathBuf};

use quorate_devices::DiskPosition;
use quorate_vmm::LayoutKind;
use serde::{Deserialize, Serialize};

use super::SaveError;
use super::files::Stamp;
use crate::gateway::Publish;

/// Version of the format.
pub const FORMAT: u32 = 1;
/// Its name in the directory.
pub const NAME: &str = "manifest";
/// Longest manifest (R10).
const MAX_BYTES: u64 = 4 << 20;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the program that saved.
    pub quorate: String,
    /// The set.
    pub set: SavedSet,
    /// Boundary at which all replicas stand, counted from the start of the run that was saved.
    pub boundary: u64,
    /// The guest's clock, ns since its start. It goes on from here.
    pub monotonic_ns: u64,
    /// Until when the guest wanted to sleep, as `SyncPage::wait_until_ns`.
    pub wait_until_ns: u64,
    /// The set ended with it: its disks are as the copies are, unless somebody touched them.
    pub stopped: bool,
    /// The gateway's port of the next connection: those before it the guest may still take for open.
    pub gateway_port: u16,
    /// The replicas that were saved.
    pub replicas: Vec<SavedReplica>,
    /// Where all of them stand on the disks.
    pub positions: Vec<DiskPosition>,
    /// The disks.
    pub disks: Vec<SavedDisk>,
}

/// What the set was started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSet {
    /// Where the appliance file was.
    pub appliance_path: PathBuf,
    /// Its text.
    pub appliance: String,
    /// BLAKE3 of the image.
    pub image: String,
    /// BLAKE3 of the guest kernel.
    pub kernel: String,
    /// The run seed. A secret.
    pub seed: String,
    /// Replicas of the set.
    pub replicas: u8,
    /// How layouts are drawn.
    pub layout: LayoutKind,
    /// Memory of the guest, bytes.
    pub memory_bytes: u64,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// Whether replicas come back.
    pub recovery: bool,
    /// How often each takes a checkpoint, ms; 0: never.
    pub checkpoint_interval_ms: u64,
    /// How long the guest program may take to end, ms.
    pub stop_grace_ms: u64,
    /// Whether a set without a majority is held instead of ended.
    pub hold: bool,
}

/// A replica's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedReplica {
    /// Its number.
    pub replica: usize,
    /// In the directory.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its BLAKE3.
    pub digest: String,
}

/// A disk's copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedDisk {
    /// What the appliance calls it.
    pub name: String,
    /// The file or device that the set worked on.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its copy in the directory; none of a disk that is only read.
    pub file: Option<String>,
    /// Digest of the copy's content.
    pub digest: String,
    /// What the original was like when the set had ended.
    pub stamp: Option<Stamp>,
}

impl Manifest {
    /// As bytes: a line with the digest of the rest, and the rest.
    ///
    /// # Errors
    /// When a path is no text.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let json = serde_json::to_vec_pretty(self)?;
        let mut bytes = format!("{}\n", blake3::hash(&json).to_hex()).into_bytes();
        bytes.extend_from_slice(&json);
        Ok(bytes)
    }

    /// Reads the manifest of the directory.
    ///
    /// # Errors
    /// When there is none, or it is not as it was written.
    pub fn read(directory: &Path) -> Result<Manifest, SaveError> {
        let path = directory.join(NAME);
        let io = |source| SaveError::io("cannot be read", &path, source);
        if std::fs::metadata(&path).map_err(io)?.len() > MAX_BYTES {
            return Err(SaveError::Damaged(path));
        }
        let bytes = std::fs::read(&path).map_err(io)?;
        let damaged = || SaveError::Damaged(path.clone());
        let (digest, json) = bytes.split_at_checked(64).ok_or_else(damaged)?;
        let json = json.strip_prefix(b"\n").ok_or_else(damaged)?;
        if blake3::hash(json).to_hex().as_bytes() != digest {
            return Err(damaged());
        }
        // Only then is it believed what it says; and an unknown key may be another format's.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let format: Format = serde_json::from_slice(json).map_err(|_| damaged())?;
        if format.format != FORMAT {
            let format = format.format;
            return Err(SaveError::Format { path, format });
        }
        serde_json::from_slice(json).map_err(|_| damaged())
    }
}
