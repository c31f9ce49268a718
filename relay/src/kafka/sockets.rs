//! Connections to brokers, for a thread that waits for all of them at once (epoll(7), edge-triggered).

mod stream;

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use millrace_wire::uplink::LinkId;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustls::ClientConfig;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::ring::Wake;
use stream::{Stream, Tls};

/// Events taken at a time.
const EVENTS: usize = 64;
/// Bytes read at a time.
const READ_BYTES: usize = 64 << 10;
/// A broker that has gone without a word is noticed when nothing is asked of it either.
const KEEPALIVE: Duration = Duration::from_mins(1);

/// What has happened to a connection.
#[derive(Debug)]
pub(super) enum SocketEvent<'a> {
    /// It is made.
    Connected,
    /// These bytes have come.
    Received(&'a [u8]),
    /// It takes bytes again.
    Writable,
    /// It could not be made, or is over.
    Failed(io::Error),
}

#[derive(Debug)]
enum Stage {
    /// The name is being looked up.
    Resolving,
    /// The first of the addresses is being tried, and then the others.
    Connecting(Socket, Vec<SocketAddr>),
    /// TLS is being agreed upon.
    Securing(Box<Tls>),
    Connected(Stream),
}

type Resolved = (LinkId, io::Result<Vec<SocketAddr>>);

/// All connections of one thread.
#[derive(Debug)]
pub(super) struct Sockets {
    epoll: OwnedFd,
    stages: HashMap<LinkId, Stage>,
    /// How connections are encrypted, if they are.
    tls: Option<Arc<ClientConfig>>,
    /// Of connections that are being made, whose certificate has to name them.
    hosts: HashMap<LinkId, String>,
    names: (Sender<Resolved>, Receiver<Resolved>),
    wake: Wake,
    buffer: Vec<u8>,
    /// Connections that have failed at once.
    failed: Vec<(LinkId, io::Error)>,
}

