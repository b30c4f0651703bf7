//! `make demo`: Debian's redis-server from three virtual machines, one of which starts to lie while clients work, and comes back.
//!
//! It checks what it shows: anything that is not as promised ends it with exit code 1.

use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use quorate_executor::patience;
use quorate_tests::load::Load;
use quorate_tests::native;
use quorate_tests::process::{Line, run};
use quorate_tests::server::NativeServer;
use quorate_tests::set::{COMMAND_TIMEOUT, Options, Set, quorate};
use quorate_tests::watch::{Watch, wait_whole};
use serde_json::Value;

/// Clients of the checking load.
const CLIENTS: usize = 8;
/// How long they work before and after the wrong value.
const LOAD_TIME: Duration = Duration::from_millis(1200);
/// Replies that must come before and after the wrong value; fewer where everything takes longer ([`patience`]).
const MORE_REPLIES: u64 = 1000;
/// How long these replies may take, and naming the liar.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long it may take until all replicas vote again.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(20);
/// The replica that is made to lie.
const LIAR: u64 = 1;
/// Seed of the load, so that two demonstrations ask the same.
const LOAD_SEED: u64 = 2;
/// Longest part of a line that is shown.
const WIDTH: usize = 116;

/// What the demonstration asks: strings, counters, hashes, lists, sorted sets, a script, expiry.
const COMMANDS: [&[&str]; 10] = [
    &["SET", "greeting", "hello from three machines"],
    &["GET", "greeting"],
    &["INCRBY", "visitors", "42"],
    &["HSET", "moon", "planet", "Jupiter", "name", "Io"],
    &["HGETALL", "moon"],
    &["RPUSH", "queue", "a", "b", "c"],
    &["LRANGE", "queue", "0", "-1"],
    &["ZADD", "scores", "3", "carol", "1", "alice", "2", "bob"],
    &["ZRANGE", "scores", "0", "-1", "WITHSCORES"],
    &[
        "EVAL",
        "return redis.call('GET', KEYS[1]) .. '!'",
        "1",
        "greeting",
    ],
];

type Result<T = ()> = std::result::Result<T, String>;

fn main() -> ExitCode {
    match demonstrate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = std::io::stdout().flush();
            eprintln!("\ndemo: NOT as promised: {error}");
            ExitCode::FAILURE
        }
    }
}

fn step(text: impl Display) {
    println!("\n== {text}");
}

