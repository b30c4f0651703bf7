//! Starting from what was saved.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_devices::DiskPosition;
use quorate_images::{Appliance, Progress};
use quorate_vmm::Checkpoint;

use super::SaveError;
use super::files::{self, Digesting, Stamp};
use super::manifest::{Manifest, SavedDisk};
use crate::events::NoQuorum;
use crate::exit::{ExitCode, Failure};
use crate::launch::{Options, Plan};
use crate::store::lock;

/// A saved set.
#[derive(Clone, Debug)]
pub struct Saved {
    directory: PathBuf,
    manifest: Manifest,
}

/// What a plan needs to begin there.
#[derive(Clone, Debug)]
pub struct Resume {
    /// By replica; there is one at least.
    checkpoints: BTreeMap<usize, Checkpoint>,
    /// The guest's clock, ns since its start.
    pub monotonic_ns: u64,
    /// The gateway's port of the next connection.
    pub gateway_port: u16,
    /// Until when the guest wanted to sleep.
    pub wait_until_ns: u64,
    /// Where all replicas stand on the disks.
    pub positions: Vec<DiskPosition>,
}

impl Resume {
    /// The checkpoint that the replica begins from: its own, or another's if it had none, or was not there.
    pub fn checkpoint(&self, replica: usize) -> Option<&Checkpoint> {
        let others = self.checkpoints.len().max(1);
        self.checkpoints
            .get(&replica)
            .or_else(|| self.checkpoints.values().nth(replica % others))
    }

    /// Replicas of `replicas` that begin with another's state, and whose.
    pub fn copies(&self, replicas: usize) -> Vec<(usize, usize)> {
        let numbers: Vec<usize> = self.checkpoints.keys().copied().collect();
        (0..replicas)
            .filter(|replica| !numbers.contains(replica))
            .filter_map(|replica| Some((replica, *numbers.get(replica % numbers.len().max(1))?)))
            .collect()
    }
}

impl Saved {
    /// Reads what was saved in `directory`.
    ///
    /// # Errors
    /// When it is no saved set, or was damaged.
    pub fn open(directory: &Path) -> Result<Saved, SaveError> {
        Ok(Saved {
            directory: directory.to_owned(),
            manifest: Manifest::read(directory)?,
        })
    }

    /// What it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What the set was started with.
    pub fn options(&self) -> Options {
        let set = &self.manifest.set;
        let disks = self.manifest.disks.iter();
        Options {
            replicas: Some(set.replicas),
            layout: Some(set.layout),
            seed: Some(set.seed.clone()),
            publish: set.publish.clone(),
            memory: Some(set.memory_bytes),
            no_quorum: Some(match set.hold {
                true => NoQuorum::Hold,
                false => NoQuorum::Stop,
            }),
            recovery: Some(set.recovery),
            checkpoint_interval: Some(Duration::from_millis(set.checkpoint_interval_ms)),
            stop_grace: Some(Duration::from_millis(set.stop_grace_ms)),
            disks: disks.map(|d| (d.name.clone(), d.path.clone())).collect(),
            ..Options::default()
        }
    }

    /// Brings the disks to where they were, or sees that they are there: with `restore` the copies are put back.
    ///
    /// # Errors
    /// When a disk was changed since, or a copy is damaged.
    pub fn disks(&self, restore: bool) -> Result<(), SaveError> {
        for disk in &self.manifest.disks {
            let Some(file) = &disk.file else { continue };
            if restore {
                self.restore(disk, file)?;
            } else {
                self.unchanged(disk)?;
            }
        }
        Ok(())
    }

    fn unchanged(&self, disk: &SavedDisk) -> Result<(), SaveError> {
        let now = Stamp::of(&disk.path)
            .map_err(|source| SaveError::io("the disk is not there", &disk.path, source))?;
        if now.is_some() && now == disk.stamp {
            return Ok(());
        }
        let why = match (self.manifest.stopped, now) {
            (false, _) => "the set went on after it was saved",
            (true, None) => "nobody can tell whether a device was changed",
            (true, Some(_)) => "its file was changed since the set was saved",
        };
        Err(SaveError::Differs(format!(
            "disk {} ({}) cannot be used as it is: {why}; --restore-disks puts the copy in {} back, and what is on it now is lost",
            disk.name,
            disk.path.display(),
            self.directory.display()
        )))
    }

