//! The ledger: what was read and what became of it, compared with what is in Kafka.
//!
//! The counters are those of the running relay. Records are counted in the partitions, by the relay and the
//! run in their keys. Traffic continues meanwhile, so each line is an interval: the counters before the
//! records were read, and after.

mod found;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io;
use std::time::Duration;

use rdkafka::error::KafkaError;
use serde::Serialize;

use crate::config::Config;
use crate::downlink::Break;
use crate::kafka::observer;
use crate::ring::MESSAGE_OVERHEAD_BYTES;
use crate::route::ServerState;

use super::{Snapshot, read_snapshot};
use found::{Found, look, look_at_server};

/// Timeout of a query to the cluster.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// No relay runs.
    #[error("no relay of this instance runs, so there are no counters; start it with `relay run`")]
    NoRelay,
    /// The relay's socket failed.
    #[error("cannot ask the running relay: {0}")]
    Socket(#[from] io::Error),
    /// The cluster failed.
    #[error("cannot read the partitions: {0}; see kafka.brokers")]
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
    /// Under way: the rest, compared with the bytes that the relay has booked.
    pub waiting: u64,
    /// Refused by Kafka, and now dead letters.
    pub dead_lettered: u64,
    /// Refused by Kafka, and not (yet) dead letters.
    pub refused: u64,
    /// Records of this run in the partitions.
    pub in_partitions: u64,
    /// Acknowledged, and gone since: deleted by retention, or with the topic.
    pub deleted: u64,
    /// Records in the partitions that have the same key and sequence as another one.
    pub repeated: u64,
}

/// From servers to clients.
#[derive(Debug, Serialize)]
pub struct Downlink {
    /// Replies in this relay's partition since its run began.
    pub produced: u64,
    /// Offsets among them without replies: transaction marks, and aborted records.
    pub marks: u64,
    /// Sent to their clients.
    pub sent: u64,
    /// Not wanted by their client, by its own request.
    pub filtered: u64,
    /// Orders to close a connection.
    pub orders: u64,
    /// Written to the topic `held`, where they wait for their clients.
    pub held: u64,
    /// Written to the dead letters.
    pub dead_lettered: u64,
    /// No longer in the log when they were to be kept.
    pub vanished: u64,
    /// The rest: not read, or under way.
    pub waiting: u64,
    /// Replies that the committed offset has passed and that are not postponed. No waiting reply is among
    /// them.
    pub committed_past: u64,
}

/// A server's partition.
#[derive(Debug, Serialize)]
pub struct Server {
    /// Records in its partition from all relays, as far as Kafka still has them.
    pub in_partition: u64,
    /// Committed by its group.
    pub committed: u64,
    /// The rest.
    pub waiting: u64,
    /// Records that were deleted before its group had read them.
    pub deleted: u64,
}

/// The ledger.
#[derive(Debug, Serialize)]
pub struct Ledger {
    /// True if every line is right.
    pub balanced: bool,
    /// What is wrong, in words.
    pub problems: Vec<String>,
    /// The relay's number.
    pub relay: u16,
    /// This run of the relay.
    pub incarnation: u64,
    /// From clients to servers.
    pub uplink: Uplink,
    /// From servers to clients.
    pub downlink: Downlink,
    /// Dead letters of this run in their topic.
    pub letters_in_topic: u64,
    /// Held replies of this run in their topic.
    pub held_in_topic: u64,
    /// The servers that the configuration declares, by name.
    pub servers: BTreeMap<String, Server>,
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
            deleted: before
                .messages_acknowledged
                .saturating_sub(found.messages)
                .min(after.messages_gone + found.messages_deleted),
            repeated: found.repeated,
        };
        let marks = marks(before, found);
        let produced = offsets_since_start(before, found.downlink_end).saturating_sub(marks);
        let settled = settled(after);
        let downlink = Downlink {
            produced,
            marks,
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

    /// Compares each line: the counter before, what was found, and the counter after.
    fn check(&mut self, before: &Snapshot, after: &Snapshot, found: &Found) {
        let mut problems = Vec::new();
        let mut within = |what: &str, least: u64, found: u64, most: u64| {
            if !(least..=most).contains(&found) {
                let expected =
                    if least == most { least.to_string() } else { format!("{least} to {most}") };
                problems.push(format!("{what}: {found}, but the relay has counted {expected}"));
            }
        };
        if before.incarnation != after.incarnation {
            self.problems
                .push("the relay was restarted meanwhile: run the command again".to_owned());
            return;
        }
        let uplink = &self.uplink;
        let accounted =
            uplink.acknowledged + uplink.waiting + uplink.dead_lettered + uplink.refused;
        within("uplink: messages accounted for", uplink.received, accounted, uplink.received);
        // Acknowledged messages are there. Some that are there may not be acknowledged yet.
        let most = after.messages_acknowledged + after.messages_in_flight;
        // Retention, or the deletion of a topic, may have removed acknowledged messages.
        let deleted = after.messages_gone + found.messages_deleted;
        let least = before.messages_acknowledged.saturating_sub(deleted);
        within("uplink: messages of this run in the partitions", least, found.messages, most);
        within("uplink: messages that occur there more than once", 0, found.repeated, 0);
        let letters = |at: &Snapshot| {
            sum(&at.messages_dead_lettered)
                + sum(&at.replies_dead_lettered)
                + sum(&at.held_dead_lettered)
        };
        // Some may be written and not counted yet.
        let under_way = after.messages_to_bury + self.downlink.waiting + after.held_waiting;
        let most = letters(after) + under_way;
        let least = if found.letters_cut { 0 } else { letters(before) };
        within("dead letters of this run in their topic", least, found.letters, most);
        let most = after.replies_held + self.downlink.waiting;
        let least = if found.held_cut { 0 } else { before.replies_held };
        within("held replies of this run in their topic", least, found.held, most);
        let produced = self.downlink.produced;
        // Replies that arrived after the partition was read may already be settled.
        let least = settled(before);
        within("downlink: records in the partition", least, produced, produced.max(least));
        let committed = self.downlink.committed_past;
        within("downlink: records that the offset has passed", 0, committed, settled(after));
        problems.extend(waiting_problem(before, after));
        if found.unreadable > 0 {
            let unreadable = found.unreadable;
            problems.push(format!(
                "{unreadable} record(s) cannot be read and are not counted: their batches are \
                 damaged, or compressed in a way that this program does not know"
            ));
        }
        problems.extend(losses(after));
        self.problems.append(&mut problems);
        for (name, server) in &self.servers {
            if server.committed > server.in_partition {
                self.problems.push(format!("server {name} has committed more than is there"));
            }
            if server.deleted > 0 {
                self.problems.push(format!(
                    "server {name}: {} messages were deleted before it had read them; its topic \
                     keeps messages for too short a time, or too few bytes of them (retention.ms, \
                     retention.bytes)",
                    server.deleted
                ));
            }
        }
    }
}

