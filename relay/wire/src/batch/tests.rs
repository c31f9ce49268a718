use bytes::{Bytes, BytesMut};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression, Record as TheirRecord, RecordBatchDecoder, RecordBatchEncoder,
    RecordEncodeOptions, TimestampType,
};
use proptest::prelude::*;

use super::*;

/// A record as it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    time: i64,
    key: Vec<u8>,
    value: Vec<u8>,
    headers: Vec<(String, Vec<u8>)>,
}

impl Given {
    fn headers(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.headers.iter().map(|(name, value)| (name.as_bytes(), &**value))
    }

    fn push(&self, batch: &mut Batch, tag: Tag) {
        assert!(self.push_up_to(usize::MAX, batch, tag));
    }

    /// False if the batch would get longer than that.
    fn push_up_to(&self, most_bytes: usize, batch: &mut Batch, tag: Tag) -> bool {
        let constant = self.headers.len() / 2;
        let encoded = Constant::encode(&self.key, self.headers().take(constant));
        let constant_part = Constant::from_bytes(&encoded);
        let record = (self.time, constant_part, &*self.value);
        let room = (&mut Chunks::default(), most_bytes);
        batch.push(room, record, &self.headers().skip(constant), tag)
    }

    /// The second implementation keeps the last one of headers with the same name.
    fn their_headers(&self) -> IndexMap<StrBytes, Option<Bytes>> {
        let headers = self.headers.iter().cloned();
        headers.map(|(name, value)| (StrBytes::from_string(name), Some(value.into()))).collect()
    }
}

/// Some of them follow each other with the same token.
const fn tag(place: usize) -> Tag {
    Tag { token: !(place as u64 / 3), booked_bytes: 7 }
}

fn batch_of(records: &[Given]) -> Batch {
    let mut batch = Batch::new();
    records.iter().enumerate().for_each(|(place, record)| record.push(&mut batch, tag(place)));
    batch
}

/// None, equal ones, forth and back, and as far apart as a difference can be.
fn times() -> impl Strategy<Value = i64> {
    const NOW: i64 = 1_780_000_000_000;
    prop_oneof![
        2 => Just(-1),
        3 => Just(NOW),
        4 => NOW - 1000..NOW + 1000,
        1 => -(1_i64 << 62)..1 << 62,
        1 => prop::sample::select(vec![i64::MIN / 2, i64::MAX / 2, 0, 63, 64, -64, -65]),
    ]
}

/// Mostly short; with lengths at which the number before them gets longer; sometimes large.
fn payloads() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        12 => prop::collection::vec(any::<u8>(), 0..40),
        4 => prop::sample::select(vec![0, 1, 63, 64, 8191, 8192]).prop_map(|size| vec![b'x'; size]),
        1 => (0..300_000_usize, any::<u8>()).prop_map(|(size, byte)| vec![byte; size]),
    ]
}

fn headers() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let header = (".{0,6}", prop::collection::vec(any::<u8>(), 0..20));
    let empty = Just((String::new(), Vec::new()));
    prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(prop_oneof![8 => header, 1 => empty.clone()], 0..6),
        prop::collection::vec(empty, 60..70),
    ]
}

fn record() -> impl Strategy<Value = Given> {
    (times(), payloads(), payloads(), headers()).prop_map(|(time, key, value, headers)| Given {
        time,
        key,
        value,
        headers,
    })
}

fn records() -> impl Strategy<Value = Vec<Given>> {
    prop_oneof![
        8 => prop::collection::vec(record(), 1..20),
        // So many that their places take two bytes.
        1 => prop::collection::vec(times(), 1..200).prop_map(|times| {
            let bare = |time| Given { time, key: vec![], value: vec![], headers: vec![] };
            times.into_iter().map(bare).collect()
        }),
    ]
}

fn sequences() -> impl Strategy<Value = Sequence> {
    let first = prop_oneof![0..=i32::MAX, i32::MAX - 30..=i32::MAX, Just(0)];
    (any::<i64>(), any::<i16>(), first).prop_map(|(producer_id, epoch, first)| Sequence {
        producer_id,
        epoch,
        first,
    })
}

