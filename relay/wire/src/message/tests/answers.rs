//! What the other implementation answers is read as it was meant.

use kafka_protocol::messages::api_versions_response::{ApiVersion, SupportedFeatureKey};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse,
    TopicProduceResponse,
};
use kafka_protocol::messages::{
    ApiVersionsResponse, InitProducerIdResponse, MetadataResponse, ProduceResponse, ProducerId,
};

use super::*;

fn brokers() -> impl Strategy<Value = Vec<MetadataResponseBroker>> {
    let broker = (any::<i32>(), texts(), any::<u16>(), nullable_texts(), tags())
        .prop_map(|(node, host, port, rack, tags)| {
            MetadataResponseBroker::default()
                .with_node_id(node.into())
                .with_host(host)
                .with_port(port.into())
                .with_rack(rack)
                .with_unknown_tagged_fields(tags)
        })
        .boxed();
    prop_oneof![
        4 => prop::collection::vec(broker.clone(), 0..5),
        // More than a length of one byte can say.
        1 => prop::collection::vec(broker, 120..140),
    ]
}

fn partitions() -> impl Strategy<Value = Vec<MetadataResponsePartition>> {
    let leader = prop_oneof![3 => 0..100_i32, 1 => Just(-1), 1 => any::<i32>()];
    let numbers = (any::<i16>(), any::<i32>(), leader, any::<i32>());
    let partition = (numbers, nodes(), nodes(), nodes(), tags()).prop_map(
        |((error, partition, leader, epoch), replicas, isr, offline, tags)| {
            MetadataResponsePartition::default()
                .with_error_code(error)
                .with_partition_index(partition)
                .with_leader_id(leader.into())
                .with_leader_epoch(epoch)
                .with_replica_nodes(replicas)
                .with_isr_nodes(isr)
                .with_offline_replicas(offline)
                .with_unknown_tagged_fields(tags)
        },
    );
    prop::collection::vec(partition, 0..8)
}

fn topics() -> impl Strategy<Value = MetadataResponseTopic> {
    let name = prop_oneof![Just(None), "[a-t]{1,9}".prop_map(|name| Some(topic_name(&name)))];
    let error = prop_oneof![3 => Just(0), 1 => any::<i16>()];
    let rest = (any::<bool>(), any::<i32>(), tags());
    (name, error, any::<[u8; 16]>(), partitions(), rest).prop_map(
        |(name, error, id, partitions, (is_internal, rights, tags))| {
            MetadataResponseTopic::default()
                .with_error_code(error)
                .with_name(name)
                .with_topic_id(id.to_vec().try_into().unwrap())
                .with_is_internal(is_internal)
                .with_partitions(partitions)
                .with_topic_authorized_operations(rights)
                .with_unknown_tagged_fields(tags)
        },
    )
}

/// With ours, perhaps, and others.
pub(super) fn metadata() -> impl Strategy<Value = MetadataResponse> {
    let ours = topics().prop_map(|topic| topic.with_name(Some(topic_name(TOPIC))));
    let all = (
        prop::collection::vec(topics(), 0..2),
        prop::option::weighted(0.8, ours),
        prop::collection::vec(topics(), 0..2),
    )
        .prop_map(|(before, ours, after)| {
            before.into_iter().chain(ours).chain(after).collect::<Vec<_>>()
        });
    let cluster = (nullable_texts(), any::<i32>());
    (any::<i32>(), brokers(), cluster, all, tags()).prop_map(
        |(throttle_ms, brokers, (cluster, controller), topics, tags)| {
            MetadataResponse::default()
                .with_throttle_time_ms(throttle_ms)
                .with_brokers(brokers)
                .with_cluster_id(cluster)
                .with_controller_id(controller.into())
                .with_topics(topics)
                .with_unknown_tagged_fields(tags)
        },
    )
}

