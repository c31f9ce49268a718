//! What a decision may ask of the world, and the burial of what nobody will read.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::kafka::{Incarnation, bury, unread};
use crate::route::{Balance, Partition};

use super::Facts;
use super::link::Listener;

/// How long the cluster may take to tell how far a partition is read.
const FACT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked whether a burial has ended.
const STOP_TICK: Duration = Duration::from_millis(10);

/// What a decision may ask.
pub(super) struct World<'a> {
    pub(super) backlogs: &'a mut Backlogs,
    pub(super) listener: &'a dyn Listener,
}

impl Facts for World<'_> {
    fn unread(&mut self, partition: Partition) -> Option<u64> {
        self.backlogs.unread(partition)
    }
    fn clients(&self, id: &str) -> u32 {
        self.listener.clients(id)
    }
    fn balance(&self, service: &str) -> Option<Balance> {
        self.listener.balance(service)
    }
    fn bury(&mut self, partition: Partition) {
        self.backlogs.bury(partition);
    }
}

/// How far partitions are read; asked for one at a time, so that the registry is read meanwhile.
pub(super) struct Backlogs {
    config: Config,
    incarnation: Incarnation,
    valid: Duration,
    known: HashMap<Partition, (Instant, u64)>,
    wanted: VecDeque<Partition>,
    /// At most one at a time.
    burial: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Backlogs {
    pub(super) fn new(config: &Config, incarnation: Incarnation, valid: Duration) -> Self {
        Self {
            config: config.clone(),
            incarnation,
            valid,
            known: HashMap::new(),
            wanted: VecDeque::new(),
            burial: None,
            stop: Arc::default(),
        }
    }

    fn unread(&mut self, partition: Partition) -> Option<u64> {
        if let Some((at, unread)) = self.known.get(&partition)
            && at.elapsed() < self.valid
        {
            return Some(*unread);
        }
        if !self.wanted.contains(&partition) {
            self.wanted.push_back(partition);
        }
        None
    }

    /// Finds out what was asked first.
    pub(super) fn find_out(&mut self) {
        let Some(partition) = self.wanted.pop_front() else { return };
        match unread(&self.config.kafka, partition, FACT_TIMEOUT) {
            Ok(unread) => {
                self.known.insert(partition, (Instant::now(), unread));
            }
            Err(error) => {
                let partition = partition.0;
                tracing::warn!(%error, partition, "how far a partition is read is not known");
            }
        }
    }

    /// Moves what waits in a partition to the dead letters, unless another burial goes on: then it is
    /// asked for again.
    fn bury(&mut self, partition: Partition) {
        if self.burial.as_ref().is_some_and(|burial| !burial.is_finished()) {
            return;
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
    }
}

impl Backlogs {
    /// Ends a burial that goes on, and waits for that. One that hangs at the cluster is left to the end
    /// of the process; as after a kill, the next coordinator begins it again.
    pub(super) fn stop(&mut self, patience: Duration) {
        self.stop.store(true, Ordering::SeqCst);
        let Some(burial) = self.burial.take() else { return };
        let deadline = Instant::now() + patience;
        while !burial.is_finished() && Instant::now() < deadline {
            std::thread::sleep(STOP_TICK);
        }
    }
}
