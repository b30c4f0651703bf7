//! What is said of replicas that differ from what was released, bounded and fit to be shown.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{ReplicaId, list};

/// Longest excerpt in a [`Difference`], in bytes.
pub const DIFFERENCE_EXCERPT_BYTES: usize = 96;
/// Bytes of an excerpt that lie before the first difference.
pub(crate) const EXCERPT_LEAD: usize = DIFFERENCE_EXCERPT_BYTES / 3;
/// Longest excerpt of a request, in bytes.
pub const REQUEST_EXCERPT_BYTES: usize = 96;
/// Requests that are remembered for each connection; of older ones the answers' differences do not say what was asked.
pub const REQUESTS_KEPT: usize = 128;
/// Differences that wait to be fetched, for each matcher; what comes then is counted only.
pub const DIFFERENCES_KEPT: usize = 64;

/// How a replica departs from what was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Departure {
    /// Other bytes.
    Bytes,
    /// It ended where the released stream goes on.
    EndedEarly,
    /// It goes on where the released stream ended.
    GoesOn,
    /// It ended in another way: refused, where the others answered.
    OtherEnd,
    /// It did not say in time what was released.
    Missing,
    /// It said something that nobody else said, and that was never released.
    Spurious,
    /// It crashed.
    Crashed,
}

impl fmt::Display for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "differs",
            Self::EndedEarly => "ended early",
            Self::GoesOn => "goes on longer",
            Self::OtherEnd => "ended in another way",
            Self::Missing => "said nothing",
            Self::Spurious => "said what nobody else said",
            Self::Crashed => "crashed",
        })
    }
}

/// What the client had sent before an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Bytes of client data on this connection before it.
    pub input_from: u64,
    /// And after it.
    pub input_to: u64,
    /// Its first bytes, up to [`REQUEST_EXCERPT_BYTES`].
    pub excerpt: Vec<u8>,
}

/// A replica's output is not what was released. Each departure is reported once: after it the replica is left out of
/// the channel, until it comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Who.
    pub replica: ReplicaId,
    /// The connection or flow, as the caller numbers it.
    pub connection: u64,
    /// How.
    pub kind: Departure,
    /// Output position of the replica at which it departs, in bytes from the channel's start.
    pub position: u64,
    /// The departure lies in the `within` bytes from `position` on, compared by digest because the bytes themselves
    /// are no longer retained; 0: exactly there.
    pub within: u64,
    /// What the client had asked, if the matcher was told inputs.
    pub request: Option<Request>,
    /// Output position at which both excerpts start.
    pub excerpt_at: u64,
    /// What was released around the place; empty if it is no longer retained, or if it ended there.
    pub released: Vec<u8>,
    /// What the replica said.
    pub said: Vec<u8>,
}

/// Bytes as a human reads them in one line.
fn show(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing".into();
    }
    format!("\"{}\"", bytes.escape_ascii())
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            replica,
            connection,
            kind,
            position,
            ..
        } = self;
        write!(f, "{replica} {kind} on connection {connection}, ")?;
        match self.within {
            0 => write!(f, "byte {position}")?,
            within => write!(f, "within {within} bytes from byte {position} on")?,
        }
        if let Some(request) = &self.request {
            write!(f, ", in answer to {}", show(&request.excerpt))?;
        }
        if self.within == 0 {
            write!(
                f,
                ": it said {}, released was {} [from byte {}]",
                show(&self.said),
                show(&self.released),
                self.excerpt_at
            )?;
        }
        Ok(())
    }
}

/// Replicas that said the same, without a quorum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Who.
    pub replicas: Vec<ReplicaId>,
    /// What they said from [`Undecided::position`] on, up to [`DIFFERENCE_EXCERPT_BYTES`].
    pub said: Vec<u8>,
    /// They ended there.
    pub ended: bool,
}

/// A channel on which nothing more can be released as things are: nobody is blamed (R5). A replica that comes back may
/// change that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undecided {
    /// The connection or flow, as the caller numbers it.
    pub connection: u64,
    /// Output position from which on nothing can be released.
    pub position: u64,
    /// Votes that a release needs.
    pub quorum: usize,
    /// Most votes that any continuation can still get.
    pub possible: usize,
    /// Who said what there.
    pub sides: Vec<Side>,
}

impl fmt::Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no majority on connection {} from byte {} on: {} of {} votes are possible",
            self.connection, self.position, self.possible, self.quorum
        )?;
        for side in &self.sides {
            let said = match side.ended {
                true => "ended".into(),
                false => show(&side.said),
            };
            write!(f, "; {} said {said}", list(&side.replicas))?;
        }
        Ok(())
    }
}

/// What clients asked on a connection, and from which output position on it is answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests {
    kept: VecDeque<(u64, Request)>,
}

impl Requests {
    /// Input arrived that begins at `input_from`, when `released` bytes of output had been released. Input that comes
    /// before anything was released since belongs to the same request.
    pub(crate) fn note(&mut self, released: u64, input_from: u64, bytes: &[u8]) {
        let to = input_from.saturating_add(bytes.len() as u64);
        match self.kept.back_mut() {
            Some((at, request)) if *at == released => {
                let room = REQUEST_EXCERPT_BYTES.saturating_sub(request.excerpt.len());
                request.excerpt.extend(bytes.iter().take(room));
                request.input_to = to;
            }
            _ => {
                if self.kept.len() == REQUESTS_KEPT {
                    self.kept.pop_front();
                }
                let excerpt = bytes[..bytes.len().min(REQUEST_EXCERPT_BYTES)].to_vec();
                let request = Request {
                    input_from,
                    input_to: to,
                    excerpt,
                };
                self.kept.push_back((released, request));
            }
        }
    }

    /// The request that the output at `position` answers.
    pub(crate) fn at(&self, position: u64) -> Option<Request> {
        let (_, request) = self.kept.iter().rev().find(|(at, _)| *at <= position)?;
        Some(request.clone())
    }
}

/// Differences until they are fetched, and how many there were.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reports {
    waiting: Vec<Difference>,
    /// Not kept, because [`DIFFERENCES_KEPT`] others waited.
    pub(crate) dropped: u64,
}

impl Reports {
    pub(crate) fn push(&mut self, difference: Difference) {
        match self.waiting.len() < DIFFERENCES_KEPT {
            true => self.waiting.push(difference),
            false => self.dropped += 1,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn take(&mut self) -> Vec<Difference> {
        std::mem::take(&mut self.waiting)
    }
}
