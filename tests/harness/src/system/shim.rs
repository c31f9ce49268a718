//! What is put between a process and its C library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::system::process::run_ok;

const PATIENCE: Duration = Duration::from_mins(1);

/// A library that is loaded before all others, and the file through which it is told what to do. Dropping
/// it leaves the process what it has.
#[derive(Debug)]
pub struct Shim {
    directory: PathBuf,
    variable: &'static str,
}

impl Shim {
    /// Compiles one with `cc`. It finds its file by the environment variable, and there what is given.
    pub fn build(
        directory: &Path,
        source: &str,
        variable: &'static str,
        told: &[u8],
    ) -> Result<Self> {
        let shim = Self { directory: directory.to_owned(), variable };
        fs::create_dir_all(directory)?;
        fs::write(directory.join("shim.c"), source)?;
        shim.tell(0, told)?;
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]);
        compile.arg(shim.library()).arg(directory.join("shim.c"));
        run_ok("cc", &mut compile, PATIENCE)?;
        Ok(shim)
    }

    /// Tells it something else, from one of the file's bytes on.
    pub fn tell(&self, at: u64, told: &[u8]) -> Result<()> {
        // In place: the process has it in its memory.
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.directory.join("told"))?;
        Ok(std::os::unix::fs::FileExt::write_all_at(&file, told, at)?)
    }

    /// What a process needs that is to have it.
    pub fn environment(&self) -> Vec<(String, PathBuf)> {
        let told = self.directory.join("told");
        vec![("LD_PRELOAD".to_owned(), self.library()), (self.variable.to_owned(), told)]
    }

    fn library(&self) -> PathBuf {
        self.directory.join("shim.so")
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
