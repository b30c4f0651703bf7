//! `[relaxed]`: replicas that run on their own, each at its own pace, and are compared by what they say.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::disks::{DiskVote, Problem};
use super::replicas::Role;
use super::{Appliance, check};

/// Most `sync` channels (R10).
pub const MAX_SYNC: usize = 64;

/// `[relaxed]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Relaxed {
    /// Whose answers count; default majority.
    pub policy: VersionPolicy,
    /// What becomes of a voter whose stream differs from the majority's; default stop.
    pub difference: OnDifference,
    /// How long an answer waits for the agreement of the other version (policy primary-with-fallback), milliseconds; default
    /// 1000.
    #[serde(deserialize_with = "check::positive")]
    pub patience_ms: u64,
    /// Which lines of the guests' consoles are shown; default those that enough replicas have said.
    pub console: ConsoleLines,
    /// Channels on which a guest waits for the vote; default none. See [`SyncChannel`].
    #[serde(deserialize_with = "sync")]
    pub sync: Vec<SyncChannel>,
}

impl Default for Relaxed {
    fn default() -> Self {
        Self {
            policy: VersionPolicy::default(),
            difference: OnDifference::default(),
            patience_ms: 1000,
            console: ConsoleLines::default(),
            sync: Vec::new(),
        }
    }
}

/// `policy` of `[relaxed]`: whose answers count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VersionPolicy {
    /// What more than half of the voters say is released.
    #[default]
    Majority,
    /// What the primary says is released: at once when the others agree, after `patience_ms` when they do not.
    PrimaryWithFallback,
    /// What more than half of the voters say is released; canaries are only compared with it.
    Canary,
}

/// `difference` of `[relaxed]`: what becomes of a voter whose stream differs from what was released.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDifference {
    /// It is stopped, and comes back as `[recovery]` says.
    #[default]
    Stop,
    /// It is reported, and left out of that connection.
    Report,
}

/// `console` of `[relaxed]`: which lines are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleLines {
    /// Those that a quorum has said. Others are counted.
    #[default]
    Agreed,
    /// Those of single replicas too, with the replica's name before them, when it is clear that no quorum says them.
    All,
}

/// A port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPort {
    /// Its number, never 0.
    pub number: u16,
    /// Whether it is one of UDP, not of TCP.
    pub udp: bool,
}

impl fmt::Display for GuestPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number)?;
        if self.udp {
            f.write_str("/udp")
        } else {
            Ok(())
        }
    }
}

impl FromStr for GuestPort {
    type Err = String;

    /// Reads `PORT`, `PORT/tcp` or `PORT/udp`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, udp) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), false),
            Some((digits, "udp")) => (digits, true),
            Some(_) => ("", false),
        };
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        match digits.parse() {
            Ok(number) if plain && number != 0 => Ok(Self { number, udp }),
            _ => Err(format!(
                "`{text}` is not a port of the guest: write PORT or PORT/udp"
            )),
        }
    }
}

/// A channel that is named in `sync`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncChannel {
    /// `tcp:PORT`: a replica gets the client's next bytes on a connection only when it has itself said what had been released when the
    /// client sent them. (`udp:PORT` is understood, and refused: datagrams have no order.)
    Port(GuestPort),
    /// `disk:NAME`: a write completes only when it is released; by default at once. A flush always waits. Not for private disks.
    Disk(String),
}

impl FromStr for SyncChannel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |digits: &str, kind: &str| {
            let port: GuestPort = format!("{digits}/{kind}").parse().map_err(|_| {
                format!("`{text}` names no port: write {kind}:PORT with the guest's port")
            })?;
            Ok(Self::Port(port))
        };
        match text.split_once(':') {
            Some(("tcp", digits)) => port(digits, "tcp"),
            Some(("udp", digits)) => port(digits, "udp"),
            Some(("disk", name)) if !name.is_empty() => Ok(Self::Disk(name.to_owned())),
            _ => Err(format!(
                "`{text}` is not a channel: write tcp:PORT, udp:PORT or disk:NAME"
            )),
        }
    }
}

