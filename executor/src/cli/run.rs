//! `quorate run`

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use quorate_vmm::LayoutKind;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::progress::{Progress, line};
use super::{LayoutArg, OnOff, RecordArgs, RunArgs, load};
use crate::console::Console;
use crate::control::{ControlError, paths, server::Server};
use crate::events::End;
use crate::exit::{ExitCode, Failure};
use crate::launch::{Hooks, Options, Plan, describe};
use crate::record::{Header, Limits, Recorder};
use crate::save::Saved;
use crate::set::Summary;

/// Smallest segment of a recording: several blocks.
const MIN_SEGMENT: u64 = 1 << 20;
/// Lines of the console that are shown again when the guest program fails.
const LAST_LINES: usize = 10;

pub fn run(args: RunArgs) -> Result<ExitCode, Failure> {
    if let Some(path) = &args.appliance {
        let appliance = load(path)?;
        if args.console && appliance.linux.is_none() {
            return Err(Failure::new(
                ExitCode::Usage,
                "--console is for appliances with [linux]: the embedded guest has no console that anybody could type at",
            ));
        }
        if appliance.is_relaxed() {
            return super::relaxed::run(args, &appliance);
        }
    }
    if args.differences.is_some() {
        return Err(Failure::new(
            ExitCode::Usage,
            "--differences is for relaxed sets; in lockstep a replica that differs is stopped, and the event says how",
        ));
    }
    let saved = match &args.from {
        Some(directory) => {
            Some(Saved::open(directory).map_err(|error| Failure::new(ExitCode::Disk, error))?)
        }
        None => None,
    };
    let options = Options {
        replicas: args.replicas,
        layout: args.layout.map(|layout| match layout {
            LayoutArg::Same => LayoutKind::Same,
            LayoutArg::Random => LayoutKind::Random,
        }),
        seed: args.seed,
        publish: args.publish.clone(),
        memory: args.memory,
        no_quorum: args.no_quorum,
        recovery: args.recovery.map(|wanted| matches!(wanted, OnOff::On)),
        checkpoint_interval: args.checkpoint_interval,
        stop_grace: Some(Duration::from_secs(args.stop_grace)),
        cache_dir: None,
        state_dir: None,
        disks: args.disk,
        force: args.force,
    };
    let progress = Progress::new();
    let planned = match (&saved, &args.appliance) {
        (Some(saved), _) => saved.plan(
            |saved| {
                if !args.publish.is_empty() {
                    saved.publish = args.publish;
                }
                saved.no_quorum = args.no_quorum.or(saved.no_quorum);
                saved.recovery = options.recovery.or(saved.recovery);
                saved.checkpoint_interval = args.checkpoint_interval.or(saved.checkpoint_interval);
            },
            args.restore_disks,
            &|step| progress.building(step),
        ),
        (None, Some(path)) => load(path)
            .and_then(|appliance| Plan::new(&appliance, &options, &|step| progress.building(step))),
        // The command line asks for one of them.
        (None, None) => Err(Failure::new(ExitCode::Usage, "no appliance file is given")),
    };
    progress.done();
    let plan = planned?;

    warn_of_memory(&plan);
    // Before anything runs: a signal must never find the default handler, which would lose what is under way.
    let signals = Signals::new([SIGINT, SIGTERM]).map_err(|error| {
        Failure::new(
            ExitCode::Host,
            format!("signals cannot be handled: {error}"),
        )
    })?;
    let (listener, path) = match &args.control {
        Some(path) => (paths::bind(path).map_err(control_failure)?, path.clone()),
        None => paths::bind_default(&paths::default_directory(), &plan.set.name)
            .map_err(control_failure)?,
    };
    let recorder = recorder(&args.record, &plan, &plan.appliance.0)?;
    let console = Console::start(std::io::stdout()).map_err(|error| {
        Failure::new(
            ExitCode::Host,
            format!("no thread for the console: {error}"),
        )
    })?;
    let console = Arc::new(console);
    let config = plan.set.clone();
    // A terminal or pipe that takes nothing must not hold up the replicas, so these lines have a thread of their own too.
    let notices = Console::start(std::io::stderr()).map_err(|error| {
        Failure::new(ExitCode::Host, format!("no thread for messages: {error}"))
    })?;
    let notices = Arc::new(notices);
    let say = |text: &str| notices.put(format!("quorate: {text}\n").as_bytes());
    let of_events = Arc::clone(&notices);
    let hooks = Hooks {
        events: Box::new(move |logged| {
            of_events.put(format!("quorate: {}\n", logged.event).as_bytes())
        }),
        console: Arc::clone(&console),
        tap: None,
        recorder: recorder.clone(),
    };
    say(&format!(
        "{}: starting {} with layout {}, seed {}",
        config.name,
        crate::events::count(config.voter.replicas.into()),
        config.layout_mode,
        config.seed
    ));
    if let Some(saved) = &saved {
        say(&format!(
            "going on from boundary {} of the set that was saved",
            saved.manifest().boundary
        ));
    }
    say(&format!(
        "image {}, {}, verified",
        blake3::Hash::from_bytes(plan.image.digest).to_hex(),
        quorate_images::size::format(plan.image.length)
    ));
    let running = match plan.start(hooks) {
        Ok(running) => running,
        Err(failure) => {
            notices.finish();
            let _ = std::fs::remove_file(&path);
            if let Some(recorder) = recorder {
                recorder.discard();
            }
            return Err(failure);
        }
    };
    let server =
        Server::start(listener, path.clone(), running.set.controlled()).map_err(|error| {
            Failure::new(
                ExitCode::Host,
                format!("the control socket cannot be served: {error}"),
            )
        })?;
    for (publish, at) in running.addresses() {
        say(&format!("published {}", describe(&publish, &at)));
    }
    say(&format!("control socket {}", path.display()));

    let set = running.set.handle();
    let signals = watch(signals, move |now| set.stop(now))?;
    let summary = running.wait();
    signals.end();
    notices.finish();
    report(&summary, &console);
    drop(server);
    Ok(summary.end.exit_code())
}

