//! What is in the partitions, for the ledger.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

use crate::config::{Config, KafkaSection};
use crate::kafka::{
    Difference, LogContext, LogEnd, RecordOrigin, TIMESTAMP_TYPE, committed, committed_with_note,
    header_text, is_unreadable, observer, record_origin, unreadable_at, watermarks,
    watermarks_from,
};
use crate::model::Partition;
use crate::undelivered::{Reason, letter, postponed_before};

use super::super::Snapshot;
use super::{LedgerError, Server, TIMEOUT};

const POLL: Duration = Duration::from_millis(100);
/// How long before the start of the run the search for its records begins.
pub(super) const SPARE_MS: i64 = 60_000;
/// From the oldest record on.
pub(super) const ANY_TIME: i64 = i64::MIN;

/// What is in the partitions.
#[derive(Default)]
pub(super) struct Found {
    pub(super) messages: u64,
    /// Number of messages of this run that may have been deleted.
    pub(super) messages_deleted: u64,
    pub(super) repeated: u64,
    pub(super) letters: u64,
    /// Retention may have deleted some of them.
    pub(super) letters_cut: bool,
    pub(super) held: u64,
    pub(super) held_cut: bool,
    /// Replies after those that the relay had read.
    pub(super) downlink_unread: u64,
    pub(super) downlink_end: u64,
    pub(super) downlink_committed: u64,
    /// Replies before that which are postponed.
    pub(super) downlink_postponed: u64,
    /// Records of the topics that could not be read.
    pub(super) unreadable: u64,
}

/// Reads all partitions.
pub(super) fn look(
    config: &Config,
    client: &BaseConsumer<LogContext>,
    at: &Snapshot,
) -> Result<Found, LedgerError> {
    let mut found = Found::default();
    let mut last: HashMap<(i32, Vec<u8>), u64> = HashMap::new();
    let uplink = config.kafka.uplink_topic();
    let (reader, mut unreadable) = ((&config.kafka, client), 0);
    let parts = scan(reader, &uplink, at, &mut unreadable, |message| {
        let RecordOrigin { relay, incarnation, sequence } = record_origin(message)?;
        if (relay, incarnation) == (at.relay, at.incarnation) {
            found.messages += 1;
            let key = (message.partition(), message.key().unwrap_or_default().to_vec());
            // They only grow within a key.
            let last = last.entry(key).or_default();
            found.repeated += u64::from(*last >= sequence);
            *last = sequence.max(*last);
        }
        Some(())
    })?;
    let written = at.uplink_written.iter();
    let gone = written.filter(|(number, written)| parts.is_incomplete(**number, written.end));
    found.messages_deleted = gone.map(|(_, written)| written.messages).sum();
    let own = format!("{}-{}", at.relay, at.incarnation);
    let letters = config.kafka.deadletter_topic();
    let parts = scan(reader, &letters, at, &mut unreadable, |message| {
        // Letters for a server that is gone are the coordinator's, and the relay does not count them.
        let counts = header_text(message, letter::RELAY)? == own
            && header_text(message, letter::REASON)? != Reason::ServerGone.name();
        found.letters += u64::from(counts);
        Some(())
    })?;
    found.letters_cut = parts.are_cut(at.log_ends.get(&letters));
    let held = config.kafka.held_topic();
    let parts = scan(reader, &held, at, &mut unreadable, |message| {
        let counts = header_text(message, "millrace.relay")? == own
            && header_text(message, "millrace.kind")? == "reply";
        found.held += u64::from(counts);
        Some(())
    })?;
    found.held_cut = parts.are_cut(at.log_ends.get(&held));
    let (topic, partition) = (config.kafka.downlink_topic(), i32::from(at.relay));
    let (place, read_to) = ((&*topic, partition), at.downlink_position);
    let (oldest, end) = watermarks_from(client.client(), place, read_to, TIMEOUT)?;
    let unread = at.downlink_position.max(oldest)..end;
    let unread_here = read(reader, (&topic, partition), unread, |_| found.downlink_unread += 1)?;
    // The relay makes dead letters of them.
    found.downlink_unread += unread_here;
    found.unreadable = unreadable;
    found.downlink_end = u64::try_from(end).unwrap_or_default();
    let committed = committed_with_note(client, &topic, partition, TIMEOUT)?.unwrap_or_default();
    found.downlink_committed = u64::try_from(committed.0).unwrap_or_default();
    found.downlink_postponed = postponed_before(&committed);
    Ok(found)
}

