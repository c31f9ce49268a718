//! The codec: a connection from its first byte to its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::codec::{Actions, Begin, Codec, HeaderList, Reply, Sending, Unencodable};
use crate::kafka::RefusedReason;
use crate::worker::CloseReason;

use super::check::Ticket;
use super::client::{Client, Next, Will};
use super::encode::{self, Granted};
use super::packet::{self, Connect, ConnectFault, Version};
use super::reason::Reason;
use super::record;
use super::wire::{Parsed, packet_length};
use super::{Mqtt, TOPIC_ALIAS_MAXIMUM};

/// Longest client identifier in bytes: it becomes a part of records' keys. 23 must be allowed
/// (MQTT-3.1.3-5).
const MAX_CLIENT_BYTES: usize = 256;
/// A client that does not take packets of so many bytes could not be told that it is connected.
const LEAST_MAXIMUM_PACKET: usize = 128;

/// The life of a connection.
///
/// ```text
///  Opening ── CONNECT ─► Checking ── allowed ─► Open ── DISCONNECT, fault, the other's end ─► Over
///     │                     └── refused ────────────────────────────────────────────────────┤
///     └── fault, time over ─────────────────────────────────────────────────────────────────┘
/// ```
#[derive(Debug)]
enum State {
    /// CONNECT has to come until then.
    Opening(Instant),
    /// CONNECT has come, and it is asked whether the client may. What comes meanwhile is held.
    Checking(Box<Checking>),
    /// An accepted client.
    Open(Box<Client>),
    /// Nothing is read any more. Of a client that was there, what it had sent is still acknowledged
    /// by Kafka.
    Over(Option<Box<Client>>),
}

/// How often it is looked whether the answer is there.
const CHECK_POLL: Duration = Duration::from_millis(5);

#[derive(Debug)]
struct Checking {
    connect: Vec<u8>,
    ticket: Ticket,
    look: Instant,
}

/// See [`Codec`].
#[derive(Debug)]
pub(super) struct Connection {
    mqtt: Arc<Mqtt>,
    state: State,
    /// The beginning of a packet.
    held: Vec<u8>,
    /// Why Kafka would not have a message.
    refused: Option<RefusedReason>,
}

impl Connection {
    pub(super) fn new(mqtt: Arc<Mqtt>, now: Instant) -> Self {
        let state = State::Opening(now + mqtt.handshake);
        Self { mqtt, state, held: Vec::new(), refused: None }
    }

    const fn is_over(&self) -> bool {
        matches!(self.state, State::Over(_))
    }

