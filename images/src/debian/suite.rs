//! Package sources of our own: another suite of Debian than the machine's, and source packages.
//!
//! The mirror is the machine's, when it has one of Debian; the keys are those of `debian-archive-keyring`.

use std::io;
use std::process::{Command, Stdio};

use crate::error::BuildError;

/// Where Debian is if the machine's own package sources name no mirror.
const MIRROR: &str = "http://deb.debian.org/debian";
/// The same for security updates.
const SECURITY: &str = "http://deb.debian.org/debian-security";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Says what the machine runs (os-release(5)).
const OS_RELEASE: &str = "/etc/os-release";
/// Suites that have neither updates nor security updates of their own.
const ROLLING: &[&str] = &["sid", "unstable", "experimental"];

/// A sources.list(5) for `suite` with its updates, for packages and source packages.
pub(super) fn sources_list(suite: &str) -> Result<String, BuildError> {
    Ok(text(suite, &mirrors()?))
}

/// The suite of the machine's own package sources.
pub(super) fn machines() -> Result<String, BuildError> {
    let text = std::fs::read_to_string(OS_RELEASE).map_err(BuildError::io("read", OS_RELEASE))?;
    codename(&text).ok_or_else(|| {
        BuildError::AptOutput(format!(
            "{OS_RELEASE} names no VERSION_CODENAME: give `suite` in [image]"
        ))
    })
}

fn codename(text: &str) -> Option<String> {
    let value = |line: &str| line.strip_prefix("VERSION_CODENAME=").map(str::to_owned);
    let name = text.lines().find_map(value)?;
    let name = name.trim_matches('"');
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (!name.is_empty() && name.chars().all(good)).then(|| name.to_owned())
}

/// Main mirror and the one of security updates.
type Mirrors = (String, String);

fn mirrors() -> Result<Mirrors, BuildError> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)"])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BuildError::NoApt,
            _ => BuildError::io("ask for the package sources", "apt-get")(error),
        })?;
    // A machine whose sources are not understood still has Debian's own address.
    Ok(choose(&String::from_utf8_lossy(&output.stdout)))
}

fn choose(uris: &str) -> Mirrors {
    let find = |name: &str, default: &str| {
        let plain = |uri: &&str| uri.chars().all(|c| c.is_ascii_graphic() && c != '[');
        let uris = uris.lines().map(|uri| uri.trim_end_matches('/'));
        let found = uris.filter(plain).find(|uri| uri.ends_with(name));
        found.unwrap_or(default).to_owned()
    };
    (find("/debian", MIRROR), find("/debian-security", SECURITY))
}

fn text(suite: &str, (main, security): &Mirrors) -> String {
    let mut places = vec![(main, suite.to_owned())];
    // Backports are an addition to their release.
    let release = suite.strip_suffix("-backports");
    places.extend(release.map(|release| (main, release.to_owned())));
    let suite = release.unwrap_or(suite);
    if !ROLLING.contains(&suite) {
        places.push((main, format!("{suite}-updates")));
        places.push((security, format!("{suite}-security")));
    }
    let mut text = String::new();
    for (uri, suite) in &places {
        for kind in ["deb", "deb-src"] {
            text.push_str(&format!(
                "{kind} [signed-by={KEYRING}] {uri} {suite} main\n"
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_mirror_is_taken() {
        let machine = "http://packages.x.org/apt/\nhttp://m.org/debian/\nhttp://m.org/debian/\nhttp://s.org/debian-security/\n";
        let expected = ("http://m.org/debian", "http://s.org/debian-security");
        let (main, security) = choose(machine);
        assert_eq!((main.as_str(), security.as_str()), expected);
        let (main, security) = choose("http://x.org/a b/debian\n");
        assert_eq!((main.as_str(), security.as_str()), (MIRROR, SECURITY));
    }

    #[test]
    fn the_machines_suite() {
        let name = |text: &str| codename(text);
        assert_eq!(
            name("ID=x\nVERSION_CODENAME=bookworm\n").as_deref(),
            Some("bookworm")
        );
        assert_eq!(name("VERSION_CODENAME=\"a\"").as_deref(), Some("a"));
        assert_eq!(name("VERSION_CODENAME=../a"), None);
        assert_eq!(name("ID=arch\n"), None);
    }

    #[test]
    fn lines_of_a_suite() {
        let mirrors = ("http://m/debian".to_owned(), "http://s".to_owned());
        let debian = format!("[signed-by={KEYRING}] http://m/debian sid main");
        assert_eq!(
            text("sid", &mirrors),
            format!("deb {debian}\ndeb-src {debian}\n")
        );
        let trixie = text("trixie", &mirrors);
        assert_eq!(trixie.lines().count(), 6);
        assert!(trixie.contains("http://s trixie-security main"));
        let backports = text("trixie-backports", &mirrors);
        assert!(backports.contains("http://m/debian trixie-backports main"));
        assert!(backports.ends_with(&trixie));
    }
}
