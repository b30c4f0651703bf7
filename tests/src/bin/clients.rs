//! Unpacks the clients that the ready campaigns use and a host may not have: `target/redis-cli`. With `--tests` it also makes what tests
//! make for themselves elsewhere, but not in the SVM lane: the guest programs and the web servers' documents.

use std::fmt::Display;
use std::process::ExitCode;

use quorate_tests::documents::Documents;
use quorate_tests::{native, programs, repository};

fn main() -> ExitCode {
    match provide(std::env::args().nth(1).as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("clients: {error}");
            ExitCode::FAILURE
        }
    }
}

fn provide(argument: Option<&str>) -> Result<(), String> {
    let tests = match argument {
        None => false,
        Some("--tests") => true,
        Some(other) => return Err(format!("unknown argument {other}; there is --tests")),
    };
    let path = native::script("redis-cli", &repository().join("target")).map_err(text)?;
    let path = path.canonicalize().unwrap_or(path);
    println!("clients: {}", path.display());
    if tests {
        println!(
            "clients: {}",
            programs::directory().map_err(text)?.display()
        );
        println!(
            "clients: {}",
            Documents::make().map_err(text)?.directory.display()
        );
    }
    Ok(())
}

fn text(error: impl Display) -> String {
    error.to_string()
}
