//! Rules that name where packets come from.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_harness::gateway::fake_relay::{
    FakeRelay, PORT, accept, connect, listen, loaded, transfer, within,
};
use millrace_harness::net::frames::flag::SYN;
use millrace_harness::net::frames::{Frame, TAG};
use millrace_harness::net::netns::{Host, Topology, bpf_object};
use millrace_harness::net::raw_socket::send_frame;
use millrace_harness::system::privilege::{privileged, shared};
use millrace_relay::config::{Config, Zones};
use millrace_relay::gateway;
use millrace_relay::gateway::object::ObjectFile;
use millrace_relay::gateway::rules::command::{ApplyReport, apply, check, show};

use super::hosts::hardware_address;
use super::zones::{connect_alike, server, two_tenants, works};

/// A file of rules that is removed with its value, and a configuration that names it.
struct Rules<'a> {
    gateway: &'a Host,
    config: Config,
    file: PathBuf,
}

impl<'a> Rules<'a> {
    fn new(gateway: &'a Host, config: &Config) -> Self {
        let name = format!("millrace-{}-places.rules", config.gateway.instance);
        let file = std::env::temp_dir().join(name);
        let mut config = config.clone();
        config.gateway.rules = Some(file.clone());
        Self { gateway, config, file }
    }

    fn apply(&self, text: &str) -> anyhow::Result<ApplyReport> {
        std::fs::write(&self.file, text)?;
        Ok(self.gateway.run(|| apply(&self.config))??)
    }

    /// With these client-facing devices instead.
    fn with(&mut self, devices: &[&str]) {
        self.config.gateway.devices = devices.iter().map(ToString::to_string).collect();
    }

    fn replace(&self) -> anyhow::Result<()> {
        let object = ObjectFile::read(&bpf_object()?)?;
        self.gateway.run(|| gateway::replace_by(&self.config, &object, &mut |_| {}))??;
        Ok(())
    }

    /// What is in force, which the maps have to agree with.
    fn shown(&self) -> anyhow::Result<Vec<String>> {
        let shown = self.gateway.run(|| show(&self.config))??;
        ensure!(shown.difference.is_none(), "{:?}", shown.difference);
        Ok(shown.in_force.rules)
    }
}

impl Drop for Rules<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

fn said<T: std::fmt::Debug>(result: anyhow::Result<T>, message: &str) -> anyhow::Result<()> {
    let error = result.err().context("not refused")?.to_string();
    ensure!(error.contains(message), "`{error}` does not say `{message}`");
    Ok(())
}

/// The same rules were for both once.
#[test]
fn tenants_with_the_same_addresses_have_rules_of_their_own() -> anyhow::Result<()> {
    if !privileged("tenants_with_the_same_addresses_have_rules_of_their_own") {
        return Ok(());
    }
    let _shared = shared();
    let (topology, tenant, loaded) = two_tenants(Zones::Device)?;
    let mut rules = Rules::new(&topology.gateway, &loaded.config);
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let listen_at = |host: &Host| anyhow::Ok(host.run(|| listen(server().ip(), PORT))??);
    let listeners: [TcpListener; 2] =
        [listen_at(&topology.servers[0])?, listen_at(&tenant.server)?];
    let clients = [&topology.clients[0], &tenant.client];
    let ordinary = |index: usize| -> anyhow::Result<(TcpStream, TcpStream)> {
        let mut client = connect_alike(clients[index])?;
        let (mut served, _) = accept(&listeners[index])?;
        works(&mut client, &mut served)?;
        Ok((client, served))
    };
    let mut diverted = |index: usize| -> anyhow::Result<()> {
        let mut client = connect_alike(clients[index])?;
        works(&mut client, relay.accept()?.stream())
    };

    // Whose connection is diverted, and whose is not.
    for (steered, device, other) in [(0, "eth1", "eth3"), (1, "eth3", "eth1")] {
        rules.apply(&format!(
            "divert tcp 10.77.2.0/24 port {PORT} device {device}\n\
             pass tcp 10.77.2.0/24 port {PORT} device {other}\n"
        ))?;
        // The relay's answers go where the host's routes lead: to the tenant whose turn it is.
        if steered == 1 {
            let link = format!("{}-gw", loaded.config.gateway.instance);
            topology.gateway.ip(&format!("rule add iif {link} lookup 100"))?;
        }
        let before = loaded.verdict("pass/rule")?;
        let passed = ordinary(1 - steered)?;
        ensure!(loaded.verdict("pass/rule")? > before);
        diverted(steered).with_context(|| device.to_owned())?;
        drop(passed);
    }
    let divert = format!("divert tcp 10.77.2.0/24 port {PORT}");
    let pass = format!("pass tcp 10.77.2.0/24 port {PORT}");
    ensure!(rules.shown()? == [format!("{pass} device eth1"), format!("{divert} device eth3")]);

    // A device with rules is not let go of.
    rules.with(&["eth3"]);
    said(rules.replace(), "the rules in force name eth1")?;
    let only = format!("{divert} device eth3\n");
    rules.apply(&only)?;
    rules.replace()?;
    ensure!(rules.shown()? == [only.trim_end()]);
    diverted(1).context("the device's number is another")?;

    // Nor is one named that is not there.
    let eth9 = only.replace("eth3", "eth9");
    said(rules.apply(&eth9), "is not one of gateway.devices, which are eth3")?;
    ensure!(check(&rules.config).is_err());
    rules.with(&["eth3", "eth1"]);
    said(rules.apply(&format!("{divert} device eth1\n")), "run `relay load --replace`")?;
    rules.replace()?;
    rules.apply(&format!("{divert} device eth1\n"))?;
    drop(ordinary(1)?);
    loaded.unload()
}

