//! What Linux replicas write to voted disks. A program that writes a raw device with O_DIRECT has all of it confirmed, though each
//! replica writes in its own order; of an ext4 file system what differs is named, with the policy, and is not on the disk.
//!
//! The program is a store of blocks: BusyBox' web server with a script of `dd oflag=direct conv=fsync` behind it, a process for each
//! request. It stands for a database that has its data on a raw device: the kernel's page cache and file system have no part in it.
//!
//! This needs a KVM that runs ring 0 in hardware. Elsewhere the test says so and is over: the SVM lane runs it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use quorate_executor::patience::patient;
use quorate_tests::linux::{build, runs_here};
use quorate_tests::set::{Options, quorate_run};
use quorate_tests::{disk, one_at_a_time, shortened};

const BLOCK: usize = 4096;
const SECTOR: usize = 512;
const CONNECTIONS: usize = 4;
const BLOCKS: usize = 256;
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(60);

const APPLIANCE: &str = r#"version = 1
name = "linux-disks"
[image]
packages = ["busybox-static"]
files = [
    { path = "/bin/sh", link = "busybox" },
    { path = "/www/cgi-bin/block", mode = 0o755, content = '''
#!/bin/busybox sh
echo "Content-Type: application/octet-stream"
echo
case $REQUEST_METHOD in
POST)
    busybox dd of=/dev/vdb bs=4096 count=1 seek="$QUERY_STRING" iflag=fullblock oflag=direct conv=notrunc,fsync status=none &&
        echo written ;;
GET)
    busybox dd if=/dev/vdb bs=4096 count=1 skip="$QUERY_STRING" iflag=direct status=none ;;
esac
''' },
    { path = "/www/cgi-bin/file", mode = 0o755, content = '''
#!/bin/busybox sh
echo "Content-Type: text/plain"
echo
busybox dd of="/files/$QUERY_STRING" bs=4096 count=1 iflag=fullblock conv=fsync status=none && echo written
''' },
]
[program]
command = ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"]
[linux]
[machine]
memory = "192M"
replicas = 3
[[disk]]
name = "raw"
size = "4M"
filesystem = "none"
path = "raw.img"
relaxed = "vote"
[[disk]]
name = "files"
size = "32M"
mount = "/files"
path = "files.img"
relaxed = "vote"
unconfirmed = "report"
"#;

/// What is written to a block: its number and a pattern of the round.
fn content(block: usize, round: usize) -> Vec<u8> {
    let byte = |at: usize| (at * 31 + block * 7 + round * 131) as u8;
    let mut content: Vec<u8> = (0..BLOCK).map(byte).collect();
    content[..8].copy_from_slice(&(block as u64).to_le_bytes());
    content
}

/// One request on a connection of its own; the body of the answer.
fn ask(address: SocketAddr, request: &str, body: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(patient(PATIENCE))).unwrap();
    let head = format!(
        "{request} HTTP/1.0\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
        .or_else(|| {
            let at = answer.windows(2).position(|window| window == b"\n\n");
            at.map(|at| at + 2)
        });
    let end = end.unwrap_or_else(|| panic!("{request}: {:?}", String::from_utf8_lossy(&answer)));
    answer.split_off(end)
}

fn written(address: SocketAddr, path: &str, body: &[u8]) {
    let answer = ask(address, &format!("POST {path}"), body);
    assert_eq!(String::from_utf8_lossy(&answer), "written\n", "{path}");
}

