//! Lock files beside appliances: the same packages again, from the same place or Debian's archive, or an error that says what to do. The
//! packages are the tests' own, served on loopback; apt-get is not asked for any.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use quorate_images::{Appliance, BuildError, BuildOptions, BuiltImage, build, write_lock};
use sha2::{Digest, Sha256};
use support::oci::{Entry, archive};
use support::{text, view};
use tempfile::TempDir;

/// A Debian package with these files (deb(5)); nothing but its data is ever looked at.
fn deb(entries: &[Entry]) -> Vec<u8> {
    let mut builder = ar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("debian-binary", b"2.0\n".to_vec()),
        ("data.tar", archive(entries)),
    ] {
        let header = ar::Header::new(name.into(), bytes.len() as u64);
        builder.append(&header, &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Serves the files of a directory over HTTP until the process ends; what it has not is 404.
fn serve(directory: PathBuf) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while reader.read_line(&mut request).unwrap_or(0) > 2 {}
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let (status, body) = match fs::read(directory.join(path.trim_start_matches('/'))) {
                Ok(body) => ("200 OK", body),
                Err(_) => ("404 Not Found", Vec::new()),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(&body);
        }
    });
    base
}

struct Bench {
    dir: TempDir,
    base: String,
}

impl Bench {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("mirror")).unwrap();
        let base = serve(dir.path().join("mirror"));
        let bench = Self { dir, base };
        let text = "version = 1\nname = \"t\"\n[image]\npackages = [\"prog\"]\n[program]\ncommand = [\"/bin/t\"]\n";
        fs::write(bench.path("t.toml"), text).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn appliance(&self) -> Appliance {
        Appliance::load(self.path("t.toml")).unwrap()
    }

    /// Puts two packages onto the mirror, and a lock file for them beside the appliance.
    fn publish(&self) {
        let packages = [
            ("prog", deb(&[Entry::file("bin/t", 0o755, "program")])),
            ("data", deb(&[Entry::file("srv/data", 0o644, "data")])),
        ];
        let mut lock =
            "version = 3\nnames = [\"prog\"]\nwithout = []\nresolved = \"20260131T235959Z\"\n"
                .to_owned();
        for (name, bytes) in packages {
            let digest: String = Sha256::digest(&bytes)
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            let file = format!("{name}_1_amd64.deb");
            lock.push_str(&format!(
                "[[packages]]\nname = \"{name}\"\nversion = \"1\"\narchitecture = \"amd64\"\nfile = \"{file}\"\nsize = {}\nsha256 = \"{digest}\"\nuri = \"{}/{file}\"\n",
                bytes.len(),
                self.base
            ));
            fs::write(self.path("mirror").join(file), bytes).unwrap();
        }
        fs::write(self.path("t.lock"), lock).unwrap();
    }

    fn build(&self) -> Result<BuiltImage, BuildError> {
        build(&self.appliance(), &BuildOptions::new(self.path("cache")))
    }

    fn refusal(&self) -> String {
        self.build().unwrap_err().to_string()
    }
}

#[test]
fn the_packages_of_the_lock_are_used_and_give_the_same_image() {
    let bench = Bench::new();
    bench.publish();
    let first = bench.build().unwrap();
    let names: Vec<&str> = first.packages.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["prog", "data"]);
    assert_eq!(text(&view(&first.path), "/srv/data"), "data");
    // The lock says what was built already.
    assert_eq!(write_lock(&bench.appliance(), &first).unwrap(), None);

    // Without the cache: downloaded and built anew, byte for byte the same.
    fs::remove_dir_all(bench.path("cache")).unwrap();
    let second = bench.build().unwrap();
    assert!(!second.cached);
    assert_eq!(second.digest, first.digest);

    // Without the mirror: the cache has everything, a damaged package excepted.
    fs::rename(bench.path("mirror"), bench.path("gone")).unwrap();
    assert!(bench.build().unwrap().cached);
    fs::remove_file(&second.path).unwrap();
    assert_eq!(bench.build().unwrap().digest, first.digest);
    fs::remove_file(&second.path).unwrap();
    fs::write(bench.path("cache/debs/prog_1_amd64.deb"), "damaged").unwrap();
    let message = bench.refusal();
    assert!(
        message.starts_with("prog 1 of the lock file could not be downloaded")
            && message.contains("`quorate build --update`"),
        "{message}"
    );
    fs::rename(bench.path("gone"), bench.path("mirror")).unwrap();
    assert_eq!(bench.build().unwrap().digest, first.digest);

    // Without the lock file the cache's own one says the same; it is written anew.
    fs::remove_file(bench.path("t.lock")).unwrap();
    let again = bench.build().unwrap();
    assert_eq!(again.digest, first.digest);
    let written = write_lock(&bench.appliance(), &again).unwrap();
    assert_eq!(written, Some(bench.path("t.lock")));
    let lock = fs::read_to_string(bench.path("t.lock")).unwrap();
    assert!(
        lock.starts_with("# The packages") && lock.contains("20260131T235959Z"),
        "{lock}"
    );
    assert_eq!(bench.build().unwrap().digest, first.digest);
}

