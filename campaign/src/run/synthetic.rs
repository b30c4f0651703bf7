//! Trials without machines: outcomes with planted rates, the same for the same draw on every machine. For tests of all that stands
//! above a bench, and for measuring what the runner itself costs.

use crate::bench::{BenchError, Trials};
use crate::model::{BitChange, Drawn, Fault, Outcome, Timing, TrialRecord, Trigger};

/// What a trial becomes, with which probability: the first outcomes of the list, the rest is masked.
#[derive(Clone, Debug, Default)]
pub struct Planted {
    /// By N: outcomes and their rates.
    pub rates: Vec<(u8, Vec<(Outcome, f64)>)>,
    /// How long a trial takes.
    pub pause: std::time::Duration,
    /// The bench fails at this draw.
    pub fails_at: Option<u64>,
}

impl Planted {
    /// One and three replicas, with some of everything alone, and nothing bad together.
    #[must_use]
    pub fn usual() -> Self {
        Planted {
            rates: vec![
                (
                    1,
                    vec![
                        (Outcome::Crash, 0.2),
                        (Outcome::SilentCorruption, 0.05),
                        (Outcome::Hang, 0.02),
                    ],
                ),
                (3, vec![(Outcome::Corrected, 0.3)]),
            ],
            ..Planted::default()
        }
    }
}

impl Trials for Planted {
    fn trial(&mut self, drawn: &Drawn, replicas: u8) -> Result<TrialRecord, BenchError> {
        if self.fails_at == Some(drawn.draw) {
            return Err(BenchError::Broken("planted".to_owned()));
        }
        if !self.pause.is_zero() {
            std::thread::sleep(self.pause);
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&drawn.draw.to_le_bytes()).update(&[replicas]);
        let mut number = [0; 8];
        number.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        let mut point = (u64::from_le_bytes(number) >> 11) as f64 / (1_u64 << 53) as f64;
        let mut outcome = Outcome::Masked;
        for (planted, rates) in &self.rates {
            for &(other, rate) in rates.iter().filter(|_| *planted == replicas) {
                if (0.0..rate).contains(&point) {
                    outcome = other;
                }
                point -= rate;
            }
        }
        Ok(TrialRecord {
            drawn: drawn.clone(),
            replicas,
            outcome,
            place: format!(
                "replica {}: rax",
                drawn.victims(replicas).first().copied().unwrap_or(0)
            ),
            location: Some(("rax".to_owned(), drawn.draw % 64)),
            detected: None,
            recovered: None,
            full_strength: true,
            evidence: String::new(),
            // Never the same in two runs, as real ones.
            timing: Timing {
                total: std::time::SystemTime::UNIX_EPOCH
                    .elapsed()
                    .map_or(0, |since| u64::from(since.subsec_micros())),
                ..Timing::default()
            },
        })
    }
}

/// A draw of two strata.
#[must_use]
pub fn drawn(draw: u64) -> Drawn {
    Drawn {
        draw,
        stratum: if draw.is_multiple_of(3) {
            "flags"
        } else {
            "general"
        }
        .to_owned(),
        fault: Fault::Register {
            register: "rax".to_owned(),
            mask: 1 << (draw % 64),
            lane: 0,
            change: BitChange::Flip,
        },
        trigger: Trigger::Boundary {
            boundary: draw % 100,
        },
        copies: 1,
        victim: draw,
    }
}

/// A record, without randomness.
#[must_use]
pub fn record(draw: u64, replicas: u8) -> TrialRecord {
    TrialRecord {
        drawn: drawn(draw),
        replicas,
        outcome: Outcome::Masked,
        place: "rax \"quoted\" \u{1}".to_owned(),
        location: None,
        detected: None,
        recovered: None,
        full_strength: true,
        evidence: "né".to_owned(),
        timing: Timing::default(),
    }
}
