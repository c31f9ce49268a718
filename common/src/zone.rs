//! Zones: networks whose addresses may overlap, such as those of tenants. A flow's packets come from one.

/// What tells zones apart. Nothing: there is one, and a client's packets may come by any device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zones {
    /// Each client-facing device has zones of its own.
    pub by_device: bool,
    /// Each VLAN has.
    pub by_vlan: bool,
}

impl Zones {
    /// Whether there is but one.
    #[inline(always)]
    pub const fn are_one(self) -> bool {
        !self.by_device && !self.by_vlan
    }
}

/// The zone of a packet or of a flow.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Zone(u64);

impl Zone {
    /// Of everything, where there is but one. To a flow of it belong packets from everywhere.
    pub const ANY: Self = Self(0);
    /// Of a flow none of whose packets has shown where they come from. No packet has it.
    pub const UNKNOWN: Self = Self(u64::MAX);
    /// In the zone of every packet, which is never [`ANY`](Self::ANY) thereby.
    const KNOWN: u64 = 1 << 31;

    /// Where a packet comes from: the device's index, and the VLANs as [`crate::packet::vlans`] has them.
    #[inline(always)]
    pub const fn new(zones: Zones, ifindex: u32, vlans: u32) -> Self {
        if zones.are_one() {
            return Self::ANY;
        }
        let device = if zones.by_device { (ifindex as u64) << 32 } else { 0 };
        let vlans = if zones.by_vlan { vlans as u64 } else { 0 };
        Self(device | Self::KNOWN | vlans)
    }

    /// As a number.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// From its [`number`](Self::number).
    #[inline(always)]
    pub const fn of_number(number: u64) -> Self {
        Self(number)
    }

    /// Whether a packet of a zone may belong to a flow of this one.
    #[inline(always)]
    pub const fn admits(self, packet: Self) -> bool {
        self.0 == packet.0 || self.0 == Self::ANY.0 || self.0 == Self::UNKNOWN.0
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;
    use crate::packet::vlans;
    use crate::rule::{ActiveSet, SetFlags, SetIndex};

    #[test]
    fn what_tells_zones_apart_stays_when_rules_change() {
        let [first, second] = SetIndex::BOTH;
        for (by_device, by_vlan) in [(false, false), (true, false), (false, true), (true, true)] {
            let zones = Zones { by_device, by_vlan };
            let active = ActiveSet::default().with_hands_on(true).with_zones(zones);
            let changed = active
                .with_flags(second, SetFlags::new(true, true))
                .with_set(second)
                .with_drops_sources(true);
            for active in [active, changed, changed.with_set(first).with_drops_sources(false)] {
                assert!(active.zones() == zones && active.hands_on());
                assert_eq!(active.with_zones(Zones::default()).zones(), Zones::default());
            }
        }
    }

    #[test]
    fn a_vlan_is_its_identifiers() {
        let frame = |tags: &[u16]| {
            let mut frame = Vec::from([0; 12]);
            for tag in tags {
                frame.extend([0x81, 0]);
                frame.extend(tag.to_be_bytes());
            }
            frame.extend([8, 0]);
            frame.extend([0xff; 20]);
            vlans(&*frame, tags.len())
        };
        assert_eq!((frame(&[]), frame(&[0x2000]), frame(&[0x2000, 0xf000])), (0, 0, 0));
        assert_eq!((frame(&[0x2064]), frame(&[0x0fff])), (0x64, 0xfff));
        assert_eq!((frame(&[0x64, 5]), frame(&[5, 0x64])), (0x64_005, 0x5064));
        assert_eq!((frame(&[0, 5]), frame(&[5, 0])), (5, 5));
    }

    #[test]
    fn zones_are_told_apart_by_what_is_asked_for() {
        let places = [(1, 0), (1, 5), (1, 5 << 12 | 5), (2, 0), (2, 5), (u32::MAX, 0xff_ffff)];
        for (by_device, by_vlan) in [(false, false), (true, false), (false, true), (true, true)] {
            let zones = Zones { by_device, by_vlan };
            for (device, vlans) in places {
                let zone = Zone::new(zones, device, vlans);
                assert_eq!(zone == Zone::ANY, zones.are_one());
                assert!(
                    zone != Zone::UNKNOWN && Zone::ANY.admits(zone) && Zone::UNKNOWN.admits(zone)
                );
                for (other_device, other_vlans) in places {
                    let same = (!by_device || device == other_device)
                        && (!by_vlan || vlans == other_vlans);
                    let other = Zone::new(zones, other_device, other_vlans);
                    assert_eq!(zone.admits(other), same, "{zones:?} {zone:?} {other:?}");
                }
            }
        }
    }
}
