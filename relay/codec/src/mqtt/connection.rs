//! The codec: a connection from its first byte to its end.

use std::sync::Arc;
use std::time::Instant;

use crate::{Actions, Codec, Sending, Unencodable};
use millrace_model::{CloseReason, ConnectionKey, DeliveryFailure, Reply};

use super::Mqtt;
use super::check::Ticket;
use super::client::{Client, Next};
use super::encode;
use super::reason::Reason;
use super::wire::packet_length;

/// What a client may send while it is not known whether it may connect; beyond it, it is not read from.
const MAX_EARLY_BYTES: usize = 16 << 10;

/// The life of a connection.
///
/// ```text
///  Opening ── CONNECT ─► Checking ─ allowed ─► Entering ─► Open ── DISCONNECT, fault, the other's end ─► Over
///     │                     └── refused ──────────┴── superseded ─────────────────────────────────────┤
///     └── fault, time over ──────────────────────────────────────────────────────────────────────────────┘
/// ```
#[derive(Debug)]
pub(super) enum State {
    /// CONNECT has to come until then.
    Opening(Instant),
    /// CONNECT has come, and it is asked whether the client may. What comes meanwhile is held.
    Checking(Box<Checking>),
    /// The client may; its former connection has yet to say its last. What comes meanwhile is held.
    Entering(Box<Entering>),
    /// An accepted client.
    Open(Box<Client>),
    /// Nothing is read any more. Of a client that was there, what it had sent is still acknowledged
    /// by Kafka.
    Over(Option<Box<Client>>),
}

#[derive(Debug)]
pub(super) struct Entering {
    pub(super) connect: Vec<u8>,
    pub(super) id: Arc<str>,
    /// See [`Sessions::arrive`](super::sessions::Sessions::arrive).
    pub(super) number: u64,
    /// The former connection, which was told.
    pub(super) told: Option<ConnectionKey>,
    pub(super) look: Instant,
    /// It is not waited for any longer.
    pub(super) until: Instant,
}

#[derive(Debug)]
pub(super) struct Checking {
    pub(super) connect: Vec<u8>,
    pub(super) ticket: Ticket,
    pub(super) look: Instant,
}

/// See [`Codec`].
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) mqtt: Arc<Mqtt>,
    pub(super) state: State,
    /// The beginning of a packet; or all that has come since nothing more is taken.
    held: Vec<u8>,
    /// Why Kafka would not have a message.
    refused: Option<DeliveryFailure>,
}

impl Connection {
    pub(super) fn new(mqtt: Arc<Mqtt>, now: Instant) -> Self {
        let state = State::Opening(now + mqtt.handshake);
        Self { mqtt, state, held: Vec::new(), refused: None }
    }

    const fn is_over(&self) -> bool {
        matches!(self.state, State::Over(_))
    }

    /// Nothing more is taken from the client; if it has a will, that is published now: whoever takes
    /// over need not wait until this connection's last bytes are sent.
    pub(super) fn over(&mut self, taken_over: bool, actions: &mut dyn Actions) {
        self.state = match std::mem::replace(&mut self.state, State::Over(None)) {
            State::Opening(_) | State::Checking(_) | State::Entering(_) => State::Over(None),
            State::Open(mut client) => {
                client.depart(taken_over, actions);
                State::Over(Some(client))
            }
            over @ State::Over(_) => over,
        };
        self.held = Vec::new();
    }

    /// The client has done something that ends its connection.
    fn fail(&mut self, reason: Reason, actions: &mut dyn Actions) {
        self.refuse(reason, reason.close_reason(), actions);
    }

    fn refuse(&mut self, reason: Reason, close: CloseReason, actions: &mut dyn Actions) {
        if let State::Open(client) = &self.state {
            encode::disconnect(actions.output(), client.version, reason);
        }
        self.over(false, actions);
        actions.close(close);
    }

    /// Whether packets are taken now.
    fn takes(&mut self) -> bool {
        match &mut self.state {
            State::Checking(_) | State::Entering(_) => false,
            State::Open(client) => !client.is_behind(&self.mqtt),
            State::Opening(_) | State::Over(_) => true,
        }
    }