#[test]
fn locks_that_cannot_be_followed() {
    let bench = Bench::new();
    bench.publish();
    let lock = fs::read_to_string(bench.path("t.lock")).unwrap();
    let with = |from: &str, to: &str| {
        assert!(lock.contains(from), "{from}");
        fs::write(bench.path("t.lock"), lock.replacen(from, to, 1)).unwrap();
        bench.refusal()
    };
    // Not a lock, one of another version, for other packages, or one that would write elsewhere or pass an option.
    for (from, to) in [
        ("version = 3", "version = ["),
        ("version = 3", "version = 2"),
        ("names = [\"prog\"]", "names = [\"other\"]"),
        ("without = []", "without = [\"perl\"]"),
        ("file = \"prog_1", "file = \"../../prog_1"),
        ("uri = \"http", "uri = \"-o\\nhttp"),
        ("uri = \"http", "uri = \"exec:http"),
        ("20260131", "../../20260131"),
        ("[[packages]]", "[[packages]]\nmore = 1"),
    ] {
        let message = with(from, to);
        assert!(
            message.contains(
                "t.lock: not a lock file for the packages of [image]; `quorate build --update`"
            ),
            "{to}: {message}"
        );
    }
    // The mirror has another file of that name.
    fs::write(bench.path("t.lock"), &lock).unwrap();
    fs::write(bench.path("mirror/data_1_amd64.deb"), "another").unwrap();
    let message = bench.refusal();
    assert!(
        message.starts_with("data 1 of the lock file could not"),
        "{message}"
    );
    assert!(
        !bench.path("cache/debs/data_1_amd64.deb").exists(),
        "a wrong file was kept"
    );

    // What a package holds is checked as ever: here a path that leads out.
    let bad = deb(&[Entry::file("../escaped", 0o644, "")]);
    let digest: String = Sha256::digest(&bad)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    fs::write(bench.path("mirror/prog_1_amd64.deb"), &bad).unwrap();
    bench.publish_data_again();
    let at = lock.find("sha256 = \"").unwrap() + 10;
    let message = with(&lock[at..at + 64], &digest);
    assert!(
        message.contains("not a path that an image can hold"),
        "{message}"
    );
}

impl Bench {
    fn publish_data_again(&self) {
        let bytes = deb(&[Entry::file("srv/data", 0o644, "data")]);
        fs::write(self.path("mirror/data_1_amd64.deb"), bytes).unwrap();
    }
}

#[test]
fn progress_is_told() {
    let bench = Bench::new();
    bench.publish();
    let steps = RefCell::new(Vec::new());
    let options = BuildOptions {
        progress: &|step| steps.borrow_mut().push(format!("{step:?}")),
        ..BuildOptions::new(bench.path("cache"))
    };
    build(&bench.appliance(), &options).unwrap();
    let steps = steps.into_inner();
    let starts = [
        "Downloading { percent: 0",
        "Downloading { percent: 50",
        "Unpacking { package: \"prog\", index: 1, total: 2",
        "Unpacking { package: \"data\", index: 2",
        "Writing",
    ];
    assert_eq!(steps.len(), starts.len(), "{steps:?}");
    for (step, start) in steps.iter().zip(starts) {
        assert!(step.starts_with(start), "{step} instead of {start}");
    }
}
