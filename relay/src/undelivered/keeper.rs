//! The keeper's thread: what could not be delivered goes where it is kept, and only then does the
//! downlink's offset pass it; what waits for a client goes to it when it comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{BorrowedMessage, Header, Message as _, OwnedHeaders};
use rdkafka::producer::BaseRecord;

use crate::config::Config;
use crate::kafka::fetch::{FetchError, Fetcher};
use crate::kafka::ffi::add_headers;
use crate::kafka::inspect::command;
use crate::kafka::reader::OpenError;
use crate::model::{HeaderList, RelayId, ReplyOffset, split_reply_key};
use crate::ring::{Command, DownlinkSender};
use crate::undelivered::Clientele;
use crate::undelivered::deadletter::{Letter, Reason, Refused, Sender};
use crate::undelivered::delivery::{Deliveries, HeldNote};
use crate::undelivered::held::{Entry, held_header, print_offsets};
use crate::undelivered::intake::Intake;
use crate::undelivered::limits::HoldLimits;
use crate::undelivered::lines::{Lines, Turn};
use crate::undelivered::outbox::{Outbox, Outcome};
use crate::undelivered::presence::Presence;
use crate::undelivered::reread::Postponed;
use crate::undelivered::stats::KeeperStats;

/// How long an idle round lasts.
const TICK: Duration = Duration::from_millis(20);
/// And while clients are behind, who may ask for more at any time.
const SHORT_TICK: Duration = Duration::from_millis(2);
/// What was refused, or could not be read, is tried again after it.
const RETRY: Duration = Duration::from_secs(1);

/// A reply that cannot be delivered now.
#[derive(Clone, Copy, Debug)]
struct Reply {
    offset: ReplyOffset,
    reason: Reason,
    cut: bool,
}

/// Something to be written.
#[derive(Debug)]
enum Job {
    /// A reply, to the dead letters.
    Reply(Reply),
    /// A reply, to those that wait for their clients.
    Hold { reply: Reply, holder: String, bytes: usize },
    /// A message of a client, to the dead letters.
    Refused { refused: Arc<Refused>, cut: bool },
    /// That replies which waited were sent, or are dead letters.
    Mark { holder: String, partition: i32, offsets: Vec<i64> },
    /// A reply that waited, to the dead letters.
    Leave { holder: String, entry: Entry, reason: Reason, cut: bool },
}

impl Job {
    /// Whether a dead letter is to be cut; it is not yet.
    fn uncut(&mut self) -> Option<&mut bool> {
        match self {
            Self::Reply(Reply { cut, .. })
            | Self::Refused { cut, .. }
            | Self::Leave { cut, .. } => (!*cut).then_some(cut),
            Self::Hold { .. } | Self::Mark { .. } => None,
        }
    }
}

/// Keeps what could not be delivered.
pub struct Keeper {
    downlink: (String, i32),
    uplink_topic: String,
    deadletter_topic: String,
    held_topic: String,
    sender: Sender,
    intake: Arc<Intake>,
    deliveries: Deliveries,
    postponed: Postponed,
    fetcher: Fetcher,
    outbox: Outbox<Job>,
    lines: Lines,
    /// To be tried again, then.
    later: Vec<Job>,
    /// Replies among those have not been read: whoever they are for, newer ones wait.
    is_unread: bool,
    retry_at: Option<Instant>,
    stats: Arc<KeeperStats>,
}

/// What a [`Keeper`] is made from.
pub struct KeeperParts {
    /// The clients that it keeps for.
    pub clientele: Clientele,
    /// Longest batch that the topics take which it writes to, if that is known.
    pub letter_batch_bytes: Option<u32>,
    /// Where replies are handed in.
    pub intake: Arc<Intake>,
    /// The rings to the workers, in the workers' order.
    pub downlinks: Vec<DownlinkSender>,
    /// What the keeper counts.
    pub stats: Arc<KeeperStats>,
}

impl Keeper {
    /// A keeper for what is handed in at the intake, and for the clients of the workers.
    pub fn new(config: &Config, parts: KeeperParts) -> Result<Self, OpenError> {
        let KeeperParts { clientele, letter_batch_bytes, intake, downlinks, stats } = parts;
        let relay = RelayId(config.relay.id);
        let sender = Sender::new(relay, clientele.incarnation);
        Ok(Self {
            downlink: (config.kafka.downlink_topic(), i32::from(relay.0)),
            uplink_topic: config.kafka.uplink_topic(),
            deadletter_topic: config.kafka.deadletter_topic(),
            held_topic: config.kafka.held_topic(),
            postponed: Postponed::new(config, &clientele, downlinks.clone())?,
            deliveries: Deliveries::new(config, &clientele, sender.clone(), downlinks)?,
            sender,
            intake,
            fetcher: Fetcher::new(&config.kafka)?,
            outbox: Outbox::new(config, letter_batch_bytes, stats.ends.clone())?,
            lines: Lines::default(),
            later: Vec::new(),
            is_unread: false,
            retry_at: None,
            stats,
        })
    }

