//! Handing on: a connection that is nothing of the service's goes to the server that its client
//! addressed, by another connection in the client's name, and its bytes are moved unread.
//!
//! ```text
//!  client ◄──► socket ── Pipe ── socket ◄──► server
//!              server's address  client's address
//! ```
//!
//! Each side is read only while the other takes what was read; the end of a side is passed on as
//! such, a failure as a reset.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use crate::engine::{Engine, Event, ReceiveEnd, SocketId};
use crate::model::{CloseReason, ServiceId};

use super::Worker;
use super::connection::{Receive, State};
use super::send_buffer::{SendBuffer, Taken};
use super::timers::Timers;

/// A side of a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client = 0,
    Server = 1,
}

impl Side {
    const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// One socket of a pipe.
#[derive(Debug)]
struct End {
    socket: SocketId,
    receive: Receive,
    /// Takes what is sent; not yet while it is being connected.
    connected: bool,
    /// Was told that the other side has ended.
    told: bool,
    /// From the other side, for this one.
    output: SendBuffer,
    /// The engine has closed it.
    gone: bool,
}

impl End {
    fn new(socket: SocketId, receive: Receive, connected: bool) -> Self {
        Self { socket, receive, connected, told: false, output: SendBuffer::default(), gone: false }
    }
}

/// Two connections, and what is on its way between them.
#[derive(Debug)]
struct Pipe {
    client: SocketAddr,
    server: SocketAddr,
    ends: [End; 2],
    /// The service in which it is one of those that its client's address may have.
    counted: Option<ServiceId>,
    /// Both sockets are given back to the engine.
    over: bool,
    /// Tells it from others that had its place.
    serial: u64,
}

impl Pipe {
    /// True if it is the pipe with this serial number and its server has not accepted yet.
    fn awaits_server(&self, serial: u64) -> bool {
        self.serial == serial && !self.over && !self.ends[Side::Server as usize].connected
    }
}

/// The pipes of a worker.
#[derive(Debug, Default)]
pub(super) struct Onward {
    pipes: Vec<Option<Pipe>>,
    free: Vec<usize>,
    places: HashMap<SocketId, (usize, Side)>,
    /// When servers must have accepted: with serial number and place of the pipe.
    deadlines: Timers<(u64, usize)>,
    next_serial: u64,
    /// Connections that are to be handed on, with what was received of them.
    pub(super) asked: Vec<(SocketId, Vec<u8>)>,
}

impl Onward {
    fn add(&mut self, mut pipe: Pipe, deadline: Instant) -> usize {
        self.next_serial += 1;
        pipe.serial = self.next_serial;
        let sockets = [pipe.ends[0].socket, pipe.ends[1].socket];
        let index = self.free.pop().unwrap_or_else(|| {
            self.pipes.push(None);
            self.pipes.len() - 1
        });
        let serial = pipe.serial;
        self.pipes[index] = Some(pipe);
        let pipes = &self.pipes;
        self.deadlines.push(deadline, (serial, index), |_, (serial, index)| {
            pipes[index].as_ref().is_some_and(|pipe| pipe.awaits_server(serial))
        });
        for (socket, side) in sockets.into_iter().zip([Side::Client, Side::Server]) {
            self.places.insert(socket, (index, side));
        }
        index
    }

    /// When a server must have accepted, if one has to.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first()
    }

    /// How many sockets of the engine the pipes have. For the checks between two turns.
    pub(super) fn sockets(&self) -> usize {
        self.places.len()
    }

    fn pipe(&mut self, index: usize) -> &mut Pipe {
        self.pipes[index].as_mut().expect("a pipe is there until both its sockets are gone")
    }
}

