//! The divergences of a recording: which replica was stopped where, and what the recording says about it.

use serde::Serialize;
use serde_json::Value;

use crate::record::{RecordError, Recording};

/// A replica that was stopped, and whose machine was dumped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Divergence {
    /// Number in the recording, from 0: index of the dump.
    pub number: usize,
    /// The replica.
    pub replica: usize,
    /// The first boundary that it did not get to as the others did.
    pub boundary: u64,
    /// What the voter found.
    pub verdict: Option<Verdict>,
    /// Why it was stopped, in words.
    pub reason: String,
    /// How often it had been given a new layout.
    pub generation: u64,
    /// Faults that were injected into it since it was stopped before, as the recording has them.
    pub injected: Vec<Injected>,
}

/// What the voter found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// On which channel.
    pub channel: String,
    /// What it said and what the majority said.
    pub detail: String,
}

/// A fault that was injected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Injected {
    /// The last boundary that the replica had completed.
    pub boundary: u64,
    /// What, and where.
    pub detail: String,
}

/// What a dump says of itself.
#[derive(Clone, Debug)]
pub struct Dumped {
    /// The replica.
    pub replica: usize,
    /// The last boundary that it had completed.
    pub boundary: u64,
    /// Of its layout.
    pub generation: u64,
    /// Why it was stopped.
    pub reason: String,
}

/// The divergences of a recording, in the order in which they happened.
///
/// # Errors
/// When its events cannot be read.
pub fn divergences(recording: &Recording) -> Result<Vec<Divergence>, RecordError> {
    let dumps: Vec<Dumped> = recording
        .dumps()
        .iter()
        .map(|dump| Dumped {
            replica: dump.meta.replica,
            boundary: dump.meta.boundary,
            generation: dump.meta.generation,
            reason: dump.meta.reason.clone(),
        })
        .collect();
    let events: Vec<Value> = recording
        .events()?
        .iter()
        .filter_map(|event| serde_json::from_str(&event.json).ok())
        .collect();
    Ok(assemble(&dumps, &events))
}

/// Puts together dumps and events. Each stop of a replica has one dump, and they come in the same order; what happened to a replica
/// between two stops belongs to the second.
#[must_use]
pub fn assemble(dumps: &[Dumped], events: &[Value]) -> Vec<Divergence> {
    dumps
        .iter()
        .enumerate()
        .map(|(number, dump)| {
            let nth = dumps[..number]
                .iter()
                .filter(|other| other.replica == dump.replica)
                .count();
            let own = of_stop(events, dump.replica, nth);
            let text = |event: &Value, key: &str| {
                event
                    .get(key)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            let named = |name| own.iter().filter(move |event| event["event"] == name);
            let outvoted = named("outvoted").next_back();
            let boundary = outvoted
                .and_then(|event| event["boundary"].as_u64())
                .unwrap_or(dump.boundary + 1);
            Divergence {
                number,
                replica: dump.replica,
                boundary,
                verdict: outvoted.map(|event| Verdict {
                    channel: text(event, "channel"),
                    detail: text(event, "detail"),
                }),
                reason: dump.reason.clone(),
                generation: dump.generation,
                injected: named("injected")
                    .map(|event| Injected {
                        boundary: event["boundary"].as_u64().unwrap_or(0),
                        detail: text(event, "detail"),
                    })
                    .collect(),
            }
        })
        .collect()
}

/// The events of a replica between its stop before the `nth` and that.
fn of_stop(events: &[Value], replica: usize, nth: usize) -> Vec<&Value> {
    let mut stops = 0;
    let mut own = Vec::new();
    for event in events.iter().filter(|event| event["replica"] == replica) {
        if stops == nth {
            own.push(event);
        }
        if event["event"] == "replica-stopped" {
            stops += 1;
            if stops > nth {
                break;
            }
        }
    }
    own
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn each_stop_gets_its_own_verdict_and_faults() {
        let injected = |replica: usize, what: &str| json!({"event": "injected", "replica": replica, "boundary": 7, "detail": what});
        let outvoted = |replica: usize, boundary: u64| json!({"event": "outvoted", "replica": replica, "boundary": boundary, "channel": "network", "detail": "x"});
        let stopped = |replica: usize| json!({"event": "replica-stopped", "replica": replica, "boundary": 9, "reason": "y"});
        let events = [
            json!({"event": "ready", "replicas": 3}),
            injected(1, "first"),
            outvoted(1, 8),
            stopped(1),
            injected(0, "other"),
            injected(1, "second"),
            stopped(1),
        ];
        let dump = |replica, boundary| Dumped {
            replica,
            boundary,
            generation: 0,
            reason: "z".to_owned(),
        };
        let found = assemble(&[dump(1, 9), dump(1, 20), dump(0, 5)], &events);
        assert_eq!(found.len(), 3);
        assert_eq!(
            (found[0].boundary, found[0].injected[0].detail.as_str()),
            (8, "first")
        );
        assert_eq!(found[0].injected.len(), 1);
        assert_eq!(
            (found[1].boundary, found[1].injected[0].detail.as_str()),
            (21, "second")
        );
        assert!(found[1].verdict.is_none());
        assert_eq!(found[2].injected[0].detail, "other");
    }
}
