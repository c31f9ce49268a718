//! What is done towards the end of a connection.
//!
//! What ends a connection is a row of [steps](Step). [One loop](super::Worker::carry_out) carries them out. A
//! step looks at the connection's state and does nothing if that is past it. It may lead to further steps,
//! and so may a codec that it calls; they come before the rest of the row. A step never starts the loop.
//!
//! The loop ends, because a step leads to later ones only. The exception is a connection that thereby keeps
//! more memory than it may: that is found once, and ends it with other last words.
//!
//! ```text
//!  the relay, the server ───────► Deliver ─► Farewell ─► Finish ─┬───────────────► Close
//!  a codec's own end ──────────────────────────────────► Finish ─┤                   ▲
//!  all is sent ──────────────────────────────────────────────────┴─► Flushed ────────┤
//!  failed, or not read by the client ► Deliver ──────────────────────────────────────┤
//!  out of time ──────────────────────────────────────────────────────────────────────┘
//! ```

use crate::model::CloseReason;

/// A step towards the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Decode what a pause has kept back.
    Deliver,
    /// Let the codec say its last words.
    Farewell(CloseReason),
    /// Read no more, send what is there, close.
    Finish(CloseReason),
    /// All is sent: close, or drain first.
    Flushed(CloseReason),
    /// Close at once.
    Close(CloseReason),
}

impl Step {
    /// The steps of an end that the client is told of, the first one last.
    pub(super) const fn last_words(reason: CloseReason) -> [Self; 3] {
        [Self::Finish(reason), Self::Farewell(reason), Self::Deliver]
    }
}
