//! What lies where in one machine: from an address to words. A page of guest-physical memory is named by who has it mapped; an address
//! of a replica is told relative to its region, so that it means the same in all of them (modulo layout).

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use quorate_abi::PAGE_SIZE;
use quorate_abi::boot::Layout;
use quorate_abi::flight::Record;
use quorate_abi::map::IMAGE_BASE;
pub use quorate_vmm::fault::regions;
use serde::Serialize;

use super::binary::Binary;
use super::files::Files;
use super::flight::Log;
use super::memory::{Memory, Space, word};

const GIB: u64 = 1 << 30;
/// Free pages that are followed in the guest kernel's list (R10).
const MAX_FREE: usize = 1 << 24;
/// Where kernel stacks begin in `Layout::kernel_dynamic`; below is the heap.
const STACKS: u64 = 32 * GIB;
/// From one kernel stack to the next: a guard page and 64 KiB.
const STACK_STEP: u64 = PAGE_SIZE + (64 << 10);

/// What kind of thing lies somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Code of a program or a library.
    Text,
    /// Other contents of a program's or a library's file, and its static variables.
    Data,
    /// `brk` area.
    Heap,
    /// Anonymous mappings: memory from malloc, mostly.
    Mmap,
    /// A program's stack.
    Stack,
    /// Stacks and control blocks of threads.
    ThreadStack,
    /// The guest kernel's code.
    KernelText,
    /// Its variables.
    KernelData,
    /// Its heap: sockets, files, processes.
    KernelHeap,
    /// A kernel stack.
    KernelStack,
    /// Pages that only the guest kernel uses: queues, buffers, page cache, files in memory.
    KernelPages,
    /// A page table.
    PageTable,
    /// Descriptor tables, boot information, sync page.
    Boot,
    /// A file of the root image that no process has mapped.
    Image,
    /// A page that is free.
    Free,
}

/// A place in a machine, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// What kind.
    pub kind: Kind,
    /// Guest-physical address.
    pub physical: u64,
    /// Virtual address, if it is mapped somewhere but in the kernel's map of all memory.
    #[serde(rename = "virtual")]
    pub virt: Option<u64>,
    /// Relative to the layout's region, which all replicas have in common: `mmap+0x1234`.
    pub relative: Option<String>,
    /// The process, if it is one's.
    pub process: Option<u32>,
    /// File, symbol or object.
    pub object: Option<String>,
    /// All of it.
    pub text: String,
}

struct Module {
    binary: Rc<Binary>,
    bias: u64,
}

impl Module {
    fn linked(&self, virt: u64) -> Option<u64> {
        let linked = virt.checked_sub(self.bias)?;
        let segment = self.binary.segments.iter().find(|segment| {
            let end = (segment.addr + segment.len).next_multiple_of(PAGE_SIZE);
            (segment.addr / PAGE_SIZE * PAGE_SIZE..end).contains(&linked)
        });
        segment.map(|_| linked)
    }

    fn is_text(&self, linked: u64) -> bool {
        self.binary.segments.iter().any(|segment| {
            segment.execute && (segment.addr..segment.addr + segment.len).contains(&linked)
        })
    }
}

/// A process's address space.
struct Process {
    root: u64,
    /// 0 if it is not known.
    pid: u32,
    space: Space,
    modules: Vec<Module>,
}

/// See the module.
pub struct Atlas<'a> {
    layout: Layout,
    kernel: Rc<Binary>,
    files: &'a Files,
    processes: Vec<Process>,
    /// Who has a page mapped, but for the kernel's map of all memory: index of the process and virtual address.
    owners: BTreeMap<u64, Vec<(usize, u64)>>,
    free: BTreeSet<u64>,
    /// The map of all memory as its pages were found: only to know that a page is RAM.
    log: Option<Log>,
}

/// An address relative to its region; None if it is in none.
#[must_use]
pub fn relative(layout: &Layout, addr: u64) -> Option<(&'static str, u64)> {
    regions(layout)
        .into_iter()
        .find(|(_, start, len)| addr.checked_sub(*start).is_some_and(|offset| offset < *len))
        .map(|(name, start, _)| (name, addr - start))
}

