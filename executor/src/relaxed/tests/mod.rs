//! The set without virtual machines: real sockets, the real front and hub, and guests that are plain state machines.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod boots;
mod clients;
mod faults;
mod policies;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use quorate_voter::ReplicaId;
use quorate_voter::relaxed::{EndOfStream, Policy, Role, StreamLimits, Voters};

use super::front::Front;
use super::hub::{Hub, Settings};
use super::link::{ConnId, ToGuest};
use super::members::tick;
use crate::console::Console;
use crate::events::{End, EventLog, NoQuorum};
use crate::sync::lock;

/// How a fake guest behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Says back what it is told, and ends when the client does.
    Echo,
    /// The same, with the third byte of each connection changed.
    Wrong,
    /// Takes input, and says nothing.
    Mute,
    /// Takes nothing.
    Hung,
    /// Refuses connections.
    Refuses,
    /// Breaks a connection off when it was sent something.
    Resets,
    /// Says it back, and breaks the connection off.
    EchoesAndResets,
    /// Numbers requests over all connections, as INCR does.
    Counts,
}

/// A set of fake guests.
struct Set {
    hub: Arc<Hub>,
    front: Option<Front>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    manners: Arc<Mutex<Vec<Manner>>>,
    shown: Shown,
}

/// What the console showed.
#[derive(Clone, Default)]
struct Shown(Arc<Mutex<Vec<u8>>>);

impl Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn settings(roles: &[Role], policy: Policy) -> Settings {
    Settings {
        voters: Voters::new(roles, policy, [7; 32]).unwrap(),
        names: vec![String::new(); roles.len()],
        limits: StreamLimits::default(),
        masks: HashMap::new(),
        udp_masks: HashMap::new(),
        console_all: false,
        console_mask: None,
        sync: Vec::new(),
        stop_who_differs: true,
        patience: Duration::from_millis(300),
        listens: Vec::new(),
        boot_timeout: Duration::ZERO,
        lag_timeout: Duration::from_millis(600),
        log_bytes: 1 << 20,
        no_quorum: NoQuorum::Stop,
        recovery: crate::recovery::RecoveryConfig::off(),
        doubt: None,
    }
}

/// The thread of a fake guest.
fn act(hub: &Hub, me: usize, stop: &AtomicBool, manners: &Mutex<Vec<Manner>>) {
    let mut said: HashMap<ConnId, u64> = HashMap::new();
    let mut requests = 0_u64;
    let mut unsaid: HashMap<ConnId, Vec<u8>> = HashMap::new();
    while !stop.load(Ordering::Acquire) {
        hub.bells[me].wait(Some(Duration::from_millis(20)));
        let manner = lock(manners)[me];
        let mut guard = hub.lock();
        let inner = &mut *guard;
        if manner == Manner::Hung || !inner.members[me].alive || inner.end.is_some() {
            continue;
        }
        inner.members[me].exchanges += 1;
        hub.listens(inner, me, 80);
        let again = std::mem::take(&mut inner.members[me].retry);
        for conn in again {
            let waiting = unsaid.remove(&conn).unwrap_or_default();
            let taken = hub.push(inner, me, conn, &waiting);
            if taken < waiting.len() {
                unsaid.insert(conn, waiting[taken..].to_vec());
            }
        }
        let now = hub.clock.monotonic_ns();
        while let Some(batch) = inner.log.next(me, now) {
            inner.log.taken(me);
            for event in batch.events.iter() {
                match &event.what {
                    ToGuest::Open { conn, .. } if manner == Manner::Refuses => {
                        hub.push_end(inner, me, *conn, EndOfStream::Refused);
                    }
                    ToGuest::Data { conn, .. } if manner == Manner::Resets => {
                        hub.push_end(inner, me, *conn, EndOfStream::Reset);
                    }
                    ToGuest::Data { conn, bytes } => {
                        hub.acknowledged(inner, me, *conn, bytes.len() as u64);
                        let mut answer = bytes.to_vec();
                        let at = said.entry(*conn).or_default();
                        match manner {
                            Manner::Mute => continue,
                            Manner::Counts => {
                                answer.clear();
                                for _ in bytes.iter().filter(|byte| **byte == b'\n') {
                                    requests += 1;
                                    answer.extend_from_slice(format!("{requests}\n").as_bytes());
                                }
                            }
                            Manner::Wrong if (*at..*at + bytes.len() as u64).contains(&2) => {
                                answer[(2 - *at) as usize] ^= 1;
                            }
                            _ => {}
                        }
                        *at += bytes.len() as u64;
                        if let Some(waiting) = unsaid.get_mut(conn) {
                            waiting.extend_from_slice(&answer);
                            continue;
                        }
                        let taken = hub.push(inner, me, *conn, &answer);
                        if taken < answer.len() {
                            unsaid.insert(*conn, answer[taken..].to_vec());
                        }
                        if manner == Manner::EchoesAndResets {
                            hub.push_end(inner, me, *conn, EndOfStream::Reset);
                        }
                    }
                    ToGuest::Shut { conn } => {
                        hub.push_end(inner, me, *conn, EndOfStream::Shut);
                    }
                    ToGuest::Typed { bytes } => hub.console_said(inner, me, bytes),
                    ToGuest::Datagram { flow, bytes, .. } => {
                        hub.datagram_said(inner, me, *flow, bytes);
                    }
                    _ => {}
                }
            }
        }
    }
}

