//! A worker on a stage: its kernel and its Kafka do what a test says, and nothing else. For what must
//! be tried in one exact order; the simulation of the end-to-end tests has the orders that nobody thought
//! of.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::engine::{BufferId, Engine, Event, ReceiveEnd, SocketId, SocketOptions};
use crate::model::{CloseReason, ConnectionKey, Incarnation, Kind, Partition, ServiceId};
use crate::ring::{DownlinkSender, UplinkBatch, UplinkReceiver, Wake, downlink, uplink};
use crate::worker::{Flows, Orders, Shared, Worker, WorkerParts, WorkerStats};

/// How long a test waits for a worker that looks at the real clock.
const PATIENCE: Duration = Duration::from_secs(10);

/// With more sockets a worker is not checked after each turn.
const CHECKED: usize = 100;

/// A socket, as its peer sees it.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a request that is going on, or not")]
struct Socket {
    receiving: bool,
    stopping: bool,
    sending: Option<Vec<u8>>,
    shut_down: bool,
    closing: bool,
    connecting: bool,
    watched: bool,
    peer: Peer,
    received: Vec<u8>,
    /// How its peer has ended, and what it had sent before that is not received.
    left: Option<(Vec<u8>, Left)>,
}

/// How a peer has ended, as nobody was receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// It has ended its side.
    Ended,
    /// It has reset the connection.
    Reset,
}

/// What becomes of what a peer is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Peer {
    /// It takes it.
    #[default]
    Takes,
    /// It does not read.
    Stalls,
    /// It has gone: what it is sent is taken for it, and lost.
    Gone,
    /// Its kernel has answered with a reset.
    Refuses,
}

/// An engine whose peers do what they are told.
#[derive(Debug, Default)]
pub(super) struct ScriptedEngine {
    sockets: Vec<Option<Socket>>,
    free: Vec<SocketId>,
    events: VecDeque<Event>,
    lent: Vec<Option<Vec<u8>>>,
    /// What the peers of sockets that are closed were sent, by socket; the last user's.
    last: Vec<Vec<u8>>,
    /// Options that the worker has set.
    pub(super) options: Vec<(SocketId, SocketOptions)>,
    /// Sockets that the worker has connected.
    pub(super) connected: Vec<SocketId>,
}

impl ScriptedEngine {
    fn place(&mut self, socket: Socket) -> SocketId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.sockets.push(None);
            self.last.push(Vec::new());
            SocketId(u32::try_from(self.sockets.len() - 1).expect("few sockets"))
        });
        self.sockets[id.index()] = Some(socket);
        id
    }

    fn socket(&mut self, id: SocketId) -> &mut Socket {
        self.sockets[id.index()].as_mut().expect("the socket is open")
    }

    /// A client connects.
    pub(super) fn accept(
        &mut self,
        service: ServiceId,
        client: SocketAddr,
        server: SocketAddr,
    ) -> SocketId {
        let socket = self.place(Socket::default());
        self.events.push_back(Event::Accepted { socket, service, client, server });
        socket
    }

    /// A client's bytes come.
    pub(super) fn bring(&mut self, socket: SocketId, bytes: &[u8]) {
        assert!(self.socket(socket).receiving, "nobody receives from {socket:?}");
        let index = self.lent.iter().position(Option::is_none).unwrap_or_else(|| {
            self.lent.push(None);
            self.lent.len() - 1
        });
        self.lent[index] = Some(bytes.to_vec());
        let buffer = BufferId(u16::try_from(index).expect("few buffers"));
        self.events.push_back(Event::Received { socket, buffer, length: bytes.len() });
    }

    /// How many buffers are lent.
    pub(super) fn lent(&self) -> usize {
        self.lent.iter().flatten().count()
    }

    /// A client ends its side.
    pub(super) fn end(&mut self, socket: SocketId, end: ReceiveEnd) {
        let slot = self.socket(socket);
        assert!(std::mem::take(&mut slot.receiving), "nobody receives from {socket:?}");
        slot.stopping = false;
        self.events.push_back(Event::ReceiveEnded { socket, end });
    }

    /// A client sends something and then ends, whether it is received from or not.
    pub(super) fn leave(&mut self, socket: SocketId, unread: &[u8], left: Left) {
        let slot = self.socket(socket);
        slot.left = Some((unread.to_vec(), left));
        if slot.watched {
            let failed = left == Left::Reset;
            self.events.push_back(Event::PeerEnded { socket, failed });
        }
    }

    /// What becomes of what a peer is sent from now on.
    pub(super) fn set_peer(&mut self, socket: SocketId, peer: Peer) {
        self.socket(socket).peer = peer;
    }

    /// True while the worker receives from it, and has not asked for an end.
    pub(super) fn is_read(&self, socket: SocketId) -> bool {
        self.sockets[socket.index()].as_ref().is_some_and(|slot| slot.receiving && !slot.stopping)
    }

    /// True if its peer was told that nothing follows, and may go on.
    pub(super) fn is_shut_down(&self, socket: SocketId) -> bool {
        self.sockets[socket.index()].as_ref().is_some_and(|slot| slot.shut_down && !slot.closing)
    }

    /// True if the worker has not closed it.
    pub(super) fn is_open(&self, socket: SocketId) -> bool {
        self.sockets[socket.index()].is_some()
    }

    /// What its peer was sent.
    pub(super) fn sent(&self, socket: SocketId) -> &[u8] {
        self.sockets[socket.index()]
            .as_ref()
            .map_or(&*self.last[socket.index()], |slot| &*slot.received)
    }

    fn progress(&mut self, id: SocketId) {
        let Some(slot) = &mut self.sockets[id.index()] else { return };
        if std::mem::take(&mut slot.connecting) {
            self.events.push_back(Event::Connected { socket: id, result: Ok(()) });
        }
        if slot.receiving
            && let Some((unread, left)) = slot.left.take()
        {
            if !unread.is_empty() {
                self.bring(id, &unread);
            }
            let reset = || io::ErrorKind::ConnectionReset.into();
            let failed = left == Left::Reset;
            let end = if failed { ReceiveEnd::Failed(reset()) } else { ReceiveEnd::EndOfStream };
            return self.end(id, end);
        }
        let Some(slot) = &mut self.sockets[id.index()] else { return };
        if slot.receiving && (slot.stopping || slot.closing) {
            (slot.receiving, slot.stopping) = (false, false);
            self.events.push_back(Event::ReceiveEnded { socket: id, end: ReceiveEnd::Stopped });
        }
        if (slot.peer != Peer::Stalls || slot.closing)
            && let Some(buffer) = slot.sending.take()
        {
            let result = if slot.closing || slot.peer == Peer::Refuses {
                Err(io::ErrorKind::ConnectionReset.into())
            } else {
                if slot.peer == Peer::Takes {
                    slot.received.extend_from_slice(&buffer);
                }
                Ok(buffer.len())
            };
            self.events.push_back(Event::Sent { socket: id, buffer, result });
        }
        if slot.closing {
            self.last[id.index()] = std::mem::take(&mut slot.received);
            self.sockets[id.index()] = None;
            self.free.push(id);
            self.events.push_back(Event::Closed { socket: id });
        }
    }
}

