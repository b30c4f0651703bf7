//! Disks for a machine that runs alone, from a recording: the files as they were, and what the machine writes itself kept in
//! memory. Nothing is ever written to the files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use quorate_devices::{BlockOp, BlockRequest, DiskReads, Output, SECTOR};

/// Bytes of one block, the unit in which writes are kept.
const BLOCK: u64 = 4096;
/// Bytes of a file that are copied at once.
const COPY_BYTES: usize = 1 << 20;
/// Most bytes of writes that are kept for all disks together; a replay that writes more ends with an error (R10).
pub const SCRATCH_BYTES: u64 = 1 << 30;

/// See the module.
#[derive(Debug, Default)]
pub struct Scratch {
    disks: Vec<ScratchDisk>,
    kept: u64,
}

/// An unlinked copy of a file, with holes for whatever is zero.
///
/// # Errors
/// Those of the file system.
pub fn copy(path: &Path) -> io::Result<File> {
    let (from, to) = (File::open(path)?, tempfile::tempfile()?);
    let len = from.metadata()?.len();
    to.set_len(len)?;
    let mut piece = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < len {
        let now = (len - at).min(COPY_BYTES as u64) as usize;
        from.read_exact_at(&mut piece[..now], at)?;
        for (number, block) in piece[..now].chunks(BLOCK as usize).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                to.write_all_at(block, at + number as u64 * BLOCK)?;
            }
        }
        at += now as u64;
    }
    Ok(to)
}

#[derive(Debug)]
struct ScratchDisk {
    base: Arc<File>,
    written: BTreeMap<u64, Box<[u8]>>,
    reads: BTreeMap<u64, Vec<u8>>,
}

impl Scratch {
    /// Disks over `bases`, in the order of their numbers.
    pub fn new(bases: impl IntoIterator<Item = Arc<File>>) -> Self {
        let disk = |base| ScratchDisk {
            base,
            written: BTreeMap::new(),
            reads: BTreeMap::new(),
        };
        Scratch {
            disks: bases.into_iter().map(disk).collect(),
            kept: 0,
        }
    }

    /// Carries out what the machine asks at a boundary, in its order: a read sees the writes before it.
    ///
    /// # Errors
    /// When a file cannot be read, or [`SCRATCH_BYTES`] do not suffice.
    pub fn submit(&mut self, outputs: &[Output]) -> Result<(), String> {
        for output in outputs {
            if let Output::Block(request) = output {
                self.carry_out(request)?;
            }
        }
        Ok(())
    }

    /// What is on a disk now, from byte `at` on: the file, with what the machine has written.
    ///
    /// # Errors
    /// When there is no such disk, or its file cannot be read.
    pub fn read_at(&self, number: usize, at: u64, data: &mut [u8]) -> Result<(), String> {
        match self.disks.get(number) {
            Some(disk) => disk.read(at, data),
            None => Err(format!("disk {number}: there is no such disk")),
        }
    }

    fn carry_out(&mut self, request: &BlockRequest) -> Result<(), String> {
        let number = request.disk;
        let failed = |error| format!("disk {number}: {error}");
        let disk = self
            .disks
            .get_mut(usize::from(number))
            .ok_or_else(|| failed("there is no such disk".to_owned()))?;
        match &request.op {
            BlockOp::Read { sector, bytes } => {
                let mut data = vec![0; *bytes as usize];
                disk.read(sector * SECTOR, &mut data).map_err(failed)?;
                disk.reads.insert(request.seq, data);
            }
            BlockOp::Write { sector, data } => {
                let bytes = |from: u64, to: &mut [u8]| {
                    let from = from as usize;
                    to.copy_from_slice(&data[from..from + to.len()]);
                };
                self.kept += disk
                    .write(sector * SECTOR, data.len() as u64, &bytes)
                    .map_err(failed)?;
            }
            BlockOp::Discard { sector, sectors }
            | BlockOp::WriteZeroes {
                sector, sectors, ..
            } => {
                let zeroes = |_, to: &mut [u8]| to.fill(0);
                self.kept += disk
                    .write(sector * SECTOR, u64::from(*sectors) * SECTOR, &zeroes)
                    .map_err(failed)?;
            }
            BlockOp::Flush => {}
        }
        if self.kept > SCRATCH_BYTES {
            return Err(failed(format!(
                "a replay keeps at most {SCRATCH_BYTES} bytes of writes"
            )));
        }
        Ok(())
    }
}

