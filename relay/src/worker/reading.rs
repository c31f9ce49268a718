//! Whether a connection may be read from, and why not.
//!
//! A connection is paused while there is a [reason](super::reasons). This file alone says which there are,
//! and when it is read from again:
//!
//! ```text
//!               ┌─────────────── something of its own: output, codec, rate ◄──┐
//!               ▼ (it changes)                                                │
//!  pause ─► to be looked at ──► credit of its partition ─► (looked at again) ─┤ there is a reason left
//!               │           └──► room in the ring ────────► (looked at again) ┤
//!               └── none is left: reads on ◄──────────────────────────────────┘
//! ```
//!
//! One that waits for something of its own stands in no list: whatever changes that has it looked at.
//! So a turn costs as much as there are connections that may go on, and partitions that somebody waits
//! for, however many are paused.
//!
//! A client that ends meanwhile is [noticed](Worker::take_end) at once.

use std::time::Instant;

use crate::engine::{Engine, SocketId};
use crate::ring::{Credit, UplinkSender};

use super::Worker;
use super::connection::{Client, Connection, Receive};
use super::reasons::Reasons;
use super::waiting::Wait;

/// What a client that is gone has left unread is taken beyond the bounds if it is not more than this:
/// of the order of what the records of a connection's begin and end are booked with.
const REST_BYTES: usize = 4 << 10;

impl Connection {
    /// The bounds that are above the mark at which a pause begins. `has_credit` is what
    /// [`Credit::book`] has said of what was read just now. That the ring is full is seen before
    /// something is read.
    #[inline]
    pub(super) fn begins_to_pause(
        &self,
        pause_bytes: usize,
        now: Instant,
        has_credit: bool,
    ) -> Reasons {
        self.own_reasons(pause_bytes, now) | Reasons::CREDIT.when(!has_credit)
    }

    /// Those of its own, with so much output at most.
    #[inline]
    pub(super) fn own_reasons(&self, most_output: usize, now: Instant) -> Reasons {
        Reasons::OUTPUT.when(self.link.output.bytes() > most_output)
            | Reasons::CODEC.when(!self.codec.reads())
            | Reasons::RATE.when(self.throttled_until.is_some_and(|until| until > now))
    }

    /// The bounds that are above the mark at which a pause may end. Asks for a wake-up where that is not
    /// the connection's own; of what others use too for the first one only, since it waits for one at a
    /// time.
    fn goes_on_to_pause(
        &self,
        pause_bytes: usize,
        now: Instant,
        credit: &Credit,
        ring: &mut UplinkSender,
    ) -> Reasons {
        let own = self.own_reasons(pause_bytes / 2, now);
        if !own.is_empty() {
            return own;
        }
        let identity = self.link.identity.as_ref();
        if identity.is_some_and(|identity| !credit.may_resume(identity.partition)) {
            return Reasons::CREDIT;
        }
        Reasons::RING.when(!ring.has_room())
    }

    /// The list in which it waits until a reason is gone; none for what is its own.
    fn wait(&self, reasons: Reasons) -> Option<Wait> {
        let identity = self.link.identity.as_ref();
        match identity {
            _ if reasons.has(Reasons::OWN) => None,
            Some(identity) if reasons.has(Reasons::CREDIT) => {
                Some(Wait::Credit(identity.partition))
            }
            _ if reasons.has(Reasons::RING) => Some(Wait::Ring),
            _ => Some(Wait::Look),
        }
    }
}

impl<E: Engine> Worker<E> {
    /// Reads no more from a connection while there is a reason not to, and looks for the client's end all
    /// the same.
    pub(super) fn pause(&mut self, socket: SocketId, reasons: Reasons) {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        let before = connection.paused;
        connection.paused = before | reasons;
        if reasons.has(Reasons::BOUNDS) && !before.has(Reasons::BOUNDS) {
            self.stats.holds[reasons.first_bound()].add(1);
            self.stats.held.replace(0, 1);
            connection.held_since = self.now;
            let reasons = self.reasons_left(socket);
            self.put_to_wait(socket, reasons);
        }
        self.stop_receiving(socket);
        self.engine.watch(socket);
    }

    pub(super) fn stop_receiving(&mut self, socket: SocketId) {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        if connection.receive == Receive::Armed {
            connection.receive = Receive::Stopping;
            self.engine.stop_receiving(socket);
        }
    }

    /// Nothing more that comes from a client counts: no bound concerns it any more.
    pub(super) fn end_reading(&mut self, socket: SocketId) {
        self.waiting.remove(socket);
        self.end_hold(socket);
    }

    /// No bound keeps a connection from being read from any more.
    fn end_hold(&mut self, socket: SocketId) {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        if connection.paused.has(Reasons::BOUNDS) {
            connection.paused = connection.paused.without(Reasons::BOUNDS);
            self.stats.held.replace(1, 0);
            let held = self.now.saturating_duration_since(connection.held_since);
            self.stats.held_times.record(held, 1);
        }
    }

    /// The bounds that keep a paused connection from being read from.
    pub(super) fn reasons_left(&mut self, socket: SocketId) -> Reasons {
        let connection = self.connections[socket.index()].as_ref().expect("known to the engine");
        let pause_bytes = self.shared.limits.reply_pause_bytes;
        connection.goes_on_to_pause(pause_bytes, self.now, &self.shared.credit, &mut self.uplink)
    }

