//! `cargo xtask setup`: installs what a Debian machine with stable Rust lacks.

mod node;
mod packages;

use std::{fs::File, process::Command};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;

use crate::{
    build,
    kafka::jars,
    paths, process,
    toolchain::{self, BPF_LINKER_LLVM, BPF_LINKER_VERSION, Toolchain},
};

/// The LLVM of Debian's `rustc-web`, as long as that is not installed and cannot be asked.
const EXPECTED_LLVM: u32 = 22;
/// Most rounds. A round may reveal what the next one needs, as the compiler reveals its LLVM.
const ROUNDS: u32 = 4;

/// What to set up.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Options {
    /// Change nothing: list what is missing; exit code 1 if anything is
    #[arg(long)]
    check: bool,
    /// Also install what `cargo xtask bench` needs: rsyslog, which is kept from running as a service
    #[arg(long)]
    bench: bool,
    /// Also install what `cargo xtask vm-test` needs: QEMU
    #[arg(long)]
    vm: bool,
    /// With --check: print the report as JSON
    #[arg(long, requires = "check")]
    json: bool,
}

/// A group of things that some commands need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// To build the relay.
    Build,
    /// To build the eBPF programs.
    Ebpf,
    /// To run Kafka.
    Kafka,
    /// To run demo and tests in network namespaces.
    Network,
    /// To run benchmarks.
    Bench,
    /// To run other kernels in QEMU.
    Vm,
    /// To make a package and test it.
    Dist,
}

/// What demo and tests need.
pub(crate) const USUAL: [Part; 4] = [Part::Build, Part::Ebpf, Part::Kafka, Part::Network];
/// What benchmarks need.
pub(crate) const WITH_BENCH: [Part; 5] =
    [Part::Build, Part::Ebpf, Part::Kafka, Part::Network, Part::Bench];

/// A step of the set-up.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Package { name: String, purpose: String },
    RustSource,
    BpfLinker { llvm: u32 },
    KafkaJars,
    NodeModules,
}

impl Step {
    fn name(&self) -> String {
        match self {
            Self::Package { name, .. } => format!("package {name}"),
            Self::RustSource => "rustup's nightly with rust-src".to_owned(),
            Self::BpfLinker { llvm } => format!("bpf-linker {BPF_LINKER_VERSION} for LLVM {llvm}"),
            Self::KafkaJars => format!("Apache Kafka {}", jars::VERSION),
            Self::NodeModules => "clients in JavaScript".to_owned(),
        }
    }

    fn detail(&self) -> &str {
        match self {
            Self::Package { purpose, .. } => purpose,
            Self::RustSource => "compiler for the eBPF programs; 150 MB in ~/.rustup",
            Self::BpfLinker { .. } => {
                "linker of the eBPF programs; built in 3 minutes, 10 MB in ~/.cargo/bin"
            }
            Self::NodeModules => "from npm, for tests; 20 MB below target/node",
            Self::KafkaJars => "from Maven Central; 45 MB below target/kafka and 60 MB in ~/.m2",
        }
    }
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut parts = USUAL.to_vec();
    parts.extend(options.bench.then_some(Part::Bench));
    parts.extend(options.vm.then_some(Part::Vm));
    if options.check {
        return check(&parts, options.json);
    }
    ensure(&parts)?;
    if let Some(toolchain) = Toolchain::find() {
        process::say(format!("eBPF programs are built with {}.", toolchain.name()));
    }
    process::say("Everything is in place.");
    Ok(())
}

/// Makes sure that these parts are installed. Silent and fast if they are.
pub(crate) fn ensure(parts: &[Part]) -> Result<()> {
    if plan(parts)?.is_empty() {
        return Ok(());
    }
    let _lock = lock()?;
    for _ in 0..ROUNDS {
        let steps = plan(parts)?;
        if steps.is_empty() {
            return Ok(());
        }
        announce(&steps);
        carry_out(&steps)?;
    }
    let left: Vec<_> = plan(parts)?.iter().map(Step::name).collect();
    if left.is_empty() {
        return Ok(());
    }
    bail!(
        "installed, but still not found: {}. The logs are in {}",
        left.join(", "),
        paths::setup_log("x").with_file_name("").display()
    );
}

