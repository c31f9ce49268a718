//! Association records: client network address ↔ server.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::Service;

use super::{Partition, ServerId, ServerLink, ServerState, ServiceId};

/// A client's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Association {
    /// Which server.
    pub server: ServerId,
    /// The uplink partition that it reads.
    pub partition: Partition,
}

/// Place of a server in the order of allotment: the one that would be loaded least by one more, in
/// proportion to its capacity, comes first; among equals the one that has waited longest, so that
/// ties are broken evenly.
type Rank = (u64, u64, ServerId);

/// Clients for each unit of capacity, if there is one more; 32 bits before the point and 32 after.
fn load_with_one_more(clients: u32, capacity: u32) -> u64 {
    ((u64::from(clients) + 1) << 32) / u64::from(capacity.max(1))
}

#[derive(Debug)]
struct ServerEntry {
    link: ServerLink,
    clients: u32,
    /// Of all allotments, the last that was to it.
    turn: u64,
}

impl ServerEntry {
    fn rank(&self, id: ServerId) -> Rank {
        (load_with_one_more(self.clients, self.link.capacity), self.turn, id)
    }
}

#[derive(Debug)]
struct Record {
    server: ServerId,
    connections: u32,
}

#[derive(Debug, Default)]
struct Table {
    servers: Vec<ServerEntry>,
    by_name: HashMap<String, ServerId>,
    /// Per service, its live servers in the order of allotment.
    order: Vec<BTreeSet<Rank>>,
    /// A client may have connections to several services; and to one, if it uses the same port
    /// towards several of the service's addresses.
    records: HashMap<(ServiceId, SocketAddr), Record>,
    allotments: u64,
}

/// The association table of one relay, shared by its workers.
#[derive(Debug)]
pub struct Associations {
    services: Vec<String>,
    table: Mutex<Table>,
}

impl Associations {
    /// A table without clients, and with the servers that the configuration declares.
    pub fn new(services: &[Service]) -> Self {
        let mut table =
            Table { order: services.iter().map(|_| BTreeSet::new()).collect(), ..Table::default() };
        for (service, id) in services.iter().zip((0..).map(ServiceId)) {
            for server in &service.servers {
                table.set_server(ServerLink::declared(id, server));
            }
        }
        Self {
            services: services.iter().map(|service| service.name.clone()).collect(),
            table: Mutex::new(table),
        }
    }

    /// Every step leaves the table whole, so a panic elsewhere does not spoil it.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up a server, or what has changed about it. Its clients stay its clients.
    pub fn set_server(&self, link: ServerLink) {
        self.table().set_server(link);
    }

    /// The server of a client: the associated one, or else the one with the fewest associations,
    /// which is associated from now on; none if the service has no live server. Logarithmic in the
    /// number of servers.
    pub fn associate(&self, service: ServiceId, client: SocketAddr) -> Option<Association> {
        let table = &mut *self.table();
        let server = if let Some(record) = table.records.get_mut(&(service, client)) {
            record.connections += 1;
            record.server
        } else {
            let (_, _, server) = *table.order[service.index()].first()?;
            table.allotments += 1;
            let turn = table.allotments;
            table.change(server, |entry| {
                entry.clients += 1;
                entry.turn = turn;
            });
            table.records.insert((service, client), Record { server, connections: 1 });
            server
        };
        Some(Association { server, partition: table.servers[server.index()].link.partition })
    }

    /// Ends what one [`associate`](Self::associate) began; the association ends with the client's
    /// last connection. Unknown clients are left alone.
    pub fn dissociate(&self, service: ServiceId, client: SocketAddr) {
        let table = &mut *self.table();
        let Entry::Occupied(mut record) = table.records.entry((service, client)) else { return };
        record.get_mut().connections -= 1;
        if record.get().connections == 0 {
            let server = record.remove().server;
            table.change(server, |entry| entry.clients -= 1);
        }
    }

    /// Associations per server, by service and server name.
    pub fn counts(&self) -> BTreeMap<String, BTreeMap<String, u32>> {
        let table = self.table();
        let mut counts: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
        for server in &table.servers {
            counts
                .entry(self.services[server.link.service.index()].clone())
                .or_default()
                .insert(server.link.name.clone(), server.clients);
        }
        counts
    }
}

impl Table {
    fn set_server(&mut self, link: ServerLink) {
        if let Some(&id) = self.by_name.get(&link.name) {
            self.change(id, |entry| entry.link = link);
            return;
        }
        let id = ServerId(u16::try_from(self.servers.len()).expect("partitions are unique u16"));
        self.by_name.insert(link.name.clone(), id);
        self.servers.push(ServerEntry { link, clients: 0, turn: 0 });
        self.enter(id);
    }

