//! From a dump to an explanation.
//!
//! A machine does the same with the same entries, bit for bit, if it has the same layout. So the replica's dump is compared with a
//! healthy machine of the replica's layout at the same place: what differs is what was hit, and what came of it. Which of the two it is
//! is found out by trial: a bit that differs all by itself is flipped in the healthy machine before the divergence; if that goes the
//! same way, it was this one.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use quorate_abi::boot::Layout;
use quorate_abi::flight::Record;
use quorate_vmm::fault::{FaultRegister, Group};
use quorate_vmm::{Checkpoint, Register};

use crate::record::Recording;
use crate::seeds::Seed;

use super::atlas::{Atlas, Kind, relative};
use super::binary::{Binary, REGISTERS, RIP, RSP, Registers};
use super::calls::{self, Buffer};
use super::crash;
use super::difference::{PageDifference, Suspect, differences, suspects};
use super::files::Files;
use super::find::Divergence;
use super::flight::{self, Compared, Log};
use super::hex;
use super::lab::{Ended, Lab, LabError, Spoil};
use super::memory::{Memory, read_virt};
use super::report::{CallReport, Calls, Cause, Explanation, Found, PageReport, Proof, Side};
use super::stack::backtrace;

/// Bits that are tried (R10), and how long.
const MAX_TRIALS: usize = 512;
const TRIAL_TIME: Duration = Duration::from_secs(60);
/// The same for all bits of all registers.
const REGISTER_TIME: Duration = Duration::from_secs(180);
/// Pages that are listed.
const MAX_PAGES: usize = 16;
/// Calls before the first that differs that are shown.
const CALLS_BEFORE: u64 = 4;
/// Boundaries that a trial goes on after the divergence to compare all of memory.
const MAX_ON: u64 = 256;
/// Exceptions after one call that are gone through to get to a certain one.
const STOPS: usize = 16;
/// Bytes shown around the place that was hit, on each side.
const AROUND: u64 = 32;
/// What an explanation is made from.
pub struct Case<'a> {
    /// The recording.
    pub recording: &'a Recording,
    /// The image, if it is elsewhere now.
    pub image: Option<&'a Path>,
    /// The guest kernel's ELF file.
    pub kernel: &'a [u8],
    /// The divergence.
    pub divergence: Divergence,
    /// The layout seed of the replica.
    pub layout_seed: Seed,
    /// The replica's machine as it was stopped.
    pub dump: Checkpoint,
    /// The layout seed of another replica, for a healthy machine of another layout; none to do without.
    pub other_seed: Option<Seed>,
    /// Do not use what the recording says about injected faults, but to compare it with what was found.
    pub blind: bool,
    /// Says what is being done.
    pub progress: &'a dyn Fn(&str),
}

/// What is known of the machines while the search goes on.
struct Bench<'a, 'r> {
    case: &'a Case<'r>,
    lab: Lab<'r>,
    layout: Layout,
    /// The boundary before the divergence: there the healthy machine is spoiled.
    before: Checkpoint,
    /// The healthy machine where the dump was taken, or as near as can be.
    healthy: Checkpoint,
    healthy_log: Log,
    dump_log: Log,
    /// The dump and `healthy` stand at the same place.
    level: bool,
    found: Vec<PageDifference>,
    compared: Compared,
}

fn log(memory: &dyn Memory, layout: &Layout, whose: &'static str) -> Result<Log, LabError> {
    flight::read(memory, layout.kernel).map_err(|error| LabError::Log { whose, error })
}

