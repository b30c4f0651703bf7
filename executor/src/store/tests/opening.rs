//! Opening: what is refused, and how that is said.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};

use super::*;

fn refused(bench: &Bench, change: impl FnOnce(&mut DiskSpec)) -> String {
    let mut spec = bench.spec(1);
    change(&mut spec);
    match Disk::open(0, spec, Backend::Auto, bench.notify()) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_file_of_another_size_is_refused() {
    let bench = Bench::new(8192);
    let text = refused(&bench, |spec| spec.bytes = 16384);
    assert!(text.contains("has 8192 bytes, the disk 16384"), "{text}");
    assert!(text.contains("truncate -s 16384"), "{text}");
    let text = refused(&bench, |spec| spec.bytes = 4096);
    assert!(text.contains("out of reach"), "{text}");
    let text = refused(&bench, |spec| spec.bytes = 1000);
    assert!(text.contains("whole sectors"), "{text}");
    let text = refused(&bench, |spec| spec.bytes = (1 << 40) + 512);
    assert!(text.contains("1099511627776"), "{text}");
}

#[test]
fn what_is_no_disk_is_refused() {
    let bench = Bench::new(8192);
    let text = refused(&bench, |spec| spec.path.push("x"));
    assert!(text.contains("cannot be opened"), "{text}");
    let text = refused(&bench, |spec| {
        spec.path.pop();
    });
    assert!(text.contains("neither a regular file"), "{text}");
    let text = create(&bench.path(), 4096).unwrap_err().to_string();
    assert!(text.contains("cannot be made"), "{text}");
    assert_eq!(bench.bytes().len(), 8192);
}

#[test]
fn a_terabyte_is_sparse_and_for_the_owner_only() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let bench = Bench::new(512);
    let path = bench.directory.path().join("large");
    create(&path, 1 << 40).unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(meta.mode() & 0o777, 0o600);
    assert!(meta.blocks() < 64);
    let mut spec = bench.spec(1);
    (spec.path, spec.bytes) = (path.clone(), 1 << 40);
    let disk = bench.open(spec, Backend::Auto);
    let last = (1 << 31) - 1;
    pass(&disk, 1, &write(0, last, 9, 1));
    disk.submit(0, &read(1, last - 1, 2)).unwrap();
    assert_eq!(fetch(&disk, 0, 1), [[0; 512], [9; 512]].concat());
    disk.close().unwrap();
    let mut sector = [0; 512];
    let file = std::fs::File::open(&path).unwrap();
    file.read_exact_at(&mut sector, last * 512).unwrap();
    assert_eq!(sector, [9; 512]);
}

#[test]
fn a_disk_is_open_once_and_names_its_holder() {
    let bench = Bench::new(8192);
    let disk = bench.open(bench.spec(1), Backend::Auto);
    let text = refused(&bench, |_| ());
    assert!(
        text.contains("in use by another disk of this process"),
        "{text}"
    );
    assert!(refused(&bench, |spec| spec.read_only = true).contains("in use"));
    disk.close().unwrap();
    // Closed, not dropped: the lock is gone.
    let again = bench.open(bench.spec(1), Backend::Auto);
    again.close().unwrap();
}

#[test]
fn readers_share_a_disk_that_nobody_writes() {
    let bench = Bench::new(8192);
    let read_only = |spec: &mut DiskSpec| spec.read_only = true;
    let mut spec = bench.spec(1);
    read_only(&mut spec);
    let one = bench.open(spec.clone(), Backend::Auto);
    let two = bench.open(spec, Backend::Auto);
    assert!(refused(&bench, |_| ()).contains("in use"));
    let text = one.submit(0, &write(0, 0, 1, 1)).unwrap_err().to_string();
    assert!(text.contains("read-only"), "{text}");
    pass(&one, 1, &flush(0));
    let ok = done(0, Waiting::Flush, BlockStatus::Ok);
    assert_eq!(due(&one, 0, &bench.notices), [ok]);
    two.close().unwrap();
    one.close().unwrap();
}

/// Not a test by itself: the other process of the next one.
#[test]
fn other_process() {
    let Some(path) = std::env::var_os("QUORATE_TEST_LOCK") else {
        return;
    };
    let quiet: Arc<dyn Fn(Notice) + Send + Sync> = Arc::new(|_| ());
    let bytes = std::fs::metadata(&path).unwrap().len();
    let spec = DiskSpec {
        name: String::new(),
        path: path.into(),
        bytes,
        read_only: false,
        on_error: OnError::Stop,
        replicas: 1,
        recoverable: true,
        bounds: Bounds::default(),
    };
    let disk = Disk::open(0, spec, Backend::Auto, quiet).unwrap();
    println!("\nlocked");
    let _ = std::io::stdin().read_line(&mut String::new());
    drop(disk);
}

#[test]
fn two_processes_cannot_open_one_disk() {
    let bench = Bench::new(8192);
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "store::tests::opening::other_process",
        ])
        .env("QUORATE_TEST_LOCK", bench.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(other.stdout.take().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    assert!(lines.any(|line| line == "locked"));
    let text = refused(&bench, |_| ());
    assert!(
        text.contains(&format!("in use by process {}", other.id())),
        "{text}"
    );
    // However it ends, the lock goes with it.
    other.kill().unwrap();
    other.wait().unwrap();
    let _ = other.stdin.take().map(|mut s| s.write_all(b"\n"));
    let disk = bench.open(bench.spec(1), Backend::Auto);
    disk.close().unwrap();
}
