//! An accepted client, and what it sends.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::codec::{Actions, HeaderList};
use crate::kafka::ConnectionKey;
use crate::worker::CloseReason;

use super::encode;
use super::packet::{self, AckKind, Filters, Message, Packet, Publish, Qos, Version};
use super::properties::Writer;
use super::reason::Reason;
use super::record;
use super::replies::Waiting;
use super::session::{MAX_RECEIVED, Received, Shared};
use super::topic;
use super::wire::Parsed;
use super::{Mqtt, TOPIC_ALIAS_MAXIMUM};

/// How often it is asked whether Kafka has a message that a former connection of the client sent.
const FOREIGN_POLL: Duration = Duration::from_millis(20);

/// Whether the connection goes on after a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    /// The client has said good-bye.
    End,
}

/// What is published when the client is gone, ready for its record.
#[derive(Debug)]
pub(super) struct Will {
    headers: HeaderList,
    payload: Vec<u8>,
    delay_s: u32,
}

impl Will {
    pub(super) fn new(message: &Message<'_>) -> Parsed<Self> {
        let mut headers = HeaderList::default();
        let delay_s = message.properties.will_delay.unwrap_or(0);
        record::will(&mut headers, delay_s);
        if !record::describe(&mut headers, message.topic, message) {
            return Err(Reason::QUOTA_EXCEEDED);
        }
        Ok(Self { headers, payload: message.payload.to_vec(), delay_s })
    }
}

/// What a PUBACK or PUBREC waits for.
#[derive(Clone, Copy, Debug)]
enum After {
    /// A message of this connection.
    Own(u64),
    /// One of QoS 2 that a former connection of the client sent.
    Former,
}

/// An acknowledgement that is owed to the client.
#[derive(Clone, Copy, Debug)]
struct Owed {
    id: u16,
    kind: AckKind,
    after: After,
}

/// An accepted client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) version: Version,
    pub(super) id: Arc<str>,
    pub(super) key: ConnectionKey,
    pub(super) session: Shared,
    /// Whose turn it was when this connection began.
    turn: u32,
    pub(super) will: Option<Will>,
    /// How long the session outlives the connection.
    pub(super) expiry_s: u32,
    /// The client wanted that at the beginning.
    pub(super) persists: bool,
    /// Replies that waited shall come when it has subscribed.
    pub(super) held_later: bool,
    /// Longest silence; 0: any.
    pub(super) keep_alive: Duration,
    /// When the client was last heard.
    pub(super) heard: Instant,
    /// Kafka has acknowledged every message up to this one.
    pub(super) delivered: u64,
    /// The last message.
    sequence: u64,
    /// When it was last asked for what a former connection sent.
    pub(super) asked: Instant,
    /// In the order of the packets that they answer.
    owed: VecDeque<Owed>,
    /// Packet identifiers of QoS 2 of this connection between PUBREC and PUBREL.
    unreleased: HashSet<u16>,
    aliases: Vec<Option<Box<str>>>,
    alias_bytes: usize,
    headers: HeaderList,
    /// Replies of QoS 1 and 2 that may be under way.
    pub(super) window: u16,
    /// Those that are.
    pub(super) in_flight: u16,
    pub(super) waiting: Waiting,
    /// Longest packet that the client takes.
    pub(super) maximum_packet: usize,
    pub(super) properties: Writer,
}

impl Client {
    pub(super) fn new(
        version: Version,
        id: Arc<str>,
        key: ConnectionKey,
        (session, turn): (Shared, u32),
        now: Instant,
    ) -> Self {
        Self {
            version,
            id,
            key,
            session,
            turn,
            will: None,
            expiry_s: 0,
            persists: false,
            held_later: false,
            keep_alive: Duration::ZERO,
            heard: now,
            delivered: 0,
            sequence: 0,
            asked: now,
            owed: VecDeque::new(),
            unreleased: HashSet::new(),
            aliases: Vec::new(),
            alias_bytes: 0,
            headers: HeaderList::default(),
            window: 1,
            in_flight: 0,
            waiting: Waiting::default(),
            maximum_packet: usize::MAX,
            properties: Writer::default(),
        }
    }

    /// Whether no other connection has taken over.
    pub(super) fn is_current(&self) -> bool {
        self.session.turn() == self.turn
    }

