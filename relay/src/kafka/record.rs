//! Keys and headers of records.

use std::ffi::CStr;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::codec::{Begin, Headers};
use crate::ring::Kind;
use crate::route::{Association, Partition, ServerId};

/// Names of record headers. Values are UTF-8 text.
pub mod header {
    use std::ffi::CStr;

    /// Uplink: the client's address, `IP:PORT`.
    pub const CLIENT: &CStr = c"client";
    /// Uplink: the address that the client connected to, `IP:PORT`.
    pub const DESTINATION: &CStr = c"destination";
    /// Uplink: what the client speaks.
    pub const PROTOCOL: &CStr = c"protocol";
    /// Uplink: `open` or `close`; a message has no such header, because each costs time.
    pub const KIND: &CStr = c"kind";
    /// Uplink: partition of the downlink to answer to.
    pub const REPLY: &CStr = c"reply";
    /// Uplink, of a message: its number on its connection, from 1, in decimal.
    pub const SEQUENCE: &CStr = c"sequence";
    /// Uplink: the server that the record is for.
    pub const SERVER: &CStr = c"server";
    /// Uplink: the server's lease of the partition.
    pub const EPOCH: &CStr = c"epoch";
    /// Uplink, with kind `open`: the server that had the connection before.
    pub const MOVED_FROM: &CStr = c"moved_from";
    /// Uplink, with kind `close`: why.
    pub const REASON: &CStr = c"reason";
    /// Downlink: close the connection after this reply. Any value.
    pub const CLOSE: &CStr = c"close";
}

/// A relay, and its partition of the downlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct RelayId(pub u16);

/// One run of a relay: Unix milliseconds of its start, 48 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, Hash)]
#[serde(transparent)]
pub struct Incarnation(u64);

impl Incarnation {
    const BITS: u32 = 48;

    /// From Unix milliseconds.
    pub const fn new(unix_ms: u64) -> Self {
        Self(unix_ms & ((1 << Self::BITS) - 1))
    }

    /// As it stands in a key.
    pub const fn value(self) -> u64 {
        self.0
    }
}

/// A connection, unmistakably: no two connections of any run of any relay have the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// Which relay.
    pub relay: RelayId,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// Which worker of it.
    pub worker: u8,
    /// Which slot of the worker, 24 bits.
    pub slot: u32,
    /// Which user of the slot.
    pub generation: u32,
}

/// Why a record's key is not a connection key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a connection key: five groups of 4, 12, 2, 6 and 8 lower-case hexadecimal digits")]
pub struct KeyError;

impl ConnectionKey {
    /// Bytes of a printed key.
    pub const LENGTH: usize = 36;
    const GROUPS: [usize; 5] = [4, 12, 2, 6, 8];

    /// As it stands in a record: `RRRR-IIIIIIIIIIII-WW-SSSSSS-GGGGGGGG`, hexadecimal.
    pub fn print(&self) -> [u8; Self::LENGTH] {
        let values = [
            u64::from(self.relay.0),
            self.incarnation.0,
            u64::from(self.worker),
            u64::from(self.slot),
            u64::from(self.generation),
        ];
        let mut text = [b'-'; Self::LENGTH];
        let mut rest = &mut text[..];
        for (value, digits) in values.into_iter().zip(Self::GROUPS) {
            let group;
            (group, rest) = rest.split_at_mut(digits);
            let mut value = value;
            for place in group.iter_mut().rev() {
                *place = b"0123456789abcdef"[(value & 0xf) as usize];
                value >>= 4;
            }
            rest = rest.get_mut(1..).unwrap_or_default();
        }
        text
    }

    /// The inverse of [`print`](Self::print), strictly.
    pub fn parse(text: &[u8]) -> Result<Self, KeyError> {
        let text: &[u8; Self::LENGTH] = text.try_into().map_err(|_| KeyError)?;
        let mut rest = &text[..];
        let mut values = [0_u64; 5];
        for (value, digits) in values.iter_mut().zip(Self::GROUPS) {
            let group;
            (group, rest) = rest.split_at(digits);
            for byte in group {
                let digit = match byte {
                    b'0'..=b'9' => byte - b'0',
                    b'a'..=b'f' => byte - b'a' + 10,
                    _ => return Err(KeyError),
                };
                *value = *value << 4 | u64::from(digit);
            }
            rest = match rest.split_first() {
                Some((b'-', rest)) => rest,
                None => rest,
                Some(_) => return Err(KeyError),
            };
        }
        let [relay, incarnation, worker, slot, generation] = values;
        let narrow = |_| KeyError;
        Ok(Self {
            relay: RelayId(relay.try_into().map_err(narrow)?),
            incarnation: Incarnation(incarnation),
            worker: worker.try_into().map_err(narrow)?,
            slot: slot.try_into().map_err(narrow)?,
            generation: generation.try_into().map_err(narrow)?,
        })
    }
}

/// The connection and the name of the one whom replies wait for, from a record's key: a key without
/// a slash has no such name.
pub(super) fn split_reply_key(text: &[u8]) -> Result<(ConnectionKey, Option<&str>), KeyError> {
    let (key, rest) = text.split_at_checked(ConnectionKey::LENGTH).ok_or(KeyError)?;
    let holder = match rest {
        [] => None,
        [b'/', holder @ ..] => Some(std::str::from_utf8(holder).map_err(|_| KeyError)?),
        _ => return Err(KeyError),
    };
    Ok((ConnectionKey::parse(key)?, holder))
}

