//! `quorate campaign FILE`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use quorate_executor::exit::{ExitCode as Code, Failure};

use super::wire::Wired;
use super::{RunArgs, answer, failed, impossible, results, say};
use crate::draw::Drawer;
use crate::file::Campaign;
use crate::model::{Outcome, TrialRecord};
use crate::run::manifest::{FORMAT, make_directory};
use crate::run::progress::Progress;
use crate::run::results::{FILE, Reader, Writer, timeless};
use crate::run::summary::Summary;
use crate::run::{Ended, Engine, Event, Goal, Manifest, RunError, method};
use crate::stats::{Confidence, Counts};

/// The campaign's file.
pub fn load(file: &Path) -> Result<Campaign, Failure> {
    Campaign::load(file).map_err(|error| Failure::new(Code::Appliance, error))
}

/// Where a campaign's results are if nobody says otherwise. In the current directory, as campaign files may stand where nothing
/// is to be written.
pub fn directory(campaign: &Campaign, out: Option<&PathBuf>) -> PathBuf {
    match out {
        Some(out) => out.clone(),
        None => PathBuf::from(format!("campaign-{}", campaign.name)),
    }
}

/// Does what the command line says.
pub fn run(args: RunArgs) -> Result<Code, Failure> {
    // clap sees to it that there is one.
    let file = args.file.clone().unwrap_or_default();
    let campaign = load(&file)?;
    let goal = Goal::new(&campaign.trials, args.trials, args.half_width).map_err(impossible)?;
    if args.shard.is_some() && matches!(goal, Goal::Looks(_)) {
        return Err(Failure::new(
            Code::Usage,
            "--shard with a campaign that ends by half_width: a shard does not see the others' trials; give --trials \
             (`quorate campaign plan` says how many)",
        ));
    }
    let out = directory(&campaign, args.out.as_ref());
    make_directory(&out).map_err(failed)?;
    let tell = |text: &str| {
        if !args.quiet {
            say(text);
        }
    };
    let wired = Wired::prepare(&campaign, &out, args.synthetic, &tell)?;
    let facts = wired.facts();
    tell(&format!(
        "golden run: {} boundaries, {} system calls, {:.1} ms of virtual time",
        facts.boundaries,
        facts.calls,
        facts.virtual_ns as f64 / 1e6
    ));
    if args.prepare {
        return Ok(Code::Success);
    }
    let drawer = Drawer::new(&campaign, &facts)
        .map_err(|error| Failure::new(Code::Appliance, format!("{}: {error}", file.display())))?;
    let manifest = Manifest {
        format: FORMAT,
        quorate: env!("CARGO_PKG_VERSION").to_owned(),
        file,
        digest: campaign.digest(),
        golden: facts,
        strata: drawer
            .strata()
            .into_iter()
            .map(|stratum| (stratum.name, f64::from(stratum.weight)))
            .collect(),
        goal,
        shard: args.shard,
        jobs: args.jobs.unwrap_or_else(processors),
        wall_seconds: 0.0,
        complete: None,
        campaign,
    };
    match args.only {
        Some(_) => only(&args, &out, &manifest, &drawer, &wired),
        None => all(&args, &out, manifest, &drawer, &wired),
    }
}

fn processors() -> u64 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

