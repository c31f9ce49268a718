//! Keys and values of the registry topic.
//!
//! Values are JSON objects. Unknown fields are ignored, so that later versions can add some.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::{Incarnation, Partition, RelayId};
use crate::route::ServerState;

/// The version of the values that this code writes.
pub const VERSION: u32 = 1;
/// Longest key in bytes.
pub const MAX_KEY_BYTES: usize = 256;
/// Longest value in bytes.
pub const MAX_VALUE_BYTES: usize = 16 << 10;
/// Longest server id in characters.
pub const MAX_ID_LENGTH: usize = 64;
/// Most labels of a server; with the longest of all, a lease stays below [`MAX_VALUE_BYTES`].
pub const MAX_LABELS: usize = 16;
/// How many former processes of a server are remembered, so that none of them gets the lease back.
const MAX_SUPERSEDED: usize = 8;
/// Longest name or value of a label, and longest name of an instance, in bytes.
pub const MAX_TEXT_BYTES: usize = 128;

/// What a record of the registry is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// From a server, about itself: [`Registration`].
    Server(String),
    /// The coordinator's answer: [`Lease`].
    Lease(String),
    /// The coordinator's other answer: [`Refusal`].
    Refusal(String),
    /// From an operator, about a server: [`ServerOrder`].
    Order(String),
    /// From an operator, about a service, and its result: [`Rebalance`].
    Rebalance(String),
    /// Which relay may answer: [`Coordination`].
    Coordinator,
    /// From a relay, about itself: [`RelayRecord`].
    Relay(RelayId),
}

impl Key {
    /// None if the registry has no such key.
    pub fn parse(key: &[u8]) -> Option<Self> {
        let key = std::str::from_utf8(key).ok().filter(|key| key.len() <= MAX_KEY_BYTES)?;
        if key == "coordinator" {
            return Some(Self::Coordinator);
        }
        let (kind, of) = key.split_once('/').filter(|(_, of)| !of.is_empty())?;
        let id = of.to_owned();
        Some(match kind {
            "server" => Self::Server(id),
            "lease" => Self::Lease(id),
            "refusal" => Self::Refusal(id),
            "order" => Self::Order(id),
            "rebalance" => Self::Rebalance(id),
            // Only in the form in which it is printed, so that each relay has one key.
            "relay" => {
                let relay = of.parse().ok().filter(|relay: &u16| relay.to_string() == of)?;
                Self::Relay(RelayId(relay))
            }
            _ => return None,
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(id) => write!(f, "server/{id}"),
            Self::Lease(id) => write!(f, "lease/{id}"),
            Self::Refusal(id) => write!(f, "refusal/{id}"),
            Self::Order(id) => write!(f, "order/{id}"),
            Self::Rebalance(service) => write!(f, "rebalance/{service}"),
            Self::Coordinator => write!(f, "coordinator"),
            Self::Relay(relay) => write!(f, "relay/{}", relay.0),
        }
    }
}

/// What is wrong with a value, in words for its writer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Longer than [`MAX_VALUE_BYTES`].
    #[error("the value has {0} bytes; at most {MAX_VALUE_BYTES} are allowed")]
    TooLong(usize),
    /// Not JSON, or no object.
    #[error("the value is not a JSON object: {0}")]
    NotAnObject(String),
    /// A required field is missing.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A field has an invalid value.
    #[error("`{field}`: {problem}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// A JSON object whose fields are read by name, so that an error names the field.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn parse(value: &[u8]) -> Result<Self, Problem> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(Problem::TooLong(value.len()));
        }
        serde_json::from_slice(value)
            .map(Self)
            .map_err(|error| Problem::NotAnObject(error.to_string()))
    }

    /// None: it is missing, or null.
    fn optional<T: DeserializeOwned>(&mut self, field: &'static str) -> Result<Option<T>, Problem> {
        match self.0.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| Problem::Field { field, problem: error.to_string() }),
        }
    }

    fn required<T: DeserializeOwned>(&mut self, field: &'static str) -> Result<T, Problem> {
        self.optional(field)?.ok_or(Problem::Missing(field))
    }

    /// What lies in a bound.
    fn text(&mut self, field: &'static str) -> Result<String, Problem> {
        let text: String = self.required(field)?;
        bounded(field, text)
    }

    fn version(&mut self) -> Result<u32, Problem> {
        match self.required("version")? {
            0 => Err(Problem::Field { field: "version", problem: "begins with 1".to_owned() }),
            version => Ok(version),
        }
    }
}

fn bounded(field: &'static str, text: String) -> Result<String, Problem> {
    if text.is_empty() {
        return Err(Problem::Field { field, problem: "is empty".to_owned() });
    }
    plain(field, &text)?;
    Ok(text)
}

