//! A Kafka node: a process, and a folder with everything that belongs to it.

use std::{
    fs::{self, File},
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{config, jars, wire};
use crate::{paths, process};

/// The broker's port for clients, unless it is taken or another one is asked for.
pub(crate) const DEFAULT_PORT: u16 = 9092;

const START_DEADLINE: Duration = Duration::from_secs(90);
const STOP_DEADLINE: Duration = Duration::from_secs(20);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);
const TICK: Duration = Duration::from_secs(5);

/// The range in which a free port is looked for.
const SEARCHED: Range<u16> = 20_000..30_000;

/// A small heap and a collector with one thread, because measured programs run beside the broker.
const HEAP: [&str; 3] = ["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC"];

/// A node, identified by its folder, running or not.
#[derive(Debug)]
pub(crate) struct Node {
    dir: PathBuf,
    version: String,
}

/// The process of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Broker {
    pid: Pid,
    port: u16,
}

/// How a node is started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Port for clients. 0: any free port. None: its former port, or else 9092, or else any free port.
    pub(crate) port: Option<u16>,
    /// Time without heartbeats after which its controller presumes it gone.
    pub(crate) session_timeout_ms: u32,
    /// Properties that override ours.
    pub(crate) properties: Vec<(String, String)>,
}

/// The result of a start.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Started {
    /// It was already running.
    Before(Broker),
    /// It was started.
    Now(Broker),
}

/// The state of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) enum State {
    /// There is no process.
    Stopped,
    /// The broker answers.
    Ready(Broker),
    /// The process is suspended (SIGSTOP).
    Held(Broker),
    /// The process runs, but does not answer.
    Silent(Broker),
}

impl Broker {
    /// Its address for clients.
    pub(crate) fn address(self) -> SocketAddr {
        loopback(self.port)
    }

    /// Its process id.
    pub(crate) fn pid(self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    fn answers(self) -> bool {
        wire::brokers_in_service(self.address(), ANSWER_TIMEOUT).is_ok_and(|count| count > 0)
    }

    fn is_held(self) -> bool {
        // The state follows the program's name, which is in parentheses.
        fs::read_to_string(format!("/proc/{}/stat", self.pid()))
            .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
    }
}

impl Node {
    /// The node in this folder, which need not exist yet.
    pub(crate) fn at(dir: &Path) -> Result<Self> {
        let dir = std::path::absolute(dir)?;
        // Some characters are special in Kafka's properties or in a class path.
        ensure!(
            !dir.to_string_lossy().contains([',', '\\', ':', '\n', '*']),
            "{}: choose a folder without , : * and \\ in its name",
            dir.display()
        );
        Ok(Self { dir, version: jars::VERSION.to_owned() })
    }

    /// The same node with another release of Kafka, whose jars must be in place.
    pub(crate) fn of_version(self, version: &str) -> Self {
        Self { version: version.to_owned(), ..self }
    }

    /// The node's state.
    pub(crate) fn state(&self) -> State {
        match self.broker() {
            None => State::Stopped,
            Some(broker) if broker.is_held() => State::Held(broker),
            Some(broker) if broker.answers() => State::Ready(broker),
            Some(broker) => State::Silent(broker),
        }
    }

    /// Starts the node. Returns when it serves clients.
    pub(crate) fn start(&self, options: &Options) -> Result<Started> {
        let port = options.port;
        ensure!(
            jars::present(&self.jars(), &self.version),
            "Kafka's jars are missing: run `cargo xtask setup`"
        );
        if port.is_some() && !self.dir.exists() {
            // Checked before anything is created, so that a refusal leaves nothing behind.
            self.choose_port(port)?;
        }
        fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot make {}", self.dir.display()))?;
        let _lock = self.lock()?;
        match self.state() {
            State::Stopped => {}
            State::Ready(broker) => {
                ensure_port(broker, port)?;
                return Ok(Started::Before(broker));
            }
            State::Held(broker) => bail!(
                "Kafka (pid {}) is suspended (SIGSTOP): resume it with `kill -CONT {}`",
                broker.pid(),
                broker.pid()
            ),
            State::Silent(broker) => {
                ensure_port(broker, port)?;
                self.wait_until_ready(broker, None)?;
                return Ok(Started::Before(broker));
            }
        }

        // Both are held until the broker listens.
        let clients = self.choose_port(port)?;
        let next = clients.port.checked_add(1).map(free_port).transpose()?.flatten();
        let controller = next.map_or_else(any_free_port, Ok)?;
        self.configure(clients.port, controller.port, options)?;
        let mut child = self.spawn()?;
        let pid = Pid::from_child(&child);
        let broker = Broker { pid, port: clients.port };
        let state = json!({ "pid": broker.pid(), "port": broker.port });
        fs::write(self.state_file(), state.to_string())?;
        if let Err(error) = self.wait_until_ready(broker, Some(&mut child)) {
            self.stop_broker(broker)?;
            return Err(error);
        }
        Ok(Started::Now(broker))
    }

