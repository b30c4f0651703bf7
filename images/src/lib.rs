//! Quorate: images.
