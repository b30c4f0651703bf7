//! Compiles guest/task.rs, which goes into the initial RAM disk of Linux appliances: one freestanding file, so the compiler itself
//! does, with nothing of this build's flags.

use std::path::PathBuf;
use std::process::{Command, exit};

fn main() {
    println!("cargo::rerun-if-changed=guest/task.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("task");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args([
            "--edition",
            "2024",
            "--crate-type",
            "bin",
            "--crate-name",
            "task",
        ])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .args([
            "-C",
            "opt-level=s",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
        ])
        .args(["-C", "relocation-model=static"])
        .args(["-C", "link-args=-nostartfiles -nostdlib -static -no-pie"])
        .args([
            "-C",
            "link-args=-Wl,--build-id=none -Wl,-z,max-page-size=4096 -Wl,--gc-sections",
        ])
        .arg("guest/task.rs")
        .arg("-o")
        .arg(&out);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("rustc ends with {status}")),
        Err(error) => fail(&format!("rustc: {error}")),
    }
}

fn fail(why: &str) {
    println!("cargo::error=guest/task.rs was not compiled: {why}");
    exit(1);
}
