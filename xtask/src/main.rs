//! `cargo xtask`: the front door of the project.
//!
//! It only orchestrates: it installs, builds, starts Kafka and runs other programs. Everything that an
//! operator's host needs is in the `relay` binary.

mod against;
mod autogroup;
mod build;
mod ci;
mod dist;
mod fuzz;
mod kafka;
mod paths;
mod process;
mod run;
mod setup;
mod test;
#[cfg(test)]
mod tidy;
mod toolchain;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Sets up, builds, runs, tests and measures Millrace.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    arg_required_else_help = true,
    after_help = "Start with:\n  cargo xtask demo\n  cargo xtask test"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what is missing for building and running everything
    #[command(after_help = "Changes on the host: installs Debian packages, bpf-linker into \
        ~/.cargo/bin, and Kafka's jars below target/; it lists them first. Nothing is removed.\n\n\
        Examples:\n  cargo xtask setup --check\n  cargo xtask setup --bench")]
    Setup(setup::Options),
    /// Build the eBPF programs
    #[command(after_help = "Changes on the host: installs what is missing (see `setup --check`); \
        writes target/bpf/gateway.bpf.o and target/release/gateway.bpf.o.\n\n\
        Example:\n  cargo xtask build-ebpf")]
    BuildEbpf,
    /// Build the eBPF programs, the relay, and the programs of demo and tests
    #[command(after_help = "Changes on the host: installs what is missing (see `setup --check`); \
        writes below target/.\n\nExample:\n  cargo xtask build")]
    Build,
    /// Run Apache Kafka for demo, tests and benchmarks
    #[command(
        subcommand,
        after_help = "Changes on the host: a Java process on 127.0.0.1 with at most 512 MB \
            of heap; its data is below target/kafka.\n\n\
            Examples:\n  cargo xtask kafka start\n  cargo xtask kafka logs --follow"
    )]
    Kafka(kafka::Action),
    /// Build, then `relay load`: create the relay namespace and attach the XDP programs
    #[command(after_help = "Changes on the host: a network namespace, a veth, routes in that \
        namespace, pins in /sys/fs/bpf, XDP programs on the configured devices. `unload` removes \
        all of it. With --check: nothing. With --replace: the programs of a loaded instance, in \
        atomic steps.\n\nExamples:\n  cargo xtask load --check --config docs/millrace.toml\n  \
        cargo xtask load --config docs/millrace.toml\n  \
        cargo xtask load --replace --config docs/millrace.toml")]
    Load(run::Passed),
    /// Build, then `relay unload`: remove everything that `load` created
    #[command(after_help = "Changes on the host: removes what `load` created, and nothing \
        else.\n\nExample:\n  cargo xtask unload --config docs/millrace.toml")]
    Unload(run::Passed),
    /// Build, then `relay status`: show what is loaded and what the relay is doing
    #[command(after_help = "Changes nothing on the host except target/.\n\n\
        Examples:\n  cargo xtask status --config docs/millrace.toml\n  \
        cargo xtask status --watch --config docs/millrace.toml")]
    Status(run::Passed),
    /// Build, then `relay ledger`: check that every message and every reply is accounted for
    #[command(after_help = "Changes nothing on the host except target/.\n\n\
        Examples:\n  cargo xtask ledger --config docs/millrace.toml\n  \
        cargo xtask ledger --json --config docs/millrace.toml")]
    Ledger(run::Passed),
    /// Build, then `relay trace`: show each packet of one client and what happens to it
    #[command(after_help = "Changes on the host: replaces the programs of a loaded instance, in \
        atomic steps, and puts them back at the end.\n\n\
        Example:\n  cargo xtask trace 198.51.100.7 --seconds 10 --config docs/millrace.toml")]
    Trace(run::Passed),
    /// Build, then `relay rules`: check steering rules, put them into force, or show them
    #[command(after_help = "Changes on the host: `apply` replaces the instance's rules in the \
        kernel, all at once; the others change nothing except target/.\n\n\
        Examples:\n  cargo xtask rules check --config docs/millrace.toml docs/example.rules\n  \
        cargo xtask rules apply --config millrace.toml\n  \
        cargo xtask rules show --config millrace.toml --json")]
    Rules(run::Passed),
    /// Build, then `relay servers`: show the servers of all relays, drain or forget one, rebalance
    #[command(
        after_help = "Changes on the host: nothing except target/; an order is a record in the \
        configured Kafka's registry.\n\n\
        Examples:\n  cargo xtask servers list --config docs/millrace.toml\n  \
        cargo xtask servers drain chat-7 --config docs/millrace.toml"
    )]
    Servers(run::Passed),
    /// Build, then `relay run`: serve the diverted connections, until SIGINT or SIGTERM
    #[command(after_help = "Changes on the host: writes topics of the configured Kafka, and a \
        socket in /run/millrace.\n\nExample:\n  cargo xtask run --config docs/millrace.toml")]
    Run(run::Passed),
    /// Show the whole path on this machine, with real clients, and check every message
    #[command(after_help = run::DEMO_HELP)]
    Demo(run::Passed),
    /// Run a benchmark
    #[command(
        subcommand,
        after_help = "Examples:\n  cargo xtask bench relay --json\n  cargo \
        xtask bench path --plot path.svg"
    )]
    Bench(run::Bench),
    /// Measure packets per second through the gateway's XDP program
    #[command(after_help = run::PKTGEN_HELP)]
    Pktgen(run::Passed),
    /// Run the unit, property and end-to-end tests
    #[command(after_help = test::HELP)]
    Test(run::Passed),
    /// Run end-to-end tests against other releases of Kafka, and against a cluster of three nodes
    #[command(after_help = kafka::matrix::HELP)]
    TestBrokers(kafka::matrix::Options),
    /// Make the Debian package
    #[command(after_help = dist::HELP)]
    Dist(dist::Options),
    /// Run a coverage-guided fuzz target
    #[command(after_help = fuzz::HELP)]
    Fuzz(fuzz::Options),
    /// Test under other kernels in QEMU: Debian's 6.1, 6.12 and 5.10
    #[command(after_help = vm::HELP)]
    VmTest(vm::Options),
    /// Run all checks that a change must pass: format, lints, docs, tests, demo, other
    /// kernels
    #[command(
        after_help = "Changes on the host: those of `test`, `demo` and `vm-test`; like them, it \
        cleans up.\n\nExample:\n  cargo xtask ci"
    )]
    Ci,
}

