//! Real TCP clients: each sends numbered messages to a server's own address, a bounded number of
//! them unanswered at any time, and checks the replies.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use millrace_relay::gateway::in_namespace;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

use crate::clients::payload::{Arrival, Payload, Sequence, Stamp};
use crate::clients::wire::Wire;

/// Connections that are being opened at the same time.
const OPENING_AT_ONCE: usize = 64;
/// A client encodes no more than this ahead of what the kernel takes.
const AHEAD_BYTES: usize = 64 << 10;
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
/// Longest latency that the histogram tells apart, in microseconds.
const LONGEST_US: u64 = 3_600_000_000;

/// What the clients shall do.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Network namespace of the clients; the present one if there is none.
    pub namespace: Option<PathBuf>,
    /// Addresses the clients connect to, in turn.
    pub targets: Vec<SocketAddr>,
    /// How many clients.
    pub clients: u32,
    /// Messages of all clients together.
    pub messages: u64,
    /// Makes the messages.
    pub payload: Payload,
    /// Most unanswered messages of one client.
    pub window: u32,
    /// How messages are told apart.
    pub wire: Wire,
}

/// The two ends of each client's connection, by the client's number.
pub type Directory = Arc<Vec<OnceLock<Ends>>>;

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The client's own address.
    pub client: SocketAddr,
    /// The address it connected to.
    pub destination: SocketAddr,
}

/// Counters to watch a load by.
#[derive(Debug, Default)]
pub struct Progress {
    /// Clients connected.
    pub connected: AtomicU64,
    /// Clients that are through, well or badly.
    pub finished: AtomicU64,
    /// Messages handed to the kernel.
    pub sent: AtomicU64,
    /// Messages answered, each counted once.
    pub replied: AtomicU64,
    /// Replies that came again.
    pub duplicated: AtomicU64,
    /// Replies that came after a later one.
    pub out_of_order: AtomicU64,
    /// Replies to another client's message.
    pub misrouted: AtomicU64,
    /// Replies that are no message of ours.
    pub corrupted: AtomicU64,
    /// Connections that ended before their last reply.
    pub disconnected: AtomicU64,
}

/// What the clients have seen.
#[derive(Debug)]
pub struct LoadReport {
    /// Round trips in microseconds.
    pub latency_us: Histogram<u64>,
    /// From the start of sending to the last reply.
    pub duration: Duration,
    /// Why clients ended early, the first few.
    pub errors: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Connect,
    Send,
    Close,
}

/// Running clients.
#[derive(Debug)]
pub struct Load {
    /// Counters.
    pub progress: Arc<Progress>,
    /// Addresses.
    pub directory: Directory,
    phase: watch::Sender<Phase>,
    thread: Option<JoinHandle<Result<LoadReport>>>,
}

impl Load {
    /// Lets the clients connect. They send nothing before [`Self::begin`].
    pub fn start(plan: LoadPlan, directory: Directory) -> Result<Self> {
        ensure!(plan.clients > 0 && !plan.targets.is_empty(), "there is no client or no target");
        ensure!(plan.window > 0, "a window of 0 messages lets nobody send");
        let progress = Arc::new(Progress::default());
        let (phase, follow) = watch::channel(Phase::Connect);
        let shared = (Arc::clone(&progress), Arc::clone(&directory));
        let thread = std::thread::Builder::new().name("clients".to_owned()).spawn(move || {
            let namespace = plan.namespace.clone();
            let clients = move || run(plan, shared.0, shared.1, &follow);
            match namespace {
                Some(namespace) => in_namespace(&namespace, clients)?,
                None => clients(),
            }
        })?;
        Ok(Self { progress, directory, phase, thread: Some(thread) })
    }

    /// Lets the clients send.
    pub fn begin(&self) {
        self.phase.send_replace(Phase::Send);
    }

    /// Whether every client is through.
    pub fn is_finished(&self) -> bool {
        self.progress.finished.load(Relaxed) == self.directory.len() as u64 || self.has_failed()
    }

