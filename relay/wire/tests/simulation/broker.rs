//! A broker's side of the protocol, read and written by another implementation than ours.

use std::str::FromStr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse,
    TopicProduceResponse,
};
use kafka_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, BrokerId, InitProducerIdRequest,
    InitProducerIdResponse, MetadataRequest, MetadataResponse, ProduceRequest, ProduceResponse,
    ProducerId, RequestHeader, ResponseHeader, SaslAuthenticateRequest, SaslAuthenticateResponse,
    SaslHandshakeRequest, SaslHandshakeResponse, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use kafka_protocol::records::RecordBatchDecoder;

use crate::cluster::{Cluster, Odd, TOPIC};
use crate::dice::Dice;
use crate::log::Incoming;

const SASL_HANDSHAKE: i16 = 17;

/// What a request says of who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    Nothing,
    Mechanism,
    Login,
    /// That it is known.
    Known,
}

/// A request that has come.
#[derive(Debug)]
pub(crate) struct Request {
    correlation: i32,
    version: i16,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Versions,
    Mechanism,
    Login,
    Metadata,
    Identity,
    Produce(Option<u128>, Vec<(usize, Incoming)>),
}

impl Request {
    /// Reads a request, without its length.
    pub(crate) fn read(mut frame: Bytes) -> Self {
        let is_flexible = frame[..2] != SASL_HANDSHAKE.to_be_bytes();
        let header = RequestHeader::decode(&mut frame, if is_flexible { 2 } else { 1 });
        let header = header.expect("a header");
        let version = header.request_api_version;
        let body = match (header.request_api_key, version) {
            (18, 3) => {
                let request = ApiVersionsRequest::decode(&mut frame, version).expect("ApiVersions");
                assert_eq!(&*request.client_software_name, "millrace");
                Body::Versions
            }
            (SASL_HANDSHAKE, 1) => {
                let request =
                    SaslHandshakeRequest::decode(&mut frame, version).expect("SaslHandshake");
                assert_eq!(&*request.mechanism, "PLAIN");
                Body::Mechanism
            }
            (36, 2) => {
                let request =
                    SaslAuthenticateRequest::decode(&mut frame, version).expect("SaslAuthenticate");
                assert_eq!(&*request.auth_bytes, b"\0simulation\0secret");
                Body::Login
            }
            (3, 12) => {
                let request = MetadataRequest::decode(&mut frame, version).expect("Metadata");
                let topics = request.topics.expect("topics");
                assert_eq!(topics.len(), 1);
                assert_eq!(topics[0].name.as_ref().map(|name| &***name), Some(TOPIC));
                assert!(!request.allow_auto_topic_creation);
                Body::Metadata
            }
            (22, 4) => {
                let request =
                    InitProducerIdRequest::decode(&mut frame, version).expect("InitProducerId");
                assert_eq!(request.transactional_id, None);
                assert_eq!((*request.producer_id, request.producer_epoch), (-1, -1));
                Body::Identity
            }
            (0, 9..=13) => produce(&mut frame, version),
            other => panic!("request {other:?}"),
        };
        assert!(frame.is_empty(), "{} bytes behind a request", frame.len());
        Self { correlation: header.correlation_id, version, body }
    }

    /// The partitions whose records it has; none if it has no records.
    pub(crate) fn partitions(&self) -> Option<Vec<usize>> {
        match &self.body {
            Body::Produce(_, batches) => Some(batches.iter().map(|(of, _)| *of).collect()),
            _ => None,
        }
    }

    /// What it says of who asks.
    pub(crate) fn says(&self) -> Says {
        match self.body {
            Body::Versions => Says::Nothing,
            Body::Mechanism => Says::Mechanism,
            Body::Login => Says::Login,
            _ => Says::Known,
        }
    }

