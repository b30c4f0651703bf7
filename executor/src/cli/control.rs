//! `quorate status`, `stop`, `kill`, `inject`, `recover`, `add` and `remove`: one question to a running set each.

use std::time::Duration;

use super::progress::{answer, line};
use super::{
    AddArgs, CheckpointArgs, InjectArgs, KillArgs, RecoverArgs, RemoveArgs, StatusArgs, StopArgs,
    table,
};
use crate::control::ControlError;
use crate::control::client::Client;
use crate::control::protocol::{Command, Reply, Status};
use crate::exit::{ExitCode, Failure};
use crate::inject::Fault;

fn failed(error: ControlError) -> Failure {
    Failure::new(ExitCode::Control, error)
}

fn unexpected(reply: &Reply) -> Failure {
    Failure::new(ExitCode::Control, format!("unexpected answer: {reply:?}"))
}

pub fn status(args: &StatusArgs) -> Result<ExitCode, Failure> {
    let mut client = Client::find(args.at.control.as_deref()).map_err(failed)?;
    let status: Box<Status> = match client.call(Command::Status).map_err(failed)? {
        Reply::Status(status) => status,
        other => return Err(unexpected(&other)),
    };
    if args.json {
        let json = serde_json::to_string_pretty(&status).map_err(|error| {
            Failure::new(
                ExitCode::Internal,
                format!("the status is no JSON: {error}"),
            )
        })?;
        answer(&json);
    } else {
        answer(&table::status(&status, args.layout));
    }
    Ok(ExitCode::Success)
}

pub fn stop(args: &StopArgs) -> Result<ExitCode, Failure> {
    let mut client = Client::find(args.at.control.as_deref()).map_err(failed)?;
    client
        .call(Command::Stop { now: args.now })
        .map_err(failed)?;
    client.wait_for_end().map_err(failed)?;
    line("stopped");
    Ok(ExitCode::Success)
}

/// How long a set may take to be saved: the disks are copied.
const SAVE_PATIENCE: Duration = Duration::from_secs(3600);

pub fn checkpoint(args: &CheckpointArgs) -> Result<ExitCode, Failure> {
    let directory = std::path::absolute(&args.directory).map_err(|error| {
        let text = format!("{}: {error}", args.directory.display());
        Failure::new(ExitCode::Usage, text)
    })?;
    let mut client = Client::find(args.at.control.as_deref()).map_err(failed)?;
    client.be_patient(SAVE_PATIENCE).map_err(failed)?;
    let command = Command::Checkpoint {
        directory: directory.clone(),
        stop: args.stop,
    };
    match client.call(command).map_err(failed)? {
        Reply::Saved {
            boundary,
            replicas,
            bytes,
            held_ms,
        } => {
            line(&format!(
                "saved in {}: {} at boundary {boundary}, {}; the set stood still for {held_ms} ms",
                directory.display(),
                crate::events::count(replicas),
                crate::record::size(bytes)
            ));
            if args.stop {
                client.wait_for_end().map_err(failed)?;
                line(&format!(
                    "stopped; `quorate run --from {}` goes on",
                    args.directory.display()
                ));
            }
            Ok(ExitCode::Success)
        }
        other => Err(unexpected(&other)),
    }
}

pub fn kill(args: &KillArgs) -> Result<ExitCode, Failure> {
    let mut client = Client::find(args.at.control.as_deref()).map_err(failed)?;
    client
        .call(Command::Kill {
            replica: args.replica,
        })
        .map_err(failed)?;
    line(&format!("replica {} stopped", args.replica));
    Ok(ExitCode::Success)
}

pub fn recover(args: &RecoverArgs) -> Result<ExitCode, Failure> {
    let (replica, step) = (args.replica, args.step);
    let mut client = Client::find(args.at.control.as_deref()).map_err(failed)?;
    client
        .call(Command::Recover { replica, step })
        .map_err(failed)?;
    line(&format!("replica {replica} recovers"));
    Ok(ExitCode::Success)
}

pub fn add(args: &AddArgs) -> Result<ExitCode, Failure> {
    let mut client = Client::find(args.at.control.as_deref()).map_err(failed)?;
    match client.call(Command::Add).map_err(failed)? {
        Reply::Added { replica } => {
            line(&format!(
                "replica {replica} joins: it is a member once it has caught up"
            ));
            Ok(ExitCode::Success)
        }
        other => Err(unexpected(&other)),
    }
}

pub fn remove(args: &RemoveArgs) -> Result<ExitCode, Failure> {
    let replica = args.replica;
    let mut client = Client::find(args.at.control.as_deref()).map_err(failed)?;
    client.call(Command::Remove { replica }).map_err(failed)?;
    line(&format!("replica {replica} removed"));
    Ok(ExitCode::Success)
}

pub fn inject(args: &InjectArgs) -> Result<ExitCode, Failure> {
    let fault = Fault::from_words(&args.kind, &args.arguments)
        .map_err(|message| Failure::new(ExitCode::Usage, message))?;
    let mut client = Client::find(args.at.control.as_deref()).map_err(failed)?;
    match client
        .call(Command::Inject {
            replica: args.replica,
            fault,
            at_boundary: args.at_boundary,
        })
        .map_err(failed)?
    {
        Reply::Applied(applied) => {
            line(&format!(
                "injected into replica {} at boundary {}: {}",
                applied.replica, applied.boundary, applied.detail
            ));
            Ok(ExitCode::Success)
        }
        other => Err(unexpected(&other)),
    }
}
