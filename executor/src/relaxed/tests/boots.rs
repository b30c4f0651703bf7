//! Guests that boot by themselves, and not equally fast. Who is [`Manner::Hung`] here has not booted yet.

use super::*;

/// Longer than the lag timeout.
const BOOT: Duration = Duration::from_secs(3);

fn booting(manners: &[Manner]) -> Set {
    let mut settings = settings(&vec![Role::Voter; manners.len()], Policy::Majority);
    settings.listens = vec![80];
    settings.boot_timeout = BOOT;
    Set::with(settings, manners)
}

impl Set {
    fn served(&self) -> bool {
        self.hub.is_served(&self.hub.lock())
    }

    fn told(&self, wanted: impl Fn(&crate::events::Event) -> bool) -> bool {
        let events = self.hub.events.recent();
        events.iter().any(|logged| wanted(&logged.event))
    }

    /// Lets the fair clock go on.
    fn pass(&self, time: Duration) {
        let now = |set: &Set| set.hub.lock().fair.at(std::time::Instant::now());
        let until = now(self) + time.as_nanos() as u64;
        self.until("time passes", |set| now(set) >= until);
    }
}

#[test]
fn a_quorum_that_has_booted_serves_and_the_last_one_catches_up() {
    let set = booting(&[Manner::Echo, Manner::Hung, Manner::Hung]);
    let mut client = set.connect();
    client.write_all(b"early").unwrap();
    set.pass(Duration::from_millis(300));
    assert!(!set.served(), "one of three is no quorum");
    set.becomes(1, Manner::Echo);
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"early");
    assert!(set.served());
    let (mut second, lag) = (set.connect(), set.hub.settings.lag_timeout);
    for _ in 0..3 {
        assert_eq!(set.ask(&mut client, b"first"), b"first");
        assert_eq!(set.ask(&mut second, b"other"), b"other");
        set.pass(lag / 2);
    }
    assert_eq!(set.alive(), [true; 3], "the last one may be late");
    assert!(set.hub.boots(&set.hub.lock().members[2]));
    set.becomes(2, Manner::Echo);
    set.until("it has said what the others said", |set| {
        let inner = set.hub.lock();
        inner
            .channels
            .values()
            .all(|channel| channel.matcher.behind(id(2)) == 0)
    });
    set.hub.kill(0).unwrap();
    assert_eq!(set.ask(&mut client, b"still"), b"still", "its word counts");
    set.pass(2 * lag);
    assert_eq!(set.alive(), [false, true, true]);
}

/// A replica that boots later has yet to say what the others have, before it is told that they broke the connection off.
#[test]
fn what_a_quorum_breaks_off_is_not_taken_from_the_last_one() {
    let set = booting(&[
        Manner::EchoesAndResets,
        Manner::EchoesAndResets,
        Manner::Hung,
    ]);
    let mut client = set.connect();
    client.write_all(b"x").unwrap();
    let mut answer = Vec::new();
    // The reset may overtake what it was sent.
    assert!(client.read_to_end(&mut answer).is_err(), "it is reset");
    let channels = |set: &Set| set.hub.lock().channels.len();
    set.until("the front has forgotten it", |set| {
        set.hub.lock().channels.values().all(|channel| channel.over)
    });
    assert_eq!(channels(&set), 1, "it is kept for the last one");
    let events = set.hub.lock().log.events();
    assert_eq!(events, 2, "opened, and a byte");
    set.becomes(2, Manner::EchoesAndResets);
    set.until("all have broken it off", |set| channels(set) == 0);
    let events = set.hub.lock().log.events();
    assert_eq!(events, 3, "now it is over for the guests, too");
    assert_eq!(set.alive(), [true; 3]);
}

#[test]
fn who_has_not_booted_in_time_is_a_laggard_like_any_other() {
    let set = booting(&[Manner::Echo, Manner::Echo, Manner::Hung]);
    let mut client = set.connect();
    assert_eq!(set.ask(&mut client, b"hello"), b"hello");
    set.until("it is stopped", |set| !set.alive()[2]);
    assert!(set.hub.lock().fair.at(std::time::Instant::now()) >= BOOT.as_nanos() as u64);
    assert!(set.told(|event| matches!(
        event,
        crate::events::Event::NobodyListens { replica: 2, ports, .. } if *ports == [80]
    )));
    assert_eq!(set.ask(&mut client, b"again"), b"again");
}

#[test]
fn a_port_that_nobody_listens_on_does_not_keep_the_set_from_being_ready() {
    let mut settings = settings(&[Role::Voter; 3], Policy::Majority);
    settings.listens = vec![80, 81];
    settings.boot_timeout = BOOT;
    let set = Set::with(settings, &[Manner::Echo; 3]);
    set.until("all have booted as far as they do", |set| {
        let inner = set.hub.lock();
        let missing = |me: usize| set.hub.missing(&inner.members[me]).collect::<Vec<_>>();
        (0..3).all(|me| missing(me) == [81])
    });
    assert!(!set.served());
    let mut client = set.connect();
    assert_eq!(set.ask(&mut client, b"hello"), b"hello", "the other port");
    set.until("its time is over", Set::served);
    for me in 0..3 {
        assert!(set.told(|event| matches!(
            event,
            crate::events::Event::NobodyListens { replica, ports, .. } if *replica == me && *ports == [81]
        )));
    }
}

#[test]
fn a_primary_that_has_booted_is_enough_and_a_canary_never_is() {
    let roles = [Role::Primary, Role::Voter, Role::Canary];
    let policy = Policy::Primary {
        replica: ReplicaId(0),
    };
    let mut settings = settings(&roles, policy);
    settings.listens = vec![80];
    settings.boot_timeout = Duration::from_secs(600);
    let set = Set::with(settings, &[Manner::Hung, Manner::Echo, Manner::Echo]);
    set.until("they have booted", |set| {
        let inner = set.hub.lock();
        (1..3).all(|me| !set.hub.boots(&inner.members[me]))
    });
    assert!(!set.served());
    set.becomes(0, Manner::Echo);
    set.until("the primary serves", Set::served);
}
