//! MQTT clients of other houses and a server that sees only Kafka.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use millrace_harness::clients::mqtt::{Hand, Place, echo_server, speak};
use millrace_harness::kafka::{self, Topics};
use millrace_harness::net::free_port;
use millrace_harness::net::netns::Topology;
use millrace_harness::relay::fleet::Fleet;
use millrace_harness::relay::instance::Instance;
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::privilege;
use millrace_harness::system::process::{Process, run, run_ok, wait_until};
use millrace_relay::codec::MqttSection;

const PATIENCE: Duration = Duration::from_mins(1);
const PORT: u16 = 1883;
const VERSIONS: [(&str, &str); 2] = [("mqttv311", "3.1.1"), ("mqttv5", "5.0")];

/// A relay, and a server that does what it is told. The server hears of subscriptions.
fn scene(name: &str, adjust: impl Fn(&mut MqttSection)) -> Result<(Fleet, Place, HandServer)> {
    let mut fleet = Fleet::new(name, 1, 1, |config| {
        speak(&mut config.services[0], |section| {
            section.tell_subscriptions = true;
            adjust(section);
        });
    })?;
    fleet.start(0)?;
    let place = Place::here(fleet.address(0));
    let server = fleet.server(&[0])?;
    Ok((fleet, place, server))
}

/// Starts a subscriber and waits until it has subscribed; its `open` record. It is told by its name:
/// records of clients that nobody has waited for may come before it.
fn subscriber(
    place: &Place,
    server: &HandServer,
    client: &str,
    arguments: &[&str],
) -> Result<(Process, Record)> {
    let mut command = place.mosquitto("mosquitto_sub", &["-i", client]);
    let process = Process::spawn("mosquitto_sub", command.args(arguments))?;
    let open = server
        .next("open", |record| record.kind() == "open" && record.header("mqtt.client") == client)?;
    server.next("a subscription", |record| {
        record.key == open.key && record.header("mqtt.packet") == "subscribe"
    })?;
    Ok((process, open))
}

/// Publishes something to a client, with QoS 2.
fn publish(server: &HandServer, to: &Record, topic: &str, text: &str) -> Result<()> {
    let headers = [("mqtt.topic", topic.as_bytes()), ("mqtt.qos", &b"2"[..])];
    server.reply_with(to, Some(text.as_bytes()), &headers)
}

fn wait_for_held(fleet: &Fleet, count: u64) -> Result<()> {
    wait_until(PATIENCE, &format!("{count} replies to wait"), || {
        Ok(fleet.relays[0].stats()?.count("held_waiting")? == count)
    })
}

#[test]
fn clients_of_other_houses_get_what_they_publish_back() -> Result<()> {
    let mut fleet = Fleet::new("mqtt", 1, 1, |config| speak(&mut config.services[0], |_| ()))?;
    fleet.start(0)?;
    let _server = echo_server(&kafka::brokers(), fleet.prefix())?;
    Place::here(fleet.address(0)).echo_all()?;
    let stats = fleet.relays[0].stats()?;
    // mosquitto_rr does not say good-bye.
    assert_eq!(stats.count_by("connections_closed", "client_closed")?, 4);
    assert_eq!(stats.count_by("connections_closed", "end_of_stream")?, 6);
    assert_eq!(stats.total("connections_closed")?, 10);
    Ok(())
}

#[test]
fn through_the_gateway_clients_talk_to_their_servers_own_address() -> Result<()> {
    let Some(_right) = privilege::shared_if_privileged() else { return Ok(()) };
    let hosts = Topology::new(1, 1)?;
    let topics = Topics::new(&kafka::brokers(), "mqtt-gateway");
    let mut config = hosts.config(PORT, millrace_harness::clients::wire::frames().0);
    config.kafka.brokers = kafka::brokers();
    topics.prefix().clone_into(&mut config.kafka.topic_prefix);
    speak(&mut config.services[0], |_| ());
    let mut instance = Instance::new(config, Some(&hosts.gateway.namespace()))?;
    instance.load()?;
    instance.start()?;
    let _server = echo_server(&kafka::brokers(), topics.prefix())?;
    let target = (Topology::server_address(0), PORT).into();
    Place { namespace: Some(hosts.clients[0].namespace()), target }.echo_all()?;
    ensure!(hosts.servers[0].tcp_segments_received()? == 0, "the server itself was reached");
    Ok(())
}

