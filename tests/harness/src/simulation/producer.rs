//! A broker that is full at times, hangs, and refuses some records for good.

use std::collections::VecDeque;

use millrace_relay::model::{DeliveryFailure, Headers, Identity, Kind};
use millrace_relay::uplink::{ProduceError, Producer, Report, Token};

use crate::dice::Dice;

/// A record that the producer has taken.
#[derive(Clone, Debug)]
pub struct SimRecord {
    /// The printed key.
    pub key: Vec<u8>,
    /// Whose it is.
    pub token: Token,
    /// The client's address, from the header.
    pub client: Vec<u8>,
    /// What it is about.
    pub kind: Kind,
    /// The payload.
    pub payload: Vec<u8>,
    /// Its partition.
    pub partition: millrace_relay::model::Partition,
    /// The server, from the header.
    pub server: Vec<u8>,
    /// The server before, if the connection has moved.
    pub moved_from: Option<Vec<u8>>,
}

/// A producer without a broker.
#[derive(Debug)]
pub struct FaultyProducer {
    dice: Dice,
    in_flight: VecDeque<SimRecord>,
    /// One message in so many is refused for good; 0: none.
    refuse_one_in: usize,
    hanging: usize,
    /// Acknowledged, in order.
    pub acknowledged: Vec<SimRecord>,
    /// Refused for good.
    pub refused: Vec<SimRecord>,
}

impl FaultyProducer {
    /// A producer that refuses one message in so many; 0: none.
    pub fn new(dice: Dice, refuse_one_in: usize) -> Self {
        Self {
            dice,
            in_flight: VecDeque::new(),
            refuse_one_in,
            hanging: 0,
            acknowledged: Vec::new(),
            refused: Vec::new(),
        }
    }
}

impl Producer for FaultyProducer {
    fn produce(
        &mut self,
        identity: &Identity,
        kind: Kind,
        _headers: Headers<'_>,
        payload: &[u8],
        _unix_ms: i64,
    ) -> Result<(), ProduceError> {
        if self.dice.one_in(50) {
            return Err(ProduceError::Full);
        }
        self.in_flight.push_back(SimRecord {
            key: identity.printed.to_vec(),
            token: Token {
                control: !kind.is_message(),
                acknowledge: false,
                weighed: false,
                worker: identity.key.worker,
                slot: identity.key.slot,
                generation: identity.key.generation,
            },
            client: identity.headers[0].1.to_vec(),
            kind,
            payload: payload.to_vec(),
            partition: identity.partition,
            server: identity.headers[4].1.to_vec(),
            moved_from: identity.moved_from.as_deref().map(<[u8]>::to_vec),
        });
        Ok(())
    }

    fn poll(&mut self, on_report: &mut dyn FnMut(Report)) -> bool {
        if self.hanging > 0 {
            self.hanging -= 1;
            return false;
        }
        if self.dice.one_in(20) {
            self.hanging = self.dice.below(60);
        }
        let count = self.dice.below(self.in_flight.len() + 1);
        for record in self.in_flight.drain(..count) {
            let refuse = self.refuse_one_in > 0
                && record.kind.is_message()
                && self.dice.one_in(self.refuse_one_in);
            let result = if refuse { Err(DeliveryFailure::TooLarge) } else { Ok(()) };
            on_report(Report {
                partition: record.partition,
                records: 1,
                booked_bytes: record.payload.len(),
                token: record.token,
                message: if refuse { record.kind.message_number() } else { 0 },
                result,
            });
            if refuse { self.refused.push(record) } else { self.acknowledged.push(record) }
        }
        count > 0
    }

    fn purge(&mut self) {}

    fn fatal(&self) -> Option<String> {
        None
    }
}
