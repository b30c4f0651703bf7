//! What to run, settled with the image at hand: users by name, and what an OCI image says itself.

use std::path::Path;

use crate::appliance::{Appliance, Id, Program, User, check_strings};
use crate::error::BuildError;
use crate::oci::Process;
use crate::view::Files;

/// The program of `appliance` in the finished image at `image`. `process` is what an OCI image says of it.
pub(crate) fn resolve(
    appliance: &Appliance,
    process: Option<&Process>,
    image: &Path,
) -> Result<Program, BuildError> {
    let program = &appliance.program;
    // The usual case needs no look into the image.
    if process.is_none() && program.user.is_none() && program.groups.is_empty() {
        return Ok(program.clone());
    }
    let files = Files::read(image)?;
    let mut program = program.clone();
    settle(&mut program, process, &files).map_err(|reason| BuildError::Program { reason })?;
    if process.is_some() {
        let path = program.command.first().map_or("", String::as_str);
        if !files.is_program(path) {
            let program = path.to_owned();
            return Err(BuildError::NoProgram { program });
        }
    }
    let whole = Appliance {
        program: program.clone(),
        ..appliance.clone()
    };
    check_strings(&whole).map_err(|reason| BuildError::Program { reason })?;
    Ok(program)
}

fn settle(program: &mut Program, process: Option<&Process>, files: &Files) -> Result<(), String> {
    let mut user = program.user.clone();
    let mut own_home = program.own_env && program.env.contains_key("HOME");
    if let Some(process) = process {
        let own = std::mem::take(&mut program.env);
        program.env = crate::appliance::default_env();
        for variable in process.env.iter().flatten() {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            if name.is_empty() || variable.contains('\0') {
                return Err(format!(
                    "the image has the variable {variable:?}, which none can be"
                ));
            }
            own_home |= name == "HOME";
            program.env.insert(name.to_owned(), value.to_owned());
        }
        if program.own_env {
            program.env.extend(own);
        }
        if !program.own_cwd {
            program.cwd = working_directory(process.working_dir.as_deref().unwrap_or("/"))?;
        }
        // What the appliance says of the user, root included, goes before what the image says.
        if user.is_none() && program.uid == 0 && program.gid == 0 {
            user = match process.user.as_deref().unwrap_or_default() {
                "" => None,
                text => Some(User::parse(text).map_err(|why| format!("the image's user: {why}"))?),
            };
        }
        if program.command.is_empty() {
            let words = process.entrypoint.iter().chain(&process.cmd).flatten();
            program.command = words.cloned().collect();
        }
        absolute_program(program, files)?;
    }
    let passwd = files.text("/etc/passwd");
    let group = files.text("/etc/group");
    let mut gids = Vec::new();
    if let Some(user) = &user {
        let entry = passwd
            .lines()
            .filter_map(Entry::parse)
            .find(|entry| match &user.user {
                Id::Number(number) => entry.uid == *number,
                Id::Name(name) => entry.name == name,
            });
        program.uid = match (&user.user, &entry) {
            (_, Some(entry)) => entry.uid,
            (Id::Number(number), None) => *number,
            (Id::Name(name), None) => {
                return Err(format!(
                    "user {name}: the image's /etc/passwd has none (Debian packages make theirs by scripts, which are not run): use numbers, such as user = \"999:999\""
                ));
            }
        };
        program.gid = match &user.group {
            Some(id) => gid(id, &group)?,
            None => entry.as_ref().map_or(0, |entry| entry.gid),
        };
        if let Some(entry) = &entry {
            if user.group.is_none() {
                gids.extend(memberships(entry.name, &group));
            }
            if !own_home && entry.home.starts_with('/') {
                let home = entry.home.to_owned();
                program.env.insert("HOME".to_owned(), home);
            }
        }
    }
    for id in &program.groups {
        gids.push(gid(id, &group)?);
    }
    gids.retain(|gid| *gid != program.gid);
    gids.sort_unstable();
    gids.dedup();
    gids.truncate(crate::appliance::MAX_GROUPS);
    program.gids = gids;
    Ok(())
}

fn working_directory(path: &str) -> Result<String, String> {
    let path = match path {
        "" => "/",
        path => path,
    };
    if !path.starts_with('/') || path.split('/').any(|part| part == "..") || path.contains('\0') {
        return Err(format!(
            "the image's working directory {path:?} is not an absolute path"
        ));
    }
    Ok(path.to_owned())
}

/// Makes the first word of the command a path: images often name their program as a shell would.
fn absolute_program(program: &mut Program, files: &Files) -> Result<(), String> {
    let path = program.env.get("PATH").cloned().unwrap_or_default();
    let cwd = program.cwd.clone();
    if program.command.iter().any(|word| word.contains('\0')) {
        return Err("the image's command has a NUL character in it".to_owned());
    }
    let Some(word) = program.command.first_mut() else {
        return Err("the image names no program: write `command` in [program]".to_owned());
    };
    if word.starts_with('/') {
        return Ok(());
    }
    let found = if word.contains('/') {
        Some(format!("{}/{word}", cwd.trim_end_matches('/')))
    } else {
        let directories = path
            .split(':')
            .filter(|directory| directory.starts_with('/'));
        directories
            .map(|directory| format!("{}/{word}", directory.trim_end_matches('/')))
            .find(|path| files.is_program(path))
    };
    *word = found.ok_or_else(|| format!("{word}: no such program in the image's PATH ({path})"))?;
    Ok(())
}

/// A line of `/etc/passwd`.
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let _password = fields.next()?;
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let _comment = fields.next()?;
        let home = fields.next().unwrap_or_default();
        Some(Self {
            name,
            uid,
            gid,
            home,
        })
    }
}

/// Name, number and members of a line of `/etc/group`.
fn group_line(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let _password = fields.next()?;
    let gid = fields.next()?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

fn gid(id: &Id, group: &str) -> Result<u32, String> {
    match id {
        Id::Number(number) => Ok(*number),
        Id::Name(name) => group
            .lines()
            .filter_map(group_line)
            .find(|line| line.0 == name)
            .map(|line| line.1)
            .ok_or_else(|| format!("group {name}: the image's /etc/group has none; use a number")),
    }
}

/// Groups that list the user `name` as a member.
fn memberships(name: &str, group: &str) -> impl Iterator<Item = u32> {
    group
        .lines()
        .filter_map(group_line)
        .filter(move |line| line.2.split(',').any(|member| member == name))
        .map(|line| line.1)
}
