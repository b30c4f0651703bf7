//! `[program]`.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::Deserializer;

use super::{check, checked};

pub use quorate_abi::boot::MAX_GROUPS;

/// `[program]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawProgram")]
pub struct Program {
    /// Absolute path of the program, then its arguments. Empty while it is the OCI image that says it.
    pub command: Vec<String>,
    /// Environment; default `PATH` and `HOME`.
    pub env: BTreeMap<String, String>,
    /// Working directory, absolute; default `/`.
    pub cwd: String,
    /// User to run as; default 0.
    pub uid: u32,
    /// Group to run as; default 0.
    pub gid: u32,
    /// User to run as, by name or number; it takes the place of `uid` and `gid` when the image is there.
    pub user: Option<User>,
    /// Other groups that the program is in, by name or number.
    pub groups: Vec<Id>,
    /// Numbers of all groups that the program is in besides its own, ascending; known when the image is there.
    pub gids: Vec<u32>,
    /// Host name; default the appliance's name. [`super::Appliance::hostname`] applies the default.
    pub hostname: Option<String>,
    /// Whether the appliance file says the environment.
    pub(crate) own_env: bool,
    /// Whether the appliance file says the working directory.
    pub(crate) own_cwd: bool,
}

/// A user or group, as an appliance or an OCI image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Id {
    /// By its number.
    Number(u32),
    /// By its name in the image's `/etc/passwd` or `/etc/group`.
    Name(String),
}

/// `USER[:GROUP]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub user: Id,
    /// The group; by default that of the user.
    pub group: Option<Id>,
}

impl Id {
    fn parse(text: &str) -> Result<Self, String> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            // The largest number means "no change" to system calls.
            return match text.parse() {
                Ok(number) if number != u32::MAX => Ok(Self::Number(number)),
                _ => Err(format!("{text} is too large a number")),
            };
        }
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '$');
        if text.is_empty() || text.len() > 64 || !text.chars().all(good) {
            return Err(format!("`{text}` is neither a name nor a number"));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl User {
    /// Reads `USER[:GROUP]`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(Id::parse(group)?)),
            None => (text, None),
        };
        Ok(Self {
            user: Id::parse(user)?,
            group,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProgram {
    #[serde(default, deserialize_with = "check::command")]
    command: Vec<String>,
    #[serde(default, deserialize_with = "check::env")]
    env: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "check::cwd")]
    cwd: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    #[serde(default, deserialize_with = "user")]
    user: Option<User>,
    #[serde(default, deserialize_with = "groups")]
    groups: Vec<Id>,
    #[serde(default, deserialize_with = "check::hostname")]
    hostname: Option<String>,
}

impl TryFrom<RawProgram> for Program {
    type Error = String;

    fn try_from(raw: RawProgram) -> Result<Self, String> {
        if raw.user.is_some() && (raw.uid.is_some() || raw.gid.is_some()) {
            return Err(
                "give either user (\"NAME\", \"NAME:GROUP\" or numbers) or uid and gid".to_owned(),
            );
        }
        let number = |id: Option<&Id>| match id {
            Some(Id::Number(number)) => Some(*number),
            _ => None,
        };
        let user = raw.user.as_ref();
        let uid = raw.uid.or(number(user.map(|user| &user.user)));
        let gid = raw
            .gid
            .or(number(user.and_then(|user| user.group.as_ref())));
        Ok(Self {
            command: raw.command,
            own_env: raw.env.is_some(),
            env: raw.env.unwrap_or_else(default_env),
            own_cwd: raw.cwd.is_some(),
            cwd: raw.cwd.unwrap_or_else(|| "/".to_owned()),
            uid: uid.unwrap_or(0),
            gid: gid.unwrap_or(0),
            user: raw.user,
            groups: raw.groups,
            gids: Vec::new(),
            hostname: raw.hostname,
        })
    }
}

impl Default for Program {
    /// All that can be had by default; nothing to run.
    fn default() -> Self {
        Self {
            command: Vec::new(),
            env: default_env(),
            cwd: "/".to_owned(),
            uid: 0,
            gid: 0,
            user: None,
            groups: Vec::new(),
            gids: Vec::new(),
            hostname: None,
            own_env: false,
            own_cwd: false,
        }
    }
}

/// The environment of a program whose appliance gives none.
pub(crate) fn default_env() -> BTreeMap<String, String> {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    [("PATH", path), ("HOME", "/")]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn user<'de, D: Deserializer<'de>>(d: D) -> Result<Option<User>, D::Error> {
    checked(d, |text: String| User::parse(&text).map(Some))
}

fn groups<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Id>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Group {
        Number(u32),
        Name(String),
    }
    checked(d, |groups: Vec<Group>| {
        if groups.len() > MAX_GROUPS {
            return Err(format!(
                "{} groups: {MAX_GROUPS} are the most",
                groups.len()
            ));
        }
        let id = |group| match group {
            Group::Number(number) => Id::parse(&number.to_string()),
            Group::Name(name) => Id::parse(&name),
        };
        groups.into_iter().map(id).collect()
    })
}
