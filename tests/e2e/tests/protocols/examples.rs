//! The example servers, with records and brokers as nobody wants them. No relay runs: what a relay
//! writes is written by hand.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use millrace_harness::kafka::{self, Topics};
use millrace_harness::system::paths;
use millrace_harness::system::process::{Process, wait_until};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::Signal;

/// A topic that is not there is given up after 30 s (`topic.metadata.propagation.max.ms`).
const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(10);

type Headers = [(&'static str, Option<&'static [u8]>)];

#[derive(Clone, Copy, Debug)]
enum Example {
    Python,
    Rust,
    Chat,
    Site,
    Mqtt,
}

struct Scene {
    topics: Topics,
    producer: BaseProducer,
}

impl Scene {
    fn new(name: &str, downlink: bool) -> Result<Self> {
        let topics = Topics::new(&kafka::brokers(), name);
        topics.create("uplink", 1)?;
        if downlink {
            topics.create("downlink", 1)?;
        }
        let producer = kafka::client(&kafka::brokers()).create()?;
        Ok(Self { topics, producer })
    }

    fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.topics.prefix())
    }

    fn start(&self, example: Example) -> Result<Process> {
        let mut command = match example {
            Example::Python => Command::new(paths::python_server()),
            Example::Rust => Command::new(paths::example_server()?),
            Example::Chat => Command::new(paths::peer("chat.py")),
            Example::Mqtt => Command::new(paths::peer("mqtt_echo.py")),
            Example::Site => Command::new(paths::site_server()),
        };
        command.args([&kafka::brokers(), "0", self.topics.prefix()]);
        if matches!(example, Example::Site) {
            command.arg(paths::site());
        }
        Process::spawn(&format!("{example:?}"), &mut command)
    }

    fn write(&self, headers: &Headers, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<()> {
        let headers = headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
            all.insert(Header { key, value: *value })
        });
        let topic = self.topic("uplink");
        let mut record = BaseRecord::<[u8], [u8]>::to(&topic).partition(0).headers(headers);
        (record.key, record.payload) = (key, value);
        self.producer.send(record).map_err(|(error, _)| error)?;
        Ok(self.producer.flush(PATIENCE)?)
    }

    fn message(&self, value: &str) -> Result<()> {
        self.write(&[("reply", Some(b"0"))], Some(b"k"), Some(value.as_bytes()))
    }

    /// All replies so far.
    fn replies(&self) -> Result<Vec<String>> {
        let group = format!("{}look", self.topics.prefix());
        let consumer: BaseConsumer =
            kafka::client(&kafka::brokers()).set("group.id", group).create()?;
        let topic = self.topic("downlink");
        let (_, end) = consumer.fetch_watermarks(&topic, 0, TIMEOUT)?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, 0, Offset::Beginning)?;
        consumer.assign(&list)?;
        let mut replies = Vec::new();
        wait_until(PATIENCE, "the downlink to be read", || {
            while let Some(record) = consumer.poll(POLL) {
                let value = record?.payload().unwrap_or_default().to_vec();
                replies.push(String::from_utf8_lossy(&value).into_owned());
            }
            Ok(i64::try_from(replies.len())? >= end)
        })?;
        Ok(replies)
    }

    fn wait_reply(&self, server: &mut Process, wanted: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        wait_until(PATIENCE, &format!("the reply {wanted:?}"), || {
            anyhow::ensure!(server.is_running()?, "the server has ended: {}", server.stderr());
            found = self.replies()?;
            Ok(found.iter().any(|reply| reply.contains(wanted)))
        })
        .with_context(|| format!("{found:?}; {}", server.stderr()))?;
        Ok(found)
    }

    fn group(&self) -> Result<BaseConsumer> {
        let group = format!("{}server-0", self.topics.prefix());
        Ok(kafka::client(&kafka::brokers()).set("group.id", group).create()?)
    }

    fn committed(&self) -> Result<Option<i64>> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition(&self.topic("uplink"), 0);
        let told = self.group()?.committed_offsets(asked, TIMEOUT)?;
        let told = told.elements().first().map(TopicPartitionListElem::offset);
        Ok(told.and_then(Offset::to_raw).filter(|offset| *offset >= 0))
    }

    fn wait_committed(&self, offset: i64) -> Result<()> {
        wait_until(PATIENCE, &format!("offset {offset} to be committed"), || {
            Ok(self.committed()? == Some(offset))
        })
    }
}

