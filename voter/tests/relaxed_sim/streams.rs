//! Connections' streams.

use quorate_voter::ReplicaId;
use quorate_voter::relaxed::{
    Departure, EndOfStream, Mask, MaskRule, MaskSet, Policy, Role, StreamLimits, StreamMatcher,
    Voters,
};

use crate::rng::Rng;
use crate::{Cast, Coverage, cast};

/// Fixed pieces that digests are made of are at least so long.
const STEP: usize = 1024;

/// What a replica makes of a connection.
#[derive(Clone, Debug)]
struct Version {
    text: Vec<u8>,
    /// `None`: it says its text and nothing more, ever.
    end: Option<EndOfStream>,
}

/// What the oracle has heard of a replica on a connection.
#[derive(Clone, Debug, Default)]
struct Heard {
    /// All that it has said, or what its source had said, up to `from`.
    text: Vec<u8>,
    from: usize,
    end: Option<EndOfStream>,
}

struct Replica {
    live: bool,
    /// It says what is right on all connections.
    good: bool,
    versions: Vec<Version>,
    heard: Vec<Heard>,
    given_up: Vec<bool>,
    checkpoint: Vec<usize>,
}

struct Connection {
    matcher: StreamMatcher,
    truth: Version,
    released: Vec<u8>,
    end: Option<EndOfStream>,
}

struct World<'a> {
    rng: Rng,
    trace: bool,
    seen: &'a mut Coverage,
    voters: Voters,
    limits: StreamLimits,
    masked: bool,
    /// The good ones are a quorum, and under a primary that one is good.
    sound: bool,
    /// The primary never leaves: not all who would go on without it are good.
    pinned: bool,
    replicas: Vec<Replica>,
    connections: Vec<Connection>,
}

/// A text of few letters; with masks, of lines some of which have something to hide.
fn text(rng: &mut Rng, masked: bool) -> Vec<u8> {
    let len = match rng.below(4) {
        0 => rng.below(4),
        1 => rng.below(9000),
        _ => rng.below(300),
    };
    let mut text = Vec::new();
    while (text.len() as u64) < len {
        match masked {
            true if rng.one_in(3) => text.extend(b"t=;\n"),
            true if rng.one_in(3) => text.push(b'\n'),
            _ => text.push(rng.pick(b"ab")),
        }
    }
    text
}

/// The text as a replica says it: with its own values.
fn own(rng: &mut Rng, text: &[u8], masked: bool) -> Vec<u8> {
    if !masked {
        return text.to_vec();
    }
    let mut own = Vec::new();
    for byte in text {
        if *byte == b';' {
            own.extend((0..rng.below(5)).map(|_| rng.pick(b"0123456789")));
        }
        own.push(*byte);
    }
    own
}

fn without_values(text: &[u8]) -> Vec<u8> {
    text.iter()
        .copied()
        .filter(|b| !b.is_ascii_digit())
        .collect()
}

