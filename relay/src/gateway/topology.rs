//! The network that a diverted packet meets: the veth, the relay namespace and its routes.

use std::net::{IpAddr, Ipv4Addr};

use millrace_common::abi::{NEXT_HOP, NEXT_HOP_IPV6};

use crate::config::Config;
use crate::gateway::finding::Finding;

use super::error::GatewayError;
use super::host::{self, Device, Report, command, in_namespace};
use super::preflight::MAX_LINK_MTU;

use super::rules::RuleSet;

/// The relay's end of the veth, in the relay namespace.
pub const RELAY_DEVICE: &str = "relay0";

/// Settings of the relay namespace, and why they are not the kernel's defaults.
const RELAY_SYSCTLS: &[(&str, &str)] = &[
    // Inherited from the host, which forwards; here a packet is for the relay or for nobody.
    ("net/ipv4/ip_forward", "0"),
    // The accept queue of a listener, when all clients of a gateway come back at once.
    ("net/core/somaxconn", "65535"),
    ("net/ipv4/tcp_max_syn_backlog", "65535"),
    // A router that tells nobody of packets that it cannot forward is found out all the same.
    ("net/ipv4/tcp_mtu_probing", "1"),
    // Inherited from the host; everything comes in by the one device there is.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/relay0/rp_filter", "0"),
    // A listener whose queue of half-open connections is full answers with cookies and keeps no
    // state (RFC 4987 section 3.6): a flood of SYNs does not keep honest clients out.
    ("net/ipv4/tcp_syncookies", "1"),
    // Inherited from the host as well. The one neighbour is permanent and there is no router: no
    // address of its own, no solicitation, no advertisement, so nothing is sent but connections.
    ("net/ipv6/conf/all/forwarding", "0"),
    ("net/ipv6/conf/relay0/addr_gen_mode", "1"),
    ("net/ipv6/conf/relay0/accept_ra", "0"),
    ("net/ipv6/conf/relay0/accept_dad", "0"),
    ("net/ipv6/conf/relay0/router_solicitations", "0"),
    // A socket that answers datagrams has the address that they were sent to. IPv4 allows what a
    // route makes local.
    ("net/ipv6/ip_nonlocal_bind", "1"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/relay0/disable_ipv6", "0"),
];

/// The gateway's end of the veth.
pub fn gateway_device(config: &Config) -> String {
    format!("{}-gw", config.gateway.instance)
}

/// What the programs must be told about the topology.
#[derive(Debug)]
pub(super) struct Topology {
    /// The relay namespace as the gateway's calls it.
    pub nsid: u32,
    /// Index of the gateway's end of the veth, in the gateway's namespace.
    pub gateway_ifindex: u32,
    /// Index of the relay's end, in the relay namespace.
    pub relay_ifindex: u32,
    /// Hardware address of the relay's end.
    pub relay_mac: [u8; 6],
}

/// Refuses names that are taken.
pub(super) fn check_names(config: &Config) -> Result<(), GatewayError> {
    let gateway_device = gateway_device(config);
    let paths = [("network namespace", config.namespace()), ("directory", config.pin_directory())];
    let what = match paths.into_iter().find(|(_, path)| path.exists()) {
        Some((kind, path)) => format!("the {kind} {}", path.display()),
        None if Device::find(&gateway_device)?.is_some() => format!("the device {gateway_device}"),
        None => return Ok(()),
    };
    Err(GatewayError::NameTaken { what })
}

/// Refuses to divert what the host does not forward: answers take the host's route too.
pub(super) fn check_forwarding(rules: &RuleSet) -> Result<(), GatewayError> {
    if rules.diverts_ipv6() && !forwards_ipv6()? {
        return Err(GatewayError::NoIpv6Forwarding);
    }
    Ok(())
}

fn forwards_ipv6() -> Result<bool, GatewayError> {
    Ok(host::sysctl("net/ipv6/conf/all/forwarding")?.as_deref() == Some("1"))
}

/// Makes the relay namespace and the link to it, whose relay's end gets this MTU. The preflight has
/// refused what a veth cannot have.
pub(super) fn create(
    config: &Config,
    mtu: u32,
    report: Report<'_>,
) -> Result<Topology, GatewayError> {
    let instance = &config.gateway.instance;
    run(report, &["ip", "netns", "add", instance])?;
    run(report, &["ip", "netns", "set", instance, "auto"])?;
    let nsid = host::namespace_id(instance)?.ok_or_else(|| GatewayError::Command {
        command: format!("ip netns set {instance} auto"),
        output: "the namespace still has no identifier".to_owned(),
    })?;

    let gateway_device = gateway_device(config);
    add_veth(instance, &gateway_device, mtu, report)?;
    // A packet whose next hop the program does not know goes up this device into the host's stack;
    // its source is a server that lives elsewhere, which strict reverse-path filtering refuses, and
    // loose filtering too on a device without any address.
    let address = format!("{}/32", Ipv4Addr::from(NEXT_HOP));
    run(report, &["ip", "address", "add", &address, "dev", &gateway_device, "scope", "host"])?;
    sysctl(report, &format!("net/ipv4/conf/{gateway_device}/rp_filter"), "2")?;
    // It forwards, whatever a new device of this host does, and says nothing by itself. IPv6 too:
    // the host may begin to forward it at any time.
    sysctl(report, &format!("net/ipv4/conf/{gateway_device}/forwarding"), "1")?;
    let ipv6 = |key: &str| format!("net/ipv6/conf/{gateway_device}/{key}");
    for key in ["accept_ra", "accept_dad", "router_solicitations"] {
        sysctl(report, &ipv6(key), "0")?;
    }
    sysctl(report, &ipv6("addr_gen_mode"), "1")?;
    sysctl(report, &ipv6("disable_ipv6"), "0")?;
    sysctl(report, &ipv6("forwarding"), "1")?;
    run(report, &["ip", "link", "set", "dev", &gateway_device, "up"])?;

    let gateway = find(&gateway_device)?;
    furnish(config, &gateway, report)?;
    let relay = in_namespace(&config.namespace(), || find(RELAY_DEVICE))??;
    let relay_mac = relay.mac().ok_or_else(|| GatewayError::Command {
        command: format!("ip link show dev {RELAY_DEVICE}"),
        output: format!("`{}` is not a hardware address", relay.address),
    })?;
    Ok(Topology { nsid, gateway_ifindex: gateway.ifindex, relay_ifindex: relay.ifindex, relay_mac })
}

/// Gives the relay's end the MTU that the configured devices call for, if that is more than it has: what
/// is on its way on a connection is as long as was agreed upon when it began, and would not get through
/// with less. For a device with less, the relay finds out what its route allows.
pub(super) fn raise_mtu(config: &Config, mtu: u32, report: Report<'_>) -> Result<(), GatewayError> {
    if in_namespace(&config.namespace(), || find(RELAY_DEVICE))??.mtu >= mtu {
        return Ok(());
    }
    let mtu = mtu.to_string();
    let line = ["ip", "link", "set", "dev", RELAY_DEVICE, "mtu", &mtu];
    report(&format!("[{}] {}", config.gateway.instance, line.join(" ")));
    in_namespace(&config.namespace(), || command(&line))?.map(drop)
}

/// One queue for each processor at both ends: a redirected frame is queued by the processor that
/// received it. Both ends have their hardware address from the start: to one that the kernel has
/// chosen, udev may give another later (`MACAddressPolicy`, systemd.link(5)), and the programs and the
/// relay namespace have noted the first.
///
/// The relay's end has the MTU of the client-facing devices, which its segments fit, or less where the
/// kernel redirects no longer packets. The gateway's end takes all that there can be: in generic mode,
/// packets that the kernel has merged are redirected as they are, and one that is longer than the MTU of
/// the device is dropped (`xdp_ok_fwd_dev`, `net/core/filter.c`).
fn add_veth(
    instance: &str,
    gateway_device: &str,
    mtu: u32,
    report: Report<'_>,
) -> Result<(), GatewayError> {
    let queues = host::processors().to_string();
    let mtu = mtu.to_string();
    let queues = ["numtxqueues", &queues, "numrxqueues", &queues];
    let [gateway_address, relay_address] = hardware_addresses(instance);
    let largest = MAX_LINK_MTU.to_string();
    let mut line = vec!["ip", "link", "add", gateway_device, "address", &gateway_address];
    line.extend(queues);
    line.extend(["mtu", &largest]);
    line.extend(["type", "veth", "peer", "name", RELAY_DEVICE, "address", &relay_address]);
    line.extend(queues);
    line.extend(["mtu", &mtu]);
    line.extend(["netns", instance]);
    run(report, &line)
}

/// Those of the gateway's and the relay's end: locally administered (IEEE 802), and each instance's
/// own, for people who look at a capture; nobody else is on that link.
fn hardware_addresses(instance: &str) -> [String; 2] {
    // FNV-1a.
    let hash = instance
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [a, b, c, d] = hash.to_be_bytes();
    [0, 1].map(|end| format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{end:02x}"))
}

/// Makes the relay namespace's inside: every diverted address is local to what comes in from the
/// gateway, and everything that goes out goes to the gateway.
fn furnish(config: &Config, gateway: &Device, report: Report<'_>) -> Result<(), GatewayError> {
    let mut steps: Vec<Vec<String>> = Vec::new();
    let mut step = |line: &str| steps.push(line.split(' ').map(str::to_owned).collect());
    step("ip link set dev lo up");
    // A redirected frame carries the checksum it has, and nothing later completes or segments it.
    step(&format!("ethtool -K {RELAY_DEVICE} tx off tso off"));
    step(&format!("ip link set dev {RELAY_DEVICE} up"));
    let ipv6 = host::sysctl("net/ipv6/conf/all/disable_ipv6")?.is_some();
    for (family, next_hop, loopback) in [
        ("-4", Ipv4Addr::from(NEXT_HOP).into(), "127.0.0.0/8"),
        ("-6", IpAddr::from(NEXT_HOP_IPV6), "::1/128"),
    ] {
        if family == "-6" && !ipv6 {
            continue;
        }
        step(&format!(
            "ip {family} neigh add {next_hop} lladdr {} dev {RELAY_DEVICE} nud permanent",
            gateway.address
        ));
        step(&format!("ip {family} route add default via {next_hop} dev {RELAY_DEVICE} onlink"));
        step(&format!("ip {family} route add local default dev lo"));
        // Every address is local only to what comes in: what goes out goes to the client.
        step(&format!("ip {family} rule add pref 10 iif {RELAY_DEVICE} lookup local"));
        step(&format!("ip {family} rule add pref 20 to {loopback} lookup local"));
        step(&format!("ip {family} rule del pref 0"));
    }

    for step in &steps {
        report(&format!("[{}] {}", config.gateway.instance, step.join(" ")));
    }
    for (key, value) in RELAY_SYSCTLS {
        report(&format!("[{}] sysctl -w {key}={value}", config.gateway.instance));
    }
    in_namespace(&config.namespace(), || {
        for (key, value) in RELAY_SYSCTLS {
            write_sysctl(key, value)?;
        }
        for step in &steps {
            command(&step.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        Ok(())
    })?
}

/// Removes the link and the relay namespace, as far as they are there. It works from any network
/// namespace, for the link is removed by its relay end; only where the relay namespace's file is
/// gone already and a running relay keeps the rest alive, it must be the gateway's.
pub(super) fn remove(config: &Config, report: Report<'_>) -> Result<(), GatewayError> {
    let instance = &config.gateway.instance;
    if !config.namespace().exists() {
        let device = gateway_device(config);
        return match Device::find(&device)? {
            Some(_) => run(report, &["ip", "link", "delete", "dev", &device]),
            None => Ok(()),
        };
    }
    let there = in_namespace(&config.namespace(), || Device::find(RELAY_DEVICE));
    // A file that is no namespace is left by a host that stopped in between; `ip` removes it too.
    if matches!(there, Ok(Ok(Some(_)))) {
        report(&format!("[{instance}] ip link delete dev {RELAY_DEVICE}"));
        in_namespace(&config.namespace(), || {
            command(&["ip", "link", "delete", "dev", RELAY_DEVICE])
        })??;
    }
    run(report, &["ip", "netns", "delete", instance])
}

/// A device that must be there.
pub(super) fn find(name: &str) -> Result<Device, GatewayError> {
    Device::find(name)?.ok_or_else(|| GatewayError::unfit(Finding::no_device(name)))
}

fn run(report: Report<'_>, line: &[&str]) -> Result<(), GatewayError> {
    report(&line.join(" "));
    command(line).map(drop)
}

fn sysctl(report: Report<'_>, key: &str, value: &str) -> Result<(), GatewayError> {
    report(&format!("sysctl -w {key}={value}"));
    write_sysctl(key, value)
}

/// Sets a sysctl, unless the kernel was built without what it belongs to (IPv6).
fn write_sysctl(key: &str, value: &str) -> Result<(), GatewayError> {
    match host::sysctl(key)? {
        Some(present) if present != value => host::set_sysctl(key, value),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sysctls;

    /// Those that an operator may set otherwise; what is there without one is sized for a crowd.
    const OPERATORS: [&str; 3] =
        ["net/core/somaxconn", "net/ipv4/tcp_max_syn_backlog", "net/ipv4/tcp_mtu_probing"];

    #[test]
    fn what_the_relay_namespace_needs_is_not_the_operators() {
        for (key, value) in RELAY_SYSCTLS {
            let sample = include_str!("../../../docs/millrace.toml");
            let mut config: Config = toml::from_str(sample).unwrap();
            config.gateway.sysctls = Sysctls::new([(&key.replace('/', "."), *value)]);
            assert_eq!(config.check().is_ok(), OPERATORS.contains(key), "{key}");
        }
    }
}
