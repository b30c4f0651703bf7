//! The oracle: what became of a trial.
//!
//! Classes are tested in the order that [`Outcome`] documents, and the first that holds counts:
//!
//! 1. **injector failure**: the fault is not where it was drawn to be, or the host failed.
//! 2. **silent corruption**: the client got a byte that it does not get in the golden run, and nothing told it of an error before or with
//!    it. A stream that only ends early holds no wrong byte. When the conversation came to its end, console and disks count as well;
//!    when it did not, they cannot be those of the golden run, and whoever sees it knows that something is wrong.
//! 3. **crash**: the guest's program ended (otherwise than in the golden run), or the only machine or all of them crashed.
//! 4. **hang**: the client was not answered any more, or no boundary was reached.
//! 5. **client error**: a reply says so (the campaign's patterns), or the guest refused, reset or ended a connection early.
//! 6. **stopped**: the set had no majority and stopped itself.
//! 7. **corrected**: a replica was stopped, and nothing shows outside.
//! 8. **masked**.

mod compare;

use std::fs::File;

use quorate_executor::events::{End, Event};
use quorate_executor::stage::{DiskContent, Spun};
use regex::bytes::Regex;

pub(super) use compare::show;

use super::golden::Golden;
use super::heard::{Course, Heard};
use super::wire::Ending;
use crate::file::{Campaign, Channel, Mask, Oracle, Sectors};
use crate::model::Outcome;

/// What there is to judge by.
pub struct Trial<'a> {
    /// Replicas of the set.
    pub replicas: u8,
    /// Why the fault is not where it was drawn to be, if it is not.
    pub not_injected: Option<&'a str>,
    /// What the client heard.
    pub heard: &'a Heard,
    /// What was left on the disks.
    pub disks: &'a [DiskContent],
    /// How the set ended.
    pub end: &'a End,
    /// The stage was over.
    pub over: bool,
    /// No boundary was reached any more.
    pub spun: Option<Spun>,
    /// What happened to the set.
    pub events: &'a [Event],
}

/// The outcome, and what shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The class.
    pub outcome: Outcome,
    /// One line.
    pub evidence: String,
}

