//! Worker → producer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crossbeam_queue::ArrayQueue;

use crate::model::{Headers, Identity, Kind};

use super::Wake;

/// Batches of one worker; while none is empty the worker reads no more.
const BATCHES: usize = 8;
/// A batch of so many payload bytes is full. What was received already may still be added.
const BATCH_BYTES: usize = 256 << 10;
/// So many records make a batch full too.
const BATCH_RECORDS: usize = 4096;

/// A connection's place in the batch that is being filled; stale for any other batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchPlace {
    batch: u64,
    index: u32,
}

/// When a record came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Came {
    /// In Unix milliseconds.
    pub unix_ms: i64,
    /// By a clock that nobody sets: the beginning of its worker's turn.
    pub at: Instant,
}

#[derive(Debug)]
struct Record {
    origin: u32,
    /// Where its headers begin; the payload follows them.
    offset: u32,
    headers: u32,
    length: u32,
    /// A message's number; 0 for others, whose kinds are a list of their own. A [`Kind`] would be half as large
    /// again, and slow to copy.
    sequence: u64,
}

/// Records of one worker, in the order in which they came to be.
#[derive(Debug)]
pub struct UplinkBatch {
    number: u64,
    /// When its records came to be: each time counts from the record with that number on. One look at the
    /// clock a batch, not a message, and one a turn of the worker while a batch must wait to be handed
    /// over.
    times: Vec<(u32, Came)>,
    /// One entry for each connection with records here: one reference count a batch, not a message.
    origins: Vec<Arc<Identity>>,
    payloads: Vec<u8>,
    records: Vec<Record>,
    /// Of those that are no messages, in order.
    others: Vec<Kind>,
}

impl UplinkBatch {
    fn new() -> Self {
        Self {
            number: 0,
            times: Vec::new(),
            origins: Vec::new(),
            payloads: Vec::with_capacity(BATCH_BYTES),
            records: Vec::with_capacity(BATCH_RECORDS),
            others: Vec::new(),
        }
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// True if there is no record.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The records: whose, what about, headers, payload, and when it came.
    pub fn records(
        &self,
    ) -> impl Iterator<Item = (&Arc<Identity>, Kind, Headers<'_>, &[u8], &Came)> {
        let mut times = self.times.iter().peekable();
        let mut others = self.others.iter();
        let mut came = self.times.first().map(|(_, came)| came);
        (0..).zip(&self.records).map(move |(number, record)| {
            while let Some((_, time)) = times.next_if(|(from, _)| *from <= number) {
                came = Some(time);
            }
            let start = record.offset as usize;
            let payload = start + record.headers as usize;
            let kind = match record.sequence {
                0 => *others.next().expect("each has one"),
                sequence => Kind::Message { sequence },
            };
            (
                &self.origins[record.origin as usize],
                kind,
                Headers::from_bytes(&self.payloads[start..payload]),
                &self.payloads[payload..payload + record.length as usize],
                came.expect("the first record has a time"),
            )
        })
    }

    fn is_full(&self) -> bool {
        self.payloads.len() >= BATCH_BYTES || self.records.len() >= BATCH_RECORDS
    }

    fn clear(&mut self) {
        self.origins.clear();
        self.times.clear();
        self.payloads.clear();
        self.payloads.shrink_to(4 * BATCH_BYTES);
        self.records.clear();
        self.records.shrink_to(4 * BATCH_RECORDS);
        self.others.clear();
        self.others.shrink_to(BATCH_RECORDS);
    }
}

#[derive(Debug)]
struct Rings {
    filled: ArrayQueue<Box<UplinkBatch>>,
    empty: ArrayQueue<Box<UplinkBatch>>,
    /// The worker waits for an empty batch.
    starved: AtomicBool,
    /// The worker has ended and handed over everything.
    ended: AtomicBool,
    /// The producer's end is gone: nobody takes what is handed over.
    abandoned: AtomicBool,
    worker: Wake,
    producer: Wake,
}

/// The worker's end.
#[derive(Debug)]
pub struct UplinkSender {
    current: Box<UplinkBatch>,
    /// The batch could not be handed over: what comes now is younger than what is in it.
    late: bool,
    /// When the worker's turn began.
    turn: Instant,
    rings: Arc<Rings>,
}

/// The producer's end.
#[derive(Debug)]
pub struct UplinkReceiver {
    rings: Arc<Rings>,
}

/// A pair of rings between one worker and the producer: batches go one way full and the other way
/// empty. `worker` and `producer` wake the respective thread.
pub fn uplink(worker: Wake, producer: Wake) -> (UplinkSender, UplinkReceiver) {
    let rings = Arc::new(Rings {
        filled: ArrayQueue::new(BATCHES),
        empty: ArrayQueue::new(BATCHES),
        starved: AtomicBool::new(false),
        ended: AtomicBool::new(false),
        abandoned: AtomicBool::new(false),
        worker,
        producer,
    });
    for _ in 1..BATCHES {
        rings.empty.push(Box::new(UplinkBatch::new())).expect("the ring holds every batch");
    }
    let mut current = Box::new(UplinkBatch::new());
    current.number = 1;
    let sender = UplinkSender { current, late: false, turn: Instant::now(), rings: rings.clone() };
    (sender, UplinkReceiver { rings })
}

impl UplinkSender {
    /// What comes from now on has come at this time.
    pub fn begin_turn(&mut self, now: Instant) {
        self.turn = now;
    }