impl ScratchDisk {
    fn read(&self, at: u64, data: &mut [u8]) -> Result<(), String> {
        self.base
            .read_exact_at(data, at)
            .map_err(|error| error.to_string())?;
        let end = at + data.len() as u64;
        for (block, bytes) in self.written.range(at / BLOCK..end.div_ceil(BLOCK)) {
            let start = block * BLOCK;
            let (from, to) = (at.max(start), end.min(start + BLOCK));
            data[(from - at) as usize..(to - at) as usize]
                .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }

    /// `fill(offset, place)` gives the bytes; returns how many bytes are kept newly.
    fn write(&mut self, at: u64, len: u64, fill: &dyn Fn(u64, &mut [u8])) -> Result<u64, String> {
        let (end, mut kept) = (at + len, 0);
        for block in at / BLOCK..end.div_ceil(BLOCK) {
            let start = block * BLOCK;
            if !self.written.contains_key(&block) {
                let mut old = vec![0; BLOCK as usize];
                // The last block of a disk that is no multiple of it is short.
                let size = self
                    .base
                    .metadata()
                    .map_err(|error| error.to_string())?
                    .len();
                let there = size.saturating_sub(start).min(BLOCK) as usize;
                self.base
                    .read_exact_at(&mut old[..there], start)
                    .map_err(|error| error.to_string())?;
                self.written.insert(block, old.into_boxed_slice());
                kept += BLOCK;
            }
            let (from, to) = (at.max(start), end.min(start + BLOCK));
            if let Some(bytes) = self.written.get_mut(&block) {
                let place = &mut bytes[(from - start) as usize..(to - start) as usize];
                fill(from - at, place);
            }
        }
        Ok(kept)
    }
}

impl DiskReads for Scratch {
    fn take(&mut self, disk: u8, seq: u64) -> Result<Vec<u8>, String> {
        self.disks
            .get_mut(usize::from(disk))
            .and_then(|disk| disk.reads.remove(&seq))
            .ok_or_else(|| {
                format!(
                    "the recording completes read {seq} of disk {disk}, which was not asked for"
                )
            })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn ask(scratch: &mut Scratch, seq: u64, op: BlockOp) {
        let request = BlockRequest { disk: 0, seq, op };
        scratch.submit(&[Output::Block(request)]).unwrap();
    }

    #[test]
    fn reads_see_the_file_and_own_writes_and_the_file_stays_as_it_was() {
        let file = tempfile::tempfile().unwrap();
        let before: Vec<u8> = (0..20 * 512u32).map(|i| (i / 512) as u8).collect();
        file.write_all_at(&before, 0).unwrap();
        let file = Arc::new(file);
        let mut scratch = Scratch::new([Arc::clone(&file)]);
        let write = |sector, data: Vec<u8>| BlockOp::Write { sector, data };
        ask(&mut scratch, 0, write(7, vec![0xaa; 1024]));
        ask(
            &mut scratch,
            1,
            BlockOp::Read {
                sector: 6,
                bytes: 2048,
            },
        );
        ask(
            &mut scratch,
            2,
            BlockOp::Discard {
                sector: 8,
                sectors: 12,
            },
        );
        ask(
            &mut scratch,
            3,
            BlockOp::Read {
                sector: 0,
                bytes: 20 * 512,
            },
        );
        let first = scratch.take(0, 1).unwrap();
        let expected = [vec![6; 512], vec![0xaa; 1024], vec![9; 512]].concat();
        assert_eq!(first, expected);
        let second = scratch.take(0, 3).unwrap();
        assert_eq!(second[..7 * 512], before[..7 * 512]);
        assert_eq!(second[7 * 512..8 * 512], [0xaa; 512]);
        assert!(second[8 * 512..].iter().all(|byte| *byte == 0));
        assert!(scratch.take(0, 3).is_err(), "a read is taken once");
        let mut after = vec![0; before.len()];
        file.read_exact_at(&mut after, 0).unwrap();
        assert_eq!(after, before);
    }
}
