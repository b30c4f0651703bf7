//! What each mask hides, and what it does not.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use proptest::prelude::*;
use quorate_voter::ReplicaId;
use quorate_voter::relaxed::{
    ConsoleMatcher, DatagramMatcher, EndOfStream, Mask, MaskError, MaskRule, MaskSet, PoolLimits,
    StreamLimits, StreamMatcher, Translation, Translator, Voters,
};

const KEY: [u8; 32] = [3; 32];
const R: [ReplicaId; 3] = [ReplicaId(0), ReplicaId(1), ReplicaId(2)];

fn header(name: &str) -> Mask {
    Mask {
        name: name.to_lowercase(),
        rule: MaskRule::HttpHeader(name.into()),
        translate: false,
    }
}

fn pattern(regex: &str) -> Mask {
    Mask {
        name: "pattern".into(),
        rule: MaskRule::Pattern(regex.into()),
        translate: false,
    }
}

fn stream(masks: &[Mask], replicas: usize) -> StreamMatcher {
    let voters = Voters::majority(replicas, KEY).unwrap();
    let set = MaskSet::new(masks).unwrap();
    StreamMatcher::new(&voters, StreamLimits::default(), Some(&set))
}

/// What two replicas that must agree release when they say this and then end, and where the second one differs.
fn both(masks: &[Mask], one: &str, two: &str) -> Result<String, u64> {
    let mut m = stream(masks, 3);
    for (r, what) in R.into_iter().zip([one, one, two]) {
        assert_eq!(m.push(r, what.as_bytes()).unwrap().bytes, what.len());
    }
    for r in R {
        m.end(r, EndOfStream::Shut);
    }
    let mut out = Vec::new();
    assert_eq!(m.take_released(&mut out), Some(EndOfStream::Shut));
    assert_eq!(String::from_utf8(out).unwrap(), one, "the speaker's");
    match m.differences().as_slice() {
        [] => Ok(one.into()),
        [d] => {
            assert_eq!(d.replica, R[2]);
            Err(d.position)
        }
        more => panic!("{more:?}"),
    }
}

fn answer(headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nServer: x\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn a_header_hides_its_value_and_nothing_else() {
    let date = [header("Date")];
    let a = answer("Date: Mon\r\nX-Date: 1\r\n", "Date: one\r\n");
    for same in [
        answer("Date: Tuesday\r\nX-Date: 1\r\n", "Date: one\r\n"),
        answer("Date:\r\nX-Date: 1\r\n", "Date: one\r\n"),
    ] {
        both(&date, &a, &same).unwrap();
    }
    for (other, at) in [
        // Another header, with a name that has the masked one in it.
        (answer("Date: Mon\r\nX-Date: 2\r\n", "Date: one\r\n"), 47),
        // A body that looks like a header.
        (answer("Date: Mon\r\nX-Date: 1\r\n", "Date: two\r\n"), 78),
        // The name itself, though it means the same.
        (answer("date: Mon\r\nX-Date: 1\r\n", "Date: one\r\n"), 28),
        // No such header.
        (answer("X-Date: 1\r\n", "Date: one\r\n"), 28),
        // The end of the line.
        (answer("Date: Mon\nX-Date: 1\r\n", "Date: one\r\n"), 37),
    ] {
        assert_eq!(both(&date, &a, &other), Err(at), "{other}");
    }
    // Without masks, all of it counts.
    let other = answer("Date: Tue\r\nX-Date: 1\r\n", "Date: one\r\n");
    assert_eq!(both(&[], &a, &other), Err(34));
}

#[test]
fn heads_are_found_behind_bodies_of_every_kind() {
    let date = [header("Date")];
    let chunked = |date: &str| {
        format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n{date}\r\n\
             b;x=y\r\nDate: one\r\n\r\n0\r\nDate: x\r\n\r\n"
        )
    };
    let small =
        |date: &str| format!("HTTP/1.1 304 Not Modified\r\n{date}Content-Length: 5\r\n\r\n");
    let head = |date: &str| format!("HTTP/1.1 200 OK\r\n{date}Content-Length: 500\r\n\r\n");
    let bodies: [&dyn Fn(&str) -> String; 6] = [
        &|date| answer(date, "Date: one\r\n"),
        &|date| answer(date, ""),
        &chunked,
        &small,
        &head,
        &|date| format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 204 No\r\n{date}\r\n"),
    ];
    for first in &bodies {
        for second in &bodies {
            let both_with =
                |date: &str| format!("{}{}{}", first(date), second(date), answer(date, "end"));
            let one = both_with("Date: 1\r\n");
            both(&date, &one, &both_with("Date: another\r\n")).unwrap();
        }
    }
    // Bodies and trailers are compared.
    let one = chunked("Date: 1\r\n");
    both(&date, &one, &one.replacen("one", "two", 1)).unwrap_err();
    both(&date, &one, &one.replacen("Date: x", "Date: y", 1)).unwrap_err();
}

