//! Why the relay did not start, or ended.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::downlink::ConsumerError;
use crate::gateway::GatewayError;
use crate::kafka::{OpenError, RightsError, TopicError, WriterError};
use crate::registry::RegistryError;

/// Why the relay did not start, or ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The gateway is not loaded, or this process may not use it.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// Kafka does not grant a necessary right.
    #[error(transparent)]
    Rights(#[from] RightsError),
    /// The topics cannot be used.
    #[error(transparent)]
    Topics(#[from] TopicError),
    /// The registry cannot be used, or another relay has this one's id.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The instance already has a relay.
    #[error(
        "another relay of this instance is running (it holds {lock}); stop that one first, or set \
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
    /// The metrics cannot be served.
    #[error("the metrics cannot be served at {address}: {source}{hint}")]
    Metrics {
        /// Where.
        address: SocketAddr,
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

    /// What writes the uplink could not be made.
    #[error(transparent)]
    Writer(#[from] WriterError),
    /// An io_uring could not be made.
    #[error("cannot make an io_uring ({source}): {cause}")]
    Ring {
        /// Why not.
        source: io::Error,
        /// The cause of that.
        cause: String,
    },
    /// A thread has ended before it was told to.
    #[error(
        "the relay's thread `{thread}` {end}; messages that were not acknowledged are lost with this \
         run; start the relay again; the log above may say more"
    )]
    Thread {
        /// Its name.
        thread: String,
        /// How it ended.
        end: String,
    },
    /// The time of the stop is over, and something has not ended.
    #[error(
        "the stop was not finished within relay.stop_timeout_ms ({timeout:?}): {waiting} did not \
         end; {unacknowledged} message(s) that were read are not acknowledged"
    )]
    StopTimeOver {
        /// The time of the stop.
        timeout: Duration,
        /// What did not end.
        waiting: String,
        /// Messages read that Kafka has neither acknowledged nor refused.
        unacknowledged: u64,
    },
    /// The relay was told to stop before it served a client.
    #[error("the relay was told to stop while it started, and has served no client")]
    StoppedAtStart,
    /// Kafka's client will never deliver anything again.
    #[error(
        "the Kafka producer has failed for good: {0}; messages that were not acknowledged are \
         lost with this run; start the relay again"
    )]
    Producer(String),
    /// The settings in force cannot be shown.
    #[error(transparent)]
    Settings(crate::config::ConfigError),
    /// The system refused something else.
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
