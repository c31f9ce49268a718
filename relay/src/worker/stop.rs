//! The end of a worker's connections when the relay stops.

use super::connection::{Receive, State};
use super::stats::CloseReason;
use super::{Engine, MAX_SPARE_STASH_BYTES, MAX_SPARE_STASHES, SocketId, Worker};

impl<E: Engine> Worker<E> {
    pub(super) fn begin_stop(&mut self) {
        self.stopping = true;
        self.engine.stop_listening();
        self.end_onward();
        for index in 0..self.connections.len() {
            let Some(connection) = &mut self.connections[index] else { continue };
            let socket = SocketId(u32::try_from(index).expect("sockets are u32"));
            match (connection.state, connection.receive) {
                (State::Open, Receive::Armed) => {
                    connection.receive = Receive::Stopping;
                    self.engine.stop_receiving(socket);
                }
                // Its end stops the connection.
                (State::Open, Receive::Stopping)
                | (State::HandingOn | State::Closing | State::Draining | State::Flushing(_), _) => {
                }
                (State::Open | State::HalfClosed, _) => self.stop_connection(socket),
            }
        }
    }

    /// Delivers what was read of a connection, then closes it.
    pub(super) fn stop_connection(&mut self, socket: SocketId) {
        if self.connection(socket).reads() {
            self.deliver_stash(socket);
        }
        if self.connection(socket).reads() {
            // It is not the client that ends it: its codec hears of that by the reason alone.
            let whole = self.connection(socket).codec.is_between_messages();
            self.stats.truncated.add(u64::from(!whole));
        }
        self.flush_and_close(socket, CloseReason::RelayStop);
    }

    /// Keeps the memory of a few stashes: under back-pressure connections are held and resumed many
    /// times a second.
    pub(super) fn keep_stash(&mut self, mut stash: Vec<u8>) {
        let fits = (1..=MAX_SPARE_STASH_BYTES).contains(&stash.capacity());
        if fits && self.spare_stashes.len() < MAX_SPARE_STASHES {
            stash.clear();
            self.spare_stashes.push(stash);
        }
    }

    /// Decodes what a hold kept back, whatever the bounds say: it was read and must not get lost.
    pub(super) fn deliver_stash(&mut self, socket: SocketId) {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        let stash = std::mem::take(&mut connection.stash);
        if !stash.is_empty() {
            self.act(socket, |codec, now, actions| codec.receive(&stash, now, actions));
        }
        self.keep_stash(stash);
    }
}
