//! The file that a configuration was read from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use sha1_smol::Sha1;

use super::Config;

/// Tells one configuration file from another, and what it said from what has become of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The file; empty if there was none.
    pub file: PathBuf,
    /// Of its text, as `sha1sum FILE` prints it; empty if there was no file.
    pub sha1: String,
    /// The configuration as it was read, before a command line or the host has changed anything.
    as_read: Option<Arc<Value>>,
}

impl Source {
    /// The configuration as the file has it. None if there was no file.
    pub fn as_read(&self) -> Option<Config> {
        let mut config: Config = serde_json::from_value(self.as_read.as_deref()?.clone()).ok()?;
        config.source = self.clone();
        Some(config)
    }

    /// That of a file with this text, and what it comes to.
    pub(super) fn of(file: &Path, text: &str, as_read: Value) -> Self {
        Self {
            file: file.to_owned(),
            sha1: Sha1::from(text).digest().to_string(),
            as_read: Some(Arc::new(as_read)),
        }
    }
}
