use rdkafka::mocking::MockCluster;

use super::*;

/// librdkafka's mock cluster names no controller, and describes and makes nothing.
fn config(cluster: &MockCluster<'_, rdkafka::producer::DefaultProducerContext>) -> Config {
    let text = include_str!("../../../../docs/millrace.toml");
    let mut config: Config = toml::from_str(text).expect("the sample");
    config.kafka.brokers = cluster.bootstrap_servers();
    config
}

fn ensured(config: &Config) -> (Result<Topics, TopicError>, Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let began = Instant::now();
    let ensured = runtime.expect("a runtime").block_on(ensure_topics(config));
    (ensured, began.elapsed())
}

#[test]
fn a_cluster_without_a_controller_is_not_waited_for_where_the_topics_are_there() {
    let cluster = MockCluster::new(1).expect("a cluster");
    let config = config(&cluster);
    let all = Wanted::all(&config);
    for wanted in &all {
        cluster.create_topic(&wanted.name, wanted.partitions, 1).expect("a topic");
    }
    let (ensured, took) = ensured(&config);
    let topics = ensured.expect("they are there");
    assert_eq!(topics.missing, [] as [&str; 0]);
    let untold = topics.differences.iter().filter(|of| of.setting == "configuration");
    assert_eq!(untold.count(), all.len(), "{:?}", topics.differences);
    assert!(took < TIMEOUT, "it was waited for: {took:?}");
}

#[test]
fn what_a_cluster_does_not_make_is_named_after_one_time_out() {
    let cluster = MockCluster::new(1).expect("a cluster");
    let config = config(&cluster);
    let (ensured, took) = ensured(&config);
    let said = ensured.expect_err("nobody makes them").to_string();
    for wanted in Wanted::all(&config) {
        let named = format!("{} ({} partition", wanted.name, wanted.partitions);
        assert!(said.contains(&named), "{named}: {said}");
    }
    assert!(
        said.contains("cleanup.policy=compact") && said.contains("Have them created"),
        "{said}"
    );
    assert!(took < 2 * TIMEOUT, "each was waited for: {took:?}");
}

#[test]
fn the_longest_message_is_what_topics_and_producers_take() {
    let cluster = MockCluster::new(1).expect("a cluster");
    let mut config = config(&cluster);
    let longest = |config: &Config, uplink, kept| {
        BatchLimits { uplink, kept }.longest_message(config) as usize
    };
    config.services.truncate(1);
    config.services[0].max_message_bytes = 1000;
    assert_eq!(longest(&config, None, Some(1 << 20)), 1000, "nothing is known of one");
    assert_eq!(longest(&config, Some(1 << 20), Some(1 << 20)), 1_000_000 - (128 << 10));
    assert_eq!(longest(&config, Some(1 << 20), Some(500_000)), 500_000 - (128 << 10));
    assert_eq!(longest(&config, Some(1), Some(1)), 1000, "the start has told that");
    config.services[0].max_message_bytes = 4 << 20;
    assert_eq!(longest(&config, Some(16 << 20), Some(16 << 20)), 4 << 20, "the producers' own");
}
