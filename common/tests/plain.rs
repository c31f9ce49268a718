//! The short cut of the parser says what the parser says, or nothing.

use millrace_common::packet::{Family, TCP, parse};
use millrace_common::plain::Plain;
use proptest::prelude::*;

fn ipv4() -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([0x08, 0x00, 0x45, 0, 0, 60, 0x12, 0x34, 0x40, 0, 64, TCP, 0, 0]);
    frame.extend([10, 0, 0, 1, 203, 0, 113, 11]);
    frame.extend(segment());
    frame
}

fn ipv6() -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([0x86, 0xdd, 0x6b, 0x80, 0, 0, 0, 40, TCP, 64]);
    frame.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    frame.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    frame.extend(segment());
    frame
}

/// With 8 bytes of options and 12 of payload.
fn segment() -> Vec<u8> {
    let mut segment = vec![0x9c, 0x40, 0x1b, 0x58, 0, 0, 0, 1, 0, 0, 0, 2, 7 << 4, 0x10];
    segment.resize(40, 0);
    segment
}

/// What the parser knows of a frame that is plain.
fn check(frame: &[u8]) -> Result<(), TestCaseError> {
    let (plain, parsed) = (Plain::of(frame), parse(frame));
    if let Some(plain) = &plain {
        let headers = parsed.map_err(|error| TestCaseError::fail(format!("refused: {error:?}")))?;
        prop_assert_eq!((headers.tags, headers.protocol), (0, TCP));
        prop_assert_eq!(headers.family, plain.family);
        prop_assert_eq!(headers.ports, plain.ports);
        prop_assert_eq!(headers.flags, plain.flags);
        prop_assert_eq!(headers.ip_length, plain.ip_length);
        match plain.family {
            Family::Ipv4 => prop_assert_eq!(headers.short_flow(frame), plain.short_flow()),
            Family::Ipv6 => prop_assert_eq!(headers.flow(frame), plain.flow()),
        }
    } else if let Ok(headers) = parsed
        && headers.tags == 0
        && headers.protocol == TCP
    {
        // Only such addresses of IPv6 are left to the parser.
        let flow = headers.flow(frame).unwrap();
        let may_be_mapped =
            [flow.client, flow.server].iter().any(|address| address.words()[..2] == [0, 0]);
        prop_assert!(may_be_mapped && headers.family == Family::Ipv6, "not plain: {headers:?}");
    }
    Ok(())
}

#[test]
fn what_is_usual_is_plain() {
    for (frame, family) in [(ipv4(), Family::Ipv4), (ipv6(), Family::Ipv6)] {
        assert_eq!(Plain::of(&frame[..]).unwrap().family, family);
        check(&frame).unwrap();
        for length in 0..frame.len() {
            check(&frame[..length]).unwrap();
        }
    }
}

#[test]
fn addresses_that_may_be_mapped_are_left_to_the_parser() {
    for at in [22, 38] {
        let mut frame = ipv6();
        frame[at..at + 8].fill(0);
        assert!(Plain::of(&frame[..]).is_none());
        frame[at..at + 12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        assert!(Plain::of(&frame[..]).is_none());
        check(&frame).unwrap();
    }
}

#[test]
fn every_value_of_every_byte_of_the_headers() {
    for frame in [ipv4(), ipv6()] {
        for at in 12..frame.len() - 12 {
            for value in 0..=u8::MAX {
                let mut frame = frame.clone();
                frame[at] = value;
                check(&frame).unwrap();
            }
        }
    }
}

proptest! {
    #[test]
    fn several_bytes_at_once(
        is_ipv6 in any::<bool>(),
        changes in prop::collection::vec((12..74_usize, any::<u8>()), 1..6),
        zeros in prop::option::of(22..38_usize),
    ) {
        let mut frame = if is_ipv6 { ipv6() } else { ipv4() };
        if let Some(at) = zeros {
            frame[at..at + 8].fill(0);
        }
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        check(&frame)?;
    }
}
