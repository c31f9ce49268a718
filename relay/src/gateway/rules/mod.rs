//! Steering rules: how they are written (`file`), what the programs are told of them ([`compile`]),
//! and how a whole set comes into force at once ([`tables`], [`command`]).
//!
//! Of the rules that fit a packet, the one with the longest source prefix decides, and one that names no
//! source comes last; then the longest destination prefix; then what names a device and a VLAN, a VLAN, a
//! device, neither; then the fewest ports. What is said of sources alone comes before all of that; of it,
//! the longest prefix decides, then what it names of a place.

pub mod command;
pub mod compile;
mod file;
pub(super) mod in_force;
pub mod place;
pub mod tables;

use std::fmt;

use millrace_common::packet::{TCP, UDP};
pub use millrace_common::rule::Action;

use super::error::{GatewayError, RuleMistake};
use crate::config::Config;
use crate::ports::Ports;
use crate::prefix::Prefix;
use place::{DeviceNumbers, Where};

/// A transport protocol that has rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// One steering rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// What it asks for.
    pub action: Action,
    /// Of packets of this protocol,
    pub protocol: Protocol,
    /// to these addresses
    pub destination: Prefix,
    /// and these ports,
    pub ports: Ports,
    /// from these addresses, if it names some,
    pub source: Option<Prefix>,
    /// that come in here.
    pub place: Where,
}

impl Rule {
    /// Whether it drops what clients send on the connections too that they have: it is about them, and not
    /// about a destination alone.
    pub(super) fn blocks(&self) -> bool {
        self.action == Action::Drop && self.source.is_some()
    }
}

/// What is said of sources alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// Of these addresses,
    pub prefix: Prefix,
    /// whose packets come in here.
    pub place: Where,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.prefix, self.place)
    }
}

const fn action_name(action: Action) -> &'static str {
    match action {
        Action::Divert => "divert",
        Action::Pass => "pass",
        Action::Drop => "drop",
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (action, protocol) = (action_name(self.action), self.protocol.name());
        write!(f, "{action} {protocol} {} port {}", self.destination, self.ports)?;
        if let Some(source) = self.source {
            write!(f, " from {source}")?;
        }
        write!(f, "{}", self.place)
    }
}

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `FILE:LINE`.
    Line(std::sync::Arc<str>, usize),
    /// A service of the configuration.
    Service(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(file, line) => write!(f, "{file}:{line}"),
            Self::Service(name) => write!(f, "service `{name}`"),
        }
    }
}

/// A set of rules, as it is written.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    /// The rules, in the order of the file, which does not matter to them.
    pub rules: Vec<(Rule, Origin)>,
    /// Sources that no rule diverts.
    pub exclusions: Vec<(Source, Origin)>,
    /// Sources whose packets are dropped. Of these and the exclusions, the longest prefix decides.
    pub dropped_sources: Vec<(Source, Origin)>,
}

impl RuleSet {
    /// The rules that a configuration asks for: those of its file, or its services' destinations.
    pub fn of(config: &Config) -> Result<Self, GatewayError> {
        match &config.gateway.rules {
            Some(path) => Self::read(path),
            None => Ok(Self::of_services(config)),
        }
    }

    /// Reads a file of rules, and reports everything that is wrong with it.
    pub fn read(path: &std::path::Path) -> Result<Self, GatewayError> {
        let text = std::fs::read_to_string(path)
            .map_err(GatewayError::io(format!("read the rules {}", path.display())))?;
        Self::parse(&path.display().to_string(), &text)
    }

    fn of_services(config: &Config) -> Self {
        let mut set = Self::default();
        for service in &config.services {
            let mut destinations = service.destinations.clone();
            // Named twice it is meant once.
            destinations.sort_unstable();
            destinations.dedup();
            set.rules.extend(destinations.into_iter().map(|destination| {
                let rule = Rule {
                    action: Action::Divert,
                    protocol: Protocol::Tcp,
                    destination,
                    ports: service.port,
                    source: None,
                    place: Where::default(),
                };
                (rule, Origin::Service(service.name.clone()))
            }));
        }
        set
    }

    /// Every line, in an order that depends on nothing but the rules.
    pub fn lines(&self) -> Vec<String> {
        let mut rules: Vec<_> = self.rules.iter().map(|(rule, _)| rule).collect();
        rules.sort_unstable_by_key(|rule| {
            (rule.protocol, rule.destination, rule.ports, rule.source, &rule.place, rule.action)
        });
        let [exclusions, dropped] = [sources(&self.exclusions), sources(&self.dropped_sources)];
        rules
            .into_iter()
            .map(ToString::to_string)
            .chain(exclusions.into_iter().map(|source| format!("exclude {source}")))
            .chain(dropped.into_iter().map(|source| format!("drop from {source}")))
            .collect()
    }

    /// Every place that is named, and by which line.
    fn places(&self) -> impl Iterator<Item = (&Where, &Origin)> {
        let sources = self.exclusions.iter().chain(&self.dropped_sources);
        let rules = self.rules.iter().map(|(rule, origin)| (&rule.place, origin));
        rules.chain(sources.map(|(source, origin)| (&source.place, origin)))
    }

    /// Whether something is said of VLANs, whose tags the programs have to see then.
    pub fn names_vlans(&self) -> bool {
        self.places().any(|(place, _)| place.vlan.is_some())
    }

    /// Whether something is said of a device.
    pub fn names_device(&self, name: &str) -> bool {
        self.places().any(|(place, _)| place.device.as_deref() == Some(name))
    }

    /// Refuses devices that are not there.
    pub(super) fn check_devices(&self, devices: &DeviceNumbers) -> Result<(), GatewayError> {
        let mistakes: Vec<_> = self
            .places()
            .filter_map(|(place, origin)| Some(mistake(origin, devices.mistake(place)?)))
            .collect();
        if mistakes.is_empty() { Ok(()) } else { Err(GatewayError::Rules { mistakes }) }
    }

    /// Whether a rule diverts packets of IPv6.
    pub fn diverts_ipv6(&self) -> bool {
        self.rules
            .iter()
            .any(|(rule, _)| rule.action == Action::Divert && rule.destination.address.is_ipv6())
    }
}

/// Each source once, in order.
fn sources(written: &[(Source, Origin)]) -> Vec<&Source> {
    let mut sources: Vec<_> = written.iter().map(|(source, _)| source).collect();
    sources.sort_unstable();
    sources.dedup();
    sources
}

fn mistake(origin: &Origin, reason: impl Into<String>) -> RuleMistake {
    RuleMistake { place: origin.to_string(), reason: reason.into() }
}
