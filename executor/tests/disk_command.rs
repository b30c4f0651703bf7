//! `quorate disk` and what `quorate build` says, as a user meets them. No guest program runs here.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use quorate_executor::exit::ExitCode;

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let place = Place { directory };
        std::fs::create_dir_all(place.path("root/bin")).unwrap();
        std::fs::write(place.path("root/bin/program"), "not a program").unwrap();
        std::fs::set_permissions(
            place.path("root/bin/program"),
            std::fs::Permissions::from_mode(0o755),
        )
        .unwrap();
        std::fs::create_dir(place.path("seed")).unwrap();
        std::fs::write(place.path("seed/hello"), "from the seed").unwrap();
        let text = "version = 1\nname = \"good\"\n[image]\ndirectory = \"root\"\n[program]\ncommand = [\"/bin/program\"]\nuser = \"www-data\"\n\
            [[disk]]\nname = \"data\"\nsize = \"16M\"\nmount = \"/data\"\nseed = \"seed\"\n\
            [[disk]]\nname = \"raw\"\nsize = \"64K\"\nfilesystem = \"none\"\npath = \"raw.img\"\n";
        std::fs::write(place.path("good.toml"), text).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn quorate(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_quorate"))
            .args(arguments)
            .current_dir(self.directory.path())
            .env("QUORATE_STATE_DIR", self.path("state"))
            .env("QUORATE_CACHE", self.path("cache"))
            .env_remove("RUST_LOG")
            .output()
            .unwrap()
    }

    /// What the command prints; it must succeed.
    fn works(&self, arguments: &[&str]) -> String {
        let output = self.quorate(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, arguments: &[&str], code: ExitCode, says: &str) {
        let output = self.quorate(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code as i32), "{stderr}");
        assert!(stderr.contains(says), "not {says:?}: {stderr}");
    }
}

fn debugfs(commands: &str, disk: &Path) {
    let status = Command::new("/usr/sbin/debugfs")
        .args(["-w", "-R", commands])
        .arg(disk)
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn the_life_of_a_disk() {
    let place = Place::new();
    let list = place.works(&["disk", "list", "good.toml"]);
    assert!(
        list.contains("0 data: 16M at /data, not there yet, "),
        "{list}"
    );
    assert!(
        list.contains("1 raw: 64K not mounted, not there yet, "),
        "{list}"
    );
    place.works(&["disk", "create", "good.toml"]);
    let disk = place.path("state/good/data.img");
    let list = place.works(&["disk", "list", "good.toml"]);
    assert!(
        list.contains("MiB used of the host") && list.contains(disk.to_str().unwrap()),
        "{list}"
    );
    let checked = place.works(&["disk", "check", "good.toml"]);
    assert!(
        checked.contains("data.img: sound, unmounted cleanly"),
        "{checked}"
    );

    place.works(&["disk", "extract", "good.toml", "out", "hello"]);
    assert_eq!(
        std::fs::read_to_string(place.path("out/hello")).unwrap(),
        "from the seed"
    );
    place.refused(
        &["disk", "extract", "good.toml", "out"],
        ExitCode::Disk,
        "not empty",
    );
    place.refused(
        &["disk", "extract", "raw.img", "out2"],
        ExitCode::Disk,
        "no ext4 file system",
    );

    // Making the disks again leaves them alone; a reset does not. The disk belongs to the program's user, by name.
    debugfs("sif <12> uid 5", &disk);
    place.works(&["disk", "create", "good.toml"]);
    let before = std::fs::read(&disk).unwrap();
    place.works(&["disk", "reset", "good.toml", "data"]);
    let after = std::fs::read(&disk).unwrap();
    assert!(before != after);
    let output = Command::new("/usr/sbin/debugfs")
        .args(["-R", "stat /hello"])
        .arg(&disk)
        .output()
        .unwrap();
    let stat = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(stat.contains("User:    33   Group:    33"), "{stat}");
    place.refused(
        &["disk", "reset", "good.toml", "date"],
        ExitCode::Usage,
        "[\"data\", \"raw\"]",
    );
    place.refused(&["disk", "reset", "good.toml"], ExitCode::Usage, "<DISKS>");

    debugfs("sif <12> links_count 9", &disk);
    place.refused(
        &["disk", "check", "good.toml", "--disk", "data"],
        ExitCode::Disk,
        "ref count is 9",
    );
    place.refused(
        &["disk", "check", "state/good/none.img"],
        ExitCode::Disk,
        "cannot open the disk",
    );
}

/// Whoever has a disk open, as a running set does, keeps the commands that would disturb it away.
#[test]
fn a_disk_in_use_is_left_alone() {
    let place = Place::new();
    place.works(&["disk", "create", "good.toml"]);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(place.path("state/good/data.img"))
        .unwrap();
    // A lock of this process, which conflicts with the store's kind.
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    for arguments in [
        &["disk", "check", "good.toml"][..],
        &["disk", "extract", "good.toml", "out"],
        &["disk", "reset", "good.toml", "data"],
    ] {
        place.refused(arguments, ExitCode::Disk, "the disk is in use by");
    }
    let list = place.works(&["disk", "list", "good.toml"]);
    assert!(list.contains("in use by"), "{list}");
    drop(file);
    place.works(&["disk", "check", "good.toml"]);
}

#[test]
fn build_says_what_it_made() {
    let place = Place::new();
    let output = place.quorate(&["build", "good.toml"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let path = String::from_utf8(output.stdout).unwrap();
    let info = quorate_images::verify(Path::new(path.trim())).unwrap();
    let digest: String = info
        .digest
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert!(stderr.contains(&format!("digest {digest}")), "{stderr}");
    // Not a terminal: no bar, nothing that moves.
    assert!(
        !stderr.contains('\r') && !stderr.contains('\u{1b}'),
        "{stderr:?}"
    );
    // A seed that does not fit is found now, not at the first run.
    std::fs::write(place.path("seed/large"), vec![1; 17 << 20]).unwrap();
    place.refused(
        &["build", "good.toml"],
        ExitCode::Disk,
        "16M are too little for the files of",
    );
}
