//! A clock for one process, which may be wrong and may be set while it runs.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::system::shim::Shim;

/// The clock of a process that is started with [`Clock::environment`].
#[derive(Debug)]
pub struct Clock(Shim);

impl Clock {
    /// One that is so many seconds ahead of the host's. Its shim is compiled in a directory of its own.
    pub fn ahead(directory: &Path, seconds: i64) -> Result<Self> {
        let (source, variable) = (include_str!("shim/clock.c"), "MILLRACE_TEST_CLOCK");
        Ok(Self(Shim::build(directory, source, variable, &seconds.to_ne_bytes())?))
    }

    /// Sets it, so many seconds ahead of the host's.
    pub fn set(&self, seconds: i64) -> Result<()> {
        self.0.tell(0, &seconds.to_ne_bytes())
    }

    /// What a process needs that is to go by it.
    pub fn environment(&self) -> Vec<(String, PathBuf)> {
        self.0.environment()
    }
}
