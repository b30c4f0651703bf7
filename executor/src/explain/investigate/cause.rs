//! What was hit: each bit that may have been is flipped in the healthy machine before the divergence, until one makes it go the way of
//! the replica.

use std::time::{Duration, Instant};

use quorate_vmm::Register;
use quorate_vmm::fault::{FaultRegister, Group};

use super::Bench;
use super::flip::{Flipped, flipped, of_program};
use crate::explain::atlas::Atlas;
use crate::explain::difference::{Suspect, differences, suspects};
use crate::explain::flight::{self, Compared};
use crate::explain::hex;
use crate::explain::lab::{Ended, LabError, Spoil};
use crate::explain::memory::Memory;
use crate::explain::report::{Cause, Found, Proof};

/// Bits that are tried (R10), and how long.
const MAX_TRIALS: usize = 512;
const TRIAL_TIME: Duration = Duration::from_secs(60);
/// The same for all bits of all registers.
const REGISTER_TIME: Duration = Duration::from_secs(180);
/// Boundaries that a trial goes on after the divergence to compare all of memory.
const MAX_ON: u64 = 256;
/// Bytes shown around the place that was hit, on each side.
const AROUND: u64 = 32;

impl Bench<'_, '_> {
    /// Looks for what was hit, and says how to do it to a healthy machine.
    pub(super) fn cause(&mut self, atlas: &Atlas<'_>) -> Result<(Cause, Option<Spoil>), LabError> {
        let same_calls = matches!(self.compared, Compared::Same);
        if self.level && self.found.is_empty() && same_calls {
            return Ok((Cause::Outside, None));
        }
        let suspects = suspects(&self.healthy, Some(&self.before), &self.found);
        let until = Instant::now() + crate::patience::patient(TRIAL_TIME);
        let mut best: Option<(Suspect, Proof)> = None;
        for suspect in suspects.iter().take(MAX_TRIALS) {
            if Instant::now() > until {
                break;
            }
            let proof = self.try_bit(suspect.spoil())?;
            if best.is_none_or(|(_, known)| proof < known) {
                best = Some((*suspect, proof));
            }
            if proof == Proof::Exact {
                break;
            }
        }
        if let Some((suspect, proof)) = best.filter(|(_, proof)| *proof != Proof::None) {
            return Ok((
                self.memory_cause(atlas, &suspect, proof, Found::Evidence),
                Some(suspect.spoil()),
            ));
        }
        if !self.case.blind
            && let Some(found) = self.recorded(atlas)?
        {
            return Ok(found);
        }
        if let Some(found) = self.registers(atlas)? {
            return Ok(found);
        }
        let mut text = "no single bit of memory, and no bit of a register at the boundary before, does to a healthy machine what happened to \
                        the replica. It may have been a register while the guest ran, or more than one bit"
            .to_owned();
        if let Some(suspect) = suspects.iter().find(|suspect| suspect.still) {
            // It may have done its work through what is gone now.
            let place = atlas.place(suspect.at).text;
            text.push_str(&format!(
                ". All by itself differs bit {} of {place}",
                suspect.bit
            ));
        }
        let cause = Cause::Unknown { text };
        Ok((cause, None))
    }

    /// The injected fault that the recording has, if it is a flipped bit.
    fn recorded(&mut self, atlas: &Atlas<'_>) -> Result<Option<(Cause, Option<Spoil>)>, LabError> {
        for injected in self.case.divergence.injected.iter().rev() {
            match flipped(&injected.detail) {
                Some(Flipped::Memory { at, bit }) => {
                    let spoil = Spoil::Memory { at, bit };
                    let proof = self.try_bit(spoil)?;
                    let byte = |memory: &dyn Memory| {
                        let mut byte = [0];
                        if memory.read(at, &mut byte) {
                            byte[0]
                        } else {
                            0
                        }
                    };
                    let healthy = byte(&self.before);
                    let suspect = Suspect {
                        at,
                        bit,
                        healthy,
                        other: healthy ^ 1 << (bit & 7),
                        still: false,
                        company: 0,
                    };
                    let cause = self.memory_cause(atlas, &suspect, proof, Found::Recorded);
                    return Ok(Some((cause, Some(spoil))));
                }
                Some(Flipped::Register { register, bit }) => {
                    let spoil = Spoil::Register { register, bit };
                    let proof = self.try_bit(spoil)?;
                    let name = register.name().to_owned();
                    let cause = self.register_cause(atlas, name, bit, proof, Found::Recorded);
                    return Ok(Some((cause, Some(spoil))));
                }
                Some(Flipped::Program { register, bit }) => {
                    let spoil = Spoil::Program { register, bit };
                    let proof = self.try_bit(spoil)?;
                    let name = of_program(register);
                    let cause = self.register_cause(atlas, name, bit, proof, Found::Recorded);
                    return Ok(Some((cause, Some(spoil))));
                }
                None => {}
            }
        }
        Ok(None)
    }

