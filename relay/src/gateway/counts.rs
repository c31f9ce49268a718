//! What the gateway has counted, for a running relay that is asked for it again and again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use aya::maps::MapError;
use millrace_common::abi::{MAX_ESTABLISHED, MAX_PENDING};

use crate::config::Config;

use super::diversion::{Diversion, Evidence};
use super::error::GatewayError;
use super::flows::{Established, open_pending};
use super::read_config;
use super::status::{self, RelayStatus};

/// A running relay's eye on the gateway's counters.
pub struct Counts {
    config: Config,
    pins: PathBuf,
    diversion: Diversion,
}

/// What the gateway has counted since `load`.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Packets by verdict.
    pub verdicts: BTreeMap<&'static str, u64>,
    /// The relay's sign of life.
    pub relay: RelayStatus,
    /// What became of diverted packets.
    pub evidence: Evidence,
}

/// How many flows a table has, and may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flows {
    /// The table's name.
    pub table: &'static str,
    /// Flows in it.
    pub flows: u64,
    /// Most flows of it.
    pub most: u64,
}

impl Counts {
    pub(super) fn open(config: &Config) -> Result<Self, GatewayError> {
        let (config, pins) = (config.clone(), config.pin_directory());
        let diversion = Diversion::open(&pins, &config.namespace())?;
        Ok(Self { config, pins, diversion })
    }

    /// The counters. Takes as long whatever the number of flows.
    pub fn look(&self) -> Result<Counted, GatewayError> {
        let value = read_config(&self.config, &self.pins)?;
        Ok(Counted {
            verdicts: status::verdicts(&self.pins)?,
            relay: status::relay(&self.config, &self.pins, &value)?,
            evidence: self.diversion.look()?,
        })
    }

    /// The sizes of the flow tables. Takes a system call for each flow: the kernel keeps no count. While
    /// flows come and go it may count one twice.
    pub fn flows(&self) -> Result<[Flows; 2], GatewayError> {
        let (pending, established) = (open_pending(&self.pins)?, Established::open(&self.pins)?);
        let established = count(established.keys())?;
        let pending = count(pending.keys().map(|key| key.map(|_| ())))?;
        // A table for each family of addresses.
        let most = 2 * u64::from(MAX_ESTABLISHED);
        Ok([
            Flows { table: "established", flows: established, most },
            Flows { table: "pending", flows: pending, most: u64::from(MAX_PENDING) },
        ])
    }
}

fn count(mut keys: impl Iterator<Item = Result<(), MapError>>) -> Result<u64, GatewayError> {
    keys.try_fold(0, |count, key| key.map(|()| count + 1))
        .map_err(GatewayError::bpf("count the flows"))
}
