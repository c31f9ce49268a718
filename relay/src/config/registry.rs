//! The section `[registry]`.

use serde::{Deserialize, Serialize};

/// Servers that register, and relays that watch each other.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrySection {
    /// A server that has not renewed its registration for this long is away. Servers renew it three
    /// times as often. Milliseconds.
    pub lease_ms: u32,
    /// A server that has been away for this long is gone. Milliseconds.
    pub forget_ms: u32,
    /// Largest capacity that a server may register with.
    pub max_capacity: u32,
    /// A relay that has not written for this long is gone. Milliseconds.
    pub relay_timeout_ms: u32,
    /// A relay from which the brokers have heard nothing for this long no longer coordinates
    /// (`session.timeout.ms`; the minimum is the brokers' `group.min.session.timeout.ms`, 6000 by
    /// default). Milliseconds.
    pub session_timeout_ms: u32,
    /// Maximum time for reading the registry when a relay starts. Milliseconds.
    pub start_timeout_ms: u32,
}

impl Default for RegistrySection {
    fn default() -> Self {
        Self {
            lease_ms: 15_000,
            forget_ms: 3_600_000,
            max_capacity: 1_000_000,
            relay_timeout_ms: 10_000,
            session_timeout_ms: 6000,
            start_timeout_ms: 60_000,
        }
    }
}
