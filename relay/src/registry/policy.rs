//! The rules that a coordinator applies: the configuration, and which registrations it rules out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::config::{Config, Server};
use crate::model::Partition;

use super::record::{self, Lease, Problem, Registration};

/// A server that the configuration declares.
#[derive(Clone, Debug)]
pub struct Declared {
    /// Its service.
    pub service: String,
    /// Its declaration.
    pub server: Server,
}

/// The rules that a coordinator applies.
#[derive(Clone, Debug)]
pub struct Policy {
    /// A server whose registration is not renewed for this long is `away`.
    pub lease: Duration,
    /// A server that is away for this long is gone.
    pub forget: Duration,
    /// A relay that is silent for this long is gone.
    pub relay_timeout: Duration,
    /// Largest capacity.
    pub max_capacity: u32,
    /// The services' names.
    pub services: BTreeSet<String>,
    /// Declared servers, by id.
    pub declared: BTreeMap<String, Declared>,
    /// The declared servers' partitions.
    pub declared_partitions: BTreeSet<Partition>,
    /// Number of partitions of the uplink.
    pub partitions: u16,
}

impl Policy {
    /// The rules of a checked configuration.
    pub fn new(config: &Config) -> Self {
        let registry = &config.registry;
        let declared: BTreeMap<_, _> = config
            .services
            .iter()
            .flat_map(|service| service.servers.iter().map(move |server| (service, server)))
            .map(|(service, server)| {
                let declared = Declared { service: service.name.clone(), server: server.clone() };
                (server.id.clone(), declared)
            })
            .collect();
        Self {
            lease: Duration::from_millis(registry.lease_ms.into()),
            forget: Duration::from_millis(registry.forget_ms.into()),
            relay_timeout: Duration::from_millis(registry.relay_timeout_ms.into()),
            max_capacity: registry.max_capacity,
            services: config.services.iter().map(|service| service.name.clone()).collect(),
            declared_partitions: declared.values().map(|of| of.server.partition).collect(),
            declared,
            partitions: u16::try_from(config.partitions()).expect("partitions are u16"),
        }
    }

    /// True if a declared server has this partition.
    pub fn is_declared(&self, partition: Partition) -> bool {
        self.declared_partitions.contains(&partition)
    }

    /// Partitions that no declared server has.
    pub fn pool(&self) -> impl Iterator<Item = Partition> {
        (0..self.partitions).map(Partition).filter(|partition| !self.is_declared(*partition))
    }

    /// Partitions that nobody holds.
    pub fn unheld<'a>(&self, leases: impl IntoIterator<Item = &'a Lease>) -> BTreeSet<Partition> {
        let (held, gone): (Vec<_>, Vec<_>) = leases.into_iter().partition(|of| of.is_in_force());
        // A partition that this relay would not lease may still have had a holder.
        let gone = gone.iter().map(|lease| lease.partition).filter(|of| !self.is_declared(*of));
        let held: BTreeSet<_> = held.iter().map(|lease| lease.partition).collect();
        self.pool().chain(gone).filter(|partition| !held.contains(partition)).collect()
    }

    /// What is wrong with a registration by itself, without regard to other registrations.
    pub fn check(&self, id: &str, registration: &Registration) -> Result<(), Unfit> {
        if let Some(problem) = record::id_problem(id) {
            return Err(Unfit::Id(problem));
        }
        if self.declared.contains_key(id) {
            return Err(Unfit::Declared);
        }
        if !self.services.contains(&registration.service) {
            let known = self.services.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Unfit::Service { service: registration.service.clone(), known });
        }
        let address = registration.address;
        if address.is_unspecified() || address.is_multicast() {
            return Err(Unfit::Address(address));
        }
        let capacity = registration.capacity.get();
        if capacity > self.max_capacity {
            return Err(Unfit::Capacity { capacity, max: self.max_capacity });
        }
        Ok(())
    }
}

/// Why a registration gets no lease, in words for its server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It cannot be read.
    #[error("{0}")]
    Malformed(Problem),
    /// The id is invalid.
    #[error("{0}")]
    Id(String),
    /// The id is taken.
    #[error("this id belongs to a server that the relays' configuration declares; use another one")]
    Declared,
    /// There is no such service.
    #[error("there is no service `{service}`; known services: {known}")]
    Service {
        /// As it was asked for.
        service: String,
        /// Which there are.
        known: String,
    },
    /// The address cannot be that of a server.
    #[error("`address`: {0} cannot be the address of a server")]
    Address(IpAddr),
    /// Two servers would have one address.
    #[error("`address`: {address} belongs to server `{of}` of the same service")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        of: String,
    },
    /// Larger than allowed.
    #[error("`capacity`: {capacity} is more than {max} (registry.max_capacity)")]
    Capacity {
        /// As it was asked for.
        capacity: u32,
        /// How much may be.
        max: u32,
    },
    /// The process had a lease that is over.
    #[error("the lease of this `instance` is over; a new process must use a new `instance`")]
    Over,
    /// An operator's order stands against it.
    #[error("an operator has drained this server; `relay servers resume` takes that back")]
    Drained,
    /// It wants to leave and never was there.
    #[error("`state`: this instance has no lease to drain")]
    NothingToDrain,
    /// All partitions are taken.
    #[error(
        "no partition is free: {leased} are leased, {unread} with unread records of servers that are gone, \
         {unsure} resting after their last holder or being examined. A server that keeps registering \
         gets the next free one. kafka.uplink_partitions sets their number"
    )]
    NoPartition {
        /// Leases in force.
        leased: usize,
        /// Partitions that are not read to their end.
        unread: usize,
        /// Partitions that rest, or are not examined yet.
        unsure: usize,
    },
}
