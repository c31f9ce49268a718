//! A relay without gateway behind netfilter's TPROXY.

use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::frames;
use millrace_harness::kafka::{self, Topics};
use millrace_harness::net::netns::Topology;
use millrace_harness::net::tproxy;
use millrace_harness::relay::instance::Instance;
use millrace_harness::system::process::Process;
use millrace_harness::system::{paths, privilege};

const PORT: u16 = 7000;

#[test]
fn a_transparent_relay_answers_in_the_servers_name() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let hosts = Topology::new(1, 1).unwrap();
    tproxy::intercept(&hosts.gateway, Topology::CLIENT_DEVICE, PORT).unwrap();
    let topics = Topics::new(&kafka::brokers(), "transparent");
    let mut config = hosts.config(PORT, frames().0);
    config.kafka.brokers = kafka::brokers();
    topics.prefix().clone_into(&mut config.kafka.topic_prefix);
    let mut instance = Instance::new(config, None).unwrap();
    instance.start_transparent(&hosts.gateway.namespace()).unwrap();
    let mut server = std::process::Command::new(paths::example_server().unwrap());
    server.args([&kafka::brokers(), "0", topics.prefix()]);
    let _server = Process::spawn("server", &mut server).unwrap();

    let target = (Topology::server_address(0), PORT).into();
    let mut client = Client::connect(&hosts.clients[0].namespace(), target, frames()).unwrap();
    client.expect_echo(b"by way of Kafka").unwrap();
    assert_eq!(instance.stats().unwrap().count("connections").unwrap(), 1);
    assert_eq!(hosts.servers[0].tcp_segments_received().unwrap(), 0);
    drop(client);
    instance.stop().unwrap();
}
