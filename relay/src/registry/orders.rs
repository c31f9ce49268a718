//! What an operator orders, written from wherever the configuration is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::config::Config;

use super::author::Author;
use super::record::{Command, Key, Order, VERSION};
use super::{Registry, RegistryError, Write, read};

/// How long the cluster may take to acknowledge an order.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a look for the acknowledgement lasts.
const POLL: Duration = Duration::from_millis(20);

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
    /// The cluster did not answer.
    #[error("the cluster has not acknowledged the order within {TIMEOUT:?}; is it running?")]
    Timeout,
}

/// Gives an order about a server, or takes it back. Returns when the cluster has it; the coordinator
/// carries it out.
pub fn order(config: &Config, id: &str, command: Option<Command>) -> Result<(), OrderError> {
    let registry = read(config)?;
    check(config, &registry, id, command)?;
    let key = Key::Order(id.to_owned());
    let write = match command {
        Some(order) => Write::new(key, &Order { version: VERSION, order }),
        None => Write::remove(key),
    };
    let author = Author::new(config).map_err(RegistryError::from)?;
    author.write(&write).map_err(RegistryError::from)?;
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
    command: Option<Command>,
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
        Some(Command::Forget) if is_declared => Err(OrderError::Declared(id.to_owned())),
        Some(_) => Ok(()),
    }
}
