//! The vCPU's state as KVM gives it, and the order in which it is taken and put back.
//!
//! Taken in this order:
//! 1. `MP_STATE`: KVM_GET_MP_STATE may first act on events that wait, which changes registers.
//! 2. `REGS`: brings registers that KVM's emulator still holds back into the vCPU, for everything that follows.
//! 3. `SREGS`: segments, descriptor tables, control registers, EFER, FS and GS base. KVM_GET_SREGS2 has more only for PAE paging
//!    without long mode, which the guest is never in.
//! 4. `XSAVE`: x87, SSE and whatever else is on (KVM_GET_FPU has part of it). 4 KiB suffice: the guest's CPUID has no XSAVE, and this
//!    process never asks for the features whose state is larger (`arch_prctl`).
//! 5. `XCRS`, where the host's processor has them.
//! 6. `DEBUGREGS`.
//! 7. `LAPIC`, of a Linux machine. The embedded guest has no interrupt controller.
//! 8. `MSRS`: those that were found. Of a Linux machine the deadline of its timer comes last: KVM starts the timer with it, and needs
//!    the clock and the LAPIC for that.
//! 9. `VCPU_EVENTS` last: everything before may complete or change what waits to be delivered.
//!
//! Put back in the same order: the mode (SREGS) before what KVM checks against it (MSRs, FPU), and VCPU_EVENTS last, since KVM_SET_REGS
//! drops exceptions that wait and KVM_SET_SREGS sets an interrupt that waits. CPUID is not state: it was set before the first
//! KVM_RUN, cannot be changed after it, and is compared as part of the machine's identity.
//!
//! CPUID offers neither VMX nor SVM, so there is no nested state.

use crate::error::MachineError;
use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

/// The vCPU as plain data.
#[derive(Debug)]
pub(crate) struct VcpuState {
    pub mp_state: kvm_mp_state,
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    pub xsave: kvm_xsave,
    pub xcrs: Option<kvm_xcrs>,
    pub debugregs: kvm_debugregs,
    pub lapic: Option<kvm_lapic_state>,
    pub msrs: Vec<(u32, u64)>,
    pub events: kvm_vcpu_events,
}

/// What this KVM can give and take, found out once for each machine before its first instruction.
#[derive(Clone, Debug)]
pub(crate) struct Offers {
    xcrs: bool,
    lapic: bool,
    msrs: Vec<u32>,
}

/// MSRs that are never saved, `[first, last]`, and why.
const NOT_STATE: [(u32, u32); 9] = [
    // Time-stamp counter, its offset and its deadline: real time, which is no part of a replica's state (R1). The guest never
    // sees it: CPUID does not offer it and the kernel rewrites `rdtsc`. To set it back would only disturb the host's clock logic.
    (0x10, 0x10),
    (0x3b, 0x3b),
    (0x6e0, 0x6e0),
    // MPERF and APERF count real cycles.
    (0xe7, 0xe8),
    // KVM's wall clock, old and new: an order to write the time somewhere, not a state.
    (0x11, 0x11),
    (0x4b56_4d00, 0x4b56_4d00),
    // Hyper-V: real time among other things; not offered by CPUID, so a guest that uses one gets #GP.
    (0x4000_0000, 0x4000_01ff),
    // Performance counters count what the host does; they are not offered either.
    (0xc1, 0xd8),
    (0x309, 0x30c),
];

/// As [`NOT_STATE`], for a Linux machine, whose clock is part of its state.
const NOT_STATE_OF_LINUX: [(u32, u32); 7] = [
    // The offset of the time-stamp counter follows from the counter.
    (0x3b, 0x3b),
    (0xe7, 0xe8),
    // KVM's clock has each of its registers twice; the old ones (0x11, 0x12) would turn the old form on. The wall clock is an order to
    // write, as above.
    (0x11, 0x12),
    (0x4b56_4d00, 0x4b56_4d00),
    (0x4000_0000, 0x4000_01ff),
    (0xc1, 0xd8),
    (0x309, 0x30c),
];

/// The deadline of the local interrupt controller's timer.
const TSC_DEADLINE: u32 = 0x6e0;

