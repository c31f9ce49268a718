//! The relay's counters at one moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::downlink::{Break, ConsumerStats};
use crate::gateway::News;
use crate::kafka::{Difference, LogEnd, Written, WrittenPart, brokers_clock, throttled_ms};
use crate::measure::Counter;
use crate::model::{CloseReason, DeliveryFailure, UndeliveredReason};
use crate::registry::{RegistryObserver, RegistryStatus};
use crate::ring::Credit;
use crate::route::{Associations, RecordRefusal};
use crate::undelivered::{HeldRefusal, Intake, KeeperStats, LetterCounts};
use crate::uplink::PumpStats;
use crate::worker::{Served, WorkerStats};

use super::measured::{Counting, Measured, Settings, nonzero};
use super::standing::Standing;
use super::waiting::{Waiting, WaitingWatch};

/// Silence of Kafka that the text of a status reports.
const SILENCE_MS: u64 = 1000;

/// Processor time of the process in microseconds, in steps of the kernel's clock tick (10 ms).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTime {
    /// In user space.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
}

impl CpuTime {
    /// The time of a process with all its threads so far: `proc_pid_stat(5)`, fields 14 and 15. None if there
    /// is no such process.
    pub fn of_process(id: u32) -> Option<Self> {
        const TICK_US: u64 = 10_000;
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The command's name, in parentheses, may contain anything; field 3 follows it.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut ticks =
            fields.split_ascii_whitespace().skip(14 - 3).map(|ticks| ticks.parse::<u64>().ok());
        let mut time = || Some(ticks.next()?? * TICK_US);
        Some(Self { user: time()?, system: time()? })
    }
}

