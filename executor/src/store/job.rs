//! What the state machine asks of the threads that do I/O.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::file::{Base, Io};
use super::versions::{BLOCK, SpillBatch};
use crate::sync::lock;

/// What a write puts where.
#[derive(Debug)]
pub struct Write {
    /// Number of the request.
    pub seq: u64,
    /// Bytes of the disk.
    pub range: Range<u64>,
    /// What goes there.
    pub content: Content,
}

/// What a write puts there.
#[derive(Debug)]
pub enum Content {
    /// These bytes, as many as the range has.
    Data(Vec<u8>),
    /// Zeroes; the space may be given back.
    Zero {
        /// Whether it may.
        unmap: bool,
    },
}

impl Write {
    /// What it is counted as while it is in memory.
    pub fn cost(&self) -> u64 {
        match &self.content {
            Content::Data(data) => data.len() as u64 + 256,
            Content::Zero { .. } => BLOCK,
        }
    }

    /// Puts it over a piece of the disk that starts at `start`.
    pub fn patch(&self, start: u64, piece: &mut [u8]) {
        let end = start + piece.len() as u64;
        let (from, to) = (self.range.start.max(start), self.range.end.min(end));
        if from >= to {
            return;
        }
        let target = &mut piece[(from - start) as usize..(to - start) as usize];
        match &self.content {
            Content::Zero { .. } => target.fill(0),
            Content::Data(data) => {
                let at = (from - self.range.start) as usize;
                target.copy_from_slice(&data[at..at + target.len()]);
            }
        }
    }
}

/// One piece of work. `token` names it when it is done.
#[derive(Debug)]
pub enum Job {
    /// Read from the base file.
    Read {
        /// Its name.
        token: u64,
        /// From where.
        offset: u64,
        /// How many bytes.
        len: usize,
    },
    /// Write data to the base file.
    Write {
        /// Its name.
        token: u64,
        /// What; its content is data.
        write: Arc<Write>,
    },
    /// Zeroes to the base file.
    Zero {
        /// Its name.
        token: u64,
        /// From where.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Whether the space may be given back.
        unmap: bool,
    },
    /// `fdatasync` of the base file.
    Sync {
        /// Its name.
        token: u64,
    },
    /// Old versions to the spill file.
    Spill {
        /// Its name.
        token: u64,
        /// Slots and what goes there.
        batch: SpillBatch,
    },
    /// Old versions from the spill file.
    Fetch {
        /// Its name.
        token: u64,
        /// Their slots.
        slots: Vec<u64>,
    },
    /// Tell the owner, from a thread that holds no lock of anybody.
    Tell(Tell),
}

/// What the owner is to be told.
#[derive(Debug, Default)]
pub struct Tell {
    /// Replicas for which something is complete.
    pub due: u32,
    /// The disk failed: why, and whether the set is to stop.
    pub failed: Option<(String, bool)>,
}

impl Tell {
    /// Whether there is nothing to be told.
    pub fn is_empty(&self) -> bool {
        self.due == 0 && self.failed.is_none()
    }
}

/// How a job ended.
#[derive(Debug)]
pub enum Outcome {
    /// What a read found.
    Read(io::Result<Vec<u8>>),
    /// A job without an answer.
    Done(io::Result<()>),
    /// What a fetch found.
    Fetched(io::Result<Vec<Vec<u8>>>),
}

/// Where jobs are done.
pub trait Engine: Send + Sync {
    /// Takes jobs; in any order, several at a time. Does not wait for any of them.
    fn start(&self, jobs: Vec<Job>);
    /// Does what it has taken, and ends its threads.
    fn stop(&self);
    /// Its name for people.
    fn name(&self) -> &'static str;
}

/// The file for old versions that are too many for memory: it has no name, and is gone when the process is, however it ends.
pub struct Spill {
    near: Option<std::path::PathBuf>,
    file: Mutex<Option<Arc<File>>>,
}

impl Spill {
    /// A file in the directory of `base`, if that takes one, else where temporary files go; made when it is needed.
    pub fn beside(base: &Base) -> Self {
        // What lies beside a device is memory.
        let is_file = base.file().metadata().is_ok_and(|m| m.is_file());
        let parent = base.path().parent().filter(|_| is_file);
        let near = parent.map(|parent| match parent.as_os_str() {
            empty if empty.is_empty() => Path::new(".").to_owned(),
            _ => parent.to_owned(),
        });
        Self {
            near,
            file: Mutex::new(None),
        }
    }

    /// The file.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn file(&self) -> io::Result<Arc<File>> {
        let mut slot = lock(&self.file);
        if let Some(file) = &*slot {
            return Ok(file.clone());
        }
        let near = self.near.as_ref().map(tempfile::tempfile_in);
        let file = Arc::new(match near {
            Some(Ok(file)) => file,
            _ => tempfile::tempfile()?,
        });
        *slot = Some(file.clone());
        Ok(file)
    }
}

/// Does one job here and now. [`Job::Tell`] is not for this.
pub fn run(base: &Base, spill: &Spill, job: &Job) -> Option<(u64, Outcome)> {
    Some(match job {
        Job::Read { token, offset, len } => {
            let mut buffer = vec![0; *len];
            let done = base.read(&mut buffer, *offset).map(|()| buffer);
            (*token, Outcome::Read(done))
        }
        Job::Write { token, write } => {
            let done = match &write.content {
                Content::Data(data) => base.write(data, write.range.start),
                Content::Zero { unmap } => {
                    let len = write.range.end - write.range.start;
                    base.zero(write.range.start, len, *unmap)
                }
            };
            (*token, Outcome::Done(done))
        }
        Job::Zero {
            token,
            offset,
            len,
            unmap,
        } => (*token, Outcome::Done(base.zero(*offset, *len, *unmap))),
        Job::Sync { token } => (*token, Outcome::Done(base.sync())),
        Job::Spill { token, batch } => {
            let done = base
                .fault(Io::Spill, 0, batch.len() * BLOCK as usize)
                .and_then(|_| spill.file())
                .and_then(|file| {
                    let mut blocks = batch.iter();
                    blocks.try_for_each(|(slot, data)| file.write_all_at(data, slot * BLOCK))
                });
            (*token, Outcome::Done(done))
        }
        Job::Fetch { token, slots } => {
            let done = spill.file().and_then(|file| {
                let blocks = slots.iter().map(|slot| {
                    let mut block = vec![0; BLOCK as usize];
                    // The disk's last block may be shorter, and so may be what was written.
                    read_up_to(&file, &mut block, slot * BLOCK)?;
                    Ok(block)
                });
                blocks.collect()
            });
            (*token, Outcome::Fetched(done))
        }
        Job::Tell(_) => return None,
    })
}

fn read_up_to(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
