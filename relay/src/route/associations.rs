//! The association table of one relay, shared by its workers and the thread that reads and writes
//! the topic.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::{Absence, Service, Then};
use crate::model::{
    Association, ClientIdentity, Incarnation, Partition, Refusal, RelayId, ServerId, ServiceId,
};

use super::allotment::{Fate, Server};
use super::balance;
use super::policy::Policy;
use super::record::{Key, RecordRefusal, Value, parse_generation};
use super::table::{Incoming, Outgoing, Table};
use super::{ServerLink, ServerState};

/// Longest pause in reading from clients that move to balance a service. A live server commits within
/// seconds.
const REBALANCE_WAIT_MS: u64 = 10_000;

/// What to do with the connections to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// They stay.
    None,
    /// They move once the server has read what they sent.
    Drain {
        /// Bound on the wait for it.
        within_ms: u64,
        /// What to do with them if it has not by then.
        then: Then,
    },
    /// They move, without waiting for the server.
    Reassign,
    /// They are closed.
    Refuse,
    /// Some of them move once the server has read what they sent. If it does not in time, they stay.
    Rebalance {
        /// How many.
        most: u32,
        /// Bound on the wait for it.
        within_ms: u64,
    },
}

/// How evenly the clients of a service are spread over its live servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// No client that can move would make the loads more even.
    pub even: bool,
    /// Clients of all relays that have moved since the order, by the name of the former server.
    pub moved: BTreeMap<String, u64>,
}

/// A server that this relay has connections to, and what to do with them.
#[derive(Clone, Debug)]
pub struct Concern {
    /// Which server.
    pub server: ServerId,
    /// Its service.
    pub service: ServiceId,
    /// Its name.
    pub name: Arc<str>,
    /// Its partition.
    pub partition: Partition,
    /// What to do.
    pub measure: Measure,
}

/// Counts of the topic's records.
#[derive(Debug, Default)]
pub struct LogStats {
    /// Records read.
    pub read: AtomicU64,
    /// Records that changed nothing, by [`RecordRefusal`].
    pub refused: [AtomicU64; RecordRefusal::ALL.len()],
    /// Records written and acknowledged.
    pub written: AtomicU64,
    /// Records that could not be written, and were put back to be written again.
    pub put_back: AtomicU64,
}

