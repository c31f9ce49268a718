//! Services that speak MQTT, and the clients of other houses that the tests run.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use millrace_relay::codec::ProtocolKind;
use millrace_relay::config::{MqttSection, Service};
use millrace_relay::route::IdentityKind;

use crate::paths;
use crate::process::{Finished, Process, run_ok};

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
            check(run_ok("paho", &mut self.python("mqtt_paho.py", &[version]), PATIENCE)?)?;
            check(run_ok("MQTT.js", &mut self.node("mqtt.js", &[version]), PATIENCE)?)?;
        }
        Ok(())
    }
}

fn check(finished: Finished) -> Result<()> {
    ensure!(finished.stdout.trim() == "echoed 30", "{finished:?}");
    Ok(())
}
