//! What outlives a connection.

use std::time::Duration;

use super::packets::{DISCONNECT, PUBACK, PUBCOMP, PUBREC, PUBREL, Sent, ack, packet, publish};
use super::*;

const REPLY1: [(&str, &str); 2] = [("mqtt.topic", "a"), ("mqtt.qos", "1")];
const REPLY2: [(&str, &str); 2] = [("mqtt.topic", "a"), ("mqtt.qos", "2")];

fn present(connack: &Sent) -> bool {
    connack.body[0] == 1
}

fn leave(peer: &mut Peer) {
    peer.send(&DISCONNECT);
    peer.end(CloseReason::ClientClosed);
}

#[test]
fn a_session_outlives_its_connection_if_the_client_wants_that() {
    for v5 in [false, true] {
        let mqtt = service(|_| ());
        let (mut peer, connack) = Peer::connected(&mqtt, &connect(v5, "a").persistent());
        assert!(!present(&connack));
        peer.subscribe("a", 1);
        leave(&mut peer);
        let (mut peer, connack) = Peer::connected(&mqtt, &connect(v5, "a").persistent());
        assert!(present(&connack));
        assert_eq!(peer.reply(1, &REPLY1), Ok(Sending::Kept));
        leave(&mut peer);
        // Another client's is another one; a clean start ends it.
        assert!(!present(&Peer::connected(&mqtt, &connect(v5, "b").persistent()).1));
        let (mut peer, connack) = Peer::connected(&mqtt, &connect(v5, "a"));
        assert!(!present(&connack));
        assert_eq!(peer.reply(2, &REPLY1), Ok(Sending::Unwanted));
        leave(&mut peer);
        assert!(!present(&Peer::connected(&mqtt, &connect(v5, "a").persistent()).1));
    }
}

#[test]
fn a_session_expires_and_the_client_may_say_when() {
    let mqtt = service(|_| ());
    let (mut peer, _) = Peer::connected(&mqtt, &connect(true, "a").persistent());
    leave(&mut peer);
    let mut late = Peer::new(&mqtt);
    late.now += Duration::from_secs(601);
    assert!(!present(&late.send(&connect(true, "a").persistent().bytes())[0]));

    let (mut peer, _) = Peer::connected(&mqtt, &connect(true, "b").persistent());
    peer.send(&packet(0xe0, &[0, 5, 0x11, 0, 0, 0, 0]));
    peer.end(CloseReason::ClientClosed);
    assert!(!present(&Peer::connected(&mqtt, &connect(true, "b").persistent()).1));
}

#[test]
fn sessions_of_absent_clients_give_way_when_there_are_too_many() {
    let mqtt = service(|section| section.max_sessions = 2);
    for client in ["a", "b", "c"] {
        let (mut peer, _) = Peer::connected(&mqtt, &connect(true, client).persistent());
        leave(&mut peer);
    }
    let is_there = |client| {
        let (mut peer, connack) = Peer::connected(&mqtt, &connect(true, client).persistent());
        leave(&mut peer);
        present(&connack)
    };
    assert!(is_there("b") && is_there("c") && !is_there("a"));
}

#[test]
fn a_second_connection_takes_over() {
    for v5 in [false, true] {
        let mqtt = service(|_| ());
        let build = connect(v5, "a").persistent().with_will(&[0x18, 0, 0, 0, 9], 0);
        let (mut former, _) = Peer::connected(&mqtt, &build);
        former.subscribe("a", 1);
        let (mut peer, connack) = Peer::connected(&mqtt, &build);
        assert!(present(&connack));
        assert_eq!(peer.actions(), [Action::TakeOver(former.script.key)]);
        // The former connection has nothing to say any more.
        assert!(former.send(&publish(v5, 0, 0, "a", "x")).is_empty());
        assert!(former.actions().is_empty());
        assert_eq!(former.reply(1, &REPLY1), Ok(Sending::Kept));
        assert!(former.answers().is_empty());
        former.codec.farewell(CloseReason::TakenOver, former.now, &mut former.script);
        let told = if v5 { vec![Sent::disconnect(0x8e)] } else { vec![] };
        assert_eq!(former.answers(), told);
        // A will with a delay is not published if the session goes on; one without is.
        assert_eq!(former.end(CloseReason::TakenOver).len(), usize::from(!v5));
        assert_eq!(peer.reply(1, &REPLY1), Ok(Sending::Kept));
        leave(&mut peer);
        assert!(present(&Peer::connected(&mqtt, &build).1));
    }
}

