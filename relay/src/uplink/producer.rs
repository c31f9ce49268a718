//! The producer behind one small trait, so that a faulty one can take its place in tests.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_wire::batch::Tag;
use rdkafka::error::RDKafkaErrorCode;

use crate::config::Config;
use crate::dial::Dial;
use crate::kafka::BatchLimits;
use crate::kafka::clock::{NO_TIME, brokers_clock};
use crate::kafka::ffi::{NativeRecord, NativeReport};
use crate::kafka::writer::{Constant, FurtherHeaders, Writer, WriterError};
use crate::kafka::written::Written;
use crate::model::{
    Decimal, DeliveryFailure, HeaderList, Headers, Identity, Incarnation, Kind, Partition, header,
};
use crate::ring::Wake;
use crate::undelivered::deadletter::Refused;
use crate::undelivered::intake::Intake;
use crate::uplink::late::{Lateness, Rescue, RescueWatch};
use crate::uplink::leases::Leases;
use crate::uplink::mending::{Again, Mending, Next};
use crate::uplink::token::{Token, token};

/// Why Kafka will never have a record, by what librdkafka says of it.
pub(crate) fn delivery_failure(code: RDKafkaErrorCode) -> DeliveryFailure {
    match code {
        RDKafkaErrorCode::MessageSizeTooLarge => DeliveryFailure::TooLarge,
        RDKafkaErrorCode::TopicAuthorizationFailed
        | RDKafkaErrorCode::ClusterAuthorizationFailed => DeliveryFailure::Authorization,
        RDKafkaErrorCode::UnknownPartition
        | RDKafkaErrorCode::UnknownTopic
        | RDKafkaErrorCode::UnknownTopicOrPartition => DeliveryFailure::UnknownPartition,
        RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight => DeliveryFailure::Purged,
        _ => DeliveryFailure::Other,
    }
}

/// What became of a record, or of several of one connection that follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Their partition.
    pub partition: Partition,
    /// How many they are; one, if it was refused.
    pub records: u32,
    /// Their payloads, and what headers their protocol has given them.
    pub booked_bytes: usize,
    /// Whose they were.
    pub token: Token,
    /// The number of a refused message in its connection; of others 0.
    pub message: u64,
    /// Acknowledged by all in-sync replicas, or why it never will be.
    pub result: Result<(), DeliveryFailure>,
}

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProduceError {
    /// Not now; again after a report.
    Full,
    /// Not yet, nor what comes after it for the same partition; others may be.
    Later,
    /// Never.
    Refused(DeliveryFailure),
}

/// Takes records and reports on each exactly once, on several at a time where it may. Records of one partition are delivered in the
/// order in which they were taken.
pub trait Producer: Send {
    /// Takes a copy of a record; its timestamp is in Unix milliseconds.
    fn produce(
        &mut self,
        identity: &Identity,
        kind: Kind,
        headers: Headers<'_>,
        payload: &[u8],
        unix_ms: i64,
    ) -> Result<(), ProduceError>;

    /// Passes on the reports that have come, without waiting. False if there was nothing to do.
    fn poll(&mut self, on_report: &mut dyn FnMut(Report)) -> bool;

    /// Said before the records of a batch.
    fn look(&mut self) {}

    /// Becomes readable when a poll has something to do, if that is not told by a wake-up.
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// How long it may be before a poll has something to do though nothing happens.
    fn patience(&self) -> Option<Duration> {
        None
    }

    /// Gives up what is not acknowledged; it is reported.
    fn purge(&mut self);

    /// Why this producer will never deliver anything again.
    fn fatal(&self) -> Option<String>;
}

/// Kafka.
pub struct KafkaProducer {
    writer: Writer,
    intake: Arc<Intake>,
    leases: Arc<Leases>,
    lateness: Lateness,
    rescue: Rescue,
    /// This relay's run, once there is a record of it.
    run: Option<Incarnation>,
    written: Arc<Written>,
    /// Records for servers that registered are taken.
    may_write: bool,
    purged: bool,
    mending: Mending,
}

