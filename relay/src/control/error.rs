//! Why the relay does not run.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::downlink::ConsumerError;
use crate::gateway::GatewayError;
use crate::kafka::{OpenError, RightsError, TopicError};
use crate::registry::RegistryError;

/// Why the relay did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The gateway is not there, or not ours to use.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// Kafka does not allow what is needed.
    #[error(transparent)]
    Rights(#[from] RightsError),
    /// The topics are not there.
    #[error(transparent)]
    Topics(#[from] TopicError),
    /// The registry is not there, or another relay has this one's id.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The instance has a relay already.
    #[error(
        "another relay of this instance is running (it holds {lock}); stop it first, or set \
         another gateway.instance for this one"
    )]
    Running {
        /// The lock file.
        lock: PathBuf,
    },
    /// A listener could not be made.
    #[error("service `{service}` cannot listen on {address}{place}: {source}{hint}")]
    Listen {
        /// The service.
        service: String,
        /// Where.
        address: SocketAddr,
        /// In which namespace.
        place: String,
        /// Why not.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The downlink cannot be read.
    #[error(transparent)]
    Consumer(#[from] ConsumerError),
    /// The associations cannot be read.
    #[error(transparent)]
    Associations(#[from] crate::route::LogError),
    /// The held replies cannot be read.
    #[error(transparent)]
    Held(#[from] OpenError),
    /// Kafka's client could not be made.
    #[error("the Kafka client refuses its configuration: {0}; see kafka.properties")]
    Client(#[from] rdkafka::error::KafkaError),
    /// io_uring is not there, or not what it should be.
    #[error("cannot make an io_uring ({source}): {cause}")]
    Ring {
        /// Why not.
        source: io::Error,
        /// What that comes from.
        cause: String,
    },
    /// One of the threads has ended before it was told to.
    #[error(
        "the relay's thread `{thread}` {end}; messages that were not acknowledged are lost with \
         this run; start the relay again; the log above may say more"
    )]
    Thread {
        /// Its name.
        thread: String,
        /// How it has ended.
        end: String,
    },
    /// The time of a stop is over, and something has not ended.
    #[error(
        "the stop was not finished within relay.stop_timeout_ms ({timeout:?}): {waiting} did not \
         end; {unacknowledged} message(s) that were read are not acknowledged"
    )]
    StopTimeOver {
        /// How long it was waited.
        timeout: Duration,
        /// For what.
        waiting: String,
        /// Messages read that Kafka has neither acknowledged nor refused.
        unacknowledged: u64,
    },
    /// The relay was told to stop before it served anybody.
    #[error("told to stop while the relay started: it has served no client")]
    StoppedAtStart,
    /// Kafka's client will never deliver anything again.
    #[error(
        "the Kafka producer has failed for good: {0}; messages that were not acknowledged are \
         lost with this run; start the relay again"
    )]
    Producer(String),
    /// Anything else that the system refused.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl RunError {
    /// A thread's unexpected end.
    pub(crate) fn thread(thread: &str, end: &str) -> Self {
        Self::Thread { thread: thread.to_owned(), end: end.to_owned() }
    }

    /// For `map_err`.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
