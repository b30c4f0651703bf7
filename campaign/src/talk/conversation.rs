//! What a client said: to which ports it connected, what it sent, and after having received how much.
//!
//! A conversation is a list of acts in one order. An act is done when those before it are and when its own condition holds, which
//! says how much the client must have received. So nothing in it depends on how fast anybody was: [`Log::canonical`] makes the same
//! conversation of the same client however its bytes were cut into pieces.

use std::collections::BTreeMap;

/// Connections of a conversation at most (R10). Their numbers become ports of the player.
pub const MAX_CONNECTIONS: usize = 4096;
/// Bytes that a client sends in a conversation at most (R10).
pub const MAX_SENT_BYTES: usize = 64 << 20;
/// Bytes that it receives at most (R10).
pub const MAX_RECEIVED_BYTES: usize = 256 << 20;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The guest's port of each connection.
    pub connections: Vec<u16>,
    /// What is done, in this order.
    pub events: Vec<Event>,
    /// What the client had received of each connection when it was done.
    pub end: Vec<Received>,
}

/// One act of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it had received before; only connections on which something had come since the event before.
    pub after: Vec<Received>,
    /// On which connection.
    pub connection: usize,
    /// What it did.
    pub act: Act,
}

/// What has been received of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Received {
    /// The connection.
    pub connection: usize,
    /// Bytes so far.
    pub bytes: u64,
    /// The guest has ended it.
    pub closed: bool,
}

/// What a client does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// It connects.
    Open,
    /// It sends these bytes.
    Send(Vec<u8>),
    /// It ends its half of the connection.
    Shut,
    /// It resets the connection.
    Reset,
}

impl Conversation {
    /// Names the conversation: BLAKE3 of its text without what the command printed.
    #[must_use]
    pub fn digest(&self) -> blake3::Hash {
        blake3::hash(super::file::body(self).as_bytes())
    }

    /// Bytes that the client sends.
    #[must_use]
    pub fn sent(&self) -> u64 {
        let of = |event: &Event| match &event.act {
            Act::Send(bytes) => bytes.len() as u64,
            _ => 0,
        };
        self.events.iter().map(of).sum()
    }

    /// Whether it can be played: connections are opened once and first, nothing is done on one that was ended, numbers fit.
    ///
    /// # Errors
    /// What is wrong, in words, with the number of the event (from 0).
    pub fn check(&self) -> Result<(), (usize, String)> {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            New,
            Open,
            Shut,
            Gone,
        }
        let number = self.connections.len();
        if number > MAX_CONNECTIONS {
            let text = format!("{number} connections, at most {MAX_CONNECTIONS} are possible");
            return Err((0, text));
        }
        let mut states = vec![State::New; number];
        for (index, event) in self.events.iter().enumerate() {
            let wrong =
                |what: &str| Err((index, format!("connection {}: {what}", event.connection)));
            let Some(state) = states.get_mut(event.connection) else {
                return wrong("there is no such connection");
            };
            *state = match (&event.act, *state) {
                (Act::Open, State::New) => State::Open,
                (Act::Open, _) => return wrong("it is opened twice"),
                (_, State::New) => return wrong("it is not open yet"),
                (_, State::Gone) => return wrong("it was reset before"),
                (Act::Reset, _) => State::Gone,
                (_, State::Shut) => return wrong("it was ended before"),
                (Act::Send(bytes), _) if bytes.is_empty() => return wrong("nothing is sent"),
                (Act::Send(_), state) => state,
                (Act::Shut, _) => State::Shut,
            };
            if let Some(of) = event
                .after
                .iter()
                .find(|of| states.get(of.connection).is_none_or(|s| *s == State::New))
            {
                let text = format!(
                    "it waits for connection {}, which is not open then",
                    of.connection
                );
                return Err((index, text));
            }
        }
        match self.end.iter().find(|of| of.connection >= number) {
            Some(of) => Err((
                self.events.len(),
                format!("there is no connection {}", of.connection),
            )),
            None => Ok(()),
        }
    }
}

/// What was seen of a client, in rounds: the client does what it can do, then it is given what the guest answered.
#[derive(Clone, Debug, Default)]
pub struct Log {
    ports: Vec<u16>,
    rounds: Vec<Round>,
}

#[derive(Clone, Debug, Default)]
struct Round {
    acts: Vec<(usize, Act)>,
    /// What came after the acts: how much more, and whether that was the end.
    received: BTreeMap<usize, (u64, bool)>,
}

/// What a connection did and got in a round: what tells it from others.
type Deeds = Vec<(usize, Vec<Act>, u64, bool)>;

