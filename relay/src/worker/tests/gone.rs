//! Clients that end while they are not read from.

use crate::model::{Kind, Partition};
use crate::worker::Task;

use super::*;

const FIRST: Partition = Partition(0);
/// The bound of each partition.
const LIMIT: usize = 16 << 20;

/// A client that is paused for its partition's sake, and has sent one line before.
fn paused() -> (Stage, SocketId) {
    let mut config = config("", PLAIN);
    config.relay.half_close_ms = 0;
    let mut stage = Stage::new(&config);
    let socket = stage.accept(LINES, "192.0.2.1:1");
    stage.shared.credit.book(FIRST, LIMIT);
    stage.bring(socket, b"a line\n");
    stage.settle();
    assert!(!stage.worker.engine().is_read(socket));
    (stage, socket)
}

/// What was handed over of its lines, and the reason of its end.
fn lines(stage: &mut Stage) -> (Vec<String>, Option<&'static str>) {
    let (mut lines, mut end) = (Vec::new(), None);
    for record in stage.records() {
        match record.kind {
            Kind::Open => {}
            Kind::Message { .. } => lines.push(String::from_utf8(record.payload).expect("text")),
            Kind::Close(reason) => end = Some(reason),
        }
    }
    (lines, end)
}

fn goes_on(stage: &mut Stage) {
    stage.shared.credit.release(FIRST, LIMIT);
    stage.settle();
}

#[test]
fn who_resets_a_paused_connection_is_gone_at_once_and_all_it_has_sent_counts() {
    let (mut stage, socket) = paused();
    stage.worker.engine().leave(socket, b"another\n", Left::Reset);
    stage.settle();
    assert!(!stage.worker.engine().is_open(socket));
    let failed = CloseReason::ConnectionFailed.name();
    assert_eq!(lines(&mut stage), (vec!["a line".into(), "another".into()], Some(failed)));
    assert_eq!(stage.worker.paused(), 0);
}

#[test]
fn what_is_left_of_a_client_that_is_gone_waits_for_its_turn_if_it_is_much() {
    let (mut stage, socket) = paused();
    let much = "another\n".repeat(1000);
    stage.worker.engine().leave(socket, much.as_bytes(), Left::Reset);
    stage.settle();
    assert!(stage.worker.engine().is_open(socket), "the bounds hold for what it has left");
    goes_on(&mut stage);
    assert!(!stage.worker.engine().is_open(socket));
    assert_eq!(lines(&mut stage).0.len(), 1001);
}

#[test]
fn who_ends_its_side_is_gone_at_once_if_nothing_of_it_is_left() {
    let (mut stage, socket) = paused();
    stage.worker.engine().leave(socket, b"", Left::Ended);
    stage.wait_for("it is over", |stage| !stage.worker.engine().is_open(socket));
    let ended = CloseReason::EndOfStream.name();
    assert_eq!(lines(&mut stage), (vec!["a line".into()], Some(ended)));
}

#[test]
fn what_a_client_has_sent_before_it_ended_its_side_is_read_in_its_turn() {
    let (mut stage, socket) = paused();
    stage.worker.engine().leave(socket, b"another\n", Left::Ended);
    stage.settle();
    stage.reply(key(socket, 1), &[0], b"it may read this");
    stage.settle();
    assert_eq!(stage.sent(socket), b"it may read this\n");
    assert_eq!(lines(&mut stage), (vec!["a line".into()], None));
    goes_on(&mut stage);
    stage.wait_for("it is over", |stage| !stage.worker.engine().is_open(socket));
    let ended = CloseReason::EndOfStream.name();
    assert_eq!(lines(&mut stage), (vec!["another".into()], Some(ended)));
}

#[test]
fn who_has_ended_its_side_may_be_gone_later() {
    let (mut stage, socket) = paused();
    for left in [Left::Ended, Left::Reset] {
        stage.worker.engine().leave(socket, b"another\n", left);
        stage.settle();
    }
    assert!(!stage.worker.engine().is_open(socket));
    assert_eq!(lines(&mut stage).0, ["a line", "another"]);
}

#[test]
fn who_ends_while_its_server_is_changed_is_gone_at_once_too() {
    let mut stage = Stage::new(&config("", PLAIN));
    let socket = stage.accept(LINES, "192.0.2.1:1");
    stage.orders.give(crate::model::ServerId(0), Task::Quiesce).expect("room");
    stage.settle();
    assert!(!stage.worker.engine().is_read(socket));
    stage.worker.engine().leave(socket, b"a line\n", Left::Reset);
    stage.settle();
    assert!(!stage.worker.engine().is_open(socket));
    assert_eq!(lines(&mut stage).0, ["a line"]);
}

#[test]
fn what_was_received_counts_when_a_send_fails() {
    let mut config = config("", PLAIN);
    config.kafka.partition_in_flight_bytes = usize::MAX / 2;
    let mut stage = Stage::new(&config);
    let busy = stage.accept(OTHER, "192.0.2.2:1");
    let socket = stage.accept(LINES, "192.0.2.1:1");
    fill_ring(&mut stage, busy);
    stage.bring(socket, b"a line\n");
    stage.settle();
    assert_eq!(stage.worker.paused(), 2);
    stage.worker.engine().set_peer(socket, Peer::Refuses);
    stage.reply(key(socket, 2), &[0], b"too late");
    stage.settle();
    assert!(!stage.worker.engine().is_open(socket));
    let mut records = stage.release();
    stage.settle();
    records.extend(stage.records());
    assert!(records.iter().any(|record| record.payload == b"a line"));
}

#[test]
fn what_was_received_counts_whoever_ends_the_connection() {
    let tasks: [fn(&mut Stage, SocketId); 2] = [
        |stage, _| drop(stage.orders.give(crate::model::ServerId(0), Task::Close).expect("room")),
        |stage, socket| {
            stage.command(key(socket, 1), &[(Command::TakenOver, Receipt::None, b"")]);
        },
    ];
    for (end, reason) in tasks.into_iter().zip([CloseReason::ServerAway, CloseReason::TakenOver]) {
        let mut stage = Stage::new(&config("", PLAIN));
        let socket = stage.accept(LINES, "192.0.2.1:1");
        stage.shared.credit.book(FIRST, LIMIT);
        // The second is there before the pause takes effect.
        stage.worker.engine().bring(socket, b"a line\n");
        stage.worker.engine().bring(socket, b"another\n");
        stage.settle();
        assert_eq!(lines(&mut stage).0, ["a line"]);
        end(&mut stage, socket);
        stage.settle();
        assert!(!stage.worker.engine().is_open(socket));
        assert_eq!(lines(&mut stage), (vec!["another".into()], Some(reason.name())));
    }
}
