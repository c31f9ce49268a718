//! Replies that wait in memory until the client has confirmed others.

use std::collections::VecDeque;
use std::time::Instant;

use millrace_model::ReplyOrigin;

use super::packet::Qos;
use super::record;

/// Replies of QoS 1 and 2 for which there is no room among those under way, and those of QoS 0 between
/// them: a client gets its replies in the order of the log.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    replies: VecDeque<Packed>,
    bytes: usize,
}

/// A PUBLISH that lacks its packet identifier.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) origin: ReplyOrigin,
    pub(super) qos: Qos,
    pub(super) bytes: Vec<u8>,
    /// Where the identifier stands.
    pub(super) id_at: usize,
    pub(super) expires: Option<Expires>,
}

/// When a PUBLISH that waits is worth nothing any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expires {
    pub(super) at: Instant,
    /// Where its interval stands, if the client's version has one.
    pub(super) place: Option<usize>,
}

impl Packed {
    /// Writes what is left of the interval (MQTT-3.3.2-6). False if it is over: "the Server MUST delete
    /// the copy of the message" (MQTT-3.3.2-5).
    pub(super) fn keep_time(&mut self, now: Instant) -> bool {
        let Some(expires) = self.expires else { return true };
        let Some(left) = expires.at.checked_duration_since(now) else { return false };
        if let Some(place) = expires.place {
            let left = record::seconds_of(left).to_be_bytes();
            self.bytes[place..place + left.len()].copy_from_slice(&left);
        }
        true
    }
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// The next one to be sent.
    pub(super) fn first(&self) -> Option<&Packed> {
        self.replies.front()
    }

    /// Bytes kept in memory.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, packed: Packed) {
        self.bytes += packed.bytes.len() + size_of::<Packed>();
        self.replies.push_back(packed);
    }

    pub(super) fn pop(&mut self) -> Option<Packed> {
        let packed = self.replies.pop_front()?;
        self.bytes -= packed.bytes.len() + size_of::<Packed>();
        if self.replies.is_empty() {
            self.replies = VecDeque::new();
        }
        Some(packed)
    }
}
