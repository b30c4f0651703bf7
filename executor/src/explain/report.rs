//! What an explanation says, as data and as text.

use std::fmt;

use serde::Serialize;

use super::atlas::{Kind, Place};
use super::find::Divergence;
use super::flight::Field;
use super::stack::Frame;

/// One side of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Running number of the call.
    pub call: u64,
    /// Its name.
    pub name: String,
    /// The call with arguments and result, as `strace` shows it.
    pub line: String,
    /// Thread.
    pub thread: u32,
    /// Process.
    pub process: u32,
    /// Boundary with which its digest went out.
    pub boundary: u32,
    /// The code that made it, and its callers.
    pub backtrace: Vec<Frame>,
    /// Whether memory and backtrace are those of the moment of the call, not of later.
    pub exact: bool,
}

/// How the system calls compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Calls {
    /// A call differs.
    Differs,
    /// The replica did not complete a call that a healthy one makes.
    Unfinished,
    /// The replica made a call that a healthy one does not make.
    Further,
    /// All calls are the same.
    Same,
    /// The recorder does not go back far enough.
    Unknown,
}

/// The first system call that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CallReport {
    /// How they compare.
    pub calls: Calls,
    /// In what, if both made it.
    pub fields: Vec<Field>,
    /// It may have been an earlier one, which the recorder has forgotten.
    pub maybe_earlier: bool,
    /// The healthy machine's side.
    pub healthy: Option<Side>,
    /// The replica's.
    pub replica: Option<Side>,
    /// The buffers, where they differ, as hex and text.
    pub buffers: String,
    /// Calls before it that were the same, oldest first.
    pub before: Vec<String>,
}

/// Where the replica's processor was when it was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CrashSide {
    /// What it is about: the machine as it was dumped, or the exception that the guest kernel reports.
    pub what: String,
    /// The instruction, and how it differs from the healthy machine's.
    pub instruction: String,
    /// Registers.
    pub registers: String,
    /// Where it was, and its callers.
    pub backtrace: Vec<Frame>,
    /// If the guest kernel met an exception in its own code: where that was.
    pub fault: Vec<Frame>,
    /// If it was in the guest kernel: where the program was.
    pub program: Vec<Frame>,
}

/// A page in which the replica's memory differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PageReport {
    /// The first byte that differs.
    pub place: Place,
    /// How many do.
    pub bytes: usize,
}

/// What was hit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "cause", rename_all = "kebab-case")]
pub enum Cause {
    /// A bit of memory.
    Memory {
        /// Where.
        place: Box<Place>,
        /// The bit of the byte.
        bit: u8,
        /// The byte in the healthy machine.
        healthy: u8,
        /// In the replica.
        replica: u8,
        /// What a healthy machine does in which this bit is flipped.
        proof: Proof,
        /// The boundary before whose entry it was flipped for that.
        boundary: u64,
        /// The bytes around it on both sides.
        around: String,
        /// How it was found.
        found: Found,
    },
    /// A bit of a register.
    Register {
        /// The register.
        register: String,
        /// The bit.
        bit: u8,
        /// As above.
        proof: Proof,
        /// The boundary at which the replica stood.
        boundary: u64,
        /// Where the code stood that used the register.
        place: String,
        /// How it was found.
        found: Found,
    },
    /// Nothing in the guest differs: the difference was made outside it.
    Outside,
    /// It was not found.
    Unknown {
        /// What can be said.
        text: String,
    },
}

/// What speaks for a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// A healthy machine with this bit flipped goes the same way, and all of its memory is then that of the replica.
    Exact,
    /// It makes the same wrong call, or is lost in the same place; its memory differs from the replica's in some bytes.
    Same,
    /// It was not tried, or it goes another way.
    None,
}

/// How a cause was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    /// By the replica's memory.
    Evidence,
    /// By trying all bits of all registers.
    Trial,
    /// By the recording, which has the fault that was injected.
    Recorded,
}

