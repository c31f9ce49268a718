//! The life of an installed package: installed, started, used, upgraded, removed, purged.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    hosts::{DEVICE, Hosts},
    machine::Machine,
    package,
};
use crate::{paths, process};

/// As `docs/millrace.toml` has it.
const SERVER: ([u8; 4], u16) = ([203, 0, 113, 11], 7000);
const PARTITIONS: [&str; 2] = ["0", "1"];
const TOPIC_PREFIX: &str = "dist-test.";
const CONFIGURATION: &str = "/etc/millrace/millrace.toml";
/// The sample leaves it out.
const SETTING: &str = "service/chat/max_messages_per_second";
const RELAY: &str = "millrace@millrace.service";
const GATEWAY: &str = "millrace-gateway@millrace.service";
/// `systemd-analyze security` wants tenths: below 3.0.
const MOST_EXPOSED: u32 = 29;
const PATIENCE: Duration = Duration::from_secs(30);

/// Goes through it with a package, and one of a later version, against a broker on loopback.
pub(super) fn run(first: &Path, later: &Path, brokers: &str) -> Result<()> {
    let broker: SocketAddr = brokers.parse().with_context(|| {
        format!("the test needs one broker with an address and a port, not `{brokers}`")
    })?;
    ensure!(broker.ip().is_loopback(), "the test's broker must be on loopback, not {broker}");
    let hosts = Hosts::new()?;
    hosts.forward(broker)?;
    let mut machine = Machine::boot(&hosts.gateway(), &package::needed(first)?)?;
    install(&machine, first)?;
    configure(&machine, brokers)?;
    units_are_sound(&machine)?;
    let started = machine.run(&format!("systemctl start {RELAY}"));
    started.with_context(|| journal(&machine))?;
    // Now there are topics to read.
    let _servers = PARTITIONS
        .map(|partition| Server::start(brokers, partition))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let used = is_used(&mut machine, &hosts, later);
    used.with_context(|| journal(&machine))?;
    is_removed(&machine)
}

/// Served, tuned, upgraded and killed.
fn is_used(machine: &mut Machine, hosts: &Hosts, later: &Path) -> Result<()> {
    let mut client = Client::connect(hosts)?;
    client.expect_echo("a message by way of Kafka")?;
    settings_are_files(machine)?;
    machine.run(&format!("systemctl reload {RELAY}"))?;
    let told = machine.run(&format!("relay tune get {SETTING}"))?;
    ensure!(told == "0", "{SETTING} is {told} after a reload, and not what the file has");
    client.expect_echo("after a reload")?;

    let before = (main_process(machine)?, programs(machine)?);
    install(machine, later)?;
    let after = (main_process(machine)?, programs(machine)?);
    ensure!(before == after, "the upgrade has changed what runs: {before:?}, {after:?}");
    client.expect_echo("after the upgrade")?;
    machine.run(&format!("systemctl reload {GATEWAY}"))?;
    ensure!(programs(machine)? != after.1, "the XDP programs were not replaced");
    client.expect_echo("with the later version's XDP programs")?;
    machine.run(&format!("systemctl restart {RELAY}"))?;
    ensure!(main_process(machine)? != after.0, "the relay was not started anew");
    Client::connect(hosts)?.expect_echo("with the later version's relay")?;
    comes_back(machine, hosts)
}

/// Their numbers.
fn programs(machine: &Machine) -> Result<String> {
    machine.run(r"relay status | sed -n 's/^program .*: id \([0-9]*\).*/\1/p'")
}

/// As an operator does it.
fn install(machine: &Machine, package: &Path) -> Result<()> {
    let to = "/root/millrace.deb";
    std::fs::copy(package, machine.path(to)).context("cannot copy the package")?;
    machine.run(&format!("apt-get install --yes --no-install-recommends {to}")).map(drop)
}

/// Edits the lines of the example that differ here; one more for the topics of this test.
fn configure(machine: &Machine, brokers: &str) -> Result<()> {
    let file = machine.path(CONFIGURATION);
    let mut text = std::fs::read_to_string(&file)?;
    for (line, instead) in [
        ("devices = [\"eth1\"]", format!("devices = [\"{DEVICE}\"]")),
        ("brokers = \"127.0.0.1:9092\"", format!("brokers = \"{brokers}\"")),
        ("topic_prefix = \"millrace.\"", format!("topic_prefix = \"{TOPIC_PREFIX}\"")),
    ] {
        ensure!(text.contains(line), "{CONFIGURATION} has no `{line}`");
        text = text.replace(line, &instead);
    }
    std::fs::write(&file, text)?;
    machine.run("relay check").map(drop)
}

