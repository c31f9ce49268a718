//! A worker: one thread, one engine, its connections and their limits.
//!
//! The loop: submit and wait · what came in · replies · connections that may be read again · sends ·
//! hand the batch over. Nothing in it blocks but the wait.

mod actions;
mod behind;
mod check;
mod connection;
mod departed;
mod disconnect;
mod ending;
mod kept_back;
mod lag;
mod limits;
mod lists;
mod onward;
mod orders;
mod reading;
mod reasons;
mod replies;
mod send_buffer;
mod settlement;
mod shared;
mod stash;
mod stats;
mod step;
mod stop;
#[cfg(test)]
mod tests;
mod timers;
mod tuning;
mod unconfirmed;
mod waiting;

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::engine::{BufferId, Engine, Event, ReceiveEnd, SocketId};
use crate::model::{CloseReason, ConnectionKey, ServiceId};
use crate::ring::{DownlinkReceiver, DownlinkSender, UplinkSender, Wake};
use crate::stop::StopPart;

use actions::CodecActions;
use connection::{Client, Connection, Receive, State};
use departed::Departed;
use lists::Lists;
use onward::Onward;
use reasons::Reasons;
use settlement::Settlement;
use stash::Stashes;
use step::Step;
use timers::Timers;
use waiting::Waiting;

pub use limits::{Addresses, Rate};
pub use orders::{OrderAnswer, OrderReceiver, Orders, Task};
pub use reasons::BOUNDS;
pub use shared::{Flows, LiveSettings, NoGateway, Served, Shared};
pub use stats::{ServiceStats, WorkerStats};

/// Longest wait; so often a worker looks at the clock when nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// And while the relay stops: not all that it waits for then wakes it.
const STOP_TICK: Duration = Duration::from_millis(10);

/// A connection: its socket, and which user of that it is.
type Whose = (SocketId, u32);

/// The connection, unless its socket has another user by now.
fn of(connections: &[Option<Connection>], (socket, generation): Whose) -> Option<&Connection> {
    connections[socket.index()].as_ref().filter(|one| one.generation() == generation)
}

/// What a worker is made from, beside its engine.
pub struct WorkerParts {
    /// Its number, from 0.
    pub index: u8,
    /// What it shares with the others.
    pub shared: Shared,
    /// The wake that its engine and both its rings were made with.
    pub wake: Wake,
    /// Whom it tells about its connections.
    pub flows: Box<dyn Flows>,
    /// To the producer.
    pub uplink: UplinkSender,
    /// From the Kafka threads.
    pub downlink: DownlinkReceiver,
    /// From the control plane.
    pub orders: OrderReceiver,
    /// What it counts.
    pub stats: Arc<WorkerStats>,
    /// The rings to all workers in their order, this one included: a client that connects again may have
    /// been at any of them.
    pub peers: Vec<DownlinkSender>,
}

/// A worker.
pub struct Worker<E> {
    index: u8,
    shared: Shared,
    engine: E,
    wake: Wake,
    flows: Box<dyn Flows>,
    uplink: UplinkSender,
    downlink: DownlinkReceiver,
    settlement: Settlement,
    orders: OrderReceiver,
    /// Connections by server: those that are read from, and those that may be moved.
    at_servers: Lists,
    /// Receipts of orders that are carried out once everything is handed over.
    unanswered: Vec<Arc<OrderAnswer>>,
    stats: Arc<WorkerStats>,
    connections: Vec<Option<Connection>>,
    open: usize,
    /// Sockets among them that have no connection here: no service has their destination.
    turned_away: usize,
    departed: Departed,
    next_generation: u32,
    /// Connections that are paused for a bound, by what they wait for.
    waiting: Waiting,
    stashes: Stashes,
    /// Connections with output and no send going on.
    to_send: Vec<SocketId>,
    /// Connections that may have replies of the downlink to read or to confirm, and when the first of
    /// those came, or an earlier one.
    owing: Timers<Whose>,
    /// Half-closed, flushing and draining connections: the time that is over first comes first.
    lingering: Timers<Whose>,
    /// Times at which connections are looked at. One that was changed since stands here twice.
    timers: Timers<Whose>,
    /// The rings to all workers, this one included.
    peers: Vec<DownlinkSender>,
    /// Connections whose clients have connected again, and whose workers do not know it yet.
    to_evict: Vec<ConnectionKey>,
    /// What is left to be done towards the end of the connection that is dealt with, the next one last; empty
    /// between two connections.
    steps: Vec<Step>,
    /// Connections that are handed on.
    onward: Onward,
    /// The time of this step.
    now: Instant,
    stopping: bool,
    /// The time of the stop is over for connections.
    out_of_time: bool,
}

