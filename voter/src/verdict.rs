//! What is said about replicas: verdicts, reasons for a stop, and the end of the majority. All of it is bounded
//! and can be shown to a human, so that one event is one clear line.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Channel, ReplicaId, list};

/// Longest excerpt of an output in a verdict, in bytes.
pub const EXCERPT_BYTES: usize = 32;

/// How a ballot departs from the agreed one on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DifferenceKind {
    /// The same output has other bytes.
    Content,
    /// The replica lacks an output that the majority has.
    Missing,
    /// The replica has an output that the majority lacks.
    Extra,
    /// The same outputs on every channel, but interleaved differently between channels.
    Order,
}

/// Place of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) channel: Channel,
    pub(crate) kind: DifferenceKind,
    /// Which output on the channel, from 0.
    pub(crate) index: usize,
    /// First differing byte of that output.
    pub(crate) offset: usize,
}

/// What one side said on the channel of a difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Outputs on the channel at this boundary.
    pub outputs: usize,
    /// Bytes of all of them.
    pub bytes: usize,
    /// Length of the output in question; `None` if there is none.
    pub len: Option<usize>,
    /// Where `excerpt` starts in that output.
    pub excerpt_offset: usize,
    /// Up to [`EXCERPT_BYTES`] around the first difference.
    pub excerpt: Vec<u8>,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(len) = self.len else {
            return write!(f, "nothing");
        };
        write!(f, "{len} bytes")?;
        if !self.excerpt.is_empty() {
            write!(f, " [at {}:", self.excerpt_offset)?;
            for byte in &self.excerpt {
                write!(f, " {byte:02x}")?;
            }
            write!(f, "]")?;
        }
        Ok(())
    }
}

/// A replica was outvoted: a quorum agreed on a ballot, and this replica cast another (R5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Who is outvoted.
    pub replica: ReplicaId,
    /// At which boundary.
    pub boundary: u64,
    /// First channel that differs, in the order of the agreed ballot.
    pub channel: Channel,
    /// How.
    pub kind: DifferenceKind,
    /// Which output on that channel, from 0.
    pub index: usize,
    /// First differing byte of that output.
    pub offset: usize,
    /// What the majority said.
    pub majority: Said,
    /// What this replica said.
    pub minority: Said,
    /// Who was seen to agree when the boundary was decided: a quorum or more.
    pub agreed: Vec<ReplicaId>,
}

impl Verdict {
    /// One line, with channels named by the caller.
    #[must_use]
    pub fn describe(&self, name: impl Fn(Channel) -> String) -> String {
        let place = format!(
            "boundary {}, {} output {}",
            self.boundary,
            name(self.channel),
            self.index
        );
        match self.kind {
            DifferenceKind::Order => format!(
                "{} is outvoted at {place}: same outputs, in another order between channels",
                self.replica
            ),
            _ => format!(
                "{} is outvoted at {place}, byte {}: it said {}, the majority ({}) said {}",
                self.replica,
                self.offset,
                self.minority,
                list(&self.agreed),
                self.majority
            ),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe(|channel| channel.to_string()))
    }
}

/// Why a replica does not run any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// A quorum said something else.
    Outvoted(Verdict),
    /// The machine crashed; with what it left behind.
    Crashed(String),
    /// It did not keep up with a quorum.
    Lagging {
        /// The boundary that it did not reach in time.
        boundary: u64,
        /// How long it was late, in nanoseconds.
        late_ns: u64,
        /// How late it might have been, in nanoseconds.
        allowed_ns: u64,
        /// Not one long delay, but others were held up again and again.
        repeatedly: bool,
    },
    /// The operator asked for it.
    Killed,
    /// Its thread or its machine could not go on, by no fault of the guest.
    Failed(String),
    /// It handed in garbage, or more than a replica may (R9, R10).
    Misbehaved(String),
    /// While it recovered it cast something else than was released at this boundary (R7): the state that it
    /// went on from was wrong already.
    Relapsed {
        /// Where.
        boundary: u64,
    },
    /// It cast at this boundary, no value had a majority there, and nobody was left whose vote could have decided, or
    /// others came too late there again and again: so nobody can say who is wrong, and all who cast there must
    /// recover (R5).
    Disputed {
        /// Where.
        boundary: u64,
    },
    /// The operator took it out of the set.
    Removed,
    /// It is to become a member, and has not begun to run.
    Joining,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MS: u64 = 1_000_000;
        match self {
            Self::Outvoted(verdict) => verdict.fmt(f),
            Self::Crashed(what) => write!(f, "crashed: {what}"),
            Self::Lagging {
                boundary,
                late_ns,
                allowed_ns,
                repeatedly,
            } => {
                let how = if *repeatedly {
                    "held the others up again and again"
                } else {
                    "did not keep up"
                };
                write!(
                    f,
                    "{how}: {} ms late at boundary {boundary}, allowed are {} ms",
                    late_ns / MS,
                    allowed_ns / MS
                )
            }
            Self::Killed => write!(f, "killed by the operator"),
            Self::Failed(what) => write!(f, "failed: {what}"),
            Self::Misbehaved(what) => write!(f, "misbehaved: {what}"),
            Self::Relapsed { boundary } => write!(
                f,
                "relapsed: its output at boundary {boundary} is not what was released there"
            ),
            Self::Disputed { boundary } => {
                write!(
                    f,
                    "no majority at boundary {boundary}: all who voted there begin again"
                )
            }
            Self::Removed => write!(f, "removed by the operator"),
            Self::Joining => write!(f, "about to join"),
        }
    }
}

