//! Replies that waited, on their way to clients who have come back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::message::{BorrowedMessage, Message as _};

use crate::codec::Protocol;
use crate::config::Config;
use crate::kafka::clock::brokers_clock;
use crate::kafka::fetch::{FetchError, Fetcher};
use crate::kafka::ffi::{add_headers, header as header_of};
use crate::kafka::inspect::command;
use crate::kafka::reader::{Known, OpenError, TopicReader};
use crate::model::{ConnectionKey, HeaderList, RelayId, Reply, ReplyOrigin};
use crate::ring::{Command, DELIVERY_PARTS, Delivered, DownlinkSender, Receipt};
use crate::undelivered::clientele::Clientele;
use crate::undelivered::deadletter::Sender;
use crate::undelivered::held::{Entry, HeldIndex, HeldRefusal, Record, held_header};
use crate::undelivered::presence::Presence;
use crate::undelivered::stats::HeldStats;
use crate::undelivered::turns::Turns;

/// Bytes of one delivery: less than what makes a worker pause.
const DELIVERY_BYTES: u64 = 128 << 10;
/// Records of the log that are taken in a round.
const ROUND_RECORDS: usize = 5000;
/// Clients that are looked at in a round.
const ROUND_CLIENTS: usize = 1024;
/// How often the ages of replies are looked at: a hundred times in the time that they may wait, within
/// these bounds, because each of them is looked at.
const EXPIRY_INTERVAL: [Duration; 2] = [Duration::from_secs(1), Duration::from_mins(1)];
/// Most replies that leave for their age at a look.
const ROUND_EXPIRED: usize = 1000;

/// Replies that a worker was given to send.
#[derive(Debug)]
struct Delivery {
    partition: i32,
    entries: Vec<Entry>,
}

/// What is to be written about replies that waited.
#[derive(Debug)]
pub(crate) enum HeldNote {
    /// They were sent, or are nobody's.
    Mark { holder: String, partition: i32, offsets: Vec<i64> },
    /// It cannot be sent to its client.
    Unencodable { holder: String, entry: Entry },
    /// It has waited for too long.
    Expired { holder: String, entry: Entry },
}

/// The index, who is here, and what is on its way to them.
pub(crate) struct Deliveries {
    reader: TopicReader,
    topic: String,
    protocols: Arc<[Protocol]>,
    pub(crate) presence: Presence,
    pub(crate) index: HeldIndex,
    here: HashMap<String, Vec<ConnectionKey>>,
    /// Of clients who may be here and have something waiting.
    turns: Turns<Delivery>,
    downlinks: Vec<DownlinkSender>,
    /// When ages were looked at, and whether there was more to do than was done then.
    looked: Option<(Instant, bool)>,
}

impl Deliveries {
    pub(crate) fn new(
        config: &Config,
        clientele: &Clientele,
        sender: Sender,
        downlinks: Vec<DownlinkSender>,
    ) -> Result<Self, OpenError> {
        let topic = config.kafka.held_topic();
        let reader = TopicReader::open(&config.kafka, topic.clone(), "held", Known::Made)?;
        let reader = reader.growing();
        Ok(Self {
            reader,
            topic,
            protocols: clientele.protocols.clone(),
            presence: clientele.presence.clone(),
            index: HeldIndex::new((&config.hold).into(), RelayId(config.relay.id), sender),
            here: HashMap::new(),
            turns: Turns::new(),
            downlinks,
            looked: None,
        })
    }

    /// True when the whole log is known as it was at the start: nothing is held or delivered before.
    pub(crate) fn is_ready(&self) -> bool {
        self.reader.behind() == 0
    }

