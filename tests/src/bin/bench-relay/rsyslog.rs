//! rsyslog with a configuration of our own, as good a one as we know: no parsing, the record is the
//! line as it came, batches of the size of its queue's, the same producer settings as the relay's.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_tests::process::{Process, run_ok, wait_until};

const PROGRAM: &str = "/usr/sbin/rsyslogd";
const START_PATIENCE: Duration = Duration::from_secs(20);

/// What both producers are told.
pub(crate) const PRODUCER: [(&str, &str); 4] = [
    ("acks", "all"),
    ("enable.idempotence", "true"),
    ("linger.ms", "0.5"),
    ("queue.buffering.max.messages", "1000000"),
];

/// Refuses a machine without it.
pub(crate) fn check() -> Result<()> {
    ensure!(
        Path::new(PROGRAM).is_file(),
        "{PROGRAM} is not there: `cargo xtask setup --bench` installs it"
    );
    Ok(())
}

/// Its version, in its own words.
pub(crate) fn version() -> Result<String> {
    let said = run_ok("rsyslogd -v", Command::new(PROGRAM).arg("-v"), START_PATIENCE)?.stdout;
    Ok(said.lines().next().unwrap_or_default().trim().to_owned())
}

/// A running one. Dropping it ends it and removes its files.
#[derive(Debug)]
pub(crate) struct Rsyslog {
    process: Option<Process>,
    directory: PathBuf,
}

impl Rsyslog {
    /// Starts it, and waits until it listens.
    pub(crate) fn start(address: SocketAddr, brokers: &str, topic: &str) -> Result<Self> {
        let directory =
            std::env::temp_dir().join(format!("millrace-rsyslog-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let mut rsyslog = Self { process: None, directory };
        let file = rsyslog.directory.join("rsyslog.conf");
        std::fs::write(&file, configuration(address, brokers, topic, &rsyslog.directory))?;
        let mut command = Command::new(PROGRAM);
        command.arg("-n").arg("-f").arg(&file).arg("-i").arg(rsyslog.directory.join("pid"));
        let mut process = Process::spawn("rsyslogd", &mut command)?;
        wait_until(START_PATIENCE, "rsyslogd to listen", || {
            ensure!(process.is_running()?, "rsyslogd has ended: {}", process.stderr());
            Ok(TcpStream::connect(address).is_ok())
        })?;
        rsyslog.process = Some(process);
        Ok(rsyslog)
    }

    pub(crate) fn id(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("rsyslogd does not run")?.id())
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        self.process.take();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn configuration(address: SocketAddr, brokers: &str, topic: &str, directory: &Path) -> String {
    let quoted = |items: &mut dyn Iterator<Item = String>| {
        items.map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(",")
    };
    let brokers = quoted(&mut brokers.split(',').map(str::to_owned));
    let producer = quoted(&mut PRODUCER.iter().map(|(key, value)| format!("{key}={value}")));
    let (ip, port) = (address.ip(), address.port());
    let directory = directory.display();
    format!(
        r#"global(workDirectory="{directory}")
module(load="imptcp" threads="1")
module(load="omkafka")
module(load="pmnull")
parser(name="whole" type="pmnull")
template(name="line" type="string" string="%rawmsg%")
ruleset(name="bench" parser="whole" queue.type="FixedArray" queue.size="200000"
        queue.dequeueBatchSize="1024" queue.workerThreads="1") {{
  action(type="omkafka" broker=[{brokers}] topic="{topic}" template="line"
         partitions.auto="on" resubmitOnFailure="on" confParam=[{producer}])
}}
input(type="imptcp" address="{ip}" port="{port}" ruleset="bench")
"#
    )
}
