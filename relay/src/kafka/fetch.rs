//! Records of a partition read again, by offset: the log is the store.

use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::KafkaSection;

use super::context::LogContext;
use super::ffi::rejoin;
use super::producer::client_config;
use super::unreadable::{is_unreadable, unreadable_at};

/// How long one look lasts.
const POLL: Duration = Duration::from_millis(100);
/// How long a record may take to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// So many records that nobody wants are read and left out rather than sought past.
const MOST_SKIPPED: i64 = 1000;

/// Why records were not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// librdkafka's word.
    #[error("{0}")]
    Kafka(#[from] KafkaError),
    /// Nothing came for a long time.
    #[error("offset {offset} of {topic} [{partition}] did not come within {PATIENCE:?}")]
    Late {
        /// Where.
        topic: String,
        /// Where.
        partition: i32,
        /// Which.
        offset: i64,
    },
    /// The relay stops.
    #[error("the relay stops")]
    Stopped,
}

/// Reads records by their offsets.
pub(super) struct Fetcher {
    client: BaseConsumer<LogContext>,
    /// Topic, partition and the offset that comes next.
    place: Option<(String, i32, i64)>,
    kafka: KafkaSection,
}

impl Fetcher {
    pub(super) fn new(kafka: &KafkaSection) -> KafkaResult<Self> {
        let client: BaseConsumer<LogContext> = client_config(kafka)
            // `assign` wants one, though nothing is committed under it.
            .set("group.id", format!("{}fetch", kafka.topic_prefix))
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("fetch.error.backoff.ms", "50")
            .set("queued.max.messages.kbytes", "16384")
            // Whoever seeks waits for the fetch that is under way, at the log's end too.
            .set("fetch.wait.max.ms", "10")
            .set_log_level(RDKafkaLogLevel::Warning)
            .create_with_context(LogContext::new(kafka))?;
        Ok(Self { client, place: None, kafka: kafka.clone() })
    }

    /// Reads the records at `offsets`, which grow; none for one that is not there any more, or cannot be
    /// read. What was passed on before an error was read.
    pub(super) fn read(
        &mut self,
        (topic, partition): (&str, i32),
        offsets: impl IntoIterator<Item = i64>,
        stopped: impl Fn() -> bool,
        mut take: impl FnMut(i64, Option<&BorrowedMessage<'_>>),
    ) -> Result<(), FetchError> {
        let mut wanted = offsets.into_iter().peekable();
        let mut moved = Instant::now();
        while let Some(&offset) = wanted.peek() {
            self.seek(topic, partition, offset)?;
            rejoin(self.client.client());
            let message = match self.client.poll(POLL) {
                Some(Ok(message)) => message,
                None | Some(Err(_)) if stopped() => return Err(FetchError::Stopped),
                Some(Err(error)) if is_unreadable(&error) => {
                    let next = self.place.as_ref().map_or(offset, |(_, _, next)| *next);
                    let place = (topic, partition);
                    let Some(range) = unreadable_at(&self.kafka, place, next)? else { continue };
                    let (first, last) = (range.start, range.end - 1);
                    tracing::error!(%error, topic, partition, first, last, "cannot be read: left out");
                    while let Some(lost) = wanted.next_if(|offset| *offset < range.end) {
                        take(lost, None);
                    }
                    // Whatever comes next is sought.
                    self.place = None;
                    moved = Instant::now();
                    continue;
                }
                None | Some(Err(_)) if moved.elapsed() < PATIENCE => continue,
                Some(Err(error)) => return Err(error.into()),
                None => {
                    return Err(FetchError::Late { topic: topic.to_owned(), partition, offset });
                }
            };
            moved = Instant::now();
            let there = message.offset();
            while let Some(gone) = wanted.next_if(|offset| *offset < there) {
                take(gone, None);
            }
            if wanted.next_if_eq(&there).is_some() {
                take(there, Some(&message));
            }
            self.place = Some((topic.to_owned(), partition, there + 1));
        }
        Ok(())
    }

    fn seek(&mut self, topic: &str, partition: i32, offset: i64) -> KafkaResult<()> {
        if let Some((here, its_partition, next)) = &self.place
            && here == topic
            && *its_partition == partition
            && (*next..*next + MOST_SKIPPED).contains(&offset)
        {
            return Ok(());
        }
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        self.client.assign(&assignment)?;
        self.place = Some((topic.to_owned(), partition, offset));
        Ok(())
    }

    /// Stops fetching ahead what nobody may want.
    pub(super) fn rest(&mut self) {
        if self.place.take().is_some() {
            let _ = self.client.unassign();
        }
    }
}
