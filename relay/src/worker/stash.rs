//! What was received of a connection before its pause took effect.

use crate::engine::{BufferId, Engine, SocketId};

use super::Worker;
use super::connection::{Receive, State};

/// What of a stash is decoded between two looks at the bounds.
const PIECE_BYTES: usize = 4 << 10;
/// Most stashes that a worker keeps for pauses to come: under back-pressure connections are paused and
/// resumed many times a second.
const MAX_SPARE: usize = 64;
/// A larger one is given back to the allocator.
const MAX_SPARE_BYTES: usize = 256 << 10;

/// Empty stashes, for the next connections that are paused with something received.
#[derive(Debug, Default)]
pub(super) struct SpareStashes(Vec<Vec<u8>>);

impl SpareStashes {
    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_default()
    }

    fn keep(&mut self, mut stash: Vec<u8>) {
        let fits = (1..=MAX_SPARE_BYTES).contains(&stash.capacity());
        if fits && self.0.len() < MAX_SPARE {
            stash.clear();
            self.0.push(stash);
        }
    }
}

impl<E: Engine> Worker<E> {
    /// Keeps what has come of a connection that is not to be read from.
    pub(super) fn keep_back(&mut self, socket: SocketId, buffer: &BufferId, length: usize) {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        if connection.stash.capacity() == 0 {
            connection.stash = self.spare_stashes.take();
        }
        connection.stash.extend_from_slice(self.engine.bytes(buffer, length));
        self.book_memory(socket);
    }

    /// Goes on with a connection that is not paused any more.
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
            let piece = &stash[taken..stash.len().min(taken + PIECE_BYTES)];
            taken += piece.len();
            self.act(socket, |codec, now, actions| codec.receive(piece, now, actions));
            if !self.connection(socket).is_read() {
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
            self.spare_stashes.keep(stash);
        }
        let connection = self.connection(socket);
        if !connection.is_read() {
            return self.take_end(socket);
        }
        match connection.receive {
            Receive::Stopped => self.arm_receive(socket),
            Receive::Ended => self.end_stream(socket),
            // Its end arms it again.
            Receive::Armed | Receive::Stopping => {}
        }
    }

    /// Decodes what a pause has kept back, whatever the bounds say, if it still counts: it was read and must
    /// not get lost.
    pub(super) fn deliver_stash(&mut self, socket: SocketId) {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        if !connection.reads() || connection.stash.is_empty() {
            return;
        }
        let stash = std::mem::take(&mut connection.stash);
        self.call(socket, |codec, now, actions| codec.receive(&stash, now, actions));
        self.spare_stashes.keep(stash);
    }
}
