//! What a boundary costs beyond the bare exit from KVM: the measurements that `vmm` and `executor` have for themselves.

use std::process::{Command, Stdio};

use quorate_tests::repository;
use serde_json::{Value, json};

/// The parts of a boundary, in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Boundary {
    /// KVM's exit to user space and back, with nothing done in between.
    pub bare_us: f64,
    /// The same with everything that the VMM and the devices do.
    pub whole_us: f64,
    /// What the replica set does on top (ballots, votes, journal, threads), with what it was measured for. No machine takes
    /// part, so its figures hold everything that threads cost each other.
    pub set_us: Vec<(String, f64)>,
}

impl Boundary {
    /// As JSON.
    pub fn json(&self) -> Value {
        let set: Vec<Value> = self
            .set_us
            .iter()
            .map(|(what, us)| json!({ "what": what, "us": us }))
            .collect();
        json!({ "bare_exit_us": self.bare_us, "boundary_us": self.whole_us, "set_us": set })
    }
}

/// Builds and runs both.
///
/// # Errors
/// When cargo is not there, or they say something else than expected.
pub fn measure() -> Result<Boundary, String> {
    let text = cargo(&[
        "test",
        "--package=quorate-vmm",
        "boundary_cost",
        "--",
        "--ignored",
        "--nocapture",
    ])?;
    let mut boundary = parse_vmm(&text).ok_or_else(|| format!("boundary_cost said: {text}"))?;
    let text = cargo(&["run", "--package=quorate-executor", "--example=overhead"])?;
    boundary.set_us = parse_set(&text);
    if boundary.set_us.is_empty() {
        return Err(format!("the example overhead said: {text}"));
    }
    Ok(boundary)
}

/// What a program says that cargo builds and runs.
///
/// # Errors
/// When it cannot be built, or fails.
pub fn cargo(arguments: &[&str]) -> Result<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .arg(arguments[0])
        .args(["--release", "--locked", "--quiet"])
        .args(&arguments[1..])
        .current_dir(repository())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!(
            "cargo {} ended with {}: {text}",
            arguments.join(" "),
            output.status
        ))
    }
}

/// `bare exit 5.02 us, boundary 6.91 us, of which the VMM 1.89 us`
fn parse_vmm(text: &str) -> Option<Boundary> {
    let after = |word: &str| -> Option<f64> {
        let rest = text.split_once(word)?.1;
        rest.trim_start().split(' ').next()?.parse().ok()
    };
    Some(Boundary {
        bare_us: after("bare exit")?,
        whole_us: after(", boundary")?,
        set_us: Vec::new(),
    })
}

/// `3 replicas, frames of 100 bytes: 1800 ns per boundary (…)`
fn parse_set(text: &str) -> Vec<(String, f64)> {
    text.lines()
        .filter_map(|line| {
            let (what, rest) = line.split_once(": ")?;
            let (ns, _) = rest.split_once(" ns per boundary")?;
            Some((what.to_owned(), ns.parse::<f64>().ok()? / 1000.0))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn both_outputs_are_understood() {
        let text = "machine made in 1.20ms, first boundary after 2.00ms\n\
            bare exit 18.02 us, boundary 20.50 us, of which the VMM 2.48 us\n";
        let boundary = parse_vmm(text).unwrap();
        assert_eq!((boundary.bare_us, boundary.whole_us), (18.02, 20.5));
        assert!(parse_vmm("test result: ok. 0 passed").is_none());
        let text = "3 replicas, frames of 100 bytes: 1800 ns per boundary (exited)\nother\n";
        assert_eq!(
            parse_set(text),
            [("3 replicas, frames of 100 bytes".to_owned(), 1.8)]
        );
    }
}