    /// Tries every bit of every register.
    fn registers(&mut self, atlas: &Atlas<'_>) -> Result<Option<(Cause, Option<Spoil>)>, LabError> {
        (self.case.progress)("trying the bits of the registers");
        let until = Instant::now() + crate::patience::patient(REGISTER_TIME);
        let mut best = None;
        // Those that every code needs come first.
        let first = ["rsp", "rip", "rbp", "rbx", "rdx", "rax"];
        let others = Register::names().filter(|name| !first.contains(name));
        let names = first.into_iter().chain(others);
        let vcpus = names
            .filter_map(|name| name.parse::<Register>().ok())
            .flat_map(|register| (0..64).map(move |bit| (Spoil::Register { register, bit }, bit)));
        // What the program's vector registers hold is seen in memory soon enough.
        let groups = [Group::Pc, Group::General, Group::SegmentBase, Group::Flags];
        let programs = groups
            .into_iter()
            .flat_map(FaultRegister::of)
            .flat_map(|register| {
                let bits = (0..64).filter(move |bit| register.bits() >> bit & 1 != 0);
                bits.map(move |bit| (Spoil::Program { register, bit }, bit))
            });
        for (spoil, bit) in vcpus.chain(programs) {
            if Instant::now() > until {
                return Ok(best);
            }
            let proof = match self.try_bit(spoil) {
                // The host does not let a guest have that value: so it was not that.
                Err(LabError::Fault(_)) => continue,
                proof => proof?,
            };
            if proof == Proof::Exact || (proof == Proof::Same && best.is_none()) {
                let name = match spoil {
                    Spoil::Program { register, .. } => of_program(register),
                    Spoil::Register { register, .. } => register.name().to_owned(),
                    _ => continue,
                };
                let cause = self.register_cause(atlas, name, bit, proof, Found::Trial);
                best = Some((cause, Some(spoil)));
                if proof == Proof::Exact {
                    return Ok(best);
                }
            }
        }
        Ok(best)
    }

    fn register_cause(
        &self,
        atlas: &Atlas<'_>,
        register: String,
        bit: u8,
        proof: Proof,
        found: Found,
    ) -> Cause {
        let registers = self.before.registers();
        Cause::Register {
            register,
            bit,
            proof,
            boundary: self.before.boundary(),
            place: atlas.address(self.before.root(), registers.rip),
            found,
        }
    }

    fn memory_cause(
        &self,
        atlas: &Atlas<'_>,
        suspect: &Suspect,
        proof: Proof,
        found: Found,
    ) -> Cause {
        let from = suspect.at.saturating_sub(AROUND) & !15;
        let from = from.max(suspect.at & !0xfff);
        let len = (suspect.at + AROUND - from).min((from & !0xfff) + 0x1000 - from) as usize;
        let bytes = |memory: &dyn Memory| {
            let mut bytes = vec![0; len];
            memory.read(from, &mut bytes);
            bytes
        };
        let (one, two) = (bytes(&self.healthy), bytes(&self.case.dump));
        let mut around = hex::diff(&hex::Sides {
            one: ("healthy", &one),
            two: ("replica", &two),
            base: from & 0xfff,
        });
        if around.is_empty() {
            around = "the replica has written over it since\n".to_owned();
        }
        Cause::Memory {
            place: Box::new(atlas.place(suspect.at)),
            bit: suspect.bit,
            healthy: suspect.healthy,
            replica: suspect.other,
            proof,
            boundary: self.before.boundary(),
            around,
            found,
        }
    }

    /// Spoils a healthy machine at the boundary before the divergence, and sees whether it goes the way of the replica.
    fn try_bit(&mut self, spoil: Spoil) -> Result<Proof, LabError> {
        let (case, boundary) = (self.case, self.case.divergence.boundary);
        let before = self.before.clone();
        let there = case.dump.boundary();
        let on = there >= boundary && there - boundary <= MAX_ON;
        let until = if on { there } else { boundary };
        let until = until.max(before.boundary() + 1);
        match self.lab.trial(&before, spoil, until) {
            Ok(Ended::At(..)) => {}
            Ok(Ended::Crashed(report)) => {
                let (one, two) = (report.registers.as_deref(), case.dump.registers());
                let same = one.is_some_and(|one| (one.rip, one.rsp) == (two.rip, two.rsp));
                return Ok(match same && !case.dump.at_boundary() {
                    true if self.same_memory()? => Proof::Exact,
                    true => Proof::Same,
                    false => Proof::None,
                });
            }
            // KVM does not take every value of a register.
            Ok(_) | Err(LabError::Machine(_)) => return Ok(Proof::None),
            Err(error) => return Err(error),
        }
        if !self.goes_wrong_alike()? {
            return Ok(Proof::None);
        }
        Ok(if on && self.same_memory()? {
            Proof::Exact
        } else {
            Proof::Same
        })
    }

    fn same_memory(&mut self) -> Result<bool, LabError> {
        let spoiled = self.lab.dump()?;
        Ok(differences(&spoiled, &self.case.dump).is_empty())
    }

    /// Whether the spoiled machine's calls are those of the replica where these differ from a healthy machine's.
    fn goes_wrong_alike(&mut self) -> Result<bool, LabError> {
        match self.compared {
            Compared::Differs { number, .. } | Compared::Further { number } => {
                let Ok(spoiled) = flight::read(&self.lab.live(), self.layout.kernel) else {
                    return Ok(false);
                };
                Ok(match (spoiled.get(number), self.dump_log.get(number)) {
                    (Some(one), Some(two)) => one == two,
                    _ => false,
                })
            }
            Compared::Unfinished { .. } | Compared::Nothing => Ok(false),
            // The calls say nothing: memory has to.
            Compared::Same => self.same_memory(),
        }
    }
}

impl Suspect {
    fn spoil(&self) -> Spoil {
        Spoil::Memory {
            at: self.at,
            bit: self.bit,
        }
    }
}
