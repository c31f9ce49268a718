//! What the link makes of a Kafka that is in trouble.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::*;
use crate::registry::record::Term;
use crate::route::Balance;

const PATIENCE: Duration = Duration::from_mins(1);
/// librdkafka's mock takes no shorter one.
const SESSION_TIMEOUT_MS: u32 = 6000;

/// Longer than a test of refusals takes after the first, so that only taking office is refused.
const BEAT_MS: u32 = 12_000;

/// What it was told of the office, and of relays.
#[derive(Clone, Default)]
struct Offices(Arc<Mutex<Vec<bool>>>, Arc<Mutex<Relays>>);

/// What it was told of relays, and whether others could see it first.
#[derive(Default)]
struct Relays {
    registry: Option<Arc<Mutex<Core>>>,
    told: Vec<RelayId>,
    shown_first: Vec<RelayId>,
}

impl Listener for Offices {
    fn server(&mut self, _: ServerLink) {}
    fn relay(&mut self, relay: RelayId, incarnation: Incarnation, _: RelayState) {
        let relays = &mut *self.1.lock().unwrap();
        relays.told.push(relay);
        let is_shown = relays.registry.as_ref().is_some_and(|core| {
            core.try_lock().is_ok_and(|core| {
                let known = core.registry.relays().get(&relay);
                known.is_some_and(|known| known.incarnation == incarnation)
            })
        });
        if is_shown {
            relays.shown_first.push(relay);
        }
    }
    fn coordinates(&mut self, coordinates: bool) {
        self.0.lock().unwrap().push(coordinates);
    }
    fn rebalance(&mut self, _: &str, _: Option<u32>) {}
    fn clients(&self, _: &str) -> u32 {
        0
    }
    fn balance(&self, _: &str) -> Option<Balance> {
        None
    }
}

/// What it said to people.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A relay's registry; the only one, so that it coordinates.
struct Rig<'a> {
    cluster: MockCluster<'a, DefaultProducerContext>,
    offices: Offices,
    said: Said,
    core: Arc<Mutex<Core>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Rig<'_> {
    fn new() -> Self {
        let cluster = MockCluster::new(1).expect("a cluster");
        let text = include_str!("../../../../docs/millrace.toml");
        let text = text.replace("127.0.0.1:9092", &cluster.bootstrap_servers());
        let mut config: Config = toml::from_str(&text).expect("valid");
        config.registry.session_timeout_ms = SESSION_TIMEOUT_MS;
        config.registry.relay_timeout_ms = BEATS_PER_TIMEOUT * BEAT_MS;
        cluster.create_topic(&config.kafka.uplink_topic(), 2, 1).expect("a topic");
        cluster.create_topic(&config.kafka.registry_topic(), 1, 1).expect("a topic");
        let (offices, leases) = (Offices::default(), Arc::new(Leases::new(&config)));
        let (listener, incarnation) = (Box::new(offices.clone()), Incarnation::new(1));
        let (undertaker, retention) =
            (Undertaker::new(&config, incarnation, None), Retention::default());
        let link = Participant::open(&config, incarnation, listener, leases, undertaker, retention);
        let mut link = link.expect("it is read");
        offices.1.lock().unwrap().registry = Some(link.core.clone());
        link.claim().expect("its word is written");
        let (core, stop) = (link.core.clone(), Arc::<AtomicBool>::default());
        let (stopped, time) = (stop.clone(), StopTime::new(&config.relay));
        let said = Said::default();
        let writer = said.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let run = move || link.run(&stopped, &time);
        let thread = std::thread::spawn(|| tracing::subscriber::with_default(log, run));
        let rig = Self { cluster, offices, said, core, stop, thread: Some(thread) };
        rig.wait("the office", |rig| rig.term().is_some());
        rig
    }

    fn term(&self) -> Option<Term> {
        lock(&self.core).coordinator.term()
    }

    fn has_said(&self, what: &str) -> bool {
        String::from_utf8_lossy(&self.said.0.lock().unwrap()).contains(what)
    }

    fn wait(&self, what: &str, until: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !until(self) {
            assert!(Instant::now() < deadline, "{what} has not come");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Rig<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn who_loses_the_group_and_is_chosen_again_goes_on_with_its_term() {
    let rig = Rig::new();
    let term = rig.term();
    // As of a group's broker that is away: the session times out.
    let away = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR;
    rig.cluster.request_errors(RDKafkaApiKey::Heartbeat, &[away; 100]);
    rig.wait("the loss", |rig| rig.term().is_none());
    rig.cluster.clear_request_errors(RDKafkaApiKey::Heartbeat);
    rig.wait("the office", |rig| rig.term().is_some());
    assert_eq!(rig.term(), term);
    assert_eq!(*rig.offices.0.lock().unwrap(), [true, false, true]);
    assert!(rig.has_said("it has lost its membership in the group"), "no other relay coordinates");
}

#[test]
fn whose_records_are_refused_tries_to_take_office_later_each_time() {
    let rig = Rig::new();
    let term = rig.term();
    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    rig.cluster.request_errors(RDKafkaApiKey::Produce, &[refusal; 6]);
    rig.wait("the first refusal", |rig| rig.term().is_none());
    let begun = Instant::now();
    rig.wait("the office", |rig| rig.term().is_some());
    // Pauses of 0.1, 0.2, 0.4, 0.8, 1.6 and 3.2 seconds, and what librdkafka takes itself, which without
    // them is six seconds in all.
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(8), "{took:?}");
    assert!(rig.term() > term, "what was written is not known: a term of its own");
    assert!(rig.has_said("a record of the registry was not written; it will retry"));
}

/// A server was shown as live before the associations knew it: who saw that and connected was refused.
#[test]
fn nothing_is_shown_before_the_listener_knows_it() {
    let rig = Rig::new();
    let relays = rig.offices.1.lock().unwrap();
    assert!(!relays.told.is_empty(), "this relay's own word at least");
    assert_eq!(relays.shown_first, []);
}