    /// Carries it out; the answer.
    pub(crate) fn answer(
        &self,
        cluster: &mut Cluster,
        node: usize,
        dice: &mut Dice,
        now: Duration,
    ) -> Bytes {
        let throttle = cluster.faults.throttle;
        let throttle_ms = if throttle > 0 && dice.one_in(throttle) { dice.below(800) } else { 0 };
        let throttle_ms = i32::try_from(throttle_ms).expect("small");
        match &self.body {
            Body::Versions => {
                let incomplete = cluster.faults.incomplete;
                let is_old = incomplete > 0 && dice.one_in(incomplete);
                let produce_max = if is_old { 8 } else { cluster.produce_max };
                self.encode(0, &versions(produce_max))
            }
            Body::Mechanism => {
                let plain = StrBytes::from_static_str("PLAIN");
                let answer = SaslHandshakeResponse::default().with_mechanisms(vec![plain]);
                let is_refused = cluster.refuses_login(dice);
                self.encode(0, &answer.with_error_code(if is_refused { 33 } else { 0 }))
            }
            Body::Login => {
                let mut answer = SaslAuthenticateResponse::default();
                if cluster.refuses_login(dice) {
                    answer.error_code = 58;
                    answer.error_message = Some(StrBytes::from_static_str("not today"));
                }
                let holds = cluster.login.expect("somebody wants it").as_millis();
                answer.session_lifetime_ms = i64::try_from(holds).expect("short");
                self.encode(1, &answer)
            }
            Body::Metadata => {
                let answer = metadata(cluster, node, dice, now);
                self.encode(1, &answer.with_throttle_time_ms(throttle_ms))
            }
            Body::Identity => {
                let answer = match cluster.identity(dice) {
                    Ok(id) => InitProducerIdResponse::default()
                        .with_producer_id(ProducerId(id))
                        .with_producer_epoch(0),
                    Err(code) => InitProducerIdResponse::default()
                        .with_error_code(code)
                        .with_producer_id(ProducerId(-1))
                        .with_producer_epoch(-1),
                };
                self.encode(1, &answer.with_throttle_time_ms(throttle_ms))
            }
            Body::Produce(topic_id, batches) => {
                assert!(self.version <= cluster.produce_max, "Produce {}", self.version);
                let results = batches.iter().map(|(partition, batch)| {
                    let result = cluster.produce((node, *partition), *topic_id, batch, dice, now);
                    self.result(*partition, result, dice)
                });
                let mut results: Vec<_> = results.collect();
                let incomplete = cluster.faults.incomplete;
                if incomplete > 0 && dice.one_in(incomplete) {
                    results.swap_remove(dice.below(results.len()));
                }
                let mut topic = TopicProduceResponse::default().with_partition_responses(results);
                if let Some(id) = topic_id {
                    topic.topic_id = uuid(*id);
                } else {
                    topic.name = name();
                }
                let mut answer = ProduceResponse::default()
                    .with_responses(vec![topic])
                    .with_throttle_time_ms(throttle_ms);
                if self.version >= 10 && dice.one_in(2) {
                    answer.node_endpoints = vec![NodeEndpoint::default().with_node_id(BrokerId(1))];
                }
                self.encode(1, &answer)
            }
        }
    }

    /// An answer about a batch, with all that brokers may tell besides.
    fn result(
        &self,
        partition: usize,
        result: Result<i64, i16>,
        dice: &mut Dice,
    ) -> PartitionProduceResponse {
        let mut told = PartitionProduceResponse::default()
            .with_index(i32::try_from(partition).expect("small"))
            .with_error_code(result.err().unwrap_or_default())
            .with_base_offset(result.unwrap_or(-1));
        if result.is_err() && dice.one_in(2) {
            let record = BatchIndexAndErrorMessage::default()
                .with_batch_index(0)
                .with_batch_index_error_message(Some(StrBytes::from_static_str("this one")));
            told.record_errors = vec![record; dice.below(3)];
            told.error_message = Some(StrBytes::from_static_str("it failed"));
            if self.version >= 10 {
                told.current_leader =
                    LeaderIdAndEpoch::default().with_leader_id(BrokerId(1)).with_leader_epoch(0);
            }
        }
        told
    }

    fn encode(&self, header_version: i16, answer: &impl Encodable) -> Bytes {
        let mut body = BytesMut::new();
        ResponseHeader::default()
            .with_correlation_id(self.correlation)
            .encode(&mut body, header_version)
            .expect("a header");
        answer.encode(&mut body, self.version).expect("an answer");
        let length = u32::try_from(body.len()).expect("short");
        let mut framed = BytesMut::from(&length.to_be_bytes()[..]);
        framed.extend_from_slice(&body);
        framed.freeze()
    }
}

