use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

use crate::script::{Action, Script};
use millrace_model::{Refusal, RelayId, ReplyOrigin};

use super::*;

const LIMIT: usize = 1000;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

fn settings() -> WebSocketSettings {
    WebSocketSettings { section: WebSocketSection::default(), max_message_bytes: LIMIT }
}

/// Section 1.3's request, and more headers.
fn request(more: &str) -> Vec<u8> {
    format!(
        "GET /chat?room=1 HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: WebSocket\r\n\
         Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\n{more}\r\n"
    )
    .into_bytes()
}

const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

/// A client's frame, its first byte as it is given.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | u8::try_from(length).unwrap()),
        length => {
            frame.push(0x80 | 0x7e);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn compressed(payload: &[u8]) -> Vec<u8> {
    let mut output = Vec::with_capacity(payload.len() + 100);
    Compress::new(Compression::default(), false)
        .compress_vec(payload, &mut output, FlushCompress::Sync)
        .unwrap();
    output.truncate(output.len() - 4);
    output
}

struct Peer {
    codec: WebSocket,
    script: Script,
    now: Instant,
}

impl Peer {
    fn new(settings: WebSocketSettings) -> Self {
        let now = Instant::now();
        let codec = WebSocket::new(Arc::new(settings));
        Self { codec, script: Script::default(), now }
    }

    /// After the handshake.
    fn open(settings: WebSocketSettings, more: &str) -> Self {
        let mut peer = Self::new(settings);
        let (actions, output) = peer.send(&request(more));
        assert!(matches!(actions[..], [Action::Begin { .. }]), "{actions:?}");
        assert!(output.starts_with(b"HTTP/1.1 101 "));
        peer
    }

    fn send(&mut self, bytes: &[u8]) -> (Vec<Action>, Vec<u8>) {
        self.codec.receive(bytes, self.now, &mut self.script);
        self.script.take()
    }

    fn reply(&mut self, headers: &[(&str, &str)], payload: &[u8]) -> Result<Vec<u8>, Unencodable> {
        let mut list = HeaderList::default();
        for (name, value) in headers {
            assert!(list.push(name.as_bytes(), value.as_bytes()));
        }
        let origin = ReplyOrigin { relay: RelayId(0), offset: 1 };
        let reply =
            Reply { origin, headers: list.headers(), payload, waited: Duration::ZERO, held: false };
        assert_eq!(self.codec.reply(reply, self.now, &mut self.script)?, Sending::WithOutput);
        Ok(self.script.take().1)
    }

    fn wait(&mut self, milliseconds: u64) -> (Vec<Action>, Vec<u8>) {
        self.now += Duration::from_millis(milliseconds);
        if self.codec.deadline().is_some_and(|deadline| deadline <= self.now) {
            self.codec.elapsed(self.now, &mut self.script);
        }
        self.script.take()
    }
}

fn message(kind: &str, payload: &[u8]) -> Action {
    let headers = vec![("websocket.opcode".to_owned(), kind.as_bytes().to_vec())];
    Action::Message { headers, payload: payload.to_vec() }
}

/// What a close frame looks like.
fn close(code: u16) -> Vec<u8> {
    code.to_be_bytes().to_vec()
}

/// Checks that the bytes make the relay close with a code and a reason.
fn assert_closes(bytes: &[u8], code: u16, reason: CloseReason) {
    let mut peer = Peer::open(settings(), DEFLATE);
    let (actions, output) = peer.send(bytes);
    assert_eq!(actions, [Action::Close(reason)], "{bytes:x?}");
    assert_eq!(output[0], 0x88);
    assert_eq!(output[2..4], code.to_be_bytes(), "{}", output[4..].escape_ascii());
    assert_eq!(usize::from(output[1]), output.len() - 2);
}

#[test]
fn the_handshake_of_the_standard() {
    let mut peer = Peer::new(WebSocketSettings {
        section: WebSocketSection {
            subprotocols: vec!["superchat".into(), "chat".into()],
            origins: vec!["http://example.com".into()],
            ..WebSocketSection::default()
        },
        ..settings()
    });
    let more = "Origin: http://example.com\r\nSec-WebSocket-Protocol: x, chat, superchat\r\n\
                Cookie: a=b\r\n";
    let (actions, output) = peer.send(&request(more));
    let expected = [
        ("websocket.target", "/chat?room=1"),
        ("websocket.subprotocol", "chat"),
        ("websocket.origin", "http://example.com"),
        ("http.header.host", "server.example.com"),
        ("http.header.cookie", "a=b"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    let begin = Action::Begin {
        protocol: "websocket",
        acknowledge: false,
        client: None,
        holds: true,
        headers: expected.into(),
    };
    assert_eq!(actions, [begin]);
    assert_eq!(
        output.escape_ascii().to_string(),
        "HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\\r\\nSec-WebSocket-Protocol: chat\\r\\n\
         \\r\\n"
    );
}

#[test]
fn requests_that_are_not_granted() {
    let whole = String::from_utf8(request("Origin: http://evil.example\r\n")).unwrap();
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    let cases: &[(String, &str, CloseReason)] = &[
        (whole.clone(), "403", CloseReason::NotAuthorized),
        (whole.replace("Upgrade: WebSocket\r\n", ""), "426", CloseReason::Unsupported),
        (whole.replace("Version: 13", "Version: 8"), "426", CloseReason::Unsupported),
        (whole.replace("GET", "POST"), "400", CloseReason::Malformed),
        (whole.replace("HTTP/1.1", "HTTP/1.0"), "400", CloseReason::Malformed),
        (whole.replace("keep-alive, Upgrade", "keep-alive"), "400", CloseReason::Malformed),
        (whole.replace("Host: server.example.com\r\n", ""), "400", CloseReason::Malformed),
        (whole.replace("Host: ", "Host: a\r\nHost: "), "400", CloseReason::Malformed),
        (whole.replace("Origin", "Content-Length: 4\r\nOrigin"), "400", CloseReason::Malformed),
        (whole.replace("Origin", "Transfer-Encoding: x\r\nOrigin"), "400", CloseReason::Malformed),
        (whole.replace(key, "dGhlIHNhbXBsZSBub25jZQ"), "400", CloseReason::Malformed),
        (whole.replace(key, "dGhlIHNhbXBsZQ=="), "400", CloseReason::Malformed),
        (whole.replace("Host:", "Ho st:"), "400", CloseReason::Malformed),
        ("GET / HTTP/1.1\n\nx\r\n\r\n".into(), "400", CloseReason::Malformed),
        ("x".repeat(20_000), "431", CloseReason::OversizedMessage),
        (whole.replace("Origin", &"A: b\r\n".repeat(100)), "431", CloseReason::OversizedMessage),
    ];
    for (request, status, reason) in cases {
        let mut settings = settings();
        settings.section.origins = vec!["https://good.example".into()];
        let mut peer = Peer::new(settings);
        let (actions, output) = peer.send(request.as_bytes());
        assert_eq!(actions, [Action::Close(*reason)], "{request}");
        let output = String::from_utf8(output).unwrap();
        assert!(output.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {output}");
        let (head, body) = output.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
        let version = head.contains("Sec-WebSocket-Version: 13\r\n");
        assert_eq!(version, request.contains("Version: 8"), "{output}");
    }
}

#[test]
fn no_server_is_said_before_the_upgrade() {
    let mut peer = Peer::new(settings());
    peer.script.refusal = Some(Refusal::NoServer);
    let (actions, output) = peer.send(&request(""));
    assert_eq!(actions[1..], [Action::Close(CloseReason::NoServer)]);
    assert!(output.starts_with(b"HTTP/1.1 503 "));

    let mut peer = Peer::new(settings());
    assert!(peer.send(b"GET / HTTP/1.1\r\n").0.is_empty());
    assert!(!peer.codec.end_of_stream(peer.now, &mut peer.script));
    peer.codec.farewell(CloseReason::HandshakeTimeout, peer.now, &mut peer.script);
    let (_, output) = peer.script.take();
    assert!(output.starts_with(b"HTTP/1.1 408 "));
}

#[test]
fn messages_fragments_and_what_comes_between() {
    let mut peer = Peer::open(settings(), "");
    // Section 5.7.
    let (actions, output) = peer.send(&frame(0x81, b"Hello"));
    assert_eq!((actions, output), (vec![message("text", b"Hello")], vec![]));
    let stream =
        [frame(0x02, b"Hel"), frame(0x89, b"alive?"), frame(0x8a, b""), frame(0x80, b"lo")]
            .concat();
    let (actions, output) = peer.send(&stream);
    assert_eq!(actions, [message("binary", b"Hello")]);
    assert_eq!(output, [&[0x8a, 6], &b"alive?"[..]].concat());
    // A character in two fragments; an empty message; one of two lengths' bytes.
    let (actions, _) = peer.send(&[frame(0x01, b"\xc3"), frame(0x80, b"\xa4")].concat());
    assert_eq!(actions, [message("text", "ä".as_bytes())]);
    assert_eq!(peer.send(&frame(0x81, b"")).0, [message("text", b"")]);
    assert_eq!(peer.send(&frame(0x82, &[7; LIMIT])).0, [message("binary", &[7; LIMIT])]);
    assert!(peer.codec.end_of_stream(peer.now, &mut peer.script));
    peer.send(&frame(0x01, b"cut"));
    assert!(!peer.codec.end_of_stream(peer.now, &mut peer.script));
}

#[test]
fn violations_have_their_codes() {
    let cases: &[(Vec<u8>, u16, CloseReason)] = &[
        (vec![0xa1, 0x80], 1002, CloseReason::Malformed),
        (vec![0x83, 0x80], 1002, CloseReason::Malformed),
        (vec![0x8b, 0x80], 1002, CloseReason::Malformed),
        (vec![0x81, 0x00], 1002, CloseReason::Malformed),
        (vec![0x09, 0x80], 1002, CloseReason::Malformed),
        (vec![0x89, 0x80 | 0x7e], 1002, CloseReason::Malformed),
        (vec![0x81, 0xfe, 0, 125], 1002, CloseReason::Malformed),
        (vec![0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], 1002, CloseReason::Malformed),
        (vec![0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], 1002, CloseReason::Malformed),
        (frame(0x80, b"of nothing"), 1002, CloseReason::Malformed),
        ([frame(0x01, b"a"), frame(0x81, b"b")].concat(), 1002, CloseReason::Malformed),
        ([frame(0x01, b"a"), frame(0xc0, b"b")].concat(), 1002, CloseReason::Malformed),
        (frame(0xc9, b""), 1002, CloseReason::Malformed),
        (frame(0x81, b"\xff"), 1007, CloseReason::Malformed),
        (frame(0x81, b"\xc3"), 1007, CloseReason::Malformed),
        (frame(0xc1, &compressed(b"\xff")), 1007, CloseReason::Malformed),
        (frame(0xc1, b"\xff\xff"), 1007, CloseReason::Malformed),
        (frame(0x82, &[0; LIMIT + 1]), 1009, CloseReason::OversizedMessage),
        ([frame(2, &[0; LIMIT]), frame(0x80, b"b")].concat(), 1009, CloseReason::OversizedMessage),
        (frame(0xc2, &compressed(&[0; LIMIT + 1])), 1009, CloseReason::OversizedMessage),
        (frame(0xc2, &compressed(&vec![0; 50_000_000])), 1009, CloseReason::OversizedMessage),
        (frame(0x88, b"\x03"), 1002, CloseReason::Malformed),
        (frame(0x88, &close(1005)), 1002, CloseReason::Malformed),
        (frame(0x88, &close(999)), 1002, CloseReason::Malformed),
        (frame(0x88, &close(2000)), 1002, CloseReason::Malformed),
        (frame(0x88, &close(5000)), 1002, CloseReason::Malformed),
        (frame(0x88, b"\x03\xe8\xff"), 1007, CloseReason::Malformed),
    ];
    for (bytes, code, reason) in cases {
        assert_closes(bytes, *code, *reason);
    }
    // Not negotiated.
    let mut peer = Peer::open(settings(), "");
    let (actions, output) = peer.send(&frame(0xc1, &compressed(b"x")));
    assert_eq!(actions, [Action::Close(CloseReason::Malformed)]);
    assert_eq!(output[2..4], 1002_u16.to_be_bytes());
}

#[test]
fn a_client_closes() {
    for payload in [vec![], close(1000), close(3000), [&close(1001)[..], b"bye"].concat()] {
        let mut peer = Peer::open(settings(), "");
        let stream = [frame(0x81, b"last"), frame(0x88, &payload), frame(0x81, b"late")].concat();
        let (actions, output) = peer.send(&stream);
        let closed = Action::Close(CloseReason::ClientClosed);
        assert_eq!(actions, [message("text", b"last"), closed]);
        assert_eq!(output[0], 0x88);
        assert_eq!(output[2..], payload);
        assert_eq!(peer.codec.deadline(), None);
    }
}

#[test]
fn replies_and_their_kinds() {
    let mut peer = Peer::open(settings(), "");
    assert_eq!(peer.reply(&[], b"hi").unwrap(), b"\x81\x02hi");
    assert_eq!(peer.reply(&[], b"\xff"), Err(Unencodable));
    assert_eq!(peer.reply(&[("websocket.opcode", "binary")], b"\xff").unwrap(), b"\x82\x01\xff");
    assert_eq!(peer.reply(&[("websocket.opcode", "pong")], b""), Err(Unencodable));
    assert_eq!(peer.reply(&[], &[0; LIMIT + 1]), Err(Unencodable));
    peer.send(&frame(0x82, b""));
    assert_eq!(peer.reply(&[], &[7; 200]).unwrap()[..4], [0x82, 126, 0, 200]);
    let settings = settings();
    let text = |value: &str| {
        let mut list = HeaderList::default();
        list.push(b"websocket.opcode", value.as_bytes());
        list
    };
    assert_eq!(settings.check_reply(text("text").headers(), b"\xff"), Err(Unencodable));
    assert_eq!(settings.check_reply(text("no").headers(), b""), Err(Unencodable));
    assert_eq!(settings.check_reply(Headers::NONE, b"\xff"), Ok(()));
}

#[test]
fn compressed_messages_there_and_back() {
    let mut peer = Peer::open(settings(), DEFLATE);
    let text = "to and fro ".repeat(50);
    let (actions, _) = peer.send(&frame(0xc1, &compressed(text.as_bytes())));
    assert_eq!(actions, [message("text", text.as_bytes())]);
    // Section 7.2.3: one block, one that says it is the last, an empty message.
    for (bytes, text) in [
        (&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..], &b"Hello"[..]),
        (&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00], b"Hello"),
        (&[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00], b"Hello"),
        (&[0x00], b""),
    ] {
        assert_eq!(peer.send(&frame(0xc1, bytes)).0, [message("text", text)]);
    }
    // What no compressor can make shorter, in the shortest stored blocks of zlib (`memLevel` 1).
    let most = [b'x'; LIMIT];
    let mut stored = Vec::new();
    for block in most.chunks(127) {
        let length = u16::try_from(block.len()).unwrap();
        stored.push(0);
        stored.extend(length.to_le_bytes());
        stored.extend((!length).to_le_bytes());
        stored.extend(block);
    }
    stored.push(0);
    assert_eq!(peer.send(&frame(0xc1, &stored)).0, [message("text", &most)]);
    let output = peer.reply(&[], text.as_bytes()).unwrap();
    assert_eq!(output[0], 0xc1);
    assert!(usize::from(output[1]) == output.len() - 2 && output.len() < 100);
    deflate::inflate(&output[2..], LIMIT, |back| assert_eq!(back, text.as_bytes())).unwrap();
    // Too short, or not the shorter for it.
    assert_eq!(peer.reply(&[], b"short").unwrap()[0], 0x81);
    let mut noise = vec![1_u8; 900];
    for index in 1..noise.len() {
        let word = u64::from(noise[index - 1]) + 256 * index as u64;
        noise[index] = (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    }
    assert_eq!(peer.reply(&[("websocket.opcode", "binary")], &noise).unwrap()[0], 0x82);
}

#[test]
fn offers_of_compression() {
    let accepted = |offer: &str| {
        let mut peer = Peer::new(settings());
        let (_, output) = peer.send(&request(&format!("Sec-WebSocket-Extensions: {offer}\r\n")));
        assert!(output.starts_with(b"HTTP/1.1 101 "));
        memchr::memmem::find(&output, b"permessage-deflate").is_some()
    };
    for offer in [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; client_max_window_bits=\"10\"; server_no_context_takeover",
        "x-unknown, permessage-deflate; server_max_window_bits=16, permessage-deflate",
        "permessage-deflate; server_max_window_bits=15",
        "permessage-deflate; server_max_window_bits=\"10\"; client_max_window_bits",
    ] {
        assert!(accepted(offer), "{offer}");
    }
    for offer in [
        "x-unknown",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=010",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits; client_max_window_bits",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; x",
    ] {
        assert!(!accepted(offer), "{offer}");
    }
}

#[test]
fn a_reply_is_compressed_for_the_window_that_the_client_has() {
    for (bits, compressed) in [(8, 256), (9, 512), (15, LIMIT)] {
        let mut peer = Peer::new(settings());
        let offer = format!("permessage-deflate; server_max_window_bits={bits}");
        let (_, output) = peer.send(&request(&format!("Sec-WebSocket-Extensions: {offer}\r\n")));
        let agreed = format!("; server_max_window_bits={bits}\r\n");
        assert!(memchr::memmem::find(&output, agreed.as_bytes()).is_some());
        for length in [256, 257, 512, 513, LIMIT] {
            let first = peer.reply(&[], &vec![b'x'; length]).unwrap()[0];
            assert_eq!(first == 0xc1, length <= compressed, "{bits} bits, {length} bytes");
        }
    }
}

#[test]
fn a_silent_client_is_asked_and_then_closed() {
    let mut peer = Peer::open(settings(), "");
    assert_eq!(peer.wait(29_999), (vec![], vec![]));
    assert_eq!(peer.wait(1), (vec![], vec![0x89, 0]));
    assert!(peer.codec.sent(peer.now));
    peer.wait(20_000);
    assert_eq!(peer.send(&frame(0x8a, b"")), (vec![], vec![]));
    assert_eq!(peer.wait(29_999), (vec![], vec![]));
    assert_eq!(peer.wait(1).1, [0x89, 0]);
    // It cannot answer what waits behind replies that it has yet to read.
    assert_eq!(peer.wait(3_600_000), (vec![], vec![]));
    assert!(peer.codec.sent(peer.now));
    assert_eq!(peer.wait(29_999), (vec![], vec![]));
    assert!(!peer.codec.sent(peer.now), "the time counts from when it was sent first");
    let (actions, output) = peer.wait(1);
    assert_eq!(actions, [Action::Close(CloseReason::IdleTimeout)]);
    assert_eq!(output[2..4], 1008_u16.to_be_bytes());
}

#[test]
fn what_a_request_says_is_told_whole_and_as_text() {
    let mut peer = Peer::new(settings());
    let name = "X-".to_owned() + &"Long".repeat(100);
    let head = request(&format!("{name}: a\r\nOrigin: http://b#\r\nX-Old: c#\r\n"));
    let head: Vec<u8> = head.iter().map(|byte| if *byte == b'#' { 0xe9 } else { *byte }).collect();
    let (actions, _) = peer.send(&head);
    let [Action::Begin { headers, .. }] = &actions[..] else { panic!("{actions:?}") };
    let value = |name: &str| {
        let header = headers.iter().find(|(other, _)| other == name);
        header.map(|(_, value)| str::from_utf8(value).unwrap())
    };
    assert_eq!(value(&format!("http.header.{}", name.to_ascii_lowercase())), Some("a"));
    assert_eq!(value("websocket.origin"), Some("http://b\u{e9}"));
    assert_eq!(value("http.header.x-old"), Some("c\u{e9}"));
}

#[test]
fn a_refusal_of_head_has_no_body() {
    let get = String::from_utf8(request("")).unwrap();
    for (head, body) in [(get.replace("GET", "HEAD"), false), (get.replace("GET", "PUT"), true)] {
        let mut peer = Peer::new(settings());
        let (actions, output) = peer.send(head.as_bytes());
        assert_eq!(actions, [Action::Close(CloseReason::Malformed)]);
        assert!(output.starts_with(b"HTTP/1.1 400 "));
        assert_eq!(!output.ends_with(b"\r\n\r\n"), body);
    }
}

#[test]
fn last_words() {
    let words = |reason: CloseReason, close: Option<&str>| {
        let mut peer = Peer::open(settings(), "");
        if let Some(close) = close {
            let mut headers = HeaderList::default();
            headers.push(b"close", close.as_bytes());
            peer.codec.close_asked(headers.headers());
        }
        peer.codec.farewell(reason, peer.now, &mut peer.script);
        let output = peer.script.take().1;
        (output.get(2..4).map(|code| u16::from_be_bytes(code.try_into().unwrap())), output)
    };
    assert_eq!(words(CloseReason::RelayStop, None).0, Some(1001));
    assert_eq!(words(CloseReason::SlowReader, None).0, Some(1008));
    assert_eq!(words(CloseReason::Disconnected, None).0, Some(1008));
    assert_eq!(words(CloseReason::ServerAway, None).0, Some(1013));
    assert_eq!(words(CloseReason::ConnectionFailed, None), (None, vec![]));
    assert_eq!(words(CloseReason::ClosedByServer, None).1, [0x88, 2, 3, 0xe8]);
    assert_eq!(words(CloseReason::ClosedByServer, Some("4001 go")).1, b"\x88\x04\x0f\xa1go");
    for odd in ["", "1005", "true", "70000 x"] {
        assert_eq!(words(CloseReason::ClosedByServer, Some(odd)).0, Some(1000), "{odd}");
    }
    let long = format!("1000 {}", "ä".repeat(100));
    let (_, output) = words(CloseReason::ClosedByServer, Some(&long));
    assert_eq!(output.len(), 2 + 2 + 122);
}

#[test]
fn masks_at_every_offset() {
    let plain: Vec<u8> = (0..50).collect();
    let masked: Vec<u8> = plain.iter().zip(MASK.iter().cycle()).map(|(a, b)| a ^ b).collect();
    for cut in 0..plain.len() {
        let mut bytes = masked.clone();
        let (head, tail) = bytes.split_at_mut(cut);
        frame::unmask(head, MASK, 0);
        frame::unmask(tail, MASK, cut as u64);
        assert_eq!(bytes, plain);
    }
}

/// What the codec makes of a stream, cut in pieces.
fn outcome<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Action>, Vec<u8>) {
    let mut peer = Peer::new(settings());
    for piece in pieces {
        if !peer.script.is_closed() {
            peer.codec.receive(piece, peer.now, &mut peer.script);
        }
    }
    peer.script.take()
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let one = (
        prop::sample::select(vec![
            0x01, 0x81, 0x82, 0x02, 0x00, 0x80, 0x89, 0x8a, 0xc1, 0x88, 0x83,
        ]),
        prop_oneof![
            "[a-zäß€𝄞]{0,40}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..200),
            "[ab]{0,500}".prop_map(|text| compressed(text.as_bytes())),
        ],
    );
    prop::collection::vec(one, 0..8).prop_map(|frames| {
        frames.into_iter().flat_map(|(first, payload)| frame(first, &payload)).collect()
    })
}

proptest! {
    #[test]
    fn every_split_says_the_same(frames in frames(), size in 1_usize..40) {
        let stream = [request(DEFLATE), frames].concat();
        let whole = outcome([&stream[..]]);
        prop_assert_eq!(&outcome(stream.chunks(size)), &whole);
        prop_assert_eq!(&outcome(stream.chunks(1)), &whole);
        for cut in 0..stream.len() {
            let (head, tail) = stream.split_at(cut);
            prop_assert_eq!(&outcome([head, tail]), &whole);
        }
    }

    #[test]
    fn any_bytes_after_the_handshake(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut peer = Peer::open(settings(), DEFLATE);
        peer.send(&bytes);
        prop_assert!(peer.codec.kept_bytes() <= 2 * deflate::longest_compressed(LIMIT) + 1024);
    }
}
