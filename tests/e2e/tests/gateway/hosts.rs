//! Hosts that are set up as real ones are: what `load` makes of their settings, and what it does if
//! they change later.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use millrace_harness::gateway::fake_relay::{
    FakeRelay, PORT, connect, diverts, loaded, traces, transfer, within,
};
use millrace_harness::net::frames::{Frame, SERVICE_TAG, TAG, flag};
use millrace_harness::net::netns::{Host, Loaded, Topology, bpf_object};
use millrace_harness::net::raw_socket::send_frame;
use millrace_harness::net::tcp::tcp_counter;
use millrace_harness::system::privilege::{privileged, shared};
use millrace_relay::codec::Framing;
use millrace_relay::config::XdpPolicy;
use millrace_relay::gateway::object::ObjectFile;
use millrace_relay::gateway::rules::command::apply;
use millrace_relay::gateway::{self, RELAY_DEVICE};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Goes over one connection, in segments of at most so many bytes.
const MERGED_BYTES: usize = 1_000_000;
const SEGMENT_BYTES: usize = 1448;

/// A device as `ip -details` shows it.
fn details(device: &str) -> anyhow::Result<serde_json::Value> {
    let mut command = std::process::Command::new("ip");
    let output = command.args(["-json", "-details", "link", "show", "dev", device]).output()?;
    let devices: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(devices[0].clone())
}

