//! `cargo xtask fuzz`: the fuzz targets under libFuzzer, guided by coverage.
//!
//! The flags are those of cargo-fuzz without the sanitizer, which needs a nightly compiler. The targets are
//! safe code, so failures are assertions and panics.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use millrace_corpus::{Corpus, EXTENSION};

use crate::{build, paths, process, setup};

pub(crate) const HELP: &str = "\
Without --merge or --keep: looks for inputs that make the target fail, and for inputs that reach new code.
Starts from the committed corpus, tests/fuzz/corpus/TARGET.tar, and from what earlier runs have found, in
target/fuzz/found. Stops at the first failure and writes the failing input to tests/fuzz/artifacts/TARGET.

With --merge: adds what was found to the committed corpus: the fewest inputs that reach all of the new
code. With --keep: adds the given inputs as they are, under the names of their files. An input that has
failed is tested by every `cargo xtask test` from then on. Neither removes anything from the corpus.

A corpus is a tar file, and git cannot merge two versions of it. Take one version, and add the other one
with --keep OTHER.tar.

Changes on the host: installs what is missing (see `setup --check`); writes below target/fuzz, and failing
inputs to tests/fuzz/artifacts; with --merge or --keep writes the corpus. `cargo xtask test -p millrace-e2e
--test fuzz` runs all targets over their corpora and over a million generated inputs.

Examples:
  cargo xtask fuzz codec --seconds 600
  cargo xtask fuzz codec --merge
  cargo xtask fuzz codec --keep tests/fuzz/artifacts/codec/crash-*";

const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1";
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// What to fuzz, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A target: a file of `tests/fuzz/fuzz_targets`, without its extension
    target: String,
    /// Seconds after which to stop if nothing is found
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Length of the longest input, in bytes
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    max_bytes: u32,
    /// Do not fuzz: add what was found to the committed corpus
    #[arg(long, conflicts_with_all = ["seconds", "keep"])]
    merge: bool,
    /// Do not fuzz: add these inputs to the committed corpus, or all inputs of another corpus (*.tar)
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["seconds", "max_bytes"])]
    keep: Vec<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = paths::root().join("tests/fuzz");
    let target = Target::of(&workspace, &paths::target().join("fuzz"), &options.target)?;
    if !options.keep.is_empty() {
        return target.keep(&options.keep);
    }
    if options.merge {
        target.ensure_found()?;
    }
    setup::ensure(&[setup::Part::Build])?;
    let program = target.build(&workspace)?;
    if options.merge { target.merge(&program, options) } else { target.run(&program, options) }
}

/// A target and its files.
struct Target {
    name: String,
    /// The committed corpus.
    archive: PathBuf,
    /// Inputs that the target has failed on.
    artifacts: PathBuf,
    /// Where everything else is written.
    built: PathBuf,
}

impl Target {
    /// The target of a name, in the workspace of the fuzz targets.
    fn of(workspace: &Path, built: &Path, name: &str) -> Result<Self> {
        let known = names(&workspace.join("fuzz_targets"))?;
        ensure!(
            known.iter().any(|known| known == name),
            "there is no target `{name}`; known targets: {}",
            known.join(", ")
        );
        Ok(Self {
            name: name.to_owned(),
            archive: workspace.join("corpus").join(format!("{name}.{EXTENSION}")),
            artifacts: workspace.join("artifacts").join(name),
            built: built.to_owned(),
        })
    }

    /// A folder of the target's.
    fn folder(&self, purpose: &str) -> PathBuf {
        self.built.join(purpose).join(&self.name)
    }

    /// Builds all targets with coverage. Returns this one's program.
    fn build(&self, workspace: &Path) -> Result<PathBuf> {
        process::visible(
            build::cargo()
                .args(["build", "--release", "--target", PLATFORM])
                .arg("--target-dir")
                .arg(&self.built)
                .env("RUSTFLAGS", COVERAGE)
                .current_dir(workspace),
        )?;
        Ok(self.built.join(PLATFORM).join("release").join(&self.name))
    }

    /// Replaces this process by libFuzzer.
    fn run(&self, program: &Path, options: &Options) -> Result<()> {
        let (committed, found) = (self.folder("committed"), self.folder("found"));
        Corpus::read(&self.archive)?.unpack(&committed)?;
        make(&found)?;
        process::say(format!(
            "What is found goes to {}; `cargo xtask fuzz {} --merge` adds it to the corpus.",
            found.display(),
            self.name
        ));
        process::replace(
            self.command(program, options)?
                .arg(format!("-max_total_time={}", options.seconds))
                .arg("-print_final_stats=1")
                // libFuzzer writes new inputs to the first folder.
                .args([&found, &committed]),
        )
    }

    /// Checked before minutes of building.
    fn ensure_found(&self) -> Result<()> {
        let found = self.folder("found");
        let is_empty = fs::read_dir(&found).map_or(true, |mut files| files.next().is_none());
        ensure!(!is_empty, "nothing was found yet: {} is empty or missing", found.display());
        Ok(())
    }

    /// Takes what was found into the corpus.
    fn merge(&self, program: &Path, options: &Options) -> Result<()> {
        let (merged, found) = (self.folder("merged"), self.folder("found"));
        let before = Corpus::read(&self.archive)?;
        before.unpack(&merged)?;
        process::visible(
            self.command(program, options)?
                // By edges alone: with their counts it would keep ten times as many inputs.
                .args(["-merge=1", "-set_cover_merge=1", "-use_counters=0"])
                .args([&merged, &found]),
        )?;
        let mut after = before.clone();
        after.add_all(&Corpus::from_folder(&merged)?)?;
        self.write(&before, &after)
    }

