//! A server host's own TCP listeners: what a client reaches when nothing is diverted.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use millrace_relay::gateway::in_namespace;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

use crate::system::process::run_ok;

/// What the listener says first, so that a client knows whom it has reached.
pub const BANNER: &[u8] = b"ordinary\n";
const PATIENCE: Duration = Duration::from_secs(10);

/// Listeners in a server host's namespace, and a counter of the packets that come to the first of
/// their ports. After [`BANNER`] they echo.
#[derive(Debug)]
pub struct OrdinaryServer {
    namespace: PathBuf,
    accepted: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl OrdinaryServer {
    /// Listens on each port of `address`; packets to `ports[0]` are counted.
    pub fn start(namespace: &Path, address: std::net::Ipv4Addr, ports: &[u16]) -> Result<Self> {
        let listeners = in_namespace(namespace, || {
            let bind = |port: &u16| TcpListener::bind((address, *port));
            ports.iter().map(bind).collect::<std::io::Result<Vec<_>>>()
        })?
        .with_context(|| format!("cannot listen on {address} in {}", namespace.display()))?;
        count_packets(namespace, ports[0])?;
        let accepted = Arc::new(AtomicU64::new(0));
        let first = SocketAddr::from((address, ports[0]));
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let counter = Arc::clone(&accepted);
        let thread = std::thread::Builder::new().name("ordinary".to_owned()).spawn(move || {
            runtime.block_on(async {
                for listener in listeners {
                    let is_first = listener.local_addr().is_ok_and(|local| local == first);
                    tokio::spawn(serve(listener, is_first.then(|| Arc::clone(&counter))));
                }
                let _ = stopped.await;
            });
        })?;
        let (stop, thread) = (Some(stop), Some(thread));
        Ok(Self { namespace: namespace.to_owned(), accepted, stop, thread })
    }

    /// Connections accepted on the first port.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Packets that came to the first port.
    pub fn packets(&self) -> Result<u64> {
        let mut command = nft(&self.namespace);
        command.args(["-j", "list", "counter", "inet", "harness", "ruled"]);
        let text = run_ok("nft", &mut command, PATIENCE)?.stdout;
        let list: Value = serde_json::from_str(&text)?;
        let entries = list["nftables"].as_array().context("nft lists nothing")?;
        let packets = entries.iter().find_map(|entry| entry["counter"]["packets"].as_u64());
        packets.context("nft lists no counter")
    }
}

impl Drop for OrdinaryServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, counter: Option<Arc<AtomicU64>>) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        if let Some(counter) = &counter {
            counter.fetch_add(1, Relaxed);
        }
        tokio::spawn(async move {
            stream.write_all(BANNER).await?;
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await
        });
    }
}

fn count_packets(namespace: &Path, port: u16) -> Result<()> {
    let rules = format!(
        "table inet harness {{ counter ruled {{ }}; chain first {{ \
         type filter hook prerouting priority -400; tcp dport {port} counter name ruled; }}; }}"
    );
    run_ok("nft", nft(namespace).arg(rules), PATIENCE).map(drop)
}

fn nft(namespace: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).arg("nft");
    command
}
