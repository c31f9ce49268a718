//! What a worker does in one exact order of events.

mod crowd;
mod disconnect;
mod endings;
mod gone;
mod paused;
mod sharing;
mod stage;
mod tuned;

use crate::config::Config;
use crate::engine::{ReceiveEnd, SocketId};
use crate::model::{CloseReason, ConnectionKey, Incarnation, Kind, RelayId, Reply, ReplyOffset};
use crate::ring::{Command, Receipt, Return};

use stage::{Left, Peer, Stage};

/// A service of lines and another one; each has a server.
fn config(relay: &str, other: &str) -> Config {
    let text = format!(
        r#"
        [gateway]
        devices = ["eth0"]
        [relay]
        {relay}
        [[service]]
        name = "lines"
        destinations = ["198.51.100.0/24"]
        port = 7000
        framing = {{ type = "lines" }}
        server = [{{ id = "a", address = "198.51.100.1", partition = 0 }}]
        [[service]]
        name = "other"
        destinations = ["198.51.100.0/24"]
        port = 7001
        server = [{{ id = "b", address = "198.51.100.2", partition = 1 }}]
        {other}
        "#
    );
    let config: Config = toml::from_str(&text).expect("valid");
    config.check().expect("valid");
    config
}

const LINES: u16 = 0;
const OTHER: u16 = 1;
const AUTO: &str = r#"
        protocol = "auto"
        max_connections_per_address = 1
        auto = { recognise = ["http"] }
        "#;

/// Plain lines at the other service too.
const PLAIN: &str = r#"framing = { type = "lines" }"#;

/// The key of the only user of a socket.
fn key(socket: SocketId, generation: u32) -> ConnectionKey {
    let (relay, incarnation) = (RelayId(0), Incarnation::new(1));
    ConnectionKey { relay, incarnation, worker: 0, slot: socket.0, generation }
}

impl Stage {
    /// Kafka's threads give the worker commands for a connection.
    fn command(&mut self, key: ConnectionKey, commands: &[(Command, Receipt, &[u8])]) {
        let mut batch = self.downlink.take_empty().expect("the worker has taken the others");
        for (command, receipt, payload) in commands {
            let offset = receipt.offset().map_or(-1, |offset| offset.0);
            batch.push(key, *command, *receipt, Reply::plain(key.relay, offset, payload));
        }
        self.downlink.hand_over(batch);
        self.step();
    }

    /// Replies with these offsets of the downlink.
    fn reply(&mut self, key: ConnectionKey, offsets: &[i64], payload: &[u8]) {
        let receipt = |offset| Receipt::Offset(ReplyOffset(offset));
        let replies: Vec<_> =
            offsets.iter().map(|offset| (Command::Reply, receipt(*offset), payload)).collect();
        self.command(key, &replies);
    }

    /// What the worker says of replies.
    fn returned(&mut self) -> Vec<Return> {
        let mut returned = Vec::new();
        self.downlink.take_returned(|one| returned.push(one));
        returned
    }
}

/// Has a client send until the ring has no room.
fn fill_ring(stage: &mut Stage, socket: SocketId) {
    while stage.worker.engine().is_read(socket) {
        stage.bring(socket, &[b'\n'; 4096]);
        stage.keep_records();
    }
}

#[test]
fn a_paused_connection_that_is_handed_on_takes_along_all_that_it_has_sent() {
    let mut config = config("", AUTO);
    config.kafka.partition_in_flight_bytes = usize::MAX / 2;
    let mut stage = Stage::new(&config);
    let busy = stage.accept(LINES, "192.0.2.1:1000");
    let handed_on = stage.accept(OTHER, "192.0.2.2:1000");
    fill_ring(&mut stage, busy);
    let sent: Vec<u8> =
        (0..20_000).map(|at| b'!' + u8::try_from(at % 90).expect("small")).collect();
    stage.bring(handed_on, &sent[..9000]);
    assert!(!stage.worker.engine().is_read(handed_on), "the ring has no room");
    stage.release();
    stage.settle();
    stage.bring(handed_on, &sent[9000..]);
    stage.settle();
    let server = stage.worker.engine().connected[0];
    assert!(stage.sent(server) == sent, "the server has something else than its client has sent");
}

#[test]
fn an_address_has_a_connection_less_when_one_that_was_handed_on_has_ended() {
    let mut stage = Stage::new(&config("", AUTO));
    for round in 0..3 {
        let first = stage.accept(OTHER, "192.0.2.2:1000");
        stage.bring(first, b"SSH-2.0-OpenSSH\r\n");
        stage.settle();
        assert_eq!(stage.closed(CloseReason::HandedOn), round + 1);
        let second = stage.accept(OTHER, "192.0.2.2:1001");
        stage.settle();
        assert_eq!(
            stage.closed(CloseReason::TooManyConnections),
            round + 1,
            "the first one goes on"
        );
        assert!(!stage.worker.engine().is_open(second));
        let server = *stage.worker.engine().connected.last().expect("handed on");
        for end in [first, server] {
            stage.worker.engine().end(end, ReceiveEnd::EndOfStream);
        }
        stage.settle();
        assert!(!stage.worker.engine().is_open(first));
    }
}
