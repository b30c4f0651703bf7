//! Tests of the file system calls, by what they are about.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod descriptors;
mod events;
mod hostile;
mod model;
mod pipes;
mod proc;
mod tree;
