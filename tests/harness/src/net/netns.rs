//! Hosts made of network namespaces: clients, a gateway and servers on one machine.
//!
//! Everything here is removed when its value is dropped, after a panic too; what a killed process
//! has left is removed by the next one that makes a [`Host`].

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail, ensure};
use millrace_relay::codec::Framing;
use millrace_relay::config::{
    Config, GatewaySection, HoldSection, KafkaSection, MetricsSection, RegistrySection,
    RelaySection, Server, Service, Source,
};
use millrace_relay::gateway::object::ObjectFile;
use millrace_relay::gateway::{self, LoadReport};
use millrace_relay::model::Partition;
use millrace_relay::tune;

use crate::net::tcp::tcp_counter;
use crate::system::paths;

/// Start of the names of namespaces; the number of their process follows.
const HOST_PREFIX: &str = "mrh";
/// Start of the names of instances; the number of their process follows. Short: a name has at most
/// 12 bytes.
const INSTANCE_PREFIX: &str = "mi";
/// Most hosts of a side: their addresses end in 11 and upwards.
const MAX_HOSTS: usize = 240;

/// The eBPF object under test: `MILLRACE_BPF_OBJECT`, or the workspace's own.
pub fn bpf_object() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os(gateway::object::VARIABLE)
        .map_or_else(|| paths::workspace().join("target/bpf/gateway.bpf.o"), PathBuf::from);
    ensure!(
        path.is_file(),
        "there is no eBPF object {}; build it with `cargo xtask build-ebpf`",
        path.display()
    );
    Ok(path)
}

/// An instance name that no other test, in this process or another, has.
pub fn instance_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{INSTANCE_PREFIX}{}-{number}", std::process::id())
}

/// A host: a network namespace with its loopback up, removed on drop.
#[derive(Debug)]
pub struct Host {
    name: String,
}

impl Host {
    /// Makes a host. Its namespace's name carries `name`, this process's number and a counter.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(remove_stale);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{HOST_PREFIX}{}-{number}-{name}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let host = Self { name };
        // Whatever the machine has, which a new namespace inherits.
        for scope in ["all", "default"] {
            host.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        host.ip("link set dev lo up")?;
        Ok(host)
    }

    /// The namespace's name, as `ip netns` has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace's file.
    pub fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs a closure on a thread inside the host; a socket made there stays there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        Ok(gateway::in_namespace(&self.namespace(), work)?)
    }

    /// A command that will run inside the host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace().display())).arg(program);
        command
    }

    /// The hardware address of one of its devices.
    pub fn hardware_address(&self, device: &str) -> anyhow::Result<String> {
        let links: serde_json::Value =
            serde_json::from_str(&self.ip(&format!("-json link show dev {device}"))?)?;
        Ok(links[0]["address"].as_str().context("no address")?.to_owned())
    }

    /// Runs `ip` with these words inside the host, and gives what it prints.
    pub fn ip(&self, words: &str) -> anyhow::Result<String> {
        run(self.command("ip").args(words.split_whitespace()))
    }

    /// Runs `ethtool` with these words inside the host.
    pub fn ethtool(&self, words: &str) -> anyhow::Result<String> {
        run(self.command("ethtool").args(words.split_whitespace()))
    }

    /// Sets a sysctl of the host; slashes between its parts.
    pub fn sysctl(&self, key: &str, value: &str) -> anyhow::Result<()> {
        self.run(|| std::fs::write(Path::new("/proc/sys").join(key), value))?
            .with_context(|| format!("set {key} to {value}"))
    }

    /// Packets that the host's TCP has received, whatever became of them.
    pub fn tcp_segments_received(&self) -> anyhow::Result<u64> {
        tcp_counter(&self.namespace(), "InSegs")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "delete", &self.name])) {
            eprintln!("cannot remove the namespace {}: {error}", self.name);
        }
    }
}

