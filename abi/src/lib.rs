//! What the embedded guest kernel and the VMM must agree on: boot information, the sync page, device
//! addresses and the image format. `no_std`, no allocation; both sides compile exactly this crate.
#![no_std]
#![forbid(unsafe_code)]

pub mod boot;
pub mod calls;
pub mod flight;
pub mod image;
pub mod linux;
pub mod map;
pub mod mount;
pub mod net;
pub mod sync;

/// Version of everything in this crate. Guest kernel and VMM refuse each other when it differs.
pub const ABI_VERSION: u32 = 2;

/// Size of a page in bytes.
pub const PAGE_SIZE: u64 = 4096;