    /// Nothing more is taken from the client.
    fn over(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Over(None)) {
            State::Opening(_) | State::Checking(_) => State::Over(None),
            State::Open(client) => State::Over(Some(client)),
            over @ State::Over(_) => over,
        };
        self.held = Vec::new();
    }

    /// The client has done something that ends its connection.
    fn fail(&mut self, reason: Reason, actions: &mut dyn Actions) {
        if let State::Open(client) = &self.state {
            encode::disconnect(actions.output(), client.version, reason);
        }
        self.over();
        actions.close(reason.close_reason());
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
            State::Open(client) => match client.take(packet, &self.mqtt, actions) {
                Ok(Next::GoOn) => {}
                Ok(Next::End) => {
                    self.over();
                    actions.close(CloseReason::ClientClosed);
                }
                Err(reason) => self.fail(reason, actions),
            },
            State::Checking(_) => self.held.extend_from_slice(packet),
            State::Over(_) => {}
        }
    }

    /// Takes the first packet, and once more when it is known whether its client may connect.
    fn connect(
        &mut self,
        packet: &[u8],
        allowed: Option<bool>,
        now: Instant,
        actions: &mut dyn Actions,
    ) {
        let (version, reason, close) = match packet::connect(packet) {
            Ok(connect) => match self.check(&connect, allowed) {
                Ok(None) => match self.accept(&connect, now, actions) {
                    Ok(()) => return,
                    Err((reason, close)) => (Some(connect.version), reason, close),
                },
                Ok(Some(ticket)) => {
                    let (connect, look) = (packet.to_vec(), now + CHECK_POLL);
                    self.state = State::Checking(Box::new(Checking { connect, ticket, look }));
                    return;
                }
                Err(reason) => (Some(connect.version), reason, reason.close_reason()),
            },
            Err(ConnectFault { reason, version }) => (version, reason, reason.close_reason()),
        };
        // Many clients never come back after a CONNACK that refuses them, and this one passes.
        if let Some(version) = version
            && close != CloseReason::KafkaBehind
        {
            encode::refuse(actions.output(), version, reason);
        }
        self.over();
        actions.close(close);
    }

    /// Whether a client may connect; a ticket, if that has yet to be found out.
    fn check(&self, connect: &Connect<'_>, allowed: Option<bool>) -> Parsed<Option<Ticket>> {
        match (self.mqtt.checker(), allowed) {
            (None, _) | (Some(_), Some(true)) => Ok(None),
            (Some(_), Some(false)) => Err(Reason::BAD_USER_OR_PASSWORD),
            (Some(checker), None) => checker
                .ask(connect.client, connect.user, connect.password)
                .map(Some)
                .ok_or(Reason::SERVER_BUSY),
        }
    }

    /// Looks whether the answer about a client is there, and goes on with what came meanwhile.
    fn look(&mut self, now: Instant, actions: &mut dyn Actions) {
        let State::Checking(checking) = &mut self.state else { return };
        checking.look = now + CHECK_POLL;
        let Some(allowed) = checking.ticket.answer() else { return };
        let connect = std::mem::take(&mut checking.connect);
        self.connect(&connect, Some(allowed), now, actions);
        let held = std::mem::take(&mut self.held);
        if !self.is_over() {
            self.receive(&held, now, actions);
        }
    }

    /// Accepts a client, or says why not, and how that is counted.
    fn accept(
        &mut self,
        connect: &Connect<'_>,
        now: Instant,
        actions: &mut dyn Actions,
    ) -> Result<(), (Reason, CloseReason)> {
        let fault = |reason: Reason| (reason, reason.close_reason());
        let (version, properties) = (connect.version, &connect.properties);
        if properties.authentication_method.is_some() {
            return Err(fault(Reason::BAD_AUTHENTICATION_METHOD));
        }
        let maximum_packet = properties.maximum_packet.unwrap_or(u32::MAX) as usize;
        if maximum_packet < LEAST_MAXIMUM_PACKET {
            return Err(fault(Reason::PACKET_TOO_LARGE));
        }
        let will = connect.will.as_ref();
        if version.is_v5() && will.is_some_and(|will| will.retain) {
            return Err(fault(Reason::RETAIN_NOT_SUPPORTED));
        }
        let will = will.map(Will::new).transpose().map_err(fault)?;
        let id = client_id(connect, actions).map_err(fault)?;
        let (wanted_s, expiry_s) = self.session_expiry(connect);
        begin(connect, &id, expiry_s > 0, actions)
            .map_err(|refusal| (Reason::SERVER_UNAVAILABLE, refusal.into()))?;

        let key = actions.key();
        let attached = self.mqtt.sessions.attach(&id, connect.clean_start, key, now);
        if let Some(former) = attached.former {
            actions.take_over(former);
        }
        let section = &self.mqtt.section;
        let keep_alive_s = self.keep_alive(connect);
        let granted = Granted {
            session_expiry_s: (wanted_s != expiry_s).then_some(expiry_s),
            receive_maximum: section.receive_maximum,
            maximum_packet: u32::try_from(self.mqtt.max_packet_bytes()).expect("28 bits"),
            topic_alias_maximum: TOPIC_ALIAS_MAXIMUM,
            assigned_client: connect.client.is_empty().then_some(&*id),
            keep_alive_s: (keep_alive_s != connect.keep_alive_s).then_some(keep_alive_s),
        };
        encode::accept(actions.output(), version, attached.present, &granted);
        let session = (attached.session, attached.turn);
        let mut client = Box::new(Client::new(version, Arc::clone(&id), key, session, now));
        client.will = will;
        client.expiry_s = expiry_s;
        client.persists = wanted_s > 0;
        // "If a Client does not send packets within one and a half times the Keep Alive" (MQTT-3.1.2-22).
        client.keep_alive = Duration::from_millis(u64::from(keep_alive_s) * 1500);
        client.window = properties
            .receive_maximum
            .map_or(section.send_maximum, |wanted| wanted.min(section.send_maximum));
        client.maximum_packet = maximum_packet;
        client.resume(actions);
        // A client that believes in a session that is not there has yet to learn that it must subscribe
        // again: what waited for it would be filtered until then. One that wants none has given it up.
        client.held_later = expiry_s > 0;
        if attached.present || connect.clean_start {
            client.ask_held(actions);
        }
        self.state = State::Open(client);
        Ok(())
    }

    /// How long the client wants its session kept, and how long it is, in seconds.
    fn session_expiry(&self, connect: &Connect<'_>) -> (u32, u32) {
        let most = self.mqtt.section.session_expiry_s;
        let wanted = match (connect.version, connect.clean_start) {
            (Version::V5, _) => connect.properties.session_expiry.unwrap_or(0),
            (Version::V3, true) => 0,
            (Version::V3, false) => most,
        };
        (wanted, wanted.min(most))
    }

    /// The keep-alive in seconds, which is not always the one that the client wants.
    fn keep_alive(&self, connect: &Connect<'_>) -> u16 {
        let (wanted, most) = (connect.keep_alive_s, self.mqtt.section.max_keep_alive_s);
        let too_long = most > 0 && (wanted == 0 || wanted > most);
        if connect.version.is_v5() && too_long { most } else { wanted }
    }
}

