//! `quorate explain`: where and why a replica went its own way.

pub mod atlas;
pub mod binary;
pub mod calls;
pub mod crash;
pub mod difference;
pub mod files;
pub mod find;
pub mod flight;
pub mod hex;
pub mod investigate;
pub mod lab;
pub mod live;
pub mod memory;
pub mod plant;
pub mod report;
pub mod stack;