    /// Takes a packet.
    pub(super) fn take(
        &mut self,
        packet: &[u8],
        mqtt: &Mqtt,
        actions: &mut dyn Actions,
    ) -> Parsed<Next> {
        match packet::parse(packet, self.version)? {
            Packet::Publish(publish) => self.publish(&publish, mqtt, actions)?,
            Packet::Ack { kind: AckKind::Pubrel, id, .. } => self.release(id, actions)?,
            Packet::Ack { kind, id, reason } => self.confirm(kind, id, reason, actions)?,
            Packet::Subscribe(filters) => self.subscribe(filters, mqtt, actions)?,
            Packet::Unsubscribe(filters) => self.unsubscribe(filters, mqtt, actions)?,
            Packet::Ping => encode::pong(actions.output()),
            Packet::Disconnect { reason, session_expiry } => {
                self.disconnect(reason, session_expiry, mqtt)?;
                return Ok(Next::End);
            }
        }
        Ok(Next::GoOn)
    }

    fn disconnect(&mut self, reason: u8, expiry: Option<u32>, mqtt: &Mqtt) -> Parsed<()> {
        const WITH_WILL: u8 = 0x04;
        if let Some(expiry) = expiry {
            if !self.persists && expiry > 0 {
                return Err(Reason::PROTOCOL_ERROR);
            }
            self.expiry_s = expiry.min(mqtt.section.session_expiry_s);
        }
        // "the Will Message MUST be removed" on a DISCONNECT with reason 0 (MQTT-3.14.4-3); one with
        // another reason is no normal end.
        if reason == 0 {
            self.will = None;
        } else if reason < WITH_WILL {
            return Err(Reason::PROTOCOL_ERROR);
        }
        Ok(())
    }

    fn publish(
        &mut self,
        publish: &Publish<'_>,
        mqtt: &Mqtt,
        actions: &mut dyn Actions,
    ) -> Parsed<()> {
        let message = &publish.message;
        if self.version.is_v5() && message.retain {
            return Err(Reason::RETAIN_NOT_SUPPORTED);
        }
        if message.payload.len() > mqtt.max_message_bytes {
            return Err(Reason::PACKET_TOO_LARGE);
        }
        let alias = self.remember_alias(message)?;
        if message.qos != Qos::Zero
            && self.version.is_v5()
            && self.owed.len() + self.unreleased.len() >= usize::from(mqtt.section.receive_maximum)
        {
            return Err(Reason::RECEIVE_MAXIMUM_EXCEEDED);
        }
        if message.qos == Qos::Two
            && let Some(after) = self.receive_once(publish.id)?
        {
            self.owed.push_back(Owed { id: publish.id, kind: AckKind::Pubrec, after });
            return self.acknowledge(actions);
        }
        record::reset(&mut self.headers);
        let known = alias.and_then(|alias| self.aliases[alias].as_deref());
        let topic = if message.topic.is_empty() { known } else { Some(message.topic) };
        let topic = topic.ok_or(Reason::TOPIC_ALIAS_INVALID)?;
        if !record::describe(&mut self.headers, topic, message) {
            return Err(Reason::QUOTA_EXCEEDED);
        }
        record::delivery(&mut self.headers, publish);
        self.sequence = actions.message(self.headers.headers(), message.payload);
        let kind = match message.qos {
            Qos::Zero => return Ok(()),
            Qos::One => AckKind::Puback,
            Qos::Two => AckKind::Pubrec,
        };
        let after = After::Own(self.sequence);
        self.owed.push_back(Owed { id: publish.id, kind, after });
        self.acknowledge(actions)
    }

    /// Notes a topic under its alias; the alias's place.
    fn remember_alias(&mut self, message: &Message<'_>) -> Parsed<Option<usize>> {
        let Some(alias) = message.properties.topic_alias else { return Ok(None) };
        if alias > TOPIC_ALIAS_MAXIMUM {
            return Err(Reason::TOPIC_ALIAS_INVALID);
        }
        let place = usize::from(alias - 1);
        if self.aliases.len() <= place {
            self.aliases.resize(place + 1, None);
        }
        if message.topic.is_empty() {
            return match self.aliases[place] {
                Some(_) => Ok(Some(place)),
                None => Err(Reason::PROTOCOL_ERROR),
            };
        }
        let former = self.aliases[place].replace(message.topic.into());
        self.alias_bytes += message.topic.len();
        self.alias_bytes -= former.map_or(0, |topic| topic.len());
        Ok(Some(place))
    }

