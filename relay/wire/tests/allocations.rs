//! In the long run the producer allocates nothing: neither for a record nor for a request.
//!
//! So it is while the batches that wait or are on their way have no more memory than it keeps (64 MiB), and
//! apart from its questions about the cluster, one every 10 s.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    ApiVersionsResponse, BrokerId, InitProducerIdResponse, MetadataResponse, ProducerId, TopicName,
};
use kafka_protocol::protocol::{Encodable, StrBytes};
use millrace_wire::batch::{Constant, HEADER_BYTES, Tag};
use millrace_wire::primitive::{Malformed, NO_TAGS, Reader, put_unsigned};
use millrace_wire::uplink::{Fate, LinkId, Order, Settings, Uplink};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const TOPIC: &str = "up";
const BROKERS: u16 = 2;
const WARM_UP: usize = 300;
const ROUNDS: usize = 100;
/// The test runner's own thread allocates a few blocks while it begins to wait for this one.
const BY_THE_RUNNER: u64 = 10;
/// Nothing is asked again within all rounds.
const ROUND: Duration = Duration::from_millis(10);
/// Longer than all that is sent to a broker in a round.
const MOST_BYTES: usize = 16 << 20;
/// Where the number of records stands in a batch.
const PLACE_OF_COUNT: usize = HEADER_BYTES - 4;

/// How much is sent, and how it is answered.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Newest version of Produce that the brokers know.
    produce: i16,
    partitions: u16,
    /// For each partition and round.
    records: u16,
    batch_bytes: usize,
    /// Rounds after which a broker answers.
    late: usize,
}

/// What it took.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    allocated: u64,
    records: u64,
    requests: u64,
}

#[test]
fn records_and_requests_allocate_nothing() {
    let usual = Case { produce: 13, partitions: 8, records: 10, batch_bytes: 1 << 20, late: 0 };
    let cases = [
        usual,
        Case { records: 1000, ..usual },
        Case { produce: 9, ..usual },
        // Batches become full, and several are on their way.
        Case { partitions: 4, records: 100, batch_bytes: 16 << 10, late: 2, ..usual },
        // More pieces than are handed to a socket at a time, and many short batches.
        Case { partitions: 600, ..usual },
    ];
    // One after another: the profiler counts for the whole process.
    for case in cases {
        let measured = measure(case);
        let rounds = ROUNDS as u64;
        let records = rounds * u64::from(case.partitions) * u64::from(case.records);
        assert_eq!(measured.records, records, "{case:?}");
        assert!(measured.requests >= rounds * u64::from(BROKERS), "{case:?}: {measured:?}");
        assert!(measured.allocated <= BY_THE_RUNNER, "{case:?}: {measured:?}");
    }
}

