//! Packages that are left out of images.

/// A package that images do without although others depend on it.
pub(super) struct Stub {
    name: &'static str,
    provides: &'static str,
    /// Why no program in an image misses it.
    #[allow(dead_code)] // Read by people.
    reason: &'static str,
}

const fn stub(name: &'static str, provides: &'static str, reason: &'static str) -> Stub {
    Stub {
        name,
        provides,
        reason,
    }
}

/// Packages that matter only while packages are installed or a distribution is booted. apt-get is told that they are installed
/// already, so that neither they nor what only they need (Perl, PAM, SELinux) come along. An appliance that names one in
/// `packages` gets it all the same.
pub(super) const STUBS: &[Stub] = &[
    stub(
        "adduser",
        "",
        "postinst scripts create users with it; an image has its /etc/passwd",
    ),
    stub("debconf", "debconf-2.0", "asks questions while installing"),
    stub(
        "dpkg",
        "",
        "installs packages; dpkg-divert and the like run in scripts only",
    ),
    stub(
        "init-system-helpers",
        "",
        "deb-systemd-helper and service, for scripts and an init system that is not there",
    ),
    stub("install-info", "", "indexes documentation that is left out"),
    stub(
        "iproute2",
        "",
        "nginx's postinst looks with ss whether port 80 is free; the guest has no netlink",
    ),
    stub("logrotate", "", "run by cron, which is not there"),
    stub("cron", "cron-daemon", "an image runs one program"),
    stub("passwd", "", "useradd and friends, for scripts; needs PAM"),
    stub("sensible-utils", "", "starts editors and browsers"),
    stub(
        "systemd",
        "",
        "an image runs one program; libsystemd0 is kept where programs link it",
    ),
    stub(
        "systemd-standalone-sysusers",
        "systemd-sysusers",
        "creates users at boot",
    ),
    stub(
        "systemd-standalone-tmpfiles",
        "systemd-tmpfiles",
        "creates directories at boot",
    ),
    stub(
        "sysvinit-utils",
        "lsb-base (= 9999)",
        "functions for init scripts",
    ),
    stub("ucf", "", "asks about configuration files while installing"),
    stub(
        "usr-is-merged",
        "",
        "checks at installation what this builder does itself",
    ),
];

/// Those of [`STUBS`] that a Linux machine has after all, when something depends on them: it has an init, users that log in, and
/// the whole of the kernel's interface.
const REAL_ON_LINUX: &[&str] = &[
    "init-system-helpers",
    "iproute2",
    "passwd",
    "systemd",
    "sysvinit-utils",
];

/// A dpkg status file in which (Multi-Arch `allowed` satisfies dependencies on `NAME` and on `NAME:any`; `foreign` only the former) the stubs and `without` are installed, except those that `wanted` names.
pub(super) fn status_file(wanted: &[String], without: &[String], boots: bool) -> String {
    let builtin = STUBS
        .iter()
        .filter(|stub| !(boots && REAL_ON_LINUX.contains(&stub.name)))
        .filter(|stub| !wanted.iter().any(|name| name == stub.name))
        .map(|stub| (stub.name, stub.provides));
    let extra = without.iter().map(|name| (name.as_str(), ""));
    let mut text = String::new();
    for (name, provides) in builtin.chain(extra) {
        text.push_str(&format!(
            "Package: {name}\nStatus: install ok installed\nMaintainer: none <none@localhost>\nArchitecture: amd64\nMulti-Arch: allowed\nVersion: 9999\n"
        ));
        if !provides.is_empty() {
            text.push_str(&format!("Provides: {provides}\n"));
        }
        text.push_str("Description: left out of images\n\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanted_packages_are_not_stubs() {
        let text = status_file(&["dpkg".to_owned()], &["perl".to_owned()], false);
        assert!(!text.contains("Package: dpkg\n"));
        assert!(text.contains("Package: debconf\n"));
        assert!(text.contains("Package: perl\n"));
        assert!(STUBS.iter().all(|stub| !stub.reason.is_empty()));
        assert!(text.contains("Package: systemd\n"));
        let linux = status_file(&[], &[], true);
        assert!(!linux.contains("Package: systemd\n") && linux.contains("Package: ucf\n"));
    }
}