/// Explains one divergence.
///
/// # Errors
/// When the recording cannot be replayed up to there, or one of the memories has no flight recorder.
pub fn explain(case: &Case<'_>) -> Result<Explanation, LabError> {
    let header = case.recording.header();
    let image = case.image.unwrap_or(&header.image.path);
    let program = header.program.argv.first().map_or("", String::as_str);
    let files = Files::open(image, program).unwrap_or_else(|_| Files::none());
    let kernel = Binary::parse("guest kernel", case.kernel);
    let kernel = kernel.map_or_else(|| Rc::new(Binary::unknown()), Rc::new);
    let mut bench = Bench::set_up(case)?;
    let dump_atlas = Atlas::new(
        &case.dump,
        bench.layout,
        kernel.clone(),
        &files,
        Some(&bench.dump_log),
    );
    let healthy_log = bench.healthy_log.clone();
    let healthy = bench.healthy.clone();
    let healthy_atlas = Atlas::new(&healthy, bench.layout, kernel, &files, Some(&healthy_log));

    (case.progress)("looking for the bit that was hit");
    let (cause, spoil) = bench.cause(&healthy_atlas)?;
    (case.progress)("looking at the first call that differs");
    let call = bench.call(&healthy_atlas, &dump_atlas, spoil)?;
    let crash = crash::side(
        &case.dump,
        &bench.dump_log,
        &bench.healthy,
        &dump_atlas,
        &case.divergence,
    );
    let other_layout = match (&cause, case.other_seed) {
        (Cause::Memory { place, .. }, Some(seed)) if place.relative.is_some() => {
            (case.progress)("replaying with another layout");
            let virt = place.virt.unwrap_or(0);
            bench.elsewhere(seed, virt).unwrap_or(None)
        }
        _ => None,
    };
    let (pages, kinds) = bench.pages(&dump_atlas, &cause);
    let agrees_with_injected = agrees(&cause, &case.divergence);
    Ok(Explanation {
        divergence: case.divergence.clone(),
        compared: bench.compared_with(),
        call,
        crash,
        cause,
        other_layout,
        pages,
        kinds,
        agrees_with_injected,
    })
}

impl<'a, 'r> Bench<'a, 'r> {
    fn set_up(case: &'a Case<'r>) -> Result<Bench<'a, 'r>, LabError> {
        let dump = &case.dump;
        let boundary = case.divergence.boundary;
        (case.progress)("replaying a healthy machine of the replica's layout");
        let start = boundary.saturating_sub(1);
        let mut lab = Lab::open(case.recording, case.image, case.layout_seed, start)?;
        let layout = *lab.machine().layout();
        let before = lab.healthy_at(start)?;
        let dump_log = log(dump, &layout, "the replica's dump")?;
        // A dump that stands at a boundary is compared with the healthy machine there; any other with the healthy machine after the
        // last call that the replica completed.
        let there = dump.boundary();
        let end = case.recording.boundaries().end.saturating_sub(1);
        let (healthy, level) = if dump.at_boundary() && there <= end && there >= start {
            match lab.healthy_at(there) {
                Ok(healthy) => (healthy, true),
                // The set ended before it got there.
                Err(LabError::TooShort(_)) => (lab.healthy_at(boundary.min(end))?, false),
                Err(error) => return Err(error),
            }
        } else {
            let last = lab.healthy_at(there.saturating_sub(1).clamp(start, end))?;
            let log_there = log(&last, &layout, "the healthy machine")?;
            let calls = dump_log.records.last().map_or(0, |record| record.call);
            let done = log_there.records.last().map_or(0, |record| record.call);
            let stopped = calls > done
                && matches!(
                    lab.run(
                        &last,
                        Spoil::Nothing,
                        last.boundary() + 1,
                        Some((calls, &log_there))
                    )?,
                    Ended::Stopped
                );
            let healthy = if stopped { lab.dump()? } else { last };
            (healthy, false)
        };
        // The healthy machine's calls up to the divergence, even if its memory was taken before that.
        let after = lab
            .healthy_at(healthy.boundary().max(boundary).min(end))
            .or_else(|error| match error {
                LabError::TooShort(_) => Ok(healthy.clone()),
                other => Err(other),
            })?;
        let healthy_log = log(&after, &layout, "the healthy machine")?;
        let compared = flight::compare(&healthy_log, &dump_log);
        let found = differences(&healthy, dump);
        Ok(Bench {
            case,
            lab,
            layout,
            before,
            healthy,
            healthy_log,
            dump_log,
            level,
            found,
            compared,
        })
    }

    fn compared_with(&self) -> String {
        let place = if self.level {
            format!("both at boundary {}", self.case.dump.boundary())
        } else {
            format!(
                "the replica as it was lost after boundary {}, a healthy machine after the same system call",
                self.case.dump.boundary().saturating_sub(1)
            )
        };
        format!("with a healthy replay of the same layout, {place}")
    }

