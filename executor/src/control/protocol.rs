//! The control socket's language: one JSON object per line each way, with a version.
//!
//! ```text
//! > {"version":1,"command":{"name":"inject","replica":1,"fault":{"kind":"crash"}}}
//! < {"version":1,"reply":"applied","replica":1,"boundary":7,"detail":"triple fault"}
//! ```
//! An unknown key, command or version is an error that names it; nothing is guessed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::inject::{Applied, Fault};
use crate::recovery::Step;

/// Version of the protocol. Requests of another version are refused.
pub const VERSION: u32 = 1;
/// Longest request line in bytes, newline included. A longer one is refused and its connection closed (R10).
pub const MAX_REQUEST: usize = 4096;
/// Longest reply line in bytes that a client accepts (R10).
pub const MAX_REPLY: usize = 4 << 20;

/// One request line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What to do.
    pub command: Command,
}

/// What a client can ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// The state of the set. Answer: `status`.
    Status,
    /// End the set. Answer: `done`; the connection is closed when the set has ended.
    Stop {
        /// Do not ask the guest program, end at once.
        #[serde(default)]
        now: bool,
    },
    /// Stop one replica. Answer: `done`.
    Kill {
        /// The replica.
        replica: usize,
    },
    /// Inject a fault. Answer: `applied`.
    Inject {
        /// The replica.
        replica: usize,
        /// The fault.
        fault: Fault,
        /// Not in the middle of a run: at the replica's next boundary, where the registers are its kernel's.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        at_boundary: bool,
    },
    /// Bring back a replica that was left out. Answer: `done`, as soon as it begins.
    Recover {
        /// The replica.
        replica: usize,
        /// By this step of the ladder, and the ones after it; from the top if absent. With a step, a replica that runs begins
        /// again as well.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<Step>,
    },
    /// Add a replica. Answer: `added`, as soon as it begins to catch up.
    Add,
    /// Save the whole set. Answer: `saved`; with `stop` the connection is closed when the set has ended.
    Checkpoint {
        /// Where: a directory, as seen by the set. What it has is replaced when the new one is whole.
        directory: PathBuf,
        /// End the set with it: nothing is released afterwards.
        #[serde(default)]
        stop: bool,
    },
    /// Take a replica out of the set. Answer: `done`.
    Remove {
        /// The replica.
        replica: usize,
    },
}

/// One reply line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Response {
    /// [`VERSION`].
    pub version: u32,
    /// The reply.
    #[serde(flatten)]
    pub reply: Reply,
}

/// What the set answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// The state of the set.
    Status(Box<Status>),
    /// Done, nothing more to say.
    Done,
    /// Where the fault was applied.
    Applied(Applied),
    /// A replica was added.
    Added {
        /// Its number.
        replica: usize,
    },
    /// The set was saved.
    Saved {
        /// Boundary at which all replicas stand.
        boundary: u64,
        /// How many were saved.
        replicas: usize,
        /// Bytes of their files.
        bytes: u64,
        /// How long the set stood still, ms.
        held_ms: u64,
    },
    /// Refused.
    Error {
        /// Why.
        message: String,
    },
}