/// Connects two hosts with a veth pair, each end with an address (`ADDRESS/LENGTH`, or `""`).
///
/// A frame that XDP redirects carries the checksum that it has, so the sender completes it; and a
/// redirected frame is accepted only by a veth whose other end polls, which generic receive offload
/// turns on. Both are what a network card does.
pub fn link(
    a: &Host,
    a_device: &str,
    a_address: &str,
    b: &Host,
    b_device: &str,
    b_address: &str,
) -> anyhow::Result<()> {
    a.ip(&format!("link add {a_device} type veth peer name {b_device} netns {}", b.name()))?;
    for (host, device, address) in [(a, a_device, a_address), (b, b_device, b_address)] {
        if !address.is_empty() {
            host.ip(&format!("address add {address} dev {device}"))?;
        }
        host.ip(&format!("link set dev {device} up"))?;
        // Once it is up: before, the other end would not learn that it may now send here.
        host.ethtool(&format!("-K {device} tx off tso off gro on"))?;
    }
    Ok(())
}

/// Clients – gateway – servers. The fields are dropped in this order.
#[derive(Debug)]
pub struct Topology {
    /// `10.77.1.11`, `fd77:1::b` and upwards, behind the gateway's `eth1`.
    pub clients: Vec<Host>,
    /// `10.77.2.11`, `fd77:2::b` and upwards, behind the gateway's `eth2`.
    pub servers: Vec<Host>,
    /// `10.77.1.1` and `fd77:1::1` on `eth1`, `10.77.2.1` and `fd77:2::1` on `eth2`; it forwards.
    pub gateway: Host,
    /// The bridges that connect several hosts to one device of the gateway.
    _switch: Host,
}

impl Topology {
    /// The gateway's client-facing device.
    pub const CLIENT_DEVICE: &'static str = "eth1";
    /// What [`Self::put_below_a_bridge`] makes of it.
    pub const BRIDGE: &'static str = "bridge0";
    /// The gateway's device towards the servers.
    pub const SERVER_DEVICE: &'static str = "eth2";
    /// Where the servers are.
    pub const SERVER_NETWORK: &'static str = "10.77.2.0/24";
    /// Where they are in IPv6.
    pub const SERVER_NETWORK_IPV6: &'static str = "fd77:2::/64";

    /// Makes so many hosts on each side, and connects them. One host is connected to the gateway by
    /// its own link, several through a bridge.
    pub fn new(servers: usize, clients: usize) -> anyhow::Result<Self> {
        ensure!(
            (1..=MAX_HOSTS).contains(&servers) && (1..=MAX_HOSTS).contains(&clients),
            "from 1 to {MAX_HOSTS} clients and servers, not {clients} and {servers}"
        );
        let gateway = Host::new("gateway")?;
        gateway.sysctl("net/ipv4/ip_forward", "1")?;
        gateway.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let switch = Host::new("switch")?;
        let clients = side(&gateway, &switch, Self::CLIENT_DEVICE, "client", 1, clients)?;
        let servers = side(&gateway, &switch, Self::SERVER_DEVICE, "server", 2, servers)?;
        Ok(Self { clients, servers, gateway, _switch: switch })
    }

    /// Address of a client, counted from 0.
    pub fn client_address(index: usize) -> Ipv4Addr {
        address(1, index)
    }

    /// Address of a server, counted from 0.
    pub fn server_address(index: usize) -> Ipv4Addr {
        address(2, index)
    }

    /// IPv6 address of a client, counted from 0.
    pub fn client_address_ipv6(index: usize) -> Ipv6Addr {
        address_ipv6(1, index)
    }

    /// IPv6 address of a server, counted from 0.
    pub fn server_address_ipv6(index: usize) -> Ipv6Addr {
        address_ipv6(2, index)
    }

