//! The least relay behind a loaded gateway, and the few steps that tests of the gateway take with it:
//! a listener in the relay namespace, a heartbeat, a flow table.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use millrace_relay::codec::Framing;
use millrace_relay::config::Config;
use millrace_relay::gateway::{self, FlowTable, Gateway, Heartbeat, RELAY_DEVICE, Watch};
use socket2::{Domain, Socket, Type};

use crate::net::frames::{Frame, flag};
use crate::net::netns::{Host, Loaded, Topology};
use crate::net::raw_socket::Raw;
use crate::net::tcp::retransmissions;

/// The port with a rule.
pub const PORT: u16 = 7000;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// Longer than any step takes, shorter than patience.
const DEADLINE: Duration = Duration::from_secs(10);

/// Beats from a thread of its own until it is dropped.
#[derive(Debug)]
pub struct Pulse {
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
#[derive(Debug)]
pub struct FakeRelay {
    /// In the relay namespace.
    pub listener: TcpListener,
    /// What the programs know of it.
    pub flows: FlowTable,
    /// The heartbeat; without it the relay hangs.
    pub pulse: Option<Pulse>,
    /// What looks after the devices.
    pub watch: Watch,
}

impl FakeRelay {
    /// Takes hold of the loaded instance, listens and beats.
    pub fn start(config: &Config, port: u16) -> anyhow::Result<Self> {
        Self::start_at(config, (Ipv4Addr::UNSPECIFIED, port).into())
    }

    /// The same at another address; of IPv6 only, if it is one of IPv6.
    pub fn start_at(config: &Config, address: SocketAddr) -> anyhow::Result<Self> {
        let mut gateway = Gateway::open(config)?;
        gateway.start_generation()?;
        let listener =
            gateway::in_namespace(gateway.namespace(), || listen(address.ip(), address.port()))??;
        let flows = gateway.flow_table()?;
        let pulse = Pulse::start(gateway.heartbeat()?)?;
        let watch = gateway.watch(config)?;
        Ok(Self { listener, flows, pulse: Some(pulse), watch })
    }

    /// The next connection, as an established flow.
    pub fn accept(&mut self) -> anyhow::Result<Accepted<'_>> {
        let (stream, client) = accept(&self.listener)?;
        let server = stream.local_addr()?;
        self.flows.accepted(client, server)?;
        Ok(Accepted { stream: Some(stream), client, server, flows: &mut self.flows })
    }
}

/// A connection that the fake relay has; closed in the right order.
#[derive(Debug)]
pub struct Accepted<'a> {
    stream: Option<TcpStream>,
    /// The peer.
    pub client: SocketAddr,
    /// The local address.
    pub server: SocketAddr,
    flows: &'a mut FlowTable,
}

impl Accepted<'_> {
    /// The socket.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.stream.as_mut().expect("until dropped")
    }
}

impl Drop for Accepted<'_> {
    fn drop(&mut self) {
        self.flows.closed(self.client, self.server).expect("close the flow");
        self.stream.take();
    }
}

