//! Steering rules: which packets may be diverted.
//!
//! One LPM trie answers "is there a rule for this packet" in one look-up: protocol and port stand
//! before the address and are always matched whole, so that the longest matching prefix is the
//! longest destination prefix *for this protocol and port*.

use crate::flow::Address;

/// The data part of the trie's key.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleKey {
    /// IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
    /// Destination port, network byte order.
    pub port: [u8; 2],
    /// Destination prefix; an IPv4 prefix of length n has length 96 + n here.
    pub destination: Address,
}

const _: () = assert!(size_of::<RuleKey>() == 20 && align_of::<RuleKey>() == 4);

impl RuleKey {
    /// Bits before the address, always matched.
    pub const FIXED_BITS: u32 = 32;
    /// A whole key; what a packet is looked up with.
    pub const ALL_BITS: u32 = Self::FIXED_BITS + 128;

    /// The key of the packets that travel to `destination` and `port`.
    #[inline(always)]
    pub const fn new(protocol: u8, port: [u8; 2], destination: Address) -> Self {
        Self { protocol, reserved: 0, port, destination }
    }
}

/// What a rule asks for; the trie's value, as `u32`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connections begun from now on go to the relay.
    Divert = 1,
}
