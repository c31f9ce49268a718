//! The relay as a member of the consumer group that chooses who coordinates.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use crate::config::Config;
use crate::kafka::client::client_config;
use crate::kafka::{LogContext, logs_as_ours, rejoin};

/// Heartbeats in a session's timeout; Kafka's advice is no fewer than three.
const HEARTBEATS: u32 = 3;

/// What the group makes of this relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is to coordinate.
    Chosen,
    /// Another one is, or nobody yet.
    NotChosen,
    /// It was, and has lost the group since: nobody may be.
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
                // The registry is read elsewhere; here only the membership matters.
                if let Err(error) = consumer.pause(partitions) {
                    tracing::warn!(%error, "the registry is read twice");
                }
                *self.standing() = Standing::Chosen;
            }
            Rebalance::Assign(_) | Rebalance::Revoke(_) => {}
            Rebalance::Error(error) => tracing::warn!(%error, "choosing the coordinator"),
        }
    }
}

/// A candidate for the office. Dropping it leaves the group, so that another one is chosen at once.
pub(super) struct Candidate {
    consumer: BaseConsumer<Assigned>,
    group: String,
    /// That the group is forbidden was said.
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
            // Who has the office keeps it when another relay starts.
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

    /// Serves the group's events.
    pub(super) fn poll(&self) -> Standing {
        match self.consumer.poll(Duration::ZERO) {
            Some(Err(error)) if is_refused(&error) => {
                if !self.is_refused.replace(true) {
                    let group = &*self.group;
                    tracing::error!(
                        %error,
                        "Kafka does not allow this relay READ on group {group}: it never coordinates, \
                         and without another one that does no server can register or drain"
                    );
                }
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "choosing the coordinator; trying on");
            }
            Some(Ok(_)) | None => {}
        }
        rejoin(self.consumer.client());
        *self.consumer.context().standing()
    }

    /// Says why the office is not this relay's any more.
    pub(super) fn tell_loss(&self, standing: Standing) {
        let group = &*self.group;
        if standing == Standing::Lost {
            tracing::warn!(
                group,
                "this relay coordinates no longer: it is no member of the group any more, whose broker \
                 did not answer for registry.session_timeout_ms, or took it for gone. It joins again; \
                 until the group has chosen, registrations wait"
            );
        } else {
            tracing::info!(group, "this relay coordinates no longer: the group chooses anew");
        }
    }
}

fn is_refused(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed)
}

/// Names where this relay has its lock: two with one name never run at the same time.
pub(super) fn place(config: &Config) -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // A container has another /run.
    let mounts = std::fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let lock = config.run_directory();
    format!("{} on {host}, {} {}", lock.display(), boot.trim(), mounts.display())
}
