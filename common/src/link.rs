//! Client-facing devices: whose frames the programs look at.

use crate::packet::PacketBytes;

/// An Ethernet address, as two words that have its bytes as they stand in a frame.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HardwareAddress {
    first: u32,
    last: u16,
}

impl HardwareAddress {
    /// From its bytes.
    pub const fn new(bytes: [u8; 6]) -> Self {
        let [first @ .., fifth, sixth] = bytes;
        Self { first: u32::from_ne_bytes(first), last: u16::from_ne_bytes([fifth, sixth]) }
    }

    /// Its bytes.
    pub const fn bytes(self) -> [u8; 6] {
        let (first, last) = (self.first.to_ne_bytes(), self.last.to_ne_bytes());
        [first[0], first[1], first[2], first[3], last[0], last[1]]
    }

    /// To whom a frame is sent; `None` of one that is shorter than the address.
    #[inline(always)]
    pub fn of_destination<P: PacketBytes + ?Sized>(frame: &P) -> Option<Self> {
        let [first] = frame.words(0)?;
        Some(Self { first, last: u16::from_ne_bytes(frame.load(4)?) })
    }

    /// As the key of a map.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        (self.last as u64) << 32 | self.first as u64
    }
}

/// What the programs know of a client-facing device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientDevice {
    first: u32,
    last: u16,
    /// From 1 upwards, in the order of the configuration; 0: not a device of the instance.
    pub number: u16,
}

const _: () = assert!(size_of::<ClientDevice>() == 8 && align_of::<ClientDevice>() == 4);

impl ClientDevice {
    /// Slots of the array of devices.
    pub const SLOTS: u32 = 1 << 16;

    /// A device with its own hardware address.
    pub const fn new(number: u16, address: HardwareAddress) -> Self {
        Self { first: address.first, last: address.last, number }
    }

    /// Its own hardware address.
    pub const fn address(self) -> HardwareAddress {
        HardwareAddress { first: self.first, last: self.last }
    }

    /// Where a device stands in the array. Two devices of a host meet in one slot only if it has
    /// made 65,536 others in between.
    #[inline(always)]
    pub const fn slot(ifindex: u32) -> u32 {
        ifindex % Self::SLOTS
    }

    /// Whether frames for this address are for the device itself.
    #[inline(always)]
    pub const fn is(&self, address: HardwareAddress) -> bool {
        self.number != 0 && self.first == address.first && self.last == address.last
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
        assert_eq!(HardwareAddress::of_destination(&bytes[..]), Some(address));
        assert_eq!(HardwareAddress::of_destination(&bytes[..5]), None);
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