impl World<'_> {
    fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// Makes a replica's versions wrong in one way or another.
    fn spoil(&mut self, versions: &mut [Version]) {
        let c = self.rng.below(versions.len() as u64) as usize;
        let at = self.rng.below(versions[c].text.len() as u64 + 1) as usize;
        let what = match self.rng.below(7) {
            0 if at < versions[c].text.len() => {
                versions[c].text[at] = b'x';
                "wrong"
            }
            1 => {
                versions[c].text.truncate(at);
                "short"
            }
            2 => {
                versions[c].text.extend(b"yyy");
                "long"
            }
            3 => {
                versions[c].end = Some(EndOfStream::Refused);
                "other end"
            }
            4 => {
                versions[c].text.truncate(at);
                versions[c].end = None;
                "silent"
            }
            5 if versions.len() > 1 => {
                // Two workers take each other's connections.
                let other = (c + 1) % versions.len();
                let tail = versions[c].text.split_off(at);
                let to = at.min(versions[other].text.len());
                let other_tail = versions[other].text.split_off(to);
                versions[c].text.extend(other_tail);
                versions[other].text.extend(tail);
                "mixed up"
            }
            _ => {
                versions[c].text.insert(at, b'z');
                "wrong"
            }
        };
        self.saw(what);
    }

    fn say(&mut self, r: usize, c: usize) -> Result<(), String> {
        let id = ReplicaId(r as u8);
        let (said, ended) = {
            let heard = &self.replicas[r].heard[c];
            (heard.text.len(), heard.end.is_some())
        };
        let version = &self.replicas[r].versions[c];
        let left = version.text.len().saturating_sub(said);
        if left == 0 {
            if let (Some(how), false) = (version.end, ended) {
                self.replicas[r].heard[c].end = Some(how);
                self.connections[c].matcher.end(id, how);
                self.log(|| format!("{r} ends {c}: {how:?}"));
            }
            return Ok(());
        }
        let most = left.min(1 << self.rng.below(12));
        let count = 1 + self.rng.below(most as u64) as usize;
        let piece = version.text[said..said + count].to_vec();
        let took = match self.connections[c].matcher.push(id, &piece) {
            Ok(taken) => taken.bytes,
            Err(_) => {
                self.saw("full");
                0
            }
        };
        if took < count && took > 0 {
            self.saw("full");
        }
        self.log(|| format!("{r} says {took} of {count} bytes from {said} on {c}"));
        self.replicas[r].heard[c].text.extend(&piece[..took]);
        // A prompt, which is flushed where nothing is hidden on its line.
        let text = &self.replicas[r].versions[c].text;
        let at = said + took;
        let start = text[..at]
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |n| n + 1);
        let line = text[start..].split(|b| *b == b'\n').next();
        if line.is_some_and(|line| !line.contains(&b't')) && self.rng.one_in(4) {
            self.connections[c].matcher.flush(id);
        }
        // R10: none is further ahead than it may be.
        let ahead =
            self.replicas[r].heard[c].text.len() as i64 - self.connections[c].released.len() as i64;
        let part = self.connections[c].matcher.takes_part(id);
        if !self.masked && part && ahead > self.limits.unconfirmed as i64 {
            return Err(format!("replica {r} is {ahead} bytes ahead on {c}"));
        }
        Ok(())
    }

    fn log(&self, what: impl Fn() -> String) {
        if self.trace {
            println!("{}", what());
        }
    }

    /// Whether this replica was heard to say what is released up to and with byte `at`.
    fn said(&self, r: usize, c: usize, at: usize) -> bool {
        let heard = &self.replicas[r].heard[c];
        let released = &self.connections[c].released;
        heard.from <= at && heard.text.get(..=at) == released.get(..=at)
    }

    fn votes(&self, said: impl Fn(usize) -> bool) -> usize {
        let primary = match self.voters.policy() {
            Policy::Primary { replica } => usize::from(replica.0),
            Policy::Majority => usize::MAX,
        };
        let voter = |r: &usize| *r != primary && self.voters.roles()[*r] != Role::Canary;
        (0..self.replicas.len())
            .filter(voter)
            .filter(|r| said(*r))
            .count()
    }

    /// Fetches what is released, and checks it.
    fn take(&mut self, c: usize) -> Result<(), String> {
        let before = self.connections[c].released.len();
        let connection = &mut self.connections[c];
        let end = connection.matcher.take_released(&mut connection.released);
        let after = connection.released.len();
        if after > before {
            self.saw("released");
        }
        let quorum = self.voters.quorum();
        for at in before..if self.masked { before } else { after } {
            let majority = self.votes(|r| self.said(r, c, at)) >= quorum;
            let word = match self.voters.policy() {
                Policy::Majority => majority,
                Policy::Primary { replica } => {
                    let p = usize::from(replica.0);
                    majority || (self.said(p, c, at) && self.others_had_a_say(p, c, at))
                }
            };
            if !word {
                return Err(format!("byte {at} of {c} was released without a quorum"));
            }
        }
        let truth = &self.connections[c].truth;
        let (released, wanted) = (&self.connections[c].released, &truth.text);
        let prefix = match self.masked {
            true => without_values(wanted).starts_with(&without_values(released)),
            false => wanted.starts_with(released),
        };
        if self.sound && !prefix {
            return Err(format!("{c} is not what the healthy ones say"));
        }
        if let Some(how) = end {
            let ended = |r: usize| {
                let heard = &self.replicas[r].heard[c];
                heard.end.is_some() && (self.masked || heard.text == *released)
            };
            let alike = self.votes(ended) >= quorum;
            let primary = match self.voters.policy() {
                Policy::Majority => false,
                Policy::Primary { replica } => ended(usize::from(replica.0)),
            };
            let gone = matches!(self.voters.policy(), Policy::Primary { replica } if !self.replicas[usize::from(replica.0)].live);
            if gone && how == EndOfStream::Reset && !alike {
                self.saw("reset");
                if self.connections[c].matcher.undecided().is_none() {
                    return Err(format!("{c} was given up without a word"));
                }
            } else if !alike && !primary {
                return Err(format!("{c} ended {how:?} without a quorum"));
            } else if self.sound
                && self.connections[c].released.len() < self.connections[c].truth.text.len()
                && !self.masked
            {
                return Err(format!("{c} ended early"));
            }
            self.connections[c].end = Some(how);
        }
        self.check(c)
    }

    /// The primary's word waits for others: each has said the same, or something else, or is not waited for.
    fn others_had_a_say(&self, primary: usize, c: usize, at: usize) -> bool {
        let word = &self.replicas[primary].heard[c].text;
        (0..self.replicas.len()).all(|r| {
            let other = &self.replicas[r];
            let heard = &other.heard[c].text;
            let differs = heard.iter().zip(&word[..=at]).any(|(a, b)| a != b)
                || (heard.len() <= at && other.heard[c].end.is_some());
            r == primary
                || self.voters.roles()[r] == Role::Canary
                || !other.live
                || other.given_up[c]
                || heard.len() > at
                || differs
                || !self.connections[c].matcher.takes_part(ReplicaId(r as u8))
        })
    }

    fn check(&mut self, c: usize) -> Result<(), String> {
        let differences = self.connections[c].matcher.differences();
        for d in &differences {
            self.log(|| format!("{d}"));
            let r = usize::from(d.replica.0);
            let late = matches!(d.kind, Departure::Missing | Departure::Crashed);
            if self.sound && self.replicas[r].good && !late {
                return Err(format!("a healthy one is blamed: {d}"));
            }
            if d.within > 0 {
                self.saw("far behind");
            }
            if d.within == 0 && !late && !self.masked {
                let (heard, released) = (&self.replicas[r].heard[c], &self.connections[c].released);
                let at = d.position as usize;
                let same = released.len() < at || heard.text.get(..at) == released.get(..at);
                let there = (heard.text.get(at), released.get(at));
                if !same || (there.0.is_some() && there.0 == there.1) {
                    return Err(format!("not the place: {d}"));
                }
            }
        }
        let connection = &self.connections[c];
        let m = &connection.matcher;
        let held = m.stats().held;
        let most = self.replicas.len() * self.limits.unconfirmed
            + self.limits.retained
            + STEP.max(self.limits.retained);
        if !self.masked && held > most {
            return Err(format!("{held} bytes are held on {c}"));
        }
        let id = |r: usize| ReplicaId(r as u8);
        let counts = |r: &usize| self.voters.roles()[*r] != Role::Canary;
        let primary = matches!(self.voters.policy(), Policy::Primary { .. });
        // With masks, lengths cannot be compared.
        let released = match self.masked {
            true => 0,
            false => m.released() as usize,
        };
        let able = self.votes(|r| {
            let replica = &self.replicas[r];
            replica.live && replica.good && replica.heard[c].from <= released
        });
        let undecided = m.undecided().is_some();
        if self.sound && !primary && able >= self.voters.quorum() && undecided {
            return Err(format!("{c} has a majority, and it is not seen"));
        }
        // Whoever is ahead waits for somebody, or nobody can come.
        let all = || (0..self.replicas.len()).filter(counts);
        let ahead = all().any(|r| m.takes_part(id(r)) && m.position(id(r)) > m.released());
        let waited = all().any(|r| m.waits_for(id(r)));
        if ahead && connection.end.is_none() && !waited && !undecided {
            return Err(format!("{c} stands still for no reason"));
        }
        if undecided {
            self.saw("undecided");
        }
        Ok(())
    }

    fn leave(&mut self, r: usize) {
        if !self.replicas[r].live || (self.pinned && r == 0) {
            return;
        }
        self.saw("crash");
        let crashed = self.rng.one_in(2);
        self.log(|| format!("{r} leaves"));
        self.replicas[r].live = false;
        if matches!(self.voters.policy(), Policy::Primary { replica } if usize::from(replica.0) == r)
        {
            self.saw("primary left");
        }
        for connection in &mut self.connections {
            match crashed {
                true => connection.matcher.crashed(ReplicaId(r as u8)),
                false => connection.matcher.leave(ReplicaId(r as u8)),
            };
        }
    }

    fn enter(&mut self, r: usize) {
        if self.replicas[r].live {
            return;
        }
        self.saw("back");
        self.replicas[r].live = true;
        let copy_of = (0..self.replicas.len())
            .find(|s| *s != r && self.replicas[*s].live && self.replicas[*s].good);
        // What a copy's source has said beyond the released is one word, not two: who else could confirm it may be faulty.
        let ahead = |s: &usize| {
            let channels = self.connections.iter().zip(&self.replicas[*s].heard);
            channels.clone().any(|(connection, heard)| {
                let m = &connection.matcher;
                m.position(ReplicaId(*s as u8)) > m.released()
                    || (heard.end.is_some() && connection.end.is_none())
            })
        };
        let copy_of = copy_of.filter(|s| !self.sound || !ahead(s));
        let copy = copy_of.filter(|_| self.rng.one_in(4));
        if let Some(s) = copy {
            self.saw("copy");
            self.log(|| format!("{r} is back as {s}"));
            let (versions, heard) = (
                self.replicas[s].versions.clone(),
                self.replicas[s].heard.clone(),
            );
            let replica = &mut self.replicas[r];
            replica.versions = versions;
            replica.heard = heard;
            for heard in &mut replica.heard {
                heard.from = heard
                    .from
                    .max(heard.text.len() + usize::from(heard.end.is_some()));
            }
            replica.good = true;
            replica.given_up.fill(false);
            for connection in &mut self.connections {
                connection
                    .matcher
                    .enter_like(ReplicaId(r as u8), ReplicaId(s as u8));
            }
            self.checkpoint(r);
            return;
        }
        for c in 0..self.connections.len() {
            let at = self.replicas[r].checkpoint[c].min(self.replicas[r].heard[c].text.len());
            self.log(|| format!("{r} is back at {at} on {c}"));
            let replica = &mut self.replicas[r];
            let heard = &mut replica.heard[c];
            heard.text.truncate(at);
            heard.from = heard.from.min(at);
            heard.end = None;
            replica.given_up[c] = false;
            self.connections[c]
                .matcher
                .enter(ReplicaId(r as u8), at as u64);
        }
    }

    fn checkpoint(&mut self, r: usize) {
        for c in 0..self.connections.len() {
            let heard = &self.replicas[r].heard[c];
            self.replicas[r].checkpoint[c] = heard.text.len();
            self.connections[c].matcher.mark(ReplicaId(r as u8));
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let r = self.rng.below(self.replicas.len() as u64) as usize;
        let c = self.rng.below(self.connections.len() as u64) as usize;
        match self.rng.below(200) {
            // What is released by now was decided by those who are here now.
            0..=3 => {
                for c in 0..self.connections.len() {
                    self.take(c)?;
                }
                match self.rng.one_in(4) {
                    true => self.leave(r),
                    false => self.enter(r),
                }
            }
            4..=6 if self.replicas[r].live => self.checkpoint(r),
            7 if self.rng.one_in(4) => {
                self.saw("gave up");
                self.replicas[r].given_up[c] |= self.replicas[r].live;
                self.connections[c].matcher.give_up_on(ReplicaId(r as u8));
            }
            8..=60 => self.take(c)?,
            _ if self.replicas[r].live => self.say(r, c)?,
            _ => {}
        }
        self.check(c)
    }

    /// Everybody says all it has to say: then all that the healthy ones say is released.
    fn finish(&mut self) -> Result<(), String> {
        for c in 0..self.connections.len() {
            self.take(c)?;
        }
        for r in 0..self.replicas.len() {
            if self.replicas[r].good {
                self.enter(r);
            }
        }
        for _ in 0..10_000 {
            let before: usize = self.total();
            for c in 0..self.connections.len() {
                for r in 0..self.replicas.len() {
                    if self.replicas[r].live {
                        self.say(r, c)?;
                    }
                }
                self.take(c)?;
            }
            if self.total() == before {
                break;
            }
        }
        if !self.sound {
            return Ok(());
        }
        if matches!(self.voters.policy(), Policy::Primary { .. }) {
            // The silent ones are not waited for.
            for c in 0..self.connections.len() {
                for r in 0..self.replicas.len() {
                    self.replicas[r].given_up[c] |= self.replicas[r].live;
                    self.connections[c].matcher.give_up_on(ReplicaId(r as u8));
                }
                self.take(c)?;
            }
            for _ in 0..10_000 {
                let before = self.total();
                for c in 0..self.connections.len() {
                    for r in 0..self.replicas.len() {
                        if self.replicas[r].live {
                            self.say(r, c)?;
                        }
                    }
                    self.take(c)?;
                }
                if self.total() == before {
                    break;
                }
            }
        }
        for (c, connection) in self.connections.iter().enumerate() {
            let (released, wanted) = (&connection.released, &connection.truth.text);
            let same = match self.masked {
                true => without_values(released) == without_values(wanted),
                false => released == wanted,
            };
            let reset = connection.end == Some(EndOfStream::Reset);
            let fallback = matches!(self.voters.policy(), Policy::Primary { .. }) && reset;
            if !same && !fallback {
                return Err(format!(
                    "{} of {} bytes of {c} are released",
                    released.len(),
                    wanted.len()
                ));
            }
            if connection.end.is_none() {
                return Err(format!("{c} has not ended"));
            }
        }
        Ok(())
    }

    fn total(&self) -> usize {
        let heard = self.replicas.iter().flat_map(|r| &r.heard);
        let heard: usize = heard
            .map(|h| h.text.len() + usize::from(h.end.is_some()))
            .sum();
        heard
            + self
                .connections
                .iter()
                .map(|c| c.released.len())
                .sum::<usize>()
    }
}

