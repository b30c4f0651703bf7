//! One replica that is wrong, silent or gone.

use super::*;

#[test]
fn one_who_differs_is_stopped_and_no_client_notices() {
    for wrong in 0..3 {
        let mut manners = [Manner::Echo; 3];
        manners[wrong] = Manner::Wrong;
        let set = Set::of(&manners);
        let mut client = set.connect();
        assert_eq!(set.ask(&mut client, b"abcdef"), b"abcdef");
        set.until("it is stopped", |set| !set.alive()[wrong]);
        assert_eq!(set.ask(&mut client, b"more"), b"more");
        let tally = set.hub.lock().report.of(wrong);
        let first = tally.first.unwrap();
        assert_eq!((tally.count, first.position), (1, 2));
        assert_eq!(first.request.as_deref(), Some("abcdef"));
        assert!(set.end().is_none());
    }
}

#[test]
fn one_who_differs_is_only_reported_if_that_is_asked_for() {
    let mut settings = settings(&[Role::Voter; 3], Policy::Majority);
    settings.stop_who_differs = false;
    let set = Set::with(settings, &[Manner::Echo, Manner::Wrong, Manner::Echo]);
    for _ in 0..3 {
        let mut client = set.connect();
        assert_eq!(set.ask(&mut client, b"abcdef"), b"abcdef");
    }
    set.until("all are reported", |set| {
        set.hub.lock().report.of(1).count == 3
    });
    assert_eq!(set.alive(), [true; 3]);
}

#[test]
fn who_hangs_is_stopped_after_the_time_out() {
    let set = Set::of(&[Manner::Echo, Manner::Echo, Manner::Hung]);
    let mut client = set.connect();
    assert_eq!(
        set.ask(&mut client, b"hello"),
        b"hello",
        "the others do not wait"
    );
    set.until("it is stopped", |set| !set.alive()[2]);
    assert_eq!(set.ask(&mut client, b"again"), b"again");
}

#[test]
fn who_takes_input_and_does_not_answer_is_stopped_too() {
    let set = Set::of(&[Manner::Mute, Manner::Echo, Manner::Echo]);
    let mut client = set.connect();
    assert_eq!(set.ask(&mut client, b"hello"), b"hello");
    set.until("it is stopped", |set| !set.alive()[0]);
    assert_eq!(set.ask(&mut client, b"again"), b"again");
}

#[test]
fn all_who_hang_are_nobodys_fault() {
    let set = Set::of(&[Manner::Hung; 3]);
    let mut client = set.connect();
    client.write_all(b"hello").unwrap();
    let mut ticks = 0;
    set.until("three time-outs have passed", |_| {
        ticks += 1;
        ticks > 180
    });
    assert_eq!(set.alive(), [true; 3]);
    for me in 0..3 {
        set.becomes(me, Manner::Echo);
    }
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

#[test]
fn without_a_majority_nothing_is_released_and_the_set_ends() {
    let set = Set::of(&[Manner::Echo, Manner::Wrong]);
    let mut client = set.connect();
    client.write_all(b"abcdef").unwrap();
    set.until("the set ends", |set| set.end().is_some());
    assert!(matches!(set.end(), Some(End::NoQuorum { .. })));
    drop(set);
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    assert_eq!(answer, b"ab", "what both had said");
}

#[test]
fn two_stopped_of_three_are_too_many() {
    let set = Set::of(&[Manner::Echo; 3]);
    let mut client = set.connect();
    set.hub.kill(1).unwrap();
    assert_eq!(set.ask(&mut client, b"two are enough"), b"two are enough");
    assert!(set.hub.kill(1).unwrap_err().contains("stopped already"));
    assert!(set.hub.kill(7).unwrap_err().contains("0 to 2"));
    set.hub.kill(0).unwrap();
    assert!(matches!(set.end(), Some(End::NoQuorum { .. })));
}

#[test]
fn a_majority_of_those_who_ended_ends_the_set() {
    let set = Set::of(&[Manner::Echo; 3]);
    for (me, status) in [(0, 256), (1, 0), (2, 0)] {
        assert_eq!(set.end(), None);
        let mut inner = set.hub.lock();
        set.hub.exited(&mut inner, me, status);
    }
    let end = set.end().unwrap();
    assert!(matches!(end, End::Exited { wait_status: 0, .. }), "{end:?}");
}
