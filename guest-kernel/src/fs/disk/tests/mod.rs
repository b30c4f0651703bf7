#![allow(clippy::unwrap_used, clippy::expect_used)]
mod calls;
pub mod disk;
pub mod library;
