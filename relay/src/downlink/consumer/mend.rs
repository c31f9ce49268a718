//! The place where the downlink is read: found at the start, and found anew when the log is not what it
//! was. What [`place`] says of it is done and told.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use crate::downlink::consumer::{
    ANSWER, Consumer, ConsumerError, ConsumerStats, Context, START_TIMEOUT,
};
use crate::downlink::place::{self, Break, Found, Place};
use crate::kafka::ffi::rejoin;
use crate::kafka::log_watch::LogWatch;
use crate::kafka::questions::{PAUSE, watermarks};
use crate::model::ReplyOffset;
use crate::ring::DownlinkSender;
use crate::undelivered::deadletter::Reason;
use crate::undelivered::intake::Intake;
use crate::undelivered::note;

/// Where a run begins.
pub(super) struct Beginning {
    pub(super) start: i64,
    /// See [`Consumer`].
    pub(super) doubt: Option<i64>,
    pub(super) watch: LogWatch,
}

/// Finds it, from what is committed with the note beside it. Blocks.
pub(super) fn begin(
    consumer: &BaseConsumer<Context>,
    (topic, partition): (&str, i32),
    committed: Option<(i64, String)>,
    intake: &Intake,
    stats: &ConsumerStats,
) -> Result<Beginning, ConsumerError> {
    let (oldest, end) = watermarks(consumer.client(), topic, partition, START_TIMEOUT)
        .map_err(|source| ConsumerError::Oldest { topic: topic.to_owned(), partition, source })?;
    let watch = LogWatch::open(consumer.client(), topic);
    let read = committed.as_ref().map(|(offset, _)| *offset);
    let note = committed.map(|(_, note)| note).unwrap_or_default();
    let told = note::parse(&note, read.unwrap_or_default()).unwrap_or_else(|| {
        tracing::warn!(note, "the note beside the downlink's offset was not written by a relay");
        note::Told::default()
    });
    let log_read = told.log.map(str::to_owned);
    let log = watch.id().map(str::to_owned);
    let found = Found { read, log_read, log, oldest, end };
    let mut place = found.place();
    let mut doubt = None;
    if let (Some(read), Some((Break::TailLost, _))) = (read, place.wrong) {
        // Some brokers tell an end that is a little short. One that has no such offset says so.
        place = Place { start: read, wrong: None };
        doubt = Some(end);
    }
    if !matches!(place.wrong, Some((Break::MadeAnew, _))) {
        take_note(told.runs.into_iter().flatten(), end, intake, stats);
    }
    place::tell(place, &found, topic, partition);
    stats.count(place);
    let start = place.start;
    stats.start.store(start, Ordering::Relaxed);
    Ok(Beginning { start, doubt, watch })
}

impl Consumer {
    /// Finds the place to read on, as soon as nothing is on its way that the former log had: the
    /// offsets of another one may be the same.
    pub(super) fn mend(&mut self) {
        self.intake.collect(&self.downlinks);
        if self.settled() != self.position || !self.intake.is_clear() {
            std::thread::sleep(PAUSE);
            return;
        }
        if let Err(error) = self.try_mend() {
            tracing::warn!(
                %error, "the cluster did not report where the downlink can be read on; retrying"
            );
            std::thread::sleep(PAUSE);
        }
    }

    fn try_mend(&mut self) -> KafkaResult<()> {
        rejoin(self.client.client());
        // The client's errors are told only to who polls.
        drop(self.client.poll(Duration::ZERO));
        let (client, partition) = (self.client.client(), i32::from(self.relay.0));
        let (oldest, end) = watermarks(client, &self.topic, partition, ANSWER)?;
        let log = self.watch.ask(client, ANSWER);
        let log_read = self.watch.id().map(str::to_owned);
        if log.is_none() && log_read.is_some() {
            return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopic));
        }
        let end = self.doubt.map_or(end, |seen| seen.min(end));
        let read = Some(self.position.0);
        let found = Found { read, log_read, log, oldest, end };
        let place = found.place();
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&self.topic, partition, Offset::Offset(place.start))?;
        self.client.assign(&assignment)?;
        place::tell(place, &found, &self.topic, partition);
        self.stats.count(place);
        let before = u64::try_from(self.position.0 - self.start.0).unwrap_or_default();
        self.stats.carried.fetch_add(before, Ordering::Relaxed);
        self.stats.start.store(place.start, Ordering::Relaxed);
        self.stats.position.store(place.start, Ordering::Relaxed);
        self.watch.follow(found.log);
        (self.start, self.position) = (ReplyOffset(place.start), ReplyOffset(place.start));
        self.handed_over.fill(None);
        self.downlinks.iter().for_each(DownlinkSender::begin_anew);
        (self.committed, self.doubt, self.is_broken) = (None, None, false);
        Ok(())
    }
}

impl ConsumerStats {
    fn count(&self, place: Place) {
        if let Some((what, records)) = place.wrong {
            self.breaks[what as usize].fetch_add(records, Ordering::Relaxed);
        }
    }
}

/// Whether the place that should be read is not there.
pub(super) fn is_out_of_range(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(error.rdkafka_error_code(), Some(Code::AutoOffsetReset | Code::OffsetOutOfRange))
}

/// What the former run had postponed is nobody's now.
fn take_note(offsets: impl Iterator<Item = i64>, end: i64, intake: &Intake, stats: &ConsumerStats) {
    let (mut count, mut lost) = (0, 0_u64);
    for offset in offsets {
        if offset < end {
            intake.hand_in(ReplyOffset(offset), Reason::FormerRun);
            count += 1;
        } else {
            lost += 1;
        }
    }
    if lost > 0 {
        tracing::error!(
            lost,
            end,
            "replies that waited for their clients are no longer in the log"
        );
    }
    stats.carried.store(count, Ordering::Relaxed);
    stats.received.store(count, Ordering::Relaxed);
    stats.former_run.store(count, Ordering::Relaxed);
}
