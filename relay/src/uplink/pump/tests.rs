//! A pump that cannot go on: workers must not wait for it, nor it for Kafka.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::time::Instant;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::Config;
use crate::kafka::client::client_config;
use crate::kafka::{BatchLimits, record_origin};
use crate::model::{Association, Begin, Headers, Identity, Kind, ServerId};
use crate::ring::{BatchPlace, UplinkSender, downlink, uplink};
use crate::undelivered::Intake;
use crate::uplink::pump::*;
use crate::uplink::{KafkaProducer, Leases};

const PATIENCE: Duration = Duration::from_secs(30);
/// What can write records (`kafka.engine`).
const ENGINES: [&str; 2] = ["librdkafka", "millrace"];
/// More than the rings hold together.
const MESSAGES: u64 = 400;
const MESSAGE: [u8; 16 << 10] = [b'x'; 16 << 10];

fn config(brokers: &str, engine: &str) -> Config {
    let config = format!(
        r#"
        gateway = {{ devices = ["eth0"] }}
        relay = {{ stop_timeout_ms = 10000 }}
        kafka = {{ brokers = "{brokers}", engine = "{engine}", uplink_partitions = 1 }}
        registry = {{ relay_timeout_ms = 1 }}
        [[service]]
        name = "test"
        destinations = ["192.0.2.0/24"]
        port = 7000
        framing = {{ type = "lines" }}
        "#
    );
    toml::from_str(&config).expect("valid")
}

fn identity(epoch: u64) -> Arc<Identity> {
    identity_at(Partition(0), epoch)
}

fn identity_at(partition: Partition, epoch: u64) -> Arc<Identity> {
    let incarnation = Incarnation::new(1);
    let key = ConnectionKey { relay: RelayId(0), incarnation, worker: 0, slot: 0, generation: 1 };
    let (server, name) = (ServerId(0), "server".into());
    let association = Association { server, name, partition, epoch };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 7000));
    Arc::new(Identity::new(key, None, &association, address, address, Begin::default()))
}

struct Rig {
    sender: UplinkSender,
    stats: Arc<PumpStats>,
    stop_time: StopTime,
    /// What the pump says of its failure; closed when it has ended.
    failed: mpsc::Receiver<String>,
}

impl Rig {
    /// A pump that runs, and a worker's end of its ring.
    fn start(brokers: &str, engine: &str, epoch: u64) -> Self {
        let config = config(brokers, engine);
        let wake = || Wake::new().expect("an eventfd");
        let (wake_of_pump, stats) = (wake(), Arc::<PumpStats>::default());
        let (mut sender, receiver) = uplink(wake(), wake_of_pump.clone());
        let (downlink, _) = downlink(wake(), wake());
        let (intake, leases) = (Arc::<Intake>::default(), Arc::new(Leases::new(&config)));
        let producer = KafkaProducer::new(
            &config,
            BatchLimits::default(),
            wake_of_pump.clone(),
            intake,
            leases,
            Arc::new(|body| body()),
        );
        let stop_time = StopTime::new(&config.relay);
        let credit = Arc::new(Credit::new(1, usize::MAX / 2));
        let pump = Pump::new(PumpParts {
            producer: producer.expect("a producer"),
            relay: RelayId(0),
            incarnation: Incarnation::new(1),
            uplinks: vec![receiver],
            downlinks: vec![downlink],
            credit: credit.clone(),
            stats: stats.clone(),
            wake: wake_of_pump,
            stop_time: stop_time.clone(),
        });
        let (identity, mut origin) = (identity(epoch), BatchPlace::default());
        for sequence in 1..=MESSAGES {
            let kind = Kind::Message { sequence };
            credit.book(Partition(0), MESSAGE.len() + MESSAGE_OVERHEAD_BYTES);
            sender.push(&mut origin, &identity, kind, Headers::NONE, &MESSAGE);
            sender.has_room();
        }
        let (tell, failed) = mpsc::channel();
        std::thread::spawn(move || pump.run(|error| tell.send(error).expect("somebody hears it")));
        Self { sender, stats, stop_time, failed }
    }

    /// Hands everything over, as a worker does that stops, and waits for the pump's end.
    fn finish(&mut self) -> Duration {
        let begun = Instant::now();
        while !self.sender.hand_over() {
            assert!(begun.elapsed() < PATIENCE, "nobody takes what the worker has");
            std::thread::sleep(BUSY_TICK);
        }
        self.sender.end();
        let closed = self.failed.recv_timeout(PATIENCE);
        assert_eq!(closed, Err(mpsc::RecvTimeoutError::Disconnected), "the pump has not ended");
        begun.elapsed()
    }

    fn refused(&self) -> u64 {
        self.stats.refused.iter().map(|of_reason| of_reason.load(Ordering::Relaxed)).sum()
    }
}