    /// Takes all whole packets, as long as it may.
    fn process(&mut self, mut rest: &[u8], now: Instant, actions: &mut dyn Actions) {
        while !self.is_over() && !rest.is_empty() {
            let whole = packet_length(rest, self.mqtt.max_packet_bytes());
            match whole {
                Ok(Some(total)) if total <= rest.len() && self.takes() => {
                    let packet;
                    (packet, rest) = rest.split_at(total);
                    self.packet(packet, now, actions);
                }
                Err(reason) if self.takes() => self.fail(reason, actions),
                _ => return self.held.extend_from_slice(rest),
            }
        }
    }

    /// Goes on with what came while nothing was taken.
    pub(super) fn go_on(&mut self, now: Instant, actions: &mut dyn Actions) {
        if !self.is_over() && self.takes() && !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            self.process(&held, now, actions);
        }
    }

    /// Completes the packet that has begun with what is at the front of `input`; what is left of that.
    fn complete<'a>(
        &mut self,
        mut input: &'a [u8],
        now: Instant,
        actions: &mut dyn Actions,
    ) -> &'a [u8] {
        while !self.held.is_empty() && !input.is_empty() {
            let wanted = match packet_length(&self.held, self.mqtt.max_packet_bytes()) {
                Ok(Some(total)) => total - self.held.len(),
                // Of its header; the next byte may be the last one.
                Ok(None) => 1,
                Err(reason) => {
                    self.fail(reason, actions);
                    return &[];
                }
            };
            let (part, rest) = input.split_at(wanted.min(input.len()));
            self.held.extend_from_slice(part);
            input = rest;
            let total = packet_length(&self.held, self.mqtt.max_packet_bytes());
            if total == Ok(Some(self.held.len())) {
                let packet = std::mem::take(&mut self.held);
                self.packet(&packet, now, actions);
            } else if let Err(reason) = total {
                self.fail(reason, actions);
            }
        }
        input
    }

    fn packet(&mut self, packet: &[u8], now: Instant, actions: &mut dyn Actions) {
        match &mut self.state {
            State::Opening(_) => self.connect(packet, None, now, actions),
            State::Open(client) => match client.take(packet, &self.mqtt, now, actions) {
                Ok(Next::GoOn) => {}
                Ok(Next::End) => {
                    self.over(false, actions);
                    actions.close(CloseReason::ClientClosed);
                }
                Ok(Next::Refused(reason, close)) => self.refuse(reason, close, actions),
                Err(reason) => self.fail(reason, actions),
            },
            State::Checking(_) | State::Entering(_) => self.held.extend_from_slice(packet),
            State::Over(_) => {}
        }
    }
}