#[test]
fn what_is_no_http_is_compared() {
    let date = [header("Date")];
    for text in [
        "+OK\r\nDate: 1\r\n",
        "HTTP/1.1 200 OK\r\n\r\nDate: 1\r\n",
        "HTTP/1.1 101 Switching\r\n\r\nHTTP/1.1 200 OK\r\nDate: 1\r\n",
    ] {
        both(&date, text, &text.replace("Date: 1", "Date: 2")).unwrap_err();
    }
    // A value that is too long is compared, and the head goes on.
    let long = "x".repeat(9000);
    let one = answer(&format!("Date: {long}1\r\nDate: 1\r\n"), "");
    both(&date, &one, &one.replace("\r\nDate: 1", "\r\nDate: 2")).unwrap();
    both(&date, &one, &one.replace("x1\r", "x2\r")).unwrap_err();
}

#[test]
fn a_pattern_hides_its_groups_on_one_line() {
    let sid = [pattern("sid=([0-9a-f]{4})(?:;|$)")];
    let one = "a sid=0123; sid=4567\r\nb\n";
    both(&sid, one, "a sid=89ab; sid=cdef\r\nb\n").unwrap();
    for (other, at) in [
        ("a sid=012x; sid=4567\r\nb\n", 6),
        ("a sid=0123, sid=4567\r\nb\n", 6),
        ("a sid=0123; sid=\n4567\r\nb\n", 16),
        ("a sid=; sid=4567\r\nb\n", 6),
        ("a sid=0123; sid=4567\r\nc\n", 22),
    ] {
        assert_eq!(both(&sid, one, other), Err(at), "{other}");
    }
    // A length that depends on what is hidden differs, unless it is hidden too.
    let var = [pattern("id=([0-9]+)")];
    let (one, other) = (answer("", "id=9;"), answer("", "id=10;"));
    both(&var, &one, &other).unwrap_err();
    both(&[var[0].clone(), header("Content-Length")], &one, &other).unwrap();
}

#[test]
fn a_marker_cannot_be_said() {
    // What is hidden must be there: leaving it out is a difference, whatever stands there instead.
    let sid = [pattern("sid=([0-9]{4})")];
    both(&sid, "sid=1234\n", "sid=\n").unwrap_err();
    both(&sid, "sid=1234\n", "sid=pattern\n").unwrap_err();
}

#[test]
fn a_prompt_passes_when_it_is_flushed() {
    let mut m = stream(&[pattern("sid=([0-9]{4})")], 2);
    for (r, text) in [(0, "sid=1111\nlogin: "), (1, "sid=2222\nlogin: ")] {
        m.push(R[r], text.as_bytes()).unwrap();
    }
    let mut out = Vec::new();
    m.take_released(&mut out);
    assert_eq!(out, b"sid=1111\n");
    assert_eq!(
        (m.held_back(R[0]), m.flush(R[0]), m.held_back(R[0])),
        (7, false, 0)
    );
    assert!(m.flush(R[1]));
    m.take_released(&mut out);
    assert_eq!(out, b"sid=1111\nlogin: ");
    // The rest of that line is compared; the next one is masked again.
    for (r, text) in [(0, "x\nsid=3\nsid=3333\n"), (1, "x\nsid=3\nsid=4444\n")] {
        m.push(R[r], text.as_bytes()).unwrap();
    }
    m.take_released(&mut out);
    assert_eq!(out, b"sid=1111\nlogin: x\nsid=3\nsid=3333\n");
}

#[test]
fn the_speaker_stays_the_same_while_it_lives() {
    let mut m = stream(&[pattern("t=([0-9])")], 3);
    let mut out = String::new();
    let mut say = |m: &mut StreamMatcher, r: usize| {
        m.push(R[r], format!("t={r}\n").as_bytes()).unwrap();
        let mut bytes = Vec::new();
        m.take_released(&mut bytes);
        out.push_str(std::str::from_utf8(&bytes).unwrap());
    };
    // Replica 0 is late at first: of the others the lower one speaks, and goes on to.
    for r in [1, 2, 0, 0, 2, 1, 0, 1, 2] {
        say(&mut m, r);
    }
    m.leave(R[1]);
    say(&mut m, 2);
    say(&mut m, 0);
    assert_eq!(m.differences(), []);
    assert_eq!(out, "t=1\nt=0\nt=0\nt=0\n");
}

