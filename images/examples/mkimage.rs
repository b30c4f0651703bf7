//! Builds an appliance's image and says what is in it: `mkimage APPLIANCE.toml [CACHE_DIR] [--list]`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use quorate_abi::image::{ImageError, ImageView};
use quorate_images::{Appliance, BuildOptions, Progress, build, default_cache_dir};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mkimage: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let (flags, paths): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        .partition(|word| word.starts_with("--"));
    let file = paths
        .first()
        .ok_or("usage: mkimage APPLIANCE.toml [CACHE_DIR] [--list]")?;
    let appliance = Appliance::load(file)?;
    let cache = paths.get(1).map_or_else(default_cache_dir, PathBuf::from);
    let show = |step: Progress<'_>| eprintln!("{step:?}");
    let start = Instant::now();
    let image = build(
        &appliance,
        &BuildOptions {
            progress: &show,
            ..BuildOptions::new(cache)
        },
    )?;
    eprintln!(
        "{} {} bytes, {} packages, {:.3} s{}",
        image.path.display(),
        image.length,
        image.packages.len(),
        start.elapsed().as_secs_f64(),
        if image.cached { " (cached)" } else { "" }
    );
    if let Some(linux) = &image.linux {
        let initramfs = linux.initramfs.as_deref().unwrap_or(Path::new("none"));
        println!("kernel={}", linux.kernel.display());
        println!("initramfs={}", initramfs.display());
        println!("root={}", image.path.display());
        println!("cmdline='{}'", linux.cmdline);
        return Ok(());
    }
    if flags.iter().any(|flag| flag == "--list") {
        let bytes = std::fs::read(&image.path)?;
        let view = ImageView::parse(&bytes)?;
        list(&view, view.root(), "")?;
    }
    Ok(())
}

fn list(view: &ImageView<'_>, dir: u32, prefix: &str) -> Result<(), ImageError> {
    let mut index = 0;
    while let Some((name, ino)) = view.entry(dir, index)? {
        index += 1;
        let inode = view.inode(ino)?;
        let path = format!("{prefix}/{}", String::from_utf8_lossy(name));
        print!(
            "{:6o} {:5} {:5} {:9} {path}",
            inode.mode, inode.uid, inode.gid, inode.size
        );
        if inode.is_symlink() {
            print!(" -> {}", String::from_utf8_lossy(view.readlink(ino)?));
        }
        println!();
        if inode.is_dir() {
            list(view, ino, &path)?;
        }
    }
    Ok(())
}