fn produce(frame: &mut Bytes, version: i16) -> Body {
    let request = ProduceRequest::decode(frame, version).expect("Produce");
    assert_eq!((request.acks, request.transactional_id), (-1, None));
    assert_eq!(request.topic_data.len(), 1, "topics");
    let topic = &request.topic_data[0];
    let topic_id = if version >= 13 {
        Some(topic.topic_id.as_u128())
    } else {
        assert_eq!(&**topic.name, TOPIC);
        None
    };
    let mut batches: Vec<(usize, Incoming)> = Vec::new();
    for of in &topic.partition_data {
        let partition = usize::try_from(of.index).expect("a partition");
        assert!(batches.iter().all(|(other, _)| *other != partition), "twice in a request");
        batches.push((partition, batch(of.records.clone().expect("records"))));
    }
    assert!(!batches.is_empty(), "a request without records");
    Body::Produce(topic_id, batches)
}

fn batch(mut bytes: Bytes) -> Incoming {
    let records = RecordBatchDecoder::decode(&mut bytes).expect("a batch").records;
    assert!(bytes.is_empty(), "one batch of a partition");
    let first = records.first().expect("a record");
    assert!(first.sequence >= 0 && first.producer_id >= 0 && first.producer_epoch >= 0);
    for (record, place) in records.iter().zip(0..) {
        assert_eq!(record.offset, place, "offsets in a batch");
    }
    Incoming {
        producer: first.producer_id,
        epoch: first.producer_epoch,
        first: first.sequence,
        values: records.iter().map(|record| record.value.clone().expect("a value")).collect(),
    }
}

fn versions(produce_max: i16) -> ApiVersionsResponse {
    let keys = [(0, 0, produce_max), (3, 0, 13), (18, 0, 4), (22, 0, 5), (1, 4, 17)];
    let keys = keys.map(|(key, least, most)| {
        ApiVersion::default().with_api_key(key).with_min_version(least).with_max_version(most)
    });
    ApiVersionsResponse::default().with_api_keys(keys.to_vec())
}

fn metadata(
    cluster: &mut Cluster,
    node: usize,
    dice: &mut Dice,
    now: Duration,
) -> MetadataResponse {
    let of_node = |node: usize| BrokerId(i32::try_from(node + 1).expect("small"));
    let no_brokers = cluster.faults.no_brokers;
    let mut brokers: Vec<_> = (0..cluster.nodes)
        .map(|node| {
            MetadataResponseBroker::default()
                .with_node_id(of_node(node))
                .with_host(StrBytes::from_string(format!("b{}", node + 1)))
                .with_port(cluster.ports[node].into())
        })
        .collect();
    if no_brokers > 0 && dice.one_in(no_brokers) {
        // None at all, or one that is taken for gone.
        match dice.below(2) {
            0 => brokers.clear(),
            _ => drop(brokers.remove(dice.below(cluster.nodes))),
        }
    }
    let odd = cluster.odd.filter(|(_, until)| now < *until).map(|(odd, _)| odd);
    let view = cluster.view(node, now);
    let mut topic =
        MetadataResponseTopic::default().with_name(Some(name())).with_topic_id(uuid(view.topic_id));
    let mut count = view.leaders.len();
    match odd {
        Some(Odd::Error(code)) => (topic.error_code, count) = (code, 0),
        Some(Odd::Short(short)) => count = count.min(short),
        None => {}
    }
    topic.partitions = view.leaders[..count]
        .iter()
        .zip(0..)
        .map(|((leader, epoch), index)| {
            MetadataResponsePartition::default()
                .with_partition_index(index)
                .with_error_code(if leader.is_some() { 0 } else { 5 })
                .with_leader_id(leader.map_or(BrokerId(-1), of_node))
                .with_leader_epoch(*epoch)
                .with_replica_nodes((0..2).map(of_node).collect())
        })
        .collect();
    MetadataResponse::default().with_brokers(brokers).with_topics(vec![topic])
}

fn name() -> TopicName {
    TopicName(StrBytes::from_static_str(TOPIC))
}

/// The crate with the type of ids is not one of ours.
fn uuid<T: FromStr>(id: u128) -> T {
    format!("{id:032x}").parse().ok().expect("an id")
}
