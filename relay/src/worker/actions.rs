//! What a connection's codec asks for, carried out.
//!
//! Messages, bytes and the association take effect at once, in the codec's order. What concerns the
//! connection as a whole (the bounds, its end) is noted. When the codec has returned, the bounds are looked
//! at, and its end becomes [steps](super::step::Step), which are carried out after that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::codec::{Actions, AnyCodec};
use crate::engine::{Engine, SocketId};
use crate::model::{
    Begin, CloseReason, ConnectionKey, Headers, Identity, Kind, Refusal, ReplyOrigin,
};
use crate::ring::{
    BatchPlace, Credit, DownlinkReceiver, MESSAGE_OVERHEAD_BYTES, Receipt, UplinkSender,
};

use super::connection::{Link, State};
use super::reasons::Reasons;
use super::settlement::Settlement;
use super::stats::WorkerStats;
use super::step::Step;
use super::{Shared, Worker};

/// What is left to do when the codec has returned.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// Bytes that its messages are booked as.
    booked: usize,
    messages: u64,
    was_idle: bool,
    close: Option<CloseReason>,
    take_over: Option<ConnectionKey>,
    /// Replies of the downlink that the client has confirmed.
    sent: u64,
    /// Replies that it does not want after all.
    filtered: u64,
    hand_on: Option<Vec<u8>>,
    /// It has entered the books; so long did the choice of its server take.
    begun: Option<Duration>,
}

/// The worker, as far as a codec may act on it.
pub(super) struct CodecActions<'a> {
    shared: &'a Shared,
    uplink: &'a mut UplinkSender,
    link: &'a mut Link,
    settlement: &'a mut Settlement,
    downlink: &'a DownlinkReceiver,
    wishes: Wishes,
}

/// Adds an `open` or `close` record, which is booked.
pub(super) fn push_control(
    uplink: &mut UplinkSender,
    credit: &Credit,
    origin: &mut BatchPlace,
    identity: &Arc<Identity>,
    kind: Kind,
    headers: Headers<'_>,
) {
    credit.book_control(identity.partition, headers.weight() + MESSAGE_OVERHEAD_BYTES);
    uplink.push(origin, identity, kind, headers, &[]);
}

impl<'a> CodecActions<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        uplink: &'a mut UplinkSender,
        link: &'a mut Link,
        (settlement, downlink): (&'a mut Settlement, &'a DownlinkReceiver),
    ) -> Self {
        let wishes = Wishes { was_idle: link.output.bytes() == 0, ..Wishes::default() };
        Self { shared, uplink, link, settlement, downlink, wishes }
    }

    pub(super) fn finish(self, stats: &WorkerStats) -> Wishes {
        if self.wishes.messages > 0 {
            stats.of(self.link.service).messages.add(self.wishes.messages);
        }
        self.wishes
    }
}

impl Actions for CodecActions<'_> {
    fn key(&self) -> ConnectionKey {
        self.link.key
    }

    fn begin(&mut self, begin: Begin<'_>) -> Result<(), Refusal> {
        let link = &mut *self.link;
        assert!(link.identity.is_none(), "a connection begins once");
        let (associations, credit) = (&self.shared.associations, &self.shared.credit);
        let ends = (link.client, link.server);
        let who = associations.identity(link.service, ends, begin.client);
        let may = |partition| credit.may_open(partition);
        let asked = Instant::now();
        let association = associations.associate_if(link.service, who.clone(), may)?;
        self.wishes.begun = Some(asked.elapsed());
        let presence = &self.shared.presence;
        let known = begin.holds || begin.later;
        let holder = known.then(|| presence.holder(link.service, &who)).flatten();
        let identity =
            Identity::new(link.key, holder, &association, link.client, link.server, begin);
        let identity = Arc::new(identity);
        let uplink = &mut *self.uplink;
        push_control(uplink, credit, &mut link.origin, &identity, Kind::Open, begin.headers);
        if !begin.later {
            presence.came(&identity);
        }
        link.identity = Some(identity);
        link.who = Some(who);
        Ok(())
    }

    fn message(&mut self, headers: Headers<'_>, payload: &[u8]) -> u64 {
        let link = &mut *self.link;
        let identity = link.identity.as_ref().expect("a codec begins before its first message");
        link.sequence += 1;
        let kind = Kind::Message { sequence: link.sequence };
        self.uplink.push(&mut link.origin, identity, kind, headers, payload);
        self.wishes.messages += 1;
        self.wishes.booked += payload.len() + headers.weight() + MESSAGE_OVERHEAD_BYTES;
        link.sequence
    }

    fn output(&mut self) -> &mut Vec<u8> {
        &mut self.link.output.buffer.waiting
    }

    fn settle(&mut self, reply: ReplyOrigin) {
        if let Some(receipt) = self.link.unconfirmed.take(reply) {
            let unconfirmed = &mut self.link.unconfirmed;
            self.wishes.sent +=
                u64::from(self.settlement.sent(receipt, unconfirmed, self.downlink));
        }
    }

    fn give_up(&mut self, reply: ReplyOrigin) {
        if let Some(receipt) = self.link.unconfirmed.take(reply) {
            // One that waited is counted where it waited.
            self.wishes.filtered += u64::from(!matches!(receipt, Receipt::Held { .. }));
            self.settlement.done(receipt, &mut self.link.unconfirmed, self.downlink);
        }
    }

    fn downlink_end(&self) -> i64 {
        self.shared.arrivals.end()
    }

    fn release(&mut self, reply: ReplyOrigin) {
        if let Some(receipt) = self.link.unconfirmed.take(reply) {
            self.link.output.receipts.push_back(receipt);
        }
    }

    fn ask_held(&mut self) {
        let identity = self.link.identity.as_ref().expect("a codec begins before it asks");
        self.shared.presence.came(identity);
    }

    fn close(&mut self, reason: CloseReason) {
        self.wishes.close.get_or_insert(reason);
    }

    fn take_over(&mut self, other: ConnectionKey) {
        self.wishes.take_over = Some(other);
    }

    fn hand_on(&mut self, received: &[u8]) {
        self.wishes.hand_on.get_or_insert_with(|| received.to_vec());
    }
}

