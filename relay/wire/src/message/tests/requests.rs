//! What we ask is what the other implementation understands.

use kafka_protocol::messages::{
    ApiVersionsRequest, InitProducerIdRequest, MetadataRequest, ProduceRequest as TheirProduce,
    RequestHeader,
};
use kafka_protocol::protocol::{Decodable, decode_request_header_from_buffer};
use kafka_protocol::records::RecordBatchDecoder;

use super::*;
use crate::batch::{Batch, Chunks, Constant, Sequence, Tag};

/// The longest text that a request's header has room for.
const MOST_CLIENT_BYTES: usize = 32_767;

/// Reads a whole frame, which has nothing but the one request.
fn read<R: Decodable>(frame: &[u8]) -> (RequestHeader, R) {
    let (length, rest) = frame.split_first_chunk::<4>().unwrap();
    assert_eq!(u32::from_be_bytes(*length) as usize, rest.len(), "the frame's length");
    let mut rest = Bytes::copy_from_slice(rest);
    let header = decode_request_header_from_buffer(&mut rest).unwrap();
    let request = R::decode(&mut rest, header.request_api_version).unwrap();
    assert!(rest.is_empty(), "left over: {rest:?}");
    (header, request)
}

fn check(header: &RequestHeader, (key, version): (i16, i16), (correlation, client): (i32, &str)) {
    assert_eq!((header.request_api_key, header.request_api_version), (key, version));
    assert_eq!(header.correlation_id, correlation);
    assert_eq!(header.client_id.as_deref(), Some(client));
    assert!(header.unknown_tagged_fields.is_empty());
}

fn clients() -> impl Strategy<Value = String> {
    prop_oneof![".{0,20}", Just(String::new()), Just("x".repeat(MOST_CLIENT_BYTES))]
}

/// Partitions and their batches.
fn batches() -> impl Strategy<Value = Vec<(i32, Batch)>> {
    let value = prop_oneof![0..200_usize, 16_000..17_000_usize];
    let records = prop::collection::vec(value, 1..4);
    prop::collection::vec((any::<i32>(), records), 1..6).prop_map(|partitions| {
        let fill = |(partition, records): (i32, Vec<usize>)| {
            let mut batch = Batch::new();
            for size in records {
                let header = (&b"name"[..], &b"value"[..]);
                let tag = Tag { token: 0, booked_bytes: 0 };
                let key = Constant::encode(b"key", std::iter::empty());
                let key = Constant::from_bytes(&key);
                let (room, value) = ((&mut Chunks::default(), usize::MAX), vec![b'v'; size]);
                batch.push(room, (1, key, &value), &[header].into_iter(), tag);
            }
            batch.seal(Sequence { producer_id: 1, epoch: 2, first: partition & i32::MAX });
            (partition, batch)
        };
        partitions.into_iter().map(fill).collect()
    })
}

