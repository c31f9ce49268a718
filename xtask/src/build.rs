//! Building: the eBPF object, the relay, the programs of the tests.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{paths, process, toolchain};

/// Cargo: the one that runs this program, if one does.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(paths::root());
    command
}

/// Builds everything: eBPF object, relay, and the programs of demo, tests and benchmarks. The whole
/// workspace, as the tests do: with other packages chosen, dependencies have other features, and what
/// stands on them would be built twice.
pub(crate) fn all() -> Result<()> {
    ebpf()?;
    userspace(&["--workspace"])
}

/// Builds what an operator needs: eBPF object and relay.
pub(crate) fn gateway() -> Result<()> {
    ebpf()?;
    relay()
}

/// Builds the relay only.
pub(crate) fn relay() -> Result<()> {
    userspace(&["-p", "millrace-relay"])
}

/// Packages in release mode, with their binaries and examples.
fn userspace(packages: &[&str]) -> Result<()> {
    process::visible(cargo().args(["build", "--release"]).args(packages).args([
        "--lib",
        "--bins",
        "--examples",
    ]))
}

/// Builds the XDP programs. Puts the objects below `target/bpf`, and the gateway's also beside the relay.
pub(crate) fn ebpf() -> Result<()> {
    let toolchain = toolchain::require()?;
    let folder = paths::root().join("gateway-ebpf");
    ensure!(folder.join("Cargo.toml").is_file(), "{} is missing", folder.display());
    process::say(format!("eBPF programs with {}", toolchain.name()));
    process::visible(
        toolchain
            .cargo()
            .args(["build", "--release", "-Z", "build-std=core", "--target", "bpfel-unknown-none"])
            .env("PATH", path_with_linker()?)
            .current_dir(&folder),
    )?;
    let built = folder.join("target/bpfel-unknown-none/release");
    let object = built.join("gateway");
    install(&built.join("bench"), &paths::bench_object())?;
    install(&object, &paths::bpf_object())?;
    install(&object, &paths::release("gateway.bpf.o"))
}

/// `PATH` with the folder of bpf-linker, which rustc starts by name.
fn path_with_linker() -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let linker = toolchain::linker().context("no bpf-linker: run `cargo xtask setup`")?;
    let folder = linker.parent().unwrap_or(Path::new("/"));
    let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
    Ok(std::env::join_paths(folders)?)
}

/// Copies a file in one atomic step, unless its content is already there.
fn install(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let folder = to.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let half: PathBuf = folder.join(format!(
        ".{}.{}",
        to.file_name().and_then(OsStr::to_str).unwrap_or("object"),
        std::process::id()
    ));
    fs::write(&half, bytes)
        .and_then(|()| fs::rename(&half, to))
        .with_context(|| format!("cannot write {}", to.display()))
}
