//! The worker's whole view of the kernel.
//!
//! [`crate::uring::UringEngine`] is the engine of the relay; a faulty one drives the simulation
//! tests. An engine owns the sockets: a worker names them by [`SocketId`] and hears what became of
//! its requests by [`Event`].

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use crate::model::ServiceId;

/// A socket of an engine. Reused after [`Event::Closed`], not before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u32);

impl SocketId {
    /// As an index into tables of sockets.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// How many of an engine's receive buffers should be there for whatever comes next, however many are kept.
pub const fn reserve(buffers: u16) -> u16 {
    if buffers < 64 { 1 } else { buffers / 32 }
}

/// A receive buffer of the engine, lent with [`Event::Received`].
#[derive(Debug, PartialEq, Eq)]
pub struct BufferId(pub u16);

/// What became of a request, or came by itself.
#[derive(Debug)]
pub enum Event {
    /// A client has connected. Nothing is received before [`Engine::receive`].
    Accepted {
        /// The new socket.
        socket: SocketId,
        /// Whose listener it came from: of services that share a port, the first.
        service: ServiceId,
        /// The client.
        client: SocketAddr,
        /// Whom the client addressed.
        server: SocketAddr,
    },
    /// A connection could not be accepted; the listener goes on.
    AcceptFailed {
        /// Why.
        error: io::Error,
    },
    /// Bytes of a client, in [`Engine::bytes`] until [`Engine::recycle`].
    Received {
        /// The socket.
        socket: SocketId,
        /// Where they are.
        buffer: BufferId,
        /// How many.
        length: usize,
    },
    /// Nothing more is received: after [`Engine::stop_receiving`], at the client's end of stream, or
    /// for an error. Comes once for each [`Engine::receive`].
    ReceiveEnded {
        /// The socket.
        socket: SocketId,
        /// Why.
        end: ReceiveEnd,
    },
    /// A send is over, and its buffer comes back.
    Sent {
        /// The socket.
        socket: SocketId,
        /// The buffer as it was given.
        buffer: Vec<u8>,
        /// How much of it was sent, from the beginning.
        result: io::Result<usize>,
    },
    /// What became of [`Engine::connect`].
    Connected {
        /// The socket.
        socket: SocketId,
        /// Whether there is a connection.
        result: io::Result<()>,
    },
    /// The peer of a socket that is [watched](Engine::watch) has ended its side, or the connection has
    /// failed. What it had sent before may still have to be received. May come more than once.
    PeerEnded {
        /// The socket.
        socket: SocketId,
        /// The connection has failed; otherwise the peer may go on to receive.
        failed: bool,
    },
    /// The socket is closed and its id free.
    Closed {
        /// The socket.
        socket: SocketId,
    },
}

/// Why a receive ended.
#[derive(Debug)]
pub enum ReceiveEnd {
    /// It was asked to.
    Stopped,
    /// The client has ended its side.
    EndOfStream,
    /// The connection failed.
    Failed(io::Error),
}

/// Options of a connection (tcp(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// Time until the first keep-alive probe, between two, and their number. None: no probes.
    pub keepalive: Option<(Duration, Duration, u32)>,
    /// How long data may remain unacknowledged; None: as long as the kernel retransmits it.
    pub user_timeout: Option<Duration>,
}

impl SocketOptions {
    /// Sets them, and that small messages are sent at once (`TCP_NODELAY`).
    pub fn set(&self, socket: &SockRef<'_>) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        socket.set_keepalive(self.keepalive.is_some())?;
        if let Some((idle, interval, probes)) = self.keepalive {
            let keepalive = TcpKeepalive::new().with_time(idle);
            socket.set_tcp_keepalive(&keepalive.with_interval(interval).with_retries(probes))?;
        }
        socket.set_tcp_user_timeout(self.user_timeout)
    }
}

/// What a worker asks of the kernel. Requests take effect at the next [`wait`](Self::wait).
pub trait Engine {
    /// How long a wait may collect events before it ends, in microseconds. An engine that cannot wait like
    /// that does not.
    fn set_batch_wait(&mut self, _batch_wait_us: u32) {}

    /// Accepts every connection to a listening socket of a service.
    fn listen(&mut self, service: ServiceId, listener: OwnedFd);

    /// Gives a socket other options than those of its listener.
    fn set_options(&mut self, socket: SocketId, options: &SocketOptions) -> io::Result<()>;

    /// Closes all listeners; no [`Event::Accepted`] comes after the next wait.
    fn stop_listening(&mut self);

    /// Receives until [`Event::ReceiveEnded`]. Not while a receive is going on.
    fn receive(&mut self, socket: SocketId);

    /// Ends the receive that is going on. What has been received already still comes.
    fn stop_receiving(&mut self, socket: SocketId);

    /// Looks for the peer's end, from now until the socket is closed, whether it is received from or not:
    /// [`Event::PeerEnded`]. Once is enough.
    fn watch(&mut self, socket: SocketId);

    /// Bytes that the peer has sent and that are not received.
    fn unread(&mut self, socket: SocketId) -> usize;

    /// Sends; the buffer comes back with [`Event::Sent`]. One at a time for each socket.
    fn send(&mut self, socket: SocketId, buffer: Vec<u8>);

    /// Takes a socket that was made elsewhere, and connects it: [`Event::Connected`] says how it
    /// went, and until then nothing else may be done with it but close it. None if there are as many
    /// sockets as may be.
    fn connect(&mut self, socket: OwnedFd, to: SocketAddr) -> Option<SocketId>;

    /// Whether the peer's kernel has acknowledged all that was sent, and has not reset the connection.
    fn is_taken(&mut self, socket: SocketId) -> bool;

    /// Tells the client that nothing more will be sent. Not while a send is going on; a receive goes
    /// on.
    fn shut_down(&mut self, socket: SocketId);

    /// Like [`close`](Self::close), but the peer is told that something went wrong.
    fn abort(&mut self, socket: SocketId);

    /// Ends receive and send if there are any, then closes. [`Event::Closed`] is the last event of
    /// the socket.
    fn close(&mut self, socket: SocketId);

    /// Submits requests and waits for an event, a wake-up ([`crate::ring::Wake`] given at creation)
    /// or the end of `timeout`. With zero it does not wait.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;

    /// The next event of the last wait.
    fn next_event(&mut self) -> Option<Event>;

    /// The bytes of a lent buffer.
    fn bytes(&self, buffer: &BufferId, length: usize) -> &[u8];

    /// Gives a lent buffer back. It may be kept over any number of waits, if all but the [`reserve`] are
    /// given back before the next one.
    fn recycle(&mut self, buffer: BufferId);
}
