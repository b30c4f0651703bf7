//! `quorate campaign`: another program, which stands above this one. It is run as git runs its subcommands.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use crate::exit::{ExitCode, Failure};

/// Its name.
const PROGRAM: &str = "quorate-campaign";

/// `quorate campaign`
#[derive(Debug, Args)]
pub struct CampaignArgs {
    /// What `quorate campaign --help` describes
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENTS"
    )]
    arguments: Vec<OsString>,
}

/// Becomes the program. Comes back only if that is not possible.
pub fn campaign(args: &CampaignArgs) -> Result<ExitCode, Failure> {
    // The one that was built with this one comes first; PATH is searched for a name without a slash.
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join(PROGRAM)))
        .filter(|path| path.is_file());
    let program = beside.unwrap_or_else(|| PathBuf::from(PROGRAM));
    let error = Command::new(&program).args(&args.arguments).exec();
    let message = if error.kind() == io::ErrorKind::NotFound {
        format!(
            "{PROGRAM} is neither beside this quorate nor in PATH; it is built with it (cargo build --release --workspace)"
        )
    } else {
        format!("{}: {error}", program.display())
    };
    Err(Failure::new(ExitCode::Host, message))
}
