//! Debian's own sqlite3 shell makes a database on a voted disk: right in the guest, and right on the host after the stop.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use quorate_tests::process::run;
use quorate_tests::random::Random;
use quorate_tests::set::{Options, quorate_run};
use quorate_tests::{disk, one_at_a_time};

/// Inserts in all, and in a transaction.
fn how_many() -> usize {
    quorate_tests::shortened(100_000, 5 * TRANSACTION) / TRANSACTION * TRANSACTION
}
const TRANSACTION: usize = 1000;
/// For all inserts in three replicas.
const LONG: Duration = Duration::from_secs(300);

/// What the inserts must have made, as one line.
const SUMMARY: &str =
    "SELECT count(*), sum(number), sum(length(text)), count(DISTINCT text) FROM rows;\n";

/// The shell's input, and what it must print.
fn script(journal: &str) -> (String, String) {
    let mut random = Random::new(11);
    // A small cache makes SQLite write within transactions, too.
    let mut text = format!(
        "PRAGMA journal_mode={journal};\nPRAGMA cache_size=200;\n\
         CREATE TABLE rows (id INTEGER PRIMARY KEY, number INTEGER NOT NULL, text TEXT NOT NULL);\n\
         CREATE INDEX by_text ON rows (text);\n"
    );
    let (mut sum, mut bytes) = (0, 0);
    let inserts = how_many();
    for id in 0..inserts {
        if id % TRANSACTION == 0 {
            text.push_str("BEGIN;\n");
        }
        let number = random.between(0, 1_000_000);
        let word = format!(
            "{:0width$x}-{id}",
            random.word(),
            width = 16 + random.below(30)
        );
        sum += number;
        bytes += word.len();
        writeln!(text, "INSERT INTO rows VALUES ({id},{number},'{word}');").unwrap();
        if id % TRANSACTION == TRANSACTION - 1 {
            text.push_str("COMMIT;\n");
        }
    }
    text.push_str(SUMMARY);
    text.push_str("PRAGMA integrity_check;\n");
    let expected = format!("{journal}\n{inserts}|{sum}|{bytes}|{inserts}\nok\n");
    (text, expected)
}

fn host_sqlite(database: &Path, statements: &str) -> String {
    let mut command = Command::new("sqlite3");
    command
        .args(["-batch", "-bail"])
        .arg(database)
        .arg(statements);
    let ended = run(command, LONG).unwrap();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    String::from_utf8(ended.stdout).unwrap()
}

fn inserts(journal: &str) {
    let _turn = one_at_a_time(&format!(
        "sqlite3 in three replicas: {} inserts, journal_mode={journal}",
        how_many()
    ));
    let directory = disk::directory().unwrap();
    let path = directory.path().join("data.img");
    let (sql, expected) = script(journal);
    let source = directory.path().join("run.sql");
    std::fs::write(&source, sql).unwrap();
    let text = disk::appliance("sqlite3", &[("path", path.display().to_string().into())]).unwrap();
    let mut table: toml::Table = text.parse().unwrap();
    let file: toml::Table = [
        ("path", "/etc/run.sql"),
        ("source", source.to_str().unwrap()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.into()))
    .collect();
    table["image"]
        .as_table_mut()
        .unwrap()
        .insert("files".to_owned(), vec![file].into());
    let started = Instant::now();
    let set = Options::text(&table.to_string())
        .unwrap()
        .replicas(3)
        .spawn()
        .unwrap();
    let ended = set.process().wait(LONG).unwrap();
    let said = String::from_utf8(ended.stdout).unwrap();
    println!("  took {:.1?}", started.elapsed());
    assert_eq!(ended.code, 0, "{said}\n{}", ended.stderr);
    assert_eq!(said, expected, "{}", ended.stderr);
    assert!(!ended.stderr.contains("outvoted"), "{}", ended.stderr);

    disk::check_clean(&path).unwrap();
    let database = directory.path().join("app.db");
    disk::extract(&path, "/app.db", &database).unwrap();
    // And in the way that users have.
    let out = directory.path().join("out");
    let words = [
        "disk",
        "extract",
        path.to_str().unwrap(),
        out.to_str().unwrap(),
    ];
    let extracted = quorate_run(&words).unwrap();
    assert_eq!(extracted.code, 0, "{}", extracted.stderr);
    assert!(std::fs::read(out.join("app.db")).unwrap() == std::fs::read(&database).unwrap());
    let there = format!("PRAGMA journal_mode;\n{SUMMARY}PRAGMA integrity_check;");
    assert_eq!(host_sqlite(&database, &there), expected);
}

#[test]
fn inserts_with_a_rollback_journal() {
    inserts("delete");
}

#[test]
fn inserts_with_a_write_ahead_log() {
    inserts("wal");
}

#[test]
fn the_script_does_the_same_on_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let (sql, expected) = script("wal");
    let source = directory.path().join("run.sql");
    std::fs::write(&source, sql).unwrap();
    let read = format!(".read {}", source.display());
    assert_eq!(
        host_sqlite(&directory.path().join("app.db"), &read),
        expected
    );
}