/// Blocks allocated, and records reported, while so many requests were sent.
fn measure(case: Case) -> Measured {
    let _profiler = dhat::Profiler::builder().testing().build();
    let mut now = Instant::now();
    let mut brokers = Brokers::new(case);
    let mut uplink = Uplink::new(Settings {
        topic: TOPIC.into(),
        partitions: case.partitions,
        client_id: "millrace".into(),
        bootstrap: vec![("bootstrap".into(), 9092)],
        batch_bytes: case.batch_bytes,
        sasl: None,
        linger: Duration::ZERO,
        request_timeout: Duration::from_secs(30),
    });
    let headers: [(&[u8], &[u8]); 5] = [
        (b"relay", b"0"),
        (b"connection", &[7; 16]),
        (b"kind", b"message"),
        (b"sequence", &[1; 8]),
        (b"client", b"192.0.2.1:40000"),
    ];
    let (of_all, changing) = headers.split_at(3);
    let encoded = Constant::encode(b"connection", of_all.iter().copied());
    let constant = Constant::from_bytes(&encoded);
    let mut next_offsets = vec![0; case.partitions.into()];
    let (mut reported, mut pushed) = (0, 0);
    let mut before = Measured::default();
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            let allocated = dhat::HeapStats::get().total_blocks;
            before = Measured { allocated, records: pushed, requests: brokers.requests };
        }
        for token in 0..case.records {
            for partition in 0..case.partitions {
                let tag = Tag { token: token.into(), booked_bytes: 100 };
                let record = (1_700_000_000_000, constant, &[b'x'; 100][..]);
                assert!(uplink.push(partition, record, &changing.iter().copied(), tag));
                pushed += 1;
            }
        }
        // Until nothing moves any more.
        let mut is_idle = false;
        while !std::mem::replace(&mut is_idle, true) {
            uplink.advance(now);
            while let Some(order) = uplink.next_order() {
                if let Order::Connect { link, .. } = order {
                    uplink.connected(link, now);
                    is_idle = false;
                }
            }
            uplink.flush(now, |link, slices| Ok(brokers.take(link, slices)));
            brokers.answer(round);
            let late = if round + 1 < WARM_UP + ROUNDS { case.late } else { 0 };
            while let Some((link, answer)) = brokers.next_answer(round, late) {
                uplink.received(link, &answer, now);
                brokers.give_back(answer);
                is_idle = false;
            }
            is_idle &= !uplink.reports(
                || true,
                |report| {
                    let next = &mut next_offsets[usize::from(report.partition)];
                    let Fate::Written { offset, records, .. } = report.fate else {
                        panic!("it is written")
                    };
                    assert_eq!(offset, *next);
                    *next += i64::from(records);
                    reported += u64::from(records);
                },
            );
        }
        now += ROUND;
    }
    let after = dhat::HeapStats::get();
    assert!(uplink.is_settled());
    assert_eq!(reported, pushed);
    Measured {
        allocated: after.total_blocks - before.allocated,
        records: pushed - before.records,
        requests: brokers.requests - before.requests,
    }
}

/// Brokers that take everything at once. What they have to remember of it they remember in memory that
/// they keep.
struct Brokers {
    case: Case,
    /// What has come over each connection and is not answered.
    received: Vec<(LinkId, Vec<u8>)>,
    /// By the round of their requests.
    answers: VecDeque<(usize, LinkId, Vec<u8>)>,
    spare: Vec<Vec<u8>>,
    next_offsets: Vec<i64>,
    /// How many were about records.
    requests: u64,
}

impl Brokers {
    fn new(case: Case) -> Self {
        Self {
            case,
            received: Vec::new(),
            answers: VecDeque::new(),
            spare: Vec::new(),
            next_offsets: vec![0; case.partitions.into()],
            requests: 0,
        }
    }

    fn take(&mut self, link: LinkId, slices: &[IoSlice<'_>]) -> usize {
        let place = self.received.iter().position(|(of, _)| *of == link).unwrap_or_else(|| {
            self.received.push((link, Vec::with_capacity(MOST_BYTES)));
            self.received.len() - 1
        });
        let (_, received) = &mut self.received[place];
        let before = received.len();
        for slice in slices {
            received.extend_from_slice(slice);
        }
        received.len() - before
    }

    /// Makes an answer to each request that has come.
    fn answer(&mut self, round: usize) {
        for place in 0..self.received.len() {
            let link = self.received[place].0;
            let received = std::mem::take(&mut self.received[place].1);
            let mut rest = &received[..];
            while let Some((length, more)) = rest.split_first_chunk::<4>() {
                let (request, more) = more.split_at(u32::from_be_bytes(*length) as usize);
                rest = more;
                let mut answer = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(4096));
                answer.clear();
                answer.extend_from_slice(&[0; 4]);
                self.answer_one(request, &mut answer).expect("a request");
                let length = u32::try_from(answer.len() - 4).expect("short");
                answer[..4].copy_from_slice(&length.to_be_bytes());
                self.answers.push_back((round, link, answer));
            }
            self.received[place].1 = received;
            self.received[place].1.clear();
        }
    }

    /// An answer whose time has come.
    fn next_answer(&mut self, round: usize, late: usize) -> Option<(LinkId, Vec<u8>)> {
        let (of_round, ..) = self.answers.front()?;
        if of_round + late > round {
            return None;
        }
        self.answers.pop_front().map(|(_, link, answer)| (link, answer))
    }

    fn give_back(&mut self, answer: Vec<u8>) {
        self.spare.push(answer);
    }

