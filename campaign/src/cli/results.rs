//! What is done with results, or before there are any.

use std::fmt::Write;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use quorate_executor::exit::{ExitCode as Code, Failure};

use super::{CompareArgs, MergeArgs, PlanArgs, ReportArgs, answer, failed, impossible, run, say};
use crate::draw::Drawer;
use crate::model::GoldenFacts;
use crate::report;
use crate::run::compare::{Side, compare as compare_sides};
use crate::run::progress::duration;
use crate::run::results::{FILE, Reader};
use crate::run::summary::{Summary, align};
use crate::run::{Goal, Manifest, RunError, merge as merging, method};
use crate::stats::{Confidence, Method, OutcomeTable, plan as planning};

/// `outcomes.json`: the counts, the same bytes whenever the trials are the same.
pub fn write_outcomes(directory: &Path, table: &OutcomeTable) -> Result<(), Failure> {
    let path = directory.join("outcomes.json");
    private(&path)
        .and_then(|mut file| file.write_all(format!("{}\n", table.json()).as_bytes()))
        .map_err(|source| failed(RunError::Io { path, source }))
}

/// A new file for its owner only.
fn private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// The closing tables.
pub fn closing(manifest: &Manifest, summary: &Summary) {
    let method = method(&manifest.campaign.trials);
    let confidence = manifest.confidence();
    let trials: u64 = summary.times.values().map(|(_, trials)| trials).sum();
    let mut text = format!(
        "{}: {trials} trials with N = {}, seed \"{}\"",
        manifest.campaign.name,
        list(&manifest.campaign.replicas),
        manifest.campaign.seed
    );
    if let Some(shard) = manifest.shard {
        let _ = write!(text, ", shard {shard}");
    }
    if manifest.wall_seconds > 0.0 {
        let _ = write!(text, ", {}", duration(manifest.wall_seconds));
    }
    let mut text = format!("{text}\n\n{}", summary.text(method, confidence));
    for (draw, replicas, record) in summary.worst() {
        let _ = writeln!(
            text,
            "{}: {}\n  {}\n  quorate campaign {} --only {draw} --replicas {replicas}",
            record.outcome,
            record.place,
            record.evidence,
            manifest.file.display()
        );
    }
    answer(&text);
}

