//! Programs of an appliance's image, run on the host.
//!
//! The comparisons need the very files that the guests run, without installing them on the host. So the appliance's
//! image is unpacked into a directory that its digest names, and a program is run through the dynamic loader of that
//! directory, with its libraries.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use quorate_abi::image::{ImageError, ImageView};
use quorate_images::{
    Appliance, ApplianceError, BuildError, BuildOptions, BuiltImage, default_cache_dir,
};

use crate::repository;

/// The appliance whose programs [`command`] runs.
const REDIS: &str = "images/appliances/redis.toml";
/// Program, then where its file is: `redis-server` is a link to `redis-check-rdb`, which looks at the name it is run by.
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Why the native programs cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// The appliance file.
    #[error(transparent)]
    Appliance(#[from] ApplianceError),
    /// The image cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The image is damaged.
    #[error("{}: {source}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        source: ImageError,
    },
    /// A file cannot be written or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image does not have the program.
    #[error("{}: there is no such program in the image", .0.display())]
    NoSuchProgram(PathBuf),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> NativeError {
    let path = path.to_owned();
    move |source| NativeError::Io { path, source }
}

/// A command that runs `program` of `/usr/bin` of Redis' image, for example `redis-cli`. The first call of a process builds
/// and unpacks the image if that was not done before.
///
/// # Errors
/// [`NativeError`].
pub fn command(program: &str) -> Result<Command, NativeError> {
    command_of(&root()?, &format!("/usr/bin/{program}"))
}

/// Makes a script in `directory` that runs `program` of Redis' image as [`command`] does, for shells and scripts: there may be none on
/// the host. The directory is made, too.
///
/// # Errors
/// [`NativeError`].
pub fn script(program: &str, directory: &Path) -> Result<PathBuf, NativeError> {
    let command = command(program)?;
    let quote = |word: &OsStr| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(quote)
        .collect();
    fs::create_dir_all(directory).map_err(io_error(directory))?;
    let path = directory.join(program);
    let text = format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" "));
    // Under another name until it is whole: tests run at once.
    let staging = directory.join(format!(".{program}.{}", std::process::id()));
    fs::write(&staging, text).map_err(io_error(&staging))?;
    fs::set_permissions(&staging, fs::Permissions::from_mode(0o755)).map_err(io_error(&staging))?;
    fs::rename(&staging, &path).map_err(io_error(&path))?;
    Ok(path)
}

/// The directory with Redis' unpacked image.
///
/// # Errors
/// [`NativeError`].
pub fn root() -> Result<PathBuf, NativeError> {
    root_of(&Appliance::load(repository().join(REDIS))?)
}

/// A command that runs the program at `path` of the image that is unpacked at `root`.
///
/// # Errors
/// [`NativeError::NoSuchProgram`].
pub fn command_of(root: &Path, path: &str) -> Result<Command, NativeError> {
    let program = root.join(path.trim_start_matches('/'));
    if !program.exists() {
        return Err(NativeError::NoSuchProgram(program));
    }
    let loader = root.join(LOADER);
    let mut command = if loader.exists() {
        let mut command = Command::new(loader);
        command
            .arg("--argv0")
            .arg(program.file_name().unwrap_or_default())
            .arg("--library-path")
            .arg(root.join(LIBRARIES))
            .arg(program);
        command
    } else {
        // Without a C library there is nothing but static programs.
        Command::new(program)
    };
    // The host's locale must not change what is printed.
    command.env("LC_ALL", "C");
    Ok(command)
}

/// The directory with the unpacked image of an appliance.
///
/// # Errors
/// [`NativeError`].
pub fn root_of(appliance: &Appliance) -> Result<PathBuf, NativeError> {
    static ROOTS: Mutex<BTreeMap<[u8; 32], PathBuf>> = Mutex::new(BTreeMap::new());
    let image = quorate_images::build(appliance, &BuildOptions::new(default_cache_dir()))?;
    // Held while it is unpacked: the threads of one process share a staging directory.
    let mut roots = ROOTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(root) = roots.get(&image.digest) {
        return Ok(root.clone());
    }
    let unpacked = unpack(&image, &repository().join("target/native"))?;
    roots.insert(image.digest, unpacked.clone());
    Ok(unpacked)
}

/// Unpacks the image into a directory of `parent` that its digest names, if it is not there yet.
fn unpack(image: &BuiltImage, parent: &Path) -> Result<PathBuf, NativeError> {
    let digest = blake3::Hash::from_bytes(image.digest).to_hex();
    let root = parent.join(&digest[..16]);
    if root.exists() {
        return Ok(root);
    }
    fs::create_dir_all(parent).map_err(io_error(parent))?;
    let staging = parent.join(format!("{}.{}", &digest[..16], std::process::id()));
    let bytes = fs::read(&image.path).map_err(io_error(&image.path))?;
    let damaged = |source| NativeError::Image {
        path: image.path.clone(),
        source,
    };
    let view = ImageView::parse(&bytes).map_err(damaged)?;
    fs::create_dir(&staging).map_err(io_error(&staging))?;
    unpack_directory(&view, view.root(), &staging, &damaged)?;
    // Another process may have been faster; its directory has the same files.
    match fs::rename(&staging, &root) {
        Ok(()) => {}
        Err(_) if root.exists() => {
            fs::remove_dir_all(&staging).map_err(io_error(&staging))?;
        }
        Err(error) => return Err(io_error(&root)(error)),
    }
    Ok(root)
}

fn unpack_directory(
    view: &ImageView<'_>,
    directory: u32,
    to: &Path,
    damaged: &dyn Fn(ImageError) -> NativeError,
) -> Result<(), NativeError> {
    let mut index = 0;
    while let Some((name, number)) = view.entry(directory, index).map_err(damaged)? {
        index += 1;
        let inode = view.inode(number).map_err(damaged)?;
        let path = to.join(String::from_utf8_lossy(name).as_ref());
        if inode.is_dir() {
            fs::create_dir(&path).map_err(io_error(&path))?;
            unpack_directory(view, number, &path, damaged)?;
        } else if inode.is_symlink() {
            let target = view.readlink(number).map_err(damaged)?;
            symlink(String::from_utf8_lossy(target).as_ref(), &path).map_err(io_error(&path))?;
        } else if inode.is_regular() {
            fs::write(&path, view.data(number).map_err(damaged)?).map_err(io_error(&path))?;
            // Without set-user-ID bits: nothing here is meant to have rights.
            let mode = fs::Permissions::from_mode(inode.mode & 0o777 | 0o400);
            fs::set_permissions(&path, mode).map_err(io_error(&path))?;
        }
        // Device nodes and pipes: no program that is run from here needs one.
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_programs_run_by_their_own_names() {
        for (program, says) in [
            ("redis-server", "Redis server v="),
            ("redis-cli", "redis-cli "),
            ("redis-benchmark", "redis-benchmark "),
        ] {
            let output = command(program).unwrap().arg("--version").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{program}: {output:?}");
            assert!(text.starts_with(says), "{program}: {text}");
        }
        assert!(matches!(
            command("no-such-program"),
            Err(NativeError::NoSuchProgram(_))
        ));
    }
}
