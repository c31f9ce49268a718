//! What the standards demand of a server that a client talks to.

use std::time::Duration;

use crate::mqtt::check::{Check, Checker};

use super::packets::{
    DISCONNECT, PING, PUBACK, PUBCOMP, PUBREC, PUBREL, Sent, ack, packet, publish, publish_with,
    string, subscribe, subscribe_with, unsubscribe,
};
use super::*;

const BOTH: [bool; 2] = [false, true];

#[test]
fn a_client_is_accepted_and_its_open_record_says_who_it_is() {
    for v5 in BOTH {
        let mut build = connect(v5, "meter-7");
        build.flags |= 0xc0;
        build.payload.extend(string("anna"));
        build.payload.extend(string("secret"));
        let mut peer = Peer::new(&service(|_| ()));
        let answers = peer.send(&build.bytes());
        assert_eq!((answers[0].first, &answers[0].body[..2]), (0x20, &[0, 0][..]));
        let version = if v5 { "5.0" } else { "3.1.1" };
        let Action::Begin { client, holds, headers, .. } = peer.actions().remove(0) else {
            panic!("nothing was begun")
        };
        assert_eq!((client.as_deref(), holds), (Some("meter-7"), false));
        let expected = [
            ("mqtt.client", "meter-7"),
            ("mqtt.version", version),
            ("mqtt.clean_start", "1"),
            ("mqtt.user", "anna"),
        ];
        assert_eq!(headers, named(&expected));
        assert_eq!(peer.send(&PING), [Sent::new(0xd0, &[])]);
    }
}

#[test]
fn a_client_of_the_newer_version_is_told_what_it_is_granted() {
    let mqtt = service(|section| {
        section.receive_maximum = 7;
        section.max_keep_alive_s = 60;
        section.session_expiry_s = 100;
    });
    let (_, connack) = Peer::connected(&mqtt, &connect(true, "").persistent());
    let body = &connack.body[3..];
    let has = |wanted: &[u8]| body.windows(wanted.len()).any(|part| part == wanted);
    assert!(has(&[0x11, 0, 0, 0, 100]), "session expiry");
    assert!(has(&[0x21, 0, 7]), "receive maximum");
    assert!(has(&[0x25, 0]), "no retained messages");
    assert!(has(&[0x2a, 0]), "no shared subscriptions");
    assert!(has(&[0x22, 0, 16]), "topic aliases");
    assert!(has(&[0x13, 0, 60]), "keep-alive");
    assert!(has(b"millrace-0000-"), "assigned client identifier");
}

