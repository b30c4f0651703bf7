//! Tokens that each replica has made up for itself, such as session ids: what a client got is put back into inputs as
//! what each replica calls it.

use std::collections::{HashMap, VecDeque};

use super::MIN_TOKEN;
use crate::ids::{MAX_REPLICAS, ReplicaId};

/// Tokens that are remembered (R10). Of more the oldest is forgotten: who sends it sends what nobody knows but the speaker.
pub const TRANSLATIONS_KEPT: usize = 4096;
/// Bytes of a token that are looked up.
const HEAD: usize = MIN_TOKEN;

/// A replica's own value of a masked token, and the one that was released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Whose.
    pub replica: ReplicaId,
    /// What it said.
    pub own: Vec<u8>,
    /// What the client got.
    pub released: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Token {
    released: Vec<u8>,
    own: [Option<Box<[u8]>>; MAX_REPLICAS],
}

/// Remembers tokens of a set, for all its connections: what one has issued is used on others.
#[derive(Clone, Debug, Default)]
pub struct Translator {
    tokens: HashMap<u64, Token>,
    next: u64,
    oldest: VecDeque<u64>,
    /// From the first bytes of a released value to the tokens that begin so.
    heads: HashMap<[u8; HEAD], Vec<u64>>,
    refused: u64,
}

fn head(bytes: &[u8]) -> Option<[u8; HEAD]> {
    bytes.get(..HEAD)?.try_into().ok()
}

impl Translator {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers what a replica calls a released token. One that is shorter than [`MIN_TOKEN`] or of another length is
    /// not translated, but counted.
    pub fn learn(&mut self, translation: Translation) {
        let Translation {
            replica,
            own,
            released,
        } = translation;
        let Some(head) = head(&released).filter(|_| own.len() == released.len()) else {
            self.refused += 1;
            return;
        };
        let known = self.heads.entry(head).or_default();
        let found = known
            .iter()
            .find(|id| self.tokens.get(id).is_some_and(|t| t.released == released))
            .copied();
        let id = match found {
            Some(id) => id,
            None => {
                let id = self.next;
                self.next += 1;
                known.push(id);
                self.oldest.push_back(id);
                let own = Default::default();
                self.tokens.insert(id, Token { released, own });
                id
            }
        };
        if let Some(token) = self.tokens.get_mut(&id)
            && let Some(place) = token.own.get_mut(usize::from(replica.0))
        {
            *place = Some(own.into());
        }
        while self.oldest.len() > TRANSLATIONS_KEPT {
            self.forget();
        }
    }

    fn forget(&mut self) {
        let Some(id) = self.oldest.pop_front() else {
            return;
        };
        let Some(head) = self.tokens.remove(&id).and_then(|t| head(&t.released)) else {
            return;
        };
        if let Some(known) = self.heads.get_mut(&head) {
            known.retain(|other| *other != id);
            if known.is_empty() {
                self.heads.remove(&head);
            }
        }
    }

    /// Whether there is anything to translate.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens that could not be remembered, because they were too short or of different lengths.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The token that begins at the start of `bytes`, and what the replica calls it.
    fn find(&self, replica: ReplicaId, bytes: &[u8]) -> Option<(&Token, Option<&[u8]>)> {
        let ids = self.heads.get(&head(bytes)?)?;
        let token = ids
            .iter()
            .filter_map(|id| self.tokens.get(id))
            .find(|t| bytes.starts_with(&t.released))?;
        let own = token.own.get(usize::from(replica.0))?.as_deref();
        Some((token, own))
    }

    /// `bytes` may be the beginning of a token, at least [`MIN_TOKEN`] bytes of it.
    fn may_begin(&self, bytes: &[u8]) -> bool {
        let ids = head(bytes).and_then(|head| self.heads.get(&head));
        let longer = |t: &&Token| t.released.len() > bytes.len() && t.released.starts_with(bytes);
        ids.is_some_and(|ids| {
            ids.iter()
                .filter_map(|id| self.tokens.get(id))
                .any(|t| longer(&t))
        })
    }

    /// A connection's input for one replica: `bytes` with every released token replaced by what the replica calls it.
    /// `tail` belongs to this connection and replica, empty at first: a token that is not complete at the end of `bytes`
    /// waits there for the next call, if at least [`MIN_TOKEN`] bytes of it are there; [`Translator::rest`] gives it up.
    pub fn inbound(&self, replica: ReplicaId, tail: &mut Vec<u8>, bytes: &[u8]) -> Vec<u8> {
        let mut input = std::mem::take(tail);
        input.extend_from_slice(bytes);
        if self.is_empty() {
            return input;
        }
        let mut at = 0;
        while at + HEAD <= input.len() {
            match self.find(replica, &input[at..]) {
                Some((token, own)) => {
                    let end = at + token.released.len();
                    if let Some(own) = own {
                        input[at..end].copy_from_slice(own);
                    }
                    at = end;
                }
                None if self.may_begin(&input[at..]) => {
                    *tail = input.split_off(at);
                    break;
                }
                None => at += 1,
            }
        }
        input
    }

    /// What waits in `tail` for the end of a token, when the client has said nothing more.
    pub fn rest(tail: &mut Vec<u8>) -> Vec<u8> {
        std::mem::take(tail)
    }
}