impl<E: Engine> Worker<E> {
    /// A worker without connections.
    pub fn new(engine: E, parts: WorkerParts) -> Self {
        let WorkerParts { index, shared, wake, flows, uplink, downlink, orders, stats, peers } =
            parts;
        let stashes = Stashes::new(&shared.limits);
        Self {
            index,
            shared,
            engine,
            wake,
            flows,
            uplink,
            downlink,
            settlement: Settlement::new(),
            orders,
            at_servers: Lists::default(),
            unanswered: Vec::new(),
            stats,
            connections: Vec::new(),
            open: 0,
            turned_away: 0,
            departed: Departed::default(),
            next_generation: 0,
            waiting: Waiting::default(),
            stashes,
            to_send: Vec::new(),
            owing: Timers::default(),
            lingering: Timers::default(),
            timers: Timers::default(),
            peers,
            to_evict: Vec::new(),
            steps: Vec::new(),
            onward: Onward::default(),
            now: Instant::now(),
            stopping: false,
            out_of_time: false,
        }
    }

    /// Accepts the connections of a listening socket for a service.
    pub fn listen(&mut self, service: ServiceId, listener: OwnedFd) {
        self.engine.listen(service, listener);
    }

    /// Runs until the relay stops. An error is the engine's, and the end of the relay.
    pub fn run(mut self) -> io::Result<()> {
        while !self.is_done() {
            let timeout = self.prepare_wait();
            let waited = self.engine.wait(timeout);
            self.wake.awake();
            waited?;
            self.step();
        }
        // What came too late is counted.
        self.take_replies();
        self.settlement.publish(&self.downlink);
        self.take_orders();
        self.give_answers();
        self.uplink.end();
        Ok(())
    }

    /// Deals with everything that the last wait brought. For tests that own the loop.
    pub fn step(&mut self) {
        self.stats.loops.add(1);
        self.now = Instant::now();
        self.uplink.begin_turn(self.now);
        while let Some(event) = self.engine.next_event() {
            if let Some(event) = self.take_onward(event) {
                self.on_event(event);
                self.hand_on_asked();
            }
        }
        self.take_replies();
        self.take_orders();
        self.resume_paused();
        self.end_lingering();
        self.run_timers();
        self.end_late_connects();
        self.end_stalled();
        self.evict();
        if self.shared.stop.load(Ordering::SeqCst) {
            self.go_on_stopping();
        }
        self.hand_on_asked();
        self.start_sends();
        self.settlement.publish(&self.downlink);
        self.settlement.tell_times(self.now, &self.stats.reply_times);
        self.say_room();
        if self.uplink.hand_over() {
            self.give_answers();
        }
    }

    /// True when the relay stops, no connection is left and everything is handed over, or nobody is
    /// there to take it; or when the time for all that is over.
    pub fn is_done(&mut self) -> bool {
        self.stopping
            && (self.shared.stop_time.is_over(StopPart::Rest)
                || self.open == 0
                    && (self.uplink.hand_over() || self.uplink.is_abandoned())
                    && self.settlement.is_said())
    }

    /// The engine, for tests that own the loop.
    pub fn engine(&mut self) -> &mut E {
        &mut self.engine
    }

