//! Randomness. All of it comes from the input seed (R1), through the source that the entropy driver installs.

use crate::cell::Global;
use crate::errno::*;
use crate::{fingerprint, user};

/// Fills a buffer with random bytes.
type Source = fn(&mut [u8]);

static SOURCE: Global<Option<Source>> = Global::new(None);

/// Most bytes that one `getrandom` returns.
const MOST: usize = 1 << 20;

/// Installs the source of random bytes.
pub fn set_source(source: Source) {
    *SOURCE.borrow_mut() = Some(source);
}

/// Fills `buf` with random bytes.
///
/// # Errors
/// `EIO` while there is no source.
pub fn fill(buf: &mut [u8]) -> Result<()> {
    let source = *SOURCE.borrow();
    source.ok_or(EIO)?(buf);
    Ok(())
}

/// `getrandom(2)`. All pools are the same here, so `GRND_RANDOM`, `GRND_NONBLOCK` and `GRND_INSECURE` change nothing.
pub fn getrandom(buf: u64, len: usize, flags: u32) -> SysResult {
    const GRND_RANDOM: u32 = 2;
    const GRND_INSECURE: u32 = 4;
    let contradictory = flags & (GRND_RANDOM | GRND_INSECURE) == GRND_RANDOM | GRND_INSECURE;
    if flags & !7 != 0 || contradictory {
        return Err(EINVAL);
    }
    let len = len.min(MOST);
    let bytes = user::bytes_mut(buf, len)?;
    fill(bytes)?;
    fingerprint::content(bytes);
    Ok(len as u64)
}
