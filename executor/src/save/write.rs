//! Saving a running set.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::SaveError;
use super::files::{self, Digesting, Stamp};
use super::manifest::{FORMAT, Manifest, NAME, SavedDisk, SavedReplica, SavedSet};
use crate::disks::Disks;
use crate::events::{End, Event};
use crate::shared::{Held, Shared};

/// What is known of a set when it starts.
pub struct Context {
    /// What goes into the manifest.
    pub set: SavedSet,
    /// The disks in the order of their numbers.
    pub disks: Vec<Original>,
    /// The gateway's port of the next connection.
    pub gateway_port: Box<dyn Fn() -> u16 + Send + Sync>,
    /// The same at work.
    pub at_work: Arc<Disks>,
}

/// A disk that is to be copied.
#[derive(Clone, Debug)]
pub struct Original {
    /// What the appliance calls it.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Whether it is only read, and therefore not copied.
    pub read_only: bool,
}

/// What was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Boundary at which all replicas stand.
    pub boundary: u64,
    /// Replicas saved.
    pub replicas: usize,
    /// Bytes of their files.
    pub bytes: u64,
    /// How long the set stood still.
    pub held: Duration,
}

/// Ends what was begun, however it ends.
struct Hold<'s> {
    shared: &'s Shared,
    disks: &'s Disks,
    set: bool,
}

impl Hold<'_> {
    fn let_set_go(&mut self) {
        if std::mem::take(&mut self.set) {
            self.shared.let_go();
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.disks.thaw();
        self.let_set_go();
    }
}

/// Saves the set to `target`; with `stop` the set ends with it, and nothing is released after what was saved.
///
/// # Errors
/// When the set has no majority, does not come to rest, or the directory cannot be written. The set goes on then, and what was in the
/// directory before is still there.
pub fn save(
    shared: &Shared,
    context: &Context,
    target: &Path,
    stop: bool,
) -> Result<Done, SaveError> {
    let result = try_save(shared, context, target, stop);
    match &result {
        Ok(done) => {
            let text = format!(
                "saved in {}: {} replicas at boundary {}, {} bytes, the set stood still for {} ms",
                target.display(),
                done.replicas,
                done.boundary,
                done.bytes,
                done.held.as_millis()
            );
            shared.tell(Event::Note { text });
        }
        Err(error) => shared.tell(Event::CheckpointFailed {
            replica: None,
            reason: error.to_string(),
        }),
    }
    result
}

fn try_save(
    shared: &Shared,
    context: &Context,
    target: &Path,
    stop: bool,
) -> Result<Done, SaveError> {
    if target.exists() && !target.join(NAME).is_file() {
        let mut entries = std::fs::read_dir(target)
            .map_err(|source| SaveError::io("cannot be looked at", target, source))?;
        if entries.next().is_some() {
            return Err(SaveError::Occupied(target.to_owned()));
        }
    }
    let unfinished = files::begin(target)
        .map_err(|source| SaveError::io("no directory can be made for it", target, source))?;
    let result = write(shared, context, target, &unfinished, stop);
    if result.is_err() {
        let _ = std::fs::remove_dir_all(&unfinished);
    }
    result
}

fn write(
    shared: &Shared,
    context: &Context,
    target: &Path,
    unfinished: &Path,
    stop: bool,
) -> Result<Done, SaveError> {
    let begun = Instant::now();
    let held = shared.hold().map_err(SaveError::NotNow)?;
    let mut hold = Hold {
        shared,
        disks: &context.at_work,
        set: true,
    };
    context
        .at_work
        .freeze()
        .map_err(|error| SaveError::NotNow(error.to_string()))?;
    if !stop {
        hold.let_set_go();
    }
    let stood_still = begun.elapsed();
    let disks = context.disks.iter().enumerate();
    let disks: Result<Vec<_>, _> = disks
        .map(|(number, disk)| copy(disk, number, unfinished, stop))
        .collect();
    let disks = disks?;
    if !stop {
        context.at_work.thaw();
    }
    let Held {
        boundary,
        monotonic_ns,
        wait_until_ns,
        positions,
        parts,
    } = held;
    let mut replicas = Vec::new();
    let mut bytes = 0;
    for (replica, write) in parts {
        let file = format!("replica-{replica}");
        let path = unfinished.join(&file);
        let io = |source| SaveError::io("cannot be written", &path, source);
        let mut to = Digesting::new(BufWriter::new(files::create(&path).map_err(io)?));
        write(&mut to).map_err(|text| {
            SaveError::io("cannot be written", &path, std::io::Error::other(text))
        })?;
        to.flush().map_err(io)?;
        let (to, digest, length) = to.end();
        to.get_ref().sync_all().map_err(io)?;
        bytes += length;
        replicas.push(SavedReplica {
            replica,
            file,
            bytes: length,
            digest: digest.to_hex().to_string(),
        });
    }
    let done = Done {
        boundary,
        replicas: replicas.len(),
        bytes,
        held: stood_still,
    };
    let manifest = Manifest {
        format: FORMAT,
        quorate: env!("CARGO_PKG_VERSION").to_owned(),
        set: context.set.clone(),
        boundary,
        monotonic_ns,
        wait_until_ns,
        stopped: stop,
        gateway_port: (context.gateway_port)(),
        replicas,
        positions,
        disks,
    };
    let path = unfinished.join(NAME);
    let io = |source| SaveError::io("cannot be written", &path, source);
    let text = manifest.encode().map_err(|error| io(error.into()))?;
    let mut file = files::create(&path).map_err(io)?;
    file.write_all(&text).map_err(io)?;
    file.sync_all().map_err(io)?;
    files::finish(unfinished, target)
        .map_err(|source| SaveError::io("cannot be put in its place", target, source))?;
    if stop {
        // Before it is let go: nothing more is released.
        shared.end(End::Stopped);
    }
    Ok(done)
}

fn copy(
    disk: &Original,
    number: usize,
    unfinished: &Path,
    stop: bool,
) -> Result<SavedDisk, SaveError> {
    let of = |source| SaveError::io("cannot be copied", &disk.path, source);
    let mut saved = SavedDisk {
        name: disk.name.clone(),
        path: std::path::absolute(&disk.path).map_err(of)?,
        bytes: disk.bytes,
        file: None,
        digest: String::new(),
        stamp: None,
    };
    if disk.read_only {
        return Ok(saved);
    }
    let name = format!("disk-{number}");
    let path = unfinished.join(&name);
    let to = |source| SaveError::io("cannot be written", &path, source);
    let from = std::fs::File::open(&disk.path).map_err(of)?;
    let copy = files::create(&path).map_err(to)?;
    files::copy(&from, &copy, disk.bytes).map_err(to)?;
    copy.sync_all().map_err(to)?;
    saved.digest = files::digest(&copy, disk.bytes)
        .map_err(to)?
        .to_hex()
        .to_string();
    saved.file = Some(name);
    if stop {
        saved.stamp = Stamp::of(&disk.path).map_err(of)?;
    }
    Ok(saved)
}
