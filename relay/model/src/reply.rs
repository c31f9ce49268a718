//! A server's answer to a connection, and where it is in the log.

use std::time::Duration;

use super::headers::Headers;
use super::id::RelayId;

/// An offset of the relay's downlink partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyOffset(pub i64);

/// Which reply: where the record is, or was first, in the downlink. The same reply that comes again,
/// because its client was away, has the same origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyOrigin {
    /// Whose partition of the downlink.
    pub relay: RelayId,
    /// The offset there.
    pub offset: i64,
}

/// A server's record for this connection.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// Which.
    pub origin: ReplyOrigin,
    /// The record's headers, those included that mean nothing to the codec.
    pub headers: Headers<'a>,
    /// The record's value.
    pub payload: &'a [u8],
    /// How long it has waited already, in the log or for its client.
    pub waited: Duration,
    /// It waited for its client, which was away.
    pub held: bool,
}

impl<'a> Reply<'a> {
    /// One without headers.
    pub const fn plain(relay: RelayId, offset: i64, payload: &'a [u8]) -> Self {
        let origin = ReplyOrigin { relay, offset };
        Self { origin, headers: Headers::NONE, payload, waited: Duration::ZERO, held: false }
    }
}
