//! What an operator sets in the relay namespace: kernel settings, and how long packets are collected.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use millrace_harness::gateway::fake_relay::{FakeRelay, PORT, connect, diverts, traces, transfer};
use millrace_harness::net::netns::{Loaded, Topology, bpf_object, load_on, load_told};
use millrace_harness::system::privilege::{privileged, shared};
use millrace_relay::codec::Framing;
use millrace_relay::config::{Config, Sysctls};
use millrace_relay::gateway::{self, RELAY_DEVICE, object::ObjectFile};

const RMEM: (&str, &str) = ("net.ipv4.tcp_rmem", "4096 16384 4194304");
const FIN_TIMEOUT: &str = "net.ipv4.tcp_fin_timeout";
/// Round trips of which the median is taken.
const ROUNDS: usize = 201;

/// A sysctl of the relay namespace, with single spaces.
fn sysctl(config: &Config, name: &str) -> anyhow::Result<String> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    let value = gateway::in_namespace(&config.namespace(), || std::fs::read_to_string(path))??;
    Ok(value.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Settings of the relay's device, as an operator reads them: sysfs shows the devices of the namespace that it
/// was mounted in.
fn coalescing(config: &Config) -> anyhow::Result<[u64; 2]> {
    let read = |name: &str| {
        let script =
            format!("mount -t sysfs sysfs /sys && cat /sys/class/net/{RELAY_DEVICE}/{name}");
        let look = || Command::new("unshare").args(["--mount", "sh", "-ec", &script]).output();
        let output = gateway::in_namespace(&config.namespace(), look)??;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().parse()?)
    };
    Ok([read("gro_flush_timeout")?, read("napi_defer_hard_irqs")?])
}

fn replace(topology: &Topology, config: &Config) -> anyhow::Result<Vec<String>> {
    let object = ObjectFile::read(&bpf_object()?)?;
    let mut steps = Vec::new();
    topology
        .gateway
        .run(|| gateway::replace_by(config, &object, &mut |step| steps.push(step.to_owned())))??;
    Ok(steps)
}

fn status(topology: &Topology, config: &Config) -> anyhow::Result<gateway::Status> {
    Ok(topology.gateway.run(|| gateway::status(config))??)
}

/// Names of settings of which the configuration says something else.
fn different(status: &gateway::Status) -> Vec<&str> {
    let sysctls = status.namespace.sysctls.iter();
    sysctls.filter(|one| one.configured.is_some()).map(|one| one.name.as_str()).collect()
}

#[test]
fn settings_are_in_force_after_a_load_and_follow_the_configuration() -> anyhow::Result<()> {
    if !privileged("settings_are_in_force_after_a_load_and_follow_the_configuration") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let mut config = topology.config(PORT, Framing::Lines);
    let before = traces(&topology.gateway, &config)?;
    config.gateway.sysctls = Sysctls::new([RMEM, (FIN_TIMEOUT, "17")]);
    let mut steps = Vec::new();
    let report = load_told(&topology.gateway, &config, |step| steps.push(step.to_owned()))?;
    let mut loaded = Loaded { config, report };
    let told = format!("sysctl -w {}=\"{}\"", RMEM.0, RMEM.1);
    ensure!(steps.iter().any(|step| step.contains(&told)), "not told: {steps:?}");
    ensure!(sysctl(&loaded.config, RMEM.0)? == RMEM.1);
    ensure!(sysctl(&loaded.config, FIN_TIMEOUT)? == "17");
    ensure!(different(&status(&topology, &loaded.config)?).is_empty());
    diverts(&topology, &loaded.config, 100_000)?;

    // One stays, one goes, one is new, one of `load`'s own is another.
    let config = &mut loaded.config;
    config.gateway.sysctls = Sysctls::new([
        RMEM,
        ("net.core.somaxconn", "1024"),
        // The kernel writes that as a range.
        ("net.ipv4.ip_local_reserved_ports", "8080,8081"),
    ]);
    let shown = status(&topology, config)?;
    ensure!(different(&shown).len() == 3, "{:?}", shown.namespace);
    let text = shown.to_string();
    ensure!(
        text.contains("SYSCTLS") && text.contains("`relay load --replace` undoes it"),
        "{text}"
    );
    let steps = replace(&topology, config)?;
    ensure!(steps.iter().any(|step| step.ends_with("is 8080-8081 now")), "{steps:?}");
    ensure!(sysctl(config, FIN_TIMEOUT)? == "60", "the kernel's own is not back");
    ensure!(sysctl(config, RMEM.0)? == RMEM.1);
    ensure!(sysctl(config, "net.core.somaxconn")? == "1024");
    ensure!(different(&status(&topology, config)?).is_empty());

    // Somebody else writes it.
    let path = "/proc/sys/net/core/somaxconn";
    gateway::in_namespace(&config.namespace(), || std::fs::write(path, "9"))??;
    ensure!(different(&status(&topology, config)?) == ["net.core.somaxconn"]);
    config.gateway.sysctls = Sysctls::default();
    replace(&topology, config)?;
    ensure!(sysctl(config, "net.core.somaxconn")? == "65535", "`load`'s own is not back");
    ensure!(sysctl(config, "net.ipv4.ip_local_reserved_ports")?.is_empty(), "it was empty");
    ensure!(status(&topology, config)?.namespace.sysctls.is_empty());
    diverts(&topology, config, 100_000)?;

    loaded.unload()?;
    let config = topology.config(PORT, Framing::Lines);
    ensure!(traces(&topology.gateway, &config)?.gateway_sysctls == before.gateway_sysctls);
    Ok(())
}

