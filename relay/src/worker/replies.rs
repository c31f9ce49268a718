//! The way back: replies from the ring to the clients.

use std::io;
use std::time::Duration;

use crate::kafka::ConnectionKey;
use crate::ring::{Command, Delivered, Receipt, Return};

use super::connection::State;
use super::stats::{CloseReason, UndeliveredReason};
use super::{Engine, SocketId, Worker};

impl<E: Engine> Worker<E> {
    pub(super) fn take_replies(&mut self) {
        while let Some(batch) = self.downlink.pop() {
            self.settlement.begin(&batch);
            for (key, command, receipt, payload) in batch.commands() {
                self.on_command(key, command, receipt, payload);
            }
            self.downlink.recycle(batch);
        }
    }

    pub(super) fn undelivered(&mut self, reason: UndeliveredReason, receipt: Receipt) {
        match receipt {
            Receipt::Offset(offset) => {
                self.stats.replies_undelivered[reason as usize].add(1);
                self.settlement.give_back(Return { offset, reason }, &self.downlink);
            }
            // It waits on.
            Receipt::Held(delivery) => self.downlink.report(Delivered { delivery, sent: false }),
            Receipt::HeldPart | Receipt::None => {}
        }
    }

    fn settle(&mut self, receipt: Receipt) {
        if let Receipt::Offset(offset) = receipt {
            self.settlement.settle(offset);
        }
    }

    fn on_command(
        &mut self,
        key: ConnectionKey,
        command: Command,
        receipt: Receipt,
        payload: &[u8],
    ) {
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
                self.undelivered(reason, receipt);
            } else {
                self.settle(receipt);
            };
        }
        if is_reply {
            self.reply(socket, receipt, payload);
        } else {
            self.settle(receipt);
        }
        match command {
            Command::Reply => {}
            Command::ReplyAndClose | Command::Close => {
                self.flush_and_close(socket, CloseReason::ClosedByServer);
            }
            Command::Refused => self.close(socket, CloseReason::RefusedByKafka),
        }
    }

    fn reply(&mut self, socket: SocketId, receipt: Receipt, payload: &[u8]) {
        let limits = &self.shared.limits;
        let (pause, limit) = (limits.reply_pause_bytes, limits.reply_limit_bytes);
        let connection = self.connections[socket.index()].as_mut().expect("just seen");
        let protocol = self.shared.protocols[connection.service.index()];
        let output = &mut connection.output;
        let idle = output.bytes() == 0;
        if protocol
            .framing
            .encode(protocol.max_message_bytes, payload, &mut output.waiting)
            .is_err()
        {
            return self.undelivered(UndeliveredReason::Unencodable, receipt);
        }
        output.receipts.push_back(receipt);
        if idle {
            self.to_send.push(socket);
        }
        let (bytes, open) = (output.bytes(), connection.state == State::Open);
        if bytes > limit {
            self.close(socket, CloseReason::SlowReader);
        } else if bytes > pause && open {
            self.hold(socket);
        }
    }

    /// Closes clients that have not read a reply for too long: the downlink's offset waits for them.
    pub(super) fn end_stalled(&mut self) {
        let limit = Duration::from_millis(u64::from(self.shared.limits.reply_timeout_ms));
        let Some(overdue) = self.settlement.overdue(limit) else { return };
        for index in 0..self.connections.len() {
            if let Some(connection) = &self.connections[index]
                && let Some(oldest) = connection.output.oldest_offset()
                && oldest < overdue
            {
                let socket = SocketId(u32::try_from(index).expect("sockets are u32"));
                self.close(socket, CloseReason::SlowReader);
            }
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
            && let Some(buffer) = connection.output.begin_send()
        {
            self.engine.send(socket, buffer);
        }
    }

    pub(super) fn on_sent(
        &mut self,
        socket: SocketId,
        mut buffer: Vec<u8>,
        result: &io::Result<usize>,
    ) {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        if connection.state == State::Closing {
            // Counted as lost when it was given up.
            return;
        }
        match *result {
            Ok(sent) if sent == buffer.len() => {
                let mut sent = 0;
                for receipt in connection.output.end_send(buffer) {
                    match receipt {
                        Receipt::Offset(offset) => {
                            sent += 1;
                            self.settlement.settle(offset);
                        }
                        Receipt::Held(delivery) => {
                            self.downlink.report(Delivered { delivery, sent: true });
                        }
                        Receipt::HeldPart | Receipt::None => {}
                    }
                }
                self.stats.replies_sent.add(sent);
                match connection.state {
                    State::Flushing(reason) if connection.output.bytes() == 0 => {
                        self.close(socket, reason);
                    }
                    _ => self.start_send(socket),
                }
            }
            Ok(sent) if sent > 0 => {
                buffer.drain(..sent);
                connection.output.sending_bytes = buffer.len();
                self.engine.send(socket, buffer);
            }
            Ok(_) | Err(_) => self.close(socket, CloseReason::ConnectionFailed),
        }
    }
}