impl Set {
    fn of(manners: &[Manner]) -> Set {
        Set::with(
            settings(&vec![Role::Voter; manners.len()], Policy::Majority),
            manners,
        )
    }

    fn with(settings: Settings, manners: &[Manner]) -> Set {
        let events = Arc::new(EventLog::new(Box::new(|_| {})));
        let shown = Shown::default();
        let console = Arc::new(Console::start(shown.clone()).unwrap());
        let hub = Hub::new(settings, events, console);
        let publish = ["127.0.0.1:0:80", "127.0.0.1:0:53/udp"].map(|text| text.parse().unwrap());
        let front = Front::start(&hub, &publish).unwrap();
        let stop = Arc::<AtomicBool>::default();
        let manners = Arc::new(Mutex::new(manners.to_vec()));
        let mut threads = Vec::new();
        for me in 0..hub.settings.voters.len() {
            hub.built(me, Arc::new(|| {}), Vec::new());
            let (hub, stop, manners) = (Arc::clone(&hub), Arc::clone(&stop), Arc::clone(&manners));
            threads.push(std::thread::spawn(move || act(&hub, me, &stop, &manners)));
        }
        let ticking = Arc::clone(&hub);
        threads.push(std::thread::spawn(move || tick(&ticking)));
        Set {
            hub,
            front: Some(front),
            stop,
            threads,
            manners,
            shown,
        }
    }

    fn address(&self, number: usize) -> SocketAddr {
        self.front.as_ref().unwrap().addresses()[number].1
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address(0)).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        client
    }

    fn udp(&self) -> UdpSocket {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(self.address(1)).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        client
    }

    /// Asks, and waits for the answer.
    fn ask(&self, client: &mut TcpStream, request: &[u8]) -> Vec<u8> {
        client.write_all(request).unwrap();
        let mut answer = vec![0; request.len()];
        client.read_exact(&mut answer).unwrap();
        answer
    }

    fn alive(&self) -> Vec<bool> {
        self.hub.lock().members.iter().map(|m| m.alive).collect()
    }

    fn becomes(&self, me: usize, manner: Manner) {
        lock(&self.manners)[me] = manner;
    }

    /// Waits until this holds.
    fn until(&self, what: &str, mut holds: impl FnMut(&Set) -> bool) {
        for _ in 0..2000 {
            if holds(self) {
                return;
            }
            self.hub.over.wait(Some(Duration::from_millis(10)));
            if self.hub.lock().end.is_some() {
                self.hub.over.ring();
            }
        }
        panic!("never: {what}");
    }

    fn end(&self) -> Option<End> {
        self.hub.lock().end.clone()
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        self.hub.stop(true, Duration::ZERO);
        self.stop.store(true, Ordering::Release);
        self.hub.ring_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.front.take();
    }
}

fn id(me: u8) -> ReplicaId {
    ReplicaId(me)
}
