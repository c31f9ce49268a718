//! Association records: client network address ↔ server.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::Service;

use super::{Partition, ServerId, ServiceId};

/// A client's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Association {
    /// Which server.
    pub server: ServerId,
    /// The uplink partition that it reads.
    pub partition: Partition,
}

/// Place of a server in the order of allotment: fewest associations first, and among equals the one
/// that has waited longest, so that ties are broken evenly.
type Rank = (u32, u64, ServerId);

#[derive(Debug)]
struct ServerEntry {
    service: ServiceId,
    name: String,
    partition: Partition,
    rank: Rank,
}

#[derive(Debug)]
struct Record {
    server: ServerId,
    connections: u32,
}

#[derive(Debug, Default)]
struct Table {
    servers: Vec<ServerEntry>,
    /// Per service, its servers in the order of allotment.
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
    /// An empty table for the servers that the configuration declares.
    pub fn new(services: &[Service]) -> Self {
        let mut table = Table::default();
        for (service, id) in services.iter().zip((0..).map(ServiceId)) {
            let mut order = BTreeSet::new();
            for (server, index) in service.servers.iter().zip(table.servers.len()..) {
                let server_id = ServerId(u16::try_from(index).expect("partitions are unique u16"));
                let rank = (0, 0, server_id);
                order.insert(rank);
                table.servers.push(ServerEntry {
                    service: id,
                    name: server.id.clone(),
                    partition: server.partition,
                    rank,
                });
            }
            table.order.push(order);
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

    /// The server of a client: the associated one, or else the one with the fewest associations,
    /// which is associated from now on. Logarithmic in the number of servers.
    pub fn associate(&self, service: ServiceId, client: SocketAddr) -> Association {
        let table = &mut *self.table();
        let server = if let Some(record) = table.records.get_mut(&(service, client)) {
            record.connections += 1;
            record.server
        } else {
            let (_, _, server) =
                *table.order[service.index()].first().expect("a service has a server");
            table.allotments += 1;
            let turn = table.allotments;
            table.rerank(server, |(count, _, _)| (count + 1, turn));
            table.records.insert((service, client), Record { server, connections: 1 });
            server
        };
        Association { server, partition: table.entry(server).partition }
    }

    /// Ends what one [`associate`](Self::associate) began; the association ends with the client's
    /// last connection. Unknown clients are left alone.
    pub fn dissociate(&self, service: ServiceId, client: SocketAddr) {
        let table = &mut *self.table();
        let Entry::Occupied(mut record) = table.records.entry((service, client)) else { return };
        record.get_mut().connections -= 1;
        if record.get().connections == 0 {
            let server = record.remove().server;
            table.rerank(server, |(count, turn, _)| (count - 1, turn));
        }
    }

    /// Associations per server, by service and server name.
    pub fn counts(&self) -> BTreeMap<String, BTreeMap<String, u32>> {
        let table = self.table();
        let mut counts: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
        for server in &table.servers {
            counts
                .entry(self.services[server.service.index()].clone())
                .or_default()
                .insert(server.name.clone(), server.rank.0);
        }
        counts
    }
}

impl Table {
    fn entry(&mut self, server: ServerId) -> &mut ServerEntry {
        &mut self.servers[usize::from(server.0)]
    }

    fn rerank(&mut self, server: ServerId, change: impl FnOnce(Rank) -> (u32, u64)) {
        let entry = self.entry(server);
        let old = entry.rank;
        let (count, turn) = change(old);
        let new = (count, turn, server);
        entry.rank = new;
        let service = entry.service;
        let order = &mut self.order[service.index()];
        order.remove(&old);
        order.insert(new);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

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
            servers: (first_partition..first_partition + servers)
                .map(|partition| Server {
                    id: format!("{name}-{partition}"),
                    address: Ipv4Addr::LOCALHOST.into(),
                    partition: Partition(partition),
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
                let partition = associations.associate(id, client(number)).partition;
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
            let partition = associations.associate(ServiceId(0), client(number)).partition;
            associations.dissociate(ServiceId(0), client(number));
            hits[partition.index()] += 1;
        }
        assert_eq!(hits, [10; 3], "short connections in turn load all servers alike");
    }
}
