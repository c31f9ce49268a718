use proptest::prelude::*;

use super::*;
use crate::ProtocolKind;
use crate::script::{Action, Script};

const LINES: &str = "framing = { type = 'lines' }\n\
                     max_message_bytes = 100\n[auto]\n";
const LENGTH: &str = "max_message_bytes = 100\n\
                      framing = { type = 'length', bytes = 4 }\n[auto]\n";
const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x, WebSocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n\x82\x80abcd";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nX: Upgrade: websocket\r\n\r\n";
const TLS: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
const MQTT: &[u8] = b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0";

/// As much of a service's section as counts here.
#[derive(serde::Deserialize)]
struct Text {
    framing: Option<Framing>,
    max_message_bytes: u32,
    auto: AutoSection,
}

fn settings(text: &str) -> Arc<AutoSettings> {
    let text: Text = toml::from_str(text).unwrap();
    let service = Settings {
        framing: text.framing,
        max_message_bytes: text.max_message_bytes,
        auto: text.auto,
        ..Settings::new(ProtocolKind::Auto)
    };
    Arc::new(AutoSettings::new(&service, None))
}

struct Peer {
    codec: Auto,
    script: Script,
    now: Instant,
}

impl Peer {
    fn new(settings: &str) -> Self {
        Self::of(self::settings(settings), Instant::now())
    }

    fn of(settings: Arc<AutoSettings>, now: Instant) -> Self {
        Self { codec: Auto::new(settings, now), script: Script::default(), now }
    }

    fn send(&mut self, bytes: &[u8]) -> Vec<Action> {
        self.codec.receive(bytes, self.now, &mut self.script);
        self.script.take().0
    }

    fn wait(&mut self, milliseconds: u64) -> Vec<Action> {
        self.now += Duration::from_millis(milliseconds);
        if self.codec.deadline().is_some_and(|deadline| deadline <= self.now) {
            self.codec.elapsed(self.now, &mut self.script);
        }
        self.script.take().0
    }
}

fn message(payload: &[u8]) -> Action {
    Action::Message { headers: Vec::new(), payload: payload.to_vec() }
}

#[test]
fn each_gets_its_codec() {
    let both = "recognise = ['websocket', 'framing']";
    let mut peer = Peer::new(&format!("{LINES}{both}"));
    let actions = peer.send(UPGRADE);
    assert!(matches!(actions[..], [Action::Begin { .. }, Action::Message { .. }]), "{actions:?}");
    assert_eq!(peer.codec.name(), "websocket");

    for (service, bytes) in [(LINES, &b"hello\n"[..]), (LENGTH, b"\0\0\0\x05hello")] {
        let mut peer = Peer::new(&format!("{service}{both}"));
        assert_eq!(peer.codec.name(), "auto");
        assert!(peer.send(&bytes[..3]).is_empty() || service == LENGTH);
        let actions = peer.send(&bytes[3..]);
        assert_eq!(actions.last(), Some(&message(b"hello")));
        assert_eq!(peer.send(bytes), [message(b"hello")]);
    }
}

#[test]
fn http_is_what_asks_for_no_upgrade_or_for_one_that_there_is_not() {
    for (recognise, bytes, name) in [
        ("['http', 'websocket']", REQUEST, "http"),
        ("['http', 'websocket']", UPGRADE, "websocket"),
        ("['http']", UPGRADE, "http"),
    ] {
        let mut peer = Peer::new(&format!("{LINES}recognise = {recognise}"));
        peer.send(bytes);
        assert_eq!(peer.codec.name(), name, "{recognise}");
    }
}

#[test]
fn what_is_nothing_of_the_service_is_handed_on_whole() {
    for service in [LINES, LENGTH] {
        let mut framing = format!("{service}recognise = ['websocket', 'framing']");
        for _ in 0..2 {
            for bytes in [TLS, REQUEST, MQTT, b"\x10\xff\xff\xff\xff\x00"] {
                let mut peer = Peer::new(&framing);
                assert_eq!(peer.send(bytes), [Action::HandOn(bytes.to_vec())], "{framing}");
            }
            framing = format!("{service}recognise = ['websocket']");
        }
        // Not to be recognised.
        let mut peer = Peer::new(&framing);
        assert_eq!(peer.send(b"SSH-2.0-x\r\n"), [Action::HandOn(b"SSH-2.0-x\r\n".to_vec())]);
    }
}