/// The number of waiting messages is the difference of counters, and would hide a mistake in one of them. So
/// while nothing moves it is compared with the waiting bytes, which are accounted for separately.
fn waiting_problem(before: &Snapshot, after: &Snapshot) -> Option<String> {
    let counters = |of: &Snapshot| {
        let refused = sum(&of.messages_refused);
        (of.messages_received, of.messages_acknowledged, refused, of.bytes_in_flight)
    };
    let (messages, bytes) = (after.messages_in_flight, after.bytes_in_flight);
    let least = messages.saturating_mul(MESSAGE_OVERHEAD_BYTES as u64);
    let wrong = (messages == 0) != (bytes == 0) || bytes < least;
    (wrong && counters(before) == counters(after)).then(|| {
        format!("uplink: {bytes} bytes wait, but by the relay's counters {messages} messages wait")
    })
}

/// Losses that the relay itself has found.
fn losses(at: &Snapshot) -> Vec<String> {
    let breaks = |of: Break| at.downlink_breaks.get(of.name()).copied().unwrap_or_default();
    let (deleted, tail) = (breaks(Break::Deleted), breaks(Break::TailLost));
    let lost = [
        (
            tail,
            "replies that the relay had read are lost from the cluster, and so is anything \
            unread after them",
        ),
        (deleted, "replies were deleted before the relay had read them"),
        (at.replies_vanished, "replies were deleted before they were sent or kept"),
        (
            at.held_vanished,
            "replies that waited for their clients were deleted before the clients \
            came back",
        ),
    ];
    let lost = lost.into_iter().filter(|(count, _)| *count > 0);
    lost.map(|(count, what)| format!("{count} {what}; the relay's log says which")).collect()
}

/// Number of offsets of the downlink that concern this run, up to the given one.
fn offsets_since_start(at: &Snapshot, end: u64) -> u64 {
    let start = u64::try_from(at.downlink_start).unwrap_or_default();
    end.saturating_sub(start) + at.downlink_carried
}

/// Offsets without replies: those that the relay has passed, and those among what it had not read.
fn marks(before: &Snapshot, found: &Found) -> u64 {
    let position = u64::try_from(before.downlink_position).unwrap_or_default();
    let unread = found.downlink_end.saturating_sub(position);
    before.downlink_marks + unread.saturating_sub(found.downlink_unread)
}

/// Records that the committed offset has passed, except those that the note beside it postpones.
fn passed(at: &Snapshot, found: &Found) -> u64 {
    let passed = offsets_since_start(at, found.downlink_committed);
    passed.saturating_sub(found.downlink_postponed + at.downlink_marks)
}

/// Replies of the downlink that have been dealt with.
fn settled(at: &Snapshot) -> u64 {
    at.replies_sent
        + at.replies_filtered
        + at.replies_orders
        + at.replies_held
        + sum(&at.replies_dead_lettered)
        + at.replies_vanished
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
        if uplink.deleted > 0 {
            writeln!(
                f,
                "            {} acknowledged before, and gone: deleted by retention or with the \
                 topic, or lost by the cluster",
                uplink.deleted
            )?;
        }
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
        if downlink.marks > 0 {
            let marks = downlink.marks;
            writeln!(f, "            {marks} offsets are marks of transactions, or aborted")?;
        }
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