fn main() -> ExitCode {
    match paths::own_program().map_err(Into::into).and_then(|_| dispatch(Cli::parse().command)) {
        Ok(code) => code,
        Err(error) => {
            // Not `Debug`, which buries the message if RUST_BACKTRACE is set.
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup(options) => setup::run(&options)?,
        Command::BuildEbpf => {
            setup::ensure(&[setup::Part::Build, setup::Part::Ebpf])?;
            build::ebpf()?;
            process::say(format!("Built {}.", paths::bpf_object().display()));
        }
        Command::Build => {
            setup::ensure(&[setup::Part::Build, setup::Part::Ebpf])?;
            build::all()?;
        }
        Command::Kafka(action) => kafka::run(&action)?,
        Command::Load(passed) => run::relay("load", &passed)?,
        Command::Unload(passed) => run::relay("unload", &passed)?,
        Command::Status(passed) => run::relay("status", &passed)?,
        Command::Ledger(passed) => run::relay("ledger", &passed)?,
        Command::Trace(passed) => run::relay("trace", &passed)?,
        Command::Rules(passed) => run::relay("rules", &passed)?,
        Command::Servers(passed) => run::relay("servers", &passed)?,
        Command::Run(passed) => run::relay("run", &passed)?,
        Command::Demo(passed) => run::demo(&passed)?,
        Command::Bench(bench) => run::bench(&bench)?,
        Command::Pktgen(passed) => run::pktgen(&passed)?,
        Command::Test(passed) => return test::run(&passed),
        Command::TestBrokers(options) => return kafka::matrix::run(&options),
        Command::Dist(options) => dist::run(&options)?,
        Command::Fuzz(options) => fuzz::run(&options)?,
        Command::VmTest(options) => vm::run(&options)?,
        Command::Ci => ci::run()?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_shows_an_example() {
        fn check(command: &clap::Command) {
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "`{}` shows no example", sub.get_name());
                check(sub);
            }
        }
        check(&Cli::command());
    }
}