impl<E: Engine> Worker<E> {
    /// Takes an event of a socket that belongs to a pipe; gives any other back.
    pub(super) fn take_onward(&mut self, event: Event) -> Option<Event> {
        let socket = match &event {
            Event::Received { socket, .. }
            | Event::ReceiveEnded { socket, .. }
            | Event::Sent { socket, .. }
            | Event::Connected { socket, .. }
            | Event::PeerEnded { socket, .. }
            | Event::Closed { socket } => *socket,
            Event::Accepted { .. } | Event::AcceptFailed { .. } => return Some(event),
        };
        let Some(&(index, side)) = self.onward.places.get(&socket) else { return Some(event) };
        match event {
            Event::Received { buffer, length, .. } => {
                let pipe = self.onward.pipe(index);
                if !pipe.over {
                    let bytes = self.engine.bytes(&buffer, length);
                    pipe.ends[side.other() as usize].output.waiting.extend_from_slice(bytes);
                    self.stats.handed_on_bytes.add(length as u64);
                    self.pass_on(index, side);
                }
                self.engine.recycle(buffer);
            }
            Event::ReceiveEnded { end, .. } => {
                self.onward.pipe(index).ends[side as usize].receive = match end {
                    ReceiveEnd::Stopped => Receive::Stopped,
                    ReceiveEnd::EndOfStream => Receive::Ended,
                    ReceiveEnd::Failed(_) => {
                        self.abort_pipe(index);
                        return None;
                    }
                };
                self.pass_on(index, side);
            }
            Event::Sent { buffer, result, .. } => self.on_sent_onward(index, side, buffer, &result),
            Event::Connected { result, .. } => self.on_connected(index, &result),
            Event::Closed { .. } => self.on_closed_onward(index, side),
            // Its receive comes to the end in its turn.
            Event::PeerEnded { .. } | Event::Accepted { .. } | Event::AcceptFailed { .. } => {}
        }
        None
    }

    /// Hands on what codecs have asked for since the last time.
    pub(super) fn hand_on_asked(&mut self) {
        while let Some((socket, received)) = self.onward.asked.pop() {
            self.hand_on(socket, received);
        }
    }

    fn hand_on(&mut self, socket: SocketId, mut received: Vec<u8>) {
        let connection = self.connection(socket);
        if connection.state == State::Closing {
            return;
        }
        let (client, server) = (connection.link.client, connection.link.server);
        let service = connection.link.service;
        let receive = connection.receive;
        let counted = connection.counted.then_some(service);
        self.take_stash(socket, &mut received);
        if self.stopping {
            return self.close(socket, CloseReason::RelayStop);
        }
        let options = &self.shared.services[service.index()].options;
        let onward = match self.flows.onward(client, server, options) {
            Ok(onward) => onward,
            Err(error) => {
                if error.kind() != io::ErrorKind::Unsupported {
                    tracing::warn!(%error, %client, %server, "a connection was not handed on");
                    self.stats.hand_on_failed.add(1);
                }
                return self.close(socket, CloseReason::Unsupported);
            }
        };
        let Some(other) = self.engine.connect(onward, server) else {
            self.stats.hand_on_failed.add(1);
            self.flows.onward_closed(client, server);
            return self.close(socket, CloseReason::Unsupported);
        };
        self.open += 1;
        self.connections[socket.index()] = None;
        self.stats.of(service).closed[CloseReason::HandedOn as usize].add(1);
        self.stats.handed_on.add(1);
        self.stats.handed_on_bytes.add(received.len() as u64);
        let mut end = End::new(other, Receive::Stopped, false);
        end.output.waiting = received;
        let ends = [End::new(socket, receive, true), end];
        let deadline = self.now + self.shared.services[service.index()].connect;
        let pipe = Pipe { client, server, ends, counted, over: false, serial: 0 };
        let index = self.onward.add(pipe, deadline);
        self.pass_on(index, Side::Client);
    }

