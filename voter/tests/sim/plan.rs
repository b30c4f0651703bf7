//! What a seed means: the configuration, who is faulty, and how.

use quorate_voter::{Config, MAX_REPLICAS};

use crate::rng::Rng;

/// Simulated nanoseconds.
pub const LAG_TIMEOUT_NS: u64 = 10_000;
/// Boundaries that every honest replica must reach.
pub const TARGET: u64 = 30;

/// Where in its loop a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    BeforeCast,
    AfterCast,
    AskedToLead,
}

/// How a ballot is made wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    FlipByte,
    DropOutput,
    ExtraOutput,
    SwapOrder,
    OtherChannel,
    /// Wrong on one channel, right on all others; what is wrong differs from replica to replica.
    Equivocate,
    /// As all other colluders.
    Collude,
}

/// What a faulty replica does, from its boundary on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Crash(Point),
    Killed(Point),
    Hang(Point),
    /// Hangs for longer than is allowed, and goes on as if nothing had been (SIGSTOP, SIGCONT).
    Pause(Point),
    /// Wrong ballots; `once` and then as if nothing had been.
    Wrong {
        wrong: Wrong,
        once: bool,
    },
    /// The guest's state is another one: everything after is wrong.
    Diverge,
    /// Garbage at once, without computing.
    Early,
    /// Every boundary almost as late as is allowed.
    Drip,
    Oversized,
    /// Writes entries whatever the wait condition says.
    LeadsAtOnce,
    NeverLeads,
}

/// Everything that a seed decides before the first step.
#[derive(Clone, Debug)]
pub struct Plan {
    pub config: Config,
    /// Per replica: from which boundary on, and what.
    pub faults: Vec<Option<(u64, Fault)>>,
    /// Per replica: how slow, in tenths.
    pub speed: Vec<u64>,
    /// Largest output.
    pub output_bytes: u64,
    /// Events are fetched only now and then.
    pub lazy: bool,
    /// Once in how many boundaries all compute for longer than the lag timeout; 0 for never.
    pub long: u64,
    /// Set if stopped replicas come back.
    pub recovery: Option<Recovery>,
}

/// What happens in a set whose replicas come back.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// Never more faulty replicas at a time than the set masks: then nobody outside notices anything. Otherwise any
    /// number, but no two whose wrong outputs are the same: then nothing wrong comes out, but the set may pause.
    pub masked: bool,
    /// Times that faults strike.
    pub strikes: u64,
    /// Once in how many steps they do, if they may.
    pub rate: u64,
    /// Times that a restored state is not the one that was saved.
    pub corrupt: u64,
    /// Times that replicas are added or removed.
    pub churn: u64,
    /// Once in how many steps a standing replica takes a checkpoint.
    pub checkpoints: u64,
    /// Longest time from a stop to the rejoining.
    pub delay_ns: u64,
    /// History is dropped below the oldest checkpoint.
    pub forget: bool,
    /// Input never has to be waited for: then a replay is no faster than what it repeats.
    pub busy: bool,
}

