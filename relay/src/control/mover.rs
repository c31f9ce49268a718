//! Moves the connections of servers that drain, or that stay away, to other servers.
//!
//! ```text
//!              ┌─ Reassign ───────────────────────────────┐
//!  Quiescing ──┴► Acknowledging ─► Reading ─ all read ────┴► Move ─────► Resting ─► (again, if
//!  workers read    Kafka has what   the server has ─ time over,          connections are left)
//!  no more         was read         committed it     keep ──► Release ──► Resting
//!                                                    refuse ► Close
//! ```
//!
//! One thread does it for all servers: it asks the broker, and may wait there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};

use crate::config::KafkaSection;
use crate::kafka::{LogContext, client_config, committed};
use crate::ring::Credit;
use crate::route::{Associations, Concern, Measure, Partition, ServerId, Then};
use crate::worker::{OrderAnswer, Orders, Task};

/// How often it looks what is to be done, and how far it is.
const TICK: Duration = Duration::from_millis(50);
/// How long the broker may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long after a move it looks for connections that came to the server meanwhile.
const REST: Duration = Duration::from_secs(1);

/// How far a server's connections are.
enum Phase {
    /// The workers were told to read no more.
    Quiescing(Arc<OrderAnswer>),
    /// Until Kafka has acknowledged what was read.
    Acknowledging,
    /// Until the server has committed its partition up to here.
    Reading {
        end: i64,
        reader: BaseConsumer<LogContext>,
    },
    /// The workers were told how it goes on.
    Deciding(Task),
    Ending(Arc<OrderAnswer>, Duration),
    /// Nothing is done until then.
    Resting(Instant),
}

struct Move {
    concern: Concern,
    phase: Phase,
    began: Instant,
}

/// Moves connections between servers.
pub(super) struct Mover {
    kafka: KafkaSection,
    associations: Arc<Associations>,
    credit: Arc<Credit>,
    orders: Orders,
    moves: HashMap<ServerId, Move>,
}

impl Mover {
    pub(super) fn new(
        kafka: KafkaSection,
        associations: Arc<Associations>,
        credit: Arc<Credit>,
        orders: Orders,
    ) -> Self {
        Self { kafka, associations, credit, orders, moves: HashMap::new() }
    }

