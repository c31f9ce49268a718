//! `cargo xtask vm-test`: the gateway and the relay under Debian's stock kernels, in QEMU.

mod cpio;
mod initramfs;
mod kernel;
mod machine;

use std::{
    fs,
    panic::resume_unwind,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::{build, paths, process, setup};
use kernel::{Kernel, Series};

pub(crate) const HELP: &str = "\
Boots each kernel in QEMU, emulated in software and without any network, as many at the same time as there
are processors. There it loads every XDP
program through the verifier, diverts a TCP connection, replaces and traces the programs meanwhile, runs
the relay, kills it, runs the kernel's pktgen against the loaded program, loses packets, unloads, diverts
full segments of jumbo frames by a veth and by a bridge, and runs the scenarios of `cargo xtask pktgen`
with that generator. Under 5.10, `relay load` must refuse, say why, and leave nothing behind. Root is not
needed once the packages are installed.

Changes on the host: installs what is missing (see `setup --vm --check`); fetches Debian's kernel
packages into target/vm, without installing them. Delete that folder to get newer ones.

Examples:
  cargo xtask vm-test
  cargo xtask vm-test --kernel 6.1 --json";

/// How to test.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Kernel series to boot
    #[arg(long, value_enum, default_value = "all")]
    kernel: kernel::Choice,
    /// Print the results as one JSON object; progress goes to standard error
    #[arg(long)]
    json: bool,
    /// Seconds after which a machine is ended
    #[arg(long, default_value_t = 420, value_parser = clap::value_parser!(u64).range(10..))]
    limit_s: u64,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&[setup::Part::Build, setup::Part::Ebpf, setup::Part::Network, setup::Part::Vm])?;
    build::all()?;
    let chosen = options.kernel.series();
    let (mut kernels, mut skipped) = (Vec::new(), Vec::new());
    for series in chosen {
        match Kernel::get(*series) {
            Ok(kernel) => kernels.push((*series, kernel)),
            // A kernel that was asked for by name must be available.
            Err(error) if chosen.len() == 1 || series.required => return Err(error),
            Err(error) => {
                process::say(format!("SKIPPED kernel {}: {error:#}", series.name));
                skipped.push(json!({ "kernel": series.name, "why": format!("{error:#}") }));
            }
        }
    }
    let reports = test_all(&kernels, Duration::from_secs(options.limit_s))?;
    let failures = reports.iter().filter_map(|report| {
        Some(format!("{}: {}", report["kernel"].as_str()?, report["failed"].as_str()?))
    });
    let failed: Vec<_> = failures.collect();
    if options.json {
        println!("{}", json!({ "kernels": reports, "skipped": skipped }));
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    process::say(format!("{} of {} kernels tested, all passed.", reports.len(), chosen.len()));
    Ok(())
}

/// Boots them, as many at the same time as there are processors: a machine is emulated by one thread.
fn test_all(kernels: &[(Series, Kernel)], limit: Duration) -> Result<Vec<Value>> {
    let next = AtomicUsize::new(0);
    let one_after_the_other = || -> Result<Vec<(usize, Value)>> {
        let mut reports = Vec::new();
        loop {
            let index = next.fetch_add(1, Relaxed);
            let Some((series, kernel)) = kernels.get(index) else { return Ok(reports) };
            reports.push((index, test(*series, kernel, limit)?));
        }
    };
    let mut reports = Vec::new();
    thread::scope(|scope| {
        let lanes = thread::available_parallelism()?.get().min(kernels.len());
        let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(one_after_the_other)).collect();
        for lane in lanes {
            reports.extend(lane.join().unwrap_or_else(|panic| resume_unwind(panic))?);
        }
        anyhow::Ok(())
    })?;
    reports.sort_unstable_by_key(|(index, _)| *index);
    Ok(reports.into_iter().map(|(_, report)| report).collect())
}

/// Boots a kernel. The report has a field `failed` if it did not pass.
fn test(series: Series, kernel: &Kernel, limit: Duration) -> Result<Value> {
    let folder = paths::vm().join(format!("run-{}", series.name));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let initramfs = folder.join(format!("initramfs.{}.cpio", std::process::id()));
    initramfs::write(kernel, series.expected, limit.as_secs(), &initramfs)?;
    process::say(format!("Linux {} in QEMU:", kernel.release));
    let started = Instant::now();
    let mut checks = Vec::new();
    let console = folder.join("console.log");
    let outcome = machine::run(kernel, &initramfs, &console, limit, &mut |check| {
        say(series, check);
        checks.push(check.clone());
    });
    fs::remove_file(&initramfs)?;
    let mut report = json!({
        "kernel": series.name,
        "release": kernel.release,
        "took_s": started.elapsed().as_secs_f64(),
        "checks": checks,
    });
    match outcome {
        Ok(()) => process::say(format!(
            "  {:<5} {} checks passed in {:.1} s",
            series.name,
            checks.len(),
            started.elapsed().as_secs_f64()
        )),
        Err(error) => report["failed"] = format!("{error:#}").into(),
    }
    Ok(report)
}

fn say(series: Series, check: &Value) {
    let mark = if check["passed"] == true { "passed" } else { "FAILED" };
    process::say(format!(
        "  {:<5} {mark} {:<13} {:>6} ms  {}",
        series.name,
        check["check"].as_str().unwrap_or_default(),
        check["took_ms"],
        check["detail"].as_str().unwrap_or_default()
    ));
}