/// The association table of one relay.
#[derive(Debug)]
pub struct Associations {
    policies: Arc<[Policy]>,
    table: Mutex<Table>,
    stats: LogStats,
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl Associations {
    /// A table without clients, and with the servers that the configuration declares.
    pub fn new(services: &[Service], relay: RelayId, incarnation: Incarnation) -> Self {
        let policies: Arc<[Policy]> = services.iter().map(Policy::from).collect();
        let mut table = Table::new((relay, incarnation), policies.clone());
        for (service, id) in services.iter().zip((0..).map(ServiceId)) {
            for server in &service.servers {
                set(&mut table, ServerLink::declared(id, server), &policies);
            }
        }
        Self { policies, table: Mutex::new(table), stats: LogStats::default() }
    }

    /// Every step leaves the table consistent, so a panic elsewhere does not corrupt it.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client's identity for a service, from the ends of its connection and the name that it gives.
    pub fn identity(
        &self,
        service: ServiceId,
        (client, server): (SocketAddr, SocketAddr),
        name: Option<&str>,
    ) -> ClientIdentity {
        self.policies[service.index()].identity.of(client, server, name)
    }

    /// Adds a server, or applies a change to it. It keeps its clients.
    pub fn set_server(&self, link: ServerLink) {
        let table = &mut *self.table();
        let server = set(table, link, &self.policies);
        if let Some(server) = server.filter(|server| table.servers.get(*server).is_leaving()) {
            table.server_leaves(server);
        }
    }

    /// The server of a client that connects: the associated one, or else the live one with the fewest
    /// associations over all relays, which is then associated. Logarithmic in the number of servers.
    pub fn associate(
        &self,
        service: ServiceId,
        identity: ClientIdentity,
    ) -> Result<Association, Refusal> {
        self.associate_if(service, identity, |_| true)
    }

    /// The same, if the server's partition may have one more.
    pub fn associate_if(
        &self,
        service: ServiceId,
        identity: ClientIdentity,
        may: impl FnOnce(Partition) -> bool,
    ) -> Result<Association, Refusal> {
        let table = &mut *self.table();
        let may = |server: &Server| server.link.as_ref().is_none_or(|link| may(link.partition));
        let server = table.connect(Key { service, identity }, unix_ms(), may)?;
        Ok(association(server, table.servers.get(server)))
    }

    /// Where a connection to `from` moves to; `from` itself if no other server is live.
    pub fn reassociate(
        &self,
        service: ServiceId,
        identity: ClientIdentity,
        from: ServerId,
    ) -> Association {
        let table = &mut *self.table();
        let server = table.reconnect(&Key { service, identity }, from, unix_ms());
        association(server, table.servers.get(server))
    }

    /// Undoes one [`associate`](Self::associate), at the server where the connection is now. The association
    /// ends with the client's last connection, or `association_keep_ms` later. Unknown clients are ignored.
    pub fn dissociate(&self, service: ServiceId, identity: ClientIdentity, server: ServerId) {
        self.table().disconnect(&Key { service, identity }, server, unix_ms());
    }

    /// Records that a run of a relay and all earlier ones have ended: their clients are away. Must be called
    /// on every relay, also for relays that were gone when it started.
    pub fn relay_gone(&self, relay: RelayId, incarnation: Incarnation) {
        self.table().relay_gone(relay, incarnation, unix_ms());
    }

    /// Records that a run of a relay is alive, and earlier ones are not. A paused relay may have been
    /// presumed gone.
    pub fn relay_runs(&self, relay: RelayId, incarnation: Incarnation) {
        self.table().relay_runs(relay, incarnation, unix_ms());
    }

    /// Sets whether this relay writes the tombstones of clients whose relay is gone. One relay does.
    pub fn set_coordinator(&self, coordinates: bool) {
        self.table().set_coordinates(coordinates);
    }

    /// Associations of all relays per server, by service and server name.
    pub fn counts(&self) -> BTreeMap<String, BTreeMap<String, u32>> {
        // Workers wait for the table.
        let servers: Vec<_> = {
            let table = self.table();
            let all = table.servers.all();
            all.map(|(_, server)| (server.service, server.name.clone(), server.clients)).collect()
        };
        let mut counts: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
        for (service, name, clients) in servers {
            counts
                .entry(self.policies[service.index()].name.clone())
                .or_default()
                .insert(name.to_string(), clients);
        }
        counts
    }

    /// Connections of this relay that have moved to another server, by the name of the former.
    pub fn moved(&self) -> BTreeMap<String, u64> {
        let table = self.table();
        let moved = table.servers.all().filter(|(_, server)| server.moved > 0);
        moved.map(|(_, server)| (server.name.to_string(), server.moved)).collect()
    }

    /// Clients, of all relays.
    pub fn clients(&self) -> usize {
        self.table().len()
    }

    /// Clients of a server, over all relays; 0 if the server is not known.
    pub fn clients_of(&self, server: &str) -> u32 {
        self.table().servers.known(server).map_or(0, |server| server.clients)
    }

    /// Counts of the topic's records.
    pub fn log_stats(&self) -> &LogStats {
        &self.stats
    }

    /// The servers whose connections should move or end.
    pub fn concerns(&self) -> Vec<Concern> {
        let (table, now) = (self.table(), unix_ms());
        let concern = |(id, server): (ServerId, &Server)| {
            let link = server.link.as_ref().filter(|_| server.connections > 0)?;
            let absence = self.policies[server.service.index()].absence;
            let measure = match (link.state, table.fate(id, now)) {
                (_, Fate::Stay) => Measure::None,
                (_, Fate::Refused) => Measure::Refuse,
                (_, Fate::Move) if !table.servers.has_live(server.service) => Measure::None,
                (ServerState::Draining, _) => drain(absence),
                _ => Measure::Reassign,
            };
            (measure != Measure::None).then(|| Concern::new(id, server, link, measure))
        };
        table.servers.all().filter_map(concern).collect()
    }

    /// Applies an operator's order to spread a service's clients evenly, at this rate per second over all
    /// relays, or its end. An unknown service is ignored.
    pub fn set_rebalance(&self, service: &str, per_second: Option<u32>) {
        if let Some(service) = self.service(service) {
            self.table().servers.set_rate(service, per_second);
        }
    }

    fn service(&self, name: &str) -> Option<ServiceId> {
        let index = self.policies.iter().position(|policy| policy.name == name)?;
        u16::try_from(index).ok().map(ServiceId)
    }

    /// The services to rebalance.
    pub fn to_rebalance(&self) -> Vec<ServiceId> {
        let table = self.table();
        (0..)
            .map(ServiceId)
            .take(self.policies.len())
            .filter(|of| table.servers.rate(*of).is_some())
            .collect()
    }

    /// What this relay moves within one second, if the service is being rebalanced.
    pub fn rebalance(&self, service: ServiceId) -> Vec<Concern> {
        let policy = &self.policies[service.index()];
        let (rate, loads) = {
            let table = self.table();
            let Some(rate) = table.servers.rate(service) else { return Vec::new() };
            (rate, balance::loads(&table, policy, service))
        };
        let moves = balance::moves(&loads, rate);
        let table = self.table();
        let within_ms = u64::from(policy.absence.drain_ms).min(REBALANCE_WAIT_MS);
        let concern = |of: &balance::Load| {
            let moves = moves.get(&of.server)?;
            let most = balance::share(*moves, &of.connected, table.relay());
            let server = table.servers.get(of.server);
            let link = server.link.as_ref().filter(|_| most > 0)?;
            Some(Concern::new(of.server, server, link, Measure::Rebalance { most, within_ms }))
        };
        loads.iter().filter_map(concern).collect()
    }

    /// How evenly a service's clients are spread. None if it is not known. Looks at all clients.
    pub fn balance(&self, service: &str) -> Option<Balance> {
        let id = self.service(service)?;
        let table = self.table();
        let loads = balance::loads(&table, &self.policies[id.index()], id);
        let moved = table.servers.all().filter(|(_, of)| of.service == id && of.rebalanced > 0);
        let moved = moved.map(|(_, of)| (of.name.to_string(), of.rebalanced)).collect();
        drop(table);
        Some(Balance { even: balance::moves(&loads, 1).is_empty(), moved })
    }

    /// True if a connection may move to balance its service: its client has no other one here.
    pub fn may_rebalance(
        &self,
        service: ServiceId,
        identity: ClientIdentity,
        server: ServerId,
    ) -> bool {
        self.table().is_alone(&Key { service, identity }, server)
    }

    /// Records that everything the topic had when this run began has been read.
    pub(super) fn begin(&self) {
        self.table().begin(unix_ms());
    }

    /// Ends the associations whose time is over.
    pub(super) fn expire(&self) {
        self.table().expire(unix_ms());
    }

    /// Applies a record of the topic. An invalid one is counted, and changes nothing.
    pub(super) fn apply(&self, key: &[u8], value: Option<&[u8]>, generation: Option<&[u8]>) {
        self.stats.read.fetch_add(1, Ordering::Relaxed);
        if let Err(refusal) = self.try_apply(key, value, generation) {
            self.stats.refused[refusal as usize].fetch_add(1, Ordering::Relaxed);
            tracing::debug!(reason = refusal.name(), "a record of an association was refused");
        }
    }

    fn try_apply(
        &self,
        key: &[u8],
        value: Option<&[u8]>,
        generation: Option<&[u8]>,
    ) -> Result<(), RecordRefusal> {
        let key = Key::parse(key, &self.policies)?;
        let record = match value {
            Some(value) => Value::parse(value).map(Incoming::Entry),
            None => parse_generation(generation).map(|generation| Incoming::End { generation }),
        };
        let mut table = self.table();
        match record {
            Ok(record) => table.apply(key, record, unix_ms()),
            Err(refusal) => {
                table.insist(key);
                Err(refusal)
            }
        }
    }

    /// The next records to write.
    pub(super) fn take_unwritten(&self, most: usize) -> Vec<Outgoing> {
        self.table().take_unwritten(most)
    }

    /// Number of records that wait to be written.
    pub(super) fn unwritten(&self) -> usize {
        self.table().unwritten()
    }

    /// Takes back a record that could not be written.
    pub(super) fn put_back(&self, record: Outgoing) {
        self.stats.put_back.fetch_add(1, Ordering::Relaxed);
        self.table().put_back(record);
    }

    /// A record's key in its written form.
    pub(super) fn print(&self, key: &Key) -> String {
        key.print(&self.policies)
    }
}

/// Adds a server, if there is room.
fn set(table: &mut Table, link: ServerLink, policies: &[Policy]) -> Option<ServerId> {
    let now = unix_ms();
    let Some(id) = table.server_named(&link.name, link.service, now) else {
        tracing::error!(server = link.name, "a server is ignored: there are too many");
        return None;
    };
    table.servers.set(id, link, policies, now);
    Some(id)
}

impl Concern {
    fn new(id: ServerId, server: &Server, link: &ServerLink, measure: Measure) -> Self {
        let (name, partition) = (server.name.clone(), link.partition);
        Self { server: id, service: server.service, name, partition, measure }
    }
}

fn association(id: ServerId, server: &Server) -> Association {
    let link = server.link.as_ref().expect("only servers with a link get clients");
    let (partition, epoch) = (link.partition, link.epoch);
    Association { server: id, name: server.name.clone(), partition, epoch }
}

fn drain(absence: Absence) -> Measure {
    Measure::Drain { within_ms: u64::from(absence.drain_ms), then: absence.then }
}