proptest! {
    #[test]
    fn another_implementation_reads_what_was_given(records in records(), sequence in sequences()) {
        let mut batch = batch_of(&records);
        batch.seal(sequence);
        let bytes = &batch.to_vec();
        prop_assert_eq!(bytes.len(), batch.size());

        let infos = RecordBatchDecoder::decode_batch_info(&mut Bytes::copy_from_slice(bytes)).unwrap();
        let [info] = &infos[..] else { panic!("it is one batch: {infos:?}") };
        prop_assert_eq!(info.record_count, i32::try_from(records.len()).unwrap());
        prop_assert_eq!(info.min_offset, 0);
        prop_assert_eq!(info.min_timestamp, records[0].time);
        prop_assert_eq!(info.timestamp_type, TimestampType::Creation);
        prop_assert_eq!(info.partition_leader_epoch, -1);
        prop_assert_eq!(info.producer_id, sequence.producer_id);
        prop_assert_eq!(info.producer_epoch, sequence.epoch);
        prop_assert_eq!(info.base_sequence, sequence.first);
        prop_assert_eq!(info.compression, Compression::None);
        prop_assert!(!info.transactional && !info.control && !info.delete_horizon);

        // This checks the CRC too, and that each record is as long as it says.
        let mut rest = Bytes::copy_from_slice(bytes);
        let decoded = RecordBatchDecoder::decode(&mut rest).unwrap();
        prop_assert!(rest.is_empty());
        prop_assert_eq!(decoded.records.len(), records.len());
        for ((place, given), theirs) in (0..).zip(&records).zip(&decoded.records) {
            prop_assert_eq!(theirs.offset, i64::from(place));
            prop_assert_eq!(theirs.sequence, sequence.first.wrapping_add(place));
            prop_assert_eq!(theirs.timestamp, given.time);
            prop_assert_eq!(theirs.key.as_deref(), Some(&*given.key));
            prop_assert_eq!(theirs.value.as_deref(), Some(&*given.value));
            prop_assert_eq!(&theirs.headers, &given.their_headers());
        }
    }

    /// It takes the smallest time for the base, and one header of a name.
    #[test]
    fn another_implementation_writes_the_same_bytes(
        mut records in records(),
        sequence in sequences(),
    ) {
        records[0].time = records.iter().map(|of| of.time).min().unwrap();
        for record in &mut records {
            let mut seen = std::collections::BTreeSet::new();
            record.headers.retain(|(name, _)| seen.insert(name.clone()));
        }
        let mut batch = batch_of(&records);
        batch.seal(sequence);
        let theirs: Vec<_> = (0..).zip(&records).map(|(place, given)| TheirRecord {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: sequence.producer_id,
            producer_epoch: sequence.epoch,
            timestamp_type: TimestampType::Creation,
            offset: i64::from(place),
            sequence: sequence.first.wrapping_add(place),
            timestamp: given.time,
            key: Some(given.key.clone().into()),
            value: Some(given.value.clone().into()),
            headers: given.their_headers(),
        }).collect();
        let mut written = BytesMut::new();
        let options = RecordEncodeOptions { version: 2, compression: Compression::None };
        RecordBatchEncoder::encode(&mut written, &theirs, &options).unwrap();
        prop_assert_eq!(batch.to_vec(), &written[..]);
    }

    #[test]
    fn we_read_what_was_given(records in records(), sequence in sequences(), sealed in any::<bool>()) {
        let mut batch = batch_of(&records);
        if sealed {
            batch.seal(sequence);
        }
        prop_assert_eq!(batch.count() as usize, records.len());
        prop_assert!(!batch.is_empty());
        let of_runs = batch.runs().iter().flat_map(|run| {
            (0..run.records).map(|_| (run.token, run.booked_bytes / u64::from(run.records)))
        });
        prop_assert!(of_runs.eq((0..records.len()).map(|place| (tag(place).token, 7))));
        prop_assert_eq!(batch.runs().len(), records.len().div_ceil(3));
        let mut read = batch.records();
        for (place, given) in records.iter().enumerate() {
            prop_assert!(!read.is_empty());
            let (ours, token) = read.read().expect("it is there");
            prop_assert_eq!(token, tag(place).token);
            prop_assert_eq!(ours.offset_delta, i32::try_from(place).unwrap());
            prop_assert_eq!(records[0].time + ours.time_delta, given.time);
            prop_assert_eq!(ours.key, Some(&*given.key));
            prop_assert_eq!(ours.value, Some(&*given.value));
            prop_assert!(ours.headers().eq(given.headers()));
        }
        prop_assert!(read.is_empty() && read.read().is_none());
    }

    #[test]
    fn sealed_again_it_differs_in_its_sequence_alone(
        records in records(),
        [one, other] in [sequences(), sequences()],
    ) {
        let mut batch = batch_of(&records);
        batch.seal(one);
        let first = batch.to_vec();
        batch.seal(other);
        let second = batch.to_vec();
        prop_assert!(RecordBatchDecoder::decode(&mut Bytes::copy_from_slice(&second)).is_ok());
        let without = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[place::CRC..place::ATTRIBUTES].fill(0);
            bytes[place::PRODUCER_ID..place::COUNT].fill(0);
            bytes
        };
        prop_assert_eq!(without(&first), without(&second));

        let third = Sequence { first: one.first, ..other };
        batch.seal(third);
        let third = batch.to_vec();
        prop_assert_eq!(&third[place::PRODUCER_ID..place::BASE_SEQUENCE], &second[place::PRODUCER_ID..place::BASE_SEQUENCE]);
        prop_assert_eq!(&third[place::BASE_SEQUENCE..place::COUNT], one.first.to_be_bytes());

        batch.seal(one);
        prop_assert_eq!(batch.to_vec(), &first[..]);
    }

    /// A batch that was sealed takes further records all the same.
    #[test]
    fn when_it_is_sealed_does_not_matter(records in records(), sequence in sequences()) {
        let mut batch = Batch::new();
        for (place, record) in records.iter().enumerate() {
            batch.seal(Sequence { first: 3, ..sequence });
            record.push(&mut batch, tag(place));
        }
        batch.seal(sequence);
        let mut at_once = batch_of(&records);
        at_once.seal(sequence);
        prop_assert_eq!(batch.to_vec(), at_once.to_vec());
    }

    #[test]
    fn what_is_not_taken_was_never_there(
        records in records(),
        last in record(),
        sequence in sequences(),
    ) {
        let mut batch = batch_of(&records);
        let size = batch.size();
        prop_assert!(!last.push_up_to(size, &mut batch, tag(7)));
        prop_assert_eq!((batch.size(), batch.count() as usize), (size, records.len()));
        batch.seal(sequence);
        let mut without = batch_of(&records);
        without.seal(sequence);
        prop_assert_eq!(batch.to_vec(), without.to_vec());
        prop_assert_eq!(batch.runs(), without.runs());
        for batch in [&mut batch, &mut without] {
            last.push(batch, tag(7));
            batch.seal(sequence);
        }
        prop_assert_eq!(batch.to_vec(), without.to_vec());
        // It is taken where there is just room for it, or nothing before it.
        let mut again = batch_of(&records);
        prop_assert!(!last.push_up_to(batch.size() - 1, &mut again, tag(7)));
        prop_assert!(last.push_up_to(batch.size(), &mut again, tag(7)));
        prop_assert!(last.push_up_to(0, &mut Batch::new(), tag(7)));
    }

    #[test]
    fn sequence_numbers_are_those_below_2_to_the_31(first in 0..=i32::MAX, count in any::<u32>()) {
        let expected = (u64::from(first.cast_unsigned()) + u64::from(count)) % (1 << 31);
        prop_assert_eq!(u64::try_from(sequence_after(first, count)), Ok(expected));
    }

    #[test]
    fn after_it_was_cleared_it_is_like_a_new_one(
        [before, after] in [records(), records()],
        sequence in sequences(),
    ) {
        let (mut batch, mut chunks) = (batch_of(&before), Chunks::default());
        batch.seal(sequence);
        let count = batch.pieces().count();
        batch.clear(&mut chunks);
        prop_assert_eq!(chunks.count(), count);
        prop_assert!(batch.is_empty() && batch.records().is_empty() && batch.runs().is_empty());
        prop_assert_eq!((batch.size(), batch.count(), batch.pieces().count()), (0, 0, 0));

        for (place, given) in after.iter().enumerate() {
            // What stands in memory that is used again does not matter.
            let encoded = Constant::encode(&given.key, given.headers());
            let record = (given.time, Constant::from_bytes(&encoded), &*given.value);
            batch.push((&mut chunks, usize::MAX), record, &std::iter::empty(), tag(place));
        }
        batch.seal(sequence);
        let mut new = batch_of(&after);
        new.seal(sequence);
        prop_assert_eq!(batch.to_vec(), new.to_vec());
    }
}

