//! Services that speak MQTT, and the clients of other houses that the tests run.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use millrace_relay::codec::{MqttSection, ProtocolKind};
use millrace_relay::config::Service;
use millrace_relay::model::IdentityKind;

use crate::system::paths;
use crate::system::process::{Finished, Process, run_ok};

const PATIENCE: Duration = Duration::from_mins(2);

/// Makes a service one whose clients speak MQTT and are known by their client identifiers.
pub fn speak(service: &mut Service, adjust: impl FnOnce(&mut MqttSection)) {
    let mut section = MqttSection::default();
    adjust(&mut section);
    service.protocol = ProtocolKind::Mqtt;
    service.framing = None;
    service.identity = IdentityKind::Client;
    service.mqtt = Some(section);
}

/// The example server for MQTT, which publishes every message back.
pub fn echo_server(brokers: &str, prefix: &str) -> Result<Process> {
    let mut command = Command::new(paths::peer("mqtt_echo.py"));
    Process::spawn("mqtt_echo.py", command.args([brokers, "0", prefix]))
}

/// A client's network namespace and the address that it connects to.
#[derive(Clone, Debug)]
pub struct Place {
    /// None: that of the test.
    pub namespace: Option<PathBuf>,
    /// Where the service is.
    pub target: SocketAddr,
}

impl Place {
    /// In the test's own namespace.
    pub fn here(target: SocketAddr) -> Self {
        Self { namespace: None, target }
    }

    fn command(&self, program: &Path) -> Command {
        let Some(namespace) = &self.namespace else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", namespace.display())).arg(program);
        command
    }

    /// A program of mosquitto's, told where to connect, and with these arguments.
    pub fn mosquitto(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.command(Path::new(program));
        command.args(["-h", &self.target.ip().to_string()]);
        command.args(["-p", &self.target.port().to_string()]).args(arguments);
        command
    }

    /// A client in Python.
    pub fn python(&self, script: &str, arguments: &[&str]) -> Command {
        let mut command = self.command(&paths::peer(script));
        command.args([self.target.ip().to_string(), self.target.port().to_string()]);
        command.args(arguments);
        command
    }

    /// A client in JavaScript.
    pub fn node(&self, script: &str, arguments: &[&str]) -> Command {
        let mut command = self.command(Path::new("node"));
        command.arg(paths::peer("node").join(script)).env("NODE_PATH", paths::node_modules());
        command.args([self.target.ip().to_string(), self.target.port().to_string()]);
        command.args(arguments);
        command
    }

    /// Runs clients of three houses in both versions, each of which checks that what it publishes
    /// comes back as [`echo_server`] sends it.
    pub fn echo_all(&self) -> Result<()> {
        for version in ["mqttv311", "mqttv5"] {
            for qos in ["0", "1", "2"] {
                let text = format!("by mosquitto with QoS {qos}");
                let arguments =
                    ["-V", version, "-q", qos, "-t", "a/b", "-e", "echo/a/b", "-m", &text];
                let mut command = self.mosquitto("mosquitto_rr", &arguments);
                let echo = run_ok("mosquitto_rr", command.args(["-W", "60"]), PATIENCE)?;
                ensure!(echo.stdout.trim() == text, "{version}, QoS {qos}: {echo:?}");
            }
        }
        for version in ["3.1.1", "5"] {
            check(&run_ok("paho", &mut self.python("mqtt_paho.py", &[version]), PATIENCE)?)?;
            check(&run_ok("MQTT.js", &mut self.node("mqtt.js", &[version]), PATIENCE)?)?;
        }
        Ok(())
    }
}

fn check(finished: &Finished) -> Result<()> {
    ensure!(finished.stdout.trim() == "echoed 30", "{finished:?}");
    Ok(())
}

/// A client by hand, of MQTT 3.1.1. Its packets are short: the remaining length is a byte.
#[derive(Debug)]
pub struct Hand(TcpStream);

