//! Brokers: who leads what, what each of them has heard of that, and what they answer wrongly.

use std::time::Duration;

use crate::dice::Dice;
use crate::log::{Incoming, Log};

pub(crate) const TOPIC: &str = "uplink";
pub(crate) const PORT: u16 = 9092;
const NOT_LEADER_OR_FOLLOWER: i16 = 6;
const UNKNOWN_TOPIC_ID: i16 = 100;
const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
/// What a batch's refusal for good is called by its records.
pub(crate) const REFUSALS: [(&[u8], i16); 3] = [(b"!large", 10), (b"!bad", 87), (b"!time", 32)];
/// The right to write is withdrawn.
pub(crate) const REVOKED: i16 = 29;

/// A partition's leader, by its place, and the leader's epoch.
pub(crate) type Leader = (Option<usize>, i32);

/// What a broker has heard of the topic.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) topic_id: u128,
    pub(crate) leaders: Vec<Leader>,
    /// It hears nothing until then.
    stale_until: Duration,
}

/// What the topic's metadata are for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Odd {
    Error(i16),
    /// So many partitions.
    Short(usize),
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// A batch in so many fails before it is written, or after; 0: none.
    pub(crate) before: usize,
    pub(crate) after: usize,
    pub(crate) throttle: usize,
    pub(crate) no_brokers: usize,
    pub(crate) no_identity: usize,
    /// Answers that say nothing of a partition, or that speak of versions that are too old.
    pub(crate) incomplete: usize,
}

#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: usize,
    pub(crate) produce_max: i16,
    /// Brokers have to be told who we are, which holds for so long; `ZERO`: for as long as the connection.
    pub(crate) login: Option<Duration>,
    pub(crate) logs: Vec<Log>,
    pub(crate) truth: Vec<Leader>,
    pub(crate) topic_id: u128,
    views: Vec<View>,
    pub(crate) odd: Option<(Odd, Duration)>,
    /// Nobody may write until then.
    pub(crate) revoked_until: Duration,
    pub(crate) faults: Faults,
    /// The ports of the brokers.
    pub(crate) ports: Vec<u16>,
    next_producer: i64,
    /// Leaders that will be elected.
    elections: Vec<(Duration, usize)>,
}

impl Cluster {
    pub(crate) fn new(dice: &mut Dice, partitions: usize) -> Self {
        let nodes = 1 + dice.below(3);
        let truth: Vec<Leader> = (0..partitions).map(|_| (Some(dice.below(nodes)), 0)).collect();
        let view = View { topic_id: 1, leaders: truth.clone(), stale_until: Duration::ZERO };
        Self {
            nodes,
            produce_max: 9 + i16::try_from(dice.below(5)).expect("small"),
            login: dice.one_in(2).then(|| Duration::from_millis(dice.of(&[0, 0, 3000, 20_000]))),
            logs: (0..partitions).map(|_| Log::default()).collect(),
            truth,
            topic_id: 1,
            views: vec![view; nodes],
            odd: None,
            revoked_until: Duration::ZERO,
            faults: Faults::default(),
            ports: vec![PORT; nodes],
            next_producer: 1000,
            elections: Vec::new(),
        }
    }

    /// Another leader, or the same again; perhaps none for a while.
    pub(crate) fn elect(&mut self, partition: usize, dice: &mut Dice, now: Duration) {
        self.remain_stale(dice, now);
        let (leader, epoch) = &mut self.truth[partition];
        *epoch += 1;
        if dice.one_in(3) {
            *leader = None;
            self.elections.push((now + dice.millis(3000), partition));
        } else {
            *leader = Some(dice.below(self.nodes));
        }
    }

    /// A broker whose users are not known to it for a moment.
    pub(crate) fn refuses_login(&self, dice: &mut Dice) -> bool {
        self.faults.no_identity > 0 && dice.one_in(self.faults.no_identity)
    }

    pub(crate) fn next_election(&self) -> Option<Duration> {
        self.elections.iter().map(|(then, _)| *then).min()
    }

    pub(crate) fn hold_elections(&mut self, dice: &mut Dice, now: Duration) {
        while let Some(due) = self.elections.iter().position(|(then, _)| *then <= now) {
            let (_, partition) = self.elections.swap_remove(due);
            self.remain_stale(dice, now);
            let (leader, epoch) = &mut self.truth[partition];
            if leader.is_none() {
                (*leader, *epoch) = (Some(dice.below(self.nodes)), *epoch + 1);
            }
        }
    }

    fn remain_stale(&mut self, dice: &mut Dice, now: Duration) {
        for node in 0..self.nodes {
            self.view(node, now);
            if dice.one_in(2) {
                let until = now + dice.millis(4000);
                self.views[node].stale_until = self.views[node].stale_until.max(until);
            }
        }
    }

    /// What a broker has heard by now.
    pub(crate) fn view(&mut self, node: usize, now: Duration) -> &View {
        let view = &mut self.views[node];
        if view.stale_until <= now {
            view.topic_id = self.topic_id;
            view.leaders.clone_from(&self.truth);
        }
        view
    }

    /// The topic is deleted, and there is one of the same name. What was in the old one is returned.
    pub(crate) fn make_anew(&mut self, dice: &mut Dice, now: Duration) -> Vec<Log> {
        self.remain_stale(dice, now);
        self.topic_id += 1;
        for leader in &mut self.truth {
            *leader = (Some(dice.below(self.nodes)), 0);
        }
        self.elections.clear();
        self.logs.iter_mut().map(std::mem::take).collect()
    }

    /// A producer's id.
    pub(crate) fn identity(&mut self, dice: &mut Dice) -> Result<i64, i16> {
        if self.faults.no_identity > 0 && dice.one_in(self.faults.no_identity) {
            return Err(dice.of(&[15, 16, 14, 41]));
        }
        self.next_producer += 1;
        Ok(self.next_producer)
    }

    /// What becomes of a batch: its offset or an error.
    pub(crate) fn produce(
        &mut self,
        (node, partition): (usize, usize),
        topic_id: Option<u128>,
        batch: &Incoming,
        dice: &mut Dice,
        now: Duration,
    ) -> Result<i64, i16> {
        if now < self.revoked_until {
            return Err(REVOKED);
        }
        if self.faults.before > 0 && dice.one_in(self.faults.before) {
            return Err(dice.of(&[2, 3, 5, 6, 7, 19, 56]));
        }
        let heard = self.view(node, now).topic_id;
        if topic_id.is_some_and(|id| id != heard || id != self.topic_id) {
            return Err(UNKNOWN_TOPIC_ID);
        }
        if self.truth[partition].0 != Some(node) {
            return Err(NOT_LEADER_OR_FOLLOWER);
        }
        for (mark, code) in REFUSALS {
            if batch.values.iter().any(|value| has_mark(value, mark)) {
                return Err(code);
            }
        }
        let offset = self.logs[partition].append(batch)?;
        if self.faults.after > 0 && dice.one_in(self.faults.after) {
            return Err(dice.of(&[-1, 7, 20, NOT_LEADER_OR_FOLLOWER, UNKNOWN_TOPIC_OR_PARTITION]));
        }
        Ok(offset)
    }
}

/// True for a record of that mark: it stands behind the record's name.
fn has_mark(value: &[u8], mark: &[u8]) -> bool {
    value
        .iter()
        .position(|byte| *byte == b' ')
        .is_some_and(|end| value[end + 1..].starts_with(mark))
}
