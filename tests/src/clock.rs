//! A clock for one process, which may be wrong and may be set while it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::process::run_ok;

const SHIM: &str = include_str!("shim/clock.c");
const PATIENCE: Duration = Duration::from_mins(1);

/// The clock of a process that is started with [`Clock::environment`]. Dropping it leaves the process
/// what it has.
#[derive(Debug)]
pub struct Clock {
    directory: PathBuf,
}

impl Clock {
    /// One that is so many seconds ahead of the host's. Its shim is compiled with `cc`.
    pub fn ahead(directory: &Path, seconds: i64) -> Result<Self> {
        let clock = Self { directory: directory.to_owned() };
        fs::create_dir_all(directory)?;
        fs::write(directory.join("clock.c"), SHIM)?;
        clock.set(seconds)?;
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]);
        compile.arg(clock.shim()).arg(directory.join("clock.c"));
        run_ok("cc", &mut compile, PATIENCE)?;
        Ok(clock)
    }

    /// Sets it, so many seconds ahead of the host's.
    pub fn set(&self, seconds: i64) -> Result<()> {
        // In place: the process has it in its memory.
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.directory.join("ahead"))?;
        Ok(std::os::unix::fs::FileExt::write_all_at(&file, &seconds.to_ne_bytes(), 0)?)
    }

    /// What a process needs that is to go by it.
    pub fn environment(&self) -> Vec<(String, PathBuf)> {
        let ahead = self.directory.join("ahead");
        vec![("LD_PRELOAD".to_owned(), self.shim()), ("MILLRACE_TEST_CLOCK".to_owned(), ahead)]
    }

    fn shim(&self) -> PathBuf {
        self.directory.join("clock.so")
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