#[test]
fn what_a_namespace_cannot_have_is_refused_and_nothing_is_changed() -> anyhow::Result<()> {
    if !privileged("what_a_namespace_cannot_have_is_refused_and_nothing_is_changed") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let mut config = topology.config(PORT, Framing::Lines);
    let before = traces(&topology.gateway, &config)?;
    let cases = [
        ("net.ipv4.tcp_fin_timeuot", "30", "misspelt"),
        (FIN_TIMEOUT, "soon", "the kernel refuses the value `soon`"),
        ("net.core.netdev_max_backlog", "9", "a network namespace has no such setting"),
        ("net.ipv4.route.flush", "1", "cannot be read back"),
    ];
    for (name, value, words) in cases {
        config.gateway.sysctls = Sysctls::new([RMEM, (name, value)]);
        let error = load_on(&topology.gateway, &config).err().context("it was not refused")?;
        let told = error.to_string();
        ensure!(told.contains(&format!("gateway.sysctls: `{name}`")), "{told}");
        ensure!(told.contains(words), "{told}");
        let found = topology.gateway.run(|| gateway::preflight(&config))??;
        let codes: Vec<_> = found.refusals().map(|finding| finding.code).collect();
        ensure!(codes.iter().filter(|code| **code == "sysctl").count() == 1, "{codes:?}");
        let here = traces(&topology.gateway, &config)?;
        ensure!(here.instance_files == before.instance_files, "something is left");
    }

    config.gateway.sysctls = Sysctls::new([RMEM]);
    let mut loaded = topology.load(&config)?;
    loaded.config.gateway.sysctls = Sysctls::new([(RMEM.0, "4096 8192 65536"), (FIN_TIMEOUT, "x")]);
    let refused = replace(&topology, &loaded.config).err().context("it was not refused")?;
    ensure!(refused.to_string().contains(FIN_TIMEOUT), "{refused}");
    ensure!(sysctl(&loaded.config, RMEM.0)? == RMEM.1, "the former is not in force");
    loaded.unload()
}

/// Median of the times in which a message of a client's comes back from the relay.
fn round_trip(topology: &Topology, relay: &mut FakeRelay) -> anyhow::Result<Duration> {
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let mut accepted = relay.accept()?;
    for stream in [&client, accepted.stream()] {
        stream.set_nodelay(true)?;
    }
    let mut took = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let (start, mut message) = (Instant::now(), [7; 100]);
        client.write_all(&message)?;
        accepted.stream().read_exact(&mut message)?;
        accepted.stream().write_all(&message)?;
        client.read_exact(&mut message)?;
        took.push(start.elapsed());
    }
    took.sort();
    transfer(&mut client, accepted.stream(), 1_000_000)?;
    transfer(accepted.stream(), &mut client, 1_000_000)?;
    Ok(took[ROUNDS / 2])
}

#[test]
fn packets_are_collected_for_as_long_as_the_configuration_says() -> anyhow::Result<()> {
    if !privileged("packets_are_collected_for_as_long_as_the_configuration_says") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let mut config = topology.config(PORT, Framing::Lines);
    config.gateway.coalesce_us = 250;
    let mut loaded = topology.load(&config)?;
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let mut medians = Vec::new();
    for (microseconds, expected) in
        [(250, [250_000, 1]), (1000, [1_000_000, 1]), (0, [0, 0]), (1000, [1_000_000, 1])]
    {
        let config = &mut loaded.config;
        config.gateway.coalesce_us = microseconds;
        let shown = status(&topology, config)?;
        if microseconds != 250 {
            ensure!(shown.namespace.configured_coalesce_us == Some(microseconds));
            ensure!(shown.to_string().contains("COALESCE"), "{shown}");
            replace(&topology, config)?;
        }
        let namespace = status(&topology, config)?.namespace;
        ensure!(namespace.coalesce_us == microseconds, "{namespace:?}");
        ensure!(namespace.configured_coalesce_us.is_none(), "{namespace:?}");
        ensure!(coalescing(config)? == expected, "{:?}", coalescing(config));
        let median = round_trip(&topology, &mut relay)?;
        println!("coalesce_us = {microseconds}: median of {ROUNDS} round trips {median:?}");
        medians.push(median);
    }
    // Each message comes within the time since the last look, and waits for its end.
    let [_, long, none, again] = medians[..] else { unreachable!("four were taken") };
    let least = Duration::from_micros(700);
    ensure!(long >= least && again >= least && none < again.min(long), "{medians:?}");
    loaded.unload()
}
