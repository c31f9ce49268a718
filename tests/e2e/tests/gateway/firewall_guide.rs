//! What docs/firewall.md says, tried: what the host's firewall does not see, and the commands that block a
//! client all the same.

use std::io::Write as _;
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::Wire;
use millrace_harness::kafka::{self, Topics};
use millrace_harness::net::netns::Topology;
use millrace_harness::relay::instance::Instance;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::privilege;
use millrace_harness::system::process::{run_ok, wait_until};
use millrace_relay::codec::Framing;
use millrace_relay::gateway::in_namespace;
use millrace_relay::gateway::rules::RuleSet;

const DOCUMENT: &str = include_str!("../../../../docs/firewall.md");
const PORT: u16 = 7000;
const PATIENCE: Duration = Duration::from_secs(10);

/// The document's block of this kind.
fn block(kind: &str) -> &'static str {
    let (_, rest) = DOCUMENT.split_once(&format!("```{kind}\n")).expect(kind);
    rest.split_once("```").expect("it ends").0
}

#[test]
fn the_rules_of_the_document_are_rules() {
    let set = RuleSet::parse("docs/firewall.md", block("rules")).unwrap();
    assert_eq!(set.lines().len(), 4);
}

#[test]
fn the_commands_of_the_document_block_a_client_that_the_firewall_alone_does_not() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let hosts = Topology::new(1, 1).unwrap();
    let (gateway, address) = (&hosts.gateway, Topology::client_address(0).to_string());
    let topics = Topics::new(&kafka::brokers(), "firewall");
    let mut config = hosts.config(PORT, Framing::Lines);
    config.kafka.brokers = kafka::brokers();
    topics.prefix().clone_into(&mut config.kafka.topic_prefix);
    let name = format!("millrace-{}.rules", config.gateway.instance);
    let rules = std::env::temp_dir().join(name);
    std::fs::write(&rules, format!("divert tcp 10.77.2.0/24 port {PORT}\n")).unwrap();
    config.gateway.rules = Some(rules.clone());
    let mut instance = Instance::new(config, Some(&gateway.namespace())).unwrap();
    instance.load().unwrap();
    instance.start().unwrap();
    let server = HandServer::on(&kafka::brokers(), topics.prefix(), &[0]).unwrap();

    let mut nft = gateway.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(block("nft").as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "nft refuses the document's table");
    let commands = block("sh").replace("198.51.100.7", &address);
    let commands = commands.replace("/etc/millrace/millrace.rules", rules.to_str().unwrap());
    let sh = |commands: &str| {
        let (program, file) = (instance.program().display(), instance.config_file());
        let script = format!(
            "sudo() {{ \"$@\"; }}\nrelay() {{ {program} \"$@\" --config {}; }}\n{commands}",
            file.display()
        );
        run_ok("sh", gateway.command("sh").args(["-euc", &script]), PATIENCE).unwrap().stdout
    };
    let target = (Topology::server_address(0), PORT).into();
    let wire = Wire(Framing::Lines);
    let mut client = Client::connect(&hosts.clients[0].namespace(), target, wire).unwrap();
    // The firewall alone, before the client says anything.
    sh(commands.lines().next().unwrap());
    client.send(b"one").unwrap();
    server.next("what the firewall does not see", |record| record.value == b"one").unwrap();

    let said = sh(&commands);
    assert!(said.contains(&format!("1 connection(s) of clients in {address}/32 closed")), "{said}");
    let close = server.next("close", |record| record.kind() == "close").unwrap();
    assert_eq!(close.header("reason"), "disconnected");
    client.wait_end().unwrap();
    let again = || TcpStream::connect_timeout(&target, Duration::from_secs(2));
    let again = in_namespace(&hosts.clients[0].namespace(), again).unwrap();
    assert!(again.is_err(), "it is served again");
    wait_until(PATIENCE, "its packets to be counted", || {
        Ok(instance.verdicts()?["drop/source"].as_u64() > Some(0))
    })
    .unwrap();
    instance.stop().unwrap();
    let _ = std::fs::remove_file(rules);
}
