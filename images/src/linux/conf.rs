//! The appliance's own part of the initial RAM disk: what guest/init.sh is told.

use std::fmt::Write as _;
use std::io;

use quorate_abi::net::{GATEWAY_IP, GUEST_IP, PREFIX_LEN};

use super::cpio::Archive;
use crate::appliance::{Appliance, LinuxSpec, Program, Root};

/// An archive with `/quorate.conf` and, if a program is to run, `/program`.
pub(super) fn archive(
    appliance: &Appliance,
    linux: &LinuxSpec,
    program: &Program,
) -> io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.file("/quorate.conf", 0o644, conf(appliance, linux).as_bytes())?;
    if !program.command.is_empty() {
        archive.file("/program", 0o755, starter(program).as_bytes())?;
    }
    archive.finish()
}

/// Settings of guest/init.sh, in the shell's language.
fn conf(appliance: &Appliance, linux: &LinuxSpec) -> String {
    let ip = |[a, b, c, d]: [u8; 4]| format!("{a}.{b}.{c}.{d}");
    let root = match &appliance.machine.root {
        Root::Memory => "memory",
        Root::ReadOnly => "read-only",
        Root::Disk(_) => "disk",
    };
    let mut text = format!(
        "hostname={}\naddress={}/{PREFIX_LEN}\ngateway={}\ndevice=/dev/vda\nroot={root}\ninit={}\n",
        quote(appliance.hostname()),
        ip(GUEST_IP),
        ip(GATEWAY_IP),
        quote(linux.init()),
    );
    text.push_str("mounts() {\n");
    for mount in mounts(appliance) {
        let _ = writeln!(text, "    {mount}");
    }
    // A function must not be empty.
    text.push_str("    :\n}\n");
    text
}

/// Mounts besides the root, those first that others lie in.
fn mounts(appliance: &Appliance) -> Vec<String> {
    let is_root = |name: &str| matches!(&appliance.machine.root, Root::Disk(root) if root == name);
    let others = appliance.disks.iter().filter(|disk| !is_root(&disk.name));
    // The root is vda, the others follow in their order; the schema allows eight.
    let letters = ('b'..='z').zip(others);
    let disks = letters.filter_map(|(letter, disk)| {
        let target = disk.mount.as_deref()?;
        let access = if disk.read_only { "ro" } else { "rw" };
        let line = format!("disk /dev/vd{letter} {} {access}", quote(target));
        Some((target, line))
    });
    let memory = appliance.tmpfs.iter().map(|tmpfs| {
        let line = format!("memory {} {}", quote(&tmpfs.path), tmpfs.bytes);
        (tmpfs.path.as_str(), line)
    });
    let mut mounts: Vec<(&str, String)> = disks.chain(memory).collect();
    mounts.sort_by_key(|(target, _)| target.matches('/').count());
    mounts.into_iter().map(|(_, line)| line).collect()
}

/// A script that becomes the program's supervisor, with the program's environment.
fn starter(program: &Program) -> String {
    let mut text = "#!/run/quorate/busybox sh\nexec /run/quorate/busybox env -i".to_owned();
    for (name, value) in &program.env {
        let _ = write!(text, " {}", quote(&format!("{name}={value}")));
    }
    let groups: Vec<String> = program.gids.iter().map(u32::to_string).collect();
    let groups = match groups.is_empty() {
        true => "-".to_owned(),
        false => groups.join(","),
    };
    let _ = write!(
        text,
        " /run/quorate/task init {} {} {groups} {}",
        program.uid,
        program.gid,
        quote(&program.cwd)
    );
    for word in &program.command {
        let _ = write!(text, " {}", quote(word));
    }
    text.push('\n');
    text
}

/// One word for the shell, whatever is in it.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;

    #[test]
    fn words_survive_the_shell() {
        let words = [
            "", "a b", "it's", "$(id)", "`id`", "\\", "'", "*", "a\nb", "\"x\"",
        ];
        let script: String = words
            .iter()
            .map(|word| format!(" {}", quote(word)))
            .collect();
        let output = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!("printf '%s|'{script}"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, words.map(|word| format!("{word}|")).concat());
    }

    #[test]
    fn disks_are_lettered_behind_the_root_and_mounted_outside_in() {
        let text = r#"version = 1
name = "x"
image = { packages = ["busybox-static"] }
machine = { root = "disk:os" }
linux = {}
tmpfs = [{ path = "/a/b/c", size = "1M" }, { path = "/t", size = "4K" }]
[[disk]]
name = "one"
size = "32M"
mount = "/a/b"
[[disk]]
name = "os"
size = "1G"
[[disk]]
name = "two"
size = "32M"
mount = "/a"
read_only = true
"#;
        let appliance = Appliance::parse(text, Path::new("x.toml")).unwrap();
        let expected = [
            "disk /dev/vdc '/a' ro",
            "memory '/t' 4096",
            "disk /dev/vdb '/a/b' rw",
            "memory '/a/b/c' 1048576",
        ];
        assert_eq!(mounts(&appliance), expected);
    }
}
