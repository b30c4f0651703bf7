//! Tests that run guests on the host's KVM.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bad_input;
mod checkpoint;
mod checkpoint_file;
mod checkpoint_state;
mod cost;
mod debug;
mod guest;
mod layouts;
mod machine;
