//! The way back: replies from the ring to the clients.

use std::io;
use std::time::Instant;

use crate::codec::{Actions as _, Sending, Unencodable};
use crate::engine::{Engine, SocketId};
use crate::model::{
    CloseReason, ConnectionKey, DeliveryFailure, Reply, ReplyOffset, UndeliveredReason,
};
use crate::ring::{Command, Delivered, Receipt, Return};

use super::connection::{Link, State};
use super::departed::Nothing;
use super::send_buffer::Taken;
use super::step::Step;
use super::{Worker, of};

impl<E: Engine> Worker<E> {
    /// Takes what has come, unless too much is to be said about what came before.
    pub(super) fn take_replies(&mut self) {
        while self.has_replies()
            && let Some(batch) = self.downlink.pop()
        {
            self.settlement.begin(&batch);
            for (key, command, receipt, reply) in batch.commands() {
                self.on_command(key, command, receipt, reply);
            }
            self.downlink.recycle(batch);
        }
    }

    /// True if there is something that may be taken.
    pub(super) fn has_replies(&self) -> bool {
        self.downlink.has_batch() && !self.settlement.is_behind()
    }

    pub(super) fn undelivered(
        &mut self,
        key: ConnectionKey,
        reason: UndeliveredReason,
        receipt: Receipt,
    ) {
        match receipt {
            Receipt::Offset(offset) | Receipt::Postponed { offset, .. } => {
                self.stats.replies_undelivered[reason as usize].add(1);
                let settles = matches!(receipt, Receipt::Offset(_)).then_some(offset);
                let returned = Return::Undelivered { key, offset, reason };
                self.settlement.give_back(returned, settles, &self.downlink);
            }
            // All of it waits on.
            Receipt::Held { delivery, last: true, .. } => {
                self.downlink.report(Delivered::nothing(delivery));
            }
            Receipt::Held { .. } | Receipt::None => {}
        }
    }

    /// What has no payload needs nothing but its being counted.
    fn settle(&mut self, command: Command, receipt: Receipt) {
        let settled = self.settlement.done_with(receipt, &self.downlink);
        self.stats.replies_orders.add(u64::from(settled && command == Command::Close));
    }

    fn on_command(
        &mut self,
        key: ConnectionKey,
        command: Command,
        receipt: Receipt,
        reply: Reply<'_>,
    ) {
        match command {
            Command::Acknowledged(count) => return self.acknowledged(key, count),
            Command::Refused { failure, message } => return self.refused(key, failure, message),
            _ => {}
        }
        let socket = SocketId(key.slot);
        let is_reply = matches!(command, Command::Reply | Command::ReplyAndClose);
        let current = self
            .connections
            .get(socket.index())
            .and_then(Option::as_ref)
            .filter(|connection| connection.generation() == key.generation);
        let reason = match current {
            None => Some(UndeliveredReason::Stale),
            Some(connection) if !connection.writes() => Some(UndeliveredReason::Closing),
            Some(_) => None,
        };
        if let Some(reason) = reason {
            return if is_reply {
                self.undelivered(key, reason, receipt);
            } else {
                self.settle(command, receipt);
            };
        }
        if let Receipt::Offset(offset) = receipt
            && self.must_wait(socket)
        {
            if self.postpone(socket, offset, reply.payload.len()) {
                return;
            }
            // It is being closed.
            return if is_reply {
                self.undelivered(key, UndeliveredReason::Closing, receipt);
            } else {
                self.settle(command, receipt);
            };
        }
        if is_reply {
            self.reply(socket, receipt, reply);
        } else {
            self.settle(command, receipt);
        }
        if let Receipt::Postponed { offset, last } = receipt {
            self.has_come(socket, offset, reply.payload.len(), last);
        }
        match command {
            Command::Reply | Command::Acknowledged(_) | Command::Refused { .. } => {}
            Command::ReplyAndClose if self.connection(socket).codec.obeys_close() => {}
            Command::ReplyAndClose | Command::Close => {
                self.connection(socket).codec.close_asked(reply.headers);
                self.flush_and_close(socket, CloseReason::ClosedByServer);
            }
            Command::TakenOver => self.flush_and_close(socket, CloseReason::TakenOver),
            Command::Vanished => self.flush_and_close(socket, CloseReason::SlowReader),
        }
    }

