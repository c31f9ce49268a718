//! From rules to what the programs look up: ports sorted into classes, and each class's prefixes.

use std::collections::{BTreeMap, HashMap};

use millrace_common::abi::{MAX_DROPPED_SOURCES, MAX_EXCLUSIONS, MAX_RULES, MAX_SET_ENTRIES};
use millrace_common::rule::{Action, PortClass, RuleKey, SetIndex};

use super::{GatewayError, Protocol, Rule, RuleSet, prefixes};
use crate::prefix::Prefix;

/// Ports of one protocol.
pub(super) const PORTS: usize = 1 << 16;

/// A set of rules in the programs' form; which of the two sets it will be is still open.
#[derive(Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The class of every port, by [`Protocol`].
    classes: [Vec<PortClass>; 2],
    /// The prefixes of every class.
    destinations: Vec<(PortClass, Prefix, Action)>,
    /// Sources that are not diverted.
    exclusions: Vec<Prefix>,
    /// Sources whose packets are dropped.
    dropped_sources: Vec<Prefix>,
}

impl Compiled {
    /// Compiles a set, or says what of it does not fit.
    pub fn of(set: &RuleSet) -> Result<Self, GatewayError> {
        let exceeded = |what, count: usize, limit: u32| {
            if count > limit as usize {
                Err(GatewayError::TooManyRules { what, count, limit })
            } else {
                Ok(())
            }
        };
        exceeded("steering rules", set.rules.len(), MAX_RULES)?;
        exceeded("excluded prefixes", set.exclusions.len(), MAX_EXCLUSIONS)?;
        exceeded("prefixes of `drop from`", set.dropped_sources.len(), MAX_DROPPED_SOURCES)?;
        let mut compiled = Self {
            classes: [vec![PortClass::NO_RULE; PORTS], vec![PortClass::NO_RULE; PORTS]],
            destinations: Vec::new(),
            exclusions: prefixes(&set.exclusions),
            dropped_sources: prefixes(&set.dropped_sources),
        };
        let mut next = PortClass::FIRST;
        for protocol in Protocol::ALL {
            let rules: Vec<Rule> = set
                .rules
                .iter()
                .map(|(rule, _)| *rule)
                .filter(|rule| rule.protocol == protocol)
                .collect();
            next = compiled.sort(protocol, &rules, next)?;
        }
        Ok(compiled)
    }

