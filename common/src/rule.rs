//! Steering rules, in the form in which the programs ask them.
//!
//! Userspace sorts ports into classes: all ports of a class are covered by the same rules. A packet
//! is first asked for the class of its port, which is one look-up in an array; only if that has
//! rules, and only where they matter, the longest destination prefix is looked for among those of
//! the class.
//!
//! Every map holds two sets of rules. [`ActiveSet`] says which is in force, so that a whole set is
//! written at leisure and put into force by one byte.

use crate::flow::Address;
use crate::packet::UDP;
use crate::zone::Zones;

/// What a rule asks for; the value of the rules' trie, as `u32`.
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
    /// What a value of the trie means.
    #[inline(always)]
    pub const fn from_value(value: u32) -> Option<Self> {
        match value {
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
    const HAS_DROP: u32 = 1 << 31;

    /// A class with rules. `has_drop`: there is a [`Action::Drop`] among them, which is for every
    /// packet and not only for those that open a connection.
    pub const fn new(number: u32, has_drop: bool) -> Self {
        Self(number | if has_drop { Self::HAS_DROP } else { 0 })
    }

    /// The class's number.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0 & !Self::HAS_DROP
    }

    /// Whether one of its rules drops.
    #[inline(always)]
    pub const fn has_drop(self) -> bool {
        self.0 & Self::HAS_DROP != 0
    }

    /// Whether it has rules.
    #[inline(always)]
    pub const fn has_rules(self) -> bool {
        self.number() >= Self::FIRST
    }

    /// Where the class of a port stands in the array: [`crate::packet::TCP`] or [`UDP`], and the
    /// port in network byte order.
    #[inline(always)]
    pub const fn slot(set: SetIndex, protocol: u8, port: [u8; 2]) -> u32 {
        let udp = (protocol == UDP) as u32;
        set.0 << 17 | udp << 16 | u16::from_be_bytes(port) as u32
    }
}

/// The data part of the trie's key: the scope, which is always matched whole, then the prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleKey {
    /// Set and class.
    scope: u32,
    /// An IPv4 prefix of length n has length 96 + n here.
    pub address: Address,
}

const _: () = assert!(size_of::<RuleKey>() == 20 && align_of::<RuleKey>() == 4);

impl RuleKey {
    /// Bits before the address, always matched.
    pub const FIXED_BITS: u32 = 32;
    /// A whole key; what a packet is looked up with.
    pub const ALL_BITS: u32 = Self::FIXED_BITS + 128;

    /// A rule for destinations, in the class of its ports.
    #[inline(always)]
    pub const fn destination(set: SetIndex, class: PortClass, address: Address) -> Self {
        Self { scope: set.0 << 31 | class.number(), address }
    }

    /// A source that is not diverted ([`Action::Pass`]), or whose packets are dropped
    /// ([`Action::Drop`]), whatever the rules say. It has the scope of a class that has no rules.
    #[inline(always)]
    pub const fn source(set: SetIndex, address: Address) -> Self {
        Self::destination(set, PortClass::FLOWS_ONLY, address)
    }

    /// Whose key it is.
    pub const fn set(&self) -> SetIndex {
        SetIndex(self.scope >> 31)
    }
}
