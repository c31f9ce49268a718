//! What concerns a few connections costs as much as they are, however many there are.

use std::time::{Duration, Instant};

use crate::model::ServerId;
use crate::worker::Task;

use super::*;

const CROWD: u32 = 4000;

/// A worker with so many connections that nothing concerns; and one, the last, at the other server.
fn crowd(idle: u32, patience_ms: u32) -> (Stage, SocketId) {
    let mut config = config("max_connections = 10000", PLAIN);
    config.relay.reply_timeout_ms = patience_ms;
    let mut stage = Stage::new(&config);
    for number in 0..idle {
        stage.accept(LINES, &format!("192.0.2.1:{}", number + 1));
    }
    let other = stage.accept(OTHER, "192.0.2.2:1");
    stage.settle();
    stage.records();
    (stage, other)
}

/// How long something takes the worker at its best.
fn best(stage: &mut Stage, mut what: impl FnMut(&mut Stage)) -> Duration {
    let mut took = |_| {
        let start = Instant::now();
        for _ in 0..50 {
            what(stage);
        }
        start.elapsed() / 50
    };
    (0..20).map(&mut took).min().expect("some")
}

/// To look at all connections once.
fn look(stage: &mut Stage) -> Duration {
    best(stage, |stage| {
        let all = stage.worker.connections.iter().flatten();
        let oldest = all.filter_map(|connection| connection.link.oldest_offset()).count();
        assert_eq!(std::hint::black_box(oldest), 0);
    })
}

fn check(what: &str, alone: Duration, among: Duration, look: Duration) {
    println!("{what}: {alone:?} alone, {among:?} among {CROWD}; {look:?} to look at all of those");
    assert!(among < alone + look / 16, "{what}: {among:?} instead of {alone:?}; {look:?} for all");
}

#[test]
fn an_order_about_one_server_costs_nothing_of_the_others() {
    let turn = |stage: &mut Stage| {
        for task in [Task::QuiesceSome(1), Task::Quiesce, Task::Release] {
            stage.orders.give(ServerId(1), task).expect("room");
            stage.worker.step();
        }
    };
    let (mut few, _) = crowd(0, 60_000);
    let (mut many, _) = crowd(CROWD, 60_000);
    let (alone, among) = (best(&mut few, turn), best(&mut many, turn));
    check("three orders", alone, among, look(&mut many));
}

#[test]
fn a_reply_that_is_overdue_costs_nothing_of_those_it_does_not_concern() {
    let overdue = |idle: u32| {
        let (mut stage, _) = crowd(idle, 1);
        // More to nobody than can be said while nobody listens: the offset stays.
        for first in [0, 3000] {
            let gone: Vec<i64> = (first..first + 3000).collect();
            stage.reply(key(SocketId(9999), 9), &gone, b"x");
        }
        stage.wait_for("it is overdue", |stage| {
            stage.worker.settlement.overdue(Duration::from_millis(1), Instant::now()).is_some()
        });
        stage
    };
    let turn = |stage: &mut Stage| stage.worker.step();
    let (mut few, mut many) = (overdue(0), overdue(CROWD));
    let (alone, among) = (best(&mut few, turn), best(&mut many, turn));
    check("a turn", alone, among, look(&mut many));
}

#[test]
fn who_has_read_and_then_leaves_a_reply_unread_is_found() {
    let mut config = config("half_close_ms = 60000", &format!("identity = \"address\"\n{PLAIN}"));
    config.relay.reply_timeout_ms = 50;
    let mut stage = Stage::new(&config);
    let (socket, reader) = (stage.accept(OTHER, "192.0.2.1:1"), stage.accept(OTHER, "192.0.2.2:1"));
    let whose = key(socket, 1);
    stage.reply(whose, &[0], b"read");
    stage.settle();
    // It is looked for by the time of that, and another one's is overdue.
    stage.worker.engine().end(reader, ReceiveEnd::EndOfStream);
    stage.worker.engine().set_peer(reader, Peer::Gone);
    stage.reply(key(reader, 2), &[1], b"not read");
    let since = Instant::now();
    stage.wait_for("some time is over", |_| since.elapsed().as_millis() > 20);
    // What is sent to who has ended its side waits for its kernel's word, and for nothing else.
    stage.worker.engine().end(socket, ReceiveEnd::EndOfStream);
    stage.worker.engine().set_peer(socket, Peer::Gone);
    stage.reply(whose, &[2], b"not read");
    for closed in 1..=2 {
        stage.wait_for("it is closed", |stage| stage.closed(CloseReason::SlowReader) == closed);
    }
}
