//! What single values of an appliance file may be. Each function is a serde `deserialize_with`, so that the TOML parser knows
//! the line that an error is about.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use quorate_abi::boot::MAX_STRINGS;
use quorate_abi::map::{MAX_RAM, MIN_RAM};
use quorate_abi::{PAGE_SIZE, image};
use serde::Deserialize;
use serde::de::Deserializer;

use super::{APPLIANCE_VERSION, Appliance, MAX_FILE, MAX_KEEP, MAX_REPLICAS, checked};
use crate::size;

/// Longest name of an appliance or host (Linux's limit for a host name is 64 with its terminator).
const MAX_NAME: usize = 63;

/// Bytes of each packed string beyond its text: the terminator.
const TERMINATOR: usize = 1;

pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("longer than {MAX_FILE} bytes"),
        ));
    }
    Ok(text)
}

pub(super) fn version<'de, D: Deserializer<'de>>(d: D) -> Result<i64, D::Error> {
    checked(d, |version: i64| {
        if version == APPLIANCE_VERSION {
            Ok(version)
        } else {
            Err(format!(
                "this program reads version {APPLIANCE_VERSION} of appliance files, not {version}"
            ))
        }
    })
}

fn is_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.len() <= MAX_NAME
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(inner)
}

pub(super) fn name_or_why(text: String) -> Result<String, String> {
    if is_name(&text) {
        Ok(text)
    } else {
        Err(format!(
            "`{text}` is not a name: use 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`, a letter or digit first"
        ))
    }
}

pub(super) fn name<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    checked(d, name_or_why)
}

pub(super) fn hostname<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    checked(d, |text| name_or_why(text).map(Some))
}

fn no_nul(text: &str) -> Result<(), String> {
    if text.contains('\0') {
        return Err("a NUL character is not possible here".to_owned());
    }
    Ok(())
}

pub(super) fn absolute_or_why(path: &str) -> Result<(), String> {
    no_nul(path)?;
    if !path.starts_with('/') {
        return Err(format!(
            "`{path}` is not an absolute path: it must start with `/`"
        ));
    }
    let bad = |part: &str| part == ".." || part.len() > image::MAX_NAME;
    if path.len() > image::MAX_TARGET || path.split('/').any(bad) {
        return Err(format!("`{path}` has a `..` in it or is too long a path"));
    }
    Ok(())
}

pub(super) fn absolute<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    checked(d, |path: String| absolute_or_why(&path).map(|()| path))
}

pub(super) fn cwd<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    absolute(d).map(Some)
}

pub(super) fn target<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    checked(d, |target: String| {
        no_nul(&target)?;
        if target.is_empty() || target.len() > image::MAX_TARGET {
            return Err("a link's target is empty or too long".to_owned());
        }
        Ok(Some(target))
    })
}

pub(super) fn command<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    checked(d, |command: Vec<String>| {
        let program = command
            .first()
            .ok_or("the command is empty: it must name a program")?;
        absolute_or_why(program)?;
        command.iter().try_for_each(|word| no_nul(word))?;
        Ok(command)
    })
}

/// As [`command`], where there may be none.
pub(super) fn own_command<'de, D: Deserializer<'de>>(
    d: D,
) -> Result<Option<Vec<String>>, D::Error> {
    command(d).map(Some)
}

pub(super) fn env<'de, D: Deserializer<'de>>(
    d: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    checked(d, |env: BTreeMap<String, String>| {
        for (key, value) in &env {
            if key.is_empty() || key.contains(['=', '\0']) {
                return Err(format!("`{key}` is not a name of an environment variable"));
            }
            no_nul(value)?;
        }
        Ok(Some(env))
    })
}

/// Whether everything fits where the VMM hands it to the guest kernel ([`quorate_abi::boot::BootInfo::strings`]).
pub(crate) fn strings_fit(appliance: &Appliance) -> Result<(), String> {
    // A Linux guest finds them in its initial RAM disk.
    if appliance.linux.is_some() {
        return Ok(());
    }
    let program = &appliance.program;
    let words = program.command.iter().map(|word| word.len() + TERMINATOR);
    let variables = program
        .env
        .iter()
        .map(|(key, value)| key.len() + 1 + value.len() + TERMINATOR);
    let rest = program.cwd.len()
        + appliance.hostname().len()
        + 2 * TERMINATOR
        + super::disks::strings_len(appliance);
    let total = words.chain(variables).sum::<usize>() + rest;
    if total > MAX_STRINGS {
        return Err(format!(
            "command, env, cwd and hostname of [program] and the mounts have {total} bytes together; {MAX_STRINGS} are the most"
        ));
    }
    Ok(())
}

