//! Whether a Linux guest can be expected to run on this host.

use crate::probe::ProbeReport;

/// Why a Linux guest cannot be expected to run on this host, in one line; `None` if it can.
#[must_use]
pub fn refusal(probe: &ProbeReport) -> Option<String> {
    if probe.native_ring0() {
        return None;
    }
    Some(format!(
        "this host's KVM interprets ring 0 ({:.1} million instructions/s there, {:.0} in ring 3), where a Linux kernel does not get \
         through its start: use a host with kvm_intel or kvm_amd, or the lane (`make svm CMD=…`)",
        probe.cpl0_mips, probe.cpl3_mips
    ))
}
