//! Packets that a client sends, parsed in place: nothing is copied, and nothing that the standard
//! forbids gets through.

use super::properties::{Allowed, Properties};
use super::reason::Reason;
use super::topic;
use super::wire::{Parsed, Reader};

/// Of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// MQTT 3.1.1: protocol level 4.
    V3,
    /// MQTT 5.0: protocol level 5.
    V5,
}

impl Version {
    pub(super) const fn is_v5(self) -> bool {
        matches!(self, Self::V5)
    }
}

/// What a client wants of a subscription.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) qos: Qos,
    /// Nothing that the client itself has published.
    pub(super) no_local: bool,
    pub(super) identifier: Option<u32>,
}

/// Quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Qos {
    /// At most once.
    Zero = 0,
    /// At least once.
    One = 1,
    /// Exactly once.
    Two = 2,
}

impl Qos {
    pub(super) const fn new(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Zero),
            1 => Some(Self::One),
            2 => Some(Self::Two),
            _ => None,
        }
    }

    /// As it stands in headers of records.
    pub(super) const fn digit(self) -> &'static [u8] {
        match self {
            Self::Zero => b"0",
            Self::One => b"1",
            Self::Two => b"2",
        }
    }
}

/// The first packet.
#[derive(Debug)]
pub(super) struct Connect<'a> {
    pub(super) version: Version,
    /// The client is a broker that bridges topics.
    pub(super) bridge: bool,
    pub(super) clean_start: bool,
    pub(super) keep_alive_s: u16,
    pub(super) properties: Properties<'a>,
    pub(super) client: &'a str,
    pub(super) will: Option<Message<'a>>,
    pub(super) user: Option<&'a str>,
    pub(super) password: Option<&'a [u8]>,
}

/// What is published: in a PUBLISH, or when its client is gone.
#[derive(Debug)]
pub(super) struct Message<'a> {
    /// Empty if only its alias is given.
    pub(super) topic: &'a str,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) properties: Properties<'a>,
    pub(super) payload: &'a [u8],
}

/// A PUBLISH.
#[derive(Debug)]
pub(super) struct Publish<'a> {
    pub(super) message: Message<'a>,
    pub(super) dup: bool,
    /// 0 with QoS 0.
    pub(super) id: u16,
}

/// One of the four that answer each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckKind {
    Puback,
    Pubrec,
    Pubrel,
    Pubcomp,
}

impl AckKind {
    /// The first byte of the packet.
    pub(super) const fn first_byte(self) -> u8 {
        match self {
            Self::Puback => 0x40,
            Self::Pubrec => 0x50,
            Self::Pubrel => 0x62,
            Self::Pubcomp => 0x70,
        }
    }
}

/// What a SUBSCRIBE or UNSUBSCRIBE is about: read with [`Filters::next`].
#[derive(Debug)]
pub(super) struct Filters<'a> {
    pub(super) id: u16,
    identifier: Option<u32>,
    rest: Reader<'a>,
    options: Option<Version>,
}

/// A packet, but for CONNECT.
#[derive(Debug)]
pub(super) enum Packet<'a> {
    Publish(Publish<'a>),
    Ack { kind: AckKind, id: u16, reason: u8 },
    Subscribe(Filters<'a>),
    Unsubscribe(Filters<'a>),
    Ping,
    Disconnect { reason: u8, session_expiry: Option<u32> },
}

/// Why there will be no connection, and in which version the client may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectFault {
    pub(super) reason: Reason,
    pub(super) version: Option<Version>,
}

/// The first packet, fixed header included. It tells the version that a refusal is written in.
pub(super) fn connect(packet: &[u8]) -> Result<Connect<'_>, ConnectFault> {
    const CONNECT: u8 = 0x10;
    // A broker that bridges topics (mosquitto's `try_private`) says so in the level; it is a client of
    // the version in the other bits that wants nothing back of what it has published.
    const BRIDGE: u8 = 0x80;
    let unknown = |reason| ConnectFault { reason, version: None };
    let (first, mut reader) = split(packet).map_err(unknown)?;
    if first != CONNECT {
        return Err(unknown(Reason::PROTOCOL_ERROR));
    }
    let name = reader.binary().map_err(unknown)?;
    let level = reader.u8().map_err(unknown)?;
    let unsupported =
        |version| ConnectFault { reason: Reason::UNSUPPORTED_VERSION, version: Some(version) };
    let bridge = level & BRIDGE != 0;
    let version = match (name, level & !BRIDGE) {
        (b"MQTT", 4) => Version::V3,
        (b"MQTT", 5) => Version::V5,
        (b"MQTT", 6..) if !bridge => return Err(unsupported(Version::V5)),
        (b"MQTT" | b"MQIsdp", _) => return Err(unsupported(Version::V3)),
        _ => return Err(unknown(Reason::MALFORMED)),
    };
    let body = connect_body(reader, version, bridge);
    body.map_err(|reason| ConnectFault { reason, version: Some(version) })
}