/// A text must be short, and not many times as long in JSON, because a lease repeats it and is bounded too.
fn plain(field: &'static str, text: &str) -> Result<(), Problem> {
    let problem = if text.len() > MAX_TEXT_BYTES {
        format!("a text of {} bytes; at most {MAX_TEXT_BYTES} are allowed", text.len())
    } else if text.chars().any(char::is_control) {
        "a text with control characters".to_owned()
    } else {
        return Ok(());
    };
    Err(Problem::Field { field, problem })
}

/// What a server wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// Clients.
    #[default]
    Live,
    /// To leave once its partition is read to the end.
    Draining,
    /// To leave at once.
    Gone,
}

/// A server about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Registration {
    /// Of this value.
    pub version: u32,
    /// What it serves.
    pub service: String,
    /// Its own network address.
    pub address: IpAddr,
    /// Share of the service's clients.
    pub capacity: NonZeroU32,
    /// Labels, which distinguish it from other servers of the service.
    pub labels: BTreeMap<String, String>,
    /// Names the process; different for each start.
    pub instance: String,
    /// What it wants.
    pub state: Wish,
}

impl Registration {
    /// Reads what a server wrote.
    pub fn parse(value: &[u8]) -> Result<Self, Malformed> {
        let mut fields =
            Fields::parse(value).map_err(|problem| Malformed { instance: None, problem })?;
        let instance = fields.text("instance");
        Self::fields(&mut fields, &instance)
            .map_err(|problem| Malformed { instance: instance.ok(), problem })
    }

    fn fields(fields: &mut Fields, instance: &Result<String, Problem>) -> Result<Self, Problem> {
        let labels: BTreeMap<String, String> = fields.optional("labels")?.unwrap_or_default();
        if labels.len() > MAX_LABELS {
            let problem = format!("{} of them; at most {MAX_LABELS}", labels.len());
            return Err(Problem::Field { field: "labels", problem });
        }
        for text in labels.iter().flat_map(|(name, value)| [name, value]) {
            plain("labels", text)?;
        }
        Ok(Self {
            version: fields.version()?,
            instance: instance.clone()?,
            service: fields.text("service")?,
            address: fields.required("address")?,
            capacity: fields.optional("capacity")?.unwrap_or(NonZeroU32::MIN),
            labels,
            state: fields.optional("state")?.unwrap_or_default(),
        })
    }
}

/// A registration that cannot be read, and who should be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The instance, if that much can be read.
    pub instance: Option<String>,
    /// What is wrong.
    pub problem: Problem,
}

/// The offset of the record by which a coordinator took office.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Term(pub i64);

/// Who holds a partition. A server without one finds the reason in its [`Refusal`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Lease {
    /// Of this value.
    pub version: u32,
    /// In which it was written.
    pub term: Term,
    /// The process that holds it. A process that reads another name than its own is superseded. Empty for
    /// a declared server.
    pub instance: String,
    /// The server's state.
    pub state: ServerState,
    /// Of the uplink.
    pub partition: Partition,
    /// Counts the holders of the partition; 0 for a declared server.
    pub epoch: u64,
    /// A server whose registration is not renewed for this long is `away`.
    pub lease_ms: u64,
    /// What it serves.
    pub service: String,
    /// Its own network address.
    pub address: IpAddr,
    /// Share of the service's clients.
    pub capacity: NonZeroU32,
    /// Labels, which distinguish it from other servers of the service.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The offset in the partition at which this server's records begin. All records before it were read by
    /// the former holder, or are dead letters. If a record for a former holder arrives later, the relay that
    /// wrote it makes it a dead letter.
    #[serde(default)]
    pub from: i64,
    /// Processes that held it and cannot get it back, latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub superseded: Vec<String>,
    /// Why it is `away` or `gone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Lease {
    /// True for a server that the configuration declares.
    pub fn is_declared(&self) -> bool {
        self.epoch == 0
    }

    /// True if the server still has its partition.
    pub fn is_in_force(&self) -> bool {
        self.state != ServerState::Gone
    }

    /// True for a process that held it and cannot get it back.
    pub(super) fn is_former(&self, instance: &str) -> bool {
        !self.is_in_force() && self.instance == instance
            || self.superseded.iter().any(|former| former == instance)
    }

    /// Records who held the server's lease before.
    pub(super) fn succeed(&mut self, former: &Self) {
        self.superseded.clone_from(&former.superseded);
        self.superseded.push(former.instance.clone());
        let spare = self.superseded.len().saturating_sub(MAX_SUPERSEDED);
        self.superseded.drain(..spare);
    }
}

/// Why a registration gets no lease.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Refusal {
    /// Of this value.
    pub version: u32,
    /// In which it was written.
    pub term: Term,
    /// The process that is refused; empty if its registration did not name it.
    pub instance: String,
    /// The reason in words.
    pub reason: String,
}