/// A whole explanation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Which divergence.
    pub divergence: Divergence,
    /// The boundary up to which both machines' memory was compared, and what was compared with what.
    pub compared: String,
    /// The calls.
    pub call: CallReport,
    /// Where the machine was lost, if it was.
    pub crash: Option<CrashSide>,
    /// What was hit.
    pub cause: Cause,
    /// A healthy machine with another layout, at the place that was hit.
    pub other_layout: Option<String>,
    /// Pages that differ, the telling ones first.
    pub pages: Vec<PageReport>,
    /// How many pages of each kind differ.
    pub kinds: Vec<(Kind, usize)>,
    /// Whether an injected fault, if the recording has one, is what was found.
    pub agrees_with_injected: Option<bool>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let d = &self.divergence;
        writeln!(
            f,
            "Divergence {}: replica {} at boundary {}",
            d.number, d.replica, d.boundary
        )?;
        writeln!(f, "  stopped: {}", d.reason)?;
        if let Some(verdict) = &d.verdict {
            writeln!(f, "  verdict: {}", verdict.detail)?;
        }
        for injected in &d.injected {
            writeln!(
                f,
                "  injected at boundary {}: {}",
                injected.boundary, injected.detail
            )?;
        }
        writeln!(f, "  compared: {}", self.compared)?;
        writeln!(f, "\nWhat was hit\n")?;
        self.cause(f)?;
        if let Some(text) = &self.other_layout {
            indented(f, text)?;
        }
        if let Some(agrees) = self.agrees_with_injected {
            let text = if agrees {
                "this is the fault that was injected"
            } else {
                "this is not the fault that the recording says was injected"
            };
            writeln!(f, "  {text}")?;
        }
        writeln!(f, "\nThe first system call that differs\n")?;
        self.call.write(f)?;
        if let Some(crash) = &self.crash {
            writeln!(f, "\nWhere the replica was when it was stopped\n")?;
            writeln!(f, "  {}", crash.what)?;
            indented(f, &crash.instruction)?;
            indented(f, &crash.registers)?;
            frames(f, &crash.backtrace)?;
            if !crash.fault.is_empty() {
                writeln!(f, "  the guest kernel's own exception was at")?;
                frames(f, &crash.fault)?;
            }
            if !crash.program.is_empty() {
                writeln!(f, "  and the program was at")?;
                frames(f, &crash.program)?;
            }
        }
        writeln!(f, "\nMemory that differs\n")?;
        if self.pages.is_empty() {
            writeln!(f, "  none")?;
        }
        for page in &self.pages {
            writeln!(f, "  {:5} bytes  {}", page.bytes, page.place.text)?;
        }
        let total: usize = self.kinds.iter().map(|(_, count)| count).sum();
        if total > self.pages.len() {
            let kinds: Vec<String> = self
                .kinds
                .iter()
                .map(|(kind, count)| format!("{count} {}", kind_name(*kind)))
                .collect();
            writeln!(f, "  in all {total} pages: {}", kinds.join(", "))?;
        }
        Ok(())
    }
}

fn kind_name(kind: Kind) -> String {
    serde_json::to_value(kind)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

impl Explanation {
    fn cause(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Memory {
                place,
                bit,
                healthy,
                replica,
                proof,
                boundary,
                around,
                found,
            } => {
                writeln!(
                    f,
                    "  bit {bit} of a byte of memory: {healthy:#04x} became {replica:#04x}"
                )?;
                writeln!(f, "  {}", place.text)?;
                indented(f, around)?;
                proof.write(f, *boundary, *found)
            }
            Cause::Register {
                register,
                bit,
                proof,
                boundary,
                place,
                found,
            } => {
                writeln!(
                    f,
                    "  bit {bit} of register {register}, when the replica was at boundary {boundary}"
                )?;
                writeln!(f, "  the code there: {place}")?;
                proof.write(f, *boundary, *found)
            }
            Cause::Outside => writeln!(
                f,
                "  nothing in the guest: its memory is that of a healthy machine, byte for byte, and so are its system calls.\n  \
                 What it gave to the vote was changed outside it: in the devices, the VMM or the host."
            ),
            Cause::Unknown { text } => writeln!(f, "  not found: {text}"),
        }
    }
}