    /// Stops the node. False if it was not running.
    pub(crate) fn stop(&self) -> Result<bool> {
        if !self.dir.is_dir() {
            return Ok(false);
        }
        let _lock = self.lock()?;
        let Some(broker) = self.broker() else {
            return Ok(false);
        };
        self.stop_broker(broker)?;
        Ok(true)
    }

    /// The broker's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("broker.log")
    }

    /// The process, if it is alive and belongs to this node.
    fn broker(&self) -> Option<Broker> {
        let state = self.saved_state()?;
        let pid = i32::try_from(state["pid"].as_i64()?).ok().and_then(Pid::from_raw)?;
        let broker = Broker { pid, port: saved_port(&state)? };
        let command_line = fs::read(format!("/proc/{}/cmdline", broker.pid())).ok()?;
        command_line
            .split(|byte| *byte == 0)
            .any(|argument| argument == self.mark().as_bytes())
            .then_some(broker)
    }

    /// The argument that identifies the process as this node's.
    fn mark(&self) -> String {
        format!("-Dmillrace.kafka.dir={}", self.dir.display())
    }

    fn saved_state(&self) -> Option<serde_json::Value> {
        serde_json::from_str(&fs::read_to_string(self.state_file()).ok()?).ok()
    }

    fn state_file(&self) -> PathBuf {
        self.dir.join("broker.json")
    }

    fn jars(&self) -> PathBuf {
        paths::kafka_jars(&self.version)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Held while the node is started or stopped, so that concurrent starts result in one node.
    fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }

    fn choose_port(&self, wanted: Option<u16>) -> Result<Claim> {
        if wanted == Some(0) {
            return any_free_port();
        }
        let saved = self.saved_state();
        let usual = saved.as_ref().and_then(saved_port).unwrap_or(DEFAULT_PORT);
        let port = wanted.unwrap_or(usual);
        if let Some(claim) = Claim::of(port)?
            && (is_free(port)? || saved.is_some_and(|state| is_freed_by_its_end(&state, port)))
        {
            return Ok(claim);
        }
        ensure!(
            wanted.is_none(),
            "port {port} is in use by another program: choose another one with --port, or let --port 0 \
             find one; `ss -ltnp 'sport = :{port}'` shows which program has it"
        );
        let other = any_free_port()?;
        process::say(format!(
            "Port {port} is in use by another program; Kafka uses {} instead.",
            other.port
        ));
        Ok(other)
    }

    /// Writes the node's files, and formats its storage if that is not done yet.
    fn configure(&self, port: u16, controller_port: u16, options: &Options) -> Result<()> {
        let properties = self.dir.join("server.properties");
        let timeout_ms = options.session_timeout_ms;
        let text = config::properties(&self.data(), port, controller_port, timeout_ms);
        let text = config::replaced(&text, &options.properties);
        fs::write(&properties, text)?;
        fs::write(self.dir.join("log4j2.xml"), config::logging(&self.log()))?;
        fs::write(self.dir.join("log4j.properties"), config::former_logging(&self.log()))?;
        if self.data().join("meta.properties").exists() {
            return Ok(());
        }
        process::step(
            "Kafka's storage",
            self.java(&["-XX:TieredStopAtLevel=1"])?
                .args(["kafka.tools.StorageTool", "format", "--cluster-id", config::CLUSTER_ID])
                .arg("--config")
                .arg(&properties),
            &self.dir.join("format.log"),
        )
    }

