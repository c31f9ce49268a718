//! One instance of Millrace on a gateway host: its configuration, its gateway, its relay process.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use millrace_relay::config::Config;
use millrace_relay::gateway::object::VARIABLE;
use millrace_relay::tune;
use rustix::process::Signal;
use serde_json::Value;

use crate::net::netns;
use crate::system::paths;
use crate::system::process::{Finished, Process, run, run_ok};

const COMMAND_PATIENCE: Duration = Duration::from_secs(30);
/// Longer than a relay itself waits at its start (`registry.start_timeout_ms` is a minute): why it gave
/// up is its own to tell.
const START_PATIENCE: Duration = Duration::from_mins(3);
const STOP_PATIENCE: Duration = Duration::from_secs(90);

/// An instance. Dropping it stops the relay and unloads the gateway.
#[derive(Debug)]
pub struct Instance {
    /// As written to [`Self::config_file`].
    pub config: Config,
    program: PathBuf,
    directory: PathBuf,
    object: Option<PathBuf>,
    gateway: Option<PathBuf>,
    loaded: bool,
    relay: Option<Process>,
    /// Of the relay's process alone.
    environment: Vec<(String, PathBuf)>,
}

impl Instance {
    /// Writes the configuration. `gateway` is the network namespace of the gateway host; without
    /// one there is no XDP, and the relay listens on 127.0.0.1 where it is started.
    pub fn new(config: Config, gateway: Option<&Path>) -> Result<Self> {
        let name = format!("millrace-{}-{}", config.gateway.instance, std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory)?;
        let instance = Self {
            program: paths::relay()?,
            gateway: gateway.map(Path::to_owned),
            object: gateway.map(|_| netns::bpf_object()).transpose()?,
            config,
            directory,
            loaded: false,
            relay: None,
            environment: Vec::new(),
        };
        instance.write_config()?;
        Ok(instance)
    }

    /// What the relay's process has in its environment, from its next start on.
    pub fn set_environment(&mut self, environment: Vec<(String, PathBuf)>) {
        self.environment = environment;
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("millrace.toml")
    }

    /// The `relay` program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Another relay's program, and what it reads instead of this one's configuration.
    pub fn use_program(&mut self, program: &Path, configuration: &str) -> Result<()> {
        program.clone_into(&mut self.program);
        Ok(std::fs::write(self.config_file(), configuration)?)
    }

    /// Writes the configuration anew, as it was changed: for the commands and the start that follow.
    pub fn write_config(&self) -> Result<()> {
        self.config.check()?;
        Ok(std::fs::write(self.config_file(), toml::to_string(&self.config)?)?)
    }

    /// A `relay` command line, in the gateway host's network namespace if `inside`.
    pub fn command(&self, verb: &str, inside: bool) -> Command {
        let mut command = match &self.gateway {
            Some(namespace) if inside => {
                let mut command = Command::new("nsenter");
                let mut net = std::ffi::OsString::from("--net=");
                net.push(namespace);
                command.arg(net).arg(&self.program);
                command
            }
            _ => Command::new(&self.program),
        };
        command.args(verb.split(' ')).arg("--config").arg(self.config_file());
        command.envs(self.object.as_ref().map(|object| (VARIABLE, object)));
        command
    }

