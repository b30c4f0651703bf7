//! The replica set and the `quorate` command: journal, egress, gateway, fault injection and the control socket around
//! the pure logic of `quorate_voter` and the machines of `quorate_vmm`.
//!
//! Where the design's rules are enforced here: R1 in [`journal`] and `shared` (the world gets into a guest in one place),
//! R2 and R3 in [`egress`] (only what the voter released goes out, in its order), R5 in `shared` (who is stopped, and
//! what happens without a majority), R8 in [`seeds`], R10 wherever a constant says what is kept at most.

pub mod channel;
pub mod cli;
pub mod console;
pub mod control;
pub mod differences;
pub mod disks;
pub mod egress;
pub mod events;
pub mod exit;
pub mod explain;
pub mod fingerprint;
pub mod gateway;
pub mod gdb;
pub mod inject;
pub mod journal;
pub mod kernel;
pub mod launch;
pub mod machine;
pub mod patience;
pub mod place;
pub mod record;
pub mod recovery;
pub mod relaxed;
pub mod replay;
pub mod replica;
pub mod save;
pub mod scratch;
pub mod seeds;
pub mod set;
mod shared;
pub mod stage;
mod status;
pub mod store;
mod sync;
