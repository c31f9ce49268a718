//! Load and unload: what is refused, and what is left behind.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_harness::gateway::fake_relay::{
    FakeRelay, PORT, Traces, alone, connect, diverts, listen, loaded, shared, traces, transfer,
};
use millrace_harness::net::netns::{Host, Loaded, Topology, bpf_object, load_on, load_told};
use millrace_harness::system::privilege::privileged;
use millrace_relay::codec::Framing;
use millrace_relay::config::{Config, XdpPolicy};
use millrace_relay::gateway::{self, Gateway, GatewayError, object::ObjectFile};
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::Signal;

const OTHER_PORT: u16 = 7001;

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
    ensure!(matches!(second, Err(GatewayError::NothingToUnload { .. })), "{second:?}");
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

/// The verifier gives up for a signal to its thread, and verifying takes much longer than the time
/// between two of these. Children's ends did the same to loads beside other tests.
#[test]
fn a_load_outlasts_a_signal_every_millisecond() -> anyhow::Result<()> {
    if !privileged("a_load_outlasts_a_signal_every_millisecond") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let config = topology.config(PORT, Framing::Lines);
    let object = ObjectFile::read(&bpf_object()?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _handled = {
        let _inside = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::user_defined1())?
    };
    let loaded = AtomicBool::new(false);
    let sent = topology.gateway.run(|| {
        let thread = pthread_self();
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut sent = 0;
                while !loaded.load(Relaxed) {
                    pthread_kill(thread, Signal::SIGUSR1)?;
                    sent += 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                anyhow::Ok(sent)
            });
            let report = gateway::load_object_file(&config, &object, &mut |_| {});
            loaded.store(true, Relaxed);
            let sent = sender.join().expect("the sender")?;
            report?;
            anyhow::Ok(sent)
        })
    })??;
    ensure!(sent > 50, "only {sent} signals came");
    topology.gateway.run(|| gateway::unload(&config, &mut |_| {}))??;
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
    gateway.ip("link add bridge0 type bridge")?;
    refused(gateway, &with_device("bridge0"), "`bridge0` (driver bridge) has no native XDP")?;
    // No Ethernet headers: the program would misread its packets, and did so before.
    gateway.ip("tuntap add dev tun0 mode tun")?;
    refused(gateway, &with_device("tun0"), "`tun0` (driver tun) have no Ethernet header")?;
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

/// The device is there at the preflight and gone when the program is attached to it, after
/// everything else was made.
#[test]
fn a_device_that_goes_away_in_mid_load_has_the_load_undone() -> anyhow::Result<()> {
    if !privileged("a_device_that_goes_away_in_mid_load_has_the_load_undone") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let gateway = &topology.gateway;
    let mut config = topology.config(PORT, Framing::Lines);
    config.gateway.devices.push("gone0".to_owned());
    for fatal_step in ["ip netns add", "attach XDP program ingress to gone0"] {
        let before = traces(gateway, &config)?;
        gateway.ip("link add gone0 type veth peer name gone1")?;
        let mut steps = Vec::new();
        let error = load_told(gateway, &config, |step| {
            steps.push(step.to_owned());
            if step.starts_with(fatal_step) {
                let delete = ["link", "delete", "gone0"];
                assert!(Command::new("ip").args(delete).status().expect("ip").success());
            }
        })
        .err()
        .context("the load was not refused")?
        .to_string();
        ensure!(error.contains("there is no network device `gone0`"), "{error}");
        ensure!(steps.iter().any(|step| step == "detach XDP program ingress from eth1"));
        let after = traces(gateway, &config)?;
        ensure!(Traces { bpffs: before.bpffs, ..after } == before, "{fatal_step}: {before:#?}");
    }
    Ok(())
}

#[test]
fn generic_mode_is_used_only_where_it_may_and_says_so() -> anyhow::Result<()> {
    if !privileged("generic_mode_is_used_only_where_it_may_and_says_so") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let gateway = &topology.gateway;
    gateway.ip("link add bridge0 type bridge")?;
    let load = |policy, devices: &[&str]| {
        let mut config = topology.config(PORT, Framing::Lines);
        config.gateway.xdp = policy;
        config.gateway.devices = devices.iter().map(|&device| device.to_owned()).collect();
        let mut steps = Vec::new();
        let report = load_told(gateway, &config, |step| steps.push(step.to_owned()))?;
        let status = gateway.run(|| gateway::status(&config))??;
        let modes: Vec<_> = status.devices.iter().map(|device| device.mode).collect();
        let warned = steps.iter().filter(|step| step.contains("in generic mode: ")).count();
        let loaded = Loaded { config, report };
        diverts(&topology, &loaded.config, 100_000)?;
        loaded.unload()?;
        anyhow::Ok((modes, warned))
    };
    ensure!(load(XdpPolicy::Generic, &["eth1"])? == (vec!["generic"], 1));
    ensure!(
        load(XdpPolicy::NativeOrGeneric, &["eth1", "bridge0"])? == (vec!["native", "generic"], 1)
    );
    Ok(())
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
    let whose = format!("the Millrace instance `{}`", loaded.config.gateway.instance);
    refused(&topology.gateway, &other, &whose)?;
    // Seen from elsewhere, a device cannot be asked.
    let status = topology.clients[0].run(|| gateway::status(&loaded.config))??;
    ensure!(status.devices[0].redirects_answers.is_none(), "{status}");
    ensure!(!status.to_string().contains("answers"), "{status}");
    // What is not loaded is not unloaded, and what is loaded is named.
    let nothing = gateway::unload(&other, &mut |_| {}).err().context("it was not refused")?;
    let loaded_one = format!("`{}`", loaded.config.gateway.instance);
    ensure!(nothing.to_string().contains(&loaded_one), "{nothing}");

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
    for error in [Gateway::open(&config).err(), gateway::status(&config).err()] {
        let error = error.context("it was not refused")?.to_string();
        ensure!(error.contains("is not loaded; load it with `relay load`"), "{error}");
    }
    let error =
        gateway::unload(&config, &mut |_| {}).err().context("it was not refused")?.to_string();
    ensure!(error.contains("is not loaded, so nothing is to be unloaded"), "{error}");
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