impl Engine for ScriptedEngine {
    fn listen(&mut self, _service: ServiceId, _listener: OwnedFd) {}

    fn set_options(&mut self, socket: SocketId, options: &SocketOptions) -> io::Result<()> {
        self.options.push((socket, *options));
        Ok(())
    }

    fn stop_listening(&mut self) {}

    fn receive(&mut self, socket: SocketId) {
        let slot = self.socket(socket);
        assert!(!slot.receiving && !slot.closing, "one receive at a time");
        slot.receiving = true;
    }

    fn stop_receiving(&mut self, socket: SocketId) {
        let slot = self.socket(socket);
        slot.stopping = slot.receiving;
    }

    fn watch(&mut self, socket: SocketId) {
        self.socket(socket).watched = true;
    }

    fn unread(&mut self, socket: SocketId) -> usize {
        self.socket(socket).left.as_ref().map_or(0, |(unread, _)| unread.len())
    }

    fn send(&mut self, socket: SocketId, buffer: Vec<u8>) {
        let slot = self.socket(socket);
        assert!(slot.sending.is_none() && !slot.closing, "one send at a time");
        slot.sending = Some(buffer);
    }

    fn connect(&mut self, _socket: OwnedFd, _to: SocketAddr) -> Option<SocketId> {
        let id = self.place(Socket { connecting: true, ..Socket::default() });
        self.connected.push(id);
        Some(id)
    }

    fn is_taken(&mut self, socket: SocketId) -> bool {
        self.socket(socket).peer == Peer::Takes
    }

    fn shut_down(&mut self, socket: SocketId) {
        let slot = self.socket(socket);
        assert!(slot.sending.is_none() && !slot.closing, "all is sent");
        slot.shut_down = true;
    }

    fn abort(&mut self, socket: SocketId) {
        self.close(socket);
    }

    fn close(&mut self, socket: SocketId) {
        self.socket(socket).closing = true;
    }

    fn wait(&mut self, _timeout: Duration) -> io::Result<()> {
        for index in 0..self.sockets.len() {
            self.progress(SocketId(u32::try_from(index).expect("few sockets")));
        }
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn bytes(&self, buffer: &BufferId, length: usize) -> &[u8] {
        &self.lent[usize::from(buffer.0)].as_ref().expect("a lent buffer")[..length]
    }

    fn recycle(&mut self, buffer: BufferId) {
        assert!(self.lent[usize::from(buffer.0)].take().is_some(), "given back once");
    }
}

/// A gateway that lets connections be handed on, to nobody.
struct Onward;

impl Flows for Onward {
    fn accepted(&mut self, _client: SocketAddr, _server: SocketAddr) -> io::Result<()> {
        Ok(())
    }

