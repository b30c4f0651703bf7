//! Placeholder for the store while it is being built: replaced by `store/`.
#![allow(missing_docs, clippy::missing_errors_doc)]

use quorate_devices::{BlockRequest, Completion};

#[derive(Debug)]
pub enum Notice {
    Due(u32),
    Failed { disk: u8, cause: String },
}

#[derive(Debug, thiserror::Error)]
#[error("no store")]
pub struct StoreError;

#[derive(Debug)]
pub struct DiskStats;

#[derive(Debug)]
pub struct Disk;

impl Disk {
    pub fn submit(&self, _: usize, _: &BlockRequest) -> Result<(), StoreError> {
        Err(StoreError)
    }
    pub fn has_due(&self, _: usize) -> bool {
        false
    }
    pub fn due(&self, _: usize) -> Vec<Completion> {
        Vec::new()
    }
    pub fn delivered(&self, _: usize, _: &[Completion]) {}
    pub fn take(&self, _: usize, _: u64) -> Result<Vec<u8>, String> {
        Err("no store".to_owned())
    }
    pub fn release(&self, _: BlockRequest) {}
    pub fn retire(&self, _: usize) {}
    pub fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
    pub fn stats(&self) -> DiskStats {
        DiskStats
    }
}
