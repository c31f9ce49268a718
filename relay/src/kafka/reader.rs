//! Reads a topic from its beginning, and on from there: for logs whose whole content counts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::KafkaSection;
use crate::kafka::client::client_config;
use crate::kafka::questions::{ask_again, described, is_unknown_topic, watermarks};

use super::catch_up::CatchUp;
use super::unreadable::{is_unreadable, unreadable_at};
use super::{LogContext, rejoin};

/// How long the cluster may take to describe the topic, and then to tell an end of it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is asked whether the topic has more partitions by now.
const LOOK: Duration = Duration::from_secs(10);
/// How long that may take; then it is asked the next time.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// Why a topic is not read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// librdkafka refuses.
    #[error("the Kafka client refuses its configuration: {0}; see kafka.properties")]
    Client(#[from] KafkaError),
    /// The cluster does not say what there is to read.
    #[error(
        "the cluster did not report the partitions of topic {topic} and their ends ({source}); is \
         a broker of kafka.brokers running, and does each partition of the topic have a leader?"
    )]
    Untold {
        /// Which topic.
        topic: String,
        /// librdkafka's last word.
        source: KafkaError,
    },
}

/// What is known of a topic before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It was made: a broker that does not know it will soon.
    Made,
    /// Perhaps nobody has made it.
    Nothing,
}

/// A reader of all partitions of a topic.
pub(crate) struct TopicReader {
    consumer: BaseConsumer<LogContext>,
    topic: String,
    partitions: usize,
    /// How far it is to be read until it counts as known. librdkafka tells an end too, but only when a
    /// fetch has waited half a second for more (`fetch.wait.max.ms`); that is needed where compaction
    /// has taken the last records away.
    catch_up: CatchUp,
    /// Who asks for the ends, until that is so. Not who reads: a broker answers a connection's requests in
    /// turn, and a fetch waits for records.
    looks: Option<BaseConsumer<LogContext>>,
    /// Of each partition, what is read next.
    next: BTreeMap<i32, i64>,
    /// Offsets that could not be read, since they were last asked for.
    unreadable: u64,
    kafka: KafkaSection,
    /// When it is asked for partitions that were added, if they are to be read.
    look_at: Option<Instant>,
}

impl TopicReader {
    /// One at the beginning of the topic, which has no partitions if nobody has made it. `name` tells
    /// it apart from other readers; nothing is committed.
    pub(crate) fn open(
        kafka: &KafkaSection,
        topic: String,
        name: &str,
        known: Known,
    ) -> Result<Self, OpenError> {
        let mut client = client_config(kafka);
        client
            .set("group.id", format!("{}{name}", kafka.topic_prefix))
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("fetch.error.backoff.ms", "50")
            .set("queued.max.messages.kbytes", "16384");
        let consumer: BaseConsumer<LogContext> =
            client.create_with_context(LogContext::new(kafka))?;
        let looks: BaseConsumer<LogContext> = client.create_with_context(LogContext::new(kafka))?;
        let untold = |source| OpenError::Untold { topic: topic.clone(), source };
        let partitions = partitions(&looks, &topic, known).map_err(untold)?;
        let mut told = BTreeMap::new();
        for partition in &partitions {
            let bounds = watermarks(looks.client(), &topic, *partition, TIMEOUT).map_err(untold)?;
            told.insert(*partition, bounds);
        }
        let next = told.iter().map(|(partition, (start, _))| (*partition, *start)).collect();
        let reader = Self {
            consumer,
            topic,
            partitions: partitions.len(),
            catch_up: CatchUp::new(told, Instant::now()),
            looks: Some(looks),
            next,
            unreadable: 0,
            kafka: kafka.clone(),
            look_at: None,
        };
        reader.assign()?;
        Ok(reader)
    }

    fn assign(&self) -> KafkaResult<()> {
        if self.next.is_empty() {
            return Ok(());
        }
        let mut all = TopicPartitionList::new();
        for (partition, next) in &self.next {
            all.add_partition_offset(&self.topic, *partition, Offset::Offset(*next))?;
        }
        self.consumer.assign(&all)
    }

    /// Reads partitions that are added while it reads, too.
    pub(crate) fn growing(mut self) -> Self {
        self.look_at = Some(Instant::now() + LOOK);
        self
    }

