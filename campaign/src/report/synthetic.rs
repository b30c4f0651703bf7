//! Made-up records: for tests, and for looking at the report without a campaign. Their outcomes are invented and say nothing
//! about any program.

use crate::model::{
    BitChange, BlockFault, Detection, Drawn, Fault, FrameFault, MemoryPlace, Outcome, PageFault,
    Recovered, Timing, TrialRecord, Trigger,
};

const REGISTERS: [&str; 26] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "rflags", "fs_base", "gs_base", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4",
    "xmm5",
];
/// Class, bytes, harm.
const CLASSES: [(&str, u64, f64); 7] = [
    ("text", 1_900_000, 0.10),
    ("data", 340_000, 0.07),
    ("heap", 5_200_000, 0.03),
    ("stack", 132_000, 0.12),
    ("libraries", 6_800_000, 0.04),
    ("kernel", 2_400_000, 0.14),
    ("page-tables", 90_000, 0.45),
];

struct Dice(u64);

impl Dice {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn log_normal(&mut self, median: f64, spread: f64) -> u64 {
        let normal: f64 = (0..12).map(|_| self.share()).sum::<f64>() - 6.0;
        (median * (normal * spread).exp()) as u64
    }
}

/// Records of `draws` draws, each at each number of replicas in `list`.
pub fn records(draws: u64, list: &[u8], seed: u64) -> impl Iterator<Item = TrialRecord> {
    let list = list.to_vec();
    (0..draws).flat_map(move |draw| {
        let list = list.clone();
        (0..list.len()).map(move |i| record(draw, list[i], seed))
    })
}

fn record(draw: u64, replicas: u8, seed: u64) -> TrialRecord {
    // The draw must not depend on the number of replicas.
    let mut dice = Dice(seed ^ draw.wrapping_mul(0xd134_2543_de82_ef95));
    let (stratum, fault, harm, location, place) = fault(&mut dice);
    let copies = if dice.share() < 0.06 {
        2 + dice.below(2) as u8
    } else {
        1
    };
    let harmful = dice.share() < harm;
    let alone = bad(&mut dice);
    let trigger = Trigger::Boundary {
        boundary: 1 + dice.below(220),
    };
    let mut dice = Dice(dice.next() ^ u64::from(replicas));
    let outcome = match harmful {
        _ if dice.share() < 0.0006 => Outcome::InjectorFailure,
        false => Outcome::Masked,
        true => together(&mut dice, alone, copies.min(replicas), replicas),
    };
    let stopped = matches!(outcome, Outcome::Corrected | Outcome::Stopped);
    let boundaries = (dice.log_normal(3.0, 1.4)).saturating_sub(u64::from(dice.share() < 0.3));
    let detected = stopped.then(|| Detection {
        how: ["outvoted", "crashed", "crashed", "lagging", "misbehaved"][dice.below(5) as usize]
            .to_owned(),
        boundaries,
        virtual_ns: boundaries * 1_000_000 + dice.log_normal(40_000.0, 1.2),
        micros: dice.log_normal(900.0, 0.9),
    });
    let recovered = (outcome == Outcome::Corrected).then(|| Recovered {
        step: if dice.share() < 0.97 {
            "checkpoint"
        } else {
            "clone"
        }
        .to_owned(),
        micros: dice.log_normal(6_500.0, 0.5),
    });
    let pages = 90 * u64::from(replicas) + dice.below(60);
    let timing = Timing {
        reset: pages * 3,
        pages,
        run: 3_000 + 4_000 * u64::from(replicas) + dice.below(900),
        inject: 300 + dice.below(200),
        settle: if stopped {
            5_000 + dice.below(4_000)
        } else {
            20
        },
        judge: 120 + dice.below(60),
        total: 0,
    };
    let total = timing.reset + timing.run + timing.settle + timing.judge + 90;
    TrialRecord {
        drawn: Drawn {
            draw,
            stratum: stratum.to_owned(),
            fault,
            trigger,
            copies,
            victim: dice.below(1 << 40),
        },
        replicas,
        outcome,
        place,
        location,
        detected,
        recovered,
        full_strength: matches!(outcome, Outcome::Masked | Outcome::Corrected),
        evidence: evidence(outcome),
        timing: Timing { total, ..timing },
    }
}