fn recorder(
    args: &RecordArgs,
    plan: &Plan,
    appliance: &Path,
) -> Result<Option<Arc<Recorder>>, Failure> {
    let Some(path) = &args.record else {
        return Ok(None);
    };
    let limits = Limits {
        segment: args.record_segment,
        keep: args.record_keep,
    };
    if limits.segment < MIN_SEGMENT || limits.keep / 2 < limits.segment {
        let text = format!(
            "--record-segment must be at least {}, and --record-keep at least twice that",
            quorate_images::size::format(MIN_SEGMENT)
        );
        return Err(Failure::new(ExitCode::Usage, text));
    }
    let recorder = Recorder::create(path, limits, &Header::of(plan, appliance))?;
    Ok(Some(Arc::new(recorder)))
}

/// Guest memory is given as it is touched, so a set that is too large for the host starts well and ends badly.
fn warn_of_memory(plan: &Plan) {
    let available = quorate_vmm::host().memory_available;
    let wanted = plan.machine.memory_bytes * u64::from(plan.set.voter.replicas);
    if available != 0 && wanted > available {
        line(&format!(
            "note: {} of {} may use {} MiB of memory, this host has {} MiB available",
            crate::events::count(plan.set.voter.replicas.into()),
            quorate_images::size::format(plan.machine.memory_bytes),
            wanted >> 20,
            available >> 20
        ));
    }
}

pub(super) fn control_failure(error: ControlError) -> Failure {
    Failure::new(ExitCode::Control, error)
}

pub(super) struct Watching {
    handle: signal_hook::iterator::Handle,
    thread: JoinHandle<()>,
}

impl Watching {
    pub(super) fn end(self) {
        self.handle.close();
        let _ = self.thread.join();
    }
}

/// The first signal asks the guest program to end, the second ends the set at once.
pub(super) fn watch(
    mut signals: Signals,
    stop: impl Fn(bool) + Send + 'static,
) -> Result<Watching, Failure> {
    let handle = signals.handle();
    let thread = std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut asked = false;
            for _ in signals.forever() {
                stop(asked);
                asked = true;
            }
        })
        .map_err(|error| Failure::new(ExitCode::Host, format!("no thread for signals: {error}")))?;
    Ok(Watching { handle, thread })
}

fn report(summary: &Summary, console: &Console) {
    let status = &summary.status;
    if matches!(summary.end, End::Exited { .. }) && summary.end.exit_code() == ExitCode::GuestFailed
    {
        let lines = console.last_lines(LAST_LINES);
        let after = summary.ran.as_secs_f64();
        if lines.is_empty() {
            line(&format!(
                "{} after {after:.1} s; it wrote nothing",
                summary.end
            ));
        } else {
            line(&format!(
                "{} after {after:.1} s; the last it wrote:",
                summary.end
            ));
            for text in lines {
                line(&format!("  | {text}"));
            }
        }
    }
    line(&format!(
        "{} boundaries, {} ballots, {} bytes voted, {} outputs with {} bytes released",
        status.boundaries,
        status.ballots,
        status.bytes_voted,
        status.releases,
        status.bytes_released
    ));
    line(&format!("input fingerprint {}", status.input_fingerprint));
    if let Some(recorded) = &summary.recorded {
        line(&format!(
            "recorded {} boundaries: {} in {}{}",
            recorded.boundaries,
            crate::record::size(recorded.bytes),
            match recorded.segments {
                1 => "one file".to_owned(),
                several => format!("{several} files"),
            },
            match &recorded.failure {
                Some(why) => format!("; it ends early: {why}"),
                None => String::new(),
            }
        ));
    }
}
