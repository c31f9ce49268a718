//! The keeper's thread: what could not be delivered goes where it is kept, and only then does the
//! downlink's offset pass it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::Config;
use crate::ring::ReplyOffset;

use super::deadletter::{Letter, LetterCounts, Reason, Refused, Sender};
use super::desk::Desk;
use super::fetch::{FetchError, Fetcher};
use super::outbox::{Outbox, Outcome};
use super::record::{Incarnation, RelayId};

/// How long an idle round lasts.
const TICK: Duration = Duration::from_millis(20);
/// What was refused, or could not be read, is tried again after it.
const RETRY: Duration = Duration::from_secs(1);

/// What the keeper counts. Written by its thread only.
#[derive(Debug, Default)]
pub struct KeeperStats {
    /// Replies among the dead letters.
    pub reply_letters: LetterCounts,
    /// Messages of clients among the dead letters.
    pub message_letters: LetterCounts,
    /// Replies that the log did not have any more when they were to be kept.
    pub vanished: AtomicU64,
}

/// Something to be kept.
#[derive(Debug)]
enum Job {
    /// A reply of the downlink.
    Reply { offset: ReplyOffset, reason: Reason, cut: bool },
    /// A message of a client.
    Refused { refused: Arc<Refused>, cut: bool },
}

impl Job {
    /// Whether it is to be cut; it is not yet.
    fn uncut(&mut self) -> Option<&mut bool> {
        match self {
            Self::Reply { cut, .. } | Self::Refused { cut, .. } => (!*cut).then_some(cut),
        }
    }
}

/// Keeps what could not be delivered.
pub struct Keeper {
    downlink: (String, i32),
    uplink_topic: String,
    deadletter_topic: String,
    sender: Sender,
    desk: Arc<Desk>,
    fetcher: Fetcher,
    outbox: Outbox<Job>,
    /// To be tried again, then.
    later: Vec<Job>,
    retry_at: Option<Instant>,
    stats: Arc<KeeperStats>,
}

impl Keeper {
    /// A keeper for what is handed in at the desk.
    pub fn new(
        config: &Config,
        incarnation: Incarnation,
        desk: Arc<Desk>,
        stats: Arc<KeeperStats>,
    ) -> Result<Self, KafkaError> {
        let relay = RelayId(config.relay.id);
        Ok(Self {
            downlink: (config.kafka.downlink_topic(), i32::from(relay.0)),
            uplink_topic: config.kafka.uplink_topic(),
            deadletter_topic: config.kafka.deadletter_topic(),
            sender: Sender::new(relay, incarnation),
            desk,
            fetcher: Fetcher::new(&config.kafka)?,
            outbox: Outbox::new(config)?,
            later: Vec::new(),
            retry_at: None,
            stats,
        })
    }

    /// Runs until `stop`.
    pub fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            let busy = self.take_jobs(stop);
            let patience = if busy { Duration::ZERO } else { TICK };
            for outcome in self.outbox.outcomes(patience) {
                self.on_outcome(outcome);
            }
        }
    }

    /// Begins what was handed in and what is to be tried again; true if there was something.
    fn take_jobs(&mut self, stop: &AtomicBool) -> bool {
        let (replies, refused) = self.desk.take();
        let mut jobs = Vec::new();
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.retry_at = None;
            jobs = std::mem::take(&mut self.later);
        }
        let reply = |(offset, reason)| Job::Reply { offset, reason, cut: false };
        jobs.extend(replies.into_iter().map(reply));
        let message = |refused| Job::Refused { refused: Arc::new(refused), cut: false };
        jobs.extend(refused.into_iter().map(message));
        if jobs.is_empty() {
            return false;
        }
        let mut replies = Vec::new();
        for job in jobs {
            match job {
                Job::Reply { offset, reason, cut } => replies.push((offset, reason, cut)),
                Job::Refused { refused, cut } => self.keep_refused(&refused, cut, stop),
            }
        }
        replies.sort_unstable_by_key(|(offset, ..)| *offset);
        self.keep_replies(&replies, stop);
        true
    }

    fn keep_refused(&self, refused: &Arc<Refused>, cut: bool, stop: &AtomicBool) {
        if self.outbox.wait_room(stop) {
            let letter = Letter::of_refused(refused, &self.uplink_topic, &self.sender);
            let letter = if cut { letter.cut() } else { letter };
            let job = Job::Refused { refused: refused.clone(), cut };
            self.outbox.send(letter.record(&self.deadletter_topic, Box::new(job)));
        }
    }

    /// Reads replies again, in the log's order, and sends each where it belongs.
    fn keep_replies(&mut self, replies: &[(ReplyOffset, Reason, bool)], stop: &AtomicBool) {
        let Self { fetcher, outbox, deadletter_topic, sender, desk, stats, .. } = self;
        let mut rest = replies.iter();
        let place = (&*self.downlink.0, self.downlink.1);
        let stopped = || stop.load(Ordering::SeqCst);
        let offsets = replies.iter().map(|(offset, ..)| offset.0);
        let read = fetcher.read(place, offsets, stopped, |_, record| {
            let (offset, reason, cut) = *rest.next().expect("one for each offset");
            let Some(record) = record else {
                tracing::error!(offset = offset.0, "a reply to be kept is not in the log any more");
                stats.vanished.fetch_add(1, Ordering::Relaxed);
                return desk.done(offset);
            };
            if outbox.wait_room(stop) {
                let letter = Letter::of_record(record, reason, sender);
                let letter = if cut { letter.cut() } else { letter };
                let job = Job::Reply { offset, reason, cut };
                outbox.send(letter.record(deadletter_topic, Box::new(job)));
            }
        });
        match read {
            Ok(()) => self.fetcher.rest(),
            Err(FetchError::Stopped) => {}
            Err(error) => {
                tracing::error!(%error, "replies to be kept cannot be read; trying on");
                let unread: Vec<_> = rest.copied().collect();
                for (offset, reason, cut) in unread {
                    self.try_later(Job::Reply { offset, reason, cut });
                }
            }
        }
    }

    fn try_later(&mut self, job: Job) {
        self.later.push(job);
        self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
    }

    fn on_outcome(&mut self, (mut job, outcome): Outcome<Job>) {
        match outcome {
            Ok(()) => self.on_kept(&job),
            Err(RDKafkaErrorCode::MessageSizeTooLarge) if job.uncut().is_some() => {
                if let Some(cut) = job.uncut() {
                    *cut = true;
                }
                self.later.push(job);
                self.retry_at = Some(Instant::now());
            }
            Err(code) => {
                if self.later.is_empty() {
                    let topic = &*self.deadletter_topic;
                    tracing::error!(
                        %code,
                        topic,
                        "dead letters are refused; what they are about stays where it is, and is tried \
                         again; the relay must be allowed to write there"
                    );
                }
                self.try_later(job);
            }
        }
    }

    fn on_kept(&mut self, job: &Job) {
        match job {
            Job::Reply { offset, reason, .. } => {
                self.stats.reply_letters.count(*reason);
                self.desk.done(*offset);
            }
            Job::Refused { refused, .. } => {
                self.stats.message_letters.count(refused.failure.into());
                self.desk.refused_done();
            }
        }
    }
}
