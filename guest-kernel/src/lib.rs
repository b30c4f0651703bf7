//! The embedded guest kernel: runs unmodified Linux x86-64 programs at CPL 3, many processes with many threads,
//! deterministically between boundaries. See docs/design.md §7.
//!
//! Everything here also compiles on the host, so that logic can be unit-tested with `cargo test`; the entry
//! point, panic handler and allocator are in `main.rs`.
#![cfg_attr(not(test), no_std)]
// Host tests leave out the assembly, from which much of the kernel is entered.
#![cfg_attr(test, allow(dead_code, unused_imports))]

extern crate alloc;

pub mod arch;
pub mod boot;
pub mod boundary;
pub mod cell;
pub mod drivers;
pub mod errno;
pub mod exec;
pub mod fault;
pub mod file;
pub mod fingerprint;
pub mod flight;
pub mod fs;
pub mod futex;
pub mod klog;
pub mod mm;
pub mod net;
pub mod process;
pub mod rewrite;
pub mod sched;
pub mod signal;
pub mod sys;
pub mod time;
pub mod user;
pub mod wait;
