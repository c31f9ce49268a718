//! The relay of another commit, for a benchmark that compares.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{build, paths, process};

/// Builds the relay of a commit in a folder of its own below the target folder, unless it was built before.
/// Returns the commit's whole name and the program.
pub(crate) fn build(revision: &str) -> Result<(String, PathBuf)> {
    let mut rev_parse = git();
    rev_parse.args(["rev-parse", "--verify", "--quiet", "--end-of-options"]);
    let Ok(commit) = process::capture(rev_parse.arg(format!("{revision}^{{commit}}"))) else {
        bail!("there is no commit `{revision}` in this repository");
    };
    let commit = commit.trim().to_owned();
    let folder = paths::target().join("against").join(&commit);
    let program = folder.join("relay");
    if !program.is_file() {
        process::say(format!("The relay of {commit}:"));
        let source = folder.join("source");
        export(&commit, &source)?;
        let mut command = build::cargo();
        command.args(["build", "--release", "-p", "millrace-relay", "--bin", "relay"]);
        command.current_dir(&source).env("CARGO_TARGET_DIR", folder.join("target"));
        process::visible(&mut command)?;
        // Under its name only when it is whole.
        let whole = folder.join("relay.new");
        fs::copy(folder.join("target/release/relay"), &whole)?;
        fs::rename(&whole, &program)?;
        fs::remove_dir_all(&source)?;
        fs::remove_dir_all(folder.join("target"))?;
    }
    Ok((commit, program))
}

/// The files of a commit, without a worktree that git would have to forget again.
fn export(commit: &str, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut archive = git().args(["archive", commit]).stdout(Stdio::piped()).spawn()?;
    let files = archive.stdout.take().context("no pipe from git archive")?;
    let unpacked = Command::new("tar").arg("-x").current_dir(to).stdin(files).status()?;
    ensure!(archive.wait()?.success() && unpacked.success(), "{commit} could not be unpacked");
    Ok(())
}

fn git() -> Command {
    let mut command = Command::new("git");
    command.current_dir(paths::root());
    command
}
