//! How connections end: half-closed, flushed, drained, closed.

use std::time::{Duration, Instant};

use crate::engine::{Engine, SocketId};
use crate::model::{CloseReason, Headers, Kind, UndeliveredReason};
use crate::ring::{Receipt, Return};

use super::actions::push_control;
use super::connection::{Receive, State};
use super::reasons::Reasons;
use super::step::Step;
use super::{Worker, of};

/// How long it takes a client's kernel to acknowledge something, about.
const DOUBT_INTERVAL: Duration = Duration::from_millis(20);

impl<E: Engine> Worker<E> {
    /// Carries steps out, and what follows from them; the first one stands last.
    pub(super) fn take_steps<const STEPS: usize>(
        &mut self,
        socket: SocketId,
        steps: [Step; STEPS],
    ) {
        debug_assert!(self.steps.is_empty(), "a step starts the loop");
        self.steps.extend(steps);
        self.carry_out(socket);
    }

    /// Carries out what is left to be done for a connection.
    #[inline]
    pub(super) fn carry_out(&mut self, socket: SocketId) {
        while let Some(step) = self.steps.pop() {
            self.carry_out_one(socket, step);
        }
    }

    fn carry_out_one(&mut self, socket: SocketId, step: Step) {
        match step {
            Step::Deliver => self.deliver_stash(socket),
            Step::Farewell(reason) => {
                if self.connection(socket).writes() {
                    self.call(socket, |codec, now, actions| codec.farewell(reason, now, actions));
                }
            }
            Step::Finish(reason) => self.finish(socket, reason),
            Step::Flushed(reason) => self.end_flushing(socket, reason),
            Step::Close(reason) => match self.connection(socket).state {
                State::Closing => {}
                State::Draining => self.give_back(socket),
                State::Open | State::HalfClosed | State::HandingOn | State::Flushing(_) => {
                    self.connection(socket).state = State::Closing;
                    self.leave(socket, reason);
                    self.give_back(socket);
                }
            },
        }
    }

    /// The client has ended its side, and everything before that is decoded.
    pub(super) fn end_stream(&mut self, socket: SocketId) {
        self.end_reading(socket);
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
        self.look_again(socket, now + Duration::from_millis(u64::from(time)));
    }

    fn look_again(&mut self, socket: SocketId, until: Instant) {
        let connection = self.connections[socket.index()].as_mut().expect("just seen");
        connection.lingers_until = Some(until);
        let (whose, connections) = ((socket, connection.generation()), &self.connections);
        self.lingering.push(until, whose, |until, whose| {
            of(connections, whose).is_some_and(|one| one.lingers_until == Some(until))
        });
    }

    /// The relay stops: a connection that had time for other reasons has no more than that of a stop.
    pub(super) fn hurry(&mut self, socket: SocketId) {
        let most = Duration::from_millis(u64::from(self.shared.limits.half_close_ms));
        let until = Instant::now() + most;
        if self.connection(socket).lingers_until.is_none_or(|at| at > until) {
            self.linger(socket);
        }
    }

    pub(super) fn end_lingering(&mut self) {
        while let Some((deadline, whose)) = self.lingering.pop(Instant::now()) {
            let socket = whose.0;
            let Some(connection) = of(&self.connections, whose) else { continue };
            if connection.lingers_until != Some(deadline) {
                continue;
            }
            match connection.state {
                // It gets what is there for it, and its time anew with the last of that.
                State::HalfClosed if connection.link.is_waiting() => {}
                State::HalfClosed => self.flush_and_close(socket, CloseReason::EndOfStream),
                State::Flushing(reason) if connection.link.output.bytes() > 0 => {
                    self.close(socket, reason);
                }
                State::Flushing(reason) => self.take_steps(socket, [Step::Flushed(reason)]),
                State::Draining => self.drain_on(socket),
                State::Open | State::HandingOn | State::Closing => {}
            }
        }
    }

    /// Lets the codec say its last words, reads no more, sends what is there, closes.
    pub(super) fn flush_and_close(&mut self, socket: SocketId, reason: CloseReason) {
        self.take_steps(socket, Step::last_words(reason));
    }

    fn finish(&mut self, socket: SocketId, reason: CloseReason) {
        let connection = self.connection(socket);
        if !connection.writes() {
            return;
        }
        let output = &connection.link.output;
        let (all_sent, has_sent) = (output.bytes() == 0, output.has_sent);
        if all_sent && !(has_sent && connection.codec.lingers()) {
            return self.steps.push(Step::Close(reason));
        }
        connection.state = State::Flushing(reason);
        self.end_reading(socket);
        if all_sent {
            // Its client may still have to read it.
            return self.steps.push(Step::Flushed(reason));
        }
        self.stop_receiving(socket);
        self.linger(socket);
    }

