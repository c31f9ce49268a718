//! Clients of a server that drains, or that stays away, go on at others as the service says.
//!
//! The relay runs in this process, so that the test can say what the registry would say.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, ensure};
use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::lines;
use millrace_harness::kafka::{self, Topics};
use millrace_harness::net::free_port;
use millrace_harness::relay::fleet::config;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::ended::Ended;
use millrace_harness::system::process::wait_until;
use millrace_relay::config::{Absence, Config, Then};
use millrace_relay::control::{self, Mode, Place, Snapshot};
use millrace_relay::model::ServiceId;
use millrace_relay::route::{Associations, ServerLink, ServerState};
use millrace_relay::tune::Saved;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::{Signal, getpid, kill_process};

const PATIENCE: Duration = Duration::from_secs(30);
/// Messages that a client sends together.
const BURST: u64 = 10;
/// In the middle of each burst, so that the load is bounded: 8000 messages a second of 40 clients.
const PAUSE: Duration = Duration::from_millis(50);

/// A relay in this process. All of them end by the same signal, so there is one at a time.
struct Relay {
    config: Config,
    address: SocketAddr,
    associations: Arc<Associations>,
    thread: JoinHandle<Result<Snapshot, control::RunError>>,
    topics: Topics,
    _alone: MutexGuard<'static, ()>,
}

impl Relay {
    fn start(name: &str, servers: u16, absence: Absence) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (topics, port) = (Topics::new(&kafka::brokers(), name), free_port().unwrap());
        let mut config = config(topics.prefix(), 0, servers, port);
        config.services[0].absence = absence;
        config.check().unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let place = Place { namespace: None, address: Some(address.ip()), transparent: false };
        let (sender, ready) = mpsc::channel();
        let running = config.clone();
        let thread = std::thread::spawn(move || {
            control::run(&running, Mode::Direct(place), &Saved::default(), |threads| {
                sender.send(threads.associations().clone()).expect("the test waits");
            })
        });
        let associations = match ready.recv_timeout(PATIENCE) {
            Ok(associations) => associations,
            Err(RecvTimeoutError::Disconnected) => {
                panic!("the relay has ended: {:?}", thread.join())
            }
            Err(RecvTimeoutError::Timeout) => panic!("the relay does not serve"),
        };
        Self { config, address, associations, thread, topics, _alone: alone }
    }

    fn set_state(&self, server: usize, state: ServerState) {
        let declared = &self.config.services[0].servers[server];
        let mut link = ServerLink::declared(ServiceId(0), declared);
        link.state = state;
        self.associations.set_server(link);
    }

    fn clients_of(&self, server: usize) -> u32 {
        self.associations.counts()["lines"][&format!("server-{server}")]
    }

    fn stop(self) -> Snapshot {
        kill_process(getpid(), Signal::TERM).unwrap();
        self.thread.join().unwrap().unwrap()
    }
}

/// What all servers together have seen, in the order in which they did.
#[derive(Default)]
struct Seen {
    /// By client: the next message, and the partition that it is at.
    clients: HashMap<String, (u64, i32)>,
    moved: u64,
    wrong: Vec<String>,
}

impl Seen {
    fn take(&mut self, partition: i32, headers: &BTreeMap<&str, &str>, value: &str) {
        let client = headers["client"].to_owned();
        let known = self.clients.get(&client).copied();
        let expected = match (headers.get("kind").copied(), headers.get("moved_from"), known) {
            (Some("open"), None, None) => (0, partition),
            (Some("open"), Some(from), Some((next, at))) if **from == format!("server-{at}") => {
                self.moved += 1;
                (next, partition)
            }
            (None, _, Some((next, at))) if at == partition && value == next.to_string() => {
                (next + 1, at)
            }
            (Some("close"), _, Some(at)) => at,
            _ => {
                if self.wrong.len() < 10 {
                    self.wrong.push(format!("{headers:?} {value} at {partition}, not {known:?}"));
                }
                return;
            }
        };
        self.clients.insert(client, expected);
    }
}

