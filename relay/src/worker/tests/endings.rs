//! How connections end, and what becomes of the replies to them.

use crate::model::{DeliveryFailure, HeaderList, UndeliveredReason};

use super::*;

fn reset() -> ReceiveEnd {
    ReceiveEnd::Failed(std::io::ErrorKind::ConnectionReset.into())
}

#[test]
fn a_client_that_reads_nothing_is_closed_though_no_offset_waits_for_it() {
    let mut config = config("", PLAIN);
    config.relay.reply_timeout_ms = 50;
    let mut stage = Stage::new(&config);
    let (stalled, other) = (stage.accept(LINES, "192.0.2.1:1"), stage.accept(LINES, "192.0.2.1:2"));
    stage.worker.engine().set_peer(stalled, Peer::Stalls);
    // Replies that waited for their client: no offset of the downlink stays for them.
    for (socket, generation) in [(stalled, 1), (other, 2)] {
        let receipt = Receipt::Held { delivery: u64::from(generation), part: 0, last: true };
        stage.command(key(socket, generation), &[(Command::Reply, receipt, b"waited")]);
    }
    stage.wait_for("it is closed", |stage| stage.closed(CloseReason::SlowReader) == 1);
    stage.settle();
    assert!(!stage.worker.engine().is_open(stalled) && stage.worker.engine().is_open(other));
}

#[test]
fn a_connection_says_what_became_of_its_replies_in_their_order() {
    let mut config = config("", PLAIN);
    config.relay.reply_pause_bytes = 100;
    config.relay.reply_limit_bytes = 200;
    let mut stage = Stage::new(&config);
    let socket = stage.accept(LINES, "192.0.2.1:1");
    stage.worker.engine().set_peer(socket, Peer::Stalls);
    // Nobody listens, so that the ring fills up in between.
    let gone: Vec<i64> = (0..4090).collect();
    stage.reply(key(SocketId(7), 9), &gone, b"x");
    let wanted: Vec<i64> = (5000..5020).collect();
    stage.reply(key(socket, 1), &wanted, &[b'x'; 50]);
    stage.worker.engine().end(socket, reset());
    let mut returned = Vec::new();
    for _ in 0..10 {
        stage.step();
        returned.extend(stage.returned());
    }
    let of_connection = returned.iter().skip(4090).filter_map(|one| match one {
        Return::Undelivered { offset, .. } => Some(offset.0),
        Return::Left(_) => Some(i64::MAX),
        Return::Postponed { .. } => None,
        other => panic!("{other:?}"),
    });
    let said: Vec<i64> = of_connection.collect();
    let (left, sent) = said.split_last().expect("something was said");
    assert_eq!(*left, i64::MAX, "what it was not given comes last: {said:?}");
    assert!(!sent.is_empty() && sent.is_sorted(), "{said:?}");
}

/// A client whose replies wait for it, which has ended its side and then been sent a reply.
fn half_closed(peer: Peer, other: &str) -> (Stage, SocketId) {
    let other = format!("identity = \"address\"\n{other}");
    let mut config = config("", &other);
    config.relay.half_close_ms = 100;
    let mut stage = Stage::new(&config);
    let socket = stage.accept(OTHER, "192.0.2.1:1");
    if other.contains("websocket") {
        let request = "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stage.bring(socket, request.as_bytes());
        stage.settle();
    }
    stage.worker.engine().end(socket, ReceiveEnd::EndOfStream);
    stage.step();
    stage.worker.engine().set_peer(socket, peer);
    stage.reply(key(socket, 1), &[5], b"late");
    stage.settle();
    (stage, socket)
}

#[test]
fn a_reply_to_a_client_that_has_closed_waits_for_it_however_it_ended() {
    for other in [PLAIN, "protocol = \"websocket\""] {
        let (mut stage, socket) = half_closed(Peer::Gone, other);
        stage.wait_for("the connection is over", |stage| !stage.worker.engine().is_open(socket));
        let returned = stage.returned();
        let (offset, reason) = (ReplyOffset(5), UndeliveredReason::ConnectionLost);
        assert_eq!(returned, [Return::Undelivered { key: key(socket, 1), offset, reason }]);
        assert_eq!(stage.stats.sum(|service| &service.replies_sent), 0);
    }
}

#[test]
fn a_reply_to_a_client_that_has_only_ended_its_side_is_sent() {
    let (mut stage, socket) = half_closed(Peer::Takes, PLAIN);
    stage.wait_for("the connection is over", |stage| !stage.worker.engine().is_open(socket));
    assert_eq!(stage.returned(), []);
    assert_eq!(stage.stats.sum(|service| &service.replies_sent), 1);
    assert_eq!(stage.sent(socket), b"late\n");
    assert_eq!(stage.downlink.settled(), ReplyOffset(6));
}

/// What a client gets whose first message Kafka refuses.
fn refused(other: &str, bytes: &[u8], failure: DeliveryFailure) -> Vec<u8> {
    let mut stage = Stage::new(&config("", other));
    let socket = stage.accept(OTHER, "192.0.2.1:1");
    stage.bring(socket, bytes);
    stage.settle();
    let before = stage.sent(socket).len();
    stage
        .command(key(socket, 1), &[(Command::Refused { failure, message: 1 }, Receipt::None, b"")]);
    stage.settle();
    assert_eq!(stage.closed(CloseReason::RefusedByKafka), 1);
    stage.sent(socket)[before..].to_vec()
}