/// Why there is no judge.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// A pattern.
    #[error("the pattern {pattern:?} in [oracle] is no regular expression: {source}")]
    Pattern {
        /// It.
        pattern: String,
        /// Why.
        source: Box<regex::Error>,
    },
    /// A disk's file.
    #[error("{}: the disk that trials begin with cannot be opened: {source}", path.display())]
    Disk {
        /// It.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// See the module.
pub struct Judge {
    compare: Vec<Channel>,
    masks: Vec<(Channel, Regex, Vec<u8>)>,
    errors: Vec<Regex>,
    ignored: Vec<Sectors>,
    /// Names and contents at the beginning.
    disks: Vec<(String, File)>,
    heard: Heard,
    content: Vec<DiskContent>,
    end: End,
}

impl Judge {
    /// A judge by a campaign's rules.
    ///
    /// # Errors
    /// When a pattern is none, or a disk is not there.
    pub fn new(campaign: &Campaign, golden: &Golden) -> Result<Judge, JudgeError> {
        let open = |disk: &quorate_images::PreparedDisk| {
            let file = File::open(&disk.path).map_err(|source| JudgeError::Disk {
                path: disk.path.clone(),
                source,
            })?;
            Ok((disk.name.clone(), file))
        };
        let disks: Result<Vec<_>, JudgeError> = golden.plan.disks.iter().map(open).collect();
        Judge::of(
            &campaign.oracle,
            golden.heard.clone(),
            golden.disks.clone(),
            golden.end.clone(),
            disks?,
        )
    }

    fn of(
        oracle: &Oracle,
        heard: Heard,
        content: Vec<DiskContent>,
        end: End,
        disks: Vec<(String, File)>,
    ) -> Result<Judge, JudgeError> {
        let regex = |pattern: &String| {
            Regex::new(pattern).map_err(|source| JudgeError::Pattern {
                pattern: pattern.clone(),
                source: Box::new(source),
            })
        };
        let mask = |mask: &Mask| {
            Ok((
                mask.channel,
                regex(&mask.pattern)?,
                mask.replace.clone().into_bytes(),
            ))
        };
        let masks: Result<Vec<_>, JudgeError> = oracle.masks.iter().map(mask).collect();
        let errors: Result<Vec<_>, JudgeError> = oracle.errors.iter().map(regex).collect();
        Ok(Judge {
            compare: oracle.compare.clone(),
            masks: masks?,
            errors: errors?,
            ignored: oracle.ignore_sectors.clone(),
            disks,
            heard,
            content,
            end,
        })
    }

    /// What became of a trial.
    #[must_use]
    pub fn judge(&self, trial: &Trial<'_>) -> Judgement {
        let of = |outcome, evidence: String| Judgement { outcome, evidence };
        if let Some(why) = trial.not_injected {
            return of(Outcome::InjectorFailure, why.to_owned());
        }
        if let End::Failed { detail, .. } = trial.end {
            return of(
                Outcome::InjectorFailure,
                format!("the host failed the trial: {detail}"),
            );
        }
        let complete = self.is_complete(trial);
        let mut told = None;
        let deviations = [
            self.client(trial.heard, complete),
            complete.then(|| self.console(trial.heard)).flatten(),
            complete.then(|| self.disk(trial.disks)).flatten(),
        ];
        for wrong in deviations.into_iter().flatten() {
            match wrong.announced {
                None => return of(Outcome::SilentCorruption, wrong.evidence),
                Some(error) => {
                    told.get_or_insert(error);
                }
            }
        }
        if let Some(judgement) = self.end(trial) {
            return judgement;
        }
        if let Some(error) = told {
            return of(Outcome::ClientError, error);
        }
        let ended = trial
            .heard
            .connections
            .iter()
            .zip(&self.heard.connections)
            .enumerate();
        for (number, (heard, golden)) in ended {
            if heard.ending != golden.ending {
                let text = format!(
                    "connection {number} (port {}) was {} instead of {}",
                    golden.port,
                    words(heard.ending),
                    words(golden.ending)
                );
                return of(Outcome::ClientError, text);
            }
        }
        let stopped = trial.events.iter().find_map(|event| match event {
            Event::ReplicaStopped {
                replica,
                boundary,
                reason,
            } => Some(format!(
                "replica {replica} stopped at boundary {boundary}: {}",
                one_line(reason)
            )),
            _ => None,
        });
        match stopped {
            Some(evidence) => of(Outcome::Corrected, evidence),
            None => of(Outcome::Masked, "all as in the golden run".to_owned()),
        }
    }

    fn is_complete(&self, trial: &Trial<'_>) -> bool {
        match (trial.end, &self.end) {
            (
                End::Exited { wait_status, .. },
                End::Exited {
                    wait_status: golden,
                    ..
                },
            ) => wait_status == golden,
            (_, End::Exited { .. }) => false,
            _ => trial.over && trial.heard.course == Course::Complete,
        }
    }

    /// Crash, hang, a client that was left alone, a set that stopped: what the end of the trial says.
    fn end(&self, trial: &Trial<'_>) -> Option<Judgement> {
        let of = |outcome, evidence: String| Some(Judgement { outcome, evidence });
        if self.is_complete(trial) {
            return None;
        }
        if let Some(spun) = trial.spun {
            let why = if spun.stalled {
                "is stalled"
            } else {
                "runs for ever"
            };
            return of(
                Outcome::Hang,
                format!(
                    "boundary {} is not reached: replica {} {why}",
                    spun.boundary, spun.replica
                ),
            );
        }
        match trial.end {
            End::Exited { .. } => of(Outcome::Crash, one_line(&trial.end.to_string())),
            End::NoQuorum { detail } => {
                let reasons: Vec<&str> = trial.events.iter().filter_map(reason).collect();
                let last = reasons.last().copied().unwrap_or(detail);
                let all = |kinds: &[&str]| {
                    !reasons.is_empty() && reasons.iter().all(|reason| kinds.contains(&how(reason)))
                };
                let outcome = match trial.replicas {
                    1 if how(last) == "lagging" => Outcome::Hang,
                    1 => Outcome::Crash,
                    _ if all(&["crashed", "misbehaved"]) => Outcome::Crash,
                    _ if all(&["lagging"]) => Outcome::Hang,
                    _ => Outcome::Stopped,
                };
                let evidence = if outcome == Outcome::Stopped {
                    detail
                } else {
                    last
                };
                of(outcome, one_line(evidence))
            }
            _ => match &trial.heard.course {
                Course::Broken { why, .. } => of(Outcome::ClientError, why.clone()),
                Course::Stuck { why } => of(Outcome::Hang, why.clone()),
                Course::Unfinished | Course::Complete => of(
                    Outcome::Hang,
                    "the conversation did not come to its end".to_owned(),
                ),
            },
        }
    }
}

/// Why a replica was stopped, if the event says so.
fn reason(event: &Event) -> Option<&str> {
    match event {
        Event::ReplicaStopped { reason, .. } => Some(reason),
        _ => None,
    }
}

/// How a fault was found, from the reason with which a replica was stopped: `crashed`, `misbehaved`, `lagging`, `failed`, `killed`, `relapsed`,
/// `disputed`, else `outvoted`.
#[must_use]
pub fn how(reason: &str) -> &'static str {
    const WORDS: [(&str, &str); 8] = [
        ("crashed", "crashed"),
        ("misbehaved", "misbehaved"),
        ("did not keep up", "lagging"),
        ("held the others up", "lagging"),
        ("failed", "failed"),
        ("killed", "killed"),
        ("relapsed", "relapsed"),
        ("disputed", "disputed"),
    ];
    let word = WORDS.iter().find(|(begin, _)| reason.starts_with(begin));
    word.map_or("outvoted", |(_, word)| word)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn words(ending: Ending) -> &'static str {
    match ending {
        Ending::NotOpened => "not opened",
        Ending::Unanswered => "not answered",
        Ending::Refused => "refused",
        Ending::Open => "left open",
        Ending::ByClient => "ended by the client",
        Ending::ByGuest => "ended by the guest",
        Ending::ResetByGuest => "reset by the guest",
        Ending::ResetByClient => "reset by the client",
    }
}

#[cfg(test)]
mod tests;
