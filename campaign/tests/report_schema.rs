//! `report.json` and `trials.csv` are what docs/campaigns.md says they are: each key that is documented is there, and the reverse.
//! And the page stays small, and hostile text stays text, whatever the trials hold.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod made_up;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use quorate_campaign::model::TrialRecord;
use quorate_campaign::report::{self, Records, synthetic};
use serde_json::Value;

/// The first cells, in backquotes, of the table after a line that begins with `heading`.
fn documented(heading: &str) -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/campaigns.md");
    let text = fs::read_to_string(file).unwrap();
    let mut lines = text
        .lines()
        .skip_while(|line| !line.starts_with(heading))
        .skip(1);
    assert!(
        lines.next().is_some(),
        "docs/campaigns.md has no {heading:?}"
    );
    let table = lines
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'));
    let cells = table.filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    cells.map(|(cell, _)| cell.to_owned()).collect()
}

/// Paths of all keys: `outcomes[].rows[].count`.
fn keys(value: &Value, path: &str, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = match path {
                    "" => key.clone(),
                    path => format!("{path}.{key}"),
                };
                keys(value, &path, all);
            }
        }
        Value::Array(items) => {
            let path = format!("{path}[]");
            if items.iter().all(|item| !item.is_object()) {
                all.insert(path);
            } else {
                items.iter().for_each(|item| keys(item, &path, all));
            }
        }
        _ => {
            all.insert(path.to_owned());
        }
    }
}

/// Documented keys with the shorthands written out: `E` for an estimate's keys and so on.
fn spelled_out(documented: &[String], shorthands: &[(&str, Vec<String>)]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for path in documented {
        match shorthands
            .iter()
            .find(|(name, _)| path.ends_with(&format!(".{name}")))
        {
            Some((name, parts)) => {
                let before = path.strip_suffix(name).unwrap();
                all.extend(parts.iter().map(|part| format!("{before}{part}")));
            }
            None => {
                all.insert(path.clone());
            }
        }
    }
    all
}

#[test]
fn report_json_has_the_documented_keys() {
    let dir = tempfile::tempdir().unwrap();
    let written = made_up::write(dir.path(), 600);
    let report: Value = serde_json::from_slice(&fs::read(&written.json).unwrap()).unwrap();
    assert_eq!(report["schema_version"], report::data::SCHEMA_VERSION);
    let mut there = BTreeSet::new();
    keys(&report, "", &mut there);
    let shorthands: Vec<(&str, Vec<String>)> = ["ESTIMATE", "COUNTS", "DISTRIBUTION", "HITS"]
        .map(|name| (name, documented(&format!("#### {name}"))))
        .to_vec();
    let wanted = spelled_out(&documented("### `report.json`"), &shorthands);
    let missing: Vec<_> = wanted.difference(&there).collect();
    let unknown: Vec<_> = there.difference(&wanted).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "documented and not there: {missing:?}; there and not documented: {unknown:?}"
    );
}

/// The cells of a line by RFC 4180 (no cell has a line end here).
fn cells(line: &str) -> Vec<String> {
    let (mut all, mut cell, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => all.push(std::mem::take(&mut cell)),
            c => cell.push(c),
        }
    }
    all.push(cell);
    all
}

#[test]
fn trials_csv_has_the_documented_columns_and_all_trials() {
    let dir = tempfile::tempdir().unwrap();
    let records: Vec<TrialRecord> = synthetic::records(300, &[1, 3], 9).collect();
    let all = || -> Records<'_> { Box::new(records.iter().cloned().map(Ok)) };
    let written = report::write(dir.path(), &made_up::input(&all)).unwrap();
    let text = fs::read_to_string(&written.csv).unwrap();
    let mut lines = text.lines();
    let columns = cells(lines.next().unwrap());
    assert_eq!(columns, documented("### `trials.csv`"));
    assert_eq!(lines.clone().count(), 600);
    let column = |name: &str| columns.iter().position(|column| column == name).unwrap();
    for (line, record) in lines.zip(&records) {
        let cells = cells(line);
        assert_eq!(cells.len(), columns.len(), "{line}");
        assert_eq!(cells[column("draw")], record.drawn.draw.to_string());
        assert_eq!(cells[column("outcome")], record.outcome.name());
        assert_eq!(cells[column("evidence")], record.evidence);
        let fault: quorate_campaign::model::Fault =
            serde_json::from_str(&cells[column("fault_json")]).unwrap();
        assert_eq!(fault, record.drawn.fault);
        assert_eq!(cells[column("total_us")], record.timing.total.to_string());
    }
}

#[test]
fn the_page_of_a_hundred_thousand_trials_is_small() {
    let dir = tempfile::tempdir().unwrap();
    let written = made_up::write(dir.path(), 25_000);
    assert_eq!(written.trials, 100_001);
    let size = fs::metadata(&written.html).unwrap().len();
    assert!(size < 5_000_000, "{size} bytes");
    for file in [&written.html, &written.json, &written.csv] {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            fs::metadata(file).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    let left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn hostile_text_stays_text() {
    let dir = tempfile::tempdir().unwrap();
    let page = fs::read_to_string(made_up::write(dir.path(), 10).html).unwrap();
    assert_eq!(page.matches("<script").count(), 1);
    assert!(!page.contains("<img"), "a tag came through");
    assert!(
        !page.contains('\u{202e}'),
        "a mark of direction came through"
    );
    assert!(page.contains("&lt;img src=x onerror"), "it is shown");
}

#[test]
fn what_cannot_be_read_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let records = || -> Records<'_> {
        let bad = std::io::Error::other("torn in the middle");
        Box::new(synthetic::records(5, &[1], 1).map(Ok).chain([Err(bad)]))
    };
    let error = report::write(dir.path(), &made_up::input(&records)).unwrap_err();
    assert!(error.to_string().contains("torn in the middle"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