    fn answer_one(&mut self, request: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        let mut reader = Reader::new(request);
        let (api, version, correlation) = (reader.i16()?, reader.i16()?, reader.i32()?);
        out.extend_from_slice(&correlation.to_be_bytes());
        match api {
            0 => {
                let client = reader.i16()?;
                reader.bytes(usize::try_from(client).expect("a length"))?;
                reader.skip_tags()?;
                self.written(reader, version, out)?;
            }
            3 => {
                out.push(NO_TAGS);
                encode(&metadata(self.case.partitions), version, out);
            }
            18 => encode(&versions(self.case.produce), version, out),
            22 => {
                out.push(NO_TAGS);
                encode(
                    &InitProducerIdResponse::default().with_producer_id(ProducerId(1)),
                    version,
                    out,
                );
            }
            _ => panic!("request {api}"),
        }
        Ok(())
    }

    /// Answers to Produce: everything is written.
    fn written(
        &mut self,
        mut reader: Reader<'_>,
        version: i16,
        out: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        self.requests += 1;
        // No transactional id; from whom it is to be acknowledged, and in what time.
        assert_eq!(reader.compact_length()?, None);
        assert_eq!(reader.i16()?, -1);
        reader.i32()?;
        assert_eq!(reader.array_length()?, 1);
        out.push(NO_TAGS);
        put_unsigned(out, 1 + 1);
        if version >= 13 {
            out.extend_from_slice(&reader.uuid()?);
        } else {
            let name = reader.compact_bytes()?.expect("a name");
            put_unsigned(out, name.len() as u64 + 1);
            out.extend_from_slice(name);
        }
        let count = reader.array_length()?;
        put_unsigned(out, u64::from(count) + 1);
        for _ in 0..count {
            let (partition, batch) = (reader.i32()?, reader.compact_bytes()?.expect("a batch"));
            reader.skip_tags()?;
            let mut records = Reader::new(&batch[PLACE_OF_COUNT..]);
            let next = &mut self.next_offsets[usize::try_from(partition).expect("a partition")];
            out.extend_from_slice(&partition.to_be_bytes());
            out.extend_from_slice(&0_i16.to_be_bytes());
            out.extend_from_slice(&next.to_be_bytes());
            // No time, and where the log begins.
            out.extend_from_slice(&(-1_i64).to_be_bytes());
            out.extend_from_slice(&0_i64.to_be_bytes());
            // Nothing is wrong with records, in no words.
            out.extend_from_slice(&[1, 0, NO_TAGS]);
            *next += i64::from(records.i32()?);
        }
        reader.skip_tags()?;
        reader.skip_tags()?;
        assert!(reader.rest().is_empty());
        out.push(NO_TAGS);
        out.extend_from_slice(&0_i32.to_be_bytes());
        out.push(NO_TAGS);
        Ok(())
    }
}

fn encode(answer: &impl Encodable, version: i16, out: &mut Vec<u8>) {
    let mut bytes = BytesMut::new();
    answer.encode(&mut bytes, version).expect("an answer");
    out.extend_from_slice(&bytes);
}

fn versions(produce: i16) -> ApiVersionsResponse {
    let of = |(key, most)| {
        ApiVersion::default().with_api_key(key).with_min_version(0).with_max_version(most)
    };
    let all = [(0, produce), (3, 12), (18, 3), (22, 4)];
    ApiVersionsResponse::default().with_api_keys(all.map(of).to_vec())
}

/// Partitions are led by the brokers in turn.
fn metadata(partitions: u16) -> MetadataResponse {
    let brokers = (0..BROKERS).map(|node| {
        MetadataResponseBroker::default()
            .with_node_id(BrokerId(node.into()))
            .with_host(StrBytes::from_static_str("broker"))
            .with_port(i32::from(9092 + node))
    });
    let partitions = (0..partitions).map(|partition| {
        MetadataResponsePartition::default()
            .with_partition_index(partition.into())
            .with_leader_id(BrokerId((partition % BROKERS).into()))
            .with_leader_epoch(0)
    });
    let topic = MetadataResponseTopic::default()
        .with_name(Some(TopicName(StrBytes::from_static_str(TOPIC))))
        .with_partitions(partitions.collect());
    MetadataResponse::default().with_brokers(brokers.collect()).with_topics(vec![topic])
}
