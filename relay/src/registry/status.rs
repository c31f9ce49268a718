//! The registry's state, for people and programs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::model::Partition;
use crate::route::ServerState;

use super::record::{Lease, Rebalance, RelayState};
use super::{Coordinator, Policy, Registry};

/// A server, declared or registered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Unique.
    pub id: String,
    /// What it serves.
    pub service: String,
    /// Its own address.
    pub address: IpAddr,
    /// Whether the configuration declares it.
    pub declared: bool,
    /// Whether it gets clients.
    pub state: ServerState,
    /// Of the uplink.
    pub partition: Partition,
    /// Epoch of its lease; 0 if it is declared.
    pub epoch: u64,
    /// Share of the service's clients.
    pub capacity: u32,
    /// The process that holds the lease.
    pub instance: String,
    /// Why it is away or gone.
    pub reason: Option<String>,
    /// Milliseconds since this relay read its registration. Null if it is declared, or has not registered
    /// since this relay started.
    pub renewed_ms_ago: Option<u64>,
    /// Clients that this relay knows of. Null if no relay was asked.
    pub clients: Option<u32>,
}

/// An operator's order to move clients to emptier servers, in force or ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebalanceStatus {
    /// Most clients per second, over all relays.
    pub per_second: u32,
    /// Null while it is in force; then whether the loads are even.
    pub ended: Option<bool>,
    /// Clients that have moved, by the name of the former server. While it is in force: as far as the
    /// running relay knows, if one was asked.
    pub moved_from: BTreeMap<String, u64>,
}

/// The coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorStatus {
    /// Which relay.
    pub relay: u16,
    /// Offset of the record by which it took office.
    pub term: i64,
}

/// A relay's last record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Its number.
    pub relay: u16,
    /// Unix milliseconds of its start.
    pub incarnation: u64,
    /// Whether it runs.
    pub state: RelayState,
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RegistryStatus {
    /// Null if no relay has ever coordinated.
    pub coordinator: Option<CoordinatorStatus>,
    /// By id.
    pub servers: Vec<ServerStatus>,
    /// Why registrations got no lease, by server id.
    pub refusals: BTreeMap<String, String>,
    /// By service.
    #[serde(default)]
    pub rebalances: BTreeMap<String, RebalanceStatus>,
    /// By number.
    pub relays: Vec<RelayStatus>,
    /// Records that were refused, by reason.
    pub records_refused: BTreeMap<String, u64>,
}

impl RegistryStatus {
    /// The status of a registry. Ages come from a coordinator's clock.
    pub fn new(
        registry: &Registry,
        policy: &Policy,
        clock: Option<(&Coordinator, Instant)>,
    ) -> Self {
        let age = |id: &str| {
            let (coordinator, now) = clock?;
            u64::try_from(coordinator.age(id, now)?.as_millis()).ok()
        };
        let mut servers = BTreeMap::new();
        for (id, declared) in &policy.declared {
            let server = &declared.server;
            let lease = registry.leases().get(id).filter(|lease| lease.is_declared());
            let status = ServerStatus {
                id: id.clone(),
                service: declared.service.clone(),
                address: server.address,
                declared: true,
                state: lease.map_or(ServerState::Live, |lease| lease.state),
                partition: server.partition,
                epoch: 0,
                capacity: server.capacity.get(),
                instance: String::new(),
                reason: lease.and_then(|lease| lease.reason.clone()),
                renewed_ms_ago: None,
                clients: None,
            };
            servers.insert(id, status);
        }
        for (id, lease) in registry.leases().iter().filter(|(_, lease)| !lease.is_declared()) {
            servers.entry(id).or_insert_with(|| ServerStatus::of_lease(id, lease, age(id)));
        }
        Self {
            coordinator: registry.coordination().map(|(term, coordination)| CoordinatorStatus {
                relay: coordination.relay.0,
                term: term.0,
            }),
            servers: servers.into_values().collect(),
            refusals: registry
                .refusals()
                .iter()
                .map(|(id, refusal)| (id.clone(), refusal.reason.clone()))
                .collect(),
            rebalances: registry
                .rebalances()
                .iter()
                .map(|(service, of)| (service.clone(), RebalanceStatus::new(of)))
                .collect(),
            relays: registry
                .relays()
                .iter()
                .map(|(relay, record)| RelayStatus {
                    relay: relay.0,
                    incarnation: record.incarnation.value(),
                    state: record.state,
                })
                .collect(),
            records_refused: registry
                .refused()
                .map(|(reason, count)| (reason.to_owned(), count))
                .collect(),
        }
    }
}

