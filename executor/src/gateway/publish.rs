//! Which host ports lead to which guest ports: `[ADDR:]HOST:GUEST[/udp]`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Transport protocol of a published port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP (the default).
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// One published port. In files and on the command line it is the text `[ADDR:]HOST:GUEST[/udp]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Publish {
    /// Where the host listens. Port 0 lets the kernel choose one; see [`super::Gateway::addresses`].
    pub host: SocketAddr,
    /// The port that the guest's program listens on; never 0.
    pub guest_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// Why a text is not a published port.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "cannot publish {text:?}: {reason}; write [ADDR:]HOST:GUEST[/udp], for example 6379:6379, 0.0.0.0:8080:80 or [::1]:5353:53/udp"
)]
pub struct ParsePublishError {
    text: String,
    reason: Reason,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
enum Reason {
    #[error("there is no guest port")]
    NoGuestPort,
    #[error("{0:?} is not a port number from 0 to 65535")]
    Port(String),
    #[error("the guest port must not be 0")]
    GuestPortZero,
    #[error("{0:?} is not an IP address (names are not looked up, IPv6 goes in brackets)")]
    Address(String),
    #[error("{0:?} is not a protocol (tcp or udp)")]
    Protocol(String),
}

impl FromStr for Publish {
    type Err = ParsePublishError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| ParsePublishError {
            text: text.to_owned(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Publish, Reason> {
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((_, other)) => return Err(Reason::Protocol(other.to_owned())),
    };
    let (rest, guest) = ports.rsplit_once(':').ok_or(Reason::NoGuestPort)?;
    let guest_port = port(guest)?;
    if guest_port == 0 {
        return Err(Reason::GuestPortZero);
    }
    // What is left is HOST or ADDR:HOST; a bracketed address has colons of its own.
    let (address, host) = match rest.rsplit_once(':') {
        None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
        Some((address, host)) => (ip(address)?, host),
    };
    Ok(Publish {
        host: SocketAddr::new(address, port(host)?),
        guest_port,
        protocol,
    })
}

fn port(text: &str) -> Result<u16, Reason> {
    // u16::from_str would take "+80" too.
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Reason::Port(text.to_owned()));
    }
    text.parse().map_err(|_| Reason::Port(text.to_owned()))
}

fn ip(text: &str) -> Result<IpAddr, Reason> {
    let wrong = || Reason::Address(text.to_owned());
    match text.strip_prefix('[') {
        Some(rest) => {
            let inner = rest.strip_suffix(']').ok_or_else(wrong)?;
            inner.parse().map(IpAddr::V6).map_err(|_| wrong())
        }
        None => text.parse().map(IpAddr::V4).map_err(|_| wrong()),
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest_port)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

impl TryFrom<String> for Publish {
    type Error = ParsePublishError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Publish> for String {
    fn from(publish: Publish) -> String {
        publish.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn accepted_forms() {
        for (text, host, guest_port, protocol) in [
            ("6379:6380", "127.0.0.1:6379", 6380, Protocol::Tcp),
            ("0:80", "127.0.0.1:0", 80, Protocol::Tcp),
            ("80:80/tcp", "127.0.0.1:80", 80, Protocol::Tcp),
            ("5353:53/udp", "127.0.0.1:5353", 53, Protocol::Udp),
            ("0.0.0.0:8080:80", "0.0.0.0:8080", 80, Protocol::Tcp),
            ("[::1]:8080:80", "[::1]:8080", 80, Protocol::Tcp),
            ("[::]:65535:65535/udp", "[::]:65535", 65535, Protocol::Udp),
        ] {
            let publish: Publish = text.parse().unwrap();
            assert_eq!(
                publish,
                Publish {
                    host: host.parse().unwrap(),
                    guest_port,
                    protocol
                },
                "{text}"
            );
            assert_eq!(
                publish.to_string().parse::<Publish>().unwrap(),
                publish,
                "{text}"
            );
            let json = serde_json::to_string(&publish).unwrap();
            assert_eq!(
                serde_json::from_str::<Publish>(&json).unwrap(),
                publish,
                "{text}"
            );
        }
    }

    #[test]
    fn refused_forms_name_the_part_that_is_wrong() {
        for (text, part) in [
            ("", "no guest port"),
            ("80", "no guest port"),
            ("80:", "\"\""),
            (":80", "\"\""),
            ("80:0", "must not be 0"),
            ("65536:80", "\"65536\""),
            ("80:65536", "\"65536\""),
            ("+80:80", "\"+80\""),
            ("-1:80", "\"-1\""),
            ("80:80/sctp", "\"sctp\""),
            ("80:80/", "\"\""),
            ("localhost:80:80", "\"localhost\""),
            ("::1:80:80", "brackets"),
            ("[::1:80:80", "\"[::1\""),
            ("[127.0.0.1]:80:80", "\"[127.0.0.1]\""),
            ("1.2.3.4.5:80:80", "\"1.2.3.4.5\""),
            ("80:80:80:80", "\"80:80\""),
        ] {
            let error = text.parse::<Publish>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(error.contains("[ADDR:]HOST:GUEST"), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "[0-9a-f:.\\[\\]/udptc]{0,24}") {
            if let Ok(publish) = text.parse::<Publish>() {
                proptest::prop_assert_eq!(publish.to_string().parse::<Publish>().unwrap(), publish);
            }
        }
    }
}
