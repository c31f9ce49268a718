//! Traffic that accounts for every packet: numbered datagrams and streams, echoed while something
//! is done to the path.

use std::collections::HashSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_relay::config::Config;
use millrace_relay::gateway::FlowTable;

use crate::gateway::fake_relay::{FakeRelay, Pulse, accept_now};
use crate::net::netns::Host;
use crate::net::uninterrupted;

/// Between two datagrams.
const DATAGRAM_EVERY: Duration = Duration::from_micros(500);
/// Most datagrams on their way: fewer than the smallest buffer between the two ends holds, so that
/// none is lost but by the path.
const WINDOW: usize = 64;
/// Between two writes of a stream.
const WRITE_EVERY: Duration = Duration::from_millis(2);
const WRITE_BYTES: usize = 8192;
/// How long the last echoes may take.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// A thread that works until it is told to stop.
#[derive(Debug)]
struct Worker<T> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<T>>>,
}

impl<T: Send + 'static> Worker<T> {
    fn start(work: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        Self { stop, thread: Some(std::thread::spawn(move || work(&told))) }
    }

    fn finish(mut self) -> Result<T> {
        self.stop.store(true, Relaxed);
        let thread = self.thread.take().expect("not finished before");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Numbered datagrams from one host to another and back, two thousand a second.
#[derive(Debug)]
pub struct Datagrams {
    client: Worker<(u64, u64)>,
    server: Worker<()>,
}

impl Datagrams {
    /// Begins to send to `port` of `address`, where `server` echoes.
    pub fn start(client: &Host, server: &Host, address: Ipv4Addr, port: u16) -> Result<Self> {
        let echo = server.run(|| UdpSocket::bind((address, port)))??;
        echo.set_read_timeout(Some(POLL))?;
        let socket = client.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        socket.connect((address, port))?;
        let server = Worker::start(move |stop| {
            let mut buffer = [0; 2048];
            while !stop.load(Relaxed) {
                if let Some((length, peer)) = ready(echo.recv_from(&mut buffer))? {
                    echo.send_to(&buffer[..length], peer)?;
                }
            }
            Ok(())
        });
        Ok(Self { client: Worker::start(move |stop| exchange(&socket, stop)), server })
    }

    /// Stops, and gives how many were sent and how many came back.
    pub fn finish(self) -> Result<(u64, u64)> {
        let client = self.client.finish();
        // An echo that failed is why the client did.
        self.server.finish().context("the echo of datagrams")?;
        client.context("the datagrams")
    }
}

/// Sends until it is told to stop, then waits for what is on its way.
fn exchange(socket: &UdpSocket, stop: &AtomicBool) -> Result<(u64, u64)> {
    let (mut sent, mut returned) = (0u64, 0u64);
    let mut away = HashSet::new();
    let mut buffer = [0; 2048];
    let mut next = Instant::now();
    let mut last_echo = Instant::now();
    loop {
        let sending = !stop.load(Relaxed);
        if (away.is_empty() || last_echo.elapsed() > PATIENCE) && !sending {
            return Ok((sent, returned));
        }
        if sending && away.len() < WINDOW && Instant::now() >= next {
            // All lengths from 8 to 1400 bytes.
            let length = 8 + usize::try_from(sent * 31 % 1393)?;
            buffer[..8].copy_from_slice(&sent.to_be_bytes());
            socket.send(&buffer[..length])?;
            away.insert(sent);
            sent += 1;
            next += DATAGRAM_EVERY;
        }
        let wait = next.saturating_duration_since(Instant::now()).max(Duration::from_micros(100));
        socket.set_read_timeout(Some(wait.min(POLL)))?;
        if let Some(length) = ready(socket.recv(&mut buffer))? {
            let number = buffer[..length].first_chunk().context("a short echo")?;
            let number = u64::from_be_bytes(*number);
            ensure!(away.remove(&number), "datagram {number} came back twice");
            returned += 1;
            last_echo = Instant::now();
        }
    }
}

/// What came; nothing if it takes too long, or if a signal came instead: a call with a timeout is
/// not begun again after one (signal(7)).
fn ready<T>(result: std::io::Result<T>) -> std::io::Result<Option<T>> {
    use ErrorKind::{Interrupted, TimedOut, WouldBlock};
    match result {
        Err(error) if matches!(error.kind(), Interrupted | WouldBlock | TimedOut) => Ok(None),
        result => result.map(Some),
    }
}

/// A stream of known bytes to an echo and back, four megabytes a second each way.
#[derive(Debug)]
pub struct Stream {
    writer: Worker<u64>,
    reader: Worker<u64>,
    echoed: Arc<AtomicU64>,
}

impl Stream {
    /// Begins to write. `greeting` is what the echo says first.
    pub fn start(stream: TcpStream, greeting: &'static [u8]) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut reading = stream.try_clone()?;
        let echoed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&echoed);
        let reader = Worker::start(move |_| {
            let mut first = vec![0; greeting.len()];
            reading.read_exact(&mut first)?;
            ensure!(first == greeting, "it was greeted with {first:?}");
            let mut buffer = vec![0; 65_536];
            loop {
                let length =
                    uninterrupted(|| reading.read(&mut buffer)).context("read what was echoed")?;
                if length == 0 {
                    return Ok(count.load(Relaxed));
                }
                let start = count.fetch_add(length as u64, Relaxed);
                let right = (start..).zip(&buffer[..length]).all(|(at, byte)| pattern(at) == *byte);
                ensure!(right, "the bytes from {start} on are not what was sent");
            }
        });
        Ok(Self { writer: Worker::start(|stop| write(stream, stop)), reader, echoed })
    }

    /// Bytes that have come back.
    pub fn echoed(&self) -> u64 {
        self.echoed.load(Relaxed)
    }

    /// Ends the stream, and gives how many bytes went out and how many came back.
    pub fn finish(self) -> Result<(u64, u64)> {
        Ok((self.writer.finish()?, self.reader.finish()?))
    }
}

