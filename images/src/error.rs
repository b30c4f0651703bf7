//! Errors of loading and building appliances.

use std::io;
use std::path::PathBuf;

use crate::tree::TreeError;
use crate::verify::ImageFileError;

/// Why an appliance file is refused. Parse errors read `redis.toml:7: unknown key "comand" in [program]; expected one of …`.
#[derive(Debug, thiserror::Error)]
pub enum ApplianceError {
    /// The file cannot be read.
    #[error("{}: cannot read the appliance: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file says something that it may not.
    #[error("{}:{line}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong, with the key and table it is about.
        message: String,
    },
}

/// Why an image cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file or directory cannot be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path cannot be put into the image.
    #[error("{origin}: {source}")]
    Tree {
        /// Package or directory that it comes from.
        origin: String,
        /// Why.
        source: TreeError,
    },
    /// A socket or device in a directory that an image is made from.
    #[error("{}: neither file, directory nor symbolic link: it cannot go into an image", .0.display())]
    SpecialFile(PathBuf),
    /// `apt-get` is not there.
    #[error(
        "apt-get was not found: an image from Debian packages needs a Debian or Ubuntu machine; use `directory` or `file` in [image] instead"
    )]
    NoApt,
    /// `apt-get` failed.
    #[error("apt-get could not {action}: {output}")]
    Apt {
        /// What was tried.
        action: &'static str,
        /// The end of what it wrote.
        output: String,
    },
    /// `apt-get` wrote what is not understood.
    #[error("apt-get wrote a line that is not understood: {0}")]
    AptOutput(String),
    /// A package is not what the package lists say.
    #[error("{}: SHA-256 is {found}, the package list says {expected}; remove the file and build again", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// Digest in the package list.
        expected: String,
        /// Digest of the file.
        found: String,
    },
    /// The lock file beside the appliance is malformed, or for other packages.
    #[error("{}: not a lock file for the packages of [image]; `quorate build --update` writes a new one", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
    },
    /// A package of the lock file cannot be downloaded any more.
    #[error(
        "{package} {version} of the lock file could not be downloaded, neither from {uri} nor from snapshot.debian.org; `quorate build --update` takes the versions of today. apt said: {output}"
    )]
    Gone {
        /// The package.
        package: String,
        /// Its version.
        version: String,
        /// Where it was.
        uri: String,
        /// The end of what apt-helper wrote.
        output: String,
    },
    /// The host lacks what programs are compiled with.
    #[error(
        "sources of [image] are compiled on this machine, and what that needs is missing: apt-get install {packages}"
    )]
    NoCompiler {
        /// Debian's packages that have it.
        packages: String,
    },
    /// A program cannot be compiled.
    #[error("source package {what}: {reason}")]
    Compile {
        /// The source package.
        what: String,
        /// Which step failed and what it wrote.
        reason: String,
    },
    /// A package file is malformed.
    #[error("{}: not a package that can be unpacked: {reason}", path.display())]
    Package {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An OCI image is malformed, or is not for this machine.
    #[error("{}: not an OCI image that can be used: {reason}", path.display())]
    Oci {
        /// The layout or archive.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The image is over its bound (R10).
    #[error("the image would have at least {0} bytes; {max} are the most, whatever the memory of the machine: put large data onto a [[disk]], for example with `seed`", max = crate::MAX_IMAGE_LEN)]
    TooLarge(u64),
    /// The program to run is not in the image.
    #[error("{program}: the program of [program] command is not an executable file of the image")]
    NoProgram {
        /// Its path.
        program: String,
    },
    /// What to run cannot be settled.
    #[error("[program]: {reason}")]
    Program {
        /// What is wrong.
        reason: String,
    },
    /// The host has no tool for ext4.
    #[error("`{0}` was not found: install the package e2fsprogs (scripts/setup does)")]
    NoTool(&'static str),
    /// The host's tool failed.
    #[error("{tool} could not make the root file system: {output}")]
    Tool {
        /// The program.
        tool: &'static str,
        /// The end of what it wrote.
        output: String,
    },
    /// The kernel's package has not what is needed.
    #[error("the kernel of [linux]: {0}")]
    Kernel(String),
    /// The image file is bad.
    #[error(transparent)]
    Image(#[from] ImageFileError),
}

impl BuildError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
