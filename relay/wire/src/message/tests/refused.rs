//! What cannot be read, or says that we cannot speak with the broker.

use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::metadata_response::MetadataResponseBroker;
use kafka_protocol::messages::{ApiVersionsResponse, MetadataResponse};

use super::answers::{api, identity, metadata, produce, versions};
use super::*;

/// What reads the body of an answer, and what it makes of the bytes.
type Read = fn(&[u8], i16) -> Result<(), Malformed>;

fn read_versions(bytes: &[u8], _: i16) -> Result<(), Malformed> {
    match Versions::read(Reader::new(bytes), VersionsFormat::Usual) {
        Err(Unusable::Malformed(malformed)) => Err(malformed),
        _ => Ok(()),
    }
}

fn read_metadata(bytes: &[u8], _: i16) -> Result<(), Malformed> {
    Metadata::read(Reader::new(bytes), TOPIC).map(drop)
}

fn read_identity(bytes: &[u8], _: i16) -> Result<(), Malformed> {
    read_init_producer_response(Reader::new(bytes)).map(drop)
}

fn read_produce(bytes: &[u8], version: i16) -> Result<(), Malformed> {
    read_produce_response(Reader::new(bytes), version, |_| ()).map(drop)
}

/// Bodies, with their versions and what reads them.
fn bodies() -> impl Strategy<Value = (Vec<u8>, i16, Read)> {
    prop_oneof![
        versions().prop_map(|(_, answer)| (body(&answer, 3), 3, read_versions as Read)),
        metadata().prop_map(|answer| (body(&answer, 12), 12, read_metadata as Read)),
        identity().prop_map(|answer| (body(&answer, 4), 4, read_identity as Read)),
        produce().prop_map(|(version, answer)| (
            body(&answer, version),
            version,
            read_produce as Read
        )),
    ]
}

/// Everything that reads bytes of a broker.
fn read_all(bytes: &[u8]) {
    for read in [read_versions, read_metadata, read_identity] {
        let _ = read(bytes, 0);
    }
    for version in 9..=13 {
        let _ = read_produce(bytes, version);
    }
    for of in [Api::Produce, Api::Metadata, Api::ApiVersions, Api::InitProducerId] {
        let _ = read_header(bytes, of);
    }
}

fn refusal(answer: &ApiVersionsResponse, version: i16) -> String {
    Versions::read(Reader::new(&body(answer, version)), VersionsFormat::Usual)
        .unwrap_err()
        .to_string()
}

fn knowing(apis: &[ApiVersion]) -> ApiVersionsResponse {
    ApiVersionsResponse::default().with_api_keys(apis.to_vec())
}

proptest! {
    // As many readings as an answer has bytes.
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn an_answer_that_ends_early((bytes, version, read) in bodies()) {
        prop_assert_eq!(read(&bytes, version), Ok(()));
        for length in 0..bytes.len() {
            prop_assert_eq!(read(&bytes[..length], version), Err(Malformed::Short), "{}", length);
        }
    }
}

proptest! {
    /// librdkafka's mock broker puts a field behind Metadata 12 that has gone with version 11.
    #[test]
    fn an_answer_that_goes_on_is_read_as_far_as_it_is_known(
        (mut bytes, version, read) in bodies(),
        more in any::<u8>(),
    ) {
        bytes.push(more);
        prop_assert_eq!(read(&bytes, version), Ok(()));
    }

    #[test]
    fn a_header_that_ends_early(correlation in any::<i32>(), tags in tags()) {
        for (of, version) in [(Api::ApiVersions, 0), (Api::Metadata, 1)] {
            let bytes = header(correlation, tags.clone(), version);
            for length in 0..bytes.len() {
                let read = read_header(&bytes[..length], of).map(drop);
                prop_assert_eq!(read, Err(Malformed::Short), "{}", length);
            }
        }
    }

    #[test]
    fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_all(&bytes);
    }

    #[test]
    fn whatever_an_answer_becomes_is_read_or_refused(
        (mut bytes, _, _) in bodies(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        read_all(&bytes);
    }

    /// No bytes make a broker usable that does not know what is needed.
    #[test]
    fn ranges_that_do_not_overlap(
        which in 0..3_usize,
        above in any::<bool>(),
        [one, other] in any::<[u8; 2]>(),
    ) {
        let mut apis = [api(0, 0, 13), api(3, 0, 13), api(22, 0, 5)];
        let (name, ours_least, ours_most) =
            [("Produce", 9, 13), ("Metadata", 12, 12), ("InitProducerId", 4, 4)][which];
        let [one, other] = [one.min(other), one.max(other)].map(i16::from);
        let (least, most) = if above {
            (ours_most + 1 + one, ours_most + 1 + other)
        } else {
            (one % ours_least, one % ours_least + other % (ours_least - one % ours_least))
        };
        (apis[which].min_version, apis[which].max_version) = (least, most);
        let expected = Unusable::Versions { name, least, most, ours_least, ours_most };
        let read = Versions::read(Reader::new(&body(&knowing(&apis), 3)), VersionsFormat::Usual);
        prop_assert_eq!(read, Err(expected));
        prop_assert_eq!(
            expected.to_string(),
            format!(
                "it knows {name} {least} to {most}, and {ours_least} to {ours_most} are needed \
                 (Kafka 3.6 and newer)"
            )
        );
    }
}