    /// Runs until `stop`. An error is the producer's fatal one.
    pub fn run(mut self, stop: &AtomicBool) -> Result<(), String> {
        let mut patience = Duration::ZERO;
        while !stop.load(Ordering::SeqCst) {
            let busy = self.round(patience, stop);
            if let Some(error) = self.outbox.fatal() {
                return Err(format!("keeper: {error}"));
            }
            patience = match self.intake.has_queue() {
                _ if busy => Duration::ZERO,
                true => SHORT_TICK,
                false => TICK,
            };
        }
        // Closing its clients would wait for a cluster that does not answer. The process ends now.
        std::mem::forget(self);
        Ok(())
    }

    /// True if there was something to do.
    fn round(&mut self, patience: Duration, stop: &AtomicBool) -> bool {
        let folded = self.deliveries.fold(patience, &self.stats.held);
        let stats = self.stats.clone();
        let stopped = || stop.load(Ordering::SeqCst);
        let orders = self.deliveries.step(&mut self.fetcher, stopped, &stats.held);
        let mut busy = folded || !orders.is_empty();
        busy |= self.postponed.step(&self.intake, &stats, stop);
        self.take_orders(orders, stop);
        // Whether a reply may wait is known when all is known that waits.
        if self.deliveries.is_ready() {
            busy |= self.take_jobs(stop);
        }
        for outcome in self.outbox.outcomes(Duration::ZERO) {
            self.on_outcome(outcome);
        }
        busy
    }

    /// The limits of what is held, which may change at any time.
    pub fn limits(&self) -> HoldLimits {
        self.deliveries.index.limits()
    }

    fn take_orders(&mut self, orders: Vec<HeldNote>, stop: &AtomicBool) {
        for order in orders {
            match order {
                HeldNote::Mark { holder, partition, offsets } => {
                    self.mark(holder, partition, offsets, stop);
                }
                HeldNote::Unencodable { holder, entry } => {
                    let reason = Reason::Unencodable;
                    self.leave(Job::Leave { holder, entry, reason, cut: false }, stop);
                }
                HeldNote::Expired { holder, entry } => {
                    let reason = Reason::HoldAge;
                    self.leave(Job::Leave { holder, entry, reason, cut: false }, stop);
                }
            }
        }
    }

    /// Begins what was handed in and what is to be tried again; true if there was something.
    fn take_jobs(&mut self, stop: &AtomicBool) -> bool {
        let (handed_in, refused) = self.intake.take();
        let mut jobs = Vec::new();
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            (self.retry_at, self.is_unread) = (None, false);
            jobs = std::mem::take(&mut self.later);
        }
        let reply = |(offset, reason)| Job::Reply(Reply { offset, reason, cut: false });
        jobs.extend(handed_in.into_iter().map(reply));
        let message = |refused| Job::Refused { refused: Arc::new(refused), cut: false };
        jobs.extend(refused.into_iter().map(message));
        if jobs.is_empty() {
            return false;
        }
        let mut replies = Vec::new();
        for job in jobs {
            match job {
                Job::Reply(reply) if reply.reason == Reason::Unreadable => {
                    self.keep_unreadable(reply, stop);
                }
                Job::Reply(reply) | Job::Hold { reply, .. } => {
                    if self.is_unread || self.lines.must_wait(reply.offset) {
                        self.try_later(Job::Reply(reply));
                    } else {
                        replies.push(reply);
                    }
                }
                Job::Refused { refused, cut } => self.keep_refused(&refused, cut, stop),
                Job::Mark { holder, partition, offsets } => {
                    self.mark(holder, partition, offsets, stop);
                }
                leave @ Job::Leave { .. } => self.leave(leave, stop),
            }
        }
        replies.sort_unstable_by_key(|reply| reply.offset);
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

    /// Of what cannot be read only the place can be told.
    fn keep_unreadable(&self, reply: Reply, stop: &AtomicBool) {
        let place = (&*self.downlink.0, self.downlink.1);
        if self.outbox.wait_room(stop) {
            let letter = Letter::of_unreadable(place, reply.offset.0, reply.reason, &self.sender);
            self.outbox.send(letter.record(&self.deadletter_topic, Box::new(Job::Reply(reply))));
        }
    }

