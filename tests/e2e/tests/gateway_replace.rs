//! `load --replace`: what it swaps, what it refuses, and that it swaps all or nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use millrace_common::abi::{ABI_VERSION, SECTION};
use millrace_harness::gateway::fake_relay::{
    FakeRelay, PORT, connect, diverts, loaded, shared, transfer,
};
use millrace_harness::net::netns::{Host, Topology, bpf_object};
use millrace_harness::system::privilege::privileged;
use millrace_relay::codec::Framing;
use millrace_relay::config::Config;
use millrace_relay::gateway::{self, GatewayError, ReplaceReport, Status, object::ObjectFile};
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
        error.contains("device `gone0` was removed") && error.contains("relay unload"),
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
    // What went back works, and what is broken can be unloaded.
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
    more.gateway.devices.push("eth2".to_owned());
    refused(&more, "loaded for the devices eth1, but the configuration says eth1, eth2")?;

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