impl<E: Engine> Worker<E> {
    /// Lets a connection's codec act, and carries out what it wants and what follows. Not for a
    /// [step](super::step::Step).
    pub(super) fn act<R>(
        &mut self,
        socket: SocketId,
        call: impl FnOnce(&mut AnyCodec, Instant, &mut CodecActions<'_>) -> R,
    ) -> R {
        debug_assert!(self.steps.is_empty(), "a step starts the loop");
        let result = self.call(socket, call);
        self.carry_out(socket);
        result
    }

    /// Lets a connection's codec act. If it wants an end, steps towards that are left to be carried out.
    pub(super) fn call<R>(
        &mut self,
        socket: SocketId,
        call: impl FnOnce(&mut AnyCodec, Instant, &mut CodecActions<'_>) -> R,
    ) -> R {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        let owed = connection.codec.owes();
        let mut actions = CodecActions::new(
            &self.shared,
            &mut self.uplink,
            &mut connection.link,
            (&mut self.settlement, &self.downlink),
        );
        let result = call(&mut connection.codec, self.now, &mut actions);
        let wishes = actions.finish(&self.stats);
        if owed && !connection.codec.owes() {
            // It was waiting for that.
            connection.heard = connection.heard.max(self.now);
        }
        self.fulfil(socket, wishes);
        result
    }

    /// Books what a connection keeps in memory. True if that has just become more than it may.
    pub(super) fn book_memory(&mut self, socket: SocketId) -> bool {
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        let (kept, limited) = connection.kept_bytes();
        let before = std::mem::replace(&mut connection.booked_bytes, kept);
        if kept != before {
            self.stats.connection_bytes.replace(before, kept);
        }
        let before = std::mem::replace(&mut connection.limited_bytes, limited);
        let most = self.shared.limits.max_connection_bytes;
        before <= most && limited > most
    }

    /// Does what a codec wants, but for the steps towards its connection's end.
    pub(super) fn fulfil(&mut self, socket: SocketId, wishes: Wishes) {
        if let Some(took) = wishes.begun {
            self.stats.allot_times.record(took, 1);
            self.list_at_server(socket);
        }
        let connection = self.connections[socket.index()].as_mut().expect("known to the engine");
        let mut has_credit = true;
        if wishes.booked > 0 {
            let identity = connection.link.identity.as_ref().expect("there was a message");
            has_credit = self.shared.credit.book(identity.partition, wishes.booked);
        }
        let rate = self.shared.services[connection.link.service.index()].rate;
        if let (Some(rate), 1..) = (rate, wishes.messages) {
            connection.throttled_until = connection.pace.take(wishes.messages, rate, self.now);
            self.stats.throttles.add(u64::from(connection.throttled_until.is_some()));
        }
        let reasons = if connection.reads() {
            let pause_bytes = self.shared.limits.reply_pause_bytes;
            connection.begins_to_pause(pause_bytes, self.now, has_credit)
        } else {
            Reasons::NONE
        };
        let was_paused = !connection.paused.is_empty();
        if wishes.was_idle && connection.link.output.bytes() > 0 {
            connection.link.output.moved = Some(self.now);
            self.to_send.push(socket);
        }
        self.stats.of(connection.link.service).replies_sent.add(wishes.sent);
        self.stats.replies_filtered.add(wishes.filtered);
        if let Some(other) = wishes.take_over {
            self.to_evict.push(other);
        }
        if let Some(received) = wishes.hand_on {
            self.end_reading(socket);
            self.connection(socket).state = State::HandingOn;
            self.book_memory(socket);
            self.onward.asked.push((socket, received));
            return;
        }
        let exceeds = self.book_memory(socket);
        if let Some(reason) = wishes.close {
            return self.steps.push(Step::Finish(reason));
        }
        if exceeds {
            return self.steps.extend(Step::last_words(CloseReason::MemoryLimit));
        }
        self.has_confirmed(socket);
        if !reasons.is_empty() {
            self.pause(socket, reasons);
        }
        if was_paused {
            self.look_at(socket);
        }
        self.set_timer(socket);
    }
}
