//! Boundaries: the only place where the kernel meets the world (R1). (Interface; the lead is filling it in.)

/// One boundary that does not wait: flushes outputs, takes inputs and time.
/// Call it when an output queue is full.
pub fn sync_now() {}
