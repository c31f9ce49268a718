//! Connections that are nothing of the service's, handed on to the server that they addressed.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::frames;
use millrace_harness::kafka::{self, Topics};
use millrace_harness::net::netns::Topology;
use millrace_harness::net::uninterrupted;
use millrace_harness::relay::instance::Instance;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::privilege;
use millrace_harness::system::process::wait_until;
use millrace_relay::codec::{AutoSection, ByteOrder, Framing, Otherwise, ProtocolKind, Recognised};
use millrace_relay::config::Zones;

const PORT: u16 = 7022;
const PATIENCE: Duration = Duration::from_secs(20);
/// What an SSH client says first, which no length of a frame begins with.
const HELLO: &[u8] = b"SSH-2.0-millrace\r\n";
const LONG: usize = 10 << 20;

/// A port that is shared: frames go to Kafka, everything else to the server itself.
struct Shared {
    listener: Option<TcpListener>,
    instance: Instance,
    hosts: Topology,
    topics: Topics,
    target: SocketAddr,
}

impl Shared {
    fn new(name: &str, ipv6: bool) -> Self {
        Self::with(name, ipv6, |_| {})
    }

    fn with(name: &str, ipv6: bool, adjust: impl FnOnce(&mut AutoSection)) -> Self {
        let hosts = Topology::new(2, 1).unwrap();
        let topics = Topics::new(&kafka::brokers(), name);
        let framing = Framing::Length { bytes: 4, order: ByteOrder::Big };
        let mut config = hosts.config(PORT, framing);
        config.kafka.brokers = kafka::brokers();
        topics.prefix().clone_into(&mut config.kafka.topic_prefix);
        // What the server answers comes in there.
        config.gateway.devices.push(Topology::SERVER_DEVICE.to_owned());
        // A flow that the relay opens itself gets its zone from the first answer.
        config.gateway.zones = if ipv6 { Zones::Device } else { Zones::One };
        let service = &mut config.services[0];
        service.protocol = ProtocolKind::Auto;
        service.destinations.push(Topology::SERVER_NETWORK_IPV6.parse().unwrap());
        service.auto = AutoSection {
            recognise: vec![Recognised::WebSocket, Recognised::Framing],
            wait_ms: 300,
            otherwise: Otherwise::HandOn,
            ..AutoSection::default()
        };
        adjust(&mut service.auto);
        let server: IpAddr = if ipv6 {
            Topology::server_address_ipv6(0).into()
        } else {
            Topology::server_address(0).into()
        };
        let target = SocketAddr::new(server, PORT);
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
        let listener = hosts.servers[0].run(|| TcpListener::bind(any)).unwrap().unwrap();
        let mut instance = Instance::new(config, Some(&hosts.gateway.namespace())).unwrap();
        instance.load().unwrap();
        instance.start().unwrap();
        Self { listener: Some(listener), instance, hosts, topics, target }
    }

    fn connect(&self) -> TcpStream {
        let connect = || TcpStream::connect_timeout(&self.target, PATIENCE);
        let stream = self.hosts.clients[0].run(connect).unwrap().unwrap();
        patient(&stream);
        stream
    }

    fn accept(&self) -> TcpStream {
        accept(self.listener.as_ref().unwrap())
    }

    /// Both ends of a connection that is handed on.
    fn pair(&self) -> (TcpStream, TcpStream) {
        let mut client = self.connect();
        client.write_all(HELLO).unwrap();
        let mut server = self.accept();
        expect(&mut server, HELLO);
        let seen = server.peer_addr().unwrap();
        let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
        assert_eq!(seen, client.local_addr().unwrap(), "the server sees its client");
        (client, server)
    }

    fn handed_on(&self, what: &str) -> u64 {
        self.instance.stats().unwrap().count_by("handed_on", what).unwrap()
    }

    fn wait_all_over(&self) {
        wait_until(PATIENCE, "every connection to be over", || {
            Ok(self.instance.stats()?.count_by("handed_on", "open")? == 0)
        })
        .unwrap();
    }
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    wait_until(PATIENCE, "the server to be connected to", || {
        accepted = match listener.accept() {
            Ok((stream, _)) => Some(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => return Err(error.into()),
        };
        Ok(accepted.is_some())
    })
    .unwrap();
    let stream = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    patient(&stream);
    stream
}

fn patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
}

fn expect(stream: &mut TcpStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).unwrap();
    assert!(got == bytes, "other bytes came");
}

fn expect_end(stream: &mut TcpStream) {
    assert_eq!(uninterrupted(|| stream.read(&mut [0; 16])).unwrap(), 0, "not at its end");
}