#[test]
fn what_waited_comes_when_the_client_can_take_it() {
    for v5 in [false, true] {
        let mqtt = service(|_| ());
        let again = connect(v5, "a").persistent();
        let (mut peer, _) = Peer::connected(&mqtt, &again);
        assert!(!peer.asks_held(), "it has to subscribe first");
        peer.send(&packets::subscribe(v5, 9, &[("$share/a/b", 1)]));
        assert!(!peer.asks_held(), "that was refused");
        peer.subscribe("a", 1);
        assert!(peer.asks_held());
        peer.subscribe("b", 1);
        assert!(!peer.asks_held(), "once");
        leave(&mut peer);
        let (mut peer, _) = Peer::connected(&mqtt, &again);
        assert!(peer.asks_held(), "its session has its subscriptions");
    }
}

#[test]
fn a_clean_start_takes_over_too() {
    let mqtt = service(|_| ());
    let (mut former, _) = Peer::connected(&mqtt, &connect(true, "a").persistent());
    former.subscribe("a", 1);
    let (mut peer, connack) = Peer::connected(&mqtt, &connect(true, "a"));
    assert!(!present(&connack));
    assert_eq!(peer.actions(), [Action::TakeOver(former.script.key)]);
    former.send(&publish(true, 0, 0, "a", "late"));
    assert!(former.actions().is_empty());
    former.end(CloseReason::TakenOver);
    assert_eq!(peer.reply(1, &REPLY1), Ok(Sending::Unwanted));
    leave(&mut peer);
    assert!(!present(&Peer::connected(&mqtt, &connect(true, "a").persistent()).1));
}

#[test]
fn a_message_of_qos_2_that_is_sent_again_after_a_reconnect_becomes_no_second_record() {
    for v5 in [false, true] {
        let mqtt = service(|_| ());
        let build = connect(v5, "a").persistent();
        let (mut former, _) = Peer::connected(&mqtt, &build);
        former.send(&publish(v5, 4, 1, "a", "safe"));
        former.send(&publish(v5, 4, 2, "a", "on its way"));
        assert_eq!(former.delivered(1), [Sent::ack(PUBREC, 1)]);
        former.end(CloseReason::ConnectionFailed);

        let (mut peer, _) = Peer::connected(&mqtt, &build);
        assert_eq!(peer.send(&publish(v5, 0x0c, 1, "a", "safe")), [Sent::ack(PUBREC, 1)]);
        assert!(peer.send(&publish(v5, 0x0c, 2, "a", "on its way")).is_empty());
        assert!(peer.send(&publish(v5, 4, 3, "a", "new")).is_empty());
        assert_eq!(peer.actions().len(), 1, "only the third is new");
        // In order: the third waits for the second.
        assert!(peer.delivered(1).is_empty());
        assert!(peer.codec.deadline().is_some());
        assert!(former.delivered(2).is_empty());
        peer.wait(Duration::from_millis(20));
        assert_eq!(peer.answers(), [Sent::ack(PUBREC, 2), Sent::ack(PUBREC, 3)]);
        assert_eq!(peer.codec.deadline(), None);
        for id in 1..=3 {
            assert_eq!(peer.send(&ack(PUBREL, id)), [Sent::ack(PUBCOMP, id)]);
        }
    }
}