/// State of a set. The keys are documented in `docs/control.md`; new keys may appear, none disappears within a version.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// The appliance's name.
    pub name: String,
    /// The process that runs the set.
    pub pid: u32,
    /// `starting`, `running`, `degraded`, `holding`, `stopping` or `stopped`.
    pub state: String,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
    /// Milliseconds from the start until ready; absent before.
    pub ready_after_ms: Option<u64>,
    /// Replicas at the start.
    pub size: usize,
    /// Replicas running now.
    pub running: usize,
    /// Replicas that must agree before anything is released.
    pub quorum: usize,
    /// Why there is no majority; absent while there is one.
    pub no_quorum: Option<String>,
    /// The run seed, 64 hexadecimal digits.
    pub seed: String,
    /// `same` or `random`.
    pub layout_mode: String,
    /// Boundaries for which an entry has been written.
    pub boundaries: u64,
    /// Ballots cast.
    pub ballots: u64,
    /// Bytes in all ballots.
    pub bytes_voted: u64,
    /// Outputs released.
    pub releases: u64,
    /// Bytes released.
    pub bytes_released: u64,
    /// Digest of all releases, 64 hexadecimal digits.
    pub fingerprint: String,
    /// Digest of all entries, 64 hexadecimal digits.
    pub input_fingerprint: String,
    /// Frames delivered to the guest so far.
    pub frames_in: u64,
    /// Frames released by the guest so far.
    pub frames_out: u64,
    /// Connections open through the gateway.
    pub connections: u64,
    /// Published ports, as `host address -> guest port/protocol`.
    pub published: Vec<String>,
    /// Console bytes that were dropped because standard output did not take them.
    pub console_dropped: u64,
    /// What recovery has done.
    #[serde(default)]
    pub recovery: RecoveryStatus,
    /// The disks, in the order of their numbers.
    #[serde(default)]
    pub disks: Vec<DiskStatus>,
    /// `lockstep` or `relaxed`; empty from sets of an older version, which are lockstep.
    #[serde(default)]
    pub discipline: String,
    /// What only a relaxed set has.
    #[serde(default)]
    pub relaxed: Option<RelaxedStatus>,
    /// The replicas.
    pub replicas: Vec<ReplicaStatus>,
    /// The last events, oldest first; the keys depend on the event.
    pub events: Vec<serde_json::Value>,
}

/// What only a relaxed set has.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RelaxedStatus {
    /// `majority` or `primary-with-fallback`.
    pub policy: String,
    /// Inputs so far: connections opened and ended, pieces of client data, datagrams.
    pub inputs: u64,
    /// Batches of these.
    pub batches: u64,
    /// What is kept of the inputs, for replicas that are behind or may begin again, bytes.
    pub log_bytes: u64,
    /// Connections that are compared; some may be over and wait for a slow replica.
    pub channels: u64,
    /// Differences that are not in the file of `--differences`.
    pub differences_unwritten: u64,
    /// What is on the disks and what is not.
    #[serde(default)]
    pub disks: Vec<crate::relaxed::disk::RelaxedReport>,
}

/// What only a replica of a relaxed set has.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RelaxedReplica {
    /// The name of its version.
    pub version: String,
    /// `voter`, `primary` or `canary`.
    pub role: String,
    /// Inputs that it has not been given.
    pub behind_inputs: u64,
    /// Bytes that were released and that it has not said, over all connections.
    pub behind_bytes: u64,
    /// Bytes that it has said and that are not released, over all connections.
    pub unconfirmed_bytes: u64,
    /// Requests that it answered differently.
    pub differences: u64,
    /// Lines of its console that no quorum has said.
    #[serde(default)]
    pub own_console_lines: u64,
    /// Published TCP ports on which it does not listen yet; empty once it has booted, or took too long for it.
    #[serde(default)]
    pub does_not_listen: Vec<u16>,
}

/// What recovery has done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RecoveryStatus {
    /// Whether a replica that was stopped comes back.
    pub enabled: bool,
    /// How often each takes a checkpoint, milliseconds; 0: never.
    pub checkpoint_interval_ms: u64,
    /// First boundary whose entry is kept.
    pub history_from: u64,
    /// What is kept of the journal, bytes.
    pub history_bytes: u64,
    /// How often each step has helped.
    pub recoveries: RecoveryCounts,
    /// How often a step has failed.
    pub failed_steps: u64,
    /// From the last replica's fault until it voted again.
    pub last_recovery_ms: Option<u64>,
}

/// How often each step has helped.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RecoveryCounts {
    /// Its own last checkpoint.
    pub checkpoint: u64,
    /// An older one.
    pub older: u64,
    /// From the beginning.
    pub replay: u64,
    /// A copy of another replica.
    pub clone: u64,
}

