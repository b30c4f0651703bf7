//! Quorate: voter.