    fn end_flushing(&mut self, socket: SocketId, reason: CloseReason) {
        if self.is_in_doubt(socket) {
            return;
        }
        let most = Duration::from_millis(u64::from(self.shared.limits.reply_timeout_ms));
        let until = self.now + most;
        let connection = self.connection(socket);
        if !connection.codec.lingers() || connection.receive == Receive::Ended {
            return self.steps.push(Step::Close(reason));
        }
        connection.state = State::Draining;
        connection.drains_until = Some(until);
        let receive = connection.receive;
        self.leave(socket, reason);
        self.engine.shut_down(socket);
        if receive == Receive::Stopped {
            self.arm_receive(socket);
        }
        self.linger(socket);
    }

    /// Whether it is worth while to wait for its client's kernel, which may have all that was sent in a
    /// moment. If so, it is looked again then.
    fn is_in_doubt(&mut self, socket: SocketId) -> bool {
        let patience = Duration::from_millis(u64::from(self.shared.limits.half_close_ms));
        let connection = self.connections[socket.index()].as_mut().expect("just seen");
        if self.stopping || connection.link.doubtful.is_empty() || self.engine.is_taken(socket) {
            return false;
        }
        let now = Instant::now();
        let since = *connection.in_doubt_since.get_or_insert(now);
        let next = now + DOUBT_INTERVAL;
        if next > since + patience {
            return false;
        }
        self.look_again(socket, next);
        true
    }

    /// The time of a draining connection is over. A client that sends more than it has taken may have
    /// yet to read what it was sent, and is given time until it pauses.
    fn drain_on(&mut self, socket: SocketId) {
        let pause = Duration::from_millis(u64::from(self.shared.limits.half_close_ms));
        let (now, stopping) = (Instant::now(), self.stopping);
        let connection = self.connection(socket);
        let most = connection.drains_until.unwrap_or(now);
        let until = most.min(connection.heard + pause);
        if stopping || until <= now {
            return self.give_back(socket);
        }
        self.look_again(socket, until);
    }

    /// The client does not read what it is sent: nothing more can be told to it.
    pub(super) fn give_up(&mut self, socket: SocketId) {
        self.take_steps(socket, [Step::Close(CloseReason::SlowReader), Step::Deliver]);
    }

    /// The connection has failed. What came before was sent, and counts.
    pub(super) fn end_failed(&mut self, socket: SocketId) {
        self.take_steps(socket, [Step::Close(CloseReason::ConnectionFailed), Step::Deliver]);
    }

    /// Closes at once.
    pub(super) fn close(&mut self, socket: SocketId, reason: CloseReason) {
        self.take_steps(socket, [Step::Close(reason)]);
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
        self.end_reading(socket);
        self.at_servers.remove(socket);
        let connection = self.connection(socket);
        connection.paused = Reasons::NONE;
        self.drop_stash(socket);
        self.call(socket, |codec, now, actions| codec.ended(reason, now, actions));
        let connection = self.connections[socket.index()].as_mut().expect("just seen");
        let link = &mut connection.link;
        if connection.counted {
            self.shared.addresses.leave(link.service, link.client.ip());
        }
        self.stats.of(link.service).closed[reason as usize].add(1);
        if link.identity.is_none() {
            self.stats.strangers[reason as usize].add(1);
        }
        let mut unsent = std::mem::take(&mut link.output.receipts);
        let doubtful = std::mem::take(&mut link.doubtful);
        if !doubtful.is_empty() && self.engine.is_taken(socket) {
            let (settlement, downlink) = (&mut self.settlement, &self.downlink);
            let of_downlink = |receipt| settlement.sent(receipt, &mut link.unconfirmed, downlink);
            let replies = doubtful.into_iter().map(of_downlink).filter(|one| *one).count();
            self.stats.of(link.service).replies_sent.add(replies as u64);
        } else {
            unsent.extend(doubtful);
        }
        let (kept, delivery) = link.unconfirmed.give_up();
        unsent.extend(kept);
        let (key, left) = (link.key, link.behind.take().is_some_and(|behind| behind.is_waiting()));
        if let (Some(identity), Some(who)) = (&link.identity, link.who.take()) {
            let kind = Kind::Close(reason.name());
            let (uplink, credit) = (&mut self.uplink, &self.shared.credit);
            push_control(uplink, credit, &mut link.origin, identity, kind, Headers::NONE);
            self.shared.presence.left(identity);
            self.shared.associations.dissociate(link.service, who, identity.server);
        }
        if let Some(delivered) = delivery {
            self.downlink.report(delivered);
        }
        // In the log's order, and what it was not given after what it was: so they are held.
        unsent.make_contiguous().sort_unstable_by_key(Receipt::offset);
        for receipt in unsent {
            // Of a delivery all is said.
            if receipt.offset().is_some() {
                self.undelivered(key, UndeliveredReason::ConnectionLost, receipt);
            }
        }
        if left {
            self.settlement.give_back(Return::Left(key), None, &self.downlink);
        }
    }
}
