//! The runner as a command, with planted outcomes instead of machines: kills, resuming, shards, merging, reports.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use quorate_campaign::model::TrialRecord;
use quorate_campaign::run::results::{FILE, Reader, timeless};
use tempfile::TempDir;

const DRAWS: u64 = 150;

/// A directory with a campaign.
fn place(more: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "name = \"planted\"\nappliance = \"a.toml\"\nreplicas = [1, 3]\nseed = \"s\"\n{more}\n\
         [[fault]]\nname = \"general\"\nmodel = \"register\"\nweight = 2\n[[fault]]\nname = \"heap\"\nmodel = \"memory\"\nclass = \"heap\"\n"
    );
    fs::write(directory.path().join("c.toml"), text).unwrap();
    let appliance = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../images/appliances/redis.toml"
    );
    fs::copy(appliance, directory.path().join("a.toml")).unwrap();
    directory
}

fn command(at: &Path, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate-campaign"));
    command.current_dir(at).args(words.split_whitespace());
    command
}

fn run(at: &Path, words: &str) -> Output {
    command(at, words).output().unwrap()
}

/// Runs it to its end, which must be this.
fn ends(at: &Path, words: &str, code: i32) -> (String, String) {
    let output = run(at, words);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{words}\n{out}\n{err}");
    (out, err)
}

fn records(directory: &Path) -> BTreeMap<(u64, u8), TrialRecord> {
    Reader::open(&directory.join(FILE))
        .unwrap()
        .map(|record| timeless(record.unwrap()))
        .map(|record| ((record.drawn.draw, record.replicas), record))
        .collect()
}

fn outcomes(directory: &Path) -> Vec<u8> {
    fs::read(directory.join("outcomes.json")).unwrap()
}

/// A number below another, from a fixed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Kills the child when the file has come to a length, or after it has ended by itself. Whether it was killed.
fn kill_at(mut child: Child, file: &Path, length: u64) -> bool {
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return false;
        }
        if fs::metadata(file).map_or(0, |data| data.len()) >= length {
            // SIGKILL: nothing is tidied up.
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        std::thread::yield_now();
    }
}

