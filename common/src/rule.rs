//! Steering rules, in the form in which the programs ask them.
//!
//! Userspace sorts ports into classes: all ports of a class are covered by the same rules. A packet
//! is first asked for the class of its port, which is one look-up in an array; only if that has
//! rules, and only where they matter, the longest destination prefix is looked for among those of
//! the class. Rules that name sources are asked in a second step: the prefix of the destination leads to a
//! group of sources. Rules that name a [`Place`] stand apart from those that name none, and are looked up
//! only where the class has such rules; of what is found, the highest [`Ruling`] counts.
//!
//! Every map holds two sets of rules. [`ActiveSet`] says which is in force, so that a whole set is
//! written at leisure and put into force by one byte.

use crate::flow::Address;
use crate::packet::UDP;
use crate::zone::Zones;

/// What a rule asks for.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// To the relay.
    Divert = 1,
    /// The ordinary path.
    Pass = 2,
    /// Nowhere.
    Drop = 3,
}

impl Action {
    /// From its number.
    #[inline(always)]
    const fn of_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Divert),
            2 => Some(Self::Pass),
            3 => Some(Self::Drop),
            _ => None,
        }
    }
}

/// One of the two sets of rules in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetIndex(u32);

impl SetIndex {
    /// Both.
    pub const BOTH: [Self; 2] = [Self(0), Self(1)];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        Self(self.0 ^ 1)
    }
}

/// Which set is in force and what is special about each.
///
/// The low byte has the number of the set in force, whether that drops by source, and what is so whatever
/// the rules are; the two halves of the other are the sets' flags: what belongs to a set is written before it
/// comes into force, and then one byte changes.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActiveSet(u16);

/// Properties of a set of rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetFlags(u16);

impl SetFlags {
    const EXCLUSIONS: u16 = 1;
    const BY_RULE: u16 = 2;

    /// `exclusions`: some sources are not diverted. `by_rule`: a packet is diverted by rule alone
    /// and not by its flow.
    pub const fn new(exclusions: bool, by_rule: bool) -> Self {
        Self(exclusions as u16 * Self::EXCLUSIONS + by_rule as u16 * Self::BY_RULE)
    }

    /// Whether sources are to be looked for among the exclusions.
    #[inline(always)]
    pub const fn has_exclusions(self) -> bool {
        self.0 & Self::EXCLUSIONS != 0
    }

    /// Whether packets are diverted by rule alone.
    #[inline(always)]
    pub const fn by_rule(self) -> bool {
        self.0 & Self::BY_RULE != 0
    }
}

impl ActiveSet {
    const HANDS_ON: u16 = 2;
    const DROPS_SOURCES: u16 = 4;
    const ZONES_BY_DEVICE: u16 = 8;
    const ZONES_BY_VLAN: u16 = 16;

    /// What tells apart the networks that packets come from.
    #[inline(always)]
    pub const fn zones(self) -> Zones {
        Zones {
            by_device: self.0 & Self::ZONES_BY_DEVICE != 0,
            by_vlan: self.0 & Self::ZONES_BY_VLAN != 0,
        }
    }

    /// The same with other [`zones`](Self::zones).
    #[must_use]
    pub const fn with_zones(self, zones: Zones) -> Self {
        let bits = zones.by_device as u16 * Self::ZONES_BY_DEVICE
            + zones.by_vlan as u16 * Self::ZONES_BY_VLAN;
        Self(self.0 & !(Self::ZONES_BY_DEVICE | Self::ZONES_BY_VLAN) | bits)
    }

    /// Whether the set in force drops packets by their source. In the low byte, for packets of accepted
    /// flows ask for it too.
    #[inline(always)]
    pub const fn drops_sources(self) -> bool {
        self.0 & Self::DROPS_SOURCES != 0
    }

    /// The same with another answer to [`drops_sources`](Self::drops_sources).
    #[must_use]
    pub const fn with_drops_sources(self, drops: bool) -> Self {
        Self(self.0 & !Self::DROPS_SOURCES | (drops as u16 * Self::DROPS_SOURCES))
    }

    /// Whether the relay has connections to servers in its clients' names, whose answers come back
    /// to the clients' ports.
    #[inline(always)]
    pub const fn hands_on(self) -> bool {
        self.0 & Self::HANDS_ON != 0
    }

    /// The same with another answer to [`hands_on`](Self::hands_on).
    #[must_use]
    pub const fn with_hands_on(self, hands_on: bool) -> Self {
        Self(self.0 & !Self::HANDS_ON | (hands_on as u16 * Self::HANDS_ON))
    }

