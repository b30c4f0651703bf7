//! A fault that is made up: a healthy machine of a recording is spoiled in a replay, and what comes of it is explained as if it had
//! happened. To find out what a fault would do, and to see that explanations are right.

use std::path::Path;

use quorate_vmm::Checkpoint;

use crate::inject::Fault;
use crate::place::Place;
use crate::record::Recording;
use crate::seeds::Seed;

use super::find::{Divergence, Injected};
use super::lab::{Ended, Lab, LabError, Spoil};

/// Boundaries after which a fault that has shown no effect is taken to have none.
const PATIENCE: u64 = 256;

/// Why a fault cannot be planted.
#[derive(Debug, thiserror::Error)]
pub enum PlantError {
    /// The replay.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The fault.
    #[error("{0}")]
    Fault(String),
    /// It does nothing.
    #[error("the fault shows no effect within {0} boundaries")]
    Masked(u64),
}

/// Spoils a healthy machine at boundary `at`, before its entry is delivered, and goes on until it differs from what it should be.
///
/// # Errors
/// When that cannot be done, or nothing comes of it.
pub fn plant(
    recording: &Recording,
    image: Option<&Path>,
    layout_seed: Seed,
    at: u64,
    fault: &Fault,
) -> Result<(Divergence, Checkpoint), PlantError> {
    let mut lab = Lab::open(recording, image, layout_seed, at)?;
    let before = lab.healthy_at(at)?;
    let wrong = |text: String| PlantError::Fault(text);
    let (spoil, detail) = match fault {
        Fault::FlipMemory {
            address,
            place,
            bit,
        } => {
            let place = match (place, address) {
                (Some(place), _) => place.parse::<Place>().map_err(wrong)?,
                (None, Some(address)) => Place::Physical(*address),
                (None, None) => return Err(wrong("say which bit of which byte".to_owned())),
            };
            let physical = place.physical(lab.machine()).map_err(wrong)?;
            let bit = bit.unwrap_or(0);
            (
                Spoil::Memory { at: physical, bit },
                format!("physical address {physical:#x} bit {bit} ({place})"),
            )
        }
        Fault::FlipRegister {
            register: Some(name),
            bit: Some(bit),
        } => {
            let register = name.parse().map_err(|error| wrong(format!("{error}")))?;
            (
                Spoil::Register {
                    register,
                    bit: *bit,
                },
                format!("{name} bit {bit}"),
            )
        }
        other => {
            return Err(wrong(format!(
                "{other} cannot be made up: only flip-memory and flip-register with all that they take"
            )));
        }
    };
    let count = PATIENCE.min(recording.boundaries().end.saturating_sub(at + 1));
    let healthy = lab.outputs(&before, Spoil::Nothing, count)?;
    let spoiled = lab.outputs(&before, spoil, count)?;
    let differs = healthy
        .iter()
        .zip(&spoiled)
        .position(|(one, two)| one != two)
        .or((spoiled.len() < healthy.len()).then_some(spoiled.len()));
    let Some(differs) = differs else {
        return Err(PlantError::Masked(count));
    };
    let boundary = at + 1 + differs as u64;
    let reason = match lab.trial(&before, spoil, boundary)? {
        Ended::Crashed(report) => format!("crashed: {}", report.kind),
        Ended::Misbehaved(report) => report,
        _ => "made up: it would have been outvoted".to_owned(),
    };
    let dump = lab.dump()?;
    let divergence = Divergence {
        number: 0,
        replica: 0,
        boundary,
        verdict: None,
        reason,
        generation: 0,
        injected: vec![Injected {
            boundary: at,
            detail,
        }],
    };
    Ok((divergence, dump))
}
