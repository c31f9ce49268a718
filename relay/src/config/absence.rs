//! `[service.absence]`: what becomes of clients whose server is away.

use serde::{Deserialize, Serialize};

/// What becomes of the clients of a server that stays away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Then {
    /// They wait, and their messages with them.
    #[default]
    Keep,
    /// They go to others. What waits in the partition stays there.
    Reassign,
    /// Their connections are closed, and those that they begin anew are refused.
    Refuse,
}

/// A service's patience with servers that do not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Absence {
    /// How long a server may be away before `then` applies.
    pub after_ms: u32,
    /// What then.
    pub then: Then,
    /// How long a server that drains may take to read what its clients sent, before they go on
    /// elsewhere; if it is away, `then` decides whether they do.
    pub drain_ms: u32,
}

impl Default for Absence {
    fn default() -> Self {
        Self { after_ms: 60_000, then: Then::default(), drain_ms: 60_000 }
    }
}
