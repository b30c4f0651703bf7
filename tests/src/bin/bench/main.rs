//! `make bench`: the native redis-server and sets of 1, 2, 3 and 5 replicas side by side, in one run, on one machine.
//!
//! Servers take turns, round by round, so that whatever else the machine does meets all of them. Ratios carry over to other
//! machines, absolute figures do not.

mod boundary;
mod campaign;
mod disk;
mod host;
mod limit;
mod linux;
mod load;
mod recovery;
mod report;
mod results;
mod server;
mod usage;

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use host::Host;
use load::LOADS;
use results::{BOOTED, KINDS, Measured, RELAXED_KINDS, Results};
use server::{Kind, Server};
use usage::Memory;

/// How long a server is watched without any request.
const IDLE: Duration = Duration::from_millis(500);
const USAGE: &str = "\
Usage: bench [--quick] [--rounds N] [--seconds S] [--boots N] [--no-boundary] [--no-PART]… [--only-PART]… [--docs]

Measures the native redis-server and Quorate with 1, 2, 3 and 5 replicas in turns, then the parts, prints a report, and writes
it to target/bench/report.md and target/bench/results.json; that of a part to target/bench/PART.md and PART.json.

  --quick        2 rounds of 0.3 s for each load, 3 starts, no cost of a boundary: less than two minutes
  --rounds N     rounds [default: 5]
  --seconds S    length of each load in a round [default: 2]
  --boots N      starts whose time is taken, besides those of the rounds [default: 9]
  --no-boundary  leaves out the cost of a boundary, which is measured by programs that cargo builds first
  --no-PART      leaves out a part
  --only-PART    that part, and nothing that is not named so
  --docs         puts the report into docs/numbers.md too, in place of the one there

Parts: disks, recovery, campaign, relaxed (the relaxed discipline beside lockstep), linux (Linux machines beside a plain one
under QEMU; where they cannot run it goes on in the SVM lane, and then only with --only-linux)";

/// Parts of the report beside the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Disks,
    Recovery,
    Campaign,
    Relaxed,
    Linux,
}

impl Part {
    const ALL: [Part; 5] = [
        Part::Disks,
        Part::Recovery,
        Part::Campaign,
        Part::Relaxed,
        Part::Linux,
    ];

    /// In arguments and names of files.
    fn name(self) -> &'static str {
        match self {
            Part::Disks => "disks",
            Part::Recovery => "recovery",
            Part::Campaign => "campaign",
            Part::Relaxed => "relaxed",
            Part::Linux => "linux",
        }
    }

    fn named(name: &str) -> Option<Part> {
        Part::ALL.into_iter().find(|part| part.name() == name)
    }

    /// Measures it and keeps the report; false if anything went wrong.
    fn run(self, options: &Options, host: &Host) -> bool {
        match self {
            Part::Disks => of_disks(options, host),
            Part::Recovery => of_recovery(options, host),
            Part::Campaign => of_campaigns(options, host),
            Part::Relaxed => of_relaxed(options, host),
            Part::Linux => of_linux(options, host),
        }
    }
}

/// Where a report begins and ends in `docs/numbers.md`; that of a part, or the first one.
fn marks(part: Option<Part>) -> [String; 2] {
    let only = part.map_or_else(String::new, |part| format!("--only-{} ", part.name()));
    [
        format!("<!-- begin: bench {only}--docs -->\n"),
        format!("<!-- end: bench {only}--docs -->"),
    ]
}

/// Rounds of the disks: each takes longer, and differs less.
const DISK_ROUNDS: usize = 3;

