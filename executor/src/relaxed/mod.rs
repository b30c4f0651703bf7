//! The relaxed discipline: replicas that run on their own, each at its own pace, perhaps each another version of the
//! program. Nothing of a replica leaves except through the matchers of `quorate_voter::relaxed`, which know channels: the
//! stream of a connection, the datagrams of a flow, a disk, the console (`docs/relaxed.md`).
//!
//! ```text
//! client socket <-> Front --> input log --> Port of each replica --> Link --> frames for the guest
//!                     ^                                               |
//!                     +-- agreed bytes <-- Hub (matchers) <-- streams <+
//! ```

mod bell;
pub mod boot;
mod channels;
pub mod disk;
mod front;
pub mod guest;
pub mod hub;
pub mod link;
mod linux;
pub mod log;
mod members;
pub mod plan;
pub mod port;
pub mod recovery;
pub mod report;
pub mod set;
mod status;
#[cfg(test)]
mod tests;
mod udp;
mod votes;