    fn closed(&mut self, _client: SocketAddr, _server: SocketAddr) {}

    fn onward(
        &mut self,
        _client: SocketAddr,
        _server: SocketAddr,
        _options: &SocketOptions,
    ) -> io::Result<OwnedFd> {
        Ok(std::fs::File::open("/dev/null")?.into())
    }
}

/// A record that the worker has handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StagedRecord {
    /// Whose.
    pub(super) key: ConnectionKey,
    /// Its partition.
    pub(super) partition: Partition,
    /// What about.
    pub(super) kind: Kind,
    /// What a client sent.
    pub(super) payload: Vec<u8>,
}

/// A worker and both its rings.
pub(super) struct Stage {
    /// The worker.
    pub(super) worker: Worker<ScriptedEngine>,
    /// What comes from it.
    pub(super) uplink: UplinkReceiver,
    /// What goes to it.
    pub(super) downlink: DownlinkSender,
    /// What it shares.
    pub(super) shared: Shared,
    /// What it counts.
    pub(super) stats: Arc<WorkerStats>,
    /// Orders to it.
    pub(super) orders: Orders,
    /// Batches that the producer has not given back.
    #[expect(clippy::vec_box, reason = "as they come and go")]
    pub(super) kept: Vec<Box<UplinkBatch>>,
}

impl Stage {
    /// A worker for the services of a checked configuration.
    pub(super) fn new(config: &Config) -> Self {
        let shared = Shared::new(config, Incarnation::new(1));
        let wake = || Wake::new().expect("an eventfd");
        let worker_wake = wake();
        let (uplink_sender, uplink) = uplink(worker_wake.clone(), wake());
        let (downlink, downlink_receiver) = downlink(worker_wake.clone(), wake());
        let mut orders = Orders::default();
        let stats = Arc::new(WorkerStats::new(shared.services.len()));
        let parts = WorkerParts {
            index: 0,
            shared: shared.clone(),
            wake: worker_wake.clone(),
            flows: Box::new(Onward),
            uplink: uplink_sender,
            downlink: downlink_receiver,
            orders: orders.add_worker(worker_wake),
            stats: stats.clone(),
            peers: Vec::new(),
        };
        let worker = Worker::new(ScriptedEngine::default(), parts);
        Self { worker, uplink, downlink, shared, stats, orders, kept: Vec::new() }
    }

    /// One turn of the worker.
    pub(super) fn step(&mut self) {
        self.worker.engine().wait(Duration::ZERO).expect("no kernel, no error");
        self.worker.step();
        if self.worker.engine().sockets.len() <= CHECKED {
            self.worker.check();
            let kept = self.worker.stashes.lent;
            assert_eq!(self.worker.engine().lent(), kept, "all other buffers are given back");
        }
    }

    /// Some turns: as many as anything takes that needs no clock.
    pub(super) fn settle(&mut self) {
        for _ in 0..8 {
            self.step();
        }
    }

    /// Turns until something holds; for what takes its time by the clock.
    pub(super) fn wait_for(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            self.step();
            std::thread::yield_now();
        }
    }

    /// A client connects to a service.
    pub(super) fn accept(&mut self, service: u16, client: &str) -> SocketId {
        self.accept_for(service, client, "198.51.100.1:7000")
    }

    /// A client connects to this destination, at the listener of a service.
    pub(super) fn accept_for(&mut self, service: u16, client: &str, server: &str) -> SocketId {
        let server = server.parse().expect("an address");
        let client = client.parse().expect("an address");
        let socket = self.worker.engine().accept(ServiceId(service), client, server);
        self.step();
        socket
    }

    /// A client's bytes come, and the worker takes them.
    pub(super) fn bring(&mut self, socket: SocketId, bytes: &[u8]) {
        self.worker.engine().bring(socket, bytes);
        self.step();
    }

    /// What its client was sent.
    pub(super) fn sent(&mut self, socket: SocketId) -> Vec<u8> {
        self.worker.engine().sent(socket).to_vec()
    }

    /// How many connections have ended for a reason.
    pub(super) fn closed(&self, reason: CloseReason) -> u64 {
        self.stats.closed(reason)
    }

    /// Takes what the worker has handed over; the batches go back to it.
    pub(super) fn records(&mut self) -> Vec<StagedRecord> {
        self.keep_records();
        self.release()
    }

    /// Takes what the worker has handed over and keeps its batches, so that its ring fills up.
    pub(super) fn keep_records(&mut self) {
        self.kept.extend(std::iter::from_fn(|| self.uplink.pop()));
    }

    /// Gives the batches back that were kept.
    pub(super) fn release(&mut self) -> Vec<StagedRecord> {
        let mut records = Vec::new();
        for batch in self.kept.drain(..) {
            records.extend(batch.records().map(|(identity, kind, _, payload, _)| StagedRecord {
                key: identity.key,
                partition: identity.partition,
                kind,
                payload: payload.to_vec(),
            }));
            self.uplink.recycle(batch);
        }
        records
    }
}