/// A replica's checkpoints.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CheckpointStatus {
    /// Taken so far.
    pub taken: u64,
    /// Boundary of the last.
    pub boundary: Option<u64>,
    /// Age of the last.
    pub age_ms: Option<u64>,
    /// Pages of the last.
    pub pages: u64,
    /// Pages that had changed since the one before.
    pub dirty_pages: u64,
    /// How long the replica stood still for the last.
    pub pause_us: u64,
    /// The longest.
    pub pause_max_us: u64,
}

/// State of one replica.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Its number, from 0.
    pub replica: usize,
    /// `starting`, `running`, `idle`, `ahead` (a whole window ahead of the slowest), `held`, `exited`, `frozen`, `stopped`,
    /// `recovering`, `left-out` or `removed`.
    pub state: String,
    /// Why it was stopped; absent while it runs.
    pub stopped: Option<String>,
    /// Boundaries it has reached.
    pub boundary: u64,
    /// Boundaries it is behind the foremost replica.
    pub lag: u64,
    /// How often it was started again.
    pub restarts: u64,
    /// Generation of its layout seed: how many layouts it has had before.
    #[serde(default)]
    pub generation: u64,
    /// Its checkpoints.
    #[serde(default)]
    pub checkpoints: CheckpointStatus,
    /// Outputs it has cast.
    pub outputs: u64,
    /// Bytes of these.
    pub output_bytes: u64,
    /// Milliseconds that its vCPU has run the guest. What its thread used beyond that went into voting and delivery.
    pub guest_ms: u64,
    /// Start address of each region, as hexadecimal text.
    pub layout: BTreeMap<String, String>,
    /// Faults injected, with what became of each.
    pub injected: Vec<InjectedStatus>,
    /// What only a replica of a relaxed set has.
    #[serde(default)]
    pub relaxed: Option<RelaxedReplica>,
}

/// State of one disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskStatus {
    /// The appliance's name for it.
    pub disk: String,
    /// `io_uring` or `threads`.
    pub backend: String,
    /// Reads, of all replicas.
    pub reads: u64,
    /// Bytes of these.
    pub bytes_read: u64,
    /// Writes that were agreed.
    pub writes: u64,
    /// Bytes of these.
    pub bytes_written: u64,
    /// Flushes that were agreed.
    pub flushes: u64,
    /// Microseconds from agreement to stable storage, mean of all flushes.
    pub flush_mean_us: u64,
    /// The longest.
    pub flush_max_us: u64,
    /// Agreed writes that are not in the file yet, bytes.
    pub unwritten_bytes: u64,
    /// Old versions made so far, blocks of 4 KiB: what slow replicas had yet to read (R6).
    pub versions: u64,
    /// Old versions in memory, bytes.
    pub version_bytes: u64,
    /// Old versions in the spill file, bytes.
    pub spilled_bytes: u64,
    /// Why it failed; absent while it works.
    pub failure: Option<String>,
}

/// What became of an injected fault.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InjectedStatus {
    /// The kind.
    pub kind: String,
    /// Boundary at which it was applied.
    pub boundary: u64,
    /// Exact place.
    pub detail: String,
    /// `masked so far`, `in effect`, `replica stopped` or `replica came back`.
    pub effect: String,
}

impl Response {
    /// A response of this version.
    pub fn new(reply: Reply) -> Self {
        Response {
            version: VERSION,
            reply,
        }
    }

    /// A refusal.
    pub fn error(message: impl Into<String>) -> Self {
        Self::new(Reply::Error {
            message: message.into(),
        })
    }
}

