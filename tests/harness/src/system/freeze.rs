//! A thread that hangs, while the others of its process go on.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::system::process::{Process, run_ok};

const PATIENCE: Duration = Duration::from_mins(1);

/// One thread stands still for as long as this lives.
#[derive(Debug)]
pub struct Frozen {
    /// Killed when it is dropped, and the thread goes on.
    _tracer: Process,
    directory: PathBuf,
}

impl Frozen {
    /// Stops the thread of this name; it stands still when this returns.
    pub fn thread(process: u32, name: &str) -> Result<Self> {
        let thread = thread_of(process, name)?;
        let directory = std::env::temp_dir().join(format!("millrace-freeze-{thread}"));
        std::fs::create_dir_all(&directory)?;
        let (source, program) = (directory.join("freeze.c"), directory.join("freeze"));
        std::fs::write(&source, include_str!("shim/freeze.c"))?;
        let mut compile = Command::new("cc");
        compile.args(["-O2", "-Wall", "-Werror", "-o"]).arg(&program).arg(&source);
        run_ok("cc", &mut compile, PATIENCE)?;
        let mut command = Command::new(program);
        let tracer = Process::spawn("freeze", command.arg(thread.to_string()))?;
        tracer.wait_line("frozen", PATIENCE)?;
        Ok(Self { _tracer: tracer, directory })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn thread_of(process: u32, name: &str) -> Result<u32> {
    for entry in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let entry = entry?;
        if std::fs::read_to_string(entry.path().join("comm"))?.trim_end() == name {
            let thread = entry.file_name();
            return Ok(thread.to_str().context("a number")?.parse()?);
        }
    }
    anyhow::bail!("process {process} has no thread {name}")
}
