//! `relay disconnect`: an operator closes the connections of some clients.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::frames;
use millrace_harness::relay::direct::Direct;
use millrace_harness::relay::instance::Instance;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::process::{Finished, run};

fn disconnect(instance: &Instance, arguments: &[&str]) -> Finished {
    let mut command = instance.command("disconnect", true);
    run("relay disconnect", command.args(arguments), Duration::from_secs(30)).unwrap()
}

fn refused(instance: &Instance, arguments: &[&str], why: &str) {
    let finished = disconnect(instance, arguments);
    assert!(!finished.status.success(), "{arguments:?} is taken: {}", finished.stdout);
    assert!(finished.stderr.contains(why), "not `{why}`: {}", finished.stderr);
}

#[test]
fn an_operator_closes_the_connections_of_a_prefix_and_no_others() {
    let mut relay = Direct::build("disconnect", |config| config.relay.workers = 2).unwrap();
    refused(&relay.instance, &["127.0.0.2"], "no relay of instance");
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let connect = |last: u8| {
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        let mut client = Client::connect_from(source, relay.target(), frames()).unwrap();
        client.send(&[last]).unwrap();
        let record = server.next("its message", |record| record.value == [last]).unwrap();
        (client, record.key)
    };
    // Several, so that both workers have some.
    let mut wanted: Vec<_> = [8, 9, 10, 11, 8, 9, 10, 11].into_iter().map(connect).collect();
    let (mut other, _) = connect(12);

    refused(&relay.instance, &["127.0.0.9/30"], "did you mean 127.0.0.8/30?");
    refused(&relay.instance, &["::ffff:127.0.0.8"], "write it as IPv4");
    let finished = disconnect(&relay.instance, &["127.0.0.8/30", "--json"]);
    assert_eq!(
        finished.stdout.trim(),
        r#"{"clients":"127.0.0.8/30","connections":8}"#,
        "{}",
        finished.stderr
    );
    for (client, _) in &mut wanted {
        client.wait_end().unwrap();
    }
    for _ in 0..wanted.len() {
        let close = server.next("close", |record| record.kind() == "close").unwrap();
        assert!(wanted.iter().any(|(_, key)| *key == close.key), "it is of one of them");
        assert_eq!(close.header("reason"), "disconnected");
    }
    let stats = relay.instance.stats().unwrap();
    assert_eq!(stats.count_by("connections_closed", "disconnected").unwrap(), 8);
    other.send(b"on").unwrap();
    server.next("the other goes on", |record| record.value == b"on").unwrap();
    // It closes what is there, and keeps nobody away.
    let (_again, _) = connect(9);
    let finished = disconnect(&relay.instance, &["127.0.0.9"]);
    assert_eq!(finished.stdout.trim(), "1 connection(s) of clients in 127.0.0.9/32 closed");
    let finished = disconnect(&relay.instance, &["2001:db8::/32"]);
    assert_eq!(finished.stdout.trim(), "0 connection(s) of clients in 2001:db8::/32 closed");
    relay.instance.stop().unwrap();
}