    /// `relay servers VERB ID`: an operator's order.
    pub fn order(&self, verb: &str, id: &str) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["servers", verb, "--config"]).arg(self.config_file()).arg(id);
        run_ok("relay servers", &mut command, COMMAND_PATIENCE).map(drop)
    }

    /// Loads the gateway.
    pub fn load(&mut self) -> Result<()> {
        run_ok("relay load", &mut self.command("load", true), COMMAND_PATIENCE)?;
        self.loaded = true;
        Ok(())
    }

    /// Tries to load the gateway, and tells how it went.
    pub fn try_load(&self) -> Result<Finished> {
        run("relay load", &mut self.command("load", true), COMMAND_PATIENCE)
    }

    /// Unloads the gateway.
    pub fn unload(&mut self) -> Result<()> {
        run_ok("relay unload", &mut self.command("unload", true), COMMAND_PATIENCE)?;
        self.loaded = false;
        Ok(())
    }

    /// Starts the relay and waits until it listens.
    pub fn start(&mut self) -> Result<()> {
        let place: &[&str] =
            if self.gateway.is_none() { &["--no-gateway", "127.0.0.1"] } else { &[] };
        self.start_with(place)
    }

    /// Starts a relay without gateway at another loopback address, and waits until it listens.
    pub fn start_at(&mut self, address: &str) -> Result<()> {
        self.start_with(&["--no-gateway", address])
    }

    /// Starts a relay without gateway for the connections that a TPROXY rule of this network
    /// namespace sends there, and waits until it listens.
    pub fn start_transparent(&mut self, namespace: &Path) -> Result<()> {
        let namespace = namespace.to_str().context("a namespace's name is no UTF-8")?;
        self.start_with(&["--no-gateway", "--transparent", "--netns", namespace])
    }

    fn start_with(&mut self, arguments: &[&str]) -> Result<()> {
        if self.relay.is_some() {
            bail!("the relay runs already");
        }
        let mut command = self.command("run", false);
        command.args(arguments).envs(self.environment.iter().cloned());
        let relay = Process::spawn("relay run", &mut command)?;
        relay.wait_line("relay ready:", START_PATIENCE)?;
        self.relay = Some(relay);
        Ok(())
    }

    /// Runs the relay when it is expected to refuse.
    pub fn try_start(&self) -> Result<Finished> {
        run("relay run", &mut self.command("run", false), START_PATIENCE)
    }

    /// The relay's process id.
    pub fn process_id(&self) -> Result<u32> {
        Ok(self.relay.as_ref().context("the relay does not run")?.id())
    }

    /// Refuses a relay that has ended by itself.
    pub fn check_running(&mut self) -> Result<()> {
        let relay = self.relay.as_mut().context("the relay does not run")?;
        if !relay.is_running()? {
            bail!("the relay ended by itself; it said:\n{}", relay.stderr());
        }
        Ok(())
    }

    /// How the relay has ended, if it has; it may be started again then.
    pub fn take_ended(&mut self) -> Result<Option<Finished>> {
        let relay = self.relay.as_mut().context("the relay does not run")?;
        if relay.is_running()? {
            return Ok(None);
        }
        let relay = self.relay.take().context("just seen")?;
        relay.wait(COMMAND_PATIENCE).map(Some)
    }

    /// What the relay has said on standard error.
    pub fn relay_stderr(&self) -> String {
        self.relay.as_ref().map(Process::stderr).unwrap_or_default()
    }

    /// Sends the relay a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.relay.as_ref().context("the relay does not run")?.signal(signal)
    }

    /// Kills the relay as `kill -9` does.
    pub fn kill(&mut self) -> Result<()> {
        let relay = self.relay.take().context("the relay does not run")?;
        relay.signal(Signal::KILL)?;
        relay.wait(COMMAND_PATIENCE).map(drop)
    }

    /// Stops the relay in good order and returns its last words.
    pub fn stop(&mut self) -> Result<Value> {
        let relay = self.relay.take().context("the relay does not run")?;
        relay.signal(Signal::TERM)?;
        let finished = relay.wait(STOP_PATIENCE)?;
        if !finished.status.success() {
            bail!("the relay's stop failed ({}): {}", finished.status, finished.stderr);
        }
        let last = finished.stdout.lines().next_back().unwrap_or_default();
        let last: Value = serde_json::from_str(last)
            .with_context(|| format!("the relay's last line is not JSON: {last}"))?;
        Ok(last["stopped"].clone())
    }

    /// The relay's counters, from its control socket.
    pub fn stats(&self) -> Result<Stats> {
        let path = self.config.control_socket();
        let mut stream = UnixStream::connect(&path)
            .with_context(|| format!("no relay answers at {}", path.display()))?;
        stream.set_read_timeout(Some(COMMAND_PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let value = serde_json::from_str(&text)
            .with_context(|| format!("the control socket's answer is not JSON: {text}"))?;
        Ok(Stats(value))
    }

    /// What `relay status` says to programs.
    pub fn status(&self) -> Result<Value> {
        let mut command = self.command("status", true);
        let status = run_ok("relay status", command.arg("--json"), COMMAND_PATIENCE)?;
        serde_json::from_str(status.stdout.trim())
            .with_context(|| format!("`relay status` is not JSON: {}", status.stdout))
    }

    /// Packets by verdict, from `relay status`.
    pub fn verdicts(&self) -> Result<Value> {
        let status = self.status()?;
        let verdicts = &status["gateway"]["verdicts"];
        ensure!(verdicts.is_object(), "`relay status` has no verdicts: {status}");
        Ok(verdicts.clone())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.relay.is_some()
            && let Err(error) = self.stop()
        {
            eprintln!("{error:#}");
        }
        if self.loaded
            && let Err(error) = self.unload()
        {
            eprintln!("{error:#}");
        }
        if self.gateway.is_none() {
            // What a relay that was killed has left; with a gateway it is `unload` that removes it.
            let _ = tune::clear(&tune::place(&self.config));
            let _ = std::fs::remove_dir_all(self.config.run_directory());
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The relay's counters.
#[derive(Clone, Debug)]
pub struct Stats(pub Value);

impl Stats {
    /// All of them.
    pub const fn value(&self) -> &Value {
        &self.0
    }

    /// A counter.
    pub fn count(&self, name: &str) -> Result<u64> {
        self.0[name].as_u64().with_context(|| format!("the relay reports no {name}: {}", self.0))
    }

    /// A counter with a reason; one that never happened need not be reported.
    pub fn count_by(&self, name: &str, reason: &str) -> Result<u64> {
        Ok(self.reasons(name)?.get(reason).and_then(Value::as_u64).unwrap_or_default())
    }

    /// All reasons of a counter together.
    pub fn total(&self, name: &str) -> Result<u64> {
        Ok(self.reasons(name)?.values().filter_map(Value::as_u64).sum())
    }

    /// Associations of a service's servers, by server.
    pub fn associations(&self, service: &str) -> Result<BTreeMap<String, u64>> {
        let servers = self.reasons("associations")?.get(service);
        let servers = servers.with_context(|| format!("no associations of {service}"))?;
        Ok(serde_json::from_value(servers.clone())?)
    }

    /// Processor time of the process in microseconds, user and system.
    pub fn cpu_us(&self) -> Result<(u64, u64)> {
        let part = |name: &str| self.0["cpu_us"][name].as_u64().context("no processor time");
        Ok((part("user")?, part("system")?))
    }

    fn reasons(&self, name: &str) -> Result<&serde_json::Map<String, Value>> {
        let reasons = self.0[name].as_object();
        reasons.with_context(|| format!("the relay reports no {name} by reason: {}", self.0))
    }
}
