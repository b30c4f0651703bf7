//! Tests of the devices as a guest and the VMM see them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod block;
mod block_life;
mod disk_driver;
mod driver;
mod hostile;
mod io;
mod registers;
