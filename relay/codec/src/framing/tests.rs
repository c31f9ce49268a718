use proptest::prelude::*;

use super::*;

const LIMIT: u32 = 200;

fn framings() -> impl Strategy<Value = Framing> {
    prop::sample::select(&Framing::ALL[..])
}

fn decode_in_pieces<'a>(
    framing: Framing,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Vec<u8>>, Result<(), DecodeError>) {
    let mut decoder = Decoder::new(framing, LIMIT);
    let mut messages = Vec::new();
    for piece in pieces {
        if let Err(error) = decoder.decode(piece, |message| messages.push(message.to_vec())) {
            return (messages, Err(error));
        }
        assert!(decoder.kept_bytes() <= LIMIT as usize + 4, "a decoder holds at most one message");
    }
    let end = decoder.finish();
    (messages, end)
}

fn cut<'a>(stream: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    places.extend([0, stream.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded(
        framing in framings(),
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..=LIMIT as usize), 0..20),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let mut stream = Vec::new();
        let mut sent = Vec::new();
        for payload in payloads {
            match framing.encode(LIMIT, &payload, &mut stream) {
                Ok(()) => sent.push(payload),
                Err(error) => prop_assert_eq!(error, EncodeError::NotALine),
            }
        }
        let (received, end) = decode_in_pieces(framing, cut(&stream, &cuts));
        prop_assert_eq!(received, sent);
        prop_assert_eq!(end, Ok(()));
    }

    #[test]
    fn cuts_do_not_matter_for_any_bytes(
        framing in framings(),
        stream in prop::collection::vec(prop_oneof![any::<u8>(), 0..3u8, Just(b'\n'), Just(b'\r')], 0..600),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let whole = decode_in_pieces(framing, [stream.as_slice()]);
        let byte_by_byte = decode_in_pieces(framing, stream.chunks(1));
        let (messages, end) = decode_in_pieces(framing, cut(&stream, &cuts));
        prop_assert_eq!(&whole.0, &messages);
        prop_assert_eq!(&whole.0, &byte_by_byte.0);
        prop_assert_eq!(whole.1, end);
        prop_assert_eq!(whole.1, byte_by_byte.1);
    }
}

/// The generator is a plain xorshift so that a million inputs take
/// seconds, and its seed is fixed so that a failure can be repeated.
#[test]
fn a_million_random_inputs_do_not_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = [0; 64];
    let mut emitted = 0_usize;
    for iteration in 0..1_000_000_usize {
        let framing = Framing::ALL[iteration % Framing::ALL.len()];
        let mut decoder = Decoder::new(framing, 100);
        for _ in 0..next() % 4 {
            let length = usize::try_from(next() % 64).unwrap();
            for chunk in bytes.chunks_mut(8) {
                // Half of the bytes small, so that lengths often fit and messages complete.
                let mask = if next() & 1 == 0 { u64::MAX } else { 0x0f0f_0f0f_0f0f_0f0f };
                chunk.copy_from_slice(&(next() & mask).to_le_bytes());
            }
            if decoder.decode(&bytes[..length], |message| emitted += message.len()).is_err() {
                break;
            }
        }
        let _ = decoder.finish();
    }
    assert!(emitted > 1_000_000, "the inputs reach the messages: {emitted} bytes emitted");
}

#[test]
fn limits_are_exact() {
    let two = Framing::Length { bytes: 2, order: ByteOrder::Little };
    let mut decoder = Decoder::new(two, 3);
    let mut seen = Vec::new();
    decoder.decode(b"\x03\x00abc", |message| seen.push(message.to_vec())).unwrap();
    assert_eq!(seen, [b"abc"]);
    assert_eq!(
        decoder.decode(b"\x04\x00", |_| panic!("no message")),
        Err(DecodeError::Oversized { limit: 3 })
    );

    let mut lines = Decoder::new(Framing::Lines, 3);
    let mut seen = Vec::new();
    lines.decode(b"abc\r\nab\n\nabc\r", |message| seen.push(message.to_vec())).unwrap();
    assert_eq!(seen, [&b"abc"[..], b"ab", b""]);
    assert_eq!(lines.finish(), Err(DecodeError::Truncated { held: 4 }));
    assert_eq!(lines.decode(b"d", |_| ()), Err(DecodeError::Oversized { limit: 3 }));
}

#[test]
fn the_last_line_may_end_with_the_stream() {
    for (stream, messages, end) in [
        (&b"a\nlast"[..], &[&b"a"[..], b"last"][..], Ok(())),
        (b"last\r", &[b"last"], Ok(())),
        (b"a\n", &[b"a"], Ok(())),
        (b"", &[], Ok(())),
        (b"four", &[], Err(DecodeError::Oversized { limit: 3 })),
    ] {
        let limit = if end.is_ok() { 100 } else { 3 };
        let mut lines = Decoder::new(Framing::Lines, limit);
        let mut seen = Vec::new();
        lines.decode(stream, |message| seen.push(message.to_vec())).unwrap();
        assert_eq!(lines.end(|message| seen.push(message.to_vec())), end);
        assert_eq!(seen, messages);
    }
    let one = Framing::Length { bytes: 1, order: ByteOrder::Big };
    let mut decoder = Decoder::new(one, 100);
    decoder.decode(b"\x03ab", |_| panic!("no message")).unwrap();
    assert_eq!(decoder.end(|_| panic!("no message")), Err(DecodeError::Truncated { held: 3 }));
}

#[test]
fn a_line_that_would_not_survive_is_refused() {
    let mut output = Vec::new();
    for payload in [&b"a\nb"[..], b"a\r"] {
        assert_eq!(Framing::Lines.encode(LIMIT, payload, &mut output), Err(EncodeError::NotALine));
    }
    let one = Framing::Length { bytes: 1, order: ByteOrder::Big };
    assert_eq!(one.encode(2, b"abc", &mut output), Err(EncodeError::TooLong));
    assert!(output.is_empty());
}

#[test]
fn a_length_that_cannot_reach_the_limit_is_refused() {
    let framing = |bytes| Framing::Length { bytes, order: ByteOrder::Big };
    assert!(framing(1).check(255).is_ok());
    assert!(framing(1).check(256).is_err());
    assert!(framing(3).check(1).is_err());
    assert!(Framing::Lines.check(u32::MAX).is_ok());
}