/// What the guest reaches without being in KVM's list everywhere: SYSENTER, PAT, CPUID faulting, SYSCALL, KERNEL_GS_BASE. EFER and
/// the FS and GS bases are among the system registers.
const ALWAYS: [u32; 11] = [
    0x174,
    0x175,
    0x176,
    0x277,
    0xce,
    0x140,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
];

impl Offers {
    /// Asks KVM. The vCPU must be set up and not have run yet.
    pub(crate) fn find(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Self, MachineError> {
        Self::find_but(kvm, vcpu, false, &NOT_STATE)
    }

    /// As [`Offers::find`], for a processor with an interrupt controller and a clock of its own.
    pub(crate) fn find_for_linux(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Self, MachineError> {
        let mut offers = Self::find_but(kvm, vcpu, true, &NOT_STATE_OF_LINUX)?;
        // Stable: all others keep their order, the time-stamp counter among the first.
        offers.msrs.sort_by_key(|&msr| msr == TSC_DEADLINE);
        Ok(offers)
    }

    fn find_but(
        kvm: &Kvm,
        vcpu: &VcpuFd,
        lapic: bool,
        not_state: &[(u32, u32)],
    ) -> Result<Self, MachineError> {
        for (cap, name) in [
            (Cap::MpState, "KVM_CAP_MP_STATE"),
            (Cap::Xsave, "KVM_CAP_XSAVE"),
            (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
            (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(MachineError::MissingCapability(name));
            }
        }
        Ok(Self {
            xcrs: kvm.check_extension(Cap::Xcrs),
            lapic,
            msrs: find_msrs(kvm, vcpu, not_state)?,
        })
    }
}

/// The MSRs of KVM's list that this vCPU has: those that KVM gives and takes back. What cannot be set, the guest cannot have
/// changed.
fn find_msrs(kvm: &Kvm, vcpu: &VcpuFd, not_state: &[(u32, u32)]) -> Result<Vec<u32>, MachineError> {
    let list = kvm
        .get_msr_index_list()
        .map_err(MachineError::kvm("KVM_GET_MSR_INDEX_LIST"))?;
    let mut wanted: Vec<u32> = list.as_slice().iter().copied().chain(ALWAYS).collect();
    wanted.retain(|msr| {
        !not_state
            .iter()
            .any(|(first, last)| (first..=last).contains(&msr))
    });
    wanted.sort_unstable();
    wanted.dedup();
    let mut found = Vec::new();
    let mut left = wanted.as_slice();
    while !left.is_empty() {
        let (mut values, refused) = match read_msrs(vcpu, left) {
            Ok(values) => (values, 0),
            Err((values, MachineError::MsrRead(_))) => (values, 1),
            Err((_, other)) => return Err(other),
        };
        left = left.get(values.len() + refused..).unwrap_or_default();
        while !values.is_empty() {
            let (done, refused) = match write_msrs(vcpu, &values) {
                Ok(()) => (values.len(), 0),
                Err((done, MachineError::Msr(_))) => (done, 1),
                Err((_, other)) => return Err(other),
            };
            found.extend(values.drain(..done).map(|(msr, _)| msr));
            values.drain(..refused.min(values.len()));
        }
    }
    Ok(found)
}

/// MSRs and what is in them.
type Values = Vec<(u32, u64)>;

/// Reads MSRs. KVM stops silently at the first that it refuses, so the count decides: then those before it, and an
/// error that names it.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Values, (Values, MachineError)> {
    let entries: Vec<kvm_msr_entry> = indices
        .iter()
        .map(|&index| kvm_msr_entry {
            index,
            ..kvm_msr_entry::default()
        })
        .collect();
    let first = indices.first().copied().unwrap_or(0);
    let mut msrs =
        Msrs::from_entries(&entries).map_err(|_| (Vec::new(), MachineError::MsrRead(first)))?;
    let done = vcpu
        .get_msrs(&mut msrs)
        .map_err(|error| (Vec::new(), MachineError::kvm("KVM_GET_MSRS")(error)))?;
    let values = msrs.as_slice().iter().take(done);
    let values: Values = values.map(|entry| (entry.index, entry.data)).collect();
    match indices.get(done) {
        None => Ok(values),
        Some(&refused) => Err((values, MachineError::MsrRead(refused))),
    }
}

/// Sets MSRs, with the count checked as in [`read_msrs`]: how many were set, and an error that names the one that was not.
pub(crate) fn write_msrs(
    vcpu: &VcpuFd,
    values: &[(u32, u64)],
) -> Result<(), (usize, MachineError)> {
    let entries: Vec<kvm_msr_entry> = values
        .iter()
        .map(|&(index, data)| kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        })
        .collect();
    let first = values.first().map_or(0, |&(index, _)| index);
    let msrs = Msrs::from_entries(&entries).map_err(|_| (0, MachineError::Msr(first)))?;
    let done = vcpu
        .set_msrs(&msrs)
        .map_err(|error| (0, MachineError::kvm("KVM_SET_MSRS")(error)))?;
    match values.get(done) {
        None => Ok(()),
        Some(&(refused, _)) => Err((done, MachineError::Msr(refused))),
    }
}

impl VcpuState {
    /// Takes the state. No I/O instruction may be half done: see `Machine::settle`.
    pub(crate) fn take(vcpu: &VcpuFd, offers: &Offers) -> Result<Self, MachineError> {
        use MachineError as E;
        Ok(Self {
            mp_state: vcpu.get_mp_state().map_err(E::kvm("KVM_GET_MP_STATE"))?,
            regs: vcpu.get_regs().map_err(E::kvm("KVM_GET_REGS"))?,
            sregs: vcpu.get_sregs().map_err(E::kvm("KVM_GET_SREGS"))?,
            xsave: vcpu.get_xsave().map_err(E::kvm("KVM_GET_XSAVE"))?,
            xcrs: match offers.xcrs {
                true => Some(vcpu.get_xcrs().map_err(E::kvm("KVM_GET_XCRS"))?),
                false => None,
            },
            debugregs: vcpu.get_debug_regs().map_err(E::kvm("KVM_GET_DEBUGREGS"))?,
            lapic: match offers.lapic {
                true => Some(vcpu.get_lapic().map_err(E::kvm("KVM_GET_LAPIC"))?),
                false => None,
            },
            msrs: read_msrs(vcpu, &offers.msrs).map_err(|(_, error)| error)?,
            events: vcpu
                .get_vcpu_events()
                .map_err(E::kvm("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Puts the state back.
    pub(crate) fn put(&self, vcpu: &VcpuFd, offers: &Offers) -> Result<(), MachineError> {
        use MachineError as E;
        vcpu.set_mp_state(self.mp_state)
            .map_err(E::kvm("KVM_SET_MP_STATE"))?;
        vcpu.set_regs(&self.regs).map_err(E::kvm("KVM_SET_REGS"))?;
        vcpu.set_sregs(&self.sregs)
            .map_err(E::kvm("KVM_SET_SREGS"))?;
        // SAFETY: KVM reads 4096 bytes unless features with larger state were enabled for this process, which it never asks for.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(E::kvm("KVM_SET_XSAVE"))?;
        match (&self.xcrs, offers.xcrs) {
            (Some(xcrs), true) => vcpu.set_xcrs(xcrs).map_err(E::kvm("KVM_SET_XCRS"))?,
            (None, false) => {}
            _ => return Err(MachineError::MissingCapability("KVM_CAP_XCRS")),
        }
        vcpu.set_debug_regs(&self.debugregs)
            .map_err(E::kvm("KVM_SET_DEBUGREGS"))?;
        if let Some(lapic) = &self.lapic {
            vcpu.set_lapic(lapic).map_err(E::kvm("KVM_SET_LAPIC"))?;
        }
        write_msrs(vcpu, &self.msrs).map_err(|(_, error)| error)?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(E::kvm("KVM_SET_VCPU_EVENTS"))
    }
}

#[cfg(test)]
impl Offers {
    /// As if KVM had offered an MSR.
    pub(crate) fn add_msr(&mut self, msr: u32) {
        self.msrs.insert(1, msr);
    }
}
