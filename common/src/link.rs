//! Client-facing devices: whose frames the programs look at.

use crate::packet::PacketBytes;

/// The bytes of an address in a number that has two more behind them.
const ADDRESS: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);

/// The bytes of an address, and two more behind them.
const fn number(address: [u8; 6], [seventh, eighth]: [u8; 2]) -> u64 {
    let [first @ .., fifth, sixth] = address;
    let [first, second, third, fourth] = first;
    u64::from_ne_bytes([first, second, third, fourth, fifth, sixth, seventh, eighth])
}

/// An Ethernet address, as a number that has its bytes as they stand in a frame.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HardwareAddress(u64);

impl HardwareAddress {
    /// From its bytes.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(number(bytes, [0; 2]))
    }

    /// Its bytes.
    pub const fn bytes(self) -> [u8; 6] {
        let [bytes @ .., _, _] = self.0.to_ne_bytes();
        bytes
    }

    /// To whom a frame is sent; `None` of one that is shorter than its header.
    #[inline(always)]
    pub fn of_destination<P: PacketBytes + ?Sized>(frame: &P) -> Option<Self> {
        Some(Self(u64::from_ne_bytes(frame.load(0)?) & ADDRESS))
    }

    /// As the key of a map.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// How far the programs ask where an answer would go, before they divert what begins something new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReversePath {
    /// They do not ask.
    #[default]
    Off,
    /// There must be a route to the source.
    Loose,
    /// It must lead out of the device by which the packet came in. Of packets with VLAN tags, as
    /// [`Self::Loose`]: the route names the VLAN's device.
    Strict,
}

/// What the programs know of a client-facing device: its hardware address, and behind it a number, from
/// 1 upwards, by which rules know it, with the device's [`ReversePath`] in its upper two bits.
/// All zero: not a device of the instance.
///
/// One word, for the programs compare it for every packet of a port that has rules.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientDevice(u64);

const _: () = assert!(size_of::<ClientDevice>() == 8 && align_of::<ClientDevice>() == 8);

impl ClientDevice {
    /// Slots of the array of devices.
    pub const SLOTS: u32 = 1 << 16;

    /// The highest number.
    pub const MAX_NUMBER: u16 = 127;
    /// Above them are two for the [`ReversePath`].
    const NUMBER_BITS: u32 = 14;

    /// A device with its own hardware address, by which sources are not checked. Its number is
    /// [`Self::MAX_NUMBER`] at most.
    pub const fn new(number: u16, address: HardwareAddress) -> Self {
        let number = number & Self::MAX_NUMBER;
        Self(self::number(address.bytes(), number.to_ne_bytes()))
    }

    /// The same device with its sources checked so far.
    #[must_use]
    pub const fn with_reverse_path(self, check: ReversePath) -> Self {
        let bits = (check as u16) << Self::NUMBER_BITS | self.number();
        Self(self::number(self.address().bytes(), bits.to_ne_bytes()))
    }

    /// Its number; 0: not a device of the instance.
    pub const fn number(self) -> u16 {
        self.upper() & Self::MAX_NUMBER
    }

    /// How far sources are checked on it.
    #[inline(always)]
    pub const fn reverse_path(self) -> ReversePath {
        match self.upper() >> Self::NUMBER_BITS {
            0 => ReversePath::Off,
            1 => ReversePath::Loose,
            _ => ReversePath::Strict,
        }
    }

    /// What stands behind the address.
    #[inline(always)]
    const fn upper(self) -> u16 {
        let [.., seventh, eighth] = self.0.to_ne_bytes();
        u16::from_ne_bytes([seventh, eighth])
    }

    /// Its own hardware address.
    pub const fn address(self) -> HardwareAddress {
        HardwareAddress(self.0 & ADDRESS)
    }

    /// Where a device stands in the array. Two devices of a host meet in one slot only if it has
    /// made 65,536 others in between.
    #[inline(always)]
    pub const fn slot(ifindex: u32) -> u32 {
        ifindex % Self::SLOTS
    }

    /// Whether frames for this address are for the device itself.
    #[inline(always)]
    pub const fn is(self, address: HardwareAddress) -> bool {
        self.0 & ADDRESS == address.0 && self.0 & !ADDRESS != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_back() {
        let bytes = [2, 0, 0x5e, 0, 1, 0x33];
        let address = HardwareAddress::new(bytes);
        assert_eq!(address.bytes(), bytes);
        let frame = [2, 0, 0x5e, 0, 1, 0x33, 7, 7];
        assert_eq!(HardwareAddress::of_destination(&frame[..]), Some(address));
        assert_eq!(HardwareAddress::of_destination(&bytes[..]), None);
        assert_ne!(address.number(), HardwareAddress::new([2, 0, 0x5e, 0, 1, 0x34]).number());
        assert_ne!(address.number(), HardwareAddress::new([3, 0, 0x5e, 0, 1, 0x33]).number());
    }

    #[test]
    fn a_device_keeps_its_check_beside_its_number() {
        let address = HardwareAddress::new([2, 0, 0, 0, 0, 1]);
        for number in [1, 64, ClientDevice::MAX_NUMBER] {
            let device = ClientDevice::new(number, address);
            assert_eq!(device.reverse_path(), ReversePath::Off);
            for check in [ReversePath::Strict, ReversePath::Loose, ReversePath::Off] {
                let device = device.with_reverse_path(check).with_reverse_path(check);
                assert_eq!((device.reverse_path(), device.number()), (check, number));
                assert_eq!(device.address(), address);
                assert!(device.is(address));
            }
        }
        let nothing = ClientDevice::default();
        assert_eq!((nothing.number(), nothing.reverse_path()), (0, ReversePath::Off));
    }

    #[test]
    fn a_device_is_its_address_and_nothing_is_no_device() {
        let address = HardwareAddress::new([2, 0, 0, 0, 0, 1]);
        let device = ClientDevice::new(1, address);
        assert_eq!(device.address(), address);
        assert!(device.is(address));
        assert!(!device.is(HardwareAddress::new([2, 0, 0, 0, 0, 2])));
        assert!(!device.is(HardwareAddress::new([3, 0, 0, 0, 0, 1])));
        assert!(!ClientDevice::default().is(HardwareAddress::default()));
    }
}
