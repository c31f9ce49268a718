//! Records that may not be written yet, out of the way of others: those for servers with leases, while the
//! relay does not know whether these are still in force.
//!
//! They are copied, so that the batch goes back to its worker. Each is booked for its partition until it has
//! its report, so there are no more of them than of records that Kafka has not acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::model::{Headers, Identity, Kind};
use crate::ring::Came;

/// A record of a batch: whose, what about, headers, payload, and when it came.
pub(super) type Record<'a> = (&'a Arc<Identity>, Kind, Headers<'a>, &'a [u8], &'a Came);

/// One that waits.
pub(super) struct Parked {
    identity: Arc<Identity>,
    kind: Kind,
    /// Headers, then the payload.
    bytes: Box<[u8]>,
    headers: usize,
    came: Came,
}

impl Parked {
    pub(super) fn record(&self) -> Record<'_> {
        let (headers, payload) = self.bytes.split_at(self.headers);
        (&self.identity, self.kind, Headers::from_bytes(headers), payload, &self.came)
    }
}

/// All that wait, the oldest first.
#[derive(Default)]
pub(super) struct Lot(VecDeque<Parked>);

impl Lot {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a record has to stay behind those that wait.
    pub(super) fn is_before(&self, identity: &Identity) -> bool {
        // The others are of partitions of their own.
        identity.epoch > 0 && !self.0.is_empty()
    }

    pub(super) fn park(&mut self, (identity, kind, headers, payload, came): Record<'_>) {
        let headers = headers.as_bytes();
        let bytes = [headers, payload].concat().into_boxed_slice();
        let (identity, headers) = (identity.clone(), headers.len());
        self.0.push_back(Parked { identity, kind, bytes, headers, came: *came });
    }

    pub(super) fn pop(&mut self) -> Option<Parked> {
        let parked = self.0.pop_front();
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
        parked
    }

    /// The one that was taken last waits on.
    pub(super) fn put_back(&mut self, parked: Parked) {
        self.0.push_front(parked);
    }
}