/// How a device came to its hardware address (`NET_ADDR_*` of `linux/netdevice.h`).
fn address_kind(device: &str) -> anyhow::Result<String> {
    // sysfs shows the devices of the namespace that it was mounted in.
    let path = format!("/sys/class/net/{device}/addr_assign_type");
    let script = format!("mount -t sysfs sysfs /sys && cat {path}");
    let mut command = std::process::Command::new("unshare");
    let output = command.args(["--mount", "sh", "-ec", &script]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A usual hardening: the host forwards, but a new device does not until somebody says so. Before,
/// the veth did not, and nothing was answered.
#[test]
fn a_host_whose_new_devices_do_not_forward() -> anyhow::Result<()> {
    if !privileged("a_host_whose_new_devices_do_not_forward") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    topology.gateway.sysctl("net/ipv4/conf/default/forwarding", "0")?;
    let config = topology.config(PORT, Framing::Lines);
    let before = traces(&topology.gateway, &config)?;
    let loaded = topology.load(&config)?;
    diverts(&topology, &config, 100_000)?;
    ensure!(loaded.verdict("return/forwarding_off")? == 0);
    loaded.unload()?;
    let after = traces(&topology.gateway, &config)?;
    ensure!(after.gateway_sysctls == before.gateway_sysctls, "settings have changed");
    Ok(())
}

/// Before, the veth's IPv6 stayed off: what was not redirected was lost.
#[test]
fn ipv6_forwarding_may_come_after_the_load() -> anyhow::Result<()> {
    if !privileged("ipv6_forwarding_may_come_after_the_load") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let gateway = &topology.gateway;
    gateway.sysctl("net/ipv6/conf/all/forwarding", "0")?;
    let mut config = topology.config(PORT, Framing::Lines);
    let loaded = topology.load(&config)?;
    config.services[0]
        .destinations
        .push(Topology::SERVER_NETWORK_IPV6.parse().map_err(anyhow::Error::msg)?);
    let refused = gateway.run(|| apply(&config))?.err().context("it was taken")?;
    ensure!(refused.to_string().contains("does not forward IPv6"), "{refused}");

    gateway.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    gateway.run(|| apply(&config))??;
    let device = gateway::gateway_device(&config);
    for (key, value) in [("forwarding", "1"), ("disable_ipv6", "0")] {
        let path = format!("/proc/sys/net/ipv6/conf/{device}/{key}");
        let found = gateway.run(|| std::fs::read_to_string(path))??;
        ensure!(found.trim() == value, "{key} of {device} is {found}");
    }
    let mut relay = FakeRelay::start_at(&config, SocketAddr::new("::".parse()?, PORT))?;
    gateway.ip("neigh flush dev eth1")?;
    let mut client = connect(&topology.clients[0], Topology::server_address_ipv6(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 1000)?;
    loaded.unload()
}

/// Before, the kernel chose both addresses, and udev was free to choose again; a change had every
/// answer that goes by the stack dropped as another host's.
#[test]
fn the_hardware_addresses_are_settled_and_a_change_is_survived() -> anyhow::Result<()> {
    if !privileged("the_hardware_addresses_are_settled_and_a_change_is_survived") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let (gateway, config) = (&topology.gateway, &loaded.config);
    let device = gateway::gateway_device(config);
    let kinds = [
        gateway.run(|| address_kind(&device))??,
        gateway::in_namespace(&config.namespace(), || address_kind(RELAY_DEVICE))??,
    ];
    // NET_ADDR_SET: udev leaves such an address alone.
    ensure!(kinds == ["3", "3"], "{kinds:?}");

    gateway.ip(&format!("link set dev {device} address 02:00:00:00:00:99"))?;
    let mut relay = FakeRelay::start(config, PORT)?;
    gateway.ip("neigh flush dev eth1")?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 1000)?;
    loaded.unload()
}

/// Before, a load under `taskset` made a link with one queue for all processors.
#[test]
fn the_link_has_a_queue_for_each_processor_of_the_host() -> anyhow::Result<()> {
    if !privileged("the_link_has_a_queue_for_each_processor_of_the_host") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let config = topology.config(PORT, Framing::Lines);
    let object = ObjectFile::read(&bpf_object()?)?;
    let load = || {
        // Of this short-lived thread, and of the commands that it starts.
        let mut only = CpuSet::new();
        only.set(0);
        sched_setaffinity(None, &only)?;
        anyhow::Ok(gateway::load_object_file(&config, &object, &mut |_| {})?)
    };
    let report = topology.gateway.run(load)??;
    let loaded = Loaded { config, report };
    let device = gateway::gateway_device(&loaded.config);
    let found = topology.gateway.run(|| details(&device))??;
    let present = std::fs::read_to_string("/sys/devices/system/cpu/present")?;
    let highest: u64 = present.trim().split([',', '-']).next_back().context("none")?.parse()?;
    for queues in ["num_rx_queues", "num_tx_queues"] {
        ensure!(found[queues] == highest + 1, "{queues}: {}", found[queues]);
    }
    loaded.unload()
}

/// The gateway's client-facing device becomes a port of a bridge, which has the address now and runs
/// the program, in generic mode.
fn bridged() -> anyhow::Result<(Loaded, Topology)> {
    let topology = Topology::new(1, 1)?;
    topology.put_below_a_bridge()?;
    let mut config = topology.config(PORT, Framing::Lines);
    config.gateway.devices = vec![Topology::BRIDGE.to_owned()];
    config.gateway.xdp = XdpPolicy::Generic;
    Ok((topology.load(&config)?, topology))
}

/// Below a bridge, the kernel merges segments. Before, the merged ones were longer than the link to
/// the relay takes, and were lost: 200 kB took 9.6 seconds, with 319 retransmissions. (What a busy host's
/// queues lose is no matter here.)
#[test]
fn merged_segments_pass_in_generic_mode() -> anyhow::Result<()> {
    if !privileged("merged_segments_pass_in_generic_mode") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = bridged()?;
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let mut stream = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let mut accepted = relay.accept()?;
    let before = loaded.verdict("divert/established")?;
    transfer(&mut stream, accepted.stream(), MERGED_BYTES)?;
    let packets = loaded.verdict("divert/established")? - before;
    let segments = u64::try_from(MERGED_BYTES / SEGMENT_BYTES)?;
    ensure!(packets < segments, "nothing was merged: {packets} packets for {segments} segments");
    let diversion = topology.gateway.run(|| gateway::status(&loaded.config))??.diversion;
    ensure!(diversion.uncounted.is_empty() && diversion.losses.is_empty(), "{diversion:?}");
    drop(accepted);
    loaded.unload()
}

/// The kernel has taken the tag off and keeps it beside the packet, where the program does not see it.
/// Where frames for a device of a host go.
pub(super) fn hardware_address(host: &Host, device: &str) -> anyhow::Result<[u8; 6]> {
    let address = host.run(|| details(device))??["address"].clone();
    let mut mac = [0; 6];
    for (byte, digits) in mac.iter_mut().zip(address.as_str().context("none")?.split(':')) {
        *byte = u8::from_str_radix(digits, 16)?;
    }
    Ok(mac)
}

/// Before, the relay's device dropped such a packet, for it has no VLAN.
#[test]
fn a_tag_that_generic_mode_cannot_see_is_taken_off() -> anyhow::Result<()> {
    if !privileged("a_tag_that_generic_mode_cannot_see_is_taken_off") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = bridged()?;
    let _relay = FakeRelay::start(&loaded.config, PORT)?;
    let mac = hardware_address(&topology.gateway, "bridge0")?;
    let client = (Topology::client_address(0), 40_000).into();
    let server = (Topology::server_address(0), PORT).into();
    for tags in [&[TAG][..], &[SERVICE_TAG, TAG]] {
        let mut syn = Frame::tcp(client, server, flag::SYN, 1).tagged(tags);
        syn.link.0 = mac;
        let arrived = || tcp_counter(&loaded.config.namespace(), "InSegs");
        let before = arrived()?;
        send_frame(&topology.clients[0], &syn)?;
        within("segment at the relay", || Ok((arrived()? > before).then_some(())))
            .with_context(|| format!("{} tag(s)", tags.len()))?;
    }
    loaded.unload()
}
