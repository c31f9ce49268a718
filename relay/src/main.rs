//! The `relay` command.

mod cli;

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    match cli::Cli::parse().run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
