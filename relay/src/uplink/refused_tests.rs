//! Messages that Kafka refuses, faster than they become dead letters: none is given up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::config::{
    Config, GatewaySection, HoldSection, KafkaSection, MetricsSection, RegistrySection,
    RelaySection, Source, UplinkEngine,
};
use crate::kafka::BatchLimits;
use crate::model::{
    Association, Begin, ConnectionKey, DeliveryFailure, Headers, Identity, Incarnation, Kind,
    Partition, RelayId, ServerId,
};
use crate::ring::Wake;
use crate::undelivered::intake::Intake;
use crate::uplink::leases::Leases;
use crate::uplink::producer::{KafkaProducer, ProduceError, Producer as _};

/// More than the intake has room for.
const MESSAGES: u64 = 5000;

fn config(brokers: &str, engine: UplinkEngine) -> Config {
    let kafka = KafkaSection {
        brokers: brokers.to_owned(),
        uplink_partitions: 1,
        linger_us: Some(0),
        engine,
        ..KafkaSection::default()
    };
    Config {
        gateway: GatewaySection::new("test".to_owned(), &["none"]),
        relay: RelaySection::default(),
        kafka,
        registry: RegistrySection::default(),
        hold: HoldSection::default(),
        metrics: MetricsSection::default(),
        services: Vec::new(),
        source: Source::default(),
    }
}

fn identity(epoch: u64) -> Identity {
    let key = ConnectionKey {
        relay: RelayId(0),
        incarnation: Incarnation::new(1),
        worker: 0,
        slot: 0,
        generation: 1,
    };
    let association =
        Association { server: ServerId(0), name: "server".into(), partition: Partition(0), epoch };
    let address = SocketAddr::from(([192, 0, 2, 1], 1));
    let begin = Begin { protocol: "length", ..Begin::default() };
    Identity::new(key, None, &association, address, address, begin)
}

fn for_each_engine(test: impl Fn(UplinkEngine)) {
    test(UplinkEngine::Librdkafka);
    test(UplinkEngine::Millrace);
}

struct Bench {
    intake: Arc<Intake>,
    leases: Arc<Leases>,
    producer: KafkaProducer,
}

impl Bench {
    fn new(config: &Config) -> Self {
        let (intake, leases) = (Arc::<Intake>::default(), Arc::new(Leases::new(config)));
        let wake = Wake::new().unwrap();
        let producer = KafkaProducer::new(
            config,
            BatchLimits::default(),
            wake,
            intake.clone(),
            leases.clone(),
            Arc::new(|body| body()),
        )
        .unwrap();
        Self { intake, leases, producer }
    }

    fn produce(&mut self, identity: &Identity, sequence: u64) -> Result<(), ProduceError> {
        let (kind, number) = (Kind::Message { sequence }, sequence.to_string());
        self.producer.produce(identity, kind, Headers::NONE, number.as_bytes(), 1)
    }

    /// What a keeper does, whose letters are acknowledged: the numbers of the messages.
    fn bury(&self) -> Vec<u64> {
        let (_, refused) = self.intake.take();
        let number = |value: &[u8]| std::str::from_utf8(value).unwrap().parse().unwrap();
        let numbers = refused.iter().map(|refused| number(&refused.value)).collect();
        for refused in &refused {
            self.intake.refused_done(refused);
        }
        numbers
    }
}

#[test]
fn reports_of_refusals_wait_until_there_is_room_for_what_they_are_about() {
    for_each_engine(|engine| {
        let cluster = MockCluster::new(1).unwrap();
        let config = config(&cluster.bootstrap_servers(), engine);
        cluster.create_topic(&config.kafka.uplink_topic(), 1, 1).unwrap();
        let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::Produce, &vec![refusal; 5000]);
        let (mut bench, identity) = (Bench::new(&config), identity(0));
        for sequence in 1..=MESSAGES {
            bench.produce(&identity, sequence).unwrap();
        }
        let (mut reports, mut letters, mut told) = (0, Vec::new(), Vec::new());
        let begun = Instant::now();
        let mut quiet = 0;
        while (letters.len() as u64) < MESSAGES {
            assert!(begun.elapsed() < Duration::from_mins(1), "{reports} reports, {letters:?}");
            let mut came = 0;
            bench.producer.poll(&mut |report| {
                assert_eq!(report.result, Err(DeliveryFailure::Authorization));
                told.push(report.message);
                came += 1;
            });
            reports += came;
            let waiting = bench.intake.refused_undone();
            assert!(waiting < 1000 + 256, "{waiting} are in memory twice");
            // The keeper is slow: it begins when nothing more comes.
            quiet = if came == 0 { quiet + 1 } else { 0 };
            if quiet > 5 {
                letters.extend(bench.bury());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        letters.sort_unstable();
        assert!(letters.into_iter().eq(1..=MESSAGES), "each once");
        told.sort_unstable();
        assert!(told.into_iter().eq(1..=MESSAGES), "each by its number");
        assert_eq!(reports, MESSAGES);
    });
}

#[test]
fn what_would_be_refused_at_once_is_not_taken_while_there_is_no_room() {
    for_each_engine(|engine| {
        let cluster = MockCluster::new(1).unwrap();
        let mut bench = Bench::new(&config(&cluster.bootstrap_servers(), engine));
        bench.leases.set(Partition(0), "server", 1, 0, true);
        bench.leases.set(Partition(0), "another", 2, 0, true);
        let identity = identity(1);
        let (mut sequence, mut letters, mut full) = (1, Vec::new(), 0);
        while (letters.len() as u64) < MESSAGES {
            match bench.produce(&identity, sequence) {
                Err(ProduceError::Refused(DeliveryFailure::LeaseOver)) => sequence += 1,
                Err(ProduceError::Full) => {
                    full += 1;
                    letters.extend(bench.bury());
                }
                other => panic!("{other:?}"),
            }
            if sequence > MESSAGES {
                letters.extend(bench.bury());
            }
        }
        assert!(letters.into_iter().eq(1..=MESSAGES), "each once, in order");
        assert_eq!(full, 4);
    });
}

#[test]
fn when_the_time_of_a_stop_is_over_nothing_waits_for_room() {
    for_each_engine(|engine| {
        let cluster = MockCluster::new(1).unwrap();
        let mut bench = Bench::new(&config(&cluster.bootstrap_servers(), engine));
        bench.leases.set(Partition(0), "server", 1, 0, true);
        bench.leases.set(Partition(0), "another", 2, 0, true);
        bench.producer.purge();
        let identity = identity(1);
        for sequence in 1..=MESSAGES {
            assert!(matches!(bench.produce(&identity, sequence), Err(ProduceError::Refused(_))));
        }
        assert_eq!(bench.bury().len() as u64, MESSAGES);
    });
}
