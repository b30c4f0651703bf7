//! Outputs in any order.

use std::collections::HashMap;

use quorate_voter::ReplicaId;
use quorate_voter::relaxed::{Departure, Policy, Pool, PoolLimits, Role, Voters};

use crate::rng::Rng;
use crate::{Cast, Coverage, cast};

/// An output: few tags and few contents, so that many are said more than once.
type Output = (u64, u8);

struct Replica {
    live: bool,
    was_away: bool,
    good: bool,
    /// What it will say, the next one last.
    left: Vec<Output>,
    /// How often it was heard to say each.
    heard: HashMap<Output, u64>,
}

struct World<'a> {
    rng: Rng,
    trace: bool,
    seen: &'a mut Coverage,
    voters: Voters,
    limits: PoolLimits,
    pool: Pool,
    replicas: Vec<Replica>,
    confirmed: HashMap<Output, u64>,
    now: u64,
}

/// The truth in a replica's own order: each output at most `distance` places away from where it was.
fn reordered(rng: &mut Rng, truth: &[Output], distance: u64) -> Vec<Output> {
    let key = |(i, output): (usize, &Output)| (i as u64 + rng.below(distance + 1), *output);
    let mut keyed: Vec<(u64, Output)> = truth.iter().enumerate().map(key).collect();
    keyed.sort_by_key(|(at, _)| *at);
    keyed.into_iter().map(|(_, output)| output).collect()
}