fn bytes<'de, D: Deserializer<'de>>(
    d: D,
    check: impl FnOnce(u64) -> Result<u64, String>,
) -> Result<u64, D::Error> {
    checked(d, |text: String| {
        check(size::parse(&text).map_err(|e| e.to_string())?)
    })
}

pub(super) fn memory<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    bytes(d, check_memory)
}

/// Checks a size of guest memory (of `--memory` on the command line too): between the least and the most that the guest kernel
/// takes, in whole pages.
///
/// # Errors
/// Says what is possible.
pub fn check_memory(bytes: u64) -> Result<u64, String> {
    if !(MIN_RAM..=MAX_RAM).contains(&bytes) {
        return Err(format!(
            "{} of memory is not possible: from {} to {}",
            size::format(bytes),
            size::format(MIN_RAM),
            size::format(MAX_RAM)
        ));
    }
    if !bytes.is_multiple_of(PAGE_SIZE) {
        return Err(format!("{bytes} bytes are not whole pages of {PAGE_SIZE}"));
    }
    Ok(bytes)
}

pub(super) fn window_bytes<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    bytes(d, positive_or_why)
}

pub(super) fn recovery_bytes<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    bytes(d, Ok)
}

pub(super) fn keep<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    checked(d, |value: u64| match value {
        1..=MAX_KEEP => Ok(value),
        _ => Err(format!(
            "{value} checkpoints are not possible: 1 to {MAX_KEEP}"
        )),
    })
}

pub(super) fn positive<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    checked(d, positive_or_why)
}

fn positive_or_why(value: u64) -> Result<u64, String> {
    if value == 0 {
        return Err("0 is not possible here".to_owned());
    }
    Ok(value)
}

pub(super) fn replicas<'de, D: Deserializer<'de>>(d: D) -> Result<u8, D::Error> {
    checked(d, |n: i64| match u8::try_from(n) {
        Ok(n) if (1..=MAX_REPLICAS).contains(&n) => Ok(n),
        _ => Err(format!(
            "{n} replicas are not possible: 1 to {MAX_REPLICAS}"
        )),
    })
}

/// Permissions: a TOML integer (`0o755`) or the usual string (`"0755"`).
pub(super) fn mode<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Mode {
        Number(i64),
        Text(String),
    }
    checked(d, |mode: Mode| {
        let value = match &mode {
            Mode::Number(n) => u32::try_from(*n).ok(),
            Mode::Text(text) => u32::from_str_radix(text, 8).ok(),
        };
        match value {
            Some(value) if value <= 0o7777 => Ok(Some(value)),
            _ => Err("not permissions: write 0o644 or \"0644\"".to_owned()),
        }
    })
}

pub(super) fn packages<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    checked(d, |names: Vec<String>| {
        names.iter().try_for_each(|name| package_or_why(name))?;
        Ok(names)
    })
}

/// Name of one package.
pub(super) fn package<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    checked(d, |name: String| package_or_why(&name).map(|()| name))
}

/// Version of a package by Debian policy 5.6.12.
pub(super) fn package_version<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    checked(d, |version: String| {
        let good = |c: char| c.is_ascii_alphanumeric() || ".+-~:".contains(c);
        let digit = |c: char| c.is_ascii_digit();
        if !version.starts_with(digit) || version.len() > MAX_NAME || !version.chars().all(good) {
            return Err(format!("`{version}` is not a version of a Debian package"));
        }
        Ok(Some(version))
    })
}

/// Name of a suite of Debian.
pub(super) fn suite<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    checked(d, |name: String| {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(good) {
            return Err(format!("`{name}` is not a name of a suite, as bookworm is"));
        }
        Ok(Some(name))
    })
}

/// As [`packages`], but at least one.
pub(super) fn sources<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<String>>, D::Error> {
    checked(d, |names: Vec<String>| {
        if names.is_empty() {
            return Err("name at least one package".to_owned());
        }
        names.iter().try_for_each(|name| package_or_why(name))?;
        Ok(Some(names))
    })
}

/// A package name by Debian policy 5.6.7, so that it cannot be an option of apt-get.
fn package_or_why(name: &str) -> Result<(), String> {
    let first = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = |c: char| first(c) || matches!(c, '+' | '-' | '.');
    // apt-get takes a trailing `-` as "remove", and a trailing `+` as "install" if there is no package of that name.
    let suffix = name.ends_with('-') || name.ends_with('+') && !name.ends_with("++");
    if name.len() < 2 || suffix || !name.starts_with(first) || !name.chars().all(inner) {
        return Err(format!("`{name}` is not a name of a Debian package"));
    }
    Ok(())
}
