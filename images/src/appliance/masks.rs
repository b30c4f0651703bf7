//! `[[mask]]`: what may differ between replicas.
//!
//! Only the rules are read here; what they do to a stream is the voter's business.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::disks::Problem;
use super::relaxed::GuestPort;
use super::{Appliance, check};

/// Most masks (R10).
pub const MAX_MASKS: usize = 64;
/// Longest pattern in bytes (R10).
pub const MAX_PATTERN: usize = 1024;
/// What a compiled pattern may have, bytes (R10).
pub const MAX_COMPILED: usize = 1 << 20;
/// Longest name of a header.
const MAX_HEADER: usize = 64;

/// One `[[mask]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawMask")]
pub struct MaskSpec {
    /// What it is called in reports; default its number.
    pub name: Option<String>,
    /// Ports of the guest whose streams it is about. Empty: all published TCP ports, unless `console` is true.
    pub ports: Vec<GuestPort>,
    /// Whether it is about the console.
    pub console: bool,
    /// What it hides.
    pub rule: MaskRule,
    /// Whether what one replica calls a thing is put into its inputs instead of what was released.
    pub translate: bool,
}

/// What a mask hides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MaskRule {
    /// `http-header`: the value of this header of HTTP answers, compared without regard to upper and lower case.
    HttpHeader(String),
    /// `pattern`: what the groups of this regular expression (over bytes) match, or the whole match if it has none.
    Pattern(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawMask {
    #[serde(default, deserialize_with = "check::hostname")]
    name: Option<String>,
    #[serde(default, deserialize_with = "ports")]
    ports: Vec<GuestPort>,
    #[serde(default)]
    console: bool,
    #[serde(default, deserialize_with = "header")]
    http_header: Option<String>,
    #[serde(default, deserialize_with = "pattern")]
    pattern: Option<String>,
    #[serde(default)]
    translate: bool,
}

impl TryFrom<RawMask> for MaskSpec {
    type Error = String;

    fn try_from(raw: RawMask) -> Result<Self, String> {
        let rule = match (raw.http_header, raw.pattern) {
            (Some(header), None) => MaskRule::HttpHeader(header),
            (None, Some(pattern)) => MaskRule::Pattern(pattern),
            _ => return Err("give exactly one of http-header and pattern".to_owned()),
        };
        if raw.console && !raw.ports.is_empty() {
            return Err(
                "give ports or console, not both: two masks can have one pattern".to_owned(),
            );
        }
        let is_header = matches!(rule, MaskRule::HttpHeader(_));
        if is_header && (raw.console || raw.ports.iter().any(|port| port.udp)) {
            return Err("http-header goes with TCP ports only".to_owned());
        }
        if raw.translate {
            let groups = match &rule {
                MaskRule::Pattern(pattern) => compile(pattern)?.captures_len() - 1,
                MaskRule::HttpHeader(_) => 0,
            };
            if groups != 1 {
                return Err(
                    "translate needs a pattern with exactly one group, around what is translated"
                        .to_owned(),
                );
            }
            if raw.console {
                return Err("translate goes with ports only: the console has no input".to_owned());
            }
        }
        Ok(Self {
            name: raw.name,
            ports: raw.ports,
            console: raw.console,
            rule,
            translate: raw.translate,
        })
    }
}

impl MaskSpec {
    /// Whether it is about the streams (or datagrams) of `port`.
    #[must_use]
    pub fn covers(&self, port: GuestPort) -> bool {
        let all = self.ports.is_empty() && !self.console && !port.udp;
        all || self.ports.contains(&port)
    }
}

fn compile(pattern: &str) -> Result<regex::bytes::Regex, String> {
    regex::bytes::RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED)
        .build()
        .map_err(|error| {
            let text = error.to_string();
            // The last line says what is wrong, those before it show where.
            let last = text.lines().last().unwrap_or("").trim();
            let reason = last.trim_start_matches("error: ");
            format!("not a regular expression that can be used: {reason}")
        })
}

fn ports<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<GuestPort>, D::Error> {
    let texts = Vec::<String>::deserialize(d)?;
    let parse = |text: &String| text.parse().map_err(D::Error::custom);
    texts.iter().map(parse).collect()
}

fn header<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    super::checked(d, |name: String| {
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_|~".contains(c);
        if name.is_empty() || name.len() > MAX_HEADER || !name.chars().all(token) {
            return Err(format!("{name} is not a name of a header"));
        }
        Ok(Some(name))
    })
}

fn pattern<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    super::checked(d, |pattern: String| {
        if pattern.len() > MAX_PATTERN {
            return Err(format!("longer than {MAX_PATTERN} bytes"));
        }
        if compile(&pattern)?.is_match(b"") {
            return Err("it matches the empty text, so it would match everywhere".to_owned());
        }
        Ok(Some(pattern))
    })
}

/// Checks the masks against the ports.
pub(super) fn check_all(appliance: &Appliance) -> Result<(), Problem> {
    let count = appliance.masks.len();
    if count > MAX_MASKS {
        let text = format!("{count} masks: {MAX_MASKS} are the most");
        return Err(("mask", count - 1, text));
    }
    if count > 0 && !appliance.is_relaxed() {
        let text = "masks are for the relaxed discipline: in lockstep nothing may differ; write [relaxed] too";
        return Err(("mask", 0, text.to_owned()));
    }
    let published = appliance.guest_ports();
    for (number, mask) in appliance.masks.iter().enumerate() {
        let fail = |text: String| Err(("mask", number, text));
        if let Some(port) = mask.ports.iter().find(|port| !published.contains(port)) {
            return fail(format!(
                "ports: {port} of the guest is not in publish of [network]"
            ));
        }
        if !mask.console && !published.iter().any(|port| mask.covers(*port)) {
            return fail("there is no published TCP port that it could be about".to_owned());
        }
    }
    Ok(())
}