#[test]
fn a_producer_that_has_failed_for_good_is_told_and_nobody_waits_for_it() {
    for engine in ENGINES {
        let cluster = MockCluster::new(1).expect("a cluster");
        let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::InitProducerId, &[refusal]);
        let mut rig = Rig::start(&cluster.bootstrap_servers(), engine, 0);
        let told = rig.failed.recv_timeout(PATIENCE).expect("it says so");
        assert!(told.contains("uthoriz"), "{told}");
        rig.finish();
        assert_eq!(rig.refused(), MESSAGES, "each is counted");
    }
}

#[test]
fn a_stop_with_stale_leases_ends_in_its_time() {
    for engine in ENGINES {
        // Nobody there knows of this relay: what it has for a server with a lease may not be written.
        let mut rig = Rig::start("127.0.0.1:1", engine, 3);
        rig.stop_time.begin();
        let took = rig.finish();
        assert!(took <= rig.stop_time.timeout(), "{took:?}");
        let purged = &rig.stats.refused[DeliveryFailure::Purged as usize];
        assert_eq!(purged.load(Ordering::Relaxed), MESSAGES, "each is counted");
    }
}

/// What is in a partition of the uplink: the numbers of its messages.
fn written(config: &Config, partition: i32, records: usize) -> Vec<u64> {
    let reader: BaseConsumer =
        client_config(&config.kafka).set("group.id", "reader").create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    let topic = config.kafka.uplink_topic();
    list.add_partition_offset(&topic, partition, Offset::Beginning).expect("an offset");
    reader.assign(&list).expect("assigned");
    let record = |_| reader.poll(PATIENCE).expect("a record").expect("no error");
    (0..records).map(record).map(|record| record_origin(&record).expect("ours").sequence).collect()
}

#[test]
fn ordinary_servers_go_on_while_it_is_not_known_whether_leases_are_in_force() {
    for engine in ENGINES {
        let cluster = MockCluster::new(1).expect("a cluster");
        let mut config = config(&cluster.bootstrap_servers(), engine);
        config.kafka.uplink_partitions = 2;
        cluster.create_topic(&config.kafka.uplink_topic(), 2, 1).expect("a topic");
        let wake = || Wake::new().expect("an eventfd");
        let (mut sender, receiver) = uplink(wake(), wake());
        let (downlink, _downlink) = downlink(wake(), wake());
        let (intake, leases) = (Arc::<Intake>::default(), Arc::new(Leases::new(&config)));
        let producer = KafkaProducer::new(
            &config,
            BatchLimits::default(),
            wake(),
            intake,
            leases.clone(),
            Arc::new(|body| body()),
        );
        let (credit, stats) =
            (Arc::new(Credit::new(2, usize::MAX / 2)), Arc::<PumpStats>::default());
        let mut pump = Pump::new(PumpParts {
            producer: producer.expect("a producer"),
            relay: RelayId(0),
            incarnation: Incarnation::new(1),
            uplinks: vec![receiver],
            downlinks: vec![downlink],
            credit: credit.clone(),
            stats: stats.clone(),
            wake: wake(),
            stop_time: StopTime::new(&config.relay),
        });
        let (registered, ordinary) = (identity_at(Partition(0), 3), identity_at(Partition(1), 0));
        let (mut first, mut second) = (BatchPlace::default(), BatchPlace::default());
        let mut push = |pump: &mut Pump<KafkaProducer>, numbers: std::ops::RangeInclusive<u64>| {
            for sequence in numbers {
                let kind = Kind::Message { sequence };
                for partition in [0, 1].map(Partition) {
                    credit.book(partition, MESSAGE.len() + MESSAGE_OVERHEAD_BYTES);
                }
                sender.push(&mut first, &registered, kind, Headers::NONE, &MESSAGE);
                sender.push(&mut second, &ordinary, kind, Headers::NONE, &MESSAGE);
                let begun = Instant::now();
                while !sender.hand_over() {
                    assert!(begun.elapsed() < PATIENCE, "the ring stays full");
                    pump.step();
                }
            }
        };
        let run_until = |pump: &mut Pump<KafkaProducer>, acknowledged: u64| {
            let begun = Instant::now();
            while stats.acknowledged.load(Ordering::Relaxed) < acknowledged {
                assert!(begun.elapsed() < PATIENCE, "waited in vain for {acknowledged}");
                pump.step();
            }
        };
        // Everything that a relay knows is stale after a millisecond.
        std::thread::sleep(2 * BUSY_TICK);
        push(&mut pump, 1..=100);
        run_until(&mut pump, 100);
        assert!(written(&config, 1, 100).into_iter().eq(1..=100), "in order");
        assert!(!pump.is_settled(), "the others wait");
        // It knows again, for an hour; what comes then is behind them.
        push(&mut pump, 101..=101);
        leases.known(Instant::now() + Duration::from_hours(1));
        push(&mut pump, 102..=110);
        run_until(&mut pump, 220);
        assert!(pump.is_settled());
        assert!(written(&config, 0, 110).into_iter().eq(1..=110), "in order");
    }
}