    /// Says in the log that replies do not wait any more; a relay that is killed before sends them
    /// again.
    fn mark(&self, holder: String, partition: i32, offsets: Vec<i64>, stop: &AtomicBool) {
        if !self.outbox.wait_room(stop) {
            return;
        }
        let (key, value) = (holder.clone(), print_offsets(&offsets));
        let kind = Header { key: name(held_header::KIND), value: Some("delivered") };
        let relay = Header { key: name(held_header::RELAY), value: Some(self.sender.as_str()) };
        let headers = OwnedHeaders::new().insert(kind).insert(relay);
        let job = Box::new(Job::Mark { holder, partition, offsets });
        let mut record = BaseRecord::with_opaque_to(&self.held_topic, job).headers(headers);
        record.partition = Some(partition);
        record.key = Some(key.as_bytes());
        record.payload = Some(value.as_bytes());
        self.outbox.send(record);
    }

    /// Moves a reply that waited to the dead letters.
    fn leave(&mut self, job: Job, stop: &AtomicBool) {
        let Job::Leave { holder, entry, reason, cut } = job else { return };
        let Self { fetcher, outbox, deliveries, sender, stats, .. } = self;
        let (held_topic, deadletter_topic) = (&self.held_topic, &self.deadletter_topic);
        let stopped = || stop.load(Ordering::SeqCst);
        let place = (&**held_topic, entry.partition);
        let read = fetcher.read(place, [entry.offset], stopped, |offset, record| match record {
            Some(record) if outbox.wait_room(stop) => {
                let letter = Letter::of_record(record, reason, sender);
                let letter = if cut { letter.cut() } else { letter };
                let job = Job::Leave { holder: holder.clone(), entry, reason, cut };
                outbox.send(letter.record(deadletter_topic, Box::new(job)));
            }
            Some(_) => {}
            None => {
                stats.held.vanished.fetch_add(1, Ordering::Relaxed);
                tracing::error!(holder, offset, "a held reply is no longer in the log");
                deliveries.index.remove(&holder, entry.partition, &[offset]);
            }
        });
        self.after_read(read, || vec![Job::Leave { holder: holder.clone(), entry, reason, cut }]);
    }

    /// Reads replies again, in the log's order, and sends each where it belongs.
    fn keep_replies(&mut self, replies: &[Reply], stop: &AtomicBool) {
        let Self { fetcher, outbox, deliveries, sender, intake, stats, lines, .. } = self;
        let (held_topic, deadletter_topic) = (&self.held_topic, &self.deadletter_topic);
        let mut behind = Vec::new();
        let mut rest = replies.iter();
        let place = (&*self.downlink.0, self.downlink.1);
        let stopped = || stop.load(Ordering::SeqCst);
        let offsets = replies.iter().map(|reply| reply.offset.0);
        let read = fetcher.read(place, offsets, stopped, |_, record| {
            let mut reply = *rest.next().expect("one for each offset");
            let Some(record) = record else {
                let offset = reply.offset.0;
                tracing::error!(offset, "a reply that should be kept is no longer in the log");
                stats.vanished.fetch_add(1, Ordering::Relaxed);
                lines.leave(reply.offset);
                return intake.done(reply.offset);
            };
            if is_order(record) {
                stats.orders.fetch_add(1, Ordering::Relaxed);
                return intake.done(reply.offset);
            }
            if !outbox.wait_room(stop) {
                return;
            }
            let bytes = record.payload_len();
            if let Some(holder) = holder(record, reply, &deliveries.presence) {
                let admitted = match lines.turn(holder, reply.offset) {
                    Turn::Wait => return behind.push(Job::Reply(reply)),
                    Turn::Overtaken => Err(Reason::Overtaken),
                    Turn::Now => deliveries.index.admit(holder, bytes),
                };
                match admitted {
                    Ok(()) => {
                        lines.sent(holder, reply.offset);
                        let job = Job::Hold { reply, holder: holder.to_owned(), bytes };
                        let waited = intake.arrivals.age(reply.offset.0, Instant::now());
                        let held = held_record(record, holder, held_topic, (sender, waited), job);
                        return outbox.send(held);
                    }
                    Err(reason) => reply.reason = reason,
                }
            }
            lines.leave(reply.offset);
            let letter = Letter::of_record(record, reply.reason, sender);
            let letter = if reply.cut { letter.cut() } else { letter };
            outbox.send(letter.record(deadletter_topic, Box::new(Job::Reply(reply))));
        });
        let rest: Vec<_> = rest.copied().collect();
        for job in behind {
            self.try_later(job);
        }
        self.after_read(read, || rest.into_iter().map(Job::Reply).collect());
    }