/// As brokers before Kafka 2.4 answer: in the format of version 0, in which they are asked again.
#[test]
fn a_broker_that_does_not_know_our_question_is_asked_in_the_oldest_format() {
    let unknown = body(&knowing(&[api(18, 0, 2)]).with_error_code(35), 0);
    let read = |bytes: &[u8], format| Versions::read(Reader::new(bytes), format);
    assert_eq!(read(&unknown, VersionsFormat::Usual), Err(Unusable::Format));
    assert_eq!(read(&unknown, VersionsFormat::Oldest), Err(Unusable::Refused(35)));
    let apis = [api(0, 0, 10), api(3, 0, 12), api(22, 0, 4)];
    let answer = body(&knowing(&apis), 0);
    assert_eq!(read(&answer, VersionsFormat::Oldest), Ok(Versions { produce: 10 }));
    for length in 0..answer.len() {
        let cut = read(&answer[..length], VersionsFormat::Oldest);
        assert_eq!(cut, Err(Unusable::Malformed(Malformed::Short)), "{length}");
    }
}

#[test]
fn a_broker_that_does_not_tell() {
    let answer = knowing(&[]).with_error_code(31);
    assert_eq!(refusal(&answer, 3), "it refuses to tell its versions, with error 31");
}

/// Controllers answer too, and take neither records nor questions about topics.
#[test]
fn a_broker_that_lacks_something() {
    let apis = [api(0, 0, 13), api(3, 0, 13), api(22, 0, 5)];
    for (lacking, name) in [(0, "Produce"), (1, "Metadata"), (2, "InitProducerId")] {
        let mut apis = apis.to_vec();
        apis.remove(lacking);
        assert_eq!(
            refusal(&knowing(&apis), 3),
            format!("it does not know {name} at all: it is no broker, or older than Kafka 3.6")
        );
    }
}

#[test]
fn an_answer_about_versions_that_cannot_be_read() {
    let read = Versions::read(Reader::new(&[0, 0, 2, 0]), VersionsFormat::Usual);
    assert_eq!(
        read.unwrap_err().to_string(),
        "the answer about its versions cannot be read: it ends within a field"
    );
}

#[test]
fn a_broker_without_a_port() {
    for port in [-1, 65_536, i32::MIN, i32::MAX] {
        let broker = MetadataResponseBroker::default().with_port(port);
        let answer = MetadataResponse::default().with_brokers(vec![broker]);
        assert_eq!(read_metadata(&body(&answer, 12), 12), Err(Malformed::Length), "{port}");
    }
}

/// The schema does not allow null there: lists of brokers, topics, partitions, replicas and results.
#[test]
fn null_where_there_is_a_list() {
    let empty = body(&MetadataResponse::default(), 12);
    // Behind the throttle time.
    let mut no_brokers = empty.clone();
    no_brokers[4] = 0;
    assert_eq!(read_metadata(&no_brokers, 12), Err(Malformed::Length));
    // Behind no brokers, no cluster's id and the controller.
    let mut no_topics = empty;
    no_topics[4 + 1 + 1 + 4] = 0;
    assert_eq!(read_metadata(&no_topics, 12), Err(Malformed::Length));
    for version in 9..=13 {
        assert_eq!(read_produce(&[0; 6], version), Err(Malformed::Length));
    }
    assert_eq!(read_versions(&[0; 8], 3), Err(Malformed::Length));
}

/// Lengths that nobody can have sent take neither memory nor time.
#[test]
fn a_length_without_what_it_counts() {
    const MOST: [u8; 5] = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let behind = |before: usize| [&vec![0; before][..], &MOST, &[0; 64]].concat();
    // Brokers; no topics; results; versions.
    assert!(read_metadata(&behind(4), 12).is_err());
    assert!(read_produce(&behind(0), 13).is_err());
    assert!(read_versions(&behind(2), 3).is_err());
    // Tagged fields.
    assert!(read_header(&behind(4), Api::Produce).is_err());
}
