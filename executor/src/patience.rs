//! How long things may take. All limits of this project are told for a processor that runs guests at its own speed; a machine
//! on which everything takes several times as long (QEMU's emulator, see docs/lanes.md) says so once, with `QUORATE_SLOWNESS=10`, and
//! every limit that means "this hangs" or "nobody answers" is that many times as long. Nothing else depends on it: no
//! interval at which work is done, nothing that a guest can see.

use std::sync::OnceLock;
use std::time::Duration;

/// The environment variable: a whole number from 1 to [`MAX_SLOWNESS`].
pub const SLOWNESS: &str = "QUORATE_SLOWNESS";
/// No machine on which waiting this much longer helps is worth waiting for.
pub const MAX_SLOWNESS: u32 = 1000;

/// How many times longer than usual things may take here: 1 unless [`SLOWNESS`] says otherwise.
#[must_use]
pub fn slowness() -> u32 {
    static TOLD: OnceLock<u32> = OnceLock::new();
    *TOLD.get_or_init(|| told(std::env::var(SLOWNESS).ok().as_deref()))
}

/// What has no meaning counts as not said: a limit must not go away by a typing error.
fn told(text: Option<&str>) -> u32 {
    text.and_then(|text| text.trim().parse().ok())
        .map_or(1, |told: u32| told.clamp(1, MAX_SLOWNESS))
}

/// `limit`, on this machine.
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    limit.saturating_mul(slowness())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slowness_is_a_factor_within_bounds() {
        for (text, wanted) in [
            (None, 1),
            (Some(""), 1),
            (Some("10"), 10),
            (Some(" 3\n"), 3),
            (Some("0"), 1),
            (Some("-4"), 1),
            (Some("2.5"), 1),
            (Some("4000000000"), MAX_SLOWNESS),
            (Some("99999999999"), 1),
        ] {
            assert_eq!(told(text), wanted, "{text:?}");
        }
    }
}