#[test]
fn a_message_of_qos_2_that_kafka_has_refused_may_come_again() {
    let mqtt = service(|_| ());
    let build = connect(true, "a").persistent();
    let (mut former, _) = Peer::connected(&mqtt, &build);
    former.send(&publish(true, 4, 1, "a", "x"));
    former.end(CloseReason::RefusedByKafka);
    let (mut peer, _) = Peer::connected(&mqtt, &build);
    peer.send(&publish(true, 0x0c, 1, "a", "x"));
    assert_eq!(peer.actions().len(), 1);
}

#[test]
fn a_reply_comes_again_under_its_packet_identifier() {
    for v5 in [false, true] {
        let mqtt = service(|_| ());
        let build = connect(v5, "a").persistent();
        let (mut peer, _) = Peer::connected(&mqtt, &build);
        peer.subscribe("a", 2);
        for (offset, headers) in [(1, &REPLY1), (2, &REPLY2), (3, &REPLY2), (4, &REPLY2)] {
            assert_eq!(peer.reply(offset, headers), Ok(Sending::Kept));
        }
        let ids: Vec<_> = peer.answers().iter().map(Sent::id).collect();
        assert_eq!(ids, [1, 2, 3, 4]);
        assert_eq!(peer.send(&ack(PUBREC, 3)), [Sent::ack(PUBREL, 3)]);
        assert_eq!(peer.send(&ack(PUBREC, 4)), [Sent::ack(PUBREL, 4)]);
        peer.end(CloseReason::ConnectionFailed);

        let (mut peer, _) = Peer::connected(&mqtt, &build);
        // Released is released; a new reply has a new identifier.
        assert_eq!(peer.answers(), [Sent::ack(PUBREL, 3), Sent::ack(PUBREL, 4)]);
        assert!(peer.send(&ack(PUBCOMP, 3)).is_empty());
        assert!(peer.actions().is_empty(), "the reply is not with this connection yet");
        assert_eq!(peer.reply(9, &REPLY1), Ok(Sending::Kept));
        assert_eq!(peer.answers()[0].id(), 5);
        assert_eq!(peer.reply(1, &REPLY1), Ok(Sending::Kept));
        assert_eq!(peer.reply(2, &REPLY2), Ok(Sending::Kept));
        assert_eq!(peer.reply(3, &REPLY2), Ok(Sending::Unwanted), "complete");
        assert_eq!(peer.reply(4, &REPLY2), Ok(Sending::Kept));
        let again: Vec<_> = peer.answers().iter().map(|sent| (sent.first, sent.id())).collect();
        assert_eq!(again, [(0x3a, 1), (0x3c, 2)], "DUP, and nothing of the released ones");
        peer.send(&ack(PUBCOMP, 4));
        peer.send(&ack(PUBACK, 1));
        peer.send(&ack(PUBACK, 5));
        let settled = [4, 1, 9].map(|offset| Action::Settle(origin(offset)));
        assert_eq!(peer.actions(), settled);
        // What was begun is ended, whatever the client has unsubscribed from.
        peer.end(CloseReason::ConnectionFailed);
        let (mut peer, _) = Peer::connected(&mqtt, &build);
        peer.send(&packets::unsubscribe(v5, 1, &["a"]));
        assert_eq!(peer.reply(10, &REPLY2), Ok(Sending::Unwanted));
        assert_eq!(peer.reply(2, &REPLY2), Ok(Sending::Kept));
    }
}

#[test]
fn the_relay_stop_keeps_what_is_not_confirmed() {
    let mqtt = service(|_| ());
    let (mut peer, _) = Peer::connected(&mqtt, &connect(true, "a").persistent());
    peer.subscribe("a", 1);
    assert_eq!(peer.reply(1, &REPLY1), Ok(Sending::Kept));
    peer.codec.farewell(CloseReason::RelayStop, peer.now, &mut peer.script);
    assert_eq!(peer.answers().pop(), Some(Sent::disconnect(0x8b)));
    assert!(peer.send(&ack(PUBACK, 1)).is_empty());
    assert!(peer.actions().is_empty());
}
