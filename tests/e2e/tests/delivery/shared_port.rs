//! Services that share a port, through the gateway: each client comes to the server of its destination.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};

use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::frames;
use millrace_harness::net::netns::Topology;
use millrace_harness::relay::cluster::{Cluster, ClusterPlan, FRAMES_PORT};
use millrace_harness::system::privilege;
use millrace_relay::config::{Config, Server};
use millrace_relay::model::Partition;
use millrace_relay::ports::Ports;
use millrace_relay::prefix::Prefix;

const TENANTS: u16 = 100;
/// Has every other destination, and more ports.
const REST: &str = "rest";
const MORE_PORTS: Ports = Ports { first: FRAMES_PORT, last: FRAMES_PORT + 9 };

fn address(tenant: u16) -> Ipv4Addr {
    Topology::server_address(usize::from(tenant))
}

/// A service for each tenant's address, whose server has the partition of its number; one for all others.
fn tenants(config: &mut Config) {
    let model = config.services[0].clone();
    config.services = (0..TENANTS)
        .map(|tenant| {
            let mut service = model.clone();
            service.name = format!("tenant-{tenant}");
            service.destinations = vec![Prefix::containing(address(tenant).into(), 32)];
            let id = format!("server-{tenant}");
            service.servers = vec![Server::new(id, address(tenant).into(), Partition(tenant))];
            service
        })
        .collect();
    let mut rest = model;
    REST.clone_into(&mut rest.name);
    rest.port = MORE_PORTS;
    rest.servers = vec![Server::new(REST, address(TENANTS).into(), Partition(TENANTS))];
    config.services.push(rest);
}

#[test]
fn a_hundred_services_share_a_port_and_each_client_comes_to_its_own() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let plan = ClusterPlan::small("shared", 1);
    let mut cluster = Cluster::build_with(plan, tenants).unwrap();
    cluster.start().unwrap();
    let partitions: Vec<u16> = (0..=TENANTS).collect();
    let server = cluster.server(&partitions).unwrap();
    let everywhere = (0..=TENANTS).map(|tenant| (address(tenant), FRAMES_PORT, tenant));
    // A tenant has one port of the ten.
    let beside =
        [(address(0), MORE_PORTS.last, TENANTS), (address(7), MORE_PORTS.first + 1, TENANTS)];
    let mut expected = HashMap::new();
    let mut clients = Vec::new();
    for (address, port, partition) in everywhere.chain(beside) {
        let target = SocketAddr::from((address, port));
        let mut client = Client::connect(&cluster.clients(), target, frames()).unwrap();
        client.send(target.to_string().as_bytes()).unwrap();
        expected.insert(target.to_string().into_bytes(), partition);
        clients.push((client, target));
    }
    for _ in &clients {
        let record = server.next("message", |record| record.kind() == "message").unwrap();
        let partition = expected.remove(&record.value).expect("it comes once");
        assert_eq!(record.partition, partition, "{:?}", record.value);
        server.reply(&record, &record.value).unwrap();
    }
    assert!(expected.is_empty(), "{expected:?}");
    for (client, target) in &mut clients {
        assert_eq!(client.receive().unwrap(), target.to_string().into_bytes());
    }
    let stats = cluster.instance.stats().unwrap();
    assert_eq!(stats.count("connections").unwrap(), u64::from(TENANTS) + 3);
    cluster.instance.stop().unwrap();
}
