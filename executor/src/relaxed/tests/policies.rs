//! Whose word counts.

use super::*;

fn primary(replica: u8) -> Policy {
    Policy::Primary {
        replica: id(replica),
    }
}

#[test]
fn the_primarys_answer_counts_and_the_new_versions_is_reported() {
    let mut settings = settings(&[Role::Primary, Role::Voter], primary(0));
    settings.stop_who_differs = false;
    let set = Set::with(settings, &[Manner::Echo, Manner::Wrong]);
    let mut client = set.connect();
    assert_eq!(set.ask(&mut client, b"abcdef"), b"abcdef");
    assert_eq!(set.ask(&mut client, b"more"), b"more");
    set.until("it is reported", |set| {
        set.hub.lock().report.of(1).count == 1
    });
    assert_eq!(set.alive(), [true; 2]);
}

#[test]
fn an_answer_waits_for_the_new_version_only_so_long() {
    let mut settings = settings(&[Role::Primary, Role::Voter], primary(0));
    settings.stop_who_differs = false;
    settings.lag_timeout = Duration::from_secs(60);
    let set = Set::with(settings, &[Manner::Echo, Manner::Mute]);
    let mut client = set.connect();
    assert_eq!(set.ask(&mut client, b"abcdef"), b"abcdef");
    assert_eq!(set.alive(), [true; 2]);
}

#[test]
fn the_old_version_goes_on_when_the_new_one_crashes() {
    let set = Set::with(
        settings(&[Role::Primary, Role::Voter], primary(0)),
        &[Manner::Echo, Manner::Hung],
    );
    let mut client = set.connect();
    client.write_all(b"fatal").unwrap();
    set.until("the request is under way", |set| {
        set.hub.lock().log.events() == 2
    });
    set.hub.fell(1, "it crashed".to_owned(), true);
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"fatal");
    assert_eq!(set.ask(&mut client, b"and on"), b"and on");
    assert!(set.end().is_none());
}

#[test]
fn a_canary_is_compared_and_never_counts_nor_delays() {
    let roles = [Role::Voter, Role::Voter, Role::Canary];
    let set = Set::with(
        settings(&roles, Policy::Majority),
        &[Manner::Echo, Manner::Echo, Manner::Wrong],
    );
    let mut client = set.connect();
    assert_eq!(set.ask(&mut client, b"abcdef"), b"abcdef");
    set.until("it is reported", |set| {
        set.hub.lock().report.of(2).count == 1
    });
    assert_eq!(set.alive(), [true; 3], "it is only compared");
    // Two voters must both agree; the canary's vote is none.
    set.becomes(1, Manner::Hung);
    client.write_all(b"more").unwrap();
    client
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert!(client.read(&mut [0; 4]).is_err(), "nothing was agreed");
}
