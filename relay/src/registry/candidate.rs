//! The relay as a member of the consumer group that chooses the coordinator.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use crate::config::Config;
use crate::kafka::client::client_config;
use crate::kafka::{LogContext, logs_as_ours, rejoin};

/// Heartbeats per session timeout; Kafka's documentation recommends at least three.
const HEARTBEATS: u32 = 3;

/// Events that are served in one turn.
const MOST_EVENTS: usize = 1000;

/// This relay's standing in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The group has chosen it as coordinator.
    Chosen,
    /// The group has chosen another relay, or nobody yet.
    NotChosen,
    /// It was the coordinator, and has lost the group since: perhaps nobody coordinates.
    Lost,
}

struct Assigned {
    log: LogContext,
    standing: Mutex<Standing>,
}

impl Assigned {
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

logs_as_ours!(Assigned);

impl ConsumerContext for Assigned {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(partitions) = rebalance
            && partitions.count() > 0
        {
            let lost = consumer.assignment_lost();
            *self.standing() = if lost { Standing::Lost } else { Standing::NotChosen };
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) if partitions.count() > 0 => {
                // The registry is read elsewhere. Only the membership matters here.
                if let Err(error) = consumer.pause(partitions) {
                    tracing::warn!(%error, "cannot pause the partition of the registry; it is read twice");
                }
                *self.standing() = Standing::Chosen;
            }
            Rebalance::Assign(_) | Rebalance::Revoke(_) => {}
            Rebalance::Error(error) => {
                tracing::warn!(%error, "the group could not choose the coordinator");
            }
        }
    }
}

/// A candidate for the office. Dropping it leaves the group, so that another one is chosen at once.
pub(super) struct Candidate {
    consumer: BaseConsumer<Assigned>,
    group: String,
    /// The log has reported that the group is forbidden.
    is_refused: Cell<bool>,
}

impl Candidate {
    pub(super) fn new(config: &Config) -> KafkaResult<Self> {
        let session = config.registry.session_timeout_ms;
        let group = config.kafka.coordinator_group();
        let mut client = client_config(&config.kafka);
        client
            .set("group.id", &group)
            .set("session.timeout.ms", session.to_string())
            .set("heartbeat.interval.ms", (session / HEARTBEATS).to_string())
            // The coordinator stays the same when another relay starts.
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "latest");
        let consumer: BaseConsumer<Assigned> = client.create_with_context(Assigned {
            log: LogContext::new(&config.kafka),
            standing: Mutex::new(Standing::NotChosen),
        })?;
        consumer.subscribe(&[&config.kafka.registry_topic()])?;
        Ok(Self { consumer, group, is_refused: Cell::new(false) })
    }

    /// Serves the group's events: all that have come, because the group's choice stands behind the errors of an
    /// outage, of which there are dozens a second.
    pub(super) fn poll(&self) -> Standing {
        let events = std::iter::from_fn(|| self.consumer.poll(Duration::ZERO)).take(MOST_EVENTS);
        events.filter_map(Result::err).for_each(|error| self.tell_error(&error));
        rejoin(self.consumer.client());
        *self.consumer.context().standing()
    }

    fn tell_error(&self, error: &KafkaError) {
        if !is_refused(error) {
            tracing::warn!(%error, "cannot take part in choosing the coordinator; retrying");
        } else if !self.is_refused.replace(true) {
            let group = &*self.group;
            tracing::error!(
                %error,
                "Kafka does not allow this relay READ on group {group}: it cannot coordinate. Unless \
                 another relay can, no server can register or drain"
            );
        }
    }

    /// Logs why this relay is no longer the coordinator.
    pub(super) fn tell_loss(&self, standing: Standing) {
        let group = &*self.group;
        if standing == Standing::Lost {
            tracing::warn!(
                group,
                "this relay no longer coordinates: it has lost its membership in the group, whose broker \
                 did not answer for registry.session_timeout_ms, or took it for gone. It joins again; \
                 until the group has chosen, registrations wait"
            );
        } else {
            tracing::info!(group, "this relay no longer coordinates: the group is choosing again");
        }
    }
}

fn is_refused(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed)
}

/// Names the place of this relay's lock. Two relays of the same place never run at the same time.
pub(super) fn place(config: &Config) -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // A container has its own /run.
    let mounts = std::fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let lock = config.run_directory();
    format!("{} on {host}, {} {}", lock.display(), boot.trim(), mounts.display())
}