const ODD: &[&Headers] = &[
    &[],
    &[("kind", Some(b"\xff"))],
    &[("reply", Some(b"\xff\xfe"))],
    &[("reply", Some(b"-1"))],
    &[("reply", Some(b"99999999999999999999"))],
    &[("reply", Some(b"77"))],
    &[("reply", None)],
    &[("reply", Some(b"0")), ("origin", Some(b"\xff")), ("server", Some(b"\xff")), ("n", None)],
    &[
        ("kind", Some(b"open")),
        ("reply", Some(b"0")),
        ("websocket.target", Some(b"/\xff")),
        ("websocket.header.origin", Some(b"\xe9")),
    ],
    &[("kind", Some(b"open")), ("websocket.target", Some(b"/x")), ("reply", Some(b"\xff"))],
    &[
        ("http.method", Some(b"GET")),
        ("http.target", Some(b"/\xff%00%ff")),
        ("http.header.range", Some(b"\xff")),
        ("http.request", Some(b"1")),
        ("reply", Some(b"0")),
    ],
    &[("http.part", Some(b"\xff")), ("http.last", Some(b"1")), ("reply", Some(b"0"))],
    &[("mqtt.topic", Some(b"\xff")), ("mqtt.qos", None), ("reply", Some(b"0"))],
    &[("mqtt.topic", None), ("reply", Some(b"0"))],
];

fn survives(example: Example, question: &Headers, answer: &str) {
    let scene = Scene::new("odd", true).unwrap();
    let mut count = 0;
    for headers in ODD {
        for value in [None, Some(&b"\xff"[..])] {
            for key in [None, Some(&b"\xff"[..])] {
                scene.write(headers, key, value).unwrap();
                count += 1;
            }
        }
    }
    let mut server = scene.start(example).unwrap();
    scene.write(question, Some(b"k"), Some(b"good day")).unwrap();
    scene.wait_reply(&mut server, answer).unwrap();
    scene.wait_committed(count + 1).unwrap();
    server.signal(Signal::KILL).unwrap();
    drop(server);
    let before = scene.replies().unwrap();
    let mut server = scene.start(example).unwrap();
    scene.write(question, Some(b"k"), Some(b"good day")).unwrap();
    scene.wait_committed(count + 2).unwrap();
    let after = scene.wait_reply(&mut server, answer).unwrap();
    assert_eq!(after[..before.len()], before);
    let new = &after[before.len()..];
    assert!(new.len() == 1 && new[0].contains(answer), "{new:?}: nothing is answered again");
}

#[test]
fn the_server_in_python_survives_any_record() {
    survives(Example::Python, &[("reply", Some(b"0"))], "good day");
}

#[test]
fn the_server_in_rust_survives_any_record() {
    survives(Example::Rust, &[("reply", Some(b"0"))], "good day");
}

#[test]
fn the_mqtt_server_survives_any_record() {
    let question: &Headers = &[("reply", Some(b"0")), ("mqtt.topic", Some(b"t"))];
    survives(Example::Mqtt, question, "good day");
}

#[test]
fn the_site_survives_any_record() {
    let question: &Headers = &[
        ("http.method", Some(b"POST")),
        ("http.target", Some(b"/")),
        ("http.request", Some(b"1")),
        ("reply", Some(b"0")),
    ];
    survives(Example::Site, question, "good day");
}

