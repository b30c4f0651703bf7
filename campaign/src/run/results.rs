//! `trials.jsonl`: one trial per line, appended as they end.
//!
//! A line is the record's JSON with one more key at its end, `"sum"`: the first 16 hexadecimal digits of the BLAKE3 digest of the JSON
//! without it. A process that is killed leaves at most a last line without its end, as each line is written by one call; that torn
//! tail is dropped when the file is opened again. Everything else that is wrong is damage, and an error that names the line.
//!
//! After a crash of the host, lines of the last [`SYNC_EVERY`] may be missing, too; those trials are simply done again.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::model::TrialRecord;

/// Name of the file in a campaign's directory.
pub const FILE: &str = "trials.jsonl";

/// At least so often what was written is put on the disk for good.
pub const SYNC_EVERY: Duration = Duration::from_secs(2);

/// Longest line that is read; no record comes near it (R10).
pub const MAX_LINE: u64 = 1 << 20;

/// What is wrong with a file of trials.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The host.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line that is not what was written.
    #[error("{}:{line}: {what}; the results are damaged: put back a copy, or begin anew in another directory", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// Somebody else writes it.
    #[error("{} is being written by another run of the campaign; wait for it, or stop it", .0.display())]
    Locked(PathBuf),
}

/// The line of a record, with its end.
#[must_use]
pub fn line(record: &TrialRecord) -> String {
    // Strings, numbers and string keys: nothing that can fail.
    let mut text = serde_json::to_string(record).unwrap_or_default();
    let sum = sum(&text);
    text.pop();
    text.push_str(&format!(",\"sum\":\"{sum}\"}}\n"));
    text
}

fn sum(json: &str) -> String {
    let mut hex = blake3::hash(json.as_bytes()).to_hex().to_string();
    hex.truncate(16);
    hex
}

/// The record of a line without its end.
fn parse(line: &str) -> Result<TrialRecord, String> {
    let split = line
        .len()
        .checked_sub(",\"sum\":\"0123456789abcdef\"}".len());
    let (body, tail) = split
        .and_then(|at| line.split_at_checked(at))
        .ok_or("it is too short for a trial")?;
    let stated = tail
        .strip_prefix(",\"sum\":\"")
        .and_then(|rest| rest.strip_suffix("\"}"))
        .ok_or("it does not end with a checksum")?;
    let json = format!("{body}}}");
    if sum(&json) != stated {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_str(&json)
        .map_err(|error| format!("it is no trial that this version knows: {error}"))
}

/// Reads the trials of a file one after the other. Each (draw, N) may come once only.
pub struct Reader {
    path: PathBuf,
    lines: BufReader<File>,
    line: u64,
    position: u64,
    torn: bool,
    seen: HashSet<(u64, u8)>,
}

impl Reader {
    /// Opens the file.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, ResultsError> {
        let file = File::open(path).map_err(|source| ResultsError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(Reader::new(path, file))
    }

    fn new(path: &Path, file: File) -> Self {
        Reader {
            path: path.to_owned(),
            lines: BufReader::with_capacity(1 << 18, file),
            line: 0,
            position: 0,
            torn: false,
            seen: HashSet::new(),
        }
    }

    /// Bytes from the beginning of the file to the end of the last whole line that was read.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The file ended with a line without its end.
    #[must_use]
    pub fn torn(&self) -> bool {
        self.torn
    }

    /// What was read so far.
    #[must_use]
    pub fn into_seen(self) -> HashSet<(u64, u8)> {
        self.seen
    }

    fn one(&mut self) -> Result<Option<TrialRecord>, ResultsError> {
        let mut bytes = Vec::new();
        let read = (&mut self.lines)
            .take(MAX_LINE)
            .read_until(b'\n', &mut bytes);
        let read = read.map_err(|source| ResultsError::Io {
            path: self.path.clone(),
            source,
        })?;
        if read == 0 {
            return Ok(None);
        }
        self.line += 1;
        let damaged = |what: String| ResultsError::Damaged {
            path: self.path.clone(),
            line: self.line,
            what,
        };
        if bytes.pop() != Some(b'\n') {
            if read as u64 == MAX_LINE {
                return Err(damaged(format!("it is longer than {MAX_LINE} bytes")));
            }
            self.torn = true;
            return Ok(None);
        }
        let text = std::str::from_utf8(&bytes).map_err(|error| damaged(error.to_string()))?;
        let record = parse(text).map_err(damaged)?;
        if !self.seen.insert((record.drawn.draw, record.replicas)) {
            return Err(damaged(format!(
                "draw {} with {} replicas is there for the second time",
                record.drawn.draw, record.replicas
            )));
        }
        self.position += read as u64;
        Ok(Some(record))
    }
}

impl Iterator for Reader {
    type Item = Result<TrialRecord, ResultsError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.one().transpose()
    }
}

/// Appends trials to a file.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    synced: Instant,
    dirty: bool,
}