    /// Does what can be done for what comes from one side: sends it, reads on or no more, tells the
    /// other side of its end.
    fn pass_on(&mut self, index: usize, from: Side) {
        let pause = self.shared.limits.reply_pause_bytes;
        let pipe = self.onward.pipe(index);
        if pipe.over {
            return;
        }
        let [client, server] = &mut pipe.ends;
        let (from, to) = match from {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        if !to.connected {
            // What the client says before there is a connection is bounded too.
            if to.output.bytes() > pause && from.receive == Receive::Armed {
                from.receive = Receive::Stopping;
                self.engine.stop_receiving(from.socket);
            }
            return;
        }
        if let Some(buffer) = to.output.begin_send() {
            self.engine.send(to.socket, buffer);
        }
        match from.receive {
            Receive::Armed if to.output.bytes() > pause => {
                from.receive = Receive::Stopping;
                self.engine.stop_receiving(from.socket);
            }
            Receive::Stopped if from.connected && to.output.bytes() <= pause / 2 => {
                from.receive = Receive::Armed;
                self.engine.receive(from.socket);
            }
            Receive::Ended if to.output.bytes() == 0 && !to.told => {
                to.told = true;
                self.engine.shut_down(to.socket);
            }
            Receive::Armed | Receive::Stopping | Receive::Stopped | Receive::Ended => {}
        }
        if pipe.ends.iter().all(|end| end.told) {
            self.end_pipe(index, E::close);
        }
    }

    fn on_connected(&mut self, index: usize, result: &io::Result<()>) {
        let pipe = self.onward.pipe(index);
        if pipe.over {
            return;
        }
        if let Err(error) = result {
            tracing::debug!(%error, client = %pipe.client, server = %pipe.server, "not handed on");
            self.stats.hand_on_failed.add(1);
            return self.abort_pipe(index);
        }
        pipe.ends[Side::Server as usize].connected = true;
        self.pass_on(index, Side::Client);
        self.pass_on(index, Side::Server);
    }

    /// Gives up servers that have not accepted in time.
    pub(super) fn end_late_connects(&mut self) {
        while let Some((_, (serial, index))) = self.onward.deadlines.pop(self.now) {
            let pipe = self.onward.pipes[index].as_ref();
            if let Some(pipe) = pipe.filter(|pipe| pipe.awaits_server(serial)) {
                tracing::debug!(client = %pipe.client, server = %pipe.server, "not accepted in time");
                self.stats.hand_on_failed.add(1);
                self.stats.hand_on_timed_out.add(1);
                self.abort_pipe(index);
            }
        }
    }

    fn on_sent_onward(
        &mut self,
        index: usize,
        side: Side,
        buffer: Vec<u8>,
        result: &io::Result<usize>,
    ) {
        let pipe = self.onward.pipe(index);
        if pipe.over {
            return;
        }
        let end = &mut pipe.ends[side as usize];
        match end.output.end_send(buffer, result) {
            Taken::All => self.pass_on(index, side.other()),
            Taken::Part(rest) => self.engine.send(end.socket, rest),
            Taken::Nothing => self.abort_pipe(index),
        }
    }

    fn on_closed_onward(&mut self, index: usize, side: Side) {
        self.open -= 1;
        let pipe = self.onward.pipe(index);
        let end = &mut pipe.ends[side as usize];
        end.gone = true;
        let socket = end.socket;
        let all_gone = pipe.ends.iter().all(|end| end.gone);
        self.onward.places.remove(&socket);
        if all_gone {
            self.onward.pipes[index] = None;
            self.onward.free.push(index);
        }
    }

    /// Resets both sides.
    fn abort_pipe(&mut self, index: usize) {
        self.end_pipe(index, E::abort);
    }

    fn end_pipe(&mut self, index: usize, close: fn(&mut E, SocketId)) {
        let pipe = self.onward.pipe(index);
        if pipe.over {
            return;
        }
        pipe.over = true;
        let (client, server) = (pipe.client, pipe.server);
        self.flows.closed(client, server);
        self.flows.onward_closed(client, server);
        for end in &pipe.ends {
            close(&mut self.engine, end.socket);
        }
        if let Some(service) = pipe.counted {
            self.shared.addresses.leave(service, client.ip());
        }
        self.stats.handed_on_ended.add(1);
    }

    /// The relay stops: nobody else can go on with them, and an end would look like a whole stream.
    pub(super) fn end_onward(&mut self) {
        self.abort_onward(|_| true);
    }

    /// Resets the pipes of some clients; gives how many.
    pub(super) fn abort_onward(&mut self, concerned: impl Fn(SocketAddr) -> bool) -> u64 {
        let mut aborted = 0;
        for index in 0..self.onward.pipes.len() {
            let pipe = self.onward.pipes[index].as_ref();
            if pipe.is_some_and(|pipe| !pipe.over && concerned(pipe.client)) {
                self.abort_pipe(index);
                aborted += 1;
            }
        }
        aborted
    }
}
