//! Starting a program: its ELF file and its interpreter (`ld-linux`); its stack is built in `stack`, `execve` is in `call`.

pub mod call;
mod stack;

use crate::arch::TrapFrame;
use crate::errno::*;
use crate::file::File;
use crate::mm::space::{Arena, Backing, EXEC, READ, WRITE_PROT};
use crate::{fs, mm, rewrite, sched, user};
use alloc::rc::Rc;
use alloc::vec::Vec;
use quorate_abi::PAGE_SIZE;

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;

/// Most program headers accepted.
const MAX_HEADERS: usize = 64;
/// Bytes of the main thread's stack (RLIMIT_STACK's soft value).
pub const STACK_SIZE: u64 = 8 << 20;
/// Most `#!` lines that lead to one another.
const SCRIPTS_MAX: usize = 4;

#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    ident: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    phoff: u64,
    shoff: u64,
    flags: u32,
    ehsize: u16,
    phentsize: u16,
    phnum: u16,
    rest: [u16; 3],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

/// A program that can be started: what is known of its files before anything is changed.
pub struct Program {
    /// Path by which it was called.
    pub path: Vec<u8>,
    /// Arguments, those of a script's interpreter included.
    pub argv: Vec<Vec<u8>>,
    image: Image,
    /// `ld-linux`.
    interpreter: Option<Image>,
}

/// An ELF file with its headers.
struct Image {
    file: Rc<dyn File>,
    header: Header,
    segments: Vec<ProgramHeader>,
}

/// A loaded ELF file.
struct Loaded {
    base: u64,
    entry: u64,
    headers_at: u64,
    header_count: u64,
}

/// Where a file is put.
enum Place {
    /// Position-independent files start here.
    At(u64),
    /// Wherever libraries go.
    Library,
}

fn parse<T: Copy>(bytes: &[u8], at: usize) -> Result<T> {
    let end = at.checked_add(size_of::<T>()).ok_or(ENOEXEC)?;
    let slice = bytes.get(at..end).ok_or(ENOEXEC)?;
    // SAFETY: enough bytes; the types used are repr(C) integers.
    Ok(unsafe { slice.as_ptr().cast::<T>().read_unaligned() })
}

fn read_exact(file: &Rc<dyn File>, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = alloc::vec![0u8; len];
    let mut done = 0;
    while done < len {
        match file.read_at(offset + done as u64, &mut bytes[done..])? {
            0 => return Err(ENOEXEC),
            n => done += n,
        }
    }
    Ok(bytes)
}

impl Image {
    fn open(path: &[u8]) -> Result<Self> {
        Self::of(fs::open_program(path)?)
    }

    fn of(file: Rc<dyn File>) -> Result<Self> {
        let header: Header = parse(&read_exact(&file, 0, size_of::<Header>())?, 0)?;
        let valid = header.ident[..6] == *b"\x7fELF\x02\x01"
            && header.machine == EM_X86_64
            && matches!(header.kind, ET_EXEC | ET_DYN)
            && header.phentsize as usize == size_of::<ProgramHeader>()
            && (1..=MAX_HEADERS).contains(&(header.phnum as usize));
        if !valid {
            return Err(ENOEXEC);
        }
        let count = header.phnum as usize;
        let table = read_exact(&file, header.phoff, count * size_of::<ProgramHeader>())?;
        let segments = (0..count)
            .map(|i| parse(&table, i * size_of::<ProgramHeader>()))
            .collect::<Result<_>>()?;
        Ok(Self {
            file,
            header,
            segments,
        })
    }

    /// Path of the interpreter that it asks for.
    fn interpreter(&self) -> Result<Option<Vec<u8>>> {
        let wanted = |h: &&ProgramHeader| h.kind == PT_INTERP && h.filesz > 1 && h.filesz < 4096;
        let Some(h) = self.segments.iter().find(wanted) else {
            return Ok(None);
        };
        let mut path = read_exact(&self.file, h.offset, h.filesz as usize)?;
        path.truncate(path.iter().position(|b| *b == 0).unwrap_or(path.len()));
        Ok(Some(path))
    }
}

