//! The command line of `quorate campaign`.

mod results;
mod run;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use quorate_executor::exit::{ExitCode as Code, Failure};

use crate::run::{RunError, Shard};
use crate::stats::StatsError;

/// Runs fault-injection campaigns: thousands of reproducible trials of an appliance, alone and under voting.
#[derive(Debug, Parser)]
#[command(
    name = "quorate campaign",
    bin_name = "quorate campaign",
    version,
    after_help = after_help(),
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put the results of shards together
    Merge(MergeArgs),
    /// Compare two campaigns, or the numbers of replicas of one
    Compare(CompareArgs),
    /// Say what strata there are and how many trials are needed, without running any
    Plan(PlanArgs),
    /// Write the report of a campaign's results anew
    Report(ReportArgs),
}

/// Running trials.
#[derive(Debug, Args)]
struct RunArgs {
    /// The campaign file
    #[arg(required = true, value_name = "CAMPAIGN.toml")]
    file: Option<PathBuf>,
    /// Draw so many faults; each is tried with every number of replicas of the campaign [default: the file's]
    #[arg(long, value_name = "DRAWS", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "half_width")]
    trials: Option<u64>,
    /// Draw until no interval is wider than this to either side, for example 0.01 for 1 %
    #[arg(long, value_name = "W", conflicts_with = "shard")]
    half_width: Option<f64>,
    /// Trials at a time [default: the number of processors]
    #[arg(long, value_name = "J", value_parser = clap::value_parser!(u64).range(1..=1024))]
    jobs: Option<u64>,
    /// Where results and report go [default: campaign-NAME in the current directory]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the results that are there
    #[arg(long)]
    resume: bool,
    /// Do only the i-th of n parts, for `quorate campaign merge`
    #[arg(long, value_name = "i/n")]
    shard: Option<Shard>,
    /// Make the golden run that trials begin with, and no trials
    #[arg(long, conflicts_with_all = ["trials", "half_width", "shard", "only"])]
    prepare: bool,
    /// Do this trial alone (or those from DRAW up to END, without END) and say what became of it; results are left as they are
    #[arg(long, value_name = "DRAW[..END]", value_parser = draws, conflicts_with_all = ["trials", "half_width", "shard", "resume"])]
    only: Option<Draws>,
    /// With --only: in a set of so many [default: all of the campaign's numbers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9), requires = "only")]
    replicas: Option<u8>,
    /// With --only: record the trial in FILE, for `quorate explain`
    #[arg(long, value_name = "FILE", requires = "only", requires = "replicas")]
    record: Option<PathBuf>,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
    /// Plant outcomes instead of running machines: for tests of the runner
    #[arg(long, hide = true)]
    synthetic: bool,
}

/// Draws from the first up to the second, without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Draws(u64, u64);

fn draws(text: &str) -> Result<Draws, String> {
    let range = match text.split_once("..") {
        None => text
            .parse()
            .ok()
            .and_then(|draw: u64| Some((draw, draw.checked_add(1)?))),
        Some((first, end)) => first.parse().ok().zip(end.parse().ok()),
    };
    match range {
        Some((first, end)) if first < end => Ok(Draws(first, end)),
        _ => Err("expected a draw's number, or two as in 10..20".to_owned()),
    }
}

