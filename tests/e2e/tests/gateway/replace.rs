//! `load --replace`: what it swaps, what it refuses, and that it swaps all or nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use millrace_common::abi::{ABI_VERSION, SECTION};
use millrace_harness::gateway::fake_relay::{
    FakeRelay, PORT, connect, diverts, loaded, traces, transfer,
};
use millrace_harness::net::netns::{Host, Topology, bpf_object};
use millrace_harness::system::privilege::{privileged, shared};
use millrace_relay::codec::Framing;
use millrace_relay::config::Config;
use millrace_relay::gateway::object::ObjectFile;
use millrace_relay::gateway::{self, GatewayError, RELAY_DEVICE, ReplaceReport, Status};
use object::{Object as _, ObjectSection as _};

fn replace(gateway: &Host, config: &Config) -> anyhow::Result<ReplaceReport> {
    replace_told(gateway, config, |_| {})
}

fn replace_told(
    gateway: &Host,
    config: &Config,
    mut told: impl FnMut(&str) + Send,
) -> anyhow::Result<ReplaceReport> {
    let object = ObjectFile::read(&bpf_object()?)?;
    Ok(gateway.run(|| gateway::replace_by(config, &object, &mut told))??)
}

fn ids(status: &Status) -> Vec<u32> {
    status.programs.values().map(|program| program.id).collect()
}

/// The names in the instance's directory of pins.
fn pins(config: &Config) -> anyhow::Result<Vec<PathBuf>> {
    let mut pins = std::fs::read_dir(config.pin_directory())?
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    pins.sort();
    Ok(pins)
}

