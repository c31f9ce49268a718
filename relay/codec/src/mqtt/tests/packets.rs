//! Packets of clients, and the packets that they get, made and taken apart without the code under
//! test.

/// A CONNECT in the making.
#[derive(Clone, Debug)]
pub(super) struct Build {
    v5: bool,
    pub(super) name: &'static str,
    pub(super) level: u8,
    pub(super) flags: u8,
    pub(super) keep_alive: u16,
    pub(super) properties: Vec<u8>,
    /// What is behind the properties.
    pub(super) payload: Vec<u8>,
}

/// A CONNECT with a clean start.
pub(super) fn connect(v5: bool, client: &str) -> Build {
    let level = if v5 { 5 } else { 4 };
    let (properties, payload) = (Vec::new(), string(client));
    Build { v5, name: "MQTT", level, flags: 2, keep_alive: 0, properties, payload }
}

impl Build {
    pub(super) const fn is_v5(&self) -> bool {
        self.v5
    }

    /// With a session that outlives the connection by ten minutes, and goes on if it is there.
    pub(super) fn persistent(mut self) -> Self {
        self.flags &= !2;
        self.with_property(&[0x11, 0, 0, 2, 0x58])
    }

    pub(super) fn with_property(mut self, bytes: &[u8]) -> Self {
        if self.v5 {
            self.properties.extend_from_slice(bytes);
        }
        self
    }

    pub(super) fn with_will(mut self, properties: &[u8], flags: u8) -> Self {
        self.flags |= 4 | flags;
        if self.v5 {
            self.payload.push(u8::try_from(properties.len()).unwrap());
            self.payload.extend_from_slice(properties);
        }
        self.payload.extend(string("will/topic"));
        self.payload.extend(string("gone"));
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut body = string(self.name);
        body.extend([self.level, self.flags]);
        body.extend(self.keep_alive.to_be_bytes());
        if self.v5 {
            body.push(u8::try_from(self.properties.len()).unwrap());
            body.extend_from_slice(&self.properties);
        }
        body.extend_from_slice(&self.payload);
        packet(0x10, &body)
    }
}

pub(super) fn string(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// A packet with its length.
pub(super) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        let more = if length > 127 { 0x80 } else { 0 };
        bytes.push(u8::try_from(length % 128).unwrap() | more);
        length /= 128;
        if length == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

/// A PUBLISH whose first byte has these flags.
pub(super) fn publish(v5: bool, flags: u8, id: u16, topic: &str, payload: &str) -> Vec<u8> {
    publish_with(v5, flags, id, topic, &[], payload)
}

pub(super) fn publish_with(
    v5: bool,
    flags: u8,
    id: u16,
    topic: &str,
    properties: &[u8],
    payload: &str,
) -> Vec<u8> {
    let mut body = string(topic);
    if flags & 6 != 0 {
        body.extend(id.to_be_bytes());
    }
    if v5 {
        body.push(u8::try_from(properties.len()).unwrap());
        body.extend_from_slice(properties);
    }
    body.extend_from_slice(payload.as_bytes());
    packet(0x30 | flags, &body)
}

pub(super) fn subscribe(v5: bool, id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    subscribe_with(v5, id, &[], filters)
}

pub(super) fn subscribe_with(
    v5: bool,
    id: u16,
    properties: &[u8],
    filters: &[(&str, u8)],
) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if v5 {
        body.push(u8::try_from(properties.len()).unwrap());
        body.extend_from_slice(properties);
    }
    for (filter, options) in filters {
        body.extend(string(filter));
        body.push(*options);
    }
    packet(0x82, &body)
}

pub(super) fn unsubscribe(v5: bool, id: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend(v5.then_some(0));
    for filter in filters {
        body.extend(string(filter));
    }
    packet(0xa2, &body)
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
pub(super) fn ack(first: u8, id: u16) -> Vec<u8> {
    packet(first, &id.to_be_bytes())
}

pub(super) const PUBACK: u8 = 0x40;
pub(super) const PUBREC: u8 = 0x50;
pub(super) const PUBREL: u8 = 0x62;
pub(super) const PUBCOMP: u8 = 0x70;
pub(super) const PING: [u8; 2] = [0xc0, 0];
pub(super) const DISCONNECT: [u8; 2] = [0xe0, 0];

/// A packet of the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) first: u8,
    pub(super) body: Vec<u8>,
}

impl Sent {
    /// All packets of an output, which must be whole.
    pub(super) fn split(mut output: &[u8]) -> Vec<Self> {
        let mut packets = Vec::new();
        while let Some((first, rest)) = output.split_first() {
            let (mut length, mut place) = (0, 0);
            loop {
                length |= usize::from(rest[place] & 0x7f) << (7 * place);
                place += 1;
                if rest[place - 1] & 0x80 == 0 {
                    break;
                }
            }
            let (body, rest) = rest[place..].split_at(length);
            packets.push(Self { first: *first, body: body.to_vec() });
            output = rest;
        }
        packets
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        packet(self.first, &self.body)
    }

    pub(super) fn new(first: u8, body: &[u8]) -> Self {
        Self { first, body: body.to_vec() }
    }

    /// An answer to a packet with an identifier.
    pub(super) fn ack(first: u8, id: u16) -> Self {
        Self::new(first, &id.to_be_bytes())
    }

    /// DISCONNECT of the newer version.
    pub(super) fn disconnect(reason: u8) -> Self {
        Self::new(0xe0, &[reason])
    }

    /// The packet identifier of a PUBLISH of QoS 1 or 2.
    pub(super) fn id(&self) -> u16 {
        let topic = usize::from(u16::from_be_bytes([self.body[0], self.body[1]]));
        u16::from_be_bytes([self.body[2 + topic], self.body[3 + topic]])
    }
}