proptest! {
    #[test]
    fn versions(correlation in any::<i32>(), client in clients()) {
        let mut frame = Vec::new();
        put_versions_request(&mut frame, VersionsFormat::Usual, correlation, &client);
        let (header, request) = read::<ApiVersionsRequest>(&frame);
        check(&header, (18, 3), (correlation, &client));
        prop_assert_eq!(request.client_software_name.as_str(), "millrace");
        prop_assert_eq!(request.client_software_version.as_str(), env!("CARGO_PKG_VERSION"));
        prop_assert!(request.unknown_tagged_fields.is_empty());
    }

    /// With a header of version 1, which has no tags, and without a body.
    #[test]
    fn versions_in_the_oldest_format(correlation in any::<i32>(), client in clients()) {
        let mut frame = Vec::new();
        put_versions_request(&mut frame, VersionsFormat::Oldest, correlation, &client);
        let mut bytes = bytes::Bytes::copy_from_slice(&frame[4..]);
        let header = RequestHeader::decode(&mut bytes, 1).unwrap();
        check(&header, (18, 0), (correlation, &client));
        prop_assert!(bytes.is_empty());
    }

    #[test]
    fn metadata(correlation in any::<i32>(), client in clients(), topic in "[a-zA-Z0-9._-]{0,249}") {
        let mut frame = Vec::new();
        put_metadata_request(&mut frame, correlation, &client, &topic);
        let (header, request) = read::<MetadataRequest>(&frame);
        check(&header, (3, 12), (correlation, &client));
        let topics = request.topics.unwrap();
        prop_assert_eq!(topics.len(), 1);
        prop_assert_eq!(&topics[0].name, &Some(topic_name(&topic)));
        prop_assert!(topics[0].topic_id.is_nil());
        prop_assert!(!request.allow_auto_topic_creation);
        prop_assert!(!request.include_topic_authorized_operations);
        prop_assert!(request.unknown_tagged_fields.is_empty());
    }

    #[test]
    fn producer_identity(correlation in any::<i32>(), client in clients()) {
        let mut frame = Vec::new();
        put_init_producer_request(&mut frame, correlation, &client);
        let (header, request) = read::<InitProducerIdRequest>(&frame);
        check(&header, (22, 4), (correlation, &client));
        prop_assert_eq!(request.transactional_id, None);
        prop_assert_eq!((request.producer_id.0, request.producer_epoch), (-1, -1));
        prop_assert!(request.unknown_tagged_fields.is_empty());
    }

    #[test]
    fn records(
        version in 9..=13_i16,
        (correlation, client) in (any::<i32>(), clients()),
        (topic, topic_id) in ("[a-zA-Z0-9._-]{1,249}", any::<[u8; 16]>()),
        timeout_ms in any::<i32>(),
        batches in batches(),
    ) {
        let who = (correlation, &*client);
        let mut request =
            ProduceRequest::new(Vec::new(), version, who, (&topic, topic_id), timeout_ms, batches.len());
        let mut behind_head = Vec::new();
        for (partition, batch) in &batches {
            request.partition(&mut behind_head, *partition, batch.size());
            behind_head.extend_from_slice(&batch.to_vec());
        }
        let mut frame = request.end(&mut behind_head);
        frame.extend_from_slice(&behind_head);

        let (header, request) = read::<TheirProduce>(&frame);
        check(&header, (0, version), who);
        prop_assert_eq!(request.transactional_id, None);
        prop_assert_eq!((request.acks, request.timeout_ms), (-1, timeout_ms));
        prop_assert!(request.unknown_tagged_fields.is_empty());
        let [theirs] = &request.topic_data[..] else { panic!("it is about one topic") };
        if version >= 13 {
            prop_assert_eq!(theirs.topic_id.into_bytes(), topic_id);
        } else {
            prop_assert_eq!(&theirs.name, &topic_name(&topic));
        }
        prop_assert!(theirs.unknown_tagged_fields.is_empty());
        prop_assert_eq!(theirs.partition_data.len(), batches.len());
        for ((partition, batch), theirs) in batches.iter().zip(&theirs.partition_data) {
            prop_assert_eq!(theirs.index, *partition);
            prop_assert!(theirs.unknown_tagged_fields.is_empty());
            let mut bytes = theirs.records.clone().unwrap();
            prop_assert_eq!(&bytes[..], batch.to_vec());
            let read = RecordBatchDecoder::decode(&mut bytes).unwrap();
            prop_assert_eq!(read.records.len(), batch.count() as usize);
            prop_assert_eq!(read.records[0].sequence, *partition & i32::MAX);
        }
    }
}

/// It is cut, and not within a letter.
#[test]
fn a_client_id_is_cut_to_what_there_is_room_for() {
    for (client, kept) in [("x", 32_767), ("\u{20ac}", 32_766), ("\u{1f600}", 32_764)] {
        let client = client.repeat(20_000);
        let client = if client.len() < MOST_CLIENT_BYTES { client.repeat(2) } else { client };
        let mut frame = Vec::new();
        put_metadata_request(&mut frame, 7, &client, TOPIC);
        let (header, _) = read::<MetadataRequest>(&frame);
        check(&header, (3, 12), (7, &client[..kept]));
    }
}
