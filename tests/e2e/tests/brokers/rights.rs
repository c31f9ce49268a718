//! What the relay must be allowed to do in Kafka, and what it says when it is not; and quotas.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_harness::kafka::requests::{
    Operation, Resource, Right, allow, forbid, set_write_quota,
};
use millrace_harness::kafka::{self, OwnBroker};
use millrace_harness::net::free_port;
use millrace_harness::relay::dead_letters::Letters;
use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::process::{Finished, run, wait_until};
use millrace_relay::config::{KafkaSection, Server};
use millrace_relay::model::Partition;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

const PATIENCE: Duration = Duration::from_secs(30);
/// A start that is refused may have waited for a cluster that says "timed out".
const REFUSAL: Duration = Duration::from_mins(2);

/// With as many partitions as the relay here needs, but for the uplink.
const ALL_TOPICS: [(&str, i32); 6] = [
    ("uplink", 1),
    ("downlink", 1),
    ("registry", 1),
    ("associations", 4),
    ("held", 4),
    ("deadletter", 1),
];

/// A broker that asks its users who they are, and one listener where everybody may do everything.
struct Guarded {
    broker: OwnBroker,
    users: String,
}

impl Guarded {
    fn start(name: &str) -> Result<Self> {
        let directory: PathBuf =
            std::env::temp_dir().join(format!("millrace-rights-{name}-{}", std::process::id()));
        let [port, controller, users] = [free_port()?, free_port()?, free_port()?];
        let at = |port: u16| format!("127.0.0.1:{port}");
        let (plain, users) = (at(port), at(users));
        let properties = [
            format!("listeners=CLIENTS://{plain},CONTROLLER://{},USERS://{users}", at(controller)),
            format!("advertised.listeners=CLIENTS://{plain},USERS://{users}"),
            "listener.security.protocol.map=CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT,\
             USERS:SASL_PLAINTEXT"
                .to_owned(),
            format!("controller.quorum.voters=1@{}", at(controller)),
            "sasl.enabled.mechanisms=PLAIN".to_owned(),
            "listener.name.users.plain.sasl.jaas.config=\
             org.apache.kafka.common.security.plain.PlainLoginModule required \
             user_relay=\"secret\" user_server=\"secret\";"
                .to_owned(),
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer"
                .to_owned(),
            "super.users=User:ANONYMOUS".to_owned(),
        ];
        let properties: Vec<&str> = properties.iter().map(String::as_str).collect();
        Ok(Self { broker: OwnBroker::start_at(&directory, port, &properties)?, users })
    }

    /// A relay that is the user `relay`, with two servers.
    fn relay(&self, name: &str) -> Result<Direct> {
        Direct::at(self.broker.address(), name, |config| {
            self.users.clone_into(&mut config.kafka.brokers);
            config.kafka.properties.extend(credentials("relay"));
            let service = &mut config.services[0];
            let address = service.servers[0].address;
            service.servers.push(Server::new("other".to_owned(), address, Partition(1)));
        })
    }

    fn client(&self, user: &str) -> ClientConfig {
        let mut client = kafka::client(&self.users);
        for (name, value) in credentials(user) {
            client.set(name, value);
        }
        client
    }
}

