//! An idempotent producer for one topic (KIP-98), without I/O.
//!
//! ```text
//!  push ─► open batch ─► queue of its partition ─► request to the leader ─► answer ─► reports
//!            (fills)      waiting ◄── again ──────── flying                (settled, in order)
//! ```
//!
//! A batch is sent when nothing of its partition is on its way, or when it is full: while one is on its way
//! the next one fills. It keeps its sequence numbers through every retry, so that a broker that has it
//! already says so; an answer that does not come says nothing. Numbers change only where that is certain
//! to write nothing twice:
//!
//! | case | what |
//! |---|---|
//! | a batch is refused for good | those behind it have not been written, because their numbers do not follow. When those before it are settled and none of the partition is on its way, they are numbered anew from the last one that was written; in the next epoch if an answer about one of them has not come, because a broker that has it still could write it then |
//! | the same, and it may have been written when it was sent before | those behind it keep their numbers, which follow if it was. If not, they are out of order |
//! | the oldest batch is out of order | the broker has lost what was before it. When none of the partition is on its way, and it was asked again for those of which no answer has come, the partition goes on with the next epoch, from 0. Epochs are each partition's own: the others go on as they are |
//! | the epoch is refused, or there is none above it | the same with a new id |
//!
//! A broker accepts any number from a producer of which it knows nothing. So a partition has one batch on its
//! way, and not [several](MOST_OF_PARTITION), until its leader has acknowledged one with that identity, and
//! again after a change of leaders and after a pause.

mod answer;
mod codes;
mod link;
mod login;
mod partition;
mod send;
mod spare;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::{Batch, Constant, Headers, Record, Records, Tag};
use crate::message::{Broker, ProduceResult, ProducerIdentity};
use crate::sasl::Mechanism;
use link::Peers;
use partition::Partition;
use send::Load;
use spare::Spare;

pub use link::LinkId;

/// Most batches of a partition on their way: so many a broker remembers to tell that it has one already
/// (`NUM_BATCHES_TO_RETAIN`).
pub const MOST_OF_PARTITION: usize = 5;
/// Most requests with records on their way to a broker, which answers them one by one.
const MOST_OF_LINK: usize = 5;
/// A request with so many bytes takes no further batch.
const REQUEST_BYTES: usize = 4 << 20;
/// How old what is known of the cluster may become.
const METADATA_INTERVAL: Duration = Duration::from_secs(10);
/// How long a topic may be unknown before what is for it is refused: a new one is not known to all brokers
/// at once.
const PROPAGATION: Duration = Duration::from_secs(30);
/// How long a question about the cluster may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the former leader of a partition may take to answer for what was sent to it.
const FORMER_LEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// A broker that has answered nothing for so long is not asked about the cluster if there is another.
const SLOW: Duration = Duration::from_secs(1);
/// After a failure, doubled with each that follows it.
const LEAST_BACKOFF: Duration = Duration::from_millis(50);
const MOST_BACKOFF: Duration = Duration::from_secs(1);

/// What a producer is made from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The topic.
    pub topic: String,
    /// Partitions that records may be for.
    pub partitions: u16,
    /// What we are called in the brokers' logs and quotas.
    pub client_id: String,
    /// Where brokers are asked for the first time: names or addresses, and ports.
    pub bootstrap: Vec<(String, u16)>,
    /// How brokers are told who we are; none: not at all.
    pub sasl: Option<Mechanism>,
    /// A batch of so many bytes is full. A single record may be longer.
    pub batch_bytes: usize,
    /// How long a batch waits for more records while nothing of its partition is on its way.
    pub linger: Duration,
    /// How long a broker may take to answer a request with records.
    pub request_timeout: Duration,
}

/// What the caller is to do with connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Connect; [`Uplink::connected`] or [`Uplink::failed`] tells how that ended.
    Connect {
        /// The connection's name from now on.
        link: LinkId,
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
    },
    /// Say who we are: [`Uplink::login`].
    Login {
        /// To the broker at its other end.
        link: LinkId,
    },
    /// Forget the connection. Nothing of it is told any more.
    Close {
        /// Which.
        link: LinkId,
    },
}

/// Why a record will never be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A broker says so, with this error's code. If it was sent before, and no answer to that came, it may
    /// have been written then.
    Broker(i16),
    /// It was [given up](Uplink::purge); it may have been written.
    Purged,
}

/// What became of one record, or of several that were given one after another.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// Their partition.
    pub partition: u16,
    /// The token that was given with each of them.
    pub token: u64,
    /// What became of them.
    pub fate: Fate<'a>,
}

