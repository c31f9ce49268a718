//! A kernel that cuts streams anywhere, delays everything, sends in pieces, resets connections and
//! completes in any order that io_uring may.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use millrace_relay::engine::{BufferId, Engine, Event, ReceiveEnd, SocketId, SocketOptions};
use millrace_relay::model::ServiceId;

use crate::dice::Dice;

/// How a simulated client ends its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Ends its side when everything is sent.
    Close,
    /// Resets after so many bytes.
    Reset(usize),
    /// Stays.
    Stay,
}

/// A client: what it will send, and what became of it.
#[derive(Debug)]
pub struct SimClient {
    /// Whose port it uses.
    pub service: ServiceId,
    /// Its stream.
    pub stream: Vec<u8>,
    /// How it ends.
    pub ending: Ending,
    /// Bytes of the stream that the worker was given.
    pub taken: usize,
    /// Bytes that the worker has sent to it.
    pub received: Vec<u8>,
    /// Its connection is gone.
    pub gone: bool,
    connected: bool,
}

impl SimClient {
    /// A client that has not connected.
    pub fn new(service: ServiceId, stream: Vec<u8>, ending: Ending) -> Self {
        Self {
            service,
            stream,
            ending,
            taken: 0,
            received: Vec::new(),
            gone: false,
            connected: false,
        }
    }

    /// The address of client number `index`.
    pub fn address(index: usize) -> SocketAddr {
        let port = u16::try_from(10_000 + index).expect("few clients");
        SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), port))
    }
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a request that is pending or not")]
struct SimSocket {
    client: usize,
    receiving: bool,
    stopping: bool,
    sending: Option<Vec<u8>>,
    watched: bool,
    closing: bool,
}

/// An engine without a kernel.
#[derive(Debug)]
pub struct FaultyEngine {
    dice: Dice,
    /// The clients, which tests look at.
    pub clients: Vec<SimClient>,
    sockets: Vec<Option<SimSocket>>,
    free: Vec<SocketId>,
    events: VecDeque<Event>,
    /// Lent buffers by id.
    lent: Vec<Option<Vec<u8>>>,
    listening: bool,
}

impl FaultyEngine {
    /// An engine whose clients connect, send and fail as the dice say.
    pub fn new(dice: Dice, clients: Vec<SimClient>) -> Self {
        Self {
            dice,
            clients,
            sockets: Vec::new(),
            free: Vec::new(),
            events: VecDeque::new(),
            lent: Vec::new(),
            listening: true,
        }
    }

    /// Receive buffers that the worker has not given back.
    pub fn lent_buffers(&self) -> usize {
        self.lent.iter().filter(|buffer| buffer.is_some()).count()
    }

    fn connect_one(&mut self) {
        let waiting: Vec<_> = (0..self.clients.len())
            .filter(|index| !self.clients[*index].connected && !self.clients[*index].gone)
            .collect();
        if !self.listening || waiting.is_empty() {
            return;
        }
        let client = waiting[self.dice.below(waiting.len())];
        self.clients[client].connected = true;
        let socket = self.free.pop().unwrap_or_else(|| {
            self.sockets.push(None);
            SocketId(u32::try_from(self.sockets.len() - 1).expect("few sockets"))
        });
        self.sockets[socket.index()] = Some(SimSocket {
            client,
            receiving: false,
            stopping: false,
            sending: None,
            watched: false,
            closing: false,
        });
        self.events.push_back(Event::Accepted {
            socket,
            service: self.clients[client].service,
            client: SimClient::address(client),
            server: SocketAddr::from((Ipv4Addr::new(198, 51, 100, 1), 7000)),
        });
    }

    fn lend(&mut self, bytes: &[u8]) -> BufferId {
        let index = self.lent.iter().position(Option::is_none).unwrap_or_else(|| {
            self.lent.push(None);
            self.lent.len() - 1
        });
        self.lent[index] = Some(bytes.to_vec());
        BufferId(u16::try_from(index).expect("few buffers"))
    }

    fn progress_receive(&mut self, id: SocketId) {
        let slot = self.sockets[id.index()].as_ref().expect("checked");
        let (index, winding_down) = (slot.client, slot.stopping || slot.closing);
        let client = &self.clients[index];
        let until = match client.ending {
            Ending::Reset(at) => at.min(client.stream.len()),
            _ => client.stream.len(),
        };
        // Even a receive that should stop may bring what had come already.
        if client.taken < until && !(winding_down && self.dice.one_in(2)) {
            let length = 1 + self.dice.below((until - client.taken).min(400));
            let bytes = client.stream[client.taken..client.taken + length].to_vec();
            self.clients[index].taken += length;
            let buffer = self.lend(&bytes);
            self.events.push_back(Event::Received { socket: id, buffer, length });
            return;
        }
        let end = if winding_down {
            ReceiveEnd::Stopped
        } else {
            match client.ending {
                Ending::Close => ReceiveEnd::EndOfStream,
                Ending::Reset(_) => ReceiveEnd::Failed(io::ErrorKind::ConnectionReset.into()),
                Ending::Stay => return,
            }
        };
        let slot = self.sockets[id.index()].as_mut().expect("checked");
        slot.receiving = false;
        slot.stopping = false;
        self.events.push_back(Event::ReceiveEnded { socket: id, end });
    }

