//! The plain framings: whole and in pieces, and beside the clients' own reading.

use millrace_relay::codec::{DecodeError, Decoder, Framing};

use crate::clients::wire::Wire;
use crate::dice::Dice;

/// Bytes of an input before the stream: framing, limit, where it is cut.
const SETTINGS: usize = 3;

/// What a decoder made of a stream.
#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    messages: Vec<Vec<u8>>,
    end: Result<(), DecodeError>,
}

/// A stream through the decoder, which must not depend on how it was cut, nor hold more than one
/// message, nor disagree with the clients' own reading of the same bytes.
pub fn codec(input: &[u8]) {
    let Some((settings, stream)) = input.split_at_checked(SETTINGS) else { return };
    let framing = Framing::ALL[usize::from(settings[0]) % Framing::ALL.len()];
    let limit = u32::from(settings[1]);
    let whole = decode(framing, limit, [stream]);
    let mut dice = Dice::new(u64::from(settings[2]));
    let mut rest = stream;
    let pieces = std::iter::from_fn(|| {
        let (piece, after) = rest.split_at_checked(dice.below(9)).unwrap_or((rest, &[]));
        let ended = rest.is_empty();
        rest = after;
        (!ended).then_some(piece)
    });
    assert_eq!(decode(framing, limit, pieces), whole, "the cuts matter");
    check_reference(framing, limit, stream, &whole);

    let mut again = Vec::new();
    for message in &whole.messages {
        // A line that ends with a carriage return came with two, and cannot be sent as it is.
        let encoded = framing.encode(limit, message, &mut again);
        assert!(encoded.is_ok() || message.ends_with(b"\r"), "{encoded:?}: {message:?}");
    }
}

fn decode<'a>(framing: Framing, limit: u32, pieces: impl IntoIterator<Item = &'a [u8]>) -> Decoded {
    let mut decoder = Decoder::new(framing, limit);
    let mut messages = Vec::new();
    for piece in pieces {
        if let Err(error) = decoder.decode(piece, |message| messages.push(message.to_vec())) {
            return Decoded { messages, end: Err(error) };
        }
        assert!(decoder.kept_bytes() <= limit as usize + 4, "more than one message is held");
    }
    Decoded { messages, end: decoder.finish() }
}

/// The clients' side reads the same messages, as far as they are within the limit.
fn check_reference(framing: Framing, limit: u32, stream: &[u8], decoded: &Decoded) {
    let wire = Wire(framing);
    let mut rest = stream;
    for message in &decoded.messages {
        let (expected, after) = wire.split(rest).expect("a message that only the decoder sees");
        let expected = match framing {
            Framing::Lines => expected.strip_suffix(b"\r").unwrap_or(expected),
            Framing::Length { .. } => expected,
        };
        assert_eq!(message, expected);
        assert!(message.len() <= limit as usize);
        rest = after;
    }
    match decoded.end {
        Ok(()) => assert!(rest.is_empty(), "bytes vanished: {rest:?}"),
        Err(DecodeError::Truncated { held }) => {
            assert_eq!(held, rest.len());
            assert!(wire.split(rest).is_none(), "a whole message was held back");
        }
        Err(DecodeError::Oversized { .. }) => match wire.split(rest) {
            Some((message, _)) => assert!(message.len() > limit as usize),
            // Refused by its length, or as a line that has grown too long already.
            None => assert!(!rest.is_empty()),
        },
    }
}
