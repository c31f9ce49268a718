//! The gateway between hosts: what is diverted, what is not, and what is left behind.
//!
//! The relay here is the least one: a listener in the relay namespace, a heartbeat, a flow table.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use millrace_relay::codec::Framing;
use millrace_relay::config::Config;
use millrace_relay::gateway::{
    self, FlowTable, Gateway, GatewayError, Heartbeat, object::ObjectFile,
};
use millrace_tests::netns::{Host, Loaded, Topology, bpf_object, load_on, privileged};

const PORT: u16 = 7000;
const OTHER_PORT: u16 = 7001;
/// Longer than any step takes, shorter than patience.
const DEADLINE: Duration = Duration::from_secs(10);
/// TCP's first retransmission comes after one second (RFC 6298 section 2): whoever is served sooner
/// has not lost a packet.
const NO_RETRANSMISSION: Duration = Duration::from_millis(900);

/// Held for reading by every test that loads, for writing by one that wants to be alone with the
/// host's shared parts (the bpffs mount).
static HOST: RwLock<()> = RwLock::new(());

fn shared() -> RwLockReadGuard<'static, ()> {
    HOST.read().unwrap_or_else(PoisonError::into_inner)
}

fn alone() -> RwLockWriteGuard<'static, ()> {
    HOST.write().unwrap_or_else(PoisonError::into_inner)
}

/// Beats from a thread of its own until it is dropped.
struct Pulse {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    fn start(mut heartbeat: Heartbeat) -> anyhow::Result<Self> {
        heartbeat.beat()?;
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(50)) == Err(RecvTimeoutError::Timeout)
            {
                heartbeat.beat().expect("beat");
            }
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the pulse");
        }
    }
}

/// The least relay.
struct FakeRelay {
    listener: TcpListener,
    flows: FlowTable,
    pulse: Option<Pulse>,
}

impl FakeRelay {
    fn start(config: &Config, port: u16) -> anyhow::Result<Self> {
        let mut gateway = Gateway::open(config)?;
        gateway.start_generation()?;
        let listener =
            gateway::in_namespace(gateway.namespace(), || listen(Ipv4Addr::UNSPECIFIED, port))??;
        let flows = gateway.flow_table()?;
        let pulse = Pulse::start(gateway.heartbeat()?)?;
        Ok(Self { listener, flows, pulse: Some(pulse) })
    }

    fn accept(&mut self) -> anyhow::Result<Accepted<'_>> {
        let (stream, client) = accept(&self.listener)?;
        let server = stream.local_addr()?;
        self.flows.accepted(client, server)?;
        Ok(Accepted { stream: Some(stream), client, server, flows: &mut self.flows })
    }
}

/// A connection that the fake relay has; closed in the right order.
struct Accepted<'a> {
    stream: Option<TcpStream>,
    client: SocketAddr,
    server: SocketAddr,
    flows: &'a mut FlowTable,
}

impl Accepted<'_> {
    fn stream(&mut self) -> &mut TcpStream {
        self.stream.as_mut().expect("until dropped")
    }
}

impl Drop for Accepted<'_> {
    fn drop(&mut self) {
        self.flows.closed(self.client, self.server).expect("close the flow");
        self.stream.take();
    }
}

