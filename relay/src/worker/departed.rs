//! Connections whose client has gone, or is at another one.
//!
//! Some have ended before Kafka had acknowledged all that came from them. Their codecs are told of it
//! all the same: a client that comes back may ask about a message that it sent on its former
//! connection. There are no more of them than messages under way.

use std::collections::HashMap;
use std::time::Instant;

use crate::codec::{Actions, AnyCodec};
use crate::engine::Engine;
use crate::model::{
    Begin, CloseReason, ConnectionKey, DeliveryFailure, Headers, Refusal, ReplyOrigin,
};
use crate::ring::Command;

use super::Worker;
use super::connection::{Connection, Link};

/// By slot and generation.
#[derive(Debug, Default)]
pub(super) struct Departed(HashMap<(u32, u32), Unacknowledged>);

#[derive(Debug)]
struct Unacknowledged {
    codec: AnyCodec,
    sequence: u64,
    acknowledged: u64,
}

const fn place(key: ConnectionKey) -> (u32, u32) {
    (key.slot, key.generation)
}

impl Departed {
    /// Takes a connection whose slot is free again, if Kafka owes it something.
    pub(super) fn add(&mut self, connection: Connection) {
        let Connection { link, codec, .. } = connection;
        let Link { key, identity, sequence, acknowledged, refused, .. } = link;
        let asks = identity.is_some_and(|identity| identity.acknowledge) && !refused;
        if asks && acknowledged < sequence {
            self.0.insert(place(key), Unacknowledged { codec, sequence, acknowledged });
        }
    }

    /// Kafka has acknowledged so many messages more.
    pub(super) fn acknowledged(&mut self, key: ConnectionKey, count: u32, now: Instant) {
        let Some(owed) = self.0.get_mut(&place(key)) else { return };
        owed.acknowledged += u64::from(count);
        owed.codec.delivered(owed.acknowledged, now, &mut Nothing::new(key));
        if owed.acknowledged >= owed.sequence {
            self.0.remove(&place(key));
        }
    }

    /// Kafka has refused a message.
    pub(super) fn refused(
        &mut self,
        key: ConnectionKey,
        failure: DeliveryFailure,
        message: u64,
        now: Instant,
    ) {
        if let Some(mut owed) = self.0.remove(&place(key)) {
            owed.codec.refused(failure, message, now, &mut Nothing::new(key));
        }
    }
}

impl<E: Engine> Worker<E> {
    /// Tells the workers concerned that a client has connected again.
    pub(super) fn evict(&mut self) {
        let Self { to_evict, peers, .. } = self;
        to_evict.retain(|key| {
            let Some(peer) = peers.get(usize::from(key.worker)) else { return false };
            let Some(mut batch) = peer.take_empty() else { return true };
            batch.push_order(*key, Command::TakenOver);
            peer.hand_over(batch);
            false
        });
    }
}

/// All that can be done for a connection that has ended.
pub(super) struct Nothing {
    key: ConnectionKey,
    unsent: Vec<u8>,
}

impl Nothing {
    pub(super) const fn new(key: ConnectionKey) -> Self {
        Self { key, unsent: Vec::new() }
    }
}

impl Actions for Nothing {
    fn key(&self) -> ConnectionKey {
        self.key
    }

    fn begin(&mut self, _begin: Begin<'_>) -> Result<(), Refusal> {
        Err(Refusal::NoServer)
    }

    fn message(&mut self, _headers: Headers<'_>, _payload: &[u8]) -> u64 {
        0
    }

    fn output(&mut self) -> &mut Vec<u8> {
        &mut self.unsent
    }

    fn settle(&mut self, _reply: ReplyOrigin) {}
    fn give_up(&mut self, _reply: ReplyOrigin) {}
    fn downlink_end(&self) -> i64 {
        0
    }
    fn release(&mut self, _reply: ReplyOrigin) {}
    fn ask_held(&mut self) {}
    fn close(&mut self, _reason: CloseReason) {}
    fn take_over(&mut self, _other: ConnectionKey) {}
    fn hand_on(&mut self, _received: &[u8]) {}
}