/// Some trials by themselves. Results are left as they are, but what they say is compared.
fn only(
    args: &RunArgs,
    out: &Path,
    manifest: &Manifest,
    drawer: &Drawer,
    wired: &Wired,
) -> Result<Code, Failure> {
    let Some(super::Draws(first, end)) = args.only else {
        return Ok(Code::Success);
    };
    if args.record.is_some() && end - first > 1 {
        return Err(Failure::new(
            Code::Usage,
            "--record is for one draw: give --only DRAW",
        ));
    }
    let before = kept(out, manifest, first, end)?;
    let mut bench = wired
        .bench(&manifest.campaign, args.record.as_deref(), false)
        .map_err(|error| failed(RunError::Make(error)))?;
    let replicas = match args.replicas {
        Some(replicas) => vec![replicas],
        None => manifest.campaign.replicas.clone(),
    };
    let mut code = Code::Success;
    for draw in first..end {
        let drawn = drawer.draw(draw);
        for &n in &replicas {
            let record = bench.trial(&drawn, n).map_err(|source| {
                failed(RunError::Bench {
                    draw,
                    replicas: n,
                    source,
                })
            })?;
            let mut text = describe(&record);
            if let Some(kept) = before.get(&(draw, n)) {
                let (now, then) = (timeless(record), timeless(kept.clone()));
                if now == then {
                    text.push_str("  the same as in the results\n");
                } else {
                    let _ = writeln!(
                        text,
                        "  NOT the same as in the results: {}: {}; {}",
                        then.outcome, then.place, then.evidence
                    );
                    code = Code::Differs;
                }
            }
            answer(&text);
        }
    }
    if let Some(file) = &args.record {
        say(&format!("recorded: quorate explain {}", file.display()));
    }
    Ok(code)
}

/// What the results have of these draws, if they are results of this campaign.
fn kept(
    out: &Path,
    manifest: &Manifest,
    first: u64,
    end: u64,
) -> Result<BTreeMap<(u64, u8), TrialRecord>, Failure> {
    let mut kept = BTreeMap::new();
    let same = Manifest::read(out)
        .map_err(failed)?
        .is_some_and(|there| manifest.same_trials(&there, out).is_ok());
    if same && out.join(FILE).exists() {
        for record in Reader::open(&out.join(FILE)).map_err(|error| failed(error.into()))? {
            let record = record.map_err(|error| failed(error.into()))?;
            if (first..end).contains(&record.drawn.draw) {
                kept.insert((record.drawn.draw, record.replicas), record);
            }
        }
    }
    Ok(kept)
}

fn describe(record: &TrialRecord) -> String {
    let mut text = String::new();
    let drawn = &record.drawn;
    let plain = |value: &dyn erased::Json| value.json();
    let _ = writeln!(
        text,
        "draw {} with {} replicas ({}): {}",
        drawn.draw, record.replicas, drawn.stratum, record.outcome
    );
    let _ = writeln!(text, "  fault     {}", plain(&drawn.fault));
    let _ = writeln!(text, "  trigger   {}", plain(&drawn.trigger));
    let _ = writeln!(text, "  victims   {:?}", drawn.victims(record.replicas));
    let _ = writeln!(text, "  place     {}", record.place);
    if let Some(found) = &record.detected {
        let _ = writeln!(
            text,
            "  detected  {} after {} boundaries, {:.3} ms of virtual time",
            found.how,
            found.boundaries,
            found.virtual_ns as f64 / 1e6
        );
    }
    if let Some(back) = &record.recovered {
        let _ = writeln!(
            text,
            "  recovered by {} in {:.1} ms",
            back.step,
            back.micros as f64 / 1e3
        );
    }
    if record.replicas > 1 {
        let _ = writeln!(
            text,
            "  strength  {}",
            if record.full_strength {
                "full at the end"
            } else {
                "not full at the end"
            }
        );
    }
    if !record.evidence.is_empty() {
        let _ = writeln!(text, "  evidence  {}", record.evidence);
    }
    let time = record.timing;
    let _ = writeln!(
        text,
        "  time      {:.1} ms: reset {:.1} ({} pages), run {:.1}, settle {:.1}, judge {:.1}",
        time.total as f64 / 1e3,
        time.reset as f64 / 1e3,
        time.pages,
        time.run as f64 / 1e3,
        time.settle as f64 / 1e3,
        time.judge as f64 / 1e3
    );
    text
}

/// Anything that serde can write, as one line.
mod erased {
    pub trait Json {
        fn json(&self) -> String;
    }

    impl<T: serde::Serialize> Json for T {
        fn json(&self) -> String {
            serde_json::to_string(self).unwrap_or_default()
        }
    }
}

