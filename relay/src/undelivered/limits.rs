//! How much is held for clients that are away, and for how long.

use crate::config::HoldSection;
use crate::dial::Dial;

/// The limits of what is held; they may change at any time. Clones are the same.
#[derive(Clone, Debug)]
pub struct HoldLimits {
    pub(super) age_ms: Dial,
    pub(super) per_client: Dial,
    pub(super) bytes: Dial,
}

impl From<&HoldSection> for HoldLimits {
    fn from(section: &HoldSection) -> Self {
        let HoldSection { max_age_ms, max_per_client, max_bytes } = section;
        Self {
            age_ms: Dial::new(*max_age_ms),
            per_client: Dial::new(u64::from(*max_per_client)),
            bytes: Dial::new(*max_bytes),
        }
    }
}

impl HoldLimits {
    /// Sets all of them.
    pub fn set(&self, section: &HoldSection) {
        self.age_ms.set(section.max_age_ms);
        self.per_client.set(u64::from(section.max_per_client));
        self.bytes.set(section.max_bytes);
    }
}