#[test]
fn what_is_published_arrives_with_its_headers() -> Result<()> {
    let (_fleet, place, server) = scene("mqtt-pub", |_| ())?;
    for (version, name) in VERSIONS {
        let arguments = ["-V", version, "-i", "sensor", "-u", "anna", "-q", "2", "-t", "a/b"];
        let mut command = place.mosquitto("mosquitto_pub", &arguments);
        run_ok("mosquitto_pub", command.args(["-m", "21.5"]), PATIENCE)?;
        let open = server.next("open", |record| record.kind() == "open")?;
        let expected = ["sensor", name, "anna", "mqtt"];
        let headers = ["mqtt.client", "mqtt.version", "mqtt.user", "protocol"];
        assert_eq!(headers.map(|header| open.header(header)), expected);
        let message = server.next("message", |record| record.key == open.key)?;
        assert_eq!((message.kind(), &message.value[..]), ("message", &b"21.5"[..]));
        let headers = ["mqtt.topic", "mqtt.qos", "mqtt.packet_id", "mqtt.dup"];
        assert_eq!(headers.map(|header| message.header(header)), ["a/b", "2", "1", ""]);
        let close = server.next("close", |record| record.kind() == "close")?;
        assert_eq!(close.header("reason"), "client_closed");
    }
    Ok(())
}

#[test]
fn a_subscriber_gets_what_it_has_subscribed_to() -> Result<()> {
    let (fleet, place, server) = scene("mqtt-sub", |_| ())?;
    for (version, _) in VERSIONS {
        let arguments = ["-V", version, "-q", "2", "-t", "a/+", "-C", "3", "-F", "%t %q %p"];
        let (process, open) = subscriber(&place, &server, version, &arguments)?;
        for (topic, qos) in [("a/x", "0"), ("b", "2"), ("a/y", "1"), ("a/z", "2")] {
            let headers = [("mqtt.topic", topic.as_bytes()), ("mqtt.qos", qos.as_bytes())];
            server.reply_with(&open, Some(topic.as_bytes()), &headers)?;
        }
        let finished = process.wait(PATIENCE)?;
        ensure!(finished.stdout == "a/x 0 a/x\na/y 1 a/y\na/z 2 a/z", "{finished:?}");
    }
    ensure!(fleet.relays[0].stats()?.count("replies_filtered")? == 2);
    Ok(())
}

#[test]
fn replies_wait_for_clients_with_a_session() -> Result<()> {
    const REPLIES: u32 = 50;
    let (_fleet, place, server) = scene("mqtt-session", |_| ())?;
    let clients = [("away-1", "1"), ("away-2", "2"), ("away-3", "1")];
    let mut opens = Vec::new();
    for (client, qos) in clients {
        let arguments = ["-c", "-q", qos, "-t", "a/#", "-E"];
        let (process, open) = subscriber(&place, &server, client, &arguments)?;
        process.wait(PATIENCE)?;
        server.next("close", |record| record.key == open.key && record.kind() == "close")?;
        opens.push(open);
    }
    for number in 0..REPLIES {
        for (open, (client, _)) in opens.iter().zip(clients) {
            publish(&server, open, "a/b", &format!("{client} {number}"))?;
        }
    }
    for (client, qos) in clients {
        let count = REPLIES.to_string();
        let arguments = ["-c", "-i", client, "-q", qos, "-t", "a/#", "-C", &count];
        let mut command = place.mosquitto("mosquitto_sub", &arguments);
        let finished = run_ok("mosquitto_sub", &mut command, PATIENCE)?;
        let expected: Vec<_> = (0..REPLIES).map(|number| format!("{client} {number}")).collect();
        ensure!(finished.stdout == expected.join("\n"), "{client}: {finished:?}");
    }
    Ok(())
}

