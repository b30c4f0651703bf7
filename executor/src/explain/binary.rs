//! ELF files: symbols, lines, and how to get from a function's frame to its caller's.

use std::sync::Arc;

use addr2line::Context;
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EndianArcSlice, EndianSlice, LittleEndian, Register,
    RegisterRule, SectionId, UnwindContext, UnwindSection, X86_64,
};
use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol, SegmentFlags, SymbolKind};

/// Inlined functions that are shown of one frame.
const MAX_INLINED: usize = 8;
/// General registers by their DWARF numbers; 16 is the instruction pointer.
pub const REGISTERS: usize = 17;

/// A part of a file that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Address as linked.
    pub addr: u64,
    /// Bytes in memory.
    pub len: u64,
    /// Where it lies in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_len: u64,
    /// It may be written.
    pub write: bool,
    /// It may be executed.
    pub execute: bool,
}

struct Symbol {
    start: u64,
    /// 0: up to the next symbol.
    len: u64,
    name: String,
}

/// A program, a library or the guest kernel. Addresses are as linked.
pub struct Binary {
    /// Path in the guest, or what else it is called.
    pub name: String,
    /// What is loaded, ascending.
    pub segments: Vec<Segment>,
    symbols: Vec<Symbol>,
    sections: Vec<(u64, u64, String)>,
    frames: Vec<u8>,
    bases: BaseAddresses,
    lines: Option<Context<EndianArcSlice<LittleEndian>>>,
}

/// Registers by DWARF number; None where the value is not known.
pub type Registers = [Option<u64>; REGISTERS];
/// What the unwind information says of a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The caller's registers.
    Registers(Box<Registers>),
    /// There is no caller: this is the outermost function.
    None,
    /// It says nothing of this place, or needs what is not known.
    Unknown,
}

/// DWARF number of the stack pointer.
pub const RSP: usize = 7;
/// DWARF number of the base pointer.
pub const RBP: usize = 6;
/// DWARF number of the instruction pointer (the return address).
pub const RIP: usize = 16;

impl Binary {
    /// A file of which nothing is known.
    #[must_use]
    pub fn unknown() -> Binary {
        Binary {
            name: String::new(),
            segments: Vec::new(),
            symbols: Vec::new(),
            sections: Vec::new(),
            frames: Vec::new(),
            bases: BaseAddresses::default(),
            lines: None,
        }
    }

    /// Reads a file; None if it is no ELF file.
    #[must_use]
    pub fn parse(name: &str, bytes: &[u8]) -> Option<Binary> {
        let file = object::File::parse(bytes).ok()?;
        let mut segments: Vec<Segment> = file
            .segments()
            .map(|segment| {
                let (offset, file_len) = segment.file_range();
                let flags = match segment.flags() {
                    SegmentFlags::Elf { p_flags, .. } => p_flags.0,
                    _ => 0,
                };
                Segment {
                    addr: segment.address(),
                    len: segment.size(),
                    offset,
                    file_len,
                    write: flags & 2 != 0,
                    execute: flags & 1 != 0,
                }
            })
            .collect();
        segments.sort_by_key(|segment| segment.addr);
        let data = |name: &str| {
            file.section_by_name(name)
                .and_then(|section| section.uncompressed_data().ok())
                .map(|data| data.into_owned())
        };
        let address = |name: &str| {
            file.section_by_name(name)
                .map_or(0, |section| section.address())
        };
        let bases = BaseAddresses::default()
            .set_eh_frame(address(".eh_frame"))
            .set_text(address(".text"))
            .set_got(address(".got"));
        let lines = data(".debug_line").and_then(|_| {
            let section = |id: SectionId| {
                let bytes = data(id.name()).unwrap_or_default();
                Ok::<_, gimli::Error>(EndianArcSlice::new(Arc::from(bytes), LittleEndian))
            };
            let dwarf = gimli::Dwarf::load(section).ok()?;
            Context::from_dwarf(dwarf).ok()
        });
        let sections = file.sections().filter(|section| section.address() != 0);
        Some(Binary {
            name: name.to_owned(),
            segments,
            symbols: symbols(&file),
            sections: sections
                .map(|s| {
                    (
                        s.address(),
                        s.size(),
                        s.name().unwrap_or_default().to_owned(),
                    )
                })
                .collect(),
            frames: data(".eh_frame").unwrap_or_default(),
            bases,
            lines,
        })
    }