fn units_are_sound(machine: &Machine) -> Result<()> {
    let told = machine.run(&format!("systemd-analyze verify --man=no {RELAY} {GATEWAY} 2>&1"))?;
    ensure!(!told.contains("millrace"), "systemd-analyze verify: {told}");
    machine
        .run(&format!("systemd-analyze security --threshold={MOST_EXPOSED} --no-pager {RELAY}"))
        .context("the relay's unit is more exposed than it should be")?;
    Ok(())
}

/// The tree is in the relay's own view of the file system; a link leads there.
fn settings_are_files(machine: &Machine) -> Result<()> {
    machine.run(&format!("echo 1000 > /run/millrace/millrace.tune/{SETTING}"))?;
    let told = machine.run(&format!("relay tune get {SETTING}"))?;
    ensure!(told == "1000", "{SETTING} was set to 1000 and is {told}");
    Ok(())
}

/// After a relay that was killed, another one serves.
fn comes_back(machine: &mut Machine, hosts: &Hosts) -> Result<()> {
    let before = main_process(machine)?;
    machine.run(&format!("systemctl kill --signal=KILL {RELAY}"))?;
    machine.wait("the relay to come back", |machine| {
        let state = machine.run(&format!("systemctl is-active {RELAY} || true"))?;
        Ok(state == "active" && main_process(machine)? != before)
    })?;
    Client::connect(hosts)?.expect_echo("after a kill")?;
    settings_are_files(machine)
}

/// While it runs. What an operator has written stays until the purge.
fn is_removed(machine: &Machine) -> Result<()> {
    machine.run("apt-get remove --yes millrace")?;
    ensure!(machine.path(CONFIGURATION).is_file(), "the configuration went with the package");
    let left =
        machine.run("ls /sys/fs/bpf /run/netns; systemctl list-units --no-legend 'millrace*'")?;
    ensure!(!left.contains("millrace"), "this is left behind a removed package: {left}");
    machine.run("apt-get purge --yes millrace && rm /root/millrace.deb")?;
    let left = machine.run(
        "find / -xdev -name '*millrace*' ! -path '/proc/*' ! -path '/var/lib/systemd/*' ! -path '/var/lib/dpkg/*'",
    )?;
    ensure!(left.is_empty(), "this is left behind a purged package: {left}");
    Ok(())
}

fn main_process(machine: &Machine) -> Result<String> {
    machine.run(&format!("systemctl show --property=MainPID --value {RELAY}"))
}

fn journal(machine: &Machine) -> String {
    machine
        .run(&format!("journalctl --no-pager --lines=40 --unit={RELAY} --unit={GATEWAY}"))
        .unwrap_or_else(|error| format!("{error:#}"))
}

/// The example server of one partition.
struct Server(Child);

impl Server {
    fn start(brokers: &str, partition: &str) -> Result<Self> {
        let mut command = Command::new(paths::release("examples/server"));
        command.args([brokers, partition, TOPIC_PREFIX]).stdin(Stdio::null()).stdout(Stdio::null());
        let started = command.spawn();
        Ok(Self(started.with_context(|| format!("cannot start `{}`", process::shown(&command)))?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A client of the example's service: messages with their length in front.
struct Client(TcpStream);

impl Client {
    fn connect(hosts: &Hosts) -> Result<Self> {
        let stream = hosts.connect(SERVER.into())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    fn expect_echo(&mut self, message: &str) -> Result<()> {
        let length = u32::try_from(message.len())?.to_be_bytes();
        self.0.write_all(&[&length[..], message.as_bytes()].concat())?;
        let mut echo = vec![0; length.len() + message.len()];
        self.0.read_exact(&mut echo).with_context(|| format!("no reply to `{message}`"))?;
        if echo[length.len()..] != *message.as_bytes() {
            bail!("the reply to `{message}` is `{}`", String::from_utf8_lossy(&echo));
        }
        Ok(())
    }
}