fn listen(address: Ipv4Addr, port: u16) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind((address, port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Accepts within the deadline.
fn accept(listener: &TcpListener) -> anyhow::Result<(TcpStream, SocketAddr)> {
    let (stream, peer) = within("a connection", || match listener.accept() {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        result => Ok(Some(result?)),
    })?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok((stream, peer))
}

/// Polls for what must come within the deadline.
fn within<T>(what: &str, mut poll: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = poll()? {
            return Ok(value);
        }
        ensure!(start.elapsed() < DEADLINE, "no {what} within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn connect(host: &Host, server: Ipv4Addr, port: u16) -> anyhow::Result<TcpStream> {
    let address = SocketAddr::from((server, port));
    let stream = host.run(|| TcpStream::connect_timeout(&address, DEADLINE))??;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// Sends `bytes` one way and checks that they arrive.
fn transfer(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) -> anyhow::Result<()> {
    let sent: Vec<u8> = (0..bytes).map(|index| u8::try_from(index % 251).unwrap()).collect();
    let mut received = vec![0; bytes];
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| from.write_all(&sent));
        to.read_exact(&mut received)?;
        sender.join().expect("the sender")
    })?;
    ensure!(sent == received, "what arrived is not what was sent");
    Ok(())
}

/// A connection by the ordinary path works, both ways.
fn reaches_server(topology: &Topology, port: u16) -> anyhow::Result<Duration> {
    let server = &topology.servers[0];
    let listener = server.run(|| listen(Topology::server_address(0), port))??;
    let start = Instant::now();
    let mut client = connect(&topology.clients[0], Topology::server_address(0), port)?;
    let elapsed = start.elapsed();
    let (mut accepted, peer) = accept(&listener)?;
    ensure!(peer.ip() == Topology::client_address(0), "the server sees {peer}");
    transfer(&mut client, &mut accepted, 100_000)?;
    transfer(&mut accepted, &mut client, 100_000)?;
    Ok(elapsed)
}

/// One client, one server, an instance loaded between them.
fn loaded() -> anyhow::Result<(Loaded, Topology)> {
    let topology = Topology::new(1, 1)?;
    let config = topology.config(PORT, Framing::Lines);
    Ok((topology.load(&config)?, topology))
}

#[test]
fn a_ruled_connection_ends_at_the_relay_with_both_addresses() -> anyhow::Result<()> {
    if !privileged("a_ruled_connection_ends_at_the_relay_with_both_addresses") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(3, 2)?;
    let config = topology.config(PORT, Framing::Lines);
    let loaded = topology.load(&config)?;
    let mut relay = FakeRelay::start(&config, PORT)?;
    let before: Vec<u64> =
        topology.servers.iter().map(Host::tcp_segments_received).collect::<Result<_, _>>()?;

    for (client_index, client_host) in topology.clients.iter().enumerate() {
        for server_index in 0..topology.servers.len() {
            let server = Topology::server_address(server_index);
            let mut client = connect(client_host, server, PORT)?;
            let mut accepted = relay.accept()?;
            ensure!(accepted.client == client.local_addr()?, "the peer is {}", accepted.client);
            ensure!(accepted.client.ip() == Topology::client_address(client_index));
            ensure!(accepted.server == SocketAddr::from((server, PORT)), "{}", accepted.server);
            transfer(&mut client, accepted.stream(), 3_000_000)?;
            transfer(accepted.stream(), &mut client, 3_000_000)?;
            // The relay closes, and then the client: its last segments must not go to the server.
            drop(accepted);
            ensure!(client.read(&mut [0])? == 0, "the relay's end arrives");
        }
    }

    let status = gateway::status(&config)?;
    ensure!(status.established == 0, "{} flows are left", status.established);
    ensure!(status.pending == 6, "{} flows are pending", status.pending);
    ensure!(status.verdicts["divert/new"] == 6, "{:?}", status.verdicts);
    for name in ["divert/established", "divert/pending", "return/forwarded"] {
        ensure!(status.verdicts[name] > 0, "no {name}: {:?}", status.verdicts);
    }
    for name in ["pass/no_flow", "pass/no_listener", "return/stack", "return/reset_held"] {
        ensure!(status.verdicts[name] == 0, "{name}: {:?}", status.verdicts);
    }
    // The counters of the servers' own stacks are the witness: not one segment.
    for (host, before) in topology.servers.iter().zip(before) {
        let segments = host.tcp_segments_received()? - before;
        ensure!(segments == 0, "{} saw {segments} segments", host.name());
    }
    loaded.unload()
}

#[test]
fn a_port_without_a_rule_takes_the_ordinary_path() -> anyhow::Result<()> {
    if !privileged("a_port_without_a_rule_takes_the_ordinary_path") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let _relay = FakeRelay::start(&loaded.config, PORT)?;
    reaches_server(&topology, OTHER_PORT)?;
    ensure!(loaded.verdict("pass/no_rule")? > 0);
    ensure!(loaded.verdict("divert/new")? == 0);
    loaded.unload()
}

#[test]
fn without_a_relay_new_connections_reach_their_server() -> anyhow::Result<()> {
    if !privileged("without_a_relay_new_connections_reach_their_server") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;

    let elapsed = reaches_server(&topology, PORT)?;
    ensure!(elapsed < NO_RETRANSMISSION, "before any relay: {elapsed:?}");
    ensure!(loaded.verdict("pass/no_heartbeat")? == 1);

    // The listener is gone, the heartbeat still fresh: what the first instant after a kill is like.
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 1000)?;
    let FakeRelay { listener, flows, pulse } = relay;
    drop(listener);
    let elapsed = reaches_server(&topology, PORT)?;
    ensure!(elapsed < NO_RETRANSMISSION, "without a listener: {elapsed:?}");
    ensure!(loaded.verdict("pass/no_listener")? == 1);
    drop((flows, pulse));

    // Another relay takes new connections again.
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 1000)?;

    // It hangs: the listener is there, the heartbeat is not.
    relay.pulse.take();
    within(
        "stale heartbeat",
        || Ok((!gateway::status(&loaded.config)?.relay.alive).then_some(())),
    )?;
    let elapsed = reaches_server(&topology, PORT)?;
    ensure!(elapsed < NO_RETRANSMISSION, "without a heartbeat: {elapsed:?}");
    ensure!(loaded.verdict("pass/no_heartbeat")? == 2);
    ensure!(loaded.verdict("divert/new")? == 2);
    loaded.unload()
}