fn sync<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<SyncChannel>, D::Error> {
    let texts = Vec::<String>::deserialize(d)?;
    if texts.len() > MAX_SYNC {
        let text = format!("{} channels: {MAX_SYNC} are the most", texts.len());
        return Err(D::Error::custom(text));
    }
    let parse = |text: &String| text.parse().map_err(D::Error::custom);
    texts.iter().map(parse).collect()
}

impl Appliance {
    /// Whether its replicas run under the relaxed discipline: they do when the file says `[relaxed]` or gives replicas programs of
    /// their own, and when they are Linux machines. If not, they run in lockstep.
    #[must_use]
    pub fn is_relaxed(&self) -> bool {
        self.relaxed.is_some() || !self.replicas.is_empty() || self.linux.is_some()
    }

    /// What `[relaxed]` says, or its defaults.
    #[must_use]
    pub fn relaxed(&self) -> Relaxed {
        self.relaxed.clone().unwrap_or_default()
    }

    /// The guest's ports that are published; texts of `publish` that are not understood are left out, the executor refuses them.
    #[must_use]
    pub fn guest_ports(&self) -> Vec<GuestPort> {
        let guest = |text: &String| text.rsplit(':').next()?.parse().ok();
        self.network.publish.iter().filter_map(guest).collect()
    }
}

/// Checks roles against the policy, and channels against what there is.
pub(super) fn check_all(appliance: &Appliance) -> Result<(), Problem> {
    let relaxed = appliance.relaxed();
    let fail = |text: String| Err(("relaxed", 0, text));
    for channel in &relaxed.sync {
        match channel {
            SyncChannel::Port(port) if !appliance.guest_ports().contains(port) => {
                return fail(format!(
                    "sync: port {port} of the guest is not in publish of [network]"
                ));
            }
            SyncChannel::Port(port) if port.udp => {
                return fail(format!(
                    "sync: udp:{} cannot wait: datagrams have no order, so there is no place that a replica must have come to",
                    port.number
                ));
            }
            SyncChannel::Port(_) => {}
            SyncChannel::Disk(name) => {
                match appliance.disks.iter().find(|disk| disk.name == *name) {
                    None => {
                        return fail(format!("sync: there is no [[disk]] of the name {name}"));
                    }
                    Some(disk) if disk.vote() == DiskVote::Private => {
                        return fail(format!(
                            "sync: disk {name} is private: none of its writes is ever released"
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
    }
    let count = |role| {
        let roles = appliance.replicas.iter().filter(|one| one.role == role);
        roles.count()
    };
    let (primaries, canaries) = (count(Role::Primary), count(Role::Canary));
    let first = |role| {
        let first = appliance.replicas.iter().position(|one| one.role == role);
        first.unwrap_or(0)
    };
    if relaxed.policy == VersionPolicy::PrimaryWithFallback {
        match primaries {
            1 => {}
            0 => {
                return fail(
                    "policy = \"primary-with-fallback\" needs a [[replica]] with role = \"primary\""
                        .to_owned(),
                );
            }
            many => {
                return fail(format!(
                    "policy = \"primary-with-fallback\": {many} replicas are primary, one must be"
                ));
            }
        }
    } else if primaries > 0 {
        let text = "role = \"primary\" goes with policy = \"primary-with-fallback\" in [relaxed]";
        return Err(("replica", first(Role::Primary), text.to_owned()));
    }
    match relaxed.policy {
        VersionPolicy::Canary if canaries == 0 => {
            return fail(
                "policy = \"canary\" needs a [[replica]] with role = \"canary\"".to_owned(),
            );
        }
        VersionPolicy::Majority if canaries > 0 => {
            let text = "role = \"canary\" goes with policy = \"canary\" in [relaxed]";
            return Err(("replica", first(Role::Canary), text.to_owned()));
        }
        _ => {}
    }
    if canaries > 0 && canaries == appliance.replicas.len() {
        return fail("all replicas are canaries: at least one must vote".to_owned());
    }
    if appliance.is_relaxed() {
        return Ok(());
    }
    for (number, disk) in appliance.disks.iter().enumerate() {
        if disk.relaxed.is_some() || disk.unconfirmed.is_some() {
            let text = format!(
                "disk {}: relaxed and unconfirmed are for the relaxed discipline: write [relaxed] too",
                disk.name
            );
            return Err(("disk", number, text));
        }
    }
    Ok(())
}