    /// The set in force.
    #[inline(always)]
    pub const fn set(self) -> SetIndex {
        SetIndex((self.0 & 1) as u32)
    }

    /// Where a set has its flags.
    #[inline(always)]
    const fn shift(set: SetIndex) -> u32 {
        8 + 4 * set.0
    }

    /// The properties of the set in force.
    #[inline(always)]
    pub const fn flags(self) -> SetFlags {
        SetFlags(self.0 >> Self::shift(self.set()) & 0xf)
    }

    /// The same with other properties of one set.
    #[must_use]
    pub const fn with_flags(self, set: SetIndex, flags: SetFlags) -> Self {
        let shift = Self::shift(set);
        Self(self.0 & !(0xf << shift) | flags.0 << shift)
    }

    /// The same with another set in force.
    #[must_use]
    pub const fn with_set(self, set: SetIndex) -> Self {
        Self(self.0 & !1 | (set.0 & 1) as u16)
    }
}

/// A class of ports, as the array of classes holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortClass(pub u32);

impl PortClass {
    /// No rule is for this port. Its packets are passed without another question.
    pub const NO_RULE: Self = Self(0);
    /// No rule is for this port any more, but connections that were diverted under a former set of
    /// rules go on.
    pub const FLOWS_ONLY: Self = Self(1);
    /// The first number of a class with rules.
    pub const FIRST: u32 = 2;
    /// Slots of the array: the ports of two sets of two protocols, and [`Self::sources_slot`] of each set.
    pub const SLOTS: u32 = 2 * 2 * 65_536 + 2;
    const HAS_DROP: u32 = 1 << 31;
    const BLOCKS: u32 = 1 << 30;
    const DEVICES: u32 = 1 << 29;
    const VLANS: u32 = 1 << 28;
    const VLANS_OF_DEVICES: u32 = 1 << 27;
    const PLACES: u32 = Self::DEVICES | Self::VLANS | Self::VLANS_OF_DEVICES;
    const NUMBER: u32 = Self::VLANS_OF_DEVICES - 1;

    /// A class with rules. `has_drop`: there is a [`Action::Drop`] among them, which is for every
    /// packet and not only for those that open a connection.
    pub const fn new(number: u32, has_drop: bool) -> Self {
        Self(number & Self::NUMBER | if has_drop { Self::HAS_DROP } else { 0 })
    }

    /// The same with rules that name such places, besides those that it has already.
    #[must_use]
    pub const fn with_places(self, named: Zones) -> Self {
        Self(self.0 | Self::naming(named))
    }

    /// The same, with rules that block clients: what they send is dropped on connections too that the relay
    /// has.
    #[must_use]
    pub const fn with_blocks(self) -> Self {
        Self(self.0 | Self::BLOCKS)
    }

    #[inline(always)]
    const fn naming(named: Zones) -> u32 {
        match (named.by_device, named.by_vlan) {
            (false, false) => 0,
            (true, false) => Self::DEVICES,
            (false, true) => Self::VLANS,
            (true, true) => Self::VLANS_OF_DEVICES,
        }
    }

    /// The class's number.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0 & Self::NUMBER
    }

    /// Whether one of its rules drops.
    #[inline(always)]
    pub const fn has_drop(self) -> bool {
        self.0 & Self::HAS_DROP != 0
    }

    /// Whether one of its rules blocks clients.
    #[inline(always)]
    pub const fn blocks(self) -> bool {
        self.0 & Self::BLOCKS != 0
    }

    /// Whether it has rules.
    #[inline(always)]
    pub const fn has_rules(self) -> bool {
        self.number() >= Self::FIRST
    }

    /// Whether one of its rules names a place.
    #[inline(always)]
    pub const fn names_places(self) -> bool {
        self.0 & Self::PLACES != 0
    }

    /// Whether one of its rules names just this of a place.
    #[inline(always)]
    pub const fn names(self, named: Zones) -> bool {
        self.0 & Self::naming(named) != 0
    }

    /// Where the class of a port stands in the array: [`crate::packet::TCP`] or [`UDP`], and the
    /// port in network byte order.
    #[inline(always)]
    pub const fn slot(set: SetIndex, protocol: u8, port: [u8; 2]) -> u32 {
        let udp = (protocol == UDP) as u32;
        set.0 << 17 | udp << 16 | u16::from_be_bytes(port) as u32
    }

    /// Where it stands which places are named by what a set says of sources alone.
    #[inline(always)]
    pub const fn sources_slot(set: SetIndex) -> u32 {
        Self::SLOTS - 2 + set.0
    }
}

