//! QoS 1 and 2 through `kill -9` of the relay and of Kafka, with clients that reconnect and retry.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use millrace_harness::clients::mqtt::{Hand, Place, speak};
use millrace_harness::kafka::{self, OwnBroker};
use millrace_harness::relay::fleet::Fleet;
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::process::Process;
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_mins(2);
const COUNT: u32 = 600;

/// Dropped in this order: a relay needs its broker.
struct Scene {
    fleet: Fleet,
    broker: OwnBroker,
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let directory: PathBuf =
            std::env::temp_dir().join(format!("millrace-mqtt-{name}-{}", std::process::id()));
        let broker = OwnBroker::start(&directory)?;
        let mut fleet = Fleet::at(broker.address(), "mqtt-kills", (1, 1), |config| {
            speak(&mut config.services[0], |_| ());
        })?;
        fleet.start(0)?;
        Ok(Self { fleet, broker })
    }

    /// All records that the uplink has now.
    fn records(&self) -> Result<Vec<Record>> {
        let (brokers, prefix) = (self.broker.address(), self.fleet.prefix());
        let count = kafka::record_count(brokers, &format!("{prefix}uplink"), 1)?;
        let reader = HandServer::on(brokers, prefix, &[0])?;
        (0..count).map(|_| reader.next("a record of the uplink", |_| true)).collect()
    }
}

/// What a client has published: for each record the run of the relay, and the number in it.
fn published<'a>(records: &'a [Record], client: &str) -> Vec<(&'a str, u32)> {
    let mut keys = HashSet::new();
    let mut numbers = Vec::new();
    for record in records {
        if record.header("mqtt.client") == client {
            keys.insert(&*record.key);
        } else if record.kind() == "message" && keys.contains(&*record.key) {
            let number = String::from_utf8_lossy(&record.value).parse().expect("a number");
            // A key names the relay's start behind its number.
            numbers.push((&record.key[5..17], number));
        }
    }
    numbers
}

#[test]
fn nothing_acknowledged_is_lost_and_qos_2_comes_once_in_a_session() -> Result<()> {
    let mut scene = Scene::new("kills")?;
    let place = Place::here(scene.fleet.address(0));
    let count = COUNT.to_string();
    let kinds = [("3.1.1", "1"), ("3.1.1", "2"), ("5", "1"), ("5", "2")];
    let clients = kinds
        .iter()
        .map(|(version, qos)| {
            let name = format!("steady-{version}-{qos}");
            let mut command = place.python("mqtt_steady.py", &[version, qos, &count, &name]);
            Ok((name, *qos, Process::spawn("mqtt_steady.py", &mut command)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let all_have = |number: u32| -> Result<()> {
        for (_, _, client) in &clients {
            client.wait_line(&format!("acknowledged {number}"), PATIENCE)?;
        }
        Ok(())
    };
    all_have(100)?;
    scene.fleet.relays[0].kill()?;
    scene.fleet.start(0)?;
    all_have(200)?;
    scene.broker.signal(Signal::KILL)?;
    scene.broker.restart()?;
    all_have(300)?;
    scene.fleet.relays[0].kill()?;
    scene.broker.signal(Signal::KILL)?;
    scene.broker.restart()?;
    scene.fleet.start(0)?;

    let mut finished = Vec::new();
    for (name, qos, client) in clients {
        client.wait_line("done", PATIENCE)?;
        finished.push((name, qos, client.wait(PATIENCE)?));
    }
    let records = scene.records()?;
    for (name, qos, client) in finished {
        ensure!(client.status.success(), "{name}: {}", client.stderr);
        let numbers = published(&records, &name);
        let distinct: HashSet<u32> = numbers.iter().map(|(_, number)| *number).collect();
        ensure!(distinct.len() == COUNT as usize, "{name}: {} of {COUNT}", distinct.len());
        let mut times: HashMap<_, u32> = HashMap::new();
        for place in &numbers {
            *times.entry(*place).or_default() += 1;
        }
        let repeated = times.values().filter(|times| **times > 1).count();
        println!("{name}: {} records, {repeated} repeated within a run", numbers.len());
        // A session ends with its relay. Within it a message of QoS 2 comes once.
        ensure!(qos != "2" || repeated == 0, "{name}: {repeated} repeated");
    }
    Ok(())
}

#[test]
fn a_message_that_kafka_does_not_have_yet_is_confirmed_to_a_later_connection() -> Result<()> {
    let scene = Scene::new("hang")?;
    let address = scene.fleet.address(0);
    let (mut hand, present) = Hand::connect(address, "hand")?;
    ensure!(!present);
    hand.publish(false, 1)?;
    ensure!(hand.read()? == [0x50, 2, 0, 1]);

    scene.broker.signal(Signal::STOP)?;
    hand.publish(false, 2)?;
    drop(hand);
    let stats = || scene.fleet.relays[0].stats();
    millrace_harness::system::process::wait_until(PATIENCE, "the end of the connection", || {
        Ok(stats()?.total("connections_closed")? == 1)
    })?;
    ensure!(stats()?.count("messages_received")? == 2);
    let (mut hand, present) = Hand::connect(address, "hand")?;
    ensure!(present);
    hand.publish(true, 1)?;
    hand.publish(true, 2)?;
    // Kafka has the first one; the second is on its way still.
    ensure!(hand.read()? == [0x50, 2, 0, 1]);
    scene.broker.signal(Signal::CONT)?;
    ensure!(hand.read()? == [0x50, 2, 0, 2]);
    for id in [1, 2] {
        hand.send(&[0x62, 2, 0, id])?;
        ensure!(hand.read()? == [0x70, 2, 0, id]);
    }
    let messages = scene.records()?.into_iter().filter(|record| record.kind() == "message");
    ensure!(messages.count() == 2);
    Ok(())
}
