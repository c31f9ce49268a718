//! Fuzz targets of protocols: whole codecs, as a service has them, on a script.

use std::sync::LazyLock;
use std::time::Instant;

use millrace_relay::codec::script::{Action, Script};
use millrace_relay::codec::{AnyCodec, Protocol};
use millrace_relay::config::Service;

use crate::dice::Dice;

/// What a service allows here: small, so that inputs reach it.
const LIMITS: &str = "name = 'fuzz'\nport = 1\nmax_message_bytes = 300\n";
/// Bytes that a codec may keep of a client: what it may send, twice for growth, and its own.
const MOST_HELD_BYTES: usize = 40 << 10;
const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

fn protocol(settings: &str) -> Protocol {
    let service: Service =
        toml::from_str(&format!("{LIMITS}{settings}")).expect("a service's settings");
    Protocol::from(&service.codec())
}

/// A WebSocket from its first byte (an odd setting) or after its handshake.
pub fn websocket(input: &[u8]) {
    static PROTOCOL: LazyLock<Protocol> = LazyLock::new(|| protocol("protocol = 'websocket'"));
    let Some(([setting, seed], stream)) = input.split_first_chunk() else { return };
    let head = if setting & 1 == 0 { REQUEST } else { &[] };
    check(&PROTOCOL, &[head, stream].concat(), *seed);
}

/// Recognition, with one framing or the other, or none.
pub fn auto(input: &[u8]) {
    static PROTOCOLS: LazyLock<[Protocol; 3]> = LazyLock::new(|| {
        let all = "[auto]\nrecognise = ['websocket', 'http', 'framing']";
        [
            protocol("protocol = 'auto'"),
            protocol(&format!("protocol = 'auto'\nframing = {{ type = 'lines' }}\n{all}")),
            protocol(&format!(
                "protocol = 'auto'\nframing = {{ type = 'length', bytes = 2 }}\n{all}"
            )),
        ]
    });
    let Some(([setting, seed], stream)) = input.split_first_chunk() else { return };
    check(&PROTOCOLS[usize::from(*setting) % PROTOCOLS.len()], stream, *seed);
}

/// What a codec does must not depend on how its stream is cut, nor keep more than it may.
fn check(protocol: &Protocol, stream: &[u8], seed: u8) {
    let mut dice = Dice::new(u64::from(seed));
    let mut cuts = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at_checked(dice.below(40)).unwrap_or((rest, &[]));
        cuts.push(piece);
        rest = after;
    }
    // Of both, because the date is in answers of HTTP.
    let now = Instant::now();
    let whole = outcome(protocol, now, [stream]);
    assert_eq!(outcome(protocol, now, cuts), whole, "the cuts matter");
    for action in &whole.0 {
        if let Action::Message { payload, .. } = action {
            assert!(payload.len() <= 300, "a message beyond the limit");
        }
    }
}

fn outcome<'a>(
    protocol: &Protocol,
    now: Instant,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Action>, Vec<u8>) {
    let mut codec: AnyCodec = protocol.codec(now);
    let (mut script, mut late) = (Script::default(), Vec::new());
    codec.opened(&mut script);
    for piece in pieces {
        if script.is_closed() {
            late.extend_from_slice(piece);
        } else {
            codec.receive(piece, now, &mut script);
            assert!(codec.kept_bytes() <= MOST_HELD_BYTES, "{} bytes are held", codec.kept_bytes());
        }
    }
    // What comes after a connection is handed on goes the same way.
    let (mut actions, output) = script.take();
    if let Some(Action::HandOn(first)) = actions.last_mut() {
        first.append(&mut late);
    }
    (actions, output)
}