fn check(parts: &[Part], as_json: bool) -> Result<()> {
    let steps = plan(parts)?;
    let toolchain = Toolchain::find().map(|toolchain| toolchain.name());
    if as_json {
        let missing: Vec<_> = steps.iter().map(Step::name).collect();
        println!("{}", json!({ "missing": missing, "ebpf_compiler": toolchain }));
    } else {
        for step in &steps {
            println!("missing: {:<38} {}", step.name(), step.detail());
        }
        println!("eBPF compiler: {}", toolchain.as_deref().unwrap_or("none"));
    }
    if steps.is_empty() {
        process::say("Everything is in place.");
        return Ok(());
    }
    bail!("{} missing: `cargo xtask setup` installs them", steps.len());
}

/// Everything that is missing, in the order of installation.
fn plan(parts: &[Part]) -> Result<Vec<Step>> {
    let mut steps: Vec<_> =
        packages::missing(parts).map(|missing| package(missing.name, missing.purpose)).collect();
    if parts.contains(&Part::Ebpf) {
        steps.extend(plan_ebpf()?);
    }
    if parts.contains(&Part::Kafka)
        && !jars::present(&paths::kafka_jars(jars::VERSION), jars::VERSION)
    {
        steps.push(Step::KafkaJars);
    }
    if parts.contains(&Part::Network) && !node::present(&paths::node()) {
        steps.push(Step::NodeModules);
    }
    Ok(steps)
}

fn plan_ebpf() -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let found = Toolchain::find();
    if found.is_none() {
        if packages::installed("rustup") {
            // Debian's compiler and Debian's rustup conflict.
            steps.push(Step::RustSource);
        } else {
            let purpose = "compiler for the eBPF programs; 100 MB, unpacked 700 MB";
            steps.push(package("rustc-web", purpose));
            steps.push(package("rust-web-src", "source of Rust's library, for the same"));
        }
    }
    let llvm = found.as_ref().map_or(EXPECTED_LLVM, Toolchain::llvm);
    if !toolchain::linker_fits(llvm) {
        if !BPF_LINKER_LLVM.contains(&llvm) {
            bail!(
                "bpf-linker {BPF_LINKER_VERSION} cannot be built for LLVM {llvm}, which {} has: \
                 put another bpf-linker of this version on the PATH",
                found.map_or_else(String::new, |toolchain| toolchain.name())
            );
        }
        let name = format!("llvm-{llvm}-dev");
        if !packages::installed(&name) {
            steps.push(package(&name, "to build bpf-linker; 120 MB, unpacked 700 MB"));
        }
        steps.push(Step::BpfLinker { llvm });
    }
    Ok(steps)
}

fn package(name: &str, purpose: &str) -> Step {
    Step::Package { name: name.to_owned(), purpose: purpose.to_owned() }
}

fn announce(steps: &[Step]) {
    process::say("Set-up installs on this machine:");
    for step in steps {
        process::say(format!("  {:<38} {}", step.name(), step.detail()));
    }
}

fn carry_out(steps: &[Step]) -> Result<()> {
    let packages: Vec<_> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Package { name, .. } => Some(name.as_str()),
            _ => None,
        })
        .collect();
    if !packages.is_empty() {
        packages::install(&packages)?;
    }
    for step in steps {
        match step {
            Step::Package { .. } => {}
            Step::RustSource => install_nightly()?,
            Step::BpfLinker { llvm } => {
                // This round may have installed Debian's compiler, which may have another LLVM.
                if Toolchain::find().is_none_or(|found| found.llvm() == *llvm) {
                    install_bpf_linker(*llvm)?;
                }
            }
            Step::NodeModules => node::install(&paths::node())?,
            Step::KafkaJars => jars::fetch(&paths::kafka_jars(jars::VERSION), jars::VERSION)?,
        }
    }
    Ok(())
}

fn install_nightly() -> Result<()> {
    process::step(
        "rustup toolchain install nightly",
        Command::new("rustup")
            .args(["toolchain", "install", "nightly", "--profile", "minimal"])
            .args(["--component", "rust-src"]),
        &paths::setup_log("rustup"),
    )
}

fn install_bpf_linker(llvm: u32) -> Result<()> {
    let features = format!("llvm-{llvm}");
    process::step(
        &format!("cargo install bpf-linker {BPF_LINKER_VERSION} ({features})"),
        build::cargo()
            .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--force"])
            .args(["--no-default-features", "--features", &features])
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
            .env_remove("RUSTFLAGS"),
        &paths::setup_log("bpf-linker"),
    )
}

/// Held during an installation, so that concurrent set-ups do not install twice.
fn lock() -> Result<File> {
    let path = paths::setup_log("lock");
    let file = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| File::create(&path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}