#[test]
fn a_raw_device_is_confirmed_and_a_file_system_is_reported() {
    let _turn = one_at_a_time("three Linux replicas write a raw device and an ext4 file system");
    let directory = disk::directory().unwrap();
    let appliance = directory.path().join("linux-disks.toml");
    std::fs::write(&appliance, APPLIANCE).unwrap();
    build(APPLIANCE, "linux-disks.toml").unwrap();
    if !runs_here() {
        return;
    }
    let created = quorate_run(&["disk", "create", &appliance.display().to_string()]).unwrap();
    assert_eq!(created.code, 0, "{}", created.stderr);
    let image = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
    let fresh = image("files.img");

    let set = Options::new(&appliance).publish(80).start().unwrap();
    let address = set.address();
    // The disks are what is looked at here. A replica that boots last takes in at once what the others had one by one, and its web server
    // was seen to drop a connection then (docs/linux-appliances.md, known limits).
    let until = Instant::now() + patient(PATIENCE);
    loop {
        let status = set.status().unwrap();
        let replicas = status["replicas"].as_array().unwrap();
        if replicas.iter().all(|replica| replica["state"] != "booting") {
            break;
        }
        assert!(Instant::now() < until, "{status:#}");
    }
    let blocks = shortened(BLOCKS, 4 * CONNECTIONS);
    // Two rounds, so that blocks are overwritten, by several connections at once.
    for round in 0..2 {
        std::thread::scope(|scope| {
            for number in 0..CONNECTIONS {
                scope.spawn(move || {
                    for block in (number..blocks).step_by(CONNECTIONS) {
                        let path = format!("/cgi-bin/block?{block}");
                        written(address, &path, &content(block, round));
                    }
                });
            }
        });
    }
    for number in 0..3 {
        written(
            address,
            &format!("/cgi-bin/file?{number}"),
            &content(number, 7),
        );
    }

    // The last replica may not have come so far.
    let until = Instant::now() + patient(PATIENCE);
    let (raw, files) = loop {
        let status = set.status().unwrap();
        let of = |name: &str| {
            let disks = status["relaxed"]["disks"].as_array();
            let found = disks.and_then(|disks| disks.iter().find(|disk| disk["name"] == name));
            found.cloned().unwrap_or_else(|| panic!("{status:#}"))
        };
        let raw = of("raw");
        if raw["unconfirmed_sectors"] == 0 && raw["held_bytes"] == 0 {
            assert_eq!(status["running"], 3, "{status:#}");
            break (raw, of("files"));
        }
        assert!(Instant::now() < until, "{raw:#}");
    };
    // Not before: a web server with a process for each request may answer this one before it has done what came earlier on another
    // connection, and a replica that is behind would be asked for both at once.
    let read = ask(address, &format!("GET /cgi-bin/block?{}", blocks - 1), b"");
    assert!(read == content(blocks - 1, 1), "{} bytes read", read.len());
    let bytes = 2 * blocks * BLOCK;
    assert_eq!(raw["released_bytes"], bytes, "{raw:#}");
    assert_eq!(raw["stats"]["written_bytes"], 3 * bytes, "{raw:#}");
    let ended = set.stop().unwrap();
    let said = &ended.stderr;
    assert!(!said.contains("disk raw:"), "{said}");
    assert!(!said.contains("verdict:"), "somebody differed: {said}");

    let disk = image("raw.img");
    for block in 0..blocks {
        let there = &disk[block * BLOCK..(block + 1) * BLOCK];
        assert!(there == content(block, 1), "block {block} of the disk");
    }
    assert!(disk[blocks * BLOCK..].iter().all(|byte| *byte == 0));

    // The file system: what was not agreed on is told, and is not there.
    let mut lines = said.lines().filter(|line| line.contains("disk files:"));
    let line = lines.find(|line| line.contains("never confirmed"));
    let line = line.unwrap_or_else(|| panic!("all of an ext4 file system was the same: {said}"));
    eprintln!("{line}");
    assert!(line.contains("(vote, unconfirmed = report)"), "{line}");
    let after = image("files.img");
    let mut undecided = 0;
    for range in files["unconfirmed"].as_array().unwrap() {
        // Where a quorum has agreed on something else, that is on the disk.
        if range["decided"] == false {
            let number = |name: &str| range[name].as_u64().unwrap() as usize;
            let place = number("first") * SECTOR..(number("last") + 1) * SECTOR;
            undecided += place.len() / SECTOR;
            assert!(
                after[place.clone()] == fresh[place],
                "{range:#} was released"
            );
        }
    }
    assert_ne!(undecided, 0, "{files:#}");
}