impl RebalanceStatus {
    /// As it begins.
    pub fn ordered(per_second: NonZeroU32) -> Self {
        Self { per_second: per_second.get(), ended: None, moved_from: BTreeMap::new() }
    }

    /// As the record has it.
    pub fn new(of: &Rebalance) -> Self {
        Self {
            per_second: of.per_second.get(),
            ended: of.ended.as_ref().map(|ended| ended.even),
            moved_from: of.ended.clone().map(|ended| ended.moved_from).unwrap_or_default(),
        }
    }
}

impl fmt::Display for RebalanceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.per_second;
        match self.ended {
            None => write!(f, "in progress, at most {rate} clients per second")?,
            Some(true) => write!(f, "has ended: no move would make the loads more even")?,
            Some(false) => write!(f, "has ended: the remaining clients cannot move")?,
        }
        let moved: Vec<_> =
            self.moved_from.iter().map(|(id, count)| format!("{count} from {id}")).collect();
        match &*moved {
            [] => Ok(()),
            moved => write!(f, "; moved: {}", moved.join(", ")),
        }
    }
}

impl ServerStatus {
    fn of_lease(id: &str, lease: &Lease, renewed_ms_ago: Option<u64>) -> Self {
        Self {
            id: id.to_owned(),
            service: lease.service.clone(),
            address: lease.address,
            declared: false,
            state: lease.state,
            partition: lease.partition,
            epoch: lease.epoch,
            capacity: lease.capacity.get(),
            instance: lease.instance.clone(),
            reason: lease.reason.clone(),
            renewed_ms_ago,
            clients: None,
        }
    }
}

impl fmt::Display for ServerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, service, address, partition, .. } = self;
        write!(f, "{id:<16} {:<9}{service} {address}, partition {partition}", self.state.name())?;
        if self.declared {
            write!(f, ", declared")?;
        } else {
            write!(f, ", epoch {}", self.epoch)?;
        }
        if let Some(clients) = self.clients {
            write!(f, ", {clients} clients")?;
        }
        if let Some(age) = self.renewed_ms_ago.filter(|_| self.state != ServerState::Gone) {
            write!(f, ", renewed {}.{} s ago", age / 1000, age % 1000 / 100)?;
        }
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, " ({reason})"))
    }
}

impl fmt::Display for RegistryStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.coordinator {
            Some(CoordinatorStatus { relay, term }) => {
                writeln!(f, "registry   coordinated by relay {relay} since offset {term}")?;
            }
            None => writeln!(f, "registry   not coordinated")?,
        }
        for server in &self.servers {
            writeln!(f, "  {server}")?;
        }
        for (id, reason) in &self.refusals {
            writeln!(f, "  {id:<16} refused: {reason}")?;
        }
        for (service, of) in &self.rebalances {
            writeln!(f, "  rebalancing of {service} {of}")?;
        }
        for RelayStatus { relay, state, .. } in &self.relays {
            let state = if *state == RelayState::Live { "live" } else { "gone" };
            writeln!(f, "  relay {relay:<10} {state}")?;
        }
        for (reason, count) in &self.records_refused {
            writeln!(f, "  records refused: {reason} {count}")?;
        }
        Ok(())
    }
}
