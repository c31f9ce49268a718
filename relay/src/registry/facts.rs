//! Facts for the coordinator's decisions, and the burial of records that nobody will read.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaResult;

use crate::config::Config;
use crate::kafka::{Retention, Unread, renew, unread};
use crate::model::Partition;
use crate::registry::listener::Listener;
use crate::registry::unheld::{Busy, Unheld};
use crate::route::Balance;
use crate::undelivered::Undertaker;
use crate::uplink::Leases;

use super::Facts;

/// Timeout of each of the two queries that determine how far a partition is read.
const FACT_TIMEOUT: Duration = Duration::from_secs(2);
/// Poll interval while a stop waits for a burial to end.
const STOP_TICK: Duration = Duration::from_millis(10);
/// Latest time of the first renewal of commits after a start, because relays may be restarted often.
const FIRST_RENEWAL: Duration = Duration::from_mins(1);

/// Where decisions get their facts.
pub(super) struct World<'a> {
    pub(super) backlogs: &'a mut Backlogs,
    pub(super) listener: &'a dyn Listener,
}

impl Facts for World<'_> {
    fn unread(&mut self, partition: Partition, since: Instant) -> Option<Unread> {
        self.backlogs.unread(partition, since)
    }
    fn clients(&self, id: &str) -> u32 {
        self.listener.clients(id)
    }
    fn balance(&self, service: &str) -> Option<Balance> {
        self.listener.balance(service)
    }
    fn bury(&mut self, partition: Partition) -> bool {
        self.backlogs.bury(partition)
    }
    fn claim(&mut self, partition: Partition) -> bool {
        self.backlogs.unheld.claim(partition)
    }
}

/// A finished query: its partition, when it began, and its result.
type Look = (Partition, Instant, KafkaResult<Unread>);

/// How far partitions are read. A separate thread queries one after the other, so that the registry is read
/// and the relay's record renewed meanwhile, however long the cluster takes.
pub(super) struct Backlogs {
    config: Config,
    undertaker: Undertaker,
    leases: Arc<Leases>,
    unheld: Unheld,
    valid: Duration,
    retention: Retention,
    known: HashMap<Partition, (Instant, Unread)>,
    /// Asked, and not answered yet.
    asked: HashSet<Partition>,
    /// None: the relay stops.
    questions: Option<Sender<Partition>>,
    answers: Receiver<Look>,
    looker: Option<JoinHandle<()>>,
    /// A burial, or a renewal of commits. At most one runs at a time, so that neither takes back what the
    /// other has committed.
    burial: Option<JoinHandle<()>>,
    /// When commits are renewed.
    next_renewal: Instant,
    stop: Arc<AtomicBool>,
}

impl Backlogs {
    pub(super) fn new(
        config: &Config,
        undertaker: Undertaker,
        leases: Arc<Leases>,
        valid: Duration,
        retention: Retention,
    ) -> std::io::Result<Self> {
        let (questions, asked) = mpsc::channel::<Partition>();
        let (answer, answers) = mpsc::channel();
        let (kafka, stop) = (config.kafka.clone(), Arc::<AtomicBool>::default());
        let stopped = Arc::clone(&stop);
        let looker = std::thread::Builder::new().name("backlogs".to_owned()).spawn(move || {
            let look = |partition| unread(&kafka, partition, retention, FACT_TIMEOUT);
            for partition in asked {
                let at = Instant::now();
                if stopped.load(Ordering::SeqCst)
                    || answer.send((partition, at, look(partition))).is_err()
                {
                    return;
                }
            }
        })?;
        Ok(Self {
            retention,
            config: config.clone(),
            undertaker,
            leases,
            unheld: Unheld::default(),
            valid,
            known: HashMap::new(),
            asked: HashSet::new(),
            questions: Some(questions),
            answers,
            looker: Some(looker),
            burial: None,
            next_renewal: Instant::now() + retention.renewal().min(FIRST_RENEWAL),
            stop,
        })
    }

    fn unread(&mut self, partition: Partition, since: Instant) -> Option<Unread> {
        if let Some((at, unread)) = self.known.get(&partition)
            && *at >= since
            && at.elapsed() < self.valid
        {
            return Some(*unread);
        }
        if let Some(questions) = &self.questions
            && self.asked.insert(partition)
            && questions.send(partition).is_err()
        {
            tracing::error!("the thread that queries how far partitions are read has ended");
        }
        None
    }

