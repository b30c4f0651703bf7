//! The command line.

mod build;
mod campaign;
mod control;
mod differences;
mod disk;
mod doctor;
mod explain;
mod gdb;
mod progress;
mod relaxed;
mod replay;
mod run;
mod table;
mod typing;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::events::NoQuorum;
use crate::exit::{ExitCode, Failure};
use crate::gateway::Publish;
use crate::recovery::Step;

/// Runs one appliance as several virtual machines at once, and lets the outside world see only what a majority of them
/// agree on.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, after_help = ExitCode::table(), max_term_width = 100)]
struct Cli {
    /// What is logged to standard error, as in RUST_LOG (for example `info` or `quorate_executor=debug`).
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an appliance as a replica set, in the foreground
    Run(RunArgs),
    /// Show the state of a running set
    Status(StatusArgs),
    /// Stop a running set
    Stop(StopArgs),
    /// Save a running set to a directory, to go on from there with `quorate run --from DIR`
    Checkpoint(CheckpointArgs),
    /// Kill one replica of a running set; with recovery, it comes back
    Kill(KillArgs),
    /// Bring back a replica that was left out
    Recover(RecoverArgs),
    /// Add a replica to a running set
    Add(AddArgs),
    /// Take a replica out of a running set
    Remove(RemoveArgs),
    /// Inject a fault into one replica of a running set
    Inject(InjectArgs),
    /// Say what this host offers and what will work on it
    Doctor(DoctorArgs),
    /// Build the image of an appliance
    Build(BuildArgs),
    /// Look at, check, empty and make the disks of an appliance
    Disk(disk::DiskArgs),
    /// Run one replica again from a recording, and compare all that it does
    Replay(replay::ReplayArgs),
    /// Say where and why a replica of a recorded run went its own way
    Explain(explain::ExplainArgs),
    /// Say what the replicas of a relaxed run answered differently, by request
    Differences(differences::DifferencesArgs),
    /// Inject faults in thousands of reproducible trials, and report what became of them
    #[command(disable_help_flag = true)]
    Campaign(campaign::CampaignArgs),
}

/// `quorate run`
#[derive(Debug, Args)]
struct RunArgs {
    /// The appliance file
    #[arg(required_unless_present = "from")]
    appliance: Option<PathBuf>,
    /// Go on from where `quorate checkpoint DIR` saved a set
    #[arg(long, value_name = "DIR", conflicts_with_all = ["appliance", "replicas", "layout", "seed", "memory", "disk", "record"])]
    from: Option<PathBuf>,
    /// With --from: put the saved copies of the disks back; what is on the disks now is lost
    #[arg(long, requires = "from")]
    restore_disks: bool,
    /// Number of replicas, 1 to 9 [default: the appliance's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    replicas: Option<u8>,
    /// Whether all replicas have the same addresses or each its own [default: the appliance's]
    #[arg(long)]
    layout: Option<LayoutArg>,
    /// Seed of the run: any text, or the 64 digits that a run has printed [default: random]
    #[arg(long)]
    seed: Option<String>,
    /// Publish a port of the guest; may be repeated, and replaces the appliance's list
    #[arg(long, value_name = "[ADDR:]HOST:GUEST[/udp]")]
    publish: Vec<Publish>,
    /// Memory of each replica, for example 256M [default: the appliance's]
    #[arg(long, value_name = "SIZE", value_parser = quorate_images::size::parse)]
    memory: Option<u64>,
    /// Use this file for a disk of the appliance; may be repeated
    #[arg(long, value_name = "NAME=FILE", value_parser = disk_file)]
    disk: Vec<(String, PathBuf)>,
    /// Where to put the control socket [default: $XDG_RUNTIME_DIR/quorate/NAME.sock or /tmp/quorate-UID/NAME.sock]
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// What to do when there is no majority [default: the appliance's]
    #[arg(long, value_name = "POLICY")]
    no_quorum: Option<NoQuorum>,
    /// Whether a replica that was stopped comes back [default: the appliance's]
    #[arg(long)]
    recovery: Option<OnOff>,
    /// How often each replica takes a checkpoint: milliseconds, or off [default: the appliance's]
    #[arg(long, value_name = "MS", value_parser = interval)]
    checkpoint_interval: Option<Duration>,
    /// Seconds that the guest program gets to end when it is asked to
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    stop_grace: u64,
    /// Relaxed sets: write each request that a replica answered differently to FILE, one JSON object per line
    #[arg(long, value_name = "FILE")]
    differences: Option<PathBuf>,
    /// Linux guests: give what is typed here to their consoles, the same to every replica; on a terminal Ctrl-] takes it back
    #[arg(long, conflicts_with = "from")]
    console: bool,
    /// Try to run Linux guests although this host's KVM is not fit for them
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    record: RecordArgs,
}

/// What `quorate run` records.
#[derive(Debug, Args)]
struct RecordArgs {
    /// Record the run in FILE, for `quorate replay` and `quorate explain`. It holds secrets: seeds, all input, guest memory
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Begin a new file when the newest has so much of the journal; full ones are FILE.000001, FILE.000002 and so on
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = quorate_images::size::parse, requires = "record")]
    record_segment: u64,
    /// Keep at most so much, deleting the oldest files
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = quorate_images::size::parse, requires = "record")]
    record_keep: u64,
}

fn disk_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(file)))
        }
        _ => Err("expected NAME=FILE".to_owned()),
    }
}

