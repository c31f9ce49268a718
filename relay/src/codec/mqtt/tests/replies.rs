//! What a client is sent.

use super::packets::{
    PUBACK, PUBCOMP, PUBREC, PUBREL, Sent, ack, packet, string, subscribe_with, unsubscribe,
};
use super::*;

const TOPIC: (&str, &str) = ("mqtt.topic", "a/b");
const QOS1: (&str, &str) = ("mqtt.qos", "1");
const QOS2: (&str, &str) = ("mqtt.qos", "2");

fn published(v5: bool, flags: u8, id: Option<u16>) -> Sent {
    let mut body = string("a/b");
    body.extend(id.map(u16::to_be_bytes).into_iter().flatten());
    body.extend(v5.then_some(0));
    body.extend(b"reply");
    Sent::new(0x30 | flags, &body)
}

#[test]
fn a_reply_is_sent_if_the_client_has_subscribed_to_its_topic() {
    for v5 in [false, true] {
        let mut peer = client(v5);
        assert_eq!(peer.reply(1, &[TOPIC]), Ok(Sending::Unwanted));
        peer.subscribe("a/+", 0);
        assert_eq!(peer.reply(2, &[TOPIC]), Ok(Sending::WithOutput));
        // As little as was granted.
        assert_eq!(peer.reply(3, &[TOPIC, QOS2, ("mqtt.retain", "1")]), Ok(Sending::WithOutput));
        assert_eq!(peer.answers(), [published(v5, 0, None), published(v5, 1, None)]);
        assert_eq!(peer.reply(4, &[("mqtt.topic", "c")]), Ok(Sending::Unwanted));
        peer.send(&unsubscribe(v5, 1, &["a/+"]));
        assert_eq!(peer.reply(5, &[TOPIC]), Ok(Sending::Unwanted));
        assert!(peer.answers().is_empty());
    }
}

#[test]
fn a_reply_that_cannot_be_published_is_refused() {
    let mut peer = client(true);
    peer.subscribe("#", 2);
    let long = "x".repeat(65_536);
    for headers in [
        &[][..],
        &[("mqtt.topic", "")],
        &[("mqtt.topic", "a/#")],
        &[TOPIC, ("mqtt.qos", "3")],
        &[TOPIC, ("mqtt.retain", "yes")],
        &[TOPIC, ("mqtt.expiry", "soon")],
        &[TOPIC, ("mqtt.payload_format", "2")],
        &[TOPIC, ("mqtt.response_topic", "+")],
        &[TOPIC, ("mqtt.user.a", &long)],
        &[TOPIC, ("mqtt.correlation", &long)],
    ] {
        assert_eq!(peer.reply(1, headers), Err(Unencodable), "{headers:?}");
    }
    assert!(peer.answers().is_empty());
}

#[test]
fn a_reply_has_the_properties_that_its_headers_name() {
    let headers = [
        TOPIC,
        ("http.status", "200"),
        ("mqtt.content_type", "first"),
        ("mqtt.content_type", "t"),
        ("mqtt.response_topic", "r"),
        ("mqtt.correlation", "c"),
        ("mqtt.payload_format", "1"),
        ("mqtt.expiry", "258"),
        ("mqtt.user.k", "v"),
    ];
    let mut peer = client(true);
    peer.send(&subscribe_with(true, 1, &[0x0b, 0x80, 1], &[("a/#", 0)]));
    peer.send(&subscribe_with(true, 1, &[0x0b, 7], &[("+/b", 0)]));
    assert_eq!(peer.reply(1, &headers), Ok(Sending::WithOutput));
    let mut body = string("a/b");
    let properties = [
        &[1, 1, 2, 0, 0, 1, 2][..],
        &[3, 0, 1, b't', 8, 0, 1, b'r', 9, 0, 1, b'c', 0x26, 0, 1, b'k', 0, 1, b'v'],
        &[0x0b, 0x80, 1, 0x0b, 7],
    ]
    .concat();
    body.push(u8::try_from(properties.len()).unwrap());
    body.extend(properties);
    body.extend(b"reply");
    assert_eq!(peer.answers(), [Sent::new(0x30, &body)]);
    // The older version has none.
    let mut peer = client(false);
    peer.subscribe("a/#", 0);
    assert_eq!(peer.reply(1, &headers), Ok(Sending::WithOutput));
    assert_eq!(peer.answers(), [published(false, 0, None)]);
}

