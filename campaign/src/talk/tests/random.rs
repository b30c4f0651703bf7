//! Any conversation is played to its end, and always alike.

use std::sync::Arc;

use proptest::prelude::*;

use super::guest::{Guest, Wish, play};
use crate::talk::conversation::{Act, Log};
use crate::talk::heard::Course;
use crate::talk::player::{Player, PlayerSettings};

/// An exchange on a connection: what is sent, and how much comes back. Larger than any window, too.
#[derive(Clone, Debug)]
struct Exchange {
    connection: usize,
    sends: usize,
    receives: usize,
}

fn exchanges() -> impl Strategy<Value = Vec<Exchange>> {
    let size = prop_oneof![1..20_usize, 1000..5000_usize, 60_000..150_000_usize];
    let one = (0..3_usize, size.clone(), size).prop_map(|(connection, sends, receives)| Exchange {
        connection,
        sends,
        receives,
    });
    proptest::collection::vec(one, 1..8)
}

fn bytes(seed: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at * 31 + at / 251 + seed * 7) as u8)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_conversation(exchanges in exchanges(), together in any::<bool>(), lost in proptest::collection::vec(0..60_usize, 0..4)) {
        let mut log = Log::default();
        let mut open: Vec<Option<usize>> = vec![None; 3];
        // By connection in the order of opening: after so many bytes so many are sent.
        let mut answers: Vec<Vec<(usize, usize)>> = Vec::new();
        let mut totals: Vec<usize> = Vec::new();
        for (number, exchange) in exchanges.iter().enumerate() {
            let connection = *open[exchange.connection].get_or_insert_with(|| {
                answers.push(Vec::new());
                totals.push(0);
                log.open(6379)
            });
            log.act(connection, Act::Send(bytes(number, exchange.sends)));
            totals[connection] += exchange.sends;
            answers[connection].push((totals[connection], exchange.receives));
            if !together {
                log.received(connection, exchange.receives as u64, false);
            }
        }
        if together {
            for (connection, answers) in answers.iter().enumerate() {
                log.received(connection, answers.iter().map(|(_, bytes)| *bytes as u64).sum(), false);
            }
        }
        for connection in open.iter().flatten() {
            log.act(*connection, Act::Shut);
        }
        for connection in open.iter().flatten() {
            log.received(*connection, 0, true);
        }
        let conversation = Arc::new(log.canonical());
        prop_assert!(conversation.check().is_ok());
        let sent: u64 = exchanges.iter().map(|of| of.sends as u64).sum();
        let receives: u64 = exchanges.iter().map(|of| of.receives as u64).sum();
        prop_assert_eq!(conversation.sent(), sent);
        let expected: Vec<u64> = conversation.end.iter().map(|of| of.bytes).collect();
        // Connections opened together are in the order of what they do: found again by how much that is.
        let order: Vec<Vec<(usize, usize)>> = if !together { answers } else { expected.iter().enumerate().map(|(number, _)| {
            let sends: Vec<usize> = conversation.events.iter().filter(|event| event.connection == number).filter_map(|event| match &event.act {
                Act::Send(bytes) => Some(bytes.len()),
                _ => None,
            }).collect();
            let total: usize = sends.iter().sum();
            let matching = |of: &&Vec<(usize, usize)>| of.last().is_some_and(|(all, _)| *all == total)
                && of.iter().map(|(_, bytes)| *bytes as u64).sum::<u64>() == expected[number];
            answers.iter().find(matching).cloned().unwrap_or_default()
        }).collect() };
        let run = || {
            let player = Player::new(Arc::clone(&conversation), PlayerSettings::default());
            let order = order.clone();
            let mut guest = Guest::new(6379, move |number, got, ended| {
                let answers = order.get(number).map(Vec::as_slice).unwrap_or_default();
                let length = answers.iter().filter(|(at, _)| got.len() >= *at).map(|(_, bytes)| *bytes).sum();
                Wish { sends: bytes(number, length), ends: ended, resets: false }
            });
            guest.lost_in.clone_from(&lost);
            guest.lost_out.clone_from(&lost);
            play(&player, &mut guest);
            (player.heard(), guest.entries)
        };
        let (heard, entries) = run();
        // Without loss, connections are accepted in the conversation's order.
        if lost.is_empty() {
            prop_assert_eq!(&heard.course, &Course::Complete);
            prop_assert_eq!(heard.received(), receives);
            for (number, of) in heard.connections.iter().enumerate() {
                prop_assert_eq!(&of.bytes, &bytes(number, of.bytes.len()));
            }
        }
        prop_assert_eq!(run(), (heard, entries));
    }
}
