//! Tests that run guests on the host's KVM.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod machine;