    /// The end is noticed at any time before it is received, and again.
    fn progress_watch(&mut self, id: SocketId) {
        let client = self.sockets[id.index()].as_ref().expect("checked").client;
        let failed = match self.clients[client].ending {
            Ending::Stay => return,
            Ending::Close => false,
            Ending::Reset(_) => true,
        };
        self.events.push_back(Event::PeerEnded { socket: id, failed });
    }

    fn progress_send(&mut self, id: SocketId) {
        let slot = self.sockets[id.index()].as_mut().expect("checked");
        let buffer = slot.sending.take().expect("checked");
        let client = &mut self.clients[slot.client];
        let reset = matches!(client.ending, Ending::Reset(at) if client.taken >= at);
        let result = if reset || slot.closing {
            Err(io::ErrorKind::ConnectionReset.into())
        } else {
            let sent =
                if self.dice.one_in(3) { 1 + self.dice.below(buffer.len()) } else { buffer.len() };
            client.received.extend_from_slice(&buffer[..sent]);
            Ok(sent)
        };
        self.events.push_back(Event::Sent { socket: id, buffer, result });
    }

    fn progress(&mut self, id: SocketId) {
        let Some(slot) = &self.sockets[id.index()] else { return };
        if slot.sending.is_some() && self.dice.one_in(3) {
            self.progress_send(id);
        }
        let slot = self.sockets[id.index()].as_ref().expect("just seen");
        if slot.receiving && self.dice.one_in(2) {
            self.progress_receive(id);
        }
        let slot = self.sockets[id.index()].as_ref().expect("just seen");
        if slot.watched && !slot.closing && self.dice.one_in(8) {
            self.progress_watch(id);
        }
        let slot = self.sockets[id.index()].as_ref().expect("just seen");
        if slot.closing && !slot.receiving && slot.sending.is_none() {
            self.clients[slot.client].gone = true;
            self.sockets[id.index()] = None;
            self.free.push(id);
            self.events.push_back(Event::Closed { socket: id });
        }
    }

    fn socket(&mut self, id: SocketId) -> &mut SimSocket {
        self.sockets[id.index()].as_mut().expect("the worker names only open sockets")
    }
}

impl Engine for FaultyEngine {
    fn listen(&mut self, _service: ServiceId, _listener: OwnedFd) {}

    fn set_options(&mut self, _: SocketId, _: &SocketOptions) -> io::Result<()> {
        Ok(())
    }

    fn stop_listening(&mut self) {
        self.listening = false;
    }

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
        let client = self.socket(socket).client;
        let client = &self.clients[client];
        let until = match client.ending {
            Ending::Reset(at) => at.min(client.stream.len()),
            Ending::Close | Ending::Stay => client.stream.len(),
        };
        until - client.taken
    }

    fn send(&mut self, socket: SocketId, buffer: Vec<u8>) {
        let slot = self.socket(socket);
        assert!(
            slot.sending.is_none() && !slot.closing && !buffer.is_empty(),
            "one send at a time"
        );
        slot.sending = Some(buffer);
    }

    /// There is nobody to connect to.
    fn connect(&mut self, _socket: OwnedFd, _to: SocketAddr) -> Option<SocketId> {
        None
    }

    fn is_taken(&mut self, socket: SocketId) -> bool {
        let client = self.socket(socket).client;
        let client = &self.clients[client];
        !matches!(client.ending, Ending::Reset(at) if client.taken >= at)
    }

    fn shut_down(&mut self, socket: SocketId) {
        let slot = self.socket(socket);
        assert!(slot.sending.is_none() && !slot.closing, "all is sent");
    }

    fn abort(&mut self, socket: SocketId) {
        self.close(socket);
    }

    fn close(&mut self, socket: SocketId) {
        let slot = self.socket(socket);
        assert!(!slot.closing, "closed once");
        slot.closing = true;
    }

    fn wait(&mut self, _timeout: Duration) -> io::Result<()> {
        assert!(self.events.is_empty(), "the worker takes every event");
        if self.dice.one_in(2) {
            self.connect_one();
        }
        let count = self.sockets.len();
        let first = self.dice.below(count);
        for offset in 0..count {
            let index = (first + offset) % count;
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
        let lent = self.lent[usize::from(buffer.0)].take();
        assert!(lent.is_some(), "given back once");
    }
}
