//! What a player says to good and bad guests.

use std::sync::Arc;

use quorate_abi::sync::{WAIT_FOREVER, WAIT_NONE};
use quorate_executor::egress::Egress;
use quorate_executor::stage::{At, Cue, Stage, Strength};

use super::guest::{FULL, Guest, Wish, lines, play};
use crate::talk::conversation::{Act, Conversation, Log};
use crate::talk::heard::Course;
use crate::talk::player::{FIRST_PORT, HANG_NS, Player, PlayerSettings};
use crate::talk::wire::Ending;

/// Some lines one after the other on each of some connections, one after the other; each waits for its answer.
pub fn sequential(connections: &[&[&str]]) -> Arc<Conversation> {
    let mut log = Log::default();
    for texts in connections {
        let of = log.open(6379);
        for text in *texts {
            log.act(of, Act::Send(text.as_bytes().to_vec()));
            log.received(of, text.len() as u64 + 1, false);
        }
        log.act(of, Act::Shut);
        log.received(of, 0, true);
    }
    Arc::new(log.canonical())
}

fn player(conversation: &Arc<Conversation>) -> Player {
    Player::new(Arc::clone(conversation), PlayerSettings::default())
}

#[test]
fn a_conversation_is_played_to_its_end() {
    let conversation = sequential(&[&["ping\n", "set x 1\n"], &["get x\n"]]);
    let player = player(&conversation);
    let mut guest = Guest::new(6379, lines);
    play(&player, &mut guest);
    let heard = player.heard();
    assert_eq!(heard.course, Course::Complete);
    assert_eq!(heard.connections[0].bytes, b"+PING\n+SET X 1\n");
    assert_eq!(heard.connections[0].sends, [0, 6]);
    assert_eq!(heard.connections[1].bytes, b"+GET X\n");
    assert!(
        heard
            .connections
            .iter()
            .all(|of| of.ending == Ending::ByClient)
    );
    assert!(heard.connections[1].opened_ns > heard.connections[0].last_ns);
    // No timer ran out: the guest did not even have to wait.
    assert!(heard.virtual_ns < 2_000_000, "{}", heard.virtual_ns);
    assert_eq!(heard.acts, conversation.events.len());
}

#[test]
fn what_is_lost_is_sent_again_in_virtual_time_and_always_alike() {
    let conversation = sequential(&[&["ping\n", "set x 1\n", "get x\n"]]);
    let whole = player(&conversation);
    play(&whole, &mut Guest::new(6379, lines));
    let mut waited = 0;
    for lost in 0..8 {
        for inwards in [true, false] {
            let run = || {
                let player = player(&conversation);
                let mut guest = Guest::new(6379, lines);
                match inwards {
                    true => guest.lost_in.push(lost),
                    false => guest.lost_out.push(lost),
                }
                play(&player, &mut guest);
                (player.heard(), guest.entries)
            };
            let (heard, entries) = run();
            assert_eq!(heard.course, Course::Complete, "frame {lost} {inwards}");
            assert_eq!(
                heard.connections[0].bytes,
                whole.heard().connections[0].bytes
            );
            assert!(entries.len() < 200, "timers do not spin: {}", entries.len());
            waited += u32::from(heard.virtual_ns > 100_000_000);
            assert_eq!((heard, entries), run());
        }
    }
    assert!(waited >= 8, "a lost frame costs time: {waited}");
}

#[test]
fn a_guest_that_falls_silent_is_stuck_after_the_hang_limit() {
    let conversation = sequential(&[&["ping\n", "get x\n"]]);
    let player = player(&conversation);
    let mut guest = Guest::new(6379, |_, got, _| Wish {
        sends: if got.len() > 5 {
            b"+PING\n+GE".to_vec()
        } else {
            b"+PING\n".to_vec()
        },
        ..Wish::default()
    });
    play(&player, &mut guest);
    let heard = player.heard();
    let Course::Stuck { why } = &heard.course else {
        panic!("{:?}", heard.course)
    };
    assert!(why.contains("connection 0: 9 of 13 bytes came"), "{why}");
    assert_eq!(heard.connections[0].ending, Ending::Open);
    assert!(heard.virtual_ns <= HANG_NS + 1_000_000_000);
}

#[test]
fn resets_and_early_ends_break_a_conversation_at_once() {
    for (resets, ending) in [(true, Ending::ResetByGuest), (false, Ending::ByGuest)] {
        let conversation = sequential(&[&["ping\n", "get x\n"]]);
        let player = player(&conversation);
        let mut guest = Guest::new(6379, move |_, got, _| Wish {
            sends: b"+PING\n".to_vec(),
            ends: got.len() > 5,
            resets: resets && got.len() > 5,
        });
        play(&player, &mut guest);
        let heard = player.heard();
        assert!(
            matches!(&heard.course, Course::Broken { connection: 0, why } if why.contains("after 6 bytes")),
            "{:?}",
            heard.course
        );
        assert_eq!(heard.connections[0].ending, ending);
        assert!(heard.virtual_ns < 10_000_000);
        assert_eq!(heard.outstanding, 1);
    }
}

#[test]
fn an_answer_may_come_after_the_client_has_ended_its_half() {
    let mut log = Log::default();
    let of = log.open(6379);
    log.act(of, Act::Send(b"all of it".to_vec()));
    log.act(of, Act::Shut);
    log.received(of, 9, true);
    let player = player(&Arc::new(log.canonical()));
    let mut guest = Guest::new(6379, |_, got, ended| Wish {
        sends: if ended { got.to_vec() } else { Vec::new() },
        ends: ended,
        ..Wish::default()
    });
    play(&player, &mut guest);
    let heard = player.heard();
    assert_eq!(
        (heard.course, heard.connections[0].bytes.as_slice()),
        (Course::Complete, b"all of it".as_slice())
    );
}

