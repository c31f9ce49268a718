//! An accepted client, and what it sends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Actions;
use millrace_model::{CloseReason, ConnectionKey, HeaderList};

use super::encode;
use super::packet::{self, AckKind, Filters, Message, Packet, Publish, Qos, Version};
use super::properties::Writer;
use super::reason::Reason;
use super::record;
use super::session::{Received, Session, Shared};
use super::topic;
use super::unmatched::Unmatched;
use super::waiting::Waiting;
use super::will::Will;
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
    /// What the client has sent cannot be taken, and there is no acknowledgement to say so in.
    Refused(Reason, CloseReason),
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
    /// Not success: there is no record.
    reason: Reason,
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
    /// The client wanted its session to outlive the connection at the beginning.
    pub(super) persists: bool,
    /// See [`Connect::bridge`](packet::Connect::bridge).
    pub(super) bridge: bool,
    /// Replies that waited until this offset of the downlink are nobody's: a clean start has ended the
    /// session that they were for.
    pub(super) gives_up: Option<i64>,
    /// Replies that waited and that no subscription covers yet.
    pub(super) unmatched: Unmatched,
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
    /// So many are owed that nothing more is taken from the client until half of them are.
    behind: bool,
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
            persists: false,
            bridge: false,
            gives_up: None,
            unmatched: Unmatched::default(),
            keep_alive: Duration::ZERO,
            heard: now,
            delivered: 0,
            sequence: 0,
            asked: now,
            owed: VecDeque::new(),
            behind: false,
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
        now: Instant,
        actions: &mut dyn Actions,
    ) -> Parsed<Next> {
        match packet::parse(packet, self.version)? {
            Packet::Publish(publish) => return self.publish(&publish, mqtt, actions),
            Packet::Ack { kind: AckKind::Pubrel, id, .. } => self.release(id, actions)?,
            Packet::Ack { kind, id, reason } => self.confirm(kind, id, reason, now, actions)?,
            Packet::Subscribe(filters) => self.subscribe(filters, mqtt, now, actions)?,
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
            if let Ok(mut session) = self.session.lock_as(self.key) {
                session.keep_s = expiry.min(mqtt.section.session_expiry_s);
            }
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
    ) -> Parsed<Next> {
        let message = &publish.message;
        if self.version.is_v5() && message.retain {
            return Err(Reason::RETAIN_NOT_SUPPORTED);
        }
        let alias = self.remember_alias(message)?;
        if message.qos == Qos::Two
            && let Some(after) = self.received_before(publish.id, mqtt)?
        {
            self.owe(publish.id, AckKind::Pubrec, after, Reason::SUCCESS, mqtt);
            return self.acknowledge(actions).map(|()| Next::GoOn);
        }
        record::reset(&mut self.headers);
        let known = alias.and_then(|alias| self.aliases[alias].as_deref());
        let topic = if message.topic.is_empty() { known } else { Some(message.topic) };
        let topic = topic.ok_or(Reason::TOPIC_ALIAS_INVALID)?;
        let too_long = message.payload.len() > mqtt.max_message_bytes;
        if too_long || !record::describe(&mut self.headers, topic, message) {
            let close =
                if too_long { CloseReason::OversizedMessage } else { CloseReason::Unsupported };
            return self.refuse(publish, close, mqtt, actions);
        }
        record::delivery(&mut self.headers, publish);
        self.sequence = actions.message(self.headers.headers(), message.payload);
        let kind = match message.qos {
            Qos::Zero => return Ok(Next::GoOn),
            Qos::One => AckKind::Puback,
            Qos::Two => AckKind::Pubrec,
        };
        if message.qos == Qos::Two {
            self.session.lock_as(self.key)?.receive(publish.id);
        }
        self.owe(publish.id, kind, After::Own(self.sequence), Reason::SUCCESS, mqtt);
        self.acknowledge(actions).map(|()| Next::GoOn)
    }

    /// A message that cannot be a record. Its packet was no longer than the client may send, so it is
    /// told by its acknowledgement that it need not try again; where it has none, or none with a reason,
    /// the connection ends.
    fn refuse(
        &mut self,
        publish: &Publish<'_>,
        close: CloseReason,
        mqtt: &Mqtt,
        actions: &mut dyn Actions,
    ) -> Parsed<Next> {
        let kind = match publish.message.qos {
            Qos::One if self.version.is_v5() => AckKind::Puback,
            Qos::Two if self.version.is_v5() => AckKind::Pubrec,
            _ => return Ok(Next::Refused(Reason::QUOTA_EXCEEDED, close)),
        };
        self.owe(publish.id, kind, After::Own(self.sequence), Reason::QUOTA_EXCEEDED, mqtt);
        self.acknowledge(actions).map(|()| Next::GoOn)
    }

    fn owe(&mut self, id: u16, kind: AckKind, after: After, reason: Reason, mqtt: &Mqtt) {
        self.owed.push_back(Owed { id, kind, after, reason });
        self.behind |= self.owed.len() >= usize::from(mqtt.section.receive_maximum);
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

    /// If a message of QoS 2 came before, what the PUBREC that is owed to it once more waits for: "MUST
    /// acknowledge any subsequent PUBLISH packet with the same Packet Identifier by sending a PUBREC"
    /// (MQTT-4.3.3-10). If it is new, it is refused to a client that has begun more than it was granted,
    /// and there is no room: the connection ends (section 3.3.4 of 5.0, "Receive Maximum exceeded").
    fn received_before(&self, id: u16, mqtt: &Mqtt) -> Parsed<Option<After>> {
        let session = self.session.lock_as(self.key)?;
        match session.received(id) {
            Some(Received::Pending(key)) if key != self.key => Ok(Some(After::Former)),
            Some(Received::Pending(_) | Received::Safe) => Ok(Some(After::Own(self.sequence))),
            None => {
                let (granted, most) = (mqtt.section.receive_maximum, mqtt.sessions.most_bytes());
                let may_begin = session.may_begin(granted, most);
                may_begin.then_some(None).ok_or(Reason::RECEIVE_MAXIMUM_EXCEEDED)
            }
        }
    }

    /// Sends the acknowledgements whose messages Kafka has, in order.
    pub(super) fn acknowledge(&mut self, actions: &mut dyn Actions) -> Parsed<()> {
        while let Some(owed) = self.owed.front().copied() {
            match owed.after {
                After::Own(sequence) if sequence > self.delivered => break,
                After::Own(_) => {}
                After::Former => match self.session.lock().received(owed.id) {
                    Some(Received::Safe) => {}
                    Some(Received::Pending(_)) => break,
                    // Kafka would not have it: the client has to send it anew.
                    None => return Err(Reason::UNSPECIFIED),
                },
            }
            self.owed.pop_front();
            if owed.kind == AckKind::Pubrec && owed.reason == Reason::SUCCESS {
                self.session.lock().note_safe(owed.id, self.key);
            }
            let Owed { id, kind, reason, .. } = owed;
            encode::acknowledge(actions.output(), self.version, kind, id, reason);
        }
        Ok(())
    }

    /// Kafka has acknowledged more, but the connection is over: a later one has to know.
    pub(super) fn mark_delivered(&mut self) {
        while let Some(owed) = self.owed.front()
            && matches!(owed.after, After::Own(sequence) if sequence <= self.delivered)
        {
            let owed = self.owed.pop_front().expect("just seen");
            if owed.kind == AckKind::Pubrec {
                self.session.lock().note_safe(owed.id, self.key);
            }
        }
        self.finish();
    }

    /// Tells whoever waits to take over that nothing more comes from this connection, if so.
    fn finish(&self) {
        if self.will.is_none() && self.delivered >= self.sequence {
            self.session.finish(self.turn);
        }
    }

    /// The same, when the connection is over: nobody need wait for it any longer.
    pub(super) fn give_up(&self) {
        self.forget_pending();
        self.session.finish(self.turn);
    }

    /// Kafka has refused a message: what of this connection is not safe has to come again.
    pub(super) fn forget_pending(&self) {
        self.session.lock().forget_pending(self.key);
    }

    /// PUBREL: the packet identifier is free again.
    fn release(&mut self, id: u16, actions: &mut dyn Actions) -> Parsed<()> {
        let reason = {
            let mut session = self.session.lock_as(self.key)?;
            match session.received(id) {
                // It cannot have a PUBREC yet.
                Some(Received::Pending(_)) => return Err(Reason::PROTOCOL_ERROR),
                Some(Received::Safe) => {
                    session.release(id);
                    Reason::SUCCESS
                }
                None => Reason::PACKET_ID_NOT_FOUND,
            }
        };
        encode::acknowledge(actions.output(), self.version, AckKind::Pubcomp, id, reason);
        Ok(())
    }

    fn subscribe(
        &mut self,
        mut filters: Filters<'_>,
        mqtt: &Mqtt,
        now: Instant,
        actions: &mut dyn Actions,
    ) -> Parsed<()> {
        let (mut codes, mut told) = (Vec::new(), Vec::new());
        let most = usize::from(mqtt.section.max_subscriptions);
        mqtt.sessions.make_room(filters.bytes() + Session::bytes_of_subscriptions(most));
        {
            let mut session = self.session.lock_as(self.key)?;
            while let Some((filter, mut wanted)) = filters.next()? {
                wanted.no_local |= self.bridge;
                let qos = wanted.qos;
                let refused = if topic::is_shared(filter) {
                    Some(Reason::SHARED_NOT_SUPPORTED)
                } else if !topic::is_filter(filter) {
                    Some(Reason::TOPIC_FILTER_INVALID)
                } else if !session.subscribe(filter, wanted, most, mqtt.sessions.most_bytes()) {
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
        let start = actions.output().len();
        encode::suback(actions.output(), self.version, filters.id, &codes);
        self.check_length(start, actions)?;
        if codes.iter().any(|code| *code <= Qos::Two as u8) {
            self.unmatched.subscribed(now);
            self.ask_held(actions);
            self.match_again(mqtt, now, actions);
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
        let start = actions.output().len();
        encode::unsuback(actions.output(), self.version, filters.id, &codes);
        self.check_length(start, actions)?;
        self.tell(b"unsubscribe", &told, mqtt, actions);
        Ok(())
    }

    /// The last packet of the output, from its first byte on, must not be longer than the client takes
    /// (MQTT-3.1.2-24).
    fn check_length(&self, start: usize, actions: &mut dyn Actions) -> Parsed<()> {
        let output = actions.output();
        if output.len() - start > self.maximum_packet {
            output.truncate(start);
            return Err(Reason::PACKET_TOO_LARGE);
        }
        Ok(())
    }

    /// Asks for the replies that waited, unless that was done.
    pub(super) fn ask_held(&mut self, actions: &mut dyn Actions) {
        if self.unmatched.ask() {
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

    /// Nothing more is taken from the client: its will.
    pub(super) fn depart(&mut self, taken_over: bool, actions: &mut dyn Actions) {
        let (goes_on_s, resumed) = {
            let session = self.session.lock();
            let goes_on_s = if session.goes_on() { session.keep_s } else { 0 };
            (goes_on_s, goes_on_s > 0 && (taken_over || session.owner != self.key))
        };
        if let Some(will) = self.will.take()
            && (!resumed || will.survives_resumption())
        {
            self.sequence = will.publish(goes_on_s, actions);
        }
        self.finish();
    }

    /// The connection is over: its session.
    pub(super) fn ended(&mut self, reason: CloseReason, mqtt: &Mqtt, now: Instant) {
        if reason == CloseReason::RefusedByKafka {
            self.give_up();
        }
        mqtt.sessions.part(&self.id, &self.session, self.key, now);
        self.waiting = Waiting::default();
        self.unmatched = Unmatched::default();
        self.aliases = Vec::new();
    }

    /// When something is to be done.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let silence = (!self.keep_alive.is_zero()).then(|| self.heard + self.keep_alive);
        let former = matches!(self.owed.front(), Some(Owed { after: After::Former, .. }));
        let poll = former.then(|| self.asked + FOREIGN_POLL);
        [silence, poll, self.unmatched.deadline()].into_iter().flatten().min()
    }

    /// Whether it has not been heard for too long.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        !self.keep_alive.is_zero() && now >= self.heard + self.keep_alive
    }

    /// Whether so many acknowledgements wait for Kafka that no more is taken from the client. A client of
    /// MQTT 5.0 has been told how many it may have under way; but some keep no window, and those of the
    /// older version cannot be told. Closed, they would send all of it again at once.
    pub(super) fn is_behind(&mut self, mqtt: &Mqtt) -> bool {
        self.behind &= self.owed.len() > usize::from(mqtt.section.receive_maximum) / 2;
        self.behind
    }

    /// The same, as it was seen last.
    pub(super) const fn was_behind(&self) -> bool {
        self.behind
    }

    /// Whether the client is owed an acknowledgement.
    pub(super) fn is_owed(&self) -> bool {
        !self.owed.is_empty()
    }

    /// Bytes kept in memory.
    pub(super) fn kept_bytes(&self) -> usize {
        size_of::<Self>()
            + self.waiting.bytes()
            + self.unmatched.bytes()
            + self.owed.len() * size_of::<Owed>()
            + self.alias_bytes
            + self.will.as_ref().map_or(0, Will::bytes)
    }
}