impl Program {
    /// Looks for a program: follows `#!` and finds the dynamic linker.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`, `ENOEXEC`, `ELOOP` and what walking to it gives.
    pub fn find(path: &[u8], argv: Vec<Vec<u8>>) -> Result<Self> {
        let mut argv = argv;
        let mut file_path = path.to_vec();
        // `#!` interpreters, nested to a depth as on Linux.
        for _ in 0..=SCRIPTS_MAX {
            let file = fs::open_program(&file_path)?;
            let mut first = [0u8; 256];
            let n = file.read_at(0, &mut first)?;
            let Some(script) = first[..n].strip_prefix(b"#!") else {
                let image = Image::of(file)?;
                let interpreter = match image.interpreter()? {
                    Some(path) => Some(Image::open(&path)?),
                    None => None,
                };
                return Ok(Self {
                    path: path.to_vec(),
                    argv,
                    image,
                    interpreter,
                });
            };
            let (interpreter, argument) = script_line(script)?;
            let mut new = alloc::vec![interpreter.clone()];
            new.extend(argument);
            new.push(file_path);
            new.extend(argv.into_iter().skip(1));
            argv = new;
            file_path = interpreter;
        }
        Err(ELOOP)
    }

    /// Path of the executable file, for `/proc`.
    fn executable(&self) -> Vec<u8> {
        let path = self.image.file.path();
        if path.is_empty() {
            self.path.clone()
        } else {
            path
        }
    }
}

/// Interpreter and argument of a script's first line.
fn script_line(script: &[u8]) -> Result<(Vec<u8>, Option<Vec<u8>>)> {
    let line = script.split(|b| *b == b'\n').next().unwrap_or(&[]);
    let mut parts = line.trim_ascii().splitn(2, |b| *b == b' ' || *b == b'\t');
    let interpreter = parts.next().filter(|p| !p.is_empty()).ok_or(ENOEXEC)?;
    let argument = parts.next().map(<[u8]>::trim_ascii);
    let argument = argument.filter(|a| !a.is_empty()).map(<[u8]>::to_vec);
    Ok((interpreter.to_vec(), argument))
}

fn load(image: &Image, place: Place) -> Result<Loaded> {
    let (file, header, headers) = (&image.file, &image.header, &image.segments);
    let (mut low, mut high) = (u64::MAX, 0u64);
    for h in headers.iter().filter(|h| h.kind == PT_LOAD && h.memsz > 0) {
        let end = h
            .vaddr
            .checked_add(h.memsz)
            .filter(|e| *e < 1 << 46)
            .ok_or(ENOEXEC)?;
        if h.filesz > h.memsz || h.vaddr % PAGE_SIZE != h.offset % PAGE_SIZE {
            return Err(ENOEXEC);
        }
        low = low.min(h.vaddr & !(PAGE_SIZE - 1));
        high = high.max(end.next_multiple_of(PAGE_SIZE));
    }
    if low >= high {
        return Err(ENOEXEC);
    }
    let bias = match (header.kind, place) {
        (ET_EXEC, _) => 0,
        (_, Place::At(base)) => base.wrapping_sub(low),
        (_, Place::Library) => mm::space()
            .place(0, high - low, Arena::Libraries)?
            .wrapping_sub(low),
    };
    if !mm::space().allowed(low.wrapping_add(bias), high - low) {
        return Err(ENOEXEC);
    }
    let mut loaded = Loaded {
        base: low.wrapping_add(bias),
        entry: header.entry.wrapping_add(bias),
        headers_at: 0,
        header_count: u64::from(header.phnum),
    };
    for h in headers {
        match h.kind {
            PT_LOAD if h.memsz > 0 => {
                map_segment(file, h, bias)?;
                if (h.offset..h.offset + h.filesz).contains(&header.phoff) {
                    loaded.headers_at = header.phoff - h.offset + h.vaddr.wrapping_add(bias);
                }
            }
            PT_PHDR => loaded.headers_at = h.vaddr.wrapping_add(bias),
            // A file that asks for an executable stack gets a plain one all the same.
            PT_GNU_STACK => {}
            _ => {}
        }
    }
    Ok(loaded)
}