type Made = (&'static str, Fault, f64, Option<(String, u64)>, String);

fn fault(dice: &mut Dice) -> Made {
    match dice.below(100) {
        0..45 => register(dice),
        45..90 => memory(dice),
        90..94 => {
            let (class, bytes, harm) = CLASSES[dice.below(7) as usize];
            let pick = dice.next();
            let place = MemoryPlace::Class {
                class: class.to_owned(),
                pick,
            };
            let how = PageFault::Zero;
            let offset = pick % bytes / 4096 * 4096;
            (
                "pages",
                Fault::Page { place, how },
                (harm * 6.0).min(0.95),
                Some((class.to_owned(), offset)),
                format!("{class}+{offset:#x}: page zeroed"),
            )
        }
        94..97 => (
            "network",
            Fault::Frame {
                how: [FrameFault::Drop, FrameFault::Corrupt][dice.below(2) as usize],
                direction: crate::model::Direction::Output,
                pick: dice.next(),
            },
            0.7,
            None,
            "frame 3 of the boundary, 118 bytes".to_owned(),
        ),
        _ => (
            "disk",
            Fault::Block {
                how: [BlockFault::Lost, BlockFault::Torn, BlockFault::ReadError]
                    [dice.below(3) as usize],
                metadata: false,
                pick: dice.next(),
            },
            0.3,
            None,
            "write of 4096 bytes at sector 81920".to_owned(),
        ),
    }
}

fn register(dice: &mut Dice) -> Made {
    let register = REGISTERS[dice.below(26) as usize];
    let bit = dice.below(64);
    let harm = match register {
        "rip" => 0.93,
        "rsp" | "fs_base" => 0.82,
        "rflags" => match bit {
            0 | 2 | 6 | 7 | 11 => 0.25,
            8 | 18 => 0.5,
            _ => 0.01,
        },
        "rbp" | "rdi" | "rsi" | "rbx" => 0.5,
        "gs_base" => 0.02,
        _ if register.starts_with("xmm") => 0.03,
        _ if bit < 32 => 0.22,
        _ => 0.34,
    };
    let fault = Fault::Register {
        register: register.to_owned(),
        mask: 1 << bit,
        lane: u8::from(register.starts_with("xmm") && bit % 2 == 1),
        change: BitChange::Flip,
    };
    let place = format!(
        "{register} bit {bit}: 0x7f21c0de → {:#x}",
        0x7f21_c0de ^ (1u64 << bit)
    );
    (
        "registers",
        fault,
        harm,
        Some((register.to_owned(), 0)),
        place,
    )
}

fn memory(dice: &mut Dice) -> Made {
    let (class, bytes, base) = CLASSES[dice.below(7) as usize];
    let pick = dice.next();
    let offset = (pick % bytes) & !7;
    // A few stretches that are used more than the rest.
    let hot = offset * 24 / bytes % 7 == 2;
    let harm = if hot {
        (base * 4.5).min(0.9)
    } else {
        base * 0.3
    };
    let bit = dice.below(64);
    let fault = Fault::Memory {
        place: MemoryPlace::Class {
            class: class.to_owned(),
            pick,
        },
        mask: 1 << bit,
        change: BitChange::Flip,
    };
    let place = format!("{class}+{:#x} bit {}", offset + bit / 8, bit % 8);
    (
        "memory",
        fault,
        harm,
        Some((class.to_owned(), offset)),
        place,
    )
}

fn bad(dice: &mut Dice) -> Outcome {
    match dice.below(100) {
        0..62 => Outcome::Crash,
        62..80 => Outcome::Hang,
        80..92 => Outcome::ClientError,
        _ => Outcome::SilentCorruption,
    }
}

fn together(dice: &mut Dice, alone: Outcome, hit: u8, replicas: u8) -> Outcome {
    match replicas {
        1 => alone,
        2 if hit == 1 => Outcome::Stopped,
        2 => alone,
        _ if 2 * hit < replicas => Outcome::Corrected,
        _ if alone == Outcome::SilentCorruption || dice.share() < 0.2 => Outcome::SilentCorruption,
        _ => Outcome::Stopped,
    }
}

fn evidence(outcome: Outcome) -> String {
    match outcome {
        Outcome::Masked | Outcome::Corrected => "all outputs are those of the golden run",
        Outcome::Stopped => "no two ballots agree at boundary 87; the set stopped",
        Outcome::ClientError => "connection 2, byte 118: -ERR unknown command 'GEU' instead of $5",
        Outcome::Hang => "no output for 30 s of virtual time; 41 of 60 sends were made",
        Outcome::Crash => "page fault at 0x7f21c0de in redis-server+0x4821c, SIGSEGV",
        Outcome::SilentCorruption => "connection 1, byte 2071: 0x61 instead of 0x41",
        Outcome::InjectorFailure => "the page was not present when the trigger came",
    }
    .to_owned()
}
