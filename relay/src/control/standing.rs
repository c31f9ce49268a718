//! What stands against new connections, for whoever asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Written by whoever looks at the workers.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing(Arc<Mutex<BTreeMap<usize, Duration>>>);

impl Standing {
    /// Workers that hang, and for how long.
    pub(super) fn hanging(&self) -> BTreeMap<usize, Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes others; gives the former.
    pub(super) fn replace(&self, hanging: BTreeMap<usize, Duration>) -> BTreeMap<usize, Duration> {
        std::mem::replace(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), hanging)
    }
}