#[test]
fn programs_are_swapped_and_everything_else_stays() -> anyhow::Result<()> {
    if !privileged("programs_are_swapped_and_everything_else_stays") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let config = &loaded.config;
    let mut relay = FakeRelay::start(config, PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let mut accepted = relay.accept()?;
    transfer(&mut client, accepted.stream(), 1000)?;
    let before = topology.gateway.run(|| gateway::status(config))??;
    let pins_before = pins(config)?;

    let report = replace(&topology.gateway, config)?;
    for (name, program) in &before.programs {
        let replaced = report.programs.get(name).context(*name)?;
        ensure!(replaced.from == program.id && replaced.to != program.id, "{name}: {replaced:?}");
    }
    // The connection has its flow still, and the counters go on.
    transfer(&mut client, accepted.stream(), 1000)?;
    transfer(accepted.stream(), &mut client, 1000)?;
    let after = topology.gateway.run(|| gateway::status(config))??;
    ensure!(after.devices[0].program_id == Some(report.programs["ingress"].to));
    ensure!(after.programs["egress"].id == report.programs["egress"].to);
    ensure!(after.rules == before.rules && after.established == 1);
    ensure!(after.verdicts["divert/new"] == before.verdicts["divert/new"]);
    ensure!(after.verdicts["divert/established"] > before.verdicts["divert/established"]);
    ensure!(pins(config)? == pins_before, "pins came or went");
    drop(accepted);
    loaded.unload()
}

/// One of two devices goes in the middle of the swap.
#[test]
fn a_swap_that_fails_half_way_goes_back() -> anyhow::Result<()> {
    if !privileged("a_swap_that_fails_half_way_goes_back") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let gateway = &topology.gateway;
    gateway.ip("link add gone0 type veth peer name gone1")?;
    let mut config = topology.config(PORT, Framing::Lines);
    config.gateway.devices.push("gone0".to_owned());
    let loaded = topology.load(&config)?;
    let before = gateway.run(|| gateway::status(&config))??;
    let pins_before = pins(&config)?;

    let mut steps = Vec::new();
    let error = replace_told(gateway, &config, |step| {
        steps.push(step.to_owned());
        if step == "replace XDP program ingress on gone0" {
            let delete = ["link", "delete", "gone0"];
            assert!(Command::new("ip").args(delete).status().expect("ip").success());
        }
    })
    .err()
    .context("the replacement went on without its device")?
    .to_string();
    ensure!(
        error.contains("device `gone0` was removed") && error.contains("relay load --replace"),
        "{error}"
    );
    ensure!(steps.contains(&"replace XDP program ingress on eth1".to_owned()), "{steps:?}");
    ensure!(!steps.iter().any(|step| step.starts_with("could not go back")), "{steps:?}");
    let after = gateway.run(|| gateway::status(&config))??;
    ensure!(ids(&after) == ids(&before) && pins(&config)? == pins_before);
    ensure!(after.devices[0].program_id == before.devices[0].program_id);
    // A device of the same name is not the device that was loaded.
    gateway.ip("link add gone0 type veth peer name gone1")?;
    let status = gateway.run(|| gateway::status(&config))??.to_string();
    ensure!(status.contains("GONE       nothing is diverted from gone0"), "{status}");
    // What went back works, and what is broken can be mended. Before, that took an unload.
    diverts(&topology, &config, 1000)?;
    replace(gateway, &config)?;
    let status = gateway.run(|| gateway::status(&config))??;
    ensure!(status.devices.iter().all(|device| device.mode == "native"), "{status}");
    ensure!(!status.to_string().contains("GONE"), "{status}");
    diverts(&topology, &config, 1000)?;
    loaded.unload()
}

#[test]
fn what_does_not_fit_is_not_swapped_in() -> anyhow::Result<()> {
    if !privileged("what_does_not_fit_is_not_swapped_in") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let config = topology.config(PORT, Framing::Lines);
    let refused = |config: &Config, message: &str| {
        let error = replace(&topology.gateway, config).err().context("not refused")?.to_string();
        ensure!(error.contains(message), "`{error}` does not say `{message}`");
        anyhow::Ok(())
    };
    refused(&config, "is not loaded; load it with `relay load`")?;

    let loaded = topology.load(&config)?;
    let before = topology.gateway.run(|| gateway::status(&config))??;
    let mut more = config.clone();
    more.gateway.devices.push("nope".to_owned());
    refused(&more, "there is no network device `nope`")?;

    // An object of another ABI version never reaches the kernel, and both numbers are named.
    let other = Draft::of_version(ABI_VERSION + 1)?;
    let error = ObjectFile::read(&other.0).err().context("not refused")?;
    ensure!(matches!(error, GatewayError::AbiMismatch { .. }), "{error}");
    let error = error.to_string();
    for number in [ABI_VERSION, ABI_VERSION + 1] {
        ensure!(error.contains(&number.to_string()), "{error}");
    }

    let after = topology.gateway.run(|| gateway::status(&config))??;
    ensure!(ids(&after) == ids(&before), "something was swapped");

    let missing = config.pin_directory().join("COUNTERS");
    std::fs::remove_file(&missing)?;
    refused(&config, &format!("the pin {} is missing", missing.display()))?;
    ensure!(!missing.exists(), "a map was made anew");
    loaded.unload()
}

/// Before, another set of devices took an unload, and with it every diverted connection.
#[test]
fn devices_are_taken_up_and_let_go_of() -> anyhow::Result<()> {
    if !privileged("devices_are_taken_up_and_let_go_of") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let gateway = &topology.gateway;
    let mut config = topology.config(PORT, Framing::Lines);
    let before = traces(gateway, &config)?;
    let loaded = topology.load(&config)?;
    let mut relay = FakeRelay::start(&config, PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let mut accepted = relay.accept()?;
    let devices = |config: &Config| {
        let status = gateway.run(|| gateway::status(config))??;
        ensure!(!status.to_string().contains("REPLACED"), "{status}");
        let device = |it: &gateway::DeviceStatus| (it.name.clone(), it.mode, it.redirects_answers);
        anyhow::Ok(status.devices.iter().map(device).collect::<Vec<_>>())
    };
    let native = |name: &str| (name.to_owned(), "native", Some(true));

    config.gateway.devices = vec!["eth1".to_owned(), "eth2".to_owned()];
    gateway.ip("link set dev eth2 mtu 1400")?;
    replace(gateway, &config)?;
    let mtu = || {
        let read = || Command::new("ip").args(["link", "show", "dev", RELAY_DEVICE]).output();
        let output = gateway::in_namespace(&loaded.config.namespace(), read)??;
        anyhow::Ok(String::from_utf8(output.stdout)?)
    };
    // What is on its way is as long as it was.
    ensure!(mtu()?.contains(" mtu 1500 "), "{}", mtu()?);
    ensure!(devices(&config)? == [native("eth1"), native("eth2")], "{:?}", devices(&config)?);
    transfer(&mut client, accepted.stream(), 100_000)?;
    transfer(accepted.stream(), &mut client, 100_000)?;

    config.gateway.devices = vec!["eth1".to_owned()];
    replace(gateway, &config)?;
    ensure!(devices(&config)? == [native("eth1")], "{:?}", devices(&config)?);
    gateway.ip("link set dev eth2 mtu 1500")?;
    let links = traces(gateway, &config)?.gateway_links;
    ensure!(links.iter().any(|link| link.contains("eth2") && link.ends_with("null")), "{links:?}");
    transfer(&mut client, accepted.stream(), 100_000)?;

    // One of two cannot be had: nothing has changed.
    config.gateway.devices = vec!["eth1".to_owned(), "eth2".to_owned(), "tun0".to_owned()];
    gateway.ip("tuntap add dev tun0 mode tun")?;
    let error = replace(gateway, &config).err().context("it was not refused")?.to_string();
    ensure!(error.contains("have no Ethernet header"), "{error}");
    ensure!(devices(&loaded.config)? == [native("eth1")], "{:?}", devices(&loaded.config)?);
    gateway.ip("link delete tun0")?;
    transfer(accepted.stream(), &mut client, 100_000)?;

    // Longer segments for new connections.
    config.gateway.devices.truncate(2);
    for device in ["eth1", "eth2"] {
        gateway.ip(&format!("link set dev {device} mtu 1600"))?;
    }
    replace(gateway, &config)?;
    ensure!(mtu()?.contains(" mtu 1600 "), "{}", mtu()?);
    for device in ["eth1", "eth2"] {
        gateway.ip(&format!("link set dev {device} mtu 1500"))?;
    }

    // From the device that was taken up, connections are diverted.
    drop(accepted);
    let server = &topology.servers[0];
    server.ip("route add 10.77.2.99/32 via 10.77.2.1")?;
    let mut client = connect(server, std::net::Ipv4Addr::new(10, 77, 2, 99), PORT)?;
    let mut accepted = relay.accept()?;
    transfer(&mut client, accepted.stream(), 1000)?;
    transfer(accepted.stream(), &mut client, 1000)?;

    drop(accepted);
    loaded.unload()?;
    let after = traces(gateway, &config)?;
    ensure!(after.gateway_links == before.gateway_links, "{:?}", after.gateway_links);
    Ok(())
}

/// The object under test with another ABI version in it; removed with its value.
struct Draft(PathBuf);

impl Draft {
    fn of_version(version: u32) -> anyhow::Result<Self> {
        let mut bytes = std::fs::read(bpf_object()?)?;
        let file = object::File::parse(bytes.as_slice())?;
        let section = file.section_by_name(SECTION).context("no ABI section")?;
        let (start, length) = section.file_range().context("an empty ABI section")?;
        let start = usize::try_from(start)?;
        bytes[start..start + usize::try_from(length)?].copy_from_slice(&version.to_le_bytes());
        let name = format!("millrace-abi-{version}-{}.o", std::process::id());
        let path = Path::new(&std::env::temp_dir()).join(name);
        std::fs::write(&path, bytes)?;
        Ok(Self(path))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