impl KafkaProducer {
    /// A producer for the uplink. `wake` is woken when reports come. Messages that Kafka refuses for good
    /// are handed in at the intake. The thread that looks for late messages runs under `watch`.
    pub fn new(
        config: &Config,
        limits: BatchLimits,
        wake: Wake,
        intake: Arc<Intake>,
        leases: Arc<Leases>,
        watch: RescueWatch,
    ) -> Result<Self, WriterError> {
        let writer = Writer::new(config, limits.uplink, wake.clone())?;
        let lateness = Lateness::new(config.partitions());
        let rescue = Rescue::new(config, limits.kept, leases.clone(), watch);
        intake.tell_of_room(wake);
        Ok(Self {
            writer,
            intake,
            leases,
            lateness,
            rescue,
            run: None,
            written: Arc::new(Written::new(config.partitions())),
            may_write: true,
            purged: false,
            mending: Mending::default(),
        })
    }

    /// Goes on with what is sent again.
    fn mend(&mut self, on_report: &mut dyn FnMut(Report)) {
        if self.purged {
            for again in self.mending.give_up() {
                let error = Some((RDKafkaErrorCode::PurgeQueue, again.record));
                let report = NativeReport { error, ..again.report };
                Self::settle((&self.intake, &self.written), report, on_report);
            }
            return;
        }
        while self.has_room() {
            match self.mending.next() {
                Next::Wait => return,
                Next::Refuse(again) => {
                    let error = Some((again.code, again.record));
                    let report = NativeReport { error, ..again.report };
                    Self::settle((&self.intake, &self.written), report, on_report);
                }
                Next::Send(again) => {
                    if self.send_again(&again) {
                        self.mending.sent();
                    } else {
                        self.mending.not_sent(again);
                    }
                    return;
                }
            }
        }
    }

    /// False if it is not taken now.
    fn send_again(&mut self, again: &Again) -> bool {
        let NativeRecord { key, value, headers } = &again.record;
        let mut list = HeaderList::default();
        for (name, value) in headers {
            list.push(name.as_bytes(), value);
        }
        let unix_ms = if self.mending.is_timeless() { NO_TIME } else { brokers_clock().unix_ms() };
        let headers = FurtherHeaders { of_protocol: list.headers(), ..FurtherHeaders::default() };
        let NativeReport { partition, token, booked_bytes, .. } = again.report;
        let tag = Tag { token, booked_bytes: u32::try_from(booked_bytes).unwrap_or(u32::MAX) };
        let constant = Constant { key, headers: &[], encoded: None };
        let record = (constant, &**value);
        let sent = self.writer.produce(partition, record, unix_ms, &headers, tag).is_ok();
        if sent {
            self.lateness.produced(partition);
        }
        sent
    }

    /// Passes a report on that is final.
    fn settle(
        (intake, written): (&Intake, &Written),
        report: NativeReport,
        on_report: &mut dyn FnMut(Report),
    ) {
        let token = Token::unpack(report.token);
        let mut message = 0;
        let result = report.error.map_or(Ok(()), |(code, record)| {
            tracing::debug!(%code, partition = report.partition.0, "a record was not delivered");
            let failure = delivery_failure(code);
            message = record.message_number();
            if failure != DeliveryFailure::Purged && !token.control {
                let NativeRecord { key, value, headers } = record;
                let partition = i32::from(report.partition.0);
                intake.hand_in_refused(Refused { failure, partition, key, value, headers });
            }
            Err(failure)
        });
        if result.is_ok() {
            let place = (report.offset, report.records);
            written.acknowledged(report.partition, place, !token.control);
        }
        on_report(Report {
            partition: report.partition,
            records: report.records,
            booked_bytes: report.booked_bytes,
            token,
            message,
            result,
        });
    }

    /// How long a batch waits for more records, in microseconds. None if that cannot change.
    pub fn linger_us(&self) -> Option<Dial> {
        self.writer.linger_us()
    }

    /// How far it has written.
    pub fn written(&self) -> Arc<Written> {
        self.written.clone()
    }

    /// Whether a refused message may be handed in. While the intake is full no report is taken, so what
    /// they are about stays booked, and the clients wait; when the stop's time is over, nothing does.
    fn has_room(&self) -> bool {
        self.purged || self.intake.has_room_for_refused()
    }
}

/// What has come too late is looked for as far as it is known.
impl Drop for KafkaProducer {
    fn drop(&mut self) {
        if let Some(run) = self.run {
            let rescue = &mut self.rescue;
            self.lateness.finish(&self.leases, |partition, offsets| {
                rescue.look_through(run, partition, offsets);
            });
        }
    }
}