/// What became of records.
#[derive(Clone, Copy, Debug)]
pub enum Fate<'a> {
    /// They are written.
    Written {
        /// Where the first of them is; below 0 if the broker does not know.
        offset: i64,
        /// How many they are.
        records: u32,
        /// The bytes that were booked for all of them.
        booked_bytes: u64,
    },
    /// This one is not written.
    Refused(Refusal, Record<'a>),
}

/// A batch whose fate is known.
#[derive(Debug)]
struct Settled {
    partition: u16,
    batch: Arc<Batch>,
    result: Result<i64, Refusal>,
    /// Those of a refused one that are not reported, once the first of them is.
    rest: Option<Records>,
}

/// What is known of the topic.
#[derive(Debug, Default)]
struct Topic {
    id: [u8; 16],
    is_known: bool,
    /// Since when brokers answer with nothing but errors about it.
    missing_since: Option<Instant>,
    /// Since when records wait for partitions that it does not have.
    short_since: Option<Instant>,
}

/// When something is asked next, and whom it was asked.
#[derive(Debug, Default)]
struct Question {
    not_before: Option<Instant>,
    asked: Option<LinkId>,
}

impl Question {
    fn is_due(&self, now: Instant) -> bool {
        self.asked.is_none() && self.not_before.is_none_or(|then| then <= now)
    }

    fn asked(&mut self, link: LinkId) {
        *self = Self { not_before: None, asked: Some(link) };
    }

    /// It is to be asked at that time, or earlier if that was wanted: without a time, it is due.
    fn ask_by(&mut self, then: Instant) {
        if self.asked.is_some() || self.not_before.is_some() {
            self.not_before = Some(self.not_before.map_or(then, |earlier| earlier.min(then)));
        }
    }

    /// If it was wanted again meanwhile that still holds.
    fn answered(&mut self, next: Instant) {
        self.ask_by(next);
        self.asked = None;
    }
}

/// The producer. Records come by [`push`](Self::push); then, again and again:
/// [`advance`](Self::advance), [`next_order`](Self::next_order), [`flush`](Self::flush), and
/// [`reports`](Self::reports).
#[derive(Debug)]
pub struct Uplink {
    settings: Settings,
    partitions: Vec<Partition>,
    /// Partitions with records that are not on their way.
    pending: VecDeque<u16>,
    peers: Peers,
    brokers: Vec<Broker>,
    topic: Topic,
    metadata: Question,
    identity: Option<ProducerIdentity>,
    identity_question: Question,
    settled: VecDeque<Settled>,
    /// Of the answer that is being taken; empty in between, its memory stays.
    results: Vec<ProduceResult>,
    /// Of the requests that are being made; empty in between.
    loads: Vec<Load>,
    spare: Spare,
    /// Memory for what is on its way with a request: as much as there was at a time.
    spare_flown: Vec<Vec<(u16, u64)>>,
    orders: VecDeque<Order>,
    throttled: VecDeque<(String, i32)>,
    fatal: Option<String>,
}

impl Uplink {
    /// Knows nothing yet, and is connected to nobody.
    pub fn new(settings: Settings) -> Self {
        Self {
            partitions: (0..settings.partitions).map(|_| Partition::default()).collect(),
            pending: VecDeque::with_capacity(settings.partitions.into()),
            peers: Peers::default(),
            brokers: Vec::new(),
            topic: Topic::default(),
            metadata: Question::default(),
            identity: None,
            identity_question: Question::default(),
            settled: VecDeque::new(),
            results: Vec::new(),
            loads: Vec::new(),
            spare: Spare::default(),
            spare_flown: Vec::new(),
            orders: VecDeque::new(),
            throttled: VecDeque::new(),
            fatal: None,
            settings,
        }
    }

    /// Batches that are not full wait so long from now on.
    pub fn set_linger(&mut self, linger: Duration) {
        self.settings.linger = linger;
    }

