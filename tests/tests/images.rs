//! A user's own program as an appliance: from a directory and from an OCI image, with its user, its disk and each kind of root; run
//! by three replicas. (What can be wrong with images and disks: `images/tests`, `executor/tests/disk_command.rs`.)
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use quorate_tests::one_at_a_time;
use quorate_tests::process::run;
use quorate_tests::set::quorate;
use serde_json::json;

const LONG: Duration = Duration::from_secs(120);

/// Says who and where it is, adds a byte to each file named and says how long it is then; `=FILE` is read and summed up.
const PROGRAM: &str = r#"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int n, char **a) {
    char cwd[256];
    gid_t groups[64];
    int count = getgroups(64, groups);
    printf("user %d:%d", getuid(), getgid());
    for (int i = 0; i < count; i++) printf("+%d", groups[i]);
    printf(" in %s, FOO %s, HOME %s\n", getcwd(cwd, sizeof cwd), getenv("FOO"), getenv("HOME"));
    for (int i = 1; i < n; i++) {
        if (a[i][0] == '=') {
            static unsigned char buffer[65536];
            unsigned long sum = 0, bytes = 0;
            int fd = open(a[i] + 1, O_RDONLY);
            for (ssize_t got; (got = read(fd, buffer, sizeof buffer)) > 0; bytes += got)
                for (ssize_t k = 0; k < got; k++) sum = sum * 31 + buffer[k];
            printf("%s: %lu bytes, sum %lx\n", a[i] + 1, bytes, sum);
            continue;
        }
        int fd = open(a[i], O_WRONLY | O_CREAT | O_APPEND, 0644);
        if (fd < 0 || write(fd, "x", 1) != 1 || fsync(fd) != 0) {
            printf("%s: %s\n", a[i], strerror(errno));
            continue;
        }
        struct stat s;
        fstat(fd, &s);
        printf("%s: %ld\n", a[i], (long)s.st_size);
    }
    return 0;
}
"#;

struct Place(tempfile::TempDir);

