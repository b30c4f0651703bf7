//! `docs/campaigns.md` has every key, and its examples are what it says that they are.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use super::parse::{LIMITS, MASK, ORACLE, SECTORS, TOP, TRIALS, WORKLOAD};
use super::parse_fault::{COMMON, MODELS, TRIGGER};
use super::*;

/// The section on the campaign file.
fn section() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/campaigns.md");
    let text = std::fs::read_to_string(path).expect("docs/campaigns.md");
    let (_, rest) = text
        .split_once("\n## The campaign file\n")
        .expect("its section on the campaign file");
    let end = rest.find("\n## ").unwrap_or(rest.len());
    rest[..end].to_owned()
}

/// The blocks of TOML in it.
fn examples() -> Vec<String> {
    let section = section();
    let blocks = section.split("```toml\n").skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap_or_default().to_owned())
        .collect()
}

fn parse(text: &str) -> Campaign {
    Campaign::parse(text, Path::new("redis.toml")).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn all_examples_are_campaigns() {
    let examples = examples();
    assert_eq!(
        examples.len(),
        3,
        "the shortest one, the one with all, and faults"
    );
    parse(&examples[0]);
    parse(&examples[1]);
    let faults = parse(&format!("appliance = \"redis.toml\"\n{}", examples[2])).faults;
    assert_eq!(faults.len(), 10);
}

#[test]
fn what_is_called_a_default_is_one() {
    let all = parse(&examples()[1]);
    let text = "appliance = \"redis.toml\"\n[trials]\nhalf_width = 0.01\n[[fault]]\nmodel = \"register\"\n";
    let defaults = parse(text);
    assert_eq!(all.name, defaults.name);
    assert_eq!(all.seed, defaults.seed);
    assert_eq!(all.replicas, defaults.replicas);
    assert_eq!(all.workload.timeout_s, defaults.workload.timeout_s);
    assert_eq!(all.workload.mode, defaults.workload.mode);
    assert_eq!(all.oracle.compare, defaults.oracle.compare);
    assert_eq!(all.limits, defaults.limits);
    assert_eq!(
        Trials {
            watch: Vec::new(),
            ..all.trials
        },
        defaults.trials
    );
    // Rows of the tables: the key in the first cell, its default in the second.
    let section = section();
    let limits = defaults.limits;
    for (key, value) in [
        (
            "count",
            parse(&text.replace("half_width = 0.01", ""))
                .trials
                .count
                .unwrap(),
        ),
        ("max", defaults.trials.max),
        ("batch", defaults.trials.batch),
        ("timeout_s", defaults.workload.timeout_s),
        ("hang_ms", limits.hang_ms),
        ("cpu_ms", limits.cpu_ms),
        ("lag_ms", limits.lag_ms),
        ("boundaries", limits.boundaries),
    ] {
        let row = format!("\n| `{key}` | {value} |");
        assert!(section.contains(&row), "no row {row}");
    }
}

#[test]
fn defaults_of_faults_are_those_of_the_tables() {
    let with = |fault: &str| parse(&format!("appliance = \"a.toml\"\n[[fault]]\n{fault}\n")).faults;
    for (short, long) in [
        (
            "model = \"register\"",
            "model = \"register\"\nregisters = \"general\"\nbits = 1\nchange = \"flip\"\nname = \"register\"\nweight = 1\ncopies = 1\nsplit = false\nwhen = \"boundary\"\ndistribution = \"uniform\"\nfrom = \"0%\"\nto = \"100%\"",
        ),
        (
            "model = \"page\"\nclass = \"heap\"",
            "model = \"page\"\nclass = \"heap\"\nhow = [\"drop\", \"zero\"]",
        ),
        (
            "model = \"block\"",
            "model = \"block\"\nmetadata = false\nhow = [\"corrupt\", \"torn\", \"lost\", \"misdirected\", \"read-error\", \"read-corrupt\"]",
        ),
        (
            "model = \"frame\"",
            "model = \"frame\"\ndirection = [\"output\", \"input\"]\ndelay = [1, 20]\nhow = [\"drop\", \"corrupt\", \"duplicate\", \"reorder\", \"delay\"]",
        ),
        (
            "model = \"clock\"",
            "model = \"clock\"\nhow = [\"step\", \"skew\", \"stop\"]\nstep_us = [-1000000, 1000000]\nppm = [-1000, 1000]",
        ),
        ("model = \"stall\"", "model = \"stall\"\nmillis = 0"),
        (
            "model = \"slow\"",
            "model = \"slow\"\nmillis = 5\nboundaries = 100",
        ),
        (
            "model = \"syscall\"",
            "model = \"syscall\"\nerrno = \"EIO\"\nwhen = \"syscall\"",
        ),
        (
            "model = \"entry\"",
            "model = \"entry\"\nhow = [\"lost\", \"altered\"]",
        ),
        (
            "model = \"hang\"\nsymbol = \"main\"",
            "model = \"hang\"\nsymbol = \"main\"\nwhen = \"symbol\"\nhit = 1",
        ),
        (
            "model = \"crash\"\ndistribution = \"normal\"\ndeviation = 1",
            "model = \"crash\"\ndistribution = \"normal\"\ndeviation = 1\nmean = \"50%\"",
        ),
    ] {
        assert_eq!(with(short), with(long));
    }
}

#[test]
fn every_key_is_documented() {
    let section = section();
    let rows: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with('|'))
        .collect();
    let cell = |row: &str, number: usize| row.split('|').nth(number).unwrap_or_default().to_owned();
    let mut keys: Vec<&str> = [
        TOP, WORKLOAD, ORACLE, MASK, SECTORS, TRIALS, LIMITS, COMMON, TRIGGER,
    ]
    .concat();
    keys.push("split");
    for key in keys {
        let word = format!("`{key}`");
        assert!(
            rows.iter().any(|row| cell(row, 1).contains(&word)),
            "`{key}` is in no table of docs/campaigns.md"
        );
    }
    for name in quorate_vmm::fault::MemoryClass::names() {
        assert!(section.contains(&format!("`{name}`")), "class {name}");
    }
    for group in quorate_vmm::fault::Group::ALL {
        assert!(
            section.contains(&format!("`{}`", group.name())),
            "group {}",
            group.name()
        );
    }
    // Keys of the models are in the second cell; the model in the first, or in the next one above that is not empty.
    let start = section
        .find("| model | key |")
        .expect("the table of models");
    let mut known: Vec<(String, String)> = Vec::new();
    let mut models = String::new();
    for row in section[start..]
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
    {
        if !cell(row, 1).trim().is_empty() {
            models = cell(row, 1);
        }
        known.push((models.clone(), cell(row, 2)));
    }
    for (model, _, keys) in MODELS {
        assert!(
            known
                .iter()
                .any(|(models, _)| models.contains(&format!("`{model}`"))),
            "{model}"
        );
        for key in keys.iter().filter(|key| **key != "split") {
            let documented = known.iter().any(|(models, cell)| {
                models.contains(&format!("`{model}`")) && cell.contains(&format!("`{key}`"))
            });
            assert!(
                documented,
                "`{key}` of {model} is not in the table of models"
            );
        }
    }
}