#[test]
fn tokens_are_put_back_into_inputs() {
    let sid = Mask {
        translate: true,
        ..pattern("sid=([0-9a-z]{10})")
    };
    let mut m = stream(&[sid], 3);
    let mut translator = Translator::new();
    for (r, token) in R
        .into_iter()
        .zip(["aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc"])
    {
        m.push(r, format!("sid={token}\n").as_bytes()).unwrap();
        let mut out = Vec::new();
        m.take_released(&mut out);
        if r == R[1] {
            assert_eq!(out, b"sid=aaaaaaaaaa\n");
        }
    }
    let all = m.translations();
    assert_eq!(all.len(), 2, "of the one behind too: {all:?}");
    all.into_iter().for_each(|t| translator.learn(t));
    let mut tails = [const { Vec::new() }; 3];
    let mut inbound = |r: usize, text: &str| {
        String::from_utf8(translator.inbound(R[r], &mut tails[r], text.as_bytes())).unwrap()
    };
    let get = "GET /?sid=aaaaaaaaaa&x=aaaa HTTP/1.1\r\n";
    assert_eq!(inbound(0, get), get);
    assert_eq!(inbound(1, get), get.replace("aaaaaaaaaa", "bbbbbbbbbb"));
    assert_eq!(inbound(2, get), get.replace("aaaaaaaaaa", "cccccccccc"));
    // In two fragments.
    assert_eq!(inbound(1, "sid=aaaaaaaaa"), "sid=");
    assert_eq!(inbound(1, "a;"), "bbbbbbbbbb;");
    assert_eq!(inbound(1, "sid=aaaaaaaa"), "sid=");
    assert_eq!(inbound(1, ".\n"), "aaaaaaaa.\n");
    // Of another length, or too short: not translated.
    for (own, released) in [(&b"1234567890"[..], &b"123456789"[..]), (b"1234", b"5678")] {
        translator.learn(Translation {
            replica: R[1],
            own: own.into(),
            released: released.into(),
        });
    }
    assert_eq!((translator.len(), translator.refused()), (1, 2));
}

#[test]
fn datagrams_and_lines_are_masked_too() {
    let voters = Voters::majority(2, KEY).unwrap();
    let set = MaskSet::new(&[pattern(r"^\[ *[0-9.]+\]")]).unwrap();
    let mut m = DatagramMatcher::new(&voters, PoolLimits::default(), Some(&set));
    m.push(R[1], 7, b"[1.5]x", 0).unwrap();
    m.push(R[1], 7, b"[1.6]x", 0).unwrap();
    m.push(R[0], 8, b"[ 2.0]x", 0).unwrap();
    assert_eq!(m.take_released(), None);
    m.push(R[0], 7, b"[ 2.1]x", 0).unwrap();
    m.push(R[0], 7, b"[ 2.2]x", 0).unwrap();
    for text in [b"[ 2.1]x", b"[ 2.2]x"] {
        let d = m.take_released().unwrap();
        assert_eq!((d.flow, &d.bytes[..]), (7, &text[..]));
    }
    let mut m = ConsoleMatcher::new(&voters, PoolLimits::default(), Some(&set));
    m.push(R[0], b"[0.1] one\n[0.2] two\nlogin: ", 0).unwrap();
    m.push(R[1], b"[0.3] t", 0).unwrap();
    m.push(R[1], b"wo\n[0.4] one\nlogin: ", 0).unwrap();
    let mut out = Vec::new();
    m.take_released(&mut out);
    assert_eq!(String::from_utf8_lossy(&out), "[0.2] two\n[0.1] one\n");
    for r in &R[..2] {
        assert_eq!(m.held_back(*r), 7);
        m.flush(*r, 0).unwrap();
    }
    m.take_released(&mut out);
    assert!(out.ends_with(b"login: "));
}

#[test]
fn rules_that_cannot_be_used_are_refused() {
    let error = |mask| MaskSet::new(&[mask]).unwrap_err();
    assert!(matches!(error(pattern("(")), MaskError::Pattern { .. }));
    assert!(matches!(error(pattern("a*")), MaskError::Empty(_)));
    assert!(matches!(error(header("")), MaskError::Header(_)));
    let many = vec![header("Date"); 65];
    assert_eq!(MaskSet::new(&many).unwrap_err(), MaskError::TooMany(65));
}

