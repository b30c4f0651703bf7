//! Trials: what plays one.
//!
//! A [`Bench`] owns the machines. A trial puts them back to the warm checkpoint, plays the client's conversation to them in virtual time,
//! lets [`crate::inject`] do to the victims what the draw says, waits for the end of the conversation and for full strength, and judges
//! what the client heard.

mod client;
mod error;
mod live;
mod staged;
mod trials;
mod watch;

pub use error::BenchError;
pub use live::LiveBench;
pub use staged::Bench;
pub use trials::Trials;
