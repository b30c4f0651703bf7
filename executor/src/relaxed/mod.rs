//! The relaxed discipline: replicas that run on their own, each at its own pace, and whose outputs are matched per channel.

pub mod disk;
pub mod link;