impl Hand {
    /// Connects with a session that outlives the connection; whether it was there.
    pub fn connect(address: SocketAddr, client: &str) -> Result<(Self, bool)> {
        Self::greet(address, client, None)?.connected()
    }

    /// Says who it is, with a name and a password if it has them, and does not wait for the answer.
    pub fn greet(
        address: SocketAddr,
        client: &str,
        credentials: Option<(&str, &str)>,
    ) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut hand = Self(stream);
        let flags = if credentials.is_some() { 0xc0 } else { 0 };
        let mut rest = [&b"\0\x04MQTT\x04"[..], &[flags, 0, 0]].concat();
        let (user, password) = credentials.unzip();
        for field in [Some(client), user, password].into_iter().flatten() {
            rest.extend(u16::try_from(field.len())?.to_be_bytes());
            rest.extend(field.as_bytes());
        }
        ensure!(rest.len() < 0x80, "too long for this client");
        hand.send(&[&[0x10, u8::try_from(rest.len())?], &rest[..]].concat())?;
        Ok(hand)
    }

    /// Waits no longer than this for what comes next.
    pub fn set_patience(&self, patience: Duration) -> Result<()> {
        Ok(self.0.set_read_timeout(Some(patience))?)
    }

    /// Waits until it may go on; whether its session was there.
    pub fn connected(mut self) -> Result<(Self, bool)> {
        let connack = self.read()?;
        ensure!(connack[0] == 0x20 && connack[3] == 0, "{connack:?}");
        let present = connack[2] == 1;
        Ok((self, present))
    }

    /// Publishes something with QoS 2.
    pub fn publish(&mut self, dup: bool, id: u8) -> Result<()> {
        let flags = if dup { 0x3c } else { 0x34 };
        self.send(&[flags, 6, 0, 1, b'a', 0, id, b'x'])
    }

    /// Subscribes to `a` with QoS 2.
    pub fn subscribe(&mut self) -> Result<()> {
        self.send(&[0x82, 6, 0, 9, 0, 1, b'a', 2])?;
        let suback = self.read()?;
        ensure!(suback == [0x90, 3, 0, 9, 2], "{suback:?}");
        Ok(())
    }

    /// Takes a message of QoS 2 under `a`: if it comes again, its packet identifier, and what it says.
    pub fn receive(&mut self) -> Result<(bool, [u8; 2], String)> {
        let packet = self.read()?;
        ensure!(packet.len() > 7 && packet[0] & 0xf7 == 0x34, "{packet:?}");
        let text = String::from_utf8_lossy(&packet[7..]).into_owned();
        Ok((packet[0] & 0x08 != 0, [packet[5], packet[6]], text))
    }

    /// Confirms it, to the end.
    pub fn confirm(&mut self, [high, low]: [u8; 2]) -> Result<()> {
        self.send(&[0x50, 2, high, low])?;
        let pubrel = self.read()?;
        ensure!(pubrel == [0x62, 2, high, low], "{pubrel:?}");
        self.send(&[0x70, 2, high, low])
    }

    /// Makes sure that nothing was sent to it before it asks.
    pub fn ping(&mut self) -> Result<()> {
        self.send(&[0xc0, 0])?;
        let pong = self.read()?;
        ensure!(pong == [0xd0, 0], "{pong:?}");
        Ok(())
    }

    /// Sends bytes.
    pub fn send(&mut self, packet: &[u8]) -> Result<()> {
        Ok(self.0.write_all(packet)?)
    }

    /// The next packet.
    pub fn read(&mut self) -> Result<Vec<u8>> {
        let mut packet = vec![0; 2];
        self.0.read_exact(&mut packet)?;
        ensure!(packet[1] < 0x80, "too long for this client: {packet:?}");
        packet.resize(2 + usize::from(packet[1]), 0);
        self.0.read_exact(&mut packet[2..])?;
        Ok(packet)
    }
}