    fn after_read(&mut self, read: Result<(), FetchError>, unread: impl FnOnce() -> Vec<Job>) {
        match read {
            Ok(()) => self.fetcher.rest(),
            Err(FetchError::Stopped) => {}
            Err(error) => {
                if !matches!(error, FetchError::Resting) {
                    tracing::error!(%error, "replies that should be kept cannot be read; retrying");
                }
                for job in unread() {
                    self.is_unread |= matches!(job, Job::Reply(_));
                    self.try_later(job);
                }
            }
        }
    }

    fn try_later(&mut self, job: Job) {
        self.later.push(job);
        self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
    }

    fn on_outcome(&mut self, (mut job, outcome): Outcome<Job>) {
        let Err(code) = outcome else { return self.on_kept(job) };
        if code == RDKafkaErrorCode::MessageSizeTooLarge {
            if let Some(cut) = job.uncut() {
                *cut = true;
                self.later.push(job);
                self.retry_at = Some(Instant::now());
                return;
            }
            if let Job::Hold { reply, holder, bytes } = job {
                // It became too large by its headers, or the topic allows less than the downlink.
                self.deliveries.index.withdraw(&holder, bytes);
                self.lines.left(&holder, reply.offset);
                self.later.push(Job::Reply(Reply { reason: Reason::TooLarge, ..reply }));
                self.retry_at = Some(Instant::now());
                return;
            }
        }
        if let Job::Hold { reply, holder, bytes } = &job {
            self.deliveries.index.withdraw(holder, *bytes);
            self.lines.refused(holder, reply.offset);
        }
        if self.later.is_empty() {
            let (held, letters) = (&*self.held_topic, &*self.deadletter_topic);
            tracing::error!(
                %code,
                "{held} or {letters} refuses records; the replies and messages concerned stay \
                 where they are, and the relay retries; it needs the right to write to both topics"
            );
        }
        self.try_later(job);
    }

    fn on_kept(&mut self, job: Job) {
        match job {
            Job::Reply(Reply { offset, reason, .. }) => {
                self.stats.reply_letters.count(reason);
                self.intake.done(offset);
            }
            Job::Hold { reply, holder, .. } => {
                self.lines.taken(&holder, reply.offset);
                self.stats.held.held.fetch_add(1, Ordering::Release);
                self.intake.done(reply.offset);
            }
            Job::Refused { refused, .. } => {
                self.stats.message_letters.count(refused.failure.into());
                self.intake.refused_done(&refused);
            }
            Job::Mark { .. } => {}
            Job::Leave { holder, entry, reason, .. } => {
                self.stats.held_letters.count(reason);
                let offsets = vec![entry.offset];
                self.deliveries.index.remove(&holder, entry.partition, &offsets);
                self.later.push(Job::Mark { holder, partition: entry.partition, offsets });
                self.retry_at = Some(Instant::now());
            }
        }
    }
}

/// Whether it only asks for a connection's end, which is behind it.
fn is_order(record: &BorrowedMessage<'_>) -> bool {
    let mut headers = HeaderList::default();
    add_headers(record, &mut headers);
    command(record, headers.headers()) == Command::Close
}

/// For whom a reply may wait.
fn holder<'a>(
    record: &'a BorrowedMessage<'_>,
    reply: Reply,
    presence: &Presence,
) -> Option<&'a str> {
    let (_, holder) = split_reply_key(record.key()?).ok()?;
    holder.filter(|holder| reply.reason.may_wait() && presence.service_of(holder).is_some())
}

/// A reply as it waits: its value and headers as they were, under its client's name.
fn held_record<'a>(
    record: &'a BorrowedMessage<'_>,
    holder: &'a str,
    topic: &'a str,
    (sender, waited): (&Sender, Duration),
    job: Job,
) -> BaseRecord<'a, [u8], [u8], Box<Job>> {
    let (offset, waited) = (record.offset().to_string(), waited.as_millis().to_string());
    let headers = record
        .headers()
        .map_or_else(OwnedHeaders::new, rdkafka::message::BorrowedHeaders::detach)
        .insert(Header { key: name(held_header::KIND), value: Some("reply") })
        .insert(Header { key: name(held_header::RELAY), value: Some(sender.as_str()) })
        .insert(Header { key: name(held_header::OFFSET), value: Some(&offset) })
        .insert(Header { key: name(held_header::WAITED), value: Some(&waited) });
    let mut held = BaseRecord::with_opaque_to(topic, Box::new(job)).headers(headers);
    held.key = Some(holder.as_bytes());
    held.payload = record.payload();
    held
}

fn name(name: &'static std::ffi::CStr) -> &'static str {
    name.to_str().expect("ASCII")
}

#[cfg(test)]
mod tests;
