//! Builds the guest kernel, so that the `quorate` binary carries it.
//!
//! The kernel is freestanding and a workspace of its own; it is built by a cargo of its own, with nothing of this
//! build's environment that could change its code. `QUORATE_KERNEL_PREBUILT=PATH` takes a file instead.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    println!("cargo::rerun-if-env-changed=QUORATE_KERNEL_PREBUILT");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let embedded = out.join("guest-kernel");
    let built = match std::env::var_os("QUORATE_KERNEL_PREBUILT") {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", Path::new(&path).display());
            PathBuf::from(path)
        }
        None => build_kernel(&out),
    };
    if let Err(error) = std::fs::copy(&built, &embedded) {
        fail(&format!(
            "cannot copy the guest kernel {}: {error}",
            built.display()
        ));
    }
}

fn build_kernel(out: &Path) -> PathBuf {
    let manifest_dir = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let root = manifest_dir.join("..");
    let kernel = root.join("guest-kernel");
    for path in ["src", "Cargo.toml", "Cargo.lock", "build.rs", "link.ld"] {
        println!("cargo::rerun-if-changed={}", kernel.join(path).display());
    }
    println!("cargo::rerun-if-changed={}", root.join("abi/src").display());

    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target_dir = out.join("guest-kernel-target");
    let mut command = Command::new(cargo);
    command
        .current_dir(&kernel)
        .args([
            "build",
            "--release",
            "--locked",
            "--bin",
            "guest-kernel",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target_dir);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        // CARGO_HOME says where the registry is; it does not change what is built.
        let own = text.starts_with("CARGO") && text != "CARGO_HOME";
        if own
            || matches!(
                &*text,
                "RUSTFLAGS" | "RUSTC_WRAPPER" | "RUSTC_WORKSPACE_WRAPPER" | "RUSTDOCFLAGS"
            )
        {
            command.env_remove(&name);
        }
    }
    match command.status() {
        Ok(status) if status.success() => target_dir.join(TARGET).join("release/guest-kernel"),
        Ok(status) => fail(&format!(
            "building the guest kernel in {} failed: {status}",
            kernel.display()
        )),
        Err(error) => fail(&format!(
            "cargo cannot be run for the guest kernel: {error}"
        )),
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1);
}