#[test]
fn who_comes_back_goes_on_in_the_middle_of_a_line() {
    let mut m = stream(&[pattern("t=([0-9]+)"), header("Date")], 3);
    for r in R {
        m.push(r, b"HTTP/1.1 200 OK\r\nDate: M").unwrap();
    }
    m.mark(R[2]);
    let at = m.own_position(R[2]);
    assert_eq!(at, 24);
    for r in R {
        m.push(r, b"on\r\nContent-Length: 4\r\n\r\nt=12").unwrap();
    }
    m.leave(R[2]);
    m.enter(R[2], at);
    m.push(R[2], b"ay\r\nContent-Length: 4\r\n\r\nt=34")
        .unwrap();
    assert!(m.takes_part(R[2]));
    assert_eq!(m.differences(), []);
    m.leave(R[0]);
    for r in [1, 2] {
        m.push(R[r], b"HTTP/1.1 204 x\r\n\r\n").unwrap();
    }
    let mut out = Vec::new();
    m.take_released(&mut out);
    assert!(out.ends_with(b"t=12HTTP/1.1 204 x\r\n\r\n"));
    // Where no checkpoint was, nobody knows.
    m.leave(R[2]);
    m.enter(R[2], at + 1);
    assert!(!m.takes_part(R[2]));
}

/// Pieces of HTTP answers and of lines, many of which are masked.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("HTTP/1.1 200 OK\r\n".to_owned()),
        Just("HTTP/1.1 304 No\r\n".to_owned()),
        Just("Content-Length: 5\r\n".to_owned()),
        Just("Transfer-Encoding: chunked\r\n".to_owned()),
        Just("\r\n".to_owned()),
        Just("5\r\nhello\r\n".to_owned()),
        Just("0\r\n\r\n".to_owned()),
        Just("HTTP/1".to_owned()),
        "Date: [a-c]{0,9}\r\n",
        "id=[0-9]{1,3}[ \n]",
        "[a:\r\n ]{0,4}",
        Just("x".repeat(8190)),
    ];
    prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    /// However a stream is cut into fragments, it is the same: masked replicas of it agree, and what is released is what
    /// the speaker said.
    #[test]
    fn fragments_make_no_difference(
        text in text(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        date in "[a-z]{0,20}",
    ) {
        let mut m = stream(&[header("Date"), pattern("id=([0-9]+)")], 2);
        // Only the first value is another one, if it is one at all.
        let other = text.replacen("Date: ", &format!("Date: {date}"), 1);
        let hidden = both(&[header("Date"), pattern("id=([0-9]+)")], &text, &other).is_ok();
        let other = if hidden { other } else { text.clone() };
        m.push(R[0], text.as_bytes()).unwrap();
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(other.len() + 1)).collect();
        cuts.extend([0, other.len()]);
        cuts.sort_unstable();
        let mut out = Vec::new();
        for pair in cuts.windows(2) {
            m.push(R[1], &other.as_bytes()[pair[0]..pair[1]]).unwrap();
            m.take_released(&mut out);
        }
        m.end(R[0], EndOfStream::Shut);
        m.end(R[1], EndOfStream::Shut);
        prop_assert_eq!(m.take_released(&mut out), Some(EndOfStream::Shut));
        prop_assert_eq!(out, text.into_bytes());
        prop_assert_eq!(m.undecided(), None);
    }
}

#[test]
fn who_differed_behind_a_mask_is_compared_again_from_the_next_request_on() {
    let mut m = stream(&[header("Date")], 3);
    let date = |day: u8, body: &str| answer(&format!("Date: day {day} of the month\r\n"), body);
    let mut out = Vec::new();
    for (round, body) in ["same", "another", "same", "other", "same"]
        .into_iter()
        .enumerate()
    {
        let answered = m.released();
        m.rejoin(R[1], answered);
        let day = round as u8;
        for r in [R[0], R[2]] {
            m.push(r, date(day, "same").as_bytes()).unwrap();
        }
        m.take_released(&mut out);
        m.push(R[1], date(day + 10, body).as_bytes()).unwrap();
        let differs: Vec<_> = m.differences().into_iter().map(|d| d.replica).collect();
        let expected: &[ReplicaId] = if body == "same" { &[] } else { &[R[1]] };
        assert_eq!(differs, expected, "round {round}");
    }
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.matches("same").count(), 5);
    // The others have gone on: how many values they hid meanwhile is not known at the place where it stood.
    let answered = m.released();
    m.push(R[1], b"HTTP/1.1 500 No\r\n\r\n").unwrap();
    for r in [R[0], R[2]] {
        m.push(r, date(9, "same").as_bytes()).unwrap();
    }
    assert_eq!(m.differences().len(), 1);
    assert!(!m.rejoin(R[1], answered));
}