#[test]
fn who_says_nothing_is_handed_on_in_time() {
    let mut peer = Peer::new(LINES);
    assert_eq!(peer.wait(999), []);
    assert_eq!(peer.wait(1), [Action::HandOn(Vec::new())]);
    let mut peer = Peer::new(LINES);
    assert_eq!(peer.send(b"GE"), []);
    assert_eq!(peer.wait(1000), [Action::HandOn(b"GE".to_vec())]);
    let mut peer = Peer::new(LINES);
    assert!(peer.codec.end_of_stream(peer.now, &mut peer.script));
    assert_eq!(peer.script.take().0, [Action::HandOn(Vec::new())]);
}

#[test]
fn otherwise_may_be_framing_or_the_end() {
    let mut peer = Peer::new(&format!("{LENGTH}otherwise = 'framing'"));
    let actions = peer.send(b"\0\0\0\x02hi");
    assert!(matches!(actions[..], [Action::Begin { .. }, Action::Message { .. }]), "{actions:?}");
    let mut peer = Peer::new(&format!("{LENGTH}otherwise = 'close'"));
    assert_eq!(peer.send(TLS), [Action::Close(CloseReason::Unsupported)]);
    let mut peer = Peer::new(&format!("{LENGTH}otherwise = 'close'"));
    assert_eq!(peer.wait(1000), [Action::Close(CloseReason::Unsupported)]);
}

#[test]
fn a_head_without_end_is_answered() {
    let mut peer = Peer::new(LINES);
    let long = [&b"GET /"[..], &vec![b'x'; MAX_FIRST_BYTES]].concat();
    peer.codec.receive(&long, peer.now, &mut peer.script);
    let (actions, output) = peer.script.take();
    assert_eq!(actions, [Action::Close(CloseReason::OversizedMessage)]);
    assert!(output.starts_with(b"HTTP/1.1 431 "));
}

#[test]
fn a_request_has_the_time_of_its_protocol() {
    for recognise in ["['http']", "['websocket']", "['websocket', 'http', 'framing']"] {
        for begun in [&b"GET / HT"[..], b"GET / HTTP/1.1\r\nHost: a\r\nUp", b"BREW / HTTP/1.1\r\nX"]
        {
            let settings = format!("{LINES}recognise = {recognise}\notherwise = 'framing'");
            let mut peer = Peer::new(&settings);
            assert_eq!(peer.send(begun), []);
            assert_eq!(peer.wait(1000), [], "{recognise}");
            assert_eq!(peer.wait(8000), [], "{recognise}");
            let deadline = peer.codec.deadline();
            assert!(deadline.is_none_or(|at| at > peer.now), "{recognise}");
            // What a worker does when the handshake has taken too long.
            peer.codec.farewell(CloseReason::HandshakeTimeout, peer.now, &mut peer.script);
            let (actions, output) = peer.script.take();
            assert_eq!(actions, []);
            assert!(output.starts_with(b"HTTP/1.1 408 "), "{recognise}");
            assert!(peer.codec.lingers());
        }
    }
    // It goes on to become what it is.
    let both = format!("{LINES}recognise = ['websocket', 'http']");
    for (stream, name) in [(UPGRADE, "websocket"), (REQUEST, "http")] {
        let mut peer = Peer::new(&both);
        let mut actions = peer.send(&stream[..20]);
        actions.extend(peer.wait(5000));
        actions.extend(peer.send(&stream[20..]));
        assert!(matches!(actions[..], [Action::Begin { .. }, Action::Message { .. }]));
        assert_eq!(peer.codec.name(), name);
    }
    // Only what is asked for is looked for.
    for (stream, at_end) in [(&REQUEST[..20], true), (REQUEST, false)] {
        let mut peer = Peer::new(LINES);
        let mut actions = peer.send(stream);
        if at_end {
            assert!(peer.codec.end_of_stream(peer.now, &mut peer.script));
            actions = peer.script.take().0;
        }
        assert_eq!(actions, [Action::HandOn(stream.to_vec())]);
    }
    let mut peer = Peer::new(&format!("{LINES}recognise = ['mqtt']"));
    let line = &REQUEST[..20];
    assert_eq!(peer.send(line), [Action::HandOn(line.to_vec())], "it is none of the service's");
}

