//! Kafka threads → worker: replies, and orders to close. And what became of them on the way back.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_queue::{ArrayQueue, SegQueue};

use crate::model::{
    ConnectionKey, DeliveryFailure, Headers, Reply, ReplyOffset, ReplyOrigin, UndeliveredReason,
};

use super::Wake;
use super::delivered::Delivered;

/// Batches of one worker; while none is empty the consumer reads no more.
const BATCHES: usize = 16;
/// A batch of so many payload bytes is full.
const BATCH_BYTES: usize = 256 << 10;
/// So many commands make a batch full too.
const BATCH_COMMANDS: usize = 4096;
/// What one worker says of replies that were not sent, and nobody has asked for yet; the rest waits at
/// the worker.
const RETURNS: usize = 4096;

/// What the worker is to do for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send the payload as a message.
    Reply,
    /// Send the payload as a message, then close.
    ReplyAndClose,
    /// Close without a message, if the payload is empty.
    Close,
    /// Close, because Kafka refused a message of this connection for good. Acknowledgements that come
    /// after it are of later messages.
    Refused {
        /// Why.
        failure: DeliveryFailure,
        /// The number of the message in its connection.
        message: u64,
    },
    /// Kafka has acknowledged so many messages more.
    Acknowledged(u32),
    /// Close: the same client has connected again.
    TakenOver,
    /// A reply that was postponed is not in the log any more: close, because one is missing.
    Vanished,
}

/// Who wants to know what has become of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// The consumer, which commits offsets past what is settled only.
    Offset(ReplyOffset),
    /// The keeper, which has given this worker replies that waited: all of a delivery at once.
    Held {
        /// In which delivery.
        delivery: u64,
        /// Which of it, from 0.
        part: u32,
        /// No other one of it comes after this.
        last: bool,
    },
    /// The keeper, which has read a reply again that was postponed.
    Postponed {
        /// Its place in the downlink.
        offset: ReplyOffset,
        /// No more come before the connection asks.
        last: bool,
    },
    /// Nobody.
    None,
}

impl Receipt {
    /// The place in the downlink of a reply that came from there.
    pub fn offset(&self) -> Option<ReplyOffset> {
        match self {
            Self::Offset(offset) | Self::Postponed { offset, .. } => Some(*offset),
            Self::Held { .. } | Self::None => None,
        }
    }
}

/// What a worker says about replies and connections that are behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// A reply was not sent.
    Undelivered {
        /// Whose.
        key: ConnectionKey,
        /// Which.
        offset: ReplyOffset,
        /// Why not.
        reason: UndeliveredReason,
    },
    /// A reply is to be read again: its client has not read what came before.
    Postponed {
        /// Whose.
        key: ConnectionKey,
        /// Which.
        offset: ReplyOffset,
        /// Of its payload.
        bytes: usize,
    },
    /// A reply is with its client, which has not confirmed it for a while: what comes after it need not
    /// wait for that.
    Unconfirmed {
        /// Whose.
        key: ConnectionKey,
        /// Which.
        offset: ReplyOffset,
    },
    /// The client has read on: more of what was postponed may come.
    Resume(ConnectionKey),
    /// A reply that was postponed was sent, or needs nothing.
    Sent(ReplyOffset),
    /// The connection is over, with replies postponed.
    Left(ConnectionKey),
}

#[derive(Debug)]
struct Entry {
    key: ConnectionKey,
    command: Command,
    receipt: Receipt,
    origin: ReplyOrigin,
    /// Where its headers begin; the payload follows them.
    offset: u32,
    headers: u32,
    length: u32,
    waited: Duration,
}

/// Commands for the connections of one worker, in order.
#[derive(Debug)]
pub struct DownlinkBatch {
    payloads: Vec<u8>,
    entries: Vec<Entry>,
    /// The first and the last offset among its receipts, and how many there are.
    offsets: Option<(ReplyOffset, ReplyOffset)>,
    receipts: usize,
    /// When its replies were read from Kafka.
    read: Option<Instant>,
}

impl DownlinkBatch {
    fn new() -> Self {
        Self { payloads: Vec::new(), entries: Vec::new(), offsets: None, receipts: 0, read: None }
    }

    /// Adds a command that nobody wants to know about.
    pub fn push_order(&mut self, key: ConnectionKey, command: Command) {
        self.push(key, command, Receipt::None, Reply::plain(key.relay, -1, &[]));
    }

