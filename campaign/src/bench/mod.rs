//! Trials: what plays one.

mod error;
mod trials;

pub use error::BenchError;
pub use trials::Trials;
