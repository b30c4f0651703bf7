//! `quorate run` of an appliance whose replicas are relaxed.

use std::sync::Arc;
use std::time::Duration;

use quorate_images::Appliance;
use quorate_vmm::LayoutKind;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::progress::{Progress, line};
use super::run::{control_failure, watch};
use super::{LayoutArg, OnOff, RunArgs};
use crate::console::Console;
use crate::control::{paths, server::Server};
use crate::exit::{ExitCode, Failure};
use crate::launch::{Options, describe};
use crate::relaxed::plan::RelaxedPlan;

pub fn run(args: RunArgs, appliance: &Appliance) -> Result<ExitCode, Failure> {
    if args.record.record.is_some() {
        return Err(Failure::new(
            ExitCode::Usage,
            "--record is not there for a relaxed set: a recording holds what happens at boundaries, which its replicas do not share",
        ));
    }
    let options = Options {
        replicas: args.replicas,
        layout: args.layout.map(|layout| match layout {
            LayoutArg::Same => LayoutKind::Same,
            LayoutArg::Random => LayoutKind::Random,
        }),
        seed: args.seed,
        publish: args.publish,
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
    let planned = RelaxedPlan::new(appliance, &options, &|step| progress.building(step));
    progress.done();
    let mut plan = planned?;
    plan.differences = args.differences;

    let host = |error: std::io::Error, what: &str| {
        Failure::new(ExitCode::Host, format!("{what}: {error}"))
    };
    // Before anything runs: a signal must never find the default handler, which would lose what is under way.
    let signals = Signals::new([SIGINT, SIGTERM])
        .map_err(|error| host(error, "signals cannot be handled"))?;
    let (listener, path) = match &args.control {
        Some(path) => (paths::bind(path).map_err(control_failure)?, path.clone()),
        None => {
            paths::bind_default(&paths::default_directory(), &plan.name).map_err(control_failure)?
        }
    };
    let console = Console::start(std::io::stdout())
        .map_err(|error| host(error, "no thread for the console"))?;
    let console = Arc::new(console);
    let notices =
        Console::start(std::io::stderr()).map_err(|error| host(error, "no thread for messages"))?;
    let notices = Arc::new(notices);
    let say = |text: &str| notices.put(format!("quorate: {text}\n").as_bytes());
    let of_events = Arc::clone(&notices);
    let events = Box::new(move |logged: &crate::events::Logged| {
        of_events.put(format!("quorate: {}\n", logged.event).as_bytes());
    });
    say(&format!(
        "{}: starting {}, relaxed, with layout {}, seed {}",
        plan.name,
        crate::events::count(plan.replicas.len()),
        plan.layout_mode(),
        plan.seed
    ));
    for (me, replica) in plan.replicas.iter().enumerate() {
        let name = match replica.name.as_str() {
            "" => String::new(),
            name => format!(" ({name})"),
        };
        say(&format!(
            "replica {me}{name}: image {}, {}, verified",
            blake3::Hash::from_bytes(replica.image.digest).to_hex(),
            quorate_images::size::format(replica.image.length)
        ));
    }
    let set = match plan.start(events, Arc::clone(&console)) {
        Ok(set) => set,
        Err(failure) => {
            notices.finish();
            let _ = std::fs::remove_file(&path);
            return Err(failure);
        }
    };
    let server = Server::start(listener, path.clone(), set.controlled())
        .map_err(|error| host(error, "the control socket cannot be served"))?;
    for (publish, at) in set.addresses() {
        say(&format!("published {}", describe(&publish, &at)));
    }
    say(&format!("control socket {}", path.display()));

    // Until the end: the terminal is as it was before when this is dropped.
    let typing = match args.console {
        true => Some(
            super::typing::start(set.handle())
                .map_err(|error| host(error, "the terminal cannot be used as a console"))?,
        ),
        false => None,
    };
    let handle = set.handle();
    let signals = watch(signals, move |now| handle.stop(now))?;
    let summary = set.wait();
    signals.end();
    drop(typing);
    console.finish();
    notices.finish();
    for text in &summary.differences {
        line(text);
    }
    let status = &summary.status;
    if let Some(relaxed) = &status.relaxed {
        line(&format!(
            "{} inputs in {} batches; {} bytes released",
            relaxed.inputs, relaxed.batches, status.bytes_released
        ));
    }
    drop(server);
    Ok(summary.end.exit_code())
}
