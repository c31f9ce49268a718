//! Connections that are idle but for a sign of life now and then.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use millrace_harness::clients::wire::frames;
use millrace_harness::net::netns::Host;
use millrace_harness::system::interrupt;
use millrace_harness::system::process::wait_until;
use millrace_relay::gateway::in_namespace;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};

const OPENING_AT_ONCE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(30);
/// What an application sends as its sign of life.
const PING: &[u8] = b"ping";

/// How a client shows that it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignOfLife {
    /// TCP's keep-alive: the other end's kernel answers it.
    Tcp,
    /// A message, which the server answers.
    Message,
}

impl SignOfLife {
    /// For the report.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP keep-alives",
            Self::Message => "messages as keep-alives",
        }
    }
}

/// Clients that are connected until this is dropped.
#[derive(Debug)]
pub(crate) struct Crowd {
    counts: Arc<Counts>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Counts {
    connected: AtomicU64,
    answers: AtomicU64,
}

impl Crowd {
    /// Connects them, and returns when all are.
    pub(crate) fn connect(
        host: &Host,
        target: SocketAddr,
        connections: u32,
        sign: SignOfLife,
        every: Duration,
    ) -> Result<Self> {
        let counts = Arc::<Counts>::default();
        let shared = Arc::clone(&counts);
        let (stop, stopped) = oneshot::channel();
        let namespace = host.namespace();
        let thread = std::thread::Builder::new().name("clients".to_owned()).spawn(move || {
            in_namespace(&namespace, || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let clients = all(target, connections, sign, every, &shared);
                runtime.block_on(async {
                    tokio::select! {
                        result = clients => result,
                        _ = stopped => Ok(()),
                    }
                })
            })?
        })?;
        let crowd = Self { counts, stop: Some(stop), thread: Some(thread) };
        let settled = wait_until(PATIENCE, "the idle clients to connect", || {
            interrupt::check()?;
            let ended = crowd.thread.as_ref().is_none_or(JoinHandle::is_finished);
            Ok(ended || crowd.counts.connected.load(Relaxed) == u64::from(connections))
        });
        let all_are = crowd.counts.connected.load(Relaxed) == u64::from(connections);
        if settled.is_err() || !all_are {
            crowd.close().context("not every idle client can connect")?;
            settled?;
            bail!("only some of {connections} idle clients have connected");
        }
        Ok(crowd)
    }

    /// Answers to messages, so far.
    pub(crate) fn answers(&self) -> u64 {
        self.counts.answers.load(Relaxed)
    }

    /// Closes the connections, and says if one had ended before.
    pub(crate) fn close(mut self) -> Result<()> {
        drop(self.stop.take());
        let thread = self.thread.take().context("closed twice")?;
        thread.join().map_err(|_| anyhow!("the clients' thread panicked"))?
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Ends with the first client that fails; none ends otherwise.
async fn all(
    target: SocketAddr,
    connections: u32,
    sign: SignOfLife,
    every: Duration,
    counts: &Arc<Counts>,
) -> Result<()> {
    let opening = Arc::new(Semaphore::new(OPENING_AT_ONCE));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..connections {
        let (opening, counts) = (Arc::clone(&opening), Arc::clone(counts));
        // Spread over the interval, as clients that know nothing of each other are.
        let first = every * number / connections;
        clients.spawn(async move {
            let permit = opening.acquire().await?;
            let stream = TcpStream::connect(target).await?;
            drop(permit);
            stream.set_nodelay(true)?;
            counts.connected.fetch_add(1, Relaxed);
            live(stream, sign, first, every, &counts).await
        });
    }
    match clients.join_next().await {
        Some(ended) => ended?,
        None => Ok(()),
    }
}

async fn live(
    mut stream: TcpStream,
    sign: SignOfLife,
    first: Duration,
    every: Duration,
    counts: &Counts,
) -> Result<()> {
    tokio::time::sleep(first).await;
    if sign == SignOfLife::Tcp {
        let keepalive = TcpKeepalive::new().with_time(every).with_interval(every);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        stream.read_u8().await.context("an idle connection has ended")?;
        return Err(anyhow!("an idle connection got a message"));
    }
    let message = frames().framed(PING);
    let mut reply = vec![0; message.len()];
    let mut interval = tokio::time::interval(every);
    loop {
        interval.tick().await;
        stream.write_all(&message).await?;
        stream.read_exact(&mut reply).await.context("a sign of life was not answered")?;
        counts.answers.fetch_add(1, Relaxed);
    }
}