impl World<'_> {
    fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn log(&self, what: impl Fn() -> String) {
        if self.trace {
            println!("{}", what());
        }
    }

    fn say(&mut self, r: usize) -> Result<(), String> {
        let Some((tag, content)) = self.replicas[r].left.last().copied() else {
            return Ok(());
        };
        let bytes = vec![content; 1 + usize::from(content % 50)];
        let id = ReplicaId(r as u8);
        match self.pool.push(id, [tag, 0], &bytes, self.now) {
            Ok(pushed) => {
                self.log(|| format!("{r} says {tag} {content}: {pushed:?}"));
                self.replicas[r].left.pop();
                let heard = self.replicas[r].heard.entry((tag, content)).or_default();
                *heard += 1;
                if *heard > 1 {
                    self.saw("repeated");
                }
                Ok(())
            }
            Err(_) => {
                self.log(|| format!("{r} waits"));
                self.saw("full");
                self.take()
            }
        }
    }

    /// Fetches what is confirmed, and checks that a quorum has said it so often.
    fn take(&mut self) -> Result<(), String> {
        while let Some(c) = self.pool.take_confirmed() {
            let content = c.bytes.first().copied().unwrap_or(0);
            let output = (c.tag[0], content);
            self.log(|| format!("confirmed: {output:?}"));
            self.saw("confirmed");
            let times = self.confirmed.entry(output).or_default();
            *times += 1;
            let times = *times;
            // What one says that was away, or so late that it was given up, may count for a later copy of the same.
            let said = |r: &usize| {
                let replica = &self.replicas[*r];
                let heard = replica.heard.get(&output).copied().unwrap_or(0);
                heard >= times || ((replica.was_away || self.limits.outputs < 100) && heard > 0)
            };
            let primary = match self.voters.policy() {
                Policy::Primary { replica } => Some(usize::from(replica.0)),
                Policy::Majority => None,
            };
            let roles = self.voters.roles();
            let voters =
                (0..roles.len()).filter(|r| roles[*r] != Role::Canary && Some(*r) != primary);
            let majority = voters.filter(said).count() >= self.voters.quorum();
            if !majority && !primary.is_some_and(|p| said(&p)) {
                return Err(format!(
                    "{output:?} was confirmed for the {times}th time without a quorum"
                ));
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        let stats = self.pool.stats();
        let most = self.limits.outputs * (self.replicas.len() + 1);
        if stats.waiting > most {
            return Err(format!("{} copies wait", stats.waiting));
        }
        // One output more than the bound each, since even a too large one must pass.
        let most = (self.replicas.len() + 1) * (self.limits.bytes + 200);
        if stats.held > most {
            return Err(format!("{} bytes are held", stats.held));
        }
        Ok(())
    }

    fn leave(&mut self, r: usize) {
        if self.replicas[r].live {
            self.saw("crash");
            self.log(|| format!("{r} leaves"));
            self.replicas[r].live = false;
            self.replicas[r].was_away = true;
            self.pool.leave(ReplicaId(r as u8));
        }
    }

    fn enter(&mut self, r: usize) {
        if !self.replicas[r].live {
            self.saw("back");
            self.log(|| format!("{r} is back"));
            self.replicas[r].live = true;
            let id = ReplicaId(r as u8);
            // It was stopped for a while only: it goes on where it was.
            let position = self.pool.position(id);
            self.pool.enter(id, position);
        }
    }
}

pub fn run(seed: u64, trace: bool, seen: &mut Coverage) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let Cast {
        voting,
        roles,
        primary,
        voters,
    } = cast(&mut rng, 4);
    // Half of the runs have room for everything, and then nothing may be lost.
    let roomy = rng.one_in(2);
    let limits = PoolLimits {
        outputs: if roomy {
            10_000
        } else {
            rng.between(1, 30) as usize
        },
        bytes: if roomy {
            10_000_000
        } else {
            rng.between(1, 5000) as usize
        },
        age_ns: 1_000_000,
        patience_ns: 1000,
    };
    let kinds = rng.between(1, 60);
    let truth: Vec<Output> = (0..rng.below(200))
        .map(|_| (rng.below(3), 1 + rng.below(kinds) as u8))
        .collect();
    let tolerated = voting - (voting / 2 + 1);
    let faulty = rng.below(tolerated as u64 + 1) as usize;
    let distance = rng.pick(&[0, 0, 3, 20]);
    let mut replicas = Vec::new();
    for r in 0..roles.len() {
        let good = match r {
            r if r >= voting => rng.one_in(2),
            r => r < voting - faulty,
        };
        let mut left = reordered(&mut rng, &truth, distance);
        if !good {
            for output in &mut left {
                if rng.one_in(4) {
                    *output = (rng.below(4), 1 + rng.below(200) as u8);
                }
            }
            left.truncate(rng.below(left.len() as u64 + 1) as usize);
            for _ in 0..rng.below(50) {
                let at = rng.below(left.len() as u64 + 1) as usize;
                left.insert(at, (rng.below(4), 1 + rng.below(200) as u8));
            }
        }
        left.reverse();
        replicas.push(Replica {
            live: true,
            was_away: false,
            good,
            left,
            heard: HashMap::new(),
        });
    }
    let mut world = World {
        rng,
        trace,
        seen,
        voters,
        limits,
        pool: Pool::new(&voters, limits),
        replicas,
        confirmed: HashMap::new(),
        now: 0,
    };
    if primary {
        world.saw("primary");
    }
    if roles.len() > voting {
        world.saw("canary");
    }
    let leaves = !roomy;
    for _ in 0..world.rng.between(0, 1200) {
        let r = world.rng.below(world.replicas.len() as u64) as usize;
        world.now += world.rng.below(3);
        match world.rng.below(100) {
            0 if leaves => world.leave(r),
            1..=3 => world.enter(r),
            4 => {
                let now = world.now;
                world.pool.tick(now);
            }
            5..=15 => world.take()?,
            _ if world.replicas[r].live => world.say(r)?,
            _ => {}
        }
        world.check()?;
    }
    // All say the rest. Who must wait is let on by time.
    for _ in 0..20_000 {
        let mut done = true;
        for r in 0..world.replicas.len() {
            world.enter(r);
            world.say(r)?;
            done &= world.replicas[r].left.is_empty();
        }
        world.take()?;
        if done {
            break;
        }
        if !roomy {
            // Long enough that whoever waits for what never comes goes on now and then.
            world.now += limits.age_ns / 8;
            let now = world.now;
            world.pool.tick(now);
        }
    }
    world.take()?;
    world.check()?;
    if world.replicas.iter().any(|r| !r.left.is_empty()) {
        return Err("somebody waits for ever".into());
    }
    // Then patience ends, and after it everything is too old.
    for later in [1000, 1_000_000] {
        world.now += later;
        let now = world.now;
        world.pool.tick(now);
        world.take()?;
    }
    let mut wanted: HashMap<Output, u64> = HashMap::new();
    for output in &truth {
        *wanted.entry(*output).or_default() += 1;
    }
    if roomy {
        for (output, times) in &wanted {
            let confirmed = world.confirmed.get(output).copied().unwrap_or(0);
            if confirmed < *times {
                return Err(format!(
                    "{output:?} was confirmed {confirmed} of {times} times"
                ));
            }
        }
    }
    let all = world.pool.differences();
    for d in all {
        match d.kind {
            Departure::Spurious => world.saw("spurious"),
            _ => world.saw("missing"),
        }
        // Who says the truth cannot have said too much of it, unless others left it out.
        let r = usize::from(d.replica.0);
        if roomy && world.replicas[r].good && !primary && d.kind == Departure::Spurious {
            return Err(format!("a healthy one is blamed: {d}"));
        }
    }
    let stats = world.pool.stats();
    match (stats.waiting, stats.held) {
        (0, 0) => Ok(()),
        left => Err(format!("{left:?} copies and bytes are left")),
    }
}