#[test]
fn of_replies_that_waited_only_the_unconfirmed_come_again() -> Result<()> {
    let (fleet, _, server) = scene("mqtt-partly", |_| ())?;
    let connect = || -> Result<_> {
        let (hand, present) = Hand::connect(fleet.address(0), "hand")?;
        Ok((hand, present, server.next("open", |record| record.kind() == "open")?))
    };
    let away = |hand: Hand, open: &Record| {
        drop(hand);
        server.next("close", |record| record.key == open.key && record.kind() == "close")
    };
    let (mut hand, _, open) = connect()?;
    hand.subscribe()?;
    away(hand, &open)?;
    for text in ["one", "two", "three"] {
        publish(&server, &open, "a", text)?;
    }
    let waiting = |count| wait_for_held(&fleet, count);
    waiting(3)?;
    let (mut hand, present, open) = connect()?;
    ensure!(present);
    let replies = [hand.receive()?, hand.receive()?, hand.receive()?];
    assert_eq!(replies.clone().map(|(_, _, text)| text), ["one", "two", "three"]);
    hand.confirm(replies[0].1)?;
    hand.confirm(replies[2].1)?;
    hand.ping()?;
    away(hand, &open)?;
    waiting(1)?;

    let (mut hand, _, _) = connect()?;
    assert_eq!(hand.receive()?, (true, replies[1].1, "two".to_owned()));
    hand.confirm(replies[1].1)?;
    hand.ping()?;
    waiting(0)
}

#[test]
fn after_a_restart_replies_wait_until_their_client_has_subscribed_again() -> Result<()> {
    let (mut fleet, _, server) = scene("mqtt-restart", |_| ())?;
    let address = fleet.address(0);
    for client in ["first", "second"] {
        let (mut hand, _) = Hand::connect(address, client)?;
        let open = server.next("open", |record| record.kind() == "open")?;
        hand.subscribe()?;
        drop(hand);
        server.next("close", |record| record.key == open.key && record.kind() == "close")?;
        publish(&server, &open, "a", client)?;
    }
    wait_for_held(&fleet, 2)?;
    // Not killed: it may not have committed yet that they were read, and would hold them once more.
    fleet.relays[0].stop()?;
    fleet.start(0)?;

    let (mut first, present) = Hand::connect(address, "first")?;
    ensure!(!present);
    let (mut second, _) = Hand::connect(address, "second")?;
    second.subscribe()?;
    let (_, id, text) = second.receive()?;
    assert_eq!(text, "second");
    second.confirm(id)?;
    // The first one has been there for longer, and nothing has come to it.
    wait_for_held(&fleet, 1)?;
    first.ping()?;
    first.subscribe()?;
    let (_, id, text) = first.receive()?;
    assert_eq!(text, "first");
    first.confirm(id)?;
    wait_for_held(&fleet, 0)?;
    ensure!(fleet.relays[0].stats()?.count("replies_filtered")? == 0);
    Ok(())
}

#[test]
fn a_second_connection_takes_the_first_ones_place() -> Result<()> {
    let (fleet, place, server) = scene("mqtt-takeover", |_| ())?;
    let arguments = ["-V", "mqttv5", "-t", "a", "-C", "1"];
    // Without a reconnect, and as often as it takes to be at two workers once.
    let (mut former, _) = subscriber(&place, &server, "twin", &arguments)?;
    for round in 1..=6 {
        let (process, _) = subscriber(&place, &server, "twin", &arguments)?;
        drop(std::mem::replace(&mut former, process));
        wait_until(PATIENCE, "the takeover", || {
            Ok(fleet.relays[0].stats()?.count_by("connections_closed", "taken_over")? == round)
        })?;
    }
    Ok(())
}

