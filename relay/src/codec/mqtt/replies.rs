//! An accepted client, and what it is sent.
//!
//! ```text
//!  reply ─► window full? ── yes ─► Waiting ──┐
//!             └ no ─► PUBLISH ◄──────────────┘   (QoS 0: done with the output)
//!                      ├─ PUBACK ──────────────────► settled      QoS 1
//!                      └─ PUBREC ─► PUBREL ─ PUBCOMP ─► settled   QoS 2
//! ```
//!
//! A reply that the client had not confirmed when its connection ended comes again, under the same
//! [`ReplyOrigin`]; the session knows how far it was.

use std::collections::VecDeque;

use crate::codec::{Actions, Reply, ReplyOrigin, Sending, Unencodable};
use crate::worker::CloseReason;

use super::Mqtt;
use super::client::Client;
use super::encode::{self, DUP, Publish};
use super::packet::{AckKind, Qos};
use super::properties::id;
use super::reason::Reason;
use super::record;
use super::session::{Progress, Session};
use super::wire::Parsed;

/// Replies of QoS 1 and 2 for which there is no room among those under way.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    replies: VecDeque<Packed>,
    bytes: usize,
}

/// A PUBLISH that lacks its packet identifier.
#[derive(Debug)]
struct Packed {
    origin: ReplyOrigin,
    qos: Qos,
    bytes: Vec<u8>,
    /// Where the identifier stands.
    id_at: usize,
}

impl Waiting {
    /// Bytes kept in memory.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, packed: Packed) {
        self.bytes += packed.bytes.len() + size_of::<Packed>();
        self.replies.push_back(packed);
    }

    fn pop(&mut self) -> Option<Packed> {
        let packed = self.replies.pop_front()?;
        self.bytes -= packed.bytes.len() + size_of::<Packed>();
        if self.replies.is_empty() {
            self.replies = VecDeque::new();
        }
        Some(packed)
    }
}

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
        actions: &mut dyn Actions,
    ) -> Result<Sending, Unencodable> {
        self.properties.clear();
        let (headers, payload) = (reply.headers, reply.payload);
        let wanted =
            record::Reply::read(headers, payload, mqtt.max_message_bytes, &mut self.properties)?;
        let Ok(mut session) = self.session.lock_as(self.key) else {
            // For the connection that has taken over, which gets it when this one has ended.
            return Ok(Sending::Kept);
        };
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
            // What was begun is ended, whatever the client has unsubscribed from since.
            Some(sent) => sent.qos,
            None => {
                let Some(matched) = session.matching(wanted.topic) else {
                    return Ok(Sending::Unwanted);
                };
                for identifier in matched.identifiers {
                    self.properties.varint(id::SUBSCRIPTION, identifier);
                }
                matched.qos.min(wanted.qos)
            }
        };
        let publish = Publish {
            topic: wanted.topic,
            qos,
            retain: wanted.retain,
            properties: self.properties.bytes(),
            payload,
        };
        // "the Server MUST NOT send" what is too large for the client (MQTT-3.1.2-24).
        if publish.bytes(self.version) > self.maximum_packet {
            return Err(Unencodable);
        }
        if qos == Qos::Zero {
            publish.write(actions.output(), self.version);
            return Ok(Sending::WithOutput);
        }
        if self.in_flight < self.window && self.waiting.replies.is_empty() {
            let output = actions.output();
            let start = output.len();
            let id_at = publish.write(output, self.version);
            number(&mut session, reply.origin, qos, &mut output[start..], id_at);
            self.in_flight += 1;
            return Ok(Sending::Kept);
        }
        let mut bytes = Vec::with_capacity(publish.bytes(self.version));
        let id_at = publish.write(&mut bytes, self.version);
        self.waiting.push(Packed { origin: reply.origin, qos, bytes, id_at });
        if self.waiting.bytes > mqtt.section.max_waiting_bytes {
            encode::disconnect(actions.output(), self.version, Reason::QUOTA_EXCEEDED);
            actions.close(CloseReason::SlowReader);
        }
        Ok(Sending::Kept)
    }

    /// The client has confirmed a reply, or a part of it.
    pub(super) fn confirm(
        &mut self,
        kind: AckKind,
        id: u16,
        reason: u8,
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
            self.send_waiting(actions);
        } else {
            session.sent[place].progress = Progress::Completed;
        }
        Ok(())
    }

    fn send_waiting(&mut self, actions: &mut dyn Actions) {
        let mut session = self.session.lock();
        while self.in_flight < self.window
            && let Some(mut packed) = self.waiting.pop()
        {
            let Packed { origin, qos, id_at, .. } = packed;
            number(&mut session, origin, qos, &mut packed.bytes, id_at);
            actions.output().extend_from_slice(&packed.bytes);
            self.in_flight += 1;
        }
    }
}
