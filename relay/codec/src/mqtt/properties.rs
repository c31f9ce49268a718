//! Properties of MQTT 5.0 (section 2.2.2).

use super::reason::Reason;
use super::wire::{Parsed, Reader, put_binary, put_varint};

/// Identifiers of properties.
pub(super) mod id {
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION: u8 = 0x09;
    pub(crate) const SUBSCRIPTION: u8 = 0x0B;
    pub(crate) const SESSION_EXPIRY: u8 = 0x11;
    pub(crate) const ASSIGNED_CLIENT: u8 = 0x12;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(crate) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(crate) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(crate) const REQUEST_PROBLEM: u8 = 0x17;
    pub(crate) const WILL_DELAY: u8 = 0x18;
    pub(crate) const REQUEST_RESPONSE: u8 = 0x19;
    pub(crate) const REASON_STRING: u8 = 0x1F;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(crate) const USER: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET: u8 = 0x27;
    pub(crate) const SHARED_AVAILABLE: u8 = 0x2A;
}

/// A set of identifiers: which properties a packet may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowed(u64);

impl Allowed {
    const fn of(ids: &[u8]) -> Self {
        let (mut set, mut place) = (0, 0);
        while place < ids.len() {
            set |= 1 << ids[place];
            place += 1;
        }
        Self(set)
    }

    const fn has(self, id: u8) -> bool {
        id < 64 && self.0 & (1 << id) != 0
    }

    pub(super) const CONNECT: Self = Self::of(&[
        id::SESSION_EXPIRY,
        id::RECEIVE_MAXIMUM,
        id::MAXIMUM_PACKET,
        id::TOPIC_ALIAS_MAXIMUM,
        id::REQUEST_RESPONSE,
        id::REQUEST_PROBLEM,
        id::USER,
        id::AUTHENTICATION_METHOD,
        id::AUTHENTICATION_DATA,
    ]);
    pub(super) const WILL: Self = Self::of(&[
        id::WILL_DELAY,
        id::PAYLOAD_FORMAT,
        id::MESSAGE_EXPIRY,
        id::CONTENT_TYPE,
        id::RESPONSE_TOPIC,
        id::CORRELATION,
        id::USER,
    ]);
    /// From a client: without subscription identifiers.
    pub(super) const PUBLISH: Self = Self::of(&[
        id::PAYLOAD_FORMAT,
        id::MESSAGE_EXPIRY,
        id::TOPIC_ALIAS,
        id::RESPONSE_TOPIC,
        id::CORRELATION,
        id::USER,
        id::CONTENT_TYPE,
    ]);
    pub(super) const ACKNOWLEDGEMENT: Self = Self::of(&[id::REASON_STRING, id::USER]);
    pub(super) const SUBSCRIBE: Self = Self::of(&[id::SUBSCRIPTION, id::USER]);
    pub(super) const UNSUBSCRIBE: Self = Self::of(&[id::USER]);
    pub(super) const DISCONNECT: Self =
        Self::of(&[id::SESSION_EXPIRY, id::REASON_STRING, id::USER]);
    pub(super) const AUTH: Self = Self::of(&[
        id::AUTHENTICATION_METHOD,
        id::AUTHENTICATION_DATA,
        id::REASON_STRING,
        id::USER,
    ]);
}

/// What a packet's properties say; of those that the relay has no use for, only that they are right.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Properties<'a> {
    pub(super) payload_format: Option<u8>,
    pub(super) message_expiry: Option<u32>,
    pub(super) content_type: Option<&'a str>,
    pub(super) response_topic: Option<&'a str>,
    pub(super) correlation: Option<&'a [u8]>,
    pub(super) subscription: Option<u32>,
    pub(super) session_expiry: Option<u32>,
    pub(super) authentication_method: Option<&'a str>,
    pub(super) authentication_data: Option<&'a [u8]>,
    pub(super) will_delay: Option<u32>,
    pub(super) receive_maximum: Option<u16>,
    pub(super) topic_alias: Option<u16>,
    pub(super) maximum_packet: Option<u32>,
    /// All of them once more, for [`user`](Self::user).
    all: &'a [u8],
}

