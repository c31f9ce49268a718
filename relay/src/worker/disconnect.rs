//! Closing the connections of clients that an operator wants gone.

use std::net::SocketAddr;

use crate::engine::{Engine, SocketId};
use crate::model::CloseReason;
use crate::prefix::Prefix;

use super::Worker;
use super::connection::State;

impl<E: Engine> Worker<E> {
    /// Closes the connections whose clients' addresses lie in a prefix; gives how many.
    ///
    /// A codec may say its last words to a client that takes them. One that is about to be closed for
    /// another reason is not waited for any longer.
    pub(super) fn disconnect(&mut self, clients: Prefix) -> u64 {
        let lies_there = |client: SocketAddr| clients.contains(client.ip().to_canonical());
        let mut disconnected = self.abort_onward(lies_there);
        for index in 0..self.connections.len() {
            let connection = self.connections[index].as_ref();
            let Some(connection) = connection.filter(|one| lies_there(one.link.client)) else {
                continue;
            };
            let socket = SocketId(u32::try_from(index).expect("sockets are u32"));
            match connection.state {
                State::Open | State::HalfClosed => {
                    self.flush_and_close(socket, CloseReason::Disconnected);
                }
                State::Flushing(reason) => self.close(socket, reason),
                State::HandingOn => self.close(socket, CloseReason::Disconnected),
                // Both are out of the books.
                State::Draining => {
                    self.give_back(socket);
                    continue;
                }
                State::Closing => continue,
            }
            disconnected += 1;
        }
        disconnected
    }
}