#[test]
fn who_cannot_connect_is_told_why() {
    let refusal_v5 = |reason| vec![Sent::new(0x20, &[0, reason, 0])];
    let refusal_v3 = |code| vec![Sent::new(0x20, &[0, code])];
    let with = |v5, change: fn(&mut Build)| {
        let mut build = connect(v5, "client");
        change(&mut build);
        refused(&build.bytes())
    };
    let unsupported = Some(CloseReason::Unsupported);
    let malformed = Some(CloseReason::Malformed);
    assert_eq!(with(true, |build| build.level = 6), (refusal_v5(0x84), unsupported));
    assert_eq!(with(false, |build| build.level = 3), (refusal_v3(1), unsupported));
    assert_eq!(with(false, |build| build.name = "MQIsdp"), (refusal_v3(1), unsupported));
    // Bridges of versions that are not spoken: in the only form that they know.
    let old_bridge = |build: &mut Build| (build.name, build.level) = ("MQIsdp", 0x83);
    assert_eq!(with(false, old_bridge), (refusal_v3(1), unsupported));
    assert_eq!(with(false, |build| build.level = 0x86), (refusal_v3(1), unsupported));
    assert_eq!(with(false, |build| build.name = "HTTP"), (vec![], malformed));
    assert_eq!(with(true, |build| build.flags |= 1), (refusal_v5(0x81), malformed));
    assert_eq!(with(false, |build| build.flags |= 1), (vec![], malformed));
    assert_eq!(with(false, |build| build.flags |= 0x40), (vec![], malformed));
    assert_eq!(with(true, |build| build.flags |= 0x18), (refusal_v5(0x81), malformed));
    let no_id = |build: &mut Build| build.payload = string("");
    assert_eq!(
        with(false, |build| {
            build.payload = string("");
            build.flags = 0;
        }),
        (refusal_v3(2), malformed)
    );
    assert!(with(false, no_id).1.is_none());
    assert_eq!(with(true, |build| build.payload = string("a\nb")), (refusal_v5(0x85), malformed));
    assert_eq!(with(true, |build| build.payload.push(0)), (refusal_v5(0x81), malformed));
    // An authentication method; a property that does not belong there; one that comes twice.
    let method = |build: &mut Build| build.properties = vec![0x15, 0, 1, b'x'];
    assert_eq!(with(true, method), (refusal_v5(0x8c), unsupported));
    let data = |build: &mut Build| build.properties = vec![0x16, 0, 1, b'x'];
    assert_eq!(with(true, data), (refusal_v5(0x82), malformed));
    // A will that would not be a message; a packet size that CONNACK exceeds.
    let long_will = |build: &mut Build| {
        *build = build.clone().with_will(&[], 0);
        build.payload.truncate(build.payload.len() - string("gone").len());
        build.payload.extend(string(&"x".repeat(LIMIT as usize + 1)));
    };
    assert_eq!(with(true, long_will), (refusal_v5(0x97), unsupported));
    assert_eq!(with(false, long_will), (refusal_v3(3), unsupported));
    let tiny = |build: &mut Build| build.properties = vec![0x27, 0, 0, 0, 8];
    assert_eq!(with(true, tiny), (refusal_v5(0x95), Some(CloseReason::OversizedMessage)));
    assert_eq!(with(true, |build| build.properties = vec![1, 0]), (refusal_v5(0x82), malformed));
    let twice = |build: &mut Build| build.properties = vec![0x21, 0, 1, 0x21, 0, 1];
    assert_eq!(with(true, twice), (refusal_v5(0x82), malformed));
    assert_eq!(with(true, |build| build.properties = vec![0x7f]), (refusal_v5(0x81), malformed));
    // A will that is retained.
    let retained = connect(true, "client").with_will(&[], 0x20);
    assert_eq!(refused(&retained.bytes()), (refusal_v5(0x9a), unsupported));
    // Something else comes first.
    assert_eq!(refused(&PING), (vec![], malformed));
    assert_eq!(refused(&publish(false, 0, 0, "a", "x")), (vec![], malformed));
}

#[test]
fn a_service_without_a_server_refuses() {
    for (v5, answer) in [(false, vec![0, 3]), (true, vec![0, 0x88, 0])] {
        let mut peer = Peer::new(&service(|_| ()));
        peer.script.refusal = Some(millrace_model::Refusal::NoServer);
        assert_eq!(peer.send(&connect(v5, "a").bytes()), [Sent::new(0x20, &answer)]);
        assert_eq!(peer.actions().pop(), Some(Action::Close(CloseReason::NoServer)));
        assert!(peer.end(CloseReason::NoServer).is_empty());
    }
}

