//! `cargo xtask ci`: everything that a change must pass, with the duration of each step.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{autogroup, build, kafka, paths, process, setup, test, toolchain::Toolchain};

/// Lints use the release profile too, so that librdkafka, the longest part of the build, is built only once.
const PROFILE: &str = "--release";

/// Runs all steps, and stops at the first that fails.
pub(crate) fn run() -> Result<()> {
    let mut done: Vec<(&str, Duration)> = Vec::new();
    let mut step = |name: &'static str, action: &dyn Fn() -> Result<()>| -> Result<()> {
        process::say(format!("── {name}"));
        let started = Instant::now();
        action().with_context(|| format!("step `{name}`"))?;
        let took = started.elapsed();
        process::say(format!("── {name}: passed in {:.1} s", took.as_secs_f64()));
        done.push((name, took));
        Ok(())
    };

    step("setup", &|| setup::ensure(&[&setup::USUAL[..], &[setup::Part::Vm]].concat()))?;
    step("format", &|| {
        process::visible(build::cargo().args(["fmt", "--all", "--check"]))?;
        process::visible(
            build::cargo().args(["fmt", "--check"]).current_dir(paths::root().join("gateway-ebpf")),
        )
    })?;
    // Before the long build: what breaks a rule of the sources is found in seconds.
    step("rules", &|| process::visible(&mut test::own_tests()))?;
    step("build", &build::all)?;
    step("clippy", &clippy)?;
    step("docs", &|| {
        process::visible(
            build::cargo()
                .args(["doc", PROFILE, "--workspace", "--no-deps"])
                .env("RUSTDOCFLAGS", "-D warnings"),
        )
    })?;
    let cluster = kafka::for_run(None)?;
    let autogroups = autogroup::Off::new()?;
    let tested = step("cargo xtask test", &|| xtask(&["test", "--brokers", cluster.brokers()]))
        .and_then(|()| {
            step("cargo xtask demo", &|| {
                xtask(&[
                    "demo",
                    "--clients",
                    "20",
                    "--servers",
                    "2",
                    "--messages",
                    "2000",
                    "--json",
                    "--brokers",
                    cluster.brokers(),
                ])
            })
        })
        .and_then(|()| {
            step("cargo xtask dist", &|| xtask(&["dist", "--test", "--brokers", cluster.brokers()]))
        });
    drop(autogroups);
    cluster.release()?;
    tested?;
    // After the broker's end: each virtual machine needs 1 GB and a processor.
    step("cargo xtask vm-test", &|| xtask(&["vm-test"]))?;

    process::say("All checks passed:");
    for (name, took) in done {
        process::say(format!("  {name:<20} {:>6.1} s", took.as_secs_f64()));
    }
    Ok(())
}

/// The workspace, and the eBPF crate where its compiler has a clippy.
fn clippy() -> Result<()> {
    let deny = ["--", "-D", "warnings"];
    process::visible(
        build::cargo().args(["clippy", PROFILE, "--workspace", "--all-targets"]).args(deny),
    )?;
    match Toolchain::find() {
        Some(toolchain) if toolchain.has_clippy() => process::visible(
            toolchain
                .cargo()
                .args(["clippy", PROFILE, "-Z", "build-std=core"])
                .args(["--target", "bpfel-unknown-none"])
                .args(deny)
                .current_dir(paths::root().join("gateway-ebpf")),
        ),
        _ => {
            process::say("gateway-ebpf: no clippy with its compiler; its lints are not checked.");
            Ok(())
        }
    }
}

/// Runs a subcommand of this program, as a user would.
fn xtask(arguments: &[&str]) -> Result<()> {
    process::check(Command::new(paths::own_program()?).args(arguments))
}