fn pattern(at: u64) -> u8 {
    (at % 251) as u8
}

fn write(mut stream: TcpStream, stop: &AtomicBool) -> Result<u64> {
    let mut sent = 0u64;
    while !stop.load(Relaxed) {
        let bytes: Vec<u8> = (sent..).take(WRITE_BYTES).map(pattern).collect();
        stream.write_all(&bytes).context("write")?;
        sent += bytes.len() as u64;
        std::thread::sleep(WRITE_EVERY);
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(sent)
}

/// A [`FakeRelay`] that accepts whatever comes and echoes it.
#[derive(Debug)]
pub struct EchoRelay {
    accepting: Worker<()>,
    accepted: Arc<AtomicU64>,
    _pulse: Option<Pulse>,
}

impl EchoRelay {
    /// Takes hold of the loaded instance.
    pub fn start(config: &Config, port: u16) -> Result<Self> {
        let FakeRelay { listener, flows, pulse, .. } = FakeRelay::start(config, port)?;
        let flows = Arc::new(Mutex::new(flows));
        let accepted = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&accepted);
        let accepting = Worker::start(move |stop| {
            let mut echoes = Vec::new();
            while !stop.load(Relaxed) {
                let Some((stream, client)) = accept_now(&listener)? else {
                    std::thread::sleep(POLL);
                    continue;
                };
                let server = stream.local_addr()?;
                locked(&flows).accepted(client, server)?;
                count.fetch_add(1, Relaxed);
                let flows = Arc::clone(&flows);
                echoes.push(std::thread::spawn(move || echo(stream, (client, server), &flows)));
            }
            for echo in echoes {
                echo.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(())
        });
        Ok(Self { accepting, accepted, _pulse: pulse })
    }

    /// Connections so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Ends when its connections have, and says whether one of them failed.
    pub fn finish(self) -> Result<()> {
        self.accepting.finish()
    }
}

fn echo(
    mut stream: TcpStream,
    (client, server): (SocketAddr, SocketAddr),
    flows: &Mutex<FlowTable>,
) -> Result<()> {
    let copied = std::io::copy(&mut stream.try_clone()?, &mut stream);
    locked(flows).closed(client, server)?;
    copied.context("echo").map(drop)
}

fn locked(flows: &Mutex<FlowTable>) -> std::sync::MutexGuard<'_, FlowTable> {
    flows.lock().unwrap_or_else(PoisonError::into_inner)
}