#[test]
fn a_graceful_stop_takes_no_more_and_keeps_what_it_has() -> anyhow::Result<()> {
    if !privileged("a_graceful_stop_takes_no_more_and_keeps_what_it_has") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let mut gateway = Gateway::open(&loaded.config)?;
    gateway.start_generation()?;
    let mut heartbeat = gateway.heartbeat()?;
    let mut flows = gateway.flow_table()?;
    let listener =
        gateway::in_namespace(gateway.namespace(), || listen(Ipv4Addr::UNSPECIFIED, PORT))??;
    heartbeat.beat()?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let (mut accepted, peer) = accept(&listener)?;
    flows.accepted(peer, accepted.local_addr()?)?;
    heartbeat.stop()?;
    reaches_server(&topology, PORT)?;
    transfer(&mut client, &mut accepted, 1_000_000)?;
    transfer(&mut accepted, &mut client, 1_000_000)?;
    loaded.unload()
}

#[test]
fn a_new_relay_does_not_inherit_the_flows_of_a_killed_one() -> anyhow::Result<()> {
    if !privileged("a_new_relay_does_not_inherit_the_flows_of_a_killed_one") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let _client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    // Killed: nobody tells the flow table that the connection is gone.
    std::mem::forget(relay.accept()?);
    drop(relay);
    ensure!(gateway::status(&loaded.config)?.established == 1);
    let first = gateway::status(&loaded.config)?.relay.generation;

    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let status = gateway::status(&loaded.config)?;
    ensure!(status.established == 0, "the former flow is forgotten");
    ensure!(status.relay.generation > first, "generations grow");
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 1000)?;
    loaded.unload()
}

#[test]
fn a_connection_from_before_the_load_goes_on_undisturbed() -> anyhow::Result<()> {
    if !privileged("a_connection_from_before_the_load_goes_on_undisturbed") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let listener = topology.servers[0].run(|| listen(Ipv4Addr::UNSPECIFIED, PORT))??;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let (mut server, _) = accept(&listener)?;
    transfer(&mut client, &mut server, 100_000)?;

    let config = topology.config(PORT, Framing::Lines);
    let loaded = topology.load(&config)?;
    let mut relay = FakeRelay::start(&config, PORT)?;
    transfer(&mut client, &mut server, 1_000_000)?;
    transfer(&mut server, &mut client, 1_000_000)?;
    ensure!(loaded.verdict("pass/no_flow")? > 0);
    ensure!(loaded.verdict("divert/new")? == 0);

    // A new one beside it is diverted, and unloading disturbs the old one no more than loading did.
    let mut second = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut second, relay.accept()?.stream(), 1000)?;
    loaded.unload()?;
    transfer(&mut client, &mut server, 1_000_000)?;
    transfer(&mut server, &mut client, 1_000_000)
}