/// `merge`
#[derive(Debug, Args)]
struct MergeArgs {
    /// Directories with results
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// Where the result goes
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// `compare`
#[derive(Debug, Args)]
struct CompareArgs {
    /// A directory with results
    first: PathBuf,
    /// Another; without it, each number of replicas is compared with the smallest
    second: Option<PathBuf>,
    /// Of the intervals
    #[arg(long, value_name = "FRACTION", default_value_t = 0.95)]
    confidence: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `plan`
#[derive(Debug, Args)]
struct PlanArgs {
    /// The campaign file
    file: PathBuf,
    /// The half-width that is wished for
    #[arg(long, value_name = "W")]
    half_width: Option<f64>,
    /// Assume that an outcome has this rate
    #[arg(long, value_name = "RATE")]
    rate: Option<f64>,
    /// Where the campaign's golden run is, if it is anywhere [default: campaign-NAME in the current directory]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// `report`
#[derive(Debug, Args)]
struct ReportArgs {
    /// A directory with results
    directory: PathBuf,
}

fn after_help() -> String {
    let mut text = String::from("Exit codes:\n");
    for code in [
        Code::Success,
        Code::Usage,
        Code::Appliance,
        Code::Image,
        Code::Host,
        Code::Disk,
        Code::Recording,
        Code::Differs,
        Code::Incomplete,
        Code::Results,
        Code::Internal,
    ] {
        let meaning = match code {
            Code::Success => "the campaign is complete, whatever became of its trials",
            Code::Appliance => "the campaign file or the appliance file cannot be read or is wrong",
            Code::Differs => "with --only: the trial is not what the results say that it was",
            other => other.meaning(),
        };
        text.push_str(&format!("  {:>2}  {meaning}\n", code as u8));
    }
    text
}

/// Runs the command and says how it ended.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let code = if error.use_stderr() {
                Code::Usage
            } else {
                Code::Success
            };
            return code.into();
        }
    };
    log();
    let result = match cli.command {
        None => run::run(cli.run),
        Some(Command::Merge(args)) => results::merge(&args),
        Some(Command::Compare(args)) => results::compare(&args),
        Some(Command::Plan(args)) => results::plan(&args),
        Some(Command::Report(args)) => results::report(&args),
    };
    result
        .unwrap_or_else(|Failure { code, message }| {
            say(&format!("error: {message}"));
            code
        })
        .into()
}

fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
}

/// A line for the user. Standard error may be closed; that must not end a campaign.
fn say(text: &str) {
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("quorate: {text}\n"));
}

/// An answer. A reader that has had enough is no error of anybody's.
fn answer(text: &str) {
    let text = text.trim_end_matches('\n');
    let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{text}\n"));
}

fn failed(error: RunError) -> Failure {
    use crate::bench::BenchError;
    let code = match &error {
        RunError::Io { .. }
        | RunError::Results(_)
        | RunError::Manifest { .. }
        | RunError::NoCampaign(_)
        | RunError::Exists { .. }
        | RunError::OtherCampaign { .. }
        | RunError::Disagree { .. } => Code::Results,
        RunError::Bench { source, .. } | RunError::Make(source) => match source {
            BenchError::Machine(failure) => failure.code,
            BenchError::Replicas { .. } => Code::Usage,
            BenchError::Broken(_) => Code::Host,
            BenchError::File { .. } => Code::Results,
        },
        RunError::Panicked => Code::Internal,
    };
    Failure::new(code, error)
}

fn impossible(error: StatsError) -> Failure {
    Failure::new(Code::Usage, error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("13  ") && help.contains("merge"), "{help}");
    }

    #[test]
    fn what_is_taken_and_what_is_not() {
        for (line, good) in [
            ("c.toml", true),
            ("", false),
            ("c.toml --trials 20 --jobs 2 --resume --out d", true),
            ("c.toml --trials 0", false),
            ("c.toml --trials 20 --half-width 0.1", false),
            ("c.toml --half-width 0.1 --shard 1/2", false),
            ("c.toml --only 3 --replicas 3 --record f", true),
            ("c.toml --only 3..9", true),
            ("c.toml --only 9..3", false),
            ("c.toml --record f", false),
            ("c.toml --only 3 --record f", false),
            ("c.toml --shard 3/2", false),
            ("merge a b --out c", true),
            ("merge --out c", false),
            ("merge a b", false),
            ("compare a b", true),
            ("compare a", true),
            ("plan c.toml --half-width 0.01 --rate 0.1", true),
            ("report d", true),
        ] {
            let words = ["quorate-campaign"]
                .into_iter()
                .chain(line.split_whitespace());
            assert_eq!(Cli::try_parse_from(words).is_ok(), good, "{line:?}");
        }
        assert_eq!(draws("7"), Ok(Draws(7, 8)));
        assert_eq!(draws("7..9"), Ok(Draws(7, 9)));
    }
}
