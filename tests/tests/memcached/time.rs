//! What time does: values that expire, later flushes. Both clocks go on by themselves, so these wait until something is the case.

use std::time::{Duration, Instant, SystemTime};

use quorate_tests::one_at_a_time;
use quorate_tests::wire::{Wire, shown};

use crate::{Both, reply};

/// How long something may take that must come within about three seconds.
const LONG: Duration = Duration::from_secs(30);
/// memcached counts whole seconds, and starts anywhere in one.
const COARSE: Duration = Duration::from_millis(1100);

/// Asks until the answer is `expected`; until then it is `before`. How long that took.
fn until(wire: &mut Wire, request: &str, before: &str, expected: &str) -> Duration {
    let started = Instant::now();
    loop {
        wire.send(request.as_bytes()).unwrap();
        let answer = reply(wire);
        if answer == expected.as_bytes() {
            return started.elapsed();
        }
        assert_eq!(shown(&answer), before, "{request}");
        assert!(started.elapsed() < LONG, "{request} is still {before}");
    }
}

fn say(wire: &mut Wire, request: &str, expected: &str) {
    wire.send(request.as_bytes()).unwrap();
    assert_eq!(shown(&reply(wire)), expected, "{request}");
}

#[test]
fn values_expire_when_they_should() {
    let _turn = one_at_a_time("memcached: expiry, touch, a flush in the future");
    let both = Both::start();
    for (name, address) in ["native", "set"].into_iter().zip(both.addresses()) {
        let mut wire = Wire::connect(address).unwrap();
        let value = "VALUE a 0 1\r\nx\r\nEND\r\n";
        say(&mut wire, "set a 0 3 1\r\nx\r\n", "STORED\r\n");
        let took = until(&mut wire, "get a\r\n", value, "END\r\n");
        let three = Duration::from_secs(3);
        assert!(
            took >= three - COARSE && took <= three + COARSE,
            "{name}: {took:?}"
        );
        // By a time of the calendar: now and two seconds.
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        say(
            &mut wire,
            &format!("set a 0 {} 1\r\nx\r\n", now + 2),
            "STORED\r\n",
        );
        let calendar = until(&mut wire, "get a\r\n", value, "END\r\n");
        assert!(
            calendar <= Duration::from_secs(2) + COARSE,
            "{name}: {calendar:?}"
        );
        say(
            &mut wire,
            &format!("set a 0 {} 1\r\nx\r\n", now - 10),
            "STORED\r\n",
        );
        say(&mut wire, "get a\r\n", "END\r\n");
        // It would go, but is touched; and one that would stay is touched to go.
        say(&mut wire, "set a 0 2 1\r\nx\r\n", "STORED\r\n");
        say(&mut wire, "touch a 1000\r\n", "TOUCHED\r\n");
        say(&mut wire, "set b 0 0 1\r\nx\r\n", "STORED\r\n");
        say(&mut wire, "gat 2 b\r\n", "VALUE b 0 1\r\nx\r\nEND\r\n");
        until(
            &mut wire,
            "get b\r\n",
            "VALUE b 0 1\r\nx\r\nEND\r\n",
            "END\r\n",
        );
        say(&mut wire, "get a\r\n", value);
        say(&mut wire, "flush_all 2\r\n", "OK\r\n");
        until(&mut wire, "get a\r\n", value, "END\r\n");
        say(&mut wire, "add a 0 0 1\r\nx\r\n", "STORED\r\n");
        println!("  {name}: three seconds took {took:?}, two {calendar:?}");
    }
    both.finish();
}
