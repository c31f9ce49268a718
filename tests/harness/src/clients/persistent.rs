//! Clients that do not give up: each sends one line after another, waits for its echo, and connects
//! anew when its connection ends. What was echoed was acknowledged.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// How long an echo is waited for: longer than any outage that a test makes.
const PATIENCE: Duration = Duration::from_mins(2);
/// How long a client waits before it tries a relay again that it could not reach.
const RETRY: Duration = Duration::from_millis(50);

/// What one client has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Lines whose echo came, in order. No two lines of a fleet are alike.
    pub echoed: Vec<String>,
    /// Lines that were sent on a connection that ended before their echo came.
    pub unanswered: Vec<String>,
    /// Echoes that came again: replies are promised at least once.
    pub repeated: u64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    echoes: Vec<AtomicU64>,
    connects: AtomicU64,
}

/// The clients, a thread each.
#[derive(Debug)]
pub struct Persistent {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Result<Seen>>>,
}

impl Persistent {
    /// Starts so many, which go round the relays' addresses.
    pub fn start(clients: usize, relays: &[SocketAddr]) -> Self {
        let shared = Arc::new(Shared {
            echoes: (0..clients).map(|_| AtomicU64::new(0)).collect(),
            ..Shared::default()
        });
        let clients = (0..clients)
            .map(|number| {
                let (shared, relays) = (shared.clone(), relays.to_vec());
                std::thread::spawn(move || live(number, &relays, &shared))
            })
            .collect();
        Self { shared, clients }
    }

    /// Echoes that have come, by client.
    pub fn echoes(&self) -> Vec<u64> {
        self.shared.echoes.iter().map(|count| count.load(Ordering::SeqCst)).collect()
    }

    /// Waits until every client has got so many more echoes than it had then.
    pub fn wait_for_echoes(&self, since: &[u64], more: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let late: Vec<usize> = (self.echoes().iter().zip(since).enumerate())
                .filter(|(_, (now, then))| **now < **then + more)
                .map(|(client, _)| client)
                .collect();
            if late.is_empty() {
                return Ok(());
            }
            if let Some(dead) = late.iter().find(|client| self.clients[**client].is_finished()) {
                bail!("client {dead} has given up");
            }
            ensure!(Instant::now() < deadline, "clients {late:?} got no echo in {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Connections made so far.
    pub fn connects(&self) -> u64 {
        self.shared.connects.load(Ordering::SeqCst)
    }

    /// Ends them, each after the echo that it waits for, and tells what they have seen.
    pub fn stop(self) -> Result<Vec<Seen>> {
        self.shared.stop.store(true, Ordering::SeqCst);
        (self.clients.into_iter().enumerate())
            .map(|(number, client)| {
                let seen =
                    client.join().map_err(|_| anyhow::anyhow!("client {number} panicked"))?;
                seen.with_context(|| format!("client {number}"))
            })
            .collect()
    }
}

fn live(number: usize, relays: &[SocketAddr], shared: &Shared) -> Result<Seen> {
    let (mut seen, mut line, mut turn) = (Seen::default(), 0_u64, number);
    let mut connected_at = Instant::now();
    while !shared.stop.load(Ordering::SeqCst) {
        let relay = relays[turn % relays.len()];
        turn += 1;
        let Ok(stream) = TcpStream::connect_timeout(&relay, PATIENCE) else {
            ensure!(connected_at.elapsed() < PATIENCE, "no relay takes connections");
            std::thread::sleep(RETRY);
            continue;
        };
        connected_at = Instant::now();
        shared.connects.fetch_add(1, Ordering::SeqCst);
        talk(number, stream, &mut line, &mut seen, shared)?;
    }
    Ok(seen)
}

/// Until the connection ends or the client is told to. Each line is sent once. An echo of another line
/// than the last is one of this connection's that comes again, or was meant for somebody else.
fn talk(
    number: usize,
    mut stream: TcpStream,
    line: &mut u64,
    seen: &mut Seen,
    shared: &Shared,
) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let of_this_connection = seen.echoed.len();
    while !shared.stop.load(Ordering::SeqCst) {
        let sent = format!("client {number} line {line}");
        *line += 1;
        if stream.write_all(format!("{sent}\n").as_bytes()).is_err() {
            seen.unanswered.push(sent);
            return Ok(());
        }
        loop {
            let mut echo = String::new();
            match answers.read_line(&mut echo) {
                Ok(_) if echo.ends_with('\n') => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    bail!("no echo of `{sent}` in {PATIENCE:?}");
                }
                Ok(_) | Err(_) => {
                    seen.unanswered.push(sent);
                    return Ok(());
                }
            }
            let echo = echo.trim_end();
            if echo == sent {
                break;
            }
            let again = seen.echoed[of_this_connection..].iter().any(|line| line == echo);
            ensure!(again, "sent `{sent}`, and got `{echo}`");
            seen.repeated += 1;
        }
        seen.echoed.push(sent);
        shared.echoes[number].fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}
