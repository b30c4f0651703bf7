//! What tests of Linux machines share.

use std::path::Path;

use quorate_images::{Appliance, BuildOptions, default_cache_dir};
use quorate_vmm::linux::refusal;
use quorate_vmm::{open_kvm, probe};

use crate::Error;

/// Set by `scripts/test-svm` to have tests build what they need and be over.
const IMAGES_ONLY: &str = "QUORATE_TEST_IMAGES_ONLY";

/// Whether Linux machines run here; says so if not. To be asked after the image was built, which may need the network: the lane has none,
/// and finds it in the cache that a run outside has filled.
#[must_use]
pub fn runs_here() -> bool {
    if std::env::var_os(IMAGES_ONLY).is_some() {
        eprintln!("skipped: only its images are wanted");
        return false;
    }
    let why = match open_kvm().and_then(|kvm| probe(&kvm)) {
        Ok(report) => refusal(&report),
        Err(error) => Some(error.to_string()),
    };
    match why {
        None => true,
        Some(why) => {
            eprintln!("skipped: {why}");
            false
        }
    }
}

/// Builds the image of an appliance.
///
/// # Errors
/// When it cannot be built.
pub fn build(text: &str, name: &str) -> Result<(), Error> {
    let wrong = |error: String| Error::Unexpected(format!("{name}: {error}"));
    let appliance = Appliance::parse(text, Path::new(name));
    let appliance = appliance.map_err(|error| wrong(error.to_string()))?;
    let options = BuildOptions::new(default_cache_dir());
    quorate_images::build(&appliance, &options).map_err(|error| wrong(error.to_string()))?;
    Ok(())
}
