//! What a checkpoint must have in common with the machine that it is restored on.

use crate::error::MachineError;
use crate::layout::LayoutKind;
use crate::machine::{MachineConfig, ProgramSpec};
use kvm_bindings::CpuId;
use quorate_abi::ABI_VERSION;
use quorate_devices::DiskConfig;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A blake3 digest.
type Digest = [u8; 32];

/// What a machine was made from, as far as a checkpoint depends on it. Contents are there as digests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub abi_version: u32,
    pub memory_bytes: u64,
    pub layout: LayoutKind,
    pub layout_seed: [u8; 32],
    /// Of the input seed.
    pub input_seed: Digest,
    pub kernel: Digest,
    pub program: Digest,
    pub disks: Vec<DiskConfig>,
    pub cpuid: Digest,
    /// Bytes of the root image; 0 if there is none.
    pub image_bytes: u64,
}

/// Device, inode, length, seconds and nanoseconds of the last change: the same file, not changed.
type Stamp = [i64; 5];

/// The root image's file. Its digest is made when it is first needed: it costs a pass over the file.
#[derive(Debug)]
pub(crate) struct Image {
    pub file: Arc<File>,
    stamp: Stamp,
    digest: OnceLock<Digest>,
}

impl Identity {
    pub(crate) fn of(config: &MachineConfig, cpuid: &CpuId, image_bytes: u64) -> Self {
        let mut leaves = blake3::Hasher::new();
        for leaf in cpuid.as_slice() {
            for word in [
                leaf.function,
                leaf.index,
                leaf.flags,
                leaf.eax,
                leaf.ebx,
                leaf.ecx,
                leaf.edx,
            ] {
                leaves.update(&word.to_le_bytes());
            }
        }
        Self {
            abi_version: ABI_VERSION,
            memory_bytes: config.memory_bytes,
            layout: config.layout,
            layout_seed: config.layout_seed,
            input_seed: *blake3::hash(&config.input_seed).as_bytes(),
            kernel: *blake3::hash(&config.kernel).as_bytes(),
            program: program(&config.program),
            disks: config.disks.clone(),
            cpuid: *leaves.finalize().as_bytes(),
            image_bytes,
        }
    }

    /// Requires that both are the same.
    pub(crate) fn check(&self, here: &Self) -> Result<(), MachineError> {
        let same = |what, saved: &dyn Debug, here: &dyn Debug| {
            let (saved, here) = (format!("{saved:?}"), format!("{here:?}"));
            if saved == here {
                Ok(())
            } else {
                Err(MachineError::Identity { what, saved, here })
            }
        };
        let digest = |what, saved: &Digest, here: &Digest| same(what, &hex(saved), &hex(here));
        same(
            "guest interface version",
            &self.abi_version,
            &here.abi_version,
        )?;
        same("memory size", &self.memory_bytes, &here.memory_bytes)?;
        same("root image's size", &self.image_bytes, &here.image_bytes)?;
        digest("guest kernel", &self.kernel, &here.kernel)?;
        digest("program", &self.program, &here.program)?;
        same("list of disks", &self.disks, &here.disks)?;
        digest("CPUID", &self.cpuid, &here.cpuid)?;
        same("kind of layout", &self.layout, &here.layout)?;
        // Seeds are secrets: not shown.
        for (what, same) in [
            ("input seed", self.input_seed == here.input_seed),
            ("layout seed", self.layout_seed == here.layout_seed),
        ] {
            if !same {
                return Err(MachineError::Identity {
                    what,
                    saved: "one".into(),
                    here: "another".into(),
                });
            }
        }
        Ok(())
    }
}

impl Image {
    pub(crate) fn new(file: Arc<File>) -> io::Result<Self> {
        let stamp = stamp(&file)?;
        Ok(Self {
            file,
            stamp,
            digest: OnceLock::new(),
        })
    }

    /// Whether both have the same contents.
    pub(crate) fn same(&self, other: &Self) -> io::Result<bool> {
        Ok(self.stamp == other.stamp || self.digest()? == other.digest()?)
    }

    pub(crate) fn digest(&self) -> io::Result<Digest> {
        if let Some(digest) = self.digest.get() {
            return Ok(*digest);
        }
        // The replicas of a set have the same image, and each opens it for itself.
        static KNOWN: Mutex<Vec<(Stamp, Digest)>> = Mutex::new(Vec::new());
        const MOST_KNOWN: usize = 16;
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, digest)) = known.iter().find(|(stamp, _)| *stamp == self.stamp) {
            return Ok(*self.digest.get_or_init(|| *digest));
        }
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        loop {
            match self.file.read_at(&mut buffer, at) {
                Ok(0) => break,
                Ok(done) => {
                    hasher.update(&buffer[..done]);
                    at += done as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if known.len() == MOST_KNOWN {
            known.remove(0);
        }
        let digest = *hasher.finalize().as_bytes();
        known.push((self.stamp, digest));
        Ok(*self.digest.get_or_init(|| digest))
    }
}

fn stamp(file: &File) -> io::Result<Stamp> {
    let about = file.metadata()?;
    Ok([
        about.dev() as i64,
        about.ino() as i64,
        about.size() as i64,
        about.mtime(),
        about.mtime_nsec(),
    ])
}

fn program(program: &ProgramSpec) -> Digest {
    // Each string with its length in front: no two programs give the same bytes.
    let mut hasher = blake3::Hasher::new();
    let mut put = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for list in [&program.argv, &program.envp] {
        put(&(list.len() as u64).to_le_bytes());
        list.iter().for_each(|string| put(string.as_bytes()));
    }
    put(program.cwd.as_bytes());
    put(program.hostname.as_bytes());
    for id in [program.uid, program.gid].iter().chain(&program.groups) {
        put(&id.to_le_bytes());
    }
    for mount in &program.mounts {
        for string in [&mount.target, &mount.kind, &mount.source, &mount.options] {
            put(string.as_bytes());
        }
    }
    *hasher.finalize().as_bytes()
}

pub(crate) fn hex(digest: &Digest) -> String {
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
