//! Messages of the kernel itself, on the console, each line prefixed `[kernel] `.

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
    let _ = text;
}