    /// Whether the clients could not even be run; [`Self::close`] says why.
    pub fn has_failed(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Closes all connections, even those that wait for replies.
    pub fn close(mut self) -> Result<LoadReport> {
        self.phase.send_replace(Phase::Close);
        let thread = self.thread.take().context("closed twice")?;
        thread.join().map_err(|_| anyhow!("the clients' thread panicked"))?
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Close);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the clients of one thread share.
struct Shared {
    plan: LoadPlan,
    progress: Arc<Progress>,
    directory: Directory,
    epoch: Instant,
    latency_us: RefCell<Histogram<u64>>,
    span: RefCell<Option<(Instant, Instant)>>,
    errors: RefCell<Vec<String>>,
    opening: Semaphore,
}

fn run(
    plan: LoadPlan,
    progress: Arc<Progress>,
    directory: Directory,
    phase: &watch::Receiver<Phase>,
) -> Result<LoadReport> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shared = Rc::new(Shared {
        progress,
        directory,
        epoch: Instant::now(),
        latency_us: RefCell::new(Histogram::new_with_bounds(1, LONGEST_US, 3)?),
        span: RefCell::default(),
        errors: RefCell::default(),
        opening: Semaphore::new(OPENING_AT_ONCE),
        plan,
    });
    let local = tokio::task::LocalSet::new();
    for number in 0..shared.plan.clients {
        let (shared, phase) = (Rc::clone(&shared), phase.clone());
        local.spawn_local(async move { client(number, shared, phase).await });
    }
    runtime.block_on(local);
    let shared = Rc::into_inner(shared).context("a client is still running")?;
    Ok(LoadReport {
        latency_us: shared.latency_us.into_inner(),
        duration: shared.span.into_inner().map_or(Duration::ZERO, |(first, last)| last - first),
        errors: shared.errors.into_inner(),
    })
}

async fn client(number: u32, shared: Rc<Shared>, mut phase: watch::Receiver<Phase>) {
    let outcome = async {
        let stream = connect(number, &shared).await?;
        let begun = *phase.wait_for(|phase| *phase >= Phase::Send).await?;
        if begun == Phase::Send {
            Conversation::new(number, &shared).hold(&stream, &mut phase).await?;
        }
        Ok::<_, anyhow::Error>(stream)
    };
    let outcome = outcome.await;
    shared.progress.finished.fetch_add(1, Relaxed);
    match outcome {
        // The connection stays open until all are through, as long-lived connections do.
        Ok(_stream) => drop(phase.wait_for(|phase| *phase == Phase::Close).await),
        Err(error) => {
            shared.progress.disconnected.fetch_add(1, Relaxed);
            let mut errors = shared.errors.borrow_mut();
            if errors.len() < 5 {
                errors.push(format!("client {number}: {error:#}"));
            }
        }
    }
}

async fn connect(number: u32, shared: &Shared) -> Result<TcpStream> {
    let target = shared.plan.targets[number as usize % shared.plan.targets.len()];
    let permit = shared.opening.acquire().await?;
    let stream = tokio::time::timeout(CONNECT_PATIENCE, TcpStream::connect(target))
        .await
        .map_err(|_| anyhow!("{target} did not answer within {CONNECT_PATIENCE:?}"))?
        .with_context(|| format!("cannot connect to {target}"))?;
    drop(permit);
    stream.set_nodelay(true)?;
    let ends = Ends { client: stream.local_addr()?, destination: target };
    shared.directory[number as usize].set(ends).map_err(|_| anyhow!("two clients {number}"))?;
    shared.progress.connected.fetch_add(1, Relaxed);
    Ok(stream)
}

/// One client's side of its connection.
struct Conversation<'a> {
    shared: &'a Shared,
    number: u32,
    quota: u32,
    encoded: u32,
    replied: u32,
    replies: Sequence,
    written_bytes: u64,
    sent: u64,
    out: Vec<u8>,
    out_start: usize,
    inbox: Vec<u8>,
}

impl<'a> Conversation<'a> {
    fn new(number: u32, shared: &'a Shared) -> Self {
        let (messages, clients) = (shared.plan.messages, u64::from(shared.plan.clients));
        let quota = messages / clients + u64::from(u64::from(number) < messages % clients);
        Self {
            shared,
            number,
            quota: u32::try_from(quota).unwrap_or(u32::MAX),
            encoded: 0,
            replied: 0,
            replies: Sequence::default(),
            written_bytes: 0,
            sent: 0,
            out: Vec::new(),
            out_start: 0,
            inbox: Vec::new(),
        }
    }

