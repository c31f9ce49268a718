//! Who a client is: what of a connection makes it the same client's as another one.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// What a service takes for its clients' identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentityKind {
    /// The addresses and ports of both ends: each connection is a client of its own. A client's alone
    /// would not do: it may use one port for connections to several servers at once.
    #[default]
    Connection,
    /// The address: a client that comes back is known, and all who share an address are one client.
    Address,
    /// The client's own name, where its protocol has one (an MQTT client id); else as `Connection`.
    Client,
}

impl IdentityKind {
    /// The identity of a client that has connected from `client` to `server`, and has this name if it
    /// has one.
    pub fn of(self, client: SocketAddr, server: SocketAddr, name: Option<&str>) -> ClientIdentity {
        match (self, name) {
            (Self::Address, _) => ClientIdentity::Address(client.ip()),
            (Self::Client, Some(name)) => ClientIdentity::Client(name.into()),
            (Self::Connection | Self::Client, _) => ClientIdentity::Connection { client, server },
        }
    }

    /// The inverse of [`ClientIdentity`]'s `Display`, strictly: one identity has one spelling.
    pub fn parse(self, text: &str) -> Option<ClientIdentity> {
        let identity = match self {
            Self::Connection => parse_connection(text)?,
            Self::Address => ClientIdentity::Address(text.parse().ok()?),
            Self::Client if text.contains(':') => parse_connection(text)?,
            Self::Client => ClientIdentity::Client(unescape(text)?.into()),
        };
        (identity.to_string() == text).then_some(identity)
    }
}

/// A client's identity. Not `Copy`: one that a protocol brings, like a client id, is a text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClientIdentity {
    /// Of a service with [`IdentityKind::Connection`]: the two ends of a TCP connection.
    Connection {
        /// The client's end.
        client: SocketAddr,
        /// The end that the client connected to.
        server: SocketAddr,
    },
    /// The same in a record of an older Millrace, which knew a connection by its client's end alone. It
    /// counts until its tombstone is read, and is no identity of a connection of ours.
    Former(SocketAddr),
    /// Of a service with [`IdentityKind::Address`].
    Address(IpAddr),
    /// Of a service with [`IdentityKind::Client`].
    Client(Box<str>),
}

impl ClientIdentity {
    /// True if a client that comes back has the identity that it had.
    pub const fn survives_connection(&self) -> bool {
        matches!(self, Self::Address(_) | Self::Client(_))
    }
}

/// Before the ends of a connection. There is no other protocol yet.
const TCP: &str = "tcp:";
/// Between the client's end and the server's.
const TO: char = '>';

fn parse_connection(text: &str) -> Option<ClientIdentity> {
    let Some(ends) = text.strip_prefix(TCP) else {
        return Some(ClientIdentity::Former(text.parse().ok()?));
    };
    let (client, server) = ends.split_once(TO)?;
    Some(ClientIdentity::Connection { client: client.parse().ok()?, server: server.parse().ok()? })
}

/// What of a client's name stands for itself; the rest is percent-encoded (RFC 3986, section 2.1), so
/// that it has neither the slash of a record's key nor the colon of an address.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn unescape(text: &str) -> Option<String> {
    let digit =
        |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%' {
            let ([high, low], after) = rest.split_first_chunk::<2>()?;
            bytes.push(digit(*high)? << 4 | digit(*low)?);
            rest = after;
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection { client, server } => write!(f, "{TCP}{client}{TO}{server}"),
            Self::Former(address) => address.fmt(f),
            Self::Address(address) => address.fmt(f),
            Self::Client(name) => name.bytes().try_for_each(|byte| {
                if is_plain(byte) {
                    write!(f, "{}", char::from(byte))
                } else {
                    write!(f, "%{byte:02X}")
                }
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> (SocketAddr, SocketAddr) {
        ("[2001:db8::7]:4000".parse().unwrap(), "[2001:db8:1::1]:7000".parse().unwrap())
    }

    #[test]
    fn one_identity_has_one_spelling() {
        let (client, server) = addresses();
        let names = [None, Some(""), Some("a/b:c%ä 1"), Some("meter-7")];
        for kind in [IdentityKind::Connection, IdentityKind::Address, IdentityKind::Client] {
            for name in names {
                let identity = kind.of(client, server, name);
                assert_eq!(kind.parse(&identity.to_string()), Some(identity));
            }
        }
        let spelled = IdentityKind::Client.of(client, server, Some("a/b:c%ä 1")).to_string();
        assert_eq!(spelled, "a%2Fb%3Ac%25%C3%A4%201");
        assert_eq!(IdentityKind::Client.parse("a%2fb"), None);
        assert_eq!(IdentityKind::Client.parse("%FF"), None);
        assert_eq!(IdentityKind::Address.parse("2001:DB8::7"), None);
        assert_eq!(IdentityKind::Address.parse("192.0.2.1:80"), None);
        for malformed in [
            "192.0.2.1:080",
            "tcp:192.0.2.1:80",
            "tcp:192.0.2.1:80>",
            "tcp:192.0.2.1:80>192.0.2.2:080",
            "tcp:192.0.2.1:80>192.0.2.2:80>192.0.2.3:80",
            "udp:192.0.2.1:80>192.0.2.2:80",
            "192.0.2.1:80>192.0.2.2:80",
        ] {
            assert_eq!(IdentityKind::Connection.parse(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn one_port_of_a_client_has_a_connection_to_each_of_several_servers() {
        let (client, server) = addresses();
        let other: SocketAddr = "[2001:db8:1::2]:7000".parse().unwrap();
        for kind in [IdentityKind::Connection, IdentityKind::Client] {
            let (one, two) = (kind.of(client, server, None), kind.of(client, other, None));
            assert_ne!(one, two);
            assert_eq!(one.to_string(), "tcp:[2001:db8::7]:4000>[2001:db8:1::1]:7000");
        }
    }

    #[test]
    fn a_connection_in_an_old_record_is_understood() {
        let (client, server) = addresses();
        for kind in [IdentityKind::Connection, IdentityKind::Client] {
            let former = kind.parse("[2001:db8::7]:4000").unwrap();
            assert_eq!(former, ClientIdentity::Former(client));
            assert!(!former.survives_connection());
            assert_ne!(former, kind.of(client, server, None));
        }
    }
}
