//! Paths of the workspace, and of what is generated below its target folder.

use std::{
    io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::kafka::jars;

/// The folder of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// This program's own file. Its tests are built beside it and replace it, after which the kernel only knows the
/// file that is gone (proc(5), `/proc/pid/exe`): so [`main`](crate::main) asks first of all.
pub(crate) fn own_program() -> io::Result<&'static Path> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program);
    }
    let program = std::env::current_exe()?;
    Ok(PROGRAM.get_or_init(|| program))
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |folder| root().join(folder))
}

/// A program of the release build.
pub(crate) fn release(name: &str) -> PathBuf {
    target().join("release").join(name)
}

/// The eBPF object that `build-ebpf` makes.
pub(crate) fn bpf_object() -> PathBuf {
    target().join("bpf").join("gateway.bpf.o")
}

/// The eBPF object of the benchmarks' own programs.
pub(crate) fn bench_object() -> PathBuf {
    bpf_object().with_file_name("bench.bpf.o")
}

/// The jars of a release of Kafka. The usual release's folder has no version in its name.
pub(crate) fn kafka_jars(version: &str) -> PathBuf {
    let name = if version == jars::VERSION { "libs".to_owned() } else { format!("libs-{version}") };
    target().join("kafka").join(name)
}

/// Clients in JavaScript.
pub(crate) fn node() -> PathBuf {
    target().join("node")
}

/// The folder of the broker that demo, tests and benchmarks share.
pub(crate) fn kafka_node() -> PathBuf {
    target().join("kafka").join("node")
}

/// Kernels for virtual machines, and the results of their runs.
pub(crate) fn vm() -> PathBuf {
    target().join("vm")
}

/// Packages, and what their test needs.
pub(crate) fn dist() -> PathBuf {
    target().join("dist")
}

/// The log of a set-up step.
pub(crate) fn setup_log(step: &str) -> PathBuf {
    target().join("setup").join(format!("{step}.log"))
}