#[test]
fn faults_end_the_connection_with_their_reason() {
    let malformed = CloseReason::Malformed;
    let twice = connect(true, "again").bytes();
    let cases: Vec<(&str, Vec<u8>, u8, CloseReason)> = vec![
        ("a second CONNECT", twice, 0x82, malformed),
        ("a server's packet", packet(0xd0, &[]), 0x82, malformed),
        ("packet type 0", packet(0, &[]), 0x81, malformed),
        ("QoS 3", publish(true, 6, 1, "a", ""), 0x81, malformed),
        ("DUP with QoS 0", publish(true, 8, 0, "a", ""), 0x81, malformed),
        ("packet identifier 0", publish(true, 2, 0, "a", ""), 0x81, malformed),
        ("a wildcard", publish(true, 0, 0, "a/+", ""), 0x90, malformed),
        ("no topic", publish(true, 0, 0, "", ""), 0x82, malformed),
        ("NUL", publish(true, 0, 0, "a\0", ""), 0x81, malformed),
        ("a surrogate", packet(0x30, &[0, 3, 0xed, 0xa0, 0x80, 0]), 0x81, malformed),
        ("retained", publish(true, 1, 0, "a", ""), 0x9a, CloseReason::Unsupported),
        ("alias 0", publish_with(true, 0, 0, "a", &[0x23, 0, 0], ""), 0x94, malformed),
        ("alias 17", publish_with(true, 0, 0, "a", &[0x23, 0, 17], ""), 0x94, malformed),
        ("an unknown alias", publish_with(true, 0, 0, "", &[0x23, 0, 1], ""), 0x82, malformed),
        ("an identifier", publish_with(true, 0, 0, "a", &[0x0b, 1], ""), 0x82, malformed),
        ("format 2", publish_with(true, 0, 0, "a", &[1, 2], ""), 0x82, malformed),
        ("response to +", publish_with(true, 0, 0, "a", &[8, 0, 1, b'+'], ""), 0x82, malformed),
        ("padded length", vec![0x30, 0x80, 0], 0x81, malformed),
        ("endless length", vec![0x30, 0xff, 0xff, 0xff, 0xff], 0x81, malformed),
        ("too long", vec![0x30, 0xff, 0xff, 0x7f], 0x95, CloseReason::OversizedMessage),
        ("flags of SUBSCRIBE", packet(0x80, &[0, 1, 0, 0, 1, b'a', 0]), 0x81, malformed),
        ("no filter", packet(0x82, &[0, 1, 0]), 0x82, malformed),
        ("options", subscribe(true, 1, &[("a", 0x40)]), 0x81, malformed),
        ("retain handling 3", subscribe(true, 1, &[("a", 0x30)]), 0x82, malformed),
        ("QoS 3 wanted", subscribe(true, 1, &[("a", 3)]), 0x81, malformed),
        ("identifier 0", subscribe_with(true, 1, &[0x0b, 0], &[("a", 0)]), 0x82, malformed),
        ("flags of PUBREL", packet(0x60, &[0, 1]), 0x81, malformed),
        ("flags of PING", packet(0xc1, &[]), 0x81, malformed),
        ("a PING that is too long", packet(0xc0, &[0]), 0x81, malformed),
        ("AUTH", packet(0xf0, &[]), 0x82, malformed),
        ("expiry from 0", packet(0xe0, &[0, 5, 0x11, 0, 0, 0, 1]), 0x82, malformed),
    ];
    for (name, bytes, reason, close) in cases {
        let mut peer = client(true);
        assert_eq!(peer.send(&bytes), [Sent::disconnect(reason)], "{name}");
        assert_eq!(peer.actions(), [Action::Close(close)], "{name}");
        assert!(peer.send(&PING).is_empty(), "{name}: it goes on");
    }
    let mut peer = client(false);
    assert!(peer.send(&publish(false, 0, 0, "a/#", "")).is_empty());
    assert_eq!(peer.actions(), [Action::Close(malformed)]);
}