    /// A configuration for an instance of its own: one service on `port` of every server, a
    /// partition each from 0 upwards. Everything else has its default and may be changed.
    pub fn config(&self, port: u16, framing: Framing) -> Config {
        let servers = (0..self.servers.len())
            .map(|index| {
                Server::new(
                    format!("server-{index}"),
                    Self::server_address(index).into(),
                    Partition(u16::try_from(index).expect("at most MAX_HOSTS")),
                )
            })
            .collect();
        Config {
            gateway: GatewaySection::new(instance_name(), &[Self::CLIENT_DEVICE]),
            relay: RelaySection::default(),
            kafka: KafkaSection::default(),
            registry: RegistrySection::default(),
            hold: HoldSection::default(),
            metrics: MetricsSection::default(),
            source: Source::default(),
            services: vec![Service {
                destinations: vec![Self::SERVER_NETWORK.parse().expect("a prefix")],
                max_message_bytes: 255,
                servers,
                ..Service::new("test", port, framing)
            }],
        }
    }

    /// Gives every device of a topology of one client and one server this MTU.
    pub fn set_mtu(&self, mtu: u32) -> anyhow::Result<()> {
        for device in [Self::CLIENT_DEVICE, Self::SERVER_DEVICE] {
            self.gateway.ip(&format!("link set dev {device} mtu {mtu}"))?;
        }
        let mut ends = self.clients.iter().chain(&self.servers);
        ends.try_for_each(|host| host.ip(&format!("link set dev eth0 mtu {mtu}")).map(drop))
    }

    /// Deletes the gateway's client-facing device, and with it that of the one client.
    pub fn remove_client_device(&self) -> anyhow::Result<()> {
        self.gateway.ip(&format!("link delete {}", Self::CLIENT_DEVICE)).map(drop)
    }

    /// Makes both anew, with the addresses that they had.
    pub fn restore_client_device(&self) -> anyhow::Result<()> {
        let [client] = self.clients.as_slice() else { bail!("not one client") };
        let own = format!("{}/24", Self::client_address(0));
        link(&self.gateway, Self::CLIENT_DEVICE, "10.77.1.1/24", client, "eth0", &own)?;
        client.ip("route add default via 10.77.1.1").map(drop)
    }

    /// Makes the gateway's client-facing device a port of a bridge, [`Self::BRIDGE`], which has its
    /// IPv4 address now. A bridge has no native XDP.
    pub fn put_below_a_bridge(&self) -> anyhow::Result<()> {
        for step in [
            "link add bridge0 type bridge",
            "link set dev bridge0 up",
            "address del 10.77.1.1/24 dev eth1",
            "link set dev eth1 master bridge0",
            "address add 10.77.1.1/24 dev bridge0",
        ] {
            self.gateway.ip(step)?;
        }
        Ok(())
    }

    /// Loads an instance on the gateway.
    pub fn load(&self, config: &Config) -> anyhow::Result<Loaded> {
        self.load_object(config, &ObjectFile::read(&bpf_object()?)?)
    }

    /// The same with another object.
    pub fn load_object(&self, config: &Config, object: &ObjectFile) -> anyhow::Result<Loaded> {
        let load = || gateway::load_object_file(config, object, &mut |_| {});
        let report = self.gateway.run(load)??;
        Ok(Loaded { config: config.clone(), report })
    }
}

/// Loads an instance on a host, and leaves it to the caller to unload it.
pub fn load_on(host: &Host, config: &Config) -> anyhow::Result<LoadReport> {
    load_told(host, config, |_| {})
}

/// [`load_on`], with each step told inside the host before it is made.
pub fn load_told(
    host: &Host,
    config: &Config,
    mut told: impl FnMut(&str) + Send,
) -> anyhow::Result<LoadReport> {
    let object = ObjectFile::read(&bpf_object()?)?;
    Ok(host.run(|| gateway::load_object_file(config, &object, &mut told))??)
}

/// A loaded instance, unloaded on drop.
#[derive(Debug)]
pub struct Loaded {
    /// Of the instance.
    pub config: Config,
    /// What `load` said.
    pub report: LoadReport,
}

impl Loaded {
    /// Unloads it now, and says whether that went well.
    pub fn unload(self) -> anyhow::Result<()> {
        let config = self.config.clone();
        std::mem::forget(self);
        Ok(gateway::unload(&config, &mut |_| {})?)
    }