impl Writer {
    /// Opens or makes the file, drops a torn tail, calls `each` with the trials that are in it, and returns which these are. The file
    /// is locked against a second writer as long as this one lives.
    ///
    /// # Errors
    /// If the file is damaged or locked, or the host refuses.
    pub fn open(
        path: &Path,
        mut each: impl FnMut(TrialRecord),
    ) -> Result<(Self, HashSet<(u64, u8)>), ResultsError> {
        let fail = |source| ResultsError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(fail)?;
        // The lock goes with the open file, so a killed process leaves none.
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
            |error| match error {
                rustix::io::Errno::WOULDBLOCK => ResultsError::Locked(path.to_owned()),
                other => fail(other.into()),
            },
        )?;
        let mut reader = Reader::new(path, file.try_clone().map_err(fail)?);
        while let Some(record) = reader.one()? {
            each(record);
        }
        let end = reader.position();
        if reader.torn() {
            tracing::info!("{}: a torn last line is dropped", path.display());
            file.set_len(end).map_err(fail)?;
        }
        file.seek(SeekFrom::Start(end)).map_err(fail)?;
        let writer = Writer {
            path: path.to_owned(),
            file,
            synced: Instant::now(),
            dirty: false,
        };
        Ok((writer, reader.into_seen()))
    }

    /// Appends a trial.
    ///
    /// # Errors
    /// If the host refuses; what was written of the line is a torn tail then.
    pub fn append(&mut self, record: &TrialRecord) -> Result<(), ResultsError> {
        let written = self.file.write_all(line(record).as_bytes());
        self.done(written)?;
        self.dirty = true;
        if self.synced.elapsed() >= SYNC_EVERY {
            self.sync()?;
        }
        Ok(())
    }

    /// Puts everything on the disk for good.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn sync(&mut self) -> Result<(), ResultsError> {
        if self.dirty {
            let synced = self.file.sync_data();
            self.done(synced)?;
            self.dirty = false;
        }
        self.synced = Instant::now();
        Ok(())
    }

    fn done(&self, result: io::Result<()>) -> Result<(), ResultsError> {
        result.map_err(|source| ResultsError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

/// A record without what is never the same in two runs: real times.
#[must_use]
pub fn timeless(mut record: TrialRecord) -> TrialRecord {
    record.timing = Default::default();
    if let Some(detected) = &mut record.detected {
        detected.micros = 0;
    }
    if let Some(recovered) = &mut record.recovered {
        recovered.micros = 0;
    }
    record
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::synthetic::record;
    use super::*;

    fn write(path: &Path, draws: std::ops::Range<u64>) {
        let (mut writer, _) = Writer::open(path, |_| ()).unwrap();
        for draw in draws {
            writer.append(&record(draw, 3)).unwrap();
        }
        writer.sync().unwrap();
    }

    fn read(path: &Path) -> Result<Vec<TrialRecord>, ResultsError> {
        Reader::open(path)?.collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        write(&path, 0..10);
        write(&path, 10..12);
        let records = read(&path).unwrap();
        assert_eq!(
            records,
            (0..12).map(|draw| record(draw, 3)).collect::<Vec<_>>()
        );
        // Any JSON reader can make something of a line.
        let text = std::fs::read_to_string(&path).unwrap();
        let value: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(value["draw"], 0);
        assert_eq!(value["sum"].as_str().unwrap().len(), 16);
    }

    /// A file that ends anywhere is read up to its last whole line, and written on from there.
    #[test]
    fn a_torn_tail_is_dropped_wherever_it_is_torn() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        write(&path, 0..3);
        let whole = std::fs::read(&path).unwrap();
        let ends: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] == b'\n').collect();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let complete = ends.iter().filter(|&&end| end < length).count() as u64;
            let (mut writer, seen) = Writer::open(&path, |_| ()).unwrap();
            assert_eq!(seen.len() as u64, complete, "{length} bytes");
            (complete..3).for_each(|draw| writer.append(&record(draw, 3)).unwrap());
            drop(writer);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{length} bytes");
        }
    }

    /// Every other change is found, and the line is named.
    #[test]
    fn damage_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        write(&path, 0..3);
        let whole = std::fs::read(&path).unwrap();
        let last = whole.len() - 1;
        for at in 0..last {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let error = read(&path)
                .expect_err("a changed byte is found")
                .to_string();
            let number = 1 + whole[..at].iter().filter(|&&byte| byte == b'\n').count();
            assert!(
                error.contains(&format!("{FILE}:{number}: ")),
                "byte {at}: {error}"
            );
        }
        std::fs::write(&path, [&whole[..], &whole[..]].concat()).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(
            error.contains(":4: draw 0 with 3 replicas is there for the second time"),
            "{error}"
        );
    }

    #[test]
    fn two_writers_are_one_too_many() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let (first, _) = Writer::open(&path, |_| ()).unwrap();
        assert!(matches!(
            Writer::open(&path, |_| ()),
            Err(ResultsError::Locked(_))
        ));
        drop(first);
        assert!(Writer::open(&path, |_| ()).is_ok());
    }
}
