//! Records of the topic of associations.
//!
//! | part | content |
//! |---|---|
//! | key | `SERVICE/IDENTITY` |
//! | value | JSON, see [`Value`]; none: the association has ended (a tombstone) |
//! | header `generation` | of a tombstone: which generation has ended; without it, any |

use std::borrow::Cow;
use std::ffi::CStr;

use serde::{Deserialize, Serialize};

use crate::model::{ClientIdentity, ServiceId};

use super::policy::Policy;

/// Header of a tombstone.
pub(super) const GENERATION: &CStr = c"generation";
/// The version that is written, and the latest one that is understood.
const VERSION: u32 = 1;
/// Not every reader of JSON represents larger numbers exactly (RFC 8259, section 6).
const MAX_GENERATION: u64 = 1 << 53;

/// The client that an association belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    /// A client may have connections to several services.
    pub(super) service: ServiceId,
    /// The client.
    pub(super) identity: ClientIdentity,
}

/// Whether the client is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Connected,
    Away,
}

/// Unknown fields are ignored, so that later versions can add some.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Value<'a> {
    version: u32,
    /// The server's name.
    pub(super) server: Cow<'a, str>,
    /// Grows each time that a relay takes the client.
    pub(super) generation: u64,
    /// The relay that has the client, or had it last.
    pub(super) relay: u16,
    /// Which run of it.
    pub(super) incarnation: u64,
    pub(super) state: State,
    /// If the client is away: until when the association is kept, in Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) until_unix_ms: Option<u64>,
}

impl<'a> Value<'a> {
    pub(super) fn new(
        server: &'a str,
        generation: u64,
        (relay, incarnation): (u16, u64),
        until_unix_ms: Option<u64>,
    ) -> Self {
        let state = if until_unix_ms.is_some() { State::Away } else { State::Connected };
        let server = Cow::Borrowed(server);
        Self { version: VERSION, server, generation, relay, incarnation, state, until_unix_ms }
    }

    pub(super) fn parse(value: &'a [u8]) -> Result<Self, RecordRefusal> {
        let parsed: Self =
            serde_json::from_slice(value).map_err(|_| RecordRefusal::MalformedValue)?;
        if parsed.version != VERSION {
            return Err(RecordRefusal::Version);
        }
        let known = (1..=MAX_GENERATION).contains(&parsed.generation)
            && (parsed.state == State::Away) == parsed.until_unix_ms.is_some()
            && !parsed.server.is_empty();
        if known { Ok(parsed) } else { Err(RecordRefusal::MalformedValue) }
    }
}

crate::model::reasons! {
    /// Why a record of the topic changes nothing.
    RecordRefusal {
        /// Not `SERVICE/IDENTITY`, or the service's clients have identities of another kind.
        MalformedKey = "malformed_key",
        /// This relay has no such service.
        UnknownService = "unknown_service",
        /// The value is not the expected JSON.
        MalformedValue = "malformed_value",
        /// A tombstone's generation is not a number.
        MalformedHeader = "malformed_header",
        /// A later version of Millrace wrote it.
        Version = "version",
        /// The server serves another service.
        OtherService = "other_service",
        /// There are too many servers.
        TooManyServers = "too_many_servers",
        /// Another relay's record of this generation, or of a later one, came first.
        Superseded = "superseded",
    }
}

impl Key {
    pub(super) fn print(&self, services: &[Policy]) -> String {
        format!("{}/{}", services[self.service.index()].name, self.identity)
    }

    /// The inverse of [`print`](Self::print). Names of services have no slash.
    pub(super) fn parse(text: &[u8], services: &[Policy]) -> Result<Self, RecordRefusal> {
        let text = std::str::from_utf8(text).map_err(|_| RecordRefusal::MalformedKey)?;
        let (name, identity) = text.split_once('/').ok_or(RecordRefusal::MalformedKey)?;
        let (service, policy) = (0..)
            .map(ServiceId)
            .zip(services)
            .find(|(_, policy)| policy.name == name)
            .ok_or(RecordRefusal::UnknownService)?;
        let identity = policy.identity.parse(identity).ok_or(RecordRefusal::MalformedKey)?;
        Ok(Self { service, identity })
    }
}

/// The generation that a tombstone ends. None: any.
pub(super) fn parse_generation(header: Option<&[u8]>) -> Result<u64, RecordRefusal> {
    let Some(header) = header else { return Ok(u64::MAX) };
    std::str::from_utf8(header)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(RecordRefusal::MalformedHeader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for until in [None, Some(7)] {
            let value = Value::new("chat-1", 3, (2, 1_700_000_000_000), until);
            let text = serde_json::to_vec(&value).unwrap();
            assert_eq!(Value::parse(&text), Ok(value));
        }
    }

    #[test]
    fn nonsense_is_refused_by_its_reason() {
        let good = r#"{"version":1,"server":"a","generation":1,"relay":0,"incarnation":5,"state":"connected","later":{}}"#;
        assert!(Value::parse(good.as_bytes()).is_ok(), "unknown fields are ignored");
        for (from, to, reason) in [
            ("\"version\":1", "\"version\":2", RecordRefusal::Version),
            ("\"generation\":1", "\"generation\":0", RecordRefusal::MalformedValue),
            (
                "\"generation\":1",
                "\"generation\":18446744073709551615",
                RecordRefusal::MalformedValue,
            ),
            ("\"relay\":0", "\"relay\":65536", RecordRefusal::MalformedValue),
            ("connected", "away", RecordRefusal::MalformedValue),
            ("connected", "asleep", RecordRefusal::MalformedValue),
            ("\"a\"", "\"\"", RecordRefusal::MalformedValue),
            ("{", "", RecordRefusal::MalformedValue),
        ] {
            assert_eq!(Value::parse(good.replacen(from, to, 1).as_bytes()), Err(reason), "{to}");
        }
    }
}