/// Where packets come from, as far as a rule names it: a client-facing device, a VLAN, both or neither.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u32);

impl Place {
    /// Of a rule that names none.
    pub const ANY: Self = Self(0);
    /// What names of places there can be, besides none. The later one decides where two rules are alike
    /// otherwise.
    pub const KINDS: [Zones; 3] = [
        Zones { by_device: true, by_vlan: false },
        Zones { by_device: false, by_vlan: true },
        Zones { by_device: true, by_vlan: true },
    ];
    const DEVICE_SHIFT: u32 = 25;
    /// In every place that names a VLAN: none at all is one too.
    const HAS_VLAN: u32 = 1 << 24;

    /// What is `named` of a place: the device by its number ([`crate::link::ClientDevice::number`]), the
    /// VLANs as [`crate::packet::vlans`] has them.
    #[inline(always)]
    pub const fn new(named: Zones, device: u16, vlans: u32) -> Self {
        let device = if named.by_device { (device as u32) << Self::DEVICE_SHIFT } else { 0 };
        let vlans = if named.by_vlan { Self::HAS_VLAN | vlans & (Self::HAS_VLAN - 1) } else { 0 };
        Self(device | vlans)
    }

    /// What it names.
    pub const fn named(self) -> Zones {
        Zones {
            by_device: self.0 >> Self::DEVICE_SHIFT != 0,
            by_vlan: self.0 & Self::HAS_VLAN != 0,
        }
    }

    /// As a number.
    pub const fn number(self) -> u32 {
        self.0
    }
}

const _: () =
    assert!(crate::link::ClientDevice::MAX_NUMBER as u32 <= u32::MAX >> Place::DEVICE_SHIFT);

/// What the trie answers, as `u32`: what becomes of a packet, or where to ask with its source.
///
/// The higher one decides: first counts the length of the source prefix, then that of the destination
/// prefix, then what it names of a place.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ruling(u32);

impl Ruling {
    /// No rule.
    pub const NONE: Self = Self(0);
    const SOURCE_SHIFT: u32 = 23;
    const DESTINATION_SHIFT: u32 = 15;
    const PLACE_SHIFT: u32 = 13;
    const ASKS_SOURCE: u32 = 1 << 31;
    const BLOCKS: u32 = 4;
    const ACTION: u32 = 3;

    /// What a rule says, with the lengths of its prefixes among 128 bits, and what it names of a place.
    pub const fn new(
        action: Action,
        source_bits: Option<u32>,
        destination_bits: u32,
        named: Zones,
    ) -> Self {
        // A rule that names every source comes before one that names none.
        let source = match source_bits {
            Some(bits) => bits + 1,
            None => 0,
        };
        let place = (named.by_vlan as u32) << 1 | named.by_device as u32;
        Self(
            source << Self::SOURCE_SHIFT
                | destination_bits << Self::DESTINATION_SHIFT
                | place << Self::PLACE_SHIFT
                | action as u32,
        )
    }

    /// The same of a rule that is for every packet, those of connections too that the relay has.
    #[must_use]
    pub const fn blocking(self) -> Self {
        Self(self.0 | Self::BLOCKS)
    }

    /// It depends on the source, which this group knows.
    pub const fn by_source(group: u32) -> Self {
        Self(Self::ASKS_SOURCE | group)
    }

    /// The group to ask with the source.
    #[inline(always)]
    pub const fn group(self) -> Option<u32> {
        if self.0 & Self::ASKS_SOURCE == 0 { None } else { Some(self.0 & !Self::ASKS_SOURCE) }
    }

    /// What becomes of a packet.
    #[inline(always)]
    pub const fn action(self) -> Option<Action> {
        Action::of_number(self.0 & Self::ACTION)
    }

    /// Whether that holds for connections too that the relay has.
    #[inline(always)]
    pub const fn blocks(self) -> bool {
        self.0 & Self::BLOCKS != 0
    }

    /// As a number.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// From its [`number`](Self::number).
    #[inline(always)]
    pub const fn of_number(number: u32) -> Self {
        Self(number)
    }
}

/// The data part of the trie's key: scope and place, which are always matched whole, then the prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleKey {
    /// Set and class, or set and group of sources.
    scope: u32,
    place: Place,
    /// An IPv4 prefix of length n has length 96 + n here.
    pub address: Address,
}

const _: () = assert!(size_of::<RuleKey>() == 24 && align_of::<RuleKey>() == 4);

