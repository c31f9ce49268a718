//! WebSocket at a relay: records of what clients say, what servers answer, and how it ends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use millrace_harness::net::uninterrupted;
use millrace_harness::relay::dead_letters::Letters;
use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::HandServer;
use millrace_relay::codec::ProtocolKind;
use millrace_relay::config::Config;

const PATIENCE: Duration = Duration::from_secs(20);
const MASK: [u8; 4] = *b"mask";

fn websocket(config: &mut Config) {
    let service = &mut config.services[0];
    (service.protocol, service.framing) = (ProtocolKind::WebSocket, None);
    service.websocket.subprotocols = vec!["chat".to_owned()];
}

/// A client that knows as much of RFC 6455 as it needs.
struct Client(TcpStream);

impl Client {
    /// Asks for an upgrade; the answer's status.
    fn ask(relay: &Direct, more: &str) -> (Self, String) {
        let mut stream = TcpStream::connect(relay.target()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!(
            "GET /room/7 HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Version: 13\r\n{more}\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        (Self(stream), String::from_utf8(head).unwrap())
    }

    fn open(relay: &Direct) -> Self {
        let (client, head) = Self::ask(relay, "Sec-WebSocket-Protocol: other, chat\r\n");
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
        assert!(head.contains("Sec-WebSocket-Protocol: chat\r\n"), "{head}");
        client
    }

    /// Sends a frame of less than 126 bytes.
    fn send(&mut self, first: u8, payload: &[u8]) {
        let mut frame = vec![first, 0x80 | u8::try_from(payload.len()).unwrap()];
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.0.write_all(&frame).unwrap();
    }

    /// The next frame, of less than 126 bytes: its first byte and its payload.
    fn receive(&mut self) -> (u8, Vec<u8>) {
        let mut header = [0; 2];
        self.0.read_exact(&mut header).unwrap();
        assert!(header[1] < 126, "a longer frame");
        let mut payload = vec![0; header[1].into()];
        self.0.read_exact(&mut payload).unwrap();
        (header[0], payload)
    }

    fn expect_end(&mut self) {
        let read = uninterrupted(|| self.0.read(&mut [0; 8]));
        assert_eq!(read.unwrap(), 0, "the connection goes on");
    }
}

/// A close frame.
fn close(code: u16, reason: &str) -> (u8, Vec<u8>) {
    (0x88, [&code.to_be_bytes(), reason.as_bytes()].concat())
}

#[test]
fn a_client_that_goes_on_sending_learns_why_it_is_ended() {
    let mut relay = Direct::build("websocket-end", |config| {
        websocket(config);
        config.services[0].max_message_bytes = 1000;
    })
    .unwrap();
    relay.instance.start().unwrap();
    for _ in 0..5 {
        let mut client = Client::open(&relay);
        let header = [&[0x82, 0xff][..], &(8_u64 << 20).to_be_bytes(), &MASK].concat();
        client.0.write_all(&header).unwrap();
        for _ in 0..32 {
            client.0.write_all(&vec![b'x'; 65_536]).unwrap();
        }
        let (first, payload) = client.receive();
        assert_eq!((first, &payload[..2]), (0x88, &1009_u16.to_be_bytes()[..]));
        client.expect_end();
    }
}

#[test]
fn messages_become_records_and_records_messages() {
    let mut relay = Direct::build("websocket", websocket).unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = Client::open(&relay);
    let open = server.next("open", |record| record.kind() == "open").unwrap();
    assert_eq!(open.header("protocol"), "websocket");
    assert_eq!(open.header("websocket.target"), "/room/7");
    assert_eq!(open.header("websocket.subprotocol"), "chat");
    assert_eq!(open.header("http.header.host"), "a.example");
    // Before the client has said anything: text.
    server.reply(&open, b"welcome").unwrap();
    assert_eq!(client.receive(), (0x81, b"welcome".to_vec()));

    client.send(0x01, "gr\u{fc}".as_bytes());
    client.send(0x89, b"are you there?");
    client.send(0x80, "\u{df}e".as_bytes());
    client.send(0x82, b"\xff\0");
    assert_eq!(client.receive(), (0x8a, b"are you there?".to_vec()));
    let text = server.next("the text", |record| record.kind() == "message").unwrap();
    assert_eq!((&*text.value, text.header("websocket.opcode")), ("grüße".as_bytes(), "text"));
    let bytes = server.next("the bytes", |record| record.kind() == "message").unwrap();
    assert_eq!((&*bytes.value, bytes.header("websocket.opcode")), (&b"\xff\0"[..], "binary"));

    // As the client's last message was, or as the server says.
    server.reply(&bytes, b"\xfe").unwrap();
    assert_eq!(client.receive(), (0x82, b"\xfe".to_vec()));
    let text = [("websocket.opcode", &b"text"[..])];
    server.reply_with(&bytes, Some(b"\xfe"), &text).unwrap();
    server.reply_with(&bytes, Some(b"words"), &text).unwrap();
    assert_eq!(client.receive(), (0x81, b"words".to_vec()));
    let letters = Letters::read(&relay, 1).unwrap();
    assert_eq!((&*letters[0].reason(), &*letters[0].value), ("unencodable", &b"\xfe"[..]));

    client.send(0x88, &[&4002_u16.to_be_bytes()[..], b"bye"].concat());
    assert_eq!(client.receive(), close(4002, "bye"));
    client.expect_end();
    let gone = server.next("close", |record| record.kind() == "close").unwrap();
    assert_eq!(gone.header("reason"), "client_closed");
}

#[test]
fn servers_and_the_relay_close_with_a_code() {
    let mut relay = Direct::build("wsclose", websocket).unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    for (value, header, expected) in [
        (Some(&b"last"[..]), &b"4003 enough"[..], close(4003, "enough")),
        (None, b"1008 no", close(1008, "no")),
        (None, b"yes", close(1000, "")),
    ] {
        let mut client = Client::open(&relay);
        let open = server.next("open", |record| record.kind() == "open").unwrap();
        server.reply_with(&open, value, &[("close", header)]).unwrap();
        if let Some(value) = value {
            assert_eq!(client.receive(), (0x81, value.to_vec()));
        }
        assert_eq!(client.receive(), expected);
        client.expect_end();
    }
    let mut bad = Client::open(&relay);
    bad.send(0x81, b"\xff");
    assert_eq!(bad.receive(), close(1007, "text that is not UTF-8"));
    bad.expect_end();
    let (_, head) = Client::ask(&relay, "Transfer-Encoding: chunked\r\n");
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");

    let mut client = Client::open(&relay);
    let last = relay.instance.stop().unwrap();
    assert_eq!(client.receive(), close(1001, "the gateway stops: connect again"));
    client.expect_end();
    let closed = &last["connections_closed"];
    assert_eq!(closed["closed_by_server"], 3, "{closed}");
    assert_eq!(closed["malformed"], 2, "{closed}");
}

#[test]
fn a_client_that_does_not_answer_pings_is_closed() {
    let mut relay = Direct::build("wsping", |config| {
        websocket(config);
        config.services[0].websocket.ping_interval_ms = 1000;
    })
    .unwrap();
    relay.instance.start().unwrap();
    let mut client = Client::open(&relay);
    assert_eq!(client.receive(), (0x89, vec![]));
    client.send(0x8a, b"");
    assert_eq!(client.receive(), (0x89, vec![]));
    assert_eq!(client.receive(), close(1008, "nothing came for too long"));
    client.expect_end();
    let last = relay.instance.stop().unwrap();
    assert_eq!(last["connections_closed"]["idle_timeout"], 1, "{last}");
}

#[test]
fn a_client_that_reads_slowly_may_answer_a_ping_late() {
    const REPLIES: usize = 130;
    const LENGTH: usize = 60_000;
    let mut relay = Direct::build("wsslow", |config| {
        websocket(config);
        config.services[0].websocket.ping_interval_ms = 1000;
        config.services[0].max_message_bytes = 1 << 16;
        // None waits in Kafka: all are before the ping.
        config.relay.reply_limit_bytes = 2 * REPLIES * LENGTH;
        config.relay.max_connection_bytes = 4 * REPLIES * LENGTH;
    })
    .unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = Client::open(&relay);
    let open = server.next("open", |record| record.kind() == "open").unwrap();
    server.reply_many(&open, (0..REPLIES).map(|_| vec![b'x'; LENGTH])).unwrap();
    let (mut replies, mut payload) = (0, vec![0; LENGTH + 2]);
    while replies < REPLIES {
        let mut header = [0; 2];
        client.0.read_exact(&mut header).unwrap();
        match header {
            [0x81, 126] => {
                client.0.read_exact(&mut payload).unwrap();
                replies += 1;
                if replies == 1 {
                    // It reads nothing for longer than a ping may stay unanswered.
                    std::thread::sleep(Duration::from_secs(4));
                }
            }
            [0x89, 0] => client.send(0x8a, b""),
            other => panic!("{other:?} after {replies} replies"),
        }
    }
    client.send(0x81, b"still here");
    server.next("its message", |record| record.value == b"still here").unwrap();
}
