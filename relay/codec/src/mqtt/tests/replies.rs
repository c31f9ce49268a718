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
    // QoS 0 is not counted, and keeps its place.
    assert_eq!(peer.reply(5, &[TOPIC]), Ok(Sending::Kept));
    assert_eq!(peer.answers(), [published(true, 2, Some(1)), published(true, 2, Some(2))]);
    assert_eq!(peer.send(&ack(PUBACK, 1)), [published(true, 2, Some(3))]);
    let last = [published(true, 2, Some(4)), published(true, 0, None)];
    assert_eq!(peer.send(&ack(PUBACK, 2)), last);
    let (settled, released) = (|at| Action::Settle(origin(at)), Action::Release(origin(5)));
    assert_eq!(peer.actions(), [settled(1), settled(2), released]);
    assert_eq!(peer.reply(6, &[TOPIC]), Ok(Sending::WithOutput));
}

#[test]
fn beyond_a_bound_replies_stay_in_the_log_until_there_is_room() {
    let mqtt = service(|section| (section.send_maximum, section.max_waiting_bytes) = (1, 200));
    let (mut peer, _) = Peer::connected(&mqtt, &connect(true, "a"));
    peer.subscribe("a/b", 1);
    let before = peer.codec.kept_bytes();
    let taken = (0..10).find(|offset| {
        assert_eq!(peer.reply(*offset, &[TOPIC, QOS1]), Ok(Sending::Kept));
        peer.codec.is_full()
    });
    assert!(taken.is_some_and(|replies| replies > 1));
    assert!(peer.codec.kept_bytes() > before && !peer.codec.has_room());
    for id in 1..=10 {
        peer.send(&ack(PUBACK, id));
        if peer.codec.has_room() {
            break;
        }
    }
    assert!(peer.codec.has_room() && !peer.codec.is_full());
    assert!(peer.actions().iter().all(|action| matches!(action, Action::Settle(_))));
}

/// A PUBLISH of 5.0 with nothing but an interval.
fn expiring(flags: u8, id: Option<u16>, seconds: u32) -> Sent {
    let mut body = string("a/b");
    body.extend(id.map(u16::to_be_bytes).into_iter().flatten());
    body.extend([5, 2]);
    body.extend(seconds.to_be_bytes());
    body.extend(b"reply");
    Sent::new(0x30 | flags, &body)
}

#[test]
fn a_reply_is_told_how_long_it_is_still_good_for_and_not_sent_when_that_is_over() {
    const GOOD: [(&str, &str); 3] = [TOPIC, QOS1, ("mqtt.expiry", "10")];
    let seconds = Duration::from_secs;
    for v5 in [false, true] {
        let build = connect(v5, "a").with_property(&[0x21, 0, 1]);
        let narrow = service(|section| section.send_maximum = 1);
        let (mut peer, _) = Peer::connected(&narrow, &build);
        peer.subscribe("a/b", 1);
        // From the log, or from those that waited for the client.
        for held in [false, true] {
            assert_eq!(peer.reply_after(1, &GOOD, seconds(11), held), Ok(Sending::Unwanted));
        }
        assert!(peer.answers().is_empty());
        let sent = |flags, id, left| {
            if v5 { expiring(flags, Some(id), left) } else { published(false, flags, Some(id)) }
        };
        assert_eq!(peer.reply_after(2, &GOOD, seconds(4), false), Ok(Sending::Kept));
        assert_eq!(peer.answers(), [sent(2, 1, 6)]);
        // And from behind a full window.
        for (offset, waited) in [(3, 0), (4, 5), (5, 3)] {
            assert_eq!(peer.reply_after(offset, &GOOD, seconds(waited), false), Ok(Sending::Kept));
        }
        peer.wait(seconds(4));
        assert_eq!(peer.send(&ack(PUBACK, 1)), [sent(2, 2, 6)]);
        peer.wait(seconds(2));
        assert_eq!(peer.send(&ack(PUBACK, 2)), [sent(2, 3, 1)]);
        let done = [Action::Settle(origin(2)), Action::Settle(origin(3))];
        assert_eq!(peer.actions(), [&done[..], &[Action::GiveUp(origin(4))]].concat());
    }
}

#[test]
fn what_was_begun_is_ended_however_long_it_takes_and_tells_its_subscriptions() {
    const GOOD: [(&str, &str); 3] = [TOPIC, QOS1, ("mqtt.expiry", "10")];
    let mqtt = service(|_| ());
    let build = connect(true, "a").persistent();
    let (mut peer, _) = Peer::connected(&mqtt, &build);
    peer.send(&subscribe_with(true, 1, &[0x0b, 7], &[("a/#", 1)]));
    assert_eq!(peer.reply(1, &GOOD), Ok(Sending::Kept));
    let first = peer.answers().remove(0);
    peer.end(CloseReason::ConnectionFailed);
    let (mut peer, _) = Peer::connected(&mqtt, &build);
    assert_eq!(peer.reply_after(1, &GOOD, Duration::from_secs(99), true), Ok(Sending::Kept));
    let again = peer.answers().remove(0);
    let mut expected = first.body;
    // Length of the properties, the interval's identifier, the interval.
    assert_eq!(expected[7..10], [7, 2, 0], "{expected:?}");
    expected[12] = 0;
    assert_eq!((again.first, again.body), (first.first | 8, expected));
}

#[test]
fn no_local_keeps_a_client_from_what_it_has_published_itself() {
    let own = [TOPIC, ("mqtt.publisher", "client")];
    let others = [TOPIC, ("mqtt.publisher", "another")];
    let mut peer = client(true);
    peer.send(&subscribe_with(true, 1, &[], &[("a/#", 4)]));
    assert_eq!(peer.reply(1, &own), Ok(Sending::Unwanted));
    assert_eq!(peer.reply(2, &others), Ok(Sending::WithOutput));
    assert_eq!(peer.reply(3, &[TOPIC]), Ok(Sending::WithOutput));
    peer.send(&subscribe_with(true, 1, &[], &[("+/b", 0)]));
    assert_eq!(peer.reply(4, &own), Ok(Sending::WithOutput), "by another subscription");
    // A bridge wants nothing back, in whatever version.
    for v5 in [false, true] {
        let mut build = connect(v5, "client");
        build.level |= 0x80;
        let (mut peer, _) = Peer::connected(&service(|_| ()), &build);
        peer.subscribe("a/#", 0);
        assert_eq!(peer.reply(1, &own), Ok(Sending::Unwanted));
        assert_eq!(peer.reply(2, &others), Ok(Sending::WithOutput));
    }
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
