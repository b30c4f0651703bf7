//! The events of a running set, one after the other. Its status has them; a line on standard error says that there is a new one, so
//! nothing here sleeps.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use quorate_executor::control::client::Client;
use quorate_executor::control::protocol::{Command, Reply};
use serde_json::Value;

use crate::Error;
use crate::set::Set;

/// Asks a set for its state by its socket, without a process.
///
/// # Errors
/// When it does not answer.
pub fn state(set: &Set) -> Result<Value, Error> {
    let unexpected = |error: &dyn std::fmt::Display| Error::Unexpected(error.to_string());
    let mut client = Client::connect(set.control()).map_err(|error| unexpected(&error))?;
    match client.call(Command::Status) {
        Ok(Reply::Status(status)) => {
            serde_json::to_value(*status).map_err(|error| unexpected(&error))
        }
        Ok(_) => Err(Error::Unexpected("the status is none".to_owned())),
        Err(error) => Err(unexpected(&error)),
    }
}

/// Whether all replicas run and vote.
#[must_use]
pub fn is_whole(state: &Value) -> bool {
    state["running"] == state["size"] && state["state"] == "running"
}

/// Waits until all replicas run and vote; the state then.
///
/// # Errors
/// When it takes longer than `within`, or the set has ended.
pub fn wait_whole(set: &Set, within: Duration) -> Result<Value, Error> {
    let deadline = Instant::now() + quorate_executor::patience::patient(within);
    loop {
        // Before the state is asked for: whatever changes it afterwards is another line.
        let lines = set.process().lines().len();
        let state = state(set)?;
        if is_whole(&state) {
            return Ok(state);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let line = set
            .process()
            .wait_for_line("full strength", lines, left, |_| true);
        if let Err(error) = line {
            return Err(Error::Unexpected(format!(
                "not at full strength within {within:?}: {}\n{error}",
                shown(&state)
            )));
        }
    }
}

/// What matters of a state that is not as it should be.
#[must_use]
pub fn shown(state: &Value) -> String {
    let replicas = state["replicas"].as_array().into_iter().flatten();
    let replicas: Vec<String> = replicas
        .map(|replica| {
            format!(
                "{} {} at {} restarts {} stopped {} checkpoints {}",
                replica["replica"],
                replica["state"],
                replica["boundary"],
                replica["restarts"],
                replica["stopped"],
                replica["checkpoints"]
            )
        })
        .collect();
    format!(
        "{}, {} of {} running, recovery {}\n  {}",
        state["state"],
        state["running"],
        state["size"],
        state["recovery"],
        replicas.join("\n  ")
    )
}

/// Events from a moment on.
pub struct Watch<'a> {
    set: &'a Set,
    /// The last event that was read.
    last: Option<Value>,
    /// Events that were read and not yet given.
    waiting: VecDeque<Value>,
}

impl<'a> Watch<'a> {
    /// Events from now on.
    ///
    /// # Errors
    /// When the set does not answer.
    pub fn new(set: &'a Set) -> Result<Watch<'a>, Error> {
        let mut watch = Watch {
            set,
            last: None,
            waiting: VecDeque::new(),
        };
        watch.read()?;
        watch.waiting.clear();
        Ok(watch)
    }

    fn read(&mut self) -> Result<(), Error> {
        let mut state = state(self.set)?;
        let Value::Array(events) = state["events"].take() else {
            return Err(Error::Unexpected("the status has no events".to_owned()));
        };
        let known = self
            .last
            .as_ref()
            .and_then(|last| events.iter().rposition(|event| event == last))
            .map_or(0, |at| at + 1);
        self.waiting.extend(events.into_iter().skip(known));
        if let Some(last) = self.waiting.back() {
            self.last = Some(last.clone());
        }
        Ok(())
    }

    /// Waits for the next event that `wanted` accepts. The ones before it are returned with it.
    ///
    /// # Errors
    /// When it does not come in time, or the set has ended.
    pub fn next(
        &mut self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Vec<Value>, Error> {
        let deadline = Instant::now() + quorate_executor::patience::patient(within);
        let mut given = Vec::new();
        loop {
            let lines = self.set.process().lines().len();
            self.read()?;
            while let Some(event) = self.waiting.pop_front() {
                let found = wanted(&event);
                given.push(event);
                if found {
                    return Ok(given);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            self.set
                .process()
                .wait_for_line(what, lines, left, |_| true)?;
        }
    }

    /// Waits for the next event named `name` of `replica`.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub fn next_of(
        &mut self,
        name: &str,
        replica: usize,
        within: Duration,
    ) -> Result<Vec<Value>, Error> {
        self.next(&format!("{name} of replica {replica}"), within, |event| {
            event["event"] == name && event["replica"] == replica
        })
    }

    /// All events that have come by now.
    ///
    /// # Errors
    /// When the set does not answer.
    pub fn rest(&mut self) -> Result<Vec<Value>, Error> {
        self.read()?;
        Ok(self.waiting.drain(..).collect())
    }
}
