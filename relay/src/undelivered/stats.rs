//! What the keeper counts.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::kafka::LogEnds;
use crate::measure::{Histogram, Ladder};
use crate::undelivered::HeldRefusal;

use super::deadletter::LetterCounts;

/// What the keeper counts. Written by its thread only.
#[derive(Debug, Default)]
pub struct KeeperStats {
    /// Replies of the downlink among the dead letters.
    pub reply_letters: LetterCounts,
    /// Replies that had waited among the dead letters.
    pub held_letters: LetterCounts,
    /// Messages of clients among the dead letters.
    pub message_letters: LetterCounts,
    /// Replies that the log did not have any more when they were to be kept.
    pub vanished: AtomicU64,
    /// Orders to close connections that had ended when they were read again: nothing is kept of them.
    pub orders: AtomicU64,
    /// How far it has written.
    pub ends: Arc<LogEnds>,
    /// Replies that wait.
    pub held: HeldStats,
}

/// What is counted about replies that wait. Written by the keeper's thread only.
#[derive(Debug)]
pub struct HeldStats {
    /// Replies that this relay has held.
    pub held: AtomicU64,
    /// Replies that waited and were sent by this relay.
    pub delivered: AtomicU64,
    /// Replies that wait now, whichever relay holds them.
    pub waiting: AtomicU64,
    /// Clients that they wait for.
    pub clients: AtomicU64,
    /// Clients that have been given some, and have not confirmed them for a while.
    pub late: AtomicU64,
    /// Records of the topic that count for nothing.
    pub refused: [AtomicU64; HeldRefusal::ALL.len()],
    /// Replies that waited, and were not in the log any more when they were to be sent or moved.
    pub vanished: AtomicU64,
    /// Errors reported by the cluster.
    pub errors: AtomicU64,
    /// Bytes of those that wait, as they are counted against `hold.max_bytes`.
    pub bytes: AtomicU64,
    /// How long those have waited that this relay has sent, by the broker's clock.
    pub times: Histogram,
}

impl Default for HeldStats {
    fn default() -> Self {
        Self {
            held: AtomicU64::default(),
            delivered: AtomicU64::default(),
            waiting: AtomicU64::default(),
            clients: AtomicU64::default(),
            late: AtomicU64::default(),
            refused: std::array::from_fn(|_| AtomicU64::default()),
            vanished: AtomicU64::default(),
            errors: AtomicU64::default(),
            bytes: AtomicU64::default(),
            times: Histogram::new(Ladder::LONG),
        }
    }
}
