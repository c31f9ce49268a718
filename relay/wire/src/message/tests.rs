//! Against another implementation of the protocol.

mod answers;
mod refused;
mod requests;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{BrokerId, ResponseHeader, TopicName};
use kafka_protocol::protocol::{Encodable, StrBytes};
use proptest::prelude::*;

use super::*;

const TOPIC: &str = "up";

/// Tagged fields that nobody knows yet.
fn tags() -> impl Strategy<Value = BTreeMap<i32, Bytes>> {
    let value = prop::collection::vec(any::<u8>(), 0..10).prop_map(Bytes::from);
    prop_oneof![
        3 => Just(BTreeMap::new()),
        1 => prop::collection::btree_map(1000..i32::MAX, value, 1..3),
    ]
}

fn texts() -> impl Strategy<Value = StrBytes> {
    prop_oneof![6 => ".{0,12}", 1 => ".{120,130}"].prop_map(StrBytes::from_string)
}

fn nullable_texts() -> impl Strategy<Value = Option<StrBytes>> {
    prop::option::of(texts())
}

fn nodes() -> impl Strategy<Value = Vec<BrokerId>> {
    prop::collection::vec(any::<i32>().prop_map(BrokerId), 0..4)
}

fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

/// The body of an answer.
fn body(answer: &impl Encodable, version: i16) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    answer.encode(&mut bytes, version).unwrap();
    bytes.to_vec()
}

/// An answer's header, of version 0 or 1.
fn header(correlation: i32, tags: BTreeMap<i32, Bytes>, version: i16) -> Vec<u8> {
    let header =
        ResponseHeader::default().with_correlation_id(correlation).with_unknown_tagged_fields(tags);
    body(&header, version)
}
