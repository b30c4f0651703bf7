//! Quorate: tests.
