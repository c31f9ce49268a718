//! Checks with frames as long as they come, over devices of several kinds: full segments of a diverted
//! connection arrive both ways, for both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use millrace_harness::gateway::fake_relay::{FakeRelay, PORT, connect, transfer};
use millrace_harness::net::netns::{Loaded, Topology};
use millrace_harness::net::tcp::retransmissions;
use millrace_relay::codec::Framing;
use millrace_relay::config::XdpPolicy;
use millrace_relay::gateway::{self, Version};
use serde_json::json;
use socket2::SockRef;

use crate::Finding;
use crate::checks::Guest;

/// Of a network with jumbo frames.
const JUMBO_MTU: u32 = 9000;
/// What a page holds of a packet beside what the kernel needs of it, on x86-64.
const ONE_PAGE: u32 = 3506;
/// From this kernel on, frames in several buffers are redirected (`xdp_do_redirect`,
/// `net/core/filter.c`).
const REDIRECTS_FRAGS: Version = Version(6, 3);
/// Bytes that go each way over a connection: many full segments.
const BYTES: usize = 1 << 20;

/// Jumbo frames, in the driver.
pub(crate) fn jumbo(_: &mut Guest) -> Result<Finding> {
    let topology = Topology::new(1, 1)?;
    topology.set_mtu(JUMBO_MTU)?;
    let running = Version::running().context("the kernel's release has no version")?;
    let expected = if running < REDIRECTS_FRAGS { ONE_PAGE } else { JUMBO_MTU };
    full_segments(&topology, Topology::CLIENT_DEVICE, XdpPolicy::Native, expected)
}

/// A bridge, which has no native XDP and takes no redirected frames: its kernel's age is no limit.
pub(crate) fn bridge(_: &mut Guest) -> Result<Finding> {
    let topology = Topology::new(1, 1)?;
    topology.set_mtu(JUMBO_MTU)?;
    topology.put_below_a_bridge()?;
    full_segments(&topology, Topology::BRIDGE, XdpPolicy::Generic, JUMBO_MTU)
}

/// Loads an instance on a device, and has full segments go both ways over diverted connections. They are
/// for packets of `mtu` bytes.
fn full_segments(
    topology: &Topology,
    device: &str,
    policy: XdpPolicy,
    mtu: u32,
) -> Result<Finding> {
    let mut config = topology.config(PORT, Framing::Lines);
    let ipv6 = Topology::SERVER_NETWORK_IPV6.parse().map_err(anyhow::Error::msg)?;
    config.services[0].destinations.push(ipv6);
    config.gateway.devices = vec![device.to_owned()];
    config.gateway.xdp = policy;
    if device == Topology::BRIDGE {
        for step in ["del fd77:1::1/64 dev eth1", "add fd77:1::1/64 dev bridge0 nodad"] {
            topology.gateway.ip(&format!("address {step}"))?;
        }
    }
    let loaded = topology.load(&config)?;
    let status = topology.gateway.run(|| gateway::status(&config))??;
    let redirected = status.devices.first().context("no device")?.redirects_answers;
    let result = carry(topology, &loaded, mtu);
    let (segment, sent_again) = result.with_context(|| {
        format!("{device}, answers redirected: {redirected:?}, {}", counted(topology, &loaded))
    })?;
    loaded.unload()?;
    Ok(super::checks::finding(
        format!(
            "{device}: segments of {segment} bytes in packets of {mtu}, both ways, both families; \
             {sent_again} sent again"
        ),
        json!({
            "device": device, "mtu": mtu, "segment_bytes": segment, "sent_again": sent_again,
            "answers_redirected": redirected,
        }),
    ))
}

/// The connections: the segment size of IPv4, and segments that were sent again.
fn carry(topology: &Topology, loaded: &Loaded, mtu: u32) -> Result<(u32, u64)> {
    let (client, namespace) = (&topology.clients[0], loaded.config.namespace());
    // What does not get through is sent again as it was: nobody tries smaller segments.
    let both: [&Path; 2] = [&client.namespace(), &namespace];
    for host in both {
        let path = "/proc/sys/net/ipv4/tcp_mtu_probing";
        gateway::in_namespace(host, || std::fs::write(path, "0"))??;
    }
    let before = retransmissions(&both)?;
    let mut segment = 0;
    let families: [(IpAddr, IpAddr, u32); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Topology::server_address(0).into(), 40),
        (Ipv6Addr::UNSPECIFIED.into(), Topology::server_address_ipv6(0).into(), 60),
    ];
    for (any, server, headers) in families {
        let mut relay = FakeRelay::start_at(&loaded.config, SocketAddr::from((any, PORT)))?;
        let mut stream = connect(client, server, PORT)?;
        let mut accepted = relay.accept()?;
        for (end, socket) in [("client", &stream), ("relay", accepted.stream())] {
            let size = SockRef::from(socket).tcp_mss()?;
            // Time stamps take 12 bytes of each segment.
            let longest = size + headers + 12;
            ensure!(longest == mtu, "{server}: packets of the {end} have {longest} bytes");
            segment = segment.max(size);
        }
        transfer(&mut stream, accepted.stream(), BYTES)
            .with_context(|| format!("from the client to {server}"))?;
        transfer(accepted.stream(), &mut stream, BYTES)
            .with_context(|| format!("from {server} to the client"))?;
    }
    Ok((segment, retransmissions(&both)? - before))
}

/// What the programs have counted, for a failure.
fn counted(topology: &Topology, loaded: &Loaded) -> String {
    let status = topology.gateway.run(|| gateway::status(&loaded.config));
    match status {
        Ok(Ok(status)) => {
            let seen: Vec<_> = status.verdicts.iter().filter(|(_, count)| **count > 0).collect();
            format!("{seen:?}")
        }
        _ => "no status".to_owned(),
    }
}