fn expect_reset(stream: &mut TcpStream) {
    let error = uninterrupted(|| stream.read(&mut [0; 16])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

fn reset(stream: TcpStream) {
    let socket = socket2::Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

/// Bytes that repeat with no period that a buffer has.
fn noise(seed: u32) -> Vec<u8> {
    let mut word = seed | 1;
    std::iter::repeat_with(|| {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        word.to_be_bytes()[0]
    })
    .take(LONG)
    .collect()
}

/// Ten megabytes each way at the same time, then one side ends, and the other one goes on.
fn both_ways(shared: &Shared) {
    let (mut client, mut server) = shared.pair();
    let (up, down) = (noise(1), noise(2));
    std::thread::scope(|scope| {
        let (mut client_out, mut server_out) =
            (client.try_clone().unwrap(), server.try_clone().unwrap());
        let (up, down) = (&up, &down);
        scope.spawn(move || client_out.write_all(up).unwrap());
        scope.spawn(move || server_out.write_all(down).unwrap());
        scope.spawn(|| expect(&mut server, up));
        expect(&mut client, down);
    });
    client.shutdown(Shutdown::Write).unwrap();
    expect_end(&mut server);
    server.write_all(b"and more").unwrap();
    drop(server);
    expect(&mut client, b"and more");
    expect_end(&mut client);
    shared.wait_all_over();
    assert_eq!(shared.handed_on("bytes"), (HELLO.len() + 2 * LONG + b"and more".len()) as u64);
}

/// The relay connects to each server from the client's own port, as the client did.
#[test]
fn one_port_of_a_client_is_handed_on_to_each_of_two_servers() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let shared = Shared::new("ports", false);
    let source = SocketAddr::from((Topology::client_address(0), 40_000));
    let mut ends: Vec<_> = (0..2)
        .map(|index| {
            let target = SocketAddr::from((Topology::server_address(index), PORT));
            let listener = if index == 0 {
                shared.listener.as_ref().unwrap().try_clone().unwrap()
            } else {
                shared.hosts.servers[index].run(|| TcpListener::bind(target)).unwrap().unwrap()
            };
            let mut client = Client::connect_sharing(
                &shared.hosts.clients[0].namespace(),
                source,
                target,
                frames(),
            )
            .unwrap();
            client.send_bytes(HELLO).unwrap();
            let mut server = accept(&listener);
            expect(&mut server, HELLO);
            let seen = server.peer_addr().unwrap();
            assert_eq!(SocketAddr::new(seen.ip().to_canonical(), seen.port()), source);
            (client, server)
        })
        .collect();
    let (mut second, mut server) = ends.pop().unwrap();
    drop(ends);
    wait_until(PATIENCE, "the first to be over", || Ok(shared.handed_on("open") == 1)).unwrap();
    second.send_bytes(b"still").unwrap();
    expect(&mut server, b"still");
}

#[test]
fn all_bytes_arrive_in_both_directions() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    for ipv6 in [false, true] {
        let mut shared = Shared::new("onward", ipv6);
        both_ways(&shared);
        assert_eq!(shared.handed_on("connections"), 1);
        let last = shared.instance.stop().unwrap();
        assert_eq!(last["connections_closed"]["handed_on"], 1, "{last}");
    }
}

#[test]
fn what_is_recognised_goes_to_kafka_and_a_server_that_speaks_first_is_reached() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let shared = Shared::new("shared", false);
    let by_hand = HandServer::on(&kafka::brokers(), shared.topics.prefix(), &[0]).unwrap();
    let mut framed = shared.connect();
    framed.write_all(&frames().framed(b"by Kafka")).unwrap();
    let record = by_hand.next("the message", |record| record.kind() == "message").unwrap();
    assert_eq!(record.value, b"by Kafka");
    assert_eq!(record.header("protocol"), "length");
    by_hand.reply(&record, b"and back").unwrap();
    expect(&mut framed, &frames().framed(b"and back"));

    let mut silent = shared.connect();
    let mut server = shared.accept();
    server.write_all(b"220 ready\r\n").unwrap();
    expect(&mut silent, b"220 ready\r\n");
    silent.write_all(&frames().framed(b"not looked at any more")).unwrap();
    expect(&mut server, &frames().framed(b"not looked at any more"));
    assert_eq!(shared.handed_on("connections"), 1);
}

