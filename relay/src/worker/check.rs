//! What must hold between two turns of a worker.

use crate::engine::{Engine, SocketId};

use super::Worker;
use super::connection::{Client, Connection, Receive, State};
use super::orders;
use super::reasons::Reasons;
use super::waiting::Wait;

impl<E: Engine> Worker<E> {
    /// Panics unless everything holds that must hold when a [step](Self::step) has ended: each connection
    /// stands in the lists in which it should, and in no other; one is received from if and only if it is not
    /// paused; what is counted and booked is there. Looks at every connection: for tests that own the loop.
    pub fn check(&self) {
        assert!(self.steps.is_empty(), "an end is not carried out: {:?}", self.steps);
        assert!(self.onward.asked.is_empty() && self.to_send.is_empty());
        self.waiting.check();
        self.at_servers.check();
        let (mut booked, mut waiting, mut at_servers, mut served) = (0, 0, 0, 0);
        let mut lent = 0;
        for (index, connection) in self.connections.iter().enumerate() {
            let Some(connection) = connection else { continue };
            let socket = SocketId(u32::try_from(index).expect("sockets are u32"));
            let what = || format!("{socket:?}: {connection:?}");
            assert_eq!(connection.booked_bytes, connection.kept_bytes().0, "{}", what());
            assert_eq!(connection.link.key.slot, socket.0, "{}", what());
            booked += connection.booked_bytes;
            lent += connection.stash.as_ref().map_or(0, |stash| stash.lent.len());
            waiting += usize::from(self.waiting.has(socket));
            at_servers += usize::from(self.at_servers.has(socket));
            served += u64::from(!matches!(connection.state, State::Draining | State::Closing));
            assert!(self.is_read_unless_paused(connection), "{}", what());
            assert!(self.waits_where_it_should(socket, connection), "{}", what());
            assert!(self.stands_at_its_server(socket, connection), "{}", what());
            assert!(connection.will_be_looked_at(), "{}", what());
        }
        assert_eq!(self.stats.connection_bytes.get(), booked as u64, "bytes that are kept");
        assert_eq!(self.stats.held.get(), self.paused() as u64, "connections that are held back");
        assert_eq!(self.stashes.lent, lent, "buffers that are kept");
        assert_eq!(self.stats.connections(), served, "connections that are counted as open");
        assert_eq!(self.waiting.length(), waiting, "nobody else waits");
        assert_eq!(self.at_servers.length(), at_servers, "nobody else is at a server");
        let sockets = self.connections.iter().flatten().count() + self.onward.sockets();
        let sockets = sockets + self.turned_away;
        assert_eq!(self.open, sockets, "sockets of the engine");
    }

    /// Received from if and only if there is no reason against it, but for the end of a client that has gone.
    fn is_read_unless_paused(&self, connection: &Connection) -> bool {
        let paused = !connection.paused.is_empty();
        match connection.receive {
            _ if !connection.reads() => !connection.paused.has(Reasons::BOUNDS),
            Receive::Armed => !paused || connection.client != Client::There,
            Receive::Stopping => paused || self.stopping || !connection.has_stash(),
            Receive::Stopped | Receive::Ended => paused,
        }
    }

    /// In the list of the bound that it waits for, or in none if that is its own.
    fn waits_where_it_should(&self, socket: SocketId, connection: &Connection) -> bool {
        let paused = connection.paused;
        if !paused.has(Reasons::BOUNDS) {
            return !self.waiting.has(socket) && !connection.is_stuck();
        }
        match self.waiting.of(socket) {
            // It is looked at when all of its output is sent, and may be before.
            None => !connection.own_reasons(0, self.now).is_empty(),
            Some(Wait::Look) => true,
            Some(Wait::Ring) => paused.has(Reasons::RING),
            Some(Wait::Credit(partition)) => {
                let identity = connection.link.identity.as_ref();
                paused.has(Reasons::CREDIT)
                    && identity.is_some_and(|identity| identity.partition == partition)
            }
        }
    }

    /// In the list of its server as long as it is in the books there.
    fn stands_at_its_server(&self, socket: SocketId, connection: &Connection) -> bool {
        let link = &connection.link;
        match link.identity.as_ref().filter(|_| link.who.is_some()) {
            Some(identity) => {
                self.at_servers.list_of(socket)
                    == Some(orders::list(identity.server, connection.moves()))
            }
            None => !self.at_servers.has(socket) && !connection.moves(),
        }
    }
}

impl Connection {
    /// Something is kept back though nothing keeps it from being read.
    fn is_stuck(&self) -> bool {
        self.is_read() && self.has_stash()
    }

    /// One that is over has a time at which it is looked at; and what is there for a client is sent.
    fn will_be_looked_at(&self) -> bool {
        let link = &self.link;
        let sends = link.output.bytes() == 0 || link.output.buffer.is_sending();
        match self.state {
            State::Open | State::HandingOn => sends,
            State::HalfClosed => {
                let waits = self.codec.owes() || link.is_waiting();
                sends && (waits || self.lingers_until.is_some())
            }
            State::Flushing(_) => sends && self.lingers_until.is_some(),
            State::Draining => self.lingers_until.is_some(),
            State::Closing => true,
        }
    }
}