    /// Common to all runs of a target.
    fn command(&self, program: &Path, options: &Options) -> Result<Command> {
        make(&self.artifacts)?;
        let mut command = Command::new(program);
        command
            .arg(format!("-max_len={}", options.max_bytes))
            .arg(format!("-artifact_prefix={}/", self.artifacts.display()));
        Ok(command)
    }

    /// Takes inputs into the corpus.
    fn keep(&self, files: &[PathBuf]) -> Result<()> {
        let before = Corpus::read(&self.archive)?;
        let mut after = before.clone();
        for file in files {
            if file.extension() == Some(OsStr::new(EXTENSION)) {
                ensure!(file.is_file(), "there is no file {}", file.display());
                after.add_all(&Corpus::read(file)?)?;
            } else {
                after.add_file(file)?;
            }
        }
        self.write(&before, &after)
    }

    /// Writes the corpus if it has changed.
    fn write(&self, before: &Corpus, after: &Corpus) -> Result<()> {
        let name = self.archive.strip_prefix(paths::root()).unwrap_or(&self.archive).display();
        if before == after {
            process::say(format!("Nothing new for {name}; it has {} inputs.", before.len()));
            return Ok(());
        }
        after.write(&self.archive)?;
        let added = after.len() - before.len();
        process::say(format!("{name}: {added} new, {} inputs in all.", after.len()));
        Ok(())
    }
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// The targets: names of files without extension.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .map(|entry| {
            let file = entry?.path();
            Ok(file.file_stem().unwrap_or_default().to_string_lossy().into_owned())
        })
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// A workspace with the targets `key` and `codec`, which goes with the test.
    struct Workspace(PathBuf);

    impl Workspace {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
            for part in ["fuzz_targets", "corpus"] {
                fs::create_dir_all(folder.join(part)).unwrap();
            }
            for target in ["key", "codec"] {
                fs::write(folder.join("fuzz_targets").join(format!("{target}.rs")), "").unwrap();
            }
            Self(folder)
        }

        fn target(&self, name: &str) -> Result<Target> {
            Target::of(&self.0, &self.0.join("built"), name)
        }

        fn file(&self, name: &str, content: &[u8]) -> PathBuf {
            let file = self.0.join(name);
            fs::write(&file, content).unwrap();
            file
        }
    }

    impl Drop for Workspace {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn an_unknown_target_is_refused_and_the_others_are_named() {
        let workspace = Workspace::new("fuzz-target");
        let error = workspace.target("kye").err().unwrap().to_string();
        assert!(error.contains("`kye`") && error.ends_with("known targets: codec, key"), "{error}");
    }

    #[test]
    fn inputs_are_kept_from_files_and_from_other_corpora() {
        let workspace = Workspace::new("fuzz-keep");
        let target = workspace.target("key").unwrap();
        let crash = workspace.file("crash-1", b"one");
        target.keep(&[crash.clone(), workspace.file("again", b"one")]).unwrap();
        let names = |corpus: &Corpus| -> Vec<String> {
            corpus.inputs().map(|(name, _)| name.to_owned()).collect()
        };
        let first = Corpus::read(&target.archive).unwrap();
        assert_eq!(names(&first), ["crash-1"]);

        let mut other = Corpus::default();
        other.add("theirs", b"two".to_vec()).unwrap();
        other.add("known", b"one".to_vec()).unwrap();
        let file = workspace.0.join("other.tar");
        other.write(&file).unwrap();
        target.keep(&[file, workspace.file("three", b"3")]).unwrap();
        let second = Corpus::read(&target.archive).unwrap();
        assert_eq!(names(&second), ["crash-1", "theirs", "three"]);

        target.keep(&[crash]).unwrap();
        assert_eq!(Corpus::read(&target.archive).unwrap(), second);
    }

    #[test]
    fn a_merge_of_nothing_is_refused() {
        let workspace = Workspace::new("fuzz-merge");
        let target = workspace.target("key").unwrap();
        let found = target.folder("found");
        let error = target.ensure_found().unwrap_err().to_string();
        assert!(error.contains(&found.display().to_string()), "{error}");
        make(&found).unwrap();
        assert!(target.ensure_found().is_err());
        fs::write(found.join("1"), b"1").unwrap();
        target.ensure_found().unwrap();
    }

    #[test]
    fn one_bad_file_keeps_all_from_the_corpus() {
        let workspace = Workspace::new("fuzz-bad");
        let target = workspace.target("codec").unwrap();
        let good = workspace.file("good", b"1");
        for bad in [
            workspace.0.join("missing"),
            workspace.0.join("missing.tar"),
            workspace.file("no name", b"2"),
            workspace.file("broken.tar", b"3"),
        ] {
            let error = format!("{:#}", target.keep(&[good.clone(), bad.clone()]).unwrap_err());
            assert!(error.contains(&bad.display().to_string()), "{error}");
            assert!(!target.archive.exists());
        }
        // Nor is a committed corpus that is damaged written over.
        fs::write(&target.archive, b"damaged").unwrap();
        assert!(target.keep(&[good]).is_err());
        assert_eq!(fs::read(&target.archive).unwrap(), b"damaged");
    }

    #[test]
    fn what_excludes_each_other_is_refused() {
        #[derive(Debug, Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let parse = |line: &str| Line::try_parse_from(line.split(' '));
        let kept = parse("fuzz key --keep a b").unwrap().options.keep;
        assert_eq!(kept, [PathBuf::from("a"), PathBuf::from("b")]);
        assert!(parse("fuzz key --merge --max-bytes 64").unwrap().options.merge);
        for line in ["key --keep", "key --merge --keep a", "key --seconds 1 --merge", "--keep a"] {
            assert!(parse(&format!("fuzz {line}")).is_err(), "{line}");
        }
        assert!(parse("fuzz key --keep a --seconds 1").is_err());
    }
}