/// Replicas that said the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// Who.
    pub replicas: Vec<ReplicaId>,
    /// What, at the first place where the two largest parties differ.
    pub said: Said,
}

/// How the majority was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoMajorityCause {
    /// Fewer replicas run than the quorum needs.
    TooFew,
    /// No value can reach the quorum any more.
    Split {
        /// First channel on which the two largest parties differ.
        channel: Channel,
        /// How they differ there.
        kind: DifferenceKind,
        /// Which output on that channel, from 0.
        index: usize,
        /// First differing byte of it.
        offset: usize,
        /// Who said what; the largest party first.
        parties: Vec<Party>,
        /// Running replicas that have not cast yet; their votes could not change it.
        missing: Vec<ReplicaId>,
    },
    /// Some replicas cast, less than a quorum, and so many others did not come in time that no quorum is left
    /// without them. Nobody can say which side is wrong.
    Stalled {
        /// Who has cast.
        cast: Vec<ReplicaId>,
        /// Who did not come.
        laggards: Vec<ReplicaId>,
        /// How long ago the first ballot was cast, in nanoseconds.
        waited_ns: u64,
    },
}

/// The set is without a quorum: nothing is released any more (R5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoMajority {
    /// First boundary that is not released.
    pub boundary: u64,
    /// Running replicas.
    pub healthy: u8,
    /// Votes that a release needs.
    pub quorum: u8,
    /// How it came to this.
    pub cause: NoMajorityCause,
}

impl NoMajority {
    /// One line, with channels named by the caller.
    #[must_use]
    pub fn describe(&self, name: impl Fn(Channel) -> String) -> String {
        let head = format!("no majority at boundary {}", self.boundary);
        match &self.cause {
            NoMajorityCause::TooFew => format!(
                "{head}: {} of the {} replicas that a quorum needs are running",
                self.healthy, self.quorum
            ),
            NoMajorityCause::Split {
                channel,
                index,
                offset,
                parties,
                ..
            } => {
                let said: Vec<String> = parties
                    .iter()
                    .map(|p| format!("{} said {}", list(&p.replicas), p.said))
                    .collect();
                format!(
                    "{head}, {} output {index}, byte {offset}: {}",
                    name(*channel),
                    said.join("; ")
                )
            }
            NoMajorityCause::Stalled {
                cast,
                laggards,
                waited_ns,
            } => format!(
                "{head}: {} came, {} did not within {} ms",
                list(cast),
                list(laggards),
                waited_ns / 1_000_000
            ),
        }
    }
}

impl fmt::Display for NoMajority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe(|channel| channel.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(bytes: &[u8]) -> Said {
        Said {
            outputs: 1,
            bytes: bytes.len(),
            len: Some(bytes.len()),
            excerpt_offset: 0,
            excerpt: bytes.to_vec(),
        }
    }

    #[test]
    fn verdicts_read_as_one_line() {
        let mut verdict = Verdict {
            replica: ReplicaId(2),
            boundary: 17,
            channel: Channel(1),
            kind: DifferenceKind::Content,
            index: 0,
            offset: 1,
            majority: said(&[0xab, 1]),
            minority: said(&[0xab, 2]),
            agreed: vec![ReplicaId(0), ReplicaId(1)],
        };
        assert_eq!(
            verdict.describe(|_| "net".into()),
            "replica 2 is outvoted at boundary 17, net output 0, byte 1: it said 2 bytes [at 0: ab 02], \
             the majority (replica 0, replica 1) said 2 bytes [at 0: ab 01]"
        );
        verdict.kind = DifferenceKind::Order;
        assert_eq!(
            verdict.to_string(),
            "replica 2 is outvoted at boundary 17, channel 1 output 0: same outputs, in another order between channels"
        );
    }

    #[test]
    fn the_end_of_a_majority_names_the_parties() {
        let mut end = NoMajority {
            boundary: 3,
            healthy: 2,
            quorum: 2,
            cause: NoMajorityCause::Split {
                channel: Channel(1),
                kind: DifferenceKind::Content,
                index: 0,
                offset: 0,
                parties: vec![
                    Party {
                        replicas: vec![ReplicaId(0)],
                        said: said(&[1]),
                    },
                    Party {
                        replicas: vec![ReplicaId(1)],
                        said: Said {
                            len: None,
                            ..said(&[])
                        },
                    },
                ],
                missing: vec![],
            },
        };
        assert_eq!(
            end.to_string(),
            "no majority at boundary 3, channel 1 output 0, byte 0: replica 0 said 1 bytes [at 0: 01]; \
             replica 1 said nothing"
        );
        end.cause = NoMajorityCause::Stalled {
            cast: vec![ReplicaId(0)],
            laggards: vec![ReplicaId(1)],
            waited_ns: 6_000_000_000,
        };
        assert_eq!(
            end.to_string(),
            "no majority at boundary 3: replica 0 came, replica 1 did not within 6000 ms"
        );
        end.cause = NoMajorityCause::TooFew;
        assert!(end.to_string().contains("2 of the 2"));
    }
}
