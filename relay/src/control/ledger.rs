//! The ledger: what was read and what has become of it, checked against what is in Kafka.
//!
//! Counters are the running relay's; records are counted in the partitions, by the relay and the run
//! in their keys. Both are taken while traffic goes on, so each line is an interval: what was counted
//! before the records were looked at, and what after.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};
use serde::Serialize;

use crate::config::{Config, KafkaSection};
use crate::kafka::{
    Difference, Reason, RecordOrigin, TIMESTAMP_TYPE, committed, committed_with_note, header_text,
    is_unreadable, letter, observer, postponed_before, record_origin, unreadable_at, watermarks,
};
use crate::ring::MESSAGE_OVERHEAD_BYTES;
use crate::route::{Partition, ServerState};

use super::{Snapshot, read_snapshot};

#[cfg(test)]
mod tests;

/// How long the cluster may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
/// How far before the run's beginning its records are looked for.
const SPARE_MS: i64 = 60_000;
/// From the oldest on.
const ANY_TIME: i64 = i64::MIN;

/// Why there is no ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The relay.
    #[error("no relay of this instance runs; its counters end with it: start it with `relay run`")]
    NoRelay,
    /// Its socket.
    #[error("cannot ask the running relay: {0}")]
    Socket(#[from] io::Error),
    /// The cluster.
    #[error("cannot look at the partitions: {0}; see kafka.brokers")]
    Kafka(#[from] KafkaError),
    /// A partition that could not be read to its end.
    #[error("{topic} [{partition}] could not be read to its end within {TIMEOUT:?}")]
    Late {
        /// Where.
        topic: String,
        /// Where.
        partition: i32,
    },
}

/// From clients to servers.
#[derive(Debug, Serialize)]
pub struct Uplink {
    /// Messages read from clients.
    pub received: u64,
    /// Acknowledged by Kafka.
    pub acknowledged: u64,
    /// On their way: the rest, compared with what the relay has booked.
    pub waiting: u64,
    /// Refused by Kafka, and among the dead letters.
    pub dead_lettered: u64,
    /// Refused by Kafka, and not (yet) among them.
    pub refused: u64,
    /// Records of this run in the partitions.
    pub in_partitions: u64,
    /// Of those, such as have the key and the sequence of another one.
    pub repeated: u64,
}

/// From servers to clients.
#[derive(Debug, Serialize)]
pub struct Downlink {
    /// Records in this relay's partition since its run began.
    pub produced: u64,
    /// Sent to their clients.
    pub sent: u64,
    /// Not wanted by their client, by its own word.
    pub filtered: u64,
    /// Orders to close a connection.
    pub orders: u64,
    /// Written to those that wait for their clients.
    pub held: u64,
    /// Written to the dead letters.
    pub dead_lettered: u64,
    /// Not there any more when they were to be kept.
    pub vanished: u64,
    /// The rest: not read, or on their way.
    pub waiting: u64,
    /// Where the next run would go on, without what it would see to before: nothing that waits is among
    /// them.
    pub committed_past: u64,
}

/// A server's partition.
#[derive(Debug, Serialize)]
pub struct Server {
    /// Records in its partition, of all relays, as far as Kafka keeps them.
    pub in_partition: u64,
    /// Committed by its group.
    pub committed: u64,
    /// The rest.
    pub waiting: u64,
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Ledger {
    /// Whether every line is right.
    pub balanced: bool,
    /// What is wrong, in words.
    pub problems: Vec<String>,
    /// The relay.
    pub relay: u16,
    /// Its run.
    pub incarnation: u64,
    /// From clients to servers.
    pub uplink: Uplink,
    /// From servers to clients.
    pub downlink: Downlink,
    /// Dead letters of this run in their topic.
    pub letters_in_topic: u64,
    /// Replies that this run has written to those that wait for their clients.
    pub held_in_topic: u64,
    /// By name; those that the configuration declares.
    pub servers: BTreeMap<String, Server>,
}

/// What is in the partitions.
#[derive(Default)]
struct Found {
    messages: u64,
    repeated: u64,
    letters: u64,
    held: u64,
    downlink_end: u64,
    downlink_committed: u64,
    /// Of those before it, such as are postponed.
    downlink_postponed: u64,
    /// Records of the topics that could not be read.
    unreadable: u64,
}

/// Takes the ledger of the running relay.
pub fn ledger(config: &Config) -> Result<Ledger, LedgerError> {
    let before = read_snapshot(config)?.ok_or(LedgerError::NoRelay)?;
    let client = observer(&config.kafka, &config.kafka.relay_group(before.relay))?;
    let found = look(config, &client, &before)?;
    let after = read_snapshot(config)?.ok_or(LedgerError::NoRelay)?;
    let mut servers = BTreeMap::new();
    for server in config.services.iter().flat_map(|service| &service.servers) {
        servers.insert(server.id.clone(), look_at_server(config, server.partition)?);
    }
    for server in after.registry.servers.iter().filter(|server| server.state != ServerState::Gone) {
        if let Entry::Vacant(place) = servers.entry(server.id.clone()) {
            place.insert(look_at_server(config, server.partition)?);
        }
    }
    Ok(Ledger::new(&before, &after, &found, servers))
}

fn sum(counts: &BTreeMap<String, u64>) -> u64 {
    counts.values().sum()
}

impl Ledger {
    fn new(
        before: &Snapshot,
        after: &Snapshot,
        found: &Found,
        servers: BTreeMap<String, Server>,
    ) -> Self {
        let dead_lettered = sum(&after.messages_dead_lettered);
        let uplink = Uplink {
            received: after.messages_received,
            acknowledged: after.messages_acknowledged,
            waiting: after.messages_in_flight,
            dead_lettered,
            refused: sum(&after.messages_refused).saturating_sub(dead_lettered),
            in_partitions: found.messages,
            repeated: found.repeated,
        };
        let start = u64::try_from(after.downlink_start).unwrap_or_default();
        let produced = found.downlink_end.saturating_sub(start) + after.downlink_carried;
        let settled = settled(after);
        let downlink = Downlink {
            produced,
            sent: after.replies_sent,
            filtered: after.replies_filtered,
            orders: after.replies_orders,
            held: after.replies_held,
            dead_lettered: sum(&after.replies_dead_lettered),
            vanished: after.replies_vanished,
            waiting: produced.saturating_sub(settled),
            committed_past: passed(after, found),
        };
        let mut ledger = Self {
            balanced: false,
            problems: Vec::new(),
            relay: after.relay,
            incarnation: after.incarnation,
            uplink,
            downlink,
            letters_in_topic: found.letters,
            held_in_topic: found.held,
            servers,
        };
        ledger.check(before, after, found);
        ledger.balanced = ledger.problems.is_empty();
        ledger
    }

    /// Each line with what was counted before, what was found, and what was counted after.
    fn check(&mut self, before: &Snapshot, after: &Snapshot, found: &Found) {
        let mut problems = Vec::new();
        let mut within = |what: &str, least: u64, found: u64, most: u64| {
            if !(least..=most).contains(&found) {
                let expected =
                    if least == most { least.to_string() } else { format!("{least} to {most}") };
                problems.push(format!("{what}: {found}, and the relay has counted {expected}"));
            }
        };
        if before.incarnation != after.incarnation {
            self.problems.push("the relay was restarted meanwhile: ask again".to_owned());
            return;
        }
        let uplink = &self.uplink;
        let accounted =
            uplink.acknowledged + uplink.waiting + uplink.dead_lettered + uplink.refused;
        within("uplink: messages accounted for", uplink.received, accounted, uplink.received);
        // What is acknowledged is there; what is there may not be acknowledged yet.
        let most = after.messages_acknowledged + after.messages_in_flight;
        let least = before.messages_acknowledged;
        within("uplink: messages of this run in the partitions", least, found.messages, most);
        within("uplink: messages that stand there more than once", 0, found.repeated, 0);
        let letters = |at: &Snapshot| {
            sum(&at.messages_dead_lettered)
                + sum(&at.replies_dead_lettered)
                + sum(&at.held_dead_lettered)
        };
        // Some may be written and not counted yet.
        let under_way = after.messages_to_bury + self.downlink.waiting + after.held_waiting;
        let most = letters(after) + under_way;
        within("dead letters of this run in their topic", letters(before), found.letters, most);
        let most = after.replies_held + self.downlink.waiting;
        within("held replies of this run in their topic", before.replies_held, found.held, most);
        let produced = self.downlink.produced;
        // What came after the look may be settled already.
        let least = settled(before);
        within("downlink: records in the partition", least, produced, produced.max(least));
        let committed = self.downlink.committed_past;
        within("downlink: records that the offset has passed", 0, committed, settled(after));
        problems.extend(waiting_problem(before, after));
        if found.unreadable > 0 {
            let unreadable = found.unreadable;
            problems.push(format!(
                "{unreadable} record(s) cannot be read, and are not counted: their batches are \
                 damaged, or compressed in a way that this program does not know"
            ));
        }
        self.problems.append(&mut problems);
        for (name, server) in &self.servers {
            if server.committed > server.in_partition {
                self.problems.push(format!("server {name} has committed more than there is"));
            }
        }
    }
}

/// What waits is the difference of two counters, and would hide a mistake in one of them. So while
/// nothing moves it is compared with the bytes that wait, which are kept otherwise.
fn waiting_problem(before: &Snapshot, after: &Snapshot) -> Option<String> {
    let counters = |of: &Snapshot| {
        let refused = sum(&of.messages_refused);
        (of.messages_received, of.messages_acknowledged, refused, of.bytes_in_flight)
    };
    let (messages, bytes) = (after.messages_in_flight, after.bytes_in_flight);
    let least = messages.saturating_mul(MESSAGE_OVERHEAD_BYTES as u64);
    let wrong = (messages == 0) != (bytes == 0) || bytes < least;
    (wrong && counters(before) == counters(after)).then(|| {
        format!("uplink: {bytes} bytes wait, and by the relay's counters {messages} messages do")
    })
}

/// Records that the committed offset has passed, and the note beside it does not take back.
fn passed(at: &Snapshot, found: &Found) -> u64 {
    let start = u64::try_from(at.downlink_start).unwrap_or_default();
    let passed = found.downlink_committed.saturating_sub(start) + at.downlink_carried;
    passed.saturating_sub(found.downlink_postponed)
}

/// Records of the downlink that are where they belong.
fn settled(at: &Snapshot) -> u64 {
    at.replies_sent
        + at.replies_filtered
        + at.replies_orders
        + at.replies_held
        + sum(&at.replies_dead_lettered)
        + at.replies_vanished
}

fn look(config: &Config, client: &BaseConsumer, at: &Snapshot) -> Result<Found, LedgerError> {
    let mut found = Found::default();
    let mut last: HashMap<(i32, Vec<u8>), u64> = HashMap::new();
    let uplink = config.kafka.uplink_topic();
    let (reader, mut unreadable) = ((&config.kafka, client), 0);
    scan(reader, &uplink, since(at, &uplink), &mut unreadable, |message| {
        let RecordOrigin { relay, incarnation, sequence } = record_origin(message)?;
        if (relay, incarnation) == (at.relay, at.incarnation) {
            found.messages += 1;
            let key = (message.partition(), message.key().unwrap_or_default().to_vec());
            // Of one key they only grow.
            let last = last.entry(key).or_default();
            found.repeated += u64::from(*last >= sequence);
            *last = sequence.max(*last);
        }
        Some(())
    })?;
    let own = format!("{}-{}", at.relay, at.incarnation);
    let letters = config.kafka.deadletter_topic();
    scan(reader, &letters, since(at, &letters), &mut unreadable, |message| {
        // Those of a server that is gone are the coordinator's, and not counted by the relay.
        let counts = header_text(message, letter::RELAY)? == own
            && header_text(message, letter::REASON)? != Reason::ServerGone.name();
        found.letters += u64::from(counts);
        Some(())
    })?;
    let held = config.kafka.held_topic();
    scan(reader, &held, since(at, &held), &mut unreadable, |message| {
        let counts = header_text(message, "millrace.relay")? == own
            && header_text(message, "millrace.kind")? == "reply";
        found.held += u64::from(counts);
        Some(())
    })?;
    found.unreadable = unreadable;
    let (topic, partition) = (config.kafka.downlink_topic(), i32::from(at.relay));
    let (_, end) = watermarks(client.client(), &topic, partition, TIMEOUT)?;
    found.downlink_end = u64::try_from(end).unwrap_or_default();
    let committed = committed_with_note(client, &topic, partition, TIMEOUT)?.unwrap_or_default();
    found.downlink_committed = u64::try_from(committed.0).unwrap_or_default();
    found.downlink_postponed = postponed_before(&committed);
    Ok(found)
}

/// From when on a run's records may be in a topic: by the broker's clock where it is known, and with
/// some time to spare, because a host's clock may be set. Where the time of a record is its writer's, who
/// may have had a wrong one or none, it may be anywhere.
fn since(at: &Snapshot, topic: &str) -> i64 {
    let own_time = |it: &Difference| it.topic == topic && it.setting == TIMESTAMP_TYPE;
    if at.topics.iter().any(own_time) {
        return ANY_TIME;
    }
    let by_host = i64::try_from(at.incarnation).unwrap_or(i64::MAX);
    at.begun_unix_ms.map_or(by_host, |begun| begun.min(by_host)).saturating_sub(SPARE_MS)
}

/// Looks at all records of a topic that were written since a time, up to its present end.
fn scan(
    (kafka, client): (&KafkaSection, &BaseConsumer),
    topic: &str,
    since_unix_ms: i64,
    unreadable: &mut u64,
    mut look: impl FnMut(&BorrowedMessage<'_>) -> Option<()>,
) -> Result<(), LedgerError> {
    let metadata = client.fetch_metadata(Some(topic), TIMEOUT)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    for partition in 0..i32::try_from(partitions).unwrap_or(i32::MAX) {
        let (oldest, end) = watermarks(client.client(), topic, partition, TIMEOUT)?;
        let start = if since_unix_ms == ANY_TIME {
            oldest
        } else {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(topic, partition, Offset::Offset(since_unix_ms))?;
            let times = client.offsets_for_times(list, TIMEOUT)?;
            match times.elements().first().map(TopicPartitionListElem::offset) {
                Some(Offset::Offset(start)) => start.max(oldest),
                // Nothing as new as that.
                _ => end,
            }
        };
        if start >= end {
            continue;
        }
        assign(client, topic, partition, start)?;
        let (mut moved, mut next) = (Instant::now(), start);
        loop {
            match client.poll(POLL) {
                Some(Ok(message)) => {
                    (moved, next) = (Instant::now(), message.offset() + 1);
                    if message.offset() < end {
                        // One that is none of ours counts for nothing.
                        let _ = look(&message);
                    }
                    if next >= end {
                        break;
                    }
                }
                Some(Err(error)) if is_unreadable(&error) => {
                    let place = (topic, partition);
                    let Some(range) = unreadable_at(kafka, place, next)? else { continue };
                    *unreadable += u64::try_from(range.end - range.start).unwrap_or_default();
                    (next, moved) = (range.end, Instant::now());
                    if next >= end {
                        break;
                    }
                    assign(client, topic, partition, next)?;
                }
                Some(Err(error)) if moved.elapsed() > TIMEOUT => return Err(error.into()),
                None if moved.elapsed() > TIMEOUT => {
                    return Err(LedgerError::Late { topic: topic.to_owned(), partition });
                }
                Some(Err(_)) | None => {}
            }
        }
    }
    client.unassign()?;
    Ok(())
}

fn assign(client: &BaseConsumer, topic: &str, partition: i32, offset: i64) -> KafkaResult<()> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    client.assign(&list)
}

/// 0 if nothing was committed.
fn position(client: &BaseConsumer, topic: &str, partition: i32) -> Result<u64, LedgerError> {
    let committed = committed(client, topic, partition, TIMEOUT)?.unwrap_or_default();
    Ok(u64::try_from(committed).unwrap_or_default())
}

fn look_at_server(config: &Config, partition: Partition) -> Result<Server, LedgerError> {
    let client = observer(&config.kafka, &config.kafka.server_group(partition))?;
    let topic = config.kafka.uplink_topic();
    let (oldest, end) = watermarks(client.client(), &topic, i32::from(partition.0), TIMEOUT)?;
    let count = |offset: i64| u64::try_from(offset).unwrap_or_default();
    let position = position(&client, &topic, i32::from(partition.0))?.max(count(oldest));
    Ok(Server {
        in_partition: count(end - oldest),
        committed: position - count(oldest),
        waiting: count(end).saturating_sub(position),
    })
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uplink, downlink, .. } = self;
        writeln!(f, "relay {}, run {}", self.relay, self.incarnation)?;
        writeln!(
            f,
            "  uplink    {} received = {} acknowledged + {} waiting + {} dead letters + {} refused",
            uplink.received,
            uplink.acknowledged,
            uplink.waiting,
            uplink.dead_lettered,
            uplink.refused
        )?;
        writeln!(
            f,
            "            {} in the partitions, {} of them repeated",
            uplink.in_partitions, uplink.repeated
        )?;
        writeln!(
            f,
            "  downlink  {} produced = {} sent + {} not wanted + {} orders + {} held + {} dead letters + {} vanished \
             + {} waiting",
            downlink.produced,
            downlink.sent,
            downlink.filtered,
            downlink.orders,
            downlink.held,
            downlink.dead_lettered,
            downlink.vanished,
            downlink.waiting
        )?;
        writeln!(f, "            the offset has passed {}", downlink.committed_past)?;
        writeln!(
            f,
            "  topics    {} dead letters and {} held replies of this run",
            self.letters_in_topic, self.held_in_topic
        )?;
        for (name, server) in &self.servers {
            writeln!(
                f,
                "  server {name}: {} in its partition = {} committed + {} waiting",
                server.in_partition, server.committed, server.waiting
            )?;
        }
        for problem in &self.problems {
            writeln!(f, "  WRONG: {problem}")?;
        }
        write!(f, "balanced: {}", self.balanced)
    }
}
