//! What the tests of `Lockstep` share.
#![allow(dead_code)]

use quorate_voter::{
    Channel, Config, Event, Lockstep, MAX_REPLICAS, NoMajority, Output, Rejoin, ReplicaId,
    ReplicaState, Step, StopReason,
};

pub const NET: Channel = Channel(1);
pub const CONSOLE: Channel = Channel(2);
pub const MS: u64 = 1_000_000;
pub const S: u64 = 1000 * MS;

pub fn config(replicas: u8) -> Config {
    Config {
        replicas,
        window_boundaries: 64,
        window_bytes: 1 << 16,
        lag_timeout_ns: 2 * S,
        lag_factor: 4,
    }
}

pub fn id(r: u8) -> ReplicaId {
    ReplicaId(r)
}

/// One output on the network.
pub fn net(bytes: &[u8]) -> Vec<Output> {
    vec![(NET, bytes.to_vec())]
}

/// A set whose entries are numbers; its caller counts boundaries.
pub struct Set {
    pub inner: Lockstep<u64>,
    next: Vec<u64>,
    pub now: u64,
}

impl Set {
    pub fn new(config: Config) -> Self {
        Self::of(Lockstep::new(config).unwrap())
    }

    /// One whose replicas can come back.
    pub fn recoverable(config: Config) -> Self {
        Self::of(Lockstep::recoverable(config, [7; 32]).unwrap())
    }

    pub fn of(mut inner: Lockstep<u64>) -> Self {
        inner.tick(0);
        Self {
            inner,
            next: vec![0; MAX_REPLICAS],
            now: 0,
        }
    }

    pub fn kill(&mut self, r: u8) {
        self.inner.fail(id(r), StopReason::Killed, self.now);
    }

    pub fn rejoin(&mut self, r: u8, how: Rejoin) {
        self.inner.rejoin(id(r), how, self.now).unwrap();
        self.next[usize::from(r)] = match how {
            Rejoin::Start => 0,
            Rejoin::At(boundary) => boundary + 1,
        };
    }

    /// Boundary that `r` casts next.
    pub fn at(&self, r: u8) -> u64 {
        self.next[usize::from(r)]
    }

    pub fn recovering(&self, r: u8) -> bool {
        matches!(self.inner.state(id(r)), ReplicaState::Recovering { .. })
    }

    pub fn cast(&mut self, r: u8, outputs: Vec<Output>) {
        let next = &mut self.next[usize::from(r)];
        self.inner.cast(id(r), *next, outputs, self.now).unwrap();
        *next += 1;
    }

    pub fn step(&mut self, r: u8) -> Step<u64> {
        self.inner.step(id(r), self.now)
    }

    /// Takes the entry, or writes it: the boundary's number.
    pub fn go(&mut self, r: u8) {
        let at = self.next[usize::from(r)] - 1;
        match self.step(r) {
            Step::Lead => self.inner.lead(id(r), at, 0, self.now).unwrap(),
            step => assert_eq!(step, Step::Deliver(at)),
        }
    }

    /// Casts and goes on.
    pub fn run(&mut self, r: u8, outputs: Vec<Output>) {
        self.cast(r, outputs);
        self.go(r);
    }

    pub fn tick(&mut self, now: u64) {
        self.now = now;
        self.inner.tick(now);
    }

    /// Ticks every 100 ms up to a time, as an executor does.
    pub fn ticks(&mut self, until: u64) {
        while self.now < until {
            self.tick((self.now + 100 * MS).min(until));
        }
    }

    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.inner.poll_event()).collect()
    }

    /// Payloads released since the last call.
    pub fn released(&mut self) -> Vec<(u64, Channel, Vec<u8>)> {
        let release = |event| match event {
            Event::Release {
                boundary,
                channel,
                bytes,
            } => Some((boundary, channel, bytes)),
            _ => None,
        };
        self.events().into_iter().filter_map(release).collect()
    }

    pub fn stopped(&self, r: u8) -> Option<StopReason> {
        match self.inner.state(id(r)) {
            ReplicaState::Stopped { reason, .. } => Some(reason),
            _ => None,
        }
    }

    pub fn all_run(&self) -> bool {
        (0..self.inner.config().replicas).all(|r| self.stopped(r).is_none())
    }

    pub fn outcome(&self) -> NoMajority {
        self.inner.outcome().expect("there should be no majority")
    }
}