    /// True if what a receive brings may be added; if not, the worker is woken when it may.
    pub fn has_room(&mut self) -> bool {
        !self.current.is_full() || self.hand_over()
    }

    /// Adds a record. Never refused: `open` and `close` must not get lost, and messages are only
    /// read after [`has_room`](Self::has_room) said yes.
    pub fn push(
        &mut self,
        origin: &mut BatchPlace,
        identity: &Arc<Identity>,
        kind: Kind,
        headers: Headers<'_>,
        payload: &[u8],
    ) {
        let batch = &mut *self.current;
        if batch.records.is_empty() || std::mem::take(&mut self.late) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let from = u32::try_from(batch.records.len()).expect("records have 32-bit offsets");
            let unix_ms = i64::try_from(now.as_millis()).unwrap_or_default();
            batch.times.push((from, Came { unix_ms, at: self.turn }));
        }
        if origin.batch != batch.number {
            let index = u32::try_from(batch.origins.len()).expect("fewer origins than records");
            *origin = BatchPlace { batch: batch.number, index };
            batch.origins.push(identity.clone());
        }
        let offset = u32::try_from(batch.payloads.len()).expect("a batch is far below 4 GiB");
        let length = u32::try_from(payload.len()).expect("messages are limited below 4 GiB");
        let headers = headers.as_bytes();
        batch.payloads.extend_from_slice(headers);
        batch.payloads.extend_from_slice(payload);
        let headers = u32::try_from(headers.len()).expect("headers are limited far below 4 GiB");
        let sequence = kind.message_number();
        if sequence == 0 {
            batch.others.push(kind);
        }
        batch.records.push(Record { origin: origin.index, offset, headers, length, sequence });
    }

    /// Hands the batch over, if it has records and there is an empty one to go on with. False if it
    /// had to stay; the worker is woken when the producer has emptied one.
    pub fn hand_over(&mut self) -> bool {
        if self.current.is_empty() {
            return true;
        }
        let Some(mut next) = self.next_empty() else {
            self.late = true;
            return false;
        };
        self.late = false;
        next.number = self.current.number + 1;
        let full = std::mem::replace(&mut self.current, next);
        self.rings.filled.push(full).expect("the ring holds every batch");
        self.rings.producer.wake();
        true
    }

