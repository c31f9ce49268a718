//! What an operator orders, written from wherever the configuration is.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::config::Config;

use super::author::Author;
use super::record::{Key, OrderKind, Rebalance, ServerOrder, VERSION};
use super::{Registry, RegistryError, Watch, Write, read};

/// How long the cluster may take to acknowledge an order.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a look for the acknowledgement lasts.
const POLL: Duration = Duration::from_millis(20);

/// Most clients of a service that may be moved in a second, through all relays.
pub const MAX_PER_SECOND: u32 = 10_000;

/// Why an order was not given.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The registry cannot be read or written.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There is no such server.
    #[error("there is no server `{id}`; there are: {known}")]
    Unknown {
        /// As it was named.
        id: String,
        /// Which there are.
        known: String,
    },
    /// Only what registered can be forgotten.
    #[error(
        "server `{0}` is declared in the configuration: take it out there and restart the relays, \
         or `relay servers drain` it"
    )]
    Declared(String),
    /// Nothing to take back.
    #[error("no order is in force for server `{0}`")]
    NoOrder(String),
    /// There is no such service.
    #[error("there is no service `{service}` in the configuration; there are: {known}")]
    UnknownService {
        /// As it was named.
        service: String,
        /// Which there are.
        known: String,
    },
    /// No rebalancing to stop.
    #[error("service `{0}` is not being rebalanced; `relay servers list` shows what is")]
    NotRebalanced(String),
    /// The cluster did not answer.
    #[error("the cluster has not acknowledged the order within {TIMEOUT:?}; is it running?")]
    Timeout,
}

/// Gives an order about a server, or takes it back. Returns when the cluster has it; the coordinator
/// carries it out.
pub fn order(config: &Config, id: &str, command: Option<OrderKind>) -> Result<(), OrderError> {
    let registry = read(config)?;
    check(config, &registry, id, command)?;
    let key = Key::Order(id.to_owned());
    let write = match command {
        Some(order) => Write::new(key, &ServerOrder { version: VERSION, order }),
        None => Write::remove(key),
    };
    give(config, &write)
}

/// Orders a service rebalanced, so many clients a second, or takes that back. Returns when the
/// cluster has it; the relays carry it out, and the registry can be watched for that.
pub fn rebalance(
    config: &Config,
    service: &str,
    per_second: Option<NonZeroU32>,
) -> Result<Watch, OrderError> {
    if !config.services.iter().any(|of| of.name == service) {
        let known = config.services.iter().map(|of| &*of.name).collect::<Vec<_>>().join(", ");
        return Err(OrderError::UnknownService { service: service.to_owned(), known });
    }
    let watch = Watch::open(config)?;
    let is_in_force =
        watch.registry().rebalances().get(service).is_some_and(|of| of.ended.is_none());
    let key = Key::Rebalance(service.to_owned());
    let write = match per_second {
        Some(per_second) => {
            Write::new(key, &Rebalance { version: VERSION, per_second, ended: None })
        }
        None if is_in_force => Write::remove(key),
        None => return Err(OrderError::NotRebalanced(service.to_owned())),
    };
    give(config, &write)?;
    Ok(watch)
}

/// Writes an order, and waits until the cluster has acknowledged it.
fn give(config: &Config, write: &Write) -> Result<(), OrderError> {
    let author = Author::new(config).map_err(RegistryError::from)?;
    author.write(write).map_err(RegistryError::from)?;
    let deadline = Instant::now() + TIMEOUT;
    while !author.is_read_back(i64::MAX) {
        if author.poll() || Instant::now() >= deadline {
            return Err(OrderError::Timeout);
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn check(
    config: &Config,
    registry: &Registry,
    id: &str,
    command: Option<OrderKind>,
) -> Result<(), OrderError> {
    let declared = || config.services.iter().flat_map(|service| &service.servers);
    let is_declared = declared().any(|server| server.id == id);
    let mut known: BTreeSet<&str> = declared().map(|server| &*server.id).collect();
    known.extend(registry.leases().keys().map(String::as_str));
    known.extend(registry.registrations().keys().map(String::as_str));
    if command.is_none() && registry.orders().contains_key(id) {
        return Ok(());
    }
    if !known.contains(id) {
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none".to_owned() } else { known };
        return Err(OrderError::Unknown { id: id.to_owned(), known });
    }
    match command {
        None => Err(OrderError::NoOrder(id.to_owned())),
        Some(OrderKind::Forget) if is_declared => Err(OrderError::Declared(id.to_owned())),
        Some(_) => Ok(()),
    }
}
