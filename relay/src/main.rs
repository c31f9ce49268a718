//! The `relay` command: everything an operator does on a gateway host.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

/// librdkafka's allocations go through it too, by the crate's `override` feature.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "info".into()))
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<cli::Unread>() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay: {}", in_words(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes; those that its own message tells already are left out.
fn in_words(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match &*told {
        "" => cause,
        _ if told.contains(&cause) => told,
        _ => format!("{told}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("permission denied")
            .context("open the lock: permission denied")
            .context("claim the instance");
        assert_eq!(in_words(&error), "claim the instance: open the lock: permission denied");
    }
}
