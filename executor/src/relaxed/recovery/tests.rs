//! Replicas that come back: real sockets, the real front, hub and ports, and guests on smoltcp whose state is what they were given.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_abi::sync::WAIT_FOREVER;
use quorate_devices::{DiskPosition, DiskReads, Entry, Output};
use quorate_voter::relaxed::{Policy, Role, StreamLimits, Voters};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::Instant;

use crate::console::Console;
use crate::events::{Event, EventLog, NoQuorum};
use crate::gateway::stack::Stack;
use crate::inject::Fault;
use crate::recovery::RecoveryConfig;
use crate::relaxed::front::Front;
use crate::relaxed::guest::{EmbeddedGuest, Guest};
use crate::relaxed::hub::{Hub, Settings};
use crate::relaxed::set::{Config, RelaxedSet};
use crate::replica::{Kick, Pause, Turn, Vcpu};
use crate::seeds::RunSeed;
use crate::sync::lock;

const PORT: u16 = 80;

/// A version of the program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Old,
    /// `BOOM` crashes it.
    New,
}

struct Conn {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    line: Vec<u8>,
}

/// A server with one counter: `INCR` counts for all connections, `BOOM` is an error, `SPOIL` spoils the state once in one replica.
struct Server {
    stack: Stack,
    conns: BTreeMap<u16, Conn>,
    counter: u64,
    version: Version,
    crashed: bool,
}

impl Server {
    fn new(version: Version) -> Server {
        Server {
            stack: Stack::guest(7, Instant::ZERO),
            conns: BTreeMap::new(),
            counter: 0,
            version,
            crashed: false,
        }
    }

    fn take(&mut self, entry: &Entry) -> Vec<Output> {
        let now = Instant::from_micros((entry.monotonic_ns / 1000) as i64);
        for frame in &entry.frames {
            self.receive(frame.clone(), now);
        }
        let mut over = Vec::new();
        for (&port, conn) in &mut self.conns {
            let socket = conn.sockets.get_mut::<tcp::Socket>(conn.handle);
            while socket.can_recv() {
                socket
                    .recv(|bytes| {
                        conn.line.extend_from_slice(bytes);
                        (bytes.len(), ())
                    })
                    .unwrap();
            }
            while let Some(end) = conn.line.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = conn.line.drain(..=end).collect();
                let answer = match line.as_slice() {
                    b"INCR\n" => {
                        self.counter += 1;
                        format!("{}\n", self.counter)
                    }
                    b"BOOM\n" if self.version == Version::New => {
                        self.crashed = true;
                        return Vec::new();
                    }
                    _ => "-ERR wrong type\n".to_owned(),
                };
                socket.send_slice(answer.as_bytes()).unwrap();
            }
            if matches!(socket.state(), State::CloseWait) {
                socket.close();
            }
            self.stack.send(&mut conn.sockets, now);
            let state = conn.sockets.get::<tcp::Socket>(conn.handle).state();
            if matches!(state, State::Closed | State::TimeWait) {
                over.push(port);
            }
        }
        over.iter().for_each(|port| drop(self.conns.remove(port)));
        let frames = std::mem::take(self.stack.take_out().0);
        frames.into_iter().map(Output::Frame).collect()
    }

    fn receive(&mut self, frame: Vec<u8>, now: Instant) {
        if frame.len() < 54 || frame[23] != 6 {
            return;
        }
        let port = u16::from_be_bytes([frame[34], frame[35]]);
        if frame[47] & 0x12 == 0x02 && !self.conns.contains_key(&port) {
            let buffer = || tcp::SocketBuffer::new(vec![0; 65536]);
            let mut socket = tcp::Socket::new(buffer(), buffer());
            socket.set_nagle_enabled(false);
            socket.listen(PORT).unwrap();
            let mut sockets = SocketSet::new(Vec::new());
            let handle = sockets.add(socket);
            let line = Vec::new();
            self.conns.insert(
                port,
                Conn {
                    sockets,
                    handle,
                    line,
                },
            );
        }
        if let Some(conn) = self.conns.get_mut(&port) {
            self.stack.receive(frame, &mut conn.sockets, now);
        }
    }
}

