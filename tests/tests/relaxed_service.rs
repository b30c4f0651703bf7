//! Relaxed sets of a program that is made for it (`tests/guest-programs/src/bin/service.rs`): guests that wait for the vote, replicas that write
//! something else, that hang, that begin afresh.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use quorate_tests::set::{Options, Set};
use quorate_tests::{disk, one_at_a_time, programs, shortened};

/// How long an answer or a line may take.
const SOON: Duration = Duration::from_secs(60);
const SECTOR: usize = 512;

/// A set of three replicas of the service; `own` are the words of each of them.
fn service(directory: &Path, own: [&str; 3], more: &str) -> Set {
    service_with(directory, own, more, &[])
}

fn service_with(directory: &Path, own: [&str; 3], more: &str, arguments: &[&str]) -> Set {
    let command = |words: &str| {
        let words = ["/bin/service"].into_iter().chain(words.split_whitespace());
        format!("{:?}", words.collect::<Vec<_>>())
    };
    let replicas: String = own
        .iter()
        .map(|words| format!("[[replica]]\ncommand = {}\n", command(words)))
        .collect();
    let more = format!("replicas = 3\n[network]\npublish = [\"7000:7000\"]\n{more}\n{replicas}");
    let image = directory.join("root");
    let text = programs::appliance(&["service"], "128M", &image, &more).unwrap();
    let options = Options::text(&text).unwrap().publish(7000);
    options.arguments(arguments).start().unwrap()
}

struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client {
            reader: BufReader::new(stream),
        }
    }

    fn ask(&mut self, request: &str) -> String {
        let line = format!("{request}\n");
        self.reader.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        let count = self.reader.read_line(&mut answer).unwrap();
        assert_ne!(count, 0, "{request}: the connection ended");
        answer.trim_end().to_owned()
    }
}

fn verdicts(set: &Set) -> Vec<String> {
    let lines = set.lines_with("verdict:");
    lines.into_iter().map(|line| line.text).collect()
}

/// Logs in and says who it is at once, as often; every replica but the last has issued its token by then.
fn log_in(sync: &str, rounds: usize, mut after: impl FnMut(&Set, usize)) -> Set {
    let directory = disk::directory().unwrap();
    let mask = "[[mask]]\npattern = 'token=([0-9a-f]{16})'\ntranslate = true\nports = [\"7000\"]";
    let more = format!("[relaxed]\n{sync}\n{mask}");
    let own = ["salt=1", "salt=2", "salt=3 delay=300"];
    let set = service(directory.path(), own, &more);
    let mut client = Client::connect(set.address());
    for round in 0..rounds {
        let answer = client.ask("LOGIN");
        let token = answer.strip_prefix("token=").unwrap();
        assert_eq!(client.ask(&format!("WHO {token}")), "known");
        after(&set, round);
    }
    set
}

#[test]
fn a_guest_is_not_asked_about_a_token_that_it_has_not_issued() {
    let _turn = one_at_a_time("tokens that each replica makes up, with and without a sync channel");
    let rounds = shortened(20, 4);
    let set = log_in("sync = [\"tcp:7000\"]", rounds, |_, _| {});
    // The slow one comes to the last answer, too, and it is compared (R7).
    let mut client = Client::connect(set.address());
    assert_eq!(client.ask("ADD"), "1");
    set.kill(0).unwrap();
    assert_eq!(client.ask("ADD"), "2", "the slow one votes");
    assert_eq!(verdicts(&set), [""; 0]);
    assert_eq!(set.stop().unwrap().code, 0);

    // Not asked to wait, it gets the token of somebody else, which it does not know.
    let set = log_in("", 1, |_, _| {});
    let line = set
        .wait_for("the verdict", SOON, |line| line.contains("verdict:"))
        .unwrap();
    assert!(line.text.contains("replica 2"), "{}", line.text);
    assert!(line.text.contains("unknown"), "{}", line.text);
    set.stop().unwrap();
}

const RAW: &str = "[[disk]]\nname = \"data\"\nsize = \"1M\"\nfilesystem = \"none\"\n";