/// Rules of VLANs are refused where the programs do not see the tags.
#[test]
fn a_vlan_has_rules_of_its_own() -> anyhow::Result<()> {
    if !privileged("a_vlan_has_rules_of_its_own") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let rules = Rules::new(&topology.gateway, &loaded.config);
    let divert = format!("divert tcp 10.77.2.0/24 port {PORT}");
    let vlan = format!("{divert} vlan 12\n");
    topology.gateway.ethtool("-K eth1 rxvlan on")?;
    said(
        rules.apply(&vlan),
        "takes VLAN tags off before the program sees them, but the rules name VLANs",
    )?;
    said(rules.apply(&vlan), "ethtool -K eth1 rxvlan off")?;
    topology.gateway.ethtool("-K eth1 rxvlan off")?;
    rules.apply(&vlan)?;

    let relay = FakeRelay::start(&loaded.config, PORT)?;
    let client = (Topology::client_address(0), 40_000).into();
    let mut syn = Frame::tcp(client, (Topology::server_address(0), PORT).into(), SYN, 7);
    syn.link.0 = hardware_address(&topology.gateway, "eth1")?;
    for (tags, verdict) in [(&[TAG][..], "pass/no_rule"), (&[][..], "pass/no_rule")] {
        let before = loaded.verdict(verdict)?;
        send_frame(&topology.clients[0], &syn.tagged(tags))?;
        within(verdict, || Ok((loaded.verdict(verdict)? > before).then_some(())))?;
    }
    let vlan = vlan.replace("vlan 12", "vlan 100");
    rules.apply(&vlan)?;
    send_frame(&topology.clients[0], &syn.tagged(&[TAG]))?;
    within("divert/new", || Ok((loaded.verdict("divert/new")? > 0).then_some(())))?;
    ensure!(rules.shown()? == [vlan.trim_end()]);
    drop(relay);
    loaded.unload()
}

/// It was all of the source or nothing once.
#[test]
fn a_source_is_kept_from_one_destination() -> anyhow::Result<()> {
    if !privileged("a_source_is_kept_from_one_destination") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let rules = Rules::new(&topology.gateway, &loaded.config);
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let (server, client) = (Topology::server_address(0), Topology::client_address(0));
    let mut blocked = connect(&topology.clients[0], server, PORT)?;
    let mut accepted = relay.accept()?;
    transfer(&mut blocked, accepted.stream(), 1000)?;

    let divert = format!("divert tcp 10.77.2.0/24 port {PORT}-7900\n");
    rules.apply(&format!("{divert}drop tcp {server} port {PORT} from {client}\n"))?;
    let before = loaded.verdict("drop/source")?;
    blocked.write_all(b"late")?;
    accepted.stream().set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut late = [0; 4];
    let error = accepted.stream().read_exact(&mut late).err().context("it came through")?;
    ensure!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    ensure!(loaded.verdict("drop/source")? > before);
    // Another port of the same server is not meant, nor is another client.
    let listener = topology.servers[0].run(|| listen(server, 7900))??;
    let mut other = connect(&topology.clients[0], server, 7900)?;
    let (mut taken, _) = accept(&listener)?;
    works(&mut other, &mut taken)?;

    // The connection is there still, and goes on when it may.
    rules.apply(&divert)?;
    accepted.stream().set_read_timeout(Some(Duration::from_secs(10)))?;
    accepted.stream().read_exact(&mut late)?;
    ensure!(&late == b"late");
    transfer(accepted.stream(), &mut blocked, 1000)?;
    drop(accepted);
    loaded.unload()
}
