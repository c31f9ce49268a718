//! What the clients do.

#![allow(clippy::cast_precision_loss, reason = "counts become rates here")]

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use millrace_bench::measure::exchange;
use millrace_bench::tcp_server::{SINK, SOURCE};
use millrace_harness::clients::load::LoadPlan;
use millrace_harness::clients::payload::Payload;
use millrace_harness::clients::wire::frames;
use millrace_harness::system::meter::Usage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::variants::Variant;

const PATIENCE: Duration = Duration::from_secs(20);
const CLIENTS: u32 = 32;
const SMALL_BYTES: usize = 100;
const LARGE_BYTES: usize = 16 << 10;
const CHUNK: usize = 64 << 10;

/// How much of everything, per round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amounts {
    /// Connections.
    pub(crate) connections: u32,
    /// Messages, of one client one at a time.
    pub(crate) messages: u64,
    /// Megabytes in one direction.
    pub(crate) megabytes: u64,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Connect, send one message, get the reply, close.
    Connect,
    /// Round trips, one message of a client on its way.
    Single,
    /// Round trips, 64 messages of a client on their way.
    Windowed,
    /// One stream to the server.
    Upload,
    /// One stream from the server.
    Download,
    /// Large messages, to the server and back.
    Large,
}

/// How it went.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    /// [`Work::unit`]s.
    pub(crate) units: f64,
    /// Time it took.
    pub(crate) seconds: f64,
    /// Median and 99th percentile of the round trips, in microseconds.
    pub(crate) latency_us: Option<(u64, u64)>,
    /// Processor time per unit.
    pub(crate) usage: Usage,
}

impl Work {
    /// For the report.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connections",
            Self::Single => "round trips, window 1",
            Self::Windowed => "round trips, window 64",
            Self::Upload => "upload",
            Self::Download => "download",
            Self::Large => "16 KiB messages, both ways",
        }
    }

    /// What is counted.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Connect => "connection",
            Self::Single | Self::Windowed => "round trip",
            Self::Upload | Self::Download | Self::Large => "MB",
        }
    }

    /// What a rate counts.
    pub(crate) const fn rate(self) -> &'static str {
        match self {
            Self::Connect => "connections/s",
            Self::Single | Self::Windowed => "round trips/s",
            Self::Upload | Self::Download | Self::Large => "MB/s",
        }
    }

    /// Does it once.
    pub(crate) fn run(self, variant: &Variant, amounts: &Amounts) -> Result<Done> {
        match self {
            Self::Connect => timed(variant, f64::from(amounts.connections), || {
                connect(variant.target, amounts.connections)
            }),
            Self::Single => messages(variant, SMALL_BYTES, 1, amounts.messages, 1.0),
            Self::Windowed => messages(variant, SMALL_BYTES, 64, 4 * amounts.messages, 1.0),
            Self::Upload => timed(variant, amounts.megabytes as f64, || {
                upload(variant.target, amounts.megabytes * 1_000_000)
            }),
            Self::Download => timed(variant, amounts.megabytes as f64, || {
                download(variant.target, amounts.megabytes * 1_000_000)
            }),
            Self::Large => {
                // A quarter: it goes both ways, and through Kafka twice.
                let count = (amounts.megabytes * 250_000).div_ceil(LARGE_BYTES as u64);
                let megabytes = LARGE_BYTES as f64 / 1e6;
                messages(variant, LARGE_BYTES, 4, count.max(u64::from(CLIENTS)), megabytes)
            }
        }
    }
}

/// Runs work on a thread in the client host.
fn timed(variant: &Variant, units: f64, work: impl FnOnce() -> Result<()> + Send) -> Result<Done> {
    let meter = variant.meter()?;
    let (before, start) = (meter.read()?, Instant::now());
    variant.hosts.clients[0].run(work)??;
    let seconds = start.elapsed().as_secs_f64();
    let usage = meter.read()?.since(&before).per(units);
    Ok(Done { units, seconds, latency_us: None, usage })
}

fn messages(
    variant: &Variant,
    size: usize,
    window: u32,
    messages: u64,
    units_each: f64,
) -> Result<Done> {
    let meter = variant.meter()?;
    let plan = LoadPlan {
        namespace: Some(variant.hosts.clients[0].namespace()),
        targets: vec![variant.target],
        clients: CLIENTS,
        messages,
        payload: Payload::new(size)?,
        window,
        wire: frames(),
    };
    let (outcome, before, after) = exchange(plan, &mut || meter.read())?;
    let units = messages as f64 * units_each;
    Ok(Done {
        units,
        seconds: outcome.seconds,
        latency_us: Some((outcome.p50_us, outcome.p99_us)),
        usage: after.since(&before).per(units),
    })
}

/// Each of [`CLIENTS`] clients connects again and again.
fn connect(target: SocketAddr, connections: u32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let left = Rc::new(Cell::new(connections));
    let all = async {
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn_local(connect_while_any_is_left(target, Rc::clone(&left)));
        }
        while let Some(client) = clients.join_next().await {
            client??;
        }
        Ok(())
    };
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async { tokio::time::timeout(PATIENCE, all).await })?
}

async fn connect_while_any_is_left(target: SocketAddr, left: Rc<Cell<u32>>) -> Result<()> {
    let message = frames().framed(&[b'x'; SMALL_BYTES]);
    let mut reply = vec![0; message.len()];
    while left.get() > 0 {
        left.set(left.get() - 1);
        let mut stream = tokio::net::TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&message).await?;
        stream.read_exact(&mut reply).await?;
        ensure!(reply == message, "another reply than the message came");
    }
    Ok(())
}

fn upload(target: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = open(target)?;
    stream.write_all(&[SINK])?;
    let chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        stream.write_all(&chunk[..length])?;
        left -= length as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    ensure!(answer == [SINK], "the server has not read everything");
    Ok(())
}

fn download(target: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = open(target)?;
    stream.write_all(&[&[SOURCE][..], &bytes.to_be_bytes()].concat())?;
    let (mut chunk, mut received) = (vec![0; CHUNK], 0);
    loop {
        match stream.read(&mut chunk)? {
            0 => break,
            length => received += length as u64,
        }
    }
    ensure!(received == bytes, "{received} of {bytes} bytes came");
    Ok(())
}

fn open(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