#[test]
fn a_payload_beyond_the_limit_is_refused_and_one_at_the_limit_is_not() {
    let payload = "x".repeat(LIMIT as usize);
    let mut peer = client(true);
    assert!(peer.send(&publish(true, 0, 0, "a", &payload)).is_empty());
    assert_eq!(peer.actions(), [message(&[("mqtt.topic", "a")], &payload)]);
    // Within what the client may send: told by the acknowledgement, in its turn, if there is one.
    let longer = format!("{payload}x");
    assert!(peer.send(&publish(true, 2, 1, "a", "")).is_empty());
    assert!(peer.send(&publish(true, 2, 2, "a", &longer)).is_empty());
    assert!(peer.send(&publish(true, 4, 3, "a", &longer)).is_empty());
    let refused = |first, id| Sent::new(first, &[0, id, 0x97]);
    assert_eq!(peer.delivered(2), [Sent::ack(PUBACK, 1), refused(PUBACK, 2), refused(PUBREC, 3)]);
    assert_eq!(peer.actions().len(), 1, "one of them is a record");
    // The packet identifier is free.
    assert!(peer.send(&publish(true, 4, 3, "a", "")).is_empty());
    assert_eq!(peer.delivered(3), [Sent::ack(PUBREC, 3)]);
    peer.actions();
    let answers = peer.send(&publish(true, 0, 0, "a", &longer));
    assert_eq!(answers, [Sent::disconnect(0x97)]);
    assert_eq!(peer.actions(), [Action::Close(CloseReason::OversizedMessage)]);
    // The older version has no word for it.
    let mut peer = client(false);
    assert!(peer.send(&publish(false, 2, 1, "a", &longer)).is_empty());
    assert_eq!(peer.actions(), [Action::Close(CloseReason::OversizedMessage)]);
}

#[test]
fn what_is_published_becomes_a_record_with_its_headers() {
    let mut peer = client(true);
    let properties = [
        &[1, 1, 2, 0, 0, 0, 9][..],
        &[3, 0, 4, b't', b'e', b'x', b't', 8, 0, 1, b'r', 9, 0, 2, 0xff, 0],
        &[0x26, 0, 1, b'k', 0, 1, b'v', 0x26, 0, 1, b'k', 0, 1, b'w'],
    ]
    .concat();
    assert!(peer.send(&publish_with(true, 0, 0, "a/b", &properties, "hello")).is_empty());
    let Action::Message { headers, payload } = peer.actions().remove(0) else { panic!() };
    assert_eq!(payload, b"hello");
    let mut expected = named(&[
        ("mqtt.topic", "a/b"),
        ("mqtt.content_type", "text"),
        ("mqtt.response_topic", "r"),
    ]);
    expected.push(("mqtt.correlation".into(), vec![0xff, 0]));
    expected.extend(named(&[
        ("mqtt.payload_format", "1"),
        ("mqtt.expiry", "9"),
        ("mqtt.user.k", "v"),
        ("mqtt.user.k", "w"),
    ]));
    assert_eq!(headers, expected);

    // The older version has no word against retained messages.
    let mut peer = client(false);
    assert!(peer.send(&publish(false, 0x0b, 5, "a", "x")).is_empty());
    let expected = [
        ("mqtt.topic", "a"),
        ("mqtt.qos", "1"),
        ("mqtt.retain", "1"),
        ("mqtt.packet_id", "5"),
        ("mqtt.dup", "1"),
    ];
    assert_eq!(peer.actions(), [message(&expected, "x")]);
}

#[test]
fn more_user_properties_than_a_record_takes_are_refused() {
    let property = [0x26, 0, 1, b'k', 0, 0];
    let mut body = string("a");
    body.extend([0xd8, 4]); // 600 bytes
    body.extend(property.repeat(100));
    let mut peer = client(true);
    assert!(peer.send(&packet(0x30, &body)).is_empty());
    body.splice(3..5, [0xde, 4]);
    body.extend(property);
    assert_eq!(peer.send(&packet(0x30, &body)), [Sent::disconnect(0x97)]);
    let mut peer = client(true);
    body.splice(3..3, [0, 1]);
    assert_eq!(peer.send(&packet(0x32, &body)), [Sent::new(PUBACK, &[0, 1, 0x97])]);
    assert!(peer.actions().is_empty());
}

#[test]
fn a_topic_alias_stands_for_its_topic() {
    let mut peer = client(true);
    let alias = [0x23, 0, 16];
    for (topic, expected) in [("a", "a"), ("", "a"), ("b", "b"), ("", "b")] {
        peer.send(&publish_with(true, 0, 0, topic, &alias, ""));
        assert_eq!(peer.actions(), [message(&[("mqtt.topic", expected)], "")]);
    }
}

