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
        let (mut peer, connack) = Peer::taking_over(&mqtt, &build, &mut former);
        assert!(present(&connack));
        let told = if v5 { vec![Sent::disconnect(0x8e)] } else { vec![] };
        assert_eq!(former.answers(), told);
        // A will with a delay is not published if the session goes on; one without is.
        assert_eq!(former.actions().len(), usize::from(!v5));
        // The former connection has nothing to say any more.
        assert!(former.send(&publish(v5, 0, 0, "a", "x")).is_empty());
        assert!(former.actions().is_empty());
        assert_eq!(former.reply(1, &REPLY1), Ok(Sending::Kept));
        assert!(former.answers().is_empty());
        assert!(former.end(CloseReason::TakenOver).is_empty());
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
    let (mut peer, connack) = Peer::taking_over(&mqtt, &connect(true, "a"), &mut former);
    assert!(!present(&connack));
    former.send(&publish(true, 0, 0, "a", "late"));
    assert!(former.actions().is_empty());
    former.end(CloseReason::TakenOver);
    assert_eq!(peer.reply(1, &REPLY1), Ok(Sending::Unwanted));
    leave(&mut peer);
    assert!(!present(&Peer::connected(&mqtt, &connect(true, "a").persistent()).1));
}

/// What a client confirms of its former connection while the reply waits for its turn on the present one
/// is not sent again: its packet identifier is free, and nobody would confirm it.
#[test]
fn a_reply_that_is_confirmed_while_it_waits_is_not_sent_again() {
    for v5 in [false, true] {
        let mqtt = service(|section| section.send_maximum = 2);
        let build = connect(v5, "a").persistent();
        let (mut former, _) = Peer::connected(&mqtt, &build);
        former.subscribe("a", 2);
        for (offset, headers) in [(1, &REPLY1), (2, &REPLY2)] {
            assert_eq!(former.reply(offset, headers), Ok(Sending::Kept));
        }
        former.end(CloseReason::ConnectionFailed);
        let (mut peer, connack) = Peer::connected(&mqtt, &build);
        assert!(present(&connack));
        // Newer ones are first, and take all the room; one comes twice.
        for (offset, headers) in [(3, &REPLY1), (4, &REPLY1), (1, &REPLY1), (2, &REPLY2)] {
            assert_eq!(peer.reply(offset, headers), Ok(Sending::Kept));
        }
        assert_eq!(peer.reply(5, &REPLY1), Ok(Sending::Kept));
        assert_eq!(peer.reply(5, &REPLY1), Ok(Sending::Kept));
        assert_eq!(peer.answers().len(), 2);
        assert!(peer.send(&ack(PUBACK, 1)).is_empty());
        assert_eq!(peer.send(&ack(PUBREC, 2)), [Sent::ack(PUBREL, 2)]);
        assert!(peer.actions().is_empty(), "it is known to the session only");
        // There is room: the first is done with, and of the second only the end is to come.
        assert!(peer.send(&ack(PUBACK, 3)).is_empty());
        assert_eq!(peer.actions(), [Action::Settle(origin(3)), Action::Settle(origin(1))]);
        assert_eq!(peer.send(&ack(PUBCOMP, 2)).len(), 1, "the fifth");
        assert_eq!(peer.actions(), [Action::Settle(origin(2))]);
        assert!(peer.send(&ack(PUBACK, 4)).is_empty());
        let twice = [Action::Settle(origin(4)), Action::GiveUp(origin(5))];
        assert_eq!(peer.actions(), twice);
        peer.send(&ack(PUBACK, 5));
        assert_eq!(peer.actions(), [Action::Settle(origin(5))]);
        for offset in [6, 7] {
            assert_eq!(peer.reply(offset, &REPLY1), Ok(Sending::Kept));
        }
        assert_eq!(peer.answers().len(), 2, "all the room is there again");
    }
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

/// A clean session lasts as long as its connection (MQTT-3.1.2-6 of 3.1.1), and so does one of 5.0 that
/// was given no time (section 3.1.2.11.2): whoever takes over gets a new one.
#[test]
fn a_session_that_ends_with_its_connection_is_nobodys_at_a_take_over() {
    for v5 in [false, true] {
        let mqtt = service(|_| ());
        let (mut former, _) = Peer::connected(&mqtt, &connect(v5, "a"));
        former.subscribe("a", 2);
        former.send(&publish(v5, 4, 7, "a", "x"));
        assert_eq!(former.delivered(1), [Sent::ack(PUBREC, 7)]);
        let again = connect(v5, "a").persistent();
        let (mut peer, connack) = Peer::taking_over(&mqtt, &again, &mut former);
        assert!(!present(&connack));
        assert_eq!(peer.reply(1, &REPLY1), Ok(Sending::Unwanted), "its subscriptions are gone");
        peer.send(&publish(v5, 4, 7, "a", "y"));
        let messages = peer.actions().len();
        assert_eq!(messages, 1, "the packet identifier means another message");
        former.end(CloseReason::TakenOver);
        leave(&mut peer);
        assert!(present(&Peer::connected(&mqtt, &again).1), "the new one outlives its connection");
    }
}

/// "the original Session is ended on the takeover" (section 3.1.4): a will does not wait for a session
/// that will never be resumed.
#[test]
fn a_clean_start_ends_the_former_session_and_with_it_the_delay_of_its_will() {
    let mqtt = service(|_| ());
    let build = connect(true, "a").persistent().with_will(&[0x18, 0, 0, 0, 9], 0);
    let (mut former, _) = Peer::connected(&mqtt, &build);
    Peer::taking_over(&mqtt, &connect(true, "a"), &mut former);
    let will = [("mqtt.will", "1"), ("mqtt.topic", "will/topic")];
    assert_eq!(former.actions(), [message(&will, "gone")]);
}

#[test]
fn whoever_takes_over_waits_until_kafka_has_the_will_and_what_came_before() {
    for v5 in [false, true] {
        let mqtt = service(|_| ());
        let build = connect(v5, "a").persistent().with_will(&[], 0);
        let (mut former, _) = Peer::connected(&mqtt, &build);
        former.send(&publish(v5, 0, 0, "a", "x"));
        let mut peer = Peer::new(&mqtt);
        let birth = publish(v5, 0, 0, "birth", "y");
        assert!(peer.send(&[build.bytes(), birth].concat()).is_empty());
        assert_eq!(peer.actions(), [Action::TakeOver(former.script.key)]);
        former.codec.farewell(CloseReason::TakenOver, former.now, &mut former.script);
        assert_eq!(former.actions().len(), 2, "what it has published, and its will");
        peer.wait(Duration::from_millis(5));
        former.delivered(1);
        peer.wait(Duration::from_millis(5));
        assert!(peer.answers().is_empty() && peer.actions().is_empty());
        former.delivered(2);
        peer.wait(Duration::from_millis(5));
        assert_eq!(peer.answers()[0].first, 0x20);
        assert_eq!(peer.actions().len(), 2, "it begins, and then the birth message");

        // Kafka is away: it is not waited for without end.
        peer.send(&publish(v5, 0, 0, "a", "x"));
        let mut third = Peer::new(&mqtt);
        assert!(third.send(&build.bytes()).is_empty());
        third.wait(Duration::from_secs(2));
        assert_eq!(third.answers()[0].first, 0x20);
    }
}

#[test]
fn of_two_that_take_over_at_once_the_later_one_stays() {
    let mqtt = service(|_| ());
    let build = connect(true, "a").persistent();
    let (mut former, _) = Peer::connected(&mqtt, &build);
    former.send(&publish(true, 0, 0, "a", "x"));
    let (mut second, mut third) = (Peer::new(&mqtt), Peer::new(&mqtt));
    assert!(second.send(&build.bytes()).is_empty());
    assert!(third.send(&build.bytes()).is_empty());
    former.codec.farewell(CloseReason::TakenOver, former.now, &mut former.script);
    former.delivered(1);
    third.wait(Duration::from_millis(5));
    assert!(present(&third.answers()[0]));
    second.actions();
    second.wait(Duration::from_millis(5));
    assert_eq!(second.actions(), [Action::Close(CloseReason::TakenOver)]);
    assert!(second.answers().is_empty());
}

/// What waited for a session that a clean start has ended is part of its state (section 4.1): it goes with
/// it, and does not come because the client subscribes again.
#[test]
fn a_clean_start_gives_up_what_waited() {
    for v5 in [false, true] {
        let mqtt = service(|_| ());
        let (mut peer, _) = Peer::connected(&mqtt, &connect(v5, "a").persistent());
        peer.subscribe("a", 1);
        leave(&mut peer);
        let mut peer = Peer::new(&mqtt);
        peer.v5 = v5;
        peer.script.downlink_end = 10;
        peer.send(&connect(v5, "a").bytes());
        assert!(peer.asks_held(), "so that it does not wait for ever");
        peer.subscribe("a", 1);
        let mut held =
            |offset| peer.reply_after(offset, &REPLY1, Duration::from_secs(1), true).unwrap();
        assert_eq!(held(9), Sending::Unwanted);
        assert_eq!(held(10), Sending::Kept, "it came after that");
    }
}

#[test]
fn a_session_that_is_resumed_to_be_the_last_gets_what_waited() {
    let mqtt = service(|_| ());
    let (mut peer, _) = Peer::connected(&mqtt, &connect(true, "a").persistent());
    peer.subscribe("a", 1);
    leave(&mut peer);
    let mut last = connect(true, "a");
    last.flags &= !2;
    let (mut peer, connack) = Peer::connected(&mqtt, &last);
    assert!(present(&connack) && peer.asks_held());
    assert_eq!(peer.reply_after(1, &REPLY1, Duration::from_secs(1), true), Ok(Sending::Kept));
    peer.end(CloseReason::ConnectionFailed);
    assert!(!present(&Peer::connected(&mqtt, &last).1));
}

#[test]
fn what_waited_waits_for_later_filters_for_some_seconds() {
    const OTHER: [(&str, &str); 2] = [("mqtt.topic", "b"), ("mqtt.qos", "1")];
    for v5 in [false, true] {
        let mqtt = service(|_| ());
        let (mut peer, _) = Peer::connected(&mqtt, &connect(v5, "a").persistent());
        peer.subscribe("a", 1);
        assert!(peer.asks_held());
        let held = |peer: &mut Peer, offset, headers: &[(&str, &str)]| {
            peer.reply_after(offset, headers, Duration::ZERO, true).unwrap()
        };
        for (offset, headers) in [(1, &OTHER), (2, &REPLY1), (3, &OTHER)] {
            assert_eq!(held(&mut peer, offset, headers), Sending::Kept);
        }
        assert_eq!(peer.answers().len(), 1, "that which is covered");
        assert_eq!(peer.reply(4, &OTHER), Ok(Sending::Unwanted), "it has not waited");
        let granted = peer.send(&packets::subscribe(v5, 9, &[("b", 1)]));
        assert_eq!(granted.iter().map(|sent| sent.first).collect::<Vec<_>>(), [0x90, 0x32, 0x32]);
        assert!(peer.actions().is_empty(), "they are settled when the client has confirmed them");

        assert_eq!(held(&mut peer, 5, &[("mqtt.topic", "c")]), Sending::Kept);
        assert!(peer.codec.deadline().is_some());
        peer.wait(Duration::from_secs(4));
        assert!(peer.actions().is_empty());
        peer.wait(Duration::from_secs(1));
        assert_eq!(peer.actions(), [Action::GiveUp(origin(5))]);
        assert_eq!(held(&mut peer, 6, &[("mqtt.topic", "c")]), Sending::Unwanted);
    }
}

#[test]
fn sessions_have_a_bound_in_bytes() {
    let filters: Vec<String> =
        (0..20).map(|number| format!("{number}/{}", "x".repeat(500))).collect();
    let filters: Vec<(&str, u8)> = filters.iter().map(|filter| (&**filter, 0)).collect();
    let most = 100_000;
    let mqtt = service(|section| section.max_session_bytes = most);
    let mut clients = Vec::new();
    // Of those who are away the first go.
    for client in 0..20 {
        let name = format!("away-{client}");
        let (mut peer, _) = Peer::connected(&mqtt, &connect(true, &name).persistent());
        let granted = peer.send(&packets::subscribe(true, 1, &filters));
        assert!(granted[0].body[3..].iter().all(|code| *code == 0), "{client}");
        leave(&mut peer);
        assert!(mqtt.sessions().1 <= most);
    }
    let (left, _) = mqtt.sessions();
    assert!((3..10).contains(&left), "{left}");
    // Of those who are here none does; there are no further subscriptions.
    for client in 0..20 {
        let name = format!("here-{client}");
        let (mut peer, _) = Peer::connected(&mqtt, &connect(true, &name).persistent());
        let granted = peer.send(&packets::subscribe(true, 1, &filters));
        clients.push((peer, granted[0].body.last() == Some(&0x97)));
    }
    let refused = clients.iter().filter(|(_, refused)| *refused).count();
    assert!((10..16).contains(&refused), "{refused}");
    assert!(mqtt.sessions().1 <= most + 20 * 1000);
    for (mut peer, _) in clients {
        peer.end(CloseReason::ClientClosed);
    }
    drop(Arc::into_inner(mqtt).expect("nobody has it any more"));
}

#[test]
fn other_settings_leave_sessions_as_they_are() {
    let former = service(|section| section.send_maximum = 1);
    let again = connect(true, "a").persistent();
    let (mut peer, _) = Peer::connected(&former, &again);
    peer.subscribe("a", 1);
    leave(&mut peer);
    let mut settings = Settings::new(ProtocolKind::Mqtt);
    settings.mqtt.send_maximum = 2;
    let now = Arc::new(former.with(&settings));
    assert_eq!(now.sessions(), former.sessions());
    let (mut peer, connack) = Peer::connected(&now, &again);
    assert!(present(&connack));
    let sent = (1..=3).map(|offset| peer.reply(offset, &REPLY1));
    let sent: Vec<_> = sent.collect::<Result<_, _>>().unwrap();
    assert_eq!(sent, [Sending::Kept; 3]);
    assert_eq!(peer.answers().len(), 2, "what the client has not confirmed");
    assert!(former.sessions().0 == 1, "it is the same session");
}