fn map_segment(file: &Rc<dyn File>, h: &ProgramHeader, bias: u64) -> Result<()> {
    let mut prot = 0;
    for (flag, bit) in [(4, READ), (2, WRITE_PROT), (1, EXEC)] {
        if h.flags & flag != 0 {
            prot |= bit;
        }
    }
    let start = h.vaddr.wrapping_add(bias) & !(PAGE_SIZE - 1);
    let file_end = h.vaddr.wrapping_add(bias) + h.filesz;
    let end = (h.vaddr.wrapping_add(bias) + h.memsz).next_multiple_of(PAGE_SIZE);
    let file_pages_end = file_end.next_multiple_of(PAGE_SIZE);
    if h.filesz > 0 {
        let backing = Backing::File {
            file: file.clone(),
            offset: h.offset & !(PAGE_SIZE - 1),
            shared: false,
        };
        mm::space().map(start, file_pages_end - start, prot, backing, "", false)?;
        if prot & WRITE_PROT != 0 && file_end < file_pages_end {
            // The rest of the last page belongs to .bss.
            user::bytes_mut(file_end, (file_pages_end - file_end) as usize)?.fill(0);
        }
    }
    let bss = if h.filesz > 0 { file_pages_end } else { start };
    if end > bss {
        mm::space().map(bss, end - bss, prot, Backing::Anonymous, "", false)?;
    }
    if prot & EXEC != 0 {
        rewrite::scan(start, end);
    }
    Ok(())
}

/// Loads a program into the address space in use, which is empty, and returns the registers to start it with.
///
/// # Errors
/// `ENOEXEC`, `E2BIG`, `ENOMEM`.
pub fn load_program(program: &Program, envp: &[Vec<u8>]) -> Result<TrapFrame> {
    let layout = *mm::space().layout();
    let low_arena = 0x10_0000;
    rewrite::add_arena(layout.libraries)?;
    let loaded = load(&program.image, Place::At(layout.program + (1 << 20)))?;
    if loaded.base < 1 << 32 {
        if mm::space().is_free(low_arena, low_arena + rewrite::ARENA) {
            rewrite::add_arena(low_arena)?;
        }
    } else {
        rewrite::add_arena(layout.program)?;
    }
    let (entry, interpreter_base) = match &program.interpreter {
        Some(image) => {
            let interpreter = load(image, Place::Library)?;
            let mut space = mm::space();
            let end = space
                .mapping_at(interpreter.entry)
                .map_or(0, |(_, end, _)| end);
            space.interpreter = (interpreter.base, end);
            (interpreter.entry, interpreter.base)
        }
        None => (loaded.entry, 0),
    };
    mm::space().map(
        layout.stack_top - STACK_SIZE,
        STACK_SIZE,
        READ | WRITE_PROT,
        Backing::Anonymous,
        "[stack]",
        false,
    )?;
    let start = stack::Start {
        headers_at: loaded.headers_at,
        header_count: loaded.header_count,
        entry: loaded.entry,
        interpreter_base,
    };
    // One flush for all of it: the program does not run yet.
    mm::space().finish();
    let (rsp, auxv) = stack::build(layout.stack_top, program, envp, &start)?;
    fs::set_process_info(&program.executable(), &program.argv, envp, &auxv);
    let name = program.path.rsplit(|b| *b == b'/').next();
    let name = name.unwrap_or(&program.path);
    sched::with_current(|t| {
        t.name = [0; 16];
        let n = name.len().min(15);
        t.name[..n].copy_from_slice(&name[..n]);
    });
    Ok(TrapFrame {
        rip: entry,
        rsp,
        ..TrapFrame::new()
    })
}