#[test]
fn kafkas_refusal_is_told_in_the_words_of_each_protocol() {
    let (too_large, other) = (DeliveryFailure::TooLarge, DeliveryFailure::Other);
    assert_eq!(refused(PLAIN, b"a line\n", too_large), b"", "it has no word for that");

    let http = "protocol = \"http\"";
    let request = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi";
    let starts = |answer: Vec<u8>, with: &str| {
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with(with), "{answer:?}");
    };
    starts(refused(http, request, too_large), "HTTP/1.1 413 ");
    starts(refused(http, request, other), "HTTP/1.1 503 ");
    let two = [&request[..], &request[..]].concat();
    starts(refused(http, &two, too_large), "HTTP/1.1 413 ");

    let websocket = "protocol = \"websocket\"";
    let mut stream = b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        .to_vec();
    stream.extend([0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
    let close = refused(websocket, &stream, too_large);
    assert_eq!((close[0], &close[2..4]), (0x88, &1011_u16.to_be_bytes()[..]), "{close:?}");

    // CONNECT with clean start and the name `c`; PUBLISH of QoS 1 to `t`.
    let mut stream = b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01c".to_vec();
    stream.extend(b"\x32\x07\x00\x01t\x00\x01\x00x");
    let mqtt = "protocol = \"mqtt\"\nmqtt = {}";
    assert_eq!(refused(mqtt, &stream, too_large)[..3], [0xe0, 1, 0x95]);
    assert_eq!(refused(mqtt, &stream, other)[..3], [0xe0, 1, 0x83]);
}

#[test]
fn a_client_that_is_owed_a_reply_from_before_a_refusal_stays_for_it() {
    let mut stage = Stage::new(&config("", "protocol = \"http\""));
    let socket = stage.accept(OTHER, "192.0.2.1:1");
    stage.bring(socket, &b"GET / HTTP/1.1\r\nHost: h\r\n\r\n".repeat(2));
    stage.settle();
    for (message, closed) in [(2, 0), (1, 1)] {
        let refused = Command::Refused { failure: DeliveryFailure::Other, message };
        stage.command(key(socket, 1), &[(refused, Receipt::None, b"")]);
        stage.settle();
        assert_eq!(stage.closed(CloseReason::RefusedByKafka), closed);
        assert_eq!(stage.sent(socket).is_empty(), closed == 0);
    }
}

#[test]
fn what_kafka_acknowledges_behind_a_refused_message_confirms_nothing() {
    let mut stage = Stage::new(&config("", "protocol = \"mqtt\"\nmqtt = {}"));
    let socket = stage.accept(OTHER, "192.0.2.1:1");
    let mut stream = b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01c".to_vec();
    for id in 1..=3 {
        stream.extend([0x32, 7, 0, 1, b't', 0, id, 0, b'x']);
    }
    stage.bring(socket, &stream);
    stage.settle();
    let before = stage.sent(socket).len();
    let refused = Command::Refused { failure: DeliveryFailure::Other, message: 2 };
    let commands = [Command::Acknowledged(1), refused, Command::Acknowledged(1)];
    let commands = commands.map(|command| (command, Receipt::None, &b""[..]));
    stage.worker.engine().set_peer(socket, Peer::Stalls);
    stage.command(key(socket, 1), &commands);
    stage.settle();
    stage.worker.engine().set_peer(socket, Peer::Takes);
    stage.settle();
    let sent = stage.sent(socket)[before..].to_vec();
    assert_eq!(sent[..4], [0x40, 2, 0, 1], "the first one is confirmed");
    assert_eq!(sent[4], 0xe0, "and then nothing but the end: {sent:?}");
}

#[test]
fn what_was_sent_before_the_end_reaches_a_client_that_is_still_sending() {
    let http = "protocol = \"http\"";
    let mut stage = Stage::new(&config("", http));
    let socket = stage.accept(OTHER, "192.0.2.1:1");
    let close = |stage: &mut Stage, generation| {
        let receipt = Receipt::Offset(ReplyOffset(7));
        stage.command(key(socket, generation), &[(Command::Close, receipt, b"")]);
        stage.settle();
        assert_eq!(stage.closed(CloseReason::ClosedByServer), u64::from(generation));
    };
    stage.bring(socket, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    stage.settle();
    let mut headers = HeaderList::default();
    headers.push(b"http.request", b"1");
    let plain = Reply::plain(RelayId(0), 5, b"a response");
    let reply = Reply { headers: headers.headers(), ..plain };
    let mut batch = stage.downlink.take_empty().expect("the worker has taken the others");
    batch.push(key(socket, 1), Command::Reply, Receipt::Offset(ReplyOffset(5)), reply);
    stage.downlink.hand_over(batch);
    stage.settle();
    assert!(stage.sent(socket).ends_with(b"a response"));
    close(&mut stage, 1);
    assert!(stage.worker.engine().is_shut_down(socket), "closed, unread input would reset it");
    stage.bring(socket, b"GET / HTTP/1.1\r\n");
    stage.worker.engine().end(socket, ReceiveEnd::EndOfStream);
    stage.settle();
    assert!(!stage.worker.engine().is_open(socket));
    // Who was sent nothing has nothing to lose.
    let silent = stage.accept(OTHER, "192.0.2.1:2");
    assert_eq!(silent, socket, "the place is free again");
    close(&mut stage, 2);
    assert!(!stage.worker.engine().is_open(silent));
}
