//! A record written by hand, with nonsense in key, headers or value, on every topic that a relay reads:
//! counted, and nothing stalls.

use std::time::Duration;

use millrace_harness::kafka;
use millrace_harness::relay::dead_letters::Letters;
use millrace_harness::relay::direct::Direct;
use millrace_harness::relay::instance::Stats;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::process::wait_until;
use millrace_relay::model::IdentityKind;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

const PATIENCE: Duration = Duration::from_secs(30);

/// Keys, each with every set of headers and every value.
fn keys() -> Vec<Option<Vec<u8>>> {
    let key = "0000-0193abcdef12-03-00002a-00000007";
    let mut keys = vec![None, Some(Vec::new()), Some(vec![0xff; 36]), Some(vec![0; 70_000])];
    for text in [
        "nonsense",
        "echo/nonsense",
        "echo/127.0.0.001",
        "nobody/127.0.0.1",
        "/",
        &key.to_uppercase(),
        &format!("{key}/"),
        &format!("{key}/echo"),
        &format!("{key}-echo/127.0.0.1"),
        &format!("{key}/nobody/127.0.0.1"),
    ] {
        keys.push(Some(text.as_bytes().to_vec()));
    }
    keys.push(Some([key.as_bytes(), b"/echo/\xff\xfe"].concat()));
    keys
}

type Headers = Vec<(&'static str, Option<&'static [u8]>)>;

fn header_sets() -> Vec<Headers> {
    vec![
        vec![],
        vec![("", None), ("kind", Some(b"\xff")), ("kind", None)],
        vec![("millrace.kind", Some(b"reply")), ("millrace.relay", Some(b"\xff-"))],
        vec![("millrace.kind", Some(b"reply"))],
        vec![("millrace.kind", Some(b"delivered"))],
        vec![("millrace.kind", Some(b"no kind")), ("millrace.offset", Some(b"x"))],
    ]
}

/// Writes all nonsense to a partition; the number of records.
fn write(producer: &BaseProducer, topic: &str) -> u64 {
    let mut count = 0;
    for key in keys() {
        for headers in header_sets() {
            for value in [None, Some(&b"\xff\xfe,17"[..]), Some(b""), Some(b"{}")] {
                let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                    headers.insert(Header { key, value: *value })
                });
                let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(0).headers(headers);
                record.key = key.as_deref();
                record.payload = value;
                producer.send(record).map_err(|(error, _)| error).unwrap();
                count += 1;
            }
        }
    }
    producer.flush(PATIENCE).unwrap();
    count
}

#[test]
fn nonsense_on_every_topic_is_counted_and_stalls_nothing() {
    let mut relay = Direct::build("nonsense", |config| {
        config.services[0].identity = IdentityKind::Address;
    })
    .unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = relay.connect().unwrap();
    let open = server.next("open", |record| record.kind() == "open").unwrap();

    let producer: BaseProducer = kafka::client(&relay.brokers).create().unwrap();
    let prefix = relay.topics.prefix();
    let in_downlink = write(&producer, &format!("{prefix}downlink"));
    let in_held = write(&producer, &format!("{prefix}held"));
    write(&producer, &format!("{prefix}deadletter"));

    server.reply(&open, b"after all that").unwrap();
    assert_eq!(client.receive().unwrap(), b"after all that");
    let settled = |stats: &Stats| {
        Ok::<_, anyhow::Error>(
            stats.total("replies_dead_lettered")? + stats.count("replies_sent")? == in_downlink + 1,
        )
    };
    wait_until(PATIENCE, "every reply to be settled", || settled(&relay.instance.stats()?))
        .unwrap();
    let held = || relay.instance.stats()?.total("held_refused");
    wait_until(PATIENCE, "every held record to be refused", || Ok(held()? == in_held)).unwrap();
    let stats = relay.instance.stats().unwrap();
    assert_eq!(stats.count("held_waiting").unwrap(), 0, "{stats:?}");
    // Those of the right form are of a run that never was, and for nobody here.
    assert_ne!(stats.count_by("replies_dead_lettered", "former_run").unwrap(), 0, "{stats:?}");

    // A client with replies that wait still gets them.
    drop(client);
    server.next("close", |record| record.kind() == "close").unwrap();
    server.reply(&open, b"while away").unwrap();
    wait_until(PATIENCE, "the reply to wait", || {
        Ok(relay.instance.stats()?.count("held_waiting")? == 1)
    })
    .unwrap();
    assert_eq!(relay.connect().unwrap().receive().unwrap(), b"while away");
    let ours = Letters::read(&relay, usize::try_from(2 * in_downlink).unwrap()).unwrap();
    let ours = ours.iter().filter(|letter| letter.header("millrace.reason").is_some());
    assert_eq!(ours.count() as u64, in_downlink);
}
