//! What brokers answer to the relay's own producer: any answer to each of its questions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use millrace_wire::batch::{Constant, Tag};
use millrace_wire::message::{
    Api, Metadata, Versions, VersionsFormat, read_header, read_init_producer_response,
    read_produce_response,
};
use millrace_wire::primitive::{NO_TAGS, Reader, put_str, put_unsigned};
use millrace_wire::uplink::{Fate, LinkId, Order, Refusal, Settings, Uplink};

use crate::dice::Dice;

const TOPIC: &str = "up";
const PARTITIONS: u16 = 4;
const RECORDS: u64 = 8;
/// The one broker that there is before the input comes.
const NODE: i32 = 1;
const HOST: &str = "broker";
const PORT: u16 = 9092;
const IDENTITY: (i64, i16) = (7, 0);
/// Connections that may be open: to leaders that were named one after another, and to somebody who is asked.
const MOST_LINKS: usize = 16;
/// Calls of `advance` at one time until there is nothing more to do at that time.
const MOST_ROUNDS: usize = 8;

/// Bytes of an answer that stand for a broker, for a partition and for a result, at least.
const BROKER_BYTES: usize = 4 + 1 + 4 + 1 + 1;
const PARTITION_BYTES: usize = 2 + 4 + 4 + 4 + 3 + 1;
const RESULT_BYTES: usize = 4 + 2 + 8 + 8 + 8 + 1 + 1 + 1;

/// What the producer has asked when the input comes. The questions about the cluster and for its identity are
/// asked together, so an input can answer both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    Versions,
    Metadata,
    Identity,
    Records,
}

impl Asked {
    const ALL: [Self; 4] = [Self::Versions, Self::Metadata, Self::Identity, Self::Records];

    const fn api(self) -> Api {
        match self {
            Self::Versions => Api::ApiVersions,
            Self::Metadata => Api::Metadata,
            Self::Identity => Api::InitProducerId,
            Self::Records => Api::Produce,
        }
    }
}

/// The first byte of an input.
#[derive(Clone, Copy, Debug)]
struct Setting {
    /// Two bits.
    asked: Asked,
    /// Three bits: which version of Produce the broker knows.
    produce: i16,
    /// Another bit: the input is the body of the answer, and not what comes over the connection.
    is_body: bool,
}

impl Setting {
    fn of(byte: u8) -> Self {
        let (least, most) = Api::Produce.versions();
        Self {
            asked: Asked::ALL[usize::from(byte & 3)],
            produce: (least + i16::from(byte >> 2 & 7)).min(most),
            is_body: byte >> 5 & 1 == 1,
        }
    }
}

/// Whatever is answered, it does not matter how it is cut; no more is taken from it than it has; each
/// record is reported once, in its partition's order; and the producer neither goes round in circles nor
/// connects without end.
pub fn answer(input: &[u8]) {
    let Some(([setting, seed], bytes)) = input.split_first_chunk() else { return };
    let setting = Setting::of(*setting);
    read(bytes, setting.produce);

    let now = Instant::now();
    let mut producer = Producer::new(setting, now);
    let frame = frame(setting.asked, producer.correlation, bytes);
    let stream = if setting.is_body { &frame } else { bytes };
    producer.receive([stream]);
    let whole = producer.outcome();

    let mut producer = Producer::new(setting, now);
    let mut dice = Dice::new(u64::from(*seed));
    let mut rest = stream;
    producer.receive(std::iter::from_fn(|| {
        let (piece, after) = rest.split_at_checked(dice.below(40)).unwrap_or((rest, &[]));
        let ended = rest.is_empty();
        rest = after;
        (!ended).then_some(piece)
    }));
    assert_eq!(producer.outcome(), whole, "the cuts matter");
}

/// Everything that reads an answer, over the same bytes.
fn read(bytes: &[u8], version: i16) {
    for format in [VersionsFormat::Usual, VersionsFormat::Oldest] {
        let _ = Versions::read(Reader::new(bytes), format);
    }
    let _ = read_init_producer_response(Reader::new(bytes));
    if let Ok(metadata) = Metadata::read(Reader::new(bytes), TOPIC) {
        assert!(metadata.brokers.len() * BROKER_BYTES <= bytes.len());
        let partitions = metadata.topic.map_or(0, |(_, partitions)| partitions.len());
        assert!(partitions * PARTITION_BYTES <= bytes.len());
    }
    let mut results = 0;
    let _ = read_produce_response(Reader::new(bytes), version, |_| results += 1);
    assert!(results * RESULT_BYTES <= bytes.len());
    for asked in Asked::ALL {
        let _ = read_header(bytes, asked.api());
    }
}

