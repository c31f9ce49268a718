//! What is done with [what was received](super::stash) of a connection before its pause took effect: it is kept
//! back, decoded when the connection is read from again or ends, or handed on with it.

use crate::engine::{BufferId, Engine, SocketId};

use super::Worker;
use super::connection::{Receive, State};
use super::stash::Stash;

/// What of a stash is decoded between two looks at the bounds.
const PIECE_BYTES: usize = 4 << 10;
/// Most stashes that a worker keeps for pauses to come: under back-pressure connections are paused and
/// resumed many times a second.
const MAX_SPARE: usize = 64;
/// A copy with more room is given back to the allocator.
const MAX_SPARE_BYTES: usize = 256 << 10;

impl<E: Engine> Worker<E> {
    /// Keeps what has come of a connection that is not to be read from. Gives the buffer back if it is not
    /// needed for that.
    pub(super) fn keep_back(
        &mut self,
        socket: SocketId,
        buffer: BufferId,
        length: usize,
    ) -> Option<BufferId> {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        let stashes = &mut self.stashes;
        let stash = connection.stash.get_or_insert_with(|| stashes.spare.pop().unwrap_or_default());
        stash.length += length;
        let lends = length >= stashes.worth && stashes.lent < stashes.most_lent;
        let back = if lends && stash.copied.is_empty() {
            stashes.lent += 1;
            stash.lent.push_back((buffer, 0..length));
            None
        } else {
            stash.copied.extend_from_slice(self.engine.bytes(&buffer, length));
            Some(buffer)
        };
        self.book_memory(socket);
        back
    }

    /// Goes on with a connection that is not paused any more.
    pub(super) fn read_on(&mut self, socket: SocketId) {
        let connection = self.connections[socket.index()].as_mut().expect("just seen");
        if !connection.reads() {
            return;
        }
        connection.not_read(self.now);
        if let Some(mut stash) = connection.stash.take() {
            // Piece by piece: what is beyond a bound should stay here.
            let mut is_left = true;
            while is_left && self.connection(socket).is_read() {
                is_left = self.decode_piece(socket, &mut stash);
                self.carry_out(socket);
            }
            // What is about to be handed on takes its rest along.
            let goes_on = matches!(self.connection(socket).state, State::Open | State::HandingOn);
            if goes_on && stash.length > 0 {
                self.connection(socket).stash = Some(stash);
                self.book_memory(socket);
            } else {
                self.spare(stash);
            }
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
        if !connection.reads() {
            return;
        }
        // In one call: a codec that wants an end says so and takes the rest no more.
        let mut received = Vec::new();
        self.take_stash(socket, &mut received);
        if !received.is_empty() {
            self.call(socket, |codec, now, actions| codec.receive(&received, now, actions));
        }
    }

    /// Decodes the first piece; steps that its connection wants are left to be carried out, before the next
    /// one. False if there was nothing.
    fn decode_piece(&mut self, socket: SocketId, stash: &mut Stash) -> bool {
        if let Some((buffer, part)) = stash.lent.pop_front() {
            let end = part.start + part.len().min(PIECE_BYTES);
            stash.length -= end - part.start;
            self.decode(socket, &buffer, part.start..end);
            if end < part.end {
                stash.lent.push_front((buffer, end..part.end));
            } else {
                self.give_back_buffer(buffer);
            }
            return true;
        }
        let rest = &stash.copied[stash.taken..];
        if rest.is_empty() {
            return false;
        }
        let piece = &rest[..rest.len().min(PIECE_BYTES)];
        stash.taken += piece.len();
        stash.length -= piece.len();
        self.call(socket, |codec, now, actions| codec.receive(piece, now, actions));
        true
    }

    /// Moves what a pause has kept back to the end of something else.
    pub(super) fn take_stash(&mut self, socket: SocketId, to: &mut Vec<u8>) {
        let Some(stash) = self.connection(socket).stash.take() else { return };
        for (buffer, part) in &stash.lent {
            to.extend_from_slice(&self.engine.bytes(buffer, part.end)[part.start..]);
        }
        to.extend_from_slice(&stash.copied[stash.taken..]);
        self.spare(stash);
    }

    /// Forgets what a pause has kept back.
    pub(super) fn drop_stash(&mut self, socket: SocketId) {
        if let Some(stash) = self.connection(socket).stash.take() {
            self.spare(stash);
        }
    }

    fn spare(&mut self, mut stash: Box<Stash>) {
        while let Some((buffer, _)) = stash.lent.pop_front() {
            self.give_back_buffer(buffer);
        }
        if stash.copied.capacity() <= MAX_SPARE_BYTES && self.stashes.spare.len() < MAX_SPARE {
            stash.copied.clear();
            (stash.taken, stash.length) = (0, 0);
            self.stashes.spare.push(stash);
        }
    }

    fn give_back_buffer(&mut self, buffer: BufferId) {
        self.stashes.lent -= 1;
        self.engine.recycle(buffer);
    }
}
