//! Quorate: devices.
