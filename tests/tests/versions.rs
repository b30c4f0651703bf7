//! Two versions of a server side by side, as docs/versions.md says: what they answer alike, what is said where they do not, and the two
//! historic cases in which the newer version crashes.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_tests::process::run;
use quorate_tests::resp::{Client, words};
use quorate_tests::set::{Options, Set, quorate_run};
use quorate_tests::{native, one_at_a_time, repository, shortened};

/// Commands in the default list of redis-benchmark 7.0, LPUSH for the LRANGE ones included.
const COMMANDS: usize = 20;
/// How long a replica may take until it is back.
const BACK: Duration = Duration::from_secs(60);
/// How long an answer or a line may take.
const SOON: Duration = Duration::from_secs(60);
const WRONG_TYPE: &[u8] = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";

fn appliance(name: &str) -> PathBuf {
    repository().join(format!("images/appliances/{name}.toml"))
}

/// An appliance of the repository with changes, each of which must be found. Paths stay relative to where it was.
fn changed(name: &str, changes: &[(&str, &str)], port: u16) -> Options {
    let text = std::fs::read_to_string(appliance(name)).unwrap();
    let parent = |directory: &str| {
        let path = repository().join("images").join(directory);
        format!("\"{}/", path.display())
    };
    let mut text = text
        .replace("\"../patches/", &parent("patches"))
        .replace("\"../recipes/", &parent("recipes"));
    for (from, to) in changes {
        assert!(text.contains(from), "{name}.toml: no {from}");
        text = text.replace(from, to);
    }
    Options::text(&text).unwrap().publish(port)
}

/// How often each replica's answers differed, by the status.
fn differences(set: &Set) -> Vec<u64> {
    let status = set.status().unwrap();
    let replicas = status["replicas"].as_array().unwrap();
    let of = |replica: &serde_json::Value| replica["relaxed"]["differences"].as_u64().unwrap();
    replicas.iter().map(of).collect()
}

/// `quorate differences FILE`, after the set has ended.
fn report(file: &Path) -> (String, serde_json::Value) {
    let file = file.display().to_string();
    let text = quorate_run(&["differences", &file]).unwrap();
    assert_eq!(text.code, 0, "{}", text.stderr);
    let json = quorate_run(&["differences", "--json", &file]).unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    (text, serde_json::from_slice(&json.stdout).unwrap())
}

/// A conversation whose answers are those of Redis 7.0.
fn talk(client: &mut Client, round: usize) {
    let set = format!("SET key {round}");
    assert_eq!(client.call(&words(&set)).unwrap(), b"+OK\r\n");
    let got = client.call(&words("GET key")).unwrap();
    let text = round.to_string();
    assert_eq!(got, format!("${}\r\n{text}\r\n", text.len()).as_bytes());
}

#[test]
fn redis_7_and_8_answer_redis_benchmark_alike() {
    let requests = shortened(100_000, 2000);
    let _turn = one_at_a_time(&format!(
        "two replicas of Redis 7.0 and one of 8.0, {requests} requests of redis-benchmark's default list"
    ));
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    let set = Options::new(&appliance("redis-versions"))
        .publish(6379)
        .arguments(&["--differences", &path])
        .start()
        .unwrap();
    let mut command = native::command("redis-benchmark").unwrap();
    command
        .args(["-h", "127.0.0.1", "-p", &set.address().port().to_string()])
        .args(["-n", &requests.div_ceil(COMMANDS).to_string()])
        .args(["-c", "50", "--csv"]);
    let ended = run(command, Duration::from_secs(600)).unwrap();
    let output = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert_eq!(ended.code, 0, "{output}{}", ended.stderr);
    assert!(!output.contains("rror"), "{output}");
    assert!(output.lines().count() > COMMANDS, "{output}");
    let status = set.status().unwrap();
    assert_eq!(status["running"], 3, "{status:#}");
    assert_eq!(differences(&set), [0, 0, 0], "{status:#}");

    // They are two versions, and it is seen where they say so: the client gets the answer of the two, the third is stopped.
    let mut client = Client::connect(set.address()).unwrap();
    let info = client.call(&words("HELLO 3")).unwrap();
    let info = String::from_utf8_lossy(&info).into_owned();
    assert!(info.contains("7.0."), "{info}");
    set.wait_for("the verdict", SOON, |line| line.contains("verdict"))
        .unwrap();
    assert_eq!(differences(&set), [0, 0, 1]);
    talk(&mut client, 1);
    drop(client);
    assert_eq!(set.stop().unwrap().code, 0);
    let (text, json) = report(file.path());
    assert_eq!(json["differences"], 1, "{text}");
    let group = &json["groups"][0];
    assert_eq!(
        (&group["command"], &group["version"]),
        (&"HELLO".into(), &"new".into()),
        "{text}"
    );
    assert!(
        group["first"]["said"].as_str().unwrap().contains("8.0."),
        "{text}"
    );
    assert!(
        group["first"]["released"]
            .as_str()
            .unwrap()
            .contains("7.0."),
        "{text}"
    );
}

