//! What clients see of replicas that agree.

use super::*;
use crate::relaxed::hub::CONNECTION_INPUT;

#[test]
fn sets_of_all_sizes_answer() {
    for replicas in [1, 2, 3, 5] {
        let set = Set::of(&vec![Manner::Echo; replicas]);
        let mut client = set.connect();
        assert_eq!(set.ask(&mut client, b"hello"), b"hello", "{replicas}");
        assert_eq!(set.ask(&mut client, b"again"), b"again");
        assert_eq!(set.alive(), vec![true; replicas]);
    }
}

#[test]
fn an_end_is_passed_on_in_both_directions() {
    let set = Set::of(&[Manner::Echo; 3]);
    let mut client = set.connect();
    client.write_all(b"all of it").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"all of it");
    set.until("the connection is forgotten", |set| {
        set.hub.lock().channels.is_empty()
    });
}

#[test]
fn what_all_refuse_or_break_off_is_reset() {
    for manner in [Manner::Refuses, Manner::Resets] {
        let set = Set::of(&[manner; 3]);
        let mut client = set.connect();
        // The reset may be there before anything is written.
        let _ = client.write_all(b"x");
        let error = client.read(&mut [0; 8]).unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset,
            "{manner:?}"
        );
        set.until("the connection is forgotten", |set| {
            set.hub.lock().channels.is_empty()
        });
        assert_eq!(set.alive(), [true; 3]);
    }
}

#[test]
fn a_client_that_breaks_off_is_told_to_the_guests() {
    let set = Set::of(&[Manner::Echo; 3]);
    let client = set.connect();
    crate::gateway::reset_on_close(&client);
    drop(client);
    set.until("it was opened, reset and forgotten", |set| {
        let inner = set.hub.lock();
        inner.log.events() == 2 && inner.channels.is_empty()
    });
}

#[test]
fn requests_of_many_connections_have_one_order() {
    let set = Set::of(&[Manner::Counts; 3]);
    let threads: Vec<_> = (0..20)
        .map(|_| {
            let mut client = set.connect();
            std::thread::spawn(move || {
                let mut numbers = Vec::new();
                let mut rest = Vec::new();
                for _ in 0..50 {
                    client.write_all(b"INCR\n").unwrap();
                    while !rest.contains(&b'\n') {
                        let mut piece = [0; 64];
                        let count = client.read(&mut piece).unwrap();
                        assert_ne!(count, 0, "the connection ended");
                        rest.extend_from_slice(&piece[..count]);
                    }
                    let text = String::from_utf8(std::mem::take(&mut rest)).unwrap();
                    numbers.push(text.trim().parse::<u64>().unwrap());
                }
                numbers
            })
        })
        .collect();
    let mut all: Vec<u64> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    all.sort_unstable();
    assert_eq!(all, (1..=1000).collect::<Vec<_>>());
    assert_eq!(set.alive(), [true; 3], "nobody differed");
}

#[test]
fn a_large_stream_passes_and_every_bound_holds() {
    let set = Set::of(&[Manner::Echo; 3]);
    let mut client = set.connect();
    let total = 8 << 20;
    let mut writer = client.try_clone().unwrap();
    let byte = |at: usize| (at / 7 % 251) as u8;
    let writing = std::thread::spawn(move || {
        let data: Vec<u8> = (0..total).map(byte).collect();
        writer.write_all(&data).unwrap();
    });
    let mut at = 0;
    let mut piece = vec![0; 64 << 10];
    while at < total {
        let count = client.read(&mut piece).unwrap();
        assert_ne!(count, 0, "the connection ended at {at}");
        for (offset, got) in piece[..count].iter().enumerate() {
            assert_eq!(*got, byte(at + offset), "byte {}", at + offset);
        }
        at += count;
        assert!(set.hub.lock().log.cost() <= 2 << 20);
    }
    writing.join().unwrap();
}

#[test]
fn a_guest_that_does_not_read_stops_the_reading_of_its_client_alone() {
    let set = Set::of(&[Manner::Hung; 1]);
    let client = set.connect();
    client.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut stuck = 0;
    while stuck < 20 {
        match (&client).write(&[1; 4096]) {
            Ok(count) => (sent, stuck) = (sent + count, 0),
            Err(_) => {
                stuck += 1;
                set.hub.over.wait(Some(Duration::from_millis(10)));
            }
        }
        assert!(sent < 64 << 20, "the client is read for ever");
    }
    let owed = set.hub.lock().channels.values().next().unwrap().owed[0];
    // One read more than the bound may have been under way.
    assert!(owed <= CONNECTION_INPUT + (64 << 10), "{owed}");
}

#[test]
fn datagrams_find_their_way_back() {
    let set = Set::of(&[Manner::Echo; 3]);
    let (one, two) = (set.udp(), set.udp());
    one.send(b"one").unwrap();
    two.send(b"two").unwrap();
    let mut answer = [0; 16];
    assert_eq!(two.recv(&mut answer).unwrap(), 3);
    assert_eq!(&answer[..3], b"two");
    assert_eq!(one.recv(&mut answer).unwrap(), 3);
    assert_eq!(&answer[..3], b"one");
}

/// What is typed has one place among all inputs, and what the consoles echo is shown once.
#[test]
fn what_is_typed_goes_to_all_consoles() {
    let set = Set::of(&[Manner::Echo, Manner::Wrong, Manner::Echo]);
    set.hub.kill(1).unwrap();
    for line in ["first\n", "second\n"] {
        assert!(set.hub.type_in(line.as_bytes()));
    }
    // Without an end.
    assert!(set.hub.type_in(b"login: "));
    set.until("the console shows it", |set| {
        lock(&set.shown.0).ends_with(b"login: ")
    });
    assert_eq!(*lock(&set.shown.0), b"first\nsecond\nlogin: ");
    let events = set.hub.lock().log.events();
    assert_eq!(events, 3, "inputs like those of clients");
}
