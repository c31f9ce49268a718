//! Connections to brokers, for a thread that waits for all of them at once (epoll(7), edge-triggered).

use std::collections::HashMap;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use millrace_wire::uplink::LinkId;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::ring::Wake;

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
    Connected(TcpStream),
}

type Resolved = (LinkId, io::Result<Vec<SocketAddr>>);

/// All connections of one thread.
#[derive(Debug)]
pub(super) struct Sockets {
    epoll: OwnedFd,
    stages: HashMap<LinkId, Stage>,
    names: (Sender<Resolved>, Receiver<Resolved>),
    wake: Wake,
    buffer: Vec<u8>,
    /// Connections that have failed at once.
    failed: Vec<(LinkId, io::Error)>,
}

impl Sockets {
    /// None yet. The thread is woken by `wake` when a name is looked up.
    pub(super) fn new(wake: Wake) -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            stages: HashMap::new(),
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
        self.stages.remove(&link);
    }

    fn fail(&mut self, link: LinkId, error: io::Error) {
        self.stages.remove(&link);
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
                Ok(None) if flags.contains(EventFlags::OUT) => {
                    self.stages.insert(link, Stage::Connected(socket.into()));
                    each(link, SocketEvent::Connected);
                }
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
            Some(stage) => {
                self.stages.insert(link, stage);
                if flags.contains(EventFlags::OUT) {
                    each(link, SocketEvent::Writable);
                }
            }
            // It was closed by what happened before.
            None => return,
        }
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR)
        {
            self.read(link, each);
        }
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
    pub(super) fn send(&self, link: LinkId, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.stages.get(&link) {
            Some(Stage::Connected(stream)) => {
                let mut stream = stream;
                stream.write_vectored(slices)
            }
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

#[cfg(test)]
mod tests;