    /// Says that the thread sleeps and looks once more for what would not wake it then.
    fn prepare_wait(&mut self) -> Duration {
        self.wake.announce_sleep();
        // Failing, it asks to be woken when a batch comes back.
        if self.uplink.hand_over() {
            self.give_answers();
        }
        let work = self.has_replies()
            || self.orders.has_order()
            || (!self.stopping && self.shared.stop.load(Ordering::SeqCst))
            || self.is_done()
            || self.may_somebody_resume()
            || !self.to_send.is_empty()
            || !self.to_evict.is_empty();
        if work {
            self.wake.awake();
            return Duration::ZERO;
        }
        let deadlines = [self.lingering.first(), self.timers.first(), self.onward.deadline()];
        let tick = if self.stopping { STOP_TICK } else { TICK };
        match deadlines.into_iter().flatten().min() {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()).min(tick),
            None => tick,
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Accepted { socket, service, client, server } => {
                self.on_accepted(socket, service, client, server);
            }
            Event::AcceptFailed { error } => self.on_accept_failed(&error),
            Event::Received { socket, buffer, length } => {
                if let Some(buffer) = self.on_received(socket, buffer, length) {
                    self.engine.recycle(buffer);
                }
            }
            Event::ReceiveEnded { socket, end } => self.on_receive_ended(socket, &end),
            Event::Sent { socket, buffer, result } => self.on_sent(socket, buffer, &result),
            Event::PeerEnded { socket, failed } => self.on_peer_ended(socket, failed),
            // Only of those that are handed on.
            Event::Connected { .. } => {}
            Event::Closed { socket } => {
                match self.connections.get_mut(socket.index()).and_then(Option::take) {
                    Some(connection) => self.departed.add(connection),
                    None => self.turned_away -= 1,
                }
                self.open -= 1;
            }
        }
    }

    fn connection(&mut self, socket: SocketId) -> &mut Connection {
        self.connections[socket.index()].as_mut().expect("the engine knows the socket")
    }

    fn on_accepted(
        &mut self,
        socket: SocketId,
        listener: ServiceId,
        client: SocketAddr,
        server: SocketAddr,
    ) {
        self.open += 1;
        let Some(service) = self.shared.sharing.choose(listener, server) else {
            self.stats.no_service.add(1);
            self.turned_away += 1;
            tracing::warn!(%client, %server, "no service of this port has this destination; the connection is reset");
            return self.engine.abort(socket);
        };
        if self.connections.len() <= socket.index() {
            self.connections.resize_with(socket.index() + 1, || None);
        }
        self.stats.of(service).accepted.add(1);
        self.next_generation = self.next_generation.wrapping_add(1);
        let key = ConnectionKey {
            relay: self.shared.relay,
            incarnation: self.shared.incarnation,
            worker: self.index,
            slot: socket.0,
            generation: self.next_generation,
        };
        let codec = self.shared.services[service.index()].protocol.codec(self.now);
        let connection = Connection::new(key, (client, server), service, codec, self.now);
        self.connections[socket.index()] = Some(connection);
        let most = self.shared.services[service.index()].connections_per_address;
        let counted =
            most.is_none_or(|most| self.shared.addresses.enter(service, client.ip(), most));
        self.connection(socket).counted = most.is_some() && counted;
        if let Err(error) = self.take_options(socket, listener, service) {
            tracing::debug!(%error, %client, "options of a socket");
            return self.close(socket, CloseReason::ConnectionFailed);
        }
        if let Err(error) = self.flows.accepted(client, server) {
            tracing::warn!(%error, %client, "a flow was not accepted; its connection is closed");
            return self.close(socket, CloseReason::FlowTableFull);
        }
        if self.stopping {
            return self.close(socket, CloseReason::RelayStop);
        }
        if !self.shared.services[service.index()].accept {
            return self.flush_and_close(socket, CloseReason::NotAccepted);
        }
        if !counted {
            return self.flush_and_close(socket, CloseReason::TooManyConnections);
        }
        self.act(socket, |codec, _, actions| codec.opened(actions));
        if self.connection(socket).reads() {
            self.arm_receive(socket);
        }
    }

    /// A connection has the options of its listener, which another service of the port may have made.
    fn take_options(
        &mut self,
        socket: SocketId,
        listener: ServiceId,
        service: ServiceId,
    ) -> io::Result<()> {
        let [had, wanted] =
            [listener, service].map(|one| self.shared.services[one.index()].options);
        if had == wanted { Ok(()) } else { self.engine.set_options(socket, &wanted) }
    }

    fn on_accept_failed(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::QuotaExceeded => self.stats.connection_limit.add(1),
            // Gone again before it was looked at.
            io::ErrorKind::NotConnected => self.stats.accept_failed.add(1),
            _ => {
                self.stats.accept_failed.add(1);
                self.say_starved(error);
                tracing::warn!(%error, "a connection could not be accepted");
            }
        }
    }

    fn arm_receive(&mut self, socket: SocketId) {
        self.connection(socket).receive = Receive::Armed;
        self.engine.receive(socket);
    }

    /// Decodes what has come, or keeps it back. Gives the buffer back if it is not needed for that.
    fn on_received(
        &mut self,
        socket: SocketId,
        buffer: BufferId,
        length: usize,
    ) -> Option<BufferId> {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        self.stats.of(connection.link.service).received_bytes.add(length as u64);
        if connection.state == State::Draining {
            connection.heard = self.now;
        }
        if !connection.reads() {
            return Some(buffer);
        }
        connection.heard = self.now;
        if !connection.paused.is_empty() {
            return self.keep_back(socket, buffer, length);
        }
        if !self.uplink.has_room() {
            self.pause(socket, Reasons::RING);
            return self.keep_back(socket, buffer, length);
        }
        self.decode(socket, &buffer, 0..length);
        self.carry_out(socket);
        Some(buffer)
    }

    /// Decodes a part of a buffer. Steps that its connection wants are left to be carried out.
    #[inline]
    fn decode(&mut self, socket: SocketId, buffer: &BufferId, part: Range<usize>) {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        let bytes = &self.engine.bytes(buffer, part.end)[part.start..];
        let Connection { link, codec, .. } = connection;
        let settlement = (&mut self.settlement, &self.downlink);
        let mut actions = CodecActions::new(&self.shared, &mut self.uplink, link, settlement);
        codec.receive(bytes, self.now, &mut actions);
        let wishes = actions.finish(&self.stats);
        self.fulfil(socket, wishes);
    }

    fn on_receive_ended(&mut self, socket: SocketId, end: &ReceiveEnd) {
        let stopping = self.stopping;
        let connection = self.connection(socket);
        if connection.state == State::Draining {
            return match end {
                ReceiveEnd::Stopped => self.arm_receive(socket),
                ReceiveEnd::EndOfStream | ReceiveEnd::Failed(_) => self.give_back(socket),
            };
        }
        match end {
            ReceiveEnd::Stopped => connection.receive = Receive::Stopped,
            ReceiveEnd::EndOfStream => {
                connection.receive = Receive::Ended;
                connection.client = connection.client.max(Client::HasEnded);
            }
            ReceiveEnd::Failed(_) => {
                connection.receive = Receive::Ended;
                return self.end_failed(socket);
            }
        }
        if !connection.reads() {
            return;
        }
        if stopping {
            self.stop_connection(socket);
        } else if connection.paused.is_empty() {
            self.read_on(socket);
        } else {
            self.take_end(socket);
        }
    }

    /// Sees to it that the worker looks at a connection when its time is over. A later time than was
    /// known needs nothing: it is found when the earlier one comes.
    fn set_timer(&mut self, socket: SocketId) {
        let patience = self.patience();
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        if !connection.writes() {
            return;
        }
        let served = &self.shared.services[connection.link.service.index()];
        let deadline = connection.deadline(served, patience).map(|(at, _)| at);
        let throttled = connection.throttled_until.filter(|until| *until > self.now);
        if let Some(at) = deadline.into_iter().chain(throttled).min()
            && connection.timer.is_none_or(|timer| at < timer)
        {
            connection.timer = Some(at);
            let (whose, connections) = ((socket, connection.generation()), &self.connections);
            self.timers.push(at, whose, |at, whose| {
                of(connections, whose).is_some_and(|connection| connection.timer == Some(at))
            });
        }
    }

    /// How long a client may leave unread what it was sent.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(u64::from(self.shared.limits.reply_timeout_ms))
    }

    fn run_timers(&mut self) {
        let patience = self.patience();
        while let Some((at, (socket, generation))) = self.timers.pop(self.now) {
            let connection = self.connections[socket.index()].as_mut();
            let Some(connection) = connection.filter(|one| one.generation() == generation) else {
                continue;
            };
            if connection.timer != Some(at) || !connection.writes() {
                continue;
            }
            connection.timer = None;
            if !connection.paused.is_empty() {
                connection.not_read(self.now);
                // It may be the end of its pause.
                self.look_at(socket);
            }
            let connection = self.connections[socket.index()].as_mut().expect("just seen");
            let served = &self.shared.services[connection.link.service.index()];
            match connection.deadline(served, patience).filter(|(at, _)| *at <= self.now) {
                Some((_, Some(CloseReason::SlowReader))) => self.give_up(socket),
                Some((_, Some(reason))) => self.flush_and_close(socket, reason),
                Some((_, None)) => {
                    self.act(socket, |codec, now, actions| codec.elapsed(now, actions));
                }
                None => self.set_timer(socket),
            }
        }
    }
}
