//! What clients do wrong is counted, and harms nobody else.

use std::time::Duration;

use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::{frames, lines};
use millrace_harness::relay::cluster::{Cluster, ClusterPlan, FRAMES_PORT, LINES_PORT};
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::privilege;
use millrace_harness::system::process::wait_until;

const PATIENCE: Duration = Duration::from_secs(20);

fn converse(server: &HandServer, client: &mut Client, text: &[u8]) -> Record {
    client.send(text).unwrap();
    let record = server.next("the message", |record| record.value == text).unwrap();
    server.reply(&record, text).unwrap();
    assert_eq!(client.receive().unwrap(), text);
    record
}

#[test]
fn an_oversized_message_closes_its_connection_and_no_other() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("oversized", 1)).unwrap();
    cluster.start().unwrap();
    let longest = cluster.plan.max_message_bytes as usize;
    let cases = [
        (FRAMES_PORT, frames(), cluster.frames_partitions(), u32::MAX.to_be_bytes().to_vec()),
        (LINES_PORT, lines(), cluster.lines_partitions(), vec![b'x'; longest + 2]),
    ];
    for ((port, wire, partitions, oversized), count) in cases.into_iter().zip(1..) {
        let server = cluster.server(&partitions).unwrap();
        let target = cluster.targets(port)[0];
        let mut good = Client::connect(&cluster.clients(), target, wire).unwrap();
        let mut bad = Client::connect(&cluster.clients(), target, wire).unwrap();
        converse(&server, &mut good, b"before");
        let bad_record = converse(&server, &mut bad, b"well-behaved so far");

        bad.send_bytes(&oversized).unwrap();
        bad.wait_end().unwrap();
        let close = server.next("close", |record| record.key == bad_record.key).unwrap();
        assert_eq!((close.kind(), close.header("reason")), ("close", "oversized_message"));
        let stats = cluster.instance.stats().unwrap();
        assert_eq!(stats.count_by("connections_closed", "oversized_message").unwrap(), count);
        converse(&server, &mut good, b"after");
        converse(&server, &mut good, &vec![b'y'; longest]);
    }
}

#[test]
fn a_part_of_a_message_at_the_end_is_counted() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("half", 1)).unwrap();
    cluster.start().unwrap();
    let cases = [
        (FRAMES_PORT, frames(), cluster.frames_partitions()),
        (LINES_PORT, lines(), cluster.lines_partitions()),
    ];
    for (port, wire, partitions) in cases {
        let server = cluster.server(&partitions).unwrap();
        let target = cluster.targets(port)[0];
        let mut client = Client::connect(&cluster.clients(), target, wire).unwrap();
        let framed = wire.framed(b"the second message");
        client.send(b"the first message").unwrap();
        client.send_bytes(&framed[..framed.len() / 2]).unwrap();
        client.end().unwrap();
        let first = server.next("first", |record| record.kind() == "message").unwrap();
        assert_eq!(first.value, b"the first message");
        // The client may still read what it has asked for.
        server.reply(&first, b"an answer").unwrap();
        assert_eq!(client.receive().unwrap(), b"an answer");
        client.wait_end().unwrap();
        let mut next = server.next("the next", |record| record.key == first.key).unwrap();
        if port == LINES_PORT {
            // A line may end with the stream.
            assert_eq!((next.kind(), &next.value[..]), ("message", &framed[..framed.len() / 2]));
            next = server.next("close", |record| record.key == first.key).unwrap();
        }
        assert_eq!(next.kind(), "close", "half a message was delivered");
        wait_until(PATIENCE, "the part to be counted", || {
            Ok(cluster.instance.stats()?.count("messages_truncated")? == 1)
        })
        .unwrap();
    }
}
