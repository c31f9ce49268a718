//! The file that a configuration was read from.

use sha1_smol::Sha1;

/// Tells one configuration file from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Of its text, as `sha1sum FILE` prints it; empty if there was no file.
    pub sha1: String,
}

impl Source {
    /// That of a text.
    pub(super) fn of(text: &str) -> Self {
        Self { sha1: Sha1::from(text).digest().to_string() }
    }
}