    fn java(&self, options: &[&str]) -> Result<Command> {
        let mut command = Command::new(jars::java()?);
        command
            .args(options)
            .arg(format!("-Dlog4j2.configurationFile={}", self.dir.join("log4j2.xml").display()))
            .arg(format!("-Dlog4j.configuration=file:{}/log4j.properties", self.dir.display()))
            .arg("-cp")
            .arg(jars::class_path(&self.jars()))
            .current_dir(&self.dir);
        Ok(command)
    }

    /// Starts the process in its own session, so that it outlives this process and its terminal.
    fn spawn(&self) -> Result<Child> {
        let output = File::create(self.dir.join("broker.out"))?;
        let java = self.java(&HEAP)?;
        Command::new("setsid")
            .arg(java.get_program())
            .arg(self.mark())
            .args(java.get_args())
            .arg("kafka.Kafka")
            .arg(self.dir.join("server.properties"))
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start Kafka with `setsid java`")
    }

    fn wait_until_ready(&self, broker: Broker, mut child: Option<&mut Child>) -> Result<()> {
        let started = Instant::now();
        let mut next_tick = started + TICK;
        while !broker.answers() {
            let ended = match child.as_mut() {
                Some(child) => child.try_wait()?.is_some(),
                None => self.broker().is_none(),
            };
            if ended {
                bail!("Kafka ended while starting.\n{}", self.complaint());
            }
            if started.elapsed() > START_DEADLINE {
                bail!(
                    "Kafka does not answer on {} after {} s.\n{}",
                    broker.address(),
                    START_DEADLINE.as_secs(),
                    self.complaint()
                );
            }
            if Instant::now() >= next_tick {
                next_tick += TICK;
                process::say(format!("    {:>4} s", started.elapsed().as_secs()));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn complaint(&self) -> String {
        let output = self.dir.join("broker.out");
        format!(
            "{}\nThe end of {}:\n{}",
            process::tail(&output, 10),
            self.log().display(),
            process::tail(&self.log(), 15)
        )
    }

    fn stop_broker(&self, broker: Broker) -> Result<()> {
        // A suspended process handles SIGTERM only once it resumes.
        for signal in [Signal::TERM, Signal::CONT] {
            send(broker, signal)?;
        }
        let terminated = Instant::now();
        while self.broker().is_some() {
            if terminated.elapsed() > STOP_DEADLINE {
                process::say(format!(
                    "Kafka (pid {}) did not stop in {} s and is killed.",
                    broker.pid(),
                    STOP_DEADLINE.as_secs()
                ));
                send(broker, Signal::KILL)?;
                break;
            }
            std::thread::sleep(POLL);
        }
        while self.broker().is_some() {
            ensure!(
                terminated.elapsed() < 2 * STOP_DEADLINE,
                "Kafka (pid {}) does not end even after SIGKILL",
                broker.pid()
            );
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

fn send(broker: Broker, signal: Signal) -> Result<()> {
    match kill_process(broker.pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("cannot signal Kafka (pid {})", broker.pid()))
        }
    }
}

fn saved_port(state: &serde_json::Value) -> Option<u16> {
    state["port"].as_u64().and_then(|port| port.try_into().ok())
}

fn ensure_port(broker: Broker, wanted: Option<u16>) -> Result<()> {
    if let Some(port) = wanted
        && port != 0
        && port != broker.port
    {
        bail!(
            "Kafka already runs on {}, not on port {port}: stop it first with \
             `cargo xtask kafka stop`, or give the second one a --dir of its own",
            broker.address()
        );
    }
    Ok(())
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A claim to a port, so that no other start of a node takes it: seconds pass between the check that it is
/// free and the broker's listening. The claim is a name of an abstract socket, which ends with the process
/// and, like a port, belongs to the network namespace.
#[derive(Debug)]
struct Claim {
    port: u16,
    _name: UnixListener,
}

impl Claim {
    /// None if another start has claimed it.
    fn of(port: u16) -> Result<Option<Self>> {
        let address = UnixAddr::from_abstract_name(format!("millrace-kafka-port-{port}"))?;
        match UnixListener::bind_addr(&address) {
            Ok(name) => Ok(Some(Self { port, _name: name })),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot claim port {port}")),
        }
    }
}

/// Claims the port, if neither a program nor another start has it.
fn free_port(port: u16) -> Result<Option<Claim>> {
    // In this order: when another start releases its claim, its broker is already listening.
    let Some(claim) = Claim::of(port)? else { return Ok(None) };
    Ok(is_free(port)?.then_some(claim))
}

/// Free ports for the clients of this many nodes. The port after each is free too, for the controller.
pub(crate) fn free_port_pairs(nodes: usize) -> Result<Vec<u16>> {
    // Claims are held until all ports are chosen, so that none is chosen twice.
    let mut pairs = Vec::new();
    while pairs.len() < nodes {
        let clients = any_free_port()?;
        if let Some(controller) = free_port(clients.port + 1)? {
            pairs.push((clients, controller));
        }
    }
    Ok(pairs.iter().map(|(clients, _)| clients.port).collect())
}

fn is_free(port: u16) -> Result<bool> {
    match TcpListener::bind(loopback(port)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot listen on port {port}")),
    }
}

/// A free port below the range that the kernel gives to outgoing connections. Otherwise a client that keeps
/// trying to reach a stopped broker could be given the broker's port, connect to itself, and keep the
/// broker from coming back.
fn any_free_port() -> Result<Claim> {
    // The search starts at a place that depends on the process, so that two rarely collide.
    let offset = u16::try_from(std::process::id() % u32::from(SEARCHED.end - SEARCHED.start))?;
    for port in (SEARCHED.start + offset..SEARCHED.end).chain(SEARCHED) {
        // The controller uses the next port.
        if let Some(claim) = free_port(port)?
            && free_port(port + 1)?.is_some()
        {
            return Ok(claim);
        }
    }
    bail!("no free port between {} and {}", SEARCHED.start, SEARCHED.end);
}

/// True if an ending process of this node had the port, and it is free now.
fn is_freed_by_its_end(state: &serde_json::Value, port: u16) -> bool {
    let former = Path::new("/proc").join(state["pid"].to_string());
    let asked = Instant::now();
    while saved_port(state) == Some(port) && former.exists() && asked.elapsed() < STOP_DEADLINE {
        if is_free(port).is_ok_and(|free| free) {
            return true;
        }
        std::thread::sleep(POLL);
    }
    is_free(port).is_ok_and(|free| free)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Node {
        let dir = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Node::at(&dir).unwrap()
    }

    #[test]
    fn nodes_that_start_together_have_no_port_in_common_and_none_that_is_taken() {
        let first = free_port_pairs(1).unwrap()[0];
        let taken = TcpListener::bind(loopback(first + 2)).unwrap();
        let ports = free_port_pairs(3).unwrap();
        let all: std::collections::BTreeSet<u16> =
            ports.iter().flat_map(|port| [*port, port + 1]).collect();
        assert_eq!(all.len(), 6, "{ports:?}");
        assert!(!all.contains(&taken.local_addr().unwrap().port()), "{ports:?}");
    }

    #[test]
    fn a_process_without_the_nodes_mark_is_not_its_broker() {
        let node = node("mark");
        let state = json!({ "pid": std::process::id(), "port": 9092 });
        fs::write(node.state_file(), state.to_string()).unwrap();
        assert!(matches!(node.state(), State::Stopped));
        assert!(!node.stop().unwrap());
        fs::remove_dir_all(&node.dir).unwrap();
    }

    #[test]
    fn a_port_in_use_is_refused_if_asked_for_and_avoided_if_not() {
        let node = node("port");
        let taken = TcpListener::bind(loopback(0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = node.choose_port(Some(port)).unwrap_err().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
        fs::write(node.state_file(), json!({ "port": port }).to_string()).unwrap();
        assert_ne!(node.choose_port(None).unwrap().port, port);
        fs::remove_dir_all(&node.dir).unwrap();
    }

    #[test]
    fn who_starts_at_the_same_time_takes_another_port() {
        let first = any_free_port().unwrap();
        let second = any_free_port().unwrap();
        assert_ne!(first.port, second.port);
        assert!(Claim::of(first.port).unwrap().is_none());
        let port = first.port;
        drop(first);
        assert!(Claim::of(port).unwrap().is_some());
    }
}
