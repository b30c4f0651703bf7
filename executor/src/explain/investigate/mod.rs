//! From a dump to an explanation.
//!
//! A machine does the same with the same entries, bit for bit, if it has the same layout. So the replica's dump is compared with a
//! healthy machine of the replica's layout at the same place: what differs is what was hit, and what came of it. Which of the two it is
//! is found out by trial: a bit that differs all by itself is flipped in the healthy machine before the divergence; if that goes the
//! same way, it was this one.

mod cause;
mod flip;

use std::path::Path;
use std::rc::Rc;

use quorate_abi::boot::Layout;
use quorate_abi::flight::Record;
use quorate_vmm::Checkpoint;

use super::atlas::{self, Atlas, Kind, relative};
use super::binary::{Binary, REGISTERS, RIP, RSP, Registers};
use super::calls::{self, Buffer};
use super::crash;
use super::difference::{PageDifference, differences};
use super::files::Files;
use super::find::Divergence;
use super::flight::{self, Compared, Log};
use super::hex;
use super::lab::{Ended, Lab, LabError, Spoil};
use super::memory::{Memory, read_virt};
use super::report::{CallReport, Calls, Cause, Explanation, PageReport, Side};
use super::stack::backtrace;
use crate::record::Recording;
use crate::seeds::Seed;
use flip::agrees;

/// Pages that are listed.
const MAX_PAGES: usize = 16;
/// Calls before the first that differs that are shown.
const CALLS_BEFORE: u64 = 4;
/// Exceptions after one call that are gone through to get to a certain one.
const STOPS: usize = 16;

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
        let start = atlas::regions(&layout)
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
