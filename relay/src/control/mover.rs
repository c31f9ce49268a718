//! Moves the connections of servers that drain or stay away to other servers. If an operator has ordered a
//! rebalancing, also moves some connections of full servers to emptier ones.
//!
//! ```text
//!              ┌─ Reassign ───────────────────────────────┐
//!  Quiescing ──┴► Acknowledging ─► Reading ─ all read ────┴► Move ─────► Resting ─► (again, if
//!  workers read    Kafka has what   the server has ─ time over,          connections are left)
//!  no more         was read         committed it     keep ──► Release ──► Resting
//!                                                    refuse ► Close
//! ```
//!
//! One thread does this for all servers. It queries the broker, and may wait for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};

use crate::config::{KafkaSection, Then};
use crate::kafka::client::client_config;
use crate::kafka::{LogContext, Retention, Written, has_read};
use crate::model::{Partition, ServerId, ServiceId};
use crate::ring::{Credit, Mark};
use crate::route::{Associations, Concern, Measure};
use crate::worker::{OrderAnswer, Orders, Task};

/// Interval between two steps.
const TICK: Duration = Duration::from_millis(50);
/// Timeout of a query to the broker.
const ANSWER: Duration = Duration::from_secs(2);
/// Least time between two rounds of a rebalancing.
const ROUND: Duration = Duration::from_secs(1);
/// Pause after a move, before it looks for connections that have arrived since.
const REST: Duration = Duration::from_secs(1);

/// The progress of a server's connections.
enum Phase {
    /// The workers were told to stop reading.
    Quiescing(Arc<OrderAnswer>),
    /// Waits until Kafka has acknowledged what was read.
    Acknowledging(Mark),
    /// Waits until the server has committed its partition up to this offset.
    Reading {
        end: i64,
        reader: BaseConsumer<LogContext>,
    },
    /// The workers were told what to do with the connections.
    Deciding(Task),
    Ending(Arc<OrderAnswer>, Duration),
    /// Nothing happens until then.
    Resting(Instant),
}

struct Move {
    concern: Concern,
    phase: Phase,
    began: Instant,
}

impl Move {
    fn balances(&self) -> bool {
        matches!(self.concern.measure, Measure::Rebalance { .. })
    }

    /// True if the move is over, and so is the pause after it.
    fn has_rested(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Resting(until) if now >= until)
    }
}

/// Moves connections between servers.
pub(super) struct Mover {
    kafka: KafkaSection,
    retention: Retention,
    written: Arc<Written>,
    associations: Arc<Associations>,
    credit: Arc<Credit>,
    orders: Orders,
    moves: HashMap<ServerId, Move>,
    /// When the next round of a rebalancing may begin.
    rounds: HashMap<ServiceId, Instant>,
}

impl Mover {
    pub(super) fn new(
        (kafka, retention, written): (KafkaSection, Retention, Arc<Written>),
        associations: Arc<Associations>,
        credit: Arc<Credit>,
        orders: Orders,
    ) -> Self {
        let (moves, rounds) = (HashMap::new(), HashMap::new());
        Self { kafka, retention, written, associations, credit, orders, moves, rounds }
    }

