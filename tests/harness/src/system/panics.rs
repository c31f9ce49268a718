//! Panics of a relay that has no place for them.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::system::shim::Shim;

/// Names of threads have no more bytes, the end included (`prctl(2)`, `PR_SET_NAME`).
const NAME_BYTES: usize = 16;

/// Makes any thread of a process panic that is started with [`Panics::environment`].
#[derive(Debug)]
pub struct Panics(Shim);

impl Panics {
    /// None yet. The shim is compiled in a directory of its own.
    pub fn none(directory: &Path) -> Result<Self> {
        let (source, variable) = (include_str!("shim/panic.c"), "MILLRACE_TEST_PANIC");
        Ok(Self(Shim::build(directory, source, variable, &[0; NAME_BYTES])?))
    }

    /// The next time that a thread with this name looks at the clock, it panics. Not for those that call
    /// librdkafka: it may be that which looks, and goes on.
    pub fn strike(&self, thread: &str) -> Result<()> {
        ensure!((1..NAME_BYTES).contains(&thread.len()), "no thread is called `{thread}`");
        let mut name = [0; NAME_BYTES];
        name[..thread.len()].copy_from_slice(thread.as_bytes());
        // With the first byte it counts.
        self.0.tell(1, &name[1..])?;
        self.0.tell(0, &name[..1])
    }

    /// What a process needs that is to panic.
    pub fn environment(&self) -> Vec<(String, PathBuf)> {
        self.0.environment()
    }
}
