//! The relay's own producer: `millrace_wire`'s state, and sockets. Both belong to the thread that produces;
//! there is no other one.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_wire::batch::{Constant, Headers, Record, Tag};
use millrace_wire::sasl::Login;
use millrace_wire::uplink::{Fate, Order, Refusal, Settings, Uplink};
use rdkafka::error::RDKafkaErrorCode;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::ClientConfig;

use crate::config::SaslSection;
use crate::dial::Dial;
use crate::kafka::context::data_throttled;
use crate::kafka::ffi::{NativeRecord, NativeReport};
use crate::kafka::sockets::{SocketEvent, Sockets};
use crate::model::{Partition, weight_of_name};
use crate::ring::Wake;

/// A producer for one topic.
pub(crate) struct WireProducer {
    uplink: Uplink,
    sockets: Sockets,
    /// Who the relay is to the brokers.
    sasl: Option<SaslSection>,
    /// How long a batch waits for more records, in microseconds.
    linger_us: Dial,
    /// When something is to be done though nothing happens.
    deadline: Option<Instant>,
}

impl WireProducer {
    /// Connects when it is polled for the first time, with TLS and SASL if there are settings for them. `wake`
    /// wakes the thread that polls.
    pub(crate) fn new(
        mut settings: Settings,
        tls: Option<Arc<ClientConfig>>,
        sasl: Option<SaslSection>,
        wake: Wake,
    ) -> io::Result<Self> {
        settings.sasl = sasl.as_ref().map(|sasl| sasl.mechanism);
        let sockets = Sockets::new(wake, tls)?;
        let linger_us = u64::try_from(settings.linger.as_micros()).unwrap_or(u64::MAX);
        let (uplink, linger_us) = (Uplink::new(settings), Dial::new(linger_us));
        Ok(Self { uplink, sockets, sasl, linger_us, deadline: None })
    }

    /// How long a batch waits for more records, in microseconds. It may change at any time.
    pub(crate) fn linger_us(&self) -> Dial {
        self.linger_us.clone()
    }

    /// Takes a copy of a record: what was [encoded](Constant::encode) before, and the rest.
    pub(crate) fn produce(
        &mut self,
        partition: Partition,
        (encoded, value): (&[u8], &[u8]),
        unix_ms: i64,
        headers: &impl Headers,
        tag: Tag,
    ) -> Result<(), RDKafkaErrorCode> {
        let constant = Constant::from_bytes(encoded);
        let taken = self.uplink.push(partition.0, (unix_ms, constant, value), headers, tag);
        if taken { Ok(()) } else { Err(RDKafkaErrorCode::UnknownPartition) }
    }

    /// Sends and receives what there is, without waiting, and passes on reports for as long as there is
    /// `room` for what they tell. False if there was nothing. `weighed` says of a token whether the headers of
    /// its record are booked.
    pub(crate) fn poll(
        &mut self,
        room: impl Fn() -> bool,
        weighed: impl Fn(u64) -> bool,
        mut on_report: impl FnMut(NativeReport),
    ) -> bool {
        let Self { uplink, sockets, sasl, linger_us, deadline } = self;
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
                Order::Login { link } => match sasl.as_ref().map_or_else(no_login, login) {
                    Ok((login, nonce)) => uplink.login(link, Ok((&login, nonce)), now),
                    Err(problem) => uplink.login(link, Err(&problem), now),
                },
                Order::Close { link } => sockets.close(link),
            }
        }
        while let Some((broker, throttle_ms)) = uplink.next_throttled() {
            data_throttled(&broker, u64::try_from(throttle_ms).unwrap_or_default());
        }
        any |= uplink.reports(room, |report| {
            let (partition, token) = (Partition(report.partition), report.token);
            on_report(match report.fate {
                Fate::Written { offset, records, booked_bytes } => {
                    let booked_bytes = usize::try_from(booked_bytes).unwrap_or(usize::MAX);
                    NativeReport { partition, records, booked_bytes, token, offset, error: None }
                }
                Fate::Refused(refusal, record) => NativeReport {
                    partition,
                    records: 1,
                    booked_bytes: booked_bytes(&record, weighed(token)),
                    token,
                    offset: -1,
                    error: Some((code(refusal), copy(&record))),
                },
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

/// User and password, which is read each time, so that a new one is used with the next connection; and a
/// nonce.
fn login(sasl: &SaslSection) -> Result<(Login, String), String> {
    let mut random = [0; 16];
    let drawn = SystemRandom::new().fill(&mut random);
    drawn.map_err(|_| "the kernel gives no random numbers".to_owned())?;
    let nonce = format!("{:032x}", u128::from_ne_bytes(random));
    Ok((Login { user: sasl.user.clone(), secret: sasl.password()? }, nonce))
}

fn no_login() -> Result<(Login, String), String> {
    Err("nothing says who the relay is".to_owned())
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

/// What a record was booked as. Of several that were given one after another the sum alone is kept.
fn booked_bytes(record: &Record<'_>, weighed: bool) -> usize {
    let headers = record.headers().filter(|_| weighed);
    let weight: usize = headers.map(|(name, value)| weight_of_name(name, value.len())).sum();
    record.value.map_or(0, <[u8]>::len) + weight
}

fn copy(record: &Record<'_>) -> NativeRecord {
    let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    NativeRecord {
        key: record.key.unwrap_or_default().to_vec(),
        value: record.value.unwrap_or_default().to_vec(),
        headers: record.headers().map(|(of, value)| (name(of), value.to_vec())).collect(),
    }
}
