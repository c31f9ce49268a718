//! Keys and headers of records.

use std::ffi::CStr;
use std::net::SocketAddr;
use std::sync::OnceLock;

use super::headers::Headers;
use super::id::ConnectionKey;
use super::server::{Association, Partition, ServerId};

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

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connection began.
    Open,
    /// A message.
    Message {
        /// Its number on its connection, from 1.
        sequence: u64,
    },
    /// A connection ended, and why.
    Close(&'static str),
}

impl Kind {
    /// True for what a client sent.
    #[inline]
    pub const fn is_message(self) -> bool {
        matches!(self, Self::Message { .. })
    }

    /// A message's number in its connection; of others 0.
    #[inline]
    pub const fn message_number(self) -> u64 {
        match self {
            Self::Message { sequence } => sequence,
            Self::Open | Self::Close(_) => 0,
        }
    }
}

/// How a connection enters the books.
#[derive(Clone, Copy, Debug, Default)]
pub struct Begin<'a> {
    /// How records name the protocol (header `protocol`).
    pub protocol: &'static str,
    /// True if `Codec::delivered` should be called.
    pub acknowledge: bool,
    /// The client's own name for itself, where the protocol has one. Counts with
    /// `identity = "client"`.
    pub client: Option<&'a str>,
    /// True if replies may wait for this client while it is away; counts if the service's clients
    /// have an identity that outlives their connection.
    pub holds: bool,
    /// True if those that waited shall not come before `Actions::ask_held`.
    pub later: bool,
    /// Headers of the `open` record.
    pub headers: Headers<'a>,
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
    /// The printed key, and those of the headers that messages have, in Kafka's own format: for whoever
    /// writes that.
    pub encoded: OnceLock<Box<[u8]>>,
    /// The server's lease of the partition, which may have been another's before; 0 without one.
    pub epoch: u64,
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
            encoded: OnceLock::new(),
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
    #[inline]
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
            encoded: OnceLock::new(),
            epoch: association.epoch,
            acknowledge: self.acknowledge,
            begin: self.begin.clone(),
            holder: self.holder.clone(),
            moved_from: former,
        }
    }
}