    /// Notes the packet identifier of a message of QoS 2. If it came before, what the PUBREC that is
    /// owed to it once more waits for: "MUST acknowledge any subsequent PUBLISH packet with the same
    /// Packet Identifier by sending a PUBREC" (MQTT-4.3.3-10).
    fn receive_once(&self, id: u16) -> Parsed<Option<After>> {
        let mut session = self.session.lock_as(self.key)?;
        match session.received.get(&id) {
            Some(Received::Pending(key)) if *key != self.key => Ok(Some(After::Former)),
            Some(_) => Ok(Some(After::Own(self.sequence))),
            None if session.received.len() >= MAX_RECEIVED => Err(Reason::QUOTA_EXCEEDED),
            None => {
                session.received.insert(id, Received::Pending(self.key));
                Ok(None)
            }
        }
    }

    /// Sends the acknowledgements whose messages Kafka has, in order.
    pub(super) fn acknowledge(&mut self, actions: &mut dyn Actions) -> Parsed<()> {
        while let Some(owed) = self.owed.front().copied() {
            match owed.after {
                After::Own(sequence) if sequence > self.delivered => break,
                After::Own(_) => {}
                After::Former => match self.session.lock().received.get(&owed.id) {
                    Some(Received::Safe) => {}
                    Some(Received::Pending(_)) => break,
                    // Kafka would not have it: the client has to send it anew.
                    None => return Err(Reason::UNSPECIFIED),
                },
            }
            self.owed.pop_front();
            if owed.kind == AckKind::Pubrec {
                self.note_safe(owed.id);
                self.unreleased.insert(owed.id);
            }
            encode::acknowledge(
                actions.output(),
                self.version,
                owed.kind,
                owed.id,
                Reason::SUCCESS,
            );
        }
        Ok(())
    }

    fn note_safe(&self, id: u16) {
        let mut session = self.session.lock();
        if let Some(received) = session.received.get_mut(&id)
            && *received == Received::Pending(self.key)
        {
            *received = Received::Safe;
        }
    }

    /// Kafka has acknowledged more, but the connection is over: a later one has to know.
    pub(super) fn mark_delivered(&mut self) {
        while let Some(owed) = self.owed.front()
            && matches!(owed.after, After::Own(sequence) if sequence <= self.delivered)
        {
            let owed = self.owed.pop_front().expect("just seen");
            if owed.kind == AckKind::Pubrec {
                self.note_safe(owed.id);
            }
        }
    }

    /// Kafka has refused a message: what of this connection is not safe has to come again.
    pub(super) fn forget_pending(&self) {
        let lost = Received::Pending(self.key);
        self.session.lock().received.retain(|_, received| *received != lost);
    }

    /// PUBREL: the packet identifier is free again.
    fn release(&mut self, id: u16, actions: &mut dyn Actions) -> Parsed<()> {
        let reason = {
            let mut session = self.session.lock_as(self.key)?;
            match session.received.get(&id) {
                // It cannot have a PUBREC yet.
                Some(Received::Pending(_)) => return Err(Reason::PROTOCOL_ERROR),
                Some(Received::Safe) => {
                    session.received.remove(&id);
                    Reason::SUCCESS
                }
                None => Reason::PACKET_ID_NOT_FOUND,
            }
        };
        self.unreleased.remove(&id);
        encode::acknowledge(actions.output(), self.version, AckKind::Pubcomp, id, reason);
        Ok(())
    }

    fn subscribe(
        &mut self,
        mut filters: Filters<'_>,
        mqtt: &Mqtt,
        actions: &mut dyn Actions,
    ) -> Parsed<()> {
        let (mut codes, mut told) = (Vec::new(), Vec::new());
        {
            let mut session = self.session.lock_as(self.key)?;
            let most = usize::from(mqtt.section.max_subscriptions);
            while let Some((filter, qos)) = filters.next()? {
                let refused = if topic::is_shared(filter) {
                    Some(Reason::SHARED_NOT_SUPPORTED)
                } else if !topic::is_filter(filter) {
                    Some(Reason::TOPIC_FILTER_INVALID)
                } else if !session.subscribe(filter, qos, filters.identifier, most) {
                    Some(Reason::QUOTA_EXCEEDED)
                } else {
                    None
                };
                codes.push(match refused {
                    None => {
                        record::tell(&mut told, Some(qos), filter);
                        qos as u8
                    }
                    Some(reason) if self.version.is_v5() => reason.0,
                    // The one failure that the older version knows (section 3.9.3).
                    Some(_) => Reason::UNSPECIFIED.0,
                });
            }
        }
        encode::suback(actions.output(), self.version, filters.id, &codes);
        if codes.iter().any(|code| *code <= Qos::Two as u8) {
            self.ask_held(actions);
        }
        self.tell(b"subscribe", &told, mqtt, actions);
        Ok(())
    }

