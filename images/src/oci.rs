//! Root file systems from OCI images: a layout directory, an archive of one, or what `docker save` writes. Nothing of an image is
//! believed before its digest has been checked.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::build::Progress;
use crate::error::BuildError;
use crate::tree::{Meta, Tree};

mod layer;
mod manifest;
mod store;
mod zstd;

pub(crate) use manifest::Process;

/// First bytes of gzip data (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// First bytes of a zstd frame (RFC 8878).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// An OCI image that was found.
pub(crate) struct Image {
    path: PathBuf,
    store: store::Store,
    found: manifest::Found,
}

impl Image {
    /// Opens the image for linux/amd64 at `path`, the one called `tag` if there are several.
    pub(crate) fn open(path: &Path, tag: Option<&str>) -> Result<Self, BuildError> {
        let store = match store::Store::open(path) {
            Ok(store) => store,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BuildError::io("read the OCI image", path)(error));
            }
            Err(error) => return Err(bad(path)(error.to_string())),
        };
        let found = manifest::find(&store, tag).map_err(bad(path))?;
        Ok(Self {
            path: path.to_owned(),
            store,
            found,
        })
    }

    /// Says which image it is: its id, which the digests of all its layers are in.
    pub(crate) fn id(&self) -> &str {
        &self.found.id
    }

    /// What it says of the program to run.
    pub(crate) fn process(&self) -> Process {
        self.found.config.config.clone().unwrap_or_default()
    }

    /// Unpacks its layers. Files are not later than `latest`; directories that no layer describes have the time `time`.
    pub(crate) fn unpack(
        &self,
        time: i64,
        latest: Option<i64>,
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<Tree, BuildError> {
        let mut tree = Tree::new(Meta::root(0o755, time));
        let total = self.found.layers.len();
        for (index, layer) in self.found.layers.iter().enumerate() {
            let short = layer.diff_id.get(..12).unwrap_or_default();
            progress(Progress::Unpacking {
                package: short,
                index: index + 1,
                total,
            });
            let name = &layer.name;
            let bad = |reason: String| bad(&self.path)(format!("{name}: {reason}"));
            let part = manifest::part(&self.store, name).map_err(crate::oci::bad(&self.path))?;
            let part = part.ok_or_else(|| bad("it is missing".to_owned()))?;
            let open = || part.reader().map_err(|error| bad(error.to_string()));
            if let Some(expected) = &layer.sha256 {
                let found = sha256(open()?).map_err(|error| bad(error.to_string()))?;
                if found != *expected {
                    return Err(bad(format!("it is damaged: its SHA-256 is {found}")));
                }
            }
            let origin = || format!("{}, {name}", self.path.display());
            layer::take_away(open()?, &layer.diff_id, &mut tree)
                .map_err(|error| error.into_build(origin(), bad))?;
            layer::put(open()?, &mut tree, latest)
                .map_err(|error| error.into_build(origin(), bad))?;
        }
        Ok(tree)
    }
}

fn bad(path: &Path) -> impl Fn(String) -> BuildError {
    let path = path.to_owned();
    move |reason| BuildError::Oci {
        path: path.clone(),
        reason,
    }
}

fn sha256(mut reader: impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            return Ok(manifest::hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}