#[test]
fn the_chat_survives_any_record() {
    let scene = Scene::new("odd-chat", true).unwrap();
    for headers in ODD {
        scene.write(headers, Some(b"odd"), None).unwrap();
    }
    let mut server = scene.start(Example::Chat).unwrap();
    let open: &Headers = &[
        ("kind", Some(b"open")),
        ("reply", Some(b"0")),
        ("websocket.target", Some(b"/ann")),
        ("websocket.header.origin", Some(b"\xff")),
    ];
    scene.write(open, Some(b"k"), None).unwrap();
    scene.message("good day").unwrap();
    scene.wait_reply(&mut server, "ann: good day").unwrap();
}

/// The first reply fails for good, because the topic is not there; the next one would be written.
fn loses_nothing(example: Example) {
    let scene = Scene::new("failed-reply", false).unwrap();
    let mut server = scene.start(example).unwrap();
    scene.message("first").unwrap();
    wait_until(PATIENCE, "the first reply to fail", || {
        anyhow::ensure!(server.is_running()?, "the server has ended: {}", server.stderr());
        Ok(server.stderr().contains("a reply was not delivered"))
    })
    .unwrap();
    scene.topics.create("downlink", 1).unwrap();
    scene.message("second").unwrap();
    let replies = scene.wait_reply(&mut server, "second").unwrap();
    assert!(replies.iter().any(|reply| reply == "first"), "{replies:?}; {}", server.stderr());
    scene.wait_committed(2).unwrap();
}

#[test]
fn a_reply_that_fails_is_made_again_in_python() {
    loses_nothing(Example::Python);
}

#[test]
fn a_reply_that_fails_is_made_again_in_rust() {
    loses_nothing(Example::Rust);
}

/// A broker has lost its tail, or a backup is older than the group's offset.
fn goes_on(example: Example) {
    let scene = Scene::new("beyond", true).unwrap();
    for _ in 0..5 {
        scene.message("old").unwrap();
    }
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&scene.topic("uplink"), 0, Offset::Offset(1000)).unwrap();
    scene.group().unwrap().commit(&list, CommitMode::Sync).unwrap();
    let mut server = scene.start(example).unwrap();
    wait_until(PATIENCE, "the server to say so", || {
        Ok(server.stderr().contains("offset 1000 is not there (the log has 0 to 5): going on at 5"))
    })
    .unwrap();
    scene.message("new").unwrap();
    assert_eq!(scene.wait_reply(&mut server, "new").unwrap(), ["new"], "nothing is answered again");
    scene.wait_committed(6).unwrap();
    assert!(server.is_running().unwrap(), "{}", server.stderr());
}

#[test]
fn an_offset_beyond_the_end_is_told_in_python() {
    goes_on(Example::Python);
}

#[test]
fn an_offset_beyond_the_end_is_told_in_rust() {
    goes_on(Example::Rust);
}

/// Whoever waits for a quiet server's offset (a drain) finds one.
#[test]
fn a_quiet_server_has_an_offset() {
    for example in [Example::Python, Example::Rust] {
        let scene = Scene::new("quiet", true).unwrap();
        let server = scene.start(example).unwrap();
        scene.wait_committed(0).unwrap();
        drop(server);
    }
}

/// An offset that the brokers have forgotten, or that somebody has moved, is committed anew.
#[test]
fn a_quiet_server_commits_its_offset_anew() {
    for example in [Example::Python, Example::Rust] {
        let scene = Scene::new("anew", true).unwrap();
        let mut server = scene.start(example).unwrap();
        scene.message("one").unwrap();
        scene.wait_reply(&mut server, "one").unwrap();
        scene.wait_committed(1).unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&scene.topic("uplink"), 0, Offset::Offset(0)).unwrap();
        scene.group().unwrap().commit(&list, CommitMode::Sync).unwrap();
        scene.wait_committed(1).unwrap();
    }
}
