//! Everything that is written in assembly: the CPL 0 monitor, the ways into and out of the kernel, the context switch.

pub mod entry;
pub mod frame;
pub mod monitor;

pub use frame::TrapFrame;

/// One 32-bit `out`.
///
/// # Safety
/// The device behind the port must not break memory that Rust relies on.
#[inline]
pub unsafe fn outl(port: u16, value: u32) {
    // SAFETY: IOPL is 3; what the device does is the caller's promise.
    unsafe {
        core::arch::asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags));
    }
}

/// Base of the FS segment.
#[inline]
pub fn fs_base() -> u64 {
    let base: u64;
    // SAFETY: the VMM sets CR4.FSGSBASE.
    unsafe {
        core::arch::asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags))
    };
    base
}

/// Sets the base of the FS segment, which the kernel itself does not use.
#[inline]
pub fn set_fs_base(base: u64) {
    // SAFETY: as above; a non-canonical base is refused by the caller.
    unsafe {
        core::arch::asm!("wrfsbase {}", in(reg) base, options(nomem, nostack, preserves_flags))
    };
}

/// Base of the GS segment.
#[inline]
pub fn gs_base() -> u64 {
    let base: u64;
    // SAFETY: as `fs_base`.
    unsafe {
        core::arch::asm!("rdgsbase {}", out(reg) base, options(nomem, nostack, preserves_flags))
    };
    base
}

/// Sets the base of the GS segment, which the kernel itself does not use.
#[inline]
pub fn set_gs_base(base: u64) {
    // SAFETY: as `set_fs_base`.
    unsafe {
        core::arch::asm!("wrgsbase {}", in(reg) base, options(nomem, nostack, preserves_flags))
    };
}

/// FXSAVE area: x87, MXCSR and the XMM registers of a program.
#[repr(C, align(16))]
#[derive(Clone, Copy)]
pub struct FxArea(pub [u8; 512]);

impl FxArea {
    /// The state in which a program starts.
    pub const fn initial() -> Self {
        let mut area = [0u8; 512];
        area[0] = 0x7f; // FCW 0x037f
        area[1] = 0x03;
        area[24] = 0x80; // MXCSR 0x1f80
        area[25] = 0x1f;
        Self(area)
    }

    /// Saves the live state.
    pub fn save(&mut self) {
        // SAFETY: 512 bytes, 16-byte aligned.
        unsafe { core::arch::asm!("fxsave64 [{}]", in(reg) self.0.as_mut_ptr(), options(nostack)) };
    }

    /// Loads the state. XMM registers are clobbered: the kernel's own use of them across this call is the compiler's.
    pub fn load(&self) {
        // SAFETY: a valid image (MXCSR checked where it comes from a program); all registers it changes are declared.
        unsafe {
            core::arch::asm!("fxrstor64 [{}]", in(reg) self.0.as_ptr(), options(nostack),
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _);
        }
    }
}