#[test]
fn acknowledgements_come_after_kafkas_in_order() {
    for v5 in BOTH {
        let mut peer = client(v5);
        assert!(peer.send(&publish(v5, 2, 1, "a", "")).is_empty());
        assert!(peer.send(&publish(v5, 4, 2, "a", "")).is_empty());
        assert!(peer.send(&publish(v5, 0, 0, "a", "")).is_empty());
        assert!(peer.send(&publish(v5, 2, 3, "a", "")).is_empty());
        assert_eq!(peer.delivered(1), [Sent::ack(PUBACK, 1)]);
        assert_eq!(peer.delivered(3), [Sent::ack(PUBREC, 2)]);
        assert_eq!(peer.delivered(4), [Sent::ack(PUBACK, 3)]);
        assert_eq!(peer.send(&ack(PUBREL, 2)), [Sent::ack(PUBCOMP, 2)]);
    }
}

#[test]
fn a_message_of_qos_2_becomes_one_record_however_often_it_comes() {
    for v5 in BOTH {
        let mut peer = client(v5);
        assert!(peer.send(&publish(v5, 4, 7, "a", "x")).is_empty());
        assert!(peer.send(&publish(v5, 0x0c, 7, "a", "x")).is_empty());
        assert_eq!(peer.delivered(1), [Sent::ack(PUBREC, 7), Sent::ack(PUBREC, 7)]);
        assert_eq!(peer.send(&publish(v5, 0x0c, 7, "a", "x")), [Sent::ack(PUBREC, 7)]);
        assert_eq!(peer.actions().len(), 1);
        assert_eq!(peer.send(&ack(PUBREL, 7)), [Sent::ack(PUBCOMP, 7)]);
        let unknown = peer.send(&ack(PUBREL, 7));
        let expected = if v5 { Sent::new(PUBCOMP, &[0, 7, 0x92]) } else { Sent::ack(PUBCOMP, 7) };
        assert_eq!(unknown, [expected]);
        // The identifier is free, and means another message.
        assert!(peer.send(&publish(v5, 4, 7, "a", "y")).is_empty());
        assert_eq!(peer.actions().len(), 1);
    }
}

#[test]
fn a_release_before_its_time_is_a_fault() {
    let mut peer = client(true);
    peer.send(&publish(true, 4, 7, "a", "x"));
    assert_eq!(peer.send(&ack(PUBREL, 7)), [Sent::disconnect(0x82)]);
}

#[test]
fn a_client_that_sends_more_than_it_may_is_slowed_and_not_cut_off() {
    for v5 in BOTH {
        let (mut peer, _) =
            Peer::connected(&service(|section| section.receive_maximum = 4), &connect(v5, "a"));
        // All at once, in both qualities: what the codec was given is kept, and nothing of it is lost.
        let all: Vec<u8> = (1..=9).flat_map(|id| publish(v5, 2 << (id % 2), id, "a", "")).collect();
        assert!(peer.send(&all).is_empty());
        assert!(!peer.codec.reads());
        assert_eq!(peer.actions().len(), 4);
        assert_eq!(peer.delivered(1).len(), 1);
        assert!(!peer.codec.reads(), "until there is some room");
        assert_eq!(peer.delivered(2).len(), 1);
        assert!(!peer.codec.reads(), "the room is used up by what was kept");
        assert_eq!(peer.actions().len(), 2);
        assert_eq!(peer.delivered(6).len(), 4);
        assert_eq!(peer.delivered(9).len(), 3);
        assert_eq!(peer.actions().len(), 3);
        assert!(peer.codec.reads());
    }
}

