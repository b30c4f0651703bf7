//! `quorate replay`

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::gdb;
use super::progress::{Progress, answer, line};
use crate::exit::{ExitCode, Failure};
use crate::record::{Recording, size};
use crate::replay::{ReplayFailed, ReplayOptions, Replayer, Start};
use crate::seeds::{RunSeed, Seed};

/// Time between two looks at the clock for the progress bar, in boundaries.
const PROGRESS_BOUNDARIES: u64 = 256;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// `quorate replay`
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The recording, as it was named with `quorate run --record`
    file: PathBuf,
    /// Stop at this boundary [default: the last]
    #[arg(long, value_name = "BOUNDARY")]
    until: Option<u64>,
    /// Begin with the last checkpoint at this boundary or before [default: at the beginning, else with the first checkpoint]
    #[arg(long, value_name = "BOUNDARY", conflicts_with_all = ["from_checkpoint", "layout_seed"])]
    from: Option<u64>,
    /// Begin with this checkpoint of the recording, from 0
    #[arg(long, value_name = "N", conflicts_with = "layout_seed")]
    from_checkpoint: Option<usize>,
    /// Give the replica another layout: 64 hexadecimal digits, or any text. Begins at the beginning [default: the layout of replica 0]
    #[arg(long, value_name = "SEED")]
    layout_seed: Option<String>,
    /// The image, if it is not where it was
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Replay a damaged recording up to where the damage begins
    #[arg(long)]
    up_to_damage: bool,
    /// Wait for gdb at this address, at the boundary of --until if that is given, else at the beginning; the script for gdb is FILE.gdb
    #[arg(long, value_name = "[ADDR:]PORT", value_parser = gdb_address)]
    gdb: Option<SocketAddr>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An address, or a port of this host's own.
fn gdb_address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<u16>() {
        Ok(port) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        Err(_) => text
            .parse()
            .map_err(|_| "expected PORT or ADDRESS:PORT, for example 127.0.0.1:1234".to_owned()),
    }
}

/// What a replay gave, as JSON.
#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    segments: usize,
    bytes: u64,
    /// First and last boundary in the recording.
    first: u64,
    last: u64,
    /// Checkpoints in it, by boundary.
    checkpoints: Vec<u64>,
    dumps: usize,
    /// The set came to its end.
    complete: bool,
    /// Bytes at the end that were torn off.
    torn_bytes: Option<u64>,
    /// The boundary of the checkpoint with which the replay began; null: at the beginning.
    began: Option<u64>,
    /// The boundary at which it stopped.
    stopped: u64,
    /// Boundaries replayed.
    replayed: u64,
    /// How many of them were compared with what was released.
    compared: u64,
    /// The first boundary whose outputs differ.
    differs: Option<u64>,
    fingerprint: String,
    /// Fingerprint of the run, if it came to its end.
    recorded_fingerprint: Option<String>,
    layout_seed_is_recorded: bool,
    seconds: f64,
}

pub fn replay(args: &ReplayArgs) -> Result<ExitCode, Failure> {
    let recording = if args.up_to_damage {
        Recording::open_up_to_damage(&args.file)?
    } else {
        Recording::open(&args.file)?
    };
    let boundaries = recording.boundaries();
    if boundaries.is_empty() {
        let text = format!("{}: no boundary was recorded", args.file.display());
        return Err(Failure::new(ExitCode::Recording, text));
    }
    let last = boundaries.end - 1;
    if let Some(until) = args.until.filter(|until| !boundaries.contains(until)) {
        let text = format!(
            "--until {until}: the recording has boundaries {} to {last}",
            boundaries.start
        );
        return Err(Failure::new(ExitCode::Usage, text));
    }
    if !args.json {
        introduce(&recording);
    }
    let options = ReplayOptions {
        layout_seed: args.layout_seed.as_deref().map(seed),
        start: match (args.from, args.from_checkpoint) {
            (Some(boundary), _) => Start::Before(boundary),
            (_, Some(index)) => Start::Checkpoint(index),
            _ => Start::Earliest,
        },
        image: args.image.clone(),
        remember_every: args.gdb.map(|_| gdb::REMEMBER_EVERY),
    };
    let mut replayer = Replayer::open(&recording, &options)?;
    let began = replayer.at();
    if let (Some(at), Some(until)) = (began, args.until)
        && until < at
    {
        let text = format!(
            "--until {until} lies before boundary {at}, the first place at which this replay can begin"
        );
        return Err(Failure::new(ExitCode::Usage, text));
    }
    let mut until = args.until.unwrap_or(last);
    if let Some(address) = args.gdb {
        if !gdb::session(&mut replayer, &args.file, address, args.until)? {
            return Ok(ExitCode::Success);
        }
        until = last;
    }
    if !args.json {
        match began {
            Some(boundary) => line(&format!(
                "replaying from the checkpoint at boundary {boundary}"
            )),
            None => line("replaying from the beginning"),
        }
    }
    let progress = Progress::new();
    let started = Instant::now();
    let run = run(&mut replayer, until, last, &progress);
    progress.done();
    let (replayed, compared) = run?;
    let report = Report {
        file: args.file.clone(),
        segments: recording.size().0,
        bytes: recording.size().1,
        first: boundaries.start,
        last,
        checkpoints: recording
            .checkpoints()
            .iter()
            .map(|checkpoint| checkpoint.meta.boundary)
            .collect(),
        dumps: recording.dumps().len(),
        complete: recording.end().is_some(),
        torn_bytes: recording.torn().map(|torn| torn.bytes),
        began,
        stopped: replayer.boundary(),
        replayed,
        compared,
        differs: replayer.differs(),
        fingerprint: replayer.fingerprint().to_string(),
        recorded_fingerprint: recording
            .end()
            .map(|end| blake3::Hash::from_bytes(end.fingerprint).to_string()),
        layout_seed_is_recorded: args.layout_seed.is_none(),
        seconds: started.elapsed().as_secs_f64(),
    };
    tell(&report, args.json)
}

