//! From rules to what the programs look up: ports sorted into classes, and each class's prefixes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use millrace_common::abi::{MAX_DROPPED_SOURCES, MAX_EXCLUSIONS, MAX_RULES, MAX_SET_ENTRIES};
use millrace_common::flow::Address;
use millrace_common::rule::{Action, Place, PortClass, RuleKey, Ruling, SetIndex};
use millrace_common::zone::Zones;

use super::place::DeviceNumbers;
use super::{GatewayError, Origin, Protocol, Rule, RuleSet, Source, sources};
use crate::prefix::Prefix;

/// Ports of one protocol.
pub(super) const PORTS: usize = 1 << 16;

/// A set of rules in the programs' form; which of the two sets it will be is still open.
#[derive(Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The class of every port, by [`Protocol`].
    classes: [Vec<PortClass>; 2],
    /// How many of them have rules.
    class_count: usize,
    entries: Vec<Entry>,
    /// What is said of sources alone names these places.
    source_places: PortClass,
    has_exclusions: bool,
    drops_sources: bool,
    /// The next number of a class or of a group of sources.
    next: u32,
}

/// An entry of the trie.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// Of the class, or of the group of sources.
    number: u32,
    place: Place,
    address: Address,
    /// Of the address.
    bits: u32,
    ruling: Ruling,
}

impl Compiled {
    /// Compiles a set, or says what of it does not fit.
    pub fn of(set: &RuleSet, devices: &DeviceNumbers) -> Result<Self, GatewayError> {
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
        set.check_devices(devices)?;
        let blocks = set.rules.iter().any(|(rule, _)| rule.blocks());
        let mut compiled = Self {
            classes: [vec![PortClass::NO_RULE; PORTS], vec![PortClass::NO_RULE; PORTS]],
            class_count: 0,
            entries: Vec::new(),
            source_places: PortClass::FLOWS_ONLY,
            has_exclusions: !set.exclusions.is_empty(),
            drops_sources: !set.dropped_sources.is_empty() || blocks,
            next: PortClass::FIRST,
        };
        compiled.say_of_sources(&set.exclusions, Action::Pass, devices);
        compiled.say_of_sources(&set.dropped_sources, Action::Drop, devices);
        for protocol in Protocol::ALL {
            let rules: Vec<&Rule> = set
                .rules
                .iter()
                .map(|(rule, _)| rule)
                .filter(|rule| rule.protocol == protocol)
                .collect();
            compiled.sort(protocol, &rules, devices)?;
        }
        Ok(compiled)
    }

    fn say_of_sources(
        &mut self,
        written: &[(Source, Origin)],
        action: Action,
        devices: &DeviceNumbers,
    ) {
        for Source { prefix, place: of } in sources(written) {
            let place = told(of.told(devices));
            self.source_places = self.source_places.with_places(place.named());
            let ruling = Ruling::new(action, Some(prefix.key_bits()), 0, place.named());
            self.enter(RuleKey::SOURCES, place, Some(*prefix), ruling);
        }
    }

    /// An entry; without a prefix it is for every address.
    fn enter(&mut self, number: u32, place: Place, prefix: Option<Prefix>, ruling: Ruling) {
        let (address, bits) =
            prefix.map_or_else(|| (Address::from_words([0; 4]), 0), |it| (it.key(), it.key_bits()));
        self.entries.push(Entry { number, place, address, bits, ruling });
    }