#[test]
fn an_unknown_neighbour_is_found_by_the_hosts_stack() -> anyhow::Result<()> {
    if !privileged("an_unknown_neighbour_is_found_by_the_hosts_stack") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let client = &topology.clients[0];
    // The strictest host: reverse-path filtering on, as many distributions have it.
    topology.gateway.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    let links: serde_json::Value =
        serde_json::from_str(&topology.gateway.ip("-json link show dev eth1")?)?;
    let mac = links[0]["address"].as_str().context("no address")?;
    client.ip(&format!("neigh replace 10.77.1.1 lladdr {mac} dev eth0 nud permanent"))?;
    topology.gateway.ip("neigh flush dev eth1")?;

    let mut stream = connect(client, Topology::server_address(0), PORT)?;
    transfer(&mut stream, relay.accept()?.stream(), 1000)?;
    ensure!(loaded.verdict("return/no_neighbour")? > 0);
    loaded.unload()
}

#[test]
fn a_device_that_cannot_be_redirected_to_is_answered_through_the_stack() -> anyhow::Result<()> {
    if !privileged("a_device_that_cannot_be_redirected_to_is_answered_through_the_stack") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    topology.clients[0].ethtool("-K eth0 gro off")?;
    let config = topology.config(PORT, Framing::Lines);
    let loaded = topology.load(&config)?;
    let status = topology.gateway.run(|| gateway::status(&config))??;
    ensure!(!status.devices[0].redirects_answers && status.devices[0].mode == "native");
    let mut relay = FakeRelay::start(&config, PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let mut accepted = relay.accept()?;
    transfer(&mut client, accepted.stream(), 1_000_000)?;
    transfer(accepted.stream(), &mut client, 1_000_000)?;
    drop(accepted);
    ensure!(loaded.verdict("return/stack")? > 0);
    ensure!(loaded.verdict("return/forwarded")? == 0);
    loaded.unload()
}

#[test]
fn clients_within_a_diverted_prefix_are_answered() -> anyhow::Result<()> {
    if !privileged("clients_within_a_diverted_prefix_are_answered") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    for prefix in ["10.77.0.0/16", "0.0.0.0/0"] {
        let mut config = topology.config(PORT, Framing::Lines);
        config.services[0].destinations = vec![prefix.parse().map_err(anyhow::Error::msg)?];
        let loaded = topology.load(&config)?;
        let mut relay = FakeRelay::start(&config, PORT)?;
        let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
        let mut accepted = relay.accept()?;
        transfer(&mut client, accepted.stream(), 100_000)?;
        transfer(accepted.stream(), &mut client, 100_000)?;
        drop(accepted);
        loaded.unload()?;
    }
    Ok(())
}

#[test]
fn jumbo_frames_are_diverted() -> anyhow::Result<()> {
    if !privileged("jumbo_frames_are_diverted") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    topology.clients[0].ip("link set dev eth0 mtu 9000")?;
    topology.gateway.ip("link set dev eth1 mtu 9000")?;
    let config = topology.config(PORT, Framing::Lines);
    let loaded = topology.load(&config)?;
    let mut relay = FakeRelay::start(&config, PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let mut accepted = relay.accept()?;
    transfer(&mut client, accepted.stream(), 3_000_000)?;
    transfer(accepted.stream(), &mut client, 3_000_000)?;
    drop(accepted);
    ensure!(loaded.verdict("return/stack")? == 0);
    loaded.unload()
}

#[test]
fn two_instances_share_a_host() -> anyhow::Result<()> {
    if !privileged("two_instances_share_a_host") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let mut config = topology.config(PORT, Framing::Lines);
    let loaded = topology.load(&config)?;
    config = topology.config(OTHER_PORT, Framing::Lines);
    config.gateway.devices = vec![Topology::SERVER_DEVICE.to_owned()];
    let other = topology.load(&config)?;
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let _other = FakeRelay::start(&other.config, OTHER_PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 1000)?;
    other.unload()?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 1000)?;
    loaded.unload()
}

/// What `load` could change, in one comparable value.
#[derive(Debug, PartialEq)]
struct Traces {
    gateway_links: Vec<String>,
    gateway_sysctls: String,
    instance_files: Vec<bool>,
    bpffs: bool,
}

fn traces(gateway: &Host, config: &Config) -> anyhow::Result<Traces> {
    let links: serde_json::Value = serde_json::from_str(&gateway.ip("-json -details link")?)?;
    let gateway_links = links
        .as_array()
        .context("no list of links")?
        .iter()
        .map(|link| format!("{} {} {}", link["ifname"], link["mtu"], link["xdp"]))
        .collect();
    let output =
        gateway.command("sysctl").args(["-a", "--pattern", r"^net\.(ipv4|ipv6|core)"]).output()?;
    let gateway_sysctls = String::from_utf8_lossy(&output.stdout)
        .lines()
        // Counters, not settings.
        .filter(|line| !line.contains(".nf_conntrack_count") && !line.contains("dev-stats"))
        .collect::<Vec<_>>()
        .join("\n");
    Ok(Traces {
        gateway_links,
        gateway_sysctls,
        instance_files: [config.namespace(), config.pin_directory(), config.run_directory()]
            .iter()
            .map(|path| path.exists())
            .collect(),
        bpffs: std::fs::read_to_string("/proc/mounts")?.contains(" /sys/fs/bpf bpf "),
    })
}

#[test]
fn unload_leaves_nothing() -> anyhow::Result<()> {
    if !privileged("unload_leaves_nothing") {
        return Ok(());
    }
    let _alone = alone();
    let topology = Topology::new(1, 1)?;
    let config = topology.config(PORT, Framing::Lines);
    let before = traces(&topology.gateway, &config)?;
    ensure!(before.instance_files == [false; 3]);
    let loaded = topology.load(&config)?;
    let during = traces(&topology.gateway, &config)?;
    ensure!(during.instance_files == [true; 3] && during.bpffs);
    ensure!(during.gateway_links != before.gateway_links);
    // What a killed relay leaves beside the state.
    std::fs::write(config.control_socket(), "")?;
    loaded.unload()?;
    let after = traces(&topology.gateway, &config)?;
    ensure!(after == before, "before {before:#?}\nafter {after:#?}");
    let second = gateway::unload(&config, &mut |_| {});
    ensure!(matches!(second, Err(GatewayError::NotLoaded { .. })), "{second:?}");
    Ok(())
}

/// After a load that was killed, or an operator's own clearing up, `unload` removes what is left.
#[test]
fn unload_removes_what_is_left_of_an_instance() -> anyhow::Result<()> {
    if !privileged("unload_removes_what_is_left_of_an_instance") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let config = topology.config(PORT, Framing::Lines);
    let before = traces(&topology.gateway, &config)?;

    let loaded = topology.load(&config)?;
    std::fs::remove_dir_all(config.pin_directory())?;
    loaded.unload()?;
    let loaded = topology.load(&config)?;
    topology.gateway.ip(&format!("link delete {}", gateway::gateway_device(&config)))?;
    loaded.unload()?;
    let loaded = topology.load(&config)?;
    topology.gateway.ip(&format!("netns delete {}", config.gateway.instance))?;
    loaded.unload()?;
    // A relay's socket keeps a namespace alive whose name is gone.
    let loaded = topology.load(&config)?;
    let socket = gateway::in_namespace(&config.namespace(), || listen(Ipv4Addr::LOCALHOST, 1))??;
    topology.gateway.ip(&format!("netns delete {}", config.gateway.instance))?;
    std::mem::forget(loaded);
    topology.gateway.run(|| gateway::unload(&config, &mut |_| {}))??;
    drop(socket);

    let after = traces(&topology.gateway, &config)?;
    ensure!(Traces { bpffs: before.bpffs, ..after } == before, "something is left");
    Ok(())
}

/// A load that must fail with this message, and leave everything as it was.
fn refused(gateway: &Host, config: &Config, message: &str) -> anyhow::Result<()> {
    let before = traces(gateway, config)?;
    let error = load_on(gateway, config).err().context("the load was not refused")?.to_string();
    ensure!(error.contains(message), "`{error}` does not say `{message}`");
    let after = traces(gateway, config)?;
    // Another test may mount or unmount the bpffs in between.
    ensure!(
        Traces { bpffs: before.bpffs, ..after } == before,
        "after `{error}` something is left; before: {before:#?}"
    );
    Ok(())
}

#[test]
fn what_cannot_be_loaded_is_refused_and_leaves_nothing() -> anyhow::Result<()> {
    if !privileged("what_cannot_be_loaded_is_refused_and_leaves_nothing") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let gateway = &topology.gateway;
    let config = topology.config(PORT, Framing::Lines);
    let with_device = |device: &str| {
        let mut config = config.clone();
        config.gateway.devices = vec![Topology::CLIENT_DEVICE.to_owned(), device.to_owned()];
        config
    };

    refused(gateway, &with_device("nope"), "there is no network device `nope`")?;
    // These fail at the last step, with everything else made, and must be undone.
    gateway.ip("link add bridge0 type bridge")?;
    refused(gateway, &with_device("bridge0"), "`bridge0` (driver bridge) has no native XDP")?;
    gateway.ip("link set dev lo mtu 65536")?;
    refused(gateway, &with_device("lo"), "device `lo` cannot be used with MTU 65536")?;

    gateway.sysctl("net/ipv4/ip_forward", "0")?;
    refused(gateway, &config, "sysctl -w net.ipv4.ip_forward=1")?;
    gateway.sysctl("net/ipv4/ip_forward", "1")?;

    let device = gateway::gateway_device(&config);
    gateway.ip(&format!("link add {device} type bridge"))?;
    refused(gateway, &config, &format!("the device {device} exists"))?;
    gateway.ip(&format!("link delete {device}"))?;

    let mut many = config.clone();
    many.services[0].destinations = (0..20_000u32)
        .map(|n| format!("10.{}.{}.0/24", n >> 8, n & 255).parse().unwrap())
        .collect();
    refused(gateway, &many, "20000 steering rules are more than the 16384")?;

    // After all these failures the right one works.
    topology.load(&config)?.unload()
}

#[test]
fn a_second_load_and_a_foreign_program_are_refused() -> anyhow::Result<()> {
    if !privileged("a_second_load_and_a_foreign_program_are_refused") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    refused(&topology.gateway, &loaded.config, "already loaded; inspect it with `relay status`")?;

    // Another instance's program on the device is as foreign as anybody's.
    let other = topology.config(OTHER_PORT, Framing::Lines);
    refused(&topology.gateway, &other, "device `eth1` already runs an XDP program (id ")?;

    // Both refusals have left the instance at work.
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 1000)?;
    loaded.unload()
}

#[test]
fn what_is_not_loaded_cannot_be_used() -> anyhow::Result<()> {
    if !privileged("what_is_not_loaded_cannot_be_used") {
        return Ok(());
    }
    let config = Topology::new(1, 1)?.config(PORT, Framing::Lines);
    for error in [
        Gateway::open(&config).err(),
        gateway::status(&config).err(),
        gateway::unload(&config, &mut |_| {}).err(),
    ] {
        let error = error.context("it was not refused")?.to_string();
        ensure!(error.contains("is not loaded; load it with `relay load`"), "{error}");
    }
    Ok(())
}

#[test]
fn an_object_that_is_none_is_refused() -> anyhow::Result<()> {
    let error = ObjectFile::read(Path::new("/nonexistent/gateway.bpf.o")).unwrap_err().to_string();
    ensure!(error.contains("/nonexistent/gateway.bpf.o"), "{error}");
    let error = ObjectFile::read(&std::env::current_exe()?).unwrap_err().to_string();
    ensure!(error.contains("has no section .millrace.abi"), "{error}");
    if bpf_object().is_ok() {
        ObjectFile::read(&bpf_object()?)?;
    }
    Ok(())
}
