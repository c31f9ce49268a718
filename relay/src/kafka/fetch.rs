//! Records of a partition read again, by offset: the log is the store.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::metadata::MetadataTopic;
use rdkafka::{Offset, TopicPartitionList};

use crate::config::KafkaSection;
use crate::kafka::client::{data_config, offset_reader};

use super::context::LogContext;
use super::ffi::rejoin;
use super::unreadable::{is_unreadable, unreadable_at};

/// How long one look lasts.
const POLL: Duration = Duration::from_millis(100);
/// After so long without a record, and from then on as often, the cluster is asked whether there is one.
const LOOK: Duration = Duration::from_millis(500);
/// Some brokers tell an end that is a little short. What is said to be behind it, and was there once, is
/// given up only if so many looks in a row say so and no record comes, or a fetch finds nothing there.
const SHORT_LOOKS: u32 = 3;
/// How long it may take to say so.
const ANSWER: Duration = Duration::from_secs(1);
/// How long the next record may take to come, at first. If it does not, its partition rests for as long,
/// so that whoever reads others on the same thread has half of the time at least.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);
/// It doubles each time, up to this: a broker may be that slow.
const MOST_PATIENCE: Duration = Duration::from_secs(8);
/// So many records that nobody wants are read and left out rather than sought past.
const MOST_SKIPPED: i64 = 1000;

/// Why records were not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// librdkafka's word.
    #[error("{0}")]
    Kafka(#[from] KafkaError),
    /// Nothing came for a long time.
    #[error("offset {offset} of {topic} [{partition}] did not arrive within {patience:?}")]
    Late {
        /// Where.
        topic: String,
        /// Where.
        partition: i32,
        /// Which.
        offset: i64,
        /// How long it was waited for.
        patience: Duration,
    },
    /// Nobody can say what is there.
    #[error("{topic} [{partition}] has no leader; the brokers' logs may say why")]
    NoLeader {
        /// Where.
        topic: String,
        /// Where.
        partition: i32,
    },
    /// Its partition could not be read a moment ago, and is left alone for a while.
    #[error("the partition could not be read a moment ago")]
    Resting,
    /// The relay stops.
    #[error("the relay stops")]
    Stopped,
}

/// A partition that could not be read.
#[derive(Debug)]
struct Rest {
    until: Instant,
    /// With it the next time.
    patience: Duration,
}

/// Reads records by their offsets.
pub(crate) struct Fetcher {
    client: BaseConsumer<LogContext>,
    /// Topic, partition and the offset that comes next.
    place: Option<(String, i32, i64)>,
    kafka: KafkaSection,
    rests: HashMap<(String, i32), Rest>,
    first_patience: Duration,
}

impl Fetcher {
    pub(crate) fn new(kafka: &KafkaSection) -> KafkaResult<Self> {
        let client: BaseConsumer<LogContext> = offset_reader(data_config(kafka), kafka)
            .set("fetch.error.backoff.ms", "50")
            .set("queued.max.messages.kbytes", "16384")
            .create_with_context(LogContext::new(kafka))?;
        let (rests, first_patience) = (HashMap::new(), FIRST_PATIENCE);
        Ok(Self { client, place: None, kafka: kafka.clone(), rests, first_patience })
    }

    /// The same for who has nothing else to do.
    pub(crate) fn patient(mut self) -> Self {
        self.first_patience = MOST_PATIENCE;
        self
    }

    /// Whether a partition could not be read and is left alone.
    pub(crate) fn rests(&self, (topic, partition): (&str, i32)) -> bool {
        let rest = self.rests.get(&(topic.to_owned(), partition));
        rest.is_some_and(|rest| Instant::now() < rest.until)
    }