    /// Looks for what was hit, and says how to do it to a healthy machine.
    fn cause(&mut self, atlas: &Atlas<'_>) -> Result<(Cause, Option<Spoil>), LabError> {
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

    fn call(
        &mut self,
        healthy: &Atlas<'_>,
        dump: &Atlas<'_>,
        spoil: Option<Spoil>,
    ) -> Result<CallReport, LabError> {
        let mut report = CallReport {
            calls: Calls::Same,
            fields: Vec::new(),
            maybe_earlier: false,
            healthy: None,
            replica: None,
            buffers: String::new(),
            before: Vec::new(),
        };
        let number = match self.compared.clone() {
            Compared::Same => return Ok(report),
            Compared::Nothing => {
                report.calls = Calls::Unknown;
                return Ok(report);
            }
            Compared::Differs {
                number,
                fields,
                maybe_earlier,
            } => {
                report.calls = Calls::Differs;
                report.fields = fields;
                report.maybe_earlier = maybe_earlier;
                number
            }
            Compared::Unfinished { number } => {
                report.calls = Calls::Unfinished;
                number
            }
            Compared::Further { number } => {
                report.calls = Calls::Further;
                number
            }
        };
        let nothing: calls::Read<'_> = &|_, _| Vec::new();
        for earlier in number.saturating_sub(CALLS_BEFORE)..number {
            if let Some(record) = self.healthy_log.get(earlier) {
                report
                    .before
                    .push(format!("#{} {}", record.call, calls::line(record, nothing)));
            }
        }
        let mut sides = (None, None);
        if let Some(record) = self.healthy_log.get(number).copied() {
            let (side, buffer) = self.side(&record, healthy, Spoil::Nothing, None)?;
            report.healthy = Some(side);
            sides.0 = buffer;
        }
        if let Some(record) = self.dump_log.get(number).copied() {
            let (side, buffer) = self.side(
                &record,
                dump,
                spoil.unwrap_or(Spoil::Nothing),
                Some(spoil.is_some()),
            )?;
            report.replica = Some(side);
            sides.1 = buffer;
        }
        if let (Some(one), Some(two)) = sides {
            report.buffers = hex::diff(&hex::Sides {
                one: ("healthy", &one.bytes),
                two: ("replica", &two.bytes),
                base: 0,
            });
        }
        Ok(report)
    }

    /// One side of a call: from a machine that is stopped right after it, or, for the replica, where it cannot be done again, from
    /// its dump. `again`: none for the healthy side; else whether the replica's way can be gone again.
    fn side(
        &mut self,
        record: &Record,
        atlas: &Atlas<'_>,
        spoil: Spoil,
        again: Option<bool>,
    ) -> Result<(Side, Option<Buffer>), LabError> {
        let before = self.before.clone();
        let until = self.case.divergence.boundary.max(before.boundary() + 1);
        let log = self.healthy_log.clone();
        let mut exact = false;
        if again != Some(false) {
            let mut ended = self
                .lab
                .run(&before, spoil, until + 1, Some((record.call, &log)))?;
            // An exception has the number of the call before it, at which the machine stops too.
            for _ in 0..STOPS {
                if !matches!(ended, Ended::Stopped) {
                    break;
                }
                let live = flight::read(&self.lab.live(), self.layout.kernel).ok();
                exact = live.and_then(|live| live.records.last().copied()) == Some(*record);
                if exact {
                    break;
                }
                ended = self.lab.go_on()?;
            }
        }
        let live = self.lab.live();
        let memory: &dyn Memory = if exact { &live } else { &self.case.dump };
        let root = Atlas::root_of(record);
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            let there = read_virt(memory, root, at, &mut bytes);
            bytes.truncate(there);
            bytes
        };
        let mut registers: Registers = [None; REGISTERS];
        if exact && let Some((saved, _)) = log.entered_with(memory) {
            registers = flight::saved(&saved);
        }
        registers[RIP] = Some(record.rip);
        registers[RSP] = Some(record.rsp);
        let side = Side {
            call: record.call,
            name: calls::title(record),
            line: calls::line(record, &read),
            thread: record.tid,
            process: record.pid,
            boundary: record.boundary,
            backtrace: backtrace(memory, atlas, root, &registers),
            exact,
        };
        Ok((side, calls::buffer(record, &read)))
    }

    /// What a healthy machine with another layout has at the same place, relative to the region.
    fn elsewhere(&self, seed: Seed, virt: u64) -> Result<Option<String>, LabError> {
        let case = self.case;
        let at = self
            .healthy
            .boundary()
            .min(case.recording.boundaries().end.saturating_sub(1));
        let mut lab = Lab::open(case.recording, case.image, seed, at)?;
        let layout = *lab.machine().layout();
        let there = lab.healthy_at(at)?;
        let Some((region, offset)) = relative(&self.layout, virt) else {
            return Ok(None);
        };
        let start = super::atlas::regions(&layout)
            .into_iter()
            .find(|(name, ..)| *name == region)
            .map_or(0, |(_, start, _)| start);
        let from = (offset & !15).saturating_sub(16);
        let mut bytes = [0; 48];
        let done = read_virt(&there, there.root(), start + from, &mut bytes);
        if done == 0 {
            return Ok(None);
        }
        Ok(Some(format!(
            "a healthy machine with another layout has at {region}+{from:#x} ({:#x} there):\n{}",
            start + from,
            hex::dump(&bytes[..done], from & 0xfff, 3)
        )))
    }