#[test]
fn after_the_last_sequence_number_comes_the_first() {
    for (first, count, next) in [
        (0, 0, 0),
        (0, 5, 5),
        (i32::MAX, 0, i32::MAX),
        (i32::MAX, 1, 0),
        (i32::MAX - 4, 5, 0),
        (i32::MAX - 4, 7, 2),
    ] {
        assert_eq!(sequence_after(first, count), next, "{first} and {count}");
    }
}

#[test]
fn an_empty_batch_has_nothing() {
    let mut batch = Batch::new();
    batch.seal(Sequence { producer_id: 1, epoch: 2, first: 3 });
    assert_eq!((batch.to_vec(), batch.count(), batch.size()), (vec![], 0, 0));
    assert!(batch.is_empty() && batch.records().is_empty() && batch.runs().is_empty());
    assert!(batch.records().read().is_none());
}

/// Names of headers are texts by convention only.
#[test]
fn names_of_headers_are_bytes_for_us() {
    let header = (&b"\xff\xfe"[..], &b"\x80"[..]);
    let mut batch = Batch::new();
    let room = (&mut Chunks::default(), usize::MAX);
    batch.push(room, (0, Constant::NONE, b""), &[header, header].into_iter(), tag(0));
    let mut records = batch.records();
    let (record, _) = records.read().unwrap();
    assert_eq!(record.headers().collect::<Vec<_>>(), [header, header]);
}