    /// Takes the results of finished queries.
    pub(super) fn take_in(&mut self) {
        for (partition, at, unread) in self.answers.try_iter() {
            self.asked.remove(&partition);
            match unread {
                Ok(unread) => {
                    self.known.insert(partition, (at, unread));
                }
                Err(error) => {
                    let group = self.config.kafka.server_group(partition);
                    tracing::warn!(%error, group, "cannot determine how far a partition is read");
                }
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.burial.as_ref().is_some_and(|burial| !burial.is_finished())
    }

    /// Takes note of the partitions that no server holds, right before a decision. Renews their committed
    /// offsets before these expire; otherwise records that were dealt with would seem to wait again.
    pub(super) fn look_after(&mut self, unheld: BTreeSet<Partition>, now: Instant) {
        self.unheld.offer(unheld.clone());
        if now < self.next_renewal || self.is_busy() {
            return;
        }
        self.next_renewal = now + self.retention.renewal();
        let (kafka, stop) = (self.config.kafka.clone(), Arc::clone(&self.stop));
        let (free, may_commit) = (self.unheld.clone(), self.may_commit());
        let renewal = std::thread::Builder::new().name("renewal".to_owned()).spawn(move || {
            for partition in unheld {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Some(busy) = free.enter(partition) else { continue };
                let may_commit = || may_commit(&busy);
                if let Err(error) = renew(&kafka, partition, FACT_TIMEOUT, may_commit) {
                    let group = kafka.server_group(partition);
                    tracing::warn!(%error, group, "the committed offset was not renewed");
                }
            }
        });
        match renewal {
            Ok(renewal) => self.burial = Some(renewal),
            Err(error) => {
                tracing::warn!(%error, "cannot start the thread that renews committed offsets");
            }
        }
    }

    /// The check right before a commit: the partition still has no holder, and this relay reads the registry
    /// and coordinates, so that it would know.
    fn may_commit(&self) -> impl Fn(&Busy<'_>) -> bool + Send + 'static {
        let leases = Arc::clone(&self.leases);
        move |busy| busy.may_commit() && leases.is_fresh(Instant::now())
    }

    /// Moves what waits in a partition to the dead letters, unless another burial or renewal is running.
    fn bury(&mut self, partition: Partition) -> bool {
        if self.is_busy() {
            return false;
        }
        let undertaker = self.undertaker.clone();
        let (free, may_commit) = (self.unheld.clone(), self.may_commit());
        let stop = Arc::clone(&self.stop);
        let burial = std::thread::Builder::new().name("burial".to_owned()).spawn(move || {
            let Some(busy) = free.enter(partition) else { return };
            match undertaker.bury(partition, &stop, || may_commit(&busy)) {
                Ok(records) => tracing::info!(
                    partition = partition.0,
                    records,
                    "records that waited for a server that is gone are now dead letters"
                ),
                Err(error) => tracing::warn!(%error, "a burial failed; it will be retried"),
            }
        });
        match burial {
            Ok(burial) => self.burial = Some(burial),
            Err(error) => tracing::warn!(%error, "cannot start the thread for a burial"),
        }
        self.known.remove(&partition);
        true
    }
}

impl Backlogs {
    /// This relay no longer coordinates, so it commits nothing.
    pub(super) fn leave_office(&self) {
        self.unheld.revoke();
    }

    /// Ends a running burial, and waits for its end. One that waits for the cluster is left to the end of
    /// the process. As after a kill, the next coordinator starts it again.
    pub(super) fn stop(&mut self, patience: Duration) {
        self.stop.store(true, Ordering::SeqCst);
        drop(self.questions.take());
        // The querying thread ends when the channel is closed, and has nothing to lose.
        drop(self.looker.take());
        let Some(burial) = self.burial.take() else { return };
        let deadline = Instant::now() + patience;
        while !burial.is_finished() && Instant::now() < deadline {
            std::thread::sleep(STOP_TICK);
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
    use rdkafka::mocking::MockCluster;
    use rdkafka::{Offset, TopicPartitionList};

    use super::*;
    use crate::kafka::{LogContext, committed, observer};
    use crate::model::Incarnation;

    const PATIENCE: Duration = Duration::from_secs(30);
    const PARTITION: Partition = Partition(1);

    struct Rig<'a> {
        _cluster: MockCluster<'a, rdkafka::producer::DefaultProducerContext>,
        config: Config,
        backlogs: Backlogs,
        /// The partition's holder, which is connected.
        holder: BaseConsumer<LogContext>,
    }

    impl Rig<'_> {
        /// A partition whose former holder has committed 5.
        fn new() -> Self {
            let cluster = MockCluster::new(1).expect("a cluster");
            let text = include_str!("../../../docs/millrace.toml");
            let text = text.replace("127.0.0.1:9092", &cluster.bootstrap_servers());
            let config: Config = toml::from_str(&text).expect("valid");
            cluster.create_topic(&config.kafka.uplink_topic(), 2, 1).expect("a topic");
            let leases = Arc::new(Leases::new(&config));
            leases.known(Instant::now());
            let undertaker = Undertaker::new(&config, Incarnation::new(1), None);
            let retention = Retention::default();
            let backlogs = Backlogs::new(&config, undertaker, leases, PATIENCE, retention);
            let kafka = &config.kafka;
            let holder = observer(kafka, &kafka.server_group(PARTITION)).expect("a consumer");
            let rig =
                Self { _cluster: cluster, config, backlogs: backlogs.expect("a thread"), holder };
            rig.commit(5);
            rig.backlogs.unheld.offer([PARTITION].into());
            rig
        }

        fn commit(&self, offset: i64) {
            let mut list = TopicPartitionList::new();
            let (topic, partition) = (self.config.kafka.uplink_topic(), PARTITION.0.into());
            list.add_partition_offset(&topic, partition, Offset::Offset(offset))
                .expect("an offset");
            self.holder.commit(&list, CommitMode::Sync).expect("committed");
        }

        fn committed(&self) -> Option<i64> {
            committed(&self.holder, &self.config.kafka.uplink_topic(), PARTITION.0.into(), PATIENCE)
                .expect("told")
        }

        /// A renewal, and what happens right before its commit.
        fn renew(&self, meanwhile: impl FnOnce()) {
            let busy = self.backlogs.unheld.enter(PARTITION).expect("nobody holds it");
            let may_commit = || {
                meanwhile();
                self.backlogs.may_commit()(&busy)
            };
            renew(&self.config.kafka, PARTITION, PATIENCE, may_commit).expect("an answer");
        }
    }

    #[test]
    fn a_renewal_never_takes_a_new_holders_commit_back() {
        let rig = Rig::new();
        let unheld = &rig.backlogs.unheld;
        // A server gets the partition, and commits, as soon as it may.
        let grant = || {
            let granted = unheld.claim(PARTITION);
            if granted {
                rig.commit(9);
            }
            granted
        };
        rig.renew(|| assert!(!grant(), "not between the look and the commit"));
        assert_eq!(rig.committed(), Some(5));
        assert!(grant());
        assert!(unheld.enter(PARTITION).is_none(), "it is not renewed any more");
        assert_eq!(rig.committed(), Some(9));
    }

    #[test]
    fn a_relay_that_loses_the_office_within_a_renewal_commits_nothing() {
        let rig = Rig::new();
        rig.renew(|| {
            // The next coordinator knows nothing of this renewal.
            rig.backlogs.leave_office();
            rig.commit(9);
        });
        assert_eq!(rig.committed(), Some(9));
    }

    #[test]
    fn a_relay_that_does_not_read_the_registry_any_more_commits_nothing() {
        let mut rig = Rig::new();
        rig.config.registry.relay_timeout_ms = 0;
        rig.backlogs.leases = Arc::new(Leases::new(&rig.config));
        rig.renew(|| rig.commit(9));
        assert_eq!(rig.committed(), Some(9));
    }

    #[test]
    fn a_renewal_ends_and_leaves_the_partitions_to_servers() {
        let mut rig = Rig::new();
        rig.backlogs.next_renewal = Instant::now();
        rig.backlogs.look_after([PARTITION].into(), Instant::now());
        assert!(rig.backlogs.next_renewal > Instant::now(), "it has begun");
        let begun = Instant::now();
        while rig.backlogs.is_busy() {
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(STOP_TICK);
        }
        assert!(rig.backlogs.unheld.claim(PARTITION));
        assert_eq!(rig.committed(), Some(5));
    }
}