#[test]
fn every_request_that_http_allows_is_one() {
    let all = "recognise = ['http', 'websocket', 'framing']";
    for service in [LINES, LENGTH] {
        for start in ["PROPFIND / ", "M-SEARCH * ", "\r\nGET / ", "\r\nBREW /pot ", "get / "] {
            let mut peer = Peer::new(&format!("{service}{all}"));
            let request = format!("{start}HTTP/1.1\r\nHost: a\r\n\r\n");
            peer.send(request.as_bytes());
            assert_eq!(peer.codec.name(), "http", "{request:?}");
        }
    }
    for stream in ["\r\nhello\n", "hello world\n", "GET lost\r\n", "PRI * HTTP/2.0\r\n", "\n"] {
        let mut peer = Peer::new(&format!("{LINES}{all}"));
        let actions = peer.send(stream.as_bytes());
        assert!(matches!(actions.last(), Some(Action::Message { .. })), "{stream:?}: {actions:?}");
        assert_eq!(peer.codec.name(), "lines");
    }
    // An empty line alone is a message after all.
    let mut peer = Peer::new(&format!("{LINES}{all}"));
    assert_eq!(peer.send(b"\r\n"), []);
    assert_eq!(peer.wait(1000).last(), Some(&message(b"")));
    // A length that happens to be letters.
    let short = LENGTH.replace("bytes = 4", "bytes = 1");
    let mut peer = Peer::new(&format!("{short}{all}"));
    peer.send(b"Ahello");
    assert_eq!(peer.codec.name(), "length");
}

fn outcome<'a>(
    settings: &Arc<AutoSettings>,
    now: Instant,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Action>, Vec<u8>) {
    let mut peer = Peer::of(settings.clone(), now);
    let mut late = Vec::new();
    for piece in pieces {
        if peer.script.is_closed() {
            late.extend_from_slice(piece);
        } else {
            peer.codec.receive(piece, peer.now, &mut peer.script);
        }
    }
    let (mut actions, output) = peer.script.take();
    // The rest goes the same way.
    if let Some(Action::HandOn(first)) = actions.last_mut() {
        first.append(&mut late);
    }
    (actions, output)
}

proptest! {
    #[test]
    fn every_split_says_the_same(
        start in prop::sample::select(vec![
            UPGRADE, REQUEST, TLS, MQTT, b"a line\nb\n", b"\0\0\0\x01a", b"", b"\r\nBREW / HTTP/1.1\r\n",
            b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", b"MOVE /a HTTP/1.1\r\nHost: a\r\n\r\n",
        ]),
        keep in 0_usize..40,
        more in prop::collection::vec(any::<u8>(), 0..60),
        text in prop::sample::select(vec![LINES, LENGTH]),
        framing in any::<bool>(),
    ) {
        let recognise = if framing { "recognise = ['websocket', 'http', 'framing']" } else { "" };
        let settings = settings(&format!("{text}{recognise}"));
        // Of all, because the date is in answers of HTTP.
        let now = Instant::now();
        for stream in [[start, &more].concat(), [&start[..keep.min(start.len())], &more].concat()] {
            let whole = outcome(&settings, now, [&stream[..]]);
            prop_assert_eq!(&outcome(&settings, now, stream.chunks(1)), &whole);
            for cut in 0..stream.len() {
                let (head, tail) = stream.split_at(cut);
                prop_assert_eq!(&outcome(&settings, now, [head, tail]), &whole);
            }
        }
    }
}