/// The campaign.
fn all(
    args: &RunArgs,
    out: &Path,
    mut manifest: Manifest,
    drawer: &Drawer,
    wired: &Wired,
) -> Result<Code, Failure> {
    let begun = Instant::now();
    let mut done: BTreeMap<(u64, u8), Outcome> = BTreeMap::new();
    let mut summary = Summary::default();
    // Opening locks the results: from here on, nobody else writes in this directory.
    let (mut writer, seen) = Writer::open(&out.join(FILE), |record| {
        done.insert((record.drawn.draw, record.replicas), record.outcome);
        summary.add(&record);
    })
    .map_err(|error| failed(error.into()))?;
    if let Some(before) = Manifest::read(out).map_err(failed)? {
        if !seen.is_empty() {
            if !args.resume {
                return Err(failed(RunError::Exists {
                    directory: out.to_owned(),
                    trials: seen.len(),
                }));
            }
            manifest.same_trials(&before, out).map_err(failed)?;
            if before.shard != manifest.shard {
                let name = |shard: Option<crate::run::Shard>| {
                    shard.map_or("the whole campaign".to_owned(), |shard| {
                        format!("shard {shard}")
                    })
                };
                return Err(failed(RunError::OtherCampaign {
                    directory: out.to_owned(),
                    what: format!(
                        "they are of {}, and this is {}",
                        name(before.shard),
                        name(manifest.shard)
                    ),
                }));
            }
            manifest.wall_seconds = before.wall_seconds;
        }
    } else if !seen.is_empty() {
        return Err(failed(RunError::NoCampaign(out.to_owned())));
    }
    manifest.write(out).map_err(failed)?;

    let confidence = Confidence::new(manifest.campaign.trials.confidence).map_err(impossible)?;
    let method = method(&manifest.campaign.trials);
    let counts: BTreeMap<u8, Counts> = summary
        .table
        .replicas
        .keys()
        .map(|&n| (n, summary.table.total(n)))
        .collect();
    let mut progress = Progress::new(counts, confidence, method);
    if args.quiet {
        progress.quiet();
    }
    let stop = Arc::new(AtomicBool::new(false));
    interruptible(&stop)?;
    let engine = Engine {
        replicas: &manifest.campaign.replicas,
        shard: manifest.shard,
        goal: &manifest.goal,
        jobs: usize::try_from(manifest.jobs).unwrap_or(1),
        draw: &|draw| drawer.draw(draw),
        // One job's machines speak for all: they are made from the same files.
        make: &|job| wired.bench(&manifest.campaign, None, job == 0),
        stop: &stop,
    };
    let result = engine.run(&mut writer, &mut done, &mut |event| {
        if let Event::Trial(record) = &event {
            summary.add(record);
        }
        progress.event(&event);
    });
    progress.done();
    manifest.wall_seconds += begun.elapsed().as_secs_f64();
    if let Ok(Ended::Complete { draws, .. }) = &result {
        manifest.complete = Some(*draws);
    }
    manifest.write(out).map_err(failed)?;
    drop(writer);
    let ended = result.map_err(failed)?;

    results::write_outcomes(out, &summary.table)?;
    results::closing(&manifest, &summary);
    let written = results::write_report(out)?;
    answer(&format!("report: {}", written.display()));
    match ended {
        Ended::Complete { found, .. } => {
            if let Some(found) = found.filter(|found| !found.enough) {
                say(&format!(
                    "the widest interval is +/- {:.2} %, wider than wished: the most draws that the campaign allows were done",
                    100.0 * found.half_width
                ));
            }
            Ok(Code::Success)
        }
        Ended::Stopped => {
            say(&format!(
                "stopped; {} trials are kept. To go on, give the same command with --resume",
                done.len()
            ));
            Ok(Code::Incomplete)
        }
    }
}

/// The first Ctrl-C or SIGTERM lets the trials that are being played come to their end, the second one does not.
fn interruptible(stop: &Arc<AtomicBool>) -> Result<(), Failure> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(
            signal,
            i32::from(Code::Incomplete as u8),
            Arc::clone(stop),
        )
        .and_then(|_| signal_hook::flag::register(signal, Arc::clone(stop)))
        .map_err(|error| Failure::new(Code::Host, format!("signals: {error}")))?;
    }
    Ok(())
}
