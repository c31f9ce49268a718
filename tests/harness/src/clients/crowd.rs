//! Many clients of a service of lines that echoes: each sends numbered lines, some at a time, and
//! wants every echo once and in order, whatever happens to servers and relays meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::clients::tcp::Client;
use crate::clients::wire::lines;
use crate::system::process::wait_until;

const PATIENCE: Duration = Duration::from_mins(5);
/// How long a client waits for an echo: a machine whose disk stands still holds the broker up for
/// minutes.
const CLIENT_PATIENCE: Duration = Duration::from_mins(4);
/// Lines that a client sends before it waits for their echoes.
const BURST: u64 = 3;
/// A client's own; it needs little, and there are many.
const STACK_BYTES: usize = 256 << 10;

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    echoed: AtomicU64,
}

/// The clients, a thread each. Dropping it ends them.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Result<()>>>,
}

impl Crowd {
    /// Connects one client to each of these addresses. Each rests for `pause` in every burst, so that
    /// the load is bounded.
    pub fn start(addresses: &[SocketAddr], pause: Duration) -> Result<Self> {
        let mut crowd = Self { shared: Arc::default(), clients: Vec::new() };
        for (number, address) in addresses.iter().enumerate() {
            let client = Client::connect_from(address.ip(), *address, lines())?;
            client.set_patience(CLIENT_PATIENCE)?;
            let shared = crowd.shared.clone();
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            crowd.clients.push(thread.spawn(move || {
                talk(client, pause, &shared).with_context(|| format!("client {number}"))
            })?);
        }
        Ok(crowd)
    }

    /// Echoes so far.
    pub fn echoed(&self) -> u64 {
        self.shared.echoed.load(SeqCst)
    }

    /// Waits for so many echoes more.
    pub fn wait_echoed(&mut self, more: u64) -> Result<()> {
        let goal = self.echoed() + more;
        wait_until(PATIENCE, "the clients to get their echoes", || {
            self.check()?;
            Ok(self.echoed() >= goal)
        })
    }

    /// Refuses a client that has given up, and says why it has.
    pub fn check(&mut self) -> Result<()> {
        let Some(ended) = self.clients.iter().position(JoinHandle::is_finished) else {
            return Ok(());
        };
        let ended = self.clients.swap_remove(ended).join();
        ended
            .map_err(|_panic| anyhow!("a client has panicked"))?
            .context("a client has given up")?;
        bail!("a client has ended before it was told to")
    }

    /// Ends them, and says how many lines were echoed. The first one that has seen something wrong
    /// is the error.
    pub fn stop(mut self) -> Result<u64> {
        self.shared.stop.store(true, SeqCst);
        for client in self.clients.drain(..) {
            client.join().map_err(|_panic| anyhow!("a client has panicked"))??;
        }
        Ok(self.echoed())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

fn talk(mut client: Client, pause: Duration, shared: &Shared) -> Result<()> {
    let mut next = 0_u64;
    while !shared.stop.load(SeqCst) {
        let burst: Vec<u8> = (next..next + BURST)
            .flat_map(|number| lines().framed(number.to_string().as_bytes()))
            .collect();
        // With a line in two pieces.
        let (first, rest) = burst.split_at(burst.len() / 2);
        client.send_bytes(first)?;
        std::thread::sleep(pause);
        client.send_bytes(rest)?;
        for number in next..next + BURST {
            let echo = client.receive().with_context(|| format!("line {number}"))?;
            let echo = String::from_utf8(echo)?;
            ensure!(echo == number.to_string(), "`{echo}` came, and not {number}");
            shared.echoed.fetch_add(1, SeqCst);
        }
        next += BURST;
    }
    client.end()?;
    client.wait_end()
}
