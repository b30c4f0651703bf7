//! One recording, many machines: an appliance under load is recorded, and the recorded input gives the same fingerprint in every
//! layout, every time (R1, R8).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use quorate_devices::Entry;
use quorate_executor::console::Console;
use quorate_executor::egress::Item;
use quorate_executor::events::Event;
use quorate_executor::exit::ExitCode;
use quorate_executor::launch::{Hooks, Options, Plan};
use quorate_executor::replay::replay;
use quorate_executor::scratch::Scratch;
use quorate_images::Appliance;
use quorate_tests::load::Load;
use quorate_tests::wire::Wire;
use quorate_tests::{one_at_a_time, repository};
use quorate_vmm::{LayoutKind, open_kvm};

const LONG: Duration = Duration::from_secs(60);

/// A run of three replicas, and everything that went into them.
struct Record {
    plan: Plan,
    entries: Vec<Arc<Entry>>,
    fingerprint: String,
}

/// Runs an appliance of the repository in three replicas, does `work` at the address where its `port` is published, and stops.
fn record(name: &str, port: u16, work: impl FnOnce(SocketAddr)) -> Record {
    let path = repository().join(format!("images/appliances/{name}.toml"));
    let appliance = Appliance::load(path).unwrap();
    let options = Options {
        replicas: Some(3),
        layout: Some(LayoutKind::Random),
        seed: Some("determinism".to_owned()),
        publish: vec![format!("127.0.0.1:0:{port}").parse().unwrap()],
        ..Options::default()
    };
    let plan = Plan::new(&appliance, &options, &|_| {}).unwrap();
    let entries = Arc::<Mutex<Vec<Arc<Entry>>>>::default();
    let recorded = Arc::clone(&entries);
    let (ready, is_ready) = mpsc::channel();
    let running = plan
        .clone()
        .start(Hooks {
            events: Box::new(move |logged| {
                if matches!(logged.event, Event::Ready { .. }) {
                    // Nobody may be waiting any more.
                    let _ = ready.send(());
                }
            }),
            console: Arc::new(Console::start(std::io::sink()).unwrap()),
            recorder: None,
            tap: Some(Box::new(move |item| {
                if let Item::Entry { entry, .. } = item {
                    recorded.lock().unwrap().push(Arc::clone(entry));
                }
            })),
        })
        .unwrap();
    is_ready.recv_timeout(LONG).unwrap();
    let (_, address) = running.addresses()[0].clone();
    work(address);
    running.set.stop(false);
    let summary = running.wait();
    assert_eq!(
        summary.end.exit_code(),
        ExitCode::Success,
        "{name}: {}",
        summary.end
    );
    assert_eq!(summary.status.running, 3, "{name}");
    let fingerprint = summary.status.fingerprint.clone();
    let entries = entries.lock().unwrap().clone();
    println!(
        "  {name}: {} entries, {} outputs: {fingerprint}",
        entries.len(),
        summary.status.releases
    );
    Record {
        plan,
        entries,
        fingerprint,
    }
}

#[test]
fn the_recorded_input_of_redis_gives_one_fingerprint() {
    let _turn = one_at_a_time(
        "three replicas of Redis under load, recorded; then the record in five machines",
    );
    let Record {
        plan,
        entries,
        fingerprint,
    } = record("redis", 6379, |address| {
        let load = Load::start(address, 8, 5);
        assert!(load.wait_for_progress(3000, LONG));
        let seen = load.finish();
        assert!(seen.wrong.is_empty() && seen.ended.is_empty(), "{seen:?}");
    });
    let fingerprint = &fingerprint;
    let kvm = open_kvm().unwrap();
    let seed = plan.set.seed;
    // The layouts that the set had, one of them twice, and two that it had not.
    let layouts = [
        seed.layout(0, 0),
        seed.layout(1, 0),
        seed.layout(1, 0),
        seed.layout(0, 7),
        seed.layout(2, 9),
    ];
    for (number, layout) in layouts.into_iter().enumerate() {
        let mut machine = plan.build(&kvm, 0, layout).unwrap();
        let replayed = replay(&mut machine, &entries, &mut Scratch::default()).unwrap();
        assert!(replayed.exited);
        assert_eq!(
            replayed.fingerprint.to_hex().as_str(),
            fingerprint,
            "machine {number}"
        );
    }
    // This test can fail: other input gives another fingerprint.
    let mut other = entries.clone();
    let middle = other
        .iter()
        .position(|entry| !entry.frames.is_empty())
        .unwrap();
    other[middle] = Arc::new(Entry {
        realtime_ns: entries[middle].realtime_ns + 3_600_000_000_000,
        frames: Vec::new(),
        ..(*entries[middle]).clone()
    });
    let mut machine = plan.build(&kvm, 0, seed.layout(0, 0)).unwrap();
    let differs = replay(&mut machine, &other, &mut Scratch::default())
        .map(|replayed| replayed.fingerprint.to_hex().to_string());
    assert_ne!(differs.as_ref().ok(), Some(fingerprint));
}

/// Requests of each of several connections at once.
const REQUESTS: usize = 40;
const CONNECTIONS: usize = 8;

/// Sends `request` again and again over several connections; every answer ends with `end`. With `anew`, each is sent over a
/// connection of its own.
fn ask(address: SocketAddr, request: &str, end: &str, anew: bool) {
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut wire = Wire::connect(address).unwrap();
                for _ in 0..REQUESTS {
                    if anew {
                        wire = Wire::connect(address).unwrap();
                    }
                    wire.send(request.as_bytes()).unwrap();
                    wire.take_until(end.as_bytes()).unwrap();
                }
            });
        }
    });
}

#[test]
fn the_recorded_input_of_other_appliances_gives_one_fingerprint() {
    let _turn = one_at_a_time(
        "web servers and memcached in three replicas, recorded; then the records in other layouts",
    );
    let page = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let script = "GET /cgi-bin/hello?a HTTP/1.1\r\nHost: a\r\n\r\n";
    let key = "set key 0 0 3\r\nabc\r\nincr n 1\r\ngets key n\r\n";
    let of_page = "majority.</p>\n";
    for (name, port, request, end, anew) in [
        ("nginx", 80, page, of_page, false),
        ("nginx-workers", 80, page, of_page, false),
        ("lighttpd", 80, page, of_page, false),
        ("busybox-httpd", 80, script, ", query a\n", true),
        ("memcached", 11211, key, "END\r\n", false),
    ] {
        let record = record(name, port, |address| ask(address, request, end, anew));
        let kvm = open_kvm().unwrap();
        let seed = record.plan.set.seed;
        // One that the set had, two that it had not.
        for layout in [seed.layout(1, 0), seed.layout(0, 7), seed.layout(2, 9)] {
            let mut machine = record.plan.build(&kvm, 0, layout).unwrap();
            let replayed = replay(&mut machine, &record.entries, &mut Scratch::default()).unwrap();
            assert!(replayed.exited, "{name}");
            assert_eq!(
                replayed.fingerprint.to_hex().as_str(),
                record.fingerprint,
                "{name}"
            );
        }
    }
}
