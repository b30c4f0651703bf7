//! The registers of a program, as the entry code saves them.

/// What the entry code pushes. The order is known to the assembly in `entry.rs` (offsets asserted below).
#[repr(C, align(16))]
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rip: u64,
    pub rflags: u64,
    pub rsp: u64,
    /// How the kernel was entered: one of `entry::KIND_*`.
    pub kind: u64,
    /// System-call number at entry (`rax` is replaced by the result), for restarts.
    pub orig_rax: u64,
    /// XMM registers.
    pub xmm: [u128; 16],
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(TrapFrame, rax) == 80);
    assert!(offset_of!(TrapFrame, rip) == 120);
    assert!(offset_of!(TrapFrame, kind) == 144);
    assert!(offset_of!(TrapFrame, xmm) == 160);
    assert!(size_of::<TrapFrame>() == 416);
};

/// RFLAGS in which programs start: IF looks set as on Linux, IOPL 3 since the kernel needs `out`.
pub const INITIAL_RFLAGS: u64 = 0x3202;
/// Bits of RFLAGS that a program may set through a signal frame: CF PF AF ZF SF TF DF OF AC ID... not IOPL, NT, VM.
pub const USER_RFLAGS: u64 = 0x0004_0dd5 | 0x0020_0000;

impl TrapFrame {
    /// All zero, with flags as a program expects them.
    pub const fn new() -> Self {
        Self {
            r15: 0,
            r14: 0,
            r13: 0,
            r12: 0,
            rbp: 0,
            rbx: 0,
            r11: 0,
            r10: 0,
            r9: 0,
            r8: 0,
            rax: 0,
            rcx: 0,
            rdx: 0,
            rsi: 0,
            rdi: 0,
            rip: 0,
            rflags: INITIAL_RFLAGS,
            rsp: 0,
            kind: 0,
            orig_rax: 0,
            xmm: [0; 16],
        }
    }
}

impl Default for TrapFrame {
    fn default() -> Self {
        Self::new()
    }
}