    /// Runs until `stop`. Then the workers end connections that are quiesced.
    pub(super) fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            self.step(stop);
            std::thread::park_timeout(TICK);
        }
        // Closing their readers would wait for a cluster that does not answer. The process ends now.
        std::mem::forget(self.moves);
    }

    fn step(&mut self, stop: &AtomicBool) {
        let mut concerns = self.associations.concerns();
        self.rebalance(&mut concerns);
        let mut moves = std::mem::take(&mut self.moves);
        for concern in concerns {
            // Each of them may have to wait for the broker.
            if stop.load(Ordering::SeqCst) {
                return;
            }
            let server = concern.server;
            let current = moves.remove(&server);
            if let Some(current) = self.go_on(current, Some(concern)) {
                self.moves.insert(server, current);
            }
        }
        // Moves of servers that are live again, or whose connections have all ended.
        for (server, current) in moves {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            if let Some(current) = self.go_on(Some(current), None) {
                self.moves.insert(server, current);
            }
        }
    }

    /// Adds the moves of rebalancings: a round per second for each service, once the last round has ended. In
    /// between, the table learns what all relays have moved.
    fn rebalance(&mut self, concerns: &mut Vec<Concern>) {
        let now = Instant::now();
        let services = self.associations.to_rebalance();
        self.rounds.retain(|service, _| services.contains(service));
        let has = |concerns: &[Concern], server| concerns.iter().any(|of| of.server == server);
        for service in services {
            let mut goes_on = false;
            let of_it = |current: &&Move| current.balances() && current.concern.service == service;
            for current in self.moves.values().filter(of_it) {
                // A server that has begun to drain has its concern already.
                if !current.has_rested(now) && !has(concerns, current.concern.server) {
                    goes_on |= !matches!(current.phase, Phase::Resting(_));
                    concerns.push(current.concern.clone());
                }
            }
            let due = self.rounds.get(&service).is_none_or(|due| now >= *due);
            if goes_on || !due {
                continue;
            }
            self.rounds.insert(service, now + ROUND);
            for new in self.associations.rebalance(service) {
                let is_free =
                    self.moves.get(&new.server).is_none_or(|current| current.has_rested(now));
                if is_free && !has(concerns, new.server) {
                    concerns.push(new);
                }
            }
        }
    }

    /// Advances a server's move by one step. Without a concern the move is given up.
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
                    tracing::info!(
                        server = &*concern.name,
                        connections,
                        "its clients have been moved, released or closed"
                    );
                    Phase::Resting(now + rest)
                }
            },
            Phase::Deciding(task) => self.decide(&concern, task),
            _ if !wanted => Phase::Deciding(Task::Release),
            Phase::Quiescing(answer) if answer.connections().is_none() => Phase::Quiescing(answer),
            Phase::Quiescing(_) => Phase::Acknowledging(self.credit.mark(concern.partition)),
            Phase::Acknowledging(mark) if !self.credit.is_past(concern.partition, mark) => {
                // A drain waits as long as the broker is away: the server cannot have read them either.
                match concern.measure {
                    Measure::Rebalance { .. } => out_of_time(&concern, began),
                    _ => None,
                }
                .unwrap_or(Phase::Acknowledging(mark))
            }
            Phase::Acknowledging(mark) => match concern.measure {
                Measure::Drain { .. } | Measure::Rebalance { .. } => {
                    self.ask_end(&concern, began, mark)
                }
                _ => Phase::Deciding(Task::Move),
            },
            Phase::Reading { end, reader } => self.ask_committed(&concern, began, end, reader),
        };
        Some(Move { concern, phase, began })
    }

    /// Starts a move. None if the workers have too many orders at present.
    fn begin(&mut self, concern: &Concern) -> Option<Phase> {
        if concern.measure == Measure::Refuse {
            return Some(Phase::Deciding(Task::Close));
        }
        let task = match concern.measure {
            Measure::Rebalance { most, .. } => Task::QuiesceSome(most),
            _ => Task::Quiesce,
        };
        let answer = self.orders.give(concern.server, task)?;
        tracing::info!(server = &*concern.name, measure = ?concern.measure, "moving its clients");
        Some(Phase::Quiescing(answer))
    }

    fn decide(&mut self, concern: &Concern, task: Task) -> Phase {
        let rest = match (task, concern.measure) {
            (
                Task::Release,
                Measure::Drain { within_ms, .. } | Measure::Rebalance { within_ms, .. },
            ) => REST.max(Duration::from_millis(within_ms)),
            // The rounds have their own time.
            (_, Measure::Rebalance { .. }) => Duration::ZERO,
            _ => REST,
        };
        match self.orders.give(concern.server, task) {
            Some(answer) => Phase::Ending(answer, rest),
            None => Phase::Deciding(task),
        }
    }

    fn ask_end(&self, concern: &Concern, began: Instant, mark: Mark) -> Phase {
        let partition = concern.partition;
        match self.reader(partition).and_then(|reader| Ok((self.end(&reader, partition)?, reader)))
        {
            Ok((end, reader)) => Phase::Reading { end, reader },
            Err(error) => {
                tracing::warn!(%error, %partition, "cannot determine the end of a partition");
                out_of_time(concern, began).unwrap_or(Phase::Acknowledging(mark))
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
        match self.has_read(&reader, partition, end) {
            Ok(true) => return Phase::Deciding(Task::Move),
            Ok(false) => {}
            Err(error) => {
                let group = self.kafka.server_group(partition);
                tracing::warn!(%error, group, "cannot determine how far a server has read");
            }
        }
        out_of_time(concern, began).unwrap_or(Phase::Reading { end, reader })
    }

    /// A client for the group of the partition's reader. It queries the group, and never joins it.
    fn reader(&self, partition: Partition) -> Result<BaseConsumer<LogContext>, KafkaError> {
        let mut client = client_config(&self.kafka);
        client
            .set("group.id", self.kafka.server_group(partition))
            .set("enable.auto.commit", "false");
        client.create_with_context(LogContext::new(&self.kafka))
    }

    fn end(&self, reader: &BaseConsumer<LogContext>, partition: Partition) -> KafkaResult<i64> {
        let topic = self.kafka.uplink_topic();
        known_end(&self.written, partition, || {
            reader.fetch_watermarks(&topic, i32::from(partition.0), ANSWER).map(|(_, end)| end)
        })
    }

    fn has_read(
        &self,
        reader: &BaseConsumer<LogContext>,
        partition: Partition,
        end: i64,
    ) -> KafkaResult<bool> {
        let topic = self.kafka.uplink_topic();
        has_read(reader, (&topic, i32::from(partition.0)), end, self.retention, ANSWER)
    }
}

/// The offset up to which a server must have read. Some brokers report an end before records that they have
/// acknowledged, and what this relay's clients have sent is acknowledged by now. If a log has lost these
/// records, the server never reads that far, and the timeout decides.
fn known_end(
    written: &Written,
    partition: Partition,
    told: impl FnOnce() -> KafkaResult<i64>,
) -> KafkaResult<i64> {
    let (told, known) = (told()?, written.end(partition));
    if told < known {
        tracing::warn!(
            %partition, told, known,
            "a broker reports an end of a partition before records that it has acknowledged; the \
             report is ignored"
        );
    }
    Ok(told.max(known))
}

/// What to do with the connections if the server takes too long.
fn out_of_time(concern: &Concern, began: Instant) -> Option<Phase> {
    let (within_ms, then) = match concern.measure {
        Measure::Drain { within_ms, then } => (within_ms, then),
        // The server is live, and serves them too.
        Measure::Rebalance { within_ms, .. } => (within_ms, Then::Keep),
        _ => return Some(Phase::Deciding(Task::Move)),
    };
    if began.elapsed() < Duration::from_millis(within_ms) {
        return None;
    }
    let server = &*concern.name;
    tracing::warn!(server, within_ms, ?then, "a server did not read its clients' messages in time");
    Some(Phase::Deciding(match then {
        Then::Keep => Task::Release,
        Then::Reassign => Task::Move,
        Then::Refuse => Task::Close,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_must_read_what_was_acknowledged_whatever_end_is_told() {
        let (written, partition) = (Written::new(1), Partition(0));
        written.acknowledged(partition, (8, 1), true);
        assert_eq!(known_end(&written, partition, || Ok(5)), Ok(9));
        assert_eq!(known_end(&written, partition, || Ok(12)), Ok(12), "others write there too");
        let untold = KafkaError::Canceled;
        assert_eq!(known_end(&written, partition, || Err(untold.clone())), Err(untold));
    }
}