    fn acknowledged(&mut self, key: ConnectionKey, count: u32) {
        let (socket, now) = (SocketId(key.slot), self.now);
        let current = self.connections.get_mut(socket.index()).and_then(Option::as_mut);
        let Some(connection) = current.filter(|one| one.generation() == key.generation) else {
            return self.departed.acknowledged(key, count, now);
        };
        if connection.link.refused {
            return;
        }
        connection.link.acknowledged += u64::from(count);
        let sequence = connection.link.acknowledged;
        if connection.writes() {
            self.act(socket, |codec, now, actions| codec.delivered(sequence, now, actions));
        } else {
            connection.codec.delivered(sequence, now, &mut Nothing::new(key));
        }
    }

    /// Kafka has refused a message: its client is told, in its protocol's words, and has to go.
    fn refused(&mut self, key: ConnectionKey, failure: DeliveryFailure, message: u64) {
        let (socket, now) = (SocketId(key.slot), self.now);
        let current = self.connections.get_mut(socket.index()).and_then(Option::as_mut);
        let Some(connection) = current.filter(|one| one.generation() == key.generation) else {
            return self.departed.refused(key, failure, message, now);
        };
        connection.link.refused = true;
        if !connection.writes() {
            connection.codec.refused(failure, message, now, &mut Nothing::new(key));
        } else if !self
            .act(socket, |codec, now, actions| codec.refused(failure, message, now, actions))
        {
            self.flush_and_close(socket, CloseReason::RefusedByKafka);
        }
    }

    fn reply(&mut self, socket: SocketId, receipt: Receipt, reply: Reply<'_>) {
        if let Receipt::Offset(offset) = receipt {
            self.owe(socket, offset);
        }
        let connection = self.connections[socket.index()].as_mut().expect("just seen");
        // Before the call, because the codec may ask for its settlement within it.
        connection.link.unconfirmed.keep(reply.origin, receipt);
        let sending = self.act(socket, |codec, now, actions| {
            let sending = codec.reply(reply, now, actions);
            if sending == Ok(Sending::WithOutput) {
                actions.release(reply.origin);
            }
            sending
        });
        let link = &mut self.connections[socket.index()].as_mut().expect("just seen").link;
        match sending {
            Ok(Sending::WithOutput | Sending::Kept) => {}
            Ok(Sending::Unwanted) => {
                if let Some(receipt) = link.unconfirmed.take(reply.origin) {
                    // One that had waited was counted when it was held.
                    let of_downlink = !matches!(receipt, Receipt::Held { .. });
                    self.stats.replies_filtered.add(u64::from(of_downlink));
                    self.settlement.done(receipt, &mut link.unconfirmed, &self.downlink);
                }
            }
            Err(Unencodable) => {
                if let Some(receipt) = link.unconfirmed.take(reply.origin) {
                    self.unencodable(socket, receipt);
                }
            }
        }
    }

    fn unencodable(&mut self, socket: SocketId, receipt: Receipt) {
        let Receipt::Held { part, .. } = receipt else {
            let key = self.connection(socket).link.key;
            return self.undelivered(key, UndeliveredReason::Unencodable, receipt);
        };
        if let Some(delivered) = self.connection(socket).link.unconfirmed.fail(part) {
            self.downlink.report(delivered);
        }
    }

    /// A reply of the downlink has come to a connection: it is looked for when that is too long ago.
    fn owe(&mut self, socket: SocketId, offset: ReplyOffset) {
        let connection = self.connections[socket.index()].as_mut().expect("just seen");
        if connection.owes_since.is_none()
            && let Some(since) = self.settlement.since(offset)
        {
            connection.owes_since = Some(since);
            let (whose, connections) = ((socket, connection.generation()), &self.connections);
            self.owing.push(since, whose, |since, whose| {
                of(connections, whose).is_some_and(|one| one.owes_since == Some(since))
            });
        }
    }