    /// `symbol+0x12`, or None if there is no symbol near.
    #[must_use]
    pub fn symbol(&self, addr: u64) -> Option<String> {
        let index = self.symbols.partition_point(|symbol| symbol.start <= addr);
        let symbol = self.symbols.get(index.checked_sub(1)?)?;
        let offset = addr - symbol.start;
        if symbol.len != 0 && offset >= symbol.len {
            return None;
        }
        // Without a length only what lies in the same part of the file can be meant.
        if symbol.len == 0 && self.section(symbol.start) != self.section(addr) {
            return None;
        }
        Some(match offset {
            0 => symbol.name.clone(),
            _ => format!("{}+{offset:#x}", symbol.name),
        })
    }

    /// Address of a symbol of exactly this name (a Rust one without its hash).
    #[must_use]
    pub fn find(&self, name: &str) -> Option<u64> {
        self.symbols
            .iter()
            .find(|symbol| symbol.name == name)
            .map(|symbol| symbol.start)
    }

    /// The section that an address lies in.
    #[must_use]
    pub fn section(&self, addr: u64) -> Option<&str> {
        let section = self
            .sections
            .iter()
            .find(|(start, len, _)| (*start..start + len).contains(&addr))?;
        Some(&section.2)
    }

    /// Functions at an address, the innermost first, with file and line where they are known.
    #[must_use]
    pub fn functions(&self, addr: u64) -> Vec<String> {
        let mut functions = Vec::new();
        if let Some(lines) = &self.lines
            && let Ok(mut frames) = lines.find_frames(addr).skip_all_loads()
        {
            while let (Ok(Some(frame)), true) = (frames.next(), functions.len() < MAX_INLINED) {
                let name = frame
                    .function
                    .as_ref()
                    .and_then(|function| Some(demangled(&function.raw_name().ok()?)));
                let Some(name) = name else { continue };
                let place = frame.location.and_then(|at| {
                    let file = at.file?.rsplit('/').take(2).collect::<Vec<_>>();
                    let file = file.into_iter().rev().collect::<Vec<_>>().join("/");
                    Some(format!(" ({file}:{})", at.line.unwrap_or(0)))
                });
                functions.push(format!("{name}{}", place.unwrap_or_default()));
            }
        }
        if functions.is_empty() {
            functions.extend(self.symbol(addr));
        }
        functions
    }

    /// The caller's registers, by the file's unwind information. `read` reads a word of the stack. `exact`: `rip` is the very next
    /// instruction, not a return address.
    #[must_use]
    pub fn unwind(
        &self,
        rip: u64,
        exact: bool,
        registers: &Registers,
        read: &dyn Fn(u64) -> Option<u64>,
    ) -> Caller {
        self.try_unwind(rip, exact, registers, read)
            .unwrap_or(Caller::Unknown)
    }

    fn try_unwind(
        &self,
        rip: u64,
        exact: bool,
        registers: &Registers,
        read: &dyn Fn(u64) -> Option<u64>,
    ) -> Option<Caller> {
        let frames = EhFrame::new(&self.frames, LittleEndian);
        // A call may be the last instruction of its function.
        let place = if exact { rip } else { rip.checked_sub(1)? };
        let mut context = UnwindContext::new();
        let row = frames
            .unwind_info_for_address(
                &self.bases,
                &mut context,
                place,
                |section: &EhFrame<EndianSlice<'_, _>>, bases, offset| {
                    section.cie_from_offset(bases, offset)
                },
            )
            .ok()?;
        if row.register(Register(RIP as u16)) == Some(RegisterRule::Undefined) {
            return Some(Caller::None);
        }
        let CfaRule::RegisterAndOffset { register, offset } = row.cfa() else {
            return None;
        };
        let base = (*registers.get(usize::from(register.0))?)?;
        let frame = base.checked_add_signed(*offset)?;
        let mut caller = [None; REGISTERS];
        for (number, value) in caller.iter_mut().enumerate() {
            *value = match row.register(Register(number as u16)) {
                Some(RegisterRule::Offset(offset)) => read(frame.checked_add_signed(offset)?),
                Some(RegisterRule::ValOffset(offset)) => frame.checked_add_signed(offset),
                Some(RegisterRule::Register(Register(other))) => {
                    registers.get(usize::from(other)).copied().flatten()
                }
                Some(RegisterRule::Undefined) => None,
                None | Some(RegisterRule::SameValue) if preserved(number) => registers[number],
                _ => None,
            };
        }
        caller[RSP] = Some(frame);
        caller[RIP]?;
        Some(Caller::Registers(Box::new(caller)))
    }
}