    fn pages(&self, atlas: &Atlas<'_>, cause: &Cause) -> (Vec<PageReport>, Vec<(Kind, usize)>) {
        let mut kinds = std::collections::BTreeMap::new();
        let mut pages: Vec<PageReport> = self
            .found
            .iter()
            .map(|difference| {
                let first = difference
                    .runs
                    .first()
                    .map_or(difference.page, |run| run.at);
                let place = atlas.place(first);
                *kinds.entry(place.kind).or_insert(0) += 1;
                PageReport {
                    place,
                    bytes: difference.bytes,
                }
            })
            .collect();
        let hit = match cause {
            Cause::Memory { place, .. } => place.physical & !0xfff,
            _ => 0,
        };
        pages.sort_by_key(|page| {
            (
                page.place.physical & !0xfff != hit,
                page.bytes,
                page.place.physical,
            )
        });
        pages.truncate(MAX_PAGES);
        (pages, kinds.into_iter().collect())
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

/// What a register is called that the program will have when its kernel goes back to it.
fn of_program(register: FaultRegister) -> String {
    format!("{} of the program", register.name())
}

/// A flipped bit, as an event tells it.
#[derive(Clone, Copy, Debug)]
enum Flipped {
    Memory { at: u64, bit: u8 },
    Register { register: Register, bit: u8 },
    Program { register: FaultRegister, bit: u8 },
}

/// Reads what [`crate::machine`] or a campaign says of a flip that it made: `physical address 0x1234 bit 5: …`, `rbx bit 7: …` or
/// `the program's rbx bit 7: …`.
fn flipped(detail: &str) -> Option<Flipped> {
    let words: Vec<&str> = detail.split_whitespace().collect();
    let place = words.windows(3).position(|three| three[1] == "bit")?;
    let bit = words[place + 2].trim_end_matches(':').parse().ok()?;
    let what = words[place].trim_end_matches(',');
    match what.strip_prefix("0x") {
        Some(address) => Some(Flipped::Memory {
            at: u64::from_str_radix(address, 16).ok()?,
            bit,
        }),
        None if place > 0 && words[place - 1] == "program's" => Some(Flipped::Program {
            register: what.parse().ok()?,
            bit,
        }),
        None => Some(Flipped::Register {
            register: what.parse().ok()?,
            bit,
        }),
    }
}

/// Whether what was found is what was injected; none if nothing was, or what was is no flipped bit.
fn agrees(cause: &Cause, divergence: &Divergence) -> Option<bool> {
    let mut flips = divergence
        .injected
        .iter()
        .filter_map(|injected| flipped(&injected.detail))
        .peekable();
    flips.peek()?;
    Some(flips.any(|flip| match (cause, flip) {
        (
            Cause::Memory {
                place, bit: found, ..
            },
            Flipped::Memory { at, bit },
        ) => (place.physical, *found) == (at, bit),
        (
            Cause::Register {
                register,
                bit: found,
                ..
            },
            Flipped::Register {
                register: other,
                bit,
            },
        ) => *register == other.name() && *found == bit,
        (
            Cause::Register {
                register,
                bit: found,
                ..
            },
            Flipped::Program {
                register: other,
                bit,
            },
        ) => *register == of_program(other) && *found == bit,
        _ => false,
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn what_an_event_says_of_a_flip_is_understood() {
        let memory = flipped("physical address 0x5c123 bit 5: 0x41 became 0x61").unwrap();
        assert!(matches!(
            memory,
            Flipped::Memory {
                at: 0x5c123,
                bit: 5
            }
        ));
        let register = flipped("rbx bit 42: 0x1 became 0x2").unwrap();
        assert!(
            matches!(register, Flipped::Register { register, bit: 42 } if register.name() == "rbx")
        );
        let program = flipped("flip: the program's fs_base bit 63: 0x1 became 0x2").unwrap();
        assert!(
            matches!(program, Flipped::Program { register, bit: 63 } if register.name() == "fs_base")
        );
        assert!(flipped("its next frame or console output is changed").is_none());
        assert!(flipped("a triple fault").is_none());
    }
}