fn with_disk(directory: &Path, relaxed: &str, disk: &str) -> Set {
    let path = directory.join("data.img");
    let more = format!(
        "[policy]\nlag_timeout_ms = 3000\n[relaxed]\n{relaxed}\n{RAW}path = {:?}\n{disk}",
        path.display().to_string()
    );
    service(directory, ["disk=/dev/disk0"; 3], &more)
}

/// Asks until every replica has a checkpoint: they are taken when a guest is quiet.
fn checkpointed(set: &Set, client: &mut Client) {
    let until = Instant::now() + SOON;
    let taken = |replica: &serde_json::Value| replica["checkpoints"]["taken"].as_u64() > Some(0);
    while !set.status().unwrap()["replicas"]
        .as_array()
        .unwrap()
        .iter()
        .all(taken)
    {
        assert!(Instant::now() < until, "no checkpoints");
        assert_eq!(client.ask("VERSION"), "");
    }
}

fn sector(directory: &Path, number: usize) -> String {
    let all = std::fs::read(directory.join("data.img")).unwrap();
    let text = &all[number * SECTOR..(number + 1) * SECTOR];
    let text = text.split(|byte| *byte == 0).next().unwrap();
    String::from_utf8_lossy(text).into_owned()
}

#[test]
fn a_wrong_write_on_a_sync_disk_is_outvoted_without_a_flush() {
    let _turn = one_at_a_time("a raw disk whose writes wait, one replica writes something else");
    let directory = disk::directory().unwrap();
    let path = directory.path();
    let set = with_disk(path, "sync = [\"disk:data\"]", "");
    let mut client = Client::connect(set.address());
    for number in 0..20 {
        assert_eq!(client.ask(&format!("PUT {number} text {number}")), "put");
    }
    checkpointed(&set, &mut client);
    set.inject(1, &["wrong-write"]).unwrap();
    assert_eq!(client.ask("PUT 33 right"), "put");
    // Nobody flushes: that is what tells this disk from others.
    let line = set
        .wait_for("the verdict", SOON, |line| line.contains("verdict:"))
        .unwrap();
    for word in ["disk data", "replica 1", "sector 33", "write"] {
        assert!(line.text.contains(word), "{word}: {}", line.text);
    }
    set.wait_for("its return", SOON, |line| {
        line.contains("set at full strength again")
    })
    .unwrap();
    assert_eq!(client.ask("GET 33"), "right");
    assert_eq!(client.ask("PUT 34 after"), "put");
    assert_eq!(client.ask("SYNC"), "synced");
    assert_eq!(sector(path, 33), "right");
    assert_eq!(sector(path, 19), "text 19");
    assert_eq!(sector(path, 34), "after");
    assert_eq!(verdicts(&set).len(), 1);
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn wrong_writes_are_outvoted_at_the_flush() {
    let _turn = one_at_a_time("a raw disk, one replica writes something else before a flush");
    let directory = disk::directory().unwrap();
    let path = directory.path();
    let set = with_disk(path, "", "");
    let mut client = Client::connect(set.address());
    checkpointed(&set, &mut client);
    set.inject(2, &["wrong-write"]).unwrap();
    assert_eq!(client.ask("PUT 7 seven"), "put");
    assert_eq!(client.ask("PUT 8 eight"), "put");
    assert_eq!(client.ask("SYNC"), "synced");
    assert_eq!(
        (sector(path, 7), sector(path, 8)),
        ("seven".to_owned(), "eight".to_owned())
    );
    let line = set
        .wait_for("the verdict", SOON, |line| line.contains("verdict:"))
        .unwrap();
    for word in ["disk data", "replica 2", "sector 7:", "flush"] {
        assert!(line.text.contains(word), "{word}: {}", line.text);
    }
    set.wait_for("its return", SOON, |line| {
        line.contains("set at full strength again")
    })
    .unwrap();
    assert_eq!(client.ask("GET 7"), "seven");
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn a_wrong_answer_is_outvoted_and_its_replica_comes_back() {
    let _turn = one_at_a_time("inject wrong-output: answers of two replicas, one after the other");
    let directory = disk::directory().unwrap();
    let set = service(directory.path(), [""; 3], "[relaxed]");
    let mut client = Client::connect(set.address());
    for (number, replica) in [(1, 1), (2, 0)] {
        assert_eq!(client.ask("ADD"), (2 * number - 1).to_string());
        set.inject(replica, &["wrong-output"]).unwrap();
        assert_eq!(client.ask("ADD"), (2 * number).to_string());
        let wanted = format!("verdict: replica {replica} differs on connection 0, byte");
        set.wait_for("the verdict", SOON, |line| line.contains(&wanted))
            .unwrap();
        let strong = std::cell::Cell::new(0);
        set.wait_for("its return", SOON, |line| {
            strong.set(strong.get() + i32::from(line.contains("set at full strength again")));
            strong.get() == number
        })
        .unwrap();
    }
    assert_eq!(client.ask("ADD"), "5");
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn a_request_that_hangs_a_replica_is_found_and_left_out() {
    let _turn = one_at_a_time("a request over which one replica spins for ever");
    let directory = disk::directory().unwrap();
    let more = "[policy]\nlag_timeout_ms = 1500\n[relaxed]";
    let set = service(directory.path(), ["", "", "hangs"], more);
    let (mut first, mut second) = (
        Client::connect(set.address()),
        Client::connect(set.address()),
    );
    for number in 1..=5 {
        assert_eq!(first.ask("ADD"), (2 * number - 1).to_string());
        assert_eq!(second.ask("ADD"), (2 * number).to_string());
    }
    assert_eq!(first.ask("HANG"), "passed");
    assert_eq!(second.ask("ADD"), "11");
    let line = set
        .wait_for("the fatal input", SOON, |line| {
            line.contains("was fatal to it")
        })
        .unwrap();
    assert!(
        line.text.contains("replica 2") && line.text.contains("HANG"),
        "{}",
        line.text
    );
    set.wait_for("its return", SOON, |line| {
        line.contains("set at full strength again")
    })
    .unwrap();
    assert_eq!(second.ask("ADD"), "12");
    assert_eq!(first.ask("ADD"), "13");
    // It votes: without it there would be no majority.
    set.kill(0).unwrap();
    assert_eq!(second.ask("ADD"), "14");
    assert_eq!(set.stop().unwrap().code, 0);
}

/// Kills a replica that has no checkpoint.
fn killed_before_a_checkpoint(directory: &Path, disk: &str, put: bool) -> (Set, Client, String) {
    // No checkpoint is taken before the test is over.
    let more = format!("{disk}\n[recovery]\ncheckpoint_interval_ms = 0");
    let set = with_disk(directory, "", &more);
    let mut client = Client::connect(set.address());
    if put {
        assert_eq!(client.ask("PUT 5 five"), "put");
        assert_eq!(client.ask("SYNC"), "synced");
    }
    for number in 1..=5 {
        assert_eq!(client.ask("ADD"), number.to_string());
    }
    set.kill(1).unwrap();
    let line = set
        .wait_for("what becomes of it", SOON, |line| {
            line.contains("votes again") || line.contains("is left out")
        })
        .unwrap();
    (set, client, line.text)
}

#[test]
fn a_replica_begins_afresh_beside_disks_that_are_as_they_were() {
    let _turn = one_at_a_time("fresh machines beside disks that were written, and that were not");
    let directory = disk::directory().unwrap();
    for (disk, put) in [("relaxed = \"private\"", true), ("", false)] {
        let (set, mut client, line) = killed_before_a_checkpoint(directory.path(), disk, put);
        assert!(line.contains("replica 1 votes again"), "{line}");
        set.kill(0).unwrap();
        assert_eq!(client.ask("ADD"), "6", "it votes");
        if put {
            assert_eq!(client.ask("GET 5"), "five");
        }
        assert_eq!(set.stop().unwrap().code, 0);
    }
    // What it would find on the disk it is only about to be asked to write.
    let (set, mut client, line) = killed_before_a_checkpoint(directory.path(), "", true);
    assert!(line.contains("replica 1 is left out"), "{line}");
    assert!(line.contains("disk data has been written"), "{line}");
    assert_eq!(client.ask("ADD"), "6", "two go on");
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn console_lines_of_single_replicas_are_counted_and_shown_on_request() {
    let _turn = one_at_a_time("console lines that nobody agrees on");
    let directory = disk::directory().unwrap();
    let own = ["salt=1", "salt=2", "salt=3"];
    let run = |relaxed: &str| {
        let more = format!("[policy]\nlag_timeout_ms = 1000\n[relaxed]\n{relaxed}");
        let set = service(directory.path(), own, &more);
        let mut client = Client::connect(set.address());
        assert_eq!(client.ask("SAY all alike"), "said");
        assert_eq!(client.ask("SAY own"), "said");
        set
    };
    let set = run("console = \"all\"");
    for line in [
        "[replica 0] own 1\n",
        "[replica 1] own 2\n",
        "[replica 2] own 3\n",
    ] {
        set.process().wait_for_output(line, SOON).unwrap();
    }
    let status = set.status().unwrap();
    for replica in status["replicas"].as_array().unwrap() {
        assert_eq!(replica["relaxed"]["own_console_lines"], 1, "{status:#}");
        assert_eq!(replica["relaxed"]["differences"], 0, "{status:#}");
    }
    let ended = set.stop().unwrap();
    let text = String::from_utf8(ended.stdout).unwrap();
    assert_eq!(text.matches("all alike\n").count(), 1, "{text}");
    assert_eq!(verdicts(&set), [""; 0]);

    // Without that it is only said that there are some; what was not too old yet is given up when the set ends.
    let set = run("");
    let ended = set.stop().unwrap();
    assert!(
        ended
            .stderr
            .contains("console = \"all\" in [relaxed] shows them"),
        "{}",
        ended.stderr
    );
    let text = String::from_utf8(ended.stdout).unwrap();
    assert!(
        text.contains("all alike\n") && !text.contains("own"),
        "{text}"
    );
}

#[test]
fn every_differing_answer_on_one_connection_is_reported_with_its_request() {
    let _turn =
        one_at_a_time("a version that answers two of many requests differently, four times");
    let directory = disk::directory().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let own = [
        "version=1",
        "version=1",
        "version=2.of.another.length salt=7",
    ];
    let set = service_with(
        directory.path(),
        own,
        "[relaxed]\ndifference = \"report\"",
        &["--differences", &file.path().display().to_string()],
    );
    let mut client = Client::connect(set.address());
    let mut number = 0;
    let mut add = |client: &mut Client| {
        number += 1;
        assert_eq!(client.ask("ADD"), number.to_string());
    };
    for round in 0..4 {
        add(&mut client);
        match round {
            0 | 2 => assert_eq!(client.ask("VERSION"), "1"),
            _ => assert!(client.ask("LOGIN").starts_with("token=")),
        }
        add(&mut client);
        add(&mut client);
    }
    // It counts again: with one of the others gone its word is needed.
    set.kill(0).unwrap();
    add(&mut client);
    set.wait_for("its return", SOON, |line| {
        line.contains("set at full strength again")
    })
    .unwrap();
    assert_eq!(set.stop().unwrap().code, 0);
    let lines = std::fs::read_to_string(file.path()).unwrap();
    let asked: Vec<(u64, String)> = lines
        .lines()
        .map(|line| {
            let answer: serde_json::Value = serde_json::from_str(line).unwrap();
            let request = answer["request"].as_str().unwrap().to_owned();
            (answer["replica"].as_u64().unwrap(), request)
        })
        .collect();
    let both = ["VERSION\\n", "LOGIN\\n"];
    let expected: Vec<(u64, String)> = (0..4).map(|n| (2, both[n % 2].to_owned())).collect();
    assert_eq!(asked, expected, "{lines}");
}