impl Proof {
    fn write(self, f: &mut fmt::Formatter<'_>, boundary: u64, found: Found) -> fmt::Result {
        match self {
            Proof::Exact => writeln!(
                f,
                "  proof: a healthy machine in which this bit is flipped at boundary {boundary} goes the same way, and all of its memory\n  \
                 is then that of the replica"
            )?,
            Proof::Same => writeln!(
                f,
                "  proof: a healthy machine in which this bit is flipped at boundary {boundary} goes wrong in the same place"
            )?,
            Proof::None => writeln!(
                f,
                "  no proof: a healthy machine in which this bit is flipped at boundary {boundary} goes another way"
            )?,
        }
        match found {
            Found::Evidence => Ok(()),
            Found::Trial => writeln!(f, "  found by trying every bit of every register"),
            Found::Recorded => writeln!(
                f,
                "  found by the recording, which has the fault that was injected"
            ),
        }
    }
}

impl CallReport {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.calls {
            Calls::Differs => {
                let fields: Vec<String> =
                    self.fields.iter().map(|field| field.to_string()).collect();
                writeln!(f, "  they differ in {}", fields.join(", "))?;
            }
            Calls::Unfinished => writeln!(
                f,
                "  all that the replica completed are as they should be; it did not complete this one:"
            )?,
            Calls::Further => writeln!(
                f,
                "  all that a healthy machine makes are as they should be; the replica then made this one:"
            )?,
            Calls::Same => writeln!(
                f,
                "  none: the replica's system calls are those of a healthy machine"
            )?,
            Calls::Unknown => writeln!(
                f,
                "  not known: the replica went on so far that its flight recorder has forgotten that part"
            )?,
        }
        if self.maybe_earlier {
            writeln!(
                f,
                "  (the flight recorder goes back no further: the first may have been before)"
            )?;
        }
        for line in &self.before {
            writeln!(f, "            {line}")?;
        }
        for (name, side) in [("healthy", &self.healthy), ("replica", &self.replica)] {
            let Some(side) = side else { continue };
            writeln!(
                f,
                "  {name:>8}  #{} {}   [thread {}, process {}, boundary {}]",
                side.call, side.line, side.thread, side.process, side.boundary
            )?;
        }
        if !self.buffers.is_empty() {
            writeln!(f)?;
            indented(f, &self.buffers)?;
        }
        let (one, two) = (self.healthy.as_ref(), self.replica.as_ref());
        let same = matches!((one, two), (Some(one), Some(two)) if one.backtrace == two.backtrace);
        if same {
            writeln!(f, "\n  called from, on both sides:")?;
            return one.map_or(Ok(()), |side| frames(f, &side.backtrace));
        }
        for (name, side) in [("the healthy machine", one), ("the replica", two)] {
            let Some(side) = side.filter(|side| !side.backtrace.is_empty()) else {
                continue;
            };
            let later = if side.exact {
                ""
            } else {
                " (by its stack as it was later)"
            };
            writeln!(f, "\n  called from, in {name}{later}:")?;
            frames(f, &side.backtrace)?;
        }
        Ok(())
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Call => f.write_str("the call"),
            Field::Thread => f.write_str("the thread"),
            Field::Argument(index) => write!(f, "argument {}", index + 1),
            Field::Result => f.write_str("the result"),
            Field::Content => f.write_str("what is read or written"),
            Field::Caller => f.write_str("the caller"),
            Field::Stack => f.write_str("the stack pointer"),
            Field::Digest => f.write_str(
                "what is read or written, beyond its first bytes, or in a number that it carries",
            ),
            Field::Boundary => f.write_str("the boundary"),
        }
    }
}

fn indented(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.lines().try_for_each(|line| writeln!(f, "    {line}"))
}

fn frames(f: &mut fmt::Formatter<'_>, frames: &[Frame]) -> fmt::Result {
    for (index, frame) in frames.iter().enumerate() {
        let guess = if frame.guessed { "  (perhaps)" } else { "" };
        writeln!(f, "    #{index:<2} {}{guess}", frame.place)?;
        // With lines, or inlined: what the place alone does not say.
        for function in frame
            .functions
            .iter()
            .filter(|function| function.contains('('))
        {
            writeln!(f, "          {function}")?;
        }
    }
    Ok(())
}
