//! Fault injection: what can be done to a replica on request, and what became of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::place::Place;

/// Faults remembered per replica; the oldest is forgotten for a new one (R10).
pub const FAULTS_KEPT: usize = 16;
/// Faults that may wait for one replica to come to a place where they can be applied. One more is refused (R10).
pub const FAULTS_WAITING: usize = 8;

/// Longest wait of [`Fault::Slow`] at one boundary, milliseconds.
pub const SLOW_MAX_MILLIS: u64 = 1000;

/// A fault to inject. In JSON an object with the key `kind`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// The virtual machine crashes (a triple fault).
    Crash,
    /// The guest spins for ever: the vCPU runs, and never reaches another boundary.
    Hang,
    /// The vCPU's thread stalls, as after `kill -STOP`: it neither runs the guest nor answers.
    Freeze,
    /// One byte of the replica's next frame or console output is changed on its way to the voter.
    WrongOutput,
    /// One byte of the replica's next block write is changed, as if the guest had written it.
    WrongWrite,
    /// The replica's thread waits before each of its next boundaries, so that it falls behind the others.
    Slow {
        /// Milliseconds at each boundary, at most [`SLOW_MAX_MILLIS`].
        millis: u64,
        /// How many boundaries.
        boundaries: u64,
    },
    /// One bit of a register is flipped.
    FlipRegister {
        /// The register's name (`rax` … `r15`, `rip`, `rflags`); chosen by the run's seed if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        register: Option<String>,
        /// The bit, 0 to 63; chosen by the run's seed if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bit: Option<u8>,
    },
    /// One bit of guest memory is flipped.
    FlipMemory {
        /// Guest-physical byte address; chosen by the run's seed if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<u64>,
        /// The place in words, see [`crate::place`]; goes before `address`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        place: Option<String>,
        /// The bit, 0 to 7; chosen by the run's seed if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bit: Option<u8>,
    },
}

impl Fault {
    /// True for faults that may stay without any visible effect.
    pub fn can_be_masked(&self) -> bool {
        matches!(
            self,
            Fault::FlipRegister { .. } | Fault::FlipMemory { .. } | Fault::Slow { .. }
        )
    }

    /// Builds a fault from the words of `quorate inject REPLICA KIND [ARGUMENT…]`.
    ///
    /// # Errors
    /// Says what is wrong with which word.
    pub fn from_words(kind: &str, arguments: &[String]) -> Result<Fault, String> {
        let none = |fault| match arguments {
            [] => Ok(fault),
            [extra, ..] => Err(format!("{kind} takes no argument, got {extra:?}")),
        };
        match kind {
            "crash" => none(Fault::Crash),
            "hang" => none(Fault::Hang),
            "freeze" => none(Fault::Freeze),
            "wrong-output" => none(Fault::WrongOutput),
            "wrong-write" => none(Fault::WrongWrite),
            "slow" => match arguments {
                [millis, boundaries] => Ok(Fault::Slow {
                    millis: number(millis, SLOW_MAX_MILLIS, "milliseconds")?,
                    boundaries: number(boundaries, u64::MAX, "boundaries")?,
                }),
                _ => Err("slow takes MILLISECONDS BOUNDARIES".to_owned()),
            },
            "flip-register" => match arguments {
                [] => Ok(Fault::FlipRegister {
                    register: None,
                    bit: None,
                }),
                [word] if word == "random" => Ok(Fault::FlipRegister {
                    register: None,
                    bit: None,
                }),
                [register, bit] => Ok(Fault::FlipRegister {
                    register: Some(register.to_ascii_lowercase()),
                    bit: Some(number(bit, 63, "bit")? as u8),
                }),
                _ => Err("flip-register takes REGISTER BIT, or random".to_owned()),
            },
            "flip-memory" => match arguments {
                [] => Ok(Fault::FlipMemory {
                    address: None,
                    place: None,
                    bit: None,
                }),
                [word] if word == "random" => Ok(Fault::FlipMemory {
                    address: None,
                    place: None,
                    bit: None,
                }),
                [place, bit] => {
                    let bit = Some(number(bit, 7, "bit")? as u8);
                    let (address, place) = match place.parse::<Place>()? {
                        Place::Physical(address) => (Some(address), None),
                        _ => (None, Some(place.clone())),
                    };
                    Ok(Fault::FlipMemory {
                        address,
                        place,
                        bit,
                    })
                }
                _ => Err("flip-memory takes PLACE BIT, or random".to_owned()),
            },
            _ => Err(format!(
                "unknown kind {kind:?}: one of crash, hang, freeze, wrong-output, wrong-write, slow, flip-register, flip-memory"
            )),
        }
    }
}