    /// Takes what is new in the log; `patience` is how long it may wait for the first record. True
    /// if there was something.
    pub(crate) fn fold(&mut self, patience: Duration, stats: &HeldStats) -> bool {
        let Self { reader, index, presence, here, turns, .. } = self;
        let read =
            reader.read(patience, ROUND_RECORDS, |record| match apply(index, presence, record) {
                Ok(holder) if here.contains_key(&holder) => turns.ask(holder),
                Ok(_) => {}
                Err(refusal) => {
                    stats.refused[refusal as usize].fetch_add(1, Ordering::Relaxed);
                }
            });
        let any = read.unwrap_or_else(|error| {
            stats.errors.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%error, "held replies cannot be read; retrying");
            false
        });
        let unreadable = self.reader.take_unreadable();
        stats.refused[HeldRefusal::Unreadable as usize].fetch_add(unreadable, Ordering::Relaxed);
        let (replies, clients) = self.index.size();
        stats.waiting.store(replies, Ordering::Relaxed);
        stats.clients.store(clients, Ordering::Relaxed);
        stats.bytes.store(self.index.bytes(), Ordering::Relaxed);
        any
    }

    /// Goes on with every delivery: what is to be written comes back.
    pub(crate) fn step(
        &mut self,
        fetcher: &mut Fetcher,
        stopped: impl Fn() -> bool,
        stats: &HeldStats,
    ) -> Vec<HeldNote> {
        let mut orders = self.take_delivered(stats);
        // After those: whoever was lost has left by now.
        for change in self.presence.take() {
            let connections = self.here.entry(change.holder.clone()).or_default();
            if change.came {
                connections.push(change.key);
                self.turns.ask(change.holder);
            } else {
                connections.retain(|key| *key != change.key);
                if connections.is_empty() {
                    self.here.remove(&change.holder);
                }
            }
        }
        if !self.is_ready() {
            return orders;
        }
        for _ in 0..self.turns.waiting().min(ROUND_CLIENTS) {
            let Some(holder) = self.turns.next(Instant::now()) else { break };
            if let Err(error) = self.begin(&holder, fetcher, &stopped, &mut orders, stats) {
                match error {
                    // Its partition was complained about; others have theirs elsewhere.
                    FetchError::Resting | FetchError::Stopped => {}
                    error => {
                        tracing::error!(%error, holder, "held replies cannot be read; retrying");
                    }
                }
                self.turns.ask(holder);
            }
        }
        stats.late.store(self.turns.late(Instant::now()) as u64, Ordering::Relaxed);
        if self.is_look_due() {
            // The time of the records is the broker's.
            let now = brokers_clock().unix_ms();
            let turns = &self.turns;
            let expired =
                self.index.take_expired(now, ROUND_EXPIRED, |holder| turns.is_busy(holder));
            let more = expired.len() >= ROUND_EXPIRED;
            self.looked = Some((Instant::now(), more));
            orders.extend(
                expired.into_iter().map(|(holder, entry)| HeldNote::Expired { holder, entry }),
            );
        }
        orders
    }

    /// Whether ages are to be looked at. The time that replies may wait may have changed since the last look.
    fn is_look_due(&self) -> bool {
        let [shortest, longest] = EXPIRY_INTERVAL;
        let interval = (self.index.max_age() / 100).clamp(shortest, longest);
        self.looked.is_none_or(|(at, more)| at.elapsed() >= if more { shortest } else { interval })
    }

    fn take_delivered(&mut self, stats: &HeldStats) -> Vec<HeldNote> {
        let mut delivered = Vec::new();
        for downlink in &self.downlinks {
            downlink.take_delivered(|one| delivered.push(one));
        }
        let mut orders = Vec::new();
        for Delivered { delivery, sent, unencodable } in delivered {
            let Some((holder, delivery)) = self.turns.end(delivery) else { continue };
            let Delivery { partition, entries } = delivery;
            let mut offsets = Vec::new();
            for (part, entry) in (0..).zip(entries) {
                if sent.has(part) {
                    let waited = entry.age_ms(brokers_clock().unix_ms());
                    stats.times.record(Duration::from_millis(waited), 1);
                    offsets.push(entry.offset);
                } else if unencodable.has(part) {
                    self.index.leave(&holder, &entry);
                    orders.push(HeldNote::Unencodable { holder: holder.clone(), entry });
                }
            }
            if !offsets.is_empty() {
                stats.delivered.fetch_add(offsets.len() as u64, Ordering::Release);
                self.index.remove(&holder, partition, &offsets);
                orders.push(HeldNote::Mark { holder, partition, offsets });
            }
        }
        orders
    }

    /// Gives the first replies that wait for a client to its newest connection, if it is here.
    fn begin(
        &mut self,
        holder: &str,
        fetcher: &mut Fetcher,
        stopped: impl Fn() -> bool,
        orders: &mut Vec<HeldNote>,
        stats: &HeldStats,
    ) -> Result<(), FetchError> {
        let key = self.here.get(holder).and_then(|keys| keys.last()).copied();
        let (Some(key), Some(partition), Some(service)) =
            (key, self.index.partition(holder), self.presence.service_of(holder))
        else {
            return Ok(());
        };
        if fetcher.rests((&self.topic, partition)) {
            return Err(FetchError::Resting);
        }
        let downlink = &self.downlinks[usize::from(key.worker)];
        let Some(mut batch) = downlink.take_empty() else {
            self.turns.ask(holder.to_owned());
            return Ok(());
        };
        let entries = self.index.first(holder, DELIVERY_PARTS, DELIVERY_BYTES);
        let (mut replies, mut sent, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        let mut nobodys = Vec::new();
        let index = &mut self.index;
        let protocol = &self.protocols[service.index()];
        let mut coming = entries.iter();
        let wanted = entries.iter().map(|entry| entry.offset);
        let read = fetcher.read((&self.topic, partition), wanted, stopped, |offset, record| {
            let entry = *coming.next().expect("one for each offset");
            // A topic that was made anew has somebody else's there.
            let its = record.filter(|record| record.key() == Some(holder.as_bytes()));
            let Some(record) = its else { return gone.push(offset) };
            let value = record.payload().unwrap_or_default();
            let mut headers = HeaderList::default();
            add_headers(record, &mut headers);
            if command(record, headers.headers()) == Command::Close {
                // An order, which has nothing to be kept; an earlier relay did keep some.
                nobodys.push(offset);
            } else if protocol.check_reply(headers.headers(), value).is_ok() {
                let origin = origin(record, partition);
                replies.push((origin, headers, value.to_vec(), time_waited(record)));
                sent.push(entry);
            } else {
                index.leave(holder, &entry);
                orders.push(HeldNote::Unencodable { holder: holder.to_owned(), entry });
            }
        });
        if !gone.is_empty() {
            stats.vanished.fetch_add(gone.len() as u64, Ordering::Relaxed);
            tracing::error!(holder, count = gone.len(), "held replies are no longer in the log");
            self.index.remove(holder, partition, &gone);
        }
        if !nobodys.is_empty() {
            self.index.remove(holder, partition, &nobodys);
            let holder = holder.to_owned();
            orders.push(HeldNote::Mark { holder, partition, offsets: nobodys });
        }
        let number = self.turns.number();
        for (part, (origin, headers, value, time)) in (0..).zip(&replies) {
            let last = part as usize + 1 == replies.len();
            let receipt = Receipt::Held { delivery: number, part, last };
            let (origin, headers) = (*origin, headers.headers());
            let reply = Reply { origin, headers, payload: value, waited: *time, held: true };
            batch.push(key, Command::Reply, receipt, reply);
        }
        downlink.hand_over(batch);
        if !sent.is_empty() {
            let delivery = Delivery { partition, entries: sent };
            self.turns.begin(number, holder, delivery, Instant::now());
        } else if read.is_ok() {
            // What follows those that were not for it.
            self.turns.ask(holder.to_owned());
        }
        read
    }
}