/// All counters of a relay. Each message read is acknowledged, in flight or refused.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// The relay's number.
    pub relay: u16,
    /// This run of it: Unix milliseconds of its start.
    pub incarnation: u64,
    /// Worker threads.
    pub workers: usize,
    /// Workers that hang, by thread, and for how many milliseconds they have not gone round their loop.
    /// As long as there is one, new connections take the ordinary path.
    #[serde(default)]
    pub workers_hanging_ms: BTreeMap<String, u64>,
    /// Client-facing devices from which nothing is diverted, because they are gone or were not attached
    /// again when they came back, and why.
    #[serde(default)]
    pub devices_detached: BTreeMap<String, String>,
    /// Times that a device which had come back was attached again, by device.
    #[serde(default)]
    pub devices_reattached: BTreeMap<String, u64>,
    /// Connections open now.
    pub connections: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Bytes kept in memory for the open ones.
    #[serde(default)]
    pub connection_bytes: u64,
    /// Connections closed, by reason.
    pub connections_closed: BTreeMap<String, u64>,
    /// Connections that were not accepted, by reason.
    pub connections_refused: BTreeMap<String, u64>,
    /// Connections handed on to the servers that their clients addressed, which count as closed:
    /// `connections`, those still `open` or that `failed` (`timed_out` of them for want of an answer),
    /// and `bytes` of both directions.
    #[serde(default)]
    pub handed_on: BTreeMap<String, u64>,
    /// Sessions of MQTT clients, including those that are away: their number, `sessions`, and their `bytes`
    /// of memory.
    #[serde(default)]
    pub mqtt: BTreeMap<String, u64>,
    /// Messages read from clients.
    pub messages_received: u64,
    /// Messages that Kafka has acknowledged.
    pub messages_acknowledged: u64,
    /// Messages that are received, and neither acknowledged nor refused.
    pub messages_in_flight: u64,
    /// Their bytes, which are not counted but booked and released: each message's own and 512 more.
    pub bytes_in_flight: u64,
    /// Records that Kafka's client has, and that are not answered.
    #[serde(default)]
    pub records_waiting: u64,
    /// Milliseconds for which records have been waiting while Kafka acknowledged none.
    #[serde(default)]
    pub kafka_silent_ms: u64,
    /// Messages that Kafka will never have, by reason.
    pub messages_refused: BTreeMap<String, u64>,
    /// Messages that became dead letters after Kafka had refused them, by reason.
    pub messages_dead_lettered: BTreeMap<String, u64>,
    /// Messages that will become dead letters.
    pub messages_to_bury: u64,
    /// Messages of which only a part arrived.
    pub messages_truncated: u64,
    /// Bytes received from clients.
    pub received_bytes: u64,
    /// Times that a bound held a connection back.
    pub holds: u64,
    /// Times that a connection had to wait because it sent more messages per second than allowed.
    pub throttles: u64,
    /// Replies read from the downlink.
    pub replies_received: u64,
    /// Orders to close without a reply, among those: carried out, or for a connection that had ended.
    pub replies_orders: u64,
    /// Replies handed to the kernel for their client.
    pub replies_sent: u64,
    /// Times that a reply was left in Kafka because its client had not read earlier ones.
    #[serde(default)]
    pub replies_postponed: u64,
    /// Replies that are left there at present.
    #[serde(default)]
    pub replies_backlog: u64,
    /// Replies that their clients had asked not to get, or that had expired.
    pub replies_filtered: u64,
    /// Replies not sent, by reason.
    pub replies_undelivered: BTreeMap<String, u64>,
    /// Replies that were written to the topic `held`, where they wait for their clients.
    pub replies_held: u64,
    /// Replies from there that this relay has sent.
    pub held_delivered: u64,
    /// Replies that wait there at present, from all relays.
    pub held_waiting: u64,
    /// Clients for which they wait.
    pub held_clients: u64,
    /// Clients that got some of them, and have not confirmed these for some seconds.
    #[serde(default)]
    pub held_late: u64,
    /// Replies that had waited there and that this relay has made dead letters, by reason.
    pub held_dead_lettered: BTreeMap<String, u64>,
    /// Records of that topic that were refused, by reason.
    pub held_refused: BTreeMap<String, u64>,
    /// Replies of the downlink that became dead letters, by reason.
    pub replies_dead_lettered: BTreeMap<String, u64>,
    /// Replies that were no longer in the log when they were to be kept.
    pub replies_vanished: u64,
    /// Replies that waited for their clients, and were no longer in the log.
    #[serde(default)]
    pub held_vanished: u64,
    /// What this run has written to partitions of the uplink.
    #[serde(default)]
    pub uplink_written: BTreeMap<u16, WrittenPart>,
    /// Messages that Kafka has acknowledged in a topic that has been deleted since.
    #[serde(default)]
    pub messages_gone: u64,
    /// How far this run has written the topics `held` and `deadletter`, by name.
    #[serde(default)]
    pub log_ends: BTreeMap<String, LogEnd>,
    /// The offset after the last one of the downlink that was read.
    #[serde(default)]
    pub downlink_position: i64,
    /// Offsets of the downlink without replies: transaction marks, and aborted records.
    #[serde(default)]
    pub downlink_marks: u64,
    /// The downlink's offset at which this run began.
    pub downlink_start: i64,
    /// Replies before that offset which the former run had postponed.
    #[serde(default)]
    pub downlink_carried: u64,
    /// Milliseconds for which the brokers made Kafka clients wait because of a quota: `data` (messages and
    /// replies), `control` (registry and associations).
    #[serde(default)]
    pub kafka_throttled_ms: BTreeMap<String, u64>,
    /// Records affected by breaks of the downlink, by kind: `offset_forgotten`, `made_anew`, `tail_lost`,
    /// `deleted`. The log and docs/brokers.md explain them.
    #[serde(default)]
    pub downlink_breaks: BTreeMap<String, u64>,
    /// Clients by service and server.
    pub associations: BTreeMap<String, BTreeMap<String, u32>>,
    /// Messages that wait for their servers, by server, as last measured: at most half a minute ago, if there
    /// are few servers.
    #[serde(default)]
    pub waiting: BTreeMap<String, Waiting>,
    /// Servers and relays, according to the registry.
    #[serde(default)]
    pub registry: RegistryStatus,
    /// How far the host's clock is behind the broker's, in milliseconds; negative if it is ahead.
    #[serde(default)]
    pub clock_difference_ms: i64,
    /// When the run began by the broker's clock, in Unix milliseconds. Null if that is not known.
    #[serde(default)]
    pub begun_unix_ms: Option<i64>,
    /// What was wrong with the topics when the relay started.
    #[serde(default)]
    pub topics: Vec<Difference>,
    /// Connections that have moved to another server, by the name of the former one.
    pub clients_moved: BTreeMap<String, u64>,
    /// Records of associations: `read`, `written`, `put_back`.
    pub association_records: BTreeMap<String, u64>,
    /// Records of associations that changed nothing, by reason.
    pub association_records_refused: BTreeMap<String, u64>,
    /// Processor time.
    pub cpu_us: CpuTime,
    /// System calls of the workers' loops: one `io_uring_enter` each.
    pub worker_loops: u64,
    /// Batches that the producer took.
    pub producer_batches: u64,
    /// Lines of the log that were lost, because standard error did not accept them.
    #[serde(default)]
    pub log_lines_lost: u64,
    /// By service, by worker, and how long things took.
    #[serde(flatten)]
    pub measured: Measured,
}

