//! Messages of the kernel itself, on the console, each line prefixed `[kernel] `. They are outputs like any other: they must not
//! contain addresses (R8).

/// Prints one line to the console.
#[macro_export]
macro_rules! klog {
    ($($arg:tt)*) => { $crate::klog::line(&alloc::format!($($arg)*)) };
}

/// Prints one line (called by [`klog!`]).
pub fn line(text: &str) {
    #[cfg(test)]
    std::eprintln!("[kernel] {text}");
    #[cfg(not(test))]
    {
        crate::drivers::console_write(b"[kernel] ");
        crate::drivers::console_write(text.as_bytes());
        crate::drivers::console_write(b"\n");
    }
}