#[test]
fn who_is_not_known_may_not_connect() -> Result<()> {
    let directory = std::env::temp_dir().join(format!("millrace-mqtt-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("passwords");
    // `printf %s secret | argon2 saltsalt -id -t 1 -k 8 -e`
    let hash = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$vk+JgWgZGbXHtEqPQPhzXbD+QxxkJR5Fq2AXLhDyYaY";
    std::fs::write(&file, format!("anna:{hash}\n"))?;
    let (fleet, place, server) =
        scene("mqtt-password", |section| section.passwords = Some(file.clone()))?;
    for (version, _) in VERSIONS {
        let arguments = ["-V", version, "-i", "meter", "-u", "anna", "-t", "a", "-m", "x"];
        let publish = |password: &str| -> Command {
            let mut command = place.mosquitto("mosquitto_pub", &arguments);
            command.args(["-q", "1", "-P", password]);
            command
        };
        let refused = run("mosquitto_pub", &mut publish("Secret"), PATIENCE)?;
        ensure!(!refused.status.success(), "{refused:?}");
        run_ok("mosquitto_pub", &mut publish("secret"), PATIENCE)?;
        let message = server.next("message", |record| record.kind() == "message")?;
        assert_eq!(message.value, b"x");
    }
    let stats = fleet.relays[0].stats()?;
    assert_eq!(stats.count_by("connections_closed", "not_authorized")?, 2);

    // Another one in her place, while the relay runs.
    std::fs::write(&file, format!("bert:{hash}\n"))?;
    let reloaded = run_ok("relay reload", &mut fleet.relays[0].command("reload", false), PATIENCE)?;
    ensure!(
        reloaded.stdout.contains("mqtt/passwords: users: 1 -> others: 1"),
        "{}",
        reloaded.stdout
    );
    for (user, may) in [("anna", false), ("bert", true)] {
        let arguments = ["-i", "meter", "-u", user, "-P", "secret", "-t", "a", "-m", user];
        let finished =
            run("mosquitto_pub", &mut place.mosquitto("mosquitto_pub", &arguments), PATIENCE)?;
        ensure!(finished.status.success() == may, "{user}: {finished:?}");
    }
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}

/// The ledger of the first relay, which must balance.
fn check_ledger(fleet: &Fleet) -> Result<()> {
    let ledger = run("relay ledger", &mut fleet.relays[0].command("ledger", false), PATIENCE)?;
    ensure!(ledger.status.success(), "{}", ledger.stdout);
    Ok(())
}

/// A client by hand, and its `open` record.
fn hand(fleet: &Fleet, server: &HandServer, client: &str) -> Result<(Hand, bool, Record)> {
    let (hand, present) = Hand::connect(fleet.address(0), client)?;
    let open = server
        .next("open", |record| record.kind() == "open" && record.header("mqtt.client") == client)?;
    Ok((hand, present, open))
}

#[test]
fn mosquitto_bridges_topics() -> Result<()> {
    let (_fleet, place, server) = scene("mqtt-bridge", |_| ())?;
    // As it is without a word about the version; and of 5.0, with what its clients must do without here.
    let v5 = "bridge_protocol_version mqttv50\nbridge_outgoing_retain false\nnotifications false\n";
    for (name, version, settings) in [("old", "3.1.1", ""), ("new", "5.0", v5)] {
        let port = free_port()?;
        let directory =
            std::env::temp_dir().join(format!("millrace-bridge-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let file = directory.join("mosquitto.conf");
        let config = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nuser root\n\
             connection millrace\naddress {}\nremote_clientid bridge-{name}\nrestart_timeout 1\n\
             cleansession false\ntopic out/# out 1\ntopic in/# in 1\n{settings}",
            place.target
        );
        std::fs::write(&file, config)?;
        let mut command = Command::new("/usr/sbin/mosquitto");
        let _broker = Process::spawn("mosquitto", command.arg("-c").arg(&file))?;
        let client = format!("bridge-{name}");
        let open = server.next("the bridge", |record| record.header("mqtt.client") == client)?;
        assert_eq!(open.header("mqtt.version"), version);
        server.next("its subscription", |record| {
            record.key == open.key && record.header("mqtt.packet") == "subscribe"
        })?;
        let local = Place::here(([127, 0, 0, 1], port).into());
        let arguments = ["-q", "1", "-t", "out/a", "-m", "21.5"];
        run_ok("mosquitto_pub", &mut local.mosquitto("mosquitto_pub", &arguments), PATIENCE)?;
        let message = server.next("a message", |record| record.header("mqtt.topic") == "out/a")?;
        assert_eq!((message.key == open.key, &message.value[..]), (true, &b"21.5"[..]));
        // Retained at the bridge's broker, so that it does not matter who is faster.
        let headers = [("mqtt.topic", &b"in/b"[..]), ("mqtt.qos", b"1"), ("mqtt.retain", b"1")];
        server.reply_with(&open, Some(b"on"), &headers)?;
        let arguments = ["-t", "in/b", "-C", "1", "-W", "60"];
        let mut command = local.mosquitto("mosquitto_sub", &arguments);
        ensure!(run_ok("mosquitto_sub", &mut command, PATIENCE)?.stdout.trim() == "on");
        std::fs::remove_dir_all(&directory)?;
    }
    Ok(())
}

#[test]
fn more_replies_than_a_client_has_confirmed_stay_in_kafka() -> Result<()> {
    // As many lines of output as are kept for a test to look at.
    const REPLIES: u32 = 400;
    let (fleet, place, server) = scene("mqtt-many", |section| section.max_waiting_bytes = 10_000)?;
    for (version, _) in VERSIONS {
        let count = REPLIES.to_string();
        let arguments = ["-V", version, "-q", "1", "-t", "a", "-C", &count, "-F", "%p"];
        let (process, open) = subscriber(&place, &server, version, &arguments)?;
        let texts: Vec<_> = (0..REPLIES).map(|number| format!("{number:0>300}")).collect();
        for text in &texts {
            server.reply_soon(&open, text.as_bytes(), &[("mqtt.topic", "a"), ("mqtt.qos", "1")])?;
        }
        let finished = process.wait(PATIENCE)?;
        ensure!(finished.stdout == texts.join("\n"), "{} bytes", finished.stdout.len());
    }
    ensure!(fleet.relays[0].stats()?.count("replies_postponed")? > 0, "the bound was not reached");
    check_ledger(&fleet)
}

#[test]
fn a_client_may_take_its_time_to_confirm() -> Result<()> {
    let mut fleet = Fleet::new("mqtt-patient", 1, 1, |config| {
        config.relay.reply_timeout_ms = 1000;
        speak(&mut config.services[0], |_| ());
    })?;
    fleet.start(0)?;
    let server = fleet.server(&[0])?;
    let (mut slow, _, open) = hand(&fleet, &server, "slow")?;
    slow.subscribe()?;
    publish(&server, &open, "a", "one")?;
    let (_, id, _) = slow.receive()?;
    // The downlink's offset goes on without it.
    wait_until(PATIENCE, "the reply to be left to its client", || {
        Ok(fleet.relays[0].stats()?.count("replies_backlog")? == 1)
    })?;
    slow.ping()?;
    check_ledger(&fleet)?;
    slow.confirm(id)?;
    wait_until(PATIENCE, "the reply to be done with", || {
        let stats = fleet.relays[0].stats()?;
        Ok(stats.count("replies_backlog")? == 0 && stats.count("replies_sent")? == 1)
    })?;
    // One that is not confirmed at all waits for its client to come again.
    publish(&server, &open, "a", "two")?;
    let (_, id, _) = slow.receive()?;
    wait_until(PATIENCE, "the next one to be left", || {
        Ok(fleet.relays[0].stats()?.count("replies_backlog")? == 1)
    })?;
    drop(slow);
    wait_for_held(&fleet, 1)?;
    let (mut slow, present, _) = hand(&fleet, &server, "slow")?;
    ensure!(present);
    assert_eq!(slow.receive()?, (true, id, "two".to_owned()));
    slow.confirm(id)?;
    wait_for_held(&fleet, 0)?;
    ensure!(fleet.relays[0].stats()?.count_by("connections_closed", "slow_reader")? == 0);
    check_ledger(&fleet)
}

#[test]
fn a_client_without_a_window_is_slowed() -> Result<()> {
    const MESSAGES: u8 = 200;
    let (fleet, _, server) = scene("mqtt-window", |section| section.receive_maximum = 8)?;
    let (mut client, _, open) = hand(&fleet, &server, "eager")?;
    for id in 1..=MESSAGES {
        client.publish(false, id)?;
    }
    for id in 1..=MESSAGES {
        let pubrec = client.read()?;
        assert_eq!(pubrec, [0x50, 2, 0, id]);
    }
    for id in 1..=MESSAGES {
        client.send(&[0x62, 2, 0, id])?;
        let pubcomp = client.read()?;
        assert_eq!(pubcomp, [0x70, 2, 0, id]);
        let message = server
            .next("message", |record| record.key == open.key && record.kind() == "message")?;
        assert_eq!(message.header("mqtt.packet_id"), id.to_string());
    }
    check_ledger(&fleet)
}

#[test]
fn what_waited_for_a_session_goes_with_it() -> Result<()> {
    let (fleet, place, server) = scene("mqtt-clean", |_| ())?;
    let (mut client, _, open) = hand(&fleet, &server, "forgetful")?;
    client.subscribe()?;
    drop(client);
    server.next("close", |record| record.key == open.key && record.kind() == "close")?;
    publish(&server, &open, "a", "old")?;
    wait_for_held(&fleet, 1)?;
    // It subscribes at once, and gets what comes from then on.
    let arguments = ["-q", "1", "-t", "a", "-C", "1"];
    let (process, again) = subscriber(&place, &server, "forgetful", &arguments)?;
    wait_for_held(&fleet, 0)?;
    publish(&server, &again, "a", "new")?;
    ensure!(process.wait(PATIENCE)?.stdout == "new");
    let (mut client, present, _) = hand(&fleet, &server, "forgetful")?;
    ensure!(!present);
    client.subscribe()?;
    client.ping()
}

#[test]
fn a_reply_that_is_no_good_any_more_is_not_delivered() -> Result<()> {
    let (fleet, place, server) = scene("mqtt-expiry", |_| ())?;
    let arguments = ["-V", "mqttv5", "-c", "-x", "600", "-q", "1", "-t", "a", "-F", "%p %E"];
    let (process, open) = subscriber(&place, &server, "late", &[&arguments[..], &["-E"]].concat())?;
    process.wait(PATIENCE)?;
    server.next("close", |record| record.key == open.key && record.kind() == "close")?;
    for (text, expiry) in [("short", "1"), ("long", "1000")] {
        let headers =
            [("mqtt.topic", &b"a"[..]), ("mqtt.qos", b"1"), ("mqtt.expiry", expiry.as_bytes())];
        server.reply_with(&open, Some(text.as_bytes()), &headers)?;
    }
    wait_for_held(&fleet, 2)?;
    let since = std::time::Instant::now();
    wait_until(PATIENCE, "the short one to expire", || Ok(since.elapsed().as_millis() > 1100))?;
    let mut command = place.mosquitto("mosquitto_sub", &["-i", "late", "-C", "1"]);
    let finished = run_ok("mosquitto_sub", command.args(arguments), PATIENCE)?;
    let left: u32 = finished.stdout.strip_prefix("long ").unwrap_or_default().parse()?;
    ensure!((900..1000).contains(&left), "{finished:?}");
    wait_for_held(&fleet, 0)
}

#[test]
fn the_will_of_the_former_connection_comes_before_the_birth_of_the_next() -> Result<()> {
    let (fleet, place, server) = scene("mqtt-birth", |_| ())?;
    let arguments = ["-V", "mqttv5", "-t", "a", "--will-topic", "state", "--will-payload", "gone"];
    let mut former = subscriber(&place, &server, "device", &arguments)?;
    // As often as it takes to be at two workers once.
    for round in 0..6 {
        let birth = ["-i", "device", "-t", "state", "-m", "here", "-q", "1"];
        run_ok("mosquitto_pub", &mut place.mosquitto("mosquitto_pub", &birth), PATIENCE)?;
        let next = || server.next("state", |record| record.header("mqtt.topic") == "state");
        let states = [next()?, next()?].map(|record| record.value);
        assert_eq!(states, [b"gone", b"here"], "round {round}");
        former = subscriber(&place, &server, "device", &arguments)?;
    }
    drop(former);
    check_ledger(&fleet)
}