/// Read access to all counters.
#[derive(Clone, Debug)]
pub(super) struct Observer {
    pub(super) relay: u16,
    pub(super) incarnation: u64,
    pub(super) workers: Vec<Arc<WorkerStats>>,
    pub(super) services: Arc<[Served]>,
    pub(super) pump: Arc<PumpStats>,
    pub(super) consumer: Arc<ConsumerStats>,
    pub(super) keeper: Arc<KeeperStats>,
    pub(super) written: Arc<Written>,
    pub(super) waiting: WaitingWatch,
    pub(super) credit: Arc<Credit>,
    pub(super) intake: Arc<Intake>,
    pub(super) associations: Arc<Associations>,
    pub(super) registry: RegistryObserver,
    pub(super) topics: Arc<[Difference]>,
    pub(super) standing: Standing,
    pub(super) settings: Settings,
}

fn letters(counts: &LetterCounts) -> BTreeMap<String, u64> {
    nonzero(counts.by_name())
}

impl Observer {
    fn sum(&self, counter: impl Fn(&WorkerStats) -> &Counter) -> u64 {
        self.workers.iter().map(|worker| counter(worker).get()).sum()
    }

    fn measured(&self) -> Measured {
        let Self { workers, pump, consumer, keeper, settings, .. } = self;
        Counting { workers, pump, consumer, keeper, settings }.measured()
    }

    fn total(&self, count: impl Fn(&WorkerStats) -> u64) -> u64 {
        self.workers.iter().map(|worker| count(worker)).sum()
    }

    fn connections_refused(&self) -> BTreeMap<String, u64> {
        nonzero([
            ("connection_limit", self.sum(|worker| &worker.connection_limit)),
            ("no_service", self.sum(|worker| &worker.no_service)),
            ("accept_failed", self.sum(|worker| &worker.accept_failed)),
        ])
    }

    fn handed_on(&self) -> BTreeMap<String, u64> {
        let ended = self.sum(|worker| &worker.handed_on_ended);
        let connections = self.sum(|worker| &worker.handed_on);
        nonzero([
            ("connections", connections),
            ("open", connections.saturating_sub(ended)),
            ("failed", self.sum(|worker| &worker.hand_on_failed)),
            ("timed_out", self.sum(|worker| &worker.hand_on_timed_out)),
            ("bytes", self.sum(|worker| &worker.handed_on_bytes)),
        ])
    }