fn list(numbers: &[u8]) -> String {
    numbers
        .iter()
        .map(u8::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Writes the report of the results in a directory; says where the page is.
pub fn write_report(directory: &Path) -> Result<PathBuf, Failure> {
    match report::of_directory(directory) {
        Ok(written) => Ok(written.html),
        Err(error) => Err(Failure::new(Code::Results, error)),
    }
}

fn summary(directory: &Path) -> Result<Summary, Failure> {
    let mut summary = Summary::default();
    for record in Reader::open(&directory.join(FILE)).map_err(|error| failed(error.into()))? {
        summary.add(&record.map_err(|error| failed(error.into()))?);
    }
    Ok(summary)
}

fn show(directory: &Path, manifest: &Manifest) -> Result<(), Failure> {
    let summary = summary(directory)?;
    write_outcomes(directory, &summary.table)?;
    closing(manifest, &summary);
    let written = write_report(directory)?;
    answer(&format!("report: {}", written.display()));
    Ok(())
}

/// `quorate campaign report`.
pub fn report(args: &ReportArgs) -> Result<Code, Failure> {
    let manifest = Manifest::must(&args.directory).map_err(failed)?;
    show(&args.directory, &manifest)?;
    Ok(Code::Success)
}

/// `quorate campaign merge`.
pub fn merge(args: &MergeArgs) -> Result<Code, Failure> {
    let merged = merging::merge(&args.directories, &args.out).map_err(failed)?;
    let manifest = Manifest::must(&args.out).map_err(failed)?;
    show(&args.out, &manifest)?;
    if merged.repeated > 0 {
        say(&format!(
            "{} trials were in several directories, the same each time",
            merged.repeated
        ));
    }
    if let Some(first) = merged.first_missing {
        say(&format!(
            "{} draws are missing, the first is {first}: is there a shard that was not named, or not complete?",
            merged.missing
        ));
        return Ok(Code::Incomplete);
    }
    Ok(Code::Success)
}

/// `quorate campaign compare`.
pub fn compare(args: &CompareArgs) -> Result<Code, Failure> {
    let confidence = Confidence::new(args.confidence).map_err(impossible)?;
    Manifest::must(&args.first).map_err(failed)?;
    let first = Side::read(&args.first).map_err(failed)?;
    let mut comparisons = Vec::new();
    match &args.second {
        Some(directory) => {
            Manifest::must(directory).map_err(failed)?;
            let second = Side::read(directory).map_err(failed)?;
            for (replicas, one) in &first {
                if let Some(two) = second.get(replicas) {
                    comparisons.push(compare_sides(one, two, confidence));
                }
            }
        }
        None => {
            let mut sides = first.values();
            if let Some(least) = sides.next() {
                comparisons.extend(sides.map(|other| compare_sides(least, other, confidence)));
            }
        }
    }
    if comparisons.is_empty() {
        return Err(Failure::new(
            Code::Results,
            "there is nothing to compare: no number of replicas that both have (or, of one directory, no second one)",
        ));
    }
    if args.json {
        let text = serde_json::to_string_pretty(&comparisons)
            .map_err(|error| Failure::new(Code::Internal, error))?;
        answer(&text);
    } else {
        let texts: Vec<_> = comparisons.iter().map(|one| one.text(confidence)).collect();
        answer(&texts.join("\n"));
    }
    Ok(Code::Success)
}

/// `quorate campaign plan`.
pub fn plan(args: &PlanArgs) -> Result<Code, Failure> {
    let campaign = run::load(&args.file)?;
    let trials = &campaign.trials;
    let confidence = Confidence::new(trials.confidence).map_err(impossible)?;
    let goal = Goal::new(trials, None, args.half_width).map_err(impossible)?;
    let numbers = campaign.replicas.len() as u64;
    let mut text = String::new();
    match &goal {
        Goal::Draws(draws) => {
            let _ = writeln!(
                text,
                "{}: {draws} draws, each with N = {}: {} trials",
                campaign.name,
                list(&campaign.replicas),
                draws * numbers
            );
            let method = method(trials);
            let none = crate::stats::upper_bound(0, *draws, confidence);
            let worst = method.interval(draws / 2, *draws, confidence).half_width();
            let _ = writeln!(
                text,
                "then a rate is known to +/- {:.2} % at worst, and what never happened has a rate below {:.4} % (confidence {confidence})",
                100.0 * worst,
                100.0 * none
            );
        }
        Goal::Looks(schedule) => {
            let _ = writeln!(
                text,
                "{}: with N = {}, until no interval is wider than +/- {} %; looks after:",
                campaign.name,
                list(&campaign.replicas),
                100.0 * schedule.half_width
            );
            for look in &schedule.looks {
                let _ = writeln!(
                    text,
                    "  {} draws ({} trials), with intervals of {:.3} %",
                    look.draws,
                    look.draws * numbers,
                    100.0 * look.confidence.get()
                );
            }
        }
    }
    let widths = match args.half_width {
        Some(width) => vec![width],
        None => vec![0.05, 0.02, 0.01, 0.005],
    };
    let rates = match args.rate {
        Some(rate) => vec![rate],
        None => vec![0.1, 0.01, 0.0],
    };
    let mut header = vec![
        "draws for a half-width of".to_owned(),
        "interval".to_owned(),
        "at worst".to_owned(),
    ];
    header.extend(
        rates
            .iter()
            .map(|rate| format!("at a rate of {} %", 100.0 * rate)),
    );
    let mut rows = vec![header];
    for width in widths {
        for (method, name) in [(Method::Exact, "exact"), (Method::Wilson, "Wilson")] {
            let worst = planning::worst_case(method, width, confidence).map_err(impossible)?;
            let mut row = vec![
                format!("  {} %", 100.0 * width),
                name.to_owned(),
                worst.to_string(),
            ];
            for &rate in &rates {
                let needed =
                    planning::with_rate(method, width, confidence, rate).map_err(impossible)?;
                row.push(needed.to_string());
            }
            rows.push(row);
        }
    }
    let _ = write!(
        text,
        "\nif the number is fixed beforehand, with {confidence} confidence:\n{}",
        align(&rows)
    );
    let mut rows = vec![vec![
        "to say of what never happens that it is below".to_owned(),
        "draws".to_owned(),
    ]];
    for bound in [0.01, 0.001, 0.0003] {
        let needed = planning::to_exclude(bound, confidence).map_err(impossible)?;
        rows.push(vec![format!("  {} %", 100.0 * bound), needed.to_string()]);
    }
    let _ = write!(text, "\n{}", align(&rows));

    let directory = run::directory(&campaign, args.out.as_ref());
    let facts = Manifest::read(&directory)
        .map_err(failed)?
        .map(|manifest| manifest.golden);
    // Without a golden run the strata are the same, only where the faults come is not known.
    let strata = Drawer::new(&campaign, &facts.unwrap_or_else(typical))
        .map_err(|error| {
            Failure::new(Code::Appliance, format!("{}: {error}", args.file.display()))
        })?
        .strata();
    let all: f64 = strata.iter().map(|stratum| f64::from(stratum.weight)).sum();
    let mut rows = vec![
        [
            "stratum",
            "weight",
            "model",
            "where",
            "replicas hit",
            "draws of the plan",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for stratum in &strata {
        let share = f64::from(stratum.weight) / all.max(1.0);
        rows.push(vec![
            format!("  {}", stratum.name),
            stratum.weight.to_string(),
            stratum.model.clone(),
            stratum.location.clone(),
            stratum.copies.to_string(),
            format!("{:.0}", share * goal.most() as f64),
        ]);
    }
    let _ = write!(text, "\n{}", align(&rows));
    answer(&text);
    Ok(Code::Success)
}

fn typical() -> GoldenFacts {
    GoldenFacts {
        boundaries: 1_000_000_000,
        calls: 1_000_000_000,
        virtual_ns: 1_000_000_000_000_000,
        instructions: Some(1_000_000_000_000),
        digest: String::new(),
    }
}