    /// Takes a copy of a record, to be written after those that were taken before it for the same
    /// partition. False if there is no such partition.
    #[inline]
    pub fn push(
        &mut self,
        partition: u16,
        (time, constant, value): (i64, Constant<'_>, &[u8]),
        headers: &impl Headers,
        tag: Tag,
    ) -> bool {
        let Some(of_partition) = self.partitions.get_mut(usize::from(partition)) else {
            return false;
        };
        let (most, record) = (self.settings.batch_bytes, (time, constant, value));
        let room = (&mut self.spare.chunks, most);
        if !of_partition.open.push(room, record, headers, tag) {
            of_partition.close(&mut self.spare);
            let is_taken =
                of_partition.open.push((&mut self.spare.chunks, most), record, headers, tag);
            debug_assert!(is_taken, "an empty batch takes any record");
        }
        self.touch(partition);
        true
    }

    /// True if every record has been reported.
    pub fn is_settled(&self) -> bool {
        self.settled.is_empty() && self.partitions.iter().all(Partition::is_empty)
    }

    /// Why nothing will ever be written again.
    pub fn fatal(&self) -> Option<&str> {
        self.fatal.as_deref()
    }

    /// What is to be done with connections.
    pub fn next_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// A broker that wants fewer requests: where it is, and for how many milliseconds it wants none.
    pub fn next_throttled(&mut self) -> Option<(String, i32)> {
        self.throttled.pop_front()
    }

    /// Sends what is to be sent, as far as `send` takes it, which is writev(2) on a socket that does not
    /// block.
    pub fn flush(
        &mut self,
        now: Instant,
        mut send: impl FnMut(LinkId, &[IoSlice<'_>]) -> io::Result<usize>,
    ) {
        for index in (0..self.peers.links.len()).rev() {
            let link = &mut self.peers.links[index];
            let id = link.id;
            if let Err(error) = link.output.flush(|slices| send(id, slices)) {
                self.lose(id, &format_args!("sending: {error}"), now);
            }
        }
    }

    /// The socket takes bytes again.
    pub fn writable(&mut self, link: LinkId) {
        if let Some(link) = self.peers.get(link) {
            link.output.unblock();
        }
    }

    /// Passes on what became of records, in order, while there is `room` for what is told; looks for room
    /// once in a while. True if there was something.
    pub fn reports(&mut self, room: impl Fn() -> bool, mut each: impl FnMut(Report<'_>)) -> bool {
        let mut any = false;
        while let Some(settled) = self.settled.front_mut() {
            if !room() {
                break;
            }
            any = true;
            if settled.report(&mut each) {
                let batch = self.settled.pop_front().expect("there is one").batch;
                self.spare.put(batch);
            }
        }
        any
    }

    /// Gives up every record that is not written; each is reported. What comes later is taken as ever.
    pub fn purge(&mut self, now: Instant) {
        for number in 0..self.partitions.len() {
            let partition = &mut self.partitions[number];
            if partition.is_empty() {
                continue;
            }
            // What of it may yet be written by somebody is not known: nothing follows it in the same
            // numbering.
            let given_up = std::mem::take(partition);
            partition.is_pending = given_up.is_pending;
            (partition.leader, partition.leader_epoch) = (given_up.leader, given_up.leader_epoch);
            self.identity = None;
            for batch in given_up.into_batches() {
                self.settle(number, batch, Err(Refusal::Purged));
            }
        }
        // Nor does what stands half written in a socket go on.
        let carrying: Vec<LinkId> = self
            .peers
            .links
            .iter()
            .filter(|link| link.carries_records())
            .map(|link| link.id)
            .collect();
        for link in carrying {
            self.lose(link, &"what was sent is given up", now);
        }
    }

    fn settle(&mut self, partition: usize, batch: Arc<Batch>, result: Result<i64, Refusal>) {
        let partition = u16::try_from(partition).expect("partitions are numbered so");
        self.settled.push_back(Settled { partition, batch, result, rest: None });
    }
}

impl Settled {
    /// Most records that are refused between two looks for room.
    const REFUSED_AT_ONCE: usize = 64;

    /// True if all are reported.
    fn report(&mut self, each: &mut impl FnMut(Report<'_>)) -> bool {
        let partition = self.partition;
        match self.result {
            Ok(base_offset) => {
                let mut offset = base_offset;
                for run in self.batch.runs() {
                    let fate = Fate::Written {
                        offset,
                        records: run.records,
                        booked_bytes: run.booked_bytes,
                    };
                    each(Report { partition, token: run.token, fate });
                    if offset >= 0 {
                        offset = offset.saturating_add(run.records.into());
                    }
                }
                true
            }
            Err(refusal) => {
                let rest = self.rest.get_or_insert_with(|| self.batch.records());
                for _ in 0..Self::REFUSED_AT_ONCE {
                    let Some((record, token)) = rest.read() else { break };
                    each(Report { partition, token, fate: Fate::Refused(refusal, record) });
                }
                rest.is_empty()
            }
        }
    }
}