struct Options {
    quick: bool,
    rounds: usize,
    seconds: f64,
    boots: usize,
    boundary: bool,
    left_out: Vec<Part>,
    only: Vec<Part>,
    docs: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            quick: false,
            rounds: 5,
            seconds: 2.0,
            boots: 9,
            boundary: true,
            left_out: Vec::new(),
            only: Vec::new(),
            docs: false,
        };
        while let Some(argument) = arguments.next() {
            let mut number = || -> Result<f64, String> {
                let text = arguments.next().unwrap_or_default();
                match text.parse() {
                    Ok(number) if (0.0..=1000.0).contains(&number) => Ok(number),
                    _ => Err(format!(
                        "{argument} needs a number up to 1000, got {text:?}"
                    )),
                }
            };
            match argument.as_str() {
                "--quick" => {
                    options = Options {
                        quick: true,
                        rounds: 2,
                        seconds: 0.3,
                        boots: 3,
                        boundary: false,
                        ..options
                    };
                }
                "--rounds" => options.rounds = number()? as usize,
                "--seconds" => options.seconds = number()?,
                "--boots" => options.boots = number()? as usize,
                "--no-boundary" => options.boundary = false,
                "--docs" => options.docs = true,
                _ => {
                    let part = |prefix| argument.strip_prefix(prefix).and_then(Part::named);
                    if let Some(part) = part("--no-") {
                        options.left_out.push(part);
                    } else if let Some(part) = part("--only-") {
                        options.only.push(part);
                    } else {
                        return Err(format!("unknown argument {argument:?}"));
                    }
                }
            }
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("bench: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let host = Host::look();
    say(&host.line());
    if let Err(error) = quorate_tests::native::root() {
        eprintln!("bench: the image cannot be had: {error}");
        return ExitCode::FAILURE;
    }
    let mut parts = true;
    let only = !options.only.is_empty();
    for part in Part::ALL {
        // Linux machines take minutes in a lane: only where they run beside everything else.
        let wanted = if only {
            options.only.contains(&part)
        } else {
            !options.left_out.contains(&part) && (part != Part::Linux || linux::runs_here())
        };
        if wanted {
            parts &= part.run(&options, &host);
        }
    }
    if only {
        return if parts {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let mut results = measure(&options, host, &KINDS, &BOOTED);
    if options.boundary {
        // Kept without it first: cargo may have much to build for it.
        if let Err(error) = keep(&results, &report::markdown(&results)) {
            eprintln!("bench: {error}");
        }
        cost_of_a_boundary(&mut results);
    }
    let text = report::markdown(&results);
    println!("{text}");
    let mut kept = keep(&results, &text);
    if options.docs && kept.is_ok() {
        kept = put_into_docs(&text, &marks(None));
    }
    if let Err(error) = &kept {
        eprintln!("bench: {error}");
    }
    if results.failures.is_empty() && kept.is_ok() && parts {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Measures the disks and keeps the report; false if anything went wrong.
fn of_disks(options: &Options, host: &Host) -> bool {
    let rounds = if options.quick { 1 } else { DISK_ROUNDS };
    let disks = disk::measure(rounds, options.quick);
    let report = disks.markdown(host.cpus);
    keep_part(options, host, Part::Disks, &disks.json(), &report) && disks.failures.is_empty()
}

/// The same for recovery.
fn of_recovery(options: &Options, host: &Host) -> bool {
    let recovery = recovery::measure(options.rounds, options.seconds, options.quick);
    let report = recovery.markdown();
    let json = recovery.json();
    keep_part(options, host, Part::Recovery, &json, &report) && recovery.failures.is_empty()
}

/// The same for campaigns.
fn of_campaigns(options: &Options, host: &Host) -> bool {
    let campaigns = campaign::measure(options.quick);
    let report = campaigns.markdown();
    let json = campaigns.json();
    keep_part(options, host, Part::Campaign, &json, &report) && campaigns.failures.is_empty()
}

/// Prints and writes one part of the report; false if it cannot be written.
fn keep_part(options: &Options, host: &Host, part: Part, figures: &Value, report: &str) -> bool {
    let name = part.name();
    let text = format!(
        "Measured {} at commit {}, load average before: {}.\nMachine: {}.\n\n{report}",
        host.date,
        host.commit,
        host.load,
        host.line(),
    );
    println!("{text}");
    let json = json!({ "version": 1, "host": host.json(), "quick": options.quick, name: figures });
    let mut kept = write(name, &json, &text);
    if options.docs && kept.is_ok() {
        kept = put_into_docs(&text, &marks(Some(part)));
    }
    if let Err(error) = &kept {
        eprintln!("bench: {error}");
    }
    kept.is_ok()
}

fn say(text: &str) {
    eprintln!("bench: {text}");
}

/// The relaxed discipline beside the native server and lockstep.
fn of_relaxed(options: &Options, host: &Host) -> bool {
    let results = measure(options, host.clone(), &RELAXED_KINDS, &RELAXED_KINDS);
    let report = report::relaxed(&results);
    keep_part(options, host, Part::Relaxed, &results.json(), &report) && results.failures.is_empty()
}

/// Linux machines, here or in the lane.
fn of_linux(options: &Options, host: &Host) -> bool {
    if !linux::runs_here() {
        return linux::in_the_lane(options.quick, options.docs);
    }
    let linux = linux::measure(options.quick);
    let (report, json) = (linux.markdown(), linux.json());
    keep_part(options, host, Part::Linux, &json, &report) && linux.failures.is_empty()
}

/// Rounds of all loads on the servers of `kinds`, in turns, then starts of those in `booted`.
fn measure(options: &Options, host: Host, kinds: &[Kind], booted: &[Kind]) -> Results {
    let mut results = Results::new(host, options.quick, options.rounds, options.seconds, kinds);
    let Results {
        servers, failures, ..
    } = &mut results;
    for round in 1..=options.rounds {
        for measured in servers.iter_mut() {
            let name = measured.kind.name();
            say(&format!("round {round} of {}, {name}", options.rounds));
            // All or nothing: a round that fails half way must not shift the rounds that are compared.
            let mut attempt = measured.clone();
            match one_round(&mut attempt, options.seconds) {
                Ok(()) => *measured = attempt,
                Err(error) => {
                    say(&error);
                    failures.push(format!("round {round}, {name}: {error}"));
                }
            }
        }
    }
    for start in 1..=options.boots {
        say(&format!("start {start} of {}", options.boots));
        for measured in servers
            .iter_mut()
            .filter(|measured| booted.contains(&measured.kind))
        {
            let booted = Server::start(measured.kind).and_then(|server| {
                let after = server.first_pong.as_secs_f64();
                server.check()?;
                server.stop()?;
                Ok(after)
            });
            match booted {
                Ok(after) => measured.boots.push(after),
                Err(error) => failures.push(format!("start {start}: {error}")),
            }
        }
    }
    results
}

fn cost_of_a_boundary(results: &mut Results) {
    say("cost of a boundary");
    match boundary::measure() {
        Ok(boundary) => results.boundary = Some(boundary),
        Err(error) => results
            .failures
            .push(format!("cost of a boundary: {error}")),
    }
}

/// All loads on one server, started for it.
fn one_round(measured: &mut Measured, seconds: f64) -> Result<(), String> {
    let server = Server::start(measured.kind)?;
    measured.boots.push(server.first_pong.as_secs_f64());
    let before = server.cpu()?;
    std::thread::sleep(IDLE);
    let idle = server.cpu()?.since(before).total();
    measured.idle.push(idle / IDLE.as_secs_f64());
    for (index, load) in LOADS.into_iter().enumerate() {
        let sample = load::run(&server, load, seconds)?;
        say(&format!(
            "  {:<9} {:>9.0}/s, p50 {:.2} ms, p99 {:.2} ms",
            load.name(),
            sample.rps,
            sample.p50_ms,
            sample.p99_ms
        ));
        measured.samples[index].push(sample);
    }
    measured.memory.push(Memory::of(server.pid())?);
    server.stop()
}

/// Writes the report and the results to `target/bench`.
fn keep(results: &Results, report: &str) -> Result<(), String> {
    write("results", &results.json(), report)
}

fn write(name: &str, json: &Value, report: &str) -> Result<(), String> {
    let directory = quorate_tests::repository().join("target/bench");
    let json = serde_json::to_string_pretty(json).map_err(|error| error.to_string())? + "\n";
    // The first report was there before the others.
    let markdown = if name == "results" { "report" } else { name };
    std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(directory.join(format!("{markdown}.md")), report))
        .and_then(|()| std::fs::write(directory.join(format!("{name}.json")), json))
        .map_err(|error| format!("{}: {error}", directory.display()))?;
    say(&format!(
        "written: target/bench/{markdown}.md and target/bench/{name}.json"
    ));
    Ok(())
}

fn put_into_docs(report: &str, marks: &[String; 2]) -> Result<(), String> {
    let path = quorate_tests::repository().join("docs/numbers.md");
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let text = between_marks(&text, report, marks)
        .ok_or_else(|| format!("{}: the marks {marks:?} are not there", path.display()))?;
    std::fs::write(&path, text).map_err(failed)
}

fn between_marks(text: &str, report: &str, marks: &[String; 2]) -> Option<String> {
    let (before, rest) = text.split_once(&marks[0])?;
    let (_, after) = rest.split_once(&marks[1])?;
    Some(format!(
        "{before}{}\n{}\n\n{}{after}",
        marks[0],
        report.trim_end(),
        marks[1]
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, String> {
        Options::parse(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn options_are_checked() {
        let options = parse(&["--quick", "--rounds", "4"]).unwrap();
        assert!(options.quick && !options.boundary && options.rounds == 4);
        assert!(parse(&["--seconds", "fast"]).is_err());
        assert!(parse(&["--seconds"]).is_err());
        assert!(parse(&["--slow"]).is_err());
        assert!(parse(&["--only-ships"]).is_err());
        let options = parse(&["--no-disks", "--only-linux", "--only-relaxed"]).unwrap();
        assert_eq!(options.left_out, [Part::Disks]);
        assert_eq!(options.only, [Part::Linux, Part::Relaxed]);
    }

    #[test]
    fn a_report_replaces_the_last_one() {
        let marks = marks(None);
        let [begin, end] = &marks;
        let text = format!("a\n{begin}old\n{end}\nb\n");
        let once = between_marks(&text, "new\n", &marks).unwrap();
        assert_eq!(once, format!("a\n{begin}\nnew\n\n{end}\nb\n"));
        assert_eq!(between_marks(&once, "new\n", &marks).unwrap(), once);
        assert!(between_marks("no marks", "new", &marks).is_none());
    }

    #[test]
    fn the_documentation_has_a_place_for_every_part() {
        let path = quorate_tests::repository().join("docs/numbers.md");
        let text = std::fs::read_to_string(path).unwrap();
        for part in std::iter::once(None).chain(Part::ALL.map(Some)) {
            let marks = marks(part);
            assert!(between_marks(&text, "new", &marks).is_some(), "{marks:?}");
        }
    }
}
