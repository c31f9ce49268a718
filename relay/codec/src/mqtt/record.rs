//! Headers of records: what a client's packet says, and what a server's reply wants.

use std::ffi::CStr;
use std::time::Duration;

use crate::Unencodable;
use millrace_model::{Decimal, HeaderList, Headers};

use super::packet::{Connect, Message, Publish, Qos};
use super::properties::{Writer, id};
use super::topic;

/// Names of headers that go both ways.
mod header {
    use std::ffi::CStr;

    pub(super) const TOPIC: &CStr = c"mqtt.topic";
    pub(super) const QOS: &CStr = c"mqtt.qos";
    pub(super) const RETAIN: &CStr = c"mqtt.retain";
    pub(super) const CONTENT_TYPE: &CStr = c"mqtt.content_type";
    pub(super) const RESPONSE_TOPIC: &CStr = c"mqtt.response_topic";
    pub(super) const CORRELATION: &CStr = c"mqtt.correlation";
    pub(super) const PAYLOAD_FORMAT: &CStr = c"mqtt.payload_format";
    pub(super) const EXPIRY: &CStr = c"mqtt.expiry";
    /// Before the name of a user property.
    pub(super) const USER: &str = "mqtt.user.";

    // From servers only.
    pub(super) const PUBLISHER: &CStr = c"mqtt.publisher";

    // From clients only.
    pub(super) const DUP: &CStr = c"mqtt.dup";
    pub(super) const PACKET_ID: &CStr = c"mqtt.packet_id";
    pub(super) const WILL: &CStr = c"mqtt.will";
    pub(super) const WILL_DELAY: &CStr = c"mqtt.will_delay";
    pub(super) const PACKET: &CStr = c"mqtt.packet";

    // With `open`.
    pub(super) const CLIENT: &CStr = c"mqtt.client";
    pub(super) const VERSION: &CStr = c"mqtt.version";
    pub(super) const CLEAN_START: &CStr = c"mqtt.clean_start";
    pub(super) const USER_NAME: &CStr = c"mqtt.user";
}

/// User properties of one message; more would not fit the headers of a record.
const MAX_USER_PROPERTIES: usize = 100;
/// What a list of headers may keep between two messages.
const KEPT_BYTES: usize = 2048;

fn push(list: &mut HeaderList, name: &CStr, value: &[u8]) {
    let taken = list.push(name.to_bytes(), value);
    debug_assert!(taken, "our own names are short, and few");
}

/// Empties a list for the next message.
pub(super) fn reset(list: &mut HeaderList) {
    if list.headers().as_bytes().len() > KEPT_BYTES {
        *list = HeaderList::default();
    } else {
        list.clear();
    }
}

/// The headers of an `open` record.
pub(super) fn open(list: &mut HeaderList, connect: &Connect<'_>, client: &str) {
    push(list, header::CLIENT, client.as_bytes());
    let version: &[u8] = if connect.version.is_v5() { b"5.0" } else { b"3.1.1" };
    push(list, header::VERSION, version);
    push(list, header::CLEAN_START, if connect.clean_start { b"1" } else { b"0" });
    if let Some(user) = connect.user {
        push(list, header::USER_NAME, user.as_bytes());
    }
}

/// What tells a will from what its client has published itself.
pub(super) fn will(list: &mut HeaderList) {
    push(list, header::WILL, b"1");
}

/// How long a will was to be kept back.
pub(super) fn will_delay(list: &mut HeaderList, delay_s: u32) {
    if delay_s > 0 {
        push(list, header::WILL_DELAY, Decimal::new(delay_s).as_bytes());
    }
}

/// How it was published.
pub(super) fn delivery(list: &mut HeaderList, publish: &Publish<'_>) {
    if publish.message.qos != Qos::Zero {
        push(list, header::PACKET_ID, Decimal::new(publish.id).as_bytes());
    }
    if publish.dup {
        push(list, header::DUP, b"1");
    }
}

/// What of a record that is not published.
pub(super) fn packet(list: &mut HeaderList, name: &[u8]) {
    push(list, header::PACKET, name);
}

/// Appends a line about a filter: the QoS that was granted, if it was, and the filter.
pub(super) fn tell(lines: &mut Vec<u8>, qos: Option<Qos>, filter: &str) {
    if let Some(qos) = qos {
        lines.extend_from_slice(qos.digit());
        lines.push(b' ');
    }
    lines.extend_from_slice(filter.as_bytes());
    lines.push(b'\n');
}

