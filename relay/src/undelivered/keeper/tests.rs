//! A keeper whose writes Kafka refuses.

use std::collections::BTreeMap;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, DefaultProducerContext, Producer as _};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};

use crate::codec::Protocol;
use crate::kafka::client::client_config;
use crate::model::{ConnectionKey, Incarnation};

use super::*;

const PATIENCE: Duration = Duration::from_mins(1);

struct Rig<'a> {
    cluster: MockCluster<'a, DefaultProducerContext>,
    config: Config,
    keeper: Keeper,
    stop: AtomicBool,
}

impl Rig<'_> {
    /// The downlink has a reply for each of `holders`, whose value is its offset.
    fn new(holders: &[&str]) -> Self {
        let cluster = MockCluster::new(1).expect("a cluster");
        let config = format!(
            r#"
            gateway = {{ devices = ["eth0"] }}
            kafka = {{ brokers = "{}", uplink_partitions = 1 }}
            [[service]]
            name = "chat"
            destinations = ["192.0.2.0/24"]
            port = 7000
            framing = {{ type = "lines" }}
            identity = "address"
            "#,
            cluster.bootstrap_servers()
        );
        let config: Config = toml::from_str(&config).expect("valid");
        let kafka = &config.kafka;
        for topic in [kafka.downlink_topic(), kafka.held_topic(), kafka.deadletter_topic()] {
            cluster.create_topic(&topic, 1, 1).expect("a topic");
        }
        let producer: BaseProducer = client_config(kafka).create().expect("a producer");
        for (offset, holder) in (0..).zip(holders) {
            let (relay, incarnation) = (RelayId(0), Incarnation::new(1));
            let key = ConnectionKey { relay, incarnation, worker: 0, slot: 0, generation: offset };
            let key = [&key.print()[..], b"/", holder.as_bytes()].concat();
            let value = offset.to_string();
            let topic = kafka.downlink_topic();
            let record = BaseRecord::to(&topic).key(&key).payload(&value);
            assert!(producer.send(record.partition(0)).is_ok());
        }
        producer.flush(PATIENCE).expect("written");
        let clientele = Clientele {
            incarnation: Incarnation::new(2),
            protocols: config
                .services
                .iter()
                .map(|service| Protocol::from(&service.codec()))
                .collect(),
            presence: Presence::new(&config.services),
            stop: Arc::default(),
        };
        let parts = KeeperParts {
            clientele,
            letter_batch_bytes: None,
            intake: Arc::default(),
            downlinks: Vec::new(),
            stats: Arc::default(),
        };
        let keeper = Keeper::new(&config, parts).expect("a keeper");
        Self { cluster, config, keeper, stop: AtomicBool::new(false) }
    }

    fn hand_in(&self, offsets: std::ops::Range<i64>) {
        for offset in offsets {
            self.keeper.intake.hand_in(ReplyOffset(offset), Reason::Stale);
        }
    }

    fn run_until(&mut self, what: &str, holds: impl Fn(&Keeper) -> bool) {
        let begun = Instant::now();
        while !holds(&self.keeper) {
            assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
            self.keeper.round(SHORT_TICK, &self.stop);
        }
    }

    /// What waits, by client, in the log's order.
    fn held(&self) -> BTreeMap<String, Vec<String>> {
        let kafka = &self.config.kafka;
        let reader: BaseConsumer =
            client_config(kafka).set("group.id", "reader").create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&kafka.held_topic(), 0, Offset::Beginning).expect("an offset");
        reader.assign(&list).expect("assigned");
        let held = self.keeper.stats.held.held.load(Ordering::SeqCst);
        let mut found = BTreeMap::<_, Vec<_>>::new();
        for _ in 0..held {
            let record = reader.poll(PATIENCE).expect("a record").expect("no error");
            let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
            found.entry(text(record.key())).or_default().push(text(record.payload()));
        }
        found
    }
}

#[test]
fn what_comes_after_a_reply_that_was_refused_waits_behind_it() {
    let (a, b) = ("chat/192.0.2.1", "chat/192.0.2.2");
    let mut rig = Rig::new(&[a, a, b, a, a, b]);
    rig.run_until("it is ready", |keeper| keeper.deliveries.is_ready());
    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD;
    rig.cluster.request_errors(RDKafkaApiKey::Produce, &[refusal]);
    rig.hand_in(0..1);
    rig.run_until("it is refused", |keeper| !keeper.later.is_empty());
    rig.hand_in(1..6);
    rig.run_until("all are held", |keeper| keeper.intake.is_clear());
    let held = rig.held();
    assert_eq!(
        (&*held[a], &*held[b]),
        (&["0", "1", "3", "4"].map(str::to_owned)[..], &["2", "5"].map(str::to_owned)[..])
    );
}

#[test]
fn what_comes_after_a_reply_that_could_not_be_read_waits_as_long() {
    let a = "chat/192.0.2.1";
    let mut rig = Rig::new(&[a, a]);
    rig.run_until("it is ready", |keeper| keeper.deliveries.is_ready());
    let reply = Reply { offset: ReplyOffset(0), reason: Reason::Stale, cut: false };
    rig.hand_in(0..1);
    rig.keeper.intake.take();
    let unread = || vec![Job::Reply(reply)];
    rig.keeper.after_read(Err(FetchError::Resting), unread);
    rig.hand_in(1..2);
    rig.run_until("both are held", |keeper| keeper.intake.is_clear());
    assert_eq!(*rig.held()[a], ["0", "1"].map(str::to_owned));
}
