//! Why a request is not taken.

use millrace_model::{CloseReason, Refusal};

/// What the client is told before its connection is closed, and how that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The status of the answer (RFC 9110 section 15).
    pub(super) status: u16,
    /// Its body: one sentence.
    pub(super) why: &'static str,
    /// For the counters and the `close` record.
    pub(super) reason: CloseReason,
}

impl Refused {
    pub(super) const TOO_LONG: Self =
        Self::new(431, "the fields of the request are too long", CloseReason::Malformed);
    pub(super) const TOO_MANY: Self =
        Self::new(431, "the request has too many fields", CloseReason::Malformed);
    pub(super) const TARGET_TOO_LONG: Self =
        Self::new(414, "the target of the request is too long", CloseReason::Malformed);
    pub(super) const TOO_LARGE: Self =
        Self::new(413, "the body of the request is too large", CloseReason::OversizedMessage);
    pub(super) const HEAD_TIMEOUT: Self =
        Self::new(408, "the request did not come in time", CloseReason::HandshakeTimeout);
    pub(super) const BODY_TIMEOUT: Self =
        Self::new(408, "the body of the request did not go on", CloseReason::IdleTimeout);
    pub(super) const VERSION: Self =
        Self::new(505, "only HTTP/1.1 and HTTP/1.0 are spoken here", CloseReason::Unsupported);
    pub(super) const CONNECT: Self =
        Self::new(501, "there are no tunnels here", CloseReason::Unsupported);
    pub(super) const CODING: Self =
        Self::new(501, "no other transfer coding than chunked is known", CloseReason::Unsupported);
    pub(super) const EXPECTATION: Self =
        Self::new(417, "only 100-continue can be expected", CloseReason::Unsupported);
    pub(super) const NO_REPLY: Self =
        Self::new(504, "the server did not reply in time", CloseReason::ServerFailed);
    pub(super) const BAD_REPLY: Self =
        Self::new(502, "the server's reply is not one of HTTP", CloseReason::ServerFailed);
    pub(super) const TOO_LARGE_FOR_KAFKA: Self =
        Self::new(413, "the request is larger than can be stored", CloseReason::RefusedByKafka);
    pub(super) const BY_KAFKA: Self =
        Self::new(503, "the request was not taken", CloseReason::RefusedByKafka);

    const fn new(status: u16, why: &'static str, reason: CloseReason) -> Self {
        Self { status, why, reason }
    }

    /// Something that the grammar forbids, or that two readers might read differently.
    pub(super) const fn bad(why: &'static str) -> Self {
        Self::new(400, why, CloseReason::Malformed)
    }

    /// The service takes no client now.
    pub(super) fn unavailable(reason: CloseReason) -> Self {
        Self::new(503, "no server is there for the request", reason)
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::unavailable(refusal.into())
    }
}