/// What an operator wants of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OrderKind {
    /// The server gets no new clients, and is gone once its partition is read to the end.
    Drain,
    /// The server is gone at once, and leaves the registry.
    Forget,
}

/// An operator's order about a server, in force until its record is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ServerOrder {
    /// Of this value.
    pub version: u32,
    /// The order.
    pub order: OrderKind,
}

/// An operator's order to spread the clients of a service over its live servers as the allotment would. In
/// force until it has ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Rebalance {
    /// Of this value.
    pub version: u32,
    /// Most clients that move per second, over all relays.
    pub per_second: NonZeroU32,
    /// The end, as the coordinator recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

/// How a rebalancing has ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Ended {
    /// In which it was written.
    pub term: Term,
    /// True: no move would make the loads more even. False: nothing has moved for too long.
    pub even: bool,
    /// Clients that have moved, as far as the coordinator has seen.
    pub moved: u64,
    /// The same by the name of the former server, for the servers that have lost most.
    pub moved_from: BTreeMap<String, u64>,
}

/// The relay that answers registrations. The record's offset is the [`Term`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Coordination {
    /// Of this value.
    pub version: u32,
    /// Which relay.
    pub relay: RelayId,
    /// Which run of it.
    pub incarnation: Incarnation,
}

/// Whether a relay runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RelayState {
    /// It renews its record.
    Live,
    /// It has stopped, or has not renewed its record.
    Gone,
}

/// A relay about itself, or the coordinator about one that is silent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RelayRecord {
    /// Of this value.
    pub version: u32,
    /// Which run.
    pub incarnation: Incarnation,
    /// Whether it runs.
    pub state: RelayState,
    /// The place of its lock. Two relays of the same place never run at the same time.
    #[serde(default)]
    pub place: String,
}

/// Parses a value of a type that only relays and operators write.
pub(super) fn parse<T: DeserializeOwned>(value: &[u8]) -> Result<T, Problem> {
    let Fields(fields) = Fields::parse(value)?;
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| Problem::Field { field: "value", problem: error.to_string() })
}

/// What is wrong with a server's id. None if it is valid.
pub fn id_problem(id: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let right = (1..=MAX_ID_LENGTH).contains(&id.len()) && id.chars().all(allowed);
    (!right).then(|| {
        format!("a server's id is 1 to {MAX_ID_LENGTH} of a-z, A-Z, 0-9, `-`, `_` and `.`")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn problem(value: &str) -> String {
        Registration::parse(value.as_bytes()).unwrap_err().problem.to_string()
    }

    #[test]
    fn a_short_registration_has_defaults() {
        let value = br#"{"version":1,"service":"chat","address":"192.0.2.7","instance":"a","x":1}"#;
        let registration = Registration::parse(value).unwrap();
        assert_eq!((registration.capacity.get(), registration.state), (1, Wish::Live));
        let again = serde_json::to_vec(&registration).unwrap();
        assert_eq!(Registration::parse(&again), Ok(registration));
    }

    #[test]
    fn a_complaint_names_the_field() {
        assert!(problem("nonsense").starts_with("the value is not a JSON object"));
        assert!(problem("[1]").starts_with("the value is not a JSON object"));
        assert_eq!(problem("{}"), "`version` is missing");
        let with = |field: &str| {
            problem(&format!(
                r#"{{"version":1,"service":"chat","address":"192.0.2.7","instance":"a",{field}}}"#
            ))
        };
        assert!(with(r#""capacity":0"#).starts_with("`capacity`: "));
        assert!(with(r#""address":"here""#).starts_with("`address`: "), "the last one counts");
        assert!(with(r#""state":"asleep""#).starts_with("`state`: "));
        assert!(with(r#""labels":["a"]"#).starts_with("`labels`: "));
        assert!(with(r#""instance":"""#).starts_with("`instance`: is empty"));
        assert!(with(&format!(r#""x":"{}""#, "y".repeat(20_000))).contains("at most 16384"));
    }

    #[test]
    fn a_malformed_registration_still_tells_whom_to_answer() {
        let value = br#"{"version":1,"service":"chat","address":"here","instance":"a"}"#;
        assert_eq!(Registration::parse(value).unwrap_err().instance.as_deref(), Some("a"));
        assert_eq!(Registration::parse(b"{").unwrap_err().instance, None);
    }

    #[test]
    fn ids_are_plain() {
        assert_eq!(id_problem("chat-1.example_A"), None);
        for odd in ["", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(id_problem(odd).is_some(), "{odd}");
        }
    }

    proptest! {
        #[test]
        fn a_key_is_printed_as_it_was_read(key in ".{0,40}|(server|lease|order|rebalance|relay|refusal)/.{0,9}") {
            if let Some(known) = Key::parse(key.as_bytes()) {
                prop_assert_eq!(known.to_string(), key);
            }
        }
    }
}
