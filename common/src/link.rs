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

/// What the programs know of a client-facing device: its hardware address, and behind it a number, from
/// 1 upwards in the order of the configuration. All zero: not a device of the instance.
///
/// One word, for the programs compare it for every packet of a port that has rules.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientDevice(u64);

const _: () = assert!(size_of::<ClientDevice>() == 8 && align_of::<ClientDevice>() == 8);

impl ClientDevice {
    /// Slots of the array of devices.
    pub const SLOTS: u32 = 1 << 16;

    /// A device with its own hardware address.
    pub const fn new(number: u16, address: HardwareAddress) -> Self {
        Self(self::number(address.bytes(), number.to_ne_bytes()))
    }

    /// Its number; 0: not a device of the instance.
    pub const fn number(self) -> u16 {
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