/// The client's identifier, or one for a client without: of that its connection's key makes the only
/// one of its kind.
fn client_id(connect: &Connect<'_>, actions: &dyn Actions) -> Result<Arc<str>, Reason> {
    let id = connect.client;
    if id.is_empty() {
        // "MUST also set CleanSession to 1" (MQTT-3.1.3-7 of 3.1.1).
        if connect.version == Version::V3 && !connect.clean_start {
            return Err(Reason::CLIENT_ID_INVALID);
        }
        let key = actions.key().print();
        return Ok(format!("millrace-{}", String::from_utf8_lossy(&key)).into());
    }
    if id.len() > MAX_CLIENT_BYTES || id.contains(char::is_control) {
        return Err(Reason::CLIENT_ID_INVALID);
    }
    Ok(id.into())
}

fn begin(
    connect: &Connect<'_>,
    id: &str,
    holds: bool,
    actions: &mut dyn Actions,
) -> Result<(), crate::route::Refusal> {
    let mut headers = HeaderList::default();
    record::open(&mut headers, connect, id);
    let headers = headers.headers();
    let (protocol, client) = ("mqtt", Some(id));
    actions.begin(Begin { protocol, acknowledge: true, client, holds, later: holds, headers })
}

impl Codec for Connection {
    fn name(&self) -> &'static str {
        "mqtt"
    }

    fn receive(&mut self, input: &[u8], now: Instant, actions: &mut dyn Actions) {
        if let State::Checking(_) = self.state {
            return self.held.extend_from_slice(input);
        }
        if let State::Open(client) = &mut self.state {
            client.heard = now;
            if !client.is_current() {
                // This one is about to be closed. What its client has sent here comes again on the
                // other one, or may be lost; taken now, it would come behind what is newer.
                return;
            }
        }
        let mut rest = self.complete(input, now, actions);
        while !self.is_over() && !rest.is_empty() {
            match packet_length(rest, self.mqtt.max_packet_bytes()) {
                Ok(Some(total)) if total <= rest.len() => {
                    let packet;
                    (packet, rest) = rest.split_at(total);
                    self.packet(packet, now, actions);
                }
                Ok(_) => {
                    self.held.extend_from_slice(rest);
                    return;
                }
                Err(reason) => self.fail(reason, actions),
            }
        }
    }

    fn end_of_stream(&mut self, _now: Instant, actions: &mut dyn Actions) -> bool {
        let whole = self.is_between_messages();
        // Nothing can be confirmed any more, and the client's will has its time.
        self.over();
        actions.close(CloseReason::EndOfStream);
        whole
    }

    fn is_between_messages(&self) -> bool {
        self.held.is_empty()
    }

    fn delivered(&mut self, sequence: u64, _now: Instant, actions: &mut dyn Actions) {
        match &mut self.state {
            State::Open(client) => {
                client.delivered = sequence;
                if let Err(reason) = client.acknowledge(actions) {
                    self.fail(reason, actions);
                }
            }
            State::Over(Some(client)) => {
                client.delivered = sequence;
                client.mark_delivered();
            }
            State::Opening(_) | State::Checking(_) | State::Over(None) => {}
        }
    }

    fn reply(
        &mut self,
        reply: Reply<'_>,
        _now: Instant,
        actions: &mut dyn Actions,
    ) -> Result<Sending, Unencodable> {
        match &mut self.state {
            State::Open(client) => client.reply(reply, &self.mqtt, actions),
            // It is given back with the others that the client does not have when the connection ends.
            State::Opening(_) | State::Checking(_) | State::Over(_) => Ok(Sending::Kept),
        }
    }

    fn farewell(&mut self, reason: CloseReason, _now: Instant, actions: &mut dyn Actions) {
        let told = match (reason, self.refused) {
            (CloseReason::RefusedByKafka, Some(RefusedReason::TooLarge)) => {
                Some(Reason::PACKET_TOO_LARGE)
            }
            _ => Reason::of_close(reason),
        };
        if let State::Open(client) = &self.state
            && let Some(reason) = told
        {
            encode::disconnect(actions.output(), client.version, reason);
        }
        self.over();
    }

    fn ended(&mut self, reason: CloseReason, now: Instant, actions: &mut dyn Actions) {
        self.over();
        if let State::Over(Some(client)) = &mut self.state {
            client.ended(reason, &self.mqtt, now, actions);
        }
    }

    fn refused(&mut self, failure: RefusedReason) {
        if let State::Open(client) | State::Over(Some(client)) = &self.state {
            client.forget_pending();
        }
        self.refused.get_or_insert(failure);
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Opening(deadline) => Some(*deadline),
            State::Checking(checking) => Some(checking.look),
            State::Open(client) => client.deadline(),
            State::Over(_) => None,
        }
    }

    fn elapsed(&mut self, now: Instant, actions: &mut dyn Actions) {
        let reason = match &mut self.state {
            State::Opening(deadline) if now >= *deadline => CloseReason::HandshakeTimeout,
            State::Open(client) => {
                client.asked = now;
                if let Err(reason) = client.acknowledge(actions) {
                    return self.fail(reason, actions);
                }
                if !client.is_silent(now) {
                    return;
                }
                encode::disconnect(actions.output(), client.version, Reason::KEEP_ALIVE_TIMEOUT);
                CloseReason::IdleTimeout
            }
            State::Checking(_) => return self.look(now, actions),
            State::Opening(_) | State::Over(_) => return,
        };
        self.over();
        actions.close(reason);
    }

    fn not_read(&mut self, now: Instant) {
        if let State::Open(client) = &mut self.state {
            client.heard = now;
        }
    }

    fn reads(&self) -> bool {
        match &self.state {
            State::Open(client) => !client.is_behind(&self.mqtt),
            State::Checking(_) => false,
            State::Opening(_) | State::Over(_) => true,
        }
    }

    fn held(&self) -> usize {
        let client = match &self.state {
            State::Open(client) => client.held(),
            State::Checking(checking) => checking.connect.len(),
            State::Opening(_) | State::Over(_) => 0,
        };
        self.held.len() + client
    }
}
