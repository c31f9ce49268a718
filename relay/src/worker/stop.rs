//! The end of a worker's connections when the relay stops.

use super::connection::{Receive, State};
use super::stats::CloseReason;
use super::{Engine, SocketId, Worker};

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
            let whole = self.act(socket, |codec, now, actions| codec.end_of_stream(now, actions));
            self.stats.truncated.add(u64::from(!whole));
        }
        self.flush_and_close(socket, CloseReason::RelayStop);
    }
}
