//! The files that web servers serve in tests: 1,000 of 0 B to 100 MB, with the same contents in every run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::random::Random;
use crate::{Error, repository};

/// How many there are.
pub const COUNT: usize = 1000;
/// The largest one, bytes.
pub const LARGEST: usize = 100_000_000;
/// The large ones besides, and how many.
const LARGE: (usize, usize) = (10_000_000, 6);
/// All others are up to this large, most of them much smaller: their sizes are spread evenly over the orders of magnitude.
const SMALL_MAX: usize = 1 << 20;
/// Sizes at which something changes: nothing, one byte, segments of TCP, pages, buffers of servers and of the gateway.
const EDGES: &[usize] = &[
    0, 0, 1, 2, 1447, 1448, 1449, 1459, 1460, 1461, 2920, 4095, 4096, 4097, 8191, 8192, 8193,
    16_383, 16_384, 16_385, 32_767, 32_768, 32_769, 65_535, 65_536, 65_537, 131_071, 131_072,
    131_073, 262_143, 262_144, 262_145, 1_048_575, 1_048_576, 1_048_577, 2_097_153, 4_194_305,
];
/// Every so many lie in a directory of their own.
const IN_DIRECTORY: usize = 10;
/// Which of them is the page that `/` shows.
const INDEX: usize = 101;
/// That directory.
const DIRECTORY: &str = "more";
/// Time of the files, seconds since 1970: that of files which come from the host into an image.
const MODIFIED: i64 = 1_767_225_600;
/// Raised when the same names would get other contents.
const GENERATION: u32 = 1;

/// One file.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its name, which is its path on the server too.
    pub name: String,
    /// Where it is on the host.
    pub path: PathBuf,
    /// Its length, bytes.
    pub length: usize,
}

/// The directory with all of them.
pub struct Documents {
    /// Where they are.
    pub directory: PathBuf,
    /// All that are compared, in the order of their names.
    pub all: Vec<Document>,
    /// All that are there.
    every: Vec<Document>,
}

impl Documents {
    /// Those of `target/documents-…`, which are made if they are not there yet. Their time is that of files in images.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn make() -> Result<Documents, Error> {
        let directory = repository().join(format!("target/documents-{GENERATION}"));
        let all = plan(&directory);
        let total: usize = all.iter().map(|document| document.length).sum();
        let complete = directory.join("complete");
        if !complete.exists() {
            let failed = |source| Error::Io {
                what: format!("{total} bytes of files in {}", directory.display()),
                source,
            };
            fs::create_dir_all(directory.join(DIRECTORY)).map_err(failed)?;
            for document in &all {
                write(document).map_err(failed)?;
            }
            File::create(&complete).map_err(failed)?;
        }
        let every = all.clone();
        let mut all = all;
        // In the SVM lane: all sizes at which something changes, and some of the others (`crate::shortened`).
        let others = crate::shortened(COUNT, 20);
        if others < COUNT {
            let edges = 1 + LARGE.1 + EDGES.len();
            all.truncate((edges + others).max(INDEX + 1));
            all.retain(|document| document.length < LARGE.0);
        }
        let total: usize = all.iter().map(|document| document.length).sum();
        println!(
            "  {} files, {total} bytes, in {}",
            all.len(),
            directory.display()
        );
        Ok(Documents {
            directory,
            all,
            every,
        })
    }

    /// The first one that is at least `length` bytes long.
    ///
    /// # Errors
    /// When there is none.
    pub fn at_least(&self, length: usize) -> Result<&Document, Error> {
        self.every
            .iter()
            .filter(|document| document.length >= length)
            .min_by_key(|document| document.length)
            .ok_or_else(|| Error::Unexpected(format!("no document of {length} bytes")))
    }
}

fn plan(directory: &Path) -> Vec<Document> {
    const TYPES: &[&str] = &["bin", "html", "txt", "css", "js", "json", "svg", "png"];
    let mut random = Random::new(0x00d0_c5ee_d000 + u64::from(GENERATION));
    let mut sizes = vec![LARGEST];
    sizes.extend([LARGE.0; LARGE.1]);
    sizes.extend_from_slice(EDGES);
    while sizes.len() < COUNT {
        let magnitude = random.below(SMALL_MAX.ilog2() as usize);
        sizes.push((1 << magnitude) + random.below(1 << magnitude));
    }
    sizes
        .into_iter()
        .enumerate()
        .map(|(number, length)| {
            let extension = TYPES[number % TYPES.len()];
            let name = match number % IN_DIRECTORY {
                _ if number == INDEX => "index.html".to_owned(),
                0 => format!("{DIRECTORY}/{number:04}.{extension}"),
                _ => format!("{number:04}.{extension}"),
            };
            Document {
                path: directory.join(&name),
                name,
                length,
            }
        })
        .collect()
}

fn write(document: &Document) -> std::io::Result<()> {
    let seed = document.name.bytes().fold(7, |seed: u64, byte| {
        seed.wrapping_mul(257) + u64::from(byte)
    });
    fs::write(&document.path, Random::new(seed).bytes(document.length))?;
    let modified = Duration::from_secs(MODIFIED.unsigned_abs());
    File::options()
        .write(true)
        .open(&document.path)?
        .set_modified(SystemTime::UNIX_EPOCH + modified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_go_from_nothing_to_100_megabytes_and_stay_below_400() {
        let all = plan(Path::new("/x"));
        assert_eq!(all.len(), COUNT);
        assert!(all.iter().any(|document| document.length == 0));
        assert_eq!(
            all.iter().map(|document| document.length).max(),
            Some(LARGEST)
        );
        assert!(all.iter().map(|document| document.length).sum::<usize>() < 400_000_000);
        let appliance = "version = 1\nname = \"x\"\n[image]\ndirectory = \"x\"\n[program]\ncommand = [\"/x\"]\n";
        let appliance = quorate_images::Appliance::parse(appliance, Path::new("x.toml"));
        assert_eq!(
            appliance.map(|appliance| appliance.epoch()).ok(),
            Some(MODIFIED)
        );
        let mut names: Vec<_> = all.iter().map(|document| &document.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), COUNT);
    }
}