/// A producer on its way, and what it has done.
struct Producer {
    uplink: Uplink,
    now: Instant,
    /// The connection on which something is asked, and the number of the question.
    link: LinkId,
    correlation: i32,
    open: Vec<LinkId>,
    did: Did,
}

/// What can be seen of a producer.
#[derive(Debug, Default, PartialEq, Eq)]
struct Did {
    orders: Vec<Order>,
    sent: BTreeMap<LinkId, Vec<u8>>,
    throttled: Vec<(String, i32)>,
    /// Partition, record, and what became of it.
    reports: Vec<(u16, u64, Result<i64, Refusal>)>,
    fatal: Option<String>,
}

impl Producer {
    /// Has asked what the input answers.
    fn new(setting: Setting, now: Instant) -> Self {
        let uplink = Uplink::new(Settings {
            topic: TOPIC.to_owned(),
            partitions: PARTITIONS,
            client_id: "fuzz".to_owned(),
            bootstrap: vec![(HOST.to_owned(), PORT)],
            batch_bytes: 1000,
            sasl: None,
            linger: Duration::ZERO,
            request_timeout: Duration::from_secs(30),
        });
        let (link, correlation) = (LinkId(0), 0);
        let mut producer =
            Self { uplink, now, link, correlation, open: Vec::new(), did: Did::default() };
        producer.work();
        let mut before = Asked::ALL.into_iter().take_while(|asked| *asked < setting.asked);
        if let Some(versions) = before.next() {
            producer.answer(versions, setting.produce);
        }
        // Both questions are asked by now, in this order.
        producer.push();
        producer.work();
        for asked in before {
            producer.answer(asked, setting.produce);
        }
        producer
    }

    fn push(&mut self) {
        for record in 0..RECORDS {
            let partition = u16::try_from(record).expect("few") % PARTITIONS;
            let tag = Tag { token: record, booked_bytes: 1 };
            let header = (&b"name"[..], &b"value"[..]);
            let taken = self.uplink.push(
                partition,
                (1, Constant::NONE, b"value"),
                &[header].into_iter(),
                tag,
            );
            assert!(taken);
        }
    }

    /// Answers what is asked now as a healthy broker does.
    fn answer(&mut self, asked: Asked, produce: i16) {
        let connections = self.open.len();
        self.receive_answer(asked, produce);
        match asked {
            Asked::Versions | Asked::Metadata => self.correlation += 1,
            // The leader is known, and all else that has to be.
            Asked::Identity => {
                assert_eq!(self.open.len(), connections, "the leader is connected to already");
                let leader = *self.open.last().expect("it was connected to");
                (self.link, self.correlation) = (leader, 0);
                self.receive_answer(Asked::Versions, produce);
                self.correlation += 1;
            }
            Asked::Records => {}
        }
    }

    fn receive_answer(&mut self, asked: Asked, produce: i16) {
        let frame = frame(asked, self.correlation, &body(asked, produce));
        self.receive([&*frame]);
        self.work();
        assert!(self.open.contains(&self.link), "a healthy broker is left");
    }

