//! From the VMM's entry to the program's first instruction.

use crate::arch::{entry, monitor};
use crate::fs::mounts::Mount;
use crate::{boundary, drivers, exec, fs, klog, mm, net, sched, time};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use quorate_abi::boot::{BOOT_MAGIC, BootInfo, Layout};
use quorate_abi::mount::MAX_MOUNTS;

/// Bytes of the stack on which faults are handled.
const FAULT_STACK: usize = 32 << 10;

#[repr(C, align(16))]
struct Stack(core::cell::UnsafeCell<[u8; FAULT_STACK]>);
// SAFETY: only used as a stack by the entry code.
unsafe impl Sync for Stack {}
static FAULT: Stack = Stack(core::cell::UnsafeCell::new([0; FAULT_STACK]));

static KERNEL_BASE: AtomicU64 = AtomicU64::new(0);
/// Longest kernel image for which an address counts as the kernel's.
pub(crate) const KERNEL_SPAN: u64 = 16 << 20;
static REGIONS: crate::cell::Global<Option<Layout>> = crate::cell::Global::new(None);

/// Whether an address lies in the kernel's image.
pub fn is_kernel_address(address: u64) -> bool {
    let base = KERNEL_BASE.load(Ordering::Relaxed);
    (base..base + KERNEL_SPAN).contains(&address)
}

/// Offset in the kernel's image.
pub fn kernel_offset(address: u64) -> u64 {
    address.wrapping_sub(KERNEL_BASE.load(Ordering::Relaxed))
}

/// An address as region and offset: what may be printed without showing the layout (R8).
pub fn describe_address(address: u64) -> alloc::string::String {
    use alloc::format;
    let Some(layout) = *REGIONS.borrow() else {
        return "before the layout is known".into();
    };
    if address < 1 << 32 {
        return format!("{address:#x}");
    }
    let regions = [
        ("kernel", layout.kernel, 1u64 << 30),
        ("program", layout.program, 16 << 30),
        ("libraries", layout.libraries, 64 << 30),
        ("mmap", layout.mmap, 512 << 30),
        ("threads", layout.threads, 64 << 30),
        ("heap", layout.heap, 64 << 30),
        ("stack", layout.stack_top - (1 << 30), 1 << 30),
        ("direct", layout.direct, 512 << 30),
        ("kernel heap", layout.kernel_dynamic, 64 << 30),
    ];
    for (name, base, len) in regions {
        if (base..base + len).contains(&address) {
            return format!("{name}+{:#x}", address - base);
        }
    }
    "outside all regions".into()
}

/// What CPUID says, see `BootInfo::cpuid`.
pub fn cpuid(function: u32, index: u32) -> [u32; 4] {
    let at = BOOT.load(Ordering::Relaxed);
    if at == 0 {
        return [0; 4];
    }
    // SAFETY: stored by `start` from a reference that lives for ever.
    let boot = unsafe { &*(at as *const BootInfo) };
    let leaves = &boot.cpuid[..(boot.cpuid_leaves as usize).min(boot.cpuid.len())];
    let indexed = matches!(function, 4 | 7);
    let leaf = leaves
        .iter()
        .find(|l| l.function == function && (!indexed || l.index == index));
    leaf.map_or([0; 4], |l| l.registers)
}

/// Starts everything. Never returns.
pub fn start(boot: &'static BootInfo, image_start: u64) -> ! {
    if boot.magic != BOOT_MAGIC || boot.abi_version != quorate_abi::ABI_VERSION {
        // Without a sync page there is nobody to tell but by this port.
        boundary::panic(format_args!(
            "boot information is not of this kernel's version"
        ));
    }
    boundary::init(boot.sync_page);
    KERNEL_BASE.store(image_start, Ordering::Relaxed);
    entry::init_selectors();
    monitor::MONITOR_STACK_TOP.store(boot.monitor_stack_top, Ordering::Relaxed);
    monitor::MONITOR_FAULT_STACK
        .store(FAULT.0.get() as u64 + FAULT_STACK as u64, Ordering::Relaxed);
    mm::init(boot);
    *REGIONS.borrow_mut() = Some(boot.layout);
    crate::flight::init();
    time::set(boot.monotonic_ns, boot.realtime_ns);
    let stack = match sched::init() {
        Ok(stack) => stack,
        Err(_) => panic!("no memory for the first thread"),
    };
    BOOT.store(core::ptr::from_ref(boot) as u64, Ordering::Relaxed);
    // The boot stack is left for good: from here on the first thread's kernel stack is in use.
    // SAFETY: a fresh stack; `on_first_stack` never returns.
    unsafe {
        core::arch::asm!(
            "mov rsp, {0}",
            "xor ebp, ebp",
            "call {1}",
            "ud2",
            in(reg) stack,
            sym on_first_stack,
            options(noreturn)
        );
    }
}

