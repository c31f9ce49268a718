//! Replies that were postponed, read again and given to those who have read on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::error::KafkaResult;
use rdkafka::message::{BorrowedMessage, Message as _};

use crate::config::Config;
use crate::kafka::fetch::{FetchError, Fetcher};
use crate::kafka::ffi::add_headers;
use crate::kafka::inspect::command;
use crate::model::{ConnectionKey, HeaderList, RelayId, Reply, ReplyOrigin, split_reply_key};
use crate::ring::{Command, DownlinkBatch, DownlinkSender, Receipt};
use crate::undelivered::backlog::Next;
use crate::undelivered::clientele::Clientele;
use crate::undelivered::intake::Intake;
use crate::undelivered::stats::KeeperStats;

/// How long to wait for a worker to give a batch back.
const PAUSE: Duration = Duration::from_millis(1);

/// Reads the downlink again.
pub(crate) struct Postponed {
    downlink: (String, i32),
    relay: RelayId,
    /// What a connection gets at a time.
    most_bytes: usize,
    fetcher: Fetcher,
    downlinks: Vec<DownlinkSender>,
    /// The batch being filled for each worker.
    open: Vec<Option<Box<DownlinkBatch>>>,
    /// The relay stops: its connections get no more.
    stopping: Arc<AtomicBool>,
}

impl Postponed {
    pub(crate) fn new(
        config: &Config,
        clientele: &Clientele,
        downlinks: Vec<DownlinkSender>,
    ) -> KafkaResult<Self> {
        let relay = RelayId(config.relay.id);
        Ok(Self {
            downlink: (config.kafka.downlink_topic(), i32::from(relay.0)),
            relay,
            most_bytes: config.relay.reply_limit_bytes / 2,
            fetcher: Fetcher::new(&config.kafka)?,
            open: downlinks.iter().map(|_| None).collect(),
            downlinks,
            stopping: clientele.stop.clone(),
        })
    }

    /// A round of those who have asked; true if there was one.
    pub(crate) fn step(&mut self, intake: &Intake, stats: &KeeperStats, stop: &AtomicBool) -> bool {
        intake.collect(&self.downlinks);
        let round = intake.take_postponed(self.most_bytes);
        if round.is_empty() {
            if !intake.has_queue() {
                self.fetcher.rest();
            }
            return false;
        }
        let Self { downlink, relay, fetcher, downlinks, open, stopping, .. } = self;
        let mut headers = HeaderList::default();
        let mut rest = round.iter();
        let stopped = || stop.load(Ordering::SeqCst) || stopping.load(Ordering::SeqCst);
        let offsets = round.iter().map(|(next, _)| next.offset.0);
        let place = (&*downlink.0, downlink.1);
        let read = fetcher.read(place, offsets, stopped, |offset, record| {
            let (next, key) = *rest.next().expect("one for each offset");
            // A topic that was made anew has somebody else's there.
            let record = record.filter(|record| is_for(record, key));
            if record.is_none() {
                tracing::error!(offset, "a postponed reply is no longer in the log");
                stats.vanished.fetch_add(1, Ordering::Relaxed);
                intake.vanished(next.offset);
            }
            headers.clear();
            let worker = usize::from(key.worker);
            let batch =
                open[worker].take().or_else(|| empty_batch(downlinks, worker, intake, stopped));
            let Some(mut batch) = batch else { return intake.abandon(&[(next, key)]) };
            let waited = intake.arrivals.age(offset, Instant::now());
            push(&mut batch, *relay, (next, key), record, waited, &mut headers);
            if batch.is_full() {
                downlinks[worker].hand_over(batch);
            } else {
                open[worker] = Some(batch);
            }
        });
        let unread = rest.as_slice();
        for (batch, downlink) in open.iter_mut().zip(&*downlinks) {
            batch.take().into_iter().for_each(|batch| downlink.hand_over(batch));
        }
        match read {
            Ok(()) => {}
            // Nobody is there to take them.
            Err(FetchError::Stopped) => intake.abandon(unread),
            Err(FetchError::Resting) => {
                intake.put_back(unread);
                return false;
            }
            Err(error) => {
                tracing::error!(%error, "postponed replies cannot be read; retrying");
                intake.put_back(unread);
            }
        }
        true
    }
}

/// Waits until the worker gives a batch back, which it does at once until it ends, or has to say more
/// than it has room for.
fn empty_batch(
    downlinks: &[DownlinkSender],
    worker: usize,
    intake: &Intake,
    stopped: impl Fn() -> bool,
) -> Option<Box<DownlinkBatch>> {
    loop {
        let batch = downlinks[worker].take_empty();
        if batch.is_some() || stopped() {
            return batch;
        }
        intake.collect(downlinks);
        std::thread::sleep(PAUSE);
    }
}

fn is_for(record: &BorrowedMessage<'_>, key: ConnectionKey) -> bool {
    split_reply_key(record.key().unwrap_or_default()).is_ok_and(|(its, _)| its == key)
}

fn push(
    batch: &mut DownlinkBatch,
    relay: RelayId,
    (next, key): (Next, ConnectionKey),
    record: Option<&BorrowedMessage<'_>>,
    waited: Duration,
    headers: &mut HeaderList,
) {
    let receipt = Receipt::Postponed { offset: next.offset, last: next.last };
    let Some(record) = record else {
        return batch.push(key, Command::Vanished, receipt, Reply::plain(relay, -1, &[]));
    };
    add_headers(record, headers);
    let command = command(record, headers.headers());
    let reply = Reply {
        origin: ReplyOrigin { relay, offset: next.offset.0 },
        headers: headers.headers(),
        payload: record.payload().unwrap_or_default(),
        waited,
        held: false,
    };
    batch.push(key, command, receipt, reply);
}
