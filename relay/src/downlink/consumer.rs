//! The consumer's thread: replies from the relay's downlink partition to the workers.

mod mend;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::{Config, KafkaSection};
use crate::downlink::place::Break;
use crate::kafka::client::data_config;
use crate::kafka::context::{LogContext, logs_as_ours};
use crate::kafka::ffi::{self, add_headers, rejoin};
use crate::kafka::inspect::command;
use crate::kafka::log_watch::LogWatch;
use crate::kafka::position::{committed_with_note, is_late};
use crate::kafka::questions::{PAUSE, ask_again};
use crate::kafka::retention::Retention;
use crate::kafka::unreadable::{is_unreadable, unreadable_at};
use crate::model::{
    ConnectionKey, HeaderList, Incarnation, RelayId, Reply, ReplyOffset, ReplyOrigin,
    split_reply_key,
};
use crate::ring::{Command, DownlinkBatch, DownlinkSender, Receipt, Wake};
use crate::stop::{StopPart, StopTime};
use crate::undelivered::deadletter::Reason;
use crate::undelivered::intake::Intake;
use crate::undelivered::note;

use mend::{Beginning, begin, is_out_of_range};

/// How long a look for replies lasts; so often the thread sees that it should stop.
const POLL: Duration = Duration::from_millis(100);
/// Most records of a round, so that commits go on under load.
const ROUND_RECORDS: usize = 10_000;
/// How long the cluster may take to tell the committed offset, and then the oldest; a new one has to
/// make its topic of offsets first.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to say what is committed, once.
const ANSWER: Duration = Duration::from_secs(2);
/// Commits are no more frequent than this.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// What the consumer counts. Written by its thread only.
#[derive(Debug, Default)]
pub struct ConsumerStats {
    /// Replies read.
    pub received: AtomicU64,
    /// Replies whose key is no connection key.
    pub malformed_key: AtomicU64,
    /// Replies to another relay.
    pub other_relay: AtomicU64,
    /// Replies to an earlier run of this relay.
    pub former_run: AtomicU64,
    /// Replies that cannot be read.
    pub unreadable: AtomicU64,
    /// Orders to close a connection, without a payload, that are for nobody here.
    pub orders: AtomicU64,
    /// The offset at which this run began to read, or went on after a break of the log.
    pub start: AtomicI64,
    /// Replies before it that the former run had postponed; and after a break, those that were read
    /// before.
    pub carried: AtomicU64,
    /// Offsets that were passed and are no replies: marks of transactions, and what was aborted.
    pub marks: AtomicU64,
    /// Behind the last offset that was read.
    pub position: AtomicI64,
    /// Records that breaks of the log are about.
    pub breaks: [AtomicU64; Break::ALL.len()],
    /// Errors reported by the cluster.
    pub errors: AtomicU64,
    /// Times that it waited because a worker had all the batches that there are for it.
    pub ring_full: AtomicU64,
}

/// Why there is no consumer.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// librdkafka refuses.
    #[error("the Kafka client refuses its configuration: {0}; see kafka.properties")]
    Client(#[from] KafkaError),
    /// The cluster does not tell where the last run has stopped reading.
    #[error(
        "the cluster did not report the committed offset of consumer group {group} ({source}); \
         the relay needs the right READ on group {group}, and the brokers' logs may say more"
    )]
    Offset {
        /// The relay's group.
        group: String,
        /// librdkafka's word.
        source: KafkaError,
    },
    /// The cluster does not tell where the relay's partition begins.
    #[error(
        "the cluster did not report the oldest offset of {topic} [{partition}] ({source}); does \
         the partition have a leader?"
    )]
    Oldest {
        /// The downlink.
        topic: String,
        /// The relay's.
        partition: i32,
        /// librdkafka's word.
        source: KafkaError,
    },
}

struct Context {
    log: LogContext,
    group: String,
    /// A commit that was under way has failed.
    commit_failed: AtomicBool,
    /// Because the cluster allows no note, or a shorter one.
    note_refused: AtomicBool,
}