static BOOT: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_first_stack() -> ! {
    // SAFETY: stored by `start` from a reference that lives for ever.
    let boot = unsafe { &*(BOOT.load(Ordering::Relaxed) as *const BootInfo) };
    drivers::init(boot.layout.devices, boot.devices);
    // The random generator is seeded here.
    boundary::sync_now();
    net::init();
    fs::random::set_source(drivers::fill_random);
    fs::dev::set_console(drivers::console_write);
    if boot.image.len == 0 {
        panic!("there is no root image");
    }
    // SAFETY: the VMM maps the image there, read-only, for ever.
    let image = unsafe {
        core::slice::from_raw_parts(boot.layout.image as *const u8, boot.image.len as usize)
    };
    if let Ok(view) = quorate_abi::image::ImageView::parse(image) {
        crate::rewrite::set_image(view);
    }
    let strings = Strings::parse(boot);
    mount(boot, image, &strings.mounts);
    if let Err(error) = fs::open_std() {
        panic!("standard descriptors: error {}", error.0);
    }
    sched::set_credentials(boot.uid, boot.gid);
    let groups = boot.groups.iter().take(boot.group_count as usize);
    sched::set_groups(groups.copied().collect());
    fs::set_hostname(&strings.host);
    if !strings.cwd.is_empty()
        && let Err(error) = fs::set_cwd(&strings.cwd)
    {
        klog!(
            "working directory {}: error {}",
            show(&strings.cwd),
            error.0
        );
        boundary::exit_program(127 << 8);
    }
    let Some(path) = strings.argv.first().cloned() else {
        panic!("no program to start");
    };
    let started = exec::Program::find(&path, strings.argv)
        .and_then(|program| exec::load_program(&program, &strings.envp));
    #[cfg(not(test))]
    if let Err(error) = fs::disk::start_background() {
        panic!(
            "no memory for the thread that writes to disks (error {})",
            error.0
        );
    }
    let frame = match started {
        Ok(frame) => frame,
        Err(error) => {
            klog!("cannot start {}: error {}", show(&path), error.0);
            boundary::exit_program(127 << 8);
        }
    };
    #[cfg(not(test))]
    // SAFETY: the program was loaded just now.
    unsafe {
        entry::enter_program(&frame)
    }
    #[cfg(test)]
    unreachable!("{}", frame.rip)
}

/// Mounts everything. What cannot be mounted ends the guest, with the reason on the console.
fn mount(boot: &BootInfo, image: &'static [u8], mounts: &[Mount]) {
    let at_root = |m: &&Mount| m.target == "/";
    if let Err(error) = fs::init(image, boot.image.start, mounts.iter().find(at_root)) {
        klog!("the root cannot be mounted (error {})", error.0);
        boundary::exit_program(127 << 8);
    }
    for mount in mounts.iter().filter(|m| !at_root(m)) {
        if let Err(why) = fs::mounts::add(mount) {
            klog!(
                "cannot mount {} {} on {}: {why}",
                mount.kind,
                mount.source,
                mount.target
            );
            boundary::exit_program(127 << 8);
        }
    }
}

/// Which calls the `trace` feature prints: the environment variable `QUORATE_TRACE=FROM-TO`, by number of the call; all without it.
pub fn trace_window() -> (u64, u64) {
    static WINDOW: crate::cell::Global<Option<(u64, u64)>> = crate::cell::Global::new(None);
    let known = *WINDOW.borrow();
    if let Some(window) = known {
        return window;
    }
    // SAFETY: stored by `start` from a reference that lives for ever.
    let boot = unsafe { &*(BOOT.load(Ordering::Relaxed) as *const BootInfo) };
    let environment = Strings::parse(boot).envp;
    let value = environment
        .iter()
        .find_map(|s| s.strip_prefix(b"QUORATE_TRACE="));
    let parsed = value
        .and_then(|v| core::str::from_utf8(v).ok())
        .and_then(|v| {
            let (from, to) = v.split_once('-')?;
            Some((from.parse().ok()?, to.parse().ok()?))
        });
    let window = parsed.unwrap_or((0, u64::MAX));
    *WINDOW.borrow_mut() = Some(window);
    window
}

fn show(bytes: &[u8]) -> alloc::borrow::Cow<'_, str> {
    alloc::string::String::from_utf8_lossy(bytes)
}

struct Strings {
    argv: Vec<Vec<u8>>,
    envp: Vec<Vec<u8>>,
    cwd: Vec<u8>,
    host: Vec<u8>,
    mounts: Vec<Mount>,
}

impl Strings {
    fn parse(boot: &BootInfo) -> Self {
        // SAFETY: the VMM put the strings there; they are not changed.
        let bytes = unsafe {
            core::slice::from_raw_parts(boot.strings as *const u8, boot.strings_len as usize)
        };
        let mut parts = bytes.split(|b| *b == 0).map(<[u8]>::to_vec);
        let argv = parts.by_ref().take(boot.argc as usize).collect();
        let envp = parts.by_ref().take(boot.envc as usize).collect();
        let cwd = parts.next().unwrap_or_default();
        let host = parts.next().unwrap_or_default();
        let mut text = || {
            let bytes = parts.next().unwrap_or_default();
            alloc::string::String::from_utf8_lossy(&bytes).into_owned()
        };
        let mounts = (0..boot.mounts.min(MAX_MOUNTS)).map(|_| Mount {
            target: text(),
            kind: text(),
            source: text(),
            options: text(),
        });
        let mounts = mounts.collect();
        Self {
            argv,
            envp,
            cwd,
            host,
            mounts,
        }
    }
}
