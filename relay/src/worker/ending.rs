//! How connections end: half-closed, flushed, drained, closed.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use crate::codec::Headers;
use crate::ring::{Kind, Receipt, Return};

use super::connection::{Receive, State};
use super::stats::{CloseReason, UndeliveredReason};
use super::{Engine, SocketId, Worker};

impl<E: Engine> Worker<E> {
    /// The client has ended its side, and everything before that is decoded.
    pub(super) fn end_stream(&mut self, socket: SocketId) {
        self.connection(socket).state = State::HalfClosed;
        let whole = self.act(socket, |codec, now, actions| codec.end_of_stream(now, actions));
        self.stats.truncated.add(u64::from(!whole));
        let connection = self.connection(socket);
        if connection.state == State::HalfClosed && !connection.codec.owes() {
            self.linger(socket);
        }
    }

    /// Gives a connection the time that is left for replies.
    pub(super) fn linger(&mut self, socket: SocketId) {
        let limits = &self.shared.limits;
        let (half_close_ms, reply_timeout_ms) = (limits.half_close_ms, limits.reply_timeout_ms);
        let stopping = self.stopping;
        let now = Instant::now();
        let connection = self.connection(socket);
        // A response that ends with its connection may take as long as any other.
        let whole = matches!(connection.state, State::Flushing(_)) && connection.codec.lingers();
        let time = if whole && !stopping { reply_timeout_ms } else { half_close_ms };
        let until = now + Duration::from_millis(u64::from(time));
        connection.lingers_until = Some(until);
        let generation = connection.generation();
        self.lingering.push(Reverse((until, socket, generation)));
    }

    pub(super) fn end_lingering(&mut self) {
        while let Some(Reverse((deadline, socket, generation))) = self.lingering.peek().copied()
            && deadline <= Instant::now()
        {
            self.lingering.pop();
            let Some(connection) = &self.connections[socket.index()] else { continue };
            if connection.generation() != generation || connection.lingers_until != Some(deadline) {
                continue;
            }
            match connection.state {
                // It gets what is there for it, and its time anew with the last of that.
                State::HalfClosed if connection.link.is_waiting() => {}
                State::HalfClosed => self.flush_and_close(socket, CloseReason::EndOfStream),
                State::Flushing(reason) => self.close(socket, reason),
                State::Draining => self.give_back(socket),
                State::Open | State::HandingOn | State::Closing => {}
            }
        }
    }

    /// Lets the codec say its last words, reads no more, sends what is there, closes.
    pub(super) fn flush_and_close(&mut self, socket: SocketId, reason: CloseReason) {
        if self.connection(socket).writes() {
            self.act(socket, |codec, now, actions| codec.farewell(reason, now, actions));
            self.finish(socket, reason);
        }
    }

    /// Reads no more, sends what is there, closes.
    pub(super) fn finish(&mut self, socket: SocketId, reason: CloseReason) {
        let connection = self.connection(socket);
        if !connection.writes() {
            return;
        }
        if connection.link.output.bytes() == 0 {
            return self.close(socket, reason);
        }
        connection.state = State::Flushing(reason);
        self.stop_receiving(socket);
        self.linger(socket);
    }

    /// All is sent.
    pub(super) fn end_flushing(&mut self, socket: SocketId, reason: CloseReason) {
        let connection = self.connection(socket);
        if !connection.codec.lingers() || connection.receive == Receive::Ended {
            return self.close(socket, reason);
        }
        connection.state = State::Draining;
        let receive = connection.receive;
        self.leave(socket, reason);
        self.engine.shut_down(socket);
        if receive == Receive::Stopped {
            self.arm_receive(socket);
        }
        self.linger(socket);
    }

    /// Closes at once.
    pub(super) fn close(&mut self, socket: SocketId, reason: CloseReason) {
        match self.connection(socket).state {
            State::Closing => {}
            State::Draining => self.give_back(socket),
            State::Open | State::HalfClosed | State::HandingOn | State::Flushing(_) => {
                self.connection(socket).state = State::Closing;
                self.leave(socket, reason);
                self.give_back(socket);
            }
        }
    }

    /// Gives a connection that is out of the books back to the engine.
    pub(super) fn give_back(&mut self, socket: SocketId) {
        let connection = self.connection(socket);
        connection.state = State::Closing;
        let (client, server) = (connection.link.client, connection.link.server);
        self.flows.closed(client, server);
        self.engine.close(socket);
    }

    /// Takes a connection out of the books.
    pub(super) fn leave(&mut self, socket: SocketId, reason: CloseReason) {
        self.connection(socket).stash = Vec::new();
        self.act(socket, |codec, now, actions| codec.ended(reason, now, actions));
        let connection = self.connections[socket.index()].as_mut().expect("just seen");
        let link = &mut connection.link;
        if connection.counted {
            self.shared.addresses.leave(link.service, link.client.ip());
        }
        self.stats.closed[reason as usize].add(1);
        let mut unsent = std::mem::take(&mut link.output.receipts);
        let (kept, delivery) = link.kept.give_up();
        unsent.extend(kept);
        if link.behind.take().is_some_and(|behind| behind.is_waiting()) {
            self.settlement.give_back(Return::Left(link.key), None, &self.downlink);
        }
        if let (Some(identity), Some(who)) = (&link.identity, link.who.take()) {
            let kind = Kind::Close(reason.name());
            self.uplink.push(&mut link.origin, identity, kind, Headers::NONE, &[]);
            self.shared.presence.left(identity);
            self.shared.associations.dissociate(link.service, who, identity.server);
        }
        self.settled.extend(delivery);
        self.settle_all();
        for receipt in unsent {
            // Of a delivery all is said.
            if let Receipt::Offset(_) | Receipt::Postponed { .. } = receipt {
                self.undelivered(UndeliveredReason::ConnectionLost, receipt);
            }
        }
    }
}
