//! The guest kernel that the command carries.

use std::path::PathBuf;
use std::sync::Arc;

use crate::exit::{ExitCode, Failure};

static EMBEDDED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest-kernel"));

/// The guest kernel's ELF file: the one built with this program, or the file that `QUORATE_KERNEL` names (for development).
///
/// # Errors
/// When that file cannot be read.
pub fn load() -> Result<Arc<[u8]>, Failure> {
    match std::env::var_os("QUORATE_KERNEL").map(PathBuf::from) {
        None => Ok(Arc::from(EMBEDDED)),
        Some(path) => match std::fs::read(&path) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => {
                let text = format!(
                    "{}: cannot read the guest kernel that QUORATE_KERNEL names: {error}",
                    path.display()
                );
                Err(Failure::new(ExitCode::Image, text))
            }
        },
    }
}