    /// Changes a server, and its place in the order with it.
    fn change(&mut self, id: ServerId, change: impl FnOnce(&mut ServerEntry)) {
        let entry = &mut self.servers[id.index()];
        self.order[entry.link.service.index()].remove(&entry.rank(id));
        change(entry);
        self.enter(id);
    }

    fn enter(&mut self, id: ServerId) {
        let entry = &self.servers[id.index()];
        if entry.link.state == ServerState::Live {
            self.order[entry.link.service.index()].insert(entry.rank(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;
    use crate::codec::Framing;
    use crate::config::{Server, Service};

    fn service(name: &str, servers: u16, first_partition: u16) -> Service {
        Service {
            name: name.to_owned(),
            destinations: vec!["192.0.2.0/24".parse().unwrap()],
            port: 7000 + first_partition,
            framing: Framing::Lines,
            max_message_bytes: 100,
            identity: crate::route::IdentityKind::default(),
            servers: (first_partition..first_partition + servers)
                .map(|partition| {
                    let id = format!("{name}-{partition}");
                    Server::new(id, Ipv4Addr::LOCALHOST.into(), Partition(partition))
                })
                .collect(),
        }
    }

    fn client(number: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, number))
    }

    proptest! {
        #[test]
        fn each_new_client_gets_a_server_with_the_fewest(
            steps in prop::collection::vec((any::<bool>(), 0..60_u16, 0..2_u16), 1..300),
        ) {
            let associations = Associations::new(&[service("a", 3, 0), service("b", 2, 3)]);
            let mut model: HashMap<(u16, u16), (Partition, u32)> = HashMap::new();
            for (connect, number, service) in steps {
                let id = ServiceId(service);
                if !connect {
                    associations.dissociate(id, client(number));
                    if let Some((_, connections)) = model.get_mut(&(service, number)) {
                        *connections -= 1;
                    }
                    model.retain(|_, (_, connections)| *connections > 0);
                    continue;
                }
                let load = |model: &HashMap<_, (Partition, u32)>, partition: u16| {
                    model.values().filter(|(p, _)| *p == Partition(partition)).count()
                };
                let servers = if service == 0 { 0..3 } else { 3..5 };
                let fewest = servers.clone().map(|partition| load(&model, partition)).min().unwrap();
                let partition = associations.associate(id, client(number)).unwrap().partition;
                prop_assert!(servers.contains(&partition.0));
                if let Some((known, connections)) = model.get_mut(&(service, number)) {
                    prop_assert_eq!(*known, partition, "an association stays");
                    *connections += 1;
                } else {
                    prop_assert_eq!(load(&model, partition.0), fewest);
                    model.insert((service, number), (partition, 1));
                }
            }
            let total: u32 =
                associations.counts().values().flat_map(BTreeMap::values).sum();
            prop_assert_eq!(total as usize, model.len());
        }
    }

    #[test]
    fn ties_go_round() {
        let associations = Associations::new(&[service("a", 3, 0)]);
        let mut hits = [0; 3];
        for number in 0..30 {
            let partition = associations.associate(ServiceId(0), client(number)).unwrap().partition;
            associations.dissociate(ServiceId(0), client(number));
            hits[partition.index()] += 1;
        }
        assert_eq!(hits, [10; 3], "short connections in turn load all servers alike");
    }

    #[test]
    fn capacity_is_the_share() {
        let mut services = [service("a", 2, 0)];
        services[0].servers[1].capacity = NonZeroU32::new(3).unwrap();
        let associations = Associations::new(&services);
        for number in 0..40 {
            associations.associate(ServiceId(0), client(number)).unwrap();
        }
        assert_eq!(associations.counts()["a"], [("a-0".into(), 10), ("a-1".into(), 30)].into());
    }

    #[test]
    fn only_live_servers_get_clients_and_clients_stay() {
        let services = [service("a", 2, 0)];
        let associations = Associations::new(&services);
        let partition = |number| {
            associations.associate(ServiceId(0), client(number)).map(|found| found.partition)
        };
        let first = partition(0).unwrap();
        let mut link = ServerLink::declared(ServiceId(0), &services[0].servers[first.index()]);
        for state in [ServerState::Away, ServerState::Draining, ServerState::Gone] {
            link.state = state;
            associations.set_server(link.clone());
            assert_eq!(partition(0), Some(first), "an association stays");
            for number in 1..10 {
                assert_ne!(partition(number), Some(first));
                associations.dissociate(ServiceId(0), client(number));
            }
        }
        let mut other = ServerLink::declared(ServiceId(0), &services[0].servers[1 - first.index()]);
        other.state = ServerState::Away;
        associations.set_server(other);
        assert_eq!(partition(1), None);
        link.state = ServerState::Live;
        associations.set_server(link);
        assert_eq!(partition(1), Some(first));
    }
}