    /// Has a paused connection wait until one of these reasons is gone. If there is none, it is looked at
    /// in the next turn, and is paused until then.
    fn put_to_wait(&mut self, socket: SocketId, reasons: Reasons) {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        if !reasons.is_empty() {
            connection.paused = connection.paused.without(Reasons::BOUNDS) | reasons;
        }
        match connection.wait(reasons) {
            Some(wait) => self.waiting.put(socket, wait),
            None => self.waiting.remove(socket),
        }
    }

    /// Something about a connection has changed: if it waits for that, it is looked at.
    pub(super) fn look_at(&mut self, socket: SocketId) {
        let connection = self.connections[socket.index()].as_ref();
        let paused = connection.is_some_and(|one| one.paused.has(Reasons::BOUNDS));
        if paused && !self.waiting.has(socket) {
            self.waiting.put(socket, Wait::Look);
        }
    }

    /// True if somebody who is paused may go on. Asks for a wake-up where not.
    pub(super) fn may_somebody_resume(&mut self) -> bool {
        if self.waiting.count(Wait::Look) > 0
            || self.waiting.count(Wait::Ring) > 0 && self.uplink.has_room()
        {
            return true;
        }
        let (waiting, credit) = (&mut self.waiting, &self.shared.credit);
        (0..)
            .map_while(|place| waiting.crowded(place))
            .any(|partition| credit.may_resume(partition))
    }

    /// Reads on from those that may go on.
    pub(super) fn resume_paused(&mut self) {
        // Whoever is to be looked at again is, in the next turn.
        for _ in 0..self.waiting.count(Wait::Look) {
            self.resume_first(Wait::Look);
        }
        let mut place = 0;
        while let Some(partition) = self.waiting.crowded(place) {
            let wait = Wait::Credit(partition);
            for _ in 0..self.waiting.count(wait) {
                if !self.shared.credit.may_resume(partition) {
                    break;
                }
                self.resume_first(wait);
            }
            place += 1;
        }
        for _ in 0..self.waiting.count(Wait::Ring) {
            if !self.uplink.has_room() {
                break;
            }
            self.resume_first(Wait::Ring);
        }
    }

    fn resume_first(&mut self, wait: Wait) {
        let Some(socket) = self.waiting.pop(wait) else { return };
        let reasons = self.reasons_left(socket);
        if !reasons.is_empty() {
            self.put_to_wait(socket, reasons);
            return self.take_end(socket);
        }
        self.end_hold(socket);
        if self.connection(socket).paused.is_empty() {
            self.read_on(socket);
        }
    }

    /// An order has let a connection go on, at another partition perhaps.
    pub(super) fn release(&mut self, socket: SocketId) {
        let connection = self.connection(socket);
        connection.paused = connection.paused.without(Reasons::MOVE);
        let is_read = connection.paused.is_empty();
        self.list_at_server(socket);
        if is_read {
            self.read_on(socket);
        } else {
            self.waiting.put(socket, Wait::Look);
        }
    }

    /// The client has ended its side, or the connection has failed, whether all before that is received or
    /// not.
    pub(super) fn on_peer_ended(&mut self, socket: SocketId, failed: bool) {
        let connection = self.connection(socket);
        let client = if failed { Client::Gone } else { Client::HasEnded };
        connection.client = connection.client.max(client);
        self.take_end(socket);
    }

    /// Ends a connection that is not read from if its client has done so and nothing is lost thereby; what
    /// its client has left that is too much waits for its turn, and the connection with it. Where it is
    /// read from, its receive comes to the end.
    pub(super) fn take_end(&mut self, socket: SocketId) {
        let connection = self.connection(socket);
        if !connection.reads() || connection.paused.is_empty() {
            return;
        }
        let empty = !connection.has_stash();
        match (connection.client, connection.receive) {
            (Client::There, _) | (_, Receive::Armed | Receive::Stopping) => {}
            (Client::Gone, Receive::Ended) => self.end_failed(socket),
            (Client::Gone, Receive::Stopped) => {
                if self.engine.unread(socket) <= REST_BYTES {
                    self.arm_receive(socket);
                }
            }
            // It may be about to get what keeps it from being read from.
            (Client::HasEnded, _) if !empty || !self.waits_for_others(socket) => {}
            (Client::HasEnded, Receive::Stopped) => {
                if self.engine.unread(socket) == 0 {
                    self.arm_receive(socket);
                }
            }
            (Client::HasEnded, Receive::Ended) => self.end_stream(socket),
        }
    }

    /// True if nothing of its own keeps a connection from being read from.
    fn waits_for_others(&mut self, socket: SocketId) -> bool {
        let moves = self.connection(socket).paused.has(Reasons::MOVE);
        let reasons = self.reasons_left(socket);
        !moves && !reasons.is_empty() && !reasons.has(Reasons::OWN)
    }

    /// How many connections are paused because of a bound. For tests.
    pub fn paused(&self) -> usize {
        let all = self.connections.iter().flatten();
        all.filter(|connection| connection.paused.has(Reasons::BOUNDS)).count()
    }
}