logs_as_ours!(Context);

impl ConsumerContext for Context {
    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            let group = &*self.group;
            tracing::warn!(
                %error, group, "the downlink's offset was not committed; the relay will retry (it \
                needs the right READ on the group)"
            );
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OffsetMetadataTooLarge) {
                self.note_refused.store(true, Ordering::Relaxed);
            }
            self.commit_failed.store(true, Ordering::Relaxed);
        }
    }
}

/// Waits until the worker gives a batch back, and takes what the workers have to say meanwhile: one that
/// has said as much as there is room for takes no batch. None only when the relay stops.
fn empty_batch(
    downlinks: &[DownlinkSender],
    worker: usize,
    intake: &Intake,
    wake: &Wake,
    (stop, full): (&AtomicBool, &AtomicU64),
) -> Option<Box<DownlinkBatch>> {
    let downlink = &downlinks[worker];
    let mut counted = false;
    loop {
        let mut batch = downlink.take_empty();
        if batch.is_none() && !std::mem::replace(&mut counted, true) {
            full.fetch_add(1, Ordering::Relaxed);
        }
        if batch.is_none() && !stop.load(Ordering::SeqCst) {
            intake.collect(downlinks);
            wake.announce_sleep();
            batch = downlink.take_empty();
            if batch.is_none() {
                wake.wait(POLL);
            }
            wake.awake();
        }
        if batch.is_some() || stop.load(Ordering::SeqCst) {
            return batch;
        }
    }
}

/// Reads the downlink and hands replies to the workers.
pub struct Consumer {
    /// Before the client, which its question is one of.
    watch: LogWatch,
    client: BaseConsumer<Context>,
    kafka: KafkaSection,
    topic: String,
    relay: RelayId,
    incarnation: Incarnation,
    downlinks: Vec<DownlinkSender>,
    /// The batch being filled for each worker.
    open: Vec<Option<Box<DownlinkBatch>>>,
    /// For each worker, the last offset handed over to it.
    handed_over: Vec<Option<ReplyOffset>>,
    /// Behind the last offset read and handed over.
    position: ReplyOffset,
    /// Where this run began.
    start: ReplyOffset,
    /// With the note beside it, unless it failed.
    committed: Option<(ReplyOffset, String)>,
    most_note_bytes: usize,
    last_commit: Instant,
    /// When a commit was last asked for, and how soon it is again though nothing has changed.
    asked: Instant,
    renewal: Duration,
    /// The log is not what it was, or does not go as far; nothing is read before a new place is found.
    is_broken: bool,
    /// The end of the log when this run began, if it was before the committed offset. What comes there
    /// decides whether that is so.
    doubt: Option<i64>,
    stats: Arc<ConsumerStats>,
    intake: Arc<Intake>,
    wake: Wake,
    stop_time: StopTime,
    /// Of the record being read.
    headers: HeaderList,
}

