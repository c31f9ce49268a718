//! Packets that are lost after their verdict: counted by device and reason, with what helps.

use anyhow::{Context as _, ensure};
use millrace_harness::gateway::fake_relay::{
    FakeRelay, PORT, loaded, send_syns, take_relay_device_down, within,
};
use millrace_harness::net::netns::{Loaded, Topology};
use millrace_harness::system::privilege::{privileged, shared};
use millrace_relay::gateway::{self, RELAY_DEVICE, Status, in_namespace};

/// SYNs of each case, all of other flows.
const SYNS: u16 = 20;

/// The status, seen from the gateway.
fn status(topology: &Topology, loaded: &Loaded) -> anyhow::Result<Status> {
    Ok(topology.gateway.run(|| gateway::status(&loaded.config))??)
}

/// Sends SYNs with ports from here on, and waits until all of them are diverted.
fn send(topology: &Topology, loaded: &Loaded, first: u16) -> anyhow::Result<()> {
    let before = loaded.verdict("divert/new")?;
    send_syns(topology, first..first + SYNS)?;
    within("diverted SYNs", || {
        Ok((loaded.verdict("divert/new")? == before + u64::from(SYNS)).then_some(()))
    })
}

/// Waits until so many packets are counted as lost at a device for this reason, and gives what is said.
fn lost(
    topology: &Topology,
    loaded: &Loaded,
    (device, error): (&str, &str),
    packets: u64,
) -> anyhow::Result<String> {
    let counted = || -> anyhow::Result<_> {
        let losses = status(topology, loaded)?.diversion.losses;
        let at = |lost: &&gateway::Lost| lost.device.as_deref() == Some(device);
        Ok(losses.iter().filter(at).find(|lost| lost.error == error).cloned())
    };
    let found = within("losses", || Ok(counted()?.filter(|lost| lost.packets >= packets)));
    let found = found.with_context(|| format!("{device} {error}: {:?}", counted()))?;
    ensure!(found.packets == packets, "{found:?}");
    let text = status(topology, loaded)?.to_string();
    let line = text.lines().find(|line| line.contains("LOST") && line.contains(error));
    Ok(line.with_context(|| text.clone())?.to_owned())
}

/// Before, only totals differed, and `perf trace` was the advice.
#[test]
fn what_does_not_get_to_the_relay_is_counted_by_reason() -> anyhow::Result<()> {
    if !privileged("what_does_not_get_to_the_relay_is_counted_by_reason") {
        return Ok(());
    }
    let _shared = shared();
    // The other has the same numbers of devices, in its own namespace.
    let [(loaded, topology), (other, others)] = [loaded()?, loaded()?];
    let _relay = FakeRelay::start(&loaded.config, PORT)?;
    let device = gateway::gateway_device(&loaded.config);
    ensure!(status(&topology, &loaded)?.diversion.uncounted.is_empty(), "something is uncounted");

    // Refused before it is queued.
    topology.gateway.ip(&format!("link set dev {device} down"))?;
    send(&topology, &loaded, 40_000)?;
    let line = lost(&topology, &loaded, (&device, "ENETDOWN"), SYNS.into())?;
    ensure!(line.contains(&format!("`ip link set dev {device} up`")), "{line}");
    topology.gateway.ip(&format!("link set dev {device} up"))?;

    // Queued, and not taken by the other end.
    take_relay_device_down(&loaded.config)?;
    send(&topology, &loaded, 41_000)?;
    let line = lost(&topology, &loaded, (&device, "ENXIO"), SYNS.into())?;
    ensure!(line.contains(RELAY_DEVICE), "{line}");

    let evidence = status(&topology, &loaded)?.diversion;
    let all: u64 = evidence.losses.iter().map(|lost| lost.packets).sum();
    ensure!(all == evidence.diverted, "{evidence:?}");
    ensure!(evidence.losses.iter().all(|lost| lost.to_relay), "{:?}", evidence.losses);
    let losses = status(&others, &other)?.diversion.losses;
    ensure!(losses.is_empty(), "of another instance: {losses:?}");
    for (loaded, name) in [(loaded, "first"), (other, "second")] {
        loaded.unload().context(name)?;
    }
    Ok(())
}

/// Before, the device's own counters were the only trace, as far as its driver has them.
#[test]
fn answers_that_do_not_get_out_are_counted_by_reason() -> anyhow::Result<()> {
    if !privileged("answers_that_do_not_get_out_are_counted_by_reason") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let _relay = FakeRelay::start(&loaded.config, PORT)?;
    // So that the neighbour is known, and the answer redirected.
    topology.gateway.ip(&format!(
        "neigh replace {} lladdr {} dev eth1 nud permanent",
        Topology::client_address(0),
        topology.clients[0].hardware_address("eth0")?
    ))?;
    topology.clients[0].ethtool("-K eth0 gro off")?;
    // Each answer is sent once.
    let retries = "/proc/sys/net/ipv4/tcp_synack_retries";
    in_namespace(&loaded.config.namespace(), || std::fs::write(retries, "0"))??;
    send(&topology, &loaded, 40_000)?;
    let line = lost(&topology, &loaded, ("eth1", "EOPNOTSUPP"), SYNS.into())?;
    ensure!(line.contains("`ethtool -K PEER gro on`"), "{line}");
    let losses = status(&topology, &loaded)?.diversion.losses;
    ensure!(losses.len() == 1 && !losses[0].to_relay, "{losses:?}");
    loaded.unload()
}

/// A kernel that lets no program be attached costs the reasons, and says so.
#[test]
fn what_is_not_counted_is_said() -> anyhow::Result<()> {
    if !privileged("what_is_not_counted_is_said") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    std::fs::remove_file(loaded.config.pin_directory().join("link_xdp_devmap_xmit"))?;
    let status = status(&topology, &loaded)?;
    ensure!(status.diversion.uncounted == ["xdp_devmap_xmit"], "{:?}", status.diversion.uncounted);
    let text = status.to_string();
    ensure!(text.contains("UNCOUNTED") && text.contains("xdp_devmap_xmit"), "{text}");
    loaded.unload()
}
