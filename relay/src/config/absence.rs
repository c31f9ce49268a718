//! `[service.absence]`: what happens to clients whose server is away.

use serde::{Deserialize, Serialize};

/// What happens to the clients of a server that stays away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Then {
    /// They wait, and so do their messages.
    #[default]
    Keep,
    /// They move to other servers. What waits in the partition stays there.
    Reassign,
    /// Their connections are closed, and new ones are refused.
    Refuse,
}

/// A service's patience with servers that do not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Absence {
    /// How long a server may be away before `then` applies. Milliseconds.
    pub after_ms: u32,
    /// What happens then.
    pub then: Then,
    /// How long a draining server may take to read what its clients sent, before they move to other
    /// servers; after that time, `then` decides whether they do. Milliseconds.
    pub drain_ms: u32,
}

impl Default for Absence {
    fn default() -> Self {
        Self { after_ms: 60_000, then: Then::default(), drain_ms: 60_000 }
    }
}
