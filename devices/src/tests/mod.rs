//! Tests of the devices as a guest and the VMM see them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod block;
mod block_life;
mod disk_driver;
mod driver;
mod hostile;
mod interrupts;
mod io;
mod registers;

use proptest::prelude::ProptestConfig;

/// For tests whose cases are cheap: many, and as many as PROPTEST_CASES says if that is more (scripts/fuzz).
fn cases() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: config.cases.max(2000),
        ..config
    }
}
