//! What the codec of HTTP makes of any bytes: for its fuzz target, and beside another implementation.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use millrace_relay::codec::script::{Action, Named, Script};
use millrace_relay::codec::{Codec, Framing, Http, HttpSettings, ProtocolKind};
use millrace_relay::config::Service;
use millrace_relay::model::{HeaderList, RelayId, Reply, ReplyOrigin};

use crate::dice::Dice;

const HEAD_BYTES: usize = 1024;
const BODY_BYTES: usize = 256;
const KEPT_BYTES: usize = 4096;
const PIPELINED: usize = 4;
/// Bytes of an input before the stream: where it is cut, how long parts are, who is answered when.
const SETTINGS: usize = 3;

/// A connection without a relay.
#[derive(Debug)]
pub struct Connection {
    codec: Http,
    now: Instant,
    /// What it has asked for.
    pub script: Script,
}

impl Connection {
    /// One whose bodies come in parts of this length.
    pub fn new(part_bytes: u32) -> Self {
        let mut service = Service::new("web", 80, Framing::Lines);
        (service.protocol, service.framing) = (ProtocolKind::Http, None);
        service.max_message_bytes = part_bytes;
        service.http.max_head_bytes = u32::try_from(HEAD_BYTES).expect("small");
        service.http.max_body_bytes = BODY_BYTES as u64;
        service.http.max_kept_bytes = u32::try_from(KEPT_BYTES).expect("small");
        service.http.max_pipelined = u16::try_from(PIPELINED).expect("small");
        let (now, time) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_hours(1));
        let settings = Arc::new(HttpSettings::new(&service.codec(), now, time));
        Self { codec: Http::new(settings, now), now, script: Script::default() }
    }

    /// Takes the next bytes, as long as the relay would give it any.
    pub fn receive(&mut self, bytes: &[u8]) {
        if !self.script.is_closed() {
            self.codec.receive(bytes, self.now, &mut self.script);
        }
    }

    /// The client has ended its side.
    pub fn end(&mut self) {
        if !self.script.is_closed() {
            self.codec.end_of_stream(self.now, &mut self.script);
        }
    }

    /// Answers a request.
    pub fn reply(&mut self, number: u64, payload: &[u8]) {
        if self.script.is_closed() {
            return;
        }
        let mut list = HeaderList::default();
        list.push(b"http.request", number.to_string().as_bytes());
        let offset = i64::try_from(number).expect("small");
        let origin = ReplyOrigin { relay: RelayId(0), offset };
        let reply =
            Reply { origin, headers: list.headers(), payload, waited: Duration::ZERO, held: false };
        let _ = self.codec.reply(reply, self.now, &mut self.script);
    }

    /// The records so far.
    pub fn records(&self) -> impl Iterator<Item = (&Named, &Vec<u8>)> {
        self.script.actions.iter().filter_map(|action| match action {
            Action::Message { headers, payload } => Some((headers, payload)),
            _ => None,
        })
    }
}

/// A header of a record.
pub fn header<'a>(headers: &'a Named, name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_slice())
}

/// A stream and replies in some order: what they lead to must not depend on the cuts, nothing may be
/// held beyond the limits, and the records must be whole requests in order.
pub fn http(input: &[u8]) {
    let Some((settings, stream)) = input.split_at_checked(SETTINGS) else { return };
    let part_bytes = u32::from(settings[1]) + 1;
    let whole = run(part_bytes, settings[2], [stream], stream.len());
    let mut dice = Dice::new(u64::from(settings[0]));
    let mut rest = stream;
    let pieces = std::iter::from_fn(|| {
        let (piece, after) = rest.split_at_checked(1 + dice.below(40)).unwrap_or((rest, &[]));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    });
    let pieces = run(part_bytes, settings[2], pieces, stream.len());
    assert_eq!(pieces.actions, whole.actions, "the cuts matter");
    assert_eq!(pieces.output.escape_ascii().to_string(), whole.output.escape_ascii().to_string());
    check_records(&whole, part_bytes as usize);
}

fn run<'a>(
    part_bytes: u32,
    order: u8,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    length: usize,
) -> Script {
    let mut connection = Connection::new(part_bytes);
    let bound = HEAD_BYTES + part_bytes as usize + KEPT_BYTES + length;
    for piece in pieces {
        connection.receive(piece);
        assert!(connection.codec.kept_bytes() <= bound, "more is held than may be");
    }
    connection.end();
    let mut dice = Dice::new(u64::from(order));
    for turn in 0..12 {
        connection.reply(1 + turn / 3 + dice.below(3) as u64, &[b'r'; 10]);
    }
    connection.script
}

fn check_records(script: &Script, part_bytes: usize) {
    let (mut request, mut parts) = (0_u64, None);
    for action in &script.actions {
        let Action::Message { headers, payload } = action else { continue };
        let number = |name| {
            let value = header(headers, name)?;
            std::str::from_utf8(value).expect("text").parse::<u64>().ok()
        };
        assert!(payload.len() <= part_bytes);
        let (part, last) = (number("http.part"), header(headers, "http.last").is_some());
        if let Some(next) = parts {
            assert_eq!((number("http.request"), part), (Some(request), Some(next)));
        } else {
            request += 1;
            assert_eq!(number("http.request"), Some(request));
            assert!(part.is_none_or(|part| part == 0));
            assert!(header(headers, "http.method").is_some());
        }
        assert!(part.is_none_or(|_| last || payload.len() == part_bytes), "a part is full");
        parts = part.filter(|_| !last).map(|part| part + 1);
    }
}