fn connect_body(mut reader: Reader<'_>, version: Version, bridge: bool) -> Parsed<Connect<'_>> {
    let flags = reader.u8()?;
    let has = |bit: u8| flags & (1 << bit) != 0;
    let (clean_start, has_will, will_retain) = (has(1), has(2), has(5));
    let (has_password, has_user) = (has(6), has(7));
    let qos = Qos::new(flags >> 3 & 3).ok_or(Reason::MALFORMED)?;
    let bad_will = !has_will && (will_retain || qos != Qos::Zero);
    // A password without a user name is new in 5.0 (MQTT-3.1.2-22 of 3.1.1).
    let bad_password = has_password && !has_user && !version.is_v5();
    if has(0) || bad_will || bad_password {
        return Err(Reason::MALFORMED);
    }
    let keep_alive_s = reader.u16()?;
    let properties = properties(&mut reader, version, Allowed::CONNECT)?;
    let client = reader.string()?;
    let will = if has_will {
        let properties = self::properties(&mut reader, version, Allowed::WILL)?;
        let topic = reader.string()?;
        if !topic::is_name(topic) {
            return Err(Reason::TOPIC_NAME_INVALID);
        }
        check_response_topic(&properties)?;
        let payload = reader.binary()?;
        Some(Message { topic, qos, retain: will_retain, properties, payload })
    } else {
        None
    };
    let user = has_user.then(|| reader.string()).transpose()?;
    let password = has_password.then(|| reader.binary()).transpose()?;
    if !reader.is_empty() {
        return Err(Reason::MALFORMED);
    }
    Ok(Connect {
        version,
        bridge,
        clean_start,
        keep_alive_s,
        properties,
        client,
        will,
        user,
        password,
    })
}

/// Any packet after CONNECT, fixed header included.
pub(super) fn parse(packet: &[u8], version: Version) -> Parsed<Packet<'_>> {
    let (first, reader) = split(packet)?;
    let (kind, flags) = (first >> 4, first & 0x0f);
    let wanted = match kind {
        3 => return publish(flags, reader, version).map(Packet::Publish),
        6 | 8 | 10 => 2,
        _ => 0,
    };
    if flags != wanted {
        return Err(Reason::MALFORMED);
    }
    let packet = match kind {
        4 => return acknowledgement(AckKind::Puback, reader, version),
        5 => return acknowledgement(AckKind::Pubrec, reader, version),
        6 => return acknowledgement(AckKind::Pubrel, reader, version),
        7 => return acknowledgement(AckKind::Pubcomp, reader, version),
        8 => return filters(reader, version, Allowed::SUBSCRIBE, true).map(Packet::Subscribe),
        10 => {
            return filters(reader, version, Allowed::UNSUBSCRIBE, false).map(Packet::Unsubscribe);
        }
        12 => Packet::Ping,
        14 if version.is_v5() => return disconnect(reader),
        14 => Packet::Disconnect { reason: 0, session_expiry: None },
        15 if version.is_v5() => return Err(authentication(reader)),
        0 | 15 => return Err(Reason::MALFORMED),
        // A second CONNECT, or what only a server sends.
        _ => return Err(Reason::PROTOCOL_ERROR),
    };
    if reader.is_empty() { Ok(packet) } else { Err(Reason::MALFORMED) }
}

/// The first byte, and what is behind the fixed header.
fn split(packet: &[u8]) -> Parsed<(u8, Reader<'_>)> {
    let mut reader = Reader::new(packet);
    let first = reader.u8()?;
    reader.varint()?;
    Ok((first, reader))
}

fn properties<'a>(
    reader: &mut Reader<'a>,
    version: Version,
    allowed: Allowed,
) -> Parsed<Properties<'a>> {
    if version.is_v5() { Properties::read(reader, allowed) } else { Ok(Properties::default()) }
}

/// "The Response Topic MUST NOT contain wildcard characters" (MQTT-3.3.2-14).
fn check_response_topic(properties: &Properties<'_>) -> Parsed<()> {
    match properties.response_topic {
        Some(topic) if !topic::is_name(topic) => Err(Reason::PROTOCOL_ERROR),
        _ => Ok(()),
    }
}