pub fn run(seed: u64, trace: bool, seen: &mut Coverage) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let Cast {
        voting,
        roles,
        primary,
        voters,
    } = cast(&mut rng, 3);
    let masked = rng.one_in(4);
    let set = MaskSet::new(&[Mask {
        name: "t".into(),
        rule: MaskRule::Pattern("t=([0-9]*);".into()),
        translate: false,
    }])
    .unwrap();
    let sizes = [0, 0].map(|_| 1 << rng.between(4, 12));
    let limits = StreamLimits {
        unconfirmed: 1 + rng.below(sizes[0]) as usize,
        retained: rng.below(sizes[1]) as usize,
    };
    let connections = (0..rng.between(1, 3)).map(|c| Connection {
        matcher: StreamMatcher::new(&voters, limits, Some(&set).filter(|_| masked))
            .for_connection(c),
        truth: Version {
            text: text(&mut rng, masked),
            end: Some(rng.pick(&[EndOfStream::Shut, EndOfStream::Reset])),
        },
        released: Vec::new(),
        end: None,
    });
    let connections: Vec<_> = connections.collect();
    let mut world = World {
        rng,
        trace,
        seen,
        voters,
        limits,
        masked,
        sound: true,
        pinned: false,
        replicas: Vec::new(),
        connections,
    };
    // As many faulty ones as can be masked, sometimes more; any number of canaries.
    let tolerated = voting - (voting / 2 + 1);
    let faulty = match world.rng.one_in(6) {
        true => world.rng.below(voting as u64 + 1),
        false => world.rng.below(tolerated as u64 + 1),
    };
    world.sound = match primary {
        true => true,
        false => faulty <= tolerated as u64,
    };
    // Which of the voters: the primary seldom.
    let first = match primary && !world.rng.one_in(5) {
        true => 1,
        false => 0,
    };
    let mut bad: Vec<bool> = (0..roles.len())
        .map(|r| r >= voting && world.rng.one_in(2))
        .collect();
    for bad in &mut bad[first..voting.min(first + faulty as usize)] {
        *bad = true;
    }
    if primary {
        // Sometimes it leaves though the others are no replacement.
        world.sound = !bad[0] && !world.rng.one_in(3);
        world.pinned = world.sound && bad[..voting].contains(&true);
    }
    if masked {
        world.saw("masked");
    }
    if primary {
        world.saw("primary");
    }
    if roles.len() > voting {
        world.saw("canary");
    }
    for bad in bad {
        let truths: Vec<Version> = world.connections.iter().map(|c| c.truth.clone()).collect();
        let mut versions: Vec<Version> = truths
            .into_iter()
            .map(|truth| Version {
                text: own(&mut world.rng, &truth.text, masked),
                end: Some(world.rng.pick(&[EndOfStream::Shut, EndOfStream::Reset])),
            })
            .collect();
        if bad {
            world.spoil(&mut versions);
        }
        let count = versions.len();
        world.replicas.push(Replica {
            live: true,
            good: !bad,
            versions,
            heard: vec![Heard::default(); count],
            given_up: vec![false; count],
            checkpoint: vec![0; count],
        });
    }
    for _ in 0..world.rng.between(20, 800) {
        world.step()?;
    }
    world.finish()
}
