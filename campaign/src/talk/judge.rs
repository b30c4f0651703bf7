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

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use quorate_executor::events::{End, Event};
use quorate_executor::stage::{DiskContent, Spun};
use regex::bytes::Regex;

use super::golden::Golden;
use super::heard::{Course, Heard};
use super::wire::Ending;
use crate::file::{Campaign, Channel, Mask, Oracle, Sectors};
use crate::model::Outcome;

/// Bytes of a disk that are looked at together.
const BLOCK: u64 = 4096;
/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Bytes of both sides that evidence shows.
const SHOWN: usize = 16;

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

/// A deviation, and whether the client was told.
struct Wrong {
    evidence: String,
    announced: Option<String>,
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

    fn masked<'b>(&self, channel: Channel, bytes: &'b [u8]) -> Cow<'b, [u8]> {
        let mut masked = Cow::Borrowed(bytes);
        for (_, pattern, replace) in self.masks.iter().filter(|(of, ..)| *of == channel) {
            if let Cow::Owned(changed) = pattern.replace_all(&masked, replace.as_slice()) {
                masked = Cow::Owned(changed);
            }
        }
        masked
    }

    /// The first connection on which something wrong was received.
    fn client(&self, heard: &Heard, complete: bool) -> Option<Wrong> {
        if !self.compare.contains(&Channel::Client) {
            return None;
        }
        for (number, (heard, golden)) in heard
            .connections
            .iter()
            .zip(&self.heard.connections)
            .enumerate()
        {
            if heard.bytes == golden.bytes || (!complete && golden.bytes.starts_with(&heard.bytes))
            {
                continue;
            }
            let (here, there) = (
                self.masked(Channel::Client, &heard.bytes),
                self.masked(Channel::Client, &golden.bytes),
            );
            let Some(at) = difference(&here, &there, complete) else {
                continue;
            };
            // A mask needs its whole match: what is cut off in the middle of a line may be one.
            let cut = !complete && !self.masks.is_empty() && !here[at..].contains(&b'\n');
            if cut {
                continue;
            }
            let reply = self.end_of_reply(heard, at, here.len());
            let errors = self.errors_in(&here, &there, reply);
            let place = format!("connection {number} (port {}), byte {at}", golden.port);
            return Some(Wrong {
                evidence: format!("{place}: {}", sides(&here, &there, at)),
                announced: errors
                    .map(|text| format!("connection {number} (port {}): {text}", golden.port)),
            });
        }
        None
    }

    /// Where the reply ends that a byte is in, in the masked stream.
    fn end_of_reply(
        &self,
        heard: &super::heard::HeardConnection,
        at: usize,
        length: usize,
    ) -> usize {
        let ends = heard
            .sends
            .iter()
            .map(|end| self.masked(Channel::Client, &heard.bytes[..*end]).len());
        ends.filter(|end| *end > at).min().unwrap_or(length)
    }

    /// What tells of an error before `end`, and is not in the golden run.
    fn errors_in(&self, here: &[u8], there: &[u8], end: usize) -> Option<String> {
        self.errors.iter().find_map(|pattern| {
            let known: Vec<(Range<usize>, &[u8])> = pattern
                .find_iter(there)
                .map(|of| (of.range(), of.as_bytes()))
                .collect();
            let new = pattern
                .find_iter(here)
                .find(|of| of.start() < end && !known.contains(&(of.range(), of.as_bytes())))?;
            // The whole line says more than the match.
            let line = here[new.start()..]
                .split(|byte| matches!(byte, b'\r' | b'\n'))
                .next()
                .unwrap_or_default();
            Some(format!(
                "a reply tells of an error: {}",
                show(&line[..line.len().min(80)])
            ))
        })
    }

    fn console(&self, heard: &Heard) -> Option<Wrong> {
        if !self.compare.contains(&Channel::Console) {
            return None;
        }
        let (here, there) = (
            self.masked(Channel::Console, &heard.console),
            self.masked(Channel::Console, &self.heard.console),
        );
        let at = match difference(&here, &there, true) {
            Some(at) => at,
            None if heard.console_dropped != self.heard.console_dropped => here.len(),
            None => return None,
        };
        Some(Wrong {
            evidence: format!("console, byte {at}: {}", sides(&here, &there, at)),
            announced: self
                .errors_in(&here, &there, here.len())
                .map(|text| format!("console: {text}")),
        })
    }

    fn disk(&self, disks: &[DiskContent]) -> Option<Wrong> {
        if !self.compare.contains(&Channel::Disk) {
            return None;
        }
        let none = DiskContent::default();
        (0..self.disks.len().max(disks.len()).max(self.content.len())).find_map(|number| {
            let here = disks.get(number).unwrap_or(&none);
            let there = self.content.get(number).unwrap_or(&none);
            if here == there {
                return None;
            }
            let mut blocks: Vec<u64> = [here, there]
                .into_iter()
                .flat_map(|of| &of.written)
                .filter(|(_, bytes)| !bytes.is_empty())
                .flat_map(|(offset, bytes)| {
                    offset / BLOCK..=(offset + bytes.len() as u64 - 1) / BLOCK
                })
                .collect();
            blocks.sort_unstable();
            blocks.dedup();
            blocks
                .into_iter()
                .find_map(|block| self.block(number, block, here, there))
        })
    }

    fn block(
        &self,
        number: usize,
        block: u64,
        here: &DiskContent,
        there: &DiskContent,
    ) -> Option<Wrong> {
        let name = self.disks.get(number).map_or("?", |(name, _)| name);
        let read = |content: &DiskContent| {
            let start = block * BLOCK;
            let mut bytes = vec![0; BLOCK as usize];
            if let Some((_, file)) = self.disks.get(number) {
                // What is behind the end stays zero.
                let _ = file.read_at(&mut bytes, start);
            }
            for (offset, written) in &content.written {
                let (from, to) = (
                    (*offset).max(start),
                    (offset + written.len() as u64).min(start + BLOCK),
                );
                if from < to {
                    let of_block = (from - start) as usize..(to - start) as usize;
                    let of_written = (from - offset) as usize..(to - offset) as usize;
                    bytes[of_block].copy_from_slice(&written[of_written]);
                }
            }
            for sector in 0..BLOCK / SECTOR {
                if self.is_ignored(name, block * (BLOCK / SECTOR) + sector) {
                    bytes[(sector * SECTOR) as usize..((sector + 1) * SECTOR) as usize].fill(0);
                }
            }
            bytes
        };
        let (here, there) = (read(here), read(there));
        let (here, there) = (
            self.masked(Channel::Disk, &here),
            self.masked(Channel::Disk, &there),
        );
        let at = difference(&here, &there, true)?;
        let offset = block * BLOCK + at as u64;
        Some(Wrong {
            evidence: format!(
                "disk {name}, sector {}, byte {}: {}",
                offset / SECTOR,
                offset % SECTOR,
                sides(&here, &there, at)
            ),
            announced: None,
        })
    }

    fn is_ignored(&self, disk: &str, sector: u64) -> bool {
        self.ignored.iter().any(|of| {
            (of.first..=of.last).contains(&sector)
                && of.disk.as_ref().is_none_or(|name| name == disk)
        })
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

/// Where two streams differ first. One that is not `complete` may end early.
fn difference(here: &[u8], there: &[u8], complete: bool) -> Option<usize> {
    let common = here.iter().zip(there).take_while(|(a, b)| a == b).count();
    let ends = common == here.len() && (!complete || here.len() == there.len());
    (!ends).then_some(common)
}

fn sides(here: &[u8], there: &[u8], at: usize) -> String {
    let part = |of: &[u8]| {
        let of = &of[at.min(of.len())..];
        let shown = &of[..of.len().min(SHOWN)];
        match shown.is_empty() {
            true => "nothing".to_owned(),
            false => format!("{} ({})", show(shown), hex(shown)),
        }
    };
    format!("{} instead of {}", part(here), part(there))
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Bytes as quoted ASCII.
pub(super) fn show(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
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
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::talk::heard::HeardConnection;

    fn heard(replies: &[&str]) -> Heard {
        let mut connection = HeardConnection {
            port: 6379,
            ending: Ending::ByClient,
            ..HeardConnection::default()
        };
        for reply in replies {
            connection.sends.push(connection.bytes.len());
            connection.bytes.extend_from_slice(reply.as_bytes());
        }
        Heard {
            connections: vec![connection],
            console: b"ready at 12:00\n".to_vec(),
            course: Course::Complete,
            ..Heard::default()
        }
    }

    fn oracle() -> Oracle {
        Oracle {
            compare: vec![Channel::Client, Channel::Disk, Channel::Console],
            masks: vec![
                Mask {
                    channel: Channel::Client,
                    pattern: "time:[0-9]+".to_owned(),
                    replace: "time:T".to_owned(),
                },
                Mask {
                    channel: Channel::Console,
                    pattern: "[0-9]+:[0-9]+".to_owned(),
                    replace: "T".to_owned(),
                },
            ],
            errors: vec!["(?m)^-[A-Z]+ ".to_owned()],
            ignore_sectors: vec![Sectors {
                disk: Some("data".to_owned()),
                first: 9,
                last: 9,
            }],
        }
    }

    fn content(sectors: &[(u64, u8)]) -> Vec<DiskContent> {
        let written = sectors
            .iter()
            .map(|(sector, byte)| (sector * 512, vec![*byte; 512]))
            .collect();
        vec![DiskContent { written }]
    }

    fn judge() -> (Judge, File) {
        let base = tempfile::tempfile().unwrap();
        base.set_len(1 << 20).unwrap();
        let golden = heard(&[
            "+OK\r\n",
            "time:17\r\n",
            "-ERR usual\r\n",
            "$5\r\nhello\r\n",
        ]);
        let disks = vec![("data".to_owned(), base.try_clone().unwrap())];
        (
            Judge::of(&oracle(), golden, content(&[(3, 7)]), End::Stopped, disks).unwrap(),
            base,
        )
    }

    struct Case {
        heard: Heard,
        disks: Vec<DiskContent>,
        end: End,
        over: bool,
        spun: Option<Spun>,
        events: Vec<Event>,
        replicas: u8,
    }

    fn healthy() -> Case {
        Case {
            heard: heard(&[
                "+OK\r\n",
                "time:99\r\n",
                "-ERR usual\r\n",
                "$5\r\nhello\r\n",
            ]),
            disks: content(&[(3, 7)]),
            end: End::Stopped,
            over: true,
            spun: None,
            events: Vec::new(),
            replicas: 1,
        }
    }

    fn decide(case: &Case) -> (Outcome, String) {
        let (judge, _base) = judge();
        let judgement = judge.judge(&Trial {
            replicas: case.replicas,
            not_injected: None,
            heard: &case.heard,
            disks: &case.disks,
            end: &case.end,
            over: case.over,
            spun: case.spun,
            events: &case.events,
        });
        assert!(!judgement.evidence.contains('\n'));
        (judgement.outcome, judgement.evidence)
    }

    fn stopped(replica: usize, reason: &str) -> Event {
        Event::ReplicaStopped {
            replica,
            boundary: 5,
            reason: reason.to_owned(),
        }
    }

    #[test]
    fn what_a_mask_hides_is_not_a_deviation_and_what_it_does_not_hide_is() {
        assert_eq!(decide(&healthy()).0, Outcome::Masked);
        let mut case = healthy();
        case.heard = heard(&[
            "+OK\r\n",
            "time:x7\r\n",
            "-ERR usual\r\n",
            "$5\r\nhello\r\n",
        ]);
        let (outcome, evidence) = decide(&case);
        assert_eq!(outcome, Outcome::SilentCorruption);
        assert!(
            evidence.contains("connection 0 (port 6379), byte 10") && evidence.contains("78 37"),
            "{evidence}"
        );
        let mut case = healthy();
        case.heard.console = b"ready at 23:59\n".to_vec();
        assert_eq!(decide(&case).0, Outcome::Masked);
        case.heard.console = b"reedy at 23:59\n".to_vec();
        assert_eq!(decide(&case).0, Outcome::SilentCorruption);
    }

    #[test]
    fn a_wrong_byte_is_silent_unless_its_reply_or_one_before_says_so() {
        let of = |replies: &[&str]| {
            decide(&Case {
                heard: heard(replies),
                ..healthy()
            })
        };
        let (outcome, evidence) =
            of(&["+OK\r\n", "time:9\r\n", "-ERR usual\r\n", "$5\r\nhellp\r\n"]);
        assert_eq!(outcome, Outcome::SilentCorruption);
        assert!(
            evidence.contains("\"p\\r\\n\" (70 0d 0a) instead of \"o\\r\\n\" (6f 0d 0a)"),
            "{evidence}"
        );
        let (outcome, evidence) = of(&[
            "+OK\r\n",
            "time:9\r\n",
            "-ERR usual\r\n",
            "-OOM no memory\r\n",
        ]);
        assert_eq!(outcome, Outcome::ClientError);
        assert!(evidence.contains("-OOM no memory"), "{evidence}");
        // The error comes after the wrong byte: the client has used that already.
        let (outcome, _) = of(&[
            "+KO\r\n",
            "time:9\r\n",
            "-ERR usual\r\n",
            "-OOM no memory\r\n",
        ]);
        assert_eq!(outcome, Outcome::SilentCorruption);
        // An error that is in the golden run announces nothing.
        let (outcome, _) = of(&["+OK\r\n", "time:9\r\n", "-ERR usual\r\n", "$5\r\nhallo\r\n"]);
        assert_eq!(outcome, Outcome::SilentCorruption);
        let (outcome, _) = of(&[
            "+OK\r\n",
            "time:9\r\n",
            "-ERR usual\r\n",
            "$5\r\nhello\r\nmore",
        ]);
        assert_eq!(outcome, Outcome::SilentCorruption);
    }

    #[test]
    fn disks_are_compared_by_what_is_on_them() {
        let of = |sectors: &[(u64, u8)]| {
            decide(&Case {
                disks: content(sectors),
                ..healthy()
            })
        };
        assert_eq!(
            of(&[(3, 7), (5, 0)]).0,
            Outcome::Masked,
            "zeros where zeros were"
        );
        assert_eq!(of(&[(3, 7), (9, 1)]).0, Outcome::Masked, "ignored");
        let (outcome, evidence) = of(&[(3, 7), (10, 1)]);
        assert_eq!(outcome, Outcome::SilentCorruption);
        assert!(
            evidence.starts_with("disk data, sector 10, byte 0"),
            "{evidence}"
        );
        assert_eq!(of(&[]).0, Outcome::SilentCorruption, "a lost write");
        let crashed = Case {
            disks: content(&[]),
            end: End::Exited {
                wait_status: 11,
                requested: false,
            },
            over: false,
            ..healthy()
        };
        assert_eq!(
            decide(&crashed).0,
            Outcome::Crash,
            "a run that was cut off has another disk"
        );
    }

    #[test]
    fn ends_have_their_classes() {
        let cut = || {
            let mut heard = heard(&["+OK\r\n", "time:9"]);
            heard.course = Course::Unfinished;
            heard
        };
        let quorum = |detail: &str| End::NoQuorum {
            detail: detail.to_owned(),
        };
        let of = |replicas, end, events| {
            decide(&Case {
                heard: cut(),
                over: false,
                replicas,
                end,
                events,
                ..healthy()
            })
            .0
        };
        assert_eq!(
            of(
                1,
                End::Exited {
                    wait_status: 139,
                    requested: false
                },
                vec![]
            ),
            Outcome::Crash
        );
        assert_eq!(
            of(1, quorum("none"), vec![stopped(0, "crashed: triple fault")]),
            Outcome::Crash
        );
        assert_eq!(
            of(1, quorum("none"), vec![stopped(0, "did not keep up: 5 ms")]),
            Outcome::Hang
        );
        assert_eq!(of(2, quorum("two halves"), vec![]), Outcome::Stopped);
        assert_eq!(
            of(
                2,
                quorum("none"),
                vec![stopped(0, "crashed: x"), stopped(1, "crashed: x")]
            ),
            Outcome::Crash
        );
        assert_eq!(
            of(
                3,
                quorum("none"),
                vec![stopped(0, "crashed: x"), stopped(1, "outvoted")]
            ),
            Outcome::Stopped
        );
        let failed = End::Failed {
            code: quorate_executor::exit::ExitCode::Host,
            detail: "no memory".to_owned(),
        };
        assert_eq!(of(3, failed, vec![]), Outcome::InjectorFailure);
        let spun = Some(Spun {
            boundary: 3,
            replica: 0,
            stalled: false,
        });
        assert_eq!(
            decide(&Case {
                heard: cut(),
                over: false,
                spun,
                ..healthy()
            })
            .0,
            Outcome::Hang
        );

        let course = |course: Course| {
            let mut heard = cut();
            heard.course = course;
            decide(&Case { heard, ..healthy() }).0
        };
        assert_eq!(
            course(Course::Stuck {
                why: "w".to_owned()
            }),
            Outcome::Hang
        );
        assert_eq!(
            course(Course::Broken {
                connection: 0,
                why: "w".to_owned()
            }),
            Outcome::ClientError
        );
        let mut case = healthy();
        case.heard.connections[0].ending = Ending::ByGuest;
        assert_eq!(decide(&case).0, Outcome::ClientError);
        let case = Case {
            replicas: 3,
            events: vec![stopped(2, "outvoted at 5")],
            ..healthy()
        };
        assert_eq!(decide(&case).0, Outcome::Corrected);
    }

    #[test]
    fn a_wrong_byte_before_a_crash_is_silent_all_the_same() {
        let mut wrong = heard(&["+OK\r\n", "tame:9\r\n"]);
        wrong.course = Course::Unfinished;
        let case = Case {
            heard: wrong,
            over: false,
            end: End::Exited {
                wait_status: 139,
                requested: false,
            },
            ..healthy()
        };
        assert_eq!(decide(&case).0, Outcome::SilentCorruption);
    }

    #[test]
    fn what_was_not_injected_says_nothing() {
        let (judge, _base) = judge();
        let case = healthy();
        let trial = Trial {
            replicas: 1,
            not_injected: Some("no such symbol"),
            heard: &case.heard,
            disks: &case.disks,
            end: &case.end,
            over: true,
            spun: None,
            events: &[],
        };
        assert_eq!(judge.judge(&trial).outcome, Outcome::InjectorFailure);
    }
}
