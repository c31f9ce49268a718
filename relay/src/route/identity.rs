//! Who a client is: what of a connection makes it the same client's as another one.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// What a service takes for its clients' identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentityKind {
    /// Address and port: each connection is a client of its own.
    #[default]
    Connection,
    /// The address: a client that comes back is known, and all who share an address are one client.
    Address,
}

impl IdentityKind {
    /// The identity of a client with this address.
    pub fn of(self, client: SocketAddr) -> ClientIdentity {
        match self {
            Self::Connection => ClientIdentity::Connection(client),
            Self::Address => ClientIdentity::Address(client.ip()),
        }
    }

    /// True if a client that comes back has the identity that it had.
    pub const fn survives_connection(self) -> bool {
        matches!(self, Self::Address)
    }

    /// The inverse of [`ClientIdentity`]'s `Display`, strictly: one identity has one spelling.
    pub fn parse(self, text: &str) -> Option<ClientIdentity> {
        let identity = match self {
            Self::Connection => ClientIdentity::Connection(text.parse().ok()?),
            Self::Address => ClientIdentity::Address(text.parse().ok()?),
        };
        (identity.to_string() == text).then_some(identity)
    }
}

/// A client's identity. Not `Copy`: one that a protocol brings, like a client id, is a text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClientIdentity {
    /// Of a service with [`IdentityKind::Connection`].
    Connection(SocketAddr),
    /// Of a service with [`IdentityKind::Address`].
    Address(IpAddr),
}

impl fmt::Display for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(address) => address.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_identity_has_one_spelling() {
        let client: SocketAddr = "[2001:db8::7]:4000".parse().unwrap();
        for kind in [IdentityKind::Connection, IdentityKind::Address] {
            let identity = kind.of(client);
            assert_eq!(kind.parse(&identity.to_string()), Some(identity));
        }
        assert_eq!(IdentityKind::Address.parse("2001:DB8::7"), None);
        assert_eq!(IdentityKind::Address.parse("192.0.2.1:80"), None);
        assert_eq!(IdentityKind::Connection.parse("192.0.2.1:080"), None);
    }
}