    fn workers_hanging_ms(&self) -> BTreeMap<String, u64> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let hanging = self.standing.hanging().into_iter();
        hanging.map(|(index, time)| (format!("worker-{index}"), ms(time))).collect()
    }

    fn mqtt_sessions(&self) -> BTreeMap<String, u64> {
        let of_services = self.services.iter().map(|service| service.protocol.sessions());
        let (sessions, bytes) =
            of_services.fold((0, 0), |all, one| (all.0 + one.0 as u64, all.1 + one.1 as u64));
        nonzero([("sessions", sessions), ("bytes", bytes)])
    }

    fn association_records(&self) -> BTreeMap<String, u64> {
        let log = self.associations.log_stats();
        let counters =
            [("read", &log.read), ("written", &log.written), ("put_back", &log.put_back)];
        nonzero(counters.map(|(name, counter)| (name, counter.load(Ordering::Acquire))))
    }

    fn undelivered(&self, reason: UndeliveredReason) -> (&'static str, u64) {
        let of_workers = self.sum(|worker| &worker.replies_undelivered[reason as usize]);
        let is_lost = reason == UndeliveredReason::ConnectionLost;
        let abandoned = if is_lost { self.intake.abandoned() } else { 0 };
        (reason.name(), of_workers + abandoned)
    }

    /// The present counters. What a message reaches later is read first, so that a message under way is never
    /// counted twice.
    pub(super) fn snapshot(&self) -> Snapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        // A reply that is read after this is counted both as read and as unread.
        let downlink_position = self.consumer.position.load(Ordering::Acquire);
        let to_bury = self.intake.refused_undone() as u64;
        let acknowledged = load(&self.pump.acknowledged);
        let refused: Vec<_> = DeliveryFailure::ALL
            .iter()
            .map(|reason| (reason.name(), load(&self.pump.refused[*reason as usize])))
            .collect();
        let received = self.total(|worker| worker.sum(|service| &service.messages));
        let refused_sum: u64 = refused.iter().map(|(_, count)| count).sum();
        let closed = CloseReason::ALL
            .iter()
            .map(|reason| (reason.name(), self.total(|worker| worker.closed(*reason))));
        let undelivered = UndeliveredReason::ALL.iter().map(|reason| self.undelivered(*reason));
        let News { detached, reattached } = self.standing.devices();
        let log = self.associations.log_stats();
        let log_refused = RecordRefusal::ALL
            .iter()
            .map(|reason| (reason.name(), load(&log.refused[*reason as usize])));
        Snapshot {
            relay: self.relay,
            incarnation: self.incarnation,
            workers: self.workers.len(),
            workers_hanging_ms: self.workers_hanging_ms(),
            devices_detached: detached,
            devices_reattached: reattached,
            connections: self.total(WorkerStats::connections),
            accepted: self.total(|worker| worker.sum(|service| &service.accepted)),
            connection_bytes: self.total(|worker| worker.connection_bytes.get()),
            connections_closed: nonzero(closed),
            connections_refused: self.connections_refused(),
            handed_on: self.handed_on(),
            mqtt: self.mqtt_sessions(),
            messages_received: received,
            messages_acknowledged: acknowledged,
            messages_in_flight: received.saturating_sub(acknowledged + refused_sum),
            bytes_in_flight: self.credit.used() as u64,
            records_waiting: load(&self.pump.waiting),
            kafka_silent_ms: load(&self.pump.silent_ms),
            messages_refused: nonzero(refused),
            messages_to_bury: to_bury,
            messages_dead_lettered: letters(&self.keeper.message_letters),
            messages_truncated: self.sum(|worker| &worker.truncated),
            received_bytes: self.total(|worker| worker.sum(|service| &service.received_bytes)),
            holds: self.total(|worker| worker.holds.iter().map(Counter::get).sum()),
            throttles: self.sum(|worker| &worker.throttles),
            replies_orders: self.sum(|worker| &worker.replies_orders)
                + load(&self.consumer.orders)
                + load(&self.keeper.orders),
            replies_received: load(&self.consumer.received),
            replies_sent: self.total(|worker| worker.sum(|service| &service.replies_sent)),
            replies_postponed: self.sum(|worker| &worker.replies_postponed),
            replies_backlog: self.intake.postponed() as u64,
            replies_filtered: self.sum(|worker| &worker.replies_filtered),
            replies_undelivered: nonzero(undelivered.chain([
                ("malformed_key", load(&self.consumer.malformed_key)),
                ("other_relay", load(&self.consumer.other_relay)),
                ("former_run", load(&self.consumer.former_run)),
                ("unreadable", load(&self.consumer.unreadable)),
            ])),
            replies_held: load(&self.keeper.held.held),
            held_delivered: load(&self.keeper.held.delivered),
            held_waiting: load(&self.keeper.held.waiting),
            held_clients: load(&self.keeper.held.clients),
            held_late: load(&self.keeper.held.late),
            held_dead_lettered: letters(&self.keeper.held_letters),
            held_refused: nonzero(HeldRefusal::ALL.iter().map(|refusal| {
                (refusal.name(), load(&self.keeper.held.refused[*refusal as usize]))
            })),
            replies_dead_lettered: letters(&self.keeper.reply_letters),
            replies_vanished: load(&self.keeper.vanished),
            held_vanished: load(&self.keeper.held.vanished),
            uplink_written: self.written.parts().collect(),
            messages_gone: self.written.gone(),
            log_ends: self.keeper.ends.all(),
            downlink_position,
            downlink_marks: load(&self.consumer.marks),
            downlink_start: self.consumer.start.load(Ordering::Relaxed),
            downlink_carried: self.consumer.carried.load(Ordering::Relaxed),
            kafka_throttled_ms: nonzero(throttled_ms()),
            downlink_breaks: nonzero(Break::ALL.iter().map(|what| {
                (what.name(), self.consumer.breaks[*what as usize].load(Ordering::Relaxed))
            })),
            associations: self.associations.counts(),
            waiting: self.waiting.seen(),
            registry: self.registry.status(),
            clock_difference_ms: brokers_clock().difference_ms(),
            begun_unix_ms: brokers_clock().begun_unix_ms(),
            topics: self.topics.to_vec(),
            clients_moved: self.associations.moved(),
            association_records: self.association_records(),
            association_records_refused: nonzero(log_refused),
            cpu_us: CpuTime::of_process(std::process::id()).unwrap_or_default(),
            worker_loops: self.sum(|worker| &worker.loops),
            producer_batches: load(&self.pump.batches),
            log_lines_lost: crate::logging::lost(),
            measured: self.measured(),
        }
    }
}

