//! Connections that are held: not read from until what they wait for is there.
//!
//! ```text
//!             ┌─────────────── something of its own: output, codec, rate ◄──┐
//!             ▼ (it changes)                                                │
//!  hold ─► to be looked at ──► credit of its partition ─► (looked at again) ┤ still blocked
//!             │           └──► room in the ring ────────► (looked at again) ┤
//!             └── nothing stands in the way: reads on ◄─────────────────────┘
//! ```
//!
//! One that waits for something of its own stands in no list: whatever changes that has it looked at.
//! So a turn costs as much as there are connections that may go on, and partitions that somebody waits
//! for, however many are held.
//!
//! A client that ends meanwhile is [noticed](Worker::take_end) at once.

use crate::engine::{Engine, SocketId};

use super::connection::{Client, Connection, Receive, State};
use super::waiting::Wait;

use super::Worker;

/// What of a stash is decoded between two looks at the bounds.
const STASH_PIECE_BYTES: usize = 4 << 10;

/// What a client that is gone has left unread is taken beyond the bounds if it is not more than this:
/// of the order of what the records of a connection's begin and end are booked with.
const REST_BYTES: usize = 4 << 10;

impl<E: Engine> Worker<E> {
    /// Stops reading from a connection until nothing [stands in its way](Self::blocked).
    pub(super) fn hold(&mut self, socket: SocketId) {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        if !connection.held {
            connection.held = true;
            self.stats.holds.add(1);
            self.put_to_wait(socket);
        }
        self.pause(socket);
    }

    /// Reads no more for a while, and looks for the client's end all the same.
    pub(super) fn pause(&mut self, socket: SocketId) {
        self.stop_receiving(socket);
        self.engine.watch(socket);
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
        if !connection.reads() || !(connection.held || connection.quiesced) {
            return;
        }
        let empty = connection.stash.is_empty();
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
            (Client::HasEnded, Receive::Ended) => {
                self.connection(socket).held = false;
                self.waiting.remove(socket);
                self.end_stream(socket);
            }
        }
    }

    /// True if nothing of its own keeps a connection from being read from.
    fn waits_for_others(&mut self, socket: SocketId) -> bool {
        !self.connection(socket).quiesced && matches!(self.blocked(socket), Some(Blocked::By(_)))
    }

    /// Something about a connection has changed: if it waits for that, it is looked at.
    pub(super) fn look_at(&mut self, socket: SocketId) {
        let held = self.connections[socket.index()].as_ref().is_some_and(|one| one.held);
        if held && !self.waiting.has(socket) {
            self.waiting.put(socket, Wait::Look);
        }
    }

    fn put_to_wait(&mut self, socket: SocketId) {
        match self.blocked(socket) {
            None => self.waiting.put(socket, Wait::Look),
            Some(Blocked::Own) => self.waiting.remove(socket),
            Some(Blocked::By(wait)) => self.waiting.put(socket, wait),
        }
    }

    /// What keeps a connection from being read from. Asks for a wake-up when that is not its own.
    pub(super) fn blocked(&mut self, socket: SocketId) -> Option<Blocked> {
        let connection = self.connections[socket.index()].as_ref()?;
        if !connection.reads() {
            return None;
        }
        let own = connection.link.output.bytes() > self.shared.limits.reply_pause_bytes / 2
            || !connection.codec.reads()
            || connection.throttled_until.is_some_and(|until| until > self.now);
        if own {
            return Some(Blocked::Own);
        }
        if let Some(identity) = &connection.link.identity
            && !self.shared.credit.may_resume(identity.partition)
        {
            return Some(Blocked::By(Wait::Credit(identity.partition)));
        }
        (!self.uplink.has_room()).then_some(Blocked::By(Wait::Ring))
    }

    /// True if somebody who is held may go on. Asks for a wake-up where not.
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

    pub(super) fn resume_held(&mut self) {
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
        if self.blocked(socket).is_some() {
            self.put_to_wait(socket);
            return self.take_end(socket);
        }
        if let Some(connection) = &mut self.connections[socket.index()] {
            connection.held = false;
            if !connection.quiesced {
                self.read_on(socket);
            }
        }
    }

    /// Goes on with a connection that is not held any more.
    pub(super) fn read_on(&mut self, socket: SocketId) {
        let connection = self.connections[socket.index()].as_mut().expect("just seen");
        if !connection.reads() {
            return;
        }
        connection.not_read(self.now);
        let mut stash = std::mem::take(&mut connection.stash);
        let mut taken = 0;
        while taken < stash.len() {
            // Piece by piece: what is beyond a bound should stay here.
            let piece = &stash[taken..stash.len().min(taken + STASH_PIECE_BYTES)];
            taken += piece.len();
            self.act(socket, |codec, now, actions| codec.receive(piece, now, actions));
            let connection = self.connection(socket);
            if connection.held || !connection.reads() {
                break;
            }
        }
        // What is about to be handed on takes its rest along.
        let goes_on = matches!(self.connection(socket).state, State::Open | State::HandingOn);
        if taken < stash.len() && goes_on {
            stash.drain(..taken);
            self.connection(socket).stash = stash;
            self.book_memory(socket);
        } else {
            self.keep_stash(stash);
        }
        let connection = self.connection(socket);
        if connection.held || !connection.reads() {
            return self.take_end(socket);
        }
        match connection.receive {
            Receive::Stopped => self.arm_receive(socket),
            Receive::Ended => self.end_stream(socket),
            // Its end arms it again.
            Receive::Armed | Receive::Stopping => {}
        }
    }

    /// How many connections are held. For tests.
    pub fn held(&self) -> usize {
        self.connections.iter().flatten().filter(|connection| connection.is_held()).count()
    }
}

impl Connection {
    /// Waits, and would go on.
    fn is_held(&self) -> bool {
        self.held && self.reads()
    }
}

/// What stands in a held connection's way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Blocked {
    /// Its output, its codec or its rate.
    Own,
    /// What others use too.
    By(Wait),
}