impl RuleKey {
    /// Bits before the address, always matched.
    pub const FIXED_BITS: u32 = 64;
    /// A whole key; what a packet is looked up with.
    pub const ALL_BITS: u32 = Self::FIXED_BITS + 128;
    /// The number of the group of what is said of sources alone, whatever their packets' destination:
    /// that they are not diverted ([`Action::Pass`]) or dropped ([`Action::Drop`]). It is that of a class
    /// which has no rules.
    pub const SOURCES: u32 = PortClass::FLOWS_ONLY.0;

    /// In the class of a packet's port, or in a group of sources.
    #[inline(always)]
    pub const fn new(set: SetIndex, number: u32, place: Place, address: Address) -> Self {
        Self { scope: set.0 << 31 | number, place, address }
    }

    /// The same in a group of sources.
    #[must_use]
    #[inline(always)]
    pub const fn in_group(self, group: u32, source: Address) -> Self {
        Self { scope: self.scope & 1 << 31 | group, place: self.place, address: source }
    }

    /// Whose key it is.
    pub const fn set(&self) -> SetIndex {
        SetIndex(self.scope >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOWHERE: Zones = Zones { by_device: false, by_vlan: false };

    #[test]
    fn the_ruling_of_the_longer_source_then_of_the_longer_destination_then_of_the_place_decides() {
        let [device, vlan, both] = Place::KINDS;
        let ordered = [
            Ruling::NONE,
            Ruling::new(Action::Drop, None, 0, NOWHERE),
            Ruling::new(Action::Divert, None, 0, device),
            Ruling::new(Action::Divert, None, 0, vlan),
            Ruling::new(Action::Divert, None, 0, both),
            Ruling::new(Action::Divert, None, 97, NOWHERE),
            Ruling::new(Action::Divert, None, 128, NOWHERE),
            Ruling::new(Action::Divert, None, 128, both),
            Ruling::new(Action::Divert, Some(0), 0, NOWHERE),
            Ruling::new(Action::Divert, Some(96), 0, NOWHERE),
            Ruling::new(Action::Divert, Some(128), 0, NOWHERE),
            Ruling::new(Action::Divert, Some(128), 128, both),
            Ruling::by_source(2),
        ];
        assert!(ordered.is_sorted_by(|one, next| one < next), "{ordered:?}");
        for ruling in &ordered[1..ordered.len() - 1] {
            assert!(ruling.action().is_some() && ruling.group().is_none() && !ruling.blocks());
            assert!(ruling.blocking().blocks());
            assert_eq!(ruling.blocking().action(), ruling.action());
        }
        assert_eq!(Ruling::by_source(PortClass::NUMBER).group(), Some(PortClass::NUMBER));
        assert_eq!((Ruling::NONE.action(), Ruling::NONE.group()), (None, None));
    }

    #[test]
    fn a_place_is_what_is_named_of_it() {
        let most = crate::link::ClientDevice::MAX_NUMBER;
        for named in Place::KINDS {
            for (device, vlans) in [(1, 0), (1, 5), (most, 0xff_ffff), (2, 0x64_005)] {
                let place = Place::new(named, device, vlans);
                assert_eq!(place.named(), named);
                for (other, other_vlans) in [(1, 0), (1, 5), (most, 0xff_ffff), (2, 0x64_005)] {
                    let same = (!named.by_device || device == other)
                        && (!named.by_vlan || vlans == other_vlans);
                    assert_eq!(place == Place::new(named, other, other_vlans), same);
                }
            }
        }
        assert_eq!(Place::new(NOWHERE, 7, 7), Place::ANY);
    }

    #[test]
    fn a_class_keeps_its_properties_beside_its_number() {
        let class = PortClass::new(PortClass::NUMBER, true);
        assert!(class.has_drop() && !class.names_places() && !class.blocks());
        let mut all = class.with_blocks();
        for (index, named) in Place::KINDS.into_iter().enumerate() {
            all = all.with_places(named);
            for (other, kind) in Place::KINDS.into_iter().enumerate() {
                assert_eq!(all.names(kind), other <= index);
            }
        }
        assert!(all.names_places() && all.blocks() && all.has_drop() && all.has_rules());
        assert_eq!(all.number(), PortClass::NUMBER);
        let [first, second] = SetIndex::BOTH;
        let last = PortClass::slot(second, UDP, [0xff; 2]);
        assert_eq!(PortClass::sources_slot(first), last + 1);
        assert_eq!(PortClass::sources_slot(second), PortClass::SLOTS - 1);
    }
}
