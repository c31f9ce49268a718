//! What a decision may ask of the world, and the burial of what nobody will read.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaResult;

use crate::config::Config;
use crate::kafka::{Retention, Unread, renew, unread};
use crate::model::{Incarnation, Partition};
use crate::registry::listener::Listener;
use crate::route::Balance;
use crate::undelivered::bury;

use super::Facts;

/// How long the cluster may take for each of the two answers that tell how far a partition is read.
const FACT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked whether a burial has ended.
const STOP_TICK: Duration = Duration::from_millis(10);
/// When commits are renewed for the first time, at the latest: relays may be restarted often.
const FIRST_RENEWAL: Duration = Duration::from_mins(1);

/// What a decision may ask.
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
}

/// A look that has ended: where, when it began, and what was seen.
type Look = (Partition, Instant, KafkaResult<Unread>);

/// How far partitions are read; found out on a thread of its own, one after the other, so that the
/// registry is read and the relay's word renewed meanwhile, however long the cluster takes.
pub(super) struct Backlogs {
    config: Config,
    incarnation: Incarnation,
    valid: Duration,
    retention: Retention,
    known: HashMap<Partition, (Instant, Unread)>,
    /// Asked, and not answered yet.
    asked: HashSet<Partition>,
    /// None: the relay stops.
    questions: Option<Sender<Partition>>,
    answers: Receiver<Look>,
    looker: Option<JoinHandle<()>>,
    /// A burial, or the renewal of commits; at most one at a time, so that none takes back what another
    /// has committed.
    burial: Option<JoinHandle<()>>,
    /// When commits are renewed.
    next_renewal: Instant,
    stop: Arc<AtomicBool>,
}

impl Backlogs {
    pub(super) fn new(
        config: &Config,
        incarnation: Incarnation,
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
            incarnation,
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
            tracing::error!("the thread that looks how far partitions are read has ended");
        }
        None
    }

    /// Takes in what was found out.
    pub(super) fn take_in(&mut self) {
        for (partition, at, unread) in self.answers.try_iter() {
            self.asked.remove(&partition);
            match unread {
                Ok(unread) => {
                    self.known.insert(partition, (at, unread));
                }
                Err(error) => {
                    let group = self.config.kafka.server_group(partition);
                    tracing::warn!(%error, group, "how far a partition is read is not known");
                }
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.burial.as_ref().is_some_and(|burial| !burial.is_finished())
    }

    /// Has what is committed for partitions that nobody reads committed anew, before the brokers forget
    /// it: what was dealt with would seem to wait again.
    pub(super) fn renew(&mut self, now: Instant, idle: impl FnOnce() -> Vec<Partition>) {
        if now < self.next_renewal || self.is_busy() {
            return;
        }
        self.next_renewal = now + self.retention.renewal();
        let (idle, kafka, stop) = (idle(), self.config.kafka.clone(), Arc::clone(&self.stop));
        let renewal = std::thread::Builder::new().name("renewal".to_owned()).spawn(move || {
            for partition in idle {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                if let Err(error) = renew(&kafka, partition, FACT_TIMEOUT) {
                    let group = kafka.server_group(partition);
                    tracing::warn!(%error, group, "what is committed was not committed anew");
                }
            }
        });
        match renewal {
            Ok(renewal) => self.burial = Some(renewal),
            Err(error) => tracing::warn!(%error, "no thread for the renewal of commits"),
        }
    }

    /// Moves what waits in a partition to the dead letters, unless another burial goes on.
    fn bury(&mut self, partition: Partition) -> bool {
        if self.is_busy() {
            return false;
        }
        let (config, incarnation) = (self.config.clone(), self.incarnation);
        let stop = Arc::clone(&self.stop);
        let burial =
            std::thread::Builder::new().name("burial".to_owned()).spawn(move || {
                match bury(&config, incarnation, partition, &stop) {
                    Ok(records) => tracing::info!(
                        partition = partition.0,
                        records,
                        "what waited for a server that is gone is among the dead letters"
                    ),
                    Err(error) => tracing::warn!(%error, "it will be tried again"),
                }
            });
        match burial {
            Ok(burial) => self.burial = Some(burial),
            Err(error) => tracing::warn!(%error, "no thread for a burial"),
        }
        self.known.remove(&partition);
        true
    }
}

impl Backlogs {
    /// Ends a burial that goes on, and waits for that. One that hangs at the cluster is left to the end
    /// of the process; as after a kill, the next coordinator begins it again.
    pub(super) fn stop(&mut self, patience: Duration) {
        self.stop.store(true, Ordering::SeqCst);
        drop(self.questions.take());
        // The one that looks stops by itself when there are no questions, and has nothing to lose.
        drop(self.looker.take());
        let Some(burial) = self.burial.take() else { return };
        let deadline = Instant::now() + patience;
        while !burial.is_finished() && Instant::now() < deadline {
            std::thread::sleep(STOP_TICK);
        }
    }
}
