//! An accepted client, and what it is sent.
//!
//! ```text
//!  reply ─► window full? ── yes ─► Waiting ──┐   (beyond `max_waiting_bytes`: stays in the log)
//!             └ no ─► PUBLISH ◄──────────────┘   (QoS 0: done with the output)
//!                      ├─ PUBACK ──────────────────► settled      QoS 1
//!                      └─ PUBREC ─► PUBREL ─ PUBCOMP ─► settled   QoS 2
//! ```
//!
//! A reply that the client had not confirmed when its connection ended comes again, under the same
//! [`ReplyOrigin`]; the session knows how far it was.

use std::time::{Duration, Instant};

use crate::{Actions, Sending, Unencodable};
use millrace_model::{Headers, Reply, ReplyOrigin};

use super::Mqtt;
use super::client::Client;
use super::encode::{self, DUP, Publish};
use super::packet::{AckKind, Qos};
use super::properties::id;
use super::reason::Reason;
use super::record;
use super::session::{Progress, Session};
use super::waiting::{Expires, Packed};
use super::wire::Parsed;

/// Completes a PUBLISH of QoS 1 or 2 and notes that it is under way.
fn number(session: &mut Session, origin: ReplyOrigin, qos: Qos, packet: &mut [u8], id_at: usize) {
    let id = match session.sent_by_origin(origin) {
        Some(place) => {
            let sent = &mut session.sent[place];
            sent.here = true;
            packet[0] |= DUP;
            sent.id
        }
        None => session.send(origin, qos),
    };
    packet[id_at..id_at + 2].copy_from_slice(&id.to_be_bytes());
}

impl Client {
    /// A client that was here before: PUBREL again for what it has received (section 4.4).
    pub(super) fn resume(&mut self, actions: &mut dyn Actions) {
        for sent in &self.session.lock().sent {
            if sent.progress == Progress::Released {
                let (kind, id) = (AckKind::Pubrel, sent.id);
                encode::acknowledge(actions.output(), self.version, kind, id, Reason::SUCCESS);
            }
        }
    }

    /// Takes a server's reply.
    pub(super) fn reply(
        &mut self,
        reply: Reply<'_>,
        mqtt: &Mqtt,
        now: Instant,
        actions: &mut dyn Actions,
    ) -> Result<Sending, Unencodable> {
        self.properties.clear();
        let Reply { headers, payload, waited, .. } = reply;
        let most = mqtt.max_message_bytes;
        let wanted = record::Reply::read(headers, payload, waited, most, &mut self.properties)?;
        let Ok(mut session) = self.session.lock_as(self.key) else {
            // For the connection that has taken over, which gets it when this one has ended.
            return Ok(Sending::Kept);
        };
        let own = wanted.publisher == Some(&*self.id);
        let matched = session.matching(wanted.topic, own);
        for identifier in matched.iter().flat_map(|matched| &matched.identifiers) {
            self.properties.varint(id::SUBSCRIPTION, *identifier);
        }
        let former = session.sent_by_origin(reply.origin);
        let qos = match former.map(|place| session.sent[place]) {
            Some(sent) if sent.progress == Progress::Completed => {
                session.sent.remove(former.expect("just seen"));
                return Ok(Sending::Unwanted);
            }
            // The same reply twice at once: one is enough.
            Some(sent) if sent.here => return Ok(Sending::Unwanted),
            Some(sent) if sent.progress == Progress::Released => {
                session.sent[former.expect("just seen")].here = true;
                self.in_flight += 1;
                return Ok(Sending::Kept);
            }
            // What was begun is ended, whatever the client has unsubscribed from since, and however long
            // it has taken.
            Some(sent) => sent.qos,
            None if wanted.expiry.is_some_and(|expiry| expiry.left.is_none()) => {
                return Ok(Sending::Unwanted);
            }
            None if reply.held && self.has_given_up(reply.origin, now) => {
                return Ok(Sending::Unwanted);
            }
            None => match matched {
                Some(matched) => matched.qos.min(wanted.qos),
                None if reply.held && self.unmatched.is_waiting(now) => {
                    drop(session);
                    self.unmatched.push(reply, now);
                    return Ok(Sending::Kept);
                }
                None => return Ok(Sending::Unwanted),
            },
        };
        let publish = Publish {
            topic: wanted.topic,
            qos,
            retain: wanted.retain,
            properties: self.properties.bytes(),
            payload,
        };
        let length = publish.bytes(self.version);
        // "the Server MUST NOT send" what is too large for the client (MQTT-3.1.2-24).
        if length > self.maximum_packet {
            return Err(Unencodable);
        }
        let waits = !self.waiting.is_empty();
        if !waits && qos == Qos::Zero {
            publish.write(actions.output(), self.version);
            return Ok(Sending::WithOutput);
        }
        if !waits && self.in_flight < self.window {
            let output = actions.output();
            let start = output.len();
            let id_at = publish.write(output, self.version);
            number(&mut session, reply.origin, qos, &mut output[start..], id_at);
            self.in_flight += 1;
            return Ok(Sending::Kept);
        }
        let mut bytes = Vec::with_capacity(length);
        let id_at = publish.write(&mut bytes, self.version);
        let properties_at = length - payload.len() - publish.properties.len();
        // What was begun does not expire.
        let expires = wanted.expiry.filter(|_| former.is_none()).map(|expiry| Expires {
            at: now + expiry.left.unwrap_or(Duration::ZERO),
            place: self.version.is_v5().then_some(properties_at + expiry.place),
        });
        self.waiting.push(Packed { origin: reply.origin, qos, bytes, id_at, expires });
        Ok(Sending::Kept)
    }

