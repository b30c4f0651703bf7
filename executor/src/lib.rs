//! Quorate: executor.