#[test]
fn any_number_of_messages_of_qos_2_may_be_begun_before_the_first_is_ended() {
    for v5 in BOTH {
        let mqtt = service(|_| {});
        let (mut peer, _) = Peer::connected(&mqtt, &connect(v5, "a"));
        let all: Vec<u8> = (1..=60_000).flat_map(|id| publish(v5, 4, id, "a", "")).collect();
        let mut answers = peer.send(&all);
        let mut count = 0;
        loop {
            let messages = peer.actions();
            assert!(messages.iter().all(|action| matches!(action, Action::Message { .. })));
            if messages.is_empty() {
                break;
            }
            count += messages.len();
            answers.extend(peer.delivered(count as u64));
        }
        assert_eq!((count, answers.len()), (60_000, 60_000));
        // A bit for each identifier, and what is on its way to Kafka.
        assert!(mqtt.sessions().1 < 64_000, "{:?}", mqtt.sessions());
        for id in 1..=60_000 {
            assert_eq!(peer.send(&ack(PUBREL, id)), [Sent::ack(PUBCOMP, id)]);
        }
    }
}

#[test]
fn beyond_what_was_granted_they_may_be_begun_only_while_there_is_room() {
    for v5 in BOTH {
        let mqtt = service(|section| {
            section.receive_maximum = 4;
            section.max_session_bytes = 1;
        });
        let (mut peer, _) = Peer::connected(&mqtt, &connect(v5, "a"));
        for id in 1..=4 {
            peer.send(&publish(v5, 4, id, "a", ""));
            assert_eq!(peer.delivered(id.into()), [Sent::ack(PUBREC, id)]);
        }
        // One that comes again is none more, and one that has ended makes room.
        assert_eq!(peer.send(&publish(v5, 4, 4, "a", "")), [Sent::ack(PUBREC, 4)]);
        assert_eq!(peer.send(&ack(PUBREL, 1)), [Sent::ack(PUBCOMP, 1)]);
        assert!(peer.send(&publish(v5, 4, 5, "a", "")).is_empty());
        assert_eq!(peer.delivered(5), [Sent::ack(PUBREC, 5)]);
        peer.actions();
        let told = peer.send(&publish(v5, 4, 6, "a", ""));
        let expected: &[Sent] = if v5 { &[Sent::disconnect(0x93)] } else { &[] };
        assert_eq!(told, expected);
        assert_eq!(peer.actions(), [Action::Close(CloseReason::MemoryLimit)]);
    }
}

#[test]
fn whoever_waits_for_its_acknowledgement_is_owed_something() {
    let mut peer = client(true);
    assert!(!peer.codec.owes());
    peer.send(&publish(true, 2, 1, "a", ""));
    assert!(peer.codec.owes());
    peer.delivered(1);
    assert!(!peer.codec.owes());
}

#[test]
fn subscriptions_are_granted_or_not_filter_by_filter() {
    let filters = [("a/+", 1), ("a#", 0), ("$share/g/a", 0), ("#", 2)];
    for (v5, codes) in [(false, vec![1, 0x80, 0x80, 2]), (true, vec![0, 1, 0x8f, 0x9e, 2])] {
        let mut peer = client(v5);
        let answers = peer.send(&subscribe(v5, 3, &filters));
        let expected = [&[0, 3][..], &codes].concat();
        assert_eq!(answers, [Sent::new(0x90, &expected)]);
        assert!(peer.actions().is_empty(), "servers are told only if they want to be");
        let answers = peer.send(&unsubscribe(v5, 4, &["#", "b"]));
        let expected: &[u8] = if v5 { &[0, 4, 0, 0, 0x11] } else { &[0, 4] };
        assert_eq!(answers, [Sent::new(0xb0, expected)]);
    }
}

#[test]
fn servers_are_told_of_subscriptions_if_they_want_to_be() {
    let mqtt = service(|section| section.tell_subscriptions = true);
    let (mut peer, _) = Peer::connected(&mqtt, &connect(true, "a"));
    peer.send(&subscribe(true, 3, &[("a/+", 1), ("a#", 0), ("b", 0)]));
    peer.send(&unsubscribe(true, 4, &["b", "c"]));
    let told = [
        message(&[("mqtt.packet", "subscribe")], "1 a/+\n0 b\n"),
        message(&[("mqtt.packet", "unsubscribe")], "b\n"),
    ];
    assert_eq!(peer.actions(), told);
    // They are numbered with the messages.
    assert!(peer.send(&publish(true, 2, 1, "a", "")).is_empty());
    assert!(peer.delivered(2).is_empty());
    assert_eq!(peer.delivered(3), [Sent::ack(PUBACK, 1)]);
}