/// Parses one request line.
///
/// # Errors
/// Says what is wrong with it: no JSON, an unknown key or command, another version.
pub fn parse_request(line: &[u8]) -> Result<Command, String> {
    let value: serde_json::Value =
        serde_json::from_slice(line).map_err(|error| format!("not a JSON object: {error}"))?;
    // The version first: a later version's request may have keys that this one does not know.
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => {
            return Err(format!(
                "version {version} is not spoken here, only {VERSION}"
            ));
        }
        None => return Err("the key `version` is missing or no number".to_owned()),
    }
    serde_json::from_value::<Request>(value)
        .map(|request| request.command)
        .map_err(|error| format!("bad request: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn requests_round_trip() {
        for command in [
            Command::Status,
            Command::Stop { now: true },
            Command::Kill { replica: 2 },
            Command::Inject {
                replica: 0,
                fault: Fault::FlipRegister {
                    register: Some("rax".into()),
                    bit: Some(3),
                },
                at_boundary: false,
            },
        ] {
            let line = serde_json::to_vec(&Request {
                version: VERSION,
                command: command.clone(),
            })
            .unwrap();
            assert_eq!(parse_request(&line), Ok(command));
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let refused = |line: &str| parse_request(line.as_bytes()).unwrap_err();
        assert!(refused(r#"{"version":2,"command":{"name":"status"}}"#).contains("version 2"));
        assert!(refused(r#"{"command":{"name":"status"}}"#).contains("`version`"));
        assert!(refused(r#"{"version":1,"command":{"name":"reboot"}}"#).contains("reboot"));
        assert!(
            refused(r#"{"version":1,"command":{"name":"kill","replica":1,"force":true}}"#)
                .contains("force")
        );
        assert!(
            refused(r#"{"version":1,"command":{"name":"status"},"extra":1}"#).contains("extra")
        );
        assert!(refused("status").contains("JSON"));
    }

    #[test]
    fn every_key_and_exit_code_is_documented() {
        let docs = include_str!("../../../docs/control.md");
        let replica = ReplicaStatus {
            replica: 0,
            state: String::new(),
            stopped: None,
            boundary: 0,
            lag: 0,
            restarts: 0,
            generation: 0,
            checkpoints: CheckpointStatus::default(),
            outputs: 0,
            output_bytes: 0,
            guest_ms: 0,
            layout: BTreeMap::new(),
            injected: vec![InjectedStatus {
                kind: String::new(),
                boundary: 0,
                detail: String::new(),
                effect: String::new(),
            }],
            relaxed: Some(RelaxedReplica::default()),
        };
        let disk = DiskStatus {
            disk: String::new(),
            backend: String::new(),
            reads: 0,
            bytes_read: 0,
            writes: 0,
            bytes_written: 0,
            flushes: 0,
            flush_mean_us: 0,
            flush_max_us: 0,
            unwritten_bytes: 0,
            versions: 0,
            version_bytes: 0,
            spilled_bytes: 0,
            failure: None,
        };
        let status = Status {
            replicas: vec![replica],
            relaxed: Some(RelaxedStatus::default()),
            disks: vec![disk],
            ..Status::default()
        };
        let json = serde_json::to_value(&status).unwrap();
        let objects = [
            &json,
            &json["replicas"][0],
            &json["replicas"][0]["checkpoints"],
            &json["replicas"][0]["relaxed"],
            &json["relaxed"],
            &json["recovery"],
            &json["recovery"]["recoveries"],
            &json["disks"][0],
            &json["replicas"][0]["injected"][0],
        ];
        for key in objects
            .iter()
            .flat_map(|object| object.as_object().unwrap().keys())
        {
            assert!(
                docs.contains(&format!("`{key}`")),
                "{key} is not in docs/control.md"
            );
        }
        for code in crate::exit::ExitCode::ALL {
            let row = format!("| {} | {} |", code as u8, code.meaning());
            assert!(docs.contains(&row), "{row}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_request_line_panics(line in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = parse_request(&line);
        }

        #[test]
        fn no_json_request_panics(text in "\\{\"version\":1,\"command\":\\{\"name\":\"(inject|kill|stop)\",\"[a-z]{1,8}\":[-0-9.e\"{}]{1,20}\\}\\}") {
            let _ = parse_request(text.as_bytes());
        }
    }
}
