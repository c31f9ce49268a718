//! Why the relay does not run.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::gateway::GatewayError;
use crate::kafka::{ConsumerError, OpenError, TopicError};
use crate::registry::RegistryError;

/// Why the relay did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The gateway is not there, or not ours to use.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The topics are not there.
    #[error(transparent)]
    Topics(#[from] TopicError),
    /// The registry is not there, or another relay has this one's id.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The instance has a relay already.
    #[error(
        "another relay of this instance is running (it holds {lock}); stop it first, or give this \
         one another gateway.instance"
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
    #[error(
        "cannot make an io_uring ({source}); the relay needs Linux {} or newer, \
         and /proc/sys/kernel/io_uring_disabled must be 0",
        crate::gateway::minimum_kernel()
    )]
    Ring {
        /// Why not.
        source: io::Error,
    },
    /// One of the threads has ended, and said why in the log.
    #[error("a thread of the relay has failed; the log before this says why")]
    Thread,
    /// Kafka's client will never deliver anything again.
    #[error(
        "the Kafka producer has failed for good: {0}; what was not acknowledged is lost with this \
         run, start the relay again"
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
    /// For `map_err`.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
