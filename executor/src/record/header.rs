//! What a recording says of the run as a whole: enough to make the same machines again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_devices::DiskConfig;
use quorate_vmm::{LayoutKind, MachineConfig, ProgramSpec, StartTime};
use serde::{Deserialize, Serialize};

use crate::exit::{ExitCode, Failure};
use crate::launch::Plan;
use crate::seeds::Seed;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of the program that recorded.
    pub quorate: String,
    /// Name of the appliance.
    pub name: String,
    /// The appliance file.
    pub appliance_path: PathBuf,
    /// Its text; empty if it could not be read again.
    pub appliance: String,
    /// The image.
    pub image: ImageId,
    /// BLAKE3 of the guest kernel's ELF file.
    #[serde(with = "hex32")]
    pub kernel: [u8; 32],
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// How layouts were drawn.
    pub layout: LayoutKind,
    /// The input seed: all randomness of the guest. A secret.
    #[serde(with = "hex32")]
    pub input_seed: Seed,
    /// The program.
    pub program: ProgramSpec,
    /// The time at which the guest started.
    pub start: StartTime,
    /// The disks.
    pub disks: Vec<DiskConfig>,
    /// Replicas at the start.
    pub replicas: u8,
    /// The layout seed of each at the start.
    pub layout_seeds: Vec<LayoutSeed>,
    /// The run seed, from which the layout seeds of later generations follow. A secret.
    pub seed: String,
    /// The set went on from one that was saved: boundary 0 is where that was, and no fresh machine gets there. The recording has
    /// a checkpoint of each replica at boundary 0.
    #[serde(default)]
    pub resumed: bool,
}

/// Which image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageId {
    /// Where it was.
    pub path: PathBuf,
    /// BLAKE3 of its content, as its header has it.
    #[serde(with = "hex32")]
    pub digest: [u8; 32],
    /// Bytes.
    pub length: u64,
}

/// The layout seed of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutSeed {
    /// The replica.
    pub replica: usize,
    /// How often it had been given a new layout.
    pub generation: u64,
    /// Its seed.
    #[serde(with = "hex32")]
    pub seed: Seed,
}

/// Why no machine can be made for a recording.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The kernel is another.
    #[error(
        "the recording was made by quorate {version} with guest kernel {recorded}, this program carries {ours}: use that \
         quorate, or name the kernel's ELF file with QUORATE_KERNEL"
    )]
    Kernel {
        /// Of the program that recorded.
        version: String,
        /// Digest of its kernel.
        recorded: blake3::Hash,
        /// Digest of ours.
        ours: blake3::Hash,
    },
    /// The image is another.
    #[error(
        "{}: this image is {found}, the recording was made with {recorded}: name the right file with --image, or build it again from \
         the same lock file (`quorate build APPLIANCE.toml`)", path.display()
    )]
    Image {
        /// The file.
        path: PathBuf,
        /// The recording's.
        recorded: blake3::Hash,
        /// The file's.
        found: blake3::Hash,
    },
    /// The image cannot be read.
    #[error(
        "{error} (the recording was made with image {recorded}; if it is elsewhere now, name it with --image)"
    )]
    NoImage {
        /// Why.
        error: String,
        /// The recording's.
        recorded: blake3::Hash,
    },
    /// No kernel.
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl Header {
    /// The header of a run that is about to start.
    #[must_use]
    pub fn of(plan: &Plan, appliance_path: &Path) -> Header {
        let machine = &plan.machine;
        let replicas = plan.set.voter.replicas;
        Header {
            quorate: env!("CARGO_PKG_VERSION").to_owned(),
            name: plan.set.name.clone(),
            appliance_path: appliance_path.to_owned(),
            appliance: std::fs::read_to_string(appliance_path).unwrap_or_default(),
            image: ImageId {
                path: std::path::absolute(&plan.image.path)
                    .unwrap_or_else(|_| plan.image.path.clone()),
                digest: plan.image.digest,
                length: plan.image.length,
            },
            kernel: *blake3::hash(&machine.kernel).as_bytes(),
            memory_bytes: machine.memory_bytes,
            layout: machine.layout,
            input_seed: machine.input_seed,
            program: machine.program.clone(),
            start: machine.start,
            disks: machine.disks.clone(),
            replicas,
            layout_seeds: (0..usize::from(replicas))
                .map(|replica| LayoutSeed {
                    replica,
                    generation: 0,
                    seed: plan.layout_seed(replica),
                })
                .collect(),
            seed: plan.set.seed.to_string(),
            resumed: plan.resume.is_some(),
        }
    }

    /// The layout seed of a replica in a generation.
    #[must_use]
    pub fn layout_seed(&self, replica: usize, generation: u64) -> Seed {
        let seed = crate::seeds::RunSeed::from_text(&self.seed);
        match self.layout {
            LayoutKind::Same => seed.layout(0, 0),
            LayoutKind::Random => seed.layout(replica, generation),
        }
    }

    /// What a machine of this run is made of. The image is `image`, else where it was; kernel and image are checked to be those of the
    /// run.
    ///
    /// # Errors
    /// When they are not, or cannot be read.
    pub fn machine(
        &self,
        image: Option<&Path>,
        layout_seed: Seed,
    ) -> Result<MachineConfig, HeaderError> {
        let kernel = crate::kernel::load()?;
        let ours = blake3::hash(&kernel);
        if ours.as_bytes() != &self.kernel {
            return Err(HeaderError::Kernel {
                version: self.quorate.clone(),
                recorded: blake3::Hash::from_bytes(self.kernel),
                ours,
            });
        }
        let path = image.unwrap_or(&self.image.path);
        let recorded = blake3::Hash::from_bytes(self.image.digest);
        let no_image = |error: String| HeaderError::NoImage { error, recorded };
        let info = quorate_images::verify(path).map_err(|error| no_image(error.to_string()))?;
        if info.digest != self.image.digest {
            return Err(HeaderError::Image {
                path: path.to_owned(),
                recorded,
                found: blake3::Hash::from_bytes(info.digest),
            });
        }
        let file =
            File::open(path).map_err(|error| no_image(format!("{}: {error}", path.display())))?;
        Ok(MachineConfig {
            kernel,
            image: Some(Arc::new(file)),
            memory_bytes: self.memory_bytes,
            layout: self.layout,
            layout_seed,
            input_seed: self.input_seed,
            program: self.program.clone(),
            start: self.start,
            disks: self.disks.clone(),
        })
    }
}

impl From<HeaderError> for Failure {
    fn from(error: HeaderError) -> Failure {
        match error {
            HeaderError::Failure(failure) => failure,
            other => Failure::new(ExitCode::Image, other),
        }
    }
}

/// 32 bytes as 64 hexadecimal digits.
pub(super) mod hex32 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(blake3::Hash::from_bytes(*bytes).to_hex().as_str())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(from)?;
        blake3::Hash::from_hex(&text)
            .map(|hash| *hash.as_bytes())
            .map_err(D::Error::custom)
    }
}
