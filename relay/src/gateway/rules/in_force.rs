//! What stands in the state beside the maps.

use serde::{Deserialize, Serialize};

use crate::config::{Config, Mode};

use super::compile::Compiled;
use super::place::DeviceNumbers;
use super::{GatewayError, RuleSet};

/// What stands in the state beside the maps: the rules in force, as people know them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct InForce {
    /// Where they were written.
    pub source: String,
    /// Which packets they divert.
    pub mode: Mode,
    /// One a line.
    pub rules: Vec<String>,
    /// TCP ports without a rule whose old connections go on.
    pub closing_ports: Vec<u16>,
}

impl InForce {
    /// The rules again.
    pub(in crate::gateway) fn read(&self) -> Result<RuleSet, GatewayError> {
        RuleSet::parse("the rules in force", &self.rules.join("\n"))
    }

    /// The same as the programs have them.
    pub(super) fn compile(&self, devices: &DeviceNumbers) -> Result<Compiled, GatewayError> {
        Compiled::of(&self.read()?, devices)
    }

    /// What a configuration puts into force.
    pub(in crate::gateway) fn of(config: &Config, set: &RuleSet) -> Self {
        let source = match &config.gateway.rules {
            Some(path) => path.display().to_string(),
            None => "the services of the configuration".to_owned(),
        };
        Self { source, mode: config.gateway.mode, rules: set.lines(), closing_ports: Vec::new() }
    }
}