/// A machine whose checkpoint is all that it was given so far: it is deterministic.
struct Fake {
    server: Server,
    given: Vec<Arc<Entry>>,
    outputs: Vec<Output>,
    kicked: Arc<AtomicBool>,
    /// The counter is wrong from here on.
    spoil: bool,
}

impl Fake {
    fn new(version: Version) -> Fake {
        Fake {
            server: Server::new(version),
            given: Vec::new(),
            outputs: Vec::new(),
            kicked: Arc::default(),
            spoil: false,
        }
    }
}

impl Vcpu for Fake {
    type Checkpoint = Arc<Vec<Arc<Entry>>>;

    fn track_dirty(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn checkpoint(
        &mut self,
        _base: Option<&Self::Checkpoint>,
    ) -> Result<(Self::Checkpoint, Pause), String> {
        Ok((Arc::new(self.given.clone()), Pause::default()))
    }

    fn restore(&mut self, from: &Self::Checkpoint) -> Result<(), String> {
        self.server = Server::new(self.server.version);
        for entry in from.iter() {
            self.server.take(entry);
        }
        self.given = from.to_vec();
        self.outputs.clear();
        Ok(())
    }

    fn positions(_: &Self::Checkpoint) -> Vec<DiskPosition> {
        Vec::new()
    }

    fn pages(_: &Self::Checkpoint) -> u64 {
        1
    }

    fn dump(&mut self) -> Result<Self::Checkpoint, String> {
        Err("no".to_owned())
    }

    fn run(&mut self) -> Turn {
        if self.kicked.swap(false, Ordering::SeqCst) {
            return Turn::Kicked;
        }
        if self.server.crashed {
            return Turn::Crash("it jumped to 0".to_owned());
        }
        let now = self.given.last().map_or(0, |entry| entry.monotonic_ns);
        let wait_until_ns = match self.server.conns.is_empty() {
            true => WAIT_FOREVER,
            false => now + 20_000_000,
        };
        Turn::Boundary {
            outputs: std::mem::take(&mut self.outputs),
            wait_until_ns,
        }
    }

    fn resume(&mut self, entry: &Arc<Entry>, _: &mut dyn DiskReads) -> Result<(), String> {
        self.given.push(Arc::clone(entry));
        if std::mem::take(&mut self.spoil) {
            self.server.counter += 1000;
        }
        self.outputs = self.server.take(entry);
        Ok(())
    }

    fn inject(&mut self, fault: &Fault, _: u64) -> Result<String, String> {
        match fault {
            Fault::Crash => self.server.crashed = true,
            _ => self.spoil = true,
        }
        Ok("done".to_owned())
    }

    fn kicker(&self) -> Kick {
        let kicked = Arc::clone(&self.kicked);
        Arc::new(move || kicked.store(true, Ordering::SeqCst))
    }

    fn layout(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

struct World {
    set: Option<RelaxedSet>,
    hub: Arc<Hub>,
    told: Arc<Mutex<Vec<Event>>>,
    address: std::net::SocketAddr,
}

fn config() -> RecoveryConfig {
    RecoveryConfig {
        checkpoint_interval: Some(Duration::from_millis(20)),
        ..RecoveryConfig::default()
    }
}

impl World {
    fn new(versions: &[Version], recovery: RecoveryConfig) -> World {
        let roles = vec![Role::Voter; versions.len()];
        let settings = Settings {
            voters: Voters::new(&roles, Policy::Majority, [7; 32]).unwrap(),
            names: vec![String::new(); roles.len()],
            limits: StreamLimits::default(),
            masks: Default::default(),
            udp_masks: Default::default(),
            console_all: false,
            console_mask: None,
            sync: Vec::new(),
            stop_who_differs: true,
            patience: Duration::from_millis(300),
            listens: Vec::new(),
            boot_timeout: Duration::ZERO,
            lag_timeout: Duration::from_secs(10),
            log_bytes: 1 << 20,
            no_quorum: NoQuorum::Stop,
            recovery,
            doubt: None,
        };
        let told = Arc::<Mutex<Vec<Event>>>::default();
        let sink = Arc::clone(&told);
        let events = EventLog::new(Box::new(move |logged| {
            lock(&sink).push(logged.event.clone())
        }));
        let console = Arc::new(Console::start(std::io::sink()).unwrap());
        let hub = Hub::new(settings, Arc::new(events), console);
        let front = Front::start(&hub, &["127.0.0.1:0:80".parse().unwrap()]).unwrap();
        let address = front.addresses()[0].1;
        let config = Config {
            name: "fake".to_owned(),
            seed: RunSeed::from_text("1"),
            layout_mode: "same",
            stop_grace: Duration::ZERO,
            realtime_ns: 0,
        };
        let versions = versions.to_vec();
        let set = RelaxedSet::start(Arc::clone(&hub), config, front, move |me| {
            Ok(Box::new(EmbeddedGuest::new(Fake::new(versions[me]))) as Box<dyn Guest>)
        });
        World {
            set: Some(set.unwrap()),
            hub,
            told,
            address,
        }
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream.set_nodelay(true).unwrap();
        Client(BufReader::new(stream))
    }

    fn count(&self, which: impl Fn(&Event) -> bool) -> usize {
        lock(&self.told).iter().filter(|event| which(event)).count()
    }

    fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !holds(self) {
            assert!(
                std::time::Instant::now() < deadline,
                "never: {what}: {:#?}",
                lock(&self.told)
            );
            std::thread::yield_now();
        }
    }

    fn restored(&self, times: usize) {
        self.until("it is back", |world| {
            world.count(|event| matches!(event, Event::Recovered { .. })) >= times
        });
    }

    fn checkpointed(&self, me: usize, client: &mut Client, counter: &mut u64) {
        self.until_asking(me, client, counter, |world| {
            world.hub.lock().members[me].recovery.point.is_some()
        });
    }

    fn until_asking(
        &self,
        me: usize,
        client: &mut Client,
        counter: &mut u64,
        holds: impl Fn(&World) -> bool,
    ) {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !holds(self) {
            assert!(std::time::Instant::now() < deadline, "never: {me}");
            *counter += 1;
            assert_eq!(client.ask("INCR"), counter.to_string());
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.hub.stop(true, Duration::ZERO);
        if let Some(set) = self.set.take() {
            let _ = set.wait();
        }
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn ask(&mut self, what: &str) -> String {
        self.0
            .get_mut()
            .write_all(format!("{what}\n").as_bytes())
            .unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

use Version::{New, Old};

/// Killed in the middle of requests of two connections, from a checkpoint or from the beginning.
#[test]
fn a_killed_replica_comes_back_and_votes() {
    for with_checkpoints in [true, false] {
        let mut recovery = config();
        if !with_checkpoints {
            recovery.checkpoint_interval = None;
        }
        let world = World::new(&[Old; 3], recovery);
        let mut clients = [world.connect(), world.connect()];
        let mut counter = 0;
        if with_checkpoints {
            world.checkpointed(1, &mut clients[0], &mut counter);
        }
        let incr = |clients: &mut [Client; 2], counter: &mut u64, times: usize| {
            for _ in 0..times {
                for client in &mut *clients {
                    *counter += 1;
                    assert_eq!(client.ask("INCR"), counter.to_string());
                }
            }
        };
        incr(&mut clients, &mut counter, 20);
        for (round, killed) in [1, 2, 0, 1].into_iter().enumerate() {
            world.hub.kill(killed).unwrap();
            incr(&mut clients, &mut counter, 20);
            world.restored(round + 1);
            incr(&mut clients, &mut counter, 5);
        }
        assert!(world.hub.lock().members.iter().all(|member| member.alive));
        assert_eq!(
            world.count(|event| matches!(event, Event::FullStrength { .. })),
            4
        );
        assert_eq!(
            world.count(|event| matches!(event, Event::Outvoted { .. })),
            0
        );
        // Those who came back carry the majority.
        world.hub.kill(2).unwrap();
        incr(&mut clients, &mut counter, 3);
    }
}

#[test]
fn who_was_spoiled_is_outvoted_and_comes_back_sound() {
    let world = World::new(&[Old; 3], config());
    let mut client = world.connect();
    let mut counter = 0;
    world.checkpointed(0, &mut client, &mut counter);
    let handle = world.set.as_ref().unwrap().controlled();
    handle.handle(crate::control::protocol::Command::Inject {
        replica: 0,
        fault: Fault::Hang,
        at_boundary: false,
    });
    world.until_asking(0, &mut client, &mut counter, |world| {
        world.count(|event| matches!(event, Event::Recovered { replica: 0, .. })) == 1
    });
    assert!(world.count(|event| matches!(event, Event::Outvoted { replica: 0, .. })) >= 1);
}

/// Mx's case: the new version crashes at a request that the old ones answer; it goes on without that request, on the same
/// connection, and votes.
#[test]
fn a_fatal_request_is_found_and_left_out() {
    for with_checkpoints in [true, false] {
        let mut recovery = config();
        if !with_checkpoints {
            recovery.checkpoint_interval = None;
        }
        let world = World::new(&[Old, Old, New], recovery);
        let mut clients = [world.connect(), world.connect()];
        let mut counter = 0;
        if with_checkpoints {
            world.checkpointed(2, &mut clients[0], &mut counter);
        }
        for round in 1..=3 {
            for client in &mut clients {
                counter += 1;
                assert_eq!(client.ask("INCR"), counter.to_string());
            }
            assert_eq!(clients[1].ask("BOOM"), "-ERR wrong type");
            for client in &mut clients {
                counter += 1;
                assert_eq!(client.ask("INCR"), counter.to_string());
            }
            world.restored(round);
            let left_out = |event: &Event| matches!(event, Event::InputLeftOut { replica: 2, excerpt, .. } if excerpt == "BOOM\\n");
            assert_eq!(world.count(left_out), round);
        }
        // The crash is told as a difference, and there is no other.
        let differs = |event: &Event| matches!(event, Event::Outvoted { detail, .. } if !detail.contains("crashed"));
        assert_eq!(world.count(differs), 0);
        // Its word counts, on both connections: with one old version less it makes the majority.
        world.hub.kill(0).unwrap();
        for client in &mut clients {
            counter += 1;
            assert_eq!(client.ask("INCR"), counter.to_string());
        }
        world.restored(4);
    }
}

/// A majority that crashes is nobody's fault to be masked, but the set waits for those who come back.
#[test]
fn two_killed_of_three_come_back() {
    let world = World::new(&[Old; 3], config());
    let mut client = world.connect();
    let mut counter = 0;
    world.checkpointed(1, &mut client, &mut counter);
    world.hub.kill(1).unwrap();
    world.hub.kill(2).unwrap();
    counter += 1;
    assert_eq!(client.ask("INCR"), counter.to_string());
    world.restored(2);
    assert!(world.hub.lock().end.is_none());
}

/// Without a checkpoint and with more input than is kept it is left out, and said so.
#[test]
fn what_cannot_be_brought_back_is_left_out() {
    let recovery = RecoveryConfig {
        checkpoint_interval: None,
        history: 0,
        ..config()
    };
    let world = World::new(&[Old; 3], recovery);
    let mut client = world.connect();
    for counter in 1..=20 {
        assert_eq!(client.ask("INCR"), counter.to_string());
    }
    world.until("the history is gone", |world| {
        world.hub.lock().log.first() > 0
    });
    world.hub.kill(1).unwrap();
    world.until("it is left out", |world| {
        world.count(|event| matches!(event, Event::LeftOut { replica: 1, .. })) == 1
    });
    assert_eq!(client.ask("INCR"), "21");
}
