//! How far a connection is behind its server.

use crate::model::ReplyOffset;

/// How far a connection is behind.
#[derive(Debug, Default)]
pub(super) struct Behind {
    /// The last reply that was postponed, until it has come: those after it wait as well.
    pub(super) last: Option<ReplyOffset>,
    /// What is postponed, as it is counted.
    pub(super) bytes: usize,
    /// How many replies that are.
    pub(super) replies: u64,
    /// More is on its way.
    pub(super) asked: bool,
}

impl Behind {
    /// True while something is postponed.
    pub(super) fn is_waiting(&self) -> bool {
        self.last.is_some()
    }
}