    fn take_number(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// Sorts the ports of one protocol into classes.
    fn sort(
        &mut self,
        protocol: Protocol,
        rules: &[&Rule],
        devices: &DeviceNumbers,
    ) -> Result<(), GatewayError> {
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
                let class = self.class(covering.iter().map(|index| rules[*index]), devices)?;
                known.insert(covering.clone(), class);
                class
            };
            self.classes[protocol as usize][*start..end].fill(class);
        }
        Ok(())
    }

    /// A new class, with the rules that cover its ports.
    fn class<'a>(
        &mut self,
        covering: impl Iterator<Item = &'a Rule>,
        devices: &DeviceNumbers,
    ) -> Result<PortClass, GatewayError> {
        let mut places: BTreeMap<Place, Vec<&Rule>> = BTreeMap::new();
        let (mut has_drop, mut blocks) = (false, false);
        for rule in covering {
            has_drop |= rule.action == Action::Drop;
            blocks |= rule.blocks();
            places.entry(told(rule.place.told(devices))).or_default().push(rule);
        }
        let mut class = PortClass::new(self.take_number(), has_drop);
        if blocks {
            class = class.with_blocks();
        }
        for (place, rules) in places {
            class = class.with_places(place.named());
            self.place(class.number(), place, &rules);
            if self.entries() > MAX_SET_ENTRIES as usize {
                return Err(GatewayError::RulesTooLarge { limit: MAX_SET_ENTRIES });
            }
        }
        self.class_count += 1;
        Ok(class)
    }

    /// The rules of a class for packets from one place.
    ///
    /// A destination prefix has what all rules say that cover it, for a packet finds the longest one alone:
    /// what they say together, if none of them names a source, or else the group of their sources.
    fn place(&mut self, class: u32, place: Place, rules: &[&Rule]) {
        let mut by_destination: BTreeMap<Prefix, Vec<&Rule>> = BTreeMap::new();
        for rule in rules {
            by_destination.entry(rule.destination).or_default().push(rule);
        }
        let name_sources = rules.iter().any(|rule| rule.source.is_some());
        let mut groups: HashMap<Vec<&Rule>, u32> = HashMap::new();
        for destination in by_destination.keys() {
            // Where no rule of the class names a source, those of the longest prefix decide alone.
            let shortest = if name_sources { 0 } else { destination.length };
            let covering: Vec<&Rule> = (shortest..=destination.length)
                .filter_map(|length| {
                    by_destination.get(&Prefix::containing(destination.address, length))
                })
                .flatten()
                .copied()
                .collect();
            let ruling = if covering.iter().all(|rule| rule.source.is_none()) {
                ruling(&covering, place.named()).expect("its own rule")
            } else if let Some(group) = groups.get(&covering) {
                Ruling::by_source(*group)
            } else {
                let group = self.group(place, &covering);
                groups.insert(covering, group);
                Ruling::by_source(group)
            };
            self.enter(class, place, Some(*destination), ruling);
        }
    }

    /// A new group of sources: the longest one decides, whatever the rules' destinations.
    fn group(&mut self, place: Place, rules: &[&Rule]) -> u32 {
        let number = self.take_number();
        let named: BTreeSet<Option<Prefix>> = rules.iter().map(|rule| rule.source).collect();
        let mut by_source: HashMap<Option<Prefix>, Vec<&Rule>> = HashMap::new();
        for rule in rules {
            by_source.entry(rule.source).or_default().push(rule);
        }
        // Both would stand where every address is found; the rules that name all of them come first.
        let all = named.iter().flatten().any(|source| source.key_bits() == 0);
        for source in named.into_iter().filter(|source| source.is_some() || !all) {
            let ruling = ruling(&by_source[&source], place.named()).expect("its own rule");
            self.enter(number, place, source, ruling);
        }
        number
    }

    /// The class of a port.
    pub fn port_class(&self, protocol: Protocol, port: u16) -> PortClass {
        self.classes[protocol as usize][usize::from(port)]
    }

    /// The classes of every port, by [`Protocol`].
    pub(super) fn classes(&self) -> &[Vec<PortClass>; 2] {
        &self.classes
    }

    /// The places that are named by what is said of sources alone.
    pub(super) fn source_places(&self) -> PortClass {
        self.source_places
    }

    /// Entries that it takes in the trie.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Classes of ports that have rules.
    pub fn class_count(&self) -> usize {
        self.class_count
    }

    /// Whether sources are excluded.
    pub fn has_exclusions(&self) -> bool {
        self.has_exclusions
    }

    /// Whether packets are dropped by their source, alone or with their destination.
    pub fn drops_sources(&self) -> bool {
        self.drops_sources
    }

    /// The entries as one of the two sets: length of the key in bits, key, value.
    pub fn trie(&self, set: SetIndex) -> impl Iterator<Item = (u32, RuleKey, u32)> + '_ {
        self.entries.iter().map(move |entry| {
            let key = RuleKey::new(set, entry.number, entry.place, entry.address);
            (RuleKey::FIXED_BITS + entry.bits, key, entry.ruling.number())
        })
    }
}

