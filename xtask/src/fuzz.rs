//! `cargo xtask fuzz`: the fuzz targets under libFuzzer, guided by coverage.
//!
//! The flags are those that cargo-fuzz passes, less the sanitizer, which only a nightly compiler has:
//! the targets are safe code, and find what asserts or panics.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{build, paths, process, setup};

pub(crate) const HELP: &str = "\
Changes on the host: installs what is missing (see `setup --check`); writes below target/fuzz, and a
failing input to tests/fuzz/artifacts/TARGET. The committed corpus in tests/fuzz/corpus/TARGET is only
read. With --keep, what was found is added to it: the fewest inputs that cover what all of them cover.
`cargo xtask test --test fuzz` runs the same targets over a million generated inputs.

Example:
  cargo xtask fuzz codec --seconds 600
  cargo xtask fuzz codec --keep";

const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1";
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// What to fuzz, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A target; see tests/harness/src/fuzz
    target: String,
    /// Seconds after which to stop if nothing is found
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Length of the longest input, in bytes
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    max_bytes: u32,
    /// Do not fuzz: add what was found to the committed corpus
    #[arg(long, conflicts_with = "seconds")]
    keep: bool,
}

/// Builds the targets with coverage and runs one.
pub(crate) fn run(options: &Options) -> Result<()> {
    let folder = paths::root().join("tests/fuzz");
    let corpus = folder.join("corpus").join(&options.target);
    ensure!(
        corpus.is_dir(),
        "there is no target `{}`; there are: {}",
        options.target,
        names(&folder.join("corpus"))?.join(", ")
    );
    setup::ensure(&[setup::Part::Build])?;
    let built = paths::target().join("fuzz");
    process::visible(
        build::cargo()
            .args(["build", "--release", "--target", PLATFORM])
            .arg("--target-dir")
            .arg(&built)
            .env("RUSTFLAGS", COVERAGE)
            .current_dir(&folder),
    )?;
    let found = built.join("corpus").join(&options.target);
    let artifacts = folder.join("artifacts").join(&options.target);
    for folder in [&found, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut target = Command::new(built.join(PLATFORM).join("release").join(&options.target));
    target
        .arg(format!("-max_len={}", options.max_bytes))
        .arg(format!("-artifact_prefix={}/", artifacts.display()));
    if options.keep {
        // By edges alone: how often each is passed would keep ten times as many.
        target.args(["-merge=1", "-set_cover_merge=1", "-use_counters=0"]).args([&corpus, &found]);
    } else {
        target
            .arg(format!("-max_total_time={}", options.seconds))
            .arg("-print_final_stats=1")
            .args([&found, &corpus]);
    }
    process::replace(&mut target)
}

fn names(folder: &PathBuf) -> Result<Vec<String>> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}
