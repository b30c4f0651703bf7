//! Quorate: vmm.
