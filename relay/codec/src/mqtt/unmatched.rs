//! Replies that waited for a client, and that none of its subscriptions covers yet: a client without its
//! session subscribes anew, and may take several packets for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use millrace_model::{Reply, ReplyOrigin};

/// How long they wait once the client has begun to subscribe.
const PATIENCE: Duration = Duration::from_secs(5);

/// In their order. Bounded by what is given to a client at a time of what waited for it.
#[derive(Debug, Default)]
pub(super) struct Unmatched {
    replies: VecDeque<Apart>,
    bytes: usize,
    until: Option<Instant>,
    /// The client has not subscribed to anything.
    fresh: bool,
    /// What waited was asked for.
    asked: bool,
}

/// A reply by itself.
#[derive(Debug)]
pub(super) struct Apart {
    pub(super) origin: ReplyOrigin,
    pub(super) headers: Vec<u8>,
    pub(super) payload: Vec<u8>,
    pub(super) waited: Duration,
    pub(super) since: Instant,
}

impl Unmatched {
    /// The client has a new session.
    pub(super) fn expect(&mut self, now: Instant) {
        (self.fresh, self.until) = (true, Some(now + PATIENCE));
    }

    /// What waited is to be asked for; false if it was.
    pub(super) const fn ask(&mut self) -> bool {
        !std::mem::replace(&mut self.asked, true)
    }

    /// The client has subscribed to something.
    pub(super) fn subscribed(&mut self, now: Instant) {
        if std::mem::take(&mut self.fresh) {
            self.until = Some(now + PATIENCE);
        }
    }

    /// Whether further subscriptions are waited for.
    pub(super) fn is_waiting(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// When they are given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.until.filter(|_| !self.replies.is_empty())
    }

    /// Bytes kept in memory.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, reply: Reply<'_>, now: Instant) {
        let Reply { origin, headers, payload, waited, .. } = reply;
        let (headers, payload) = (headers.as_bytes().to_vec(), payload.to_vec());
        self.bytes += size_of::<Apart>() + headers.len() + payload.len();
        self.replies.push_back(Apart { origin, headers, payload, waited, since: now });
    }

    pub(super) fn take(&mut self) -> VecDeque<Apart> {
        self.bytes = 0;
        std::mem::take(&mut self.replies)
    }
}