/// A server that reads its partition and commits under its group what it has dealt with.
fn serve(prefix: &str, partition: u16, seen: &Mutex<Seen>, stop: &AtomicBool) -> Result<()> {
    let topic = format!("{prefix}uplink");
    let consumer: BaseConsumer = kafka::client(&kafka::brokers())
        .set("group.id", format!("{prefix}server-{partition}"))
        .set("enable.auto.commit", "false")
        .create()?;
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(&topic, i32::from(partition), Offset::Beginning)?;
    consumer.assign(&place)?;
    let mut dealt_with = None;
    while !stop.load(SeqCst) {
        let Some(message) = consumer.poll(Duration::from_millis(20)) else {
            if let Some(next) = dealt_with.take() {
                let mut offsets = TopicPartitionList::new();
                let partition = i32::from(partition);
                offsets.add_partition_offset(&topic, partition, Offset::Offset(next))?;
                consumer.commit(&offsets, CommitMode::Async)?;
            }
            continue;
        };
        let message = message?;
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        let headers = headers
            .map(|header| Ok((header.key, std::str::from_utf8(header.value.unwrap_or_default())?)))
            .collect::<Result<_>>()?;
        let value = std::str::from_utf8(message.payload().unwrap_or_default())?;
        seen.lock().unwrap().take(message.partition(), &headers, value);
        dealt_with = Some(message.offset() + 1);
    }
    Ok(())
}

/// A client that sends numbered messages until it is told to stop. How many.
fn chatter(address: SocketAddr, stop: &AtomicBool, sent: &AtomicU64) -> Result<u64> {
    let mut client = Client::connect_from(address.ip(), address, lines())?;
    let mut next = 0_u64;
    while !stop.load(SeqCst) {
        // A burst, with a message in two pieces.
        let burst: Vec<u8> = (next..next + BURST)
            .flat_map(|number| lines().framed(&number.to_string().into_bytes()))
            .collect();
        let (first, rest) = burst.split_at(burst.len() / 2 - 1);
        client.send_bytes(first)?;
        std::thread::sleep(PAUSE);
        client.send_bytes(rest)?;
        next += BURST;
        sent.fetch_add(BURST, SeqCst);
    }
    client.end()?;
    client.wait_end()?;
    Ok(next)
}

#[test]
fn clients_of_a_draining_server_lose_double_and_reorder_nothing() {
    const CLIENTS: u32 = 40;
    const SERVERS: u16 = 4;
    let relay = Relay::start("drain", SERVERS, Absence::default());
    let prefix = relay.topics.prefix().to_owned();
    let (seen, sent) = (Mutex::new(Seen::default()), AtomicU64::new(0));
    let (stop_clients, stop_servers) = (AtomicBool::new(false), AtomicBool::new(false));
    let serve = |server| serve(&prefix, server, &seen, &stop_servers);
    let serve = &serve;
    let messages = std::thread::scope(|scope| -> Result<u64> {
        let _ended = Ended([&stop_clients, &stop_servers]);
        let servers: Vec<_> =
            (0..SERVERS).map(|server| scope.spawn(move || serve(server))).collect();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| chatter(relay.address, &stop_clients, &sent)))
            .collect();
        let (clients_of, moved) =
            (|server| relay.clients_of(server), || relay.associations.moved());
        let wait_sent = |more: u64| {
            let goal = sent.load(SeqCst) + more;
            wait_until(PATIENCE, "the clients to send", || Ok(sent.load(SeqCst) >= goal))
        };
        wait_until(PATIENCE, "the clients to be associated", || {
            Ok((0..4).all(|server| clients_of(server) == CLIENTS / 4))
        })?;
        // One server after another, while messages flow: those who have moved move again.
        for server in 0..2 {
            wait_sent(5_000)?;
            let had = clients_of(server);
            relay.set_state(server, ServerState::Draining);
            wait_until(PATIENCE, "the clients to move", || Ok(clients_of(server) == 0))?;
            assert_eq!(moved()[&format!("server-{server}")], u64::from(had));
        }
        assert_eq!((clients_of(2), clients_of(3)), (CLIENTS / 2, CLIENTS / 2));
        wait_sent(5_000)?;
        stop_clients.store(true, SeqCst);
        let messages =
            clients.into_iter().map(|client| client.join().unwrap()).sum::<Result<u64>>()?;
        wait_until(PATIENCE, "the servers to see everything", || {
            let seen = seen.lock().unwrap();
            ensure!(seen.wrong.is_empty(), "{:?}", seen.wrong.first());
            Ok(seen.clients.values().map(|(next, _)| next).sum::<u64>() == messages)
        })?;
        stop_servers.store(true, SeqCst);
        servers.into_iter().try_for_each(|server| server.join().unwrap())?;
        Ok(messages)
    })
    .unwrap();
    let stopped = relay.stop();
    let (seen, moved) = (seen.into_inner().unwrap(), stopped.clients_moved.values().sum::<u64>());
    println!("{messages} messages, {moved} moved: {:?}", stopped.clients_moved);
    assert_eq!(seen.moved, moved, "each move is an `open` with `moved_from`");
    assert_eq!(stopped.messages_received, messages);
    assert_eq!(stopped.messages_acknowledged, messages);
}

