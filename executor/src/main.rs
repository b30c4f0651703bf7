//! The `quorate` command.

fn main() -> std::process::ExitCode {
    quorate_executor::cli::main().into()
}