    fn next_empty(&self) -> Option<Box<UplinkBatch>> {
        self.rings.empty.pop().or_else(|| {
            self.rings.starved.store(true, Ordering::SeqCst);
            let late = self.rings.empty.pop();
            if late.is_some() {
                self.rings.starved.store(false, Ordering::SeqCst);
            }
            late
        })
    }

    /// True if nobody will take what is handed over, because the producer's thread has ended.
    pub fn is_abandoned(&self) -> bool {
        self.rings.abandoned.load(Ordering::SeqCst)
    }

    /// Says that nothing more will come. What is not handed over by now is lost.
    pub fn end(&mut self) {
        self.rings.ended.store(true, Ordering::SeqCst);
        self.rings.producer.wake();
    }
}

/// However the worker's thread ends, the producer's learns of it.
impl Drop for UplinkSender {
    fn drop(&mut self) {
        self.end();
    }
}

/// However the producer's thread ends, the worker's learns of it.
impl Drop for UplinkReceiver {
    fn drop(&mut self) {
        self.rings.abandoned.store(true, Ordering::SeqCst);
        self.rings.worker.wake();
    }
}

impl UplinkReceiver {
    /// The next batch, in the worker's order.
    pub fn pop(&self) -> Option<Box<UplinkBatch>> {
        self.rings.filled.pop()
    }

    /// True if a batch waits.
    pub fn has_batch(&self) -> bool {
        !self.rings.filled.is_empty()
    }

    /// Gives a batch back.
    pub fn recycle(&self, mut batch: Box<UplinkBatch>) {
        batch.clear();
        self.rings.empty.push(batch).expect("the ring holds every batch");
        if self.rings.starved.swap(false, Ordering::SeqCst) {
            self.rings.worker.wake();
        }
    }

    /// True once the worker has ended and its last batch was taken.
    pub fn is_ended(&self) -> bool {
        self.rings.ended.load(Ordering::SeqCst) && self.rings.filled.is_empty()
    }

    /// Makes the worker look at its partitions' credit again.
    pub fn wake_worker(&self) {
        self.rings.worker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Begin;
    use crate::model::{Association, Partition, ServerId};
    use crate::model::{ConnectionKey, Incarnation, RelayId};

    fn identity() -> Arc<Identity> {
        let (relay, incarnation) = (RelayId(0), Incarnation::new(1));
        let key = ConnectionKey { relay, incarnation, worker: 0, slot: 0, generation: 1 };
        let (server, name) = (ServerId(0), "a".into());
        let association = Association { server, name, partition: Partition(0), epoch: 0 };
        let address = ([192, 0, 2, 1], 1).into();
        Arc::new(Identity::new(key, None, &association, address, address, Begin::default()))
    }

    #[test]
    fn what_comes_while_a_batch_must_wait_has_its_own_time() {
        let wake = || Wake::new().unwrap();
        let (mut sender, receiver) = uplink(wake(), wake());
        let (mut origin, identity) = (BatchPlace::default(), identity());
        let mut push = |sender: &mut UplinkSender| {
            sender.push(&mut origin, &identity, Kind::Open, Headers::NONE, &[]);
        };
        let mut kept: Vec<_> = (1..BATCHES)
            .map(|_| {
                push(&mut sender);
                assert!(sender.hand_over());
                receiver.pop().expect("just handed over")
            })
            .collect();
        push(&mut sender);
        push(&mut sender);
        assert!(!sender.hand_over(), "the producer has every other batch");
        let start = SystemTime::now();
        while start.elapsed().unwrap_or_default().as_millis() < 3 {
            std::thread::yield_now();
        }
        push(&mut sender);
        push(&mut sender);
        receiver.recycle(kept.pop().expect("some are kept"));
        assert!(sender.hand_over());
        let batch = receiver.pop().expect("just handed over");
        let times: Vec<i64> = batch.records().map(|(.., came)| came.unix_ms).collect();
        assert_eq!(times.len(), 4);
        assert!(
            times[0] == times[1] && times[2] == times[3] && times[2] >= times[1] + 3,
            "{times:?}"
        );
    }
}
