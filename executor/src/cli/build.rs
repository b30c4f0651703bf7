//! `quorate build`

use quorate_images::{Appliance, BuildOptions};

use super::progress::{Progress, answer, line};
use super::{BuildArgs, load};
use crate::exit::{ExitCode, Failure};

pub fn build(args: &BuildArgs) -> Result<ExitCode, Failure> {
    let appliance = load(&args.appliance)?;
    let own = |number: &usize| {
        let replica = appliance.replicas.get(*number);
        replica.is_some_and(|replica| replica.image.is_some())
    };
    let replicas = 0..appliance.replicas.len();
    if replicas.is_empty() || !replicas.clone().all(|number| own(&number)) {
        one(&appliance, &appliance.name, args.update)?;
    }
    for number in replicas.filter(own) {
        let name = format!("{}, {}", appliance.name, appliance.replica_name(number));
        one(&appliance.replica(number), &name, args.update)?;
    }
    // A seed that is missing or too large would otherwise be found at the first run only.
    quorate_images::disks::check_seeds(&appliance)
        .map_err(|error| Failure::new(ExitCode::Disk, error))?;
    Ok(ExitCode::Success)
}

/// Builds one image, called `name` in what is said of it.
fn one(appliance: &Appliance, name: &str, update: bool) -> Result<(), Failure> {
    let progress = Progress::new();
    let options = BuildOptions {
        cache_dir: quorate_images::default_cache_dir(),
        update,
        progress: &|step| progress.building(step),
    };
    let built = quorate_images::build(appliance, &options);
    progress.done();
    let built = built.map_err(|error| Failure::new(ExitCode::Image, error))?;
    let lock = quorate_images::write_lock(appliance, &built)
        .map_err(|error| Failure::new(ExitCode::Image, error))?;
    let how = if built.cached {
        "was there already"
    } else {
        "built"
    };
    let digest = blake3::Hash::from_bytes(built.digest).to_hex();
    answer(&built.path.display().to_string());
    line(&format!(
        "{name}: {how}, {}, digest {digest}",
        quorate_images::size::format(built.length)
    ));
    if let Some(linux) = &built.linux {
        let digest = |bytes: [u8; 32]| blake3::Hash::from_bytes(bytes).to_hex();
        answer(&linux.kernel.display().to_string());
        line(&format!(
            "kernel {}: digest {}",
            linux.kernel_version,
            digest(linux.kernel_digest)
        ));
        if let Some(initramfs) = &linux.initramfs {
            answer(&initramfs.display().to_string());
            let digest = digest(linux.initramfs_digest);
            line(&format!("initial RAM disk: digest {digest}"));
        }
        line(&format!("command line: {}", linux.cmdline));
        let packages = linux.packages.iter();
        let list: Vec<String> = packages
            .map(|package| format!("{} {}", package.name, package.version))
            .collect();
        line(&format!("kernel and busybox: {}", list.join(", ")));
    }
    if !built.packages.is_empty() {
        let packages = built.packages.iter();
        let list: Vec<String> = packages
            .map(|package| format!("{} {}", package.name, package.version))
            .collect();
        line(&format!("{} packages: {}", list.len(), list.join(", ")));
    }
    for source in &built.sources {
        let files = source
            .files
            .iter()
            .filter(|file| file.file.ends_with(".dsc"));
        for description in files {
            line(&format!(
                "compiled from {} {}, SHA-256 {}",
                source.name, description.version, description.sha256
            ));
        }
    }
    if let Some(lock) = lock {
        line(&format!(
            "{}: these packages, for builds to come",
            lock.display()
        ));
    }
    Ok(())
}