/// Whether a function leaves this register to its caller as it was.
fn preserved(number: usize) -> bool {
    let number = Register(number as u16);
    [
        X86_64::RBX,
        X86_64::RBP,
        X86_64::R12,
        X86_64::R13,
        X86_64::R14,
        X86_64::R15,
    ]
    .contains(&number)
}

fn symbols(file: &object::File<'_>) -> Vec<Symbol> {
    let all = file.symbols().chain(file.dynamic_symbols());
    let mut symbols: Vec<Symbol> = all
        .filter(|symbol| {
            symbol.is_definition()
                && matches!(
                    symbol.kind(),
                    SymbolKind::Text | SymbolKind::Data | SymbolKind::Unknown | SymbolKind::Label
                )
        })
        .filter_map(|symbol| {
            let name = symbol.name().ok().filter(|name| !name.is_empty())?;
            Some(Symbol {
                start: symbol.address(),
                len: symbol.size(),
                name: demangled(name),
            })
        })
        .collect();
    // Of several at one place the one that says how long it is.
    symbols.sort_by_key(|symbol| (symbol.start, symbol.len == 0, symbol.name.len()));
    symbols.dedup_by_key(|symbol| symbol.start);
    symbols
}

fn demangled(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[inline(never)]
    fn landmark(with: &mut u64) -> u64 {
        *with += 1;
        std::hint::black_box(*with)
    }

    fn this() -> Binary {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        Binary::parse("this", &bytes).unwrap()
    }

    /// Where this program was loaded.
    fn bias(binary: &Binary) -> u64 {
        let linked = binary
            .find("quorate_executor::explain::binary::tests::landmark")
            .unwrap();
        landmark as *const () as u64 - linked
    }

    #[test]
    fn a_function_of_this_program_is_found_by_its_address() {
        let binary = this();
        let linked = landmark as *const () as u64 - bias(&binary);
        let name = binary.symbol(linked + 1).unwrap();
        assert!(name.ends_with("tests::landmark+0x1"), "{name}");
        let functions = binary.functions(linked + 1);
        let last = functions.last().unwrap();
        assert!(
            last.contains("landmark (explain/binary.rs:"),
            "{functions:?}"
        );
        assert_eq!(binary.section(linked), Some(".text"));
        assert!(
            binary
                .segments
                .iter()
                .any(|segment| segment.execute && !segment.write)
        );
        let mut count = 1;
        assert_eq!(landmark(&mut count), 2);
    }

    #[test]
    fn the_callers_of_a_running_function_are_found() {
        let binary = this();
        let bias = bias(&binary);
        let (rip, rsp, rbp, rbx): (u64, u64, u64, u64);
        // SAFETY: Reads registers.
        unsafe {
            std::arch::asm!(
                "lea {0}, [rip]",
                "mov {1}, rsp",
                "mov {2}, rbp",
                "mov {3}, rbx",
                out(reg) rip, out(reg) rsp, out(reg) rbp, out(reg) rbx,
                options(nomem, nostack)
            );
        }
        let mut registers: Registers = [None; REGISTERS];
        registers[RSP] = Some(rsp);
        registers[RBP] = Some(rbp);
        registers[3] = Some(rbx);
        let read = |at: u64| {
            let inside = at > rsp && at < rsp + (1 << 20);
            // SAFETY: Reads this thread's own stack, above the stack pointer.
            inside.then(|| unsafe { (at as *const u64).read_volatile() })
        };
        let mut names = Vec::new();
        let (mut at, mut exact) = (rip, true);
        for _ in 0..6 {
            let Caller::Registers(caller) = binary.unwind(at - bias, exact, &registers, &read)
            else {
                break;
            };
            at = caller[RIP].unwrap();
            exact = false;
            registers = *caller;
            names.extend(binary.symbol(at.wrapping_sub(bias)));
        }
        assert!(
            names.iter().any(|name| name.contains("test::")),
            "{names:?}"
        );
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        assert!(Binary::parse("x", b"#!/bin/sh\n").is_none());
        assert!(Binary::parse("x", b"\x7fELF").is_none());
    }
}