    fn unsubscribe(
        &mut self,
        mut filters: Filters<'_>,
        mqtt: &Mqtt,
        actions: &mut dyn Actions,
    ) -> Parsed<()> {
        let (mut codes, mut told) = (Vec::new(), Vec::new());
        {
            let mut session = self.session.lock_as(self.key)?;
            while let Some((filter, _)) = filters.next()? {
                codes.push(if session.unsubscribe(filter) {
                    record::tell(&mut told, None, filter);
                    Reason::SUCCESS.0
                } else {
                    Reason::NO_SUBSCRIPTION_EXISTED.0
                });
            }
        }
        encode::unsuback(actions.output(), self.version, filters.id, &codes);
        self.tell(b"unsubscribe", &told, mqtt, actions);
        Ok(())
    }

    /// Asks for the replies that waited, unless that was done.
    pub(super) fn ask_held(&mut self, actions: &mut dyn Actions) {
        if std::mem::take(&mut self.held_later) {
            actions.ask_held();
        }
    }

    /// Makes a record of a change of the subscriptions, if the server wants to hear of it.
    fn tell(&mut self, packet: &[u8], filters: &[u8], mqtt: &Mqtt, actions: &mut dyn Actions) {
        if !mqtt.section.tell_subscriptions || filters.is_empty() {
            return;
        }
        record::reset(&mut self.headers);
        record::packet(&mut self.headers, packet);
        self.sequence = actions.message(self.headers.headers(), filters);
    }

    /// The connection is over: the will, and the session.
    pub(super) fn ended(
        &mut self,
        reason: CloseReason,
        mqtt: &Mqtt,
        now: Instant,
        actions: &mut dyn Actions,
    ) {
        let resumed = self.session.lock().owner != self.key;
        // "If a new Network Connection to this Session is made before the Will Delay Interval has
        // passed, the Server MUST NOT send the Will Message" (MQTT-3.1.3-9).
        if let Some(will) = self.will.take()
            && !(resumed && will.delay_s > 0)
        {
            actions.message(will.headers.headers(), &will.payload);
        }
        if reason == CloseReason::RefusedByKafka {
            self.forget_pending();
        }
        let keep = Duration::from_secs(u64::from(self.expiry_s));
        mqtt.sessions.part(&self.id, &self.session, self.key, keep, now);
        self.waiting = Waiting::default();
        self.aliases = Vec::new();
    }

    /// When something is to be done.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let silence = (!self.keep_alive.is_zero()).then(|| self.heard + self.keep_alive);
        let former = matches!(self.owed.front(), Some(Owed { after: After::Former, .. }));
        let poll = former.then(|| self.asked + FOREIGN_POLL);
        match (silence, poll) {
            (Some(silence), Some(poll)) => Some(silence.min(poll)),
            (silence, poll) => silence.or(poll),
        }
    }

    /// Whether it has not been heard for too long.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        !self.keep_alive.is_zero() && now >= self.heard + self.keep_alive
    }

    /// Whether so many acknowledgements wait for Kafka that no more should be read. A client of MQTT
    /// 5.0 has been told how many it may have under way; the older version has no word for that.
    pub(super) fn is_behind(&self, mqtt: &Mqtt) -> bool {
        !self.version.is_v5() && self.owed.len() >= usize::from(mqtt.section.receive_maximum)
    }

    /// Bytes kept in memory.
    pub(super) fn held(&self) -> usize {
        size_of::<Self>()
            + self.waiting.bytes()
            + self.owed.len() * size_of::<Owed>()
            + self.unreleased.len() * size_of::<u16>()
            + self.alias_bytes
            + self.will.as_ref().map_or(0, |will| will.payload.len())
    }
}