    /// Runs until `stop`; quiesced connections are ended by the workers then.
    pub(super) fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            self.step();
            std::thread::park_timeout(TICK);
        }
    }

    fn step(&mut self) {
        let concerns = self.associations.concerns();
        let mut moves = std::mem::take(&mut self.moves);
        for concern in concerns {
            let server = concern.server;
            let current = moves.remove(&server);
            if let Some(current) = self.go_on(current, Some(concern)) {
                self.moves.insert(server, current);
            }
        }
        // Those of servers that are live again, or whose connections have all ended.
        for (server, current) in moves {
            if let Some(current) = self.go_on(Some(current), None) {
                self.moves.insert(server, current);
            }
        }
    }

    /// A step of one server's move. Without a concern it is to be given up.
    fn go_on(&mut self, current: Option<Move>, concern: Option<Concern>) -> Option<Move> {
        let (wanted, now) = (concern.is_some(), Instant::now());
        let (phase, mut began, former) = match current {
            Some(current) => (current.phase, current.began, Some(current.concern)),
            None => (Phase::Resting(now), now, None),
        };
        let concern = concern.or(former)?;
        let phase = match phase {
            Phase::Resting(_) if !wanted => return None,
            Phase::Resting(until) if now < until => Phase::Resting(until),
            Phase::Resting(until) => {
                began = now;
                self.begin(&concern).unwrap_or(Phase::Resting(until))
            }
            Phase::Ending(answer, rest) => match answer.connections() {
                None => Phase::Ending(answer, rest),
                Some(connections) => {
                    tracing::info!(server = &*concern.name, connections, "carried out");
                    Phase::Resting(now + rest)
                }
            },
            Phase::Deciding(task) => self.decide(&concern, task),
            _ if !wanted => Phase::Deciding(Task::Release),
            Phase::Quiescing(answer) if answer.connections().is_none() => Phase::Quiescing(answer),
            Phase::Quiescing(_) => Phase::Acknowledging,
            Phase::Acknowledging if self.credit.used(concern.partition) > 0 => Phase::Acknowledging,
            Phase::Acknowledging => match concern.measure {
                Measure::Drain { .. } => self.ask_end(&concern, began),
                _ => Phase::Deciding(Task::Move),
            },
            Phase::Reading { end, reader } => self.ask_committed(&concern, began, end, reader),
        };
        Some(Move { concern, phase, began })
    }

    /// None if the workers have too many orders now.
    fn begin(&mut self, concern: &Concern) -> Option<Phase> {
        if concern.measure == Measure::Refuse {
            return Some(Phase::Deciding(Task::Close));
        }
        let answer = self.orders.give(concern.server, Task::Quiesce)?;
        tracing::info!(server = &*concern.name, measure = ?concern.measure, "moving its clients");
        Some(Phase::Quiescing(answer))
    }

    fn decide(&mut self, concern: &Concern, task: Task) -> Phase {
        let rest = match (task, concern.measure) {
            (Task::Release, Measure::Drain { within_ms, .. }) => Duration::from_millis(within_ms),
            _ => REST,
        };
        match self.orders.give(concern.server, task) {
            Some(answer) => Phase::Ending(answer, rest.max(REST)),
            None => Phase::Deciding(task),
        }
    }

    fn ask_end(&self, concern: &Concern, began: Instant) -> Phase {
        let partition = concern.partition;
        match self.reader(partition).and_then(|reader| Ok((self.end(&reader, partition)?, reader)))
        {
            Ok((end, reader)) => Phase::Reading { end, reader },
            Err(error) => {
                tracing::warn!(%error, %partition, "the end of a partition is not told");
                out_of_time(concern, began).unwrap_or(Phase::Acknowledging)
            }
        }
    }

    fn ask_committed(
        &self,
        concern: &Concern,
        began: Instant,
        end: i64,
        reader: BaseConsumer<LogContext>,
    ) -> Phase {
        let partition = concern.partition;
        match self.committed(&reader, partition) {
            Ok(committed) if committed >= end => return Phase::Deciding(Task::Move),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, %partition, "what a server has read is not told"),
        }
        out_of_time(concern, began).unwrap_or(Phase::Reading { end, reader })
    }

    /// A client in the group of whoever reads the partition; it asks and never joins.
    fn reader(&self, partition: Partition) -> Result<BaseConsumer<LogContext>, KafkaError> {
        let mut client = client_config(&self.kafka);
        client
            .set("group.id", self.kafka.server_group(partition))
            .set("enable.auto.commit", "false");
        client.create_with_context(LogContext)
    }

    fn end(&self, reader: &BaseConsumer<LogContext>, partition: Partition) -> KafkaResult<i64> {
        let topic = self.kafka.uplink_topic();
        reader.fetch_watermarks(&topic, i32::from(partition.0), ANSWER).map(|(_, end)| end)
    }

    /// 0 if nothing was committed.
    fn committed(
        &self,
        reader: &BaseConsumer<LogContext>,
        partition: Partition,
    ) -> KafkaResult<i64> {
        let topic = self.kafka.uplink_topic();
        Ok(committed(reader, &topic, i32::from(partition.0), ANSWER)?.unwrap_or_default())
    }
}

/// What becomes of the connections if the server takes too long.
fn out_of_time(concern: &Concern, began: Instant) -> Option<Phase> {
    let Measure::Drain { within_ms, then } = concern.measure else {
        return Some(Phase::Deciding(Task::Move));
    };
    if began.elapsed() < Duration::from_millis(within_ms) {
        return None;
    }
    let server = &*concern.name;
    tracing::warn!(server, within_ms, ?then, "has not read what its clients sent in time");
    Some(Phase::Deciding(match then {
        Then::Keep => Task::Release,
        Then::Reassign => Task::Move,
        Then::Refuse => Task::Close,
    }))
}