    /// Adds a command with a reply. Offsets grow from one to the next, from batch to batch too.
    pub fn push(
        &mut self,
        key: ConnectionKey,
        command: Command,
        receipt: Receipt,
        reply: Reply<'_>,
    ) {
        let Reply { origin, headers, payload, waited, .. } = reply;
        if let Receipt::Offset(offset) = receipt {
            let first = self.offsets.map_or(offset, |(first, _)| first);
            self.offsets = Some((first, offset));
            self.receipts += 1;
        }
        let offset = u32::try_from(self.payloads.len()).expect("a batch is far below 4 GiB");
        let length = u32::try_from(payload.len()).expect("Kafka records are below 2 GiB");
        let headers = headers.as_bytes();
        self.payloads.extend_from_slice(headers);
        self.payloads.extend_from_slice(payload);
        let headers = u32::try_from(headers.len()).expect("Kafka records are below 2 GiB");
        self.entries.push(Entry { key, command, receipt, origin, offset, headers, length, waited });
    }

    /// Its replies are read from Kafka now: one look at the clock a batch, not a reply.
    pub fn begin(&mut self, now: Instant) {
        self.read = Some(now);
    }

    /// When its replies were read from Kafka, if somebody has said so.
    pub fn read(&self) -> Option<Instant> {
        self.read
    }

    /// The first and the last offset in it, if there is one.
    pub fn offsets(&self) -> Option<(ReplyOffset, ReplyOffset)> {
        self.offsets
    }

    /// How many of its commands have an offset.
    pub fn receipts(&self) -> usize {
        self.receipts
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
    pub fn commands(&self) -> impl Iterator<Item = (ConnectionKey, Command, Receipt, Reply<'_>)> {
        self.entries.iter().map(|entry| {
            let start = entry.offset as usize;
            let payload = start + entry.headers as usize;
            let reply = Reply {
                origin: entry.origin,
                headers: Headers::from_bytes(&self.payloads[start..payload]),
                payload: &self.payloads[payload..payload + entry.length as usize],
                waited: entry.waited,
                held: matches!(entry.receipt, Receipt::Held { .. }),
            };
            (entry.key, entry.command, entry.receipt, reply)
        })
    }

    fn clear(&mut self) {
        self.payloads.clear();
        self.payloads.shrink_to(2 * BATCH_BYTES);
        self.entries.clear();
        self.offsets = None;
        self.receipts = 0;
        self.read = None;
    }
}

#[derive(Debug)]
struct Rings {
    filled: ArrayQueue<Box<DownlinkBatch>>,
    empty: ArrayQueue<Box<DownlinkBatch>>,
    /// Replies that were not sent, and connections that are behind.
    returned: ArrayQueue<Return>,
    /// At most one for each connection: it has one delivery at a time.
    delivered: SegQueue<Delivered>,
    /// Every offset below was sent or returned; what is in `filled` does not count.
    settled: AtomicI64,
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
        returned: ArrayQueue::new(RETURNS),
        delivered: SegQueue::new(),
        settled: AtomicI64::new(i64::MIN),
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

    /// Every offset below it that the worker has taken was sent, or is among the returned. To be
    /// asked before those: what it covers is there then.
    pub fn settled(&self) -> ReplyOffset {
        ReplyOffset(self.rings.settled.load(Ordering::Acquire))
    }

    /// Takes back what the worker has said of offsets, when all of them are settled and others of
    /// another log follow, which may be smaller.
    pub fn begin_anew(&self) {
        self.rings.settled.store(i64::MIN, Ordering::Release);
    }

    /// Takes what has become of deliveries.
    pub fn take_delivered(&self, take: impl FnMut(Delivered)) {
        std::iter::from_fn(|| self.rings.delivered.pop()).for_each(take);
    }

    /// Takes what the worker says of replies that were not sent. One thread at a time.
    pub fn take_returned(&self, mut take: impl FnMut(Return)) {
        let mut taken = 0;
        while let Some(returned) = self.rings.returned.pop() {
            take(returned);
            taken += 1;
        }
        // It may have been full.
        if taken >= RETURNS {
            self.rings.worker.wake();
        }
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
        batch.clear();
        self.rings.empty.push(batch).expect("the ring holds every batch");
        self.rings.consumer.wake();
    }

    /// Says something of a reply that was not sent; false if somebody has to look first.
    pub fn give_back(&self, returned: Return) -> bool {
        self.rings.returned.push(returned).is_ok()
    }

    /// Says what has become of a delivery.
    pub fn report(&self, delivered: Delivered) {
        self.rings.delivered.push(delivered);
    }

    /// Says that every offset below was sent or given back.
    pub fn settle(&self, below: ReplyOffset) {
        self.rings.settled.store(below.0, Ordering::Release);
    }
}