/// Appends the headers of what is published; false if there are more user properties than a record
/// can have.
pub(super) fn describe(list: &mut HeaderList, topic: &str, message: &Message<'_>) -> bool {
    push(list, header::TOPIC, topic.as_bytes());
    if message.qos != Qos::Zero {
        push(list, header::QOS, message.qos.digit());
    }
    if message.retain {
        push(list, header::RETAIN, b"1");
    }
    let properties = &message.properties;
    let texts = [
        (header::CONTENT_TYPE, properties.content_type.map(str::as_bytes)),
        (header::RESPONSE_TOPIC, properties.response_topic.map(str::as_bytes)),
        (header::CORRELATION, properties.correlation),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            push(list, name, value);
        }
    }
    let numbers = [
        (header::PAYLOAD_FORMAT, properties.payload_format.map(u32::from)),
        (header::EXPIRY, properties.message_expiry),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            push(list, name, Decimal::new(value).as_bytes());
        }
    }
    let prefix = header::USER.as_bytes();
    properties.user().enumerate().all(|(place, (name, value))| {
        place < MAX_USER_PROPERTIES && list.push_parts(&[prefix, name.as_bytes()], value.as_bytes())
    })
}

/// What a server wants published.
#[derive(Debug)]
pub(super) struct Reply<'a> {
    pub(super) topic: &'a str,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    /// The client identifier of the client that has published it, if that is what the server passes on.
    pub(super) publisher: Option<&'a str>,
    pub(super) expiry: Option<Expiry>,
}

/// When a message is worth nothing any more (section 3.3.2.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expiry {
    /// None: it is.
    pub(super) left: Option<Duration>,
    /// Where the interval stands, from the first byte of the properties.
    pub(super) place: usize,
}

impl<'a> Reply<'a> {
    /// Reads what of the headers concerns this protocol, for a message that has waited for a time;
    /// properties are appended to those given.
    pub(super) fn read(
        headers: Headers<'a>,
        payload: &[u8],
        waited: Duration,
        max_message_bytes: usize,
        properties: &mut Writer,
    ) -> Result<Self, Unencodable> {
        let topic = headers.text(header::TOPIC).filter(|topic| topic::is_name(topic));
        let qos = match headers.get(header::QOS) {
            None | Some(b"0") => Qos::Zero,
            Some(b"1") => Qos::One,
            Some(b"2") => Qos::Two,
            Some(_) => return Err(Unencodable),
        };
        let retain = headers.get(header::RETAIN).map_or(Ok(false), flag)?;
        let topic = topic.ok_or(Unencodable)?;
        if payload.len() > max_message_bytes {
            return Err(Unencodable);
        }
        let expiry = write_properties(headers, waited, properties)?;
        let publisher = headers.text(header::PUBLISHER);
        Ok(Self { topic, qos, retain, publisher, expiry })
    }
}

/// Writes the properties of a message that has waited for a time.
fn write_properties(
    headers: Headers<'_>,
    waited: Duration,
    properties: &mut Writer,
) -> Result<Option<Expiry>, Unencodable> {
    let mut expiry = None;
    if let Some(value) = headers.get(header::PAYLOAD_FORMAT) {
        properties.u8(id::PAYLOAD_FORMAT, u8::from(flag(value)?));
    }
    if let Some(value) = headers.get(header::EXPIRY) {
        let seconds: u32 = text(value)?.parse().map_err(|_| Unencodable)?;
        let left = Duration::from_secs(seconds.into()).checked_sub(waited);
        // "the received value minus the time that the message has been waiting" (MQTT-3.3.2-6).
        properties.u32(id::MESSAGE_EXPIRY, seconds_of(left.unwrap_or_default()));
        let place = properties.bytes().len() - size_of::<u32>();
        expiry = Some(Expiry { left, place });
    }
    if let Some(value) = headers.get(header::CONTENT_TYPE) {
        properties.binary(id::CONTENT_TYPE, text(value)?.as_bytes());
    }
    if let Some(value) = headers.get(header::RESPONSE_TOPIC) {
        let topic = Some(text(value)?).filter(|topic| topic::is_name(topic));
        properties.binary(id::RESPONSE_TOPIC, topic.ok_or(Unencodable)?.as_bytes());
    }
    if let Some(value) = headers.get(header::CORRELATION) {
        properties.binary(id::CORRELATION, short(value)?);
    }
    for (name, value) in headers.iter() {
        if let Some(name) = name.to_bytes().strip_prefix(header::USER.as_bytes()) {
            properties.user(text(name)?, text(value)?);
        }
    }
    Ok(expiry)
}

/// Whole seconds.
pub(super) fn seconds_of(left: Duration) -> u32 {
    u32::try_from(left.as_secs()).unwrap_or(u32::MAX)
}

fn flag(value: &[u8]) -> Result<bool, Unencodable> {
    match value {
        b"0" => Ok(false),
        b"1" => Ok(true),
        _ => Err(Unencodable),
    }
}

/// What has a length of two bytes.
fn short(value: &[u8]) -> Result<&[u8], Unencodable> {
    if value.len() > usize::from(u16::MAX) { Err(Unencodable) } else { Ok(value) }
}

/// What a string of the protocol can hold.
fn text(value: &[u8]) -> Result<&str, Unencodable> {
    let text = std::str::from_utf8(short(value)?).map_err(|_| Unencodable)?;
    if text.contains('\0') { Err(Unencodable) } else { Ok(text) }
}