/// HMGET on a string: a WRONGTYPE for the client on the same connection, whatever becomes of the new version.
fn fatal(set: &Set, others: usize, new: usize) {
    let mut clients: Vec<Client> = (0..=others)
        .map(|_| Client::connect(set.address()).unwrap())
        .collect();
    for (round, client) in clients.iter_mut().enumerate() {
        talk(client, round);
    }
    let before = set.status().unwrap();
    assert_eq!(before["running"], before["size"], "{before:#}");
    let answer = clients[0].call(&words("HMGET key field")).unwrap();
    assert_eq!(answer, WRONG_TYPE);
    // No connection is lost, that of the request included.
    for (round, client) in clients.iter_mut().enumerate() {
        talk(client, round);
    }
    let stopped = format!("replica {new} stopped");
    set.wait_for("the crash", SOON, |line| line.contains(&stopped))
        .unwrap();
    for (round, client) in clients.iter_mut().enumerate() {
        talk(client, 100 + round);
    }
    assert_eq!(
        clients[0].call(&words("HMGET no-such-key field")).unwrap(),
        b"*1\r\n$-1\r\n"
    );
    let again = format!("replica {new} votes again");
    set.wait_for("the new version's return", BACK, |line| {
        line.contains(&again)
    })
    .unwrap();
    // It takes part again: on old connections and new ones, and agrees.
    let counted = differences(set);
    for (round, client) in clients.iter_mut().enumerate() {
        talk(client, 200 + round);
    }
    let mut client = Client::connect(set.address()).unwrap();
    for round in 0..200 {
        talk(&mut client, round);
    }
    let status = set.status().unwrap();
    assert_eq!(status["running"], status["size"], "{status:#}");
    assert_eq!(differences(set), counted, "{status:#}");
}

#[test]
fn the_crash_of_hmget_is_the_new_versions_own() {
    let _turn = one_at_a_time("primary-with-fallback: HMGET on a string ends the newer Redis");
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    let set = Options::new(&appliance("redis-hmget"))
        .publish(6379)
        .arguments(&["--differences", &path])
        .start()
        .unwrap();
    fatal(&set, 4, 1);
    // Once is no luck.
    let mut client = Client::connect(set.address()).unwrap();
    assert_eq!(client.call(&words("HMGET key field")).unwrap(), WRONG_TYPE);
    talk(&mut client, 1);
    assert_eq!(set.stop().unwrap().code, 0);
    let (text, json) = report(file.path());
    let groups = json["groups"].as_array().unwrap();
    // The guest kernel closes a dying program's connections, and that may be seen first.
    let crash = groups
        .iter()
        .find(|group| group["class"] == "crashed" || group["class"] == "ended-early");
    let crash = crash.unwrap_or_else(|| panic!("no crash in\n{text}"));
    assert_eq!(
        (&crash["command"], &crash["version"]),
        (&"HMGET".into(), &"new".into())
    );
}

#[test]
fn two_old_versions_outvote_the_crash_of_hmget() {
    let _turn =
        one_at_a_time("majority: HMGET on a string ends the newer Redis, two old ones answer");
    let set = changed(
        "redis-hmget",
        &[
            (
                "policy = \"primary-with-fallback\"",
                "policy = \"majority\"",
            ),
            ("role = \"primary\"\n", "\n[[replica]]\nname = \"old-b\"\n"),
        ],
        6379,
    )
    .start()
    .unwrap();
    fatal(&set, 4, 2);
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn a_canarys_answers_go_into_the_report_only() {
    let _turn = one_at_a_time("Redis 8.0 as a canary beside 7.0");
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    let set = Options::new(&appliance("redis-canary"))
        .publish(6379)
        .arguments(&["--differences", &path])
        .start()
        .unwrap();
    // On one connection: after a difference a replica is compared again from the next request on.
    let asked = ["INFO server", "COMMAND COUNT", "INFO server", "HELLO 3"];
    let mut client = Client::connect(set.address()).unwrap();
    for (round, request) in asked.into_iter().enumerate() {
        for round in 0..20 {
            talk(&mut client, round);
        }
        let answer = client.call(&words(request)).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(!answer.contains("8.0."), "{answer}");
        talk(&mut client, round);
    }
    let status = set.status().unwrap();
    assert_eq!(
        (&status["running"], &status["state"]),
        (&2.into(), &"running".into()),
        "{status:#}"
    );
    assert_eq!(set.stop().unwrap().code, 0);
    let (text, json) = report(file.path());
    let counts: Vec<(&str, u64)> = json["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| {
            (
                group["command"].as_str().unwrap(),
                group["count"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        counts,
        [("INFO", 2), ("COMMAND", 1), ("HELLO", 1)],
        "{text}"
    );
    assert!(text.contains("replica 1 (8.0), port 6379"), "{text}");
}

/// A request on a connection of its own, to its end.
fn get(address: SocketAddr, path: &str, header: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn the_crash_of_the_etag_hash_is_the_new_versions_own() {
    let _turn =
        one_at_a_time("majority: a compressed answer without an ETag ends the newer lighttpd");
    let set = Options::new(&appliance("lighttpd-etag"))
        .publish(80)
        .start()
        .unwrap();
    let ask = |path: &str, header: &str| {
        let answer = get(set.address(), path, header);
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text:?}");
        text
    };
    let compressed = "Accept-Encoding: gzip\r\n";
    // What is not compressed is answered by all three.
    let page = ask("/", "");
    assert!(page.contains("long enough to be compressed"), "{page}");
    ask("/plain.txt", compressed);
    let status = set.status().unwrap();
    assert_eq!(status["running"], 3, "{status:#}");
    // The same page, compressed.
    let answer = ask("/", compressed);
    assert!(answer.contains("Content-Encoding: gzip\r\n"), "{answer:?}");
    assert!(!answer.contains("ETag"), "{answer:?}");
    set.wait_for("the crash", SOON, |line| line.contains("replica 2 stopped"))
        .unwrap();
    assert_eq!(ask("/", compressed).len(), answer.len());
    set.wait_for("the new version's return", BACK, |line| {
        line.contains("replica 2 votes again")
    })
    .unwrap();
    ask("/", "");
    ask("/plain.txt", "");
    let status = set.status().unwrap();
    assert_eq!(status["running"], 3, "{status:#}");
    assert_eq!(set.stop().unwrap().code, 0);
}
