//! The rest of a partition that nobody will read, moved to the dead letters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Offset, TopicPartitionList};

use crate::config::Config;
use crate::kafka::fetch::{FetchError, Fetcher};
use crate::kafka::position::{committed, observer};
use crate::kafka::questions::watermarks;
use crate::model::{Incarnation, Partition, RelayId};
use crate::undelivered::deadletter::{Letter, Reason, Sender};
use crate::undelivered::outbox::Outbox;

/// How long the cluster may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// A letter is written anew so often if it is refused for its time, or for its length.
const MOST_ROUNDS: u32 = 3;

/// Why the rest of a partition was not moved.
#[derive(Debug, thiserror::Error)]
pub enum BuryError {
    /// librdkafka's word.
    #[error("partition {partition} of a gone server was not moved to the dead letters: {source}")]
    Kafka {
        /// Which partition.
        partition: Partition,
        /// Why.
        source: KafkaError,
    },
    /// It was not read to its end.
    #[error("partition {partition} of a gone server was not moved to the dead letters: {problem}")]
    Unread {
        /// Which partition.
        partition: Partition,
        /// Why.
        problem: String,
    },
}

/// A letter's offset, and whether it is to be cut.
type Job = (i64, bool);

/// Writes records that nobody will read to the dead letters.
#[derive(Clone, Debug)]
pub struct Undertaker {
    config: Config,
    incarnation: Incarnation,
    batch_bytes: Option<u32>,
}

impl Undertaker {
    /// One of this run of the relay. `batch_bytes`: the longest batch that the topic of dead letters
    /// takes, if that is known.
    pub fn new(config: &Config, incarnation: Incarnation, batch_bytes: Option<u32>) -> Self {
        Self { config: config.clone(), incarnation, batch_bytes }
    }

    /// Writes what the partition's group has not committed to the dead letters, then commits the
    /// partition's end, which frees it. `may_commit` is asked right before that. Returns the number of
    /// records. Blocks. After an error or a kill it may be called again, and writes again what was not
    /// committed.
    pub fn bury(
        &self,
        partition: Partition,
        stop: &AtomicBool,
        may_commit: impl FnOnce() -> bool,
    ) -> Result<u64, BuryError> {
        let failed = |source| BuryError::Kafka { partition, source };
        let unread = |problem: String| BuryError::Unread { partition, problem };
        let kafka = &self.config.kafka;
        let topic = kafka.uplink_topic();
        let place = (&*topic, i32::from(partition.0));
        let group = observer(kafka, &kafka.server_group(partition)).map_err(failed)?;
        let (oldest, end) =
            watermarks(group.client(), place.0, place.1, TIMEOUT).map_err(failed)?;
        let committed = committed(&group, place.0, place.1, TIMEOUT).map_err(failed)?;
        let start = committed.map_or(oldest, |committed| committed.max(oldest));
        let buried = self
            .write_letters(place, start..end, |_| true, stop)
            .map_err(|error| unread(error.to_string()))?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(place.0, place.1, Offset::Offset(end)).map_err(failed)?;
        if !may_commit() {
            return Err(unread("the partition may have a holder by now".to_owned()));
        }
        group.commit(&list, CommitMode::Sync).map_err(failed)?;
        Ok(buried)
    }

    /// Writes those of the records at `offsets` to the dead letters that are `wanted`. Returns their
    /// number.
    pub(crate) fn write_letters(
        &self,
        place: (&str, i32),
        offsets: std::ops::Range<i64>,
        wanted: impl Fn(&BorrowedMessage<'_>) -> bool,
        stop: &AtomicBool,
    ) -> Result<u64, FetchError> {
        let sender = Sender::new(RelayId(self.config.relay.id), self.incarnation);
        let topic = self.config.kafka.deadletter_topic();
        let mut fetcher = Fetcher::new(&self.config.kafka)?.patient();
        let outbox = Outbox::<Job>::new(&self.config, self.batch_bytes, Arc::default())?;
        let mut todo: Vec<Job> = offsets.map(|offset| (offset, false)).collect();
        let (mut buried, mut rounds) = (0, 0);
        while !todo.is_empty() {
            rounds += 1;
            let mut out = 0;
            let mut jobs = todo.iter();
            let stopped = || stop.load(Ordering::SeqCst);
            fetcher.read(place, todo.iter().map(|(offset, _)| *offset), stopped, |_, record| {
                let (offset, cut) = *jobs.next().expect("one for each offset");
                // Not there: deleted by retention while it was read.
                if let Some(record) = record.filter(|record| wanted(record))
                    && outbox.wait_room(stop)
                {
                    let letter = Letter::of_record(record, Reason::ServerGone, &sender);
                    let letter = if cut { letter.cut() } else { letter };
                    outbox.send(letter.record(&topic, Box::new((offset, cut))));
                    out += 1;
                }
            })?;
            todo.clear();
            let deadline = Instant::now() + TIMEOUT;
            while out > 0 {
                if stopped() {
                    return Err(FetchError::Stopped);
                }
                for (job, outcome) in outbox.outcomes(POLL) {
                    out -= 1;
                    match outcome {
                        Ok(()) => buried += 1,
                        Err(RDKafkaErrorCode::MessageSizeTooLarge) if !job.1 => {
                            todo.push((job.0, true));
                        }
                        // Without a time, then.
                        Err(
                            RDKafkaErrorCode::InvalidTimestamp
                            | RDKafkaErrorCode::InvalidRecord
                            | RDKafkaErrorCode::InvalidDifferentRecord,
                        ) if rounds < MOST_ROUNDS => todo.push(job),
                        Err(code) => return Err(KafkaError::MessageProduction(code).into()),
                    }
                }
                if Instant::now() > deadline {
                    let code = RDKafkaErrorCode::OperationTimedOut;
                    return Err(KafkaError::MessageProduction(code).into());
                }
            }
            todo.sort_unstable();
        }
        Ok(buried)
    }
}
