//! `quorate-campaign`, which `quorate campaign` runs.

fn main() -> std::process::ExitCode {
    quorate_campaign::cli::main()
}
