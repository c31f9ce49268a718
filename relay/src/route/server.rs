//! Servers, as the allotment sees them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::config;
use crate::model::{Partition, ServiceId};

/// Whether a server gets clients.
///
/// ```text
///            registers               deregisters, or
///  (unknown) ─────────► live ──┬───► is to be emptied ─► draining ─ empty ─► gone
///                        ▲     └─ does not renew ─► away ─ for too long ───►  ▲
///                        └────────── renews ─────────┘ └──────────────────────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// Reads its partition; clients are allotted to it.
    Live,
    /// Reads until nothing is left. Its clients move to others, and it gets no new ones.
    Draining,
    /// Has not renewed its registration. Its clients stay and their messages wait in its partition;
    /// it gets no new clients.
    Away,
    /// No longer has a partition.
    Gone,
}

impl ServerState {
    /// Its name in records, counters and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Draining => "draining",
            Self::Away => "away",
            Self::Gone => "gone",
        }
    }
}

/// A server as the configuration declares it, or as the registry knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerLink {
    /// Unique over all services.
    pub name: String,
    /// Its service.
    pub service: ServiceId,
    /// Its own network address.
    pub address: IpAddr,
    /// The uplink partition that it reads.
    pub partition: Partition,
    /// Grows with each lease of the partition, so that a record for a former holder is recognised; 0 for a
    /// declared server.
    pub epoch: u64,
    /// Share of the service's clients, in proportion to the other servers' capacities; at least 1.
    pub capacity: u32,
    /// Its labels, which services can prefer.
    pub labels: BTreeMap<String, String>,
    /// Whether it gets clients.
    pub state: ServerState,
}

impl ServerLink {
    /// A server that the configuration declares: always live.
    pub fn declared(service: ServiceId, server: &config::Server) -> Self {
        Self {
            name: server.id.clone(),
            service,
            address: server.address,
            partition: server.partition,
            epoch: 0,
            capacity: server.capacity.get(),
            labels: server.labels.clone(),
            state: ServerState::Live,
        }
    }
}