/// Errors of records, and hints at the leader, which only some versions have.
fn produced(version: i16) -> impl Strategy<Value = PartitionProduceResponse> {
    let record_error = (any::<i32>(), nullable_texts(), tags()).prop_map(|(index, text, tags)| {
        BatchIndexAndErrorMessage::default()
            .with_batch_index(index)
            .with_batch_index_error_message(text)
            .with_unknown_tagged_fields(tags)
    });
    let leader = (any::<i32>(), any::<i32>(), tags()).prop_map(|(node, epoch, tags)| {
        LeaderIdAndEpoch::default()
            .with_leader_id(node.into())
            .with_leader_epoch(epoch)
            .with_unknown_tagged_fields(tags)
    });
    let numbers = (any::<i32>(), prop_oneof![Just(0), any::<i16>()], any::<[i64; 3]>());
    let errors = (prop::collection::vec(record_error, 0..3), nullable_texts());
    (numbers, errors, prop::option::of(leader), tags()).prop_map(
        move |((partition, error, [offset, time, start]), (record_errors, text), leader, tags)| {
            let answer = PartitionProduceResponse::default()
                .with_index(partition)
                .with_error_code(error)
                .with_base_offset(offset)
                .with_log_append_time_ms(time)
                .with_log_start_offset(start)
                .with_record_errors(record_errors)
                .with_error_message(text)
                .with_unknown_tagged_fields(tags);
            match leader {
                Some(leader) if version >= 10 => answer.with_current_leader(leader),
                _ => answer,
            }
        },
    )
}

fn produce_of(version: i16) -> impl Strategy<Value = ProduceResponse> {
    let topic = (prop::collection::vec(produced(version), 0..5), any::<[u8; 16]>(), tags())
        .prop_map(move |(partitions, id, tags)| {
            let topic = TopicProduceResponse::default()
                .with_partition_responses(partitions)
                .with_unknown_tagged_fields(tags);
            if version >= 13 {
                topic.with_topic_id(id.to_vec().try_into().unwrap())
            } else {
                topic.with_name(topic_name(TOPIC))
            }
        });
    let node = (any::<i32>(), texts(), any::<i32>(), nullable_texts()).prop_map(
        |(node, host, port, rack)| {
            NodeEndpoint::default()
                .with_node_id(node.into())
                .with_host(host)
                .with_port(port)
                .with_rack(rack)
        },
    );
    let nodes = prop::collection::vec(node, if version >= 10 { 0..3 } else { 0..1 });
    (prop::collection::vec(topic, 0..3), any::<i32>(), nodes, tags()).prop_map(
        |(topics, throttle_ms, nodes, tags)| {
            ProduceResponse::default()
                .with_responses(topics)
                .with_throttle_time_ms(throttle_ms)
                .with_node_endpoints(nodes)
                .with_unknown_tagged_fields(tags)
        },
    )
}

pub(super) fn produce() -> impl Strategy<Value = (i16, ProduceResponse)> {
    (9..=13_i16).prop_flat_map(|version| (Just(version), produce_of(version)))
}

pub(super) fn identity() -> impl Strategy<Value = InitProducerIdResponse> {
    let error = prop_oneof![Just(0), any::<i16>()];
    (any::<i32>(), error, any::<i64>(), any::<i16>(), tags()).prop_map(
        |(throttle_ms, error, id, epoch, tags)| {
            InitProducerIdResponse::default()
                .with_throttle_time_ms(throttle_ms)
                .with_error_code(error)
                .with_producer_id(ProducerId(id))
                .with_producer_epoch(epoch)
                .with_unknown_tagged_fields(tags)
        },
    )
}

pub(super) fn api(key: i16, least: i16, most: i16) -> ApiVersion {
    ApiVersion::default().with_api_key(key).with_min_version(least).with_max_version(most)
}

/// Of a broker that we can speak with, and its newest version of Produce.
pub(super) fn versions() -> impl Strategy<Value = (i16, ApiVersionsResponse)> {
    let needed = (0..=13_i16, 0..20_i16, 0..=12_i16, 12..=i16::MAX, 0..=4_i16, 4..=i16::MAX)
        .prop_map(|(p_least, p_more, m_least, m_most, i_least, i_most)| {
            let newest = (p_least + p_more).max(9);
            let apis = [api(0, p_least, newest), api(3, m_least, m_most), api(22, i_least, i_most)];
            (newest, apis.to_vec())
        });
    let others = (23..=i16::MAX, any::<i16>(), any::<i16>())
        .prop_map(|(key, least, most)| api(key, least, most));
    let others = prop::collection::vec(others, 0..80);
    let feature = (texts(), any::<i16>(), any::<i16>()).prop_map(|(name, least, most)| {
        SupportedFeatureKey::default()
            .with_name(name)
            .with_min_version(least)
            .with_max_version(most)
    });
    let features = (prop::collection::vec(feature, 0..3), -1..5_i64, any::<bool>());
    let apis = (needed, others).prop_flat_map(|((newest, needed), others)| {
        let all: Vec<_> = needed.into_iter().chain(others).collect();
        (Just(newest), Just(all).prop_shuffle())
    });
    (apis, any::<i32>(), features, tags(), tags()).prop_map(
        |((newest, mut apis), throttle_ms, (features, epoch, migrates), tags, of_api)| {
            apis[0].unknown_tagged_fields = of_api;
            let answer = ApiVersionsResponse::default()
                .with_api_keys(apis)
                .with_throttle_time_ms(throttle_ms)
                .with_supported_features(features)
                .with_finalized_features_epoch(epoch)
                .with_zk_migration_ready(migrates)
                .with_unknown_tagged_fields(tags);
            (newest, answer)
        },
    )
}