fn credentials(user: &str) -> [(String, String); 4] {
    [
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanisms", "PLAIN"),
        ("sasl.username", user),
        ("sasl.password", "secret"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
}

/// The relay's least rights on topics, as docs/brokers.md has them.
fn on_topics(prefix: &str) -> Vec<Right> {
    use Operation::{Read, Write};
    [
        ("uplink", Write),
        ("downlink", Read),
        ("registry", Read),
        ("registry", Write),
        ("associations", Read),
        ("associations", Write),
        ("held", Read),
        ("held", Write),
        ("deadletter", Write),
    ]
    .map(|(topic, operation)| Right::new(Resource::Topic, format!("{prefix}{topic}"), operation))
    .to_vec()
}

/// And the others: groups, the topics that it makes, and what it does not refuse to run without.
fn others(prefix: &str) -> Vec<Right> {
    let group =
        |name: &str| Right::new(Resource::Group, format!("{prefix}{name}"), Operation::Read);
    let topic =
        |name: &str| Right::new(Resource::Topic, format!("{prefix}{name}"), Operation::Read);
    vec![
        Right::on_prefix(Resource::Topic, prefix, Operation::Create),
        Right::on_prefix(Resource::Topic, prefix, Operation::Alter),
        Right::on_prefix(Resource::Group, prefix, Operation::Describe),
        group("relay-0"),
        group("coordinator"),
        Right::on_prefix(Resource::Group, format!("{prefix}server-"), Operation::Read),
        topic("uplink"),
        topic("deadletter"),
    ]
}

/// A server's.
fn of_server(prefix: &str) -> Vec<Right> {
    let topic =
        |name: &str, operation| Right::new(Resource::Topic, format!("{prefix}{name}"), operation);
    vec![
        topic("uplink", Operation::Read),
        topic("downlink", Operation::Write),
        topic("registry", Operation::Read),
        topic("registry", Operation::Write),
        Right::on_prefix(Resource::Group, format!("{prefix}server-"), Operation::Read),
    ]
}

/// Reads one partition as a server does, answers its first message, and commits.
fn serve_once(guarded: &Guarded, prefix: &str, message: &Record, reply: &[u8]) -> Result<()> {
    let partition = i32::from(message.partition);
    let topic = format!("{prefix}uplink");
    let group = format!("{prefix}server-{partition}");
    let consumer: BaseConsumer = guarded.client("server").set("group.id", &group).create()?;
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(&topic, partition, Offset::Beginning)?;
    consumer.assign(&place)?;
    let mut read = None;
    wait_until(PATIENCE, "the server to read its message", || {
        if let Some(record) = consumer.poll(Duration::from_millis(100)) {
            let record = record?;
            read = Some(record.offset() + 1);
            return Ok(record.payload() == Some(&message.value));
        }
        Ok(false)
    })?;
    let producer: BaseProducer =
        guarded.client("server").set("enable.idempotence", "true").create()?;
    let downlink = format!("{prefix}downlink");
    let record = BaseRecord::to(&downlink).partition(0).key(&message.key).payload(reply);
    producer.send(record).map_err(|(error, _)| error)?;
    producer.flush(PATIENCE)?;
    let mut end = TopicPartitionList::new();
    end.add_partition_offset(&topic, partition, Offset::Offset(read.context("nothing read")?))?;
    Ok(consumer.commit(&end, CommitMode::Sync)?)
}

#[test]
fn with_the_least_rights_everything_works_and_draining_too() {
    let guarded = Guarded::start("least").unwrap();
    let mut relay = guarded.relay("least").unwrap();
    let (admin, prefix) = (guarded.broker.address(), relay.topics.prefix().to_owned());
    let rights = [on_topics(&prefix), others(&prefix)].concat();
    allow(admin, "relay", &rights).unwrap();
    allow(admin, "server", &of_server(&prefix)).unwrap();
    relay.instance.start().unwrap();

    let watcher = HandServer::on(admin, &prefix, &[0, 1]).unwrap();
    let mut client = relay.connect().unwrap();
    client.send(b"hello").unwrap();
    let message = watcher.next("the message", |record| record.value == b"hello").unwrap();
    serve_once(&guarded, &prefix, &message, b"good day").unwrap();
    assert_eq!(client.receive().unwrap(), b"good day");
    let letters = KafkaSection {
        brokers: admin.to_owned(),
        topic_prefix: prefix.clone(),
        ..KafkaSection::default()
    };
    let nobody = Record { key: "nobody".to_owned(), ..message.clone() };
    watcher.reply(&nobody, b"a dead letter").unwrap();
    assert_eq!(Letters::of(&letters, 1).unwrap()[0].reason(), "malformed_key");

    let id = ["server", "other"][usize::from(message.partition)];
    relay.instance.order("drain", id).unwrap();
    watcher
        .next("the client at the other server", |record| record.header("moved_from") == id)
        .unwrap();
    wait_until(PATIENCE, "the ledger to balance", || {
        let ledger = run("relay ledger", &mut relay.instance.command("ledger", false), REFUSAL)?;
        Ok(ledger.status.success())
    })
    .unwrap();
    let said = relay.instance.relay_stderr();
    assert!(!said.contains("uthorization"), "{said}");
}

#[test]
fn a_missing_right_is_named() {
    let guarded = Guarded::start("missing").unwrap();
    let mut relay = guarded.relay("missing").unwrap();
    let (admin, prefix) = (guarded.broker.address(), relay.topics.prefix().to_owned());
    let on_topics = on_topics(&prefix);
    let rights = [on_topics.clone(), others(&prefix)].concat();
    allow(admin, "relay", &rights).unwrap();
    // It makes the topics.
    relay.instance.start().unwrap();
    relay.instance.stop().unwrap();

    for right in &on_topics {
        forbid(admin, "relay", right).unwrap();
        let finished = refused(&relay);
        let named = format!("{} on topic {}", name(right.operation), right.name);
        assert!(!finished.status.success() && finished.stderr.contains(&named), "{finished:?}");
        allow(admin, "relay", std::slice::from_ref(right)).unwrap();
    }
    // Who may look at the group's offset may not commit one; and who may not look may not either.
    let group = Right::new(Resource::Group, format!("{prefix}relay-0"), Operation::Read);
    let look = Right::on_prefix(Resource::Group, &prefix, Operation::Describe);
    forbid(admin, "relay", &group).unwrap();
    for may_look in [true, false] {
        if !may_look {
            forbid(admin, "relay", &look).unwrap();
        }
        let finished = refused(&relay);
        let named = format!(
            "does not grant this relay the rights that it needs: READ on group {}",
            group.name
        );
        assert!(!finished.status.success() && finished.stderr.contains(&named), "{finished:?}");
    }
    allow(admin, "relay", std::slice::from_ref(&group)).unwrap();

    // Without the other group the relay runs. It has said so when it does, and once.
    let office = Right::new(Resource::Group, format!("{prefix}coordinator"), Operation::Read);
    let named = format!("READ on group {}", office.name);
    forbid(admin, "relay", &office).unwrap();
    for may_look in [false, true] {
        if may_look {
            allow(admin, "relay", std::slice::from_ref(&look)).unwrap();
        }
        relay.instance.start().unwrap();
        let said = relay.instance.relay_stderr();
        let warned = said.lines().filter(|line| {
            line.contains(&named) && line.contains("this relay will not coordinate")
        });
        assert_eq!(warned.count(), 1, "{said}");
        wait_until(PATIENCE, "the relay to be refused by its group", || {
            let said = relay.instance.relay_stderr();
            Ok(said.contains(&format!("does not allow this relay {named}")))
        })
        .unwrap();
        relay.instance.stop().unwrap();
    }
    // A start that is refused names it with the others.
    forbid(admin, "relay", &group).unwrap();
    let finished = refused(&relay);
    let all = format!("READ on group {}, {named};", group.name);
    assert!(!finished.status.success() && finished.stderr.contains(&all), "{finished:?}");
}

fn refused(relay: &Direct) -> Finished {
    let mut command = relay.instance.command("run", false);
    command.args(["--no-gateway", "127.0.0.1"]);
    run("relay run", &mut command, REFUSAL).unwrap()
}

#[test]
fn topics_that_the_relay_may_not_make_are_all_named_at_once() {
    /// Nothing is waited for: the cluster says no.
    const SOON: Duration = Duration::from_secs(15);
    let guarded = Guarded::start("create").unwrap();
    let mut relay = guarded.relay("create").unwrap();
    let (admin, prefix) = (guarded.broker.address(), relay.topics.prefix().to_owned());
    let mut rights = [on_topics(&prefix), others(&prefix)].concat();
    rights.retain(|right| !matches!(right.operation, Operation::Create | Operation::Alter));
    allow(admin, "relay", &rights).unwrap();
    let began = Instant::now();
    let finished = refused(&relay);
    let took = began.elapsed();
    assert!(!finished.status.success() && took < SOON, "{took:?}: {finished:?}");
    for (topic, needs) in [
        ("uplink", "2 partitions, cleanup.policy=delete"),
        ("downlink", "1 partition, cleanup.policy=delete"),
        ("registry", "1 partition, cleanup.policy=compact"),
        ("associations", "4 partitions, cleanup.policy=compact"),
        ("held", "4 partitions, cleanup.policy=delete"),
        ("deadletter", "1 partition, cleanup.policy=delete"),
    ] {
        let named = format!("{prefix}{topic} ({needs}");
        assert!(finished.stderr.contains(&named), "{named}: {finished:?}");
    }
    assert!(finished.stderr.contains("Grant this relay's user CREATE and ALTER"), "{finished:?}");

    // Made by somebody who may, as it says, they are enough; but for a partition that is missing.
    for (topic, partitions) in ALL_TOPICS {
        relay.topics.create_with(topic, partitions, &[]).unwrap();
    }
    let finished = refused(&relay);
    let named = format!("{prefix}uplink (2 partitions");
    assert!(!finished.status.success() && finished.stderr.contains(&named), "{finished:?}");
    assert!(!finished.stderr.contains(&format!("{prefix}downlink (")), "{finished:?}");
    let alter = Right::new(Resource::Topic, format!("{prefix}uplink"), Operation::Alter);
    allow(admin, "relay", std::slice::from_ref(&alter)).unwrap();
    relay.instance.start().unwrap();
}

fn name(operation: Operation) -> String {
    format!("{operation:?}").to_uppercase()
}

#[test]
fn a_quota_on_messages_does_not_delay_the_registry() {
    /// Of a second, more than the quota; it takes a moment to be in force.
    const MESSAGES: usize = 50;
    let brokers = kafka::brokers();
    let name = format!("quota-{}", std::process::id());
    let mut relay = Direct::build("quota", |config| {
        config.kafka.properties.insert("client.id".to_owned(), name.clone());
    })
    .unwrap();
    relay.instance.start().unwrap();
    let mut client = relay.connect().unwrap();
    let first = brokers.split(',').next().unwrap();
    set_write_quota(first, &format!("{name}-data"), Some(2000.0)).unwrap();
    wait_until(PATIENCE, "the relay to be throttled", || {
        for _ in 0..MESSAGES {
            client.send(&[b'x'; 200])?;
        }
        let stats = relay.instance.stats()?;
        Ok(stats.count_by("kafka_throttled_ms", "data")? > 0)
    })
    .unwrap();
    client.send(b"this one waits").unwrap();
    // The order, the coordinator's answer, and what the relay says of itself go on.
    relay.instance.order("drain", "server").unwrap();
    wait_until(PATIENCE, "the server to drain", || {
        Ok(relay.instance.stats()?.0["registry"]["servers"][0]["state"] == "draining")
    })
    .unwrap();
    let stats = relay.instance.stats().unwrap();
    assert!(stats.count("messages_in_flight").unwrap() > 0, "the quota is not used up: {stats:?}");
    assert_eq!(stats.count_by("kafka_throttled_ms", "control").unwrap(), 0, "{stats:?}");
    let said = relay.instance.relay_stderr();
    assert!(said.contains("throttle clients for data"), "{said}");
    set_write_quota(first, &format!("{name}-data"), None).unwrap();
}