#[test]
fn subscriptions_have_a_limit() {
    let mqtt = service(|section| section.max_subscriptions = 1);
    let (mut peer, _) = Peer::connected(&mqtt, &connect(true, "a"));
    let filters = [("a", 1), ("b", 1), ("a", 2)];
    let answers = peer.send(&subscribe(true, 3, &filters));
    assert_eq!(answers, [Sent::new(0x90, &[0, 3, 0, 1, 0x97, 2])]);
}

#[test]
fn silence_ends_a_connection_after_one_and_a_half_times_the_keep_alive() {
    for v5 in BOTH {
        let mut build = connect(v5, "a");
        build.keep_alive = 10;
        let (mut peer, _) = Peer::connected(&service(|_| ()), &build);
        assert_eq!(peer.codec.deadline(), Some(peer.now + Duration::from_secs(15)));
        peer.wait(Duration::from_secs(14));
        assert_eq!(peer.send(&PING).len(), 1);
        peer.wait(Duration::from_millis(14_999));
        assert!(peer.actions().is_empty());
        // While the relay itself does not read, silence is not the client's.
        peer.codec.not_read(peer.now);
        peer.wait(Duration::from_millis(14_999));
        assert!(peer.actions().is_empty());
        peer.wait(Duration::from_millis(1));
        assert_eq!(peer.actions(), [Action::Close(CloseReason::IdleTimeout)]);
        let expected = if v5 { vec![Sent::disconnect(0x8d)] } else { vec![] };
        assert_eq!(peer.answers(), expected);
    }
    let peer = client(true);
    assert_eq!(peer.codec.deadline(), None);
}

#[test]
fn a_client_has_a_time_to_say_who_it_is() {
    let mut peer = Peer::new(&service(|_| ()));
    let bytes = connect(true, "a").bytes();
    assert!(peer.send(&bytes[..bytes.len() - 1]).is_empty());
    peer.wait(Duration::from_millis(9999));
    assert!(peer.actions().is_empty());
    peer.wait(Duration::from_millis(1));
    assert_eq!(peer.actions(), [Action::Close(CloseReason::HandshakeTimeout)]);
}

#[test]
fn the_will_is_published_unless_the_client_says_good_bye() {
    let will = [("mqtt.will", "1"), ("mqtt.topic", "will/topic"), ("mqtt.qos", "1")];
    for v5 in BOTH {
        let build = connect(v5, "a").with_will(&[], 8);
        let (mut peer, _) = Peer::connected(&service(|_| ()), &build);
        assert_eq!(peer.end(CloseReason::ConnectionFailed), [message(&will, "gone")]);

        let (mut peer, _) = Peer::connected(&service(|_| ()), &build);
        assert!(peer.send(&DISCONNECT).is_empty());
        assert_eq!(peer.actions(), [Action::Close(CloseReason::ClientClosed)]);
        assert!(peer.end(CloseReason::ClientClosed).is_empty());

        let (mut peer, _) = Peer::connected(&service(|_| ()), &build);
        peer.send(&packet(0xc1, &[]));
        let close = Action::Close(CloseReason::Malformed);
        assert_eq!(peer.actions(), [message(&will, "gone"), close]);
        assert!(peer.end(CloseReason::Malformed).is_empty());
    }
    // Disconnect with will message. The delay is over when the session ends.
    let delay = [0x18, 0, 0, 0, 9, 3, 0, 1, b't'];
    let close = Action::Close(CloseReason::ClientClosed);
    let delayed = [
        ("mqtt.will", "1"),
        ("mqtt.topic", "will/topic"),
        ("mqtt.qos", "1"),
        ("mqtt.content_type", "t"),
        ("mqtt.will_delay", "9"),
    ];
    for (kept, told) in [(true, &delayed[..]), (false, &delayed[..4])] {
        let build = connect(true, "a").with_will(&delay, 8);
        let build = if kept { build.persistent() } else { build };
        let (mut peer, _) = Peer::connected(&service(|_| ()), &build);
        peer.send(&packet(0xe0, &[4]));
        assert_eq!(peer.actions(), [message(told, "gone"), close.clone()]);
    }
}