/// What all records of one connection to one server have in common, rendered once.
#[derive(Debug)]
pub struct Identity {
    /// The connection.
    pub key: ConnectionKey,
    /// Its server.
    pub server: ServerId,
    /// Its records' partition: its server's.
    pub partition: Partition,
    /// The printed key; and behind a slash, if replies wait for this client when it is away, the name
    /// under which they do.
    pub printed: Box<[u8]>,
    /// The headers that do not change; see [`headers_of`](Self::headers_of).
    pub headers: [(&'static CStr, Box<[u8]>); 6],
    /// The server's lease of the partition, which may have been another's before; 0 without one.
    pub(super) epoch: u64,
    /// Its worker is told what Kafka has acknowledged.
    pub acknowledge: bool,
    /// What the protocol adds to its `open` records: the bytes of [`Headers`].
    begin: Box<[u8]>,
    /// The name under which replies wait for this client.
    holder: Option<Box<str>>,
    /// The server that had the connection before.
    pub moved_from: Option<Box<[u8]>>,
}

fn text(value: &impl ToString) -> Box<[u8]> {
    value.to_string().into_bytes().into_boxed_slice()
}

impl Identity {
    /// Headers that every record has; the rest are [`header::SERVER`] and [`header::EPOCH`].
    const HEADERS_OF_ALL: usize = 4;

    /// The name under which replies wait for this client, if any may: not those to this connection, if the
    /// client does not want that, but such as came before it.
    pub fn holder(&self) -> Option<&str> {
        self.holder.as_deref()
    }

    /// Whether replies to this connection wait for its client.
    pub fn holds(&self) -> bool {
        self.printed.len() > ConnectionKey::LENGTH
    }

    /// Renders the identity of a connection from `client` to `destination`.
    pub fn new(
        key: ConnectionKey,
        holder: Option<String>,
        association: &Association,
        client: SocketAddr,
        destination: SocketAddr,
        begin: Begin<'_>,
    ) -> Self {
        let behind = holder.as_ref().filter(|_| begin.holds).map(|holder| format!("/{holder}"));
        let behind = behind.unwrap_or_default();
        let printed = [&key.print()[..], behind.as_bytes()].concat().into_boxed_slice();
        Self {
            key,
            server: association.server,
            partition: association.partition,
            printed,
            headers: [
                (header::CLIENT, text(&client)),
                (header::DESTINATION, text(&destination)),
                (header::PROTOCOL, text(&begin.protocol)),
                (header::REPLY, text(&key.relay.0)),
                (header::SERVER, text(&association.name)),
                (header::EPOCH, text(&association.epoch)),
            ],
            epoch: association.epoch,
            acknowledge: begin.acknowledge,
            begin: begin.headers.as_bytes().into(),
            holder: holder.map(String::into_boxed_str),
            moved_from: None,
        }
    }

    /// What the protocol adds to `open` records.
    pub fn begin(&self) -> Headers<'_> {
        Headers::from_bytes(&self.begin)
    }

    /// Those of a record of this kind. Who a message is for stands in it only where readers must be
    /// told: a header costs as much processor time as a twelfth of a message.
    pub fn headers_of(&self, kind: Kind) -> &[(&'static CStr, Box<[u8]>)] {
        if kind.is_message() && self.epoch == 0 {
            return &self.headers[..Self::HEADERS_OF_ALL];
        }
        &self.headers
    }

    /// The same connection at another server.
    #[must_use]
    pub fn moved_to(&self, association: &Association) -> Self {
        let mut headers = self.headers.clone();
        let mut former = None;
        for (name, value) in &mut headers {
            if *name == header::SERVER {
                former = Some(std::mem::replace(value, text(&association.name)));
            } else if *name == header::EPOCH {
                *value = text(&association.epoch);
            }
        }
        Self {
            key: self.key,
            server: association.server,
            partition: association.partition,
            printed: self.printed.clone(),
            headers,
            epoch: association.epoch,
            acknowledge: self.acknowledge,
            begin: self.begin.clone(),
            holder: self.holder.clone(),
            moved_from: former,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_printed_key_parses_to_itself(
            relay: u16, incarnation: u64, worker: u8, slot in 0..1_u32 << 24, generation: u32,
        ) {
            let key = ConnectionKey {
                relay: RelayId(relay),
                incarnation: Incarnation::new(incarnation),
                worker,
                slot,
                generation,
            };
            prop_assert_eq!(ConnectionKey::parse(&key.print()), Ok(key));
        }

        #[test]
        fn nonsense_is_refused(text in prop::collection::vec(any::<u8>(), 0..50)) {
            let _ = split_reply_key(&text);
            if let Ok(key) = ConnectionKey::parse(&text) {
                prop_assert_eq!(&key.print()[..], &text[..]);
            }
        }
    }

    #[test]
    fn the_documented_example() {
        let text = b"0000-0193abcdef12-03-00002a-00000007";
        let key = ConnectionKey::parse(text).unwrap();
        assert_eq!((key.relay.0, key.worker, key.slot, key.generation), (0, 3, 42, 7));
        assert_eq!(ConnectionKey::parse(b"0000-0193ABCDEF12-03-00002a-00000007"), Err(KeyError));
        assert_eq!(ConnectionKey::parse(b"0000+0193abcdef12-03-00002a-00000007"), Err(KeyError));
    }
}
