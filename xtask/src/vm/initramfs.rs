//! The virtual machine's file system: programs with their libraries, modules, the eBPF object, and an
//! `init` that runs the checks.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, IntoInnerError},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    cpio::Archive,
    kernel::{Expected, Kernel},
};
use crate::{paths, process};

/// Programs that the relay and the checks run.
const TOOLS: [&str; 5] = ["ip", "tc", "ethtool", "nsenter", "sysctl"];
const EMPTY: [&str; 5] = ["proc", "sys", "dev", "run", "tmp"];
const MODULES: &str = "/modules";
const OBJECT: &str = "/millrace/gateway.bpf.o";
const BENCH_OBJECT: &str = "/millrace/bench.bpf.o";

/// The first process. The kernel's own messages go to the first serial port, the results to the
/// second.
const INIT: &str = r#"#!/bin/busybox sh
set -e
export PATH=/bin
export MILLRACE_RELAY=/bin/relay MILLRACE_BPF_OBJECT=/millrace/gateway.bpf.o
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tmpfs run /run
busybox mount -t tmpfs tmp /tmp
end() {
    echo "{\"exit\":$1,\"what\":\"$2\"}" >/dev/ttyS1
    busybox poweroff -f
}
while read -r module; do
    busybox insmod "/modules/$module" || end 1 "insmod $module"
done </modules/order
busybox ip link set lo up || end 1 "ip link set lo up"
status=0
busybox timeout -s KILL @LIMIT@ guest @ARGUMENTS@ >/dev/ttyS1 || status=$?
end "$status" guest
"#;

/// Writes the file system, with a time limit for the checks in seconds.
pub(super) fn write(kernel: &Kernel, expected: Expected, limit_s: u64, file: &Path) -> Result<()> {
    let output = File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
    let mut archive = Archive::new(BufWriter::new(output));
    for folder in EMPTY {
        archive.directory(Path::new(folder))?;
    }
    let arguments = match expected {
        Expected::Work => "",
        Expected::Refusal => "--expect-refusal",
    };
    let init = INIT.replace("@LIMIT@", &limit_s.to_string()).replace("@ARGUMENTS@", arguments);
    archive.file(Path::new("/init"), init.as_bytes())?;

    let modules = kernel.modules()?;
    let order: Vec<_> = modules.iter().map(|(name, _)| name.as_str()).collect();
    let order = order.join("\n") + "\n";
    archive.file(&Path::new(MODULES).join("order"), order.as_bytes())?;
    for (name, contents) in modules {
        archive.file(&Path::new(MODULES).join(name), &contents)?;
    }
    archive.file(Path::new(OBJECT), &read(&paths::bpf_object())?)?;
    archive.file(Path::new(BENCH_OBJECT), &read(&paths::bench_object())?)?;

    let mut libraries = BTreeSet::new();
    let scratch = file.with_extension("program");
    for (name, path) in programs()? {
        archive.file(&Path::new("/bin").join(name), &without_lines(&path, &scratch)?)?;
        libraries.extend(libraries_of(&path)?);
    }
    fs::remove_file(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    for library in libraries {
        archive.file(&library, &read(&library)?)?;
    }
    archive.finish()?.into_inner().map_err(IntoInnerError::into_error)?;
    Ok(())
}

fn programs() -> Result<Vec<(String, PathBuf)>> {
    let mut programs = vec![
        ("relay".to_owned(), paths::release("relay")),
        ("guest".to_owned(), paths::release("guest")),
        ("pktgen".to_owned(), paths::release("pktgen")),
    ];
    for tool in TOOLS.iter().chain(&["busybox"]) {
        let path = process::find_program(tool)
            .with_context(|| format!("no program `{tool}`: run `cargo xtask setup --vm`"))?;
        programs.push(((*tool).to_owned(), path));
    }
    Ok(programs)
}

/// A program without its tables of line numbers, which are four fifths of it: the guest's file system is in its
/// memory, of which it may take half. `scratch` is overwritten.
fn without_lines(program: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let mut command = Command::new("strip");
    command.args(["--strip-debug", "-o"]).args([scratch, program]);
    let output = command.output().context("cannot start `strip` (Debian's binutils)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "strip {}: {}", program.display(), said.trim());
    read(scratch)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The shared libraries of a program, and its loader.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot start `ldd`")?;
    // `ldd` fails for a static program, and prints that on standard output or error.
    Ok(parse_ldd(&String::from_utf8_lossy(&output.stdout)))
}

/// `NAME => PATH (ADDRESS)` of libraries, `PATH (ADDRESS)` of the loader.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_loader_are_found_and_the_kernels_own_is_not() {
        let text = "\tlinux-vdso.so.1 (0x00007f3e)\n\
                    \tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f3e)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f3e)\n";
        assert_eq!(
            parse_ldd(text),
            ["/lib/x86_64-linux-gnu/libz.so.1", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
        assert!(parse_ldd("\tnot a dynamic executable\n").is_empty());
    }
}