/// The zero stands for never.
fn interval(text: &str) -> Result<Duration, String> {
    if text == "off" {
        return Ok(Duration::ZERO);
    }
    match text.parse() {
        Ok(millis) => Ok(Duration::from_millis(millis)),
        Err(_) => Err("expected milliseconds or off".to_owned()),
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnOff {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutArg {
    Same,
    Random,
}

#[derive(Debug, Args)]
struct ControlArg {
    /// The set's control socket; not needed while only one set runs
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
}

/// `quorate status`
#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    at: ControlArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show where every region of every replica lies
    #[arg(long)]
    layout: bool,
}

/// `quorate stop`
#[derive(Debug, Args)]
struct StopArgs {
    #[command(flatten)]
    at: ControlArg,
    /// Do not ask the guest program to end, stop at once
    #[arg(long)]
    now: bool,
}

/// `quorate checkpoint`
#[derive(Debug, Args)]
struct CheckpointArgs {
    /// Where to save the set; what was saved there before is replaced at the end
    directory: PathBuf,
    /// End the set with it: nothing that anybody is told comes after what is saved
    #[arg(long)]
    stop: bool,
    #[command(flatten)]
    at: ControlArg,
}

/// `quorate kill`
#[derive(Debug, Args)]
struct KillArgs {
    /// The replica, from 0
    replica: usize,
    #[command(flatten)]
    at: ControlArg,
}

/// `quorate recover`
#[derive(Debug, Args)]
struct RecoverArgs {
    /// The replica, from 0
    replica: usize,
    /// Begin with this step of the ladder; a replica that runs begins again, too
    #[arg(long)]
    step: Option<Step>,
    #[command(flatten)]
    at: ControlArg,
}

/// `quorate add`
#[derive(Debug, Args)]
struct AddArgs {
    #[command(flatten)]
    at: ControlArg,
}

/// `quorate remove`
#[derive(Debug, Args)]
struct RemoveArgs {
    /// The replica, from 0
    replica: usize,
    #[command(flatten)]
    at: ControlArg,
}

/// `quorate inject`
#[derive(Debug, Args)]
struct InjectArgs {
    /// The replica, from 0
    replica: usize,
    /// crash, hang, freeze, wrong-output, wrong-write, slow, flip-register or flip-memory
    kind: String,
    /// For flip-register: REGISTER BIT; for flip-memory: PLACE BIT, where PLACE is a physical address, REGION+OFFSET or
    /// REGION:TEXT (the first place in the region that holds TEXT); or random
    arguments: Vec<String>,
    /// Not in the middle of a run, but at the replica's next boundary, where the registers are those of its kernel
    #[arg(long)]
    at_boundary: bool,
    #[command(flatten)]
    at: ControlArg,
}

/// `quorate doctor`
#[derive(Debug, Args)]
struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `quorate build`
#[derive(Debug, Args)]
struct BuildArgs {
    /// The appliance file
    appliance: PathBuf,
    /// Resolve the packages again and write the lock file (NAME.lock beside NAME.toml) anew
    #[arg(long)]
    update: bool,
}

/// Runs the command and says how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::Usage
            } else {
                ExitCode::Success
            };
        }
    };
    let result = log(cli.log.as_deref()).and_then(|()| match cli.command {
        Command::Run(args) => run::run(args),
        Command::Status(args) => control::status(&args),
        Command::Stop(args) => control::stop(&args),
        Command::Checkpoint(args) => control::checkpoint(&args),
        Command::Kill(args) => control::kill(&args),
        Command::Recover(args) => control::recover(&args),
        Command::Add(args) => control::add(&args),
        Command::Remove(args) => control::remove(&args),
        Command::Inject(args) => control::inject(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Build(args) => build::build(&args),
        Command::Disk(args) => disk::disk(&args),
        Command::Replay(args) => replay::replay(&args),
        Command::Explain(args) => explain::explain(&args),
        Command::Differences(args) => differences::differences(&args),
        Command::Campaign(args) => campaign::campaign(&args),
    });
    result.unwrap_or_else(|Failure { code, message }| {
        progress::line(&format!("error: {message}"));
        code
    })
}

fn log(filter: Option<&str>) -> Result<(), Failure> {
    let filter = match filter {
        Some(text) => EnvFilter::try_new(text)
            .map_err(|error| Failure::new(ExitCode::Usage, format!("--log {text:?}: {error}")))?,
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn")),
    };
    tracing_subscriber::fmt()
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    Ok(())
}

fn load(path: &std::path::Path) -> Result<quorate_images::Appliance, Failure> {
    quorate_images::Appliance::load(path).map_err(|error| Failure::new(ExitCode::Appliance, error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn replicas_are_one_to_nine() {
        for (given, good) in [
            ("0", false),
            ("1", true),
            ("9", true),
            ("10", false),
            ("x", false),
        ] {
            let parsed = Cli::try_parse_from(["quorate", "run", "a.toml", "--replicas", given]);
            assert_eq!(parsed.is_ok(), good, "{given}");
        }
    }

    #[test]
    fn campaign_takes_whatever_follows() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        for line in [
            "quorate campaign c.toml --trials 5",
            "quorate campaign --help",
            "quorate campaign merge a b --out c",
            "quorate campaign -q c.toml -- x",
        ] {
            assert!(
                matches!(parse(line).map(|cli| cli.command), Ok(Command::Campaign(_))),
                "{line}"
            );
        }
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("campaign"), "{help}");
    }

    #[test]
    fn the_help_has_the_exit_codes() {
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("7  no majority"), "{help}");
    }
}