fn publish(flags: u8, mut reader: Reader<'_>, version: Version) -> Parsed<Publish<'_>> {
    let (dup, retain) = (flags & 8 != 0, flags & 1 != 0);
    let qos = Qos::new(flags >> 1 & 3).ok_or(Reason::MALFORMED)?;
    if dup && qos == Qos::Zero {
        return Err(Reason::MALFORMED);
    }
    let topic = reader.string()?;
    let id = match qos {
        Qos::Zero => 0,
        _ => reader.nonzero_u16(Reason::MALFORMED)?,
    };
    let properties = properties(&mut reader, version, Allowed::PUBLISH)?;
    check_response_topic(&properties)?;
    match (topic.is_empty(), properties.topic_alias) {
        (true, Some(_)) => {}
        (true, None) => return Err(Reason::PROTOCOL_ERROR),
        (false, _) if topic::is_name(topic) => {}
        (false, _) => return Err(Reason::TOPIC_NAME_INVALID),
    }
    let message = Message { topic, qos, retain, properties, payload: reader.rest() };
    Ok(Publish { message, dup, id })
}

fn acknowledgement(kind: AckKind, mut reader: Reader<'_>, version: Version) -> Parsed<Packet<'_>> {
    let id = reader.nonzero_u16(Reason::MALFORMED)?;
    let mut reason = 0;
    if version.is_v5() && !reader.is_empty() {
        reason = reader.u8()?;
        if !reader.is_empty() {
            Properties::read(&mut reader, Allowed::ACKNOWLEDGEMENT)?;
        }
    }
    if reader.is_empty() { Ok(Packet::Ack { kind, id, reason }) } else { Err(Reason::MALFORMED) }
}

fn filters(
    mut reader: Reader<'_>,
    version: Version,
    allowed: Allowed,
    with_options: bool,
) -> Parsed<Filters<'_>> {
    let id = reader.nonzero_u16(Reason::MALFORMED)?;
    let properties = properties(&mut reader, version, allowed)?;
    if reader.is_empty() {
        // "MUST contain at least one Topic Filter" (MQTT-3.8.3-2).
        return Err(Reason::PROTOCOL_ERROR);
    }
    let options = with_options.then_some(version);
    Ok(Filters { id, identifier: properties.subscription, rest: reader, options })
}

impl<'a> Filters<'a> {
    /// Bytes of those that are left.
    pub(super) const fn bytes(&self) -> usize {
        self.rest.rest().len()
    }

    /// The next filter and what is wanted for it; nothing at the end.
    pub(super) fn next(&mut self) -> Parsed<Option<(&'a str, Wanted)>> {
        const NO_LOCAL: u8 = 4;
        if self.rest.is_empty() {
            return Ok(None);
        }
        let filter = self.rest.string()?;
        let mut wanted = Wanted { qos: Qos::Zero, no_local: false, identifier: self.identifier };
        let Some(version) = self.options else { return Ok(Some((filter, wanted))) };
        let options = self.rest.u8()?;
        let reserved = if version.is_v5() { 0xc0 } else { 0xfc };
        // "It is a Protocol Error to send a Retain Handling value of 3" (section 3.8.3.1).
        if version.is_v5() && options >> 4 & 3 == 3 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        // "It is a Protocol Error to set the No Local bit to 1 on a Shared Subscription" (MQTT-3.8.3-4).
        wanted.no_local = version.is_v5() && options & NO_LOCAL != 0;
        if wanted.no_local && topic::is_shared(filter) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if options & reserved != 0 {
            return Err(Reason::MALFORMED);
        }
        wanted.qos = Qos::new(options & 3).ok_or(Reason::MALFORMED)?;
        Ok(Some((filter, wanted)))
    }
}

fn disconnect(mut reader: Reader<'_>) -> Parsed<Packet<'_>> {
    let (mut reason, mut session_expiry) = (0, None);
    if !reader.is_empty() {
        reason = reader.u8()?;
        if !reader.is_empty() {
            session_expiry = Properties::read(&mut reader, Allowed::DISCONNECT)?.session_expiry;
        }
    }
    if !reader.is_empty() {
        return Err(Reason::MALFORMED);
    }
    Ok(Packet::Disconnect { reason, session_expiry })
}

/// There is no extended authentication here: why an AUTH ends the connection.
fn authentication(mut reader: Reader<'_>) -> Reason {
    let parsed = (|| {
        if !reader.is_empty() {
            reader.u8()?;
            if !reader.is_empty() {
                Properties::read(&mut reader, Allowed::AUTH)?;
            }
        }
        if reader.is_empty() { Ok(()) } else { Err(Reason::MALFORMED) }
    })();
    // "MUST NOT send an AUTH if no Authentication Method was in the CONNECT" (MQTT-4.12.0-6); one that
    // was is refused there.
    parsed.err().unwrap_or(Reason::PROTOCOL_ERROR)
}
