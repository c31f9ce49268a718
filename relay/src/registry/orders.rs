//! Operators' orders, written from any host that has the configuration.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::config::Config;

use super::author::Author;
use super::record::{Key, OrderKind, Rebalance, ServerOrder, VERSION};
use super::{Registry, RegistryError, Watch, Write, read};

/// Time for the cluster to acknowledge an order.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Poll timeout while the acknowledgement is awaited.
const POLL: Duration = Duration::from_millis(20);

/// Highest rate of a rebalancing: clients of a service per second, over all relays.
pub const MAX_PER_SECOND: u32 = 10_000;

/// Why an order was not given.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The registry cannot be read or written.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There is no such server.
    #[error("there is no server `{id}`; known servers: {known}")]
    Unknown {
        /// As it was named.
        id: String,
        /// Which there are.
        known: String,
    },
    /// Only a server that registered can be forgotten.
    #[error(
        "server `{0}` is declared in the configuration: remove it there and restart the relays, or \
         drain it with `relay servers drain`"
    )]
    Declared(String),
    /// There is no order to take back.
    #[error("no order is in force for server `{0}`")]
    NoOrder(String),
    /// There is no such service.
    #[error("there is no service `{service}` in the configuration; it has: {known}")]
    UnknownService {
        /// As it was named.
        service: String,
        /// Which there are.
        known: String,
    },
    /// There is no rebalancing to stop.
    #[error("service `{0}` is not being rebalanced; `relay servers list` shows what is")]
    NotRebalanced(String),
    /// The cluster did not answer.
    #[error("the cluster did not acknowledge the order within {TIMEOUT:?}; it may be down")]
    Timeout,
}

/// Gives an order about a server, or takes it back. Returns when the cluster has acknowledged it; the
/// coordinator carries it out.
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

/// Orders the rebalancing of a service at this rate in clients per second, or takes that back. Returns when
/// the cluster has acknowledged it. The relays carry it out; the registry that is returned can be watched
/// for its end.
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
