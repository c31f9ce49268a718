use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use proptest::prelude::*;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};

use super::super::fetch::Fetcher;
use super::super::reader::{Known, TopicReader};
use super::*;

proptest! {
    #[test]
    fn a_batch_is_passed_whole_and_nothing_else(
        batches in prop::collection::vec((1..300_i64, any::<bool>()), 1..12),
        at: prop::sample::Index,
    ) {
        let mut log = Vec::new();
        for (length, readable) in batches {
            let first = i64::try_from(log.len()).expect("short");
            log.extend((0..length).map(|_| (first, readable)));
        }
        let index = at.index(log.len());
        let offset = |index: usize| i64::try_from(index).expect("short");
        let mut looks = 0;
        let found = extent(offset(index), offset(log.len()), |offset| {
            looks += 1;
            let (first, readable) = log[usize::try_from(offset).expect("in the log")];
            Ok((!readable).then_some(first))
        }).expect("answers");
        let (first, readable) = log[index];
        let last = log.iter().rposition(|of| of.0 == first).expect("itself");
        prop_assert_eq!(found, (!readable).then(|| offset(index)..offset(last + 1)));
        prop_assert!(looks < 24, "{} looks", looks);
    }
}

/// A batch of version 2 that says to be compressed by gzip, and is not.
fn nonsense(records: u32) -> Vec<u8> {
    let mut batch = Vec::new();
    batch.extend([0; 4]); // The leader's epoch.
    batch.push(2);
    batch.extend([0; 4]); // The checksum, which is not looked at.
    batch.extend([0, 1]); // gzip
    batch.extend((records - 1).to_be_bytes());
    batch.extend(1_000_000_i64.to_be_bytes());
    batch.extend(1_000_000_i64.to_be_bytes());
    batch.extend([0xff; 8 + 2 + 4]); // No producer.
    batch.extend(records.to_be_bytes());
    batch.extend(b"this is no gzip");
    let length = u32::try_from(batch.len()).expect("short");
    [&[0; 8][..], &length.to_be_bytes(), &batch].concat()
}

/// Writes a batch as it is (Produce, version 7).
fn write(brokers: &str, topic: &str, batch: &[u8]) {
    let text = |text: &str| {
        [&u16::try_from(text.len()).expect("short").to_be_bytes()[..], text.as_bytes()].concat()
    };
    let number = |number: usize| u32::try_from(number).expect("short").to_be_bytes();
    let request = [
        &[0, 0, 0, 7, 0, 0, 0, 1][..], // Produce, version, correlation
        &text("a test"),
        &[0xff, 0xff], // no transaction
        &[0xff, 0xff], // acks: all
        &number(5000),
        &number(1),
        &text(topic),
        &number(1),
        &number(0),
        &number(batch.len()),
        batch,
    ]
    .concat();
    let mut stream = TcpStream::connect(brokers).expect("the mock cluster listens");
    stream.write_all(&[&number(request.len())[..], &request].concat()).expect("taken");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("an answer");
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).expect("an answer");
    // Correlation, topics, name, partitions, partition, error.
    let error = 4 + 4 + 2 + topic.len() + 4 + 4;
    assert_eq!(answer[error..error + 2], [0, 0], "the mock cluster takes it: {answer:?}");
}

struct Log {
    _cluster: MockCluster<'static, DefaultProducerContext>,
    kafka: KafkaSection,
    producer: BaseProducer,
}

impl Log {
    fn new() -> Self {
        let cluster = MockCluster::new(1).expect("a cluster");
        cluster.create_topic("topic", 1, 1).expect("a topic");
        let kafka =
            KafkaSection { brokers: cluster.bootstrap_servers(), ..KafkaSection::default() };
        let producer = client_config(&kafka).create().expect("a producer");
        Self { _cluster: cluster, kafka, producer }
    }

    fn record(&self, value: &str) {
        let record = BaseRecord::<(), str>::to("topic").partition(0).payload(value);
        self.producer.send(record).expect("room");
        self.producer.flush(Duration::from_secs(10)).expect("written");
    }

    fn nonsense(&self, records: u32) {
        write(&self.kafka.brokers, "topic", &nonsense(records));
    }
}

#[test]
fn a_log_is_read_past_what_cannot_be() {
    let log = Log::new();
    log.record("a");
    log.nonsense(70);
    log.nonsense(3);
    log.record("b");
    let at = |from| unreadable_at(&log.kafka, ("topic", 0), from).expect("answers");
    assert_eq!([at(0), at(74)], [None, None]);
    assert_eq!([at(1), at(30), at(71)], [Some(1..71), Some(30..71), Some(71..74)]);

    let mut reader = TopicReader::open(&log.kafka, "topic".to_owned(), "reader", Known::Made)
        .expect("the topic is there");
    let mut read = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    while reader.behind() > 0 {
        assert!(Instant::now() < deadline, "stuck at {read:?}");
        let _ = reader.read(POLL, 10, |record| read.push(rdkafka::Message::offset(record)));
    }
    assert_eq!(read, [0, 74]);
    assert_eq!(reader.take_unreadable(), 73);

    let mut again = Vec::new();
    let mut fetcher = Fetcher::new(&log.kafka).expect("a client");
    fetcher
        .read(
            ("topic", 0),
            [0, 1, 40, 73, 74],
            || false,
            |offset, record| {
                again.push((offset, record.is_some()));
            },
        )
        .expect("read");
    assert_eq!(again, [(0, true), (1, false), (40, false), (73, false), (74, true)]);
}