fn understood(answer: &MetadataResponse) -> Metadata {
    let brokers = answer.brokers.iter().map(|of| Broker {
        node: of.node_id.0,
        host: of.host.to_string(),
        port: u16::try_from(of.port).unwrap(),
    });
    let ours = answer.topics.iter().find(|topic| topic.name == Some(topic_name(TOPIC)));
    let partitions = |topic: &MetadataResponseTopic| {
        let of_partition = |of: &MetadataResponsePartition| PartitionMetadata {
            partition: of.partition_index,
            leader: Some(of.leader_id.0).filter(|node| *node >= 0),
            leader_epoch: of.leader_epoch,
        };
        topic.partitions.iter().map(of_partition).collect()
    };
    Metadata {
        throttle_ms: answer.throttle_time_ms,
        brokers: brokers.collect(),
        topic: match ours {
            None => Err(3),
            Some(topic) if topic.error_code != 0 => Err(topic.error_code),
            Some(topic) => Ok((topic.topic_id.into_bytes(), partitions(topic))),
        },
    }
}

proptest! {
    #[test]
    fn of_metadata(answer in metadata()) {
        let read = Metadata::read(Reader::new(&body(&answer, 12)), TOPIC);
        prop_assert_eq!(read, Ok(understood(&answer)));
    }

    #[test]
    fn of_records((version, answer) in produce()) {
        let mut results = Vec::new();
        let bytes = body(&answer, version);
        let read = read_produce_response(Reader::new(&bytes), version, |of| results.push(of));
        prop_assert_eq!(read, Ok(answer.throttle_time_ms));
        let meant: Vec<_> = answer
            .responses
            .iter()
            .flat_map(|topic| &topic.partition_responses)
            .map(|of| ProduceResult {
                partition: of.index,
                error: of.error_code,
                base_offset: of.base_offset,
            })
            .collect();
        prop_assert_eq!(results, meant);
    }

    #[test]
    fn of_identity(answer in identity()) {
        let read = read_init_producer_response(Reader::new(&body(&answer, 4)));
        let meant = match answer.error_code {
            0 => Ok(ProducerIdentity { id: answer.producer_id.0, epoch: answer.producer_epoch }),
            code => Err(code),
        };
        prop_assert_eq!(read, Ok((answer.throttle_time_ms, meant)));
    }

    #[test]
    fn of_versions((newest, answer) in versions()) {
        let read = Versions::read(Reader::new(&body(&answer, 3)), VersionsFormat::Usual);
        prop_assert_eq!(read, Ok(Versions { produce: newest.min(13) }));
    }

    #[test]
    fn to_which_question(correlation in any::<i32>(), tags in tags(), rest in any::<[u8; 3]>()) {
        for (api, version) in [
            (Api::ApiVersions, 0),
            (Api::Metadata, 1),
            (Api::InitProducerId, 1),
            (Api::Produce, 1),
        ] {
            let frame = [&header(correlation, tags.clone(), version)[..], &rest].concat();
            let (answered, reader) = read_header(&frame, api).unwrap();
            prop_assert_eq!(answered, correlation);
            prop_assert_eq!(reader.rest(), rest);
        }
    }
}

/// A controller does not know the topic's name if it was asked by id, and says none.
#[test]
fn a_topic_without_a_name_is_not_ours() {
    let topic = MetadataResponseTopic::default().with_name(None);
    let answer = MetadataResponse::default().with_topics(vec![topic]);
    let read = Metadata::read(Reader::new(&body(&answer, 12)), "").unwrap();
    assert_eq!(read.topic, Err(3));
}