#[test]
fn a_client_of_the_newer_version_is_told_why_the_relay_ends_it() {
    for (reason, code) in [
        (CloseReason::RelayStop, 0x8b),
        (CloseReason::TakenOver, 0x8e),
        (CloseReason::SlowReader, 0x97),
        (CloseReason::MemoryLimit, 0x97),
        (CloseReason::ClosedByServer, 0x98),
        (CloseReason::Disconnected, 0x98),
    ] {
        let mut peer = client(true);
        peer.codec.farewell(reason, peer.now, &mut peer.script);
        assert_eq!(peer.answers(), [Sent::disconnect(code)]);
        let mut peer = client(false);
        peer.codec.farewell(reason, peer.now, &mut peer.script);
        assert!(peer.answers().is_empty());
    }
}

#[test]
fn half_a_packet_at_the_end_is_told() {
    let mut peer = client(true);
    peer.send(&publish(true, 0, 0, "a", "x")[..3]);
    assert!(!peer.codec.end_of_stream(peer.now, &mut peer.script));
    assert_eq!(peer.actions(), [Action::Close(CloseReason::EndOfStream)]);
    let mut peer = client(true);
    assert!(peer.codec.end_of_stream(peer.now, &mut peer.script));
}

#[test]
fn who_may_connect_is_asked_and_what_comes_meanwhile_waits() {
    /// Answers when the test lets it.
    #[derive(Debug)]
    struct OnCall(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);
    impl Check for OnCall {
        fn allows(&self, client: &str, user: Option<&str>, password: Option<&[u8]>) -> bool {
            self.0.lock().unwrap().recv().unwrap();
            (client, user, password) == ("meter", Some("anna"), Some(b"secret"))
        }
    }
    for v5 in BOTH {
        let (call, called) = std::sync::mpsc::channel();
        let mut mqtt = Arc::into_inner(service(|_| ())).unwrap();
        mqtt.checker = Arc::new(Checker::start(OnCall(called.into())).into());
        let mqtt = Arc::new(mqtt);
        let wrong = if v5 { vec![0, 0x86, 0] } else { vec![0, 4] };
        for (password, right) in [("secret", true), ("Secret", false)] {
            let mut build = connect(v5, "meter");
            build.flags |= 0xc0;
            build.payload.extend(string("anna"));
            build.payload.extend(string(password));
            let bytes = [build.bytes(), publish(v5, 0, 0, "a", "x"), PING.to_vec()].concat();
            let mut peer = Peer::new(&mqtt);
            let (first, second) = bytes.split_at(bytes.len() - 1);
            assert!(peer.send(first).is_empty());
            assert!(peer.send(second).is_empty());
            assert!(peer.codec.reads() && peer.actions().is_empty());
            call.send(()).unwrap();
            while peer.script.actions.is_empty() {
                peer.wait(Duration::from_millis(5));
            }
            let (answers, actions) = (peer.answers(), peer.actions());
            if right {
                assert_eq!(answers.len(), 2);
                assert_eq!(answers[1], Sent::new(0xd0, &[]));
                assert_eq!(actions[1], message(&[("mqtt.topic", "a")], "x"));
            } else {
                assert_eq!(answers, [Sent::new(0x20, &wrong)]);
                assert_eq!(actions, [Action::Close(CloseReason::NotAuthorized)]);
            }
        }
    }
}