#[test]
fn a_refusal_ends_a_trial_and_delays_a_warm_up() {
    let conversation = sequential(&[&["ping\n"]]);
    let of_trial = player(&conversation);
    let mut guest = Guest::new(6379, lines);
    guest.listens_from_ns = 5_100_000_000;
    play(&of_trial, &mut guest);
    assert!(
        matches!(&of_trial.heard().course, Course::Broken { why, .. } if why.contains("refused"))
    );
    assert_eq!(of_trial.heard().connections[0].ending, Ending::Refused);

    let warm_up = Player::new(conversation, PlayerSettings::warm_up());
    let mut guest = Guest::new(6379, lines);
    guest.listens_from_ns = 5_100_000_000;
    play(&warm_up, &mut guest);
    assert_eq!(warm_up.heard().course, Course::Complete);
    assert_eq!(warm_up.heard().connections[0].bytes, b"+PING\n");
    assert!(warm_up.heard().virtual_ns >= 100_000_000);
}

#[test]
fn answers_of_another_length_are_learnt_from_a_lenient_run() {
    let conversation = sequential(&[&["ping\n", "get x\n"]]);
    for answer in ["+P\n", "+PINGPONG\n"] {
        let guest = || {
            Guest::new(6379, move |_, got, ended| {
                let lines = got.iter().filter(|byte| **byte == b'\n').count();
                Wish {
                    sends: answer.repeat(lines).into_bytes(),
                    ends: ended,
                    ..Wish::default()
                }
            })
        };
        let lenient = Player::new(
            Arc::clone(&conversation),
            PlayerSettings {
                lenient: true,
                ..PlayerSettings::default()
            },
        );
        play(&lenient, &mut guest());
        assert_eq!(lenient.heard().course, Course::Complete);
        let adapted = Arc::new(lenient.adapted().unwrap());
        assert_eq!(adapted.end[0].bytes, 2 * answer.len() as u64);
        let strict = player(&adapted);
        play(&strict, &mut guest());
        assert_eq!(strict.heard().course, Course::Complete);
        assert_eq!(strict.heard().connections[0].sends, [0, answer.len()]);
    }
    let same = Player::new(
        conversation,
        PlayerSettings {
            lenient: true,
            ..PlayerSettings::default()
        },
    );
    play(&same, &mut Guest::new(6379, lines));
    assert_eq!(same.adapted(), None);
}

#[test]
fn nothing_is_said_before_the_guest_has_come_to_rest() {
    let player = player(&sequential(&[&["ping\n"]]));
    let mut at = At {
        boundary: 0,
        wait_until_ns: WAIT_NONE,
        now_ns: 0,
        strength: FULL,
    };
    for boundary in 0..5 {
        at.boundary = boundary;
        let Cue::Entry(entry) = player.cue(&at) else {
            panic!()
        };
        assert_eq!(entry.frames.len(), 0);
        at.now_ns = entry.monotonic_ns;
    }
    at = At {
        boundary: 5,
        wait_until_ns: WAIT_FOREVER,
        ..at
    };
    let Cue::Entry(entry) = player.cue(&at) else {
        panic!()
    };
    assert_eq!(entry.frames.len(), 1);
    // SYN of the trial's first port.
    assert_eq!(entry.frames[0][34..36], FIRST_PORT.to_be_bytes());
}

#[test]
fn the_end_waits_for_full_strength_and_the_console_is_closed_then() {
    let player = player(&sequential(&[&["ping\n"]]));
    play(&player, &mut Guest::new(6379, lines));
    player.clone().console(b"too late");
    assert_eq!(player.heard().console, b"");
    let at = |voting, recovering, left_out| At {
        boundary: 90,
        wait_until_ns: WAIT_FOREVER,
        now_ns: 1,
        strength: Strength {
            members: 3,
            voting,
            recovering,
            left_out,
        },
    };
    assert_eq!(player.cue(&at(2, 1, 0)), Cue::Wait);
    assert_eq!(
        player.cue(&at(2, 0, 0)),
        Cue::Wait,
        "it was stopped a moment ago"
    );
    assert_eq!(player.cue(&at(2, 0, 1)), Cue::Over);
    assert_eq!(player.cue(&at(3, 0, 0)), Cue::Over);
}

#[test]
fn garbage_is_survived_and_others_are_refused() {
    let player = player(&sequential(&[&["ping\n"]]));
    let mut to = player.clone();
    to.frames(vec![
        Vec::new(),
        vec![0xff; 13],
        vec![0; 70_000],
        vec![8; 60],
    ]);
    play(&player, &mut Guest::new(6379, lines));
    assert_eq!(player.heard().course, Course::Complete);
}

/// Not a promise, a look: `cargo test --release -p quorate-campaign --lib -- --nocapture speed`.
#[test]
fn speed_of_a_short_conversation() {
    let texts: Vec<String> = (0..25).map(|n| format!("command {n}\n")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let conversation = sequential(&[&texts]);
    let begun = std::time::Instant::now();
    let rounds = 20;
    for _ in 0..rounds {
        let player = player(&conversation);
        play(&player, &mut Guest::new(6379, lines));
        assert_eq!(player.heard().course, Course::Complete);
    }
    println!(
        "{:?} for 25 requests, with the guest's own stack",
        begun.elapsed() / rounds
    );
}
