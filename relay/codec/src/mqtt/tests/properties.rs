//! Whatever comes, however it is cut.

use proptest::prelude::*;

use super::packets::{
    DISCONNECT, PING, PUBACK, PUBREL, ack, publish, publish_with, subscribe, unsubscribe,
};
use super::*;

/// What a connection has asked for, the identifiers of the messages that Kafka then acknowledges, and
/// what it has sent.
fn run<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Action>, Vec<u8>) {
    let mut peer = Peer::new(&service(|_| ()));
    // The key is in the client identifier that is assigned.
    peer.script.key.generation = 1;
    for piece in pieces {
        peer.codec.receive(piece, peer.now, &mut peer.script);
        assert!(peer.codec.kept_bytes() < 64 << 10, "more than a packet is held");
    }
    peer.codec.delivered(u64::MAX, peer.now, &mut peer.script);
    peer.codec.end_of_stream(peer.now, &mut peer.script);
    peer.codec.ended(CloseReason::EndOfStream, peer.now, &mut peer.script);
    peer.script.take()
}

fn packets(v5: bool) -> impl Strategy<Value = Vec<u8>> {
    let any_publish = (0..16_u8, 0..4_u16, "[a-c/+]{0,4}", "[a-z]{0,300}")
        .prop_map(move |(flags, id, topic, payload)| publish(v5, flags, id, &topic, &payload));
    let good_publish = (0..3_u8, 1..4_u16, "[a-c]{1,4}", "[a-z]{0,300}")
        .prop_map(move |(qos, id, topic, payload)| publish(v5, qos << 1, id, &topic, &payload));
    let alias = (0..20_u8, "[a-c]{0,2}")
        .prop_map(move |(alias, topic)| publish_with(v5, 0, 0, &topic, &[0x23, 0, alias], ""));
    let filters = ("[a-c/+#]{1,4}", 0..4_u8)
        .prop_map(move |(filter, qos)| subscribe(v5, 1, &[(&filter, qos), ("x", 0)]));
    prop_oneof![
        6 => good_publish,
        1 => any_publish,
        1 => alias,
        2 => filters,
        1 => "[a-c]{1,2}".prop_map(move |filter| unsubscribe(v5, 2, &[&filter])),
        2 => Just(PING.to_vec()),
        1 => Just(DISCONNECT.to_vec()),
        2 => (1..4_u16).prop_map(|id| ack(PUBREL, id)),
        1 => (1..4_u16).prop_map(|id| ack(PUBACK, id)),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ]
}

fn streams() -> impl Strategy<Value = Vec<u8>> {
    any::<bool>().prop_flat_map(|v5| {
        (prop::sample::select(vec!["", "a"]), prop::collection::vec(packets(v5), 0..12)).prop_map(
            move |(client, packets)| {
                let mut stream = connect(v5, client).with_will(&[], 0).bytes();
                stream.extend(packets.concat());
                stream
            },
        )
    })
}

proptest! {
    #[test]
    fn cuts_do_not_matter(
        stream in streams(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let whole = run([stream.as_slice()]);
        prop_assert_eq!(&run(stream.chunks(1)), &whole);
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        places.extend([0, stream.len()]);
        places.sort_unstable();
        let pieces = places.windows(2).map(|pair| &stream[pair[0]..pair[1]]);
        prop_assert_eq!(&run(pieces), &whole);
    }

    #[test]
    fn any_bytes_are_survived(
        mut stream in streams(),
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        for (place, byte) in noise {
            let place = place.index(stream.len());
            stream[place] = byte;
        }
        let whole = run([stream.as_slice()]);
        prop_assert_eq!(&run(stream.chunks(3)), &whole);
    }
}