/// Two servers, a client of the one that is disturbed, and who reads all.
fn two(name: &str, absence: Absence) -> (Relay, HandServer, Client, usize) {
    let relay = Relay::start(name, 2, absence);
    let servers = HandServer::on(&kafka::brokers(), relay.topics.prefix(), &[0, 1]).unwrap();
    let mut client = Client::connect_from(relay.address.ip(), relay.address, lines()).unwrap();
    client.send(b"before").unwrap();
    let record = servers.next("the first message", |record| record.value == b"before").unwrap();
    let server = usize::from(record.partition);
    (relay, servers, client, server)
}

const SOON: Absence = Absence { after_ms: 100, then: Then::Keep, drain_ms: 300 };

#[test]
fn a_draining_server_that_does_not_read_is_waited_for_and_then_as_the_service_says() {
    for (then, other) in [(Then::Keep, false), (Then::Reassign, true)] {
        // Nobody commits here.
        let (relay, servers, mut client, server) = two("unread", Absence { then, ..SOON });
        relay.set_state(server, ServerState::Draining);
        if other {
            let moved =
                servers.next("the move", |record| record.headers.contains_key("moved_from"));
            assert_eq!(usize::from(moved.unwrap().partition), 1 - server);
        }
        for text in [&b"one"[..], b"two"] {
            client.send(text).unwrap();
            let record = servers.next("a message", |record| record.value == text).unwrap();
            assert_eq!(usize::from(record.partition) != server, other, "{then:?}");
        }
        // New ones have no reason to go there.
        let mut new = Client::connect_from(relay.address.ip(), relay.address, lines()).unwrap();
        new.send(b"new").unwrap();
        let record = servers.next("a new client", |record| record.value == b"new").unwrap();
        assert_eq!(usize::from(record.partition), 1 - server);
        drop((client, new));
        relay.stop();
    }
}

#[test]
fn clients_of_a_server_that_stays_away_fare_as_the_service_says() {
    for then in [Then::Keep, Then::Reassign, Then::Refuse] {
        let (relay, servers, mut client, server) = two("away", Absence { then, ..SOON });
        relay.set_state(server, ServerState::Away);
        match then {
            Then::Refuse => {
                client.wait_end().unwrap();
                let close = servers.next("the close", |record| record.kind() == "close");
                assert_eq!(close.unwrap().header("reason"), "server_away");
            }
            Then::Reassign => {
                let is_move = |record: &millrace_harness::servers::by_hand::Record| {
                    record.headers.contains_key("moved_from")
                };
                let moved = servers.next("the move", is_move).unwrap();
                assert_eq!(moved.header("moved_from"), format!("server-{server}"));
                client.send(b"after").unwrap();
                let record = servers.next("a message", |record| record.value == b"after").unwrap();
                assert_eq!(usize::from(record.partition), 1 - server);
                assert_eq!(record.key, moved.key);
            }
            Then::Keep => {
                client.send(b"waits").unwrap();
                let record = servers.next("a message", |record| record.value == b"waits").unwrap();
                assert_eq!(usize::from(record.partition), server);
            }
        }
        drop(client);
        let stopped = relay.stop();
        let moved = stopped.clients_moved.values().sum::<u64>();
        assert_eq!(moved, u64::from(then == Then::Reassign));
    }
}

#[test]
fn without_another_server_clients_of_a_draining_one_stay() {
    let (relay, servers, mut client, server) = two("alone", SOON);
    relay.set_state(1 - server, ServerState::Away);
    relay.set_state(server, ServerState::Draining);
    client.send(b"still").unwrap();
    let record = servers.next("a message", |record| record.value == b"still").unwrap();
    assert_eq!(usize::from(record.partition), server);
    drop(client);
    assert!(relay.stop().clients_moved.is_empty());
}