    /// Reads the records at `offsets`, which grow; none for one that is not there any more, or cannot be
    /// read. What was passed on before an error was read.
    pub(crate) fn read(
        &mut self,
        place: (&str, i32),
        offsets: impl IntoIterator<Item = i64>,
        stopped: impl Fn() -> bool,
        take: impl FnMut(i64, Option<&BorrowedMessage<'_>>),
    ) -> Result<(), FetchError> {
        if self.rests(place) {
            return Err(FetchError::Resting);
        }
        let key = (place.0.to_owned(), place.1);
        let patience = self.rests.get(&key).map_or(self.first_patience, |rest| rest.patience);
        let read = self.read_patiently(place, offsets, patience, stopped, take);
        match read {
            Ok(()) => {
                self.rests.remove(&key);
            }
            Err(FetchError::Stopped) => {}
            Err(_) => {
                let rest = Rest {
                    until: Instant::now() + patience,
                    patience: (patience * 2).min(MOST_PATIENCE),
                };
                self.rests.insert(key, rest);
            }
        }
        read
    }

    fn read_patiently(
        &mut self,
        (topic, partition): (&str, i32),
        offsets: impl IntoIterator<Item = i64>,
        patience: Duration,
        stopped: impl Fn() -> bool,
        mut take: impl FnMut(i64, Option<&BorrowedMessage<'_>>),
    ) -> Result<(), FetchError> {
        let mut wanted = offsets.into_iter().peekable();
        let (mut moved, mut looked) = (Instant::now(), Instant::now());
        let mut short_looks = 0;
        while let Some(&offset) = wanted.peek() {
            let next = self.seek(topic, partition, offset)?;
            rejoin(self.client.client());
            let mut went_back = false;
            let error = match self.client.poll(POLL) {
                Some(Ok(message)) if message.offset() >= next => {
                    (moved, looked) = (Instant::now(), Instant::now());
                    short_looks = 0;
                    let there = message.offset();
                    while let Some(gone) = wanted.next_if(|offset| *offset < there) {
                        take(gone, None);
                    }
                    if wanted.next_if_eq(&there).is_some() {
                        take(there, Some(&message));
                    }
                    self.place = Some((topic.to_owned(), partition, there + 1));
                    continue;
                }
                // The log does not reach so far: the client has gone to its beginning.
                Some(Ok(_)) => {
                    went_back = true;
                    None
                }
                Some(Err(error)) => Some(error),
                None => None,
            };
            if stopped() {
                return Err(FetchError::Stopped);
            }
            if let Some(error) = error.as_ref().filter(|error| is_unreadable(error))
                && let Some(range) = unreadable_at(&self.kafka, (topic, partition), next)?
            {
                let (first, last) = (range.start, range.end - 1);
                tracing::error!(
                    %error, topic, partition, first, last, "a record cannot be read, and is \
                    skipped"
                );
                while let Some(lost) = wanted.next_if(|offset| *offset < range.end) {
                    take(lost, None);
                }
                // Whatever comes next is sought.
                self.place = None;
                (moved, looked) = (Instant::now(), Instant::now());
                continue;
            }
            if went_back || looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.place = self.place.take().filter(|_| !went_back);
                let there = match self.bounds(topic, partition) {
                    Ok(there) => there,
                    // A broker that is slow to say may answer the fetch before.
                    Err(FetchError::Kafka(_)) if moved.elapsed() < patience => continue,
                    Err(error) => return Err(error),
                };
                short_looks += 1;
                let end_counts = went_back || short_looks >= SHORT_LOOKS;
                while let Some(gone) = wanted.next_if(|offset| is_gone(*offset, &there, end_counts))
                {
                    moved = Instant::now();
                    take(gone, None);
                }
            }
            if moved.elapsed() >= patience {
                return Err(error.map_or_else(
                    || FetchError::Late { topic: topic.to_owned(), partition, offset, patience },
                    FetchError::Kafka,
                ));
            }
        }
        Ok(())
    }

    /// The offsets that the partition has now. Everything that is wanted was there once: what is not
    /// among them was deleted, or the topic was made anew.
    fn bounds(&self, topic: &str, partition: i32) -> Result<Range<i64>, FetchError> {
        let metadata = self.client.fetch_metadata(Some(topic), ANSWER)?;
        let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
        let leader = partitions.into_iter().find(|one| one.id() == partition);
        if leader.is_none_or(|one| one.leader() < 0) {
            return Err(FetchError::NoLeader { topic: topic.to_owned(), partition });
        }
        let (start, end) = self.client.fetch_watermarks(topic, partition, ANSWER)?;
        Ok(start..end)
    }

    /// Goes to an offset, unless it comes soon; the offset that comes next.
    fn seek(&mut self, topic: &str, partition: i32, offset: i64) -> KafkaResult<i64> {
        if let Some((here, its_partition, next)) = &self.place
            && here == topic
            && *its_partition == partition
            && (*next..*next + MOST_SKIPPED).contains(&offset)
        {
            return Ok(*next);
        }
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        self.client.assign(&assignment)?;
        self.place = Some((topic.to_owned(), partition, offset));
        Ok(offset)
    }

    /// Stops fetching ahead what nobody may want.
    pub(crate) fn rest(&mut self) {
        if self.place.take().is_some() {
            let _ = self.client.unassign();
        }
    }
}

/// Whether an offset that was there once is not any more, by what the cluster tells of its partition.
fn is_gone(offset: i64, there: &Range<i64>, end_counts: bool) -> bool {
    offset < there.start || end_counts && offset >= there.end
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};