fn show(text: impl Display) {
    for line in text.to_string().lines() {
        match line.char_indices().nth(WIDTH) {
            None => println!("   {line}"),
            Some((end, _)) => println!("   {} …", &line[..end]),
        }
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

fn expect(good: bool, otherwise: impl FnOnce() -> String) -> Result {
    if good { Ok(()) } else { Err(otherwise()) }
}

fn demonstrate() -> Result {
    let begun = Instant::now();
    println!("Quorate: one Redis, three virtual machines, one vote.");

    step("The appliance: Debian's own redis-server, from Debian's packages");
    build()?;

    step("Three replicas, each with its own random memory layout");
    let set = Options::redis()
        .arguments(&["--replicas", "3", "--layout", "random"])
        .start()
        .map_err(text)?;
    for line in set.process().lines() {
        if ["ready", "published"]
            .iter()
            .any(|word| line.text.contains(word))
        {
            show(&line.text);
        }
    }
    let before = set.status().map_err(text)?;
    different_layouts(&before)?;

    step("redis-cli talks to all three as to one");
    let native = NativeServer::start(&[]).map_err(text)?;
    for words in COMMANDS {
        let answer = ask(set.address().port(), words)?;
        let expected = ask(native.address().port(), words)?;
        show_command(words, &answer);
        expect(answer == expected, || {
            format!("a native redis-server answers {expected:?}")
        })?;
    }
    drop(native);
    show("(a native redis-server of the same package gave the same answers, byte for byte)");

    step(format_args!(
        "{CLIENTS} clients now write and read, and check every answer"
    ));
    let more_replies = MORE_REPLIES / u64::from(patience::slowness());
    let load = Load::start(set.address(), CLIENTS, LOAD_SEED);
    thread::sleep(LOAD_TIME);
    expect(
        load.wait_for_progress(more_replies, VERDICT_TIMEOUT),
        || "the clients are stuck".to_owned(),
    )?;
    status(&set)?;

    step(format_args!(
        "Meanwhile replica {LIAR} is made to give a wrong value: quorate inject {LIAR} wrong-output"
    ));
    let mut watch = Watch::new(&set).map_err(text)?;
    set.inject(LIAR as usize, &["wrong-output"]).map_err(text)?;
    let injected = wait_for(&set, &format!("injected into replica {LIAR}"))?;
    let verdict = wait_for(&set, &format!("replica {LIAR} is outvoted"))?;
    let back = |event: &Value| event["event"] == "full-strength";
    let events = watch.next("full strength", RECOVERY_TIMEOUT, back);
    let events = events.map_err(text)?;
    for line in set.process().lines() {
        if line.at >= injected.at {
            show(&line.text);
        }
    }
    let at = |name: &str| {
        let event = events.iter().find(|event| event["event"] == name);
        event.and_then(|event| event["at_ms"].as_u64())
    };
    let (stopped, whole) = at("replica-stopped")
        .zip(at("full-strength"))
        .ok_or("the events do not say when it was stopped and back")?;
    let named_after = verdict.at.saturating_duration_since(injected.at);
    thread::sleep(LOAD_TIME);
    let goes_on = load.wait_for_progress(more_replies, VERDICT_TIMEOUT);
    let seen = load.finish();

    step("What the clients saw of it");
    show(format_args!(
        "{} answers checked, {} wrong, missing or late; longest wait for one {:.0} ms",
        seen.checked,
        seen.wrong.len(),
        seen.longest.as_secs_f64() * 1e3
    ));
    expect(seen.wrong.is_empty(), || seen.wrong.join("\n"))?;
    expect(goes_on, || "the set did not go on".to_owned())?;
    wait_whole(&set, RECOVERY_TIMEOUT).map_err(text)?;
    let after = status(&set)?;
    let layout = |state: &Value| state["replicas"][LIAR as usize]["layout"].clone();
    expect(layout(&after) == layout(&before), || {
        "the replica came back with another layout".to_owned()
    })?;

    let ended = set.stop().map_err(text)?;
    expect(ended.code == 0, || {
        format!("quorate run ended with {}", ended.code)
    })?;
    step(format_args!(
        "As promised: replica {LIAR} was named {} after it lied, and voted again {} later, in its own layout; no client noticed. \
         ({:.1} s in all)",
        milliseconds(named_after),
        milliseconds(Duration::from_millis(whole.saturating_sub(stopped))),
        begun.elapsed().as_secs_f64()
    ));
    by_hand()
}

fn milliseconds(time: Duration) -> String {
    match time.as_millis() {
        0 => "less than 1 ms".to_owned(),
        ms => format!("{ms} ms"),
    }
}

/// `quorate build`, with its own progress.
fn build() -> Result {
    let begun = Instant::now();
    let mut command = Command::new(quorate().map_err(text)?);
    command
        .arg("build")
        .arg("images/appliances/redis.toml")
        .current_dir(quorate_tests::repository())
        // Standard error is the user's terminal: a spinner there while packages are fetched.
        .stdout(std::process::Stdio::piped());
    let output = command
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(text)?;
    expect(output.status.success(), || {
        format!("quorate build ended with {}", output.status)
    })?;
    let path = String::from_utf8_lossy(&output.stdout);
    let name = path
        .trim()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    show(format_args!(
        "image {name} ({:.1} s)",
        begun.elapsed().as_secs_f64()
    ));
    // Unpacks the image for redis-cli, which is in it too.
    native::root().map(|_| ()).map_err(text)
}

fn different_layouts(status: &Value) -> Result {
    let mut starts = Vec::new();
    for replica in status["replicas"].as_array().into_iter().flatten() {
        let at = |region: &str| replica["layout"][region].as_str().unwrap_or("-").to_owned();
        show(format_args!(
            "replica {}: kernel at {}, programs from {}",
            replica["replica"],
            at("kernel"),
            at("program")
        ));
        starts.push(at("kernel"));
    }
    starts.sort();
    starts.dedup();
    expect(starts.len() == 3, || {
        "the replicas do not have three different layouts".to_owned()
    })
}

/// Runs the real `redis-cli`, as on a terminal.
fn ask(port: u16, words: &[&str]) -> Result<String> {
    let mut command = native::command("redis-cli").map_err(text)?;
    command
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "--no-raw"])
        .args(words);
    let ended = run(command, COMMAND_TIMEOUT).map_err(text)?;
    expect(ended.code == 0, || {
        format!("redis-cli ended with {}: {}", ended.code, ended.stderr)
    })?;
    Ok(String::from_utf8_lossy(&ended.stdout).trim_end().to_owned())
}

fn show_command(words: &[&str], answer: &str) {
    let quoted: Vec<String> = words
        .iter()
        .map(|word| {
            if word.contains(' ') {
                format!("\"{word}\"")
            } else {
                (*word).to_owned()
            }
        })
        .collect();
    // The items of a list on one line, so that everything fits a screen.
    let answer: Vec<&str> = answer.lines().collect();
    show(format_args!(
        "> {}  ->  {}",
        quoted.join(" "),
        answer.join("  ")
    ));
}

/// Shows `quorate status` and gives it as JSON.
fn status(set: &Set) -> Result<Value> {
    let ended = set.command(&["status"]).map_err(text)?;
    expect(ended.code == 0, || ended.stderr.clone())?;
    let table = String::from_utf8_lossy(&ended.stdout).into_owned();
    // The digests, the addresses and the seed are for another day.
    let dull = ["fingerprint ", "layout ", "published "];
    for line in table.lines() {
        if !line.is_empty() && !dull.iter().any(|word| line.starts_with(word)) {
            show(line);
        }
    }
    set.status().map_err(text)
}

fn wait_for(set: &Set, what: &str) -> Result<Line> {
    set.wait_for(what, VERDICT_TIMEOUT, |line| line.contains(what))
        .map_err(text)
}

/// The commands to type.
fn by_hand() -> Result {
    let here = std::env::current_dir().unwrap_or_default();
    let short = |path: PathBuf| {
        path.strip_prefix(&here)
            .unwrap_or(&path)
            .display()
            .to_string()
    };
    let quorate = short(quorate().map_err(text)?);
    let target = quorate_tests::repository().join("target");
    let target = target.canonicalize().map_err(text)?;
    let redis_cli = short(native::script("redis-cli", &target).map_err(text)?);
    step("Try it by hand");
    for (command, what) in [
        (
            format!("{quorate} run images/appliances/redis.toml"),
            "in one terminal; Ctrl-C ends it",
        ),
        (
            format!("{redis_cli} INCR visitors"),
            "in another, like what follows",
        ),
        (
            format!("{quorate} status"),
            "who runs, who was stopped and why",
        ),
        (
            format!("{quorate} inject 1 crash"),
            "or hang, wrong-output, flip-memory random …",
        ),
    ] {
        println!("   {command:<55}  # {what}");
    }
    Ok(())
}