impl Codec for Connection {
    fn name(&self) -> &'static str {
        "mqtt"
    }

    fn receive(&mut self, input: &[u8], now: Instant, actions: &mut dyn Actions) {
        if let State::Open(client) = &mut self.state {
            client.heard = now;
            if !client.is_current() {
                // This one is about to be closed. What its client has sent here comes again on the
                // other one, or may be lost; taken now, it would come behind what is newer.
                return;
            }
        }
        if !self.takes() {
            return self.held.extend_from_slice(input);
        }
        let rest = self.complete(input, now, actions);
        self.process(rest, now, actions);
    }

    fn end_of_stream(&mut self, _now: Instant, actions: &mut dyn Actions) -> bool {
        let whole = self.is_between_messages();
        // Nothing can be confirmed any more, and the client's will has its time.
        self.over(false, actions);
        actions.close(CloseReason::EndOfStream);
        whole
    }

    fn is_between_messages(&self) -> bool {
        self.held.is_empty()
    }

    fn delivered(&mut self, sequence: u64, now: Instant, actions: &mut dyn Actions) {
        match &mut self.state {
            State::Open(client) => {
                client.delivered = sequence;
                if let Err(reason) = client.acknowledge(actions) {
                    return self.fail(reason, actions);
                }
                self.go_on(now, actions);
            }
            State::Over(Some(client)) => {
                client.delivered = sequence;
                client.mark_delivered();
            }
            State::Opening(_) | State::Checking(_) | State::Entering(_) | State::Over(None) => {}
        }
    }

    fn reply(
        &mut self,
        reply: Reply<'_>,
        now: Instant,
        actions: &mut dyn Actions,
    ) -> Result<Sending, Unencodable> {
        match &mut self.state {
            State::Open(client) => client.reply(reply, &self.mqtt, now, actions),
            // It is given back with the others that the client does not have when the connection ends.
            State::Opening(_) | State::Checking(_) | State::Entering(_) | State::Over(_) => {
                Ok(Sending::Kept)
            }
        }
    }

    fn is_full(&self) -> bool {
        match &self.state {
            State::Open(client) => client.waiting.bytes() >= self.mqtt.section.max_waiting_bytes,
            _ => false,
        }
    }

    fn has_room(&self) -> bool {
        match &self.state {
            State::Open(client) => {
                client.waiting.bytes() <= self.mqtt.section.max_waiting_bytes / 2
            }
            _ => true,
        }
    }

    fn is_patient(&self) -> bool {
        true
    }

    fn owes(&self) -> bool {
        matches!(&self.state, State::Open(client) if client.is_owed())
    }

    fn farewell(&mut self, reason: CloseReason, _now: Instant, actions: &mut dyn Actions) {
        let told = match (reason, self.refused) {
            (CloseReason::RefusedByKafka, Some(DeliveryFailure::TooLarge)) => {
                Some(Reason::PACKET_TOO_LARGE)
            }
            _ => Reason::of_close(reason),
        };
        if let State::Open(client) = &self.state
            && let Some(reason) = told
        {
            encode::disconnect(actions.output(), client.version, reason);
        }
        self.over(reason == CloseReason::TakenOver, actions);
    }

    fn ended(&mut self, reason: CloseReason, now: Instant, actions: &mut dyn Actions) {
        self.over(reason == CloseReason::TakenOver, actions);
        if let State::Over(Some(client)) = &mut self.state {
            client.ended(reason, &self.mqtt, now);
        }
    }

    fn refused(
        &mut self,
        failure: DeliveryFailure,
        _message: u64,
        _now: Instant,
        _actions: &mut dyn Actions,
    ) -> bool {
        match &self.state {
            State::Open(client) => client.forget_pending(),
            State::Over(Some(client)) => client.give_up(),
            _ => {}
        }
        self.refused.get_or_insert(failure);
        false
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Opening(deadline) => Some(*deadline),
            State::Checking(checking) => Some(checking.look),
            State::Entering(entering) => Some(entering.look),
            State::Open(client) => client.deadline(),
            State::Over(_) => None,
        }
    }

    fn elapsed(&mut self, now: Instant, actions: &mut dyn Actions) {
        let reason = match &mut self.state {
            State::Opening(deadline) if now >= *deadline => CloseReason::HandshakeTimeout,
            State::Open(client) => {
                client.asked = now;
                client.give_up_unmatched(now, actions);
                if let Err(reason) = client.acknowledge(actions) {
                    return self.fail(reason, actions);
                }
                if !client.is_silent(now) {
                    return self.go_on(now, actions);
                }
                encode::disconnect(actions.output(), client.version, Reason::KEEP_ALIVE_TIMEOUT);
                CloseReason::IdleTimeout
            }
            State::Checking(_) | State::Entering(_) => return self.look(now, actions),
            State::Opening(_) | State::Over(_) => return,
        };
        self.over(false, actions);
        actions.close(reason);
    }

    fn not_read(&mut self, now: Instant) {
        if let State::Open(client) = &mut self.state {
            client.heard = now;
        }
    }

    fn reads(&self) -> bool {
        match &self.state {
            State::Open(client) => !client.was_behind(),
            // Or it would not be noticed that it has gone.
            State::Checking(_) | State::Entering(_) => self.held.len() < MAX_EARLY_BYTES,
            State::Opening(_) | State::Over(_) => true,
        }
    }

    fn kept_bytes(&self) -> usize {
        let client = match &self.state {
            State::Open(client) => client.kept_bytes(),
            State::Checking(checking) => checking.connect.len(),
            State::Entering(entering) => entering.connect.len(),
            State::Opening(_) | State::Over(_) => 0,
        };
        self.held.len() + client
    }
}
