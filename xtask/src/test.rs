//! `cargo xtask test`: cargo's test runner, with everything that the tests need.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    num::NonZero,
    process::{Command, ExitCode, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    autogroup, build, kafka, process,
    run::{Passed, environment},
    setup,
};

pub(crate) const HELP: &str = "\
Arguments go to `cargo test`, except --brokers LIST, which names an existing Kafka to use instead of the
one on 127.0.0.1. Twice as many tests run at the same time as there are processors, because most of
them wait; RUST_TEST_THREADS changes that.

Changes on the host: installs what is missing (see `setup --check`); as root, creates network
namespaces and removes them, and turns the kernel's autogroups off until the end (sched(7), sysctl
kernel.sched_autogroup_enabled). If Kafka does not run, it is started, and stopped at the end. Without
root, the end-to-end tests are skipped, and say so.

Examples:
  cargo xtask test
  cargo xtask test -p millrace-codec mqtt
  cargo xtask test -- --nocapture";

/// How many tests a test binary runs at the same time (libtest).
const TEST_THREADS: &str = "RUST_TEST_THREADS";

/// Sums of what the test binaries reported.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    binaries: u32,
    passed: u32,
    failed: u32,
    ignored: u32,
}

/// Runs the tests; those of this program first.
pub(crate) fn run(given: &Passed) -> Result<ExitCode> {
    let (brokers, arguments) = given.split()?;
    setup::ensure(&setup::USUAL)?;
    let mut totals = Totals::default();
    let mut passed = true;
    // They take seconds, and what they find is found before minutes are spent on the rest.
    let whole = arguments.is_empty();
    if whole {
        passed &= watch(&mut own_tests(), &mut totals)?.success();
    }
    build::all()?;
    let cluster = kafka::for_run(brokers.as_deref())?;
    let _autogroups = autogroup::Off::new()?;

    // Release mode, because the programs that the tests run are already built that way.
    let mut command = build::cargo();
    command.args(["test", "--release", "--no-fail-fast"]);
    if !arguments.iter().any(|argument| argument == "-p" || argument == "--package") {
        command.arg("--workspace");
    }
    if whole {
        command.args(["--exclude", "xtask"]);
    }
    environment(&mut command, cluster.brokers())?;
    if std::env::var_os(TEST_THREADS).is_none() {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        command.env(TEST_THREADS, (2 * processors).to_string());
    }
    if process::is_root() {
        // A test that lacks a privilege must fail and not skip.
        command.env("MILLRACE_REQUIRE_PRIVILEGE", "1");
    }
    let outcome = watch(command.args(arguments), &mut totals);
    cluster.release()?;

    passed &= outcome?.success();
    println!(
        "{} test binaries: {} passed, {} failed, {} ignored",
        totals.binaries, totals.passed, totals.failed, totals.ignored
    );
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The tests of this program, with the rules of the sources among them. In the profile that it was built
/// in itself.
pub(crate) fn own_tests() -> Command {
    let mut command = build::cargo();
    command.args(["test", "--no-fail-fast", "--package", "xtask"]);
    command
}

/// Shows the runner's output, and adds up the results of the test binaries.
fn watch(command: &mut Command, totals: &mut Totals) -> Result<ExitStatus> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", process::shown(command)))?;
    let output = child.stdout.take().context("no pipe to the test runner")?;
    let mut stdout = std::io::stdout().lock();
    // As bytes, because a test's output may not be UTF-8.
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        stdout.write_all(&line)?;
        stdout.write_all(b"\n")?;
        totals.add(&String::from_utf8_lossy(&line));
    }
    Ok(child.wait()?)
}

impl Totals {
    fn add(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ") else {
            return;
        };
        self.binaries += 1;
        for count in counts.split([';', '.']) {
            let mut words = count.split_whitespace();
            let Some(Ok(number)) = words.next().map(str::parse::<u32>) else {
                continue;
            };
            match words.next() {
                Some("passed") => self.passed += number,
                Some("failed") => self.failed += number,
                Some("ignored") => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_add_up() {
        let mut totals = Totals::default();
        totals.add("test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 1 filtered out");
        totals.add("test codec::round_trip ... ok");
        totals.add("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured");
        assert_eq!(totals, Totals { binaries: 2, passed: 13, failed: 2, ignored: 3 });
    }
}