    fn receive<'a>(&mut self, pieces: impl IntoIterator<Item = &'a [u8]>) {
        for piece in pieces {
            self.uplink.received(self.link, piece, self.now);
        }
    }

    /// Does what is due, until nothing is.
    fn work(&mut self) {
        for round in 0.. {
            let due = self.uplink.advance(self.now);
            let ordered = self.obey();
            self.uplink.flush(self.now, |link, slices| {
                let sent = self.did.sent.entry(link).or_default();
                for slice in slices {
                    sent.extend_from_slice(slice);
                }
                Ok(slices.iter().map(|slice| slice.len()).sum())
            });
            if !ordered && due.is_none_or(|then| then > self.now) {
                break;
            }
            assert!(round < MOST_ROUNDS, "it goes round in circles: due {due:?}");
        }
        self.did.throttled.extend(std::iter::from_fn(|| self.uplink.next_throttled()));
        let reports = &mut self.did.reports;
        let reported = |of: millrace_wire::uplink::Report<'_>| {
            // Each record has a token of its own, so each is told of alone.
            let result = match of.fate {
                Fate::Written { offset, records, .. } => {
                    assert_eq!(records, 1);
                    Ok(offset)
                }
                Fate::Refused(refusal, _) => Err(refusal),
            };
            reports.push((of.partition, of.token, result));
        };
        self.uplink.reports(|| true, reported);
    }

    /// Connects and closes as ordered. True if something was.
    fn obey(&mut self) -> bool {
        let before = self.did.orders.len();
        while let Some(order) = self.uplink.next_order() {
            match &order {
                Order::Connect { link, host, port } => {
                    assert!(!self.did.sent.contains_key(link), "a name is used twice");
                    // At the others nobody listens.
                    if (&**host, *port) == (HOST, PORT) {
                        self.open.push(*link);
                        self.uplink.connected(*link, self.now);
                        if self.link == LinkId(0) {
                            self.link = *link;
                        }
                    } else {
                        self.uplink.failed(*link, &"refused", self.now);
                    }
                }
                Order::Login { .. } => panic!("nobody is to be told who we are"),
                Order::Close { link } => self.open.retain(|open| open != link),
            }
            self.did.orders.push(order);
        }
        assert!(self.open.len() <= MOST_LINKS, "{} connections", self.open.len());
        self.did.orders.len() > before
    }

    /// What it does after the input, when nobody answers any more, and when it is told to give up.
    fn outcome(mut self) -> Did {
        for pause in [0, 60, 1_500, 12_000, 31_000] {
            self.now += Duration::from_millis(pause);
            self.work();
        }
        self.uplink.purge(self.now);
        self.work();
        assert!(self.uplink.is_settled());
        self.did.fatal = self.uplink.fatal().map(str::to_owned);

        self.did.sent.values().for_each(|sent| check_frames(sent));
        let mut next: Vec<u64> = (0..PARTITIONS.into()).collect();
        for (partition, record, _) in &self.did.reports {
            let next = &mut next[usize::from(*partition)];
            assert_eq!(record, next, "partition {partition} is reported out of order");
            *next += u64::from(PARTITIONS);
        }
        assert_eq!(self.did.reports.len() as u64, RECORDS);
        self.did
    }
}

/// What was sent over a connection is requests, whole.
fn check_frames(mut sent: &[u8]) {
    while let Some((length, rest)) = sent.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        sent = rest.get(length..).expect("a request of the length that it says");
    }
    assert!(sent.is_empty(), "half a request");
}

/// An answer as it comes over a connection.
fn frame(asked: Asked, correlation: i32, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 4];
    frame.extend_from_slice(&correlation.to_be_bytes());
    if asked != Asked::Versions {
        frame.push(NO_TAGS);
    }
    frame.extend_from_slice(body);
    let length = u32::try_from(frame.len() - 4).expect("short");
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
}

/// What a healthy broker answers.
fn body(asked: Asked, produce: i16) -> Vec<u8> {
    let mut out = Vec::new();
    let no_throttle = 0_i32.to_be_bytes();
    match asked {
        Asked::Versions => {
            let none = 0_i16.to_be_bytes();
            out.extend_from_slice(&none);
            put_unsigned(&mut out, 3 + 1);
            for (api, most) in [
                (Api::Produce, produce),
                (Api::Metadata, Api::Metadata.versions().1),
                (Api::InitProducerId, Api::InitProducerId.versions().1),
            ] {
                for number in [api.key(), 0, most] {
                    out.extend_from_slice(&number.to_be_bytes());
                }
                out.push(NO_TAGS);
            }
            out.extend_from_slice(&no_throttle);
        }
        Asked::Metadata => {
            out.extend_from_slice(&no_throttle);
            put_unsigned(&mut out, 1 + 1);
            out.extend_from_slice(&NODE.to_be_bytes());
            put_str(&mut out, HOST);
            out.extend_from_slice(&i32::from(PORT).to_be_bytes());
            // No rack, no tagged fields, no cluster's id; the controller.
            out.extend_from_slice(&[0, NO_TAGS, 0]);
            out.extend_from_slice(&NODE.to_be_bytes());
            put_unsigned(&mut out, 1 + 1);
            out.extend_from_slice(&[0, 0]);
            put_str(&mut out, TOPIC);
            out.extend_from_slice(&[9; 16]);
            out.push(0);
            put_unsigned(&mut out, u64::from(PARTITIONS) + 1);
            for partition in 0..i32::from(PARTITIONS) {
                out.extend_from_slice(&[0, 0]);
                for number in [partition, NODE, 0] {
                    out.extend_from_slice(&number.to_be_bytes());
                }
                // Replicas: three lists.
                out.extend_from_slice(&[1, 1, 1, NO_TAGS]);
            }
            out.extend_from_slice(&i32::MIN.to_be_bytes());
            out.push(NO_TAGS);
        }
        Asked::Identity => {
            out.extend_from_slice(&no_throttle);
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(&IDENTITY.0.to_be_bytes());
            out.extend_from_slice(&IDENTITY.1.to_be_bytes());
        }
        Asked::Records => {}
    }
    out.push(NO_TAGS);
    out
}
