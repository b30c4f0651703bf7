//! `quorate differences`

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use clap::Args;

use super::progress::answer;
use crate::differences::Report;
use crate::exit::{ExitCode, Failure};

/// `quorate differences`
#[derive(Debug, Args)]
pub struct DifferencesArgs {
    /// What `quorate run --differences FILE` wrote
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn differences(args: &DifferencesArgs) -> Result<ExitCode, Failure> {
    let failed = |error| {
        let text = format!("{}: {error}", args.file.display());
        Failure::new(ExitCode::Usage, text)
    };
    let file = File::open(&args.file).map_err(failed)?;
    let report = Report::read(BufReader::new(file)).map_err(failed)?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&report)
            .map_err(|error| Failure::new(ExitCode::Host, error))?,
        false => report.to_string(),
    };
    answer(text.trim_end());
    Ok(ExitCode::Success)
}
