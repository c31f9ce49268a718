//! How every client of Kafka that the relay has is configured.

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::config::{Config, KafkaSection, security_properties};

/// librdkafka's `batch.size`, unless told otherwise.
const DEFAULT_BATCH_BYTES: u32 = 1_000_000;

/// What a record may weigh beside its payload: key, headers and the batch's own bytes.
pub(crate) const RECORD_OVERHEAD_BYTES: u32 = 128 << 10;

/// The name that the cluster knows our clients by (`client.id`), unless `kafka.properties` has another.
const CLIENT: &str = "millrace";

/// What is put behind it, by what the client is for: quotas go by the whole. A cluster that slows the
/// messages of clients down must not slow down registrations and leases with them.
pub(crate) const CONTROL: &str = "control";

pub(crate) const DATA: &str = "data";

/// How often a client of the control traffic looks whether the brokers throttle it.
const STATISTICS_INTERVAL_MS: &str = "5000";

/// What every client of the cluster has in common; one for the registry, associations, topics and
/// offsets.
pub(crate) fn client_config(kafka: &KafkaSection) -> ClientConfig {
    client_for(kafka, CONTROL)
}

/// One that messages and replies go by.
pub(crate) fn data_config(kafka: &KafkaSection) -> ClientConfig {
    client_for(kafka, DATA)
}

fn client_for(kafka: &KafkaSection, purpose: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &kafka.brokers)
        .set("reconnect.backoff.max.ms", "1000")
        // Topics are made as they should be, and not by a question about them. Of producers this is not
        // the default.
        .set("allow.auto.create.topics", "false")
        // Brokers that have come or gone are known within this time, and not only within librdkafka's
        // five minutes.
        .set("topic.metadata.refresh.interval.ms", "10000")
        // A peer that hangs is not a broken connection; keep-alives tell those apart.
        .set("socket.keepalive.enable", "true");
    for (key, value) in security_properties(kafka.tls.as_ref(), kafka.sasl.as_ref()) {
        config.set(key, value);
    }
    for (key, value) in &kafka.properties {
        config.set(key, value);
    }
    config.set("client.id", client_id(kafka, purpose));
    config
}

/// What a client with that purpose is called.
pub(crate) fn client_id(kafka: &KafkaSection, purpose: &str) -> String {
    let client = kafka.properties.get("client.id").map_or(CLIENT, String::as_str);
    format!("{client}-{purpose}")
}

/// Longest batch, for a topic that takes batches of `most_bytes` (`max.message.bytes`): larger ones would be
/// refused whole, with every record in them.
pub(crate) fn batch_bytes(kafka: &KafkaSection, most_bytes: Option<u32>) -> u32 {
    let asked = kafka.properties.get("batch.size").and_then(|size| size.parse().ok());
    asked.unwrap_or(DEFAULT_BATCH_BYTES).min(most_bytes.unwrap_or(u32::MAX)).max(1)
}

/// Makes `config` that of a consumer that reads records by their offsets, and commits none.
pub(crate) fn offset_reader(mut config: ClientConfig, kafka: &KafkaSection) -> ClientConfig {
    config
        // `assign` needs one, though nothing is committed under it.
        .set("group.id", format!("{}fetch", kafka.topic_prefix))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        // A seek waits for the fetch that is under way, at the log's end too.
        .set("fetch.wait.max.ms", "10")
        .set_log_level(RDKafkaLogLevel::Warning);
    config
}

/// What every producer here has: a record is written once, by all in-sync replicas, however long the
/// brokers are away.
fn written_once(mut config: ClientConfig) -> ClientConfig {
    config.set("enable.idempotence", "true").set("acks", "all").set("message.timeout.ms", "0");
    config
}

/// A producer of the registry or of associations.
pub(crate) fn writer_config(kafka: &KafkaSection) -> ClientConfig {
    let mut config = written_once(client_config(kafka));
    config.set("statistics.interval.ms", STATISTICS_INTERVAL_MS);
    config
}

/// Longest record that a service's messages can become.
pub(crate) fn longest_record(config: &Config) -> u32 {
    let longest = config.services.iter().map(|service| service.max_message_bytes).max();
    longest.unwrap_or_default() + RECORD_OVERHEAD_BYTES
}

/// librdkafka's own `message.max.bytes`.
pub(crate) const USUAL_RECORD_BYTES: u32 = 1_000_000;

/// librdkafka's properties for the uplink. The bounds are ours ([`crate::ring::Credit`]), so its
/// own are out of the way; and a record waits as long as the broker is away.
pub fn producer_config(config: &Config) -> ClientConfig {
    let mut client = written_once(data_config(&config.kafka));
    client
        .set("linger.ms", (f64::from(config.kafka.linger_us()) / 1000.0).to_string())
        .set("queue.buffering.max.messages", "0")
        .set("queue.buffering.max.kbytes", "2147483647")
        .set("message.max.bytes", longest_record(config).max(USUAL_RECORD_BYTES).to_string());
    client
}

/// The same for a topic that takes batches of `most_bytes` (`max.message.bytes`).
pub(crate) fn fitting_config(config: &Config, most_bytes: Option<u32>) -> ClientConfig {
    let mut client = producer_config(config);
    if most_bytes.is_some() {
        client.set("batch.size", batch_bytes(&config.kafka, most_bytes).to_string());
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_batch_is_larger_than_its_topic_takes() {
        let text = include_str!("../../../docs/millrace.toml");
        let mut config: Config = toml::from_str(text).expect("the sample");
        let size = |config: &Config, most| {
            fitting_config(config, most).get("batch.size").map(str::to_owned)
        };
        assert_eq!(size(&config, None), None, "librdkafka's own");
        assert_eq!(size(&config, Some(262_144)).as_deref(), Some("262144"));
        assert_eq!(size(&config, Some(4 << 20)).as_deref(), Some("1000000"));
        config.kafka.properties.insert("batch.size".to_owned(), "500000".to_owned());
        assert_eq!(size(&config, Some(4 << 20)).as_deref(), Some("500000"));
        assert_eq!(size(&config, Some(262_144)).as_deref(), Some("262144"));
    }

    #[test]
    fn messages_and_control_traffic_have_names_of_their_own() {
        let mut kafka = KafkaSection::default();
        let names = |kafka: &KafkaSection| {
            [data_config(kafka), client_config(kafka), writer_config(kafka)]
                .map(|config| config.get("client.id").unwrap_or_default().to_owned())
        };
        assert_eq!(names(&kafka), ["millrace-data", "millrace-control", "millrace-control"]);
        kafka.properties.insert("client.id".to_owned(), "edge".to_owned());
        assert_eq!(names(&kafka), ["edge-data", "edge-control", "edge-control"]);
    }
}