/// A listener to be polled.
pub fn listen(address: impl Into<IpAddr>, port: u16) -> std::io::Result<TcpListener> {
    let address = SocketAddr::from((address.into(), port));
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Accepts within the deadline.
pub fn accept(listener: &TcpListener) -> anyhow::Result<(TcpStream, SocketAddr)> {
    within("a connection", || accept_now(listener))
}

/// Accepts a connection that is there already.
pub fn accept_now(listener: &TcpListener) -> anyhow::Result<Option<(TcpStream, SocketAddr)>> {
    let (stream, peer) = match listener.accept() {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
        result => result?,
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(Some((stream, peer)))
}

/// Polls for what must come within the deadline.
pub fn within<T>(
    what: &str,
    mut poll: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = poll()? {
            return Ok(value);
        }
        ensure!(start.elapsed() < DEADLINE, "no {what} within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Connects out of a host.
pub fn connect(host: &Host, server: impl Into<IpAddr>, port: u16) -> anyhow::Result<TcpStream> {
    let address = SocketAddr::from((server.into(), port));
    let stream = host.run(|| TcpStream::connect_timeout(&address, DEADLINE))??;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// Sends `bytes` one way and checks that they arrive.
pub fn transfer(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) -> anyhow::Result<()> {
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

/// A connection by the ordinary path works, both ways; how long it took to
/// connect.
pub fn reaches_server(topology: &Topology, port: u16) -> anyhow::Result<Duration> {
    let server = &topology.servers[0];
    let listener = server.run(|| listen(Topology::server_address(0), port))??;
    let host = &topology.clients[0];
    let sent_again = retransmissions(&[&host.namespace()])?;
    let start = Instant::now();
    let mut client = connect(host, Topology::server_address(0), port)?;
    let elapsed = start.elapsed();
    let sent_again = retransmissions(&[&host.namespace()])? - sent_again;
    ensure!(sent_again == 0, "{sent_again} segments were lost on the way to the server");
    let (mut accepted, peer) = accept(&listener)?;
    ensure!(peer.ip() == Topology::client_address(0), "the server sees {peer}");
    transfer(&mut client, &mut accepted, 100_000)?;
    transfer(&mut accepted, &mut client, 100_000)?;
    Ok(elapsed)
}

/// One client, one server, an instance loaded between them.
pub fn loaded() -> anyhow::Result<(Loaded, Topology)> {
    let topology = Topology::new(1, 1)?;
    let config = topology.config(PORT, Framing::Lines);
    Ok((topology.load(&config)?, topology))
}

/// Starts a relay, and checks that a connection of the first client's to the first server ends
/// there and carries so many bytes each way.
pub fn diverts(topology: &Topology, config: &Config, bytes: usize) -> anyhow::Result<()> {
    let mut relay = FakeRelay::start(config, PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let mut accepted = relay.accept()?;
    transfer(&mut client, accepted.stream(), bytes)?;
    transfer(accepted.stream(), &mut client, bytes)
}

/// What `load` could change, in one comparable value.
#[derive(Debug, PartialEq)]
pub struct Traces {
    /// Devices with their programs.
    pub gateway_links: Vec<String>,
    /// Settings.
    pub gateway_sysctls: String,
    /// Namespace, pins, run-time directory.
    pub instance_files: Vec<bool>,
    /// Whether the BPF file system is mounted.
    pub bpffs: bool,
}

/// What there is now.
pub fn traces(gateway: &Host, config: &Config) -> anyhow::Result<Traces> {
    let links: serde_json::Value = serde_json::from_str(&gateway.ip("-json -details link")?)?;
    let mut gateway_links: Vec<String> = links
        .as_array()
        .context("no list of links")?
        .iter()
        .map(|link| format!("{} {} {}", link["ifname"], link["mtu"], link["xdp"]))
        .collect();
    let output =
        gateway.command("sysctl").args(["-a", "--pattern", r"^net\.(ipv4|ipv6|core)"]).output()?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let mut gateway_sysctls: Vec<_> = stdout
        .lines()
        // Counters, not settings.
        .filter(|line| !line.contains(".nf_conntrack_count") && !line.contains("dev-stats"))
        .collect();
    // A device that was made anew is the last one.
    gateway_links.sort();
    gateway_sysctls.sort_unstable();
    Ok(Traces {
        gateway_links,
        gateway_sysctls: gateway_sysctls.join("\n"),
        instance_files: [config.namespace(), config.pin_directory(), config.run_directory()]
            .iter()
            .map(|path| path.exists())
            .collect(),
        bpffs: std::fs::read_to_string("/proc/mounts")?.contains(" /sys/fs/bpf bpf "),
    })
}

/// Sends a SYN from each of these ports of the first client to the port with a rule.
pub fn send_syns(topology: &Topology, ports: Range<u16>) -> anyhow::Result<()> {
    let server = (Topology::server_address(0), PORT).into();
    topology.clients[0].run(|| {
        let raw = Raw::new()?;
        for port in ports {
            let client = SocketAddr::from((Topology::client_address(0), port));
            raw.send(&Frame::tcp(client, server, flag::SYN, 7))?;
        }
        anyhow::Ok(())
    })?
}

/// Takes the relay's end of the link down, which then receives nothing.
pub fn take_relay_device_down(config: &Config) -> anyhow::Result<()> {
    let down = ["link", "set", "dev", RELAY_DEVICE, "down"];
    let down = || Command::new("ip").args(down).status();
    let status = gateway::in_namespace(&config.namespace(), down)??;
    ensure!(status.success(), "{RELAY_DEVICE} is not taken down: {status}");
    Ok(())
}