    /// Packets with this verdict, so far.
    pub fn verdict(&self, name: &str) -> anyhow::Result<u64> {
        let status = gateway::status(&self.config)?;
        status.verdicts.get(name).copied().with_context(|| format!("no verdict {name}"))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Err(error) = gateway::unload(&self.config, &mut |_| {}) {
            eprintln!("cannot unload {}: {error}", self.config.gateway.instance);
        }
    }
}

fn address(network: u8, index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, network, 11 + u8::try_from(index).expect("at most MAX_HOSTS"))
}

fn address_ipv6(network: u8, index: usize) -> Ipv6Addr {
    let host = 11 + u16::try_from(index).expect("at most MAX_HOSTS");
    Ipv6Addr::new(0xfd77, network.into(), 0, 0, 0, 0, 0, host)
}

/// Makes the hosts of one side and connects them to the gateway.
fn side(
    gateway: &Host,
    switch: &Host,
    device: &str,
    name: &str,
    network: u8,
    count: usize,
) -> anyhow::Result<Vec<Host>> {
    let gateway_address = format!("10.77.{network}.1");
    let gateway_cidr = format!("{gateway_address}/24");
    let hosts = (0..count)
        .map(|index| Host::new(&format!("{name}{index}")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if let [only] = hosts.as_slice() {
        let own = format!("{}/24", address(network, 0));
        link(gateway, device, &gateway_cidr, only, "eth0", &own)?;
    } else {
        let bridge = format!("br{network}");
        switch.ip(&format!("link add {bridge} type bridge"))?;
        switch.ip(&format!("link set dev {bridge} up"))?;
        let uplink = format!("up{network}");
        link(gateway, device, &gateway_cidr, switch, &uplink, "")?;
        switch.ip(&format!("link set dev {uplink} master {bridge}"))?;
        for (index, host) in hosts.iter().enumerate() {
            let port = format!("p{network}-{index}");
            let own = format!("{}/24", address(network, index));
            link(host, "eth0", &own, switch, &port, "")?;
            switch.ip(&format!("link set dev {port} master {bridge}"))?;
        }
    }
    gateway.ip(&format!("address add fd77:{network}::1/64 dev {device} nodad"))?;
    for (index, host) in hosts.iter().enumerate() {
        host.ip(&format!("route add default via {gateway_address}"))?;
        let own = address_ipv6(network, index);
        host.ip(&format!("address add {own}/64 dev eth0 nodad"))?;
        host.ip(&format!("route add default via fd77:{network}::1"))?;
    }
    Ok(hosts)
}

/// Removes what processes that are gone have left.
fn remove_stale() {
    for instance in names_in("/run/millrace").filter(|name| abandoned(name, INSTANCE_PREFIX)) {
        let text = format!(
            "[gateway]\ninstance = \"{instance}\"\ndevices = [\"eth1\"]\n[[service]]\nname = \"x\"\n\
             destinations = []\nport = 1\nframing = {{ type = \"lines\" }}\nserver = []\n"
        );
        let config: Config = toml::from_str(&text).expect("a configuration");
        let removed = match gateway::unload(&config, &mut |_| {}) {
            // A relay without a gateway has only this.
            Err(gateway::GatewayError::NothingToUnload { .. }) => {
                let _ = tune::clear(&tune::place(&config));
                std::fs::remove_dir_all(config.run_directory()).map_err(anyhow::Error::from)
            }
            removed => removed.map_err(anyhow::Error::from),
        };
        if let Err(error) = removed {
            eprintln!("cannot remove the abandoned instance {instance}: {error}");
        }
    }
    for name in names_in("/run/netns").filter(|name| abandoned(name, HOST_PREFIX)) {
        if let Err(error) = run(Command::new("ip").args(["netns", "delete", &name])) {
            eprintln!("cannot remove the abandoned namespace {name}: {error}");
        }
    }
}

fn names_in(directory: &str) -> impl Iterator<Item = String> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
}

/// Whether a name is `PREFIX PID - …` of a process that is gone.
fn abandoned(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .and_then(|rest| rest.split('-').next())
        .and_then(|pid| pid.parse::<u32>().ok())
        .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// Runs a command to its end; an error carries what it said.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