/// By <https://kafka.apache.org/documentation/#recordbatch>. The CRC is that of the bytes after it, by the
/// polynomial 0x1EDC6F41, calculated bit by bit.
#[test]
fn the_bytes_are_as_documented() {
    #[rustfmt::skip]
    const BATCH: [u8; 80] = [
        // baseOffset, batchLength: 80 - 12
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 68,
        // partitionLeaderEpoch, magic, crc
        0xff, 0xff, 0xff, 0xff,
        2,
        0x23, 0xfb, 0x78, 0xe0,
        // attributes, lastOffsetDelta
        0, 0,
        0, 0, 0, 1,
        // baseTimestamp and maxTimestamp: 1000
        0, 0, 0, 0, 0, 0, 0x03, 0xe8,
        0, 0, 0, 0, 0, 0, 0x03, 0xe8,
        // producerId, producerEpoch, baseSequence
        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08,
        0x09, 0x0a,
        0x0b, 0x0c, 0x0d, 0x0e,
        // the number of records
        0, 0, 0, 2,
        // length 11, attributes, timestampDelta 0, offsetDelta 0
        22, 0, 0, 0,
        // key, value
        2, b'k', 2, b'v',
        // one header, with an empty value
        2, 2, b'h', 0,
        // length 6, attributes, timestampDelta -2, offsetDelta 1
        12, 0, 3, 2,
        // an empty key, an empty value, no headers
        0, 0, 0,
    ];
    let mut batch = Batch::new();
    let key = Constant::encode(b"k", std::iter::empty());
    let (mut chunks, most) = (Chunks::default(), usize::MAX);
    let header = [(&b"h"[..], &b""[..])].into_iter();
    batch.push((&mut chunks, most), (1000, Constant::from_bytes(&key), b"v"), &header, tag(0));
    batch.push((&mut chunks, most), (998, Constant::NONE, b""), &std::iter::empty(), tag(1));
    batch.seal(Sequence { producer_id: 0x0102_0304_0506_0708, epoch: 0x090a, first: 0x0b0c_0d0e });
    assert_eq!(batch.to_vec(), BATCH);
}