impl Sockets {
    /// None yet. The thread is woken by `wake` when a name is looked up.
    pub(super) fn new(wake: Wake, tls: Option<Arc<ClientConfig>>) -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            stages: HashMap::new(),
            tls,
            hosts: HashMap::new(),
            names: channel(),
            wake,
            buffer: vec![0; READ_BYTES],
            failed: Vec::new(),
        })
    }

    /// Readable when there are events.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Begins to connect. Addresses are tried as they are, names are looked up by a thread of their own,
    /// because that may take long (getaddrinfo(3)).
    pub(super) fn connect(&mut self, link: LinkId, host: &str, port: u16) {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if self.tls.is_some() {
            self.hosts.insert(link, host.to_owned());
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            return self.try_addresses(link, vec![SocketAddr::new(address, port)]);
        }
        self.stages.insert(link, Stage::Resolving);
        let (host, tell, wake) = (host.to_owned(), self.names.0.clone(), self.wake.clone());
        let body = move || {
            let found = (&*host, port).to_socket_addrs().map(Iterator::collect);
            // Nobody is interested any more if that fails.
            let _ = tell.send((link, found));
            wake.wake();
        };
        if let Err(error) = std::thread::Builder::new().name("resolve".to_owned()).spawn(body) {
            self.fail(link, error);
        }
    }

    /// Forgets a connection.
    pub(super) fn close(&mut self, link: LinkId) {
        // Closing it takes it out of the epoll, too: nobody has a copy.
        self.forget(link);
    }

    fn forget(&mut self, link: LinkId) {
        self.stages.remove(&link);
        self.hosts.remove(&link);
    }

    fn fail(&mut self, link: LinkId, error: io::Error) {
        self.forget(link);
        self.failed.push((link, error));
    }

    /// The addresses in order, until one can be tried.
    fn try_addresses(&mut self, link: LinkId, mut addresses: Vec<SocketAddr>) {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        while !addresses.is_empty() {
            match self.begin(link, addresses.remove(0)) {
                Ok(socket) => {
                    self.stages.insert(link, Stage::Connecting(socket, addresses));
                    return;
                }
                Err(error) => last = error,
            }
        }
        self.fail(link, last);
    }

    fn begin(&self, link: LinkId, address: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        if let Err(error) = socket.connect(&address.into())
            && error.raw_os_error() != Some(libc::EINPROGRESS)
        {
            return Err(error);
        }
        let events = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, &socket, EventData::new_u64(link.0), events)?;
        Ok(socket)
    }

    /// Passes on what has happened, without waiting.
    pub(super) fn turn(&mut self, mut each: impl FnMut(LinkId, SocketEvent<'_>)) {
        while let Ok((link, found)) = self.names.1.try_recv() {
            // Unless the connection was given up meanwhile.
            if matches!(self.stages.get(&link), Some(Stage::Resolving)) {
                match found {
                    Ok(addresses) => self.try_addresses(link, addresses),
                    Err(error) => self.fail(link, error),
                }
            }
        }
        let mut events = [const { MaybeUninit::<Event>::uninit() }; EVENTS];
        // Interrupted, or too many for once: the next turn takes the rest.
        if !self.stages.is_empty()
            && let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, Some(&NO_TIME))
        {
            for event in events {
                // Copies, because the kernel packs the fields.
                let (data, flags) = (event.data, event.flags);
                self.happened(LinkId(data.u64()), flags, &mut each);
            }
        }
        for (link, error) in self.failed.drain(..) {
            each(link, SocketEvent::Failed(error));
        }
    }

    fn happened(
        &mut self,
        link: LinkId,
        flags: EventFlags,
        each: &mut impl FnMut(LinkId, SocketEvent<'_>),
    ) {
        match self.stages.remove(&link) {
            Some(Stage::Connecting(socket, others)) => match socket.take_error() {
                Ok(None) if flags.contains(EventFlags::OUT) => match self.secure(link, socket) {
                    Ok(stage) => {
                        if !self.connected(link, stage, each) {
                            return;
                        }
                    }
                    Err(error) => return self.fail(link, error),
                },
                Ok(None) => {
                    self.stages.insert(link, Stage::Connecting(socket, others));
                    return;
                }
                Ok(Some(error)) | Err(error) => {
                    drop(socket);
                    return if others.is_empty() {
                        self.fail(link, error);
                    } else {
                        self.try_addresses(link, others);
                    };
                }
            },
            Some(stage @ Stage::Securing(_)) => {
                if !self.connected(link, stage, each) {
                    return;
                }
            }
            Some(mut stage) => {
                let is_writable = flags.contains(EventFlags::OUT);
                if let Stage::Connected(stream) = &mut stage
                    && is_writable
                    && let Err(error) = stream.flush()
                {
                    return self.fail(link, error);
                }
                self.stages.insert(link, stage);
                if is_writable {
                    each(link, SocketEvent::Writable);
                }
            }
            // It was closed by what happened before.
            None => return,
        }
        // With TLS, there may be something that came with the handshake's end.
        let anything = EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        if flags.intersects(anything) || self.tls.is_some() {
            self.read(link, each);
        }
    }

    /// What a connection is after TCP has made it.
    fn secure(&mut self, link: LinkId, socket: Socket) -> io::Result<Stage> {
        let socket = socket.into();
        let Some(tls) = &self.tls else { return Ok(Stage::Connected(Stream::Plain(socket))) };
        let host = self.hosts.remove(&link).unwrap_or_default();
        Ok(Stage::Securing(Tls::new(tls, &host, socket)?))
    }

    /// Goes on with the handshake of TLS, if there is one. True if the connection may be used.
    fn connected(
        &mut self,
        link: LinkId,
        stage: Stage,
        each: &mut impl FnMut(LinkId, SocketEvent<'_>),
    ) -> bool {
        let stage = match stage {
            Stage::Securing(mut tls) => match tls.handshake() {
                Ok(true) => Stage::Connected(Stream::Tls(tls)),
                Ok(false) => Stage::Securing(tls),
                Err(error) => {
                    self.fail(link, error);
                    return false;
                }
            },
            stage => stage,
        };
        let is_made = matches!(stage, Stage::Connected(_));
        self.stages.insert(link, stage);
        if is_made {
            each(link, SocketEvent::Connected);
        }
        is_made
    }

    /// All that there is.
    fn read(&mut self, link: LinkId, each: &mut impl FnMut(LinkId, SocketEvent<'_>)) {
        let Some(Stage::Connected(stream)) = self.stages.get_mut(&link) else { return };
        let failed = loop {
            match stream.read(&mut self.buffer) {
                Ok(0) => {
                    break io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the broker");
                }
                Ok(count) => each(link, SocketEvent::Received(&self.buffer[..count])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
        };
        self.fail(link, failed);
    }

    /// Sends as much as the connection takes.
    pub(super) fn send(&mut self, link: LinkId, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.stages.get_mut(&link) {
            Some(Stage::Connected(stream)) => stream.write(slices),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
