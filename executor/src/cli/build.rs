//! `quorate build`

use quorate_images::BuildOptions;

use super::progress::{Progress, answer, line};
use super::{BuildArgs, load};
use crate::exit::{ExitCode, Failure};

pub fn build(args: &BuildArgs) -> Result<ExitCode, Failure> {
    let appliance = load(&args.appliance)?;
    let progress = Progress::new();
    let options = BuildOptions {
        cache_dir: quorate_images::default_cache_dir(),
        update: args.update,
        progress: &|step| progress.building(step),
    };
    let built = quorate_images::build(&appliance, &options);
    progress.done();
    let built = built.map_err(|error| Failure::new(ExitCode::Image, error))?;
    // A seed that is missing or too large would otherwise be found at the first run only.
    quorate_images::disks::check_seeds(&appliance)
        .map_err(|error| Failure::new(ExitCode::Disk, error))?;
    let lock = quorate_images::write_lock(&appliance, &built)
        .map_err(|error| Failure::new(ExitCode::Image, error))?;
    let how = if built.cached {
        "was there already"
    } else {
        "built"
    };
    let digest = blake3::Hash::from_bytes(built.digest).to_hex();
    answer(&built.path.display().to_string());
    line(&format!(
        "{}: {how}, {}, digest {digest}",
        appliance.name,
        quorate_images::size::format(built.length)
    ));
    if !built.packages.is_empty() {
        let packages = built.packages.iter();
        let list: Vec<String> = packages
            .map(|package| format!("{} {}", package.name, package.version))
            .collect();
        line(&format!("{} packages: {}", list.len(), list.join(", ")));
    }
    if let Some(lock) = lock {
        line(&format!(
            "{}: these packages, for builds to come",
            lock.display()
        ));
    }
    Ok(ExitCode::Success)
}