    /// Whether a reply that waited belonged to a session that this client's clean start has ended. Of
    /// those that came by another relay the place in its downlink says nothing; they are taken for such
    /// while it may be that they were waiting before.
    fn has_given_up(&self, origin: ReplyOrigin, now: Instant) -> bool {
        self.gives_up.is_some_and(|end| {
            if origin.relay == self.key.relay {
                origin.offset < end
            } else {
                self.unmatched.is_waiting(now)
            }
        })
    }

    /// The client has confirmed a reply, or a part of it.
    pub(super) fn confirm(
        &mut self,
        kind: AckKind,
        id: u16,
        reason: u8,
        now: Instant,
        actions: &mut dyn Actions,
    ) -> Parsed<()> {
        const FAILED: u8 = 0x80;
        let mut session = self.session.lock_as(self.key)?;
        let place = session.sent_by_id(id);
        let sent = place.map(|place| session.sent[place]);
        match (kind, sent.map(|sent| sent.qos)) {
            (AckKind::Puback, Some(Qos::Two))
            | (AckKind::Pubrec | AckKind::Pubcomp, Some(Qos::One)) => {
                return Err(Reason::PROTOCOL_ERROR);
            }
            (AckKind::Pubrec, _) if reason < FAILED => {
                let known = if let Some(place) = place {
                    session.sent[place].progress = Progress::Released;
                    Reason::SUCCESS
                } else {
                    Reason::PACKET_ID_NOT_FOUND
                };
                drop(session);
                encode::acknowledge(actions.output(), self.version, AckKind::Pubrel, id, known);
                return Ok(());
            }
            _ => {}
        }
        // Confirmed as a whole; or the client refuses it, which is no less an end of it. A packet
        // identifier that is not known needs no answer.
        let (Some(place), Some(sent)) = (place, sent) else { return Ok(()) };
        if sent.here {
            session.sent.remove(place);
            self.in_flight -= 1;
            drop(session);
            actions.settle(sent.origin);
            self.send_waiting(now, actions);
        } else {
            session.sent[place].progress = Progress::Completed;
        }
        Ok(())
    }

    fn send_waiting(&mut self, now: Instant, actions: &mut dyn Actions) {
        let mut session = self.session.lock();
        while let Some(next) = self.waiting.first()
            && (next.qos == Qos::Zero || self.in_flight < self.window)
            && let Some(mut packed) = self.waiting.pop()
        {
            if !packed.keep_time(now) {
                actions.give_up(packed.origin);
                continue;
            }
            let Packed { origin, qos, id_at, .. } = packed;
            // A former connection had sent it, and the client has said more about it meanwhile.
            if let Some(place) = session.sent_by_origin(origin) {
                let sent = &mut session.sent[place];
                if sent.here {
                    // It came twice: one is enough.
                    actions.give_up(origin);
                    continue;
                }
                match sent.progress {
                    Progress::Published => {}
                    Progress::Released => {
                        sent.here = true;
                        self.in_flight += 1;
                        continue;
                    }
                    Progress::Completed => {
                        session.sent.remove(place);
                        actions.settle(origin);
                        continue;
                    }
                }
            }
            if qos == Qos::Zero {
                actions.output().extend_from_slice(&packed.bytes);
                actions.release(origin);
                continue;
            }
            number(&mut session, origin, qos, &mut packed.bytes, id_at);
            actions.output().extend_from_slice(&packed.bytes);
            self.in_flight += 1;
        }
    }
}

impl Client {
    /// The client has subscribed to more.
    pub(super) fn match_again(&mut self, mqtt: &Mqtt, now: Instant, actions: &mut dyn Actions) {
        for apart in self.unmatched.take() {
            let reply = Reply {
                origin: apart.origin,
                headers: Headers::from_bytes(&apart.headers),
                payload: &apart.payload,
                waited: apart.waited + now.saturating_duration_since(apart.since),
                held: true,
            };
            match self.reply(reply, mqtt, now, actions) {
                Ok(Sending::Kept) => {}
                Ok(Sending::WithOutput) => actions.release(apart.origin),
                Ok(Sending::Unwanted) | Err(_) => actions.give_up(apart.origin),
            }
        }
    }

    /// Gives up what no subscription covers, if the time for that is over.
    pub(super) fn give_up_unmatched(&mut self, now: Instant, actions: &mut dyn Actions) {
        if !self.unmatched.is_waiting(now) {
            for apart in self.unmatched.take() {
                actions.give_up(apart.origin);
            }
        }
    }
}
