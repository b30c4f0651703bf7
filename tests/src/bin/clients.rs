//! Unpacks the clients that the ready campaigns use and a host may not have: `target/redis-cli`.

use std::process::ExitCode;

use quorate_tests::{native, repository};

fn main() -> ExitCode {
    match native::script("redis-cli", &repository().join("target")) {
        Ok(path) => {
            let path = path.canonicalize().unwrap_or(path);
            println!("clients: {}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("clients: {error}");
            ExitCode::FAILURE
        }
    }
}
