//! A site that is served by way of Kafka, and what its clients see of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_relay::codec::ProtocolKind;
use millrace_relay::config::Service;

use crate::dice::Dice;
use crate::system::paths;
use crate::system::process::{Process, run_ok};

const PATIENCE: Duration = Duration::from_mins(1);
/// Sizes of the files that are made beside those of the site, in bytes.
const SIZES: [usize; 9] = [0, 1, 4095, 65_535, 65_536, 65_537, 200_000, 1 << 20, 10 << 20];

/// A service of HTTP with parts of 64 KiB.
pub fn speak_http(service: &mut Service) {
    (service.protocol, service.framing) = (ProtocolKind::Http, None);
    service.max_message_bytes = 65_536;
}

/// A site in a folder of its own, which goes with it.
#[derive(Debug)]
pub struct Site {
    folder: PathBuf,
    /// Its files by name.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Site {
    /// The files of `site` in this package, and some of many sizes.
    pub fn new(name: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("millrace-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(paths::site())? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().context("a name that is no UTF-8")?;
            files.insert(name, std::fs::read(entry.path())?);
        }
        for size in SIZES {
            let mut dice = Dice::new(size as u64);
            let byte = |_| u8::try_from(dice.below(256)).expect("a byte");
            files.insert(format!("size-{size}"), (0..size).map(byte).collect());
        }
        for (name, content) in &files {
            std::fs::write(folder.join(name), content)?;
        }
        Ok(Self { folder, files })
    }

    /// A file in the folder, for what clients write.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The server of its files.
    pub fn serve(&self, brokers: &str, partition: u16, prefix: &str) -> Result<Process> {
        let mut command = Command::new("/usr/bin/python3");
        command.arg(paths::site_server());
        command.args([brokers, &partition.to_string(), prefix]).arg(&self.folder);
        Process::spawn("site.py", &mut command)
    }

    /// Gets every file with one curl, over one connection, and compares every byte.
    pub fn check_with_curl(&self, curl: Command, at: SocketAddr) -> Result<()> {
        let mut curl = quiet(curl);
        for name in self.files.keys() {
            curl.arg("-o")
                .arg(self.path(&format!("{name}.got")))
                .arg(format!("http://{at}/{name}"));
        }
        let connects = run_ok("curl", curl.args(["-w", "%{num_connects} "]), PATIENCE)?.stdout;
        let connects: usize =
            connects.split_whitespace().map(|count| count.parse().unwrap_or(99)).sum();
        ensure!(connects == 1, "curl needed {connects} connections");
        for (name, content) in &self.files {
            let got = std::fs::read(self.path(&format!("{name}.got")))?;
            ensure!(got == *content, "{name}: {} bytes, not {}", got.len(), content.len());
        }
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn quiet(mut curl: Command) -> Command {
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "50", "--noproxy", "*"]);
    curl
}

/// What curl gets, as bytes of Latin 1.
pub fn curl(arguments: &[&str]) -> Result<String> {
    Ok(run_ok("curl", quiet(Command::new("curl")).args(arguments), PATIENCE)?.stdout)
}

/// Renders a page with a browser in the network namespace of a host: the document after its scripts
/// have run, and a picture of it.
pub fn browse(chromium: Command, url: &str, profile: &Path, picture: &Path) -> Result<String> {
    let mut chromium = chromium;
    chromium
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--no-first-run", "--disable-background-networking", "--disable-component-update"])
        .args([
            "--disable-sync",
            "--disable-default-apps",
            "--no-proxy-server",
            "--hide-scrollbars",
        ])
        .args(["--window-size=800,560", "--virtual-time-budget=20000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--screenshot={}", picture.display()))
        .arg(url);
    Ok(run_ok("chromium", &mut chromium, PATIENCE)?.stdout)
}
