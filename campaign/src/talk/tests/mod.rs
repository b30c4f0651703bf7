//! Player against a guest of a few lines, and the recorder against real clients and servers: no KVM.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod player;
mod random;
mod record;