/// Replays up to a boundary, the end, or the first difference. Boundaries replayed, and how many of them were compared.
fn run(
    replayer: &mut Replayer<'_>,
    until: u64,
    last: u64,
    progress: &Progress,
) -> Result<(u64, u64), ReplayFailed> {
    let (mut replayed, mut compared) = (0, 0);
    let mut shown = Instant::now();
    while replayer.at().is_none_or(|at| at < until) {
        let Some(arrived) = replayer.step()? else {
            break;
        };
        replayed += 1;
        compared += u64::from(arrived.agrees.is_some());
        if arrived.agrees == Some(false) {
            break;
        }
        if replayed % PROGRESS_BOUNDARIES == 0 && shown.elapsed() >= PROGRESS_EVERY {
            progress.replaying(arrived.boundary, last);
            shown = Instant::now();
        }
    }
    Ok((replayed, compared))
}

fn seed(text: &str) -> Seed {
    match blake3::Hash::from_hex(text.trim()) {
        Ok(hash) => *hash.as_bytes(),
        Err(_) => RunSeed::from_text(text).layout(0, 0),
    }
}

fn introduce(recording: &Recording) {
    let (segments, bytes) = recording.size();
    let boundaries = recording.boundaries();
    line(&format!(
        "recording of {}: boundaries {} to {}, {} in {segments} file{}, {} checkpoints, {} dumps",
        recording.header().name,
        boundaries.start,
        boundaries.end - 1,
        size(bytes),
        if segments == 1 { "" } else { "s" },
        recording.checkpoints().len(),
        recording.dumps().len()
    ));
    match (recording.end(), recording.torn()) {
        (Some(end), _) => line(&format!("the set ended: {}", end.reason)),
        (None, Some(torn)) => match &torn.damage {
            Some(damage) => line(&format!("only what is before the damage: {damage}")),
            None => line(&format!(
                "the set was killed while it wrote: the last {} bytes of {} are torn off and were dropped",
                torn.bytes,
                torn.path.display()
            )),
        },
        (None, None) => {
            line("the recording ends before the set did: it was killed, or could not be written on")
        }
    }
}

fn tell(report: &Report, json: bool) -> Result<ExitCode, Failure> {
    let agrees = report.differs.is_none();
    if json {
        let text = serde_json::to_string_pretty(report)
            .map_err(|error| Failure::new(ExitCode::Internal, error))?;
        answer(&text);
    } else {
        answer(&format!(
            "replayed to boundary {} in {:.1} s: {} boundaries, {} compared with what was released",
            report.stopped, report.seconds, report.replayed, report.compared
        ));
        answer(&format!("fingerprint {}", report.fingerprint));
        let whole = report.recorded_fingerprint.as_deref() == Some(&report.fingerprint);
        match report.differs {
            None if whole => {
                answer("all outputs are those of the run; the fingerprint is the same")
            }
            None => answer("all outputs are those of the run"),
            Some(boundary) => answer(&format!(
                "DIFFERS: the outputs at boundary {boundary} are not those that the set released"
            )),
        }
    }
    Ok(if agrees {
        ExitCode::Success
    } else {
        ExitCode::Differs
    })
}
