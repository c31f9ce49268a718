//! What stands against new connections, for whoever asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::gateway::{DeviceNews, Intake, News};

/// Written by those who look at the workers, and at what becomes of diverted packets.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    hanging: BTreeMap<usize, Duration>,
    /// Bits of [`Intake`] that tell that nothing is answered.
    unanswered: u64,
    devices: DeviceNews,
}

impl Standing {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Workers that hang, and for how long.
    pub(super) fn hanging(&self) -> BTreeMap<usize, Duration> {
        self.state().hanging.clone()
    }

    /// Takes others; gives the former.
    pub(super) fn set_hanging(
        &self,
        hanging: BTreeMap<usize, Duration>,
    ) -> BTreeMap<usize, Duration> {
        std::mem::replace(&mut self.state().hanging, hanging)
    }

    /// What becomes of the gateway's devices is told by these from now on.
    pub(super) fn follow(&self, devices: DeviceNews) {
        self.state().devices = devices;
    }

    /// What has become of the gateway's devices.
    pub(super) fn devices(&self) -> News {
        let devices = self.state().devices.clone();
        devices.now()
    }

    /// Whether nothing that is diverted arrives, or nothing is answered on some paths.
    pub(super) fn set_unanswered(&self, cut: bool, paths_closed: bool) {
        let bit = |bit, is_set: bool| if is_set { bit } else { 0 };
        self.state().unanswered = bit(Intake::CUT, cut) | bit(Intake::PATHS_CLOSED, paths_closed);
    }

    /// What the programs are to be told.
    pub(super) fn intake(&self, full: bool) -> Intake {
        let full = if full { Intake::FULL } else { 0 };
        Intake(self.state().unanswered | full)
    }
}