#[test]
fn killed_at_any_moment_no_trial_is_lost_or_repeated() {
    let place = place("");
    let at = place.path();
    ends(
        at,
        &format!("c.toml --synthetic -q --jobs 2 --trials {DRAWS} --out whole"),
        0,
    );
    let whole = records(&at.join("whole"));
    assert_eq!(whole.len() as u64, 2 * DRAWS);

    let file = at.join("killed").join(FILE);
    let mut random = Random(5);
    let (mut kills, mut before) = (0, Vec::new());
    loop {
        let child = command(
            at,
            &format!("c.toml --synthetic -q --jobs 2 --trials {DRAWS} --out killed --resume"),
        )
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
        let length = before.len() as u64 + random.below(24_000);
        let killed = kill_at(child, &file, length);
        let now = fs::read(&file).unwrap();
        // What was whole stays where it is; a trial that came a second time would be refused in reading.
        let lines = before
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        assert!(now.starts_with(&before[..lines]));
        before = now;
        if !killed {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 3, "it was killed {kills} times only");
    assert_eq!(records(&at.join("killed")), whole);
    assert_eq!(outcomes(&at.join("killed")), outcomes(&at.join("whole")));
}

#[test]
fn one_seed_gives_one_table_whatever_the_jobs() {
    let place = place("");
    let at = place.path();
    for jobs in [1, 4] {
        ends(
            at,
            &format!("c.toml --synthetic -q --jobs {jobs} --trials 60 --out jobs{jobs}"),
            0,
        );
    }
    assert_eq!(outcomes(&at.join("jobs1")), outcomes(&at.join("jobs4")));
    assert_eq!(records(&at.join("jobs1")), records(&at.join("jobs4")));
    // More of the same campaign: the first draws stay what they were.
    let (_, err) = ends(at, "c.toml --synthetic --trials 80 --out jobs1 --resume", 0);
    assert!(err.contains("160 trials, 120 of them done"), "{err}");
    let more = records(&at.join("jobs1"));
    assert_eq!(more.len(), 160);
    assert!(
        records(&at.join("jobs4"))
            .iter()
            .all(|(key, record)| more[key] == *record)
    );
}

#[test]
fn shards_merge_to_what_one_run_gives() {
    let place = place("");
    let at = place.path();
    ends(at, "c.toml --synthetic -q --trials 50 --out whole", 0);
    for shard in 1..=3 {
        ends(
            at,
            &format!("c.toml --synthetic -q --trials 50 --shard {shard}/3 --out s{shard}"),
            0,
        );
    }
    let (out, _) = ends(at, "merge s2 s1 s3 --out merged", 0);
    assert!(out.contains("100 trials"), "{out}");
    assert_eq!(outcomes(&at.join("merged")), outcomes(&at.join("whole")));
    let lines = |name: &str| {
        let all = Reader::open(&at.join(name).join(FILE)).unwrap();
        all.map(|record| timeless(record.unwrap()))
            .collect::<Vec<_>>()
    };
    let mut whole = lines("whole");
    whole.sort_by_key(|record| (record.drawn.draw, record.replicas));
    assert_eq!(lines("merged"), whole, "and in the order of the draws");

    // The same shard twice is no harm, a missing one is told.
    let (_, err) = ends(at, "merge s1 s1 s2 --out twice", 13);
    assert!(
        err.contains("16 draws are missing, the first is 2"),
        "{err}"
    );
    assert!(
        err.contains("34 trials were in several directories"),
        "{err}"
    );
    let (_, err) = ends(at, "merge s1 s2 --out whole", 14);
    assert!(err.contains("whole holds 100 trials already"), "{err}");
}

#[test]
fn what_does_not_belong_together_is_not_merged() {
    let place = place("");
    let at = place.path();
    ends(at, "c.toml --synthetic -q --trials 6 --out a", 0);
    // Another seed: other faults.
    let text = fs::read_to_string(at.join("c.toml")).unwrap();
    fs::write(
        at.join("other.toml"),
        text.replace("seed = \"s\"", "seed = \"t\""),
    )
    .unwrap();
    ends(at, "other.toml --synthetic -q --trials 6 --out b", 0);
    let (_, err) = ends(at, "merge a b --out m", 14);
    assert!(
        err.contains("b: these are results of something else: the campaign is another"),
        "{err}"
    );
    let (_, err) = ends(
        at,
        "other.toml --synthetic -q --trials 6 --out a --resume",
        14,
    );
    assert!(err.contains("the campaign is another"), "{err}");
    let (_, err) = ends(
        at,
        "c.toml --synthetic -q --trials 6 --out a --resume --shard 1/2",
        14,
    );
    assert!(
        err.contains("they are of the whole campaign, and this is shard 1/2"),
        "{err}"
    );
    // Without --resume nothing is touched.
    let (_, err) = ends(at, "c.toml --synthetic -q --trials 9 --out a", 14);
    assert!(
        err.contains("a holds 12 trials already: go on with --resume"),
        "{err}"
    );

    // One record that says something else, with a right checksum.
    fs::create_dir(at.join("c")).unwrap();
    fs::copy(at.join("a/campaign.json"), at.join("c/campaign.json")).unwrap();
    let mut changed: Vec<TrialRecord> = records(&at.join("a")).into_values().collect();
    changed[3].evidence = "otherwise".to_owned();
    let lines: String = changed
        .iter()
        .map(quorate_campaign::run::results::line)
        .collect();
    fs::write(at.join("c").join(FILE), lines).unwrap();
    let (_, err) = ends(at, "merge a c --out m2", 14);
    assert!(
        err.contains("draw 1 with 3 replicas is") && err.contains("otherwise"),
        "{err}"
    );
    // ...and one trial alone is compared with what the results say of it.
    let (out, _) = ends(at, "c.toml --synthetic --only 1 --replicas 3 --out c", 12);
    assert!(out.contains("NOT the same as in the results"), "{out}");
    let (out, _) = ends(at, "c.toml --synthetic --only 1 --out a", 0);
    assert_eq!(
        out.matches("  the same as in the results").count(),
        2,
        "{out}"
    );
}

#[test]
fn damage_is_an_error_with_its_line() {
    let place = place("");
    let at = place.path();
    ends(at, "c.toml --synthetic -q --trials 6 --out a", 0);
    let file = at.join("a").join(FILE);
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, whole.replacen("\"replicas\":", "\"replicas\" :", 3)).unwrap();
    for words in [
        "c.toml --synthetic -q --trials 9 --out a --resume",
        "report a",
        "merge a --out m",
        "compare a",
    ] {
        let (_, err) = ends(at, words, 14);
        assert!(
            err.contains("trials.jsonl:1: its checksum is wrong"),
            "{err}"
        );
    }
    let (_, err) = ends(at, "report nowhere", 14);
    assert!(
        err.contains("nowhere holds no results of a campaign"),
        "{err}"
    );
}