/// Where a reply was first: what the relay that held it has written beside it.
fn origin(record: &BorrowedMessage<'_>, partition: i32) -> ReplyOrigin {
    let text = |name| std::str::from_utf8(header_of(record, name)?).ok();
    let relay = text(held_header::RELAY).and_then(|relay| relay.split('-').next()?.parse().ok());
    let offset = text(held_header::OFFSET).and_then(|offset| offset.parse().ok());
    match (relay, offset) {
        (Some(relay), Some(offset)) => ReplyOrigin { relay: RelayId(relay), offset },
        // Written by hand: its place here, under a relay that cannot be.
        _ => ReplyOrigin {
            relay: RelayId(u16::MAX),
            offset: record.offset() << 8 | i64::from(partition & 0xff),
        },
    }
}

/// How long a reply has waited: before it was held, by the relay that held it, and since, by the broker's
/// clock.
fn time_waited(record: &BorrowedMessage<'_>) -> Duration {
    let text = header_of(record, held_header::WAITED).map(std::str::from_utf8);
    let before = text.and_then(|text| text.ok()?.parse().ok()).map_or(Duration::ZERO, |before| {
        // More than any expiry there is would mean nothing.
        Duration::from_millis(before).min(Duration::from_secs(u32::MAX.into()))
    });
    let held = record.timestamp().to_millis().unwrap_or(i64::MAX);
    let since = brokers_clock().unix_ms().saturating_sub(held);
    before + Duration::from_millis(u64::try_from(since).unwrap_or_default())
}

fn apply(
    index: &mut HeldIndex,
    presence: &Presence,
    message: &BorrowedMessage<'_>,
) -> Result<String, HeldRefusal> {
    let holder = message.key().and_then(|key| std::str::from_utf8(key).ok());
    let holder = holder.filter(|holder| presence.service_of(holder).is_some());
    let holder = holder.ok_or(HeldRefusal::MalformedKey)?;
    let record = Record {
        partition: message.partition(),
        offset: message.offset(),
        // One without a time is as old as it is known here.
        unix_ms: message.timestamp().to_millis().unwrap_or_else(|| brokers_clock().unix_ms()),
        kind: header_of(message, held_header::KIND),
        relay: header_of(message, held_header::RELAY),
        value: message.payload().unwrap_or_default(),
    };
    index.apply(holder, &record)?;
    Ok(holder.to_owned())
}