/// A place that [`RuleSet::check_devices`] has seen.
fn told(place: Option<Place>) -> Place {
    place.expect("the devices have been checked")
}

/// What rules of one source say together to whom they are all for: the longest destination decides, then the
/// fewest ports.
fn ruling(rules: &[&Rule], named: Zones) -> Option<Ruling> {
    let rule = rules.iter().max_by_key(|rule| (rule.destination.length, !rule.ports.width()))?;
    let source_bits = rule.source.map(Prefix::key_bits);
    let ruling = Ruling::new(rule.action, source_bits, rule.destination.key_bits(), named);
    Some(if rule.blocks() { ruling.blocking() } else { ruling })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::super::place::{Vlan, Where};
    use super::*;
    use crate::ports::Ports;

    /// A packet, as far as rules ask.
    #[derive(Clone, Debug)]
    struct Packet {
        protocol: Protocol,
        source: IpAddr,
        destination: IpAddr,
        port: u16,
        device: &'static str,
        vlan: &'static str,
    }

    const DEVICES: [&str; 3] = ["a", "b", "c"];
    const VLANS: [&str; 3] = ["none", "5", "7.5"];

    fn devices() -> DeviceNumbers {
        DeviceNumbers::configured(&DEVICES.map(str::to_owned))
    }

    /// The rules as they are meant, asked one by one.
    fn naive(rules: &[Rule], packet: &Packet) -> Option<(Action, bool)> {
        let vlan: Vlan = packet.vlan.parse().unwrap();
        let fits = |rule: &&Rule| {
            rule.protocol == packet.protocol
                && rule.destination.contains(packet.destination)
                && rule.ports.contains(packet.port)
                && rule.source.is_none_or(|source| source.contains(packet.source))
                && rule.place.device.as_deref().is_none_or(|device| device == packet.device)
                && rule.place.vlan.is_none_or(|named| named == vlan)
        };
        let key = |rule: &&Rule| {
            let source = rule.source.map_or(-1, |source| i16::from(source.length));
            let place = (rule.place.vlan.is_some(), rule.place.device.is_some());
            (source, rule.destination.length, place, !rule.ports.width())
        };
        let rule = rules.iter().filter(fits).max_by_key(key)?;
        Some((rule.action, rule.action == Action::Drop && rule.source.is_some()))
    }

    /// What the longest prefix has, of a class or group and a place.
    fn longest(compiled: &Compiled, number: u32, place: Place, address: IpAddr) -> Ruling {
        let bits = |address: Address| u128::from_be_bytes(address.octets());
        let wanted = bits(address.into());
        let covers = |entry: &&Entry| {
            let ignored = 128 - entry.bits;
            entry.number == number
                && entry.place == place
                && (bits(entry.address) ^ wanted).checked_shr(ignored).unwrap_or(0) == 0
        };
        let found = compiled.entries.iter().filter(covers).max_by_key(|entry| entry.bits);
        found.map_or(Ruling::NONE, |entry| entry.ruling)
    }

    /// What the programs find: the class of the port, then of each kind of place that the class names the
    /// longest of its prefixes, and where that is a group, the longest of its sources.
    fn asked(compiled: &Compiled, packet: &Packet) -> Option<(Action, bool)> {
        let class = compiled.port_class(packet.protocol, packet.port);
        let place = |named: Zones| {
            Where {
                device: named.by_device.then(|| packet.device.into()),
                vlan: named.by_vlan.then(|| packet.vlan.parse().unwrap()),
            }
            .told(&devices())
            .unwrap()
        };
        let kinds = Place::KINDS.into_iter().filter(|named| class.names(*named)).map(place);
        let found = kinds
            .chain([Place::ANY])
            .map(|place| {
                let found = longest(compiled, class.number(), place, packet.destination);
                match found.group() {
                    None => found,
                    Some(group) => longest(compiled, group, place, packet.source),
                }
            })
            .max()
            .unwrap();
        let action = found.action()?;
        assert!(action != Action::Drop || class.has_drop(), "{class:?} hides a drop");
        assert!(!found.blocks() || class.blocks() && compiled.drops_sources());
        assert!(class.has_rules());
        Some((action, found.blocks()))
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

    fn prefix() -> impl Strategy<Value = Prefix> {
        (address(), 0..5_u8).prop_map(|(address, host_bits)| {
            Prefix::containing(address, Prefix::width(address) - host_bits)
        })
    }

    fn place() -> impl Strategy<Value = Where> {
        let device = prop::option::weighted(0.3, prop::sample::select(&DEVICES[..]));
        let vlan = prop::option::weighted(0.3, prop::sample::select(&VLANS[..]));
        (device, vlan).prop_map(|(device, vlan)| Where {
            device: device.map(Into::into),
            vlan: vlan.map(|vlan| vlan.parse().unwrap()),
        })
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let action = prop::sample::select(&[Action::Divert, Action::Pass, Action::Drop][..]);
        let ports = prop_oneof![
            4 => (0..12_u16, 0..12_u16).prop_map(|(a, b)| (a.min(b), a.max(b))),
            1 => (65_530..=u16::MAX).prop_map(|first| (first, u16::MAX)),
            1 => Just((0, u16::MAX)),
        ];
        let source = prop_oneof![
            3 => Just(None),
            3 => prefix().prop_map(Some),
            1 => prop::sample::select(&["0.0.0.0/0", "::/0"][..]).prop_map(|all| all.parse().ok()),
        ];
        (action, protocol(), prefix(), ports, source, place()).prop_map(
            |(action, protocol, destination, (first, last), source, place)| {
                let ports = Ports { first, last };
                Rule { action, protocol, destination, ports, source, place }
            },
        )
    }

    fn packet() -> impl Strategy<Value = Packet> {
        let ends = (address(), address())
            .prop_filter("one family", |(one, other)| one.is_ipv4() == other.is_ipv4());
        let port = prop_oneof![0..14_u16, (0..14_u16).prop_map(|port| u16::MAX - port)];
        let (device, vlan) = (prop::sample::select(&DEVICES[..]), prop::sample::select(&VLANS[..]));
        (protocol(), ends, port, device, vlan).prop_map(
            |(protocol, (source, destination), port, device, vlan)| Packet {
                protocol,
                source,
                destination,
                port,
                device,
                vlan,
            },
        )
    }

    proptest! {
        #[test]
        fn the_compiled_form_says_what_the_rules_say(
            rules in prop::collection::vec(rule(), 0..40),
            packets in prop::collection::vec(packet(), 100),
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
            let rules: Vec<Rule> = set.rules.iter().map(|(rule, _)| rule.clone()).collect();
            let compiled = Compiled::of(&set, &devices()).unwrap();
            for packet in packets {
                let (asked, naive) = (asked(&compiled, &packet), naive(&rules, &packet));
                prop_assert_eq!(asked, naive, "{:?} {:#?}", packet, kept);
            }
        }
    }

    fn compiled(lines: impl Iterator<Item = String>) -> Result<Compiled, GatewayError> {
        let set = RuleSet::parse("rules", &lines.collect::<Vec<_>>().join("\n")).unwrap();
        Compiled::of(&set, &devices())
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
    #[test]
    fn many_rules_of_many_sources_and_places_stay_small() {
        let source =
            |n: u16| format!("drop tcp 192.0.2.0/24 port 7000 from 10.{}.{}.0/24", n >> 8, n & 255);
        let form = compiled((0..10_000).map(source)).unwrap();
        assert_eq!((form.class_count(), form.entries()), (1, 10_001));
        let vlan = |n: u16| {
            format!(
                "divert tcp 10.0.{}.0/24 port 7000 vlan {}.{}",
                n & 7,
                n / 1000 + 1,
                n % 1000 + 1
            )
        };
        let form = compiled((0..16_000).map(vlan)).unwrap();
        assert_eq!((form.class_count(), form.entries()), (1, 16_000));
    }

    #[test]
    fn a_device_that_is_not_there_is_refused() {
        let lines = ["divert tcp 10.0.0.0/8 port 1 device a", "exclude 10.0.0.0/8 device eth7"];
        let error = compiled(lines.iter().map(ToString::to_string)).unwrap_err().to_string();
        assert!(
            error.starts_with(
                "rules:2: `device eth7` is not one of gateway.devices, which are a, b, c"
            ),
            "{error}"
        );
    }
}
