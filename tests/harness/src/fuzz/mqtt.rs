//! The MQTT codec over any bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_relay::codec::script::{Action, Script};
use millrace_relay::codec::{ByteOrder, Codec, Framing, Mqtt, Sending};
use millrace_relay::config::Service;
use millrace_relay::model::{CloseReason, HeaderList, RelayId, Reply, ReplyOrigin};

use crate::clients::mqtt::speak;
use crate::dice::Dice;

const MAX_MESSAGE_BYTES: u32 = 256;
/// What a codec may hold beside its input.
const MAX_HELD_BYTES: usize = 64 << 10;

/// What a codec has made of a stream.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    actions: Vec<Action>,
    output: Vec<u8>,
    sendings: Vec<bool>,
}

/// A stream through the codec, whose first byte says how it is cut: what comes of it must not depend
/// on that, and what is kept is bounded.
pub fn mqtt(input: &[u8]) {
    let Some((seed, stream)) = input.split_first() else { return };
    let whole = run(&mut [stream].into_iter());
    let mut dice = Dice::new(u64::from(*seed));
    let mut rest = stream;
    let mut pieces = std::iter::from_fn(|| {
        let (piece, after) = rest.split_at_checked(dice.below(9)).unwrap_or((rest, &[]));
        let ended = rest.is_empty();
        rest = after;
        (!ended).then_some(piece)
    });
    assert_eq!(run(&mut pieces), whole, "the cuts matter");
    let closed = whole.actions.iter().filter(|action| matches!(action, Action::Close(_))).count();
    assert!(closed <= 1, "closed {closed} times");
}

fn run(pieces: &mut dyn Iterator<Item = &[u8]>) -> Outcome {
    let framing = Framing::Length { bytes: 4, order: ByteOrder::Big };
    let mut service = Service::new("mqtt", 1883, framing);
    service.max_message_bytes = MAX_MESSAGE_BYTES;
    speak(&mut service, |section| {
        section.tell_subscriptions = true;
        section.send_maximum = 2;
    });
    let mqtt = Arc::new(Mqtt::new(&service.codec()));
    let now = Instant::now();
    let mut codec = mqtt.codec(now);
    let mut script = Script::default();
    for piece in pieces {
        codec.receive(piece, now, &mut script);
        assert!(codec.kept_bytes() <= MAX_HELD_BYTES, "{} bytes are held", codec.kept_bytes());
    }
    codec.delivered(u64::MAX, now, &mut script);
    let sendings = (0..4).map(|offset| reply(codec.as_mut(), offset, now, &mut script)).collect();
    if !script.is_closed() {
        codec.end_of_stream(now, &mut script);
    }
    codec.ended(CloseReason::EndOfStream, now, &mut script);
    let (actions, output) = script.take();
    Outcome { actions, output, sendings }
}

/// Whether a reply was taken by the codec, which then has it in its output or keeps it.
fn reply(codec: &mut dyn Codec, offset: i64, now: Instant, script: &mut Script) -> bool {
    let mut headers = HeaderList::default();
    headers.push(b"mqtt.topic", b"a/b");
    headers.push(b"mqtt.qos", b"2");
    headers.push(b"mqtt.user.name", b"value");
    let origin = ReplyOrigin { relay: RelayId(0), offset };
    let reply = Reply {
        origin,
        headers: headers.headers(),
        payload: b"reply",
        waited: Duration::ZERO,
        held: false,
    };
    let before = script.output.len();
    let sending = codec.reply(reply, now, script).expect("it can be published");
    assert!(sending != Sending::WithOutput || script.output.len() > before);
    sending != Sending::Unwanted
}