    async fn hold(mut self, stream: &TcpStream, phase: &mut watch::Receiver<Phase>) -> Result<()> {
        self.note_time();
        while self.replied < self.quota {
            self.fill();
            let interest = if self.out_start < self.out.len() {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            let ready = tokio::select! {
                ready = stream.ready(interest) => ready?,
                _ = phase.wait_for(|phase| *phase == Phase::Close) => {
                    return Err(anyhow!("told to stop with {} of {} messages answered",
                        self.replied, self.quota));
                }
            };
            if ready.is_writable() {
                self.write(stream)?;
            }
            if ready.is_readable() {
                self.read(stream)?;
            }
        }
        self.note_time();
        Ok(())
    }

    fn note_time(&self) {
        let now = Instant::now();
        let mut span = self.shared.span.borrow_mut();
        let (first, _) = span.unwrap_or((now, now));
        *span = Some((first, now));
    }

    /// Encodes as many messages as the window allows.
    fn fill(&mut self) {
        if self.out_start < self.out.len() {
            return;
        }
        self.out.clear();
        self.out_start = 0;
        let plan = &self.shared.plan;
        let sent_ns = u64::try_from(self.shared.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        while self.encoded < self.quota
            && self.encoded - self.replied < plan.window
            && self.out.len() < AHEAD_BYTES
        {
            let stamp = Stamp { client: self.number, sequence: self.encoded, sent_ns };
            plan.wire.frame(plan.payload.size(), &mut self.out, |out| {
                plan.payload.encode(stamp, out);
            });
            self.encoded += 1;
        }
    }

    fn write(&mut self, stream: &TcpStream) -> Result<()> {
        match stream.try_write(&self.out[self.out_start..]) {
            Ok(written) => {
                self.out_start += written;
                self.written_bytes += written as u64;
                let plan = &self.shared.plan;
                let sent = self.written_bytes / plan.wire.framed_bytes(plan.payload.size()) as u64;
                self.shared.progress.sent.fetch_add(sent - self.sent, Relaxed);
                self.sent = sent;
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error).context("cannot send"),
        }
    }

    fn read(&mut self, stream: &TcpStream) -> Result<()> {
        loop {
            self.inbox.reserve(16 << 10);
            match stream.try_read_buf(&mut self.inbox) {
                Ok(0) => {
                    return Err(anyhow!(
                        "the other side closed with {} of {} messages answered",
                        self.replied,
                        self.quota
                    ));
                }
                Ok(_) => self.take_replies(),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot receive"),
            }
        }
    }

    fn take_replies(&mut self) {
        let inbox = std::mem::take(&mut self.inbox);
        let mut rest = inbox.as_slice();
        while let Some((message, after)) = self.shared.plan.wire.split(rest) {
            self.take_reply(message);
            rest = after;
        }
        let consumed = inbox.len() - rest.len();
        self.inbox = inbox;
        self.inbox.drain(..consumed);
    }

    fn take_reply(&mut self, message: &[u8]) {
        let progress = &self.shared.progress;
        let Some(stamp) = self.shared.plan.payload.decode(message) else {
            progress.corrupted.fetch_add(1, Relaxed);
            return;
        };
        if stamp.client != self.number || stamp.sequence >= self.encoded {
            progress.misrouted.fetch_add(1, Relaxed);
            return;
        }
        match self.replies.arrive(stamp.sequence) {
            Arrival::Duplicate => {
                progress.duplicated.fetch_add(1, Relaxed);
                return;
            }
            Arrival::OutOfOrder => {
                progress.out_of_order.fetch_add(1, Relaxed);
            }
            Arrival::InOrder => {}
        }
        self.replied += 1;
        progress.replied.fetch_add(1, Relaxed);
        let now_ns = u64::try_from(self.shared.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let latency_us = now_ns.saturating_sub(stamp.sent_ns) / 1000;
        self.shared.latency_us.borrow_mut().saturating_record(latency_us.max(1));
    }
}
