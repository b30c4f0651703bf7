//! Starting a program: its ELF file and its interpreter (`ld-linux`), its stack with arguments and auxiliary vector.

use crate::arch::TrapFrame;
use crate::cell::Global;
use crate::errno::*;
use crate::file::File;
use crate::mm::space::{Arena, Backing, EXEC, READ, WRITE_PROT};
use crate::{fs, mm, rewrite, sched, user};
use alloc::rc::Rc;
use alloc::vec::Vec;
use quorate_abi::PAGE_SIZE;
use quorate_abi::boot::Layout;

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
/// Most bytes of arguments and environment.
const MAX_STRINGS: usize = 128 << 10;

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

/// Where the dynamic linker's code lies.
static INTERPRETER: Global<(u64, u64)> = Global::new((0, 0));

/// Whether code at this address is the dynamic linker's own (in place, or in a trampoline that belongs to it).
pub fn is_interpreter(rip: u64) -> bool {
    let (start, end) = *INTERPRETER.borrow();
    (start..end).contains(&rip)
}

/// A loaded ELF file.
struct Loaded {
    base: u64,
    entry: u64,
    headers_at: u64,
    header_count: u64,
    interpreter: Option<Vec<u8>>,
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

fn load(file: &Rc<dyn File>, place: Place) -> Result<Loaded> {
    let header: Header = parse(&read_exact(file, 0, size_of::<Header>())?, 0)?;
    let valid = header.ident[..6] == *b"\x7fELF\x02\x01"
        && header.machine == EM_X86_64
        && matches!(header.kind, ET_EXEC | ET_DYN)
        && header.phentsize as usize == size_of::<ProgramHeader>()
        && (1..=MAX_HEADERS).contains(&(header.phnum as usize));
    if !valid {
        return Err(ENOEXEC);
    }
    let table = read_exact(
        file,
        header.phoff,
        header.phnum as usize * size_of::<ProgramHeader>(),
    )?;
    let mut headers = Vec::new();
    for i in 0..header.phnum as usize {
        headers.push(parse::<ProgramHeader>(
            &table,
            i * size_of::<ProgramHeader>(),
        )?);
    }
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
        interpreter: None,
    };
    for h in &headers {
        match h.kind {
            PT_LOAD if h.memsz > 0 => {
                map_segment(file, h, bias)?;
                if (h.offset..h.offset + h.filesz).contains(&header.phoff) {
                    loaded.headers_at = header.phoff - h.offset + h.vaddr.wrapping_add(bias);
                }
            }
            PT_PHDR => loaded.headers_at = h.vaddr.wrapping_add(bias),
            PT_INTERP if h.filesz > 1 && h.filesz < 4096 => {
                let mut path = read_exact(file, h.offset, h.filesz as usize)?;
                path.truncate(path.iter().position(|b| *b == 0).unwrap_or(path.len()));
                loaded.interpreter = Some(path);
            }
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
    mm::space().finish();
    if prot & EXEC != 0 {
        rewrite::scan(start, end);
    }
    Ok(())
}

/// Loads a program and returns the registers to start it with.
///
/// # Errors
/// `ENOENT`, `EACCES`, `ENOEXEC`, `E2BIG`, `ENOMEM`.
pub fn start_program(
    layout: &Layout,
    path: &[u8],
    argv: &[Vec<u8>],
    envp: &[Vec<u8>],
) -> Result<TrapFrame> {
    let mut argv: Vec<Vec<u8>> = argv.to_vec();
    let mut path = path.to_vec();
    // `#!` interpreters, nested to a depth as on Linux.
    for _ in 0..4 {
        let file = fs::open_program(&path)?;
        let mut first = [0u8; 256];
        let n = file.read_at(0, &mut first)?;
        if !first[..n].starts_with(b"#!") {
            break;
        }
        let line = first[2..n].split(|b| *b == b'\n').next().unwrap_or(&[]);
        let line = line.trim_ascii();
        let mut parts = line.splitn(2, |b| *b == b' ' || *b == b'\t');
        let interpreter = parts
            .next()
            .filter(|p| !p.is_empty())
            .ok_or(ENOEXEC)?
            .to_vec();
        let mut new = alloc::vec![interpreter.clone()];
        if let Some(argument) = parts
            .next()
            .map(<[u8]>::trim_ascii)
            .filter(|a| !a.is_empty())
        {
            new.push(argument.to_vec());
        }
        new.push(path.clone());
        new.extend(argv.into_iter().skip(1));
        argv = new;
        path = interpreter;
    }
    let file = fs::open_program(&path)?;
    let low_arena = 0x10_0000;
    rewrite::add_arena(layout.libraries)?;
    let program = load(&file, Place::At(layout.program + (1 << 20)))?;
    if program.base < 1 << 32 {
        if mm::space().is_free(low_arena, low_arena + rewrite::ARENA) {
            rewrite::add_arena(low_arena)?;
        }
    } else {
        rewrite::add_arena(layout.program)?;
    }
    let (entry, interpreter_base) = match &program.interpreter {
        Some(path) => {
            let interpreter = load(&fs::open_program(path)?, Place::Library)?;
            let end = mm::space()
                .mapping_at(interpreter.entry)
                .map_or(0, |(_, end, _)| end);
            *INTERPRETER.borrow_mut() = (interpreter.base, end);
            (interpreter.entry, interpreter.base)
        }
        None => (program.entry, 0),
    };
    let stack_low = layout.stack_top - STACK_SIZE;
    mm::space().map(
        stack_low,
        STACK_SIZE,
        READ | WRITE_PROT,
        Backing::Anonymous,
        "[stack]",
        false,
    )?;
    let (rsp, auxv) = build_stack(
        layout.stack_top,
        &path,
        &argv,
        envp,
        &program,
        interpreter_base,
    )?;
    fs::set_process_info(&path, &argv, envp, &auxv);
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or(&path);
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

fn build_stack(
    top: u64,
    path: &[u8],
    argv: &[Vec<u8>],
    envp: &[Vec<u8>],
    program: &Loaded,
    interpreter_base: u64,
) -> Result<(u64, Vec<u8>)> {
    let total: usize = argv.iter().chain(envp).map(|s| s.len() + 1).sum();
    if total > MAX_STRINGS {
        return Err(E2BIG);
    }
    let mut sp = top - 16;
    let mut push = |bytes: &[u8]| -> Result<u64> {
        sp -= bytes.len() as u64 + 1;
        user::copy_out(sp, bytes)?;
        user::write(sp + bytes.len() as u64, 0u8)?;
        Ok(sp)
    };
    let exec_name = push(path)?;
    let mut environment = Vec::new();
    for s in envp {
        environment.push(push(s)?);
    }
    let mut arguments = Vec::new();
    for s in argv {
        arguments.push(push(s)?);
    }
    let platform = push(b"x86_64")?;
    sp = (sp & !15) - 16;
    let random_at = sp;
    let mut random = [0u8; 16];
    // Common to all replicas: programs seed visible things with it (R8).
    fs::random::fill(&mut random).map_err(|_| EIO)?;
    user::copy_out(random_at, &random)?;
    let (uid, gid) = sched::credentials();
    let auxv: [(u64, u64); 20] = [
        (3, program.headers_at),
        (4, size_of::<ProgramHeader>() as u64),
        (5, program.header_count),
        (6, PAGE_SIZE),
        (7, interpreter_base),
        (8, 0),
        (9, program.entry),
        (11, u64::from(uid)),
        (12, u64::from(uid)),
        (13, u64::from(gid)),
        (14, u64::from(gid)),
        (15, platform),
        (16, u64::from(crate::boot::cpuid(1, 0)[3])),
        (17, 100),
        (23, 0),
        (25, random_at),
        (26, 0),
        (31, exec_name),
        (51, 3376),
        (0, 0),
    ];
    let words = 1 + arguments.len() + 1 + environment.len() + 1 + 2 * auxv.len();
    sp = (sp - 8 * words as u64) & !15;
    let mut at = sp;
    let mut word = |value: u64| -> Result<()> {
        user::write(at, value)?;
        at += 8;
        Ok(())
    };
    word(arguments.len() as u64)?;
    for value in arguments
        .into_iter()
        .chain([0])
        .chain(environment)
        .chain([0])
    {
        word(value)?;
    }
    let mut auxv_bytes = Vec::new();
    for (key, value) in auxv {
        word(key)?;
        word(value)?;
        auxv_bytes.extend_from_slice(&key.to_le_bytes());
        auxv_bytes.extend_from_slice(&value.to_le_bytes());
    }
    Ok((sp, auxv_bytes))
}