impl<'a> Properties<'a> {
    /// Reads the length and so many bytes of properties.
    pub(super) fn read(reader: &mut Reader<'a>, allowed: Allowed) -> Parsed<Self> {
        let length = reader.varint()?;
        let all = reader.bytes(length)?;
        let mut properties = Self { all, ..Self::default() };
        let (mut rest, mut seen) = (Reader::new(all), 0_u64);
        while !rest.is_empty() {
            let id = rest.u8()?;
            if id >= 64 {
                return Err(Reason::MALFORMED);
            }
            if !allowed.has(id) || (id != id::USER && seen & (1 << id) != 0) {
                return Err(Reason::PROTOCOL_ERROR);
            }
            seen |= 1 << id;
            properties.take(id, &mut rest)?;
        }
        Ok(properties)
    }

    fn take(&mut self, id: u8, rest: &mut Reader<'a>) -> Parsed<()> {
        match id {
            id::PAYLOAD_FORMAT => self.payload_format = Some(flag(rest)?),
            id::MESSAGE_EXPIRY => self.message_expiry = Some(rest.u32()?),
            id::CONTENT_TYPE => self.content_type = Some(rest.string()?),
            id::RESPONSE_TOPIC => self.response_topic = Some(rest.string()?),
            id::CORRELATION => self.correlation = Some(rest.binary()?),
            id::SUBSCRIPTION => {
                let value = u32::try_from(rest.varint()?).expect("28 bits");
                if value == 0 {
                    return Err(Reason::PROTOCOL_ERROR);
                }
                self.subscription = Some(value);
            }
            id::SESSION_EXPIRY => self.session_expiry = Some(rest.u32()?),
            id::AUTHENTICATION_METHOD => self.authentication_method = Some(rest.string()?),
            id::AUTHENTICATION_DATA => self.authentication_data = Some(rest.binary()?),
            id::REQUEST_PROBLEM | id::REQUEST_RESPONSE => drop(flag(rest)?),
            id::WILL_DELAY => self.will_delay = Some(rest.u32()?),
            id::REASON_STRING => drop(rest.string()?),
            id::RECEIVE_MAXIMUM => {
                self.receive_maximum = Some(rest.nonzero_u16(Reason::PROTOCOL_ERROR)?);
            }
            id::TOPIC_ALIAS_MAXIMUM => drop(rest.u16()?),
            id::TOPIC_ALIAS => {
                self.topic_alias = Some(rest.nonzero_u16(Reason::TOPIC_ALIAS_INVALID)?);
            }
            id::MAXIMUM_PACKET => match rest.u32()? {
                0 => return Err(Reason::PROTOCOL_ERROR),
                bytes => self.maximum_packet = Some(bytes),
            },
            id::USER => {
                rest.string()?;
                rest.string()?;
            }
            _ => return Err(Reason::MALFORMED),
        }
        Ok(())
    }

    /// User properties, in order.
    pub(super) fn user(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let mut rest = Reader::new(self.all);
        std::iter::from_fn(move || {
            while !rest.is_empty() {
                let id = rest.u8().ok()?;
                if id == id::USER {
                    return Some((rest.string().ok()?, rest.string().ok()?));
                }
                Properties::default().take(id, &mut rest).ok()?;
            }
            None
        })
    }
}

fn flag(rest: &mut Reader<'_>) -> Parsed<u8> {
    rest.u8().and_then(|value| if value > 1 { Err(Reason::PROTOCOL_ERROR) } else { Ok(value) })
}

/// What a list of properties keeps between two packets.
const KEPT_BYTES: usize = 512;

/// Properties to be sent.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, id: u8, value: u8) {
        self.0.extend_from_slice(&[id, value]);
    }

    pub(super) fn u16(&mut self, id: u8, value: u16) {
        self.0.push(id);
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub(super) fn u32(&mut self, id: u8, value: u32) {
        self.0.push(id);
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub(super) fn varint(&mut self, id: u8, value: u32) {
        self.0.push(id);
        put_varint(&mut self.0, value as usize);
    }

    /// Binary data or a string, of at most 65,535 bytes.
    pub(super) fn binary(&mut self, id: u8, value: &[u8]) {
        self.0.push(id);
        put_binary(&mut self.0, value);
    }

    /// A user property, likewise.
    pub(super) fn user(&mut self, name: &str, value: &str) {
        self.binary(id::USER, name.as_bytes());
        put_binary(&mut self.0, value.as_bytes());
    }

    /// Takes all out.
    pub(super) fn clear(&mut self) {
        self.0.clear();
        self.0.shrink_to(KEPT_BYTES);
    }

    /// What is in it, without its length.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
