//! Clients in JavaScript that the tests run, from npm: what `tests/harness/peers/node/package-lock.json` names.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{paths, process};

const LOCK: &str = "package-lock.json";

fn wanted() -> PathBuf {
    paths::root().join("tests/harness/peers/node")
}

/// True if the installed packages are those of the present lock file.
pub(crate) fn present(folder: &Path) -> bool {
    let installed = fs::read(folder.join("INSTALLED"));
    installed.is_ok_and(|installed| fs::read(wanted().join(LOCK)).ok() == Some(installed))
}

/// Installs the packages. Does not run their scripts.
pub(crate) fn install(folder: &Path) -> Result<()> {
    let make = || {
        fs::create_dir_all(folder)?;
        for file in ["package.json", LOCK] {
            fs::copy(wanted().join(file), folder.join(file))?;
        }
        Ok::<_, std::io::Error>(())
    };
    make().with_context(|| format!("cannot fill {}", folder.display()))?;
    process::step(
        "npm ci",
        Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(folder),
        &paths::setup_log("npm"),
    )?;
    fs::copy(folder.join(LOCK), folder.join("INSTALLED"))
        .map(drop)
        .with_context(|| format!("cannot write to {}", folder.display()))
}