impl Consumer {
    /// A consumer at the committed offset of the relay's partition, or at its beginning. The offset
    /// is asked for here and waited for: left to librdkafka (`Offset::Stored`) it would be looked up
    /// while clients are served already, and a broker that hangs in that moment would keep their
    /// replies back for minutes.
    ///
    /// What `kafka::place` says of an offset that is missing, or of another log, is done and told.
    pub fn new(
        config: &Config,
        incarnation: Incarnation,
        downlinks: Vec<DownlinkSender>,
        stats: Arc<ConsumerStats>,
        intake: Arc<Intake>,
        wake: Wake,
        stop_time: StopTime,
    ) -> Result<Self, ConsumerError> {
        let relay = RelayId(config.relay.id);
        let topic = config.kafka.downlink_topic();
        let group = config.kafka.relay_group(relay.0);
        let mut client = data_config(&config.kafka);
        client
            .set("group.id", &group)
            .set("enable.auto.commit", "false")
            // Where to read on is not librdkafka's to choose.
            .set("auto.offset.reset", "error")
            .set("fetch.error.backoff.ms", "50")
            // While a broker is away librdkafka (2.12.1) connects to it anew without any pause, thousands of
            // times a second, as long as a question like the watch's waits for it: each failure has the
            // question look for its broker again, and that orders the next connection at once. It does so
            // only where connections are made on demand.
            .set("enable.sparse.connections", "false")
            // Replies are small and many; librdkafka's default holds up to 64 MiB of them.
            .set("queued.max.messages.kbytes", "16384");
        let consumer: BaseConsumer<Context> = client.create_with_context(Context {
            log: LogContext::new(&config.kafka),
            group: group.clone(),
            commit_failed: AtomicBool::new(false),
            note_refused: AtomicBool::new(false),
        })?;
        let partition = i32::from(relay.0);
        let committed = ask_again(START_TIMEOUT, |left| {
            // In parts: a refusal is told only when one of them is over.
            let deadline = Instant::now() + left;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let told = committed_with_note(&consumer, &topic, partition, left.min(ANSWER));
                match told {
                    Err(error) if is_late(&error) && left > ANSWER => {}
                    told => return told,
                }
            }
        })
        .map_err(|source| ConsumerError::Offset { group, source })?;
        let found = begin(&consumer, (&topic, partition), committed, &intake, &stats)?;
        let Beginning { start, doubt, watch } = found;
        stats.position.store(start, Ordering::Relaxed);
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&topic, i32::from(relay.0), Offset::Offset(start))?;
        consumer.assign(&assignment)?;
        let open = downlinks.iter().map(|_| None).collect();
        let handed_over = vec![None; downlinks.len()];
        Ok(Self {
            client: consumer,
            kafka: config.kafka.clone(),
            topic,
            relay,
            incarnation,
            downlinks,
            open,
            handed_over,
            position: ReplyOffset(start),
            start: ReplyOffset(start),
            committed: None,
            most_note_bytes: note::MOST_BYTES,
            last_commit: Instant::now(),
            asked: Instant::now(),
            renewal: Retention::default().renewal(),
            watch,
            is_broken: false,
            doubt,
            stats,
            intake,
            wake,
            stop_time,
            headers: HeaderList::default(),
        })
    }

    /// Commits anew before such a time is over.
    #[must_use]
    pub fn renewing(mut self, retention: Retention) -> Self {
        self.renewal = retention.renewal();
        self
    }

    /// Runs until `stop`, then waits until what was handed in is kept, and commits what is settled.
    /// `stop` is set when the workers have ended; what they have not taken is read again by the next
    /// run.
    pub fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            if self.last_commit.elapsed() >= COMMIT_INTERVAL {
                self.commit();
            }
            self.is_broken |= self.watch.has_changed(self.client.client());
            if self.is_broken {
                self.mend();
                continue;
            }
            if self.intake.is_full() {
                // The log has what comes meanwhile.
                self.intake.wait_done(POLL);
                continue;
            }
            self.read_round(stop);
        }
        self.intake.collect(&self.downlinks);
        self.intake.abandon_rest();
        if !self.intake.wait_done(self.stop_time.left_of(StopPart::Connections)) {
            tracing::warn!("replies could not be kept in time; the next run handles them");
        }
        self.commit_last();
        // Closing it would wait for answers, however long the cluster is away. It is in no group that it
        // would have to leave, and the process ends now.
        std::mem::forget(self.client);
    }

    /// Commits, and asks until the cluster says that it has it, as long as a stop may take: librdkafka
    /// would wait for a cluster that is away for as long as a session of a group lasts.
    fn commit_last(&mut self) {
        let deadline = Instant::now() + self.stop_time.left_of(StopPart::Rest);
        loop {
            let (wanted, partition) = (self.commit().0, i32::from(self.relay.0));
            if wanted == 0 {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let (client, topic) = (&self.client, &self.topic);
            let told = committed_with_note(client, topic, partition, left.min(ANSWER));
            let note = self.committed.as_ref().map(|(_, note)| note);
            if matches!(told, Ok(Some((at, beside))) if at >= wanted && Some(&beside) == note) {
                return;
            }
            if Instant::now() >= deadline {
                return tracing::warn!(
                    "the downlink's offset was not committed: replies will be sent again"
                );
            }
            self.committed = None;
            std::thread::sleep(PAUSE);
        }
    }

    fn read_round(&mut self, stop: &AtomicBool) {
        rejoin(self.client.client());
        let mut timeout = POLL;
        let (mut end, mut unreadable) = (None, None);
        for _ in 0..ROUND_RECORDS {
            // The message borrows the consumer; its parts are copied before the next step.
            let message = match self.client.poll(timeout) {
                None => break,
                Some(Ok(message)) => message,
                Some(Err(error)) if is_out_of_range(&error) => {
                    tracing::warn!(%error, "the position in the downlink does not exist any more");
                    self.is_broken = true;
                    break;
                }
                Some(Err(error)) => {
                    self.stats.errors.fetch_add(1, Ordering::Relaxed);
                    if is_unreadable(&error) {
                        unreadable = Some(error);
                    } else {
                        tracing::warn!(%error, "the downlink cannot be read; retrying");
                    }
                    break;
                }
            };
            timeout = Duration::ZERO;
            self.doubt = None;
            let next = message.offset() + 1;
            let skipped = message.offset() - end.unwrap_or(self.position.0);
            self.stats
                .marks
                .fetch_add(u64::try_from(skipped).unwrap_or_default(), Ordering::Relaxed);
            self.headers.clear();
            add_headers(&message, &mut self.headers);
            let command = command(&message, self.headers.headers());
            self.stats.received.fetch_add(1, Ordering::Relaxed);
            match self.addressee(&message) {
                Ok(key) => {
                    let worker = usize::from(key.worker);
                    if self.open[worker].is_none() {
                        let (downlinks, intake) = (&self.downlinks, &self.intake);
                        let full = (stop, &self.stats.ring_full);
                        let batch = empty_batch(downlinks, worker, intake, &self.wake, full);
                        let Some(mut batch) = batch else { return };
                        batch.begin(Instant::now());
                        self.open[worker] = Some(batch);
                    }
                    let batch = self.open[worker].as_mut().expect("just filled");
                    let receipt = Receipt::Offset(ReplyOffset(message.offset()));
                    let reply = Reply {
                        origin: ReplyOrigin { relay: self.relay, offset: message.offset() },
                        headers: self.headers.headers(),
                        payload: message.payload().unwrap_or_default(),
                        waited: Duration::ZERO,
                        held: false,
                    };
                    batch.push(key, command, receipt, reply);
                    if batch.is_full() {
                        drop(message);
                        end = Some(next);
                        break;
                    }
                }
                // An order has nothing to be kept.
                Err(_) if command == Command::Close => {
                    self.stats.orders.fetch_add(1, Ordering::Relaxed);
                }
                Err((counter, reason)) => {
                    counter.fetch_add(1, Ordering::Relaxed);
                    self.intake.hand_in(ReplyOffset(message.offset()), reason);
                }
            }
            end = Some(next);
        }
        if let Some(end) = end {
            self.finish_round(end);
        }
        if let Some(error) = unreadable
            && let Err(problem) = self.pass_unreadable(&error)
        {
            tracing::warn!(
                %error, %problem, "replies cannot be read; the relay tries to skip them"
            );
        }
    }

    /// Goes past replies that cannot be read: each becomes a dead letter that tells its place.
    fn pass_unreadable(&mut self, error: &KafkaError) -> KafkaResult<()> {
        let place = (&*self.topic, i32::from(self.relay.0));
        let Some(range) = unreadable_at(&self.kafka, place, self.position.0)? else {
            return Ok(());
        };
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(place.0, place.1, Offset::Offset(range.end))?;
        self.client.assign(&assignment)?;
        let (first, last) = (range.start, range.end - 1);
        tracing::error!(
            %error, first, last, "replies cannot be read; they become dead letters without content"
        );
        for offset in range.clone() {
            self.stats.received.fetch_add(1, Ordering::Relaxed);
            self.stats.unreadable.fetch_add(1, Ordering::Relaxed);
            self.intake.hand_in(ReplyOffset(offset), Reason::Unreadable);
        }
        self.position = ReplyOffset(range.end);
        Ok(())
    }

    /// Whom a reply is for, or why it is for nobody here, and the counter of those.
    fn addressee(
        &self,
        message: &BorrowedMessage<'_>,
    ) -> Result<ConnectionKey, (&AtomicU64, Reason)> {
        let malformed = (&self.stats.malformed_key, Reason::MalformedKey);
        let (key, _) = split_reply_key(message.key().unwrap_or_default()).map_err(|_| malformed)?;
        if key.relay != self.relay {
            return Err((&self.stats.other_relay, Reason::OtherRelay));
        }
        if key.incarnation != self.incarnation {
            return Err((&self.stats.former_run, Reason::FormerRun));
        }
        if usize::from(key.worker) >= self.downlinks.len() {
            return Err(malformed);
        }
        Ok(key)
    }

    fn finish_round(&mut self, end: i64) {
        // Before the workers have them, who may ask.
        self.intake.arrivals.read_to(end, Instant::now());
        let workers = self.open.iter_mut().zip(&self.downlinks).zip(&mut self.handed_over);
        for ((batch, downlink), handed_over) in workers {
            if let Some(batch) = batch.take() {
                *handed_over = batch.offsets().map(|(_, last)| last);
                downlink.hand_over(batch);
            }
        }
        self.position = ReplyOffset(end);
        self.stats.position.store(end, Ordering::Release);
    }

    /// The offset below which every reply is settled.
    fn settled(&self) -> ReplyOffset {
        let unsettled =
            self.downlinks.iter().zip(&self.handed_over).filter_map(|(downlink, last)| {
                let settled = downlink.settled();
                last.is_some_and(|last| settled <= last).then_some(settled)
            });
        unsettled.fold(self.position, ReplyOffset::min)
    }

    /// Asks for a commit of what is settled, unless that was asked for lately and not refused. What
    /// is to be committed.
    fn commit(&mut self) -> ReplyOffset {
        self.last_commit = Instant::now();
        if self.is_broken {
            // It counts in a log that is not there. What there is begins with the next place.
            return ReplyOffset(0);
        }
        // In this order: what a worker has settled by returning it is at the intake then.
        let settled = self.settled();
        self.intake.collect(&self.downlinks);
        if self.client.context().commit_failed.swap(false, Ordering::Relaxed) {
            self.committed = None;
        }
        if self.client.context().note_refused.swap(false, Ordering::Relaxed) {
            self.most_note_bytes /= 2;
        }
        let most = self.most_note_bytes;
        let (end, note) = self.intake.to_commit(self.watch.id(), self.start, settled, most);
        let is_same = |(at, beside): &(ReplyOffset, String)| (*at, beside) == (end, &note);
        if self.committed.as_ref().is_some_and(is_same) && self.asked.elapsed() < self.renewal {
            return end;
        }
        let mut offsets = TopicPartitionList::new();
        let result = offsets
            .add_partition_offset(&self.topic, i32::from(self.relay.0), Offset::Offset(end.0))
            .and_then(|()| {
                offsets.elements()[0].set_metadata(&note);
                ffi::commit(&self.client, &offsets)
            });
        match result {
            Ok(()) => (self.committed, self.asked) = (Some((end, note)), Instant::now()),
            Err(error) => {
                tracing::warn!(
                    %error, "the downlink's offset was not committed; the relay will retry"
                );
            }
        }
        end
    }
}