#[test]
fn half_width_stops_at_the_same_look_each_time() {
    let place = place("[trials]\nhalf_width = 0.12\nbatch = 10\nmax = 400");
    let at = place.path();
    let (_, err) = ends(at, "c.toml --synthetic --jobs 3 --out a", 0);
    assert!(err.contains("that is enough"), "{err}");
    ends(at, "c.toml --synthetic -q --jobs 1 --out b", 0);
    assert_eq!(outcomes(&at.join("a")), outcomes(&at.join("b")));
    let (out, _) = ends(at, "plan c.toml", 0);
    assert!(
        out.contains("looks after:") && out.contains("heap"),
        "{out}"
    );
    let (_, err) = ends(at, "c.toml --synthetic --shard 1/2 --out s", 2);
    assert!(
        err.contains("a shard does not see the others' trials"),
        "{err}"
    );
    let (_, err) = ends(at, "c.toml --synthetic --half-width 0.7 --out s", 2);
    assert!(err.contains("0.7 is not between 0 and 0.5"), "{err}");
}

#[test]
fn interrupted_it_keeps_what_there_is_and_says_how_to_go_on() {
    let place = place("");
    let at = place.path();
    let file: PathBuf = at.join("a").join(FILE);
    let mut child = command(at, "c.toml --synthetic --jobs 2 --trials 5000 --out a")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while fs::metadata(&file).map_or(0, |data| data.len()) < 5000 {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(13), "{err}");
    assert!(
        err.contains("are kept. To go on, give the same command with --resume"),
        "{err}"
    );
    let kept = records(&at.join("a"));
    assert!(!kept.is_empty() && kept.len() < 10_000);
    assert!(at.join("a/report.html").exists());
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("silent-corruption"), "{out}");
}

#[test]
fn campaigns_are_compared() {
    let place = place("");
    let at = place.path();
    ends(at, "c.toml --synthetic -q --trials 200 --out a", 0);
    let (out, _) = ends(at, "compare a", 0);
    assert!(
        out.contains(
            "200 draws that are the same in both, compared in pairs: McNemar's exact test"
        ),
        "{out}"
    );
    assert!(out.contains("corrected"), "{out}");
    let text = fs::read_to_string(at.join("c.toml")).unwrap();
    fs::write(
        at.join("other.toml"),
        text.replace("seed = \"s\"", "seed = \"t\""),
    )
    .unwrap();
    ends(at, "other.toml --synthetic -q --trials 200 --out b", 0);
    let (out, _) = ends(at, "compare a b", 0);
    assert!(
        out.contains("independent draws: Fisher's exact test"),
        "{out}"
    );
    let (out, _) = ends(at, "compare a b --json", 0);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
}

#[test]
fn outputs_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let place = place("");
    let at = place.path();
    ends(at, "c.toml --synthetic -q --trials 3", 0);
    let directory = at.join("campaign-planted");
    assert_eq!(
        fs::metadata(&directory).unwrap().permissions().mode() & 0o777,
        0o700
    );
    for entry in fs::read_dir(&directory).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
}