fn number(word: &str, max: u64, what: &str) -> Result<u64, String> {
    let parsed = match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => word.parse(),
    };
    match parsed {
        Ok(value) if value <= max => Ok(value),
        _ => Err(format!(
            "{what} must be a number from 0 to {max}, got {word:?}"
        )),
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Crash => "crash",
            Fault::Hang => "hang",
            Fault::Freeze => "freeze",
            Fault::WrongOutput => "wrong-output",
            Fault::WrongWrite => "wrong-write",
            Fault::Slow { .. } => "slow",
            Fault::FlipRegister { .. } => "flip-register",
            Fault::FlipMemory { .. } => "flip-memory",
        })
    }
}

/// Where an injected fault was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The replica.
    pub replica: usize,
    /// The last boundary it had completed.
    pub boundary: u64,
    /// What was done, with the exact place.
    pub detail: String,
}

/// Changes one byte of an output of `replica`.
pub fn corrupt(bytes: &mut [u8], replica: usize) {
    // The last byte: in a frame that carries data it is content, and the console has nothing else. Each replica's in its
    // own way: two replicas that are wrong in the same way are a majority, and no vote can find that.
    if let Some(byte) = bytes.last_mut() {
        *byte ^= 0x20 | (replica as u8 & 0x0f);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn words(line: &str) -> Result<Fault, String> {
        let mut words = line.split(' ').map(str::to_owned);
        let kind = words.next().unwrap();
        Fault::from_words(&kind, &words.collect::<Vec<_>>())
    }

    #[test]
    fn words_become_faults() {
        assert_eq!(words("crash"), Ok(Fault::Crash));
        assert_eq!(
            words("flip-register RAX 63"),
            Ok(Fault::FlipRegister {
                register: Some("rax".into()),
                bit: Some(63)
            })
        );
        assert_eq!(
            words("flip-memory 0x1000 7"),
            Ok(Fault::FlipMemory {
                address: Some(4096),
                place: None,
                bit: Some(7)
            })
        );
        assert_eq!(
            words("flip-memory random"),
            Ok(Fault::FlipMemory {
                address: None,
                place: None,
                bit: None
            })
        );
    }

    #[test]
    fn wrong_words_are_named() {
        assert!(
            words("flip-register rax 64")
                .unwrap_err()
                .contains("\"64\"")
        );
        assert!(
            words("flip-memory 0x1000 8")
                .unwrap_err()
                .contains("0 to 7")
        );
        assert!(words("crash now").unwrap_err().contains("\"now\""));
        assert!(words("melt").unwrap_err().contains("\"melt\""));
    }

    #[test]
    fn json_names_the_kind_and_refuses_unknown_keys() {
        let json = serde_json::to_string(&Fault::FlipMemory {
            address: Some(1),
            place: None,
            bit: Some(2),
        })
        .unwrap();
        assert_eq!(json, r#"{"kind":"flip-memory","address":1,"bit":2}"#);
        assert!(serde_json::from_str::<Fault>(r#"{"kind":"flip-memory","adress":1}"#).is_err());
    }

    #[test]
    fn corruption_changes_exactly_one_byte_in_each_replica_another_way() {
        let mut seen = std::collections::HashSet::new();
        for replica in 0..quorate_voter::MAX_REPLICAS {
            let mut bytes = vec![7; 100];
            corrupt(&mut bytes, replica);
            assert_eq!(bytes.iter().filter(|byte| **byte != 7).count(), 1);
            assert!(
                seen.insert(bytes),
                "replica {replica} is wrong as another is"
            );
        }
    }
}