    /// Closes clients that have not read a reply for too long: the downlink's offset waits for them.
    pub(super) fn end_stalled(&mut self) {
        let (now, patience) = (Instant::now(), self.patience());
        let Some(overdue) = self.settlement.overdue(patience, now) else { return };
        let Some(since) = now.checked_sub(patience) else { return };
        // Whoever is to be looked at again is, in the next turn.
        for _ in 0..self.owing.len() {
            let Some((since, (socket, generation))) = self.owing.pop(since) else { return };
            let connection = self.connections[socket.index()].as_mut();
            let Some(connection) = connection.filter(|one| one.generation() == generation) else {
                continue;
            };
            if connection.owes_since != Some(since) {
                continue;
            }
            connection.owes_since = None;
            if connection.link.oldest_offset().is_some_and(|oldest| oldest < overdue) {
                self.end_if_stalled(socket, overdue);
            }
            // It has read that, and not what came later.
            if let Some(oldest) = self.connection(socket).link.oldest_offset() {
                self.owe(socket, oldest);
            }
        }
    }

    fn end_if_stalled(&mut self, socket: SocketId, overdue: ReplyOffset) {
        let connection = self.connection(socket);
        let reads = connection.link.oldest_unread().is_none_or(|at| at >= overdue);
        if reads && connection.codec.is_patient() {
            self.leave_unconfirmed(socket, overdue);
        }
        let oldest = self.connection(socket).link.oldest_offset();
        if oldest.is_some_and(|oldest| oldest < overdue) {
            self.give_up(socket);
        }
    }

    pub(super) fn start_sends(&mut self) {
        while let Some(socket) = self.to_send.pop() {
            self.start_send(socket);
        }
    }

    fn start_send(&mut self, socket: SocketId) {
        if let Some(connection) = &mut self.connections[socket.index()]
            && connection.state != State::Closing
            && let Some(buffer) = connection.link.output.begin_send()
        {
            let Link { doubtful, unconfirmed, .. } = &mut connection.link;
            if !doubtful.is_empty() && self.engine.is_taken(socket) {
                let (settlement, downlink) = (&mut self.settlement, &self.downlink);
                let of_downlink = |receipt| settlement.sent(receipt, unconfirmed, downlink);
                let replies = doubtful.drain(..).map(of_downlink).filter(|one| *one).count();
                self.stats.of(connection.link.service).replies_sent.add(replies as u64);
            }
            self.engine.send(socket, buffer);
        }
    }

    pub(super) fn on_sent(
        &mut self,
        socket: SocketId,
        buffer: Vec<u8>,
        result: &io::Result<usize>,
    ) {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        if connection.state == State::Closing {
            // Counted as lost when it was given up.
            return;
        }
        if let Ok(bytes) = result {
            self.stats.of(connection.link.service).sent_bytes.add(*bytes as u64);
        }
        match connection.link.output.end_send(buffer, result, self.now) {
            Taken::All => {
                let doubtful = connection.is_doubtful();
                let link = &mut connection.link;
                let sent = link.output.take_sent();
                if doubtful {
                    link.doubtful.extend(sent);
                } else {
                    let (settlement, downlink) = (&mut self.settlement, &self.downlink);
                    let of_downlink =
                        |receipt| settlement.sent(receipt, &mut link.unconfirmed, downlink);
                    let replies = sent.map(of_downlink).filter(|one| *one).count();
                    self.stats.of(link.service).replies_sent.add(replies as u64);
                }
                self.book_memory(socket);
                self.has_read(socket);
                self.look_at(socket);
                let now = self.now;
                let connection = self.connection(socket);
                if connection.link.output.bytes() == 0 && connection.codec.sent(now) {
                    self.set_timer(socket);
                }
                let connection = self.connection(socket);
                match connection.state {
                    State::Flushing(reason) if connection.link.output.bytes() == 0 => {
                        self.take_steps(socket, [Step::Flushed(reason)]);
                    }
                    _ => self.start_send(socket),
                }
            }
            Taken::Part(rest) => {
                self.engine.send(socket, rest);
                self.book_memory(socket);
            }
            Taken::Nothing => self.end_failed(socket),
        }
    }
}
