//! The runner with planted outcomes.