    /// Takes up partitions that were added.
    fn grow(&mut self) -> KafkaResult<()> {
        if self.look_at.is_none_or(|at| Instant::now() < at) {
            return Ok(());
        }
        self.look_at = Some(Instant::now() + LOOK);
        let Ok(there) = described(self.consumer.client(), &self.topic, LOOK_TIMEOUT) else {
            return Ok(());
        };
        if there.len() <= self.partitions {
            return Ok(());
        }
        for partition in &there {
            self.next.entry(*partition).or_default();
        }
        self.assign()?;
        tracing::info!(
            topic = self.topic,
            before = self.partitions,
            partitions = there.len(),
            "the topic has more partitions than before; the new ones are read from their beginning"
        );
        self.partitions = there.len();
        Ok(())
    }

    /// The name of the topic.
    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    /// How many partitions it has.
    pub(crate) fn partitions(&self) -> usize {
        self.partitions
    }

    /// How many of them may not be read as far as they went when it was opened.
    pub(crate) fn behind(&self) -> usize {
        self.catch_up.behind()
    }

    /// Asks for the ends again where they are reached; in which time that is to be done, if it is. After
    /// an error it is still to be done.
    fn confirm(&mut self) -> KafkaResult<Option<Duration>> {
        let due = self.catch_up.looks_in(Instant::now());
        if let Some(looks) = self.looks.as_ref().filter(|_| due == Some(Duration::ZERO)) {
            rejoin(looks.client());
            let mut told = Vec::new();
            for partition in self.next.keys() {
                let (_, end) = watermarks(looks.client(), &self.topic, *partition, LOOK_TIMEOUT)?;
                told.push((*partition, end));
            }
            self.catch_up.look(told, &self.next, Instant::now());
        }
        if self.catch_up.behind() == 0 {
            self.looks = None;
        }
        Ok(self.catch_up.looks_in(Instant::now()))
    }

    /// How many offsets could not be read since this was asked last.
    pub(crate) fn take_unreadable(&mut self) -> u64 {
        std::mem::take(&mut self.unreadable)
    }

    /// Goes past what cannot be read; which partition it is about, librdkafka does not say.
    fn pass_unreadable(&mut self, error: &KafkaError) -> KafkaResult<()> {
        for (partition, next) in &mut self.next {
            let place = (&*self.topic, *partition);
            let Some(range) = unreadable_at(&self.kafka, place, *next)? else { continue };
            let (first, last) = (range.start, range.end - 1);
            let topic = &self.topic;
            tracing::error!(
                %error, topic, partition, first, last, "a record cannot be read, and is skipped"
            );
            self.unreadable += u64::try_from(range.end - range.start).unwrap_or_default();
            *next = range.end;
            self.catch_up.read_to(*partition, range.end);
        }
        self.assign()
    }

    /// Passes on what has come, at most so many records, and waits for something if nothing has.
    /// False: there was nothing. After an error it may be called again.
    pub(crate) fn read(
        &mut self,
        patience: Duration,
        most: usize,
        mut each: impl FnMut(&BorrowedMessage<'_>),
    ) -> KafkaResult<bool> {
        let mut patience = self.confirm()?.map_or(patience, |left| patience.min(left));
        self.grow()?;
        rejoin(self.consumer.client());
        for round in 0..most {
            match self.consumer.poll(patience) {
                None => return Ok(round > 0),
                Some(Ok(record)) => {
                    each(&record);
                    let (partition, next) = (record.partition(), record.offset() + 1);
                    self.next.insert(partition, next);
                    self.catch_up.read_to(partition, next);
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.catch_up.ended(partition);
                }
                Some(Err(error)) if is_unreadable(&error) => {
                    self.pass_unreadable(&error)?;
                    return Ok(true);
                }
                // The group has no part in it: it is only what `assign` wants.
                Some(Err(error)) if is_group_refused(&error) => return Ok(round > 0),
                Some(Err(error)) => return Err(error),
            }
            patience = Duration::ZERO;
        }
        Ok(true)
    }
}

fn is_group_refused(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed)
}

fn partitions(
    consumer: &BaseConsumer<LogContext>,
    topic: &str,
    known: Known,
) -> KafkaResult<Vec<i32>> {
    ask_again(TIMEOUT, |left| match described(consumer.client(), topic, left) {
        Err(error) if known == Known::Nothing && is_unknown_topic(&error) => Ok(Vec::new()),
        answer => answer,
    })
}