impl Plan {
    pub fn new(rng: &mut Rng) -> Self {
        let replicas = if rng.one_in(2) {
            rng.pick(&[2, 3, 3, 4, 5])
        } else {
            rng.between(1, MAX_REPLICAS as u64) as u8
        };
        let window_bytes = rng.pick(&[1024, 2048, 8192, 1 << 20]);
        let config = Config {
            replicas,
            window_boundaries: rng.pick(&[1, 2, 3, 5, 8, 16, 1000]),
            window_bytes,
            lag_timeout_ns: LAG_TIMEOUT_NS,
            lag_factor: rng.between(2, 6) as u32,
        };
        let tolerated = u64::from(replicas - config.quorum());
        let faulty = match rng.below(8) {
            0 => 0,
            1 | 2 => rng.between(tolerated, u64::from(replicas)),
            _ => rng.between(tolerated.min(1), tolerated),
        };
        let mut faults = vec![None; usize::from(replicas)];
        let colluding = rng.one_in(3);
        let mut left = faulty;
        while left > 0 {
            let r = rng.below(u64::from(replicas)) as usize;
            if faults[r].is_none() {
                // Often close together: that is when it gets difficult.
                let at = if rng.one_in(2) {
                    rng.below(6)
                } else {
                    rng.below(TARGET - 2)
                };
                let fault = if colluding {
                    Fault::Wrong {
                        wrong: Wrong::Collude,
                        once: false,
                    }
                } else {
                    Self::fault(rng)
                };
                faults[r] = Some((at, fault));
                left -= 1;
            }
        }
        // Whatever an honest ballot holds must fit: at most 4 outputs with their overheads in half the window.
        let room = (window_bytes / 2 - 64) / 4 - 64;
        Self {
            config,
            faults,
            speed: (0..replicas)
                .map(|_| {
                    if rng.one_in(4) {
                        rng.between(10, 20)
                    } else {
                        10
                    }
                })
                .collect(),
            output_bytes: rng.between(1, (room as u64).min(300)),
            lazy: rng.one_in(8),
            long: rng.pick(&[0, 0, 12]),
            recovery: None,
        }
    }

    /// One whose replicas come back: faults strike while it runs.
    pub fn recovering(rng: &mut Rng) -> Self {
        let mut plan = Self::new(rng);
        plan.faults.fill(None);
        plan.recovery = Some(Recovery {
            masked: plan.config.replicas > 2 && rng.one_in(2),
            strikes: rng.between(1, 8),
            rate: rng.pick(&[15, 60, 200]),
            // A single replica passes through, whatever it says.
            corrupt: rng.pick(&[0, 1, 3]) * u64::from(plan.config.replicas > 1),
            churn: rng.pick(&[0, 0, 2, 5]),
            checkpoints: rng.pick(&[5, 20, 80]),
            delay_ns: rng.pick(&[50, LAG_TIMEOUT_NS / 2, 4 * LAG_TIMEOUT_NS]),
            forget: rng.one_in(2),
            busy: rng.one_in(4),
        });
        plan
    }

    /// A fault that ends when its replica is stopped, or after some boundaries. Where more than the set masks may be
    /// faulty, only such wrong outputs that no other replica has too.
    pub fn transient(rng: &mut Rng, masked: bool, alone: bool) -> Fault {
        loop {
            let fault = Self::fault(rng);
            let fits = match fault {
                Fault::LeadsAtOnce | Fault::NeverLeads => false,
                Fault::Wrong { wrong, .. } => {
                    !alone && (masked || matches!(wrong, Wrong::Equivocate | Wrong::ExtraOutput))
                }
                Fault::Diverge | Fault::Early => !alone,
                // Nobody can tell that a single replica hangs.
                Fault::Hang(_) => !alone,
                _ => true,
            };
            if fits {
                return fault;
            }
        }
    }

    fn fault(rng: &mut Rng) -> Fault {
        let point = rng.pick(&[Point::BeforeCast, Point::AfterCast, Point::AskedToLead]);
        let wrong = rng.pick(&[
            Wrong::FlipByte,
            Wrong::DropOutput,
            Wrong::ExtraOutput,
            Wrong::SwapOrder,
            Wrong::OtherChannel,
            Wrong::Equivocate,
        ]);
        match rng.below(18) {
            0 | 1 => Fault::Crash(point),
            2 => Fault::Killed(point),
            3 | 4 => Fault::Hang(point),
            5..=8 => Fault::Wrong {
                wrong,
                once: rng.one_in(2),
            },
            9 => Fault::Diverge,
            10 => Fault::Early,
            11 => Fault::Drip,
            12 => Fault::Oversized,
            13 => Fault::LeadsAtOnce,
            14 | 15 => Fault::Pause(point),
            _ => Fault::NeverLeads,
        }
    }

    /// Faulty replicas.
    pub fn faulty(&self) -> usize {
        self.faults.iter().flatten().count()
    }

    /// Whether a quorum is honest: then nothing may go wrong.
    pub fn tolerable(&self) -> bool {
        self.faults.len() - self.faulty() >= usize::from(self.config.quorum())
    }
}
