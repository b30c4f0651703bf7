//! `quorate build`

use quorate_images::BuildOptions;

use super::progress::Progress;
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
    let how = if built.cached {
        "was there already"
    } else {
        "built"
    };
    let digest = blake3::Hash::from_bytes(built.digest).to_hex();
    println!("{}", built.path.display());
    super::progress::line(&format!(
        "{}: {how}, {}, {} packages, digest {digest}",
        appliance.name,
        quorate_images::size::format(built.length),
        built.packages.len()
    ));
    Ok(ExitCode::Success)
}