impl Log {
    /// A connection to a port of the guest; its number.
    pub fn open(&mut self, port: u16) -> usize {
        self.ports.push(port);
        let connection = self.ports.len() - 1;
        self.act(connection, Act::Open);
        connection
    }

    /// The client does something on a connection that was opened.
    pub fn act(&mut self, connection: usize, act: Act) {
        // Acts that nothing came between are of one round.
        if self
            .rounds
            .last()
            .is_none_or(|round| !round.received.is_empty())
        {
            self.rounds.push(Round::default());
        }
        let Some(round) = self.rounds.last_mut() else {
            return;
        };
        if let Act::Send(more) = &act {
            let last = round
                .acts
                .iter_mut()
                .rev()
                .find(|(of, _)| *of == connection);
            if let Some((_, Act::Send(bytes))) = last {
                bytes.extend_from_slice(more);
                return;
            }
        }
        round.acts.push((connection, act));
    }

    /// The client was given so many bytes more, or the end of the stream.
    pub fn received(&mut self, connection: usize, bytes: u64, closed: bool) {
        if bytes == 0 && !closed {
            return;
        }
        let Some(round) = self.rounds.last_mut() else {
            return;
        };
        let so_far = round.received.entry(connection).or_default();
        *so_far = (so_far.0 + bytes, so_far.1 || closed);
    }

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.ports.len()
    }

    /// The conversation. Connections get the order in which they were opened; of several that were opened together and are
    /// there together nobody can say which was first, so they are put in the order of what was done on them.
    #[must_use]
    pub fn canonical(&self) -> Conversation {
        let order = self.order();
        let mut rank = vec![0; order.len()];
        for (number, connection) in order.iter().enumerate() {
            rank[*connection] = number;
        }
        let mut totals: BTreeMap<usize, Received> = BTreeMap::new();
        let mut events: Vec<Event> = Vec::new();
        let mut after: Vec<usize> = Vec::new();
        for round in &self.rounds {
            let mut acts: Vec<(usize, &Act)> = round
                .acts
                .iter()
                .map(|(of, act)| (rank[*of], act))
                .collect();
            // Stable: what is done on one connection stays in its order.
            acts.sort_by_key(|(of, _)| *of);
            for (connection, act) in acts {
                let of = std::mem::take(&mut after);
                events.push(Event {
                    after: of
                        .iter()
                        .filter_map(|number| totals.get(number).copied())
                        .collect(),
                    connection,
                    act: act.clone(),
                });
            }
            for (connection, (bytes, closed)) in &round.received {
                let connection = rank[*connection];
                let total = totals.entry(connection).or_insert(Received {
                    connection,
                    bytes: 0,
                    closed: false,
                });
                total.bytes += bytes;
                total.closed |= closed;
                after.push(connection);
            }
            after.sort_unstable();
            after.dedup();
        }
        Conversation {
            connections: order.iter().map(|of| self.ports[*of]).collect(),
            events,
            end: totals.into_values().collect(),
        }
    }

    fn order(&self) -> Vec<usize> {
        let deeds: Vec<Deeds> = (0..self.ports.len()).map(|of| self.deeds(of)).collect();
        let mut order: Vec<usize> = Vec::new();
        let mut group: Vec<usize> = Vec::new();
        let mut group_round = 0;
        // Who of the group had been ended when the next was opened.
        let mut ended: Vec<bool> = vec![false; self.ports.len()];
        let close = |group: &mut Vec<usize>, order: &mut Vec<usize>| {
            group.sort_by(|a, b| (self.ports[*a], &deeds[*a]).cmp(&(self.ports[*b], &deeds[*b])));
            order.append(group);
        };
        for (number, round) in self.rounds.iter().enumerate() {
            for (connection, act) in &round.acts {
                match act {
                    Act::Open => {
                        if number != group_round || group.iter().all(|of| ended[*of]) {
                            close(&mut group, &mut order);
                            group_round = number;
                        }
                        group.push(*connection);
                    }
                    Act::Shut | Act::Reset => ended[*connection] = true,
                    Act::Send(_) => {}
                }
            }
        }
        close(&mut group, &mut order);
        order
    }

    fn deeds(&self, connection: usize) -> Deeds {
        let of_round = |(number, round): (usize, &Round)| {
            let acts: Vec<Act> = round
                .acts
                .iter()
                .filter(|(of, _)| *of == connection)
                .map(|(_, act)| act.clone())
                .collect();
            let (bytes, closed) = round.received.get(&connection).copied().unwrap_or_default();
            (!acts.is_empty() || bytes > 0 || closed).then_some((number, acts, bytes, closed))
        };
        self.rounds
            .iter()
            .enumerate()
            .filter_map(of_round)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn send(text: &str) -> Act {
        Act::Send(text.as_bytes().to_vec())
    }

    #[test]
    fn pieces_make_no_difference() {
        let mut whole = Log::default();
        let a = whole.open(6379);
        whole.act(a, send("GET x"));
        whole.received(a, 5, false);
        whole.act(a, Act::Shut);
        whole.received(a, 0, true);

        let mut pieces = Log::default();
        let a = pieces.open(6379);
        pieces.act(a, send("GE"));
        pieces.act(a, send("T x"));
        pieces.received(a, 2, false);
        pieces.received(a, 3, false);
        pieces.act(a, Act::Shut);
        pieces.received(a, 0, true);
        let conversation = whole.canonical();
        assert_eq!(conversation, pieces.canonical());
        assert_eq!(conversation.digest(), pieces.canonical().digest());
        assert_eq!(conversation.events.len(), 3);
        assert_eq!(
            conversation.events[2].after,
            [Received {
                connection: 0,
                bytes: 5,
                closed: false
            }]
        );
        assert_eq!(
            conversation.end,
            [Received {
                connection: 0,
                bytes: 5,
                closed: true
            }]
        );
        conversation.check().unwrap();
        assert_eq!(conversation.sent(), 5);
    }

    #[test]
    fn a_piece_that_is_answered_is_one_of_its_own() {
        let mut log = Log::default();
        let a = log.open(1);
        log.act(a, send("x"));
        log.received(a, 1, false);
        log.act(a, send("y"));
        assert_eq!(log.canonical().events.len(), 3);
    }

    #[test]
    fn connections_opened_together_have_the_order_of_what_they_do() {
        let run = |swap: bool| {
            let mut log = Log::default();
            let (a, b) = (log.open(80), log.open(80));
            let (a, b) = if swap { (b, a) } else { (a, b) };
            log.act(b, send("b"));
            log.act(a, send("a"));
            log.received(b, 2, false);
            log.received(a, 1, false);
            log.act(a, Act::Shut);
            log.act(b, Act::Shut);
            log.canonical()
        };
        assert_eq!(run(false), run(true));
        assert_eq!(run(false).events[1].act, send("a"));
    }

    #[test]
    fn connections_one_after_the_other_keep_their_order() {
        let mut log = Log::default();
        for text in ["z", "a"] {
            let c = log.open(80);
            log.act(c, send(text));
            log.act(c, Act::Shut);
        }
        let acts: Vec<Act> = log
            .canonical()
            .events
            .into_iter()
            .map(|event| event.act)
            .collect();
        assert_eq!(
            acts,
            [
                Act::Open,
                send("z"),
                Act::Shut,
                Act::Open,
                send("a"),
                Act::Shut
            ]
        );
    }

    #[test]
    fn a_send_waits_for_what_came_on_another_connection() {
        let mut log = Log::default();
        let a = log.open(1);
        log.act(a, send("1"));
        log.received(a, 10, false);
        let b = log.open(2);
        log.act(b, send("2"));
        log.received(b, 20, false);
        log.act(a, send("3"));
        let conversation = log.canonical();
        let last = conversation.events.last().unwrap();
        assert_eq!(
            last.after,
            [Received {
                connection: b,
                bytes: 20,
                closed: false
            }]
        );
    }

    #[test]
    fn what_cannot_be_played_is_named() {
        let event = |connection, act| Event {
            after: Vec::new(),
            connection,
            act,
        };
        let of = |events| Conversation {
            connections: vec![1],
            events,
            end: Vec::new(),
        };
        for (events, index, text) in [
            (vec![event(1, Act::Open)], 0, "no such"),
            (vec![event(0, Act::Open), event(0, Act::Open)], 1, "twice"),
            (vec![event(0, Act::Shut)], 0, "not open yet"),
            (
                vec![
                    event(0, Act::Open),
                    event(0, Act::Shut),
                    event(0, send("x")),
                ],
                2,
                "ended before",
            ),
            (
                vec![
                    event(0, Act::Open),
                    event(0, Act::Reset),
                    event(0, Act::Shut),
                ],
                2,
                "reset before",
            ),
        ] {
            let (at, what) = of(events).check().unwrap_err();
            assert_eq!(at, index);
            assert!(what.contains(text), "{what}");
        }
    }
}
