//! The `relay` command: everything an operator does on a gateway host.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;
use millrace_relay::logging::{self, Purpose};
use millrace_relay::privilege;

/// librdkafka's allocations go through it too, by the crate's `override` feature.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command = cli::Cli::parse();
    // First: threads have the capabilities of the one that starts them.
    if command.purpose() == Purpose::Service
        && let Err(error) = privilege::confine()
    {
        logging::finish(Some(&format!("relay: give up capabilities: {error}")));
        return ExitCode::FAILURE;
    }
    if let Err(error) = logging::init(command.purpose()) {
        logging::finish(Some(&format!("relay: start the log's thread: {error}")));
        return ExitCode::FAILURE;
    }
    match command.run() {
        Err(error) if !error.is::<cli::Unread>() => {
            logging::finish(Some(&format!("relay: {}", in_words(&error))));
            ExitCode::FAILURE
        }
        _ => {
            logging::finish(None);
            ExitCode::SUCCESS
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
