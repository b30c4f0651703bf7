//! Programs that are compiled from a source package: unpacked, patched, built by the appliance's script, kept, and put into the image.
//! The source package and the mirror are the tests' own; apt-get is asked for nothing but downloads.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use quorate_images::{Appliance, BuildError, BuildOptions, BuiltImage, build, write_lock};
use sha2::{Digest, Sha256};
use support::oci::{Entry, archive};
use support::{text, view};
use tempfile::TempDir;

const PATCH: &str = "--- a/word\n+++ b/word\n@@ -1 +1 @@\n-old\n+new\n";
/// Takes the place of a makefile: the program says the word of the source, and how it was called.
const SCRIPT: &str = "#!/bin/sh\nset -eu\nmkdir -p \"$OUT/bin\" \"$OUT/lib\"\n{ cat word; cat \"$SYSROOT/usr/include/header\"; echo \"$SOURCE_DATE_EPOCH\"; } > \"$OUT/bin/t\"\nchmod 755 \"$OUT/bin/t\"\nln -s ../bin/t \"$OUT/lib/t\"\n[ -z \"${SECRET-}\" ]\n";

struct Bench {
    dir: TempDir,
}

fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn deb(entries: &[Entry]) -> Vec<u8> {
    let mut builder = ar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("debian-binary", b"2.0\n".to_vec()),
        (
            "control.tar",
            archive(&[Entry::file("control", 0o644, "Package: x\n")]),
        ),
        ("data.tar", archive(entries)),
    ] {
        let header = ar::Header::new(name.into(), bytes.len() as u64);
        builder.append(&header, &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

impl Bench {
    /// A source package `prog` with one file, a package that it needs, one that the image is made from, and a lock that names them.
    fn new() -> Self {
        let bench = Self {
            dir: TempDir::new().unwrap(),
        };
        fs::create_dir(bench.path("mirror")).unwrap();
        // dpkg-source writes into this directory.
        fs::create_dir_all(bench.path("prog-1/debian/source")).unwrap();
        fs::write(bench.path("prog-1/word"), "old\n").unwrap();
        let made = std::process::Command::new("tar")
            .args(["-czf", "mirror/prog_1.tar.gz", "prog-1"])
            .current_dir(bench.dir.path())
            .status()
            .unwrap();
        assert!(made.success());
        let tar = fs::read(bench.path("mirror/prog_1.tar.gz")).unwrap();
        let description = format!(
            "Format: 3.0 (native)\nSource: prog\nBinary: prog\nArchitecture: any\nVersion: 1\nMaintainer: x <x@x>\nChecksums-Sha256:\n {} {} prog_1.tar.gz\nFiles:\n d41d8cd98f00b204e9800998ecf8427e {} prog_1.tar.gz\n",
            hex(&tar),
            tar.len(),
            tar.len()
        );
        // dpkg-source insists on its MD5 sums too.
        let md5 = std::process::Command::new("md5sum")
            .arg(bench.path("mirror/prog_1.tar.gz"))
            .output()
            .unwrap();
        let md5 = String::from_utf8(md5.stdout).unwrap()[..32].to_owned();
        let description = description.replace("d41d8cd98f00b204e9800998ecf8427e", &md5);
        fs::write(bench.path("mirror/prog_1.dsc"), description).unwrap();
        let base = deb(&[
            Entry::file("bin/t", 0o755, "of the package"),
            Entry::file("srv/data", 0o644, "data"),
        ]);
        let header = deb(&[Entry::file("usr/include/header", 0o644, "header\n")]);
        fs::write(bench.path("mirror/base_1_amd64.deb"), base).unwrap();
        fs::write(bench.path("mirror/needs_1_amd64.deb"), header).unwrap();
        let table = |kind: &str, name: &str, file: &str| {
            let path = bench.path("mirror").join(file);
            let bytes = fs::read(&path).unwrap();
            format!(
                "[[{kind}]]\nname = \"{name}\"\nversion = \"1\"\narchitecture = \"amd64\"\nfile = \"{file}\"\nsize = {}\nsha256 = \"{}\"\nuri = \"copy:{}\"\n",
                bytes.len(),
                hex(&bytes),
                path.display()
            )
        };
        let lock = [
            "version = 3\nnames = [\"base\"]\nwithout = []\nresolved = \"20260131T235959Z\"\n"
                .to_owned(),
            table("packages", "base", "base_1_amd64.deb"),
            "[[sources]]\nname = \"prog\"\nwanted = \"1\"\n".to_owned(),
            table("sources.files", "prog", "prog_1.dsc"),
            table("sources.files", "prog", "prog_1.tar.gz"),
            table("sources.needs", "needs", "needs_1_amd64.deb"),
        ]
        .concat();
        fs::write(bench.path("t.lock"), lock).unwrap();
        fs::write(bench.path("a.patch"), PATCH).unwrap();
        bench.script(SCRIPT);
        bench.appliance("patches = [\"a.patch\"], ");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn script(&self, text: &str) {
        // Under another name first: a file that another thread's child still has open for writing cannot be run.
        fs::write(self.path("script.new"), text).unwrap();
        fs::set_permissions(self.path("script.new"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(self.path("script.new"), self.path("script")).unwrap();
    }

    fn appliance(&self, keys: &str) {
        let text = format!(
            "version = 1\nname = \"t\"\n[image]\npackages = [\"base\"]\nsources = [{{ package = \"prog\", version = \"1\", {keys}script = \"script\", needs = [\"needs\"] }}]\n[program]\ncommand = [\"/bin/t\"]\n"
        );
        fs::write(self.path("t.toml"), text).unwrap();
    }

    fn build(&self) -> Result<BuiltImage, BuildError> {
        let appliance = Appliance::load(self.path("t.toml")).unwrap();
        build(&appliance, &BuildOptions::new(self.path("cache")))
    }

    fn builds(&self) -> usize {
        fs::read_dir(self.path("cache/built")).unwrap().count()
    }
}

#[test]
fn what_the_script_makes_is_in_the_image() {
    let bench = Bench::new();
    let built = bench.build().unwrap();
    let image = view(&built.path);
    assert_eq!(text(&image, "/bin/t"), "new\nheader\n1767225600\n");
    assert_eq!(text(&image, "/lib/t"), "new\nheader\n1767225600\n");
    assert_eq!(text(&image, "/srv/data"), "data");
    assert_eq!(built.sources[0].files.len(), 2);
    // The lock names the source package too.
    let appliance = Appliance::load(bench.path("t.toml")).unwrap();
    assert_eq!(write_lock(&appliance, &built).unwrap(), None);

    // The same again: nothing is run. Then without the image: what was compiled is kept.
    assert!(bench.build().unwrap().cached);
    fs::remove_dir_all(bench.path("cache/images")).unwrap();
    let again = bench.build().unwrap();
    assert_eq!((again.digest, bench.builds()), (built.digest, 1));

    // Another patch is another image; and one without any.
    bench.appliance("");
    let plain = bench.build().unwrap();
    assert_eq!(
        text(&view(&plain.path), "/bin/t"),
        "old\nheader\n1767225600\n"
    );
    assert_eq!(bench.builds(), 2);
    fs::write(bench.path("a.patch"), PATCH.replace("new", "newer")).unwrap();
    bench.appliance("patches = [\"a.patch\"], ");
    let other = bench.build().unwrap();
    assert_eq!(
        text(&view(&other.path), "/bin/t"),
        "newer\nheader\n1767225600\n"
    );
}

#[test]
fn what_goes_wrong_is_said() {
    let bench = Bench::new();
    bench.script("#!/bin/sh\necho one; echo two >&2; exit 3\n");
    let error = bench.build().unwrap_err().to_string();
    assert!(
        error.starts_with("source package prog: cannot run the script: exit status: 3; the end of what it wrote:\n"),
        "{error}"
    );
    assert!(error.contains("one") && error.contains("two"), "{error}");
    // A build that failed leaves nothing.
    assert_eq!(bench.builds(), 0);

    bench.script(SCRIPT);
    fs::write(bench.path("a.patch"), PATCH.replace("old", "other")).unwrap();
    let error = bench.build().unwrap_err().to_string();
    let start = "source package prog: cannot apply ";
    assert!(
        error.starts_with(start) && error.contains("FAILED"),
        "{error}"
    );

    fs::write(bench.path("a.patch"), PATCH).unwrap();
    fs::write(bench.path("mirror/prog_1.tar.gz"), "damaged").unwrap();
    fs::remove_dir_all(bench.path("cache/sources")).unwrap();
    let error = bench.build().unwrap_err().to_string();
    assert!(error.contains("could not be downloaded"), "{error}");

    fs::remove_file(bench.path("a.patch")).unwrap();
    let error = bench.build().unwrap_err().to_string();
    assert!(error.contains("a.patch: cannot find"), "{error}");
}

/// A lock for another version of the source package is not taken.
#[test]
fn a_lock_is_for_these_sources() {
    let bench = Bench::new();
    let text = fs::read_to_string(bench.path("t.toml")).unwrap();
    fs::write(
        bench.path("t.toml"),
        text.replace("version = \"1\"", "version = \"2\""),
    )
    .unwrap();
    let error = bench.build().unwrap_err().to_string();
    assert!(
        error.contains("not a lock file for the packages"),
        "{error}"
    );
}