impl<'a> Atlas<'a> {
    /// Looks at a machine's memory. `log` is its flight recorder, which knows the address spaces.
    #[must_use]
    pub fn new(
        memory: &dyn Memory,
        layout: Layout,
        kernel: Rc<Binary>,
        files: &'a Files,
        log: Option<&Log>,
    ) -> Atlas<'a> {
        let mut atlas = Atlas {
            layout,
            kernel,
            files,
            processes: Vec::new(),
            owners: BTreeMap::new(),
            free: BTreeSet::new(),
            log: log.cloned(),
        };
        let mut roots = vec![memory.root()];
        let all = log.map_or_else(Vec::new, |log| log.roots(memory));
        roots.extend(all.into_iter().filter(|root| *root != memory.root()));
        for root in roots {
            atlas.add(memory, root);
        }
        if let Some(log) = log {
            atlas.follow_free(memory, log);
        }
        atlas
    }

    fn add(&mut self, memory: &dyn Memory, root: u64) {
        let space = Space::walk(memory, root);
        let index = self.processes.len();
        let page = (root / PAGE_SIZE) as u32;
        let records = self.log.as_ref().map_or(&[][..], |log| &log.records);
        let pid = records
            .iter()
            .rev()
            .find(|record| record.root == page)
            .map_or(0, |record| record.pid);
        let mut modules: Vec<Module> = Vec::new();
        for mapping in space.mappings.values() {
            let direct = relative(&self.layout, mapping.virt)
                .is_some_and(|(region, _)| matches!(region, "direct" | "image" | "devices"));
            if direct {
                continue;
            }
            for step in (0..mapping.len).step_by(PAGE_SIZE as usize) {
                self.owners
                    .entry(mapping.phys + step)
                    .or_default()
                    .push((index, mapping.virt + step));
            }
            self.note_module(&mut modules, mapping.phys, mapping.virt);
        }
        self.processes.push(Process {
            root,
            pid,
            space,
            modules,
        });
    }

    /// A page of a program's file tells where the program was loaded.
    fn note_module(&self, modules: &mut Vec<Module>, phys: u64, virt: u64) {
        let Some(at) = self.files.at(phys) else {
            return;
        };
        if modules
            .iter()
            .any(|module| module.binary.name == at.path && module.linked(virt).is_some())
        {
            return;
        }
        let Some(binary) = self.files.binary(at.ino) else {
            return;
        };
        let segment = binary.segments.iter().find(|segment| {
            let start = segment.offset / PAGE_SIZE * PAGE_SIZE;
            (start..segment.offset + segment.file_len).contains(&at.offset)
        });
        let Some(segment) = segment else { return };
        let linked = segment
            .addr
            .wrapping_sub(segment.offset)
            .wrapping_add(at.offset);
        let bias = virt.wrapping_sub(linked);
        modules.push(Module { binary, bias });
    }

    fn follow_free(&mut self, memory: &dyn Memory, log: &Log) {
        let mut next = super::memory::virt_word(memory, memory.root(), log.recorder.free_pages);
        while let Some(at) = next {
            let good = at != 0 && at.is_multiple_of(PAGE_SIZE) && self.free.len() < MAX_FREE;
            if !good || !self.free.insert(at) {
                return;
            }
            next = word(memory, at);
        }
    }

    /// Names the place of a byte of guest-physical memory.
    #[must_use]
    pub fn place(&self, phys: u64) -> Place {
        let page = phys & !(PAGE_SIZE - 1);
        for process in &self.processes {
            if let Some(table) = process.space.tables.get(&page) {
                let entry = (phys - page) / 8;
                let virt = table.virt + entry * table.reach();
                let place = match self.relative(virt) {
                    Some(relative) => format!("{relative} ({virt:#x})"),
                    None => format!("{virt:#x}"),
                };
                let whose = self.process_name(process);
                let text = format!(
                    "page table of level {} of {whose}, the entry for {place}",
                    table.level
                );
                return Place {
                    process: (process.pid != 0).then_some(process.pid),
                    object: Some(format!("entry for {place}")),
                    ..self.at(Kind::PageTable, phys, None, text)
                };
            }
        }
        if let Some(owners) = self.owners.get(&page) {
            // The kernel's own mappings are in every space: the first is as good as any.
            if let Some((process, virt)) = owners.first() {
                return self.mapped(&self.processes[*process], virt + (phys - page), phys);
            }
        }
        if phys >= IMAGE_BASE {
            let text = match self.files.at(phys) {
                Some(at) => format!(
                    "root image: {} at {:#x}, which nobody has mapped",
                    at.path, at.offset
                ),
                None => format!("root image at {:#x}: its directories", phys - IMAGE_BASE),
            };
            return self.at(Kind::Image, phys, None, text);
        }
        if self.free.contains(&page) {
            return self.at(Kind::Free, phys, None, "a page that is free".to_owned());
        }
        let text = "a page that only the guest kernel uses (device queues, buffers, page cache) or nobody yet";
        self.at(Kind::KernelPages, phys, None, text.to_owned())
    }

    fn at(&self, kind: Kind, physical: u64, virt: Option<u64>, text: String) -> Place {
        let relative = virt.and_then(|virt| self.relative(virt));
        let whole = match &relative {
            Some(relative) => format!("{text} [{relative}, physical {physical:#x}]"),
            None => format!("{text} [physical {physical:#x}]"),
        };
        Place {
            kind,
            physical,
            virt,
            relative,
            process: None,
            object: None,
            text: whole,
        }
    }

    fn relative(&self, virt: u64) -> Option<String> {
        relative(&self.layout, virt).map(|(region, offset)| format!("{region}+{offset:#x}"))
    }

    fn mapped(&self, process: &Process, virt: u64, phys: u64) -> Place {
        let region = relative(&self.layout, virt);
        let own = |kind, text| self.at(kind, phys, Some(virt), text);
        match region {
            Some(("kernel", offset)) => {
                let section = self.kernel.section(offset).unwrap_or("image");
                let kind = match section {
                    ".text" => Kind::KernelText,
                    _ => Kind::KernelData,
                };
                let object = self.kernel.symbol(offset);
                let name = object.clone().unwrap_or_else(|| format!("{offset:#x}"));
                Place {
                    object,
                    ..own(kind, format!("guest kernel, {section}: {name}"))
                }
            }
            Some(("boot", offset)) => {
                let what = match offset / PAGE_SIZE {
                    0 => "descriptor tables",
                    1 => "boot information",
                    2 => "sync page",
                    3 => "the monitor's scratch",
                    5 => "the monitor's stack",
                    7 => "the monitor's fault stack",
                    _ => "boot stack or strings",
                };
                Place {
                    object: Some(what.to_owned()),
                    ..own(Kind::Boot, format!("boot block: {what}"))
                }
            }
            Some(("kernel_dynamic", offset)) if offset < STACKS => {
                own(Kind::KernelHeap, "guest kernel's heap".to_owned())
            }
            Some(("kernel_dynamic", offset)) => {
                let number = (offset - STACKS) / STACK_STEP;
                own(
                    Kind::KernelStack,
                    format!("guest kernel's stack number {number}"),
                )
            }
            _ => self.of_program(process, virt, phys, region.map_or("", |(name, _)| name)),
        }
    }

    fn of_program(&self, process: &Process, virt: u64, phys: u64, region: &str) -> Place {
        let whose = self.process_name(process);
        let module = process
            .modules
            .iter()
            .find_map(|module| Some((module, module.linked(virt)?)));
        let (kind, text, object) = if let Some((module, linked)) = module {
            let symbol = module.binary.symbol(linked);
            let section = module.binary.section(linked).unwrap_or("file");
            let kind = if module.is_text(linked) {
                Kind::Text
            } else {
                Kind::Data
            };
            let name = symbol.unwrap_or_else(|| format!("{linked:#x}"));
            let object = format!("{} {section}: {name}", module.binary.name);
            (kind, format!("{object}, in {whose}"), Some(object))
        } else {
            let (kind, what) = match region {
                "heap" => (Kind::Heap, "heap (brk)"),
                "stack" => (Kind::Stack, "stack"),
                "threads" => (Kind::ThreadStack, "stacks and control blocks of threads"),
                "program" => (Kind::Data, "memory next to the program"),
                "libraries" => (Kind::Data, "a mapped file"),
                _ => (Kind::Mmap, "anonymous memory (malloc's, mostly)"),
            };
            (kind, format!("{what} of {whose}"), None)
        };
        Place {
            process: (process.pid != 0).then_some(process.pid),
            object,
            ..self.at(kind, phys, Some(virt), text)
        }
    }

    fn process_name(&self, process: &Process) -> String {
        let program = process.modules.iter().find(|module| {
            relative(&self.layout, module.bias).is_some_and(|(region, _)| region == "program")
        });
        let program = program.map_or("", |module| module.binary.name.as_str());
        match (process.pid, program) {
            (0, "") => "an address space that nobody used lately".to_owned(),
            (0, program) => program.to_owned(),
            (pid, "") => format!("process {pid}"),
            (pid, program) => format!("process {pid} ({program})"),
        }
    }

    fn process(&self, root: u64) -> Option<&Process> {
        self.processes
            .iter()
            .find(|process| process.root == root)
            .or(self.processes.first())
    }

    /// Names a virtual address under a root: symbol for code, the place for data.
    #[must_use]
    pub fn address(&self, root: u64, virt: u64) -> String {
        if let Some(offset) = virt
            .checked_sub(self.layout.kernel)
            .filter(|offset| *offset < 16 << 20)
        {
            let name = self
                .kernel
                .symbol(offset)
                .unwrap_or_else(|| format!("{offset:#x}"));
            return format!("kernel: {name}");
        }
        let module = self.module(root, virt);
        if let Some((module, linked)) = module {
            let name = module
                .binary
                .symbol(linked)
                .unwrap_or_else(|| format!("{linked:#x}"));
            let file = module.binary.name.rsplit('/').next().unwrap_or_default();
            return format!("{file}: {name}");
        }
        self.relative(virt).unwrap_or_else(|| format!("{virt:#x}"))
    }

    fn module(&self, root: u64, virt: u64) -> Option<(&Module, u64)> {
        let process = self.process(root)?;
        process
            .modules
            .iter()
            .find_map(|module| Some((module, module.linked(virt)?)))
    }

    /// The file that an address is in, and the address as linked there.
    #[must_use]
    pub fn code(&self, root: u64, virt: u64) -> Option<(Rc<Binary>, u64)> {
        if let Some(offset) = virt
            .checked_sub(self.layout.kernel)
            .filter(|offset| *offset < 16 << 20)
        {
            return Some((self.kernel.clone(), offset));
        }
        self.module(root, virt)
            .map(|(module, linked)| (module.binary.clone(), linked))
    }

    /// Address of a symbol of the guest kernel.
    #[must_use]
    pub fn kernel_symbol(&self, name: &str) -> Option<u64> {
        self.kernel
            .find(name)
            .map(|offset| self.layout.kernel + offset)
    }

    /// Whether a virtual address is in the guest kernel's image.
    #[must_use]
    pub fn is_kernel(&self, virt: u64) -> bool {
        virt.checked_sub(self.layout.kernel)
            .is_some_and(|offset| offset < 16 << 20)
    }

    /// Whether a virtual address may be executed under a root.
    #[must_use]
    pub fn executes(&self, root: u64, virt: u64) -> bool {
        self.process(root)
            .and_then(|process| process.space.at(virt))
            .is_some_and(|mapping| mapping.execute)
    }

    /// The root of the address space in which a record was made.
    #[must_use]
    pub fn root_of(record: &Record) -> u64 {
        u64::from(record.root) * PAGE_SIZE
    }
}
