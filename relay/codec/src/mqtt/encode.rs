//! Packets that the relay sends.

use super::packet::{AckKind, Qos, Version};
use super::properties::{Writer, id};
use super::reason::Reason;
use super::wire::{put_binary, put_varint, varint_bytes};

/// What a client of MQTT 5.0 is told in answer to its CONNECT, where it differs from what the
/// standard says by default.
#[derive(Debug, Default)]
pub(super) struct Granted<'a> {
    pub(super) session_expiry_s: Option<u32>,
    pub(super) receive_maximum: u16,
    pub(super) maximum_packet: u32,
    pub(super) topic_alias_maximum: u16,
    pub(super) assigned_client: Option<&'a str>,
    pub(super) keep_alive_s: Option<u16>,
}

impl Granted<'_> {
    fn write(&self, properties: &mut Writer) {
        if let Some(expiry) = self.session_expiry_s {
            properties.u32(id::SESSION_EXPIRY, expiry);
        }
        properties.u16(id::RECEIVE_MAXIMUM, self.receive_maximum);
        properties.u8(id::RETAIN_AVAILABLE, 0);
        properties.u32(id::MAXIMUM_PACKET, self.maximum_packet);
        if let Some(client) = self.assigned_client {
            properties.binary(id::ASSIGNED_CLIENT, client.as_bytes());
        }
        properties.u16(id::TOPIC_ALIAS_MAXIMUM, self.topic_alias_maximum);
        properties.u8(id::SHARED_AVAILABLE, 0);
        if let Some(keep_alive) = self.keep_alive_s {
            properties.u16(id::SERVER_KEEP_ALIVE, keep_alive);
        }
    }
}

impl Granted<'_> {
    /// Bytes of the CONNACK that says it.
    pub(super) fn bytes(&self, version: Version) -> usize {
        let mut packet = Vec::new();
        accept(&mut packet, version, false, self);
        packet.len()
    }
}

/// Accepts a client.
pub(super) fn accept(output: &mut Vec<u8>, version: Version, present: bool, granted: &Granted<'_>) {
    let mut properties = Writer::default();
    if version.is_v5() {
        granted.write(&mut properties);
    }
    connack(output, version, [u8::from(present), 0], properties.bytes());
}

/// Refuses a client, as far as its version has words for it.
pub(super) fn refuse(output: &mut Vec<u8>, version: Version, reason: Reason) {
    match (version, reason.return_code()) {
        (Version::V5, _) => connack(output, version, [0, reason.0], &[]),
        (Version::V3, Some(code)) => connack(output, version, [0, code], &[]),
        (Version::V3, None) => {}
    }
}

fn connack(output: &mut Vec<u8>, version: Version, answer: [u8; 2], properties: &[u8]) {
    packet(output, 0x20, version, &answer, properties, &[]);
}

/// A packet of a first part, properties if the version has them, and a last part.
fn packet(
    output: &mut Vec<u8>,
    first_byte: u8,
    version: Version,
    head: &[u8],
    properties: &[u8],
    tail: &[u8],
) {
    let length = if version.is_v5() { varint_bytes(properties.len()) } else { 0 };
    output.push(first_byte);
    put_varint(output, head.len() + length + properties.len() + tail.len());
    output.extend_from_slice(head);
    if version.is_v5() {
        put_varint(output, properties.len());
        output.extend_from_slice(properties);
    }
    output.extend_from_slice(tail);
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP. Success goes without saying.
pub(super) fn acknowledge(
    output: &mut Vec<u8>,
    version: Version,
    kind: AckKind,
    id: u16,
    reason: Reason,
) {
    let [high, low] = id.to_be_bytes();
    if version.is_v5() && reason != Reason::SUCCESS {
        output.extend_from_slice(&[kind.first_byte(), 3, high, low, reason.0]);
    } else {
        output.extend_from_slice(&[kind.first_byte(), 2, high, low]);
    }
}

/// SUBACK.
pub(super) fn suback(output: &mut Vec<u8>, version: Version, id: u16, codes: &[u8]) {
    packet(output, 0x90, version, &id.to_be_bytes(), &[], codes);
}

/// UNSUBACK. The older version has no codes in it.
pub(super) fn unsuback(output: &mut Vec<u8>, version: Version, id: u16, codes: &[u8]) {
    let codes = if version.is_v5() { codes } else { &[] };
    packet(output, 0xb0, version, &id.to_be_bytes(), &[], codes);
}

/// PINGRESP.
pub(super) fn pong(output: &mut Vec<u8>) {
    output.extend_from_slice(&[0xd0, 0]);
}

/// DISCONNECT, which the server sends in the newer version only.
pub(super) fn disconnect(output: &mut Vec<u8>, version: Version, reason: Reason) {
    if version.is_v5() {
        output.extend_from_slice(&[0xe0, 1, reason.0]);
    }
}

/// A PUBLISH to be sent.
#[derive(Debug)]
pub(super) struct Publish<'a> {
    pub(super) topic: &'a str,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) properties: &'a [u8],
    pub(super) payload: &'a [u8],
}

/// Bit of the first byte of a PUBLISH that was sent before.
pub(super) const DUP: u8 = 0x08;

impl Publish<'_> {
    fn remaining(&self, version: Version) -> usize {
        let id = if self.qos == Qos::Zero { 0 } else { 2 };
        let properties = self.properties.len();
        let properties = if version.is_v5() { varint_bytes(properties) + properties } else { 0 };
        2 + self.topic.len() + id + properties + self.payload.len()
    }

    /// Bytes of the packet.
    pub(super) fn bytes(&self, version: Version) -> usize {
        let remaining = self.remaining(version);
        1 + varint_bytes(remaining) + remaining
    }

    /// Writes it; the place of its packet identifier, which is left 0, counts from its first byte.
    pub(super) fn write(&self, output: &mut Vec<u8>, version: Version) -> usize {
        let start = output.len();
        output.push(0x30 | (self.qos as u8) << 1 | u8::from(self.retain));
        put_varint(output, self.remaining(version));
        put_binary(output, self.topic.as_bytes());
        let place = output.len() - start;
        if self.qos != Qos::Zero {
            output.extend_from_slice(&[0, 0]);
        }
        if version.is_v5() {
            put_varint(output, self.properties.len());
            output.extend_from_slice(self.properties);
        }
        output.extend_from_slice(self.payload);
        place
    }
}