#[test]
fn a_reply_of_qos_1_is_kept_until_it_is_confirmed() {
    for v5 in [false, true] {
        let mut peer = client(v5);
        peer.subscribe("a/b", 1);
        assert_eq!(peer.reply(1, &[TOPIC, QOS1]), Ok(Sending::Kept));
        assert_eq!(peer.answers(), [published(v5, 2, Some(1))]);
        assert!(peer.actions().is_empty());
        assert!(peer.send(&ack(PUBACK, 2)).is_empty());
        assert!(peer.actions().is_empty());
        assert!(peer.send(&ack(PUBACK, 1)).is_empty());
        assert_eq!(peer.actions(), [Action::Settle(origin(1))]);
    }
}

#[test]
fn a_reply_of_qos_2_is_kept_until_it_is_complete() {
    for v5 in [false, true] {
        let mut peer = client(v5);
        peer.subscribe("a/b", 2);
        assert_eq!(peer.reply(1, &[TOPIC, QOS2]), Ok(Sending::Kept));
        assert_eq!(peer.answers(), [published(v5, 4, Some(1))]);
        assert_eq!(peer.send(&ack(PUBREC, 1)), [Sent::ack(PUBREL, 1)]);
        assert!(peer.actions().is_empty());
        assert!(peer.send(&ack(PUBCOMP, 1)).is_empty());
        assert_eq!(peer.actions(), [Action::Settle(origin(1))]);
        let unknown = peer.send(&ack(PUBREC, 1));
        let expected = if v5 { Sent::new(PUBREL, &[0, 1, 0x92]) } else { Sent::ack(PUBREL, 1) };
        assert_eq!(unknown, [expected]);
    }
}

#[test]
fn a_client_may_refuse_a_reply() {
    let mut peer = client(true);
    peer.subscribe("a/b", 2);
    assert_eq!(peer.reply(1, &[TOPIC, QOS2]), Ok(Sending::Kept));
    peer.answers();
    assert!(peer.send(&packet(PUBREC, &[0, 1, 0x80])).is_empty());
    assert_eq!(peer.actions(), [Action::Settle(origin(1))]);
}

#[test]
fn the_wrong_acknowledgement_is_a_fault() {
    let mut peer = client(true);
    peer.subscribe("a/b", 2);
    assert_eq!(peer.reply(1, &[TOPIC, QOS2]), Ok(Sending::Kept));
    peer.answers();
    assert_eq!(peer.send(&ack(PUBACK, 1)), [Sent::disconnect(0x82)]);
}

#[test]
fn no_more_replies_are_under_way_than_the_client_takes() {
    let build = connect(true, "a").with_property(&[0x21, 0, 2]);
    let (mut peer, _) = Peer::connected(&service(|_| ()), &build);
    peer.subscribe("a/b", 1);
    for offset in 1..=4 {
        assert_eq!(peer.reply(offset, &[TOPIC, QOS1]), Ok(Sending::Kept));
    }
    // QoS 0 is not counted.
    assert_eq!(peer.reply(5, &[TOPIC]), Ok(Sending::WithOutput));
    let sent = peer.answers();
    let expected =
        [published(true, 2, Some(1)), published(true, 2, Some(2)), published(true, 0, None)];
    assert_eq!(sent, expected);
    assert_eq!(peer.send(&ack(PUBACK, 1)), [published(true, 2, Some(3))]);
    assert_eq!(peer.send(&ack(PUBACK, 2)), [published(true, 2, Some(4))]);
    assert_eq!(peer.actions(), [Action::Settle(origin(1)), Action::Settle(origin(2))]);
}

#[test]
fn what_waits_for_a_client_is_bounded() {
    let mqtt = service(|section| (section.send_maximum, section.max_waiting_bytes) = (1, 200));
    let (mut peer, _) = Peer::connected(&mqtt, &connect(true, "a"));
    peer.subscribe("a/b", 1);
    let before = peer.codec.held();
    let closed = (0..10).find(|offset| {
        assert_eq!(peer.reply(*offset, &[TOPIC, QOS1]), Ok(Sending::Kept));
        !peer.script.actions.is_empty()
    });
    assert!(closed.is_some_and(|replies| replies > 1));
    assert!(peer.codec.held() > before);
    assert_eq!(peer.actions(), [Action::Close(CloseReason::SlowReader)]);
    assert_eq!(peer.answers().pop(), Some(Sent::disconnect(0x97)));
}

#[test]
fn a_reply_that_is_too_large_for_the_client_is_refused() {
    let build = connect(true, "a").with_property(&[0x27, 0, 0, 0, 128]);
    let (mut peer, _) = Peer::connected(&service(|_| ()), &build);
    peer.subscribe("#", 1);
    let (fits, too_long) = ("x".repeat(116), "x".repeat(119));
    assert_eq!(peer.reply(1, &[("mqtt.topic", &fits)]), Ok(Sending::WithOutput));
    assert_eq!(peer.reply(2, &[("mqtt.topic", &too_long)]), Err(Unencodable));
}