    fn restore(&self, disk: &SavedDisk, file: &str) -> Result<(), SaveError> {
        let copy = self.directory.join(file);
        let of_copy = |source| SaveError::io("cannot be read", &copy, source);
        let from = File::open(&copy).map_err(of_copy)?;
        let bytes = from.metadata().map_err(of_copy)?.len();
        if bytes != disk.bytes
            || files::digest(&from, disk.bytes)
                .map_err(of_copy)?
                .to_hex()
                .as_str()
                != disk.digest
        {
            return Err(SaveError::Damaged(copy));
        }
        let of_disk = |source| SaveError::io("cannot be written", &disk.path, source);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let to = options.open(&disk.path).map_err(of_disk)?;
        if !lock::acquire(&to, false).map_err(of_disk)? {
            return Err(SaveError::Differs(format!(
                "disk {} ({}) is in use by {}; stop that one first",
                disk.name,
                disk.path.display(),
                lock::holder(&to)
            )));
        }
        files::put_back(&from, &to, disk.bytes).map_err(of_disk)
    }

    fn checkpoints(&self) -> Result<BTreeMap<usize, Checkpoint>, SaveError> {
        let mut checkpoints = BTreeMap::new();
        for replica in &self.manifest.replicas {
            let path = self.directory.join(&replica.file);
            let io = |source| SaveError::io("cannot be read", &path, source);
            let file = File::open(&path).map_err(io)?;
            if file.metadata().map_err(io)?.len() != replica.bytes {
                return Err(SaveError::Damaged(path));
            }
            let mut hashing = Digesting::new(std::io::sink());
            std::io::copy(&mut BufReader::new(&file), &mut hashing).map_err(io)?;
            let (_, digest, _) = hashing.end();
            if digest.to_hex().as_str() != replica.digest {
                return Err(SaveError::Damaged(path));
            }
            let again = File::open(&path).map_err(io)?;
            let mut checkpoint = Checkpoint::read_from(&mut BufReader::new(again))
                .map_err(|error| SaveError::Differs(format!("{}: {error}", path.display())))?;
            // To the set that goes on from here it is the first boundary, and so it is called wherever it is recorded. Nobody else has it
            // yet, so this cannot fail.
            let _ = checkpoint.renumber(0);
            checkpoints.insert(replica.replica, checkpoint);
        }
        if checkpoints.is_empty() {
            return Err(SaveError::Damaged(self.directory.clone()));
        }
        Ok(checkpoints)
    }

    /// As [`Saved::plan`], on the copies of the disks instead of the disks: for who makes copies of them again, such as a
    /// [`crate::stage::Rig`]. Nothing is written to them here.
    ///
    /// # Errors
    /// As there.
    pub fn plan_of_copies(
        &self,
        adjust: impl FnOnce(&mut Options),
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<Plan, Failure> {
        let mut apart = self.clone();
        for disk in &mut apart.manifest.disks {
            if let Some(file) = disk.file.take() {
                disk.path = self.directory.join(file);
            }
        }
        apart.plan(adjust, false, progress)
    }

    /// Works out what to start, as [`Plan::new`] does. `adjust` changes options that may be changed.
    ///
    /// # Errors
    /// When a file is damaged, a disk was changed, or image or kernel are others.
    pub fn plan(
        &self,
        adjust: impl FnOnce(&mut Options),
        restore_disks: bool,
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<Plan, Failure> {
        let failed = |error: SaveError| Failure::new(ExitCode::Disk, error);
        let set = &self.manifest.set;
        let appliance = Appliance::parse(&set.appliance, &set.appliance_path)
            .map_err(|error| Failure::new(ExitCode::Appliance, error))?;
        // Before any disk is touched.
        let checkpoints = self.checkpoints().map_err(failed)?;
        self.disks(restore_disks).map_err(failed)?;
        let mut options = self.options();
        adjust(&mut options);
        let mut plan = Plan::new(&appliance, &options, progress)?;
        let same = |what: &str, saved: &str, here: blake3::Hash| {
            if here.to_hex().as_str() == saved {
                return Ok(());
            }
            let text = format!(
                "the {what} is not the one of the set that was saved: {saved} then, {here} now"
            );
            Err(Failure::new(ExitCode::Image, text))
        };
        same(
            "image",
            &set.image,
            blake3::Hash::from_bytes(plan.image.digest),
        )?;
        same(
            "guest kernel",
            &set.kernel,
            blake3::hash(&plan.machine.kernel),
        )?;
        plan.appliance = (set.appliance_path.clone(), set.appliance.clone());
        plan.set.start_ns = self.manifest.monotonic_ns;
        plan.resume = Some(Resume {
            checkpoints,
            monotonic_ns: self.manifest.monotonic_ns,
            gateway_port: self.manifest.gateway_port,
            wait_until_ns: self.manifest.wait_until_ns,
            positions: self.manifest.positions.clone(),
        });
        Ok(plan)
    }
}
