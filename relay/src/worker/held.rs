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

use crate::engine::{Engine, SocketId};

use super::connection::{Connection, Receive, State};
use super::waiting::Wait;

use super::Worker;

/// What of a stash is decoded between two looks at the bounds.
const STASH_PIECE_BYTES: usize = 4 << 10;

impl<E: Engine> Worker<E> {
    /// Stops reading from a connection until nothing [stands in its way](Self::blocked).
    pub(super) fn hold(&mut self, socket: SocketId) {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        if !connection.held {
            connection.held = true;
            self.stats.holds.add(1);
            self.put_to_wait(socket);
        }
        self.stop_receiving(socket);
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
            return self.put_to_wait(socket);
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
            return;
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
