//! The relay's own producer: `millrace_wire`'s state, and sockets. Both belong to the thread that produces;
//! there is no other one.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use millrace_wire::batch::{Constant, Record, Tag};
use millrace_wire::uplink::{Order, Refusal, Settings, Uplink};
use rdkafka::error::RDKafkaErrorCode;

use crate::dial::Dial;
use crate::kafka::context::data_throttled;
use crate::kafka::ffi::{NativeRecord, NativeReport};
use crate::kafka::sockets::{SocketEvent, Sockets};
use crate::model::Partition;
use crate::ring::Wake;

/// A producer for one topic.
pub(crate) struct WireProducer {
    uplink: Uplink,
    sockets: Sockets,
    /// How long a batch waits for more records, in microseconds.
    linger_us: Dial,
    /// When something is to be done though nothing happens.
    deadline: Option<Instant>,
}

impl WireProducer {
    /// Connects when it is polled for the first time. `wake` wakes the thread that polls.
    pub(crate) fn new(settings: Settings, wake: Wake) -> io::Result<Self> {
        let sockets = Sockets::new(wake)?;
        let linger_us = u64::try_from(settings.linger.as_micros()).unwrap_or(u64::MAX);
        let (uplink, linger_us) = (Uplink::new(settings), Dial::new(linger_us));
        Ok(Self { uplink, sockets, linger_us, deadline: None })
    }

    /// How long a batch waits for more records, in microseconds. It may change at any time.
    pub(crate) fn linger_us(&self) -> Dial {
        self.linger_us.clone()
    }

    /// Takes a copy of a record: what was [encoded](Constant::encode) before, and the rest.
    pub(crate) fn produce<'a>(
        &mut self,
        partition: Partition,
        (encoded, value): (&[u8], &[u8]),
        unix_ms: i64,
        headers: impl Iterator<Item = (&'a CStr, &'a [u8])> + Clone,
        tag: Tag,
    ) -> Result<(), RDKafkaErrorCode> {
        let headers = headers.map(|(name, value)| (name.to_bytes(), value));
        let constant = Constant::from_bytes(encoded);
        let taken = self.uplink.push(partition.0, (unix_ms, constant, value), headers, tag);
        if taken { Ok(()) } else { Err(RDKafkaErrorCode::UnknownPartition) }
    }

    /// Sends and receives what there is, without waiting, and passes on reports for as long as there is
    /// `room` for what they tell. False if there was nothing.
    pub(crate) fn poll(
        &mut self,
        room: impl Fn() -> bool,
        mut on_report: impl FnMut(NativeReport),
    ) -> bool {
        let Self { uplink, sockets, linger_us, deadline } = self;
        let now = Instant::now();
        uplink.set_linger(Duration::from_micros(linger_us.get()));
        let mut any = false;
        sockets.turn(|link, event| {
            any = true;
            match event {
                SocketEvent::Connected => uplink.connected(link, now),
                SocketEvent::Received(bytes) => uplink.received(link, bytes, now),
                SocketEvent::Writable => uplink.writable(link),
                SocketEvent::Failed(error) => uplink.failed(link, &error, now),
            }
        });
        *deadline = uplink.advance(now);
        uplink.flush(now, |link, slices| sockets.send(link, slices));
        while let Some(order) = uplink.next_order() {
            any = true;
            match order {
                Order::Connect { link, host, port } => sockets.connect(link, &host, port),
                Order::Close { link } => sockets.close(link),
            }
        }
        while let Some((broker, throttle_ms)) = uplink.next_throttled() {
            data_throttled(&broker, u64::try_from(throttle_ms).unwrap_or_default());
        }
        any |= uplink.reports(room, |report| {
            let error = report.result.err();
            on_report(NativeReport {
                partition: Partition(report.partition),
                booked_bytes: report.tag.booked_bytes as usize,
                token: report.tag.token,
                offset: report.result.unwrap_or(-1),
                error: error.map(|(refusal, record)| (code(refusal), copy(&record))),
            });
        });
        any
    }

    /// Becomes readable when a poll has something to do.
    pub(crate) fn readiness(&self) -> BorrowedFd<'_> {
        self.sockets.as_fd()
    }

    /// How long it may be before a poll has something to do though nothing happens.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.deadline.map(|then| then.saturating_duration_since(Instant::now()))
    }

    /// Why it will never deliver anything again.
    pub(crate) fn fatal_error(&self) -> Option<String> {
        self.uplink.fatal().map(str::to_owned)
    }

    /// Gives up everything that is not acknowledged; each record is reported as purged.
    pub(crate) fn purge(&mut self) {
        self.uplink.purge(Instant::now());
    }
}

/// librdkafka's name for a refusal.
const fn code(refusal: Refusal) -> RDKafkaErrorCode {
    match refusal {
        Refusal::Purged => RDKafkaErrorCode::PurgeQueue,
        Refusal::Broker(code) => match code {
            3 => RDKafkaErrorCode::UnknownTopicOrPartition,
            // A batch that is larger than a segment is too large like one that is larger than allowed.
            10 | 18 => RDKafkaErrorCode::MessageSizeTooLarge,
            17 => RDKafkaErrorCode::InvalidTopic,
            21 => RDKafkaErrorCode::InvalidRequiredAcks,
            29 => RDKafkaErrorCode::TopicAuthorizationFailed,
            31 => RDKafkaErrorCode::ClusterAuthorizationFailed,
            32 => RDKafkaErrorCode::InvalidTimestamp,
            43 => RDKafkaErrorCode::UnsupportedForMessageFormat,
            44 => RDKafkaErrorCode::PolicyViolation,
            76 => RDKafkaErrorCode::UnsupportedCompressionType,
            87 => RDKafkaErrorCode::InvalidRecord,
            _ => RDKafkaErrorCode::Unknown,
        },
    }
}

fn copy(record: &Record<'_>) -> NativeRecord {
    let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    NativeRecord {
        key: record.key.unwrap_or_default().to_vec(),
        value: record.value.unwrap_or_default().to_vec(),
        headers: record.headers().map(|(of, value)| (name(of), value.to_vec())).collect(),
    }
}
