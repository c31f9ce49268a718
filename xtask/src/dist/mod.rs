//! `cargo xtask dist`: what an operator installs.

mod hosts;
mod machine;
mod package;
mod test;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::{autogroup, build, kafka, process, run::require_root, setup};

pub(crate) const HELP: &str = "\
Writes target/dist/millrace_VERSION_ARCHITECTURE.deb: relay, eBPF object, systemd units, man pages, completions
for bash, zsh and fish, an example configuration, documents, dashboard and alert rules.

With --test, the package is installed, used, upgraded and purged on a Debian that boots in a container of its own,
with a gateway, a relay and a client. That needs root.

Changes on the host: installs what is missing (see `setup --check`); writes below target/. With --test, also network
namespaces, which are removed at the end; the first time, fetches the packages of a minimal Debian into target/dist.

Examples:
  cargo xtask dist
  cargo xtask dist --test";

/// What to do.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Also install, use, upgrade and purge the package in a container
    #[arg(long)]
    test: bool,
    /// With --test: use an existing Kafka instead of the one on 127.0.0.1
    #[arg(long, value_name = "LIST", requires = "test")]
    brokers: Option<String>,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<()> {
    use setup::Part;
    if !options.test {
        setup::ensure(&[Part::Build, Part::Ebpf, Part::Dist])?;
        build::gateway()?;
        return pack().map(drop);
    }
    require_root()?;
    setup::ensure(&[Part::Build, Part::Ebpf, Part::Kafka, Part::Network, Part::Dist])?;
    build::all()?;
    let package = pack()?;
    let later = package::make(&format!("{}+test", package::VERSION))?;
    let cluster = kafka::for_run(options.brokers.as_deref())?;
    let _autogroups = autogroup::Off::new()?;
    let tested = test::run(&package, &later, cluster.brokers());
    cluster.release()?;
    std::fs::remove_file(later)?;
    tested?;
    process::say("The package was installed, used, upgraded and purged.");
    Ok(())
}

fn pack() -> Result<PathBuf> {
    let package = package::make(package::VERSION)?;
    process::say(format!("Packed {}.", package.display()));
    Ok(package)
}
