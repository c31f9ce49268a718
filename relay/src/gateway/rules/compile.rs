//! From rules to what the programs look up: ports sorted into classes, and each class's prefixes.

use std::collections::{BTreeMap, HashMap};

use millrace_common::abi::{MAX_EXCLUSIONS, MAX_RULES, MAX_SET_ENTRIES};
use millrace_common::rule::{Action, PortClass, RuleKey, SetIndex};

use super::{GatewayError, Protocol, Rule, RuleSet};
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
        let mut exclusions: Vec<_> = set.exclusions.iter().map(|(prefix, _)| *prefix).collect();
        exclusions.sort_unstable();
        exclusions.dedup();
        let mut compiled = Self {
            classes: [vec![PortClass::NO_RULE; PORTS], vec![PortClass::NO_RULE; PORTS]],
            destinations: Vec::new(),
            exclusions,
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

    /// Entries that it takes in the trie.
    pub fn entries(&self) -> usize {
        self.destinations.len() + self.exclusions.len()
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

    /// The entries as one of the two sets: length of the key in bits, key, value.
    pub fn trie(&self, set: SetIndex) -> impl Iterator<Item = (u32, RuleKey, u32)> + '_ {
        let bits = |prefix: Prefix| RuleKey::FIXED_BITS + prefix.key_bits();
        let destinations = self.destinations.iter().map(move |(class, prefix, action)| {
            let key = RuleKey::destination(set, *class, prefix.key());
            (bits(*prefix), key, *action as u32)
        });
        let exclusions = self.exclusions.iter().map(move |prefix| {
            (bits(*prefix), RuleKey::source(set, prefix.key()), Action::Pass as u32)
        });
        destinations.chain(exclusions)
    }
}