    /// Sorts the ports of one protocol into classes; gives the next free number.
    fn sort(
        &mut self,
        protocol: Protocol,
        rules: &[Rule],
        mut next: u32,
    ) -> Result<u32, GatewayError> {
        // Where rules begin to cover, and where they end: between two such ports nothing changes.
        let mut changes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, rule) in rules.iter().enumerate() {
            changes.entry(usize::from(rule.ports.first)).or_default().push(index);
            changes.entry(usize::from(rule.ports.last) + 1).or_default().push(index);
        }
        let ends = changes.keys().copied().skip(1).chain([PORTS]);
        let mut covering: Vec<usize> = Vec::new();
        let mut known: HashMap<Vec<usize>, PortClass> = HashMap::new();
        for ((start, indices), end) in changes.iter().zip(ends) {
            for index in indices {
                match covering.binary_search(index) {
                    Ok(position) => drop(covering.remove(position)),
                    Err(position) => covering.insert(position, *index),
                }
            }
            if covering.is_empty() {
                continue;
            }
            let class = if let Some(class) = known.get(covering.as_slice()) {
                *class
            } else {
                let class = self.class(next, covering.iter().map(|index| &rules[*index]))?;
                next += 1;
                known.insert(covering.clone(), class);
                class
            };
            self.classes[protocol as usize][*start..end].fill(class);
        }
        Ok(next)
    }

    /// A new class, with the rules that cover its ports.
    fn class<'a>(
        &mut self,
        number: u32,
        covering: impl Iterator<Item = &'a Rule>,
    ) -> Result<PortClass, GatewayError> {
        let mut narrowest: BTreeMap<Prefix, &Rule> = BTreeMap::new();
        for rule in covering {
            let present = narrowest.entry(rule.destination).or_insert(rule);
            if rule.ports.width() < present.ports.width() {
                *present = rule;
            }
        }
        let has_drop = narrowest.values().any(|rule| rule.action == Action::Drop);
        let class = PortClass::new(number, has_drop);
        self.destinations
            .extend(narrowest.into_iter().map(|(prefix, rule)| (class, prefix, rule.action)));
        if self.entries() > MAX_SET_ENTRIES as usize {
            return Err(GatewayError::RulesTooLarge { limit: MAX_SET_ENTRIES });
        }
        Ok(class)
    }

    /// The class of a port.
    pub fn port_class(&self, protocol: Protocol, port: u16) -> PortClass {
        self.classes[protocol as usize][usize::from(port)]
    }

    /// The classes of every port, by [`Protocol`].
    pub(super) fn classes(&self) -> &[Vec<PortClass>; 2] {
        &self.classes
    }

    /// Entries that it takes in the trie.
    pub fn entries(&self) -> usize {
        self.destinations.len() + self.exclusions.len() + self.dropped_sources.len()
    }

    /// Classes of ports that have rules.
    pub fn class_count(&self) -> usize {
        let mut classes: Vec<_> = self.destinations.iter().map(|(class, ..)| *class).collect();
        classes.dedup();
        classes.len()
    }

    /// Whether sources are excluded.
    pub fn has_exclusions(&self) -> bool {
        !self.exclusions.is_empty()
    }

    /// Whether packets are dropped by their source.
    pub fn drops_sources(&self) -> bool {
        !self.dropped_sources.is_empty()
    }

    /// The entries as one of the two sets: length of the key in bits, key, value.
    pub fn trie(&self, set: SetIndex) -> impl Iterator<Item = (u32, RuleKey, u32)> + '_ {
        let bits = |prefix: Prefix| RuleKey::FIXED_BITS + prefix.key_bits();
        let destinations = self.destinations.iter().map(move |(class, prefix, action)| {
            let key = RuleKey::destination(set, *class, prefix.key());
            (bits(*prefix), key, *action as u32)
        });
        let exclusions = self.exclusions.iter().map(|prefix| (prefix, Action::Pass));
        let dropped = self.dropped_sources.iter().map(|prefix| (prefix, Action::Drop));
        let sources = exclusions.chain(dropped).map(move |(prefix, action)| {
            (bits(*prefix), RuleKey::source(set, prefix.key()), action as u32)
        });
        destinations.chain(sources)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::super::Ports;
    use super::*;

    /// The rules as they are meant, asked one by one.
    fn naive(rules: &[Rule], protocol: Protocol, address: IpAddr, port: u16) -> Option<Action> {
        let fits = |rule: &&Rule| {
            rule.protocol == protocol
                && rule.destination.contains(address)
                && rule.ports.contains(port)
        };
        let key = |rule: &&Rule| (u16::from(rule.destination.length), !rule.ports.width());
        rules.iter().filter(fits).max_by_key(key).map(|rule| rule.action)
    }

    /// What the programs find: the class of the port, then the longest of its prefixes.
    fn asked(
        compiled: &Compiled,
        protocol: Protocol,
        address: IpAddr,
        port: u16,
    ) -> Option<Action> {
        let class = compiled.port_class(protocol, port);
        let found = compiled
            .destinations
            .iter()
            .filter(|(of, prefix, _)| *of == class && prefix.contains(address))
            .max_by_key(|(_, prefix, _)| prefix.length)
            .map(|(.., action)| *action);
        assert!(found != Some(Action::Drop) || class.has_drop(), "{class:?} hides a drop");
        assert!(found.is_none() || class.has_rules());
        found
    }

    fn protocol() -> impl Strategy<Value = Protocol> {
        prop::sample::select(&Protocol::ALL[..])
    }

    /// Few addresses and ports, so that rules overlap in every way.
    fn address() -> impl Strategy<Value = IpAddr> {
        (any::<bool>(), 0..16_u8).prop_map(|(ipv4, low)| {
            if ipv4 {
                IpAddr::from([10, 0, 0, low])
            } else {
                IpAddr::from([0x2001, 0x0db8, 0, 0, 0, 0, 0, u16::from(low)])
            }
        })
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let action = prop::sample::select(&[Action::Divert, Action::Pass, Action::Drop][..]);
        let ports = prop_oneof![
            4 => (0..12_u16, 0..12_u16).prop_map(|(a, b)| (a.min(b), a.max(b))),
            1 => (65_530..=u16::MAX).prop_map(|first| (first, u16::MAX)),
            1 => Just((0, u16::MAX)),
        ];
        (action, protocol(), address(), 0..5_u8, ports).prop_map(
            |(action, protocol, address, host_bits, (first, last))| {
                let length = Prefix::width(address) - host_bits;
                let destination = Prefix::containing(address, length);
                Rule { action, protocol, destination, ports: Ports { first, last } }
            },
        )
    }

    proptest! {
        #[test]
        fn the_compiled_form_says_what_the_rules_say(
            rules in prop::collection::vec(rule(), 0..40),
            questions in prop::collection::vec((protocol(), address(), 0..14_u16), 100),
        ) {
            let text: Vec<String> = rules.iter().map(ToString::to_string).collect();
            // Rules of which neither comes before the other are refused, and so are not compiled.
            let mut kept: Vec<String> = Vec::new();
            for line in text {
                kept.push(line);
                if RuleSet::parse("rules", &kept.join("\n")).is_err() {
                    kept.pop();
                }
            }
            let set = RuleSet::parse("rules", &kept.join("\n")).unwrap();
            let rules: Vec<Rule> = set.rules.iter().map(|(rule, _)| *rule).collect();
            let compiled = Compiled::of(&set).unwrap();
            let ends = questions.iter().map(|(protocol, address, port)| {
                (*protocol, *address, u16::MAX - *port)
            });
            for (protocol, address, port) in questions.iter().copied().chain(ends) {
                prop_assert_eq!(
                    asked(&compiled, protocol, address, port),
                    naive(&rules, protocol, address, port),
                    "{:?} {} {}", protocol, address, port
                );
            }
        }
    }

    fn compiled(lines: impl Iterator<Item = String>) -> Result<Compiled, GatewayError> {
        Compiled::of(&RuleSet::parse("rules", &lines.collect::<Vec<_>>().join("\n")).unwrap())
    }

    #[test]
    fn ten_thousand_rules_fit() {
        let rule = |n: u16| format!("divert tcp 10.{}.{}.0/24 port {n}", n >> 8, n & 255);
        let form = compiled((1..=10_000).map(rule)).unwrap();
        assert_eq!((form.class_count(), form.entries()), (10_000, 10_000));
        let rule = |n: u16| format!("divert tcp 10.{}.{}.0/24 port any", n >> 8, n & 255);
        let form = compiled((1..=10_000).map(rule)).unwrap();
        assert_eq!((form.class_count(), form.entries()), (1, 10_000));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let everywhere = |n: u16| format!("drop tcp 10.{}.{}.0/24 port any", n >> 8, n & 255);
        let here = |n: u16| format!("divert tcp 192.0.2.1 port {n}");
        let lines = (0..1000).map(everywhere).chain((1..=1000).map(here));
        let error = compiled(lines).unwrap_err().to_string();
        assert!(error.contains("more than 131072 combinations"), "{error}");
        let error = compiled((0..20_000).map(everywhere)).unwrap_err().to_string();
        assert!(error.contains("20000 steering rules are more than the 16384"), "{error}");
        let exclude = |n: u16| format!("exclude 10.{}.{}.0/24", n >> 8, n & 255);
        let error = compiled((0..5000).map(exclude)).unwrap_err().to_string();
        assert!(error.contains("5000 excluded prefixes are more than the 4096"), "{error}");
        let drop = |n: u32| format!("drop from 10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
        let error = compiled((0..70_000).map(drop)).unwrap_err().to_string();
        assert!(error.contains("70000 prefixes of `drop from` are more than the 65536"), "{error}");
    }
}
