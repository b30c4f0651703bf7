//! A second kind of machine: a stock Linux kernel, with as many virtual processors as wanted, that runs freely. It takes interrupts,
//! has its own clock, and halts when it has nothing to do. How it is booted is in `docs/linux.md`.
//!
//! [`LinuxMachine::run`] makes a thread for each virtual processor and is itself the device thread: whenever the guest notified a
//! queue, or somebody called [`LinuxHandle::wake`], it takes out what the guest made visible, gives it to [`Exchange::exchange`], and
//! delivers what comes back. So between two exchanges the guest sees nothing of the world (R1), and what leaves it goes one way only.

mod acpi;
mod config;
mod cpuid;
mod exchange;
mod fault;
mod inject;
mod loader;
mod machine;
mod map;
mod ports;
mod refusal;
mod shared;
mod state;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
mod vcpu;

pub use config::{LinuxConfig, LinuxConsole, MAX_LINUX_CPUS};
pub use exchange::{Exchange, Exchanged};
pub use fault::LinuxFault;
pub use machine::{LinuxCounters, LinuxEnd, LinuxHandle, LinuxMachine};
pub use refusal::refusal;
pub use state::LinuxCheckpoint;