impl Place {
    /// A directory with `root/bin/look`, the program.
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(place.path("root/bin")).unwrap();
        std::fs::write(place.path("look.c"), PROGRAM).unwrap();
        let (source, program) = (place.path("look.c"), place.path("root/bin/look"));
        place.tool(
            "cc",
            &["-O1", "-static", "-o", text(&program), text(&source)],
        );
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a program of the host; what it prints.
    fn tool(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(self.0.path())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn quorate(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(quorate().unwrap());
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env("QUORATE_CACHE", self.path("cache"))
            .env("QUORATE_STATE_DIR", self.path("state"))
            .env("XDG_RUNTIME_DIR", self.0.path())
            .env_remove("RUST_LOG");
        let ended = run(command, LONG).unwrap();
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
        String::from_utf8(ended.stdout).unwrap().replace('\r', "")
    }

    /// What the guest program prints, run by three replicas as this appliance says.
    fn run(&self, appliance: &str) -> String {
        let text = format!("version = 1\nname = \"look\"\n{appliance}");
        std::fs::write(self.path("look.toml"), text).unwrap();
        self.quorate(&["run", "look.toml", "--replicas", "3"])
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_program_that_is_not_root_keeps_its_files_on_a_disk() {
    let _one = one_at_a_time("a program of a user's own writes to a disk as www-data");
    let place = Place::new();
    let appliance = "[image]\ndirectory = \"root\"\n[program]\ncommand = [\"/bin/look\", \"/data/log\", \"/forbidden\"]\n\
        user = \"www-data\"\ngroups = [\"adm\", 44]\ncwd = \"/data\"\nenv = { FOO = \"bar\" }\n[machine]\nmemory = \"64M\"\n\
        [[disk]]\nname = \"data\"\nsize = \"16M\"\nmount = \"/data\"\n";
    for length in 1..=2 {
        let said = place.run(appliance);
        assert!(
            said.starts_with("user 33:33+4+44 in /data, FOO bar"),
            "{said}"
        );
        assert!(said.contains(&format!("/data/log: {length}\n")), "{said}");
        assert!(said.contains("/forbidden: Permission denied"), "{said}");
    }
    let checked = place.quorate(&["disk", "check", "look.toml"]);
    assert!(checked.contains("sound, unmounted cleanly"), "{checked}");
    place.quorate(&["disk", "extract", "look.toml", "out"]);
    assert_eq!(
        std::fs::read_to_string(place.path("out/log")).unwrap(),
        "xx"
    );
}

#[test]
fn changes_to_the_root_are_kept_as_the_appliance_says() {
    let _one = one_at_a_time("root: memory, read-only, disk");
    let place = Place::new();
    std::fs::write(place.path("root/old"), "12345").unwrap();
    let appliance = |root: &str| {
        format!(
            "[image]\ndirectory = \"root\"\n[program]\ncommand = [\"/bin/look\", \"/old\", \"/new\", \"/scratch/x\"]\n\
             [machine]\nmemory = \"64M\"\nroot = \"{root}\"\n[[tmpfs]]\npath = \"/scratch\"\nsize = \"1M\"\n"
        )
    };
    for _ in 0..2 {
        let said = place.run(&appliance("memory"));
        assert!(said.contains("/old: 6\n/new: 1\n/scratch/x: 1\n"), "{said}");
    }
    let said = place.run(&appliance("read-only"));
    let refused = "Read-only file system\n";
    let expected = format!("/old: {refused}/new: {refused}/scratch/x: 1\n");
    assert!(said.contains(&expected), "{said}");
    let disk = "[[disk]]\nname = \"top\"\nsize = \"32M\"\n";
    for run in 1..=2 {
        let said = place.run(&format!("{}{disk}", appliance("disk:top")));
        let expected = format!("/old: {}\n/new: {run}\n/scratch/x: 1\n", 5 + run);
        assert!(said.contains(&expected), "{said}");
    }
    let checked = place.quorate(&["disk", "check", "look.toml"]);
    assert!(checked.contains("sound"), "{checked}");
}

#[test]
fn an_oci_image_runs_as_it_says_itself() {
    let _one = one_at_a_time("an OCI image");
    let place = Place::new();
    std::fs::create_dir_all(place.path("root/etc")).unwrap();
    std::fs::create_dir_all(place.path("root/srv")).unwrap();
    std::fs::write(place.path("root/etc/passwd"), "web:x:44:55::/srv:/bin/sh\n").unwrap();
    let layer = place.path("layer.tar");
    place.tool(
        "tar",
        &[
            "--owner=0",
            "--group=0",
            "-C",
            "root",
            "-cf",
            text(&layer),
            ".",
        ],
    );
    std::fs::create_dir_all(place.path("layout/blobs/sha256")).unwrap();
    let blob = |from: PathBuf| {
        let line = place.tool("sha256sum", &[text(&from)]);
        let digest = line.split(' ').next().unwrap().to_owned();
        let size = std::fs::metadata(&from).unwrap().len();
        std::fs::copy(&from, place.path("layout/blobs/sha256").join(&digest)).unwrap();
        (format!("sha256:{digest}"), size)
    };
    let document = |value: serde_json::Value| {
        std::fs::write(place.path("document"), value.to_string()).unwrap();
        blob(place.path("document"))
    };
    let layer = blob(layer);
    let config = document(json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [layer.0] },
        "config": { "User": "web", "Env": ["PATH=/bin", "FOO=image"], "Entrypoint": ["look"], "Cmd": ["/tmp/a"], "WorkingDir": "/srv" },
    }));
    let manifest = document(json!({
        "schemaVersion": 2,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": config.1 },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.0, "size": layer.1 }],
    }));
    let index = json!({ "schemaVersion": 2, "manifests": [{ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest.0, "size": manifest.1 }] });
    std::fs::write(place.path("layout/index.json"), index.to_string()).unwrap();
    let said = place.run("[image]\noci = \"layout\"\n[machine]\nmemory = \"64M\"\n");
    assert_eq!(
        said,
        "user 44:55 in /srv, FOO image, HOME /srv\n/tmp/a: 1\n"
    );
    // The same as an archive, and with a word of the appliance's own.
    place.tool("tar", &["-C", "layout", "-czf", "image.tar.gz", "."]);
    let own = "[image]\noci = \"image.tar.gz\"\n[program]\nuid = 7\nenv = { FOO = \"own\" }\n[machine]\nmemory = \"64M\"\n";
    let said = place.run(own);
    assert_eq!(said, "user 7:0 in /srv, FOO own, HOME /\n/tmp/a: 1\n");
}

/// The image is mapped, not copied: all of it can be read by a machine that has less memory than that.
#[test]
fn an_image_larger_than_the_memory_is_read_whole() {
    let _one = one_at_a_time("an image of 96 MiB in a machine of 32 MiB");
    let place = Place::new();
    let bytes: Vec<u8> = (0..96u32 << 20).map(|i| (i ^ (i >> 13)) as u8).collect();
    let sum = bytes.iter().fold(0u64, |sum, &byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    std::fs::write(place.path("root/large"), &bytes).unwrap();
    let said = place.run(
        "[image]\ndirectory = \"root\"\n[program]\ncommand = [\"/bin/look\", \"=/large\"]\n[machine]\nmemory = \"32M\"\n",
    );
    assert!(
        said.contains(&format!("/large: {} bytes, sum {sum:x}\n", bytes.len())),
        "{said}"
    );
}
