//! Connections that an operator has closed.

use super::*;

#[test]
fn all_connections_of_a_prefix_are_closed_whatever_they_are_doing() {
    let mut stage = Stage::new(&config("", AUTO));
    let ours = [
        stage.accept(LINES, "192.0.2.1:1"),
        stage.accept(LINES, "[::ffff:192.0.2.1]:2"),
        stage.accept(LINES, "192.0.2.7:1"),
        stage.accept(LINES, "192.0.2.7:2"),
        stage.accept(OTHER, "192.0.2.7:3"),
    ];
    let others = [
        stage.accept(LINES, "192.0.3.1:1"),
        stage.accept(LINES, "[2001:db8::1]:1"),
        stage.accept(LINES, "[::c000:201]:1"),
    ];
    let [_, _, half_closed, flushing, piped] = ours;
    stage.worker.engine().end(half_closed, ReceiveEnd::EndOfStream);
    // About to be closed, and its client takes nothing.
    stage.worker.engine().set_peer(flushing, Peer::Stalls);
    stage.command(
        key(flushing, 4),
        &[(Command::Reply, Receipt::None, b"last"), (Command::TakenOver, Receipt::None, b"")],
    );
    stage.bring(piped, b"SSH-2.0-OpenSSH\r\n");
    stage.settle();
    let server = *stage.worker.engine().connected.last().expect("handed on");
    assert!(ours.iter().all(|socket| stage.worker.engine().is_open(*socket)), "so far");
    // So that the ring has room for what follows.
    stage.records();
    stage.settle();

    let answer = stage.orders.disconnect("192.0.2.0/24".parse().unwrap()).expect("room");
    assert_eq!(answer.connections(), None, "not yet");
    stage.step();
    assert_eq!(answer.connections(), Some(5));
    stage.settle();
    for socket in ours.into_iter().chain([server]) {
        assert!(!stage.worker.engine().is_open(socket), "{socket:?}");
    }
    assert!(others.iter().all(|socket| stage.worker.engine().is_read(*socket)), "the others go on");
    assert_eq!(stage.closed(CloseReason::Disconnected), 3);
    assert_eq!(stage.closed(CloseReason::TakenOver), 1, "that was decided before");
    let reasons = stage.records().into_iter().filter_map(|record| match record.kind {
        Kind::Close(reason) => Some(reason),
        _ => None,
    });
    assert_eq!(reasons.filter(|reason| *reason == "disconnected").count(), 3);

    let answer = stage.orders.disconnect("2001:db8::/64".parse().unwrap()).expect("room");
    stage.settle();
    assert_eq!(answer.connections(), Some(1));
    let open = others.map(|socket| stage.worker.engine().is_open(socket));
    assert_eq!(open, [true, false, true]);
    let answer = stage.orders.disconnect("192.0.2.0/24".parse().unwrap()).expect("room");
    stage.settle();
    assert_eq!(answer.connections(), Some(0), "nobody is closed twice");
}
