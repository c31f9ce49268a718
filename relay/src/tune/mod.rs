//! The settings of a running relay: values in force, changes of them, the tree of files that shows both, and
//! what of them is saved.
//!
//! ```text
//!  Mount (FUSE) ──┐
//!  relay tune ────┼─► Source::set ─► Values::with ─► control: workers, dials, gateway, log
//!  INSTANCE.tune ─┘   Source::values ◄── a snapshot, replaced by each change
//!
//!  relay reload, SIGHUP ─► Reload::plan ─► the same, all at once
//! ```

mod draft;
mod mount;
mod refusal;
mod reload;
mod saved;
mod tree;
mod values;

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::Config;

pub use draft::Draft;
pub use mount::{MountError, Mounted, clear};
pub use refusal::Refusal;
pub use reload::{Difference, Reload};
pub use saved::{Saved, WrongLine};
pub use values::{Changed, Entry, Values};

/// Where the tree of an instance is.
pub fn place(config: &Config) -> PathBuf {
    config.run_directory().join("tune")
}

/// Whoever has the values in force, and changes them.
pub trait Source: Send + Sync {
    /// The values in force.
    fn values(&self) -> Arc<Values>;

    /// Changes one, or says why not; then nothing is changed. Gives the value that is in force now.
    fn set(&self, path: &str, text: &str) -> Result<String, Refusal>;
}