impl Producer for KafkaProducer {
    fn produce(
        &mut self,
        identity: &Identity,
        kind: Kind,
        of_protocol: Headers<'_>,
        payload: &[u8],
        unix_ms: i64,
    ) -> Result<(), ProduceError> {
        if self.mending.is_active() {
            return Err(ProduceError::Full);
        }
        if identity.epoch > 0 && !self.may_write {
            return Err(ProduceError::Later);
        }
        let number;
        let (name, more) = match kind {
            Kind::Open => {
                let former = identity.moved_from.as_deref();
                (Some("open"), former.map(|server| (header::MOVED_FROM, server)))
            }
            Kind::Message { sequence } => {
                number = Decimal::new(sequence);
                (None, Some((header::SEQUENCE, number.as_bytes())))
            }
            Kind::Close(reason) => (Some("close"), Some((header::REASON, reason.as_bytes()))),
        };
        let constant = Constant {
            key: &identity.printed,
            headers: identity.headers_of(kind),
            encoded: kind.is_message().then_some(&identity.encoded),
        };
        let first = name.map(|name| (header::KIND, name.as_bytes()));
        let headers = FurtherHeaders { first, of_protocol, last: more };
        let booked_bytes = payload.len() + of_protocol.weight();
        let tag = Tag {
            token: token(identity, kind, of_protocol).pack(),
            booked_bytes: u32::try_from(booked_bytes).unwrap_or(u32::MAX),
        };
        let (partition, record) = (identity.partition, (constant, payload));
        let unix_ms =
            if self.mending.is_timeless() { NO_TIME } else { brokers_clock().correct(unix_ms) };
        let produced = if self.leases.is_over(partition, identity.epoch) {
            Err(DeliveryFailure::LeaseOver)
        } else {
            match self.writer.produce(partition, record, unix_ms, &headers, tag) {
                Err(RDKafkaErrorCode::QueueFull) => return Err(ProduceError::Full),
                produced => produced.map_err(delivery_failure),
            }
        };
        match produced {
            Ok(()) => {
                self.lateness.produced(partition);
                self.run = Some(identity.key.incarnation);
                self.mending.taken();
                Ok(())
            }
            Err(_) if kind.is_message() && !self.has_room() => Err(ProduceError::Full),
            Err(failure) => {
                if kind.is_message() {
                    let headers = constant.headers().chain(headers.iter());
                    self.intake
                        .hand_in_refused(Refused::at_once(failure, identity, payload, headers));
                }
                Err(ProduceError::Refused(failure))
            }
        }
    }

    fn poll(&mut self, on_report: &mut dyn FnMut(Report)) -> bool {
        let Self { writer, intake, written, mending, purged, lateness, .. } = self;
        let room = || *purged || intake.has_room_for_refused();
        let weighed = |token| Token::unpack(token).weighed;
        let was_active = mending.is_active();
        let any = writer.poll(room, weighed, |report| {
            let is_there = report.error.is_none() && report.offset >= 0;
            let offset = is_there.then_some(report.offset);
            lateness.reported(report.partition, report.records, offset);
            if let Some(report) = mending.report(report) {
                Self::settle((intake, written), report, on_report);
            }
        });
        if let Some(run) = self.run {
            let rescue = &mut self.rescue;
            self.lateness.judge(&self.leases, |partition, offsets| {
                rescue.look_through(run, partition, offsets);
            });
        }
        if mending.is_active() {
            if !was_active {
                tracing::warn!(
                    "the uplink refuses a batch: the relay sends its records again one by one. If \
                     the topic's max.message.bytes was lowered, start the relay again"
                );
            }
            self.mend(on_report);
        }
        any
    }

    fn look(&mut self) {
        self.may_write = self.purged || self.leases.is_fresh(Instant::now());
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.writer.readiness()
    }

    fn patience(&self) -> Option<Duration> {
        self.writer.patience()
    }

    fn purge(&mut self) {
        // The stop's time is over: nothing waits for the registry any more.
        self.purged = true;
        self.writer.purge();
    }

    fn fatal(&self) -> Option<String> {
        self.writer.fatal_error()
    }
}