fn write_waiting(
    f: &mut std::fmt::Formatter<'_>,
    name: &str,
    waiting: &Waiting,
) -> std::fmt::Result {
    let Waiting { messages, oldest_ms, retention_ms } = waiting;
    if *messages == 0 {
        return Ok(());
    }
    write!(f, "  server {name}: {messages} messages wait, the oldest for {} s", oldest_ms / 1000)?;
    match retention_ms {
        Some(retention_ms) => writeln!(f, "; its topic keeps them for {} s", retention_ms / 1000)?,
        None => writeln!(f)?,
    }
    match waiting.deleted_in_ms() {
        Some(0) => writeln!(f, "    WARNING: they are old enough to be deleted"),
        Some(left_ms) => {
            writeln!(f, "    WARNING: the oldest will be deleted in {} minutes", left_ms / 60_000)
        }
        None => Ok(()),
    }
}

impl std::fmt::Display for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |counts: &BTreeMap<String, u64>| {
            if counts.is_empty() {
                return "none".to_owned();
            }
            let pairs: Vec<_> = counts.iter().map(|(k, n)| format!("{k} {n}")).collect();
            pairs.join(", ")
        };
        writeln!(f, "relay      {} with {} workers", self.relay, self.workers)?;
        for (thread, ms) in &self.workers_hanging_ms {
            writeln!(
                f,
                "  HANGS      {thread} has not gone round its loop for {ms} ms: new connections take \
                 the ordinary path; see what it does with `gdb -p $(pidof relay)`, or start the relay \
                 again"
            )?;
        }
        for (device, why) in &self.devices_detached {
            writeln!(f, "  DETACHED   nothing is diverted from {device}: {why}")?;
        }
        if !self.devices_reattached.is_empty() {
            writeln!(f, "  attached again {}", list(&self.devices_reattached))?;
        }
        writeln!(
            f,
            "  connections  {} open with {} bytes, {} accepted",
            self.connections, self.connection_bytes, self.accepted
        )?;
        writeln!(f, "    closed     {}", list(&self.connections_closed))?;
        writeln!(f, "    refused    {}", list(&self.connections_refused))?;
        if !self.handed_on.is_empty() {
            writeln!(f, "    handed on  {}", list(&self.handed_on))?;
        }
        if !self.mqtt.is_empty() {
            writeln!(f, "  MQTT         {}", list(&self.mqtt))?;
        }
        writeln!(
            f,
            "  messages     {} received, {} acknowledged, {} in flight, {} truncated",
            self.messages_received,
            self.messages_acknowledged,
            self.messages_in_flight,
            self.messages_truncated,
        )?;
        if self.kafka_silent_ms >= SILENCE_MS {
            writeln!(
                f,
                "    WARNING: Kafka has acknowledged nothing for {} s ({} records wait)",
                self.kafka_silent_ms / 1000,
                self.records_waiting
            )?;
        }
        writeln!(f, "    refused    {}", list(&self.messages_refused))?;
        writeln!(f, "    dead letters {}", list(&self.messages_dead_lettered))?;
        writeln!(
            f,
            "  replies      {} received, {} sent, {} not wanted, {} behind what their clients read",
            self.replies_received, self.replies_sent, self.replies_filtered, self.replies_backlog
        )?;
        if !self.kafka_throttled_ms.is_empty() {
            writeln!(f, "  THROTTLED by Kafka, in ms: {}", list(&self.kafka_throttled_ms))?;
        }
        if !self.downlink_breaks.is_empty() {
            writeln!(f, "    BREAKS      {}", list(&self.downlink_breaks))?;
        }
        writeln!(f, "    undelivered {}", list(&self.replies_undelivered))?;
        writeln!(f, "    dead letters {}", list(&self.replies_dead_lettered))?;
        writeln!(
            f,
            "  waiting      {} replies for {} clients that are away, {} held and {} delivered here",
            self.held_waiting, self.held_clients, self.replies_held, self.held_delivered
        )?;
        writeln!(f, "    dead letters {}", list(&self.held_dead_lettered))?;
        for (name, waiting) in &self.waiting {
            write_waiting(f, name, waiting)?;
        }
        if !self.clients_moved.is_empty() {
            writeln!(f, "  moved from   {}", list(&self.clients_moved))?;
        }
        if !self.association_records_refused.is_empty() {
            let refused = list(&self.association_records_refused);
            writeln!(f, "  associations: records refused: {refused}")?;
        }
        for (service, servers) in &self.associations {
            let pairs: Vec<_> = servers.iter().map(|(k, n)| format!("{k} {n}")).collect();
            writeln!(f, "  service {service}: clients per server: {}", pairs.join(", "))?;
        }
        if self.clock_difference_ms != 0 {
            let side = if self.clock_difference_ms < 0 { "ahead of" } else { "behind" };
            let seconds = self.clock_difference_ms.unsigned_abs() / 1000;
            writeln!(f, "  WRONG        this host's clock is {seconds} s {side} the broker's")?;
        }
        for difference in &self.topics {
            writeln!(f, "  WRONG        {difference}")?;
        }
        if self.log_lines_lost > 0 {
            let lines = self.log_lines_lost;
            writeln!(f, "  log          {lines} lines LOST: standard error did not accept them")?;
        }
        write!(f, "{}", self.registry)
    }
}