/// The earliest time of a run's records in a topic: by the broker's clock where that is known, and with a
/// margin, because a host's clock may be set. If records have their writer's time, it can be any time,
/// because the writer's clock may be wrong.
pub(super) fn since(at: &Snapshot, topic: &str) -> i64 {
    let own_time = |it: &Difference| it.topic == topic && it.setting == TIMESTAMP_TYPE;
    if at.topics.iter().any(own_time) {
        return ANY_TIME;
    }
    let by_host = i64::try_from(at.incarnation).unwrap_or(i64::MAX);
    at.begun_unix_ms.map_or(by_host, |begun| begun.min(by_host)).saturating_sub(SPARE_MS)
}

/// The least end of a partition: after the last record that the run knows of.
fn written_to(at: &Snapshot, kafka: &KafkaSection, topic: &str, partition: i32) -> i64 {
    let end = if topic == kafka.uplink_topic() {
        let number = u16::try_from(partition).ok();
        number.and_then(|number| at.uplink_written.get(&number)).map(|written| written.end)
    } else {
        at.log_ends.get(topic).and_then(|log| log.ends.get(&partition)).copied()
    };
    end.unwrap_or_default()
}

/// Reads all records of a topic that were written since the run began, up to its present end.
fn scan(
    reader: (&KafkaSection, &BaseConsumer<LogContext>),
    topic: &str,
    at: &Snapshot,
    unreadable: &mut u64,
    mut look: impl FnMut(&BorrowedMessage<'_>) -> Option<()>,
) -> Result<Parts, LedgerError> {
    let (client, since_unix_ms) = (reader.1, since(at, topic));
    let metadata = client.fetch_metadata(Some(topic), TIMEOUT)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    let mut parts = Parts::default();
    for partition in 0..i32::try_from(partitions).unwrap_or(i32::MAX) {
        let known = written_to(at, reader.0, topic, partition);
        let (oldest, end) = watermarks_from(client.client(), (topic, partition), known, TIMEOUT)?;
        let newer = if since_unix_ms == ANY_TIME {
            (oldest < end).then_some(oldest)
        } else {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(topic, partition, Offset::Offset(since_unix_ms))?;
            let times = client.offsets_for_times(list, TIMEOUT)?;
            match times.elements().first().map(TopicPartitionListElem::offset) {
                Some(Offset::Offset(start)) => Some(start),
                // It has no record as new as that.
                _ => None,
            }
        };
        parts.0.push(Part { oldest, end, newer });
        let offsets = newer.map_or(end, |start| start.max(oldest))..end;
        *unreadable += read(reader, (topic, partition), offsets, |message| {
            // One that is none of ours counts for nothing.
            let _ = look(message);
        })?;
    }
    Ok(parts)
}

/// Reads a part of a partition. Returns the number of offsets that cannot be read.
fn read(
    (kafka, client): (&KafkaSection, &BaseConsumer<LogContext>),
    (topic, partition): (&str, i32),
    offsets: Range<i64>,
    mut look: impl FnMut(&BorrowedMessage<'_>),
) -> Result<u64, LedgerError> {
    if offsets.is_empty() {
        return Ok(0);
    }
    let assign = |offset| {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        client.assign(&list)
    };
    assign(offsets.start)?;
    let (mut moved, mut next, mut unreadable) = (Instant::now(), offsets.start, 0);
    loop {
        match client.poll(POLL) {
            Some(Ok(message)) => {
                (moved, next) = (Instant::now(), message.offset() + 1);
                if message.offset() < offsets.end {
                    look(&message);
                }
                if next >= offsets.end {
                    break;
                }
            }
            Some(Err(error)) if is_unreadable(&error) => {
                let Some(range) = unreadable_at(kafka, (topic, partition), next)? else { continue };
                unreadable += u64::try_from(range.end - range.start).unwrap_or_default();
                (next, moved) = (range.end, Instant::now());
                if next >= offsets.end {
                    break;
                }
                assign(next)?;
            }
            // The rest are marks of transactions.
            Some(Err(KafkaError::PartitionEOF(its))) if its == partition => break,
            Some(Err(error)) if moved.elapsed() > TIMEOUT => return Err(error.into()),
            None if moved.elapsed() > TIMEOUT => {
                return Err(LedgerError::Late { topic: topic.to_owned(), partition });
            }
            Some(Err(_)) | None => {}
        }
    }
    client.unassign()?;
    Ok(unreadable)
}

/// The extent of a partition.
#[derive(Debug)]
struct Part {
    oldest: i64,
    end: i64,
    /// The first record since the run began, if there is any.
    newer: Option<i64>,
}

impl Part {
    /// True if records of the run's time may have been deleted: some records were, and none is left from
    /// before the run.
    fn is_cut(&self) -> bool {
        self.oldest > 0 && self.newer.is_none_or(|newer| newer <= self.oldest)
    }
}

#[derive(Debug, Default)]
struct Parts(Vec<Part>);

impl Parts {
    /// True if some of what was written to the topic may be missing.
    fn are_cut(&self, written: Option<&LogEnd>) -> bool {
        let is_other = written.is_some_and(|written| {
            let shorter = |(number, end): (&i32, &i64)| {
                let part = usize::try_from(*number).ok().and_then(|number| self.0.get(number));
                part.is_none_or(|part| part.end < *end)
            };
            written.made_anew || written.ends.iter().any(shorter)
        });
        is_other || self.0.iter().any(Part::is_cut)
    }

    /// True if some of what was written to a partition, up to this end, may be missing.
    fn is_incomplete(&self, number: u16, written_end: i64) -> bool {
        // If it ends before that, it is another log, or has lost its end.
        self.0.get(usize::from(number)).is_none_or(|part| part.is_cut() || part.end < written_end)
    }
}

/// Reads the extent of a server's partition.
pub(super) fn look_at_server(config: &Config, partition: Partition) -> Result<Server, LedgerError> {
    let client = observer(&config.kafka, &config.kafka.server_group(partition))?;
    let (topic, number) = (config.kafka.uplink_topic(), i32::from(partition.0));
    let (oldest, end) = watermarks(client.client(), &topic, number, TIMEOUT)?;
    Ok(Server::new(oldest, end, committed(&client, &topic, number, TIMEOUT)?))
}

impl Server {
    /// A server that has committed nothing starts wherever it likes, so nothing was deleted too early for it.
    pub(super) fn new(oldest: i64, end: i64, committed: Option<i64>) -> Self {
        let count = |from: i64, to: i64| u64::try_from(to.saturating_sub(from)).unwrap_or_default();
        let position = committed.unwrap_or(oldest).max(oldest);
        Self {
            in_partition: count(oldest, end),
            committed: count(oldest, position),
            waiting: count(position, end),
            deleted: committed.map_or(0, |committed| count(committed, oldest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(oldest: i64, end: i64, newer: Option<i64>) -> Part {
        Part { oldest, end, newer }
    }

    #[test]
    fn retention_may_have_taken_what_is_as_new_as_the_oldest_record_that_is_left() {
        assert!(!part(0, 10, Some(0)).is_cut(), "nothing was deleted");
        assert!(!part(5, 10, Some(7)).is_cut(), "there is one from before the run");
        assert!(part(5, 10, Some(5)).is_cut());
        assert!(part(5, 10, Some(3)).is_cut());
        assert!(part(10, 10, None).is_cut(), "nothing is left");
        assert!(!part(0, 0, None).is_cut());
    }

    #[test]
    fn a_log_that_ends_before_what_was_written_is_another() {
        let parts = Parts(vec![part(0, 10, Some(0)), part(5, 10, Some(5))]);
        assert!(!parts.is_incomplete(0, 10));
        assert!(parts.is_incomplete(0, 11), "it was made anew");
        assert!(parts.is_incomplete(1, 10), "a part of it was deleted");
        assert!(parts.is_incomplete(2, 1), "it has fewer partitions than it had");
        let parts = Parts(vec![part(0, 10, Some(0))]);
        let are_cut = |number, end, made_anew| {
            parts.are_cut(Some(&LogEnd { ends: [(number, end)].into(), made_anew }))
        };
        assert!(!parts.are_cut(None) && !are_cut(0, 10, false));
        assert!(are_cut(0, 11, false) && are_cut(1, 1, false) && are_cut(0, 10, true));
    }

    #[test]
    fn what_is_deleted_before_it_was_read_is_seen_and_what_was_read_is_not() {
        let server = |committed| {
            let server = Server::new(100, 150, committed);
            (server.committed, server.waiting, server.deleted)
        };
        assert_eq!(server(Some(120)), (20, 30, 0));
        assert_eq!(server(Some(100)), (0, 50, 0));
        assert_eq!(server(Some(90)), (0, 50, 10));
        assert_eq!(server(None), (0, 50, 0), "it begins where it likes");
    }
}
