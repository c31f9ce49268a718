//! Kafka threads → worker: replies, and orders to close.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use crate::kafka::ConnectionKey;

use super::Wake;

/// Batches of one worker; while none is empty the consumer reads no more.
const BATCHES: usize = 16;
/// A batch of so many payload bytes is full.
const BATCH_BYTES: usize = 256 << 10;
/// So many commands make a batch full too.
const BATCH_COMMANDS: usize = 4096;

/// What the worker is to do for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send the payload as a message.
    Reply,
    /// Send the payload as a message, then close.
    ReplyAndClose,
    /// Close without a message, if the payload is empty.
    Close,
    /// Close, because Kafka refused a message of this connection for good.
    Refused,
}

#[derive(Debug)]
struct Entry {
    key: ConnectionKey,
    command: Command,
    offset: u32,
    length: u32,
}

/// Commands for the connections of one worker, in order.
#[derive(Debug)]
pub struct DownlinkBatch {
    payloads: Vec<u8>,
    entries: Vec<Entry>,
    /// Which round of the consumer it belongs to; counted off when it comes back.
    pub round: Option<u64>,
}

impl DownlinkBatch {
    fn new() -> Self {
        Self { payloads: Vec::new(), entries: Vec::new(), round: None }
    }

    /// Adds a command.
    pub fn push(&mut self, key: ConnectionKey, command: Command, payload: &[u8]) {
        let offset = u32::try_from(self.payloads.len()).expect("a batch is far below 4 GiB");
        let length = u32::try_from(payload.len()).expect("Kafka records are below 2 GiB");
        self.payloads.extend_from_slice(payload);
        self.entries.push(Entry { key, command, offset, length });
    }

    /// True if the batch should be handed over.
    pub fn is_full(&self) -> bool {
        self.payloads.len() >= BATCH_BYTES || self.entries.len() >= BATCH_COMMANDS
    }

    /// True if there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The commands.
    pub fn commands(&self) -> impl Iterator<Item = (ConnectionKey, Command, &[u8])> {
        self.entries.iter().map(|entry| {
            let start = entry.offset as usize;
            (entry.key, entry.command, &self.payloads[start..start + entry.length as usize])
        })
    }

    fn clear(&mut self) {
        self.payloads.clear();
        self.payloads.shrink_to(2 * BATCH_BYTES);
        self.entries.clear();
        self.round = None;
    }
}

#[derive(Debug)]
struct Rings {
    filled: ArrayQueue<Box<DownlinkBatch>>,
    empty: ArrayQueue<Box<DownlinkBatch>>,
    /// Emptied batches of the consumer go this way, so that it sees which rounds are done.
    done: ArrayQueue<Box<DownlinkBatch>>,
    worker: Wake,
    consumer: Wake,
}

/// A Kafka thread's end; the consumer and the producer each have one.
#[derive(Clone, Debug)]
pub struct DownlinkSender {
    rings: Arc<Rings>,
}

/// The worker's end.
#[derive(Debug)]
pub struct DownlinkReceiver {
    rings: Arc<Rings>,
}

/// Rings between the Kafka threads and one worker. `worker` wakes it, `consumer` the consumer when
/// it waits for a batch to come back.
pub fn downlink(worker: Wake, consumer: Wake) -> (DownlinkSender, DownlinkReceiver) {
    let rings = Arc::new(Rings {
        filled: ArrayQueue::new(BATCHES),
        empty: ArrayQueue::new(BATCHES),
        done: ArrayQueue::new(BATCHES),
        worker,
        consumer,
    });
    for _ in 0..BATCHES {
        rings.empty.push(Box::new(DownlinkBatch::new())).expect("the ring holds every batch");
    }
    (DownlinkSender { rings: rings.clone() }, DownlinkReceiver { rings })
}

impl DownlinkSender {
    /// An empty batch, unless the worker has all of them.
    pub fn take_empty(&self) -> Option<Box<DownlinkBatch>> {
        self.rings.empty.pop()
    }

    /// Hands a batch over and wakes the worker.
    pub fn hand_over(&self, batch: Box<DownlinkBatch>) {
        self.rings.filled.push(batch).expect("the ring holds every batch");
        self.rings.worker.wake();
    }

    /// The round of a batch that the worker is done with.
    pub fn next_done(&self) -> Option<u64> {
        let mut batch = self.rings.done.pop()?;
        let round = batch.round.expect("only batches of a round come back this way");
        batch.clear();
        self.rings.empty.push(batch).expect("the ring holds every batch");
        Some(round)
    }
}

impl DownlinkReceiver {
    /// The next batch.
    pub fn pop(&self) -> Option<Box<DownlinkBatch>> {
        self.rings.filled.pop()
    }

    /// True if a batch waits.
    pub fn has_batch(&self) -> bool {
        !self.rings.filled.is_empty()
    }

    /// Gives a batch back.
    pub fn recycle(&self, mut batch: Box<DownlinkBatch>) {
        let ring = if batch.round.is_some() {
            &self.rings.done
        } else {
            batch.clear();
            &self.rings.empty
        };
        ring.push(batch).expect("the ring holds every batch");
        self.rings.consumer.wake();
    }
}