#[test]
fn failures_are_passed_on() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut shared = Shared::new("reset", false);
    let (client, mut server) = shared.pair();
    reset(client);
    expect_reset(&mut server);
    let (mut client, server) = shared.pair();
    reset(server);
    expect_reset(&mut client);
    shared.wait_all_over();
    assert_eq!(shared.handed_on("failed"), 0);

    // Nobody listens.
    shared.listener = None;
    let mut client = shared.connect();
    client.write_all(HELLO).unwrap();
    expect_reset(&mut client);
    shared.wait_all_over();
    assert_eq!(shared.handed_on("failed"), 1);
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let shared = Shared::with("unanswered", false, |auto| auto.connect_timeout_ms = 1000);
    // It has no way back, and says nothing.
    let client = Topology::client_address(0);
    shared.hosts.servers[0].ip(&format!("route add blackhole {client}")).unwrap();
    let mut client = shared.connect();
    let begun = Instant::now();
    client.write_all(HELLO).unwrap();
    expect_reset(&mut client);
    let took = begun.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(3)).contains(&took), "{took:?}");
    shared.wait_all_over();
    assert_eq!((shared.handed_on("failed"), shared.handed_on("timed_out")), (1, 1));
}

#[test]
fn a_side_that_does_not_read_stops_the_other_one() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let shared = Shared::new("pressure", false);
    let (mut client, mut server) = shared.pair();
    client.set_nonblocking(true).unwrap();
    let chunk = vec![7; 64 << 10];
    let (mut sent, mut last) = (0, Instant::now());
    while last.elapsed() < Duration::from_secs(1) {
        match client.write(&chunk) {
            Ok(length) => (sent, last) = (sent + length, Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 100 << 20, "nothing stops it");
    }
    client.set_nonblocking(false).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut received = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match uninterrupted(|| server.read(&mut buffer)).unwrap() {
            0 => break,
            length => received += length,
        }
    }
    assert_eq!(received, sent);
}

#[test]
fn they_end_with_the_relay() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut shared = Shared::new("end", false);
    let (mut client, mut server) = shared.pair();
    // A stop in good order does not look like the end of a stream.
    shared.instance.stop().unwrap();
    expect_reset(&mut client);
    expect_reset(&mut server);

    shared.instance.start().unwrap();
    let (mut client, mut server) = shared.pair();
    shared.instance.kill().unwrap();
    // The kernel closes what a killed process had.
    let ended = |stream: &mut TcpStream| match uninterrupted(|| stream.read(&mut [0; 16])) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    };
    assert!(ended(&mut client) && ended(&mut server));

    // And the next connection reaches the server without it.
    let mut client = shared.connect();
    let mut server = shared.accept();
    client.write_all(b"ordinary").unwrap();
    expect(&mut server, b"ordinary");
    server.write_all(b"indeed").unwrap();
    expect(&mut client, b"indeed");
}

/// Seconds that so many bytes take from the client to the server.
fn seconds(mut client: TcpStream, mut server: TcpStream, bytes: usize) -> f64 {
    let chunk = vec![7; 256 << 10];
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..bytes / chunk.len() {
                client.write_all(&chunk).unwrap();
            }
        });
        let (mut left, mut buffer) = (bytes, vec![0; 256 << 10]);
        while left > 0 {
            left -= uninterrupted(|| server.read(&mut buffer)).unwrap();
        }
    });
    start.elapsed().as_secs_f64()
}

/// One stream, handed on and merely forwarded, in turns; the best of each.
#[test]
#[ignore = "a measurement: cargo xtask test -p millrace-e2e --test delivery onward:: -- --ignored --nocapture"]
fn what_a_byte_costs() {
    const BYTES: usize = 256 << 20;
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let shared = Shared::new("cost", false);
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT + 1));
    let listener = shared.hosts.servers[0].run(|| TcpListener::bind(any)).unwrap().unwrap();
    let ordinary = SocketAddr::new(shared.target.ip(), PORT + 1);
    let cpu_us = || {
        let (user, system) = shared.instance.stats().unwrap().cpu_us().unwrap();
        user + system
    };
    let (mut forwarded, mut handed_on, mut relay_us) = (f64::MAX, f64::MAX, u64::MAX);
    for _ in 0..4 {
        let connect = || TcpStream::connect_timeout(&ordinary, PATIENCE);
        let client = shared.hosts.clients[0].run(connect).unwrap().unwrap();
        forwarded = forwarded.min(seconds(client, listener.accept().unwrap().0, BYTES));
        let (client, server) = shared.pair();
        let before = cpu_us();
        handed_on = handed_on.min(seconds(client, server, BYTES));
        relay_us = relay_us.min(cpu_us() - before);
    }
    let bytes = f64::from(u32::try_from(BYTES).unwrap());
    let gigabits = |seconds: f64| bytes * 8.0 / seconds / 1e9;
    let relay_us = f64::from(u32::try_from(relay_us).unwrap());
    println!(
        "one stream to the server: forwarded {:.2} Gbit/s, handed on {:.2} Gbit/s; \
         the relay's processor time {:.2} ns a byte",
        gigabits(forwarded),
        gigabits(handed_on),
        relay_us * 1e3 / bytes,
    );
    assert!(handed_on < 20.0 * forwarded, "handing on is out of proportion");
}
