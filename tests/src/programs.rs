//! The programs of `tests/guest-programs`: static Linux programs, built when they are first asked for.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use crate::process::run;
use crate::{Error, repository};

/// How long building them may take.
const BUILD: Duration = Duration::from_secs(600);

/// Directory of the programs.
///
/// # Errors
/// When they cannot be built.
pub fn directory() -> Result<PathBuf, Error> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(built) = &*built {
        return Ok(built.clone());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| repository().join("target"), PathBuf::from)
        .join("guest-programs");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(repository().join("tests/guest-programs"))
        .args(["build", "--release", "--locked", "--target-dir"])
        .arg(&target)
        // They would replace the crate's own, which make the binaries static.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let ended = run(cargo, BUILD)?;
    if ended.code != 0 {
        return Err(Error::Unexpected(format!(
            "the guest programs cannot be built: {}",
            ended.stderr
        )));
    }
    let directory = target.join("x86_64-unknown-linux-gnu/release");
    Ok(built.insert(directory).clone())
}

/// One of them.
///
/// # Errors
/// When it cannot be built.
pub fn path(name: &str) -> Result<PathBuf, Error> {
    Ok(directory()?.join(name))
}

/// The text of an appliance that runs `words`, a program of these and its arguments, with `more` at the end: tables such as
/// `[[disk]]`. The machine has `memory`; the image is made of what `image` holds, to which the program is added.
///
/// # Errors
/// When the program cannot be built, or `image` cannot be written.
pub fn appliance(words: &[&str], memory: &str, image: &Path, more: &str) -> Result<String, Error> {
    let bin = image.join("bin");
    let copied = std::fs::create_dir_all(&bin)
        .and_then(|()| std::fs::create_dir_all(image.join("tmp")))
        .and_then(|()| {
            let from = path(words[0]).map_err(std::io::Error::other)?;
            std::fs::copy(from, bin.join(words[0]))
        });
    copied.map_err(|source| Error::Io {
        what: format!("the image {}", image.display()),
        source,
    })?;
    let program = format!("/bin/{}", words[0]);
    let command: Vec<&str> = std::iter::once(program.as_str())
        .chain(words[1..].iter().copied())
        .collect();
    Ok(format!(
        "version = 1\nname = \"guest-{}\"\n[image]\ndirectory = {:?}\n[program]\ncommand = {command:?}\n\
         [machine]\nmemory = \"{memory}\"\nlayout = \"random\"\n{more}",
        words[0],
        image.display().to_string(),
    ))
}
