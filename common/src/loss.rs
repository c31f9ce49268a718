//! Packets that the kernel drops when a program has aimed them at a device: counted by programs on the
//! tracepoints that tell of it, which run for nothing else.

/// What those programs must know.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossSetup {
    /// The kernel's ids of [`crate::abi::map::RELAY_LINK`] and [`crate::abi::map::CLIENT_LINKS`]: what
    /// was aimed by others is not ours.
    pub relay_link: u32,
    /// See there.
    pub client_links: u32,
    /// The gateway's end of the veth to the relay.
    pub gateway_ifindex: u32,
    /// Number of the gateway's network namespace (`stat` of `/proc/PID/ns/net`).
    pub namespace: u32,
    /// Where a `struct net_device` has its index, in bytes.
    pub ifindex_at: u32,
    /// Where it has the address of its `struct net`.
    pub net_at: u32,
    /// Where that has its number.
    pub number_at: u32,
}

/// A kind of loss.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss {
    /// The device at which the packets were aimed.
    pub ifindex: u32,
    /// Why it did not take them (`asm-generic/errno.h`); 0: it did not say.
    pub errno: u32,
}

/// Most kinds of loss that are told apart; others are not counted.
pub const MAX_LOSSES: u32 = 512;

const _: () = assert!(size_of::<LossSetup>() == 28 && size_of::<Loss>() == 8);