    use super::*;

    /// Offsets with their values.
    type Read = Vec<(i64, Option<i64>)>;

    struct Bench {
        cluster: MockCluster<'static, DefaultProducerContext>,
        producer: BaseProducer,
        fetcher: Fetcher,
    }

    impl Bench {
        fn new() -> Self {
            let cluster = MockCluster::new(1).unwrap();
            cluster.create_topic("topic", 2, 1).unwrap();
            let brokers = cluster.bootstrap_servers();
            let kafka = KafkaSection { brokers, ..KafkaSection::default() };
            let producer = data_config(&kafka).create().unwrap();
            let fetcher = Fetcher::new(&kafka).unwrap();
            Self { cluster, producer, fetcher }
        }

        fn produce(&self, partition: i32, values: i64) {
            for value in 0..values {
                let value = value.to_string();
                let record: BaseRecord<'_, str, _> = BaseRecord::to("topic");
                self.producer.send(record.partition(partition).payload(&value)).unwrap();
            }
            self.producer.flush(Duration::from_mins(1)).unwrap();
        }

        /// Offsets and values, none where there is none; and how it went.
        fn read(&mut self, partition: i32, offsets: &[i64]) -> (Read, Result<(), FetchError>) {
            let mut read = Vec::new();
            let deadline = Instant::now() + Duration::from_mins(1);
            let stopped = || Instant::now() > deadline;
            let place = ("topic", partition);
            let result =
                self.fetcher.read(place, offsets.iter().copied(), stopped, |at, record| {
                    let value = record.map(|record| {
                        std::str::from_utf8(record.payload().unwrap()).unwrap().parse().unwrap()
                    });
                    read.push((at, value));
                });
            (read, result)
        }
    }

    #[test]
    fn what_the_log_does_not_reach_is_not_there() {
        let mut bench = Bench::new();
        bench.produce(0, 10);
        let (read, result) = bench.read(0, &[2, 5, 5000, 5001]);
        result.unwrap();
        assert_eq!(read, [(2, Some(2)), (5, Some(5)), (5000, None), (5001, None)]);
        // It was made anew, and has fewer records than before.
        let (read, result) = bench.read(0, &[7000]);
        result.unwrap();
        assert_eq!(read, [(7000, None)]);
        assert_eq!(bench.read(0, &[9]).0, [(9, Some(9))]);
        // A log with nothing in it has nothing to begin with.
        let (read, result) = bench.read(1, &[3]);
        result.unwrap();
        assert_eq!(read, [(3, None)]);
    }

    #[test]
    fn an_end_that_is_told_once_takes_nothing_away() {
        let there = 3..7;
        assert!(is_gone(2, &there, false), "retention has it");
        assert!(!is_gone(3, &there, true) && !is_gone(6, &there, true));
        assert!(!is_gone(7, &there, false), "the end may be told short");
        assert!(is_gone(7, &there, true));
    }

    #[test]
    fn a_partition_without_a_leader_keeps_nobody_waiting_for_another() {
        let mut bench = Bench::new();
        bench.produce(0, 3);
        bench.produce(1, 3);
        bench.cluster.partition_leader("topic", 1, None).unwrap();
        let begun = Instant::now();
        let (read, result) = bench.read(1, &[0]);
        assert!(read.is_empty() && result.is_err(), "{read:?} {result:?}");
        assert!(begun.elapsed() < MOST_PATIENCE, "{:?}", begun.elapsed());
        let begun = Instant::now();
        let (_, result) = bench.read(1, &[0]);
        assert!(matches!(result, Err(FetchError::Resting)), "{result:?}");
        assert!(begun.elapsed() < POLL, "it is not tried at once again");
        let (read, result) = bench.read(0, &[0, 2]);
        result.unwrap();
        assert_eq!(read, [(0, Some(0)), (2, Some(2))]);
        // Once it has one again, it is read.
        bench.cluster.partition_leader("topic", 1, Some(1)).unwrap();
        let deadline = Instant::now() + Duration::from_mins(1);
        while bench.read(1, &[1]).0 != [(1, Some(1))] {
            assert!(Instant::now() < deadline);
            std::thread::sleep(POLL);
        }
    }
}
