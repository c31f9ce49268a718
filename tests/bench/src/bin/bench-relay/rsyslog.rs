//! rsyslog with a configuration of our own: as it comes, and as good as we know. In both the record is
//! the line as it came, and the producer has the relay's settings.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_harness::system::process::{Process, run_ok, wait_until};

use crate::measure::Setting;

const PROGRAM: &str = "/usr/sbin/rsyslogd";
const START_PATIENCE: Duration = Duration::from_secs(20);

/// What every producer but the relay's own is told; with these it has the relay's guarantees.
pub(crate) fn producer(linger_us: u32) -> [(&'static str, String); 4] {
    [
        ("acks", "all".to_owned()),
        ("enable.idempotence", "true".to_owned()),
        ("linger.ms", (f64::from(linger_us) / 1000.0).to_string()),
        ("queue.buffering.max.messages", "1000000".to_owned()),
    ]
}

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

/// How it is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tuning {
    /// Debian's defaults: its parsers, its main queue.
    None,
    /// No parsing, one receiving thread, a queue with batches of 1024 and one thread behind it.
    Best,
}

/// A running one. Dropping it ends it and removes its files.
#[derive(Debug)]
pub(crate) struct Rsyslog {
    process: Option<Process>,
    directory: PathBuf,
}

impl Rsyslog {
    /// Starts it, and waits until it listens.
    pub(crate) fn start(
        tuning: Tuning,
        address: SocketAddr,
        setting: &Setting<'_>,
        topic: &str,
    ) -> Result<Self> {
        let directory =
            std::env::temp_dir().join(format!("millrace-rsyslog-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let mut rsyslog = Self { process: None, directory };
        let file = rsyslog.directory.join("rsyslog.conf");
        std::fs::write(&file, configuration(tuning, address, setting, topic, &rsyslog.directory))?;
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

fn configuration(
    tuning: Tuning,
    address: SocketAddr,
    setting: &Setting<'_>,
    topic: &str,
    directory: &Path,
) -> String {
    let quoted = |items: &mut dyn Iterator<Item = String>| {
        items.map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(",")
    };
    let brokers = quoted(&mut setting.brokers.split(',').map(str::to_owned));
    let producer = producer(crate::measure::linger_of_others(setting.linger_us));
    let producer = quoted(&mut producer.iter().map(|(key, value)| format!("{key}={value}")));
    let (ip, port) = (address.ip(), address.port());
    let directory = directory.display();
    let (module, parser, queue) = match tuning {
        Tuning::None => ("", "", ""),
        Tuning::Best => (
            r#" threads="1""#,
            r#"module(load="pmnull") parser(name="whole" type="pmnull")"#,
            r#" parser="whole" queue.type="FixedArray" queue.size="200000"
             queue.dequeueBatchSize="1024" queue.workerThreads="1""#,
        ),
    };
    format!(
        r#"global(workDirectory="{directory}")
module(load="imptcp"{module})
module(load="omkafka")
{parser}
template(name="line" type="string" string="%rawmsg%")
ruleset(name="bench"{queue}) {{
  action(type="omkafka" broker=[{brokers}] topic="{topic}" template="line"
         partitions.auto="on" resubmitOnFailure="on" confParam=[{producer}])
}}
input(type="imptcp" address="{ip}" port="{port}" ruleset="bench")
"#
    )
}
