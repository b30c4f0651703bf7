//! `quorate doctor`

use super::DoctorArgs;
use crate::exit::{ExitCode, Failure};

pub fn doctor(_args: &DoctorArgs) -> Result<ExitCode, Failure> {
    Err(Failure::new(ExitCode::Internal, "not there yet"))
}
