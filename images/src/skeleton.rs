//! What every root file system needs and neither packages nor directories bring: mount points and the few files in `/etc` that
//! the C library reads.

use crate::appliance::Appliance;
use crate::tree::{Meta, Tree, TreeError};

/// Users that Debian's base system defines and daemons ask for by name: name, id, home.
const USERS: &[(&str, u32, &str)] = &[
    ("root", 0, "/root"),
    ("daemon", 1, "/usr/sbin"),
    ("bin", 2, "/bin"),
    ("sys", 3, "/dev"),
    ("mail", 8, "/var/mail"),
    ("proxy", 13, "/bin"),
    ("www-data", 33, "/var/www"),
    ("backup", 34, "/var/backups"),
    ("nobody", 65_534, "/nonexistent"),
];

/// Groups: name and id.
const GROUPS: &[(&str, u32)] = &[
    ("root", 0),
    ("daemon", 1),
    ("bin", 2),
    ("sys", 3),
    ("adm", 4),
    ("tty", 5),
    ("mail", 8),
    ("proxy", 13),
    ("www-data", 33),
    ("backup", 34),
    ("nogroup", 65_534),
];

/// An empty root with a merged `/usr` and Debian's usual directories: whatever a package ships in `/bin`, `/sbin`, `/lib` or
/// `/lib64` then lands in `/usr`, because the tree follows links as dpkg does.
pub(crate) fn debian_root(time: i64) -> Result<Tree, TreeError> {
    let mut tree = Tree::new(Meta::root(0o755, time));
    let meta = Meta::root(0o755, time);
    for name in ["bin", "sbin", "lib", "lib64"] {
        tree.dir(format!("/usr/{name}").as_bytes(), meta)?;
        tree.symlink(
            format!("/{name}").as_bytes(),
            Meta::root(0o777, time),
            format!("usr/{name}").as_bytes(),
        )?;
    }
    for path in [
        "/etc",
        "/home",
        "/run",
        "/var/cache",
        "/var/lib",
        "/var/log",
    ] {
        tree.dir(path.as_bytes(), meta)?;
    }
    tree.dir(b"/root", Meta::root(0o700, time))?;
    tree.dir(b"/var/tmp", Meta::root(0o1777, time))?;
    tree.symlink(b"/var/run", Meta::root(0o777, time), b"/run")?;
    tree.symlink(b"/var/lock", Meta::root(0o777, time), b"/run/lock")?;
    Ok(tree)
}

/// Adds what is missing; what is there stays as it is.
pub(crate) fn complete(tree: &mut Tree, appliance: &Appliance) -> Result<(), TreeError> {
    let time = appliance.epoch();
    for path in ["/dev", "/proc", "/run", "/sys"] {
        tree.dir(path.as_bytes(), Meta::root(0o755, time))?;
    }
    tree.dir(b"/tmp", Meta::root(0o1777, time))?;
    // So that a root that cannot be changed has them too.
    for mount in appliance.mounts() {
        tree.dir(mount.target.as_bytes(), Meta::root(0o755, time))?;
    }
    let files = [
        ("/etc/passwd", passwd(appliance)),
        ("/etc/group", group(appliance)),
        ("/etc/hostname", format!("{}\n", appliance.hostname())),
        ("/etc/hosts", hosts(appliance)),
        ("/etc/nsswitch.conf", NSSWITCH.to_owned()),
        // The link has no name server of its own; an appliance that needs one puts a file here.
        ("/etc/resolv.conf", String::new()),
    ];
    for (path, text) in files {
        if tree.get(path.as_bytes()).is_none() {
            tree.file(path.as_bytes(), Meta::root(0o644, time), text.into_bytes())?;
        }
    }
    Ok(())
}

const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n";

fn passwd(appliance: &Appliance) -> String {
    let program = &appliance.program;
    let mut text = String::new();
    for (name, id, home) in USERS {
        let (gid, shell) = match *id {
            0 => (0, "/bin/sh"),
            id => (id, "/usr/sbin/nologin"),
        };
        text.push_str(&format!("{name}:x:{id}:{gid}:{name}:{home}:{shell}\n"));
    }
    if !USERS.iter().any(|user| user.1 == program.uid) {
        text.push_str(&format!(
            "app:x:{}:{}:app:/:/usr/sbin/nologin\n",
            program.uid, program.gid
        ));
    }
    text
}

fn group(appliance: &Appliance) -> String {
    let gid = appliance.program.gid;
    let mut text: String = GROUPS
        .iter()
        .map(|(name, id)| format!("{name}:x:{id}:\n"))
        .collect();
    if !GROUPS.iter().any(|group| group.1 == gid) {
        text.push_str(&format!("app:x:{gid}:\n"));
    }
    text
}

fn hosts(appliance: &Appliance) -> String {
    let [a, b, c, d] = quorate_abi::net::GUEST_IP;
    format!(
        "127.0.0.1 localhost\n{a}.{b}.{c}.{d} {}\n",
        appliance.hostname()
    )
}
